//! Token buckets: how long a disk has to wait so that it keeps to a rate.
//!
//! Owns the arithmetic; leaves the clock and the waiting to the caller.
//! Invariant: over any stretch of time no more passes than the rate, one burst, and one request.

use crate::units::NS_PER_SEC;

/// A bucket holds what a rate gives in this time: short, so that a limit is felt at once.
const BURST_NS: u64 = NS_PER_SEC / 10;

/// One bucket. A request may begin while it is not in debt, and may leave it in debt.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    /// Units per second; 0: no limit.
    rate: u64,
    /// Units times 10^9 that may pass now; below zero: debt.
    level: i128,
    at_ns: u64,
}

impl Bucket {
    pub fn new(rate: u64, now_ns: u64) -> Self {
        let mut bucket = Self { rate, level: 0, at_ns: now_ns };
        bucket.level = bucket.most();
        bucket
    }

    fn most(&self) -> i128 {
        i128::from(self.rate) * i128::from(BURST_NS)
    }

    /// How long until a request may begin; 0: now.
    pub fn wait_ns(&mut self, now_ns: u64) -> u64 {
        if self.rate == 0 {
            return 0;
        }
        let passed = i128::from(now_ns.saturating_sub(self.at_ns));
        self.at_ns = self.at_ns.max(now_ns);
        self.level = (self.level + passed * i128::from(self.rate)).min(self.most());
        if self.level >= 0 {
            return 0;
        }
        u64::try_from((-self.level).div_euclid(i128::from(self.rate)) + 1).unwrap_or(u64::MAX)
    }

    /// A request of so many units has begun.
    pub fn charge(&mut self, units: u64) {
        if self.rate > 0 {
            self.level -= i128::from(units) * i128::from(NS_PER_SEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that `count` requests of `units` take, each begun as soon as it may.
    fn time_of(rate: u64, count: u64, units: u64) -> u64 {
        let mut bucket = Bucket::new(rate, 5);
        let mut now = 5;
        for _ in 0..count {
            now += bucket.wait_ns(now);
            assert_eq!(bucket.wait_ns(now), 0);
            bucket.charge(units);
        }
        now + bucket.wait_ns(now) - 5
    }

    #[test]
    fn rate_is_kept_over_time_whatever_the_size() {
        for (rate, count, units) in [(1000, 5000, 1), (4 << 20, 2048, 4096), (1 << 20, 5, 1 << 20), (7, 35, 1)] {
            let exact = count * units * NS_PER_SEC / rate;
            let took = time_of(rate, count, units);
            assert!(took >= exact - BURST_NS && took <= exact + count, "{rate}: {took} for {exact}");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        assert_eq!(time_of(0, 1000, u64::MAX), 0);
    }

    #[test]
    fn idle_time_gives_one_burst_and_no_more() {
        let mut bucket = Bucket::new(10, 0);
        assert_eq!(bucket.wait_ns(3600 * NS_PER_SEC), 0);
        bucket.charge(1);
        assert_eq!(bucket.wait_ns(3600 * NS_PER_SEC), 0);
        bucket.charge(1);
        assert!(bucket.wait_ns(3600 * NS_PER_SEC) >= BURST_NS - 1);
    }

    #[test]
    fn huge_numbers_and_a_clock_that_stands_do_not_overflow() {
        let mut bucket = Bucket::new(u64::MAX, u64::MAX);
        bucket.charge(u64::MAX);
        bucket.charge(u64::MAX);
        assert!(bucket.wait_ns(0) > 0);
        let mut slow = Bucket::new(1, 0);
        slow.charge(u64::MAX);
        assert_eq!(slow.wait_ns(1), u64::MAX);
    }
}
