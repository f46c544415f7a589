//! What users build on: the names, defaults, group sizes and samples of the types, and the names of the library.
//!
//! Owns the table as it was promised, written down a second time; leaves what the types do to kinds/.
//! Invariant: a changed default or a renamed field fails here first.

use crate::prelude::*;
use crate::workload::types;

/// (Rust name, name on the command line, parameters with defaults, members of a group, kinds of sample), in the order of the
/// numbers that plans carry.
const TABLE: [(&str, &str, &str, u32, &[SampleKind]); 38] = {
    use SampleKind::{Block, Cost, Io, Timer, User, Wake, Yield};
    [
        ("SpinWait", "spin", "", 1, &[]),
        ("YieldHeavy", "yield", "", 1, &[Yield]),
        ("Mixed", "mixed", "", 1, &[Yield]),
        ("IoSyncWrite", "io-sync", "", 1, &[Io]),
        ("IoRandRead", "io-rand", "", 1, &[Io]),
        ("IoConvoy", "io-convoy", "", 1, &[Io]),
        ("Bursty", "bursty", "burst=50ms, sleep=100ms", 1, &[Timer]),
        ("PipeIo", "pipe", "burst_iters=1024", 2, &[Wake, Block]),
        ("FutexPingPong", "ping-pong", "spin_iters=1024", 2, &[Wake, Block]),
        ("CachePressure", "cache", "size_kb=32, stride=64", 1, &[]),
        ("CacheYield", "cache-yield", "size_kb=32, stride=64", 1, &[Yield]),
        ("CachePipe", "cache-pipe", "size_kb=32, burst_iters=1024", 2, &[Wake, Block]),
        ("FutexFanOut", "fan-out", "fan_out=4, spin_iters=1024", 5, &[Wake]),
        (
            "FanOutCompute",
            "fan-out-compute",
            "fan_out=4, cache_footprint_kb=256, operations=5, sleep=100us",
            5,
            &[Wake],
        ),
        ("Sequence", "sequence", "spin 1ms", 1, &[Timer, Yield, Io]),
        ("ForkExit", "fork", "", 1, &[Block]),
        ("NiceSweep", "nice-sweep", "", 1, &[Yield]),
        ("AffinityChurn", "affinity-churn", "spin_iters=1024", 1, &[Yield]),
        ("PolicyChurn", "policy-churn", "spin_iters=1024", 1, &[Yield]),
        ("PageFaultChurn", "page-fault", "region_kb=4096, touches_per_cycle=256, spin_iters=64", 1, &[]),
        ("MutexContention", "mutex", "contenders=4, hold_iters=256, work_iters=1024", 4, &[Block]),
        ("ThunderingHerd", "herd", "waiters=7, batches=1000, inter_batch=5ms", 8, &[Wake]),
        (
            "PriorityInversion",
            "priority-inversion",
            "high=1, medium=1, low=1, hold_iters=4096, work_iters=1024, pi_mode=plain",
            3,
            &[Block],
        ),
        (
            "ProducerConsumerImbalance",
            "producer-consumer",
            "producers=2, consumers=1, produce_rate_hz=1000, consume_iters=4096, queue_depth_target=1024",
            3,
            &[Wake, Block],
        ),
        ("RtStarvation", "rt-starvation", "rt_workers=1, cfs_workers=1, rt_priority=50, burst_iters=1024", 2, &[]),
        ("AsymmetricWaker", "asym-waker", "waker_class=cfs, wakee_class=cfs, burst_iters=1024", 2, &[Wake]),
        ("WakeChain", "wake-chain", "depth=4, wake=pipe, work_per_hop=100us", 4, &[Wake, Block]),
        ("NumaWorkingSetSweep", "numa-sweep", "region_kb=4096, sweep_period=100ms, target_nodes=all", 1, &[Timer]),
        ("CgroupChurn", "cgroup-churn", "groups=2, cycle=100ms", 1, &[]),
        ("SignalStorm", "signal-storm", "signals_per_iter=16, work_iters=1024", 2, &[]),
        ("PreemptStorm", "preempt-storm", "cfs_workers=2, rt_burst_iters=1024, rt_sleep=1ms", 3, &[Timer]),
        ("EpollStorm", "epoll-storm", "producers=1, consumers=2, events_per_burst=32", 3, &[Wake, Block]),
        ("NumaMigrationChurn", "numa-churn", "period=100ms", 1, &[Timer]),
        ("IdleChurn", "idle-churn", "burst=1ms, sleep=5ms, precise_timing=false", 1, &[Timer]),
        ("AluHot", "alu", "width=widest", 1, &[Cost]),
        ("SmtSiblingSpin", "smt-spin", "", 2, &[Cost]),
        ("IpcVariance", "ipc-variance", "hot_iters=100000, cold_iters=1024, period_iters=64", 1, &[Cost]),
        ("Custom", "custom", "name=", 1, &[User]),
    ]
};

