//! Plays one fault: a run of this very program, and a comparison of what it said with what it should say.
//!
//! Owns what is done to the run, its deadline and the comparison; leaves the rows to `table`, the process to `child`.
//! Invariant: the comparison uses what a user gets: the exit code, the stored record's verdict, the printed error.

use super::child::Run;
use super::table::{Act, Fault, Prompt};
use super::{LOOK, OR, blames_host};
use crate::error::{Context, Error, Result};
use crate::proto::message::Stage;
use crate::proto::record::Record;
use crate::run::rundir;
use crate::sys::process::{self, End};
use crate::sys::{signal, time};
use crate::units::{NS_PER_SEC, approx};
use crate::verdict::{EMULATED, EMULATOR, Outcome, Verdict, disturbed_host, host_share, judge_stored, time_to_verdict};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

/// No fault takes longer, under an emulator beside others: booting, its own limits, and their margins.
const LIMIT_NS: u64 = 240 * NS_PER_SEC;
/// A fault that the host disturbed is played so often at most, after a pause that grows by this each time: what disturbed
/// it, a build or another guest, ends at some time.
const PLAYS_MOST: u32 = 5;
const PAUSE_NS: u64 = 2 * NS_PER_SEC;
/// Files that faults name: (name, contents, mode).
const FILES: [(&str, &str, u32); 6] = [
    ("quitter", "#!/bin/sh\necho I will not run here >&2\nexit 3\n", 0o755),
    (
        "busy",
        "#!/bin/sh\n/init __probe fifo &\nwhile read -r state </sys/kernel/sched_ext/state; [ \"$state\" != enabled ]; do :; done\nexec /init __probe noop\n",
        0o755,
    ),
    ("plain", "#!/bin/sh\n", 0o644),
    ("nointerp", "#!/no/such/interpreter\n", 0o755),
    ("text", "just text\n", 0o755),
    ("crews.scn", include_str!("crews.scn"), 0o644),
];

/// What is the same for all faults.
#[derive(Clone, Debug)]
pub struct Setting {
    pub kernel: PathBuf,
    pub accel: &'static str,
    /// Made by the caller, and removed by it.
    pub dir: PathBuf,
}

/// How a fault was told.
#[derive(Clone, Debug)]
pub struct Played {
    pub name: &'static str,
    /// What had to come out on the accelerator that it was played on.
    pub outcome: Outcome,
    pub reason: &'static str,
    /// What is not as it should be; empty where all is.
    pub wrong: Vec<String>,
    pub code: Option<i32>,
    pub headline: String,
    pub stopped: Option<&'static str>,
    pub took_ns: u64,
    /// From the fault to the end of the run, where the record tells both.
    pub to_verdict_ns: Option<u64>,
    /// For how much of that time the host kept vCPUs waiting.
    pub host_ns: Option<u64>,
    /// How the host disturbed it so that it could not be judged, where it did.
    pub disturbed: Option<String>,
    /// Whether nothing is wrong but that it came late.
    pub late_only: bool,
    pub plays: u32,
}

/// What is to be thought of a fault that was played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    Right,
    /// Neither right nor wrong: the host took too much, every time that it was played.
    Disturbed,
    Wrong,
}

