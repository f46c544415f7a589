//! The check on the scheduler under test: enabled, the same instance to the end, and gone when asked.
//!
//! Owns this check and the wording of a scheduler's end; leaves reading the kernel's lines to klog/sched_ext.
//! Invariant: a scheduler that left by any way but our stop is never Pass.

use super::check::{Check, Status};
use super::noise;
use super::workers::emulated;
use crate::klog::KernelLog;
use crate::klog::sched_ext::{BUSY_TOLD, ExitReason, SchedExit, says_busy};
use crate::proto::message::{ProcessEnd, SchedFailure, SchedFinal};
use crate::proto::record::{Died, Enabled, Record};
use crate::units::approx;

const NAME: &str = "scheduler_alive";
/// /sys/kernel/sched_ext/state while a scheduler runs.
const STATE_ENABLED: &str = "enabled";
/// SIGINT, which asks a scheduler to stop (asm-generic/signal.h).
const SIGINT: i32 = 2;
/// A shell's code for a child that SIGINT ended: 128 + 2.
const EXIT_SIGINT: i32 = 130;

/// The check's result; not applied where the kernel's own scheduler is the subject.
pub fn check(record: &Record, log: &KernelLog) -> Check {
    if record.plan.as_ref().is_some_and(|plan| plan.sched.is_none()) {
        return Check::new(NAME, Status::NotApplied, "the kernel's own scheduler is the subject");
    }
    let inconclusive = |why: &str| Check::new(NAME, Status::Inconclusive, why);
    if record.plan.is_none() {
        return inconclusive("the plan is missing, so it is not known which scheduler was to run");
    }
    if let Some((why, text)) = &record.sched_failed {
        let unknown = match why {
            SchedFailure::KernelLacksSchedExt | SchedFailure::OutOfTime | SchedFailure::KernelStalled => true,
            SchedFailure::EnableTimeout => emulated(record),
            _ => false,
        };
        if let Some(void) = noise::explains_start(record, log).filter(|_| !unknown) {
            return inconclusive(&format!("{void}; {}", start_failure(*why, text)));
        }
        let status = if unknown { Status::Inconclusive } else { Status::Fail };
        return Check::new(NAME, status, start_failure(*why, text));
    }
    if let Some(exit) = log.exits.iter().find(|exit| exit.reason.is_error()) {
        return match noise::explains_exit(record, exit) {
            Some(why) => inconclusive(&format!("void, as {why}: {}", exit.describe())),
            None => Check::new(NAME, Status::Fail, format!("{}{}", exit.describe(), whose(record, exit))),
        };
    }
    let Some(enabled) = &record.sched_enabled else { return inconclusive("it was not seen enabled") };
    if let Some(died) = &record.sched_died {
        let (again, exit) = replaced(enabled, record.sched_final.as_ref(), log);
        let environment = exit.is_some_and(|exit| exit.reason.is_environment());
        let status = if environment { Status::Inconclusive } else { Status::Fail };
        return Check::new(NAME, status, format!("{}{}", death(died, again, exit), busy(record, died)));
    }
    of_every_instance(record, enabled, log)
}

/// The first of the worst ends, where the scenario itself ended some; the last where all are good.
fn of_every_instance(record: &Record, enabled: &Enabled, log: &KernelLog) -> Check {
    let earlier = record.earlier.iter().map(|one| (&one.enabled, one.last.as_ref()));
    let mut worst = Check::new(NAME, Status::Pass, "");
    for (index, (enabled, last)) in earlier.chain([(enabled, record.sched_final.as_ref())]).enumerate() {
        let mut check = match last {
            Some(last) => at_the_end(enabled, last, log),
            None => Check::new(NAME, Status::Inconclusive, "its end was not seen"),
        };
        if index < record.earlier.len() && check.status != Status::Pass {
            let all = record.earlier.len() + 1;
            check.reason = format!("{} (instance {} of {all}, {})", check.reason, index + 1, enabled.ops);
        }
        if worst.status == Status::Pass || check.status.outcome() > worst.status.outcome() {
            worst = check;
        }
    }
    worst
}

/// Which worker the kernel means, where the task that was not run is one.
fn whose(record: &Record, exit: &SchedExit) -> String {
    let pid = exit.victim.as_ref().map(|victim| victim.pid);
    let worker = record.reports.iter().find(|(_, report)| Some(report.tid) == pid);
    worker.map_or_else(String::new, |(group, report)| format!(", which is worker {} of {group}", report.worker_idx))
}

