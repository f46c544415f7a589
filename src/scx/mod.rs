//! sched_ext: the scheduler under test, seen from both sides.
//!
//! Owns starting, watching and stopping it in the guest, and the built-in probe schedulers; leaves judging to verdict/.
//! Invariant: a scheduler that misbehaves is a finding, never a hang.

pub mod asm;
pub mod btf;
pub mod exec_error;
pub mod fold;
pub mod monitor;
pub mod probe;
pub mod start;
pub mod state;
pub mod stop;
pub mod support;
pub mod watch;
