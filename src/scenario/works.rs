//! Works and affinities as text, in the grammar that the command line has.
//!
//! Owns nothing but the bridge to workload's grammar.
//! Invariant: what is printed here is read back as the same value.

use crate::proto::plan::WorkSpec;
use crate::proto::scenario::{AffinityIntent, DefWork, Unit};
use crate::proto::work::WorkType;
use crate::workload::{parse_works, spec_text};

/// A work that stands for its options.
const CARRIER: &str = "spin";
/// What stands between it and an affinity.
const AFFINITY: &str = "spin affinity=";

/// One work; a number that grows with the machine is left out, for the caller to tell.
pub fn text(work: &DefWork) -> String {
    let size = work.work.worker_group_size().max(1);
    let workers = if work.workers.unit == Unit::One { work.workers.times } else { size };
    let text = spec_text(&WorkSpec { work: work.work.clone(), workers, setup: work.setup.clone() });
    let name = work.work.to_text();
    match (work.workers.unit, text.strip_prefix(&format!("{name}*1"))) {
        (Unit::One, _) | (_, None) => text,
        (_, Some(options)) => format!("{name}{options}"),
    }
}

pub fn affinity_text(affinity: &AffinityIntent) -> String {
    let mut work = WorkSpec::new(WorkType::SpinWait, 1);
    work.setup.affinity = affinity.clone();
    let text = spec_text(&work);
    text.split_once("affinity=").map_or_else(|| "inherit".into(), |(_, word)| word.to_owned())
}

/// The affinity, or why the word is none, with the nearest one.
pub fn parse_affinity(word: &str) -> Result<AffinityIntent, (String, Option<String>)> {
    debug_assert!(AFFINITY.starts_with(CARRIER));
    match parse_works(&format!("{AFFINITY}{word}")) {
        Ok(works) => match works.as_slice() {
            [work] => Ok(work.setup.affinity.clone()),
            _ => Err((format!("'{word}' is no affinity"), None)),
        },
        Err(error) => Err((error.what, error.nearest)),
    }
}
