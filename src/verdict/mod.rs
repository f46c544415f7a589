//! The verdict: a pure function of the record and the thresholds.
//!
//! Owns checks, outcomes, their merging and the numbers they rest on; leaves collecting to guest/ and showing to report/.
//! Invariant: a check without its data is Inconclusive, never Pass.

mod assert;
mod cause;
mod check;
#[cfg(test)]
pub(crate) mod fixture;
mod judge;
mod log_checks;
mod noise;
mod outcome;
mod scheduler;
mod stage;
mod stats;
#[cfg(test)]
mod tests_cause;
#[cfg(test)]
mod tests_checks;
#[cfg(test)]
mod tests_noise;
#[cfg(test)]
mod tests_scheduler;
mod workers;

pub use assert::Thresholds;
pub use check::{Check, Measure, Status};
pub use judge::{Verdict, judge};
pub use outcome::Outcome;
pub use stage::{reached, stopped_at};
pub use stats::{GroupStats, group_stats};
pub use workers::EMULATOR;
