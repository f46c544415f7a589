//! Host noise: the same finding fails on a quiet host and is Inconclusive on one that starved the vCPUs.
//!
//! Owns these tests; leaves findings without noise to tests_checks and tests_cause.
//! Invariant: each excuse has a record just beyond its threshold and one just within.

use super::fixture::{LOCKUP, STALL, add_log, passing, passing_with_scheduler, starve, steal_from_host};
use super::table::defaults;
use super::{Outcome, Status, Verdict, judge};
use crate::proto::message::{SchedFailure, Stage, VmEnd};
use crate::proto::record::{Died, Record};
use crate::proto::report::{ExitInfo, WorkerReport};
use crate::proto::topology::Topology;
use crate::units::{NS_PER_MS, NS_PER_SEC};

/// The passing record with a scenario of 20 s, so that a wait of a second is no tenth of it.
fn long_run() -> Record {
    let mut record = passing_with_scheduler();
    for (stage, at_ns) in record.marks.iter_mut().filter(|(stage, _)| *stage >= Stage::ScenarioEnd) {
        *at_ns = 21 * NS_PER_SEC + *stage as u64 * NS_PER_MS;
    }
    if let Some(end) = &mut record.scenario_end {
        end.elapsed_ns = 20 * NS_PER_SEC;
    }
    record
}

fn judged(record: &Record) -> Verdict {
    judge(record, &defaults())
}

fn status(verdict: &Verdict, name: &str) -> Status {
    verdict.checks.iter().find(|check| check.name == name).unwrap().status
}

fn assert_excused(verdict: &Verdict, words: &str) {
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Inconclusive, 125), "{}", verdict.headline);
    assert!(verdict.headline.contains(words), "{}", verdict.headline);
}

#[test]
fn noise_alone_fails_nothing() {
    let mut record = long_run();
    starve(&mut record, 2 * NS_PER_SEC, 15 * NS_PER_SEC);
    assert_eq!(judged(&record).outcome, Outcome::Pass);
}

#[test]
fn gap_is_void_where_the_host_took_what_was_too_much() {
    let mut record = long_run();
    record.reports[1].1.max_gap_ns = 3 * NS_PER_SEC;
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 5 * NS_PER_SEC, NS_PER_SEC);
    assert_excused(&judged(&record), "the host kept a vCPU waiting for 1.00 s of 3.00 s");
    assert_eq!(status(&judged(&record), "max_gap"), Status::Inconclusive);
    starve(&mut record, 5 * NS_PER_SEC, 999 * NS_PER_MS);
    assert_eq!(status(&judged(&record), "max_gap"), Status::Fail);
    record.reports[1].1.max_gap_ns = NS_PER_SEC;
    record.reports[1].1.max_run_delay_ns = Some(4 * NS_PER_SEC);
    starve(&mut record, 5 * NS_PER_SEC, 2 * NS_PER_SEC);
    assert_eq!(status(&judged(&record), "max_run_delay"), Status::Inconclusive);
}

#[test]
fn waits_of_a_tenth_of_the_scenario_void_every_time() {
    let mut record = long_run();
    record.reports[1].1.max_gap_ns = 9 * NS_PER_SEC;
    record.reports[3].1.cpu_time_ns /= 2;
    starve(&mut record, 2 * NS_PER_SEC, 3 * NS_PER_SEC);
    let verdict = judged(&record);
    assert_eq!((status(&verdict, "max_gap"), status(&verdict, "spread")), (Status::Fail, Status::Pass));
    starve(&mut record, 2 * NS_PER_SEC, 5 * NS_PER_SEC);
    let verdict = judged(&record);
    assert_excused(&verdict, "the vCPUs waited 5.00 s of 40.6 s for the host's CPUs");
    assert!(verdict.checks.iter().all(|check| check.status != Status::Fail));
    // What the host took before the scenario excuses nothing in it.
    starve(&mut record, 0, 300 * NS_PER_MS);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
}

#[test]
fn host_that_lost_a_tenth_to_its_own_hypervisor_voids_every_time() {
    let mut record = long_run();
    record.reports[1].1.max_gap_ns = 9 * NS_PER_SEC;
    steal_from_host(&mut record, 10);
    assert_eq!(status(&judged(&record), "max_gap"), Status::Fail, "no more than a tenth");
    steal_from_host(&mut record, 11);
    let verdict = judged(&record);
    assert_excused(&verdict, "the host's own hypervisor took 11 % of the CPU time that the host wanted");
    // What it took before the scenario excuses nothing in it.
    let noise = record.noise.as_mut().unwrap();
    noise.stolen_us.iter_mut().skip(3).for_each(|us| *us = 0);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
}

