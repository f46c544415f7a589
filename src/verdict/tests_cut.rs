//! Records that were cut: whole ones of many kinds, cut behind every message.
//!
//! Owns these tests; leaves what is told of a cut record to `cut`.
//! Invariant: where the whole does not fail, no beginning of it does; each kind has a beginning that would, were it whole.

use super::bad_on::{BadKind, BadOn};
use super::fixture::{LOCKUP, STALL, add_log, passing, passing_with_scheduler, starve};
use super::tests_properties::messages;
use super::{Outcome, Status, Verdict, judge_cut, judge_stored, on_busy_host, stored_layers};
use crate::proto::message::{Msg, Stage, VmEnd};
use crate::proto::record::Record;
use crate::units::{NS_PER_MS, NS_PER_SEC};

const WARNING: &str = "WARNING: CPU: 0 PID: 5 at kernel/sched/core.c:1234 foo+0x1/0x2";
const RCU: &str = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:";

/// The messages of one run in the order of a live one: these come once the workers have reported.
fn live(record: &Record, then: &[Msg]) -> Vec<Msg> {
    let is_late = |message: &Msg| matches!(message, Msg::Mark { stage, .. } if *stage >= Stage::ScenarioEnd);
    let (mut late, mut list): (Vec<Msg>, Vec<Msg>) = messages(record).into_iter().partition(is_late);
    let reported = list.iter().rposition(|message| matches!(message, Msg::Report { .. })).unwrap() + 1;
    list.splice(reported..reported, then.iter().cloned());
    let torn_down = late.pop();
    let ends = list.iter().position(|message| matches!(message, Msg::VmEnded { .. })).unwrap_or(list.len());
    list.splice(ends..ends, late);
    list.extend(record.noise.clone().map(|noise| Msg::Noise { noise }));
    list.extend(torn_down);
    list
}

fn folded(messages: &[Msg]) -> Record {
    let mut record = Record::default();
    messages.iter().for_each(|message| record.apply(message.clone()));
    record
}

fn cut(record: &Record) -> Verdict {
    judge_cut(record, &stored_layers(record))
}

/// No beginning of this run fails, as the whole does not. `would`: judged as a whole, one does.
fn assert_no_beginning_fails(kind: &str, list: &[Msg], whole: Outcome, would: bool) {
    let verdict = judge_stored(&folded(list));
    assert_eq!(verdict.outcome, whole, "{kind}: {}", verdict.headline);
    assert_ne!(whole, Outcome::Fail, "{kind}");
    let mut fails = false;
    let mut record = Record::default();
    for (count, message) in list.iter().enumerate() {
        fails |= judge_stored(&record).outcome == Outcome::Fail;
        let verdict = cut(&record);
        assert_ne!(verdict.outcome, Outcome::Fail, "{kind}, cut behind {count} messages: {}", verdict.headline);
        assert_eq!(verdict.exit_code, verdict.outcome.exit_code());
        record.apply(message.clone());
    }
    assert_eq!(fails, would, "{kind}");
}

fn starved(mut record: Record) -> Record {
    starve(&mut record, 0, 10 * NS_PER_SEC);
    record
}

fn with_log(mut record: Record, lines: &[&str]) -> Record {
    add_log(&mut record, lines);
    record
}

fn hang() -> Msg {
    Msg::KernelHang { text: "cgroup.procs was written to for 10 s".into() }
}

fn gap(mut record: Record) -> Record {
    record.reports[0].1.max_gap_ns = 30 * NS_PER_SEC;
    record
}

fn ended(mut record: Record, end: VmEnd) -> Record {
    record.bye = false;
    record.vm_end = Some(end);
    record.marks.retain(|(stage, _)| *stage != Stage::Bye);
    record
}

fn silent(record: Record) -> Record {
    let mut record = ended(record, VmEnd::Silent { for_ns: NS_PER_SEC, busy_percent: None });
    (record.scenario_end, record.klog_end, record.sched_final) = (None, None, None);
    record.marks.retain(|(stage, _)| *stage != Stage::ScenarioEnd);
    record
}

#[test]
fn no_beginning_of_a_run_that_a_busy_host_excuses_fails() {
    let inconclusive = Outcome::Inconclusive;
    let runs: [(&str, Record, &[Msg]); 6] = [
        ("hang", starved(passing()), &[hang()]),
        ("stall", starved(with_log(passing(), &[RCU])), &[]),
        ("stall of the scheduler", starved(with_log(passing_with_scheduler(), &STALL)), &[]),
        ("lockup", starved(with_log(passing_with_scheduler(), &LOCKUP)), &[]),
        ("gap", starved(gap(passing())), &[]),
        ("silence", starved(silent(passing())), &[]),
    ];
    for (kind, record, then) in runs {
        assert_no_beginning_fails(kind, &live(&record, then), inconclusive, true);
    }
    let mut stolen = gap(passing());
    stolen.scenario_end.as_mut().unwrap().steal_ns = NS_PER_SEC;
    assert_no_beginning_fails("steal", &live(&stolen, &[hang()]), inconclusive, true);
}

