//! The work types: what a group of workers does, with its parameters.
//!
//! Owns the values and their names; leaves the doing to workload/, and the shell grammar to workload/types.
//! Invariant: a work type in a plan has been checked, so the guest need not refuse it.

use crate::wire_enum;

wire_enum! {
    /// What one worker's loop does. Field names are the parameters' names everywhere.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum WorkType {
        /// Spins in bursts of 1024 steps.
        SpinWait = 1,
        /// One unit, then `sched_yield`.
        YieldHeavy = 2,
        /// Spins for `burst_ns`, sleeps for `sleep_ns`.
        Bursty = 7 { burst_ns: u64, sleep_ns: u64 },
        /// Spins, then exchanges one byte with its partner over a pair of pipes.
        PipeIo = 8 { burst_iters: u64 },
        /// Spins, then hands a futex word to its partner and waits for it to come back.
        FutexPingPong = 9 { spin_iters: u64 },
    }
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
    }
}

impl SampleKind {
    pub const ALL: [Self; 6] = [Self::Wake, Self::Timer, Self::Block, Self::Yield, Self::Io, Self::Cost];

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::Timer => "timer",
            Self::Block => "block",
            Self::Yield => "yield",
            Self::Io => "io",
            Self::Cost => "cost",
        }
    }
}
