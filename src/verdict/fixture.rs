//! Synthetic records for tests: a run that passes, and the means to break one thing in it.
//!
//! Owns the passing record; leaves each fault to its test.
//! Invariant: `passing` and `passing_with_scheduler` are judged Pass, so that a test's fault is the only one.

use crate::proto::guards::Guards;
use crate::proto::hist::Hist;
use crate::proto::limits::Layers;
use crate::proto::message::{HostInfo, ProcessEnd, SchedFinal, Stage, VmEnd, VmStats};
use crate::proto::noise::{HostNoise, VcpuNoise};
use crate::proto::numa::Numa;
use crate::proto::plan::{PROTOCOL, Plan, SchedSpec};
use crate::proto::record::{Enabled, Hello, KlogLine, Record, ScenarioEnd};
use crate::proto::report::{Samples, WorkerReport};
use crate::proto::scenario::{CgroupDef, Count, ScenarioSpec};
use crate::proto::topology::Topology;
use crate::proto::work::{SampleKind, WorkType};
use crate::units::{NS_PER_MS, NS_PER_SEC, NS_PER_US};

/// A worker of `group` that had a good run: half a CPU for two seconds.
pub fn worker(worker_idx: u32) -> WorkerReport {
    let mut hist = Hist::new();
    (1..=100).for_each(|step| hist.record(step * 10_000));
    WorkerReport {
        tid: 100 + worker_idx as i32,
        worker_idx,
        work_type: "PipeIo".into(),
        role: "plain".into(),
        work_units: 5_000_000,
        iterations: 5_000,
        wall_time_ns: 2 * NS_PER_SEC,
        cpu_time_ns: NS_PER_SEC,
        off_cpu_ns: NS_PER_SEC,
        schedstat_run_delay_ns: Some(40 * NS_PER_MS),
        schedstat_run_count: Some(900),
        schedstat_cpu_time_ns: Some(NS_PER_SEC),
        max_run_delay_ns: Some(12 * NS_PER_MS),
        migration_count: 3,
        max_gap_ns: 17 * NS_PER_MS,
        max_gap_cpu: 1,
        max_gap_at_ns: NS_PER_SEC,
        samples: vec![Samples { kind: SampleKind::Wake, hist, raw_ns: Vec::new() }],
        completed: true,
        ..WorkerReport::default()
    }
}

/// A kernel log line of the kernel's own, at level 4.
pub fn kernel_line(time_us: u64, text: &str) -> KlogLine {
    KlogLine { priority: 4, sequence: time_us, time_us, text: text.into() }
}

/// A run of the kernel's own scheduler that passes: 2 cgroups of 2 workers.
pub fn passing() -> Record {
    let group = |name: &str| CgroupDef::new(name, WorkType::PipeIo { burst_iters: 1024 }, Count::fixed(2));
    let stages = [Stage::Exec, Stage::ImageReady, Stage::VmSpawned, Stage::FirstInstruction, Stage::KernelEntry]
        .into_iter()
        .chain([Stage::Pid1, Stage::Hello, Stage::ScenarioStart, Stage::ScenarioEnd, Stage::Bye, Stage::VmEnd])
        .chain([Stage::TornDown]);
    let host = HostInfo {
        version: "0.1.0".into(),
        build: "abc".into(),
        argv: vec!["ktstr".into(), "--kernel".into(), "bzImage".into()],
        accel: "kvm".into(),
        accel_reason: "KVM works".into(),
        kernel: "bzImage".into(),
        kernel_cmdline: "quiet".into(),
        topology: Topology::flat(2),
        memory_bytes: 256 << 20,
        host_cpus: 2,
        started_unix_s: 1_700_000_000,
    };
    let plan = Plan {
        protocol: PROTOCOL,
        build: "abc".into(),
        seed: 42,
        topology: Topology::flat(2),
        numa: Numa::default(),
        sched: None,
        spare_scheds: vec![],
        scenarios: vec![ScenarioSpec::steady(vec![group("g0"), group("g1")])],
        skipped: vec![],
        workers_per_cgroup: None,
        work_override: None,
        duration_ns: 2 * NS_PER_SEC,
        settle_ns: 0,
        modules: vec![],
        limits: Layers::default(),
        disk_bytes: None,
        disk_is_scratch: false,
        raw_samples: false,
        guards: Guards::default(),
    };
    let reports = ["g0", "g1"].into_iter().flat_map(|name| (0..2).map(move |index| (name.to_owned(), worker(index))));
    Record {
        host: Some(host),
        plan: Some(plan),
        marks: stages.enumerate().map(|(index, stage)| (stage, index as u64 * 100 * NS_PER_MS)).collect(),
        hello: Some(Hello {
            kernel: "7.2.13-cloud-amd64".into(),
            online_cpus: 2,
            memory_kib: 220_000,
            pid1_uptime_ns: NS_PER_SEC,
            channel: "ring".into(),
            missing: vec![],
        }),
        klog: vec![
            kernel_line(0, "Linux version 7.2.13-cloud-amd64"),
            kernel_line(900_000, "Run /init as init process"),
        ],
        klog_end: Some((2, 0)),
        scenario_started: Some("steady".into()),
        scenario_uptime_ns: Some(1),
        spawned: vec![("g0".into(), 2), ("g1".into(), 2)],
        reports: reports.collect(),
        scenario_end: Some(ScenarioEnd {
            elapsed_ns: 2 * NS_PER_SEC,
            early: None,
            steal_ns: 0,
            uptime_ns: 2 * NS_PER_SEC,
        }),
        vm_end: Some(VmEnd::Reset),
        stats: Some(VmStats { own_kib: 4096, guest_kib: 90_000, exits: vec![("io".into(), 7)] }),
        bye: true,
        ..Record::default()
    }
}

