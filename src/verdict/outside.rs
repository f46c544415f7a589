//! The verdict on what belongs to none of several scenarios: the boot, what is between them, and the machine's end.
//!
//! Owns which checks apply to it; leaves the cause to `cause`, and which messages belong to it to proto/part.
//! Invariant: a fault that fails a run of one scenario is not lost between two.

use super::cause;
use super::check::{Check, Measure, Status};
use super::judge::{Verdict, stored_layers};
use super::log_checks::{gaps_of_end, kernel_log_clean};
use super::outcome::Outcome;
use super::several::plain;
use super::stage::{reached, stopped_at};
use super::table::{in_force, is_on};
use super::workers::on_metal;
use crate::klog;
use crate::proto::limits::{Assert, CheckId, Layers};
use crate::proto::message::VmEnd;
use crate::proto::record::Record;

/// Judges what no scenario has been told.
pub fn judge_outside(record: &Record, layers: &Layers) -> Verdict {
    let Some(outside) = &record.outside else {
        return plain(Outcome::Inconclusive, "what was said outside the scenarios is missing".into());
    };
    let mut rest = Record::clone(outside);
    let kept = rest.klog.len() as u64 + rest.klog_cut;
    if record.is_outside() {
        // The guest counts the whole log; what a scenario has of it is there.
        let arrived = record.klog.len() as u64 + record.klog_cut;
        rest.klog_end = rest.klog_end.map(|(all, lost)| (kept + all.saturating_sub(arrived), lost));
    } else {
        // The scenario that was open is judged by how the machine ended.
        rest.klog_end = Some((kept, 0));
        (rest.bye, rest.vm_end) = (true, Some(VmEnd::Reset));
        rest.console.clear();
    }
    let mut log = klog::classify_after(&rest.klog, &rest.console, record.klog.last().map(|line| line.time_us));
    if let Some(plan) = &record.plan {
        log.allow(&plan.guards.allow_log);
    }
    let limits = limits(record, layers);
    let checks = [kernel_log_clean(&rest, &log, &limits), orderly_end(&rest)];
    let (outcome, headline) = cause::find(&rest, &log, &checks, &limits);
    Verdict {
        reached: reached(&rest),
        stopped: stopped_at(&rest, log.spoke),
        checks: checks.to_vec(),
        findings: log.findings,
        sched_exits: log.exits,
        unknown_kernel_errors: log.unknown_errors,
        ..plain(outcome, headline)
    }
}

/// What a scenario wants for itself does not hold outside of it, unless all want the log not to be judged.
fn limits(record: &Record, layers: &Layers) -> Assert {
    let of = |scenario| in_force(&Layers { scenario, ..*layers });
    let judged = |own: &Record| is_on(&of(stored_layers(own).scenario), CheckId::KernelLogClean);
    let anyone = record.parts.iter().any(|part| judged(&part.record));
    let own = record.plan.as_ref().map(|plan| plan.limits.scenario).filter(|_| anyone);
    of(own.unwrap_or(layers.scenario))
}

