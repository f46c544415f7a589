//! The workload engine: groups of forked workers and what they measure.
//!
//! Owns the workers' life from spawn to report; leaves where they live (cgroups) to the callers.
//! Invariant: no error path leaves a worker behind.

mod affinity;
mod collect;
mod config;
mod grammar;
mod handle;
mod handshake;
mod kinds;
mod observe;
mod pages;
mod report;
mod ring;
#[cfg(test)]
mod ring_tests;
mod rng;
mod sampler;
mod slot;
#[cfg(test)]
mod tests_names;
mod types;
mod worker;

/// The atomics of what loom tries too, which has its own.
mod atomic {
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

pub use affinity::{AffinityError, Cpus, ResolvedAffinity, resolve};
pub use collect::EarlyExit;
pub use config::{ConfigError, MAX_WORKERS, WorkloadConfig, validate_spec};
pub use grammar::{WorkParseError, parse_work, parse_works, parse_workspecs, spec_text};
pub use handle::WorkloadHandle;
pub use kinds::{CustomFn, CustomTask, register_custom};
pub use observe::Counters;
pub use sampler::SchedStat;
pub use types::{ALL_NAMES, TypeInfo, find, suggest, types};
