//! Log-bucket histogram of nanoseconds: small, mergeable, relative error below 1 %.
//!
//! Owns bucket arithmetic, merging, percentiles and the sparse wire form; leaves what is sampled to workload/.
//! Invariant: merging is addition, so the order of merges never changes a percentile.

use super::codec::{DecodeError, Reader, Wire};
use std::collections::BTreeMap;

/// Sub-buckets per power of two: a bucket is at most 1/64 of its value wide, and its middle is reported (error <= 0.8 %).
const SUB_BUCKETS: u64 = 64;
/// log2 of `SUB_BUCKETS`.
const SUB_BITS: u32 = 6;
/// Values are clamped below 2^40 ns (18 minutes), longer than any run's deadline worth resolving.
pub const MAX_NS: u64 = (1 << 40) - 1;
/// Number of buckets that `bucket` can give.
pub const BUCKETS: usize = ((40 - SUB_BITS as usize) + 1) * SUB_BUCKETS as usize;

/// The bucket of a value.
pub fn bucket(ns: u64) -> usize {
    let ns = ns.min(MAX_NS);
    if ns < SUB_BUCKETS {
        return ns as usize;
    }
    let shift = 63 - ns.leading_zeros() - SUB_BITS;
    (u64::from(shift + 1) * SUB_BUCKETS + ((ns >> shift) - SUB_BUCKETS)) as usize
}

/// The value that stands for a bucket: its middle.
pub fn bucket_value(index: usize) -> u64 {
    let (group, sub) = (index as u64 / SUB_BUCKETS, index as u64 % SUB_BUCKETS);
    if group == 0 {
        return sub;
    }
    let shift = group - 1;
    ((SUB_BUCKETS + sub) << shift) + ((1 << shift) >> 1)
}

/// Counts of samples by bucket, with the exact extremes and sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hist {
    counts: BTreeMap<u16, u64>,
    count: u64,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
}

impl Hist {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn record(&mut self, ns: u64) {
        let one =
            Self { counts: BTreeMap::from([(bucket(ns) as u16, 1)]), count: 1, sum_ns: ns, min_ns: ns, max_ns: ns };
        self.merge(&one);
    }
    /// Builds one from raw bucket counts, as a worker keeps them.
    pub fn from_counts(counts: impl IntoIterator<Item = (usize, u64)>, sum_ns: u64, min_ns: u64, max_ns: u64) -> Self {
        let mut hist = Self::new();
        for (index, count) in counts {
            hist.add(index.min(BUCKETS - 1), count);
        }
        if hist.count > 0 {
            (hist.sum_ns, hist.min_ns, hist.max_ns) = (sum_ns, min_ns, max_ns);
        }
        hist
    }
    fn add(&mut self, index: usize, count: u64) {
        if count > 0 {
            let slot = self.counts.entry(index as u16).or_insert(0);
            *slot = slot.saturating_add(count);
            self.count = self.count.saturating_add(count);
        }
    }
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let was_empty = self.count == 0;
        for (index, count) in &other.counts {
            self.add(usize::from(*index), *count);
        }
        self.min_ns = if was_empty { other.min_ns } else { self.min_ns.min(other.min_ns) };
        self.max_ns = self.max_ns.max(other.max_ns);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
    /// What was added since `earlier`, an older state of the same histogram. The extremes are those of its buckets.
    pub fn since(&self, earlier: &Self) -> Self {
        let old = |index: &u16| earlier.counts.get(index).copied().unwrap_or(0);
        let fresh = self.counts.iter().map(|(index, count)| (usize::from(*index), count.saturating_sub(old(index))));
        let fresh: Vec<(usize, u64)> = fresh.filter(|(_, count)| *count > 0).collect();
        let edge = |entry: Option<&(usize, u64)>| {
            entry.map_or(0, |(index, _)| bucket_value(*index).clamp(self.min_ns, self.max_ns))
        };
        let (min_ns, max_ns) = (edge(fresh.first()), edge(fresh.last()));
        Self::from_counts(fresh, self.sum_ns.saturating_sub(earlier.sum_ns), min_ns, max_ns)
    }
    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.count
    }
    pub fn max_ns(&self) -> Option<u64> {
        (self.count > 0).then_some(self.max_ns)
    }
    pub fn min_ns(&self) -> Option<u64> {
        (self.count > 0).then_some(self.min_ns)
    }
    pub fn mean_ns(&self) -> Option<u64> {
        (self.count > 0).then(|| self.sum_ns / self.count)
    }
    /// Standard deviation by mean; each sample counts as the middle of its bucket. None where the mean is zero.
    pub fn variation(&self) -> Option<f64> {
        let samples =
            || self.counts.iter().map(|(index, count)| (bucket_value(usize::from(*index)) as f64, *count as f64));
        let count = self.count as f64;
        let mean = samples().map(|(value, count)| value * count).sum::<f64>() / count;
        let variance = samples().map(|(value, count)| (value - mean).powi(2) * count).sum::<f64>() / count;
        (mean > 0.0).then(|| variance.sqrt() / mean)
    }
    /// The value at or below which `per_10k`/10000 of the samples lie (5000 = median, 9990 = p99.9).
    pub fn percentile_ns(&self, per_10k: u32) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let rank = (u128::from(self.count) * u128::from(per_10k)).div_ceil(10_000).max(1);
        let mut seen: u128 = 0;
        for (index, count) in &self.counts {
            seen += u128::from(*count);
            if seen >= rank {
                return Some(bucket_value(usize::from(*index)).clamp(self.min_ns, self.max_ns));
            }
        }
        Some(self.max_ns)
    }
}

