//! Each check on workers, log and telemetry: made to fail for its reason, to be Inconclusive, and to pass.
//!
//! Owns these tests; leaves the scheduler's check to tests_scheduler, causes to tests_cause.
//! Invariant: every check has a record that fails it.

use super::fixture::{STALL, add_log, passing, passing_with_scheduler, worker};
use super::table::defaults;
use super::{Check, Measure, Outcome, Status, Verdict, judge, judge_stored};
use crate::proto::limits::{Assert, Base, Layers};
use crate::proto::message::VmEnd;
use crate::proto::record::Record;
use crate::proto::report::{ExitInfo, WorkerReport};
use crate::proto::topology::Topology;
use crate::units::{NS_PER_MS, NS_PER_SEC};

/// One thing that goes wrong in a record.
type Fault = fn(&mut Record);

fn run(change: impl FnOnce(&mut Record)) -> Verdict {
    let mut record = passing();
    change(&mut record);
    judge(&record, &defaults())
}

/// The check of this name that came out worst.
fn check(verdict: &Verdict, name: &str) -> Check {
    let named = verdict.checks.iter().filter(|check| check.name == name);
    named.max_by_key(|check| (check.status.outcome(), check.status == Status::Pass)).unwrap().clone()
}

fn assert_fails(verdict: &Verdict, name: &str, reason: &str) {
    let check = check(verdict, name);
    assert_eq!(check.status, Status::Fail, "{check:?}");
    assert!(check.reason.contains(reason), "{}", check.reason);
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Fail, 1), "{}", verdict.headline);
}

fn assert_inconclusive(verdict: &Verdict, name: &str, reason: &str) {
    let check = check(verdict, name);
    assert_eq!(check.status, Status::Inconclusive, "{check:?}");
    assert!(check.reason.contains(reason), "{}", check.reason);
    assert_ne!(verdict.outcome, Outcome::Pass);
}

#[test]
fn good_run_passes_every_check() {
    let verdict = run(|_| {});
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Pass, 0), "{}", verdict.headline);
    for name in ["not_starved", "max_gap", "max_run_delay", "spread", "kernel_log_clean", "telemetry_complete"] {
        assert_eq!(check(&verdict, name).status, Status::Pass, "{name}");
    }
    assert_eq!(check(&verdict, "scheduler_alive").status, Status::NotApplied);
    assert_eq!(verdict.stopped, None);
}

#[test]
fn failure_behind_many_notes_fails_and_one_that_found_no_room_is_inconclusive() {
    let killed: Vec<String> =
        (0..200).map(|index| format!("Memory cgroup out of memory: Killed process {index} (x)")).collect();
    let behind = |last: &str| {
        let mut lines: Vec<&str> = killed.iter().map(String::as_str).collect();
        lines.push(last);
        run(|record| add_log(record, &lines))
    };
    assert_eq!(behind("x[1]: segfault at 0 ip 0").outcome, Outcome::Pass);
    let verdict = behind("WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2");
    assert_fails(&verdict, "kernel_log_clean", "kernel/x.c:1");
    let traces: Vec<String> = (0..201).map(|index| format!("BUG: KFENCE: allowed {index}")).collect();
    let verdict = run(|record| {
        for text in &traces {
            add_log(record, &["------------[ cut here ]------------", text, "---[ end trace 0 ]---"]);
        }
        record.plan.as_mut().unwrap().guards.allow_log = vec!["allowed".into()];
    });
    assert_inconclusive(&verdict, "kernel_log_clean", "1 findings were beyond");
}

#[test]
fn starved_worker_is_named() {
    let verdict = run(|record| record.reports[3].1.work_units = 0);
    assert_fails(&verdict, "not_starved", "worker 1 of g1, tid 101 (PipeIo) did no work");
    assert!(verdict.headline.contains("worker 1 of g1"), "{}", verdict.headline);
}

