//! Types about wake-ups, locks, queues and signals, and workers that are threads, run for real on this machine.
//!
//! Owns these tests; leaves their helpers to tests.
//! Invariant: what makes a type that type is seen from outside, in /proc or by another call.

use super::tests::*;
use super::tests_cpu::may_be_real_time;
use crate::proto::plan::CloneMode;
use crate::proto::report::RAW_CAP;
use crate::proto::report::{ExitInfo, WorkerReport};
use crate::proto::work::SampleKind;
use crate::sys::{process, sched};
use crate::workload::{Counters, WorkloadConfig, WorkloadHandle};

fn wakes(report: &WorkerReport) -> u64 {
    samples(report, SampleKind::Wake)
}

#[test]
fn raw_samples_are_those_of_the_histogram_and_kept_only_when_asked_for() {
    let plain = one_group("ping-pong");
    assert!(watch(&plain, 50, |_| {}).iter().all(|report| report.resume_latencies_ns().is_empty()));
    for report in watch(&WorkloadConfig { raw_samples: true, ..plain }, 50, |_| {}) {
        let hist = report.hist(SampleKind::Wake).unwrap();
        let raw = report.resume_latencies_ns();
        assert_eq!(raw.len() as u64, hist.count().min(RAW_CAP as u64));
        assert_eq!(report.wake_sample_total(), hist.count());
        assert_eq!((raw.iter().min().copied(), raw.iter().max().copied()), (hist.min_ns(), hist.max_ns()));
        assert_eq!(report.raw_ns(SampleKind::Block).len(), raw.len());
    }
    let alu = WorkloadConfig { raw_samples: true, ..one_group("alu") };
    let report = watch(&alu, 50, |_| {}).remove(0);
    assert!(!report.iteration_costs_ns().is_empty() && report.resume_latencies_ns().is_empty());
    assert_eq!(report.iteration_cost_sample_total(), report.iterations);
}

#[test]
fn fan_out_wakes_all_its_receivers() {
    let reports = watch(&one_group("fan-out(fan_out=2,spin_iters=64)"), 100, |tids| {
        assert!(tids[1..].iter().all(|tid| voluntary_switches(*tid) > 5));
    });
    let messenger = role(&reports, "messenger")[0];
    assert!(messenger.is_messenger() && wakes(messenger) == 0);
    let receivers = role(&reports, "receiver");
    assert_eq!(receivers.len(), 2);
    assert!(receivers.iter().all(|receiver| wakes(receiver) > 0 && !receiver.is_messenger()), "{reports:?}");
}

#[test]
fn fan_out_compute_multiplies_after_each_wake() {
    let text = "fan-out-compute(fan_out=2,cache_footprint_kb=4,operations=3,sleep=50us)";
    let reports = watch(&one_group(text), 50, |tids| {
        // Each iteration sleeps once and waits once; a sleep as short as this can be over before the CPU was left.
        assert!(tids[1..].iter().all(|tid| voluntary_switches(*tid) >= 10));
    });
    for receiver in role(&reports, "receiver") {
        assert!(receiver.work_units >= (receiver.iterations - 1) * 3, "{receiver:?}");
    }
}

#[test]
fn herd_is_woken_in_batches_and_only_sleeps_after_the_last() {
    let config = one_group("herd(waiters=3,batches=20,inter_batch=2ms)");
    let mut handle = WorkloadHandle::spawn(&config).unwrap();
    handle.start().unwrap();
    wait_for("all batches", || handle.snapshot_iterations()[0] == 20);
    let tids = handle.tids();
    wait_for("sleep", || tids.iter().all(|tid| status(*tid, "State").starts_with('S')));
    let reports = handle.stop_and_collect().unwrap();
    assert_eq!(role(&reports, "waker")[0].iterations, 20);
    for waiter in role(&reports, "waiter") {
        assert!(waiter.iterations <= 20 && wakes(waiter) > 0 && wakes(waiter) <= waiter.iterations, "{waiter:?}");
    }
}

#[test]
fn mutex_contenders_wait_for_each_other() {
    let reports = watch(&one_group("mutex(contenders=3,hold_iters=20000,work_iters=64)"), 30, |tids| {
        wait_for("one in futex(2)", || tids.iter().any(|tid| in_call(*tid) == Some(libc::SYS_futex)));
    });
    let blocked: u64 = reports.iter().map(|report| samples(report, SampleKind::Block)).sum();
    assert!(blocked > 0);
    assert!(reports.iter().all(|report| report.completed));
}

