//! `ktstr selftest --scenarios`: plays for each scenario of the catalogue a fault that breaks what it is about.
//!
//! Owns which are played together and what is shown; leaves the table and playing it to run/faults.
//! Invariant: exit code 0 means that every scenario that was played failed for its own reason, and that one was played.

use super::args::SelftestArgs;
use super::cmd_selftest::{in_directory, show};
use super::out;
use super::result_file::ResultFile;
use crate::error::Result;
use crate::report::Json;
use crate::run::faults::catalog::{Row, Seen, play, rows};
use crate::verdict::Outcome;

/// Width of a scenario's name: the longest in the catalogue.
const NAME: usize = 42;

pub(super) fn selected(args: &SelftestArgs) -> Vec<Row> {
    let named = |row: &Row| args.filter.as_ref().is_none_or(|word| row.scenario.contains(word.as_str()));
    rows().into_iter().filter(|row| named(row) && (row.short || !args.short)).collect()
}

pub(super) fn run(args: &SelftestArgs) -> Result<u8> {
    let rows = selected(args);
    if args.list {
        let line =
            |row: &Row| format!("{:NAME$} {:12} {:16} {}\n", row.scenario, row.broken.name, row.check, row.reasons);
        return out::print(&rows.iter().map(line).collect::<String>()).map(|()| 0);
    }
    let mut json_file = ResultFile::of(args.json.as_ref())?;
    in_directory(args, |setting| {
        let mut seen = Vec::new();
        for part in by_fault(&rows) {
            for one in play(&part, setting)? {
                show(args, &told(&one))?;
                seen.push(one);
            }
        }
        let wrong = seen.iter().filter(|one| !one.wrong.is_empty()).count();
        let right = seen.len() - wrong;
        let text = format!("{} scenarios played, {right} failed for their own reason, {wrong} did not\n", seen.len());
        show(args, &text)?;
        match &mut json_file {
            Some(file) => file.write(json(&seen).as_bytes())?,
            None if args.json.is_some() => out::print(&json(&seen))?,
            None => {}
        }
        Ok(if wrong > 0 { Outcome::Fail } else { Outcome::Pass })
    })
}

/// Those of one fault together: they are played in one boot.
fn by_fault(rows: &[Row]) -> Vec<Vec<Row>> {
    let mut parts: Vec<Vec<Row>> = Vec::new();
    for row in rows {
        match parts.iter_mut().find(|part| part[0].broken == row.broken) {
            Some(part) => part.push(*row),
            None => parts.push(vec![*row]),
        }
    }
    parts
}

fn told(seen: &Seen) -> String {
    let row = &seen.row;
    let (mark, says) = match seen.wrong.is_empty() {
        true => ("ok   ", format!("{}: {}", row.check, seen.reason)),
        false => ("WRONG", seen.wrong.clone()),
    };
    format!("{mark}  {:NAME$} {:12} {says}\n", row.scenario, row.broken.name)
}

fn json(seen: &[Seen]) -> String {
    let row = |seen: &Seen| {
        Json::object([
            ("scenario", seen.row.scenario.into()),
            ("fault", seen.row.broken.name.into()),
            ("args", seen.row.broken.args.into()),
            ("check", seen.row.check.into()),
            ("reasons", seen.row.reasons.into()),
            ("correct", seen.wrong.is_empty().into()),
            ("wrong", (&seen.wrong).into()),
            ("seen_outcome", seen.outcome.into()),
            ("seen_reason", (&seen.reason).into()),
        ])
    };
    let rows = Json::array(seen.iter().map(row));
    Json::object([("schema", "ktstr.selftest-scenarios/1".into()), ("scenarios", rows)]).pretty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_boot_for_each_fault_and_no_row_twice() {
        let (rows, parts) = (rows(), by_fault(&rows()));
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), rows.len());
        assert!(parts.len() < rows.len() / 3, "{}", parts.len());
        for part in &parts {
            assert!(part.iter().all(|row| row.broken == part[0].broken));
        }
    }

    #[test]
    fn wrong_rows_say_why() {
        let row = rows()[0];
        let right = Seen { row, wrong: String::new(), outcome: "FAIL", reason: "so".into() };
        assert!(told(&right).starts_with("ok   ") && told(&right).ends_with(&format!("{}: so\n", row.check)));
        let wrong = Seen { wrong: "PASS, not FAIL".into(), ..right };
        assert!(told(&wrong).starts_with("WRONG") && told(&wrong).ends_with("PASS, not FAIL\n"));
        assert!(json(&[wrong]).contains("\"correct\": false"));
    }
}