/// The last worker of a churn is there for a moment when its scenario ends.
#[test]
fn worker_that_was_hardly_there_is_not_starved() {
    let brief = |record: &mut Record, index: usize, ms: u64| {
        let report = &mut record.reports[index].1;
        (report.work_units, report.wall_time_ns, report.cpu_time_ns) = (0, ms * NS_PER_MS, 0);
    };
    let verdict = run(|record| brief(record, 3, 99));
    assert_eq!(check(&verdict, "not_starved").status, Status::Pass, "{}", verdict.headline);
    assert!(check(&verdict, "not_starved").reason.contains("3 of 4 workers worked, and 1 were not there for 100 ms"));
    assert_fails(&run(|record| brief(record, 3, 100)), "not_starved", "did no work");
    // A worker that was killed is no brief one; one that could not be set up neither.
    let killed = run(|record| {
        brief(record, 3, 1);
        record.reports[3].1.completed = false;
    });
    assert_eq!(check(&killed, "not_starved").status, Status::Fail);
    let refused = run(|record| {
        brief(record, 3, 1);
        record.reports[3].1.setup_error = Some("no memory".into());
    });
    assert_fails(&refused, "not_starved", "could not be set up");
    let all = run(|record| (0..record.reports.len()).for_each(|index| brief(record, index, 50)));
    assert_inconclusive(&all, "not_starved", "no worker worked, nor was there for 100 ms");
}

/// A churn of crews that each end before they can count as starved, beside workers that work.
#[test]
fn crews_that_come_and_go_without_a_turn_leave_no_verdict() {
    let churn = |crews: u32, last: u64| {
        run(|record| {
            // Crews of two, each there for 80 ms.
            let brief = |idx: u32, work_units: u64| {
                let (wall_time_ns, cpu_time_ns) = (80 * NS_PER_MS, NS_PER_MS);
                WorkerReport {
                    worker_idx: idx,
                    group_idx: idx / 2,
                    work_units,
                    wall_time_ns,
                    cpu_time_ns,
                    ..worker(idx)
                }
            };
            let of_last = |idx: u32| if idx + 1 == 2 * crews { last } else { 0 };
            record.reports.extend((0..2 * crews).map(|idx| ("churn".to_owned(), brief(idx, of_last(idx)))));
            record.spawned.push(("churn".into(), 2 * crews));
        })
    };
    let words = "none of 26 workers of churn worked, each there for less than 100 ms, 1.04 s in all";
    assert_inconclusive(&churn(13, 0), "not_starved", words);
    // Two crews are more than a worker alone may be without work.
    assert_inconclusive(&churn(2, 0), "not_starved", "160 ms in all");
    // One that was there for long, and worked, excuses the last few, and not a whole series.
    let beside = |count: u32| {
        run(|record| {
            for index in 1..=count {
                let report = WorkerReport { wall_time_ns: 80 * NS_PER_MS, work_units: 0, ..worker(7 + index) };
                record.reports.push(("g1".into(), WorkerReport { group_idx: 7 + index, ..report }));
            }
            record.spawned[1].1 = 2 + count;
        })
    };
    let kept = beside(2);
    assert_eq!(check(&kept, "not_starved").status, Status::Pass, "{}", check(&kept, "not_starved").reason);
    assert_inconclusive(&beside(13), "not_starved", "none of 13 workers of g1 worked");
    for (crews, last) in [(1, 0), (20, 1)] {
        let verdict = churn(crews, last);
        assert_eq!(verdict.outcome, Outcome::Pass, "{crews}: {}", verdict.headline);
    }
}

#[test]
fn sentinel_fails_with_its_exit() {
    let verdict = run(|record| {
        record.reports[0].1 = WorkerReport::sentinel(100, 0, 0, "PipeIo", ExitInfo::TimedOut);
    });
    assert_fails(&verdict, "not_starved", "did not report before the collection deadline");
}