#[test]
fn inversion_has_its_three_priorities_and_inheritance_lends_the_highest() {
    if !may_be_real_time() {
        return;
    }
    for (mode, lends) in [("pi", true), ("plain", false)] {
        let config = on_one_cpu(one_group(&format!("priority-inversion(pi_mode={mode},hold_iters=200000)")));
        let reports = watch(&config, 3, |tids| {
            let priorities: Vec<i64> = tids.iter().map(|tid| stat(*tid, STAT_RT_PRIORITY)).collect();
            assert_eq!(priorities, [70, 50, 30]);
            // The effective priority of a real-time task is -1 - its priority (proc_pid_stat(5)).
            let boosted = || stat(tids[2], STAT_PRIORITY) == -71;
            match lends {
                true => wait_for("the holder inherits", boosted),
                false => assert!((0..200).all(|_| !boosted())),
            }
        });
        assert_eq!(reports.iter().map(|report| report.role.as_str()).collect::<Vec<_>>(), ["high", "medium", "low"]);
        assert!(reports.iter().all(|report| report.completed), "{reports:?}");
    }
}

#[test]
fn queue_loses_and_invents_no_item() {
    let text = "producer-consumer(producers=2,consumers=2,produce_rate_hz=5000,consume_iters=64,queue_depth_target=8)";
    let reports = watch(&one_group(text), 100, |_| {});
    let sum = |name: &str| role(&reports, name).iter().map(|report| report.iterations).sum::<u64>();
    let (put, taken) = (sum("producer"), sum("consumer"));
    // What is still in the ring, and what a consumer had in hand at the stop.
    assert!(taken <= put + 2 && put - taken.min(put) <= 8 + 2, "{put} put in, {taken} taken out");
    assert!(role(&reports, "consumer").iter().map(|report| wakes(report)).sum::<u64>() > 0);
}

#[test]
fn full_queue_makes_producers_wait() {
    let text =
        "producer-consumer(producers=1,consumers=1,produce_rate_hz=1000000,consume_iters=50000,queue_depth_target=2)";
    let reports = watch(&one_group(text), 50, |tids| {
        // It puts in a thousand items while one is taken out, so it hardly does anything but wait for room.
        wait_for("the producer in futex(2)", || in_call(tids[0]) == Some(libc::SYS_futex));
    });
    assert!(samples(role(&reports, "producer")[0], SampleKind::Block) > 0, "{reports:?}");
}

#[test]
fn asymmetric_waker_has_a_class_on_each_side() {
    for (waker, wakee, classes) in [
        ("cfs", "batch", [libc::SCHED_OTHER, libc::SCHED_BATCH]),
        ("batch", "cfs", [libc::SCHED_BATCH, libc::SCHED_OTHER]),
    ] {
        let config = one_group(&format!("asym-waker(waker_class={waker},wakee_class={wakee})"));
        let mut handle = WorkloadHandle::spawn(&config).unwrap();
        handle.start().unwrap();
        // A waiter often finds the next turn there already, and does not sleep for it.
        wait_for("a wake-up", || handle.counters()[1].samples[0].1.count() > 0);
        for (tid, class) in handle.tids().into_iter().zip(classes) {
            assert_eq!(sched::policy_number(tid).unwrap(), class, "{waker} wakes {wakee}");
        }
        let reports = handle.stop_and_collect().unwrap();
        assert_eq!(wakes(role(&reports, "waker")[0]), 0);
        assert!(wakes(role(&reports, "waiter")[0]) > 0);
        assert!(reports.iter().all(|report| report.refusals().is_empty()), "{reports:?}");
    }
}