fn at_the_end(enabled: &Enabled, last: &SchedFinal, log: &KernelLog) -> Check {
    let fail = |why: String| Check::new(NAME, Status::Fail, why);
    // An exit that came from elsewhere than our SIGINT.
    let foreign = log.exits.iter().find(|exit| exit.reason != ExitReason::Unregistered);
    if last.state != STATE_ENABLED {
        let why = foreign.map_or_else(String::new, |exit| format!(" ({})", exit.describe()));
        let reason = format!("it was '{}' when the scenario had ended{why}", last.state);
        let environment = foreign.is_some_and(|exit| exit.reason.is_environment());
        return Check::new(NAME, if environment { Status::Inconclusive } else { Status::Fail }, reason);
    }
    match &last.ops {
        Some(ops) if *ops == enabled.ops => {}
        Some(ops) => return fail(format!("'{ops}' was loaded at the end, not '{}'", enabled.ops)),
        None => return Check::new(NAME, Status::Inconclusive, "its name could not be read at the end"),
    }
    match last.enable_seq {
        Some(seq) if seq == enabled.enable_seq => {}
        Some(seq) => {
            return fail(format!("it was enabled again on the way (enable_seq {} became {seq})", enabled.enable_seq));
        }
        None => return Check::new(NAME, Status::Inconclusive, "enable_seq could not be read at the end"),
    }
    if last.killed {
        return fail("it ignored SIGINT and had to be killed".into());
    }
    if !last.disabled {
        return fail("the kernel did not say 'disabled' after it was stopped".into());
    }
    match last.end {
        None => fail("its process could not be reaped".into()),
        Some(end) if !clean(end) => fail(format!("its process ended with {} when asked to stop", end.describe())),
        Some(_) if enabled.switch_all == Some(false) => {
            let why = "it schedules only tasks that ask for SCHED_EXT, and the workers are none";
            Check::new(NAME, Status::Inconclusive, format!("{}: {why}", enabled.ops))
        }
        Some(_) => {
            let rejected = last.nr_rejected.filter(|count| *count > 0);
            let rejected = rejected.map_or_else(String::new, |count| format!(" (it rejected {count} tasks)"));
            Check::new(NAME, Status::Pass, format!("{}, the same instance to the end{rejected}", enabled.ops))
        }
    }
}

/// Ends that a scheduler asked by SIGINT may have: its own handler's, or the signal's default.
fn clean(end: ProcessEnd) -> bool {
    match end {
        ProcessEnd::Exited { code } => code == 0 || code == EXIT_SIGINT,
        ProcessEnd::Signaled { signal } => signal == SIGINT,
    }
}

/// Whether other instances came after the one that was lost, in words, and how the kernel told the end of that one.
fn replaced<'a>(
    enabled: &Enabled,
    last: Option<&SchedFinal>,
    log: &'a KernelLog,
) -> (Option<String>, Option<&'a SchedExit>) {
    let first_seq = enabled.enable_seq;
    let last_seq = last.and_then(|last| last.enable_seq).filter(|seq| *seq > first_seq);
    let Some(last_seq) = last_seq else { return (None, log.exits.last()) };
    // Each later one has told its own end, the last one perhaps not.
    let still_there = last.is_some_and(|last| !last.disabled);
    let later = (last_seq - first_seq) as usize - usize::from(still_there);
    let words = format!("it was replaced (enable_seq {first_seq} became {last_seq})");
    (Some(words), log.exits.iter().rev().nth(later).or(log.exits.first()))
}

fn death(died: &Died, again: Option<String>, exit: Option<&SchedExit>) -> String {
    let end = died.end.map_or_else(|| "its process still there".to_owned(), |end| end.describe());
    let kernel = exit.map_or_else(String::new, |exit| format!(", {}", exit.describe()));
    let (after, text) = (approx(died.after_ns), again.as_ref().unwrap_or(&died.text));
    format!("the scheduler went away {after} into the scenario: {text}; {end}{kernel}")
}

/// One that found another in its place while the kernel said that a scheduler is enabled: that other one.
fn busy(record: &Record, died: &Died) -> String {
    let failed = died.end.is_some_and(|end| end != ProcessEnd::Exited { code: 0 });
    if failed && died.state == "enabled" && says_busy(&record.sched_output) {
        format!(": {BUSY_TOLD}")
    } else {
        String::new()
    }
}

/// Why it did not start, in one sentence.
pub fn start_failure(why: SchedFailure, text: &str) -> String {
    let what = match why {
        SchedFailure::KernelLacksSchedExt => "this kernel cannot run a sched_ext scheduler",
        SchedFailure::NotExecutable => "the scheduler cannot be executed in the guest",
        SchedFailure::ExitedEarly => "the scheduler ended before the kernel enabled it",
        SchedFailure::VerifierRejected => "the kernel's BPF verifier refused the scheduler",
        SchedFailure::EnableTimeout => "the scheduler ran, but the kernel did not enable it in time",
        SchedFailure::OutOfTime => "the run's time was over before the scheduler was enabled",
        SchedFailure::KernelStalled => "the kernel stalled before the scheduler was enabled",
        SchedFailure::DisabledEarly => "the kernel disabled the scheduler before the scenario began",
    };
    let told = match why {
        SchedFailure::VerifierRejected => verifier_reason(text),
        _ => text.lines().next(),
    };
    match told.map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => format!("{what}: {line}"),
        None => what.to_owned(),
    }
}

/// The line of a verifier's log that says why: the last before its statistics and its end mark.
fn verifier_reason(text: &str) -> Option<&str> {
    let noise = |line: &&str| {
        let line = line.trim();
        let instruction = line.split_once(':').is_some_and(|(at, _)| at.bytes().all(|byte| byte.is_ascii_digit()));
        !instruction
            && !line.is_empty()
            && !["processed ", "--", "... ", "peak_states", "verification time", "stack depth"]
                .iter()
                .any(|mark| line.starts_with(mark))
    };
    let Some((_, log)) = text.split_once("BEGIN PROG LOAD LOG") else { return text.lines().next() };
    let log = log.split_once("END PROG LOAD LOG").map_or(log, |(log, _)| log);
    log.lines().rev().map(|line| line.trim_start_matches("libbpf: ")).find(noise).or_else(|| text.lines().next())
}
