//! Several scenarios: each is judged by its own times and by what the host took meanwhile.
//!
//! Owns these tests; leaves which messages belong to which scenario to proto/part, one scenario alone to tests_noise.
//! Invariant: what happened in one scenario neither excuses nor blames another.

use super::fixture::{passing, starve};
use super::{Outcome, Verdict, judge_stored};
use crate::proto::message::{Msg, Stage, VmEnd};
use crate::proto::record::Record;
use crate::units::{NS_PER_MS, NS_PER_SEC};

/// How long each scenario takes, and how far apart they begin.
const LENGTH_NS: u64 = 20 * NS_PER_SEC;
const APART_NS: u64 = 21 * NS_PER_SEC;
/// When the first begins.
const FIRST_NS: u64 = NS_PER_SEC;

fn begun_ns(index: u32) -> u64 {
    FIRST_NS + u64::from(index) * APART_NS
}

/// The boot of a run of two scenarios.
fn booted() -> Record {
    let Record { host, mut plan, marks, hello, .. } = passing();
    if let Some(plan) = &mut plan {
        plan.scenarios.push(plan.scenarios[0].clone());
    }
    let mut record = Record { host, plan, hello, ..Record::default() };
    for (stage, _) in marks.iter().filter(|(stage, _)| *stage <= Stage::Hello) {
        record.apply(Msg::Mark { stage: *stage, at_ns: *stage as u64 * NS_PER_MS });
    }
    record
}

/// One more scenario, which passes but for a gap of this length.
fn play(record: &mut Record, index: u32, gap_ns: u64) {
    begin(record, index);
    record.apply(Msg::Mark { stage: Stage::ScenarioEnd, at_ns: begun_ns(index) + LENGTH_NS });
    let own = &mut record.parts.last_mut().unwrap().record;
    let (marks, plan) = (own.marks.clone(), own.plan.clone());
    *own = Record { marks, plan, klog: vec![], bye: false, vm_end: None, klog_end: None, ..passing() };
    own.scenario_end.as_mut().unwrap().elapsed_ns = LENGTH_NS;
    own.reports[1].1.max_gap_ns = gap_ns;
}

fn begin(record: &mut Record, index: u32) {
    record.apply(Msg::ScenarioBegin { index });
    record.apply(Msg::ScenarioStart { name: "steady".into(), uptime_ns: 1 });
    assert!(record.lacks_mark(Stage::ScenarioStart));
    record.apply(Msg::Mark { stage: Stage::ScenarioStart, at_ns: begun_ns(index) });
}

fn over(record: &mut Record, index: u32) {
    record.apply(Msg::ScenarioOver { index, klog_records: 0, klog_lost: 0 });
}

/// The end of a run, on a host that kept a vCPU waiting for this long from then on.
fn finish(record: &mut Record, from_ns: u64, waited_ns: u64) {
    record.apply(Msg::KlogEnd { records: 0, lost: 0 });
    record.apply(Msg::Bye { uptime_ns: 9 });
    record.apply(Msg::Mark { stage: Stage::Bye, at_ns: begun_ns(2) });
    record.apply(Msg::Mark { stage: Stage::VmEnd, at_ns: begun_ns(2) });
    record.apply(Msg::VmEnded { end: VmEnd::Reset });
    witnessed(record, from_ns, waited_ns);
}

fn witnessed(record: &mut Record, from_ns: u64, waited_ns: u64) {
    let mut noisy = record.clone();
    starve(&mut noisy, from_ns, waited_ns);
    record.apply(Msg::Noise { noise: noisy.noise.unwrap() });
}

/// Two scenarios with a gap each that is too long, on a host that was busy during one.
fn two_gaps(busy: u32) -> Verdict {
    let mut record = booted();
    for index in 0..2 {
        play(&mut record, index, 9 * NS_PER_SEC);
        over(&mut record, index);
    }
    finish(&mut record, begun_ns(busy) + NS_PER_SEC, 15 * NS_PER_SEC);
    judge_stored(&record)
}

fn outcomes(verdict: &Verdict) -> Vec<Outcome> {
    verdict.scenarios.iter().map(|one| one.verdict.outcome).collect()
}

#[test]
fn noise_voids_the_times_of_the_scenario_that_it_was_in_and_of_no_other() {
    assert_eq!(outcomes(&two_gaps(1)), [Outcome::Fail, Outcome::Inconclusive]);
    assert_eq!(outcomes(&two_gaps(0)), [Outcome::Inconclusive, Outcome::Fail]);
}

