//! What a run is held to, as data: a limit for each check, in layers.
//!
//! Owns the names of the checks, the form of a limit, and how layers merge; leaves defaults and judging to verdict/.
//! Invariant: merging keeps the last value that was set, so `a.merge(b)` never loses what b says.

use super::codec::{DecodeError, Reader, Wire};
use crate::{wire_enum, wire_struct};

wire_enum! {
    /// A check that has a limit or a switch.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum CheckId {
        NotStarved = 0,
        MaxGap = 1,
        MaxRunDelay = 2,
        MaxWaitShare = 3,
        Spread = 4,
        Isolation = 5,
        ThroughputCv = 6,
        MinWorkRate = 7,
        MinIterationRate = 8,
        MaxMigrationRatio = 9,
        WakeP50 = 10,
        WakeP99 = 11,
        WakeP999 = 12,
        WakeMax = 13,
        WakeCv = 14,
        MinPageLocality = 15,
        MaxCrossNodeMigration = 16,
        SchedulerAlive = 17,
        KernelLogClean = 18,
        MaxImbalance = 19,
        MaxDsqDepth = 20,
        ClockStall = 21,
        MaxFallbackRate = 22,
        MaxKeepLastRate = 23,
        BootFailure = 24,
        SettingsApplied = 25,
    }
}

impl CheckId {
    /// In the order of their numbers.
    pub const ALL: [Self; 26] = [
        Self::NotStarved,
        Self::MaxGap,
        Self::MaxRunDelay,
        Self::MaxWaitShare,
        Self::Spread,
        Self::Isolation,
        Self::ThroughputCv,
        Self::MinWorkRate,
        Self::MinIterationRate,
        Self::MaxMigrationRatio,
        Self::WakeP50,
        Self::WakeP99,
        Self::WakeP999,
        Self::WakeMax,
        Self::WakeCv,
        Self::MinPageLocality,
        Self::MaxCrossNodeMigration,
        Self::SchedulerAlive,
        Self::KernelLogClean,
        Self::MaxImbalance,
        Self::MaxDsqDepth,
        Self::ClockStall,
        Self::MaxFallbackRate,
        Self::MaxKeepLastRate,
        Self::BootFailure,
        Self::SettingsApplied,
    ];
}

wire_enum! {
    /// How much a limit insists on being applied.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Insist {
        /// Applied where its data exist; not applied where they do not.
        WhereKnown = 0,
        /// Missing data are Inconclusive; a machine on which it means nothing leaves it out.
        Usual = 1,
        /// Somebody asked for it: whatever keeps it from being judged is Inconclusive.
        Asked = 2,
    }
}

wire_enum! {
    /// The limit of one check.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Limit {
        /// This layer says nothing of it.
        Unset = 0,
        Off = 1,
        /// Nanoseconds, or thousandths of the check's unit; 0 for a check that has no number.
        Set = 2 { value: u64, insist: Insist },
    }
}

/// Thousandths of a unit: limits are whole numbers, so that a plan has one form.
pub const MILLI: u64 = 1000;

/// Limits of checks: one layer, or several merged.
///
/// Builders are `const`, so that a scheduler or a scenario can keep its own as a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assert {
    limits: [Limit; CheckId::ALL.len()],
}

impl Default for Assert {
    fn default() -> Self {
        Self::new()
    }
}

impl Assert {
    /// Says nothing about any check.
    pub const fn new() -> Self {
        Self { limits: [Limit::Unset; CheckId::ALL.len()] }
    }
    /// Every check switched off, but that settings are applied: a worker that is not what it was to be proves nothing, so
    /// only `without` switches that one off.
    pub const fn none() -> Self {
        Self { limits: [Limit::Off; CheckId::ALL.len()] }.with(CheckId::SettingsApplied, Limit::Unset)
    }
    pub const fn limit(&self, id: CheckId) -> Limit {
        self.limits[id as usize]
    }
    pub const fn with(mut self, id: CheckId, limit: Limit) -> Self {
        self.limits[id as usize] = limit;
        self
    }
    const fn asked(self, id: CheckId, value: u64) -> Self {
        self.with(id, Limit::Set { value, insist: Insist::Asked })
    }
    /// Switches one check off.
    pub const fn without(self, id: CheckId) -> Self {
        self.with(id, Limit::Off)
    }
    /// Switches a check on that has no number.
    pub const fn require(self, id: CheckId) -> Self {
        self.asked(id, 0)
    }
    /// The other's values where it has any, ours elsewhere.
    pub fn merge(&self, other: &Self) -> Self {
        let mut merged = *self;
        for (mine, theirs) in merged.limits.iter_mut().zip(other.limits) {
            if theirs != Limit::Unset {
                *mine = theirs;
            }
        }
        merged
    }
    /// The checks that this layer says something about.
    pub fn set(&self) -> impl Iterator<Item = (CheckId, Limit)> + '_ {
        CheckId::ALL.into_iter().map(|id| (id, self.limit(id))).filter(|(_, limit)| *limit != Limit::Unset)
    }
}

