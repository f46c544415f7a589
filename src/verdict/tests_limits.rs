//! Every check with a limit: a record that breaks it for its own reason, and one in which its data are missing.
//!
//! Owns these pairs; leaves the checks' finer points to the tests named after them.
//! Invariant: a check that is not in `CASES` fails a test.

use super::fixture::{add_log, passing, passing_with_scheduler};
use super::table::{self, ROWS, defaults};
use super::{Check, Outcome, Status, judge};
use crate::proto::cpuset::CpuSet;
use crate::proto::hist::Hist;
use crate::proto::limits::{Assert, Base, CheckId, Limit};
use crate::proto::message::{ProcessEnd, SchedFinal, VmEnd};
use crate::proto::record::Record;
use crate::proto::report::{Samples, WorkerReport};
use crate::proto::runqueues::{Lasting, RunQueues};
use crate::proto::scenario::CpusetSpec;
use crate::proto::topology::Topology;
use crate::proto::work::SampleKind;
use crate::units::NS_PER_SEC;

type Change = fn(&mut Record);

/// One check: its limit, what breaks it, the words of the failure; what takes its data away, and the words for that.
struct Case {
    id: CheckId,
    limit: &'static str,
    breaks: Option<(Change, &'static str)>,
    mutes: (Change, &'static str),
}

fn report(record: &mut Record, index: usize) -> &mut WorkerReport {
    &mut record.reports[index].1
}

fn silence(record: &mut Record) {
    record.reports.clear();
}

fn wakes(record: &mut Record, index: usize, samples: &[u64]) {
    let mut hist = Hist::new();
    samples.iter().for_each(|ns| hist.record(*ns));
    report(record, index).samples = vec![Samples { kind: SampleKind::Wake, hist, raw_ns: Vec::new() }];
}

fn no_wakes(record: &mut Record) {
    record.reports.iter_mut().for_each(|(_, report)| report.samples[0].kind = SampleKind::Block);
}

fn cpuset(record: &mut Record, seen: &[u32]) {
    let scenario = &mut record.plan.as_mut().unwrap().scenarios[0];
    scenario.steps[0].setup[0].cpuset = Some(CpusetSpec::Exact { cpus: CpuSet::first(1) });
    record.reports.iter_mut().for_each(|(_, report)| report.cpus_used = seen.iter().copied().collect());
}

fn pages(record: &mut Record, on_far_node: u64) {
    let two_nodes = Topology::grid(2, 2, 1, 1);
    record.plan.as_mut().unwrap().topology = two_nodes;
    for (_, report) in &mut record.reports {
        report.cpus_used = CpuSet::first(1);
        report.numa_pages = Some(vec![(0, 100 - on_far_node), (1, on_far_node)]);
        report.vmstat_numa_pages_migrated = Some(on_far_node);
    }
}

fn last(record: &mut Record) -> &mut SchedFinal {
    record.sched_final.as_mut().unwrap()
}

fn event(record: &mut Record, name: &str, count: i64) {
    last(record).events = vec![(name.into(), count)];
}

/// What the monitor saw of a good run.
fn queues(record: &mut Record) -> &mut RunQueues {
    let good = || RunQueues { looks: 20, imbalance: lasting(2_000), depth: lasting(3), ..RunQueues::default() };
    record.queues.get_or_insert_with(good)
}

fn lasting(value: u64) -> Option<Lasting> {
    Some(Lasting { value, cpu: 1, at_ns: NS_PER_SEC })
}

fn nothing(_: &mut Record) {}

const CASES: [Case; 26] = [
    Case {
        id: CheckId::NotStarved,
        limit: "on",
        breaks: Some((|record| report(record, 1).work_units = 0, "worker 1 of g0, tid 101 (PipeIo) did no work")),
        mutes: (silence, "no worker reported"),
    },
    Case {
        id: CheckId::MaxGap,
        limit: "500ms",
        breaks: Some((
            |record| report(record, 1).max_gap_ns = NS_PER_SEC,
            "worker 1 of g0, tid 101 at 1.00 s on CPU 1",
        )),
        mutes: (|record| report(record, 2).completed = false, "not measured for worker 0 of g1"),
    },
    Case {
        id: CheckId::MaxRunDelay,
        limit: "500ms",
        breaks: Some((|record| report(record, 3).max_run_delay_ns = Some(NS_PER_SEC), "worker 1 of g1, tid 101")),
        mutes: (|record| report(record, 0).max_run_delay_ns = None, "not measured for worker 0 of g0"),
    },
    Case {
        id: CheckId::MaxWaitShare,
        limit: "30%",
        breaks: Some((
            |record| report(record, 1).schedstat_run_delay_ns = Some(NS_PER_SEC),
            "worker 1 of g0, tid 101, 1.00 s of 2.00 s",
        )),
        mutes: (|record| report(record, 1).schedstat_run_delay_ns = None, "not measured for worker 1 of g0"),
    },
    Case {
        id: CheckId::Spread,
        limit: "10%",
        breaks: Some((
            |record| report(record, 3).cpu_time_ns = NS_PER_SEC * 3 / 4,
            "37.5 % (tid 101) to 50.0 % (tid 100)",
        )),
        mutes: (|record| report(record, 3).wall_time_ns = 0, "no CPU time from worker 1 of g1"),
    },
    Case {
        id: CheckId::Isolation,
        limit: "on",
        breaks: Some((
            |record| cpuset(record, &[0, 1]),
            "worker 0 of g0, tid 100 ran on CPUs 1, outside of 0, and 1 more",
        )),
        mutes: (|record| cpuset(record, &[]), "no CPU was seen of worker 0 of g0"),
    },
    Case {
        id: CheckId::ThroughputCv,
        limit: "0.2",
        breaks: Some((|record| report(record, 1).work_units /= 2, "work rates of equal workers of g0")),
        mutes: (|record| report(record, 1).wall_time_ns = 0, "no work rate from worker 1 of g0"),
    },
    Case {
        id: CheckId::MinWorkRate,
        limit: "1000000",
        breaks: Some((|record| report(record, 2).work_units = 1000, "worker 0 of g1, tid 100, 1000 in 2.00 s")),
        mutes: (|record| report(record, 2).wall_time_ns = 0, "not measured for worker 0 of g1"),
    },
    Case {
        id: CheckId::MinIterationRate,
        limit: "1000/s",
        breaks: Some((|record| report(record, 2).iterations = 10, "worker 0 of g1, tid 100, 10 in 2.00 s")),
        mutes: (|record| report(record, 2).wall_time_ns = 0, "not measured for worker 0 of g1"),
    },
    Case {
        id: CheckId::MaxMigrationRatio,
        limit: "0.01",
        breaks: Some((|record| report(record, 0).migration_count = 5_000, "5003 migrations in 10000 iterations of g0")),
        mutes: (|record| report(record, 0).completed = false, "no report from worker 0 of g0"),
    },
    Case {
        id: CheckId::WakeP50,
        limit: "2ms",
        breaks: Some((|record| wakes(record, 0, &[3_000_000; 200]), "300 samples of g0")),
        mutes: (no_wakes, "no worker took wake samples"),
    },
    Case {
        id: CheckId::WakeP99,
        limit: "2ms",
        breaks: Some((|record| wakes(record, 0, &[3_000_000; 10]), "110 samples of g0")),
        mutes: (|record| report(record, 1).completed = false, "no samples from worker 1 of g0"),
    },
    Case {
        id: CheckId::WakeP999,
        limit: "2ms",
        breaks: Some((|record| wakes(record, 2, &[3_000_000]), "101 samples of g1")),
        mutes: (no_wakes, "no worker took wake samples"),
    },
    Case {
        id: CheckId::WakeMax,
        limit: "2ms",
        breaks: Some((|record| wakes(record, 2, &[3_000_000]), "101 samples of g1")),
        mutes: (
            |record| {
                wakes(record, 0, &[]);
                wakes(record, 1, &[]);
            },
            "no wake was sampled in g0",
        ),
    },
    Case {
        id: CheckId::WakeCv,
        limit: "0.8",
        breaks: Some((|record| wakes(record, 2, &[100_000_000]), "101 samples of g1")),
        mutes: (silence, "no worker reported"),
    },
    Case {
        id: CheckId::MinPageLocality,
        limit: "0.8",
        breaks: Some((|record| pages(record, 40), "worker 0 of g0, tid 100, 60 of 100 pages")),
        mutes: (nothing, "not measured for worker 0 of g0"),
    },
    Case {
        id: CheckId::MaxCrossNodeMigration,
        limit: "0.05",
        breaks: Some((|record| pages(record, 30), "30 pages moved, 400 in use")),
        mutes: (nothing, "not measured for worker 0 of g0"),
    },
    Case {
        id: CheckId::SchedulerAlive,
        limit: "on",
        breaks: Some((|record| last(record).end = Some(ProcessEnd::Exited { code: 3 }), "exit code 3")),
        mutes: (|record| record.sched_final = None, "its end was not seen"),
    },
    Case {
        id: CheckId::KernelLogClean,
        limit: "on",
        breaks: Some((
            |record| add_log(record, &["WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:1 f+0x1/0x2"]),
            "kernel/sched/core.c:1",
        )),
        mutes: (|record| record.klog_end = None, "not read to its end"),
    },
    Case {
        id: CheckId::MaxImbalance,
        limit: "4",
        breaks: Some((|record| queues(record).imbalance = lasting(4_001), "the queue of CPU 1, 5 looks in a row")),
        mutes: (|record| record.queues = None, "no monitor"),
    },
    Case {
        id: CheckId::MaxDsqDepth,
        limit: "50",
        breaks: Some((|record| queues(record).depth = lasting(51), "the local queue of CPU 1, 5 looks in a row")),
        mutes: (|record| queues(record).depth = None, "this kernel shows no local dispatch queues"),
    },
    Case {
        id: CheckId::ClockStall,
        limit: "on",
        breaks: Some((|record| queues(record).still = lasting(5), "the clock of CPU 1 stood still for 5 looks")),
        mutes: (|record| queues(record).looks = 4, "4 looks into the run queues are too few"),
    },
    Case {
        id: CheckId::MaxFallbackRate,
        limit: "200/s",
        breaks: Some((
            |record| event(record, "SCX_EV_SELECT_CPU_FALLBACK", 1_000),
            "1000 times SCX_EV_SELECT_CPU_FALLBACK in 150 ms",
        )),
        mutes: (|record| last(record).events.clear(), "this kernel does not count SCX_EV_SELECT_CPU_FALLBACK"),
    },
    Case {
        id: CheckId::MaxKeepLastRate,
        limit: "100",
        breaks: Some((|record| event(record, "SCX_EV_DISPATCH_KEEP_LAST", 500), "500 times SCX_EV_DISPATCH_KEEP_LAST")),
        // A counter that went back was reset by another scheduler's enabling.
        mutes: (|record| event(record, "SCX_EV_DISPATCH_KEEP_LAST", -1), "this kernel does not count"),
    },
    // Not a check of its own in the list: it says what a boot that failed is.
    Case { id: CheckId::BootFailure, limit: "on", breaks: None, mutes: (|record| record.klog_end = None, "") },
    Case {
        id: CheckId::SettingsApplied,
        limit: "on",
        breaks: Some((
            |record| report(record, 3).nice_error = Some("permission denied".into()),
            "worker 1 of g1, tid 101: nice refused: permission denied",
        )),
        mutes: (silence, "no worker reported"),
    },
];

/// The record with one change, held to one limit on top of the defaults.
fn check(case: &Case, change: Change) -> (Check, Outcome, u8) {
    check_beside(case, change, &defaults())
}

fn check_beside(case: &Case, change: Change, limits: &Assert) -> (Check, Outcome, u8) {
    let row = super::table::row(case.id);
    let mut record = passing_with_scheduler();
    change(&mut record);
    let verdict = judge(&record, &limits.with(case.id, row.parse(case.limit).unwrap()));
    let of_name = verdict.checks.iter().filter(|check| check.name == row.name);
    let worst = of_name.max_by_key(|check| check.status.outcome()).unwrap().clone();
    (worst, verdict.outcome, verdict.exit_code)
}

#[test]
fn every_check_has_its_cases_and_stands_in_every_result() {
    for (case, row) in CASES.iter().zip(&ROWS) {
        assert_eq!(case.id, row.id);
    }
    for record in [passing(), passing_with_scheduler(), Record::default()] {
        let verdict = judge(&record, &defaults());
        for row in ROWS.iter().filter(|row| row.id != CheckId::BootFailure) {
            let found: Vec<_> = verdict.checks.iter().filter(|check| check.name == row.name).collect();
            assert!(!found.is_empty(), "{} is not listed", row.name);
            let told = |check: &&Check| check.status == Status::Pass || !check.reason.is_empty();
            assert!(found.iter().all(told), "{found:?}");
        }
    }
}

#[test]
fn every_check_fails_for_its_own_reason() {
    for case in &CASES {
        let Some((change, words)) = case.breaks else { continue };
        let (check, outcome, exit_code) = check(case, change);
        assert_eq!((check.status, outcome, exit_code), (Status::Fail, Outcome::Fail, 1), "{check:?}");
        assert!(check.reason.contains(words), "{check:?}");
    }
}

#[test]
fn every_check_without_its_data_is_inconclusive() {
    for case in CASES.iter().filter(|case| case.id != CheckId::BootFailure) {
        // A worker that did not complete starves too, which is more than a missing number.
        let limits = defaults().without(CheckId::NotStarved);
        let (check, outcome, exit_code) = check_beside(case, case.mutes.0, &limits);
        assert_eq!(check.status, Status::Inconclusive, "{check:?}");
        assert!(check.reason.contains(case.mutes.1), "{check:?}");
        assert_eq!((outcome, exit_code), (Outcome::Inconclusive, 125), "{check:?}");
    }
}

#[test]
fn pages_are_local_to_the_nodes_as_the_machine_numbers_them() {
    let limits = Assert::new().min_page_locality_milli(1000);
    let judged = |nodes: [&str; 2], cpu: u32| {
        let mut record = passing();
        pages(&mut record, 100);
        record.plan.as_mut().unwrap().topology.odd.node_cpus = nodes.map(|cpus| cpus.parse().unwrap()).into();
        record.reports.iter_mut().for_each(|(_, report)| report.cpus_used = [cpu].into_iter().collect());
        judge(&record, &limits).outcome
    };
    assert_eq!(judged(["0-1", "2-3"], 1), Outcome::Fail);
    assert_eq!(judged(["0,2", "1,3"], 1), Outcome::Pass);
    assert_eq!(judged(["0,2", "1,3"], 4), Outcome::Inconclusive, "nobody knows where that CPU is");
}

#[test]
fn every_check_passes_where_its_data_are_good() {
    for case in CASES.iter().filter(|case| case.breaks.is_some()) {
        let good: Change = match case.id {
            CheckId::Isolation => |record| cpuset(record, &[0]),
            CheckId::MinPageLocality | CheckId::MaxCrossNodeMigration => |record| pages(record, 0),
            CheckId::MaxFallbackRate => |record| event(record, "SCX_EV_SELECT_CPU_FALLBACK", 3),
            CheckId::MaxKeepLastRate => |record| event(record, "SCX_EV_DISPATCH_KEEP_LAST", 3),
            CheckId::MaxImbalance | CheckId::MaxDsqDepth | CheckId::ClockStall => |record| _ = queues(record),
            _ => nothing,
        };
        let (check, outcome, _) = check(case, good);
        assert_eq!((check.status, outcome), (Status::Pass, Outcome::Pass), "{check:?}");
    }
}

#[test]
fn run_queues_are_watched_only_where_one_of_their_limits_is_asked_for() {
    let mut plan = passing().plan.unwrap();
    for base in [Base::Default, Base::Strict] {
        plan.limits.base = base;
        assert!(!super::watches_queues(&plan));
    }
    plan.scenarios[0].asserts = vec![("clock-stall".into(), "on".into())];
    assert!(super::watches_queues(&plan));
    // A later one that does not ask takes nothing from it.
    plan.scenarios.push(plan.scenarios[0].clone());
    plan.scenarios[1].asserts = vec![("clock-stall".into(), "off".into())];
    assert!(super::watches_queues(&plan));
    plan.limits.command_line = Assert::new().without(CheckId::ClockStall);
    assert!(!super::watches_queues(&plan));
}

#[test]
fn stall_settles_a_run_only_where_it_fails_every_scenario() {
    let mut plan = passing().plan.unwrap();
    assert!(super::stall_settles(&plan, false) && !super::stall_settles(&plan, true));
    plan.guards.allow_log = vec!["slow".into()];
    assert!(!super::stall_settles(&plan, false));
    plan.guards.allow_log.clear();
    plan.guards.stalls_may_be = true;
    assert!(!super::stall_settles(&plan, false));
    plan.guards.stalls_may_be = false;
    assert!(super::stall_settles(&plan, false));
    plan.scenarios[0].asserts = vec![("kernel-log-clean".into(), "off".into())];
    assert!(!super::stall_settles(&plan, false));
}

#[test]
fn clock_that_stood_where_the_host_took_the_time_proves_nothing() {
    let mut record = passing_with_scheduler();
    record.host.as_mut().unwrap().accel = "qemu".into();
    queues(&mut record).still = lasting(9);
    let verdict = judge(&record, &defaults().require(CheckId::ClockStall));
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    // Nor where the monitor failed later.
    queues(&mut record).error = Some("no memory".into());
    assert_eq!(judge(&record, &defaults().require(CheckId::ClockStall)).outcome, Outcome::Inconclusive);
    queues(&mut record).error = None;
    // A count is no time.
    queues(&mut record).depth = lasting(51);
    let fifty = super::table::of_pairs(&[("max-dsq-depth".into(), "50".into())]).unwrap();
    assert_eq!(judge(&record, &defaults().merge(&fifty)).outcome, Outcome::Fail);
}

#[test]
fn cpus_whose_clock_may_stand_are_named_as_not_asked() {
    let limits = table::of_pairs(&[("clock-stall".into(), "on".into())]).unwrap();
    for (cmdline, named) in [("quiet", false), ("quiet nohz_full=1-3", true), ("x=nohz_full=", false)] {
        let mut record = passing();
        queues(&mut record);
        record.host.as_mut().unwrap().kernel_cmdline = cmdline.into();
        let verdict = judge(&record, &table::defaults().merge(&limits));
        let check = verdict.checks.into_iter().find(|check| check.name == "clock_stall").unwrap();
        assert_eq!(check.status, Status::Pass, "{}", check.reason);
        assert_eq!(check.reason.ends_with("CPUs of nohz_full= were not asked"), named, "{}", check.reason);
    }
}

#[test]
fn boot_failure_fails_only_where_it_was_asked_for() {
    let record = Record { vm_end: Some(VmEnd::TimedOut), ..Record::default() };
    assert_eq!(judge(&record, &defaults()).outcome, Outcome::Skip);
    assert_eq!(judge(&record, &defaults().require(CheckId::BootFailure)).outcome, Outcome::Fail);
}

#[test]
fn asked_for_under_emulation_is_inconclusive_where_it_is_broken() {
    let mut record = passing();
    record.host.as_mut().unwrap().accel = "qemu".into();
    report(&mut record, 0).max_gap_ns = NS_PER_SEC;
    let verdict = judge(&record, &defaults().max_gap_ns(1));
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Inconclusive, 125));
    assert!(verdict.headline.contains("software emulation"), "{}", verdict.headline);
    // What holds even there holds.
    assert_eq!(judge(&record, &defaults().max_gap_ns(2 * NS_PER_SEC)).outcome, Outcome::Pass);
    assert_eq!(judge(&record, &defaults()).outcome, Outcome::Pass);
}

