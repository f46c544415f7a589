//! Types about classes, nice values, CPUs and execution units, run for real on this machine.
//!
//! Owns these tests; leaves their helpers to tests.
//! Invariant: what makes a type that type is seen from outside, in /proc or by another call.

use super::tests::*;
use super::tests_cost::own_bytes;
use crate::not_run::not_run;
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::SchedPolicy;
use crate::proto::scenario::AffinityIntent;
use crate::proto::work::{AluWidth, SampleKind, WorkType};
use crate::sys::{sched, time};
use crate::units::NS_PER_MS;
use crate::workload::{Cpus, WorkloadConfig, WorkloadHandle};
use std::collections::BTreeSet;
use std::path::Path;

/// Whether this process may take every real-time priority: CI does not always run as root.
pub fn may_be_real_time() -> bool {
    let may = std::thread::spawn(|| sched::set_policy(0, &SchedPolicy::Fifo { priority: 99 }, 0, false).is_ok());
    let may = may.join().unwrap();
    if !may {
        not_run("no right to a real-time class");
    }
    may
}

/// Looks again and again until so many different values were seen.
fn seen<T: Ord>(what: &str, count: usize, mut look: impl FnMut() -> T) -> BTreeSet<T> {
    let mut values = BTreeSet::new();
    wait_for(what, || {
        values.insert(look());
        values.len() >= count
    });
    values
}

#[test]
fn mixed_workers_on_one_cpu_take_turns_without_sleeping() {
    let config = on_one_cpu(one_group("mixed*2"));
    let reports = watch(&config, 2000, |tids| {
        for tid in tids {
            let forced: u64 = status(*tid, "nonvoluntary_ctxt_switches").parse().unwrap();
            assert!(forced > 20, "{forced}");
            assert!(voluntary_switches(*tid) < 20);
        }
    });
    for report in &reports {
        assert_eq!(samples(report, SampleKind::Yield), report.iterations);
    }
}

#[test]
fn yielding_workers_on_one_cpu_take_turns_without_sleeping() {
    let reports = watch(&on_one_cpu(one_group("yield*2")), 2000, |tids| {
        let forced = |tid: i32| status(tid, "nonvoluntary_ctxt_switches").parse::<u64>().unwrap();
        // The first may be through with its 2000 before the second has begun.
        wait_for("turns", || tids.iter().all(|tid| forced(*tid) > 200));
        assert!(tids.iter().all(|tid| voluntary_switches(*tid) < 20));
    });
    for report in &reports {
        // One unit a yield: where a spinner has work between two looks at the clock, this one has a system call.
        assert_eq!(report.work_units, report.iterations);
        assert_eq!(samples(report, SampleKind::Yield), report.iterations);
    }
}

#[test]
fn idle_churn_sleeps_all_the_time_and_precise_timing_sets_the_slack() {
    for (text, slack) in [("idle-churn(sleep=1ms)", "50000"), ("idle-churn(sleep=1ms,precise_timing=true)", "1")] {
        let reports = watch(&one_group(text), 20, |tids| {
            // A sleep that was preempted just before it began may be over when its turn comes: no switch of its own will.
            assert!(voluntary_switches(tids[0]) >= 10);
            let told = proc_file(tids[0], "timerslack_ns");
            assert!(told.is_empty() || told.trim() == slack, "{text}: {told}");
        });
        assert!(samples(&reports[0], SampleKind::Timer) >= 20);
        assert!(reports[0].off_cpu_ns >= 20_000_000);
    }
}

#[test]
fn preempt_storm_has_one_real_time_task_that_sleeps() {
    if !may_be_real_time() {
        return;
    }
    let reports = watch(&one_group("preempt-storm"), 50, |tids| {
        assert_eq!(sched::policy_number(tids[0]).unwrap(), libc::SCHED_FIFO);
        assert_eq!(stat(tids[0], STAT_RT_PRIORITY), 1);
        assert!(voluntary_switches(tids[0]) >= 50);
        assert!(tids[1..].iter().all(|tid| sched::policy_number(*tid).unwrap() == libc::SCHED_OTHER));
    });
    assert!(samples(role(&reports, "rt")[0], SampleKind::Timer) >= 50);
    assert_eq!(role(&reports, "fair").len(), 2);
    assert!(reports.iter().all(|report| report.refusals().is_empty()), "{reports:?}");
}