/// Const builders, one a check. Each says that the check was asked for.
impl Assert {
    pub const fn not_starved(self) -> Self {
        self.require(CheckId::NotStarved)
    }
    pub const fn isolation(self) -> Self {
        self.require(CheckId::Isolation)
    }
    pub const fn max_gap_ns(self, ns: u64) -> Self {
        self.asked(CheckId::MaxGap, ns)
    }
    pub const fn max_run_delay_ns(self, ns: u64) -> Self {
        self.asked(CheckId::MaxRunDelay, ns)
    }
    pub const fn max_wait_share_percent(self, percent: u64) -> Self {
        self.asked(CheckId::MaxWaitShare, percent.saturating_mul(MILLI))
    }
    pub const fn spread_percent(self, percent: u64) -> Self {
        self.asked(CheckId::Spread, percent.saturating_mul(MILLI))
    }
    /// Standard deviation by mean, in thousandths.
    pub const fn throughput_cv_milli(self, milli: u64) -> Self {
        self.asked(CheckId::ThroughputCv, milli)
    }
    pub const fn min_work_rate(self, per_s: u64) -> Self {
        self.asked(CheckId::MinWorkRate, per_s.saturating_mul(MILLI))
    }
    pub const fn min_iteration_rate(self, per_s: u64) -> Self {
        self.asked(CheckId::MinIterationRate, per_s.saturating_mul(MILLI))
    }
    /// Migrations by iterations, in thousandths.
    pub const fn max_migration_ratio_milli(self, milli: u64) -> Self {
        self.asked(CheckId::MaxMigrationRatio, milli)
    }
    pub const fn wake_p50_ns(self, ns: u64) -> Self {
        self.asked(CheckId::WakeP50, ns)
    }
    pub const fn wake_p99_ns(self, ns: u64) -> Self {
        self.asked(CheckId::WakeP99, ns)
    }
    pub const fn wake_p999_ns(self, ns: u64) -> Self {
        self.asked(CheckId::WakeP999, ns)
    }
    pub const fn wake_max_ns(self, ns: u64) -> Self {
        self.asked(CheckId::WakeMax, ns)
    }
    /// Standard deviation by mean, in thousandths.
    pub const fn wake_cv_milli(self, milli: u64) -> Self {
        self.asked(CheckId::WakeCv, milli)
    }
    /// Pages on the worker's own nodes by all its pages, in thousandths.
    pub const fn min_page_locality_milli(self, milli: u64) -> Self {
        self.asked(CheckId::MinPageLocality, milli)
    }
    /// Pages moved between nodes by all pages, in thousandths.
    pub const fn max_cross_node_migration_milli(self, milli: u64) -> Self {
        self.asked(CheckId::MaxCrossNodeMigration, milli)
    }
    /// Longest run queue by the shortest, in thousandths.
    pub const fn max_imbalance_milli(self, milli: u64) -> Self {
        self.asked(CheckId::MaxImbalance, milli)
    }
    pub const fn max_dsq_depth(self, tasks: u64) -> Self {
        self.asked(CheckId::MaxDsqDepth, tasks.saturating_mul(MILLI))
    }
    pub const fn clock_stall(self) -> Self {
        self.require(CheckId::ClockStall)
    }
    pub const fn scheduler_alive(self) -> Self {
        self.require(CheckId::SchedulerAlive)
    }
    pub const fn kernel_log_clean(self) -> Self {
        self.require(CheckId::KernelLogClean)
    }
    pub const fn settings_applied(self) -> Self {
        self.require(CheckId::SettingsApplied)
    }
    pub const fn max_fallback_rate(self, per_s: u64) -> Self {
        self.asked(CheckId::MaxFallbackRate, per_s.saturating_mul(MILLI))
    }
    pub const fn max_keep_last_rate(self, per_s: u64) -> Self {
        self.asked(CheckId::MaxKeepLastRate, per_s.saturating_mul(MILLI))
    }
}

impl Wire for Assert {
    fn put(&self, out: &mut Vec<u8>) {
        self.set().collect::<Vec<_>>().put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let set: Vec<(CheckId, Limit)> = Wire::get(input)?;
        Ok(set.into_iter().fold(Self::new(), |assert, (id, limit)| assert.with(id, limit)))
    }
}

