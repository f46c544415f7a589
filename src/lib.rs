//! ktstr: boots a Linux kernel in a small VM, runs a scheduler and a workload in it, and answers with a verdict.
//!
//! Owns the public API; leaves each system to its module (see DESIGN.md).
//! Invariant: a library user sees the same behaviour as the command line.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]

pub mod cgroup;
pub mod channel;
pub mod cli;
pub mod error;
pub mod guest;
pub mod harness;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod image;
pub mod klog;
pub mod log;
#[cfg(test)]
mod not_run;
pub mod proto;
pub mod report;
pub mod run;
pub mod scenario;
pub mod scx;
pub mod sys;
pub mod units;
pub mod verdict;
pub mod vmm;
pub mod workload;

pub use error::{Error, Result};

/// What a scenario in code needs.
pub mod prelude {
    pub use crate::cgroup::{CgroupGroup, CgroupManager};
    pub use crate::error::{Error, Result};
    pub use crate::harness::{Case, Options, Vm, VmBuilder, VmResult};
    pub use crate::proto::asserted::{AssertResult, AssertStats};
    pub use crate::proto::cpuset::CpuSet;
    pub use crate::proto::hist::Hist;
    pub use crate::proto::limits::{Assert, CheckId, Insist, Limit};
    pub use crate::proto::plan::{CloneMode, MemPolicy, MpolFlags, SchedPolicy, WorkSetup, WorkSpec};
    pub use crate::proto::report::{ExitInfo, Migration, Samples, WorkerReport};
    pub use crate::proto::scenario::{
        AffinityIntent, Backdrop, CgroupDef, Count, CpuMax, CpusetSpec, DefWork, Fraction, HoldSpec, Op, Step, Unit,
    };
    pub use crate::proto::work::{AluWidth, Phase, PiMode, SampleKind, SchedClass, WakeMechanism, WorkType};
    pub use crate::scenario::{
        Ctx, GroupHandle, TestTopology, collect_all, dfl_wl, execute_defs, execute_scenario, execute_steps,
        execute_steps_with, setup_cgroups, spawn_diverse,
    };
    pub use crate::sys::numa::build_nodemask;
    pub use crate::verdict::assert_cgroup;
    pub use crate::workload::{
        ALL_NAMES, AffinityError, ConfigError, CustomTask, EarlyExit, ResolvedAffinity, WorkloadConfig, WorkloadHandle,
        register_custom, suggest,
    };
    pub use std::time::Duration;
}
