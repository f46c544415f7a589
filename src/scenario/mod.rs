//! Scenarios: what happens to cgroups and workers, in which order.
//!
//! Owns what an author's words mean on a machine, and carrying that out; leaves the transport of reports to guest/.
//! Invariant: every report of every worker reaches the caller, also after an error.

mod resolve;
mod run;
mod topo;

pub use resolve::{GroupPlan, Random, Resolver, validate};
pub use run::{Finding, Finished, SUBTREE, Scenario};
pub use topo::{Llc, TestTopology};
