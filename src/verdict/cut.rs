//! The verdict on a record that was cut before its end.
//!
//! Owns what a failure is worth where the host's part in it is not told any more; leaves judging to `judge`.
//! Invariant: a cut record fails only for what its whole would fail for, however busy the host was, and whoever ended the
//! run.

use super::check::{Check, Status};
use super::judge::Verdict;
use super::outcome::Outcome;
use super::several::{OfScenario, judge_by};
use super::workers::on_metal;
use crate::proto::limits::Layers;
use crate::proto::message::{Msg, Stage};
use crate::proto::noise::HostNoise;
use crate::proto::record::Record;

/// Slots of the host that is thought of: as many as a witness keeps, whose waits by slot are cut at the same number.
const SLOTS: u64 = 2048;

/// Whether a stored record has all that was to come, where it could be read to its end: a writer that is killed most often
/// leaves whole messages.
pub fn is_whole(record: &Record) -> bool {
    let last_of_metal = record.bye || record.vm_end.is_some();
    record.mark(Stage::TornDown).is_some() || on_metal(record) && last_of_metal
}

/// Judges a record that was cut. How the run ended, and then what the host did, stands near its end: a failure that either
/// could explain is Inconclusive.
pub fn judge_cut(record: &Record, layers: &Layers) -> Verdict {
    let verdict = judge_by(record, layers);
    if verdict.outcome != Outcome::Fail {
        return verdict;
    }
    // A user who ended it does not want its result, and what the harness could not do outranks many a failure.
    if record.vm_end.is_none() && !(on_metal(record) && record.bye) {
        return unended(verdict);
    }
    match on_busy_host(record) {
        Some(busy) => doubt(verdict, judge_by(&busy, layers)),
        None => verdict,
    }
}

/// The record with a host that excuses all that any could, where it was cut before it tells what the host did.
pub fn on_busy_host(record: &Record) -> Option<Record> {
    if record.noise.is_some() || on_metal(record) {
        return None;
    }
    let mut busy = record.clone();
    busy.apply(Msg::Noise { noise: busiest(record) });
    Some(busy)
}

const UNTOLD: &str = "the record was cut before it tells whether the host is to blame";

/// Nothing of it is more than what was seen until then.
fn unended(verdict: Verdict) -> Verdict {
    const WHY: &str = "the record was cut before it tells how the run ended";
    if verdict.outcome != Outcome::Fail {
        return verdict;
    }
    let of_scenario = |one: OfScenario| OfScenario { verdict: unended(one.verdict), ..one };
    let scenarios = verdict.scenarios.into_iter().map(of_scenario).collect();
    let checks = verdict.checks.into_iter().map(|check| uncertain(check, WHY)).collect();
    in_doubt(Verdict { checks, scenarios, ..verdict }, WHY)
}

fn in_doubt(verdict: Verdict, why: &str) -> Verdict {
    let outcome = Outcome::Inconclusive;
    let headline = format!("{why}: {}", verdict.headline);
    Verdict { outcome, headline, exit_code: outcome.exit_code(), ..verdict }
}

/// Of a verdict what a busy host would leave of it; the rest is in doubt.
fn doubt(verdict: Verdict, on_busy_host: Verdict) -> Verdict {
    let Verdict { outcome, headline, reached, stopped, checks: left, scenarios: others, .. } = on_busy_host;
    // Of several scenarios the checks are those of one.
    let told_by = others.iter().position(|one| one.verdict.checks == left);
    let of_scenario =
        |(one, other): (OfScenario, OfScenario)| OfScenario { verdict: doubt(one.verdict, other.verdict), ..one };
    let scenarios: Vec<OfScenario> = verdict.scenarios.into_iter().zip(others).map(of_scenario).collect();
    let checks = match told_by.and_then(|place| scenarios.get(place)) {
        Some(one) => one.verdict.checks.clone(),
        None => verdict.checks.into_iter().zip(&left).map(|(check, left)| doubted(check, left)).collect(),
    };
    let verdict = Verdict { checks, scenarios, ..verdict };
    match (verdict.outcome, outcome) {
        (Outcome::Fail, Outcome::Fail) => Verdict { headline, reached, stopped, ..verdict },
        (Outcome::Fail, _) => in_doubt(verdict, UNTOLD),
        _ => verdict,
    }
}

fn doubted(check: Check, left: &Check) -> Check {
    if left.status == Status::Fail { check } else { uncertain(check, UNTOLD) }
}

fn uncertain(check: Check, why: &str) -> Check {
    if check.status != Status::Fail {
        return check;
    }
    let reason = format!("{why}: {}", check.reason);
    Check { status: Status::Inconclusive, reason, ..check }
}

