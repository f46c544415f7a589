//! What a person, a script or another tool reads about a run.
//!
//! Owns layout only; leaves every number to verdict/ and proto/record.
//! Invariant: the same verdict gives the same text.

mod ends;
mod human;
mod json;
mod noise;
mod result;
mod scenarios;
mod suite;
mod suite_json;
mod table;
pub use table::table_of;
mod testfiles;
#[cfg(test)]
mod tests_human;
#[cfg(test)]
mod tests_result;
#[cfg(test)]
mod tests_suite;
mod text;
mod timings;

pub use ends::{Ends, ends};
pub use human::{Style, summary, verdict_line};
pub use json::Json;
pub use result::{SCHEMA, result_json};
pub use suite::{Suite, SuiteCell, SuiteRun, suite_line, suite_summary};
pub use suite_json::{SUITE_SCHEMA, suite_json};
pub use testfiles::{junit, ktap};
pub use timings::{Interval, intervals, timings};
