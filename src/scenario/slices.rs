//! On which CPUs workers ran while which cpuset was in force.
//!
//! Owns the borders between cpusets and the grace after each; leaves judging to verdict/.
//! Invariant: a CPU is counted against a cpuset only where it was seen after that cpuset's grace and before the next border.

use crate::proto::cpuset::CpuSet;
use crate::proto::phase::CpuSlice;
use crate::units::NS_PER_MS;

/// After a change of cpuset a CPU seen may still be an old one: a worker reads its CPU number and notes it in two steps, between
/// which it may be moved, and then notes the old one when it has its next turn: some slices later on a crowded CPU.
pub const GRACE_NS: u64 = 50 * NS_PER_MS;

/// The slices of the workers of one crew.
#[derive(Debug, Default)]
pub struct Slices {
    workers: Vec<Vec<CpuSlice>>,
    /// All CPUs seen, graces included.
    seen: Vec<CpuSet>,
    allowed: Option<CpuSet>,
    /// From when on what is seen counts.
    judged_from_ns: u64,
    in_grace: bool,
}

impl Slices {
    pub fn new(workers: usize) -> Self {
        Self { workers: vec![Vec::new(); workers], seen: vec![CpuSet::new(); workers], ..Self::default() }
    }

    /// Another cpuset (none: no bounds) is in force from `now_ns` on. `taken` is what was seen since the last call of any kind.
    pub fn allow(&mut self, allowed: Option<CpuSet>, taken: &[CpuSet], now_ns: u64) {
        self.close(taken, now_ns);
        self.allowed = allowed;
        self.judged_from_ns = now_ns + GRACE_NS;
        self.in_grace = true;
    }

    /// When the grace ends; none where that is past.
    pub fn due_ns(&self) -> Option<u64> {
        (self.in_grace && self.allowed.is_some()).then_some(self.judged_from_ns)
    }

    /// The grace has ended: what was seen in it is not judged.
    pub fn end_grace(&mut self, taken: &[CpuSet], now_ns: u64) {
        self.remember(taken);
        self.in_grace = false;
        self.judged_from_ns = now_ns;
    }

    fn remember(&mut self, taken: &[CpuSet]) {
        for (seen, taken) in self.seen.iter_mut().zip(taken) {
            *seen = seen.union(taken);
        }
    }

    fn close(&mut self, taken: &[CpuSet], now_ns: u64) {
        self.remember(taken);
        let Some(allowed) = self.allowed.as_ref().filter(|_| !self.in_grace && now_ns > self.judged_from_ns) else {
            return;
        };
        let judged_ns = now_ns - self.judged_from_ns;
        for (slices, seen) in self.workers.iter_mut().zip(taken) {
            match slices.iter_mut().find(|slice| slice.allowed == *allowed) {
                Some(slice) => {
                    slice.seen = slice.seen.union(seen);
                    slice.judged_ns += judged_ns;
                }
                None => slices.push(CpuSlice { allowed: allowed.clone(), seen: seen.clone(), judged_ns }),
            }
        }
    }

    /// The workers have ended: (all CPUs seen, slices) of each.
    pub fn finish(mut self, taken: &[CpuSet], now_ns: u64) -> Vec<(CpuSet, Vec<CpuSlice>)> {
        self.close(taken, now_ns);
        self.seen.into_iter().zip(self.workers).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }
    const MS: u64 = NS_PER_MS;

    #[test]
    fn each_cpuset_has_its_own_cpus_and_the_grace_belongs_to_none() {
        let mut slices = Slices::new(1);
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
    fn without_bounds_or_within_the_grace_nothing_is_judged() {
        let mut slices = Slices::new(1);
        slices.allow(None, &[set("0")], 0);
        assert_eq!(slices.due_ns(), None);
        slices.allow(Some(set("1")), &[set("0")], 100 * MS);
        let finished = slices.finish(&[set("0")], 120 * MS);
        assert_eq!(finished, [(set("0"), vec![])]);
    }
}
