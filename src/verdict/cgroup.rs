//! Assertions on plain reports: the same checks that judge a record, for code that has reports in its hands.
//!
//! Owns turning checks into an `AssertResult`; leaves the checks to the files named after their subject.
//! Invariant: what would be Inconclusive in a verdict is undecided here, never passed.

use super::check::{Check, Measure, Status};
use super::decide::is_asked;
use super::scene::{Named, Scene};
use super::table::{is_on, row};
use super::workers;
use crate::proto::asserted::{AssertResult, AssertStats};
use crate::proto::cpuset::CpuSet;
use crate::proto::hist::Hist;
use crate::proto::limits::{Assert, CheckId};
use crate::proto::report::WorkerReport;
use crate::proto::work::SampleKind;

/// Checks that look at something else than workers.
const OTHERS: [CheckId; 8] = [
    CheckId::SchedulerAlive,
    CheckId::KernelLogClean,
    CheckId::MaxImbalance,
    CheckId::MaxDsqDepth,
    CheckId::ClockStall,
    CheckId::MaxFallbackRate,
    CheckId::MaxKeepLastRate,
    CheckId::BootFailure,
];

impl Assert {
    /// Whether any check on workers is wanted.
    pub fn has_worker_checks(&self) -> bool {
        CheckId::ALL.into_iter().filter(|id| !OTHERS.contains(id)).any(|id| is_on(self, id))
    }

    /// Holds the reports of one cgroup to these limits. Without a check on workers: to having worked at all.
    pub fn assert_cgroup(&self, reports: &[WorkerReport], cpuset: Option<&CpuSet>) -> AssertResult {
        let named: Vec<Named> = reports.iter().map(|report| ("the cgroup".to_owned(), report.clone())).collect();
        self.assert_groups(
            &named,
            &cpuset.map(|cpus| ("the cgroup".to_owned(), cpus.clone())).into_iter().collect::<Vec<_>>(),
            None,
        )
    }

    /// The same for several cgroups. `void`: why times mean nothing on this machine.
    pub fn assert_groups(&self, reports: &[Named], cpusets: &[(String, CpuSet)], void: Option<&str>) -> AssertResult {
        let limits = if self.has_worker_checks() { *self } else { Assert::new().not_starved() };
        let scene = Scene::of_reports(reports, cpusets, void);
        let checks = workers::checks(&scene, &limits);
        let mut result = AssertResult { stats: stats(reports, &checks), ..AssertResult::pass() };
        for check in &checks {
            match check.status {
                Status::Fail => {
                    result.passed = false;
                    result.details.push(check.sentence());
                }
                Status::Inconclusive => result.undecided.push(check.sentence()),
                Status::Pass | Status::NotApplied => {}
            }
        }
        // What was asked for and could be applied nowhere was not decided.
        for id in CheckId::ALL.into_iter().filter(|id| is_asked(&limits, *id)) {
            let of_id = || checks.iter().filter(|check| check.name == row(id).name);
            if of_id().next().is_some() && of_id().all(|check| check.status == Status::NotApplied) {
                result.undecided.extend(of_id().next().map(Check::sentence));
            }
        }
        result
    }
}

/// Held to the defaults: every worker worked, waited and stood still within bounds, and got its share.
pub fn assert_cgroup(reports: &[WorkerReport], cpuset: Option<&CpuSet>) -> AssertResult {
    super::table::defaults().assert_cgroup(reports, cpuset)
}

fn stats(reports: &[Named], checks: &[Check]) -> AssertStats {
    let reports = || reports.iter().map(|(_, report)| report);
    let sum = |number: fn(&WorkerReport) -> u64| reports().map(number).fold(0, u64::saturating_add);
    let mut wakes = Hist::new();
    reports().filter_map(|report| report.hist(SampleKind::Wake)).for_each(|hist| wakes.merge(hist));
    let spread = checks.iter().filter(|check| check.name == row(CheckId::Spread).name);
    // Whole thousandths; a share lies within 0 and some thousand percent.
    let spread = spread.filter_map(|check| check.value).map(|points| (Measure::number(points) * 1000.0).round() as u64);
    AssertStats {
        workers: reports().count() as u64,
        work_units: sum(|report| report.work_units),
        iterations: sum(|report| report.iterations),
        migrations: sum(|report| report.migration_count),
        max_gap_ns: reports().filter(|report| report.completed).filter_map(|report| report.known_gap_ns()).max(),
        max_run_delay_ns: reports().filter_map(|report| report.max_run_delay_ns).max(),
        spread_milli: spread.max(),
        wake_p99_ns: wakes.percentile_ns(9900),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::worker;
    use super::*;
    use crate::units::NS_PER_SEC;

    #[test]
    fn good_reports_pass_and_tell_their_numbers() {
        let result = assert_cgroup(&[worker(0), worker(1)], None);
        assert!(result.passed && result.details.is_empty() && result.undecided.is_empty(), "{result:?}");
        assert_eq!((result.stats.workers, result.stats.iterations), (2, 10_000));
        assert_eq!(result.stats.max_gap_ns, Some(worker(0).max_gap_ns));
        assert_eq!(result.stats.spread_milli, Some(0));
        assert!(result.stats.wake_p99_ns.is_some());
    }

    #[test]
    fn each_failure_is_one_sentence() {
        let mut lazy = worker(1);
        (lazy.work_units, lazy.cpu_time_ns, lazy.cpus_used) = (0, NS_PER_SEC / 5, CpuSet::first(2));
        let cpus = CpuSet::first(1);
        let mut good = worker(0);
        good.cpus_used = cpus.clone();
        let result = assert_cgroup(&[good, lazy], Some(&cpus));
        assert!(!result.passed);
        let all = result.details.join("\n");
        for words in ["not_starved: worker 1", "spread is 40.0 %, more than 15.0 %", "isolation", "outside of 0"] {
            assert!(all.contains(words), "no '{words}' in {all}");
        }
    }

    #[test]
    fn missing_data_are_undecided() {
        let mut mute = worker(0);
        mute.max_run_delay_ns = None;
        let result = assert_cgroup(&[mute], None);
        assert!(result.passed && result.undecided[0].contains("not measured"), "{result:?}");
        assert!(!assert_cgroup(&[], None).undecided.is_empty());
        let asked = Assert::new().isolation().assert_cgroup(&[worker(0)], None);
        assert!(asked.undecided[0].contains("no cgroup has a cpuset"), "{asked:?}");
    }

    #[test]
    fn without_checks_on_workers_only_starvation_counts() {
        let mut slow = worker(0);
        slow.max_gap_ns = u64::MAX;
        assert!(Assert::new().assert_cgroup(&[slow.clone()], None).passed);
        assert!(!Assert::new().max_gap_ns(1).assert_cgroup(&[slow.clone()], None).passed);
        slow.work_units = 0;
        assert!(!Assert::none().assert_cgroup(&[slow], None).passed);
    }
}
