//! The verdict on a run of several scenarios: one for each, and one for all.
//!
//! Owns judging the parts of a record and putting their verdicts together; leaves each to `judge`, what belongs to none
//! of them to `outside`.
//! Invariant: a scenario that was planned and did not end is never a pass, nor is a run with a failure between scenarios.

use super::judge::{Verdict, judge, stored_layers};
use super::outcome::Outcome;
use super::outside::judge_outside;
use super::table::in_force;
use crate::klog;
use crate::proto::limits::Layers;
use crate::proto::record::Record;

/// The verdict on one of several scenarios.
#[derive(Clone, Debug, PartialEq)]
pub struct OfScenario {
    /// With its category.
    pub name: String,
    pub verdict: Verdict,
    /// Its place among the record's parts; none: it never began.
    pub part: Option<usize>,
}

/// Judges a record by these layers. Where it has several scenarios, each is held to its own layer.
pub fn judge_by(record: &Record, layers: &Layers) -> Verdict {
    if record.parts.is_empty() {
        return judge(record, &in_force(layers));
    }
    let planned: Vec<String> = record
        .plan
        .as_ref()
        .map(|plan| plan.scenarios.iter().map(|scenario| scenario.full_name()).collect())
        .unwrap_or_default();
    let mut scenarios: Vec<OfScenario> = Vec::new();
    for (index, name) in planned.iter().enumerate() {
        let part = record.parts.iter().position(|part| part.index as usize == index);
        let verdict = match part {
            Some(place) => {
                let own = &record.parts[place].record;
                judge(own, &in_force(&Layers { scenario: stored_layers(own).scenario, ..*layers }))
            }
            None => never_begun(record),
        };
        scenarios.push(OfScenario { name: name.clone(), verdict, part });
    }
    for (place, part) in record.parts.iter().enumerate() {
        if scenarios.iter().all(|one| one.part != Some(place)) {
            let number = u64::from(part.index) + 1;
            let text =
                format!("the guest began a scenario that was not to begin: number {number} of {}", planned.len());
            let verdict = plain(Outcome::Inconclusive, text);
            scenarios.push(OfScenario { name: "(not planned)".into(), verdict, part: Some(place) });
            // One shows that the guest is not to be believed.
            break;
        }
    }
    let mut verdict = together(record, scenarios);
    let outside = judge_outside(record, layers);
    if outside.outcome > verdict.outcome {
        let text = format!("outside the {} scenarios: {}", planned.len(), outside.headline);
        verdict.outcome = outside.outcome;
        verdict.exit_code = outside.exit_code;
        verdict.headline = text;
        verdict.checks.clone_from(&outside.checks);
        (verdict.reached, verdict.stopped) = (outside.reached, outside.stopped);
    }
    if outside.outcome != Outcome::Pass {
        verdict.scenarios.push(OfScenario { name: OUTSIDE.into(), verdict: outside, part: None });
    }
    verdict
}

/// Stands among the scenarios where something is wrong that belongs to none.
pub(super) const OUTSIDE: &str = "(outside the scenarios)";

/// The verdict on a scenario that was planned, and that the guest did not come to.
fn never_begun(record: &Record) -> Verdict {
    let after =
        record.parts.last().and_then(|part| part.record.plan.as_ref()?.scenarios.first()).map(|last| last.full_name());
    let after = after.map_or_else(String::new, |name| format!(" after {name}"));
    plain(Outcome::Inconclusive, format!("it was not begun: the run ended{after}"))
}

pub(super) fn plain(outcome: Outcome, headline: String) -> Verdict {
    Verdict {
        outcome,
        headline,
        reached: None,
        stopped: None,
        checks: Vec::new(),
        findings: Vec::new(),
        sched_exits: Vec::new(),
        unknown_kernel_errors: 0,
        exit_code: outcome.exit_code(),
        scenarios: Vec::new(),
    }
}