impl Played {
    /// As it is before anything was seen of it.
    pub fn expecting(fault: &Fault, (outcome, reason): (Outcome, &'static str)) -> Self {
        Self {
            name: fault.name,
            outcome,
            reason,
            wrong: Vec::new(),
            code: None,
            headline: String::new(),
            stopped: None,
            took_ns: 0,
            to_verdict_ns: None,
            host_ns: None,
            disturbed: None,
            late_only: false,
            plays: 1,
        }
    }

    pub fn sight(&self) -> Sight {
        match (self.wrong.is_empty(), &self.disturbed) {
            (true, _) => Sight::Right,
            (false, Some(_)) => Sight::Disturbed,
            (false, None) => Sight::Wrong,
        }
    }
}

/// Puts the files in place that faults name.
pub fn prepare(dir: &Path) -> Result<()> {
    for (name, text, mode) in FILES {
        let path = dir.join(name);
        fs::write(&path, text).context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .context(|| format!("set the mode of {}", path.display()))?;
    }
    Ok(())
}

/// Runs it and compares; again where the host disturbed it, and where it was late: a host that is a VM itself does not see
/// all that it is kept from. What is late each time is wrong.
pub fn play(fault: &Fault, setting: &Setting) -> Result<Played> {
    let mut plays = 1;
    let began_ns = time::monotonic_ns();
    loop {
        let played = play_once(fault, setting)?;
        let late = time::monotonic_ns() - began_ns > LIMIT_NS;
        let again = played.sight() == Sight::Disturbed || played.sight() == Sight::Wrong && played.late_only;
        if plays == PLAYS_MOST || late || !again {
            return Ok(Played { plays, ..played });
        }
        let until_ns = time::monotonic_ns() + PAUSE_NS * u64::from(plays);
        while time::monotonic_ns() < until_ns && signal::noted().is_none() {
            thread::sleep(LOOK);
        }
        plays += 1;
    }
}

fn play_once(fault: &Fault, setting: &Setting) -> Result<Played> {
    let run_dir = setting.dir.join(format!("run-{}", fault.name));
    let (out, err) = (setting.dir.join("out"), setting.dir.join("err"));
    let started_ns = time::monotonic_ns();
    let mut run = Run::start(arguments(fault, setting, &run_dir), &out, &err)?;
    let (code, acted_ns) = follow(&mut run, fault, &run_dir, started_ns)?;
    let ended_ns = time::monotonic_ns();
    let took_ns = ended_ns - started_ns;
    let text = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let said = text(&err).context(|| "read what the run printed")?;
    let mut wrong = Vec::new();
    let mut exits = |outcome: Outcome| {
        if code != Some(i32::from(outcome.exit_code())) {
            wrong.push(format!("exit code {code:?}, not {}", outcome.exit_code()));
        }
    };
    if fault.refused {
        exits(fault.outcome);
        let headline = said.lines().last().unwrap_or_default().to_owned();
        if !tells(fault.reason, &said) {
            wrong.push(format!("'{}' is not in: {}", fault.reason, said.trim()));
        }
        let expecting = Played::expecting(fault, (fault.outcome, fault.reason));
        return Ok(Played { wrong, code, headline, took_ns, ..expecting });
    }
    let (record, _) = rundir::load(&run_dir)?;
    let verdict = judge_stored(&record);
    let expected = expected(fault, is_emulated(&record));
    exits(expected.0);
    compare(fault, expected, &verdict, &mut wrong);
    // Only a verdict that was withheld because of the host, or that came late, can be its doing: a wrong one never is.
    let told_right = wrong.is_empty();
    let excusable = blames_host(&verdict.headline) || told_right;
    let to_verdict_ns = match (fault.prompt, acted_ns) {
        (Prompt::Signal, at_ns) => at_ns.map(|at_ns| ended_ns.saturating_sub(at_ns)),
        _ => time_to_verdict(&record, &verdict).map(|(_, ns)| ns),
    };
    wrong.extend(late(fault.prompt, &record, to_verdict_ns));
    Ok(Played {
        code,
        stopped: verdict.stopped,
        took_ns,
        to_verdict_ns,
        host_ns: to_verdict_ns.and_then(|ns| host_share(&record, ns)),
        disturbed: disturbance(&record, &verdict).filter(|_| excusable && !wrong.is_empty()),
        late_only: told_right && !wrong.is_empty(),
        wrong,
        headline: verdict.headline,
        ..Played::expecting(fault, expected)
    })
}

fn is_emulated(record: &Record) -> bool {
    record.host.as_ref().is_some_and(|host| host.accel == EMULATOR)
}

/// Outcome and reason; a fault that is found by a time, an emulator must leave without a verdict.
fn expected(fault: &Fault, emulated: bool) -> (Outcome, &'static str) {
    match fault.by_time && emulated {
        true => (Outcome::Inconclusive, EMULATED),
        false => (fault.outcome, fault.reason),
    }
}

/// How the run was over later than it has to be. What the host took meanwhile does not count.
fn late(prompt: Prompt, record: &Record, to_verdict_ns: Option<u64>) -> Vec<String> {
    let planned_ns = record.plan.as_ref().map_or(u64::MAX, |plan| plan.duration_ns);
    let span = |from, to| Some(record.mark(to)?.saturating_sub(record.mark(from)?));
    let ran_ns = span(Stage::ScenarioStart, Stage::VmEnd).filter(|ns| prompt != Prompt::AtItsEnd && *ns > planned_ns);
    let mut late: Vec<String> = ran_ns.map(|ns| format!("it took {}", approx(ns))).into_iter().collect();
    let Some(limit_ns) = prompt.limit_ns(is_emulated(record)) else { return late };
    let Some(ns) = to_verdict_ns else {
        late.push("the record does not tell how long after the fault the run was over".into());
        return late;
    };
    let host_ns = host_share(record, ns).unwrap_or(0);
    if ns.saturating_sub(host_ns) > limit_ns {
        let [told, limit, host] = [ns, limit_ns, host_ns].map(approx);
        late.push(format!("the run was over {told} after the fault, more than {limit} even without the host's {host}"));
    }
    late
}

/// What the host did to a run, where it did anything.
fn disturbance(record: &Record, verdict: &Verdict) -> Option<String> {
    disturbed_host(record).or_else(|| blames_host(&verdict.headline).then(|| verdict.headline.clone()))
}

/// Whether one of the reasons is in a text.
fn tells(reasons: &str, text: &str) -> bool {
    reasons.split(OR).any(|words| text.contains(words))
}

fn compare(fault: &Fault, (outcome, reason): (Outcome, &str), verdict: &Verdict, wrong: &mut Vec<String>) {
    if verdict.outcome != outcome {
        wrong.push(format!("{}, not {}: {}", verdict.outcome.word(), outcome.word(), verdict.headline));
    }
    if !tells(reason, &verdict.headline) {
        wrong.push(format!("'{reason}' is not in: {}", verdict.headline));
    }
    if fault.stopped != "*" && verdict.stopped.unwrap_or("") != fault.stopped {
        let at = |words: &str| if words.is_empty() { "nowhere".into() } else { format!("at '{words}'") };
        wrong.push(format!("it stopped {}, not {}", at(verdict.stopped.unwrap_or("")), at(fault.stopped)));
    }
}

/// A fault's own words come last, so that they win where a flag stands twice: what is given before is left out then.
fn arguments(fault: &Fault, setting: &Setting, run_dir: &Path) -> Vec<String> {
    let dir = setting.dir.display().to_string();
    let own: Vec<String> = fault.args.split_whitespace().map(|word| word.replace("{dir}", &dir)).collect();
    let common = [
        ("--kernel", setting.kernel.display().to_string()),
        ("--accel", setting.accel.to_owned()),
        ("--run-dir", run_dir.display().to_string()),
        ("--json", setting.dir.join("result.json").display().to_string()),
    ];
    let missing = common.into_iter().filter(|(flag, _)| !own.iter().any(|word| word == flag));
    missing.flat_map(|(flag, value)| [flag.to_owned(), value]).chain(own.clone()).collect()
}

/// Waits for its end, and does to it what the fault says as soon as the scenario has begun. How it ended, and when that was done.
fn follow(run: &mut Run, fault: &Fault, run_dir: &Path, started_ns: u64) -> Result<(Option<i32>, Option<u64>)> {
    let mut acted_ns = None;
    loop {
        match run.look()? {
            Some(End::Exited(code)) => return Ok((Some(code), acted_ns)),
            Some(End::Signaled(_)) => return Ok((None, acted_ns)),
            None => {}
        }
        if fault.act != Act::Nothing && acted_ns.is_none() && has_begun(run_dir) {
            acted_ns = Some(time::monotonic_ns());
            let (victim, signal) = match fault.act {
                Act::Signal(signal) => (run.pid, signal),
                _ => (only_child(run.pid)?, libc::SIGKILL),
            };
            process::kill(victim, signal).context(|| format!("send signal {signal} to process {victim}"))?;
        }
        if time::monotonic_ns() - started_ns > LIMIT_NS {
            run.kill()?;
            return Ok((None, acted_ns));
        }
        thread::sleep(LOOK);
    }
}

fn has_begun(run_dir: &Path) -> bool {
    rundir::load(run_dir).is_ok_and(|(record, _)| record.mark(Stage::ScenarioStart).is_some())
}

/// The process of the VM.
fn only_child(pid: i32) -> Result<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&path).context(|| format!("read {path} (CONFIG_PROC_CHILDREN)"))?;
    let first = children.split_whitespace().next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| Error::internal(format!("process {pid} has no child")))
}