#[test]
fn absent_reports_are_inconclusive_everywhere() {
    let verdict = run(|record| record.reports.clear());
    for name in ["not_starved", "max_gap", "max_run_delay", "spread", "settings_applied", "telemetry_complete"] {
        assert_eq!(check(&verdict, name).status, Status::Inconclusive, "{name}");
    }
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Inconclusive, 125));
    let verdict = run(|record| drop(record.reports.pop()));
    assert_inconclusive(&verdict, "not_starved", "1 of 2 workers of g1 reported");
}

#[test]
fn gap_above_the_threshold_fails() {
    let verdict = run(|record| record.reports[1].1.max_gap_ns = 2 * NS_PER_SEC + 1);
    assert_fails(&verdict, "max_gap", "worker 1 of g0, tid 101 at 1.00 s on CPU 1");
    assert!(verdict.headline.starts_with("max_gap is 2.00 s, more than 2.00 s"), "{}", verdict.headline);
    let verdict = run(|record| record.reports[1].1.max_gap_ns = 2 * NS_PER_SEC);
    assert_eq!(verdict.outcome, Outcome::Pass);
}

#[test]
fn worker_without_progress_has_no_gap_that_passes() {
    let idle = |record: &mut Record| {
        (record.reports[1].1.work_units, record.reports[1].1.max_gap_ns) = (0, 0);
    };
    let verdict = run(idle);
    assert_fails(&verdict, "not_starved", "did no work");
    let gap = check(&verdict, "max_gap");
    assert_eq!(gap.status, Status::Inconclusive);
    assert!(gap.reason.contains("not measured for worker 1 of g0"), "{}", gap.reason);
    // Another's gap fails all the same.
    let verdict = run(|record| {
        idle(record);
        record.reports[2].1.max_gap_ns = 3 * NS_PER_SEC;
    });
    assert_fails(&verdict, "max_gap", "worker 0 of g1");
    // One that was there for too short to have a turn does not count.
    let verdict = run(|record| {
        idle(record);
        record.reports[1].1.wall_time_ns = 10_000_000;
    });
    assert_eq!(check(&verdict, "max_gap").status, Status::Pass);
}

#[test]
fn run_delay_above_the_threshold_fails_and_absent_is_inconclusive() {
    let verdict = run(|record| record.reports[2].1.max_run_delay_ns = Some(3 * NS_PER_SEC));
    assert_fails(&verdict, "max_run_delay", "worker 0 of g1");
    let verdict = run(|record| record.reports[2].1.max_run_delay_ns = None);
    assert_inconclusive(&verdict, "max_run_delay", "not measured for worker 0 of g1");
    assert_inconclusive(&verdict, "telemetry_complete", "no run delay");
    let verdict = run(|record| {
        record.reports[2].1.max_run_delay_ns = None;
        record.reports[0].1.max_run_delay_ns = Some(3 * NS_PER_SEC);
    });
    assert_fails(&verdict, "max_run_delay", "worker 0 of g0");
}

#[test]
fn unequal_shares_fail_in_their_group_only() {
    let verdict = run(|record| record.reports[3].1.cpu_time_ns = NS_PER_SEC * 6 / 10);
    assert_fails(&verdict, "spread", "30.0 % (tid 101) to 50.0 % (tid 100) in g1");
    let failed: Vec<_> = verdict.checks.iter().filter(|check| check.status == Status::Fail).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].group.as_deref(), Some("g1"));
    assert!(matches!(failed[0].value, Some(Measure::Percent(points)) if (points - 20.0).abs() < 0.01));
    // The groups as wholes may differ.
    let verdict = run(|record| record.reports.iter_mut().skip(2).for_each(|(_, report)| report.cpu_time_ns /= 4));
    assert_eq!(verdict.outcome, Outcome::Pass, "{}", verdict.headline);
}

#[test]
fn spread_compares_only_equals() {
    let verdict = run(|record| {
        record.reports[1].1.role = "waker".into();
        record.reports[1].1.cpu_time_ns = 1;
    });
    let spread: Vec<_> = verdict.checks.iter().filter(|check| check.name == "spread").collect();
    assert_eq!(spread[0].status, Status::NotApplied);
    assert!(spread[0].reason.contains("no two equal workers"));
    assert_eq!(verdict.outcome, Outcome::Pass);
}

