//! What a run is told about the kernel's log, about the scheduler's counters, and about faults to provoke.
//!
//! Owns these values and the table of provocations; leaves carrying them out to guest/, judging to verdict/.
//! Invariant: a provocation has one row, and its name is what users type.

use crate::{wire_enum, wire_struct};

wire_enum! {
    /// A fault that the guest brings about on purpose, to see that it is found and named.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Provocation {
        Panic = 0,
        Reboot = 1,
        PowerOff = 2,
        OomKill = 3,
        MemoryHog = 4,
        SchedOff = 5,
        SchedDump = 6,
        SchedKill = 7,
        SchedStop = 8,
        SchedTerm = 9,
        SecondSched = 10,
        CpuOffline = 11,
        WorkerKill = 12,
        WorkerStop = 13,
        KillAll = 14,
        RtHog = 15,
        Pid1Exit = 16,
        Pid1Abort = 17,
        Pid1Panic = 18,
        Pid1Silent = 19,
        SpinAll = 20,
        RingGarbage = 21,
        RingHead = 22,
        ChannelFlood = 23,
        KernelFlood = 24,
        ConsoleFlood = 25,
        FakeLog = 26,
        Backtrace = 27,
        NoBye = 28,
        RtStarve = 29,
        TripleFault = 30,
        HardHang = 31,
        CpusetFlip = 32,
        CpuStop = 33,
    }
}

/// What a provocation is called and does.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub which: Provocation,
    pub name: &'static str,
    pub about: &'static str,
}

const fn row(which: Provocation, name: &'static str, about: &'static str) -> Row {
    Row { which, name, about }
}

/// Every provocation.
pub const PROVOCATIONS: &[Row] = &[
    row(Provocation::Panic, "panic", "panics the kernel (SysRq-c)"),
    row(Provocation::Reboot, "reboot", "resets the machine without a word (SysRq-b)"),
    row(Provocation::PowerOff, "power-off", "powers the machine off (SysRq-o)"),
    row(Provocation::OomKill, "oom-kill", "has the kernel's OOM killer kill a process (SysRq-f)"),
    row(Provocation::MemoryHog, "memory-hog", "takes memory until there is none"),
    row(Provocation::SchedOff, "sched-off", "disables the scheduler from outside (SysRq-S)"),
    row(Provocation::SchedDump, "sched-dump", "asks for a dump of the scheduler (SysRq-D), which harms nothing"),
    row(Provocation::SchedKill, "sched-kill", "kills the scheduler's process (SIGKILL)"),
    row(Provocation::SchedStop, "sched-stop", "stops the scheduler's process (SIGSTOP)"),
    row(Provocation::SchedTerm, "sched-term", "asks the scheduler's process to end (SIGTERM)"),
    row(
        Provocation::SecondSched,
        "second-sched",
        "starts a second scheduler beside the first (EBUSY), which harms nothing",
    ),
    row(Provocation::CpuOffline, "cpu-offline", "takes the last CPU offline"),
    row(Provocation::WorkerKill, "worker-kill", "kills the first worker (SIGKILL)"),
    row(Provocation::WorkerStop, "worker-stop", "stops the first worker for good (SIGSTOP)"),
    row(Provocation::KillAll, "kill-all", "kills every process but PID 1 (SysRq-i)"),
    row(
        Provocation::RtHog,
        "rt-hog",
        "lets a real-time task below PID 1 spin on CPU 0; the kernel leaves a twentieth of it to others",
    ),
    row(Provocation::Pid1Exit, "pid1-exit", "lets PID 1 exit"),
    row(Provocation::Pid1Abort, "pid1-abort", "lets PID 1 abort"),
    row(Provocation::Pid1Panic, "pid1-panic", "lets PID 1 panic as a program"),
    row(Provocation::Pid1Silent, "pid1-silent", "lets PID 1 sleep for ever, while workers go on"),
    row(
        Provocation::SpinAll,
        "spin-all",
        "keeps every CPU from PID 1 and all else by real-time tasks above it that spin for ever; interrupts are served",
    ),
    row(Provocation::RingGarbage, "ring-garbage", "writes garbage into the channel"),
    row(Provocation::RingHead, "ring-head", "damages the head of the channel's ring"),
    row(Provocation::ChannelFlood, "channel-flood", "lets PID 1 send messages without end"),
    row(Provocation::KernelFlood, "kernel-flood", "has the kernel print without end (SysRq-m)"),
    row(
        Provocation::ConsoleFlood,
        "console-flood",
        "lets a process write to the console without end, which harms nothing",
    ),
    row(
        Provocation::FakeLog,
        "fake-log",
        "writes lines that look like the kernel's worst into its log, which harms nothing",
    ),
    row(
        Provocation::Backtrace,
        "backtrace",
        "has the kernel print backtraces of its CPUs (SysRq-l), which harms nothing",
    ),
    row(Provocation::NoBye, "no-bye", "restarts the machine in the middle of the scenario, before the result is told"),
    row(
        Provocation::TripleFault,
        "triple-fault",
        "leaves the kernel for code that faults where no fault can be handled (kexec)",
    ),
    row(
        Provocation::HardHang,
        "hard-hang",
        "leaves the kernel for code that loops for ever on one CPU, interrupts off and all other CPUs stopped (kexec)",
    ),
    row(
        Provocation::RtStarve,
        "rt-starve",
        "lets a real-time task below PID 1 keep all of CPU 0 from everything below it",
    ),
    row(
        Provocation::CpusetFlip,
        "cpuset-flip",
        "gives each cgroup, from now on, all CPUs but those of its cpuset, as often as that is set",
    ),
    row(Provocation::CpuStop, "cpu-stop", "keeps the last CPU from everything, interrupts too, for 1.5 s"),
];

