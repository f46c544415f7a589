//! Isolation: workers of a cgroup with CPUs of its own ran on no other.
//!
//! Owns this check; leaves setting cpusets to cgroup/, seeing CPUs to workload/.
//! Invariant: a worker whose CPUs were not seen is never taken as isolated.

use super::check::{Check, Measure};
use super::decide::{Found, decide};
use super::scene::Scene;
use super::workers::who;
use crate::proto::cpuset::CpuSet;
use crate::proto::limits::{Assert, CheckId};

/// One check per cgroup that has a cpuset; one in all where none has.
pub fn checks(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    const ID: CheckId = CheckId::Isolation;
    if scene.cpusets.is_empty() {
        let why = scene.no_reports.unwrap_or("no cgroup has a cpuset");
        return vec![decide(ID, limits, Found::nothing(why))];
    }
    let of_group = |(group, cpus): &(String, CpuSet)| decide(ID, limits, find(scene, group, cpus).of(group));
    scene.cpusets.iter().map(of_group).collect()
}

fn find(scene: &Scene<'_>, group: &str, cpus: &CpuSet) -> Found {
    let strayed = |seen: &CpuSet| seen.difference(cpus);
    let mut outside = scene.of_group(group).filter(|(_, report)| !report.cpus_used.is_subset(cpus));
    if let Some((_, report)) = outside.next() {
        let more = match outside.count() {
            0 => String::new(),
            more => format!(", and {more} more workers"),
        };
        let count = Measure::Count(strayed(&report.cpus_used).len() as u64);
        let reason =
            format!("{} ran on CPUs {}, outside of {cpus}{more}", who(group, report), strayed(&report.cpus_used));
        return Found::new(count, reason);
    }
    let blind = scene.of_group(group).find(|(_, report)| report.cpus_used.is_empty());
    let missing = match (scene.of_group(group).next(), blind) {
        (None, _) => Some(format!("no worker of {group} reported")),
        (Some(_), Some((_, report))) => Some(format!("no CPU was seen of {}", who(group, report))),
        (Some(_), None) => None,
    };
    Found { missing, ..Found::new(Measure::Count(0), format!("ran on no CPU outside of {cpus}")) }
}