#[test]
fn watchdog_stall_is_void_where_the_host_took_half_of_it() {
    let mut record = long_run();
    add_log(&mut record, &STALL);
    record.sched_died = Some(Died { after_ns: NS_PER_SEC, end: None, state: "disabled".into(), text: "x".into() });
    let verdict = judged(&record);
    assert_eq!(verdict.outcome, Outcome::Fail);
    assert!(verdict.headline.contains("runnable task stall"), "{}", verdict.headline);
    // The victim waited for 1.4 s.
    starve(&mut record, 3 * NS_PER_SEC, 699 * NS_PER_MS);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 3 * NS_PER_SEC, 700 * NS_PER_MS);
    let verdict = judged(&record);
    assert_excused(&verdict, "the host kept a vCPU waiting for 700 ms of 1.40 s");
    for name in ["scheduler_alive", "kernel_log_clean"] {
        assert_eq!(status(&verdict, name), Status::Inconclusive, "{name}");
    }
}

#[test]
fn watchdog_without_a_turn_is_void_where_the_host_took_half_of_it() {
    let mut record = long_run();
    add_log(
        &mut record,
        &[
            "sched_ext: BPF scheduler \"raw_drop\" disabled (runnable task stall)",
            "sched_ext: raw_drop: watchdog failed to check in for 1.400s",
        ],
    );
    record.sched_died = Some(Died { after_ns: NS_PER_SEC, end: None, state: "disabled".into(), text: "x".into() });
    starve(&mut record, 3 * NS_PER_SEC, 699 * NS_PER_MS);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 3 * NS_PER_SEC, 700 * NS_PER_MS);
    assert_excused(&judged(&record), "the host kept a vCPU waiting for 700 ms of 1.40 s");
}

#[test]
fn lockup_that_sched_ext_reports_is_void_where_the_kernels_own_report_is() {
    let died = Died { after_ns: NS_PER_SEC, end: None, state: "disabled".into(), text: "x".into() };
    let mut record = long_run();
    record.sched_died = Some(died.clone());
    add_log(&mut record, &["rcu: INFO: rcu_preempt self-detected stall on CPU"]);
    add_log(&mut record, &LOCKUP);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    // Beyond a tenth of the scenario.
    starve(&mut record, 2 * NS_PER_SEC, 5 * NS_PER_SEC);
    let verdict = judged(&record);
    assert_excused(&verdict, "the vCPUs waited 5.00 s of 40.6 s for the host's CPUs");
    assert!(verdict.checks.iter().all(|check| check.status != Status::Fail));
    // Emulation voids RCU's report, but not what the kernel did to the scheduler: half of the stall does.
    record.host.as_mut().unwrap().accel = "qemu".into();
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 2 * NS_PER_SEC, 10 * NS_PER_SEC);
    assert_eq!(judged(&record).outcome, Outcome::Inconclusive);
    // Those that say how long are about that long.
    let mut record = long_run();
    record.sched_died = Some(died);
    add_log(&mut record, &[LOCKUP[0], "sched_ext: raw_spin: soft lockup - CPU 0 stuck for 2s"]);
    starve(&mut record, 2 * NS_PER_SEC, 999 * NS_PER_MS);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 2 * NS_PER_SEC, NS_PER_SEC);
    assert_excused(&judged(&record), "the host kept a vCPU waiting for 1.00 s of 2.00 s");
}

#[test]
fn run_that_was_cut_for_a_stall_is_void_where_the_host_took_half_of_it() {
    let stalled = |waited_s: u64, is_told: bool| {
        let mut record = passing_with_scheduler();
        let failed = (SchedFailure::KernelStalled, "the kernel reports a stall: x".to_owned());
        record.sched_failed = is_told.then_some(failed);
        add_log(&mut record, &["watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [scx_enable_help:103]"]);
        (record.sched_enabled, record.sched_final, record.scenario_started) = (None, None, None);
        (record.scenario_end, record.bye) = (None, false);
        record.marks.retain(|(stage, _)| *stage <= Stage::Hello);
        record.reports.clear();
        record.vm_end = Some(VmEnd::Cut { reason: "the kernel reported a stall".into() });
        starve(&mut record, 1_000 * NS_PER_MS, waited_s * 1_000 * NS_PER_MS);
        judge(&record, &defaults())
    };
    let (told, void) = (stalled(9, false), stalled(11, false));
    assert_eq!((told.outcome, told.stopped), (Outcome::Fail, Some("scheduler not enabled")), "{}", told.headline);
    assert!(told.headline.starts_with("BUG: soft lockup - CPU#0 stuck for 22s!"), "{}", told.headline);
    assert_eq!(void.outcome, Outcome::Inconclusive, "{}", void.headline);
    assert!(void.headline.starts_with("the kernel reported a stall; void, as "), "{}", void.headline);
    let told = stalled(11, true);
    assert_eq!(told.outcome, Outcome::Inconclusive, "{}", told.headline);
    assert!(told.headline.contains("a stall: x; void, as "), "{}", told.headline);
}

