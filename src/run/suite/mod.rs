//! Many runs: each a process of its own that runs one VM, as many at once as the host has room for.
//!
//! Owns starting, watching and ending the processes; leaves the room to `budget`, what a run told to `told`, and the rule
//! over the outcomes to verdict/many.
//! Invariant: a run that dies takes nobody along, and no process of a run is left when this returns.

mod budget;
mod dir;
mod engine;
mod told;

pub use budget::{Budget, Cost};
pub use dir::{SUITE_JSON, SUITE_SUMMARY, SuiteDir};
pub use engine::{Cell, CellEnd, Next, Progress, TOLD_FLAG, run};
pub use told::Told;
