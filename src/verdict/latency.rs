//! Wake latency: percentiles, the longest, and how much it varies, over samples of kind `wake` alone.
//!
//! Owns these checks; leaves buckets and percentiles to proto/hist.
//! Invariant: a number stands beside the count of its samples; other kinds of latency are never looked at.

use super::check::{Check, Measure};
use super::decide::{Found, decide};
use super::scene::Scene;
use super::workers::who;
use crate::proto::hist::Hist;
use crate::proto::limits::{Assert, CheckId};
use crate::proto::work::SampleKind;

type Number = fn(&Hist) -> Option<Measure>;

const CHECKS: [(CheckId, Number); 5] = [
    (CheckId::WakeP50, |hist| hist.percentile_ns(5000).map(Measure::Ns)),
    (CheckId::WakeP99, |hist| hist.percentile_ns(9900).map(Measure::Ns)),
    (CheckId::WakeP999, |hist| hist.percentile_ns(9990).map(Measure::Ns)),
    (CheckId::WakeMax, |hist| hist.max_ns().map(Measure::Ns)),
    (CheckId::WakeCv, |hist| hist.variation().map(Measure::Ratio)),
];

/// The five checks, each once per cgroup that has wake samples; where none has any, each once.
pub fn checks(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    let groups: Vec<(String, Hist, Option<String>)> =
        scene.groups().iter().filter_map(|group| wakes(scene, group)).collect();
    let mut list = Vec::new();
    for (id, number) in CHECKS {
        if groups.is_empty() {
            let why = scene.no_reports.unwrap_or("no worker took wake samples");
            list.push(decide(id, limits, Found::missing(why)));
        }
        for (group, hist, missing) in &groups {
            let found = Found {
                value: number(hist),
                reason: format!("{} samples of {group}", hist.count()),
                missing: missing.clone(),
                ..Found::default()
            };
            list.push(decide(id, limits, scene.timing(found).of(group)));
        }
    }
    list
}

/// All wake samples of one cgroup, and whose are missing; none where its work takes no such samples.
fn wakes(scene: &Scene<'_>, group: &str) -> Option<(String, Hist, Option<String>)> {
    let mut whole = Hist::new();
    let mut takes = false;
    for hist in scene.of_group(group).filter_map(|(_, report)| report.hist(SampleKind::Wake)) {
        takes = true;
        whole.merge(hist);
    }
    let silent = scene.of_group(group).find(|(_, report)| !report.completed);
    let missing = silent.map(|(_, report)| format!("no samples from {}", who(group, report)));
    let missing = missing.or_else(|| (whole.count() == 0).then(|| format!("no wake was sampled in {group}")));
    takes.then(|| (group.to_owned(), whole, missing))
}