#[test]
fn chain_passes_one_token_round() {
    /// Two others work 20 us each while one waits.
    const BOTH_OTHERS_NS: u64 = 40_000;
    for mechanism in ["pipe", "futex"] {
        let config = one_group(&format!("wake-chain(depth=3,wake={mechanism},work_per_hop=20us)"));
        let mut handle = WorkloadHandle::spawn(&config).unwrap();
        handle.start().unwrap();
        // Where a woken member takes its waker's CPU at once, the token may be back before the waker waits: no sleep, no sample.
        let waits = |counters: &Counters| counters.samples[1].1.max_ns() > Some(BOTH_OTHERS_NS);
        wait_for("waits for both others", || handle.counters().iter().all(waits));
        assert!(handle.tids().iter().all(|tid| voluntary_switches(*tid) > 0));
        let reports = handle.stop_and_collect().unwrap();
        let most = reports.iter().map(|report| report.iterations).max().unwrap();
        assert!(reports.iter().all(|report| most - report.iterations <= 1), "{mechanism}: {reports:?}");
        for (stage, report) in reports.iter().enumerate() {
            assert_eq!(report.role, format!("stage {stage}"));
            assert!(wakes(report) > 0 && wakes(report) == samples(report, SampleKind::Block), "{report:?}");
        }
    }
}

#[test]
fn epoll_consumers_are_processes_that_share_one_event() {
    let reports = watch(&one_group("epoll-storm"), 50, |tids| {
        wait_for("a consumer in epoll_wait", || {
            let call = tids[1..].iter().find_map(|tid| in_call(*tid));
            call == Some(libc::SYS_epoll_wait) || call == Some(libc::SYS_epoll_pwait)
        });
        assert!(tids.iter().all(|tid| status(*tid, "Tgid") == tid.to_string()));
    });
    assert!(role(&reports, "consumer").iter().all(|consumer| wakes(consumer) > 0), "{reports:?}");
    let producer = role(&reports, "producer")[0];
    assert!(producer.work_units >= producer.iterations * 32);
}

#[test]
fn signal_storm_is_caught_and_does_not_stop_anybody() {
    let config = one_group("signal-storm(signals_per_iter=8,work_iters=64)");
    let reports = watch(&config, 200, |tids| {
        for tid in tids {
            let caught = u64::from_str_radix(&status(*tid, "SigCgt"), 16).unwrap();
            assert_eq!(caught >> (super::signals::STORM_SIGNAL - 1) & 1, 1);
        }
    });
    // Spinning is 64 units an iteration; the rest are signals. Whoever is there first has nobody to send to for a while.
    let sum = |of: fn(&WorkerReport) -> u64| reports.iter().map(of).sum::<u64>();
    let (units, iterations) = (sum(|report| report.work_units), sum(|report| report.iterations));
    assert!(units > iterations * 64 + 200 * 8 - 2 * 64, "{reports:?}");
    assert!(reports.iter().all(|report| report.completed));
}

fn threads(text: &str) -> WorkloadConfig {
    one_group(&format!("{text} clone=thread"))
}

#[test]
fn threads_share_a_process_and_meet_their_partners() {
    for text in ["spin*3", "pipe*1", "ping-pong*1", "epoll-storm*1", "wake-chain(depth=3)*1", "signal-storm*1"] {
        let reports = watch(&threads(text), 20, |tids| {
            let groups: Vec<String> = tids.iter().map(|tid| status(*tid, "Tgid")).collect();
            assert!(groups.iter().all(|group| *group == groups[0]), "{text}: {groups:?}");
            assert!(tids.iter().all(|tid| proc_file(*tid, "comm").starts_with("kw")), "{text}");
        });
        assert!(reports.iter().all(|report| report.completed && report.refusals().is_empty()), "{text}: {reports:?}");
        let mut tids: Vec<i32> = reports.iter().map(|report| report.tid).collect();
        tids.dedup();
        assert_eq!(tids.len(), reports.len(), "{text}");
    }
}

#[test]
fn death_of_one_thread_is_the_end_of_all_and_told_for_each() {
    let config = threads("spin*2");
    assert_eq!(config.clone_mode, CloneMode::Thread);
    let mut handle = WorkloadHandle::spawn(&config).unwrap();
    handle.start().unwrap();
    wait_for("progress", || handle.snapshot_iterations().iter().all(|done| *done > 0));
    let tids = handle.tids();
    process::kill(tids[1], libc::SIGKILL).unwrap();
    let mut early = Vec::new();
    wait_for("both are told", || {
        early.extend(handle.check_early_exits());
        early.len() == 2
    });
    let reports = handle.stop_and_collect().unwrap();
    let killed = Some(ExitInfo::Signaled { signal: libc::SIGKILL });
    assert!(reports.iter().all(|report| report.exit_info == killed), "{reports:?}");
    assert_eq!(reports.iter().map(|report| report.tid).collect::<Vec<_>>(), tids);
}
