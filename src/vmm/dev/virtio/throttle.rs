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

    /// What is left in it, as time of its rate; below zero: debt.
    pub fn left_ns(&mut self, now_ns: u64) -> i64 {
        self.wait_ns(now_ns);
        // Only a debt can be as large as that.
        self.level.checked_div(i128::from(self.rate)).map_or(0, |ns| i64::try_from(ns).unwrap_or(i64::MIN))
    }

    /// Goes on with what another had left.
    pub fn go_on(&mut self, left_ns: i64, now_ns: u64) {
        self.at_ns = now_ns;
        self.level = (i128::from(left_ns) * i128::from(self.rate)).min(self.most());
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
    fn debt_outlives_the_bucket_and_its_clock() {
        let mut first = Bucket::new(1000, 50);
        first.charge(2100);
        assert_eq!(first.left_ns(50), -2 * NS_PER_SEC as i64);
        let mut second = Bucket::new(1000, 7);
        second.go_on(first.left_ns(50 + NS_PER_SEC), 7);
        assert_eq!(second.wait_ns(7), NS_PER_SEC + 1);
        assert_eq!(second.wait_ns(8 + NS_PER_SEC), 0);
        let mut free = Bucket::new(0, 0);
        free.go_on(free.clone().left_ns(5), 5);
        assert_eq!(free.wait_ns(5), 0);
        let mut drowned = Bucket::new(1, 0);
        drowned.charge(u64::MAX);
        assert_eq!(drowned.left_ns(0), i64::MIN);
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