#[test]
fn hang_in_the_second_scenario_names_it_as_running() {
    let mut record = booted();
    play(&mut record, 0, NS_PER_MS);
    over(&mut record, 0);
    begin(&mut record, 1);
    record.apply(Msg::Mark { stage: Stage::VmEnd, at_ns: begun_ns(2) });
    record.apply(Msg::VmEnded { end: VmEnd::TimedOut });
    let verdict = judge_stored(&record);
    assert_eq!(outcomes(&verdict), [Outcome::Pass, Outcome::Fail], "{}", verdict.headline);
    let headline = &verdict.scenarios[1].verdict.headline;
    assert!(headline.contains("scenario started but no result"), "{headline}");
}

/// The second of two scenarios hangs for 20 s, and the host kept a vCPU waiting for this long from then on.
fn hang_in_the_second(end: VmEnd, from_ns: u64, waited_ns: u64) -> Verdict {
    let mut record = booted();
    play(&mut record, 0, NS_PER_MS);
    over(&mut record, 0);
    begin(&mut record, 1);
    record.apply(Msg::Mark { stage: Stage::VmEnd, at_ns: begun_ns(1) + 22 * NS_PER_SEC });
    record.apply(Msg::VmEnded { end });
    witnessed(&mut record, from_ns, waited_ns);
    judge_stored(&record)
}

#[test]
fn hang_is_excused_by_the_noise_of_its_own_time_and_of_no_other() {
    let pass = Outcome::Pass;
    for end in [VmEnd::Silent { for_ns: 20 * NS_PER_SEC, busy_percent: None }, VmEnd::TimedOut] {
        // All of the first scenario.
        let before = hang_in_the_second(end.clone(), FIRST_NS, APART_NS);
        assert_eq!(outcomes(&before), [pass, Outcome::Fail], "{}", before.headline);
        let meanwhile = hang_in_the_second(end.clone(), begun_ns(1) + 5 * NS_PER_SEC, 11 * NS_PER_SEC);
        assert_eq!(outcomes(&meanwhile), [pass, Outcome::Inconclusive], "{}", meanwhile.headline);
        let hung = &meanwhile.scenarios[1].verdict.headline;
        assert!(hung.ends_with("the host kept a vCPU waiting for 11.0 s of 20.0 s"), "{hung}");
        let little = hang_in_the_second(end, begun_ns(1) + 5 * NS_PER_SEC, 9 * NS_PER_SEC);
        assert_eq!(outcomes(&little), [pass, Outcome::Fail], "{}", little.headline);
    }
}

#[test]
fn hang_and_stall_between_two_scenarios_are_excused_by_the_noise_between_them() {
    const STALL: &str = "rcu: INFO: rcu_preempt self-detected stall on CPU";
    let hung_ns = begun_ns(1) + LENGTH_NS;
    let last = |end: VmEnd, from_ns: u64, waited_ns: u64| {
        let mut record = booted();
        for index in 0..2 {
            play(&mut record, index, NS_PER_MS);
            over(&mut record, index);
        }
        record.apply(Msg::Klog { priority: 4, sequence: 1, time_us: 1, text: STALL.into() });
        record.apply(Msg::Mark { stage: Stage::VmEnd, at_ns: hung_ns + LENGTH_NS });
        record.apply(Msg::VmEnded { end });
        witnessed(&mut record, from_ns, waited_ns);
        judge_stored(&record).scenarios.last().unwrap().verdict.outcome
    };
    for end in [VmEnd::Silent { for_ns: LENGTH_NS, busy_percent: None }, VmEnd::TimedOut] {
        for index in 0..2 {
            assert_eq!(last(end.clone(), begun_ns(index), LENGTH_NS), Outcome::Fail);
        }
        assert_eq!(last(end.clone(), hung_ns + 5 * NS_PER_SEC, 10 * NS_PER_SEC), Outcome::Inconclusive);
    }
}

#[test]
fn scenario_whose_log_did_not_end_before_the_next_is_inconclusive_and_no_error() {
    let mut record = booted();
    play(&mut record, 0, NS_PER_MS);
    play(&mut record, 1, NS_PER_MS);
    over(&mut record, 1);
    finish(&mut record, 0, 0);
    let verdict = judge_stored(&record);
    assert_eq!(outcomes(&verdict), [Outcome::Inconclusive, Outcome::Pass], "{}", verdict.headline);
    assert_eq!(verdict.exit_code, 125, "{}", verdict.headline);
}
