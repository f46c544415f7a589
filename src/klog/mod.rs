//! The kernel log: one table of patterns, and what each means.
//!
//! Owns parsing and classification, purely; leaves reading /dev/kmsg to guest/, and the verdict to verdict/.
//! Invariant: hostile lines change nothing but their own classification.

mod classify;
mod line;
pub mod sched_ext;
mod table;
#[cfg(test)]
mod tests_classify;
#[cfg(test)]
mod tests_fixtures;
#[cfg(test)]
mod tests_table;
mod title;

pub use classify::{KernelLog, classify, classify_after, stall};
pub use line::{console_line, is_blank, one_line};
pub use sched_ext::stuck_ms;
pub use table::{PATTERNS, Pattern, lookup};
pub use title::signature;

/// What kind of thing a kernel log line reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    SchedExtState,
    SchedExtExit,
    Panic,
    Oops,
    Bug,
    Warning,
    Lockdep,
    Atomic,
    Sanitizer,
    RcuStall,
    SoftLockup,
    HardLockup,
    HungTask,
    WorkqueueLockup,
    OutOfMemory,
    BootFailure,
    InitKilled,
    Reboot,
    Clock,
    UserCrash,
    Other,
}

impl Class {
    /// The name used in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::SchedExtState => "sched-ext-state",
            Self::SchedExtExit => "sched-ext-exit",
            Self::Panic => "panic",
            Self::Oops => "oops",
            Self::Bug => "bug",
            Self::Warning => "warning",
            Self::Lockdep => "lockdep",
            Self::Atomic => "atomic",
            Self::Sanitizer => "sanitizer",
            Self::RcuStall => "rcu-stall",
            Self::SoftLockup => "soft-lockup",
            Self::HardLockup => "hard-lockup",
            Self::HungTask => "hung-task",
            Self::WorkqueueLockup => "workqueue-lockup",
            Self::OutOfMemory => "out-of-memory",
            Self::BootFailure => "boot-failure",
            Self::InitKilled => "init-killed",
            Self::Reboot => "reboot",
            Self::Clock => "clock",
            Self::UserCrash => "user-crash",
            Self::Other => "other",
        }
    }

    /// A report that rests on elapsed time alone, so that a host which did not run the guest can cause it.
    pub fn is_stall(self) -> bool {
        matches!(self, Self::RcuStall | Self::SoftLockup | Self::HardLockup | Self::HungTask | Self::WorkqueueLockup)
    }

    /// Whether the kernel cannot be trusted to go on after it, so that nothing later excuses it.
    pub fn is_crash(self) -> bool {
        matches!(self, Self::Panic | Self::Oops | Self::Bug | Self::HardLockup | Self::SoftLockup | Self::Reboot)
    }
}

/// What a match means for the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The scheduler, or the kernel under it, misbehaved.
    Fail,
    /// The harness gave the guest too little, so nothing later says anything about the scheduler.
    Harness,
    /// The kernel cannot host the test; counts only while PID 1 was not reached.
    CannotJudge,
    /// The host disturbed the guest's clocks: a timing check that fails is void.
    HostNoise,
    /// Worth showing, not judged.
    Note,
    /// Known and harmless; kept in the table so that the list can be read.
    Ignore,
}

impl Severity {
    /// Whether it may decide a run by itself.
    pub fn is_decisive(self) -> bool {
        matches!(self, Self::Fail | Self::Harness | Self::CannotJudge)
    }

    /// The name used in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Harness => "harness",
            Self::CannotJudge => "cannot-judge",
            Self::HostNoise => "host-noise",
            Self::Note => "note",
            Self::Ignore => "ignore",
        }
    }
}

/// Where a finding was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Index into the record's kernel log.
    Klog(usize),
    /// Line of the console text, from 0.
    Console(usize),
}

/// One thing the kernel reported: its first meaningful line, and the lines that belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub class: Class,
    pub severity: Severity,
    /// One line, without control characters.
    pub title: String,
    /// What it means, in words.
    pub meaning: &'static str,
    /// Kernel time, where the line carries one.
    pub time_us: Option<u64>,
    pub source: Source,
    /// The lines of the block, the first included; bounded.
    pub lines: Vec<String>,
    /// How often the same title came.
    pub repeats: u32,
}
