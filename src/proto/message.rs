//! The messages between guest and host, and those the host adds to the stored record.
//!
//! Owns what each message says; leaves framing to `frame`, and folding them into one picture to `record`.
//! Invariant: tags are never reused; a change of any field raises `plan::PROTOCOL`.

use super::asserted::AssertResult;
use super::codec::Wire;
use super::cpuset::CpuSet;
use super::noise::HostNoise;
use super::perf::PerfItem;
use super::phase::{PayloadReport, PhaseReport, Stimulus};
use super::plan::Plan;
use super::registers::CpuDump;
use super::report::WorkerReport;
use super::runqueues::RunQueues;
use super::seen::Seen;
use super::topology::Topology;
use super::work::SampleKind;
use crate::{wire_enum, wire_struct};

wire_enum! {
    /// Points of a run, in their order. The host stamps each with its own monotonic clock.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Stage {
        /// ktstr was executed.
        Exec = 0,
        /// The guest image is complete.
        ImageReady = 1,
        /// The process that runs the VM knows what VM that is.
        VmSpawned = 2,
        /// The first vCPU is about to execute its first instruction.
        FirstInstruction = 3,
        /// The kernel's clock started (computed: PID 1's arrival minus the guest's uptime then).
        KernelEntry = 4,
        /// PID 1 executes.
        Pid1 = 5,
        /// The channel is up.
        Hello = 6,
        /// The kernel says that the scheduler under test is enabled.
        SchedulerEnabled = 7,
        /// Workers were started.
        ScenarioStart = 8,
        /// Workers were stopped and collected.
        ScenarioEnd = 9,
        /// The guest said all it had to say.
        Bye = 10,
        /// The VM has ended.
        VmEnd = 11,
        /// The VM's process is gone and its memory returned.
        TornDown = 12,
    }
}

impl Stage {
    /// The name used in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::ImageReady => "image-ready",
            Self::VmSpawned => "vm-spawned",
            Self::FirstInstruction => "first-instruction",
            Self::KernelEntry => "kernel-entry",
            Self::Pid1 => "pid1",
            Self::Hello => "hello",
            Self::SchedulerEnabled => "scheduler-enabled",
            Self::ScenarioStart => "scenario-start",
            Self::ScenarioEnd => "scenario-end",
            Self::Bye => "bye",
            Self::VmEnd => "vm-end",
            Self::TornDown => "torn-down",
        }
    }
}

wire_enum! {
    /// Why a scheduler was not running when the scenario should have begun.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum SchedFailure {
        /// The kernel has no sched_ext, or no BTF: nothing can be judged.
        KernelLacksSchedExt = 0,
        /// The program could not be executed.
        NotExecutable = 1,
        /// It ended before the kernel said `enabled`.
        ExitedEarly = 2,
        /// The kernel's BPF verifier refused it.
        VerifierRejected = 3,
        /// It ran, but the kernel never said `enabled`.
        EnableTimeout = 4,
        /// The kernel enabled it and disabled it again before the scenario began.
        DisabledEarly = 5,
        /// The host asked to stop before the kernel said `enabled`: the run's time was over.
        OutOfTime = 6,
        /// The kernel reported a stall, which settles the verdict, before it said `enabled`.
        KernelStalled = 7,
    }
}

wire_enum! {
    /// How a process ended.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ProcessEnd {
        Exited = 0 { code: i32 },
        Signaled = 1 { signal: i32 },
    }
}

impl ProcessEnd {
    pub fn describe(self) -> String {
        match self {
            Self::Exited { code } => format!("exit code {code}"),
            Self::Signaled { signal } => format!("signal {signal}"),
        }
    }
}

wire_enum! {
    /// How the VM ended.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum VmEnd {
        /// The guest reset itself (i8042, or the emulator's equivalent): the orderly end.
        Reset = 0,
        /// The guest powered off.
        Poweroff = 1,
        /// A triple fault.
        TripleFault = 2,
        /// The deadline passed and the VM was killed.
        TimedOut = 3,
        /// The user interrupted the run.
        Interrupted = 4,
        /// KVM or the emulator could not go on; the text is decoded as far as it can be.
        MachineError = 5 { text: String },
        /// The host ended it early because the verdict was clear.
        Cut = 6 { reason: String },
        /// PID 1 gave no sign of life for so long, and was killed; how busy the VM's process was meanwhile, where that is
        /// known: 100 is one whole CPU.
        Silent = 7 { for_ns: u64, busy_percent: Option<u32> },
    }
}

