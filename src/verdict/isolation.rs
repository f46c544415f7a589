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
use crate::proto::report::WorkerReport;

/// One check per cgroup that has a cpuset; one in all where none has.
pub fn checks(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    const ID: CheckId = CheckId::Isolation;
    let sliced: Vec<String> = scene
        .groups()
        .into_iter()
        .filter(|group| scene.of_group(group).any(|(_, report)| !report.slices.is_empty()))
        .collect();
    if !sliced.is_empty() {
        return sliced.iter().map(|group| decide(ID, limits, in_slices(scene, group).of(group))).collect();
    }
    if scene.cpusets.is_empty() {
        let why = scene.no_reports.unwrap_or("no cgroup has a cpuset");
        return vec![decide(ID, limits, Found::nothing(why))];
    }
    let of_group = |(group, cpus): &(String, CpuSet)| decide(ID, limits, find(scene, group, cpus).of(group));
    scene.cpusets.iter().map(of_group).collect()
}

/// By the cpuset that was in force each time; what was seen in the grace after a change of it is left out.
fn in_slices(scene: &Scene<'_>, group: &str) -> Found {
    let strayed = |report: &WorkerReport| {
        let mut outside = report.slices.iter().map(|slice| (slice.seen.difference(&slice.allowed), slice));
        outside.find(|(outside, _)| !outside.is_empty()).map(|(outside, slice)| (outside, slice.allowed.clone()))
    };
    let mut bad = scene.of_group(group).filter_map(|(_, report)| Some((strayed(report)?, report)));
    if let Some(((outside, allowed), report)) = bad.next() {
        let more = match bad.count() {
            0 => String::new(),
            more => format!(", and {more} more workers"),
        };
        let reason = format!("{} ran on CPUs {outside}, outside of {allowed}{more}", who(group, report));
        return Found::new(Measure::Count(outside.len() as u64), reason);
    }
    let blind = scene
        .of_group(group)
        .find(|(_, report)| !report.slices.is_empty() && report.slices.iter().all(|slice| slice.seen.is_empty()));
    let missing = blind.map(|(_, report)| format!("no CPU was seen of {}", who(group, report)));
    let cpusets: usize = scene.of_group(group).map(|(_, report)| report.slices.len()).max().unwrap_or(0);
    let reason = match cpusets {
        1 => "ran on no CPU outside of the cpuset in force".to_owned(),
        many => format!("ran on no CPU outside of the cpuset in force, of {many} in turn"),
    };
    Found { missing, ..Found::new(Measure::Count(0), reason) }
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

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::super::fixture::passing;
    use super::super::judge::{Verdict, judge};
    use super::super::table;
    use crate::proto::phase::CpuSlice;
    use crate::proto::record::Record;

    fn slice(allowed: &str, seen: &str) -> CpuSlice {
        CpuSlice { allowed: allowed.parse().unwrap(), seen: seen.parse().unwrap(), judged_ns: 1 }
    }
    fn judged(record: &Record) -> (Status, String) {
        let verdict: Verdict = judge(record, &table::defaults());
        let check = verdict.checks.iter().find(|check| check.name == "isolation").unwrap();
        (check.status, check.reason.clone())
    }

    #[test]
    fn cpus_are_held_against_the_cpuset_that_was_in_force() {
        let mut record = passing();
        for (_, report) in &mut record.reports {
            report.cpus_used = "0-1".parse().unwrap();
            report.slices = vec![slice("0", "0"), slice("1", "1")];
        }
        assert_eq!(judged(&record).0, Status::Pass, "{}", judged(&record).1);
        record.reports[1].1.slices[0].seen = "0-1".parse().unwrap();
        let (status, reason) = judged(&record);
        assert_eq!(status, Status::Fail);
        assert!(reason.contains("worker 1 of g0") && reason.contains("ran on CPUs 1, outside of 0"), "{reason}");
    }

    #[test]
    fn worker_that_was_never_seen_is_not_taken_as_isolated() {
        let mut record = passing();
        record.reports[0].1.slices = vec![slice("0", "")];
        let asked = table::of_pairs(&[("isolation".into(), "on".into())]).unwrap();
        let verdict = judge(&record, &table::defaults().merge(&asked));
        let check = verdict.checks.iter().find(|check| check.name == "isolation").unwrap();
        assert_eq!(check.status, Status::Inconclusive, "{}", check.reason);
    }
}
