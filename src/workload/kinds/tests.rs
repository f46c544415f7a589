//! Types run for real on this machine: what all of them have in common, and those of the first family.
//!
//! Owns the helpers of the other test files; leaves memory, wake-ups and classes to them.
//! Invariant: a type is known by what the kernel says of its workers, not by its own counters alone.

use crate::not_run::not_run;
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::{SchedPolicy, WorkSpec};
use crate::proto::report::WorkerReport;
use crate::proto::scenario::AffinityIntent;
use crate::proto::work::{SampleKind, WorkType};
use crate::sys::{sched, time};
use crate::units::{NS_PER_MS, NS_PER_SEC};
use crate::workload::observe::Counters;
use crate::workload::{WorkloadConfig, WorkloadHandle, parse_workspecs, types};

/// Runs until every worker has done `iterations` outer loops; returns the reports and each one's voluntary switches.
pub fn run(config: &WorkloadConfig, iterations: u64) -> (Vec<WorkerReport>, Vec<u64>) {
    run_until(config, iterations, |_| true)
}

/// The same until a condition holds as well.
pub fn run_until(
    config: &WorkloadConfig,
    iterations: u64,
    mut enough: impl FnMut(&WorkloadHandle) -> bool,
) -> (Vec<WorkerReport>, Vec<u64>) {
    let mut handle = WorkloadHandle::spawn(config).unwrap();
    assert!(handle.snapshot_iterations().iter().all(|done| *done == 0), "worked before the start");
    handle.start().unwrap();
    handle.start().unwrap();
    let deadline = time::monotonic_ns() + 30 * NS_PER_SEC;
    let mut before = handle.snapshot_iterations();
    while before.iter().any(|done| *done < iterations) || !enough(&handle) {
        assert!(time::monotonic_ns() < deadline, "no progress: {before:?}");
        time::sleep_ns(NS_PER_MS).unwrap();
        let now = handle.snapshot_iterations();
        assert!(now.iter().zip(&before).all(|(now, before)| now >= before), "{before:?} then {now:?}");
        before = now;
    }
    let switches = handle.tids().iter().map(|tid| voluntary_switches(*tid)).collect();
    let reports = handle.stop_and_collect().unwrap();
    for report in &reports {
        assert!(report.completed, "{report:?}");
        assert!(report.iterations >= iterations && report.work_units > 0 && report.cpu_time_ns > 0, "{report:?}");
        assert!(report.wall_time_ns >= report.cpu_time_ns.saturating_sub(NS_PER_MS), "{report:?}");
        assert!(!report.cpus_used.is_empty() && report.refusals().is_empty(), "{report:?}");
        let kinds: Vec<SampleKind> = report.samples.iter().map(|samples| samples.kind).collect();
        assert_eq!(kinds, config.work_type.sample_kinds());
    }
    (reports, switches)
}

/// Starts the workers, waits until each has done so many outer loops, lets `look` see them at work, and collects.
pub fn watch(config: &WorkloadConfig, iterations: u64, look: impl FnOnce(&[i32])) -> Vec<WorkerReport> {
    let mut handle = WorkloadHandle::spawn(config).unwrap();
    handle.start().unwrap();
    wait_for("progress", || handle.snapshot_iterations().iter().all(|done| *done >= iterations));
    look(&handle.tids());
    handle.stop_and_collect().unwrap()
}

/// The default of this name, in one group.
pub fn one_group(text: &str) -> WorkloadConfig {
    WorkloadConfig::from_specs(&parse_workspecs(text, 1).unwrap()).unwrap()
}

/// Everything shares the first CPU that the caller has.
pub fn on_one_cpu(config: WorkloadConfig) -> WorkloadConfig {
    WorkloadConfig { affinity: AffinityIntent::SingleCpu, ..config }
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = time::monotonic_ns() + 30 * NS_PER_SEC;
    while !condition() {
        assert!(time::monotonic_ns() < deadline, "never: {what}");
        time::sleep_ns(NS_PER_MS / 2).unwrap();
    }
}