wire_struct! {
    /// What the host knows about the run before it begins.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct HostInfo {
        pub version: String,
        pub build: String,
        pub argv: Vec<String>,
        /// `kvm` or `qemu`.
        pub accel: String,
        pub accel_reason: String,
        pub kernel: String,
        pub kernel_cmdline: String,
        pub topology: Topology,
        pub memory_bytes: u64,
        pub host_cpus: u32,
        pub started_unix_s: u64,
    }
}

wire_struct! {
    /// Memory and exits of the VM's process.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct VmStats {
        /// Peak resident memory of the VM's process that is not guest memory.
        pub own_kib: u64,
        /// Guest memory that was touched, with kernel and initramfs, which VMs share as long as they do not write to them.
        pub guest_kib: u64,
        /// Exits to user space by kind.
        pub exits: Vec<(String, u64)>,
    }
}

wire_struct! {
    /// The state of the scheduler under test just before it was asked to stop, and how it stopped.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct SchedFinal {
        /// /sys/kernel/sched_ext/state just before the stop.
        pub state: String,
        /// root/ops just before the stop; none where the directory was gone.
        pub ops: Option<String>,
        pub enable_seq: Option<u64>,
        pub nr_rejected: Option<u64>,
        /// root/events just before the stop minus at the start.
        pub events: Vec<(String, i64)>,
        /// How the process ended; none: it could not be reaped.
        pub end: Option<ProcessEnd>,
        /// Whether the state became `disabled` before the deadline.
        pub disabled: bool,
        /// Whether SIGKILL was needed.
        pub killed: bool,
    }
}

