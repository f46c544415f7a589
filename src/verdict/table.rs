//! The table of checks: name, flag, unit, side, default and strict limit of each, with the reason for every number.
//!
//! Owns what a check is called and held to; leaves measuring to the files named after their subject.
//! Invariant: a check that is not in this table has no limit, and no other file spells its flag or help line.

use super::check::Measure;
use crate::proto::limits::{Assert, Base, CheckId, Insist, Layers, Limit, MILLI};
use crate::units::{self, NS_PER_MS, NS_PER_SEC};

/// What a check's number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// It has none: on or off.
    Switch,
    Ns,
    /// Percent, or points of it.
    Percent,
    Ratio,
    PerSecond,
    Count,
}

/// Which side of the limit is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    AtMost,
    AtLeast,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub id: CheckId,
    /// In results.
    pub name: &'static str,
    /// Without its dashes; empty where another flag sets it.
    pub flag: &'static str,
    pub unit: Unit,
    pub side: Side,
    pub default: Limit,
    pub strict: Limit,
    /// The default as people write it; a test holds it against `default`.
    pub default_text: &'static str,
    pub help: &'static str,
}

const fn usual(value: u64) -> Limit {
    Limit::Set { value, insist: Insist::Usual }
}
const fn where_known(value: u64) -> Limit {
    Limit::Set { value, insist: Insist::WhereKnown }
}

/// Longest time a worker may be without progress, or runnable without running: far above any scheduler's latency target
/// (a few ms) and any slice times any sane number of tasks per CPU, and far below sched_ext's own watchdog (30 s).
const MAX_WAIT: Limit = usual(2 * NS_PER_SEC);
/// The same, strict: a hundred slices of 5 ms, which is EEVDF's wait behind a hundred equal tasks on one CPU.
const MAX_WAIT_STRICT: Limit = usual(500 * NS_PER_MS);
/// Points of CPU share by which equal workers of a group may differ: one period of the load balancer in a run of seconds.
const SPREAD: Limit = usual(15 * MILLI);
/// The same, strict: two equal workers that differ by more have had different treatment for a tenth of the run.
const SPREAD_STRICT: Limit = usual(10 * MILLI);

/// What most rows are: off until somebody asks, and bad above the limit.
const ROW: Row = Row {
    id: CheckId::NotStarved,
    name: "",
    flag: "",
    unit: Unit::Switch,
    side: Side::AtMost,
    default: Limit::Off,
    strict: Limit::Off,
    default_text: "off",
    help: "",
};