wire_enum! {
    /// The layer that lies below all others.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum Base {
        #[default]
        Default = 0,
        Strict = 1,
        /// Every check is off.
        None = 2,
    }
}

wire_struct! {
    /// The layers of limits, the lowest first: each one's values win over those before it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Layers {
        pub base: Base,
        pub scheduler: Assert,
        pub scenario: Assert,
        pub command_line: Assert,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_list() {
        for (index, id) in CheckId::ALL.into_iter().enumerate() {
            assert_eq!(id as usize, index);
            assert_eq!(id.to_bytes(), [index as u8]);
        }
    }

    #[test]
    fn last_set_value_wins_and_unset_says_nothing() {
        const LOW: Assert = Assert::new().max_gap_ns(5).spread_percent(10);
        const HIGH: Assert = Assert::new().max_gap_ns(7).without(CheckId::NotStarved);
        let merged = LOW.merge(&HIGH);
        assert_eq!(merged, Assert::new().max_gap_ns(7).spread_percent(10).without(CheckId::NotStarved));
        assert_eq!(LOW.merge(&Assert::new()), LOW);
        assert_eq!(Assert::new().merge(&LOW), LOW);
        assert_eq!(merged.set().count(), 3);
        assert_eq!(LOW.merge(&Assert::none()), Assert::none());
    }

    #[test]
    fn every_builder_sets_its_own_check() {
        let built = [
            (Assert::new().not_starved(), CheckId::NotStarved),
            (Assert::new().isolation(), CheckId::Isolation),
            (Assert::new().max_gap_ns(1), CheckId::MaxGap),
            (Assert::new().max_run_delay_ns(1), CheckId::MaxRunDelay),
            (Assert::new().max_wait_share_percent(1), CheckId::MaxWaitShare),
            (Assert::new().spread_percent(1), CheckId::Spread),
            (Assert::new().throughput_cv_milli(1), CheckId::ThroughputCv),
            (Assert::new().min_work_rate(1), CheckId::MinWorkRate),
            (Assert::new().min_iteration_rate(1), CheckId::MinIterationRate),
            (Assert::new().max_migration_ratio_milli(1), CheckId::MaxMigrationRatio),
            (Assert::new().wake_p50_ns(1), CheckId::WakeP50),
            (Assert::new().wake_p99_ns(1), CheckId::WakeP99),
            (Assert::new().wake_p999_ns(1), CheckId::WakeP999),
            (Assert::new().wake_max_ns(1), CheckId::WakeMax),
            (Assert::new().wake_cv_milli(1), CheckId::WakeCv),
            (Assert::new().min_page_locality_milli(1), CheckId::MinPageLocality),
            (Assert::new().max_cross_node_migration_milli(1), CheckId::MaxCrossNodeMigration),
            (Assert::new().max_imbalance_milli(1), CheckId::MaxImbalance),
            (Assert::new().max_dsq_depth(1), CheckId::MaxDsqDepth),
            (Assert::new().clock_stall(), CheckId::ClockStall),
            (Assert::new().scheduler_alive(), CheckId::SchedulerAlive),
            (Assert::new().kernel_log_clean(), CheckId::KernelLogClean),
            (Assert::new().settings_applied(), CheckId::SettingsApplied),
            (Assert::new().max_fallback_rate(1), CheckId::MaxFallbackRate),
            (Assert::new().max_keep_last_rate(1), CheckId::MaxKeepLastRate),
        ];
        for (assert, id) in built {
            assert_eq!(assert.set().map(|(set, _)| set).collect::<Vec<_>>(), [id]);
        }
        // What a failed boot is, is the command line's to say.
        let unbuilt: Vec<CheckId> =
            CheckId::ALL.into_iter().filter(|id| !built.iter().any(|(_, of)| of == id)).collect();
        assert_eq!(unbuilt, [CheckId::BootFailure]);
    }

    #[test]
    fn layers_round_trip_and_are_refused_when_cut() {
        let layers = Layers {
            base: Base::Strict,
            scheduler: Assert::new().wake_p99_ns(2_000_000),
            scenario: Assert::new().without(CheckId::Spread).isolation(),
            command_line: Assert::none(),
        };
        let bytes = layers.to_bytes();
        assert_eq!(Layers::from_bytes(&bytes).unwrap(), layers);
        for cut in 0..bytes.len() {
            assert!(Layers::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(Layers::default().to_bytes().len(), 1 + 3 * 4);
    }
}