/// A host that gave the vCPUs nothing during the whole run.
fn busiest(record: &Record) -> HostNoise {
    let of_parts = record.parts.iter().flat_map(|part| &part.record.marks);
    let last_ns = record.marks.iter().chain(of_parts).map(|(_, at_ns)| *at_ns).max().unwrap_or(0);
    // The run went on behind its last mark.
    let to_ns = last_ns.saturating_add(1);
    let all = vec![u32::MAX; SLOTS as usize + 1];
    HostNoise {
        to_ns,
        samples: SLOTS,
        slot_ns: to_ns / SLOTS + 1,
        worst_us: all.clone(),
        sum_us: all,
        ..HostNoise::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{STALL, add_log, passing, passing_with_scheduler, starve};
    use super::super::{judge_stored, stored_layers};
    use super::*;
    use crate::proto::message::VmEnd;
    use crate::proto::part::Part;
    use crate::units::NS_PER_SEC;

    /// The verdict on the record as it is, and where it was cut.
    fn both(record: &Record) -> (Outcome, Outcome) {
        let cut = judge_cut(record, &stored_layers(record));
        assert_eq!(cut.exit_code, cut.outcome.exit_code());
        (judge_stored(record).outcome, cut.outcome)
    }

    fn changed(mut record: Record, change: fn(&mut Record)) -> Record {
        change(&mut record);
        record
    }

    fn gap(record: &mut Record) {
        record.reports[0].1.max_gap_ns = 30 * NS_PER_SEC;
    }

    #[test]
    fn failure_that_the_host_could_excuse_is_none_where_the_host_is_not_told() {
        let excusable: [fn(&mut Record); 4] = [
            gap,
            |record| record.reports[0].1.work_units = 0,
            |record| add_log(record, &STALL),
            |record| {
                (record.bye, record.scenario_end) = (false, None);
                record.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
                record.vm_end = Some(VmEnd::Silent { for_ns: 20 * NS_PER_SEC, busy_percent: None });
            },
        ];
        for change in excusable {
            let mut record = changed(passing_with_scheduler(), change);
            assert_eq!(both(&record), (Outcome::Fail, Outcome::Inconclusive), "{}", judge_stored(&record).headline);
            // What the host did is there: the cut came behind it.
            starve(&mut record, 0, 0);
            assert_eq!(both(&record), (Outcome::Fail, Outcome::Fail));
        }
        let mut metal = changed(passing(), gap);
        metal.host.as_mut().unwrap().accel = super::super::METAL.into();
        assert_eq!(both(&metal), (Outcome::Fail, Outcome::Fail));
        assert_eq!(both(&passing()), (Outcome::Pass, Outcome::Pass));
    }

    #[test]
    fn record_without_the_last_mark_is_not_whole() {
        let mut record = passing();
        record.marks.push((Stage::TornDown, u64::MAX));
        assert!(is_whole(&record));
        record.marks.retain(|(stage, _)| *stage != Stage::TornDown);
        assert!(!is_whole(&record));
        record.host.as_mut().unwrap().accel = super::super::METAL.into();
        assert!(is_whole(&record), "a run without a VM has none to tear down");
        (record.bye, record.vm_end) = (false, None);
        assert!(!is_whole(&record), "it was killed");
        let verdict = judge_stored(&record);
        assert_eq!((verdict.outcome, &*verdict.headline), (Outcome::Error, "the run ended without saying how"));
    }

    #[test]
    fn failure_that_no_host_excuses_stands() {
        let plain: [fn(&mut Record); 3] = [
            |record| add_log(record, &["WARNING: CPU: 0 PID: 5 at kernel/sched/core.c:1234 foo+0x1/0x2"]),
            |record| record.reports[0].1.nice_error = Some("permission denied".into()),
            |record| record.vm_end = Some(VmEnd::TripleFault),
        ];
        for change in plain {
            assert_eq!(both(&changed(passing(), change)), (Outcome::Fail, Outcome::Fail));
            // Beside one that it could excuse, too.
            let mut record = changed(passing(), gap);
            change(&mut record);
            assert_eq!(both(&record), (Outcome::Fail, Outcome::Fail));
        }
    }

    #[test]
    fn each_of_several_scenarios_is_excused_alike() {
        let mut whole = passing();
        let scenarios = &mut whole.plan.as_mut().unwrap().scenarios;
        scenarios.push(scenarios[0].clone());
        whole.parts = (0..2).map(|index| Part { index, over: true, record: changed(passing(), gap) }).collect();
        whole.outside = Some(Box::new(passing()));
        assert_eq!(both(&whole), (Outcome::Fail, Outcome::Inconclusive));
        // The run's marks are those of its first scenario.
        for (stage, at_ns) in &mut whole.parts[1].record.marks {
            *at_ns += if (Stage::ScenarioStart..=Stage::ScenarioEnd).contains(stage) { 60 * NS_PER_SEC } else { 0 };
        }
        assert_eq!(both(&whole), (Outcome::Fail, Outcome::Inconclusive));
    }
}