/// In the order of the ids.
pub const ROWS: [Row; CheckId::ALL.len()] = [
    Row {
        id: CheckId::NotStarved,
        name: "not_starved",
        flag: "not-starved",
        default: usual(0),
        strict: usual(0),
        default_text: "on",
        help: "every worker that is there for 100 ms does work, and one of those that come and go",
        ..ROW
    },
    Row {
        id: CheckId::MaxGap,
        name: "max_gap",
        flag: "max-gap",
        unit: Unit::Ns,
        default: MAX_WAIT,
        strict: MAX_WAIT_STRICT,
        default_text: "2s",
        help: "longest time without progress, blocking calls left out",
        ..ROW
    },
    Row {
        id: CheckId::MaxRunDelay,
        name: "max_run_delay",
        flag: "max-run-delay",
        unit: Unit::Ns,
        default: MAX_WAIT,
        strict: MAX_WAIT_STRICT,
        default_text: "2s",
        help: "longest time runnable without running",
        ..ROW
    },
    Row {
        id: CheckId::MaxWaitShare,
        name: "max_wait_share",
        flag: "max-wait-share",
        unit: Unit::Percent,
        help: "share of a worker's time that it is runnable without running",
        ..ROW
    },
    Row {
        id: CheckId::Spread,
        name: "spread",
        flag: "spread",
        unit: Unit::Percent,
        default: SPREAD,
        strict: SPREAD_STRICT,
        default_text: "15%",
        help: "points of CPU share between equal workers of a cgroup",
        ..ROW
    },
    Row {
        id: CheckId::Isolation,
        name: "isolation",
        flag: "isolation",
        default: where_known(0),
        strict: where_known(0),
        default_text: "on where a cgroup has a cpuset",
        help: "workers run only inside their cpuset",
        ..ROW
    },
    Row {
        id: CheckId::ThroughputCv,
        name: "throughput_cv",
        flag: "throughput-cv",
        unit: Unit::Ratio,
        help: "standard deviation by mean of the work rates of equal workers",
        ..ROW
    },
    Row {
        id: CheckId::MinWorkRate,
        name: "min_work_rate",
        flag: "min-work-rate",
        unit: Unit::PerSecond,
        side: Side::AtLeast,
        help: "work units a second of every worker, at least",
        ..ROW
    },
    Row {
        id: CheckId::MinIterationRate,
        name: "min_iteration_rate",
        flag: "min-iteration-rate",
        unit: Unit::PerSecond,
        side: Side::AtLeast,
        help: "iterations a second of every worker, at least",
        ..ROW
    },
    Row {
        id: CheckId::MaxMigrationRatio,
        name: "max_migration_ratio",
        flag: "max-migration-ratio",
        unit: Unit::Ratio,
        help: "migrations by iterations of a cgroup",
        ..ROW
    },
    Row {
        id: CheckId::WakeP50,
        name: "wake_p50",
        flag: "wake-p50",
        unit: Unit::Ns,
        help: "median wake latency of a cgroup",
        ..ROW
    },
    Row {
        id: CheckId::WakeP99,
        name: "wake_p99",
        flag: "wake-p99",
        unit: Unit::Ns,
        help: "99th percentile of its wake latencies",
        ..ROW
    },
    Row {
        id: CheckId::WakeP999,
        name: "wake_p999",
        flag: "wake-p999",
        unit: Unit::Ns,
        help: "99.9th percentile of its wake latencies",
        ..ROW
    },
    Row {
        id: CheckId::WakeMax,
        name: "wake_max",
        flag: "wake-max",
        unit: Unit::Ns,
        help: "longest of its wake latencies",
        ..ROW
    },
    Row {
        id: CheckId::WakeCv,
        name: "wake_cv",
        flag: "wake-cv",
        unit: Unit::Ratio,
        help: "standard deviation by mean of its wake latencies",
        ..ROW
    },
    Row {
        id: CheckId::MinPageLocality,
        name: "min_page_locality",
        flag: "min-page-locality",
        unit: Unit::Ratio,
        side: Side::AtLeast,
        help: "pages on the NUMA nodes that a worker ran on by all its pages, at least",
        ..ROW
    },
    Row {
        id: CheckId::MaxCrossNodeMigration,
        name: "max_cross_node_migration",
        flag: "max-cross-node-migration",
        unit: Unit::Ratio,
        help: "pages moved between NUMA nodes by all pages of the workers",
        ..ROW
    },
    Row {
        id: CheckId::SchedulerAlive,
        name: "scheduler_alive",
        flag: "scheduler-alive",
        default: usual(0),
        strict: usual(0),
        default_text: "on",
        help: "the scheduler under test is the same instance to the end",
        ..ROW
    },
    Row {
        id: CheckId::KernelLogClean,
        name: "kernel_log_clean",
        flag: "kernel-log-clean",
        default: usual(0),
        strict: usual(0),
        default_text: "on",
        help: "the kernel log holds no BUG, WARNING, stall or other fault",
        ..ROW
    },
    Row {
        id: CheckId::MaxImbalance,
        name: "max_imbalance",
        flag: "max-imbalance",
        unit: Unit::Ratio,
        // Whoever asks for one of these three has the monitor run. Weights, masks and shared queues make unequal run queues
        // right, so no number is right for every run.
        help: "longest run queue by the shortest, for half a second",
        ..ROW
    },
    Row {
        id: CheckId::MaxDsqDepth,
        name: "max_dsq_depth",
        flag: "max-dsq-depth",
        unit: Unit::Count,
        help: "tasks in one CPU's local dispatch queue, for half a second",
        ..ROW
    },
    Row {
        id: CheckId::ClockStall,
        name: "clock_stall",
        flag: "clock-stall",
        help: "no run queue's clock stands still for half a second while it has tasks (not of nohz_full= CPUs)",
        ..ROW
    },
    // The rates of a scheduler's own events grow with CPUs and load, so no number is right for every run.
    Row {
        id: CheckId::MaxFallbackRate,
        name: "max_fallback_rate",
        flag: "max-fallback-rate",
        unit: Unit::PerSecond,
        help: "select_cpu fallbacks a second that sched_ext counts",
        ..ROW
    },
    Row {
        id: CheckId::MaxKeepLastRate,
        name: "max_keep_last_rate",
        flag: "max-keep-last-rate",
        unit: Unit::PerSecond,
        help: "times a second that sched_ext keeps the last task for want of another",
        ..ROW
    },
    Row {
        id: CheckId::BootFailure,
        name: "boot_failure",
        // Its flag says what a failed boot is, and not what it is held to.
        flag: "",
        help: "a kernel that does not boot fails the run",
        ..ROW
    },
    Row {
        id: CheckId::SettingsApplied,
        name: "settings_applied",
        flag: "settings-applied",
        default: usual(0),
        strict: usual(0),
        default_text: "on",
        help: "no policy, affinity, nice or memory policy of a worker is refused",
        ..ROW
    },
];

