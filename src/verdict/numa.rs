//! NUMA: do a worker's pages lie where it runs, and do they stay?
//!
//! Owns these two checks; leaves reading numa_maps and vmstat to workload/.
//! Invariant: a worker whose pages were not counted is never taken as local.

use super::check::{Check, Measure};
use super::decide::{Found, decide};
use super::scene::Scene;
use super::workers::who;
use crate::proto::limits::{Assert, CheckId};
use crate::proto::report::WorkerReport;
use crate::proto::topology::Topology;

pub fn checks(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    vec![
        decide(CheckId::MinPageLocality, limits, locality(scene)),
        decide(CheckId::MaxCrossNodeMigration, limits, migration(scene)),
    ]
}

fn pages(report: &WorkerReport) -> Option<u64> {
    let pages = report.numa_pages.as_ref().filter(|_| report.completed)?;
    Some(pages.iter().map(|(_, pages)| *pages).fold(0, u64::saturating_add))
}

fn locality(scene: &Scene<'_>) -> Found {
    let Some(topology) = &scene.topology else { return Found::missing("the nodes of the CPUs are not known") };
    scene.worst(
        |a, b| a.number() < b.number(),
        |report| {
            let all = pages(report).filter(|pages| *pages > 0)?;
            let own: Vec<u32> = report.cpus_used.iter().map(|cpu| node_of(topology, cpu)).collect::<Option<_>>()?;
            let on_own = report.numa_pages.iter().flatten().filter(|(node, _)| own.contains(node));
            let local = on_own.map(|(_, pages)| *pages).fold(0, u64::saturating_add);
            Some((Measure::Ratio(local as f64 / all as f64), format!(", {local} of {all} pages")))
        },
    )
}

/// None: a CPU that came after the topology was told.
fn node_of(topology: &Topology, cpu: u32) -> Option<u32> {
    (0..topology.numa_nodes).find(|node| topology.node_cpus(*node).contains(cpu))
}

/// The counter is the whole system's, so the largest growth that any worker saw stands for all.
fn migration(scene: &Scene<'_>) -> Found {
    if let Some(why) = scene.no_reports {
        return Found::missing(why);
    }
    let known = |report: &WorkerReport| Some((pages(report)?, report.vmstat_numa_pages_migrated?));
    let blind = scene.reports.iter().find(|(_, report)| known(report).is_none());
    let counts = scene.reports.iter().filter_map(|(_, report)| known(report));
    let (all, moved) =
        counts.fold((0u64, 0u64), |(all, moved), (pages, grown)| (all.saturating_add(pages), moved.max(grown)));
    let nothing = || (all == 0).then(|| "no pages were counted".to_owned());
    Found {
        value: (all > 0).then(|| Measure::Ratio(moved as f64 / all as f64)),
        reason: format!("{moved} pages moved, {all} in use"),
        missing: blind.map(|(group, report)| format!("not measured for {}", who(group, report))).or_else(nothing),
        ..Found::default()
    }
}