const SOFT: &str = "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [worker:103]";

#[test]
fn scenario_that_was_cut_for_a_stall_lasted_until_then() {
    let stalled = |waited_s: u64, in_it: bool| {
        let mut record = long_run();
        add_log(&mut record, &[SOFT]);
        let line_ns = record.klog.last().unwrap().time_us * 1000;
        record.scenario_uptime_ns = Some(line_ns + u64::from(!in_it));
        (record.scenario_end, record.sched_final, record.bye) = (None, None, false);
        record.marks.retain(|(stage, _)| ![Stage::ScenarioEnd, Stage::Bye].contains(stage));
        record.reports.clear();
        record.vm_end = Some(VmEnd::Cut { reason: "the kernel reported a stall".into() });
        starve(&mut record, 2 * NS_PER_SEC, waited_s * NS_PER_SEC);
        judged(&record)
    };
    for (waited_s, in_it) in [(4, true), (5, false)] {
        let failed = stalled(waited_s, in_it);
        assert_eq!(failed.outcome, Outcome::Fail, "{}", failed.headline);
    }
    assert_excused(&stalled(5, true), "the vCPUs waited 5.00 s of 40.6 s for the host's CPUs");
}

#[test]
fn share_of_a_scenario_says_nothing_of_a_stall_before_it() {
    let stalled = |in_it: bool| {
        let mut record = passing_with_scheduler();
        add_log(&mut record, &[SOFT]);
        let line_ns = record.klog.last().unwrap().time_us * 1000;
        let start_ns = record.mark(Stage::ScenarioStart).unwrap();
        for (_, at_ns) in record.marks.iter_mut().filter(|(stage, _)| *stage == Stage::ScenarioEnd) {
            *at_ns = start_ns + NS_PER_MS;
        }
        let end = record.scenario_end.as_mut().unwrap();
        end.elapsed_ns = NS_PER_MS;
        end.uptime_ns = line_ns + if in_it { 0 } else { 2 * NS_PER_MS };
        starve(&mut record, start_ns, NS_PER_MS);
        judged(&record)
    };
    assert_eq!(stalled(false).outcome, Outcome::Fail, "{}", stalled(false).headline);
    assert_excused(&stalled(true), "the vCPUs waited 1.00 ms of 2.00 ms");
}

#[test]
fn lockup_is_about_the_time_that_its_line_says() {
    let stalled = |waited_ms: u64| {
        let mut record = long_run();
        add_log(&mut record, &["sched_ext: Soft lockup - CPU 0 stuck for 3s, disabling BPF scheduler"]);
        starve(&mut record, 2 * NS_PER_SEC, waited_ms * NS_PER_MS);
        judged(&record)
    };
    assert_eq!(stalled(1499).outcome, Outcome::Fail, "{}", stalled(1499).headline);
    assert_excused(&stalled(1500), "the host kept a vCPU waiting for 1.50 s of 3.00 s");
    // A task's name says nothing of a time.
    let mut record = long_run();
    add_log(&mut record, &["INFO: task a stuck for 1s:77 blocked for more than 120 seconds."]);
    starve(&mut record, 2 * NS_PER_SEC, NS_PER_SEC);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
}

#[test]
fn start_that_a_stall_ended_is_void_where_the_host_took_half_of_it() {
    let mut record = long_run();
    (record.sched_enabled, record.sched_final) = (None, None);
    record.sched_failed = Some((SchedFailure::ExitedEarly, "it ended with exit code 1".into()));
    add_log(&mut record, &[LOCKUP[0], "sched_ext: raw_spin: soft lockup - CPU 0 stuck for 2s"]);
    starve(&mut record, 0, 999 * NS_PER_MS);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 0, NS_PER_SEC);
    assert_excused(&judged(&record), "void, as the host kept a vCPU waiting for 1.00 s of 2.00 s: runtime error: soft");
    assert_eq!(status(&judged(&record), "scheduler_alive"), Status::Inconclusive);
}