/// The last crew of a churn lives for a few slices, and one slice is then many points.
#[test]
fn workers_that_were_hardly_there_are_not_compared() {
    let limits = defaults().merge(&Assert::new().throughput_cv_milli(100));
    let brief = |index: &[usize], ms: u64| {
        let mut record = passing();
        for index in index {
            let report = &mut record.reports[*index].1;
            (report.wall_time_ns, report.cpu_time_ns, report.work_units) = (ms * NS_PER_MS, 0, 1);
        }
        judge(&record, &limits)
    };
    let of_g1 = |verdict: &Verdict, name: &str| {
        verdict.checks.iter().find(|check| check.name == name && check.group.as_deref() == Some("g1")).unwrap().clone()
    };
    for name in ["spread", "throughput_cv"] {
        assert_eq!(of_g1(&brief(&[3], 100), name).status, Status::Fail, "{name}");
        let alone = of_g1(&brief(&[3], 99), name);
        assert_eq!(alone.status, Status::NotApplied, "{alone:?}");
        assert!(alone.reason.contains("no two equal workers to compare; 1 left out, there for less than 100 ms"));
    }
    let mut record = passing();
    record.reports.push(("g1".into(), WorkerReport { wall_time_ns: 10 * NS_PER_MS, ..worker(2) }));
    record.spawned[1].1 = 3;
    let beside = of_g1(&judge(&record, &limits), "spread");
    assert_eq!(beside.status, Status::Pass, "{beside:?}");
    assert!(beside.reason.ends_with("in g1; 1 left out, there for less than 100 ms"), "{}", beside.reason);
}

#[test]
fn spread_without_cpu_time_is_inconclusive() {
    let verdict = run(|record| record.reports[1].1.wall_time_ns = 0);
    assert_inconclusive(&verdict, "spread", "no CPU time from worker 1 of g0");
}

#[test]
fn emulation_voids_timing_but_not_starvation() {
    let emulate = |record: &mut Record| record.host.as_mut().unwrap().accel = "qemu".into();
    let verdict = run(|record| {
        emulate(record);
        record.reports[1].1.max_gap_ns = 9 * NS_PER_SEC;
        record.reports[1].1.max_run_delay_ns = Some(9 * NS_PER_SEC);
        record.reports[1].1.cpu_time_ns = 1;
    });
    assert_eq!(verdict.outcome, Outcome::Pass, "{}", verdict.headline);
    for name in ["max_gap", "max_run_delay", "spread"] {
        let check = check(&verdict, name);
        assert_eq!(check.status, Status::NotApplied);
        assert!(check.reason.contains("software emulation") && check.value.is_some(), "{check:?}");
    }
    let verdict = run(|record| {
        emulate(record);
        record.reports[1].1.work_units = 0;
    });
    assert_fails(&verdict, "not_starved", "did no work");
}

#[test]
fn more_vcpus_than_host_cpus_void_only_the_spread() {
    let verdict = run(|record| {
        record.host.as_mut().unwrap().topology = Topology::flat(4);
        record.reports[1].1.cpu_time_ns = 1;
        record.reports[1].1.max_gap_ns = 9 * NS_PER_SEC;
    });
    assert_eq!(check(&verdict, "spread").status, Status::NotApplied);
    assert!(check(&verdict, "spread").reason.contains("4 vCPUs share 2 host CPUs"));
    assert_fails(&verdict, "max_gap", "worker 1 of g0");
}