#[test]
fn rt_starvation_takes_the_priority_it_was_given() {
    if !may_be_real_time() {
        return;
    }
    let reports = watch(&one_group("rt-starvation(rt_priority=7)"), 20, |tids| {
        assert_eq!(sched::policy_number(tids[0]).unwrap(), libc::SCHED_FIFO);
        assert_eq!(stat(tids[0], STAT_RT_PRIORITY), 7);
        assert_eq!(sched::policy_number(tids[1]).unwrap(), libc::SCHED_OTHER);
    });
    assert_eq!((reports[0].role.as_str(), reports[1].role.as_str()), ("rt", "fair"));
}

/// Nice value and class of a worker that has ended: nobody has waited for it, so the kernel still has them.
fn left_with(handle: &mut WorkloadHandle, tid: i32) -> [i64; 2] {
    handle.request_stop().unwrap();
    wait_for("its end", || status(tid, "State").starts_with('Z'));
    [stat(tid, STAT_NICE), stat(tid, STAT_POLICY)]
}

#[test]
fn nice_sweep_walks_the_nice_values_and_goes_back() {
    let mut handle = WorkloadHandle::spawn(&one_group("nice-sweep nice=3")).unwrap();
    handle.start().unwrap();
    let tid = handle.tids()[0];
    let lowest = if sched::set_nice(tid, -20).is_ok() { 10 } else { 2 };
    let values = seen("nice values", lowest, || stat(tid, STAT_NICE));
    assert!(values.iter().all(|nice| (-20..=19).contains(nice)), "{values:?}");
    let may_go_down = lowest > 2;
    let [nice, _] = left_with(&mut handle, tid);
    assert!(nice == 3 || !may_go_down, "its nice value was 3 and is {nice}");
    let reports = handle.stop_and_collect().unwrap();
    assert_eq!(reports[0].nice_error, None);
    assert_eq!(samples(&reports[0], SampleKind::Yield), reports[0].iterations);
}

#[test]
fn affinity_churn_is_seen_on_one_cpu_at_a_time_and_on_all_in_turn() {
    let all = sched::affinity(0).unwrap();
    let mut handle = WorkloadHandle::spawn(&one_group("affinity-churn")).unwrap();
    handle.start().unwrap();
    let tid = handle.tids()[0];
    wait_for("progress", || handle.snapshot_iterations()[0] > 0);
    let sets = seen("CPUs", all.len().min(2), || status(tid, "Cpus_allowed_list"));
    assert!(sets.iter().all(|set| set.parse::<CpuSet>().unwrap().len() == 1 || all.len() > 1), "{sets:?}");
    // Long enough for some 200 checkpoints, of which about every second one finds another CPU where there are two.
    wait_for("many turns", || handle.snapshot_iterations()[0] > 5000);
    let report = handle.stop_and_collect().unwrap().remove(0);
    assert!(report.cpus_used.is_subset(&all));
    assert!(all.len() == 1 || report.migration_count > 10, "{report:?}");
}

#[test]
fn policy_churn_is_seen_in_several_classes() {
    let mut handle = WorkloadHandle::spawn(&one_group("policy-churn policy=batch nice=4")).unwrap();
    handle.start().unwrap();
    let tid = handle.tids()[0];
    // Normal and batch are everybody's. Where it may be in real time too, the first three seen can be those.
    seen("classes", if may_be_real_time() { 3 } else { 2 }, || sched::policy_number(tid).unwrap());
    let lesser = [libc::SCHED_BATCH, libc::SCHED_IDLE];
    wait_for("a class below the normal one", || lesser.contains(&sched::policy_number(tid).unwrap()));
    assert_eq!(left_with(&mut handle, tid), [4, i64::from(libc::SCHED_BATCH)], "nice value and class it had first");
    let reports = handle.stop_and_collect().unwrap();
    assert_eq!(reports[0].sched_policy_error, None);
}

#[test]
fn alu_width_is_used_lowered_and_told() {
    let reports = watch(&one_group("alu(width=scalar)"), 100, |_| {});
    assert_eq!(reports[0].notice.as_deref(), Some("width scalar"));
    assert_eq!(samples(&reports[0], SampleKind::Cost), reports[0].iterations);
    assert_eq!(reports[0].work_units, reports[0].iterations * 1024);
    let widest = watch(&one_group("alu(width=512)"), 100, |_| {}).remove(0).notice.unwrap();
    let has_it = super::alu::available(AluWidth::Vec512) == AluWidth::Vec512;
    assert_eq!(widest.starts_with("width lowered from 512 to "), !has_it, "{widest}");
}