#[test]
fn every_type_has_the_names_defaults_group_and_samples_that_were_promised() {
    for (name, word, parameters, size, samples) in TABLE {
        let work = WorkType::from_name(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((work.name(), work.cli_name()), (name, word));
        assert_eq!(work.parameters_text(), parameters, "{name}");
        assert_eq!(work.worker_group_size(), size, "{name}");
        assert_eq!(work.sample_kinds(), samples, "{name}");
        assert_eq!(WorkType::from_name(word), Some(work), "{word}");
        assert!(ALL_NAMES.contains(&name));
    }
    assert_eq!(types().count(), TABLE.len());
    assert_eq!(suggest("spni"), Some("spin"));
}

#[test]
fn configuration_has_its_fields_and_defaults() {
    let WorkloadConfig {
        num_workers,
        affinity,
        work_type,
        sched_policy,
        mem_policy,
        mpol_flags,
        nice,
        clone_mode,
        composed,
        ..
    } = WorkloadConfig::default();
    assert_eq!((num_workers, affinity, work_type), (1, AffinityIntent::Inherit, WorkType::SpinWait));
    assert_eq!((sched_policy, mem_policy, mpol_flags), (SchedPolicy::Normal, MemPolicy::Default, MpolFlags::NONE));
    assert_eq!((nice, clone_mode, composed), (0, CloneMode::Fork, Vec::<WorkSpec>::new()));
}

#[test]
fn report_of_a_fan_out_has_every_field_by_its_name() {
    let work_type = WorkType::FutexFanOut { fan_out: 1, spin_iters: 64 };
    let config = WorkloadConfig { num_workers: 2, work_type, raw_samples: true, ..Default::default() };
    let mut handle = WorkloadHandle::spawn(&config).unwrap();
    assert_eq!(handle.tids(), handle.worker_pids());
    handle.set_affinity(0, &crate::sys::sched::affinity(0).unwrap()).unwrap();
    handle.start().unwrap();
    let limit = std::time::Instant::now() + Duration::from_secs(30);
    while handle.snapshot_iterations().iter().any(|done| *done < 5) {
        assert!(std::time::Instant::now() < limit, "no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
    let tids = handle.tids();
    let reports = handle.stop_and_collect().unwrap();
    for (position, report) in reports.iter().enumerate() {
        assert_eq!((report.tid, report.group_idx), (tids[position], 0));
        assert_eq!(
            (report.role.as_str(), report.is_messenger()),
            ([("messenger", true), ("receiver", false)])[position]
        );
        assert!(report.work_units >= report.iterations && report.iterations >= 5);
        assert_eq!(report.off_cpu_ns, report.wall_time_ns.saturating_sub(report.cpu_time_ns));
        let counted = [report.schedstat_run_delay_ns, report.schedstat_run_count, report.schedstat_cpu_time_ns];
        assert!(counted.iter().all(|one| one.is_some() == counted[0].is_some()), "{counted:?}");
        assert!(report.migrations.len() as u64 <= report.migration_count && !report.cpus_used.is_empty());
        assert_eq!(
            (report.max_gap_ms(), report.max_gap_at_ms()),
            (report.max_gap_ns / 1_000_000, report.max_gap_at_ns / 1_000_000)
        );
        assert!(report.max_gap_cpu < 8192);
        assert_eq!(report.resume_latencies_ns().len() as u64, report.wake_sample_total().min(100_000));
        assert_eq!((report.iteration_costs_ns().len(), report.iteration_cost_sample_total()), (0, 0));
        assert!(report.vmstat_numa_pages_migrated.is_none() || report.numa_pages.is_some());
        assert!(report.completed && report.exit_info.is_none() && report.setup_error.is_none());
        let errors = [&report.affinity_error, &report.sched_policy_error, &report.nice_error, &report.mem_policy_error];
        assert!(errors.iter().all(|error| error.is_none()), "{errors:?}");
    }
    // What ends a worker in its place, by name.
    let ends = [
        ExitInfo::Exited { code: 1 },
        ExitInfo::Signaled { signal: 9 },
        ExitInfo::TimedOut,
        ExitInfo::WaitFailed { text: "t".into() },
        ExitInfo::Panicked { text: "t".into() },
    ];
    for end in ends {
        let sentinel = WorkerReport::sentinel(7, 0, 2, "SpinWait", end.clone());
        assert_eq!((sentinel.completed, sentinel.group_idx, sentinel.exit_info), (false, 2, Some(end)));
    }
}

#[test]
fn placements_classes_and_memory_policies_have_their_names() {
    let cpus: CpuSet = "0-3".parse().unwrap();
    let intents = [
        AffinityIntent::Inherit,
        AffinityIntent::RandomSubset { from: cpus.clone(), count: None },
        AffinityIntent::LlcAligned,
        AffinityIntent::CrossCgroup,
        AffinityIntent::SingleCpu,
        AffinityIntent::Exact { cpus: cpus.clone() },
        AffinityIntent::SmtSiblingPair,
    ];
    let resolved = [
        ResolvedAffinity::None,
        ResolvedAffinity::Fixed(cpus.clone()),
        ResolvedAffinity::Random { from: cpus.clone(), count: 2 },
        ResolvedAffinity::SingleCpu(0),
    ];
    // A name that goes away, or comes without being named here, does not compile.
    for intent in &intents {
        match intent {
            AffinityIntent::Inherit
            | AffinityIntent::RandomSubset { .. }
            | AffinityIntent::LlcAligned
            | AffinityIntent::CrossCgroup
            | AffinityIntent::SingleCpu
            | AffinityIntent::Exact { .. }
            | AffinityIntent::SmtSiblingPair
            | AffinityIntent::Random { .. }
            | AffinityIntent::OneEach => {}
        }
    }
    for settled in &resolved {
        match settled {
            ResolvedAffinity::None
            | ResolvedAffinity::Fixed(_)
            | ResolvedAffinity::Random { .. }
            | ResolvedAffinity::SingleCpu(_)
            | ResolvedAffinity::OneEach(_)
            | ResolvedAffinity::Pairs(_) => {}
        }
    }
    let classes =
        [SchedClass::Cfs, SchedClass::Batch, SchedClass::Idle, SchedClass::Rt, SchedClass::Deadline, SchedClass::Ext];
    let policies = classes.map(SchedPolicy::from);
    assert_eq!(policies[0], SchedPolicy::Normal);
    assert_eq!(policies[3], SchedPolicy::Fifo { priority: 50 });
    let deadline = SchedPolicy::Deadline { runtime_ns: 1_000_000, deadline_ns: 5_000_000, period_ns: 10_000_000 };
    assert_eq!((&policies[4], &policies[5]), (&deadline, &SchedPolicy::Ext));
    assert_ne!(SchedPolicy::RoundRobin { priority: 1 }, SchedPolicy::Batch);
    let memory = [
        MemPolicy::Default,
        MemPolicy::Local,
        MemPolicy::Preferred { node: 0 },
        MemPolicy::Bind { nodes: cpus.clone() },
        MemPolicy::Interleave { nodes: cpus.clone() },
        MemPolicy::PreferredMany { nodes: cpus.clone() },
        MemPolicy::WeightedInterleave { nodes: cpus },
    ];
    assert_eq!(memory.iter().filter(|policy| !policy.nodes().is_empty()).count(), 5);
    let flags = [MpolFlags::STATIC_NODES, MpolFlags::RELATIVE_NODES, MpolFlags::NUMA_BALANCING];
    assert!(flags.iter().all(|flag| MpolFlags::NONE.union(*flag).has(*flag) && !MpolFlags::NONE.has(*flag)));
}