impl Provocation {
    pub fn by_name(name: &str) -> Option<Self> {
        PROVOCATIONS.iter().find(|row| row.name == name).map(|row| row.which)
    }
    pub fn name(self) -> &'static str {
        PROVOCATIONS.iter().find(|row| row.which == self).map_or("", |row| row.name)
    }
}

wire_struct! {
    /// All of it.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Guards {
        pub provoke: Vec<Provocation>,
        /// Texts of kernel log findings that do not count.
        pub allow_log: Vec<String>,
        /// Most that an event counter of sched_ext's may grow by.
        pub max_events: Vec<(String, u64)>,
        /// Most tasks that the scheduler may refuse.
        pub max_rejected: Option<u64>,
        /// The stall timeout that the scheduler under test was given.
        pub watchdog_ms: Option<u32>,
        /// How long the scheduler may take until it is enabled, where the user said so.
        pub enable_timeout_ns: Option<u64>,
        /// Stalls are not what is looked for (--bad-on): one must not end the run before that which is.
        pub stalls_may_be: bool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn every_provocation_has_one_row_and_one_name() {
        for row in PROVOCATIONS {
            assert_eq!(Provocation::by_name(row.name), Some(row.which));
            assert_eq!(row.which.name(), row.name);
            assert_eq!(PROVOCATIONS.iter().filter(|other| other.which == row.which).count(), 1, "{}", row.name);
        }
        // The numbers are dense, so one more than the last is none.
        assert!(Provocation::from_bytes(&[PROVOCATIONS.len() as u8]).is_err());
        assert!(Provocation::from_bytes(&[PROVOCATIONS.len() as u8 - 1]).is_ok());
        assert_eq!(Provocation::by_name("none"), None);
    }

    #[test]
    fn guards_round_trip() {
        let guards = Guards {
            provoke: vec![Provocation::Panic],
            allow_log: vec!["a".into()],
            max_events: vec![("X".into(), 3)],
            max_rejected: Some(0),
            watchdog_ms: Some(5),
            enable_timeout_ns: Some(7),
            stalls_may_be: true,
        };
        assert_eq!(Guards::from_bytes(&guards.to_bytes()).unwrap(), guards);
    }
}