#[test]
fn isolation_is_on_where_a_cgroup_has_a_cpuset() {
    let mut record = passing();
    cpuset(&mut record, &[1]);
    assert_eq!(judge(&record, &defaults()).outcome, Outcome::Fail);
    assert_eq!(judge(&record, &defaults().with(CheckId::Isolation, Limit::Off)).outcome, Outcome::Pass);
    let asked = judge(&passing(), &defaults().isolation());
    assert_eq!(asked.outcome, Outcome::Inconclusive);
    assert!(asked.headline.contains("asked for, but no cgroup has a cpuset"), "{}", asked.headline);
}

#[test]
fn limits_of_the_record_decide_where_none_are_given() {
    let mut record = passing();
    assert_eq!(super::judge_stored(&record).outcome, Outcome::Pass);
    record.plan.as_mut().unwrap().limits.scenario = Assert::new().max_gap_ns(1);
    assert_eq!(super::judge_stored(&record).outcome, Outcome::Fail);
    record.plan.as_mut().unwrap().limits.command_line = Assert::new().max_gap_ns(NS_PER_SEC);
    assert_eq!(super::judge_stored(&record).outcome, Outcome::Pass);
    record.plan.as_mut().unwrap().scenarios[0].asserts = vec![("spread".into(), "0%".into())];
    report(&mut record, 0).cpu_time_ns -= 1;
    assert_eq!(super::judge_stored(&record).outcome, Outcome::Fail);
}
