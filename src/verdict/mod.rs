//! The verdict: a pure function of the record and the thresholds.
//!
//! Owns checks, outcomes, their merging and the numbers they rest on; leaves collecting to guest/ and showing to report/.
//! Invariant: a check without its data is Inconclusive, never Pass.

mod advice;
pub mod bad_on;
mod cause;
mod cgroup;
mod check;
mod counters;
mod cut;
mod decide;
mod fairness;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
pub(crate) mod fixture;
pub mod flake;
mod isolation;
mod judge;
mod latency;
mod log_checks;
pub mod many;
mod monitor;
mod noise;
mod numa;
mod outcome;
mod outside;
mod own;
mod scene;
mod scheduler;
mod several;
mod stage;
mod stats;
pub mod table;
#[cfg(test)]
mod tests_cause;
#[cfg(test)]
mod tests_checks;
#[cfg(test)]
mod tests_cut;
#[cfg(test)]
mod tests_limits;
#[cfg(test)]
mod tests_noise;
#[cfg(test)]
mod tests_parts;
#[cfg(test)]
pub(crate) mod tests_properties;
#[cfg(test)]
mod tests_scheduler;
mod told;
mod workers;

pub use advice::advice;
pub use cause::NOTHING_WRONG;
pub use cgroup::assert_cgroup;
pub use check::{Check, Measure, Status};
pub use cut::{is_whole, judge_cut, on_busy_host};
pub use judge::{Verdict, judge, judge_stored, stored_layers};
pub use log_checks::stall_settles;
pub use monitor::watches_queues;
pub use noise::disturbed_host;
pub use outcome::Outcome;
pub use several::{OfScenario, judge_by};
pub use stage::{reached, stopped_at};
pub use stats::{GroupStats, group_stats};
pub use told::{Since, host_share, time_to_verdict};
pub use workers::{EMULATED, EMULATOR, METAL};
