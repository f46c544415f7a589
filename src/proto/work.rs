//! The work types: what a group of workers does, with its parameters.
//!
//! Owns the values and the words for them; leaves the doing to workload/, and the shell grammar to workload/grammar.
//! Invariant: a work type in a plan has been checked, so the guest need not refuse it.

use crate::wire_enum;

wire_enum! {
    /// What one worker's loop does. Parameters are named here as everywhere, times without their `_ns`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum WorkType {
        /// Spins in bursts of 1024 steps.
        SpinWait = 1,
        /// One unit, then `sched_yield`.
        YieldHeavy = 2,
        /// Spins 1024 steps, then `sched_yield`.
        Mixed = 3,
        /// 16 writes of 4 KiB into its own stripe, then fdatasync.
        IoSyncWrite = 4,
        /// One random read of 4 KiB, past the page cache.
        IoRandRead = 5,
        /// A sequential write, a random read, fdatasync every 16.
        IoConvoy = 6,
        /// Spins for `burst_ns`, sleeps for `sleep_ns`.
        Bursty = 7 { burst_ns: u64, sleep_ns: u64 },
        /// Spins, then exchanges one byte with its partner over a pair of pipes.
        PipeIo = 8 { burst_iters: u64 },
        /// Spins, then hands a futex word to its partner and waits for it to come back.
        FutexPingPong = 9 { spin_iters: u64 },
        /// 1024 read-modify-writes over a buffer, `stride` bytes apart.
        CachePressure = 10 { size_kb: u64, stride: u64 },
        /// The same, then `sched_yield`.
        CacheYield = 11 { size_kb: u64, stride: u64 },
        /// Read-modify-writes over a buffer, then a byte exchanged with its partner.
        CachePipe = 12 { size_kb: u64, burst_iters: u64 },
        /// Position 0 wakes `fan_out` waiters at once by a generation.
        FutexFanOut = 13 { fan_out: u32, spin_iters: u64 },
        /// Position 0 wakes `fan_out` waiters, which sleep, then multiply matrices.
        FanOutCompute = 14 { fan_out: u32, cache_footprint_kb: u64, operations: u64, sleep_ns: u64 },
        /// Phases in order.
        Sequence = 15 { first: Phase, rest: Vec<Phase> },
        /// Forks a child that exits, and waits for it.
        ForkExit = 16,
        /// Spins at one nice value after the other.
        NiceSweep = 17,
        /// Spins, then pins itself to a random CPU of those it began with.
        AffinityChurn = 18 { spin_iters: u64 },
        /// Spins, then takes the next scheduling class.
        PolicyChurn = 19 { spin_iters: u64 },
        /// Touches random pages of a region, gives them back, spins.
        PageFaultChurn = 20 { region_kb: u64, touches_per_cycle: u64, spin_iters: u64 },
        /// Members fight for one futex lock.
        MutexContention = 21 { contenders: u32, hold_iters: u64, work_iters: u64 },
        /// Position 0 wakes all waiters at once, `batches` times.
        ThunderingHerd = 22 { waiters: u32, batches: u64, inter_batch_ns: u64 },
        /// FIFO 70, 50 and 30 around one lock that the low ones hold.
        PriorityInversion = 23 { high: u32, medium: u32, low: u32, hold_iters: u64, work_iters: u64, pi_mode: PiMode },
        /// Producers and consumers around one bounded queue.
        ProducerConsumerImbalance = 24 {
            producers: u32, consumers: u32, produce_rate_hz: u64, consume_iters: u64, queue_depth_target: u64,
        },
        /// Spinning real-time workers beside fair ones.
        RtStarvation = 25 { rt_workers: u32, cfs_workers: u32, rt_priority: u32, burst_iters: u64 },
        /// Position 0 wakes position 1, each in a class of its own.
        AsymmetricWaker = 26 { waker_class: SchedClass, wakee_class: SchedClass, burst_iters: u64 },
        /// A token that goes round a ring of workers.
        WakeChain = 27 { depth: u32, wake: WakeMechanism, work_per_hop_ns: u64 },
        /// Binds a region to one node after the other and touches it.
        NumaWorkingSetSweep = 28 { region_kb: u64, sweep_period_ns: u64, target_nodes: Vec<u32> },
        /// Moves itself between cgroups of its own.
        CgroupChurn = 29 { groups: u32, cycle_ns: u64 },
        /// Partners send each other signals.
        SignalStorm = 30 { signals_per_iter: u64, work_iters: u64 },
        /// Position 0 bursts as FIFO 1 and sleeps, beside spinning fair workers.
        PreemptStorm = 31 { cfs_workers: u32, rt_burst_iters: u64, rt_sleep_ns: u64 },
        /// Producers write an eventfd that consumers wait for with epoll.
        EpollStorm = 32 { producers: u32, consumers: u32, events_per_burst: u64 },
        /// Moves to a random node's CPUs, sleeps, spins.
        NumaMigrationChurn = 33 { period_ns: u64 },
        /// Spins until a deadline, sleeps, so that its CPU goes idle.
        IdleChurn = 34 { burst_ns: u64, sleep_ns: u64, precise_timing: bool },
        /// Four independent multiply streams.
        AluHot = 35 { width: AluWidth },
        /// Pairs that spin on the two threads of one core.
        SmtSiblingSpin = 36,
        /// Hot arithmetic, then cold memory.
        IpcVariance = 37 { hot_iters: u64, cold_iters: u64, period_iters: u64 },
        /// A function of the user's, registered under this name in the same binary.
        Custom = 38 { name: String },
    }
}