#[cfg(test)]
mod tests {
    use super::super::faults;
    use super::*;
    use crate::proto::message::VmEnd;
    use crate::verdict::fixture::{add_log, passing, starve};

    fn crashed(over_after_ns: u64) -> Record {
        let mut record = passing();
        add_log(&mut record, &["Kernel panic - not syncing: x"]);
        let told_ns = record.mark(Stage::KernelEntry).unwrap() + record.klog.last().unwrap().time_us * 1000;
        (record.bye, record.scenario_end, record.vm_end) = (false, None, Some(VmEnd::Reset));
        record.plan.as_mut().unwrap().duration_ns = 60 * NS_PER_SEC;
        record.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
        record.marks.push((Stage::VmEnd, told_ns + over_after_ns));
        record
    }

    fn lateness(prompt: Prompt, record: &Record) -> Vec<String> {
        late(prompt, record, time_to_verdict(record, &judge_stored(record)).map(|(_, ns)| ns))
    }

    #[test]
    fn promise_is_held_to_without_the_hosts_share() {
        let quick = crashed(NS_PER_SEC);
        assert_eq!(lateness(Prompt::Line, &quick), Vec::<String>::new());
        let mut slow = crashed(5 * NS_PER_SEC);
        assert!(lateness(Prompt::Line, &slow)[0].contains("over 5.00 s after the fault, more than 1.00 s"));
        assert_eq!(lateness(Prompt::Early, &slow), Vec::<String>::new());
        let over_ns = slow.mark(Stage::VmEnd).unwrap();
        starve(&mut slow, over_ns - 4 * NS_PER_SEC, 4 * NS_PER_SEC);
        assert_eq!(lateness(Prompt::Line, &slow), Vec::<String>::new());
        assert!(lateness(Prompt::Dead, &passing())[0].contains("does not tell"));
        let signalled = |after_s: u64| late(Prompt::Signal, &passing(), Some(after_s * NS_PER_SEC));
        assert_eq!(signalled(4), Vec::<String>::new());
        assert!(signalled(5)[0].contains("over 5.00 s after the fault, more than 4.00 s"));
    }