/// A file of a task in /proc.
pub fn proc_file(tid: i32, name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{tid}/{name}")).unwrap_or_default()
}

/// A field of /proc/TID/status.
pub fn status(tid: i32, name: &str) -> String {
    let text = proc_file(tid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
}

/// Field `number`, from 1, of /proc/TID/stat (proc_pid_stat(5)); the name in brackets holds no blank.
pub fn stat(tid: i32, number: usize) -> i64 {
    proc_file(tid, "stat").split(' ').nth(number - 1).unwrap().parse().unwrap()
}
pub const STAT_MINOR_FAULTS: usize = 10;
pub const STAT_CHILDREN_FAULTS: usize = 11;
pub const STAT_PRIORITY: usize = 18;
pub const STAT_NICE: usize = 19;
pub const STAT_RT_PRIORITY: usize = 40;
pub const STAT_POLICY: usize = 41;

/// The number of the system call a task is in, where it is in one.
pub fn in_call(tid: i32) -> Option<i64> {
    proc_file(tid, "syscall").split(' ').next()?.parse().ok()
}

pub fn role<'a>(reports: &'a [WorkerReport], role: &str) -> Vec<&'a WorkerReport> {
    let found: Vec<&WorkerReport> = reports.iter().filter(|report| report.role == role).collect();
    assert!(!found.is_empty(), "no {role} among {:?}", reports.iter().map(|r| &r.role).collect::<Vec<_>>());
    found
}

pub fn voluntary_switches(tid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

pub fn samples(report: &WorkerReport, kind: SampleKind) -> u64 {
    report.hist(kind).unwrap().count()
}

#[test]
fn spin_wait_counts_its_steps_and_hardly_ever_sleeps() {
    let (reports, switches) = run(&WorkloadConfig::new(WorkType::SpinWait, 2), 2000);
    for (report, switches) in reports.iter().zip(switches) {
        assert!(report.work_units <= report.iterations * super::BURST_STEPS);
        assert!(report.work_units > (report.iterations - 1) * super::BURST_STEPS);
        // Only the wait at the gate.
        assert!(switches < 20, "{switches}");
    }
    assert_ne!(reports[0].tid, reports[1].tid);
    assert_eq!((reports[0].worker_idx, reports[1].worker_idx), (0, 1));
}

#[test]
fn workers_that_share_a_cpu_see_run_delay_and_gaps() {
    let one: CpuSet = sched::affinity(0).unwrap().iter().take(1).collect();
    let affinity = AffinityIntent::Exact { cpus: one.clone() };
    let config = WorkloadConfig { affinity, ..WorkloadConfig::new(WorkType::SpinWait, 2) };
    let (reports, _) = run(&config, 4000);
    for report in &reports {
        assert_eq!(report.cpus_used, one);
        assert_eq!(report.migration_count, 0);
        assert!(report.max_gap_ns > 0 && report.off_cpu_ns > 0);
        match report.schedstat_run_delay_ns {
            None => not_run("run delay: this kernel counts no schedstat"),
            Some(delay) => {
                assert!(delay > 0 && report.max_run_delay_ns.unwrap() > 0, "{report:?}");
                assert!(report.max_run_delay_ns.unwrap() <= delay, "{report:?}");
                assert!(report.schedstat_cpu_time_ns.unwrap() > 0 && report.schedstat_run_count.unwrap() > 0);
            }
        }
    }
}

#[test]
fn yield_heavy_samples_every_yield() {
    let (reports, _) = run(&WorkloadConfig::new(WorkType::YieldHeavy, 1), 1000);
    assert_eq!(samples(&reports[0], SampleKind::Yield), reports[0].iterations);
    assert_eq!(reports[0].work_units, reports[0].iterations);
}

#[test]
fn bursty_sleeps_between_bursts_and_stops_inside_a_long_sleep() {
    let work = WorkType::Bursty { burst_ns: NS_PER_MS, sleep_ns: 2 * NS_PER_MS };
    let (reports, switches) = run(&WorkloadConfig::new(work, 1), 10);
    assert!(samples(&reports[0], SampleKind::Timer) >= 10);
    assert!(switches[0] >= 10);
    assert!(reports[0].off_cpu_ns >= 10 * 2 * NS_PER_MS);
    let long = WorkType::Bursty { burst_ns: 1, sleep_ns: 3600 * NS_PER_SEC };
    let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(long, 1)).unwrap();
    handle.start().unwrap();
    let deadline = time::monotonic_ns() + 10 * NS_PER_SEC;
    let asleep = |tid: i32| std::fs::read_to_string(format!("/proc/{tid}/stat")).unwrap().contains(") S ");
    while !asleep(handle.tids()[0]) && time::monotonic_ns() < deadline {
        time::sleep_ns(NS_PER_MS).unwrap();
    }
    let reports = handle.stop_and_collect().unwrap();
    assert!(reports[0].completed, "the stop signal did not end the sleep: {:?}", reports[0]);
    assert_eq!(samples(&reports[0], SampleKind::Timer), 0);
}

