//! Fairness: do workers that are equal in all that was asked for get, and do, the same?
//!
//! Owns shares of CPU and their spread, rates of work and their variation; leaves who is equal to `stats`.
//! Invariant: only equals are compared; a set with a silent member is not complete.

use super::check::{Check, Measure};
use super::decide::{Found, decide};
use super::scene::Scene;
use super::stats::cpu_percent;
use super::workers::who;
use crate::proto::limits::{Assert, CheckId};
use crate::proto::report::WorkerReport;
use crate::units::NS_PER_SEC;

const ALONE: &str = "no two equal workers to compare";

/// One check per cgroup: the widest difference of CPU share among its equal workers.
pub fn spread(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    per_group(scene, limits, CheckId::Spread, |scene, group| {
        let sets = scene.equals_of(group);
        let widest = sets.iter().filter_map(|(_, set)| widest(group, set)).max_by(|a, b| a.0.total_cmp(&b.0));
        let silent = sets.iter().flat_map(|(_, set)| set).find(|report| share(report).is_none());
        Found {
            value: widest.as_ref().map(|(points, _)| Measure::Percent(*points)),
            reason: widest.map(|(_, reason)| reason).unwrap_or_default(),
            missing: silent.map(|report| format!("no CPU time from {}", who(group, report))),
            nothing: sets.is_empty().then(|| ALONE.to_owned()),
            ..Found::default()
        }
    })
}

/// One check per cgroup: the largest standard deviation by mean of the work rates of its equal workers.
pub fn throughput_cv(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    per_group(scene, limits, CheckId::ThroughputCv, |scene, group| {
        let sets = scene.equals_of(group);
        let silent = sets.iter().flat_map(|(_, set)| set).find(|report| rate(report).is_none());
        let rates = |set: &[&WorkerReport]| set.iter().filter_map(|report| rate(report)).collect::<Vec<_>>();
        let worst = sets.iter().filter_map(|(_, set)| variation(&rates(set))).max_by(f64::total_cmp);
        Found {
            value: worst.map(Measure::Ratio),
            reason: format!("work rates of equal workers of {group}"),
            missing: silent.map(|report| format!("no work rate from {}", who(group, report))),
            nothing: sets.is_empty().then(|| ALONE.to_owned()),
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
