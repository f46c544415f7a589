//! Looks at workers while they work, without asking them.
//!
//! Owns reading counters, histograms and CPUs out of slots and /proc; leaves what a phase is to scenario/.
//! Invariant: a look changes nothing but what it takes: the set of CPUs seen, and at a border what was longest.

use super::handle::WorkloadHandle;
use super::sampler::SchedStat;
use super::slot::{Field, Slot};
use crate::proto::cpuset::CpuSet;
use crate::proto::hist::Hist;
use crate::proto::work::SampleKind;

/// One worker's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Index of its spec within the handle.
    pub group_idx: u32,
    pub work_type: &'static str,
    pub iterations: u64,
    pub work_units: u64,
    pub migrations: u64,
    /// The longest gap since it was taken last; none where none was noted since, as the worker made no progress.
    pub max_gap_ns: Option<u64>,
    /// The longest run delay since it was taken last, where the kernel counts any.
    pub max_run_delay_ns: u64,
    /// Since the fork; none where the kernel does not count, or the worker is gone.
    pub sched: Option<SchedStat>,
    pub samples: Vec<(SampleKind, Hist)>,
}

impl WorkloadHandle {
    /// Every worker's counters now.
    pub fn counters(&self) -> Vec<Counters> {
        self.counters_with(|slot, field| slot.get(field))
    }

    /// The same at the border of two phases: what was longest begins anew.
    pub fn take_counters(&self) -> Vec<Counters> {
        self.counters_with(|slot, field| slot.take(field))
    }

    fn counters_with(&self, longest: fn(&Slot<'_>, Field) -> u64) -> Vec<Counters> {
        let one = |(idx, pid): (usize, i32)| {
            let slot = self.shared.slot(idx);
            let group_idx = self.workers[idx].who.group_idx;
            let work = &self.specs[group_idx as usize].work;
            let kinds = work.sample_kinds().iter().enumerate();
            Counters {
                group_idx,
                work_type: work.name(),
                iterations: slot.get(Field::Iterations),
                work_units: slot.get(Field::WorkUnits),
                migrations: slot.get(Field::MigrationCount),
                // What a border leaves is 0, and what is noted is not.
                max_gap_ns: Some(longest(&slot, Field::PhaseGapNs)).filter(|ns| *ns > 0),
                max_run_delay_ns: longest(&slot, Field::PhaseDelayNs),
                sched: SchedStat::of_process(pid),
                samples: kinds.map(|(place, kind)| (*kind, slot.hist(place))).collect(),
            }
        };
        self.tids().into_iter().enumerate().map(one).collect()
    }

    /// The CPUs that each worker was seen on since the last call.
    pub fn take_cpus(&self) -> Vec<CpuSet> {
        (0..self.workers.len()).map(|idx| self.shared.slot(idx).take_cpus()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::work::WorkType;
    use crate::sys::time;
    use crate::units::{NS_PER_MS, NS_PER_SEC};
    use crate::workload::WorkloadConfig;

    #[test]
    fn counters_grow_while_workers_work_and_cpus_are_seen_again_after_each_look() {
        let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::YieldHeavy, 2)).unwrap();
        let before = handle.counters();
        assert!(before.iter().all(|counters| counters.iterations == 0 && counters.work_type == "YieldHeavy"));
        handle.start().unwrap();
        let deadline = time::monotonic_ns() + 20 * NS_PER_SEC;
        for _ in 0..3 {
            loop {
                let seen = handle.take_cpus();
                if seen.iter().all(|cpus| !cpus.is_empty()) {
                    break;
                }
                assert!(time::monotonic_ns() < deadline, "{seen:?}");
                time::sleep_ns(20 * NS_PER_MS).unwrap();
            }
        }
        let after = handle.counters();
        for (before, after) in before.iter().zip(&after) {
            assert!(after.iterations > before.iterations && after.samples[0].1.count() > 0, "{after:?}");
            if let (Some(before), Some(after)) = (before.sched, after.sched) {
                assert!(after.cpu_ns > before.cpu_ns);
            }
        }
        let reports = handle.stop_and_collect().unwrap();
        assert!(reports.iter().all(|report| report.completed));
    }
}
