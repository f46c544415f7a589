//! What an assertion on reports came to: a value that scenarios return, merge, and hand to the host.
//!
//! Owns the value and its merging; leaves comparing to verdict/.
//! Invariant: merging keeps the worst and adds the sums, so its numbers do not depend on the order.

use crate::wire_struct;

wire_struct! {
    /// The numbers behind a result.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct AssertStats {
        /// Sums.
        pub workers: u64,
        pub work_units: u64,
        pub iterations: u64,
        pub migrations: u64,
        /// Worst values; none: nobody measured one.
        pub max_gap_ns: Option<u64>,
        pub max_run_delay_ns: Option<u64>,
        /// Thousandths of a point of CPU share.
        pub spread_milli: Option<u64>,
        pub wake_p99_ns: Option<u64>,
    }
}

impl AssertStats {
    fn merge(self, other: Self) -> Self {
        Self {
            workers: self.workers.saturating_add(other.workers),
            work_units: self.work_units.saturating_add(other.work_units),
            iterations: self.iterations.saturating_add(other.iterations),
            migrations: self.migrations.saturating_add(other.migrations),
            max_gap_ns: self.max_gap_ns.max(other.max_gap_ns),
            max_run_delay_ns: self.max_run_delay_ns.max(other.max_run_delay_ns),
            spread_milli: self.spread_milli.max(other.spread_milli),
            wake_p99_ns: self.wake_p99_ns.max(other.wake_p99_ns),
        }
    }
}

wire_struct! {
    /// What an assertion came to.
    #[must_use = "a result that nobody looks at asserts nothing"]
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct AssertResult {
        pub passed: bool,
        /// Nothing was asserted, because it means nothing here.
        pub skipped: bool,
        /// What failed, why it was skipped: one sentence each.
        pub details: Vec<String>,
        /// What could not be decided for want of data.
        pub undecided: Vec<String>,
        pub stats: AssertStats,
    }
}

impl Default for AssertResult {
    fn default() -> Self {
        Self::pass()
    }
}

impl AssertResult {
    pub fn pass() -> Self {
        let stats = AssertStats::default();
        Self { passed: true, skipped: false, details: Vec::new(), undecided: Vec::new(), stats }
    }
    pub fn fail(why: impl Into<String>) -> Self {
        Self { passed: false, details: vec![why.into()], ..Self::pass() }
    }
    pub fn skip(why: impl Into<String>) -> Self {
        Self { skipped: true, details: vec![why.into()], ..Self::pass() }
    }
    pub fn undecided(why: impl Into<String>) -> Self {
        Self { undecided: vec![why.into()], ..Self::pass() }
    }
    /// Fails with these words unless the condition holds.
    pub fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Self {
        if holds { Self::pass() } else { Self::fail(otherwise()) }
    }

    /// Both: passed only where both passed, the worst of each number.
    pub fn merge(mut self, other: Self) -> Self {
        self.passed &= other.passed;
        self.skipped |= other.skipped;
        self.details.extend(other.details);
        self.undecided.extend(other.undecided);
        self.stats = self.stats.merge(other.stats);
        self
    }
}

impl FromIterator<AssertResult> for AssertResult {
    fn from_iter<I: IntoIterator<Item = Self>>(results: I) -> Self {
        results.into_iter().fold(Self::pass(), Self::merge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn merging_keeps_the_worst_and_adds_the_sums() {
        let with = |gap, workers| {
            let stats = AssertStats { workers, max_gap_ns: gap, ..AssertStats::default() };
            AssertResult { stats, ..AssertResult::pass() }
        };
        let merged = with(Some(3), 1).merge(with(Some(9), 2)).merge(with(None, 4));
        assert_eq!((merged.stats.max_gap_ns, merged.stats.workers), (Some(9), 7));
        let merged = AssertResult::pass().merge(AssertResult::fail("a")).merge(AssertResult::skip("b"));
        assert!(!merged.passed && merged.skipped);
        assert_eq!(merged.details, ["a", "b"]);
        assert_eq!(
            [AssertResult::pass(), AssertResult::undecided("x")].into_iter().collect::<AssertResult>().undecided,
            ["x"]
        );
        assert!(!AssertResult::require(false, || "no".into()).passed);
    }

    #[test]
    fn result_round_trips_and_is_refused_when_cut() {
        let mut result = AssertResult::fail("gap");
        result.stats.spread_milli = Some(5);
        let bytes = result.to_bytes();
        assert_eq!(AssertResult::from_bytes(&bytes).unwrap(), result);
        for cut in 0..bytes.len() {
            assert!(AssertResult::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