/// The row of a check.
pub fn row(id: CheckId) -> &'static Row {
    &ROWS[id as usize]
}

impl Row {
    /// A number of this check's unit, for people.
    pub fn measure(&self, value: u64) -> Measure {
        let whole = value as f64 / MILLI as f64;
        match self.unit {
            Unit::Switch | Unit::Count => Measure::Count(value / MILLI),
            Unit::Ns => Measure::Ns(value),
            Unit::Percent => Measure::Percent(whole),
            Unit::Ratio => Measure::Ratio(whole),
            Unit::PerSecond => Measure::PerSecond(whole),
        }
    }

    /// Whether a measured number keeps the limit.
    pub fn keeps(&self, measured: Measure, limit: u64) -> bool {
        let (measured, limit) = match (measured, self.measure(limit)) {
            (Measure::Ns(measured), Measure::Ns(limit)) | (Measure::Count(measured), Measure::Count(limit)) => {
                return if self.side == Side::AtMost { measured <= limit } else { measured >= limit };
            }
            (measured, limit) => (measured.number(), limit.number()),
        };
        if self.side == Side::AtMost { measured <= limit } else { measured >= limit }
    }

    /// Reads a limit as people write it: `500ms`, `10%`, `0.25`, `100`, `on`, `off`.
    pub fn parse(&self, text: &str) -> Result<Limit, String> {
        let set = |value| Limit::Set { value, insist: Insist::Asked };
        let text = text.trim();
        if text == "off" {
            return Ok(Limit::Off);
        }
        let number = match self.unit {
            Unit::Switch => {
                return if text == "on" { Ok(set(0)) } else { Err(format!("'{text}' is neither on nor off")) };
            }
            Unit::Ns => return units::parse_duration(text).map(set),
            Unit::Percent => text.strip_suffix('%').unwrap_or(text),
            Unit::PerSecond => text.strip_suffix("/s").unwrap_or(text),
            Unit::Ratio | Unit::Count => text,
        };
        milli(number.trim_end()).map(set).ok_or_else(|| {
            let such = match self.unit {
                Unit::Percent => "10%",
                Unit::PerSecond => "200",
                Unit::Count => "50",
                _ => "0.25",
            };
            format!("'{text}' is no number such as {such}, nor off")
        })
    }