#[test]
fn worker_without_work_is_excused_only_by_half_of_the_scenario() {
    let mut record = long_run();
    let idle = &mut record.reports[0].1;
    (idle.work_units, idle.wall_time_ns) = (0, 20 * NS_PER_SEC);
    starve(&mut record, 2 * NS_PER_SEC, 9 * NS_PER_SEC);
    assert_eq!(status(&judged(&record), "not_starved"), Status::Fail);
    starve(&mut record, 2 * NS_PER_SEC, 10 * NS_PER_SEC);
    assert_excused(&judged(&record), "not_starved: void, as the host kept a vCPU waiting for 10.0 s of 20.0 s");
    let ended = |report: &mut WorkerReport, exit| (report.completed, report.exit_info) = (false, Some(exit));
    let faults: [&dyn Fn(&mut WorkerReport); 5] = [
        &|report| report.completed = false,
        &|report| report.setup_error = Some("x".into()),
        &|report| ended(report, ExitInfo::Exited { code: 1 }),
        &|report| ended(report, ExitInfo::Signaled { signal: 9 }),
        &|report| ended(report, ExitInfo::Panicked { text: "x".into() }),
    ];
    for fault in faults {
        let mut record = record.clone();
        fault(&mut record.reports[1].1);
        assert_eq!(
            status(&judged(&record), "not_starved"),
            Status::Fail,
            "what is not for lack of time is not excused"
        );
    }
    // A crew of 400 ms, of which the host took half.
    let mut record = long_run();
    let idle = &mut record.reports[0].1;
    (idle.work_units, idle.wall_time_ns) = (0, 400 * NS_PER_MS);
    starve(&mut record, 2 * NS_PER_SEC, 150 * NS_PER_MS);
    assert_eq!(status(&judged(&record), "not_starved"), Status::Fail);
    starve(&mut record, 2 * NS_PER_SEC, 200 * NS_PER_MS);
    assert_eq!(status(&judged(&record), "not_starved"), Status::Inconclusive);
}

#[test]
fn report_that_came_too_late_is_excused_only_by_half_of_the_time_to_report() {
    let late = || {
        let mut record = long_run();
        record.reports[1].1 = WorkerReport::sentinel(101, 1, 0, "SpinWait", ExitInfo::TimedOut);
        record
    };
    let mut record = late();
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 15 * NS_PER_SEC, 2400 * NS_PER_MS);
    assert_eq!(status(&judged(&record), "not_starved"), Status::Fail);
    starve(&mut record, 15 * NS_PER_SEC, 2500 * NS_PER_MS);
    assert_excused(&judged(&record), "not_starved: void, as the host kept a vCPU waiting for 2.50 s of 5.00 s");
    // Many CPUs in software have longer.
    let mut many = late();
    let host = many.host.as_mut().unwrap();
    (host.accel, host.topology) = ("qemu".into(), Topology::flat(40));
    starve(&mut many, 15 * NS_PER_SEC, 4900 * NS_PER_MS);
    assert_eq!(status(&judged(&many), "not_starved"), Status::Fail);
    starve(&mut many, 15 * NS_PER_SEC, 5 * NS_PER_SEC);
    assert_excused(&judged(&many), "not_starved: void, as the host kept a vCPU waiting for 5.00 s of 10.0 s");
    // What the host took before the scenario is none of its workers' time.
    let begun_ns = record.mark(Stage::ScenarioStart).unwrap();
    starve(&mut record, 0, begun_ns);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    // One that did no work in all of the scenario has to be excused as well.
    let mut both = late();
    (both.reports[0].1.work_units, both.reports[0].1.wall_time_ns) = (0, 20 * NS_PER_SEC);
    starve(&mut both, 10 * NS_PER_SEC, 5 * NS_PER_SEC);
    assert_eq!(status(&judged(&both), "not_starved"), Status::Fail);
    starve(&mut both, 10 * NS_PER_SEC, 10 * NS_PER_SEC);
    assert_eq!(status(&judged(&both), "not_starved"), Status::Inconclusive);
}

