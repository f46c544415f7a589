//! What the workers did between two borders of a scenario, and what else happened in it.
//!
//! Owns the values; leaves taking the counters to workload/ and the borders to scenario/.
//! Invariant: a counter that could not be read is `None`, never 0.

use super::cpuset::CpuSet;
use super::message::ProcessEnd;
use super::report::Samples;
use crate::units::NS_PER_MS;
use crate::wire_struct;

/// After a change of cpuset what is seen belongs to nobody for this long: the kernel has moved the tasks when the write returns,
/// but a scheduler may have one more decision under way.
pub const GRACE_NS: u64 = 50 * NS_PER_MS;

/// The name of the phase before the first step.
pub const BASELINE: &str = "baseline";

wire_struct! {
    /// The workers of one kind in one cgroup, added up over one phase.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct PhaseGroup {
        pub group: String,
        /// Which of the cgroup's works: 0 for the first.
        pub group_idx: u32,
        pub work_type: String,
        /// Workers that were there at some time of the phase.
        pub workers: u32,
        /// Of these, workers that finished no step of work in it.
        pub idle_workers: u32,
        pub work_units: u64,
        pub iterations: u64,
        pub migrations: u64,
        /// CPU time, time runnable but waiting, times run (the kernel's schedstat).
        pub cpu_ns: Option<u64>,
        pub run_delay_ns: Option<u64>,
        pub runs: Option<u64>,
        /// The longest gap that ended in it; none where none was seen to, as no worker had a turn.
        pub max_gap_ns: Option<u64>,
        /// The longest run delay that ended in it.
        pub max_run_delay_ns: Option<u64>,
        /// The least and the most CPU time that one worker got.
        pub least_cpu_ns: Option<u64>,
        pub most_cpu_ns: Option<u64>,
        pub samples: Vec<Samples>,
    }
}

wire_struct! {
    /// One phase of a scenario: its baseline, a step, or the time up to a snapshot. Times count from the scenario's start.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct PhaseReport {
        pub name: String,
        pub from_ns: u64,
        pub to_ns: u64,
        pub groups: Vec<PhaseGroup>,
    }
}

wire_struct! {
    /// Where one worker ran while one cpuset was in force; times under equal cpusets stand together.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CpuSlice {
        pub allowed: CpuSet,
        /// Empty: the worker was not seen to run in this time.
        pub seen: CpuSet,
        /// How long this cpuset was in force, graces left out.
        pub judged_ns: u64,
    }
}

wire_struct! {
    /// Something that was done to the workers or the machine.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Stimulus {
        /// 0: the baseline; 1..: the step.
        pub step: u32,
        /// From the scenario's start.
        pub at_ns: u64,
        pub text: String,
    }
}

wire_struct! {
    /// An external command of a scenario.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PayloadReport {
        pub name: String,
        pub argv: Vec<String>,
        /// None: it could not be started, or not be reaped.
        pub end: Option<ProcessEnd>,
        /// Why it could not be started.
        pub error: Option<String>,
        /// It was killed at its time limit.
        pub timed_out: bool,
        /// It was killed because the scenario said so, or was over.
        pub killed: bool,
        pub took_ns: u64,
        /// The end of what it printed.
        pub output: String,
    }
}