    /// What a flag's value is called in help.
    pub const fn value_name(&self) -> &'static str {
        match self.unit {
            Unit::Switch => "on|off",
            Unit::Ns => "TIME",
            Unit::Percent => "PERCENT",
            Unit::Ratio => "RATIO",
            Unit::PerSecond => "RATE",
            Unit::Count => "N",
        }
    }
}

/// A decimal number of at most nine digits before the point, in thousandths.
fn milli(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 12 || part.len() > 3 || !digits(whole) || !digits(part) {
        return None;
    }
    if text.ends_with('.') {
        return None;
    }
    let part: u64 = format!("{part:0<3}").parse().ok()?;
    Some(whole.parse::<u64>().ok()?.saturating_mul(MILLI).saturating_add(part))
}

/// Whether a check without a number is wanted.
pub fn is_on(limits: &Assert, id: CheckId) -> bool {
    matches!(limits.limit(id), Limit::Set { .. })
}

/// The limits of a base.
pub fn base(base: Base) -> Assert {
    ROWS.iter().fold(Assert::new(), |assert, row| {
        let limit = match base {
            Base::Default => row.default,
            Base::Strict => row.strict,
            Base::None => match Assert::none().limit(row.id) {
                Limit::Unset => row.default,
                limit => limit,
            },
        };
        assert.with(row.id, limit)
    })
}

/// What the layers come to: base, scheduler, scenario, command line; the last set value wins.
pub fn in_force(layers: &Layers) -> Assert {
    if layers.base == Base::None {
        // Whoever wants no checks wants none of a scenario's either, but those that are asked for beside it.
        let none = base(Base::None);
        let own = layers.scheduler.merge(&layers.scenario);
        let refusals_expected = own.limit(CheckId::SettingsApplied) == Limit::Off;
        let none = if refusals_expected { none.without(CheckId::SettingsApplied) } else { none };
        return none.merge(&layers.command_line);
    }
    base(layers.base).merge(&layers.scheduler).merge(&layers.scenario).merge(&layers.command_line)
}

/// A layer from names and values as on the command line, such as a scenario's own.
pub fn of_pairs(pairs: &[(String, String)]) -> Result<Assert, String> {
    pairs.iter().try_fold(Assert::new(), |assert, (name, value)| {
        let flag = name.replace('_', "-");
        let row = ROWS.iter().find(|row| row.flag == flag).ok_or_else(|| {
            let near = units::nearest(&flag, ROWS.iter().map(|row| row.flag));
            format!("there is no check '{name}'{}", near.map_or_else(String::new, |near| format!("; {near} is one")))
        })?;
        Ok(assert.with(row.id, row.parse(value).map_err(|why| format!("{name}: {why}"))?))
    })
}

