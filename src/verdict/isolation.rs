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
use crate::proto::phase::{CpuSlice, GRACE_NS};
use crate::proto::report::WorkerReport;
use crate::units::{NS_PER_SEC, approx};

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
    let slices = || scene.of_group(group).flat_map(|(_, report)| &report.slices);
    if slices().all(|slice| slice.seen.is_empty() && slice.judged_ns == 0) {
        return Found::nothing("no cpuset was in force for longer than the grace after a change");
    }
    let unseen: Vec<String> =
        scene.of_group(group).filter(|(_, report)| is_unseen(report)).map(|(_, report)| who(group, report)).collect();
    let long_unseen =
        scene.of_group(group).find(|(_, report)| is_unseen(report) && in_force_ns(&report.slices) >= UNSEEN_NS);
    let missing = if slices().all(|slice| slice.seen.is_empty()) {
        Some(format!("no worker of {group} was seen while a cpuset was in force"))
    } else if let Some((_, report)) = long_unseen {
        Some(format!("no CPU was seen of {}", who(group, report)))
    } else {
        unseen_cpuset(&slices().collect::<Vec<_>>())
            .map(|allowed| format!("no worker of {group} was seen under {allowed}"))
    };
    let cpusets: usize = scene.of_group(group).map(|(_, report)| report.slices.len()).max().unwrap_or(0);
    let mut reason = "ran on no CPU outside of the cpuset in force".to_owned();
    if cpusets > 1 {
        reason.push_str(&format!(", of {cpusets} in turn"));
    }
    reason.push_str(&format!("; {} after each change of it belong to nobody", approx(GRACE_NS)));
    if let Some(first) = unseen.first() {
        reason.push_str(&format!("; too short-lived to be seen: {first}"));
        if unseen.len() > 1 {
            reason.push_str(&format!(" and {} more", unseen.len() - 1));
        }
    }
    Found { missing, ..Found::new(Measure::Count(0), reason) }
}

/// From when on it is data that are missing where a worker, or a whole cgroup under one cpuset, is not seen: as long as max_gap
/// lets a worker stand still.
const UNSEEN_NS: u64 = 2 * NS_PER_SEC;

fn in_force_ns(slices: &[CpuSlice]) -> u64 {
    slices.iter().fold(0, |sum, slice| sum.saturating_add(slice.judged_ns))
}

fn is_unseen(report: &WorkerReport) -> bool {
    !report.slices.is_empty() && report.slices.iter().all(|slice| slice.seen.is_empty())
}

/// A cpuset that was in force for long, and under which nobody was seen.
fn unseen_cpuset(slices: &[&CpuSlice]) -> Option<String> {
    let blind = |slice: &&&CpuSlice| {
        let same = || slices.iter().filter(|other| other.allowed == slice.allowed);
        slice.judged_ns >= UNSEEN_NS && same().all(|other| other.seen.is_empty())
    };
    slices.iter().find(blind).map(|slice| slice.allowed.to_string())
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
    use crate::units::NS_PER_SEC;

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
        let (status, reason) = judged(&record);
        assert_eq!(status, Status::Pass, "{reason}");
        assert!(
            reason.ends_with("in force, of 2 in turn; 50.0 ms after each change of it belong to nobody"),
            "{reason}"
        );
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

    fn with_slices(of_workers: [&[CpuSlice]; 2]) -> Record {
        let mut record = passing();
        for (_, report) in &mut record.reports {
            report.slices = of_workers[report.worker_idx as usize % 2].to_vec();
        }
        record
    }

    fn lasting(allowed: &str, seen: &str, judged_ns: u64) -> CpuSlice {
        CpuSlice { judged_ns, ..slice(allowed, seen) }
    }

    #[test]
    fn cgroup_that_was_never_seen_after_the_grace_is_inconclusive() {
        let missing = |record: &Record| {
            let asked = table::of_pairs(&[("isolation".into(), "on".into())]).unwrap();
            let verdict = judge(record, &table::defaults().merge(&asked));
            let check = verdict.checks.into_iter().find(|check| check.name == "isolation").unwrap();
            assert_eq!((check.status, verdict.exit_code), (Status::Inconclusive, 125), "{}", check.reason);
            check.reason
        };
        let (blind, long) = ([lasting("0", "", 1)], lasting("0", "", 2 * NS_PER_SEC));
        assert!(missing(&with_slices([&blind, &blind])).contains("no worker of g0 was seen while"));
        // One worker that is never seen for long, and one cpuset under which nobody is.
        let seen = || lasting("0", "0", 2 * NS_PER_SEC);
        assert!(missing(&with_slices([&[seen()], &[long]])).contains("no CPU was seen of worker 1 of g0"));
        let other = || [seen(), lasting("1", "", 2 * NS_PER_SEC)];
        assert!(missing(&with_slices([&other(), &other()])).contains("no worker of g0 was seen under 1"));
        // A cpuset that did not outlast its grace says nothing, and is not passed over either where it was asked for.
        let short = [lasting("0", "", 0)];
        assert!(missing(&with_slices([&short, &short])).contains("asked for, but no cpuset was in force"));
    }

    #[test]
    fn worker_that_lived_too_short_to_be_seen_is_named_beside_those_that_were() {
        let (status, reason) = judged(&with_slices([&[slice("0", "0")], &[slice("0", "")]]));
        assert_eq!(status, Status::Pass, "{reason}");
        assert!(reason.contains("too short-lived to be seen: worker 1 of g0"), "{reason}");
    }
}
