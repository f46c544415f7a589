//! The workload engine: groups of forked workers and what they measure.
//!
//! Owns the workers' life from spawn to report; leaves where they live (cgroups) to the callers.
//! Invariant: no error path leaves a worker behind.

mod collect;
mod config;
mod handle;
mod kinds;
mod report;
mod sampler;
mod slot;
mod types;
mod worker;

pub use collect::EarlyExit;
pub use config::{ConfigError, MAX_WORKERS, WorkloadConfig, validate_spec};
pub use handle::WorkloadHandle;
pub use types::{ALL_NAMES, TYPES, TypeInfo, WorkParseError, parse_work, suggest};
