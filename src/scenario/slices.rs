//! On which CPUs workers ran while which cpuset was in force.
//!
//! Owns the borders between cpusets and the grace after each; leaves judging to verdict/.
//! Invariant: a CPU is counted against a cpuset only where it was seen after that cpuset's grace and before the next border,
//! and every cpuset that was in force is told, seen or not.

use crate::proto::cpuset::CpuSet;
use crate::proto::phase::{CpuSlice, GRACE_NS};

/// What is known of one worker.
#[derive(Debug, Default)]
struct Worker {
    slices: Vec<CpuSlice>,
    /// All CPUs seen, graces included.
    seen: CpuSet,
    /// Seen under the cpuset in force, after its grace.
    current: CpuSet,
    /// From when on what is seen counts; none: in grace.
    judged_from_ns: Option<u64>,
}

/// The slices of the workers of one crew.
#[derive(Debug, Default)]
pub struct Slices {
    workers: Vec<Worker>,
    allowed: Option<CpuSet>,
    grace_ends_ns: u64,
    /// The workers are past their gate.
    begun: bool,
}

impl Slices {
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Worker::default()).collect(), ..Self::default() }
    }

    /// Another cpuset (none: no bounds) is in force from `now_ns` on. `taken` is what was seen since the last call of any kind.
    pub fn allow(&mut self, allowed: Option<CpuSet>, taken: &[CpuSet], now_ns: u64) {
        self.close(taken, now_ns);
        self.allowed = allowed;
        self.grace_ends_ns = now_ns + GRACE_NS;
    }

    /// The workers begin now; who does not run yet cannot be seen.
    pub fn begin(&mut self, now_ns: u64) {
        self.grace_ends_ns = now_ns + GRACE_NS;
        self.begun = true;
    }

    /// When to look again because of a grace; none where nobody is in one.
    pub fn due_ns(&self) -> Option<u64> {
        let waiting = self.workers.iter().any(|worker| worker.judged_from_ns.is_none());
        (waiting && self.allowed.is_some()).then_some(self.grace_ends_ns)
    }

    /// The grace has ended for every worker that was seen in it. A worker reads its CPU number and notes it in two steps; one
    /// that was moved between them notes the old CPU at its next turn, whenever that is. So the first CPU that is seen after
    /// a border may be a stale one and is judged for nobody, and whoever was not seen yet stays in grace.
    pub fn end_grace(&mut self, taken: &[CpuSet], now_ns: u64) {
        for (worker, taken) in self.workers.iter_mut().zip(taken) {
            worker.seen = worker.seen.union(taken);
            match worker.judged_from_ns {
                Some(_) => worker.current = worker.current.union(taken),
                None if taken.is_empty() => {}
                None => worker.judged_from_ns = Some(now_ns),
            }
        }
    }

    fn close(&mut self, taken: &[CpuSet], now_ns: u64) {
        for (worker, taken) in self.workers.iter_mut().zip(taken) {
            worker.seen = worker.seen.union(taken);
            let mut current = std::mem::take(&mut worker.current).union(taken);
            let from_ns = worker.judged_from_ns.take();
            let Some(allowed) = self.allowed.as_ref().filter(|_| self.begun) else { continue };
            if from_ns.is_none() {
                // What comes with the border may be stale, and this worker was not seen before it.
                current = CpuSet::default();
            }
            // Time in which nothing was seen is told as well: it is missing, not good.
            let judged_ns = now_ns.saturating_sub(from_ns.unwrap_or(self.grace_ends_ns));
            match worker.slices.iter_mut().find(|slice| slice.allowed == *allowed) {
                Some(slice) => {
                    slice.seen = slice.seen.union(&current);
                    slice.judged_ns += judged_ns;
                }
                None => worker.slices.push(CpuSlice { allowed: allowed.clone(), seen: current, judged_ns }),
            }
        }
    }

    /// The workers have ended: (all CPUs seen, slices) of each.
    pub fn finish(mut self, taken: &[CpuSet], now_ns: u64) -> Vec<(CpuSet, Vec<CpuSlice>)> {
        self.close(taken, now_ns);
        self.workers.into_iter().map(|worker| (worker.seen, worker.slices)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NS_PER_MS;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }
    const MS: u64 = NS_PER_MS;

    #[test]
    fn each_cpuset_has_its_own_cpus_and_the_grace_belongs_to_none() {
        let mut slices = Slices::new(1);
        slices.begin(0);
        slices.allow(Some(set("0-1")), &[set("")], 0);
        assert_eq!(slices.due_ns(), Some(GRACE_NS));
        slices.end_grace(&[set("5")], 60 * MS);
        assert_eq!(slices.due_ns(), None);
        slices.allow(Some(set("2-3")), &[set("0")], 100 * MS);
        slices.end_grace(&[set("0,2")], 160 * MS);
        slices.allow(Some(set("0-1")), &[set("3")], 200 * MS);
        slices.end_grace(&[set("3")], 260 * MS);
        let finished = slices.finish(&[set("1,7")], 300 * MS);
        let (seen, slices) = &finished[0];
        assert_eq!(*seen, set("0-3,5,7"));
        let slice = |allowed, seen, ms: u64| CpuSlice { allowed: set(allowed), seen: set(seen), judged_ns: ms * MS };
        assert_eq!(*slices, [slice("0-1", "0-1,7", 80), slice("2-3", "3", 40)]);
    }

    #[test]
    fn what_is_seen_while_a_cpuset_is_written_belongs_to_neither() {
        let mut slices = Slices::new(1);
        slices.begin(0);
        slices.allow(Some(set("2")), &[set("")], 0);
        slices.end_grace(&[set("2")], 60 * MS);
        slices.allow(None, &[set("2")], 100 * MS);
        slices.allow(Some(set("0-1")), &[set("0,2")], 101 * MS);
        slices.end_grace(&[set("0")], 160 * MS);
        let (seen, cut) = slices.finish(&[set("1")], 200 * MS).remove(0);
        assert_eq!(seen, set("0-2"));
        let seen: Vec<_> = cut.iter().map(|slice| (slice.allowed.clone(), slice.seen.clone())).collect();
        assert_eq!(seen, [(set("2"), set("2")), (set("0-1"), set("1"))]);
    }

    #[test]
    fn worker_that_was_not_seen_since_the_border_stays_in_grace() {
        let mut slices = Slices::new(2);
        slices.begin(0);
        slices.allow(Some(set("1")), &[set(""), set("")], 0);
        slices.end_grace(&[set("1"), set("")], 60 * MS);
        assert_eq!(slices.due_ns(), Some(GRACE_NS));
        slices.end_grace(&[set("1"), set("0")], 80 * MS);
        assert_eq!(slices.due_ns(), None);
        let finished = slices.finish(&[set(""), set("1")], 100 * MS);
        let told: Vec<(String, u64)> =
            finished.iter().map(|(_, slices)| (slices[0].seen.to_string(), slices[0].judged_ns / MS)).collect();
        assert_eq!(told, [("1".to_owned(), 40), ("1".to_owned(), 20)]);
    }

    #[test]
    fn without_bounds_or_within_the_grace_nothing_is_judged() {
        let mut slices = Slices::new(1);
        slices.begin(0);
        slices.allow(None, &[set("0")], 0);
        assert_eq!(slices.due_ns(), None);
        slices.allow(Some(set("1")), &[set("0")], 100 * MS);
        let finished = slices.finish(&[set("0")], 120 * MS);
        let none = CpuSlice { allowed: set("1"), seen: set(""), judged_ns: 0 };
        assert_eq!(finished, [(set("0"), vec![none])]);
    }

    #[test]
    fn worker_that_is_never_seen_after_the_grace_is_told_with_its_time() {
        let mut slices = Slices::new(1);
        slices.begin(0);
        slices.allow(Some(set("1")), &[set("")], 0);
        slices.end_grace(&[set("")], 60 * MS);
        slices.allow(Some(set("2")), &[set("0")], 150 * MS);
        let (_, cut) = slices.finish(&[set("0")], 230 * MS).remove(0);
        let told: Vec<_> =
            cut.iter().map(|slice| (slice.allowed.to_string(), slice.seen.is_empty(), slice.judged_ns / MS)).collect();
        assert_eq!(told, [("1".to_owned(), true, 100), ("2".to_owned(), true, 30)]);
    }
}
