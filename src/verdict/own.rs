//! What a user's own scenario code said of its run.
//!
//! Owns this check; leaves the code's assertions to `cgroup`.
//! Invariant: code that said nothing has not passed.

use super::check::{Check, Status};
use super::outcome::Outcome;
use crate::proto::record::Record;

pub const NAME: &str = "own_assertions";

/// Whether the run's scenario is code of the user's.
pub fn is_code(record: &Record) -> bool {
    record.plan.as_ref().is_some_and(|plan| plan.scenarios.iter().any(|scenario| scenario.code))
}

/// The check; none where the scenario is no code.
pub fn check(record: &Record) -> Option<Check> {
    if !is_code(record) {
        return None;
    }
    let check = |status, reason: String| Some(Check::new(NAME, status, reason));
    let Some(result) = &record.asserted else {
        return check(Status::Inconclusive, "the scenario's code did not return".into());
    };
    let first = |list: &[String]| match list {
        [] => String::from("it gave no reason"),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first}, and {} more: {}", more.len(), more.join("; ")),
    };
    if !result.passed {
        return check(Status::Fail, first(&result.details));
    }
    if !result.undecided.is_empty() {
        return check(Status::Inconclusive, first(&result.undecided));
    }
    if result.skipped {
        return check(Status::NotApplied, format!("skipped: {}", first(&result.details)));
    }
    let workers = result.stats.workers;
    check(Status::Pass, if workers > 0 { format!("passed, on {workers} workers") } else { "passed".into() })
}

/// The scenario skipped itself.
pub fn skipped(record: &Record) -> Option<(Outcome, String)> {
    let result = record.asserted.as_ref().filter(|result| result.passed && result.skipped)?;
    let why = result.details.first().cloned().unwrap_or_else(|| "the scenario gave no reason".into());
    result.undecided.is_empty().then_some((Outcome::Skip, why))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::passing;
    use super::super::{Verdict, judge_stored};
    use super::*;
    use crate::proto::asserted::AssertResult;

    fn coded(result: Option<AssertResult>, workers: bool) -> Verdict {
        let mut record = passing();
        record.plan.as_mut().unwrap().scenarios[0].code = true;
        if !workers {
            record.reports.clear();
            record.spawned.clear();
        }
        record.asserted = result;
        judge_stored(&record)
    }

    #[test]
    fn what_the_code_said_is_the_verdict() {
        for (result, outcome, words) in [
            (Some(AssertResult::pass()), Outcome::Pass, "every check"),
            (Some(AssertResult::fail("three is not four")), Outcome::Fail, "own_assertions: three is not four"),
            (Some(AssertResult::undecided("no samples")), Outcome::Inconclusive, "own_assertions: no samples"),
            (Some(AssertResult::skip("needs two LLCs")), Outcome::Skip, "needs two LLCs"),
            (None, Outcome::Inconclusive, "did not return"),
        ] {
            for workers in [true, false] {
                let verdict = coded(result.clone(), workers);
                assert_eq!(verdict.outcome, outcome, "{}", verdict.headline);
                assert!(verdict.headline.contains(words), "{}", verdict.headline);
            }
        }
    }

    #[test]
    fn data_scenarios_have_no_such_check() {
        let verdict = judge_stored(&passing());
        assert!(!verdict.checks.iter().any(|check| check.name == NAME));
    }

    #[test]
    fn code_that_skips_does_not_hide_a_failure() {
        let verdict = coded(Some(AssertResult::skip("a").merge(AssertResult::fail("b"))), true);
        assert_eq!(verdict.outcome, Outcome::Fail);
    }
}