#[test]
fn pipe_io_partners_progress_together_and_wake_each_other() {
    let config = WorkloadConfig::new(WorkType::PipeIo { burst_iters: 64 }, 4);
    let (reports, switches) = run(&config, 300);
    for pair in reports.chunks(2) {
        assert!(pair[0].iterations.abs_diff(pair[1].iterations) <= 2, "{pair:?}");
        let wakes: u64 = pair.iter().map(|report| samples(report, SampleKind::Wake)).sum();
        assert!(wakes > 0);
        assert!(pair.iter().all(|r| samples(r, SampleKind::Wake) == samples(r, SampleKind::Block)));
    }
    assert!(switches.iter().sum::<u64>() >= 300, "{switches:?}");
}

/// Its last burst begins before the stop and ends after it.
#[test]
fn spinner_that_was_kept_from_the_cpu_until_after_the_stop_has_a_gap() {
    for _ in 0..3 {
        let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::SpinWait, 1)).unwrap();
        handle.start().unwrap();
        wait_for("work", || handle.snapshot_iterations()[0] > 0);
        let pid = handle.tids()[0];
        crate::sys::process::kill(pid, libc::SIGSTOP).unwrap();
        time::sleep_ns(100 * NS_PER_MS).unwrap();
        handle.request_stop().unwrap();
        crate::sys::process::kill(pid, libc::SIGCONT).unwrap();
        let reports = handle.stop_and_collect().unwrap();
        assert!(reports[0].completed && reports[0].max_gap_ns >= 90 * NS_PER_MS, "{reports:?}");
    }
}

#[test]
fn futex_pairs_take_turns_and_sleep_every_turn() {
    let config = WorkloadConfig::new(WorkType::FutexPingPong { spin_iters: 64 }, 4);
    // On one CPU the partner may be back before a worker would sleep, many turns in a row.
    let all_woken = |handle: &WorkloadHandle| {
        let woken =
            |counters: &Counters| counters.samples.iter().any(|(kind, h)| *kind == SampleKind::Wake && h.count() > 0);
        handle.counters().iter().all(woken) && handle.tids().iter().all(|tid| voluntary_switches(*tid) >= 100)
    };
    let (reports, switches) = run_until(&config, 300, all_woken);
    for (pair, switches) in reports.chunks(2).zip(switches.chunks(2)) {
        assert!(pair[0].iterations.abs_diff(pair[1].iterations) <= 1, "{pair:?}");
        assert!(pair.iter().all(|report| samples(report, SampleKind::Wake) > 0), "{pair:?}");
        assert!(switches.iter().sum::<u64>() >= 100, "{switches:?}");
        let block = pair[0].hist(SampleKind::Block).unwrap();
        assert!(block.max_ns() >= pair[0].hist(SampleKind::Wake).unwrap().min_ns());
    }
}

