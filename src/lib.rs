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
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod image;
pub mod klog;
pub mod log;
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