fn together(record: &Record, scenarios: Vec<OfScenario>) -> Verdict {
    let mut log = klog::classify(&record.klog, &record.console);
    if let Some(plan) = &record.plan {
        log.allow(&plan.guards.allow_log);
    }
    let outcome = scenarios.iter().fold(Outcome::Pass, |worst, one| worst.merge(one.verdict.outcome));
    let headline = match scenarios.iter().find(|one| one.verdict.outcome == outcome) {
        Some(first) if outcome != Outcome::Pass => {
            let bad = scenarios.iter().filter(|one| one.verdict.outcome != Outcome::Pass).count();
            format!("{bad} of {} scenarios did not pass; {}: {}", scenarios.len(), first.name, first.verdict.headline)
        }
        _ => format!("all {} scenarios passed", scenarios.len()),
    };
    let worst = scenarios.iter().find(|one| one.verdict.outcome == outcome).map(|one| &one.verdict);
    Verdict {
        reached: worst.and_then(|verdict| verdict.reached),
        stopped: worst.and_then(|verdict| verdict.stopped),
        checks: worst.map(|verdict| verdict.checks.clone()).unwrap_or_default(),
        findings: log.findings,
        sched_exits: log.exits,
        unknown_kernel_errors: log.unknown_errors,
        scenarios,
        ..plain(outcome, headline)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::passing;
    use super::*;
    use crate::proto::message::VmEnd;
    use crate::proto::part::Part;

    /// A run of three scenarios of which two were begun.
    fn three() -> Record {
        let one = passing();
        let mut whole = one.clone();
        let plan = whole.plan.as_mut().unwrap();
        let spec = plan.scenarios[0].clone();
        plan.scenarios = ["a", "b", "c"]
            .map(|name| {
                let mut spec = spec.clone();
                spec.name = name.into();
                spec
            })
            .to_vec();
        whole.parts = (0..2).map(|index| Part { index, over: true, record: one.clone() }).collect();
        whole.outside = Some(Box::new(one));
        whole
    }

    #[test]
    fn scenario_that_was_not_planned_is_no_pass() {
        let mut record = three();
        record.plan.as_mut().unwrap().scenarios.truncate(2);
        let planned = judge_by(&record, &Layers::default());
        assert_eq!(planned.outcome, Outcome::Pass, "{}", planned.headline);
        for index in [0, 7] {
            let mut record = record.clone();
            record.parts.push(Part { index, over: false, record: passing() });
            let verdict = judge_by(&record, &Layers::default());
            assert_eq!(verdict.outcome, Outcome::Inconclusive, "{}", verdict.headline);
            assert_eq!(verdict.scenarios.len(), 3);
        }
    }

    #[test]
    fn what_was_not_begun_is_inconclusive_and_told_by_name() {
        let verdict = judge_by(&three(), &Layers::default());
        let outcomes: Vec<Outcome> = verdict.scenarios.iter().map(|one| one.verdict.outcome).collect();
        assert_eq!(outcomes, [Outcome::Pass, Outcome::Pass, Outcome::Inconclusive]);
        assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Inconclusive, 125));
        assert!(
            verdict.headline.starts_with("1 of 3 scenarios did not pass; c: it was not begun"),
            "{}",
            verdict.headline
        );
    }

    #[test]
    fn one_failure_fails_all_and_the_others_keep_their_verdicts() {
        let mut record = three();
        record.parts.push(Part { index: 2, over: false, record: passing() });
        assert_eq!(judge_by(&record, &Layers::default()).outcome, Outcome::Pass);
        record.parts[1].record.reports[0].1.work_units = 0;
        record.parts[2].record.vm_end = Some(VmEnd::TimedOut);
        let verdict = judge_by(&record, &Layers::default());
        assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Fail, 1));
        assert_eq!(verdict.scenarios[0].verdict.outcome, Outcome::Pass);
        assert!(verdict.headline.contains("b: not_starved"), "{}", verdict.headline);
    }

    #[test]
    fn each_scenario_is_held_to_its_own_limits() {
        let mut record = three();
        record.parts[0].record.plan.as_mut().unwrap().scenarios[0].asserts = vec![("max-gap".into(), "1ms".into())];
        let verdict = judge_by(&record, &Layers::default());
        assert_eq!(verdict.scenarios[0].verdict.outcome, Outcome::Fail);
        assert_eq!(verdict.scenarios[1].verdict.outcome, Outcome::Pass);
    }
}