#[test]
fn disturbed_clocks_void_a_failed_timing_check_and_no_other() {
    let noise = "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable";
    let verdict = run(|record| {
        add_log(record, &[noise]);
        record.reports[1].1.max_gap_ns = 9 * NS_PER_SEC;
    });
    assert_inconclusive(&verdict, "max_gap", "void, as the guest's clocks were disturbed");
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    let verdict = run(|record| {
        add_log(record, &[noise]);
        record.reports[1].1.work_units = 0;
    });
    assert_fails(&verdict, "not_starved", "did no work");
    assert_eq!(run(|record| add_log(record, &[noise])).outcome, Outcome::Pass);
    // What disturbed the boot disturbed no worker.
    let verdict = run(|record| {
        add_log(record, &[noise]);
        record.reports[1].1.max_gap_ns = 9 * NS_PER_SEC;
        record.scenario_end.as_mut().unwrap().uptime_ns = 1000 * NS_PER_SEC;
    });
    assert_fails(&verdict, "max_gap", "worker 1 of g0");
}

#[test]
fn time_that_the_host_stole_voids_timing_and_stalls_but_no_crash() {
    let steal = |record: &mut Record, percent: u64| {
        let cpus = u64::from(record.host.as_ref().unwrap().topology.total_cpus());
        let end = record.scenario_end.as_mut().unwrap();
        end.steal_ns = end.elapsed_ns * cpus * percent / 100;
    };
    let gap = |percent| {
        run(|record| {
            record.reports[1].1.max_gap_ns = 9 * NS_PER_SEC;
            steal(record, percent);
        })
    };
    assert_fails(&gap(10), "max_gap", "worker 1 of g0");
    assert_inconclusive(&gap(11), "max_gap", "void, as the host took");
    let stall = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/1:1:44]";
    let log = |line: &'static str, percent| {
        run(|record| {
            add_log(record, &[line]);
            steal(record, percent);
        })
    };
    assert_fails(&log(stall, 0), "kernel_log_clean", "soft lockup");
    assert_inconclusive(&log(stall, 50), "kernel_log_clean", "void, as the host took");
    assert_eq!(log(stall, 50).outcome, Outcome::Inconclusive);
    assert_fails(&log("kernel BUG at kernel/sched/core.c:1!", 50), "kernel_log_clean", "kernel BUG");
}

#[test]
fn scheduler_without_the_workers_proves_nothing() {
    let mut record = passing_with_scheduler();
    record.sched_enabled.as_mut().unwrap().switch_all = Some(false);
    let verdict = judge(&record, &defaults());
    assert_eq!(check(&verdict, "scheduler_alive").status, Status::Inconclusive);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
}

#[test]
fn refused_setting_fails_with_its_text() {
    for (change, why) in [
        (
            (|record| record.reports[2].1.sched_policy_error = Some("operation not permitted".into())) as Fault,
            "scheduling policy refused: operation not permitted",
        ),
        (|record| record.reports[2].1.nice_error = Some("permission denied".into()), "nice refused: permission denied"),
        (
            |record| record.reports[2].1.affinity_error = Some("invalid argument".into()),
            "affinity refused: invalid argument",
        ),
        (
            |record| record.reports[2].1.mem_policy_error = Some("invalid argument".into()),
            "memory policy refused: invalid argument",
        ),
    ] {
        assert_fails(&run(change), "settings_applied", why);
        // Whoever expects it may allow it; nothing else is taken from the run.
        let mut record = passing();
        change(&mut record);
        record.plan.as_mut().unwrap().scenarios[0].asserts = vec![("settings-applied".into(), "off".into())];
        let verdict = judge_stored(&record);
        assert_eq!(check(&verdict, "settings_applied").status, Status::NotApplied);
        assert_eq!(verdict.outcome, Outcome::Pass, "{}", verdict.headline);
        // Whoever wants no other check does not.
        record.plan.as_mut().unwrap().scenarios[0].asserts.clear();
        record.plan.as_mut().unwrap().limits.scenario = Assert::none().max_gap_ns(u64::MAX);
        assert_eq!(check(&judge_stored(&record), "settings_applied").status, Status::Fail);
        record.plan.as_mut().unwrap().limits = Layers { base: Base::None, ..Layers::default() };
        let verdict = judge_stored(&record);
        assert_eq!(check(&verdict, "settings_applied").status, Status::Fail);
        assert_eq!(verdict.outcome, Outcome::Fail, "{}", verdict.headline);
    }
}

