//! The workload engine: groups of forked workers and what they measure.
//!
//! Owns the workers' life from spawn to report; leaves where they live (cgroups) to the callers.
//! Invariant: no error path leaves a worker behind.