impl Wire for Hist {
    fn put(&self, out: &mut Vec<u8>) {
        (self.counts.len() as u32).put(out);
        for (index, count) in &self.counts {
            index.put(out);
            count.put(out);
        }
        self.sum_ns.put(out);
        self.min_ns.put(out);
        self.max_ns.put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let buckets = u32::get(input)?;
        let mut hist = Self::new();
        for _ in 0..buckets {
            let index = u16::get(input)?;
            if usize::from(index) >= BUCKETS {
                return Err(input.error(format!("histogram bucket {index} out of range")));
            }
            hist.add(usize::from(index), u64::get(input)?);
        }
        (hist.sum_ns, hist.min_ns, hist.max_ns) = (u64::get(input)?, u64::get(input)?, u64::get(input)?);
        if hist.min_ns > hist.max_ns {
            return Err(input.error("histogram minimum above its maximum"));
        }
        Ok(hist)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_of_two_states_is_what_came_between() {
        let mut whole = Hist::new();
        (1..=50).for_each(|step| whole.record(step * 1000));
        let earlier = whole.clone();
        let mut later = Hist::new();
        (1..=9).for_each(|step| later.record(step * 1_000_000));
        whole.merge(&later);
        let since = whole.since(&earlier);
        assert_eq!((since.count(), since.mean_ns()), (9, later.mean_ns()));
        assert_eq!(since.percentile_ns(5000), later.percentile_ns(5000));
        assert!(since.max_ns().unwrap().abs_diff(9_000_000) < 90_000);
        assert_eq!(earlier.since(&earlier), Hist::new());
    }

    #[test]
    fn every_value_is_within_one_percent() {
        let mut value: u64 = 1;
        while value < MAX_NS {
            for near in [value - 1, value, value + 1] {
                let error = bucket_value(bucket(near)).abs_diff(near) as f64;
                assert!(error <= near as f64 * 0.01, "{near}: off by {error}");
            }
            value += value / 3 + 1;
        }
        assert_eq!(bucket(u64::MAX), bucket(MAX_NS));
        assert_eq!(bucket(MAX_NS), BUCKETS - 1);
    }

    #[test]
    fn buckets_never_go_backwards() {
        let values: Vec<u64> = (0..60_000).map(|i| i * i / 7 + i).collect();
        assert!(values.windows(2).all(|pair| bucket(pair[0]) <= bucket(pair[1])));
    }

    #[test]
    fn percentiles_of_a_known_set() {
        let mut hist = Hist::new();
        (1..=1000u64).for_each(|i| hist.record(i * 1000));
        let close = |got: Option<u64>, want: u64| got.unwrap().abs_diff(want) as f64 <= want as f64 * 0.01;
        assert!(close(hist.percentile_ns(5000), 500_000));
        assert!(close(hist.percentile_ns(9900), 990_000));
        assert_eq!(hist.max_ns(), Some(1_000_000));
        assert_eq!(hist.min_ns(), Some(1_000));
        assert_eq!(hist.mean_ns(), Some(500_500));
        assert_eq!(Hist::new().percentile_ns(5000), None);
    }

    #[test]
    fn merge_is_addition_in_any_order() {
        let part = |from: u64| {
            let mut hist = Hist::new();
            (from..from + 500).for_each(|i| hist.record(i * 37));
            hist
        };
        let (a, b) = (part(0), part(9000));
        let (mut ab, mut ba) = (a.clone(), b.clone());
        ab.merge(&b);
        ba.merge(&a);
        assert_eq!(ab, ba);
        assert_eq!(ab.count(), 1000);
        ab.merge(&Hist::new());
        assert_eq!(ab, ba);
    }

    #[test]
    fn wire_round_trip_cut_and_hostile() {
        let mut hist = Hist::new();
        [0, 5, 5, 1 << 30].into_iter().for_each(|ns| hist.record(ns));
        let bytes = hist.to_bytes();
        assert_eq!(Hist::from_bytes(&bytes).unwrap(), hist);
        for cut in 0..bytes.len() {
            assert!(Hist::from_bytes(&bytes[..cut]).is_err());
        }
        let mut hostile = Vec::new();
        1u32.put(&mut hostile);
        u16::MAX.put(&mut hostile);
        assert!(Hist::from_bytes(&hostile).is_err());
    }
}