#[test]
fn no_beginning_of_a_run_that_was_interrupted_or_could_not_be_judged_fails() {
    let interrupted = |record: Record| ended(record, VmEnd::Interrupted);
    for (kind, record) in [
        ("warning", with_log(passing(), &[WARNING])),
        ("crash", with_log(passing(), &["BUG: kernel NULL pointer dereference, address: 0000000000000008"])),
        ("stall", with_log(passing_with_scheduler(), &STALL)),
    ] {
        assert_no_beginning_fails(kind, &live(&interrupted(record), &[]), Outcome::Interrupted, true);
    }
    assert_no_beginning_fails("hang", &live(&interrupted(passing()), &[hang()]), Outcome::Interrupted, true);
    let no_machine = VmEnd::MachineError { text: "KVM_RUN: errno 14".into() };
    assert_no_beginning_fails("machine", &live(&ended(gap(passing()), no_machine), &[]), Outcome::Error, false);
    let error = |cannot_judge| Msg::GuestError { stage: "scenario".into(), text: "x".into(), cannot_judge };
    assert_no_beginning_fails("guest", &live(&gap(passing()), &[error(false)]), Outcome::Error, false);
    assert_no_beginning_fails("kernel", &live(&passing(), &[hang(), error(true)]), Outcome::Skip, true);
    // The line that allows the report comes last.
    let mut allowed = with_log(passing(), &[WARNING, "Call Trace:", " known_culprit+0x1/0x2"]);
    allowed.plan.as_mut().unwrap().guards.allow_log = vec!["known_culprit*".into()];
    assert_no_beginning_fails("allowed", &live(&allowed, &[]), Outcome::Pass, true);
}

/// A run of two scenarios with these messages in each, and its end.
fn two(bodies: [(Record, &[Msg]); 2], end: VmEnd, waited: (u64, u64)) -> Vec<Msg> {
    let shape = passing();
    let mut plan = shape.plan.clone().unwrap();
    plan.scenarios.push(plan.scenarios[0].clone());
    let boot = Record { plan: Some(plan), ..shape };
    let is_boot = |message: &Msg| match message {
        Msg::Host { .. } | Msg::Planned { .. } | Msg::Hello { .. } => true,
        Msg::Mark { stage, .. } => *stage <= Stage::Hello,
        _ => false,
    };
    let mut list: Vec<Msg> = messages(&boot).into_iter().filter(is_boot).collect();
    for (index, (body, then)) in (0u32..).zip(bodies) {
        let at_ns = |seconds: u64| (1 + 3 * u64::from(index) + seconds) * NS_PER_SEC;
        let (own, _): (Vec<Msg>, Vec<Msg>) = messages(&body).into_iter().partition(|message| {
            matches!(
                message,
                Msg::ScenarioStart { .. } | Msg::Spawned { .. } | Msg::Report { .. } | Msg::ScenarioEnd { .. }
            )
        });
        list.push(Msg::ScenarioBegin { index });
        list.push(Msg::Mark { stage: Stage::ScenarioStart, at_ns: at_ns(0) });
        for message in own {
            if matches!(message, Msg::ScenarioEnd { .. }) {
                list.extend(then.iter().cloned());
            }
            list.push(message);
        }
        list.push(Msg::Mark { stage: Stage::ScenarioEnd, at_ns: at_ns(2) });
        list.push(Msg::ScenarioOver { index, klog_records: 0, klog_lost: 0 });
    }
    if end == VmEnd::Reset {
        list.extend([Msg::KlogEnd { records: 0, lost: 0 }, Msg::Bye { uptime_ns: 9 }]);
    }
    list.extend([Msg::Mark { stage: Stage::VmEnd, at_ns: 7 * NS_PER_SEC }, Msg::VmEnded { end }]);
    let mut noisy = folded(&list);
    starve(&mut noisy, waited.0, waited.1);
    list.extend(noisy.noise.map(|noise| Msg::Noise { noise }));
    list.push(Msg::Mark { stage: Stage::TornDown, at_ns: 7 * NS_PER_SEC + NS_PER_MS });
    list
}