fn orderly_end(rest: &Record) -> Check {
    const NAME: &str = "telemetry_complete";
    if on_metal(rest) {
        return Check::new(NAME, Status::NotApplied, "there is no VM");
    }
    let gaps = gaps_of_end(rest);
    let (status, reason) = match gaps.is_empty() {
        true => (Status::Pass, "the whole kernel log, an orderly end".into()),
        false => (Status::Inconclusive, gaps.join("; ")),
    };
    Check::new(NAME, status, reason).value(Measure::Count(gaps.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::passing;
    use super::super::{Verdict, judge_stored};
    use super::*;
    use crate::proto::guards::Guards;
    use crate::proto::message::Msg;

    const WARNING: &str = "WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2";

    fn line(time_us: u64, text: &str) -> Msg {
        Msg::Klog { priority: 4, sequence: time_us, time_us, text: text.into() }
    }

    fn end(klog: u64, bye: bool, end: VmEnd) -> Vec<Msg> {
        let mut list = vec![Msg::KlogEnd { records: klog, lost: 0 }, Msg::Bye { uptime_ns: 9 }, Msg::VmEnded { end }];
        if !bye {
            list.drain(..2);
        }
        list
    }

    /// A run of two scenarios that passed, with these messages before, between and after them.
    fn run(before: Vec<Msg>, between: Vec<Msg>, after: Vec<Msg>) -> Record {
        let one = passing();
        let (host, mut plan, marks, hello) = (one.host.clone(), one.plan.clone(), one.marks.clone(), one.hello.clone());
        let spec = plan.as_ref().unwrap().scenarios[0].clone();
        plan.as_mut().unwrap().scenarios = vec![spec.clone(), spec];
        // A machine that went down has no mark of a goodbye.
        let bye = after.iter().any(|message| matches!(message, Msg::Bye { .. }));
        let marks = marks.into_iter().filter(|(stage, _)| bye || *stage < crate::proto::message::Stage::Bye).collect();
        let mut record = Record { host, plan, marks, hello, ..Record::default() };
        before.into_iter().for_each(|message| record.apply(message));
        let mut between = Some(between);
        for index in 0..2 {
            record.apply(Msg::ScenarioBegin { index });
            let part = &mut record.parts.last_mut().unwrap().record;
            *part = Record { klog: part.klog.clone(), bye: false, vm_end: None, klog_end: None, ..one.clone() };
            record.apply(Msg::ScenarioOver { index, klog_records: 0, klog_lost: 0 });
            between.take().into_iter().flatten().for_each(|message| record.apply(message));
        }
        after.into_iter().for_each(|message| record.apply(message));
        record
    }

    fn outcome(record: &Record, words: &str) -> Outcome {
        let Verdict { outcome, headline, exit_code, scenarios, .. } = judge_stored(record);
        assert!(headline.contains(words), "{headline}");
        assert_eq!(exit_code, outcome.exit_code());
        assert_eq!(scenarios.len(), if outcome == Outcome::Pass { 2 } else { 3 }, "{headline}");
        outcome
    }

    #[test]
    fn warning_at_boot_or_between_scenarios_fails_the_run() {
        let good = run(vec![line(1, "x")], vec![line(5, "y")], end(2, true, VmEnd::Reset));
        assert_eq!(outcome(&good, "all 2 scenarios passed"), Outcome::Pass);
        let boot = run(vec![line(1, WARNING)], vec![], end(1, true, VmEnd::Reset));
        assert_eq!(outcome(&boot, "outside the 2 scenarios: WARNING: CPU: 0"), Outcome::Fail);
        let between = run(vec![], vec![line(7, WARNING)], end(1, true, VmEnd::Reset));
        assert_eq!(outcome(&between, "WARNING: CPU: 0"), Outcome::Fail);
    }

    #[test]
    fn what_is_allowed_is_allowed_outside_too_and_shown_as_that() {
        let mut record = run(vec![line(1, WARNING)], vec![], end(1, true, VmEnd::Reset));
        let guards = Guards { allow_log: vec!["kernel/x.c".into()], ..Guards::default() };
        record.plan.as_mut().unwrap().guards = guards;
        assert_eq!(outcome(&record, "all 2"), Outcome::Pass);
        assert_eq!(judge_stored(&record).findings[0].severity, klog::Severity::Note);
    }

    #[test]
    fn log_is_left_alone_only_where_every_scenario_wants_that() {
        let mut record = run(vec![line(1, WARNING)], vec![], end(1, true, VmEnd::Reset));
        let off = |record: &mut Record, place: usize| {
            let asserts = vec![("kernel-log-clean".to_owned(), "off".to_owned())];
            record.plan.as_mut().unwrap().scenarios[place].asserts.clone_from(&asserts);
            record.parts[place].record.plan.as_mut().unwrap().scenarios[0].asserts = asserts;
        };
        off(&mut record, 0);
        assert_eq!(outcome(&record, "WARNING"), Outcome::Fail);
        off(&mut record, 1);
        assert_eq!(outcome(&record, "all 2"), Outcome::Pass);
    }

    #[test]
    fn machine_that_dies_after_the_last_scenario_fails_the_run() {
        let panic = |mut end: Vec<Msg>| {
            end.insert(0, line(9, "Kernel panic - not syncing: sysrq triggered crash"));
            run(vec![], vec![], end)
        };
        assert_eq!(outcome(&panic(end(0, false, VmEnd::Reset)), "Kernel panic"), Outcome::Fail);
        for (how, words, expected) in [
            (VmEnd::TimedOut, "stopped answering", Outcome::Fail),
            (VmEnd::TripleFault, "triple fault", Outcome::Fail),
            (VmEnd::Reset, "went down before it had finished", Outcome::Fail),
            (VmEnd::Silent { for_ns: 1 << 33, busy_percent: None }, "no sign of life", Outcome::Fail),
            (VmEnd::MachineError { text: "KVM gave up".into() }, "KVM gave up", Outcome::Error),
            (VmEnd::Cut { reason: "the ring broke".into() }, "the ring broke", Outcome::Inconclusive),
            (VmEnd::Interrupted, "interrupted", Outcome::Interrupted),
        ] {
            assert_eq!(outcome(&run(vec![], vec![], end(0, false, how)), words), expected);
        }
        let console = Msg::Console { text: "[    9.000000] Kernel panic - not syncing: late\n".into() };
        let late = run(vec![line(1, "x")], vec![], [vec![console], end(1, false, VmEnd::Reset)].concat());
        assert_eq!(outcome(&late, "Kernel panic - not syncing: late"), Outcome::Fail);
    }

    #[test]
    fn missing_log_or_goodbye_is_inconclusive() {
        let mute = vec![Msg::Bye { uptime_ns: 9 }, Msg::VmEnded { end: VmEnd::Reset }];
        assert_eq!(outcome(&run(vec![], vec![], mute), "was not read to its end"), Outcome::Inconclusive);
        let lost = run(vec![line(1, "x")], vec![], end(2, true, VmEnd::Reset));
        assert_eq!(outcome(&lost, "1 of 2 kernel log records did not arrive"), Outcome::Inconclusive);
        let mut forgotten = run(vec![], vec![], end(0, true, VmEnd::Reset));
        forgotten.outside = None;
        assert_eq!(outcome(&forgotten, "outside the scenarios is missing"), Outcome::Inconclusive);
    }

    #[test]
    fn end_of_the_machine_in_an_open_scenario_is_that_scenarios() {
        let mut record = run(vec![], vec![], vec![]);
        record.parts[1].over = false;
        end(0, false, VmEnd::TripleFault).into_iter().for_each(|message| record.apply(message));
        record.parts[1].record.bye = false;
        let verdict = judge_stored(&record);
        assert_eq!((verdict.outcome, verdict.scenarios.len()), (Outcome::Fail, 2), "{}", verdict.headline);
    }
}
