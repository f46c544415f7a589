//! Scenarios: what happens to cgroups and workers, in which order.
//!
//! Owns what an author's words mean on a machine, and carrying that out; leaves the transport of reports to guest/.
//! Invariant: every report of every worker reaches the caller, also after an error.

pub mod catalog;
mod ctx;
mod engine;
mod groups;
mod link;
mod ops;
mod parse;
mod payload;
mod phases;
mod resolve;
mod slices;
#[cfg(test)]
mod tests_parse;
mod text;
mod topo;
mod values;
mod words;
mod works;
mod world;

pub use ctx::{Coded, Ctx, CtxParts, EMULATED_WORD, ScenarioFn};
pub use engine::{Around, Finished, SUBTREE, Settings, execute};
pub use groups::{
    GroupHandle, collect_all, dfl_wl, execute_defs, execute_scenario, execute_steps, execute_steps_with, setup_cgroups,
    spawn_diverse,
};
pub use link::Link;
pub use ops::SchedOp;
pub use parse::{FLAGS, FileError, parse, print};
pub use resolve::{GroupPlan, Random, Resolver, validate};
pub use text::{cpuset as cpuset_text, hold as hold_text, op as op_text};
pub use topo::{Llc, TestTopology};
pub use world::HOST;