#[test]
fn no_beginning_of_several_scenarios_fails_where_the_whole_does_not() {
    let all_along = (0, 7 * NS_PER_SEC);
    let second = (3 * NS_PER_SEC, 4 * NS_PER_SEC);
    let none: &[Msg] = &[];
    let gaps = two([(gap(passing()), none), (gap(passing()), none)], VmEnd::Reset, all_along);
    assert_no_beginning_fails("gaps", &gaps, Outcome::Inconclusive, true);
    let hangs = two([(passing(), none), (passing(), &[hang()])], VmEnd::Reset, second);
    assert_no_beginning_fails("hang in the second", &hangs, Outcome::Inconclusive, true);
    let stopped = two([(gap(passing()), none), (passing(), none)], VmEnd::Interrupted, (0, 0));
    // The machine's end is no scenario's, as both were over; before it is told it is an error.
    assert_no_beginning_fails("interrupted", &stopped, Outcome::Interrupted, false);
    let warning = Msg::Klog { priority: 4, sequence: 1, time_us: 1, text: WARNING.into() };
    let mut open = two([(passing(), none), (passing(), &[warning])], VmEnd::Interrupted, (0, 0));
    open.retain(|message| !matches!(message, Msg::ScenarioOver { index: 1, .. }));
    assert_no_beginning_fails("interrupted in the second", &open, Outcome::Interrupted, true);
}

#[test]
fn failure_of_the_whole_stands_once_its_end_is_told() {
    let list = live(&with_log(passing(), &[WARNING]), &[]);
    let told = list.iter().position(|message| matches!(message, Msg::VmEnded { .. })).unwrap();
    let early = cut(&folded(&list[..told]));
    assert_eq!(early.outcome, Outcome::Inconclusive);
    assert!(
        early.headline.starts_with("the record was cut before it tells how the run ended: WARNING"),
        "{}",
        early.headline
    );
    let late = cut(&folded(&list[..=told]));
    assert_eq!(
        (late.outcome, late.headline.as_str()),
        (Outcome::Fail, "WARNING: CPU: 0 PID: 5 at kernel/sched/core.c:1234 foo+0x1/0x2")
    );
}

/// What is bad of a cut record, where only this kind is.
fn bad(kind: BadKind, record: &Record) -> Outcome {
    let busy = on_busy_host(record);
    BadOn(vec![kind]).apply(busy.as_ref().unwrap_or(record), cut(record)).outcome
}

#[test]
fn excusable_failure_beside_one_that_is_not_is_in_doubt_and_of_no_kind() {
    let kinds = [BadKind::Stall, BadKind::Check, BadKind::Warn];
    let mut record = with_log(gap(passing()), &[RCU, "x", WARNING]);
    assert_eq!(kinds.map(|kind| BadOn(vec![kind]).apply(&record, judge_stored(&record)).outcome), [Outcome::Fail; 3]);
    let verdict = cut(&record);
    assert_eq!(verdict.outcome, Outcome::Fail);
    assert!(verdict.headline.starts_with("WARNING"), "{}", verdict.headline);
    let gap = verdict.checks.iter().find(|check| check.name == "max_gap").unwrap();
    assert_eq!(gap.status, Status::Inconclusive);
    assert!(gap.reason.starts_with("the record was cut before it tells whether the host"), "{}", gap.reason);
    assert_eq!(kinds.map(|kind| bad(kind, &record)), [Outcome::Inconclusive, Outcome::Inconclusive, Outcome::Fail]);
    // It was told, and is not to blame.
    starve(&mut record, 0, 0);
    assert_eq!(kinds.map(|kind| bad(kind, &record)), [Outcome::Fail; 3]);
}

#[test]
fn excusable_failure_of_one_scenario_is_in_doubt_beside_another_that_fails() {
    let warning = Msg::Klog { priority: 4, sequence: 1, time_us: 1, text: WARNING.into() };
    let mut list = two([(gap(passing()), &[]), (passing(), &[warning])], VmEnd::Reset, (0, 0));
    list.retain(|message| !matches!(message, Msg::Noise { .. }));
    let record = folded(&list);
    let verdict = cut(&record);
    let outcomes: Vec<Outcome> = verdict.scenarios.iter().map(|one| one.verdict.outcome).collect();
    assert_eq!((verdict.outcome, &outcomes[..2]), (Outcome::Fail, &[Outcome::Inconclusive, Outcome::Fail][..]));
    assert!(verdict.headline.contains("WARNING"), "{}", verdict.headline);
    assert_eq!(verdict.checks, verdict.scenarios[1].verdict.checks);
    assert_eq!(bad(BadKind::Check, &record), Outcome::Inconclusive);
    assert_eq!(bad(BadKind::Warn, &record), Outcome::Fail);
}
