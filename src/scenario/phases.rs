//! What the workers did between two borders of a scenario, added up by cgroup and kind of work.
//!
//! Owns the differences and sums; leaves reading the counters to workload/.
//! Invariant: a number that one worker could not give is none for its group, never a partial sum.

use crate::proto::phase::PhaseGroup;
use crate::proto::report::Samples;
use crate::workload::{Counters, SchedStat};

/// The sums of one phase as it goes on.
#[derive(Clone, Debug, Default)]
pub struct PhaseSums {
    groups: Vec<PhaseGroup>,
}

impl PhaseSums {
    /// Adds what the workers of one crew did between two looks. `first_spec` counts the works that its cgroup had before it.
    pub fn add(&mut self, group: &str, first_spec: u32, before: &[Counters], after: &[Counters]) {
        for (before, after) in before.iter().zip(after) {
            let group_idx = first_spec + after.group_idx;
            let same = |row: &&mut PhaseGroup| {
                row.group == group && row.group_idx == group_idx && row.work_type == after.work_type
            };
            match self.groups.iter_mut().find(same) {
                Some(row) => add_worker(row, before, after),
                None => {
                    let mut row = PhaseGroup {
                        group: group.into(),
                        group_idx,
                        work_type: after.work_type.into(),
                        cpu_ns: Some(0),
                        run_delay_ns: Some(0),
                        runs: Some(0),
                        max_run_delay_ns: Some(0),
                        least_cpu_ns: Some(u64::MAX),
                        most_cpu_ns: Some(0),
                        ..PhaseGroup::default()
                    };
                    add_worker(&mut row, before, after);
                    self.groups.push(row);
                }
            }
        }
    }

    /// The phase is over.
    pub fn take(&mut self) -> Vec<PhaseGroup> {
        std::mem::take(&mut self.groups)
    }
}

fn add_worker(row: &mut PhaseGroup, before: &Counters, after: &Counters) {
    let units = after.work_units.saturating_sub(before.work_units);
    row.workers += 1;
    row.idle_workers += u32::from(units == 0);
    row.work_units = row.work_units.saturating_add(units);
    row.iterations = row.iterations.saturating_add(after.iterations.saturating_sub(before.iterations));
    row.migrations = row.migrations.saturating_add(after.migrations.saturating_sub(before.migrations));
    let grown =
        |field: fn(&SchedStat) -> u64| Some(field(after.sched.as_ref()?).saturating_sub(field(before.sched.as_ref()?)));
    let cpu = grown(|sched| sched.cpu_ns);
    row.cpu_ns = both(row.cpu_ns, cpu, u64::saturating_add);
    row.run_delay_ns = both(row.run_delay_ns, grown(|sched| sched.run_delay_ns), u64::saturating_add);
    row.runs = both(row.runs, grown(|sched| sched.runs), u64::saturating_add);
    // A worker without a turn has none that ended: it is among the idle ones.
    row.max_gap_ns = row.max_gap_ns.max(after.max_gap_ns);
    let max_run_delay_ns = after.sched.map(|_| after.max_run_delay_ns);
    row.max_run_delay_ns = both(row.max_run_delay_ns, max_run_delay_ns, u64::max);
    row.least_cpu_ns = both(row.least_cpu_ns, cpu, u64::min);
    row.most_cpu_ns = both(row.most_cpu_ns, cpu, u64::max);
    for (kind, hist) in &after.samples {
        let old = before.samples.iter().find(|(known, _)| known == kind);
        let fresh = old.map_or_else(|| hist.clone(), |(_, old)| hist.since(old));
        match row.samples.iter_mut().find(|samples| samples.kind == *kind) {
            Some(samples) => samples.hist.merge(&fresh),
            None => row.samples.push(Samples { kind: *kind, hist: fresh, raw_ns: Vec::new() }),
        }
    }
}

fn both(a: Option<u64>, b: Option<u64>, join: fn(u64, u64) -> u64) -> Option<u64> {
    Some(join(a?, b?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::hist::Hist;
    use crate::proto::work::SampleKind;

    fn counters(units: u64, cpu_ns: Option<u64>, samples: u64) -> Counters {
        let mut hist = Hist::new();
        (0..samples).for_each(|_| hist.record(1000));
        Counters {
            work_type: "PipeIo",
            work_units: units,
            sched: cpu_ns.map(|cpu_ns| SchedStat { cpu_ns, run_delay_ns: 2 * cpu_ns, runs: 1 }),
            samples: vec![(SampleKind::Wake, hist)],
            max_gap_ns: (units > 0).then_some(units),
            max_run_delay_ns: 3 * units,
            ..Counters::default()
        }
    }

    #[test]
    fn phases_hold_differences_and_whoever_stood_still() {
        let mut sums = PhaseSums::default();
        let before = [counters(10, Some(100), 5), counters(7, Some(50), 1)];
        let after = [counters(30, Some(900), 9), counters(7, Some(60), 1)];
        sums.add("a", 2, &before, &after);
        sums.add("b", 0, &before[..1], &after[..1]);
        let groups = sums.take();
        assert_eq!(groups.len(), 2);
        let a = &groups[0];
        assert_eq!((a.workers, a.idle_workers, a.work_units, a.group_idx), (2, 1, 20, 2));
        assert_eq!((a.cpu_ns, a.run_delay_ns), (Some(810), Some(1620)));
        assert_eq!((a.least_cpu_ns, a.most_cpu_ns), (Some(10), Some(800)));
        assert_eq!((a.max_gap_ns, a.max_run_delay_ns), (Some(30), Some(90)));
        assert_eq!(a.samples[0].hist.count(), 4);
        assert!(sums.take().is_empty());
    }

    #[test]
    fn gap_of_a_phase_without_a_turn_is_none() {
        let mut sums = PhaseSums::default();
        let idle = [counters(0, Some(9), 0)];
        sums.add("a", 0, &idle, &idle);
        assert_eq!((sums.groups[0].max_gap_ns, sums.groups[0].idle_workers), (None, 1));
        // Another worker's gap is one that ended; the idle one stays beside it.
        sums.add("a", 0, &[counters(1, Some(1), 0)], &[counters(5, Some(2), 0)]);
        sums.add("a", 0, &idle, &idle);
        let groups = sums.take();
        assert_eq!((groups[0].max_gap_ns, groups[0].idle_workers, groups[0].workers), (Some(5), 2, 3));
    }

    #[test]
    fn one_worker_without_numbers_leaves_its_group_without() {
        let mut sums = PhaseSums::default();
        sums.add(
            "a",
            0,
            &[counters(1, Some(1), 0), counters(1, None, 0)],
            &[counters(2, Some(2), 0), counters(2, None, 0)],
        );
        let groups = sums.take();
        assert_eq!((groups[0].cpu_ns, groups[0].least_cpu_ns, groups[0].work_units), (None, None, 2));
        assert_eq!((groups[0].max_gap_ns, groups[0].max_run_delay_ns), (Some(2), None));
    }
}
