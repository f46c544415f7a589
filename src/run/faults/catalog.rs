//! By which fault each scenario of the catalogue is seen to fail: the table, and playing it.
//!
//! Owns the form of catalog.txt, the runs, and the comparison of each scenario's own verdict with its row; leaves what the
//! scenarios are to scenario/catalog.
//! Invariant: a row is right only where its scenario failed, in the check that the row names, for one of its reasons.

use super::child::Run;
use super::{LOOK, OR, Setting, blames_host};
use crate::error::{Context, Result};
use crate::proto::scenario::ScenarioSpec;
use crate::run::rundir;
use crate::scenario::catalog::all_scenarios;
use crate::sys::time;
use crate::units::NS_PER_SEC;
use crate::verdict::{Outcome, Status, Verdict, judge_stored};
use std::fs;
use std::thread;

const TABLE: &str = include_str!("catalog.txt");
/// No boot, and no scenario of it, takes longer under an emulator beside others.
const BOOT_NS: u64 = 120 * NS_PER_SEC;
const SCENARIO_NS: u64 = 30 * NS_PER_SEC;
/// How often a scenario is played where the host disturbs it: a run that it makes inconclusive says nothing.
const ATTEMPTS: u32 = 3;

/// What is broken in one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    pub name: &'static str,
    pub args: &'static str,
    /// In words.
    pub what: &'static str,
}

/// How one scenario has to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub scenario: &'static str,
    pub broken: Broken,
    pub check: &'static str,
    /// One of these is in the check's reason; separated by `or`.
    pub reasons: &'static str,
    /// Played by every test run.
    pub short: bool,
}

/// How it did fail.
#[derive(Clone, Debug)]
pub struct Seen {
    pub row: Row,
    /// Empty where it failed as it has to.
    pub wrong: String,
    pub outcome: &'static str,
    /// What the check said.
    pub reason: String,
}

impl Seen {
    fn disturbed(&self) -> bool {
        self.outcome == Outcome::Inconclusive.word() && blames_host(&self.wrong)
    }
}

/// Every row that can be read; a test sees to it that this is one for each scenario of the catalogue.
pub fn rows() -> Vec<Row> {
    let broken: Vec<Broken> = lines().filter_map(fault).collect();
    lines().filter_map(|line| row(line, &broken)).collect()
}

fn lines() -> impl Iterator<Item = &'static str> {
    TABLE.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn cells(line: &'static str) -> Vec<&'static str> {
    line.split('|').map(str::trim).collect()
}

fn fault(line: &'static str) -> Option<Broken> {
    let [name, args, what] = cells(line.strip_prefix("fault ")?)[..] else { return None };
    Some(Broken { name, args, what })
}

fn row(line: &'static str, faults: &[Broken]) -> Option<Row> {
    let (scenario, name, check, reasons, short) = match cells(line)[..] {
        [scenario, name, check, reasons] => (scenario, name, check, reasons, false),
        [scenario, name, check, reasons, "short"] => (scenario, name, check, reasons, true),
        _ => return None,
    };
    let broken = *faults.iter().find(|fault| fault.name == name)?;
    Some(Row { scenario, broken, check, reasons, short })
}

/// Plays rows of one fault, in one boot; those that the host disturbed are played again, a few times.
pub fn play(rows: &[Row], setting: &Setting) -> Result<Vec<Seen>> {
    let mut seen: Vec<Seen> = Vec::new();
    for attempt in 0..ATTEMPTS {
        let left: Vec<Row> = rows
            .iter()
            .filter(|row| !seen.iter().any(|seen| seen.row == **row && !seen.disturbed()))
            .copied()
            .collect();
        if left.is_empty() {
            break;
        }
        seen.retain(|seen| !seen.disturbed());
        seen.extend(boot(&left, setting, attempt)?);
    }
    Ok(seen)
}

fn boot(rows: &[Row], setting: &Setting, attempt: u32) -> Result<Vec<Seen>> {
    let Some(broken) = rows.first().map(|row| row.broken) else { return Ok(Vec::new()) };
    let run_dir = setting.dir.join(format!("run-{}-{attempt}", broken.name));
    let paths = [("--kernel", &setting.kernel), ("--run-dir", &run_dir)];
    let mut words = vec!["--accel".to_owned(), setting.accel.to_owned()];
    words.extend(paths.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]));
    words.extend(broken.args.split_whitespace().map(str::to_owned));
    words.extend(rows.iter().flat_map(|row| ["--scenario".to_owned(), row.scenario.to_owned()]));
    let mut run = Run::start(words, &setting.dir.join("out"), &setting.dir.join("err"))?;
    let deadline = time::monotonic_ns() + BOOT_NS + SCENARIO_NS * rows.len() as u64;
    while run.look()?.is_none() {
        if time::monotonic_ns() > deadline {
            run.kill()?;
        }
        thread::sleep(LOOK);
    }
    if !run_dir.exists() {
        // Refused before anything was booted.
        let said = fs::read_to_string(setting.dir.join("err")).context(|| "read what the run printed")?;
        let wrong = format!("it did not run: {}", said.trim());
        let refused = |row: &Row| Seen { row: *row, wrong: wrong.clone(), outcome: "-", reason: String::new() };
        return Ok(rows.iter().map(refused).collect());
    }
    let (record, _) = rundir::load(&run_dir)?;
    let verdict = judge_stored(&record);
    Ok(rows.iter().map(|row| compare(row, &verdict)).collect())
}