/// Whether the kernel found 512-bit registers in use when it switched one of two workers of this width out.
fn uses_widest_registers(width: &str) -> bool {
    let config = on_one_cpu(one_group(&format!("alu(width={width})*2")));
    let mut used = false;
    watch(&config, 100, |tids| {
        // What was noted before the loop began is ten ticks old by then.
        time::sleep_ns(100 * NS_PER_MS).unwrap();
        let begin = time::monotonic_ns();
        let forced = |tid: &i32| status(*tid, "nonvoluntary_ctxt_switches").parse::<u64>().unwrap();
        let before: Vec<u64> = tids.iter().map(forced).collect();
        wait_for("turns", || tids.iter().zip(&before).all(|(tid, before)| forced(tid) >= before + 10));
        let noted = |tid: &i32| {
            let text = proc_file(*tid, "arch_status");
            // Milliseconds ago; -1: never.
            let ago: i64 =
                text.lines().find_map(|line| line.strip_prefix("AVX512_elapsed_ms:"))?.trim().parse().ok()?;
            u64::try_from(ago).ok().map(|ago_ms| ago_ms * NS_PER_MS)
        };
        used = tids.iter().filter_map(noted).any(|ago_ns| ago_ns < time::monotonic_ns() - begin);
    });
    used
}

#[test]
fn widest_registers_are_seen_by_the_kernel() {
    let told = proc_file(std::process::id() as i32, "arch_status").contains("AVX512_elapsed_ms:");
    if super::alu::available(AluWidth::Vec512) != AluWidth::Vec512 || !told {
        return not_run("no 512-bit vectors, or a kernel that does not tell of them");
    }
    // A C library that has used the upper sixteen registers before the fork leaves them in use for good.
    if uses_widest_registers("scalar") {
        return not_run("512-bit registers are in use in every process of this C library");
    }
    assert!(uses_widest_registers("512"), "they are not in use");
}

#[test]
fn smt_siblings_share_a_core_or_are_refused() {
    let config = one_group("smt-spin");
    let pairs = Cpus::read(Path::new("/")).pairs(&sched::affinity(0).unwrap());
    if pairs.is_empty() {
        let error = WorkloadHandle::spawn(&config).unwrap_err().to_string();
        assert!(error.contains("no core has two hardware threads"), "{error}");
        return;
    }
    let reports = watch(&config, 100, |tids| {
        let pinned: Vec<u32> = tids.iter().map(|tid| sched::affinity(*tid).unwrap().iter().next().unwrap()).collect();
        assert_eq!(pinned, pairs[0]);
    });
    assert!(reports.iter().all(|report| samples(report, SampleKind::Cost) == report.iterations));
}

#[test]
fn ipc_variance_walks_half_a_mebibyte_of_its_own() {
    if proc_file(std::process::id() as i32, "smaps").is_empty() {
        return not_run("this kernel shows no smaps");
    }
    let mut handle =
        WorkloadHandle::spawn(&one_group("ipc-variance(hot_iters=100,cold_iters=500,period_iters=4)")).unwrap();
    let tid = handle.tids()[0];
    wait_for("its wait at the gate", || proc_file(tid, "comm").starts_with("kw0"));
    let before = own_bytes(tid);
    handle.start().unwrap();
    // 40,000 random words of 128 pages leave none of them out.
    wait_for("20 periods", || handle.snapshot_iterations()[0] >= 20);
    let after = own_bytes(tid);
    let grown = (after - before) >> 10;
    // More where this process meanwhile writes pages of before the fork: the old ones are then the worker's alone.
    assert!(grown >= 512, "{before} bytes before the start, {after} after it");
    assert!(handle.stop_and_collect().unwrap()[0].completed);
}

#[test]
fn ipc_variance_samples_whole_periods_only() {
    let reports = watch(&one_group("ipc-variance(hot_iters=2000,cold_iters=500,period_iters=4)"), 20, |_| {});
    assert_eq!(samples(&reports[0], SampleKind::Cost), reports[0].iterations);
    assert!(reports[0].work_units >= reports[0].iterations * 4 * 2500);
}