wire_enum! {
    /// One part of a `Sequence`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Phase {
        Spin = 0 { ns: u64 },
        Sleep = 1 { ns: u64 },
        Yield = 2 { ns: u64 },
        Io = 3 { ns: u64 },
    }
}

/// A word of the grammar, and what it makes of a time.
type PhaseWord = (&'static str, fn(u64) -> Phase);

impl Phase {
    /// The words of the grammar, with a maker each.
    pub const WORDS: [PhaseWord; 4] = [
        ("spin", |ns| Self::Spin { ns }),
        ("sleep", |ns| Self::Sleep { ns }),
        ("yield", |ns| Self::Yield { ns }),
        ("io", |ns| Self::Io { ns }),
    ];
    pub fn word(&self) -> &'static str {
        match self {
            Self::Spin { .. } => "spin",
            Self::Sleep { .. } => "sleep",
            Self::Yield { .. } => "yield",
            Self::Io { .. } => "io",
        }
    }
    pub fn ns(&self) -> u64 {
        match self {
            Self::Spin { ns } | Self::Sleep { ns } | Self::Yield { ns } | Self::Io { ns } => *ns,
        }
    }
}

/// A value that is one of a few words.
pub trait Word: Copy + PartialEq + 'static {
    /// Every value with its word.
    const WORDS: &'static [(&'static str, Self)];
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
    fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, value)| *value)
    }
}

wire_enum! {
    /// Width of `AluHot`'s registers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum AluWidth {
        /// 64-bit integer registers.
        Scalar = 0,
        Vec128 = 1,
        Vec256 = 2,
        Vec512 = 3,
        /// The widest that the CPU has.
        Widest = 4,
    }
}
impl Word for AluWidth {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("scalar", Self::Scalar),
        ("128", Self::Vec128),
        ("256", Self::Vec256),
        ("512", Self::Vec512),
        ("widest", Self::Widest),
    ];
}

wire_enum! {
    /// A scheduling class without its numbers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum SchedClass {
        Cfs = 0,
        Batch = 1,
        Idle = 2,
        /// FIFO 50.
        Rt = 3,
        /// 1 ms of every 10 ms, within 5 ms.
        Deadline = 4,
        Ext = 5,
    }
}
impl Word for SchedClass {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("cfs", Self::Cfs),
        ("batch", Self::Batch),
        ("idle", Self::Idle),
        ("rt", Self::Rt),
        ("deadline", Self::Deadline),
        ("ext", Self::Ext),
    ];
}

wire_enum! {
    /// How a chain wakes its next member.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum WakeMechanism { Pipe = 0, Futex = 1 }
}
impl Word for WakeMechanism {
    const WORDS: &'static [(&'static str, Self)] = &[("pipe", Self::Pipe), ("futex", Self::Futex)];
}

wire_enum! {
    /// The lock of `PriorityInversion`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum PiMode {
        /// No inheritance: the inversion is there.
        Plain = 0,
        /// FUTEX_LOCK_PI: the owner inherits the waiter's priority.
        Pi = 1,
    }
}
impl Word for PiMode {
    const WORDS: &'static [(&'static str, Self)] = &[("plain", Self::Plain), ("pi", Self::Pi)];
}

wire_enum! {
    /// What a latency sample measures. Kinds are never mixed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum SampleKind {
        /// From the waker's time stamp, taken just before the wake, to the wakee's first instruction after it.
        Wake = 0,
        /// Oversleep: elapsed minus requested.
        Timer = 1,
        /// The whole time blocked, the partner's work included.
        Block = 2,
        /// Time off the CPU in `sched_yield`.
        Yield = 3,
        /// Time in the storage device.
        Io = 4,
        /// Time of one iteration of a fixed amount of work.
        Cost = 5,
        /// Whatever a `Custom` function measures.
        User = 6,
    }
}

impl SampleKind {
    pub const ALL: [Self; 7] = [Self::Wake, Self::Timer, Self::Block, Self::Yield, Self::Io, Self::Cost, Self::User];

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::Timer => "timer",
            Self::Block => "block",
            Self::Yield => "yield",
            Self::Io => "io",
            Self::Cost => "cost",
            Self::User => "user",
        }
    }
}