/// The same with a scheduler under test.
pub fn passing_with_scheduler() -> Record {
    let mut record = passing();
    if let Some(plan) = &mut record.plan {
        plan.sched = Some(SchedSpec {
            name: "builtin:fifo".into(),
            argv: vec!["/init".into()],
            enable_timeout_ns: 10 * NS_PER_SEC,
            stop_timeout_ns: 5 * NS_PER_SEC,
        });
    }
    record.marks.push((Stage::SchedulerEnabled, 650 * NS_PER_MS));
    record.klog.push(kernel_line(1_000_000, "sched_ext: BPF scheduler \"mini_fifo\" enabled"));
    let clean = "sched_ext: BPF scheduler \"mini_fifo\" disabled (unregistered from user space)";
    record.klog.push(kernel_line(4_000_000, clean));
    record.klog_end = Some((4, 0));
    record.sched_enabled = Some(Enabled {
        ops: "mini_fifo".into(),
        enable_seq: 1,
        took_ns: 30 * NS_PER_MS,
        pid: 77,
        switch_all: Some(true),
    });
    record.sched_final = Some(SchedFinal {
        state: "enabled".into(),
        ops: Some("mini_fifo".into()),
        enable_seq: Some(1),
        nr_rejected: Some(0),
        events: vec![("SCX_EV_SELECT_CPU_FALLBACK".into(), 0)],
        end: Some(ProcessEnd::Exited { code: 0 }),
        disabled: true,
        killed: false,
    });
    record
}

/// Adds kernel lines, one millisecond apart, and keeps the log's count right.
pub fn add_log(record: &mut Record, lines: &[&str]) {
    let start = record.klog.last().map_or(0, |line| line.time_us) + 1000;
    for (index, line) in lines.iter().enumerate() {
        record.klog.push(kernel_line(start + 1000 * index as u64, line));
    }
    let kept = record.klog.len() as u64;
    record.klog_end = record.klog_end.map(|(_, lost)| (kept, lost));
}

/// A host that kept one vCPU waiting for `waited_ns` from `from_ns` on (since exec), and no other.
pub fn starve(record: &mut Record, from_ns: u64, waited_ns: u64) {
    const SLOT_NS: u64 = 100 * NS_PER_MS;
    let end_ns = record.mark(Stage::VmEnd).unwrap_or(0).max(from_ns + waited_ns);
    let slots = (0..end_ns.div_ceil(SLOT_NS)).map(|slot| {
        let (start, end) = (slot * SLOT_NS, (slot + 1) * SLOT_NS);
        (end.min(from_ns + waited_ns).saturating_sub(start.max(from_ns)) / NS_PER_US) as u32
    });
    let slots: Vec<u32> = slots.collect();
    let run_ns = end_ns.saturating_sub(waited_ns);
    let starved = VcpuNoise {
        run_ns,
        delay_ns: waited_ns,
        turns: 9,
        worst_delay_ns: waited_ns,
        worst_window_ns: 10 * NS_PER_MS,
        worst_at_ns: from_ns + waited_ns,
        ..VcpuNoise::default()
    };
    record.noise = Some(HostNoise {
        from_ns: 0,
        to_ns: end_ns,
        samples: 100,
        vcpus: vec![starved, VcpuNoise { vcpu: 1, run_ns: end_ns, ..VcpuNoise::default() }],
        slot_ns: SLOT_NS,
        worst_us: slots.clone(),
        sum_us: slots,
        steal_ns: Some(0),
        ..HostNoise::default()
    });
}

/// A host from which its own hypervisor took `percent` of the CPU time that it wanted, from the first to the last.
pub fn steal_from_host(record: &mut Record, percent: u32) {
    starve(record, 0, 0);
    for noise in record.noise.iter_mut() {
        noise.stolen_us = vec![percent * 1000; noise.sum_us.len()];
        noise.busy_us = vec![(100 - percent) * 1000; noise.sum_us.len()];
    }
}

/// What the watchdog says when a scheduler loses a task.
pub const STALL: [&str; 2] = [
    "sched_ext: BPF scheduler \"raw_drop\" disabled (runnable task stall)",
    "sched_ext: raw_drop: kw0.0-spin[184] failed to run for 1.400s",
];

/// What sched_ext says where RCU handed it a stall, of which RCU itself may print nothing.
pub const LOCKUP: [&str; 2] =
    ["sched_ext: BPF scheduler \"raw_spin\" disabled (runtime error)", "sched_ext: raw_spin: RCU CPU stall detected!"];