/// The defaults, for a record that does not know its limits.
pub fn defaults() -> Assert {
    base(Base::Default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_at_their_ids_with_names_of_their_own() {
        for (index, row) in ROWS.iter().enumerate() {
            assert_eq!(row.id as usize, index);
            assert!(!row.help.is_empty() && !row.name.is_empty(), "{:?}", row.id);
            assert!(!ROWS[..index].iter().any(|other| other.name == row.name), "{}", row.name);
            assert!(row.flag.is_empty() || row.flag == row.name.replace('_', "-"), "{}", row.name);
        }
    }

    #[test]
    fn default_texts_say_what_the_defaults_are() {
        for row in &ROWS {
            let word = row.default_text.split(' ').next().unwrap();
            match (row.parse(word).unwrap(), row.default) {
                (Limit::Set { value: told, .. }, Limit::Set { value, .. }) => assert_eq!(told, value, "{}", row.name),
                (told, limit) => assert_eq!(told, limit, "{}", row.name),
            }
        }
    }

    #[test]
    fn strict_is_never_looser_than_the_default() {
        for row in &ROWS {
            match (row.default, row.strict) {
                (Limit::Set { value: default, .. }, Limit::Set { value: strict, .. }) => match row.side {
                    Side::AtMost => assert!(strict <= default, "{}", row.name),
                    Side::AtLeast => assert!(strict >= default, "{}", row.name),
                },
                (Limit::Set { .. }, _) => panic!("{} is looser", row.name),
                _ => {}
            }
        }
        assert_ne!(base(Base::Strict), base(Base::Default));
    }

    #[test]
    fn limits_are_read_in_their_unit() {
        let value = |id, text| match row(id).parse(text) {
            Ok(Limit::Set { value, insist: Insist::Asked }) => Ok(value),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        assert_eq!(value(CheckId::MaxGap, "500ms"), Ok(500 * NS_PER_MS));
        assert_eq!(value(CheckId::Spread, "10%"), Ok(10_000));
        assert_eq!(value(CheckId::Spread, "12.5"), Ok(12_500));
        assert_eq!(value(CheckId::ThroughputCv, "0.25"), Ok(250));
        assert_eq!(value(CheckId::MinWorkRate, "100/s"), Ok(100_000));
        assert_eq!(value(CheckId::Isolation, "on"), Ok(0));
        assert_eq!(row(CheckId::WakeP99).parse("off"), Ok(Limit::Off));
        for (id, text, why) in [
            (CheckId::MaxGap, "500", "the unit is missing"),
            (CheckId::Spread, "many", "'many' is no number such as 10%"),
            (CheckId::Spread, "-1%", "no number"),
            (CheckId::Spread, "", "no number"),
            (CheckId::Spread, "1.", "no number"),
            (CheckId::ThroughputCv, "0.0001", "no number"),
            (CheckId::ThroughputCv, "nan", "no number"),
            (CheckId::MinWorkRate, "99999999999999", "no number"),
            (CheckId::Isolation, "1", "neither on nor off"),
        ] {
            assert!(value(id, text).unwrap_err().contains(why), "{text}: {:?}", row(id).parse(text));
        }
    }

    #[test]
    fn layers_are_merged_from_the_base_up() {
        let mut layers = Layers::default();
        assert_eq!(in_force(&layers), defaults());
        layers.base = Base::Strict;
        layers.scheduler = Assert::new().max_gap_ns(1).max_run_delay_ns(1).spread_percent(1);
        layers.scenario = Assert::new().max_gap_ns(2).max_run_delay_ns(2);
        layers.command_line = Assert::new().max_gap_ns(3);
        let force = in_force(&layers);
        let value = |id| match force.limit(id) {
            Limit::Set { value, .. } => value,
            other => panic!("{other:?}"),
        };
        assert_eq!((value(CheckId::MaxGap), value(CheckId::MaxRunDelay), value(CheckId::Spread)), (3, 2, MILLI));
        assert_eq!(force.limit(CheckId::NotStarved), usual(0));
        layers.base = Base::None;
        assert_eq!(in_force(&layers), base(Base::None).max_gap_ns(3));
        // Only by its own name.
        assert_eq!(in_force(&layers).limit(CheckId::SettingsApplied), usual(0));
        layers.scenario = Assert::new().without(CheckId::SettingsApplied);
        assert_eq!(in_force(&layers).limit(CheckId::SettingsApplied), Limit::Off);
        layers = Layers { scenario: Assert::none().max_gap_ns(2), ..Layers::default() };
        let force = in_force(&layers);
        assert_eq!(force.set().filter(|(_, limit)| *limit != Limit::Off).count(), 2, "max_gap and settings_applied");
        assert_eq!(force.limit(CheckId::SettingsApplied), usual(0));
    }

    #[test]
    fn a_limit_is_kept_on_its_own_side() {
        let gap = row(CheckId::MaxGap);
        assert!(gap.keeps(Measure::Ns(5), 5) && !gap.keeps(Measure::Ns(6), 5));
        let rate = row(CheckId::MinWorkRate);
        assert!(rate.keeps(Measure::PerSecond(5.0), 5_000) && !rate.keeps(Measure::PerSecond(4.9), 5_000));
        // Not a number keeps nothing.
        assert!(!rate.keeps(Measure::PerSecond(f64::NAN), 5_000));
    }
}