#[test]
fn kernel_finding_fails_the_log_check() {
    let warning = "WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:1 f+0x1/0x2";
    let verdict = run(|record| add_log(record, &[warning]));
    assert_fails(&verdict, "kernel_log_clean", "WARNING: CPU: 0 PID: 1");
    assert!(verdict.headline.contains("kernel/sched/core.c"), "{}", verdict.headline);
}

#[test]
fn log_without_its_end_is_inconclusive() {
    for (change, why) in [
        ((|record| record.klog_end = None) as Fault, "not read to its end"),
        (|record| record.klog_end = Some((2, 5)), "5 kernel log records were overwritten"),
        (|record| record.klog_end = Some((9, 0)), "7 of 9 kernel log records did not arrive"),
        (|record| record.klog_cut = 3, "3 kernel log records were beyond the cap"),
    ] {
        let verdict = run(change);
        assert_inconclusive(&verdict, "kernel_log_clean", why);
        assert_inconclusive(&verdict, "telemetry_complete", why);
    }
}

#[test]
fn every_missing_piece_of_telemetry_is_inconclusive() {
    for (change, why) in [
        ((|record| record.host = None) as Fault, "host's own facts"),
        (|record| record.plan = None, "plan is missing"),
        (|record| record.scenario_end = None, "scenario's end"),
        (|record| record.scenario_end.as_mut().unwrap().early = Some("stopped".into()), "ended early: stopped"),
        (|record| record.channel_damage.push("CRC32 of frame 3".into()), "CRC32 of frame 3"),
        (|record| record.vm_end = Some(VmEnd::Cut { reason: "x".into() }), "ended early: x"),
    ] {
        let verdict = run(change);
        assert_inconclusive(&verdict, "telemetry_complete", why);
        assert_eq!(verdict.exit_code, 125, "{}", verdict.headline);
    }
    assert_inconclusive(&run(|record| record.bye = false), "telemetry_complete", "goodbye");
}

#[test]
fn switched_off_checks_are_named_as_such() {
    let mut record = passing();
    record.reports[0].1.work_units = 0;
    record.reports[0].1.max_gap_ns = 9 * NS_PER_SEC;
    record.reports[0].1.max_run_delay_ns = Some(9 * NS_PER_SEC);
    record.reports[0].1.cpu_time_ns = 1;
    add_log(&mut record, &["WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2"]);
    let verdict = judge(&record, &Assert::none());
    assert_eq!(verdict.outcome, Outcome::Pass, "{}", verdict.headline);
    let applied = verdict.checks.iter().filter(|check| check.status == Status::Pass).count();
    assert_eq!(applied, 1, "telemetry_complete cannot be switched off");
}

#[test]
fn pass_is_given_only_where_no_check_objects() {
    // Every single fault, and every pair of them: never Pass, and a Fail is never masked by missing data.
    let faults: [(Fault, Status); 7] = [
        (|record| record.reports[0].1.work_units = 0, Status::Fail),
        (|record| record.reports[0].1.max_gap_ns = u64::MAX, Status::Fail),
        (|record| add_log(record, &STALL), Status::Fail),
        (|record| record.klog_end = None, Status::Inconclusive),
        (|record| record.scenario_end = None, Status::Inconclusive),
        (|record| record.channel_damage.push("x".into()), Status::Inconclusive),
        (|record| record.reports[1].1.max_run_delay_ns = None, Status::Inconclusive),
    ];
    for (first, a) in faults {
        for (second, b) in faults {
            let verdict = run(|record| {
                first(record);
                second(record);
            });
            assert_eq!(verdict.outcome, a.outcome().merge(b.outcome()), "{}", verdict.headline);
        }
    }
}
