//! One check: its name, what was measured, what it was held to, and how that came out.
//!
//! Owns the form of a check; leaves the measuring to the files named after their subject.
//! Invariant: a check that did not pass says why, in words.

use super::outcome::Outcome;
use super::table::Side;
use crate::units;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    Pass,
    Fail,
    /// Its data is missing or void.
    Inconclusive,
    /// It is off, or means nothing here.
    NotApplied,
}

impl Status {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::NotApplied => "not-applied",
        }
    }
    /// What the check alone would make of the run.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Pass | Self::NotApplied => Outcome::Pass,
            Self::Fail => Outcome::Fail,
            Self::Inconclusive => Outcome::Inconclusive,
        }
    }
}

/// A measured number with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    Ns(u64),
    /// Percentage points, or percent.
    Percent(f64),
    Ratio(f64),
    PerSecond(f64),
    Count(u64),
}

impl Measure {
    /// `17.3 ms`, `4.2 %`, `3`.
    pub fn text(self) -> String {
        match self {
            Self::Ns(ns) => units::approx(ns),
            Self::Percent(percent) => format!("{percent:.1} %"),
            Self::Ratio(ratio) => format!("{ratio:.3}"),
            Self::PerSecond(rate) if rate < 100.0 => format!("{rate:.1}/s"),
            Self::PerSecond(rate) => format!("{rate:.0}/s"),
            Self::Count(count) => count.to_string(),
        }
    }
    /// The bare number, to compare with another of the same unit.
    pub fn number(self) -> f64 {
        match self {
            Self::Ns(value) | Self::Count(value) => value as f64,
            Self::Percent(value) | Self::Ratio(value) | Self::PerSecond(value) => value,
        }
    }
    /// The unit as names in JSON end: `value_ns`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Ns(_) => "ns",
            Self::Percent(_) => "percent",
            Self::Ratio(_) => "ratio",
            Self::PerSecond(_) => "per_s",
            Self::Count(_) => "count",
        }
    }
}

/// One check of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub name: &'static str,
    /// The cgroup it is about, where it is about one.
    pub group: Option<String>,
    pub status: Status,
    pub value: Option<Measure>,
    pub threshold: Option<Measure>,
    /// Which side of the threshold is good.
    pub side: Side,
    /// Whose value it is, or why the check came out as it did; empty where the numbers say all.
    pub reason: String,
}

impl Check {
    pub fn new(name: &'static str, status: Status, reason: impl Into<String>) -> Self {
        Self { name, group: None, status, value: None, threshold: None, side: Side::AtMost, reason: reason.into() }
    }
    pub fn group(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }
    pub fn value(mut self, value: Measure) -> Self {
        self.value = Some(value);
        self
    }
    pub fn value_text(&self) -> String {
        self.value.map(Measure::text).unwrap_or_default()
    }
    pub fn threshold_text(&self) -> String {
        self.threshold.map(Measure::text).unwrap_or_default()
    }
    /// One sentence: `max_run_delay is 2.41 s, more than 2 s (worker 3 of g0, tid 124)`.
    pub fn sentence(&self) -> String {
        match (self.status, self.value, self.threshold) {
            (Status::Fail, Some(value), Some(threshold)) => {
                let beyond = if self.side == Side::AtMost { "more" } else { "less" };
                format!("{} is {}, {beyond} than {} ({})", self.name, value.text(), threshold.text(), self.reason)
            }
            _ => format!("{}: {}", self.name, self.reason),
        }
    }
}