#[test]
fn partner_of_a_killed_pipe_worker_still_reports() {
    let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::PipeIo { burst_iters: 64 }, 2)).unwrap();
    handle.start().unwrap();
    crate::sys::process::kill(handle.tids()[0], libc::SIGKILL).unwrap();
    let reports = handle.stop_and_collect().unwrap();
    assert!(!reports[0].completed && reports[1].completed, "{reports:?}");
}

#[test]
fn settings_are_applied_and_refusals_reported() {
    // A CPU that the kernel does not have, past our own check.
    let far: CpuSet = [8000].into_iter().collect();
    let mut batch = WorkSpec::new(WorkType::YieldHeavy, 1);
    batch.setup.policy = SchedPolicy::Batch;
    let config = WorkloadConfig {
        affinity: AffinityIntent::Exact { cpus: far.clone() },
        pool: Some(far),
        nice: 5,
        composed: vec![batch],
        ..WorkloadConfig::default()
    };
    let mut handle = WorkloadHandle::spawn(&config).unwrap();
    handle.start().unwrap();
    let tids = handle.tids();
    let deadline = time::monotonic_ns() + 10 * NS_PER_SEC;
    while handle.snapshot_iterations().contains(&0) {
        assert!(time::monotonic_ns() < deadline);
        time::sleep_ns(NS_PER_MS).unwrap();
    }
    assert_eq!(sched::policy_number(tids[1]).unwrap(), libc::SCHED_BATCH);
    let one: CpuSet = sched::affinity(0).unwrap().iter().take(1).collect();
    handle.set_affinity(1, &one).unwrap();
    assert_eq!(sched::affinity(tids[1]).unwrap(), one);
    let refused = |worker, cpus| handle.set_affinity(worker, cpus).unwrap_err().to_string();
    assert!(refused(7, &one).contains("there are 2 workers"));
    assert!(refused(1, &CpuSet::new()).contains("no CPU is named for worker 1"));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", tids[0])).unwrap();
    // Field 19 of proc_pid_stat(5) is the nice value; the name in brackets holds no space.
    assert_eq!(stat.split(' ').nth(18), Some("5"));
    assert!(stat.contains("(kw0-spin)"));
    let reports = handle.stop_and_collect().unwrap();
    assert_eq!(reports[0].affinity_error.as_deref(), Some("invalid argument (errno 22)"));
    assert_eq!((reports[0].group_idx, reports[1].group_idx), (0, 1));
    assert_eq!((reports[1].work_type.as_str(), reports[1].role.as_str()), ("YieldHeavy", "plain"));
}

#[test]
fn no_workers_give_no_reports() {
    let handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::SpinWait, 0)).unwrap();
    assert!(handle.snapshot_iterations().is_empty());
    assert!(handle.stop_and_collect().unwrap().is_empty());
}

/// Every type that needs neither a partner core nor a cgroup2 mount nor a user's function begins, works and ends when told.
#[test]
fn every_type_works_and_stops() {
    for info in types().filter(|info| !["SmtSiblingSpin", "CgroupChurn", "Custom"].contains(&info.name)) {
        let work = info.default.clone();
        let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(work.clone(), work.worker_group_size())).unwrap();
        handle.start().unwrap();
        let deadline = time::monotonic_ns() + 20 * NS_PER_SEC;
        while handle.snapshot_iterations().contains(&0) {
            assert!(time::monotonic_ns() < deadline, "{}: no progress", info.name);
            assert_eq!(handle.check_early_exits(), [], "{}", info.name);
            time::sleep_ns(NS_PER_MS).unwrap();
        }
        let begin = time::monotonic_ns();
        for report in handle.stop_and_collect().unwrap() {
            assert!(report.completed && report.work_units > 0, "{report:?}");
            let kinds: Vec<SampleKind> = report.samples.iter().map(|samples| samples.kind).collect();
            assert_eq!(kinds, info.sample_kinds, "{}", info.name);
        }
        assert!(time::monotonic_ns() - begin < 4 * NS_PER_SEC, "{} was slow to stop", info.name);
    }
}