/// What a handle without a seed drew can be had again by the one that it tells.
#[test]
fn seed_that_was_not_given_is_drawn_and_told() {
    let affinity = AffinityIntent::Random { count: Some(1) };
    let config = WorkloadConfig { affinity, ..WorkloadConfig::new(WorkType::SpinWait, 8) };
    let places = |config: &WorkloadConfig| {
        let mut handle = WorkloadHandle::spawn(config).unwrap();
        handle.start().unwrap();
        wait_for("progress", || handle.snapshot_iterations().iter().all(|done| *done > 0));
        (handle.seed(), handle.tids().into_iter().map(|tid| sched::affinity(tid).unwrap()).collect::<Vec<_>>())
    };
    let (drawn, first) = places(&config);
    let (other, _) = places(&config);
    assert_ne!(drawn, other, "two draws of 64 bits are alike");
    assert_eq!(places(&WorkloadConfig { seed: Some(drawn), ..config }), (drawn, first));
}

#[test]
fn random_subsets_are_the_seeds_and_of_the_size_asked_for() {
    let all = sched::affinity(0).unwrap();
    let masks = |seed: u64| {
        let affinity = AffinityIntent::Random { count: Some(1) };
        let config = WorkloadConfig { affinity, seed: Some(seed), ..WorkloadConfig::new(WorkType::SpinWait, 8) };
        let mut sets = Vec::new();
        watch(&config, 1, |tids| sets.extend(tids.iter().map(|tid| sched::affinity(*tid).unwrap())));
        sets
    };
    let first = masks(5);
    assert!(first.iter().all(|set| set.len() == 1 && set.is_subset(&all)));
    assert_eq!(first, masks(5));
    // Eight draws from two or more CPUs are alike for two seeds once in 256.
    assert!(all.len() < 2 || (6..10).any(|seed| masks(seed) != first));
}

#[test]
fn every_placement_is_what_the_kernel_allows() {
    let all = sched::affinity(0).unwrap();
    let first: CpuSet = all.iter().take(1).collect();
    for (text, want) in [
        ("spin*1 affinity=single".to_owned(), first.clone()),
        ("spin*1 affinity=each".into(), first.clone()),
        (format!("spin*1 affinity=cpus:{first}"), first),
        ("spin*1 affinity=inherit".into(), all),
    ] {
        watch(&one_group(&text), 1, |tids| assert_eq!(sched::affinity(tids[0]).unwrap(), want, "{text}"));
    }
}

#[test]
fn class_that_the_kernel_refuses_is_told() {
    let all = sched::affinity(0).unwrap();
    if all.len() < 2 {
        return not_run("a deadline task on some CPUs only: there is one CPU");
    }
    // A deadline task must be allowed on all CPUs of its domain (sched(7)); without privilege it is refused anyway.
    let reports = watch(&one_group("spin*1 policy=deadline:1ms:5ms:10ms affinity=single"), 1, |tids| {
        assert_eq!(sched::policy_number(tids[0]).unwrap(), libc::SCHED_OTHER);
    });
    let error = reports[0].sched_policy_error.as_deref().unwrap();
    assert!(error.ends_with("(errno 1)"), "{error}");
    assert_eq!(reports[0].refusals().len(), 1);
}

#[test]
fn classes_asked_for_are_those_the_kernel_has() {
    for (text, class) in [("batch", libc::SCHED_BATCH), ("idle", libc::SCHED_IDLE)] {
        watch(&one_group(&format!("spin*1 policy={text}")), 1, |tids| {
            assert_eq!(sched::policy_number(tids[0]).unwrap(), class);
        });
    }
    if may_be_real_time() {
        for (text, class) in [("fifo:2", libc::SCHED_FIFO), ("rr:3", libc::SCHED_RR)] {
            watch(&one_group(&format!("bursty(burst=1ms,sleep=5ms)*1 policy={text}")), 1, |tids| {
                assert_eq!(sched::policy_number(tids[0]).unwrap(), class);
            });
        }
        watch(&one_group("bursty(burst=1ms,sleep=5ms)*1 policy=deadline:2ms:10ms:20ms"), 1, |tids| {
            assert_eq!(sched::policy_number(tids[0]).unwrap(), libc::SCHED_DEADLINE);
        });
    }
}