    #[test]
    fn emulator_leaves_what_only_times_tell_without_a_verdict() {
        let fault = faults().into_iter().find(|fault| fault.by_time).unwrap();
        assert_eq!(expected(&fault, false), (fault.outcome, fault.reason));
        assert_eq!(expected(&fault, true), (Outcome::Inconclusive, EMULATED));
        let other = faults()[0];
        assert_eq!(expected(&other, true), (other.outcome, other.reason));
    }

    #[test]
    fn files_that_faults_name_are_there_and_the_scenario_is_one() {
        for fault in faults() {
            for word in fault.args.split_whitespace().filter_map(|word| word.strip_prefix("{dir}/")) {
                assert!(FILES.iter().any(|(name, ..)| *name == word), "{}: {word}", fault.name);
            }
        }
        let (_, text, _) = FILES.iter().find(|(name, ..)| *name == "crews.scn").unwrap();
        assert_eq!(crate::scenario::parse(text).unwrap().len(), 1);
    }

    #[test]
    fn wrong_reason_or_stage_is_told() {
        let (fault, record) = (faults()[0], crashed(1));
        let verdict = judge_stored(&record);
        let mut wrong = Vec::new();
        compare(&fault, (Outcome::Fail, "not syncing: x"), &verdict, &mut wrong);
        assert_eq!(wrong, Vec::<String>::new());
        compare(&fault, (Outcome::Inconclusive, "not syncing: y"), &verdict, &mut wrong);
        compare(&Fault { stopped: "", ..fault }, (Outcome::Fail, "x"), &verdict, &mut wrong);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
    }
}