fn compare(row: &Row, whole: &Verdict) -> Seen {
    // A run of one scenario has no parts.
    let own = match whole.scenarios.as_slice() {
        [] => Some(whole),
        several => several.iter().find(|one| named(&one.name, row.scenario)).map(|one| &one.verdict),
    };
    let seen = |wrong: String, outcome, reason: &str| Seen { row: *row, wrong, outcome, reason: reason.to_owned() };
    let Some(own) = own else { return seen("it was not run".into(), "-", "") };
    let outcome = own.outcome.word();
    if own.outcome != Outcome::Fail {
        return seen(format!("{outcome}, not FAIL: {}", own.headline), outcome, "");
    }
    let failed: Vec<_> = own.checks.iter().filter(|check| check.status == Status::Fail).collect();
    let ours: Vec<_> = failed.iter().filter(|check| check.name == row.check).collect();
    let fits = |reason: &str| row.reasons.split(OR).any(|words| reason.contains(words.trim()));
    match (ours.iter().find(|check| fits(&check.reason)), ours.first()) {
        (Some(check), _) => seen(String::new(), outcome, &check.reason),
        (None, Some(check)) => {
            seen(format!("{} says '{}', without '{}'", row.check, check.reason, row.reasons), outcome, &check.reason)
        }
        (None, None) => {
            let others: Vec<&str> = failed.iter().map(|check| check.name).collect();
            seen(format!("{} did not fail, but {}: {}", row.check, others.join(", "), own.headline), outcome, "")
        }
    }
}

/// `category/name` or `name`.
fn named(full: &str, name: &str) -> bool {
    full.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

/// The tables of docs/scenarios.md: the faults, and for each scenario what it is about and how it was seen to fail.
pub fn markdown() -> String {
    let mut text = String::from("| fault | what is wrong | brought about by |\n|---|---|---|\n");
    for fault in lines().filter_map(fault) {
        text.push_str(&format!("| {} | {} | `{}` |\n", fault.name, fault.what, fault.args));
    }
    text.push_str("\n| scenario | checks it is about | needs | fails by | in its check | which says |\n|---|---|---|---|---|---|\n");
    let rows = rows();
    for spec in all_scenarios() {
        let row = rows.iter().find(|row| row.scenario == spec.name);
        let [fault, check, says] = row.map_or(["-"; 3], |row| [row.broken.name, row.check, row.reasons]);
        let (name, checks, needs) = (spec.full_name(), spec.checks.join(", "), needs(&spec));
        text.push_str(&format!("| {name} | {checks} | {needs} | {fault} | {check} | {says} |\n"));
    }
    text
}

fn needs(spec: &ScenarioSpec) -> String {
    let needs = spec.needs;
    let words =
        [("cpus", needs.cpus), ("llcs", needs.llcs), ("nodes", needs.nodes), ("threads", needs.threads_per_core)];
    let words = words.iter().filter(|(_, count)| *count > 1).map(|(word, count)| format!("{word}={count}"));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::fixture::passing;

    #[test]
    fn every_scenario_has_one_row_and_every_line_is_read() {
        let (rows, specs) = (rows(), all_scenarios());
        for spec in &specs {
            let own: Vec<&Row> = rows.iter().filter(|row| row.scenario == spec.name).collect();
            assert_eq!(own.len(), 1, "{}", spec.name);
            // What fails is what the scenario is about; a task that the kernel finds waiting is one that makes no progress.
            let about = spec.checks.iter().any(|check| check == own[0].check)
                || (own[0].check == "scheduler_alive" && spec.checks.iter().any(|check| check == "not_starved"));
            assert!(about, "{}: {}", spec.name, own[0].check);
        }
        let faults: Vec<Broken> = lines().filter_map(fault).collect();
        assert_eq!(rows.len(), specs.len());
        assert_eq!(lines().count(), rows.len() + faults.len());
        for fault in &faults {
            assert!(rows.iter().any(|row| row.broken == *fault), "{} is used by nobody", fault.name);
            assert_eq!(faults.iter().filter(|other| other.name == fault.name).count(), 1);
        }
        assert!((3..=6).contains(&rows.iter().filter(|row| row.short).count()));
        assert!(rows.iter().all(|row| row.reasons.split(OR).all(|words| !words.trim().is_empty())));
    }

    #[test]
    fn only_the_named_check_with_its_reason_is_right() {
        let row = Row { check: "not_starved", reasons: "of other or of g0", ..rows()[0] };
        let mut record = passing();
        assert!(compare(&row, &judge_stored(&record)).wrong.starts_with("PASS, not FAIL"));
        record.reports[0].1.work_units = 0;
        let verdict = judge_stored(&record);
        let seen = compare(&row, &verdict);
        assert!(seen.wrong.is_empty() && seen.reason.contains("of g0"), "{seen:?}");
        assert!(compare(&Row { reasons: "of other", ..row }, &verdict).wrong.contains("without 'of other'"));
        let isolation = compare(&Row { check: "isolation", ..row }, &verdict);
        assert!(isolation.wrong.contains("isolation did not fail, but not_starved"), "{}", isolation.wrong);
    }

    #[test]
    fn names_are_whole_ones() {
        assert!(named("basic/cgroup_steady", "cgroup_steady") && named("x", "x"));
        assert!(!named("basic/my_cgroup_steady", "cgroup_steady"));
    }
}