#[test]
fn crash_is_no_stall_and_is_never_excused() {
    let mut record = long_run();
    add_log(&mut record, &["BUG: kernel NULL pointer dereference, address: 0000000000000008"]);
    starve(&mut record, NS_PER_SEC, 19 * NS_PER_SEC);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    let mut record = long_run();
    add_log(&mut record, &["rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"]);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, NS_PER_SEC, 10 * NS_PER_SEC);
    assert_eq!(judged(&record).outcome, Outcome::Inconclusive);
}

/// A run that hung in its scenario and was ended like this 60 s after its start.
fn hung(end: VmEnd) -> Record {
    let mut record = passing();
    record.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
    record.marks.push((Stage::VmEnd, 60 * NS_PER_SEC));
    (record.bye, record.klog_end, record.scenario_end, record.vm_end) = (false, None, None, Some(end));
    record.reports.clear();
    record
}

fn silent() -> Record {
    hung(VmEnd::Silent { for_ns: 20 * NS_PER_SEC, busy_percent: None })
}

#[test]
fn silence_is_void_where_the_host_took_half_of_it_and_not_of_what_was_before() {
    let mut record = silent();
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    // Two thirds of the run, before the silence.
    starve(&mut record, 0, 40 * NS_PER_SEC);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, 50 * NS_PER_SEC, 9900 * NS_PER_MS);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    // A sixth of the run, and half of the silence.
    starve(&mut record, 45 * NS_PER_SEC, 10 * NS_PER_SEC);
    assert_excused(
        &judged(&record),
        "20.0 s (scenario started but no result), and the host kept a vCPU waiting for 10.0 s of 20.0 s",
    );
    // An emulator is given its own time.
    record.host.as_mut().unwrap().accel = "qemu".into();
    assert_eq!(judged(&record).outcome, Outcome::Fail);
}

#[test]
fn idle_hang_is_not_excused_by_waits_that_are_most_of_the_little_that_it_wanted() {
    let mut record = silent();
    starve(&mut record, 45 * NS_PER_SEC, NS_PER_SEC);
    record.noise.as_mut().unwrap().vcpus.iter_mut().for_each(|vcpu| vcpu.run_ns = NS_PER_MS);
    assert!(record.noise.as_ref().unwrap().waited_percent() > Some(90.0));
    assert_eq!(judged(&record).outcome, Outcome::Fail);
}

#[test]
fn deadline_in_a_scenario_is_about_the_time_behind_its_planned_end() {
    let mut record = hung(VmEnd::TimedOut);
    let over_ns = record.mark(Stage::ScenarioStart).unwrap() + 2 * NS_PER_SEC;
    starve(&mut record, 0, over_ns);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    let half_ns = (60 * NS_PER_SEC - over_ns) / 2;
    starve(&mut record, over_ns, half_ns - 1000 * 1000);
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, over_ns + NS_PER_SEC, half_ns);
    assert_excused(
        &judged(&record),
        "killed at the deadline (scenario started but no result), and the host kept a vCPU waiting",
    );
    // One that was not to be over yet owes all of its time.
    record.plan.as_mut().unwrap().duration_ns = 100 * NS_PER_SEC;
    assert_eq!(judged(&record).outcome, Outcome::Fail);
    starve(&mut record, over_ns + NS_PER_SEC, 30 * NS_PER_SEC);
    assert_eq!(judged(&record).outcome, Outcome::Inconclusive);
}

#[test]
fn deadline_outside_of_a_scenario_is_about_the_boot_or_the_time_behind_the_scenario() {
    let mut booting = hung(VmEnd::TimedOut);
    booting.marks.retain(|(stage, _)| *stage < Stage::ScenarioStart || *stage > Stage::Bye);
    booting.scenario_started = None;
    assert_eq!(judged(&booting).outcome, Outcome::Fail);
    starve(&mut booting, 0, 29_900 * NS_PER_MS);
    assert_eq!(judged(&booting).outcome, Outcome::Fail);
    starve(&mut booting, 0, 30 * NS_PER_SEC);
    assert_excused(&judged(&booting), "waiting for 30.0 s of 60.0 s");

    let mut ended = hung(VmEnd::TimedOut);
    ended.marks.push((Stage::ScenarioEnd, 40 * NS_PER_SEC));
    starve(&mut ended, 0, 40 * NS_PER_SEC);
    assert_eq!(judged(&ended).outcome, Outcome::Fail);
    starve(&mut ended, 45 * NS_PER_SEC, 10 * NS_PER_SEC);
    assert_excused(&judged(&ended), "waiting for 10.0 s of 20.0 s");
}
