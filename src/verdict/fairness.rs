//! Fairness: do workers that are equal in all that was asked for get, and do, the same?
//!
//! Owns shares of CPU and their spread, rates of work and their variation; leaves who is equal to `stats`.
//! Invariant: only equals are compared; a set with a silent member is not complete.

use super::check::{Check, Measure};
use super::decide::{Found, decide};
use super::scene::Scene;
use super::stats::cpu_percent;
use super::workers::{SHORTEST_LIFE_NS, is_brief, who};
use crate::proto::limits::{Assert, CheckId};
use crate::proto::report::WorkerReport;
use crate::units::{NS_PER_SEC, approx};

const ALONE: &str = "no two equal workers to compare";

/// What is compared of one cgroup: of a life of a few slices, one slice more or less is no matter of fairness.
struct Equals<'a> {
    sets: Vec<Vec<&'a WorkerReport>>,
    /// How many were there too short.
    brief: usize,
}

impl<'a> Equals<'a> {
    fn of(scene: &Scene<'a>, group: &str) -> Self {
        let mut sets: Vec<Vec<&WorkerReport>> = scene.equals_of(group).into_iter().map(|(_, set)| set).collect();
        let count = |sets: &[Vec<&WorkerReport>]| sets.iter().map(Vec::len).sum::<usize>();
        let all = count(&sets);
        // A worker without a time is no brief one: its time is missing.
        sets.iter_mut().for_each(|set| set.retain(|report| report.wall_time_ns == 0 || !is_brief(report)));
        let brief = all - count(&sets);
        sets.retain(|set| set.len() > 1);
        Self { sets, brief }
    }

    fn find(&self, value: fn(&WorkerReport) -> Option<f64>) -> Option<&'a WorkerReport> {
        self.sets.iter().flatten().copied().find(|report| value(report).is_none())
    }

    fn nothing(&self) -> Option<String> {
        self.sets.is_empty().then(|| format!("{ALONE}{}", self.left_out()))
    }

    /// Ends a reason.
    fn left_out(&self) -> String {
        match self.brief {
            0 => String::new(),
            brief => format!("; {brief} left out, there for less than {}", approx(SHORTEST_LIFE_NS)),
        }
    }
}

/// One check per cgroup: the widest difference of CPU share among its equal workers.
pub fn spread(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    per_group(scene, limits, CheckId::Spread, |scene, group| {
        let equals = Equals::of(scene, group);
        let widest = equals.sets.iter().filter_map(|set| widest(group, set)).max_by(|a, b| a.0.total_cmp(&b.0));
        let silent = equals.find(share);
        Found {
            value: widest.as_ref().map(|(points, _)| Measure::Percent(*points)),
            reason: widest.map(|(_, reason)| reason + &equals.left_out()).unwrap_or_default(),
            missing: silent.map(|report| format!("no CPU time from {}", who(group, report))),
            nothing: equals.nothing(),
            ..Found::default()
        }
    })
}

/// One check per cgroup: the largest standard deviation by mean of the work rates of its equal workers.
pub fn throughput_cv(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    per_group(scene, limits, CheckId::ThroughputCv, |scene, group| {
        let equals = Equals::of(scene, group);
        let silent = equals.find(rate);
        let rates = |set: &Vec<&WorkerReport>| set.iter().filter_map(|report| rate(report)).collect::<Vec<_>>();
        let worst = equals.sets.iter().filter_map(|set| variation(&rates(set))).max_by(f64::total_cmp);
        Found {
            value: worst.map(Measure::Ratio),
            reason: format!("work rates of equal workers of {group}{}", equals.left_out()),
            missing: silent.map(|report| format!("no work rate from {}", who(group, report))),
            nothing: equals.nothing(),
            ..Found::default()
        }
    })
}

fn per_group(scene: &Scene<'_>, limits: &Assert, id: CheckId, find: impl Fn(&Scene<'_>, &str) -> Found) -> Vec<Check> {
    if let Some(why) = scene.no_reports {
        return vec![decide(id, limits, Found::missing(why))];
    }
    let found = |group: &String| decide(id, limits, scene.share(find(scene, group)).of(group));
    scene.groups().iter().map(found).collect()
}

fn widest(group: &str, set: &[&WorkerReport]) -> Option<(f64, String)> {
    let shares = || set.iter().filter_map(|report| Some((share(report)?, *report)));
    let (low, poor) = shares().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let (high, rich) = shares().max_by(|a, b| a.0.total_cmp(&b.0))?;
    let reason = format!("{low:.1} % (tid {}) to {high:.1} % (tid {}) in {group}", poor.tid, rich.tid);
    Some((high - low, reason))
}

fn share(report: &WorkerReport) -> Option<f64> {
    cpu_percent(report).filter(|_| report.completed)
}

fn rate(report: &WorkerReport) -> Option<f64> {
    let known = report.completed && report.wall_time_ns > 0;
    known.then(|| report.work_units as f64 * NS_PER_SEC as f64 / report.wall_time_ns as f64)
}

/// Standard deviation by mean of a whole population; none where the mean is zero.
fn variation(values: &[f64]) -> Option<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean > 0.0).then(|| variance.sqrt() / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variation_is_zero_for_equals_and_grows_with_distance() {
        assert_eq!(variation(&[5.0, 5.0]), Some(0.0));
        assert_eq!(variation(&[0.0, 10.0]), Some(1.0));
        assert_eq!(variation(&[4.0, 6.0]), Some(0.2));
        assert_eq!(variation(&[0.0, 0.0]), None);
        assert_eq!(variation(&[]), None);
    }
}