wire_enum! {
    /// One message.
    // Messages are few and short-lived; boxing the report would only move its bytes.
    #[allow(clippy::large_enum_variant)]
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Msg {
        /// The guest's first: who it is and what it lacks.
        Hello = 1 {
            protocol: u32,
            build: String,
            kernel: String,
            online: CpuSet,
            memory_kib: u64,
            /// CLOCK_BOOTTIME when PID 1 began.
            pid1_uptime_ns: u64,
            /// `ring` or `serial`.
            channel: String,
            /// What is not there, with the kernel option it may need.
            missing: Vec<String>,
        },
        /// Something the reader of the verdict should know.
        Note = 2 { text: String },
        /// One record of the kernel's log: syslog priority, sequence, kernel time, text with its continuation lines.
        Klog = 3 { priority: u32, sequence: u64, time_us: u64, text: String },
        /// What the scheduler under test printed.
        SchedOutput = 4 { text: String },
        /// The kernel says `enabled`.
        SchedEnabled = 5 {
            ops: String,
            enable_seq: u64,
            took_ns: u64,
            pid: i32,
            /// Whether it schedules all normal tasks, or only those that ask for SCHED_EXT.
            switch_all: Option<bool>,
        },
        /// It could not be brought to that.
        SchedFailed = 6 { why: SchedFailure, text: String },
        /// It went away while the scenario ran.
        SchedDied = 7 { after_ns: u64, end: Option<ProcessEnd>, state: String, text: String },
        /// It was stopped after the scenario.
        SchedStopped = 8 { last: SchedFinal },
        /// Workers are started now.
        ScenarioStart = 9 { name: String, uptime_ns: u64 },
        /// Something was done, or a step began.
        Step = 10 { stimulus: Stimulus },
        /// What one worker of one cgroup measured.
        Report = 11 { group: String, report: WorkerReport },
        /// Some of that worker's samples of one kind as they are; follows its report.
        Raw = 27 { group: String, worker_idx: u32, kind: SampleKind, raw_ns: Vec<u64> },
        /// All workers are collected; `early` says why before the planned time.
        ScenarioEnd = 12 {
            uptime_ns: u64,
            elapsed_ns: u64,
            early: Option<String>,
            /// Time that the host took from the guest's CPUs meanwhile, all CPUs together (steal in /proc/stat).
            steal_ns: u64,
        },
        /// The guest could not do what the plan says.
        GuestError = 13 { stage: String, text: String, cannot_judge: bool },
        /// PID 1 itself panicked.
        Crash = 14 { text: String },
        /// The kernel log was read to its end: records forwarded, records the kernel had overwritten.
        KlogEnd = 15 { records: u64, lost: u64 },
        /// Nothing follows.
        Bye = 16 { uptime_ns: u64 },
        /// Workers of a cgroup were forked: so many reports are owed.
        Spawned = 18 { group: String, workers: u32 },
        /// What follows is about one of several scenarios, until `ScenarioOver`.
        ScenarioBegin = 19 { index: u32 },
        /// It is over; kernel log records forwarded and lost since its beginning.
        ScenarioOver = 20 { index: u32, klog_records: u64, klog_lost: u64 },
        /// What the workers did in a phase.
        Phase = 21 { phase: PhaseReport },
        /// The kernel did not return from a call within the guard's time.
        KernelHang = 22 { text: String },
        /// An external command ended.
        Payload = 23 { report: PayloadReport },
        /// The scheduler under test was stopped by the scenario itself, and must not be running until it is started again.
        SchedDetached = 24 { last: SchedFinal },
        /// A dump of the scheduler's state, as the kernel gave it to its tracepoint.
        SchedDump = 50 { text: String },
        /// The machine as the kernel shows it to PID 1.
        Machine = 40 { seen: Seen },
        /// What a scenario that is code said of its run.
        Asserted = 26 { result: AssertResult },
        /// What the monitor of the run queues saw in a scenario.
        Queues = 29 { seen: RunQueues },

        /// Host to guest: end the scenario now, orderly.
        Stop = 64,
        /// Host to guest: have the kernel dump (SysRq-D).
        Dump = 66,

        /// Record only: the run as the host sees it.
        Host = 128 { info: HostInfo },
        /// Record only: the plan.
        Planned = 129 { plan: Plan },
        /// Record only: a stage was reached, nanoseconds after `Exec`.
        Mark = 130 { stage: Stage, at_ns: u64 },
        /// Record only: console text, as it came.
        Console = 131 { text: String },
        /// Record only: how the VM ended.
        VmEnded = 132 { end: VmEnd },
        /// Record only: memory and exits.
        Stats = 133 { stats: VmStats },
        /// Record only: frames that were lost or damaged on the way.
        ChannelDamage = 134 { text: String },
        /// Record only: a warning of the host's.
        HostNote = 135 { text: String },
        /// Record only: how the host treated the vCPUs.
        Noise = 140 { noise: HostNoise },
        /// Record only: what came of performance mode.
        Perf = 142 { items: Vec<PerfItem> },
        /// Record only: where the vCPUs of a guest stood that was killed.
        Registers = 141 { cpus: Vec<CpuDump> },
    }
}

impl Msg {
    /// Whether the guest may send it; what it may not send is a damaged channel.
    pub fn from_guest(&self) -> bool {
        self.to_bytes()[0] < 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_note() {
        let bytes = Msg::Note { text: "hi".into() }.to_bytes();
        assert_eq!(bytes, [2, 2, 0, 0, 0, b'h', b'i']);
        assert_eq!(Msg::from_bytes(&bytes).unwrap(), Msg::Note { text: "hi".into() });
    }

    #[test]
    fn round_trip_and_cut_at_every_byte() {
        let last = SchedFinal {
            state: "enabled".into(),
            ops: Some("mini_fifo".into()),
            enable_seq: Some(1),
            nr_rejected: None,
            events: vec![("SCX_EV_BYPASS_DURATION".into(), -1)],
            end: Some(ProcessEnd::Exited { code: 0 }),
            disabled: true,
            killed: false,
        };
        let message = Msg::SchedStopped { last };
        let bytes = message.to_bytes();
        assert_eq!(Msg::from_bytes(&bytes).unwrap(), message);
        for cut in 0..bytes.len() {
            assert!(Msg::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn guest_may_not_speak_for_the_host() {
        assert!(Msg::Bye { uptime_ns: 1 }.from_guest());
        assert!(!Msg::Mark { stage: Stage::Exec, at_ns: 0 }.from_guest());
        assert!(!Msg::Stop.from_guest());
    }
}
