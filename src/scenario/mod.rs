//! Scenarios: what happens to cgroups and workers, in which order.
//!
//! Owns carrying out a plan's groups; leaves the transport of reports to guest/.
//! Invariant: every report of every worker reaches the caller, also after an error.

mod run;

pub use run::{Finding, Finished, SUBTREE, Scenario};
