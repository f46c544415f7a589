//! The verdict on a record that was cut before its end.
//!
//! Owns what a failure is worth where the host's part in it is not told any more; leaves judging to `judge`.
//! Invariant: a cut record fails only for what its whole would fail for, however busy the host was.

use super::judge::Verdict;
use super::outcome::Outcome;
use super::several::judge_by;
use super::workers::on_metal;
use crate::proto::limits::Layers;
use crate::proto::message::{Msg, Stage};
use crate::proto::noise::{HostNoise, VcpuNoise};
use crate::proto::record::Record;

/// Slots of the host that is thought of: enough that some lie in any part of the run that matters.
const SLOTS: u64 = 64;

/// Whether a stored record has all that was to come, where it could be read to its end: a writer that is killed most often
/// leaves whole messages.
pub fn is_whole(record: &Record) -> bool {
    on_metal(record) || record.mark(Stage::TornDown).is_some()
}

/// Judges a record that was cut. What the host did stands near its end: a failure that it could excuse is Inconclusive.
pub fn judge_cut(record: &Record, layers: &Layers) -> Verdict {
    let verdict = judge_by(record, layers);
    if verdict.outcome != Outcome::Fail || record.noise.is_some() || on_metal(record) {
        return verdict;
    }
    let mut on_busy_host = record.clone();
    on_busy_host.apply(Msg::Noise { noise: busiest(record) });
    if judge_by(&on_busy_host, layers).outcome == Outcome::Fail {
        return verdict;
    }
    let outcome = Outcome::Inconclusive;
    let headline = format!("the record was cut before it tells whether the host is to blame: {}", verdict.headline);
    Verdict { outcome, headline, exit_code: outcome.exit_code(), ..verdict }
}

/// A host that gave the vCPUs nothing during the whole run.
fn busiest(record: &Record) -> HostNoise {
    let of_parts = record.parts.iter().flat_map(|part| &part.record.marks);
    let to_ns = record.marks.iter().chain(of_parts).map(|(_, at_ns)| *at_ns).max().unwrap_or(0);
    let all = vec![u32::MAX; SLOTS as usize + 1];
    HostNoise {
        to_ns,
        samples: SLOTS,
        vcpus: vec![VcpuNoise { delay_ns: to_ns.max(1), ..VcpuNoise::default() }],
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
