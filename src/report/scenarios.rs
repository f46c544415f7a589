//! What is told of scenarios: the table of several, and steps, phases and commands of one.
//!
//! Owns these parts of summary and JSON; leaves judging to verdict/.
//! Invariant: a scenario that was left out stands in the table with its reason.

use super::json::Json;
use super::result::{check, group, samples, worker};
use super::table::{Align, layout};
use super::text::fit;
use crate::proto::phase::{PayloadReport, PhaseGroup, PhaseReport, Stimulus};
use crate::proto::record::Record;
use crate::units::approx;
use crate::verdict::{OfScenario, Outcome, Status, Verdict, group_stats};

/// Columns of the page.
const WIDTH: usize = 100;
/// Checks shown of a scenario that did not pass.
const CHECKS_SHOWN: usize = 4;
/// Phases shown in a summary; the JSON has them all.
const PHASES_SHOWN: usize = 8;

/// One line for each scenario, and below it why it did not pass.
pub fn table(record: &Record, verdict: &Verdict) -> Vec<String> {
    let mut rows = vec![["scenario", "verdict", "took", "workers", "units"].map(String::from).to_vec()];
    for one in &verdict.scenarios {
        let own = one.part.map(|part| &record.parts[part].record);
        let took =
            own.and_then(|own| own.scenario_end.as_ref()).map_or_else(|| "-".into(), |end| approx(end.elapsed_ns));
        let units: u64 = own.map_or(0, |own| own.reports.iter().map(|(_, report)| report.work_units).sum());
        let workers = own.map_or(0, |own| own.reports.len());
        rows.push(vec![
            one.name.clone(),
            one.verdict.outcome.word().into(),
            took,
            workers.to_string(),
            units.to_string(),
        ]);
    }
    let skipped = record.plan.iter().flat_map(|plan| &plan.skipped);
    rows.extend(skipped.clone().map(|(name, _)| vec![name.clone(), "SKIP".into(), "-".into(), "-".into(), "-".into()]));
    let mut lines = layout(&[Align::Left, Align::Left, Align::Right, Align::Right, Align::Right], &rows);
    for one in verdict.scenarios.iter().filter(|one| one.verdict.outcome != Outcome::Pass) {
        lines.push(String::new());
        lines.push(fit(&format!("{}: {}", one.name, one.verdict.headline), WIDTH));
        let bad = one.verdict.checks.iter().filter(|check| matches!(check.status, Status::Fail | Status::Inconclusive));
        lines.extend(bad.take(CHECKS_SHOWN).map(|check| fit(&format!("  {}", check.sentence()), WIDTH)));
    }
    lines.extend(skipped.map(|(name, why)| fit(&format!("skipped: {name}: {why}"), WIDTH)));
    lines
}

/// The phases of one scenario, where it has more than one, and its commands.
pub fn course(record: &Record) -> Vec<String> {
    let mut lines = Vec::new();
    if record.phases.len() > 1 {
        let mut rows = vec![
            ["phase", "group", "work", "n", "idle", "units", "CPU", "run delay", "max delay", "max gap"]
                .map(String::from)
                .to_vec(),
        ];
        for phase in &record.phases {
            for part in &phase.groups {
                let time = |ns: Option<u64>| ns.map_or_else(|| "-".into(), approx);
                rows.push(vec![
                    phase.name.clone(),
                    part.group.clone(),
                    part.work_type.clone(),
                    part.workers.to_string(),
                    part.idle_workers.to_string(),
                    part.work_units.to_string(),
                    time(part.cpu_ns),
                    time(part.run_delay_ns),
                    time(part.max_run_delay_ns),
                    time(part.max_gap_ns),
                ]);
            }
        }
        let more = rows.len().saturating_sub(PHASES_SHOWN * 2 + 1);
        rows.truncate(PHASES_SHOWN * 2 + 1);
        let align = |column: usize| if column < 3 { Align::Left } else { Align::Right };
        let align: Vec<Align> = (0..rows[0].len()).map(align).collect();
        lines.extend(layout(&align, &rows));
        if more > 0 {
            lines.push(format!("... and {more} more rows"));
        }
    }
    for payload in &record.payloads {
        let limit = if payload.timed_out { ", killed at its time limit" } else { "" };
        let how = match (&payload.error, payload.end) {
            (Some(error), _) => error.clone(),
            (None, Some(end)) => format!("{}{limit}", end.describe()),
            (None, None) => format!("its end was not seen{limit}"),
        };
        lines.push(fit(&format!("command {}: {how} after {}", payload.name, approx(payload.took_ns)), WIDTH));
    }
    lines
}

fn stimulus(stimulus: &Stimulus) -> Json {
    Json::object([("step", stimulus.step.into()), ("at_ns", stimulus.at_ns.into()), ("text", (&stimulus.text).into())])
}

fn phase(phase: &PhaseReport) -> Json {
    let group = |group: &PhaseGroup| {
        Json::object([
            ("group", (&group.group).into()),
            ("group_idx", group.group_idx.into()),
            ("work_type", (&group.work_type).into()),
            ("workers", group.workers.into()),
            ("idle_workers", group.idle_workers.into()),
            ("work_units", group.work_units.into()),
            ("iterations", group.iterations.into()),
            ("migrations", group.migrations.into()),
            ("cpu_ns", group.cpu_ns.into()),
            ("run_delay_ns", group.run_delay_ns.into()),
            ("runs", group.runs.into()),
            ("max_gap_ns", group.max_gap_ns.into()),
            ("max_run_delay_ns", group.max_run_delay_ns.into()),
            ("least_cpu_ns", group.least_cpu_ns.into()),
            ("most_cpu_ns", group.most_cpu_ns.into()),
            ("latency", samples(group.samples.iter().map(|samples| (samples.kind, &samples.hist)))),
        ])
    };
    Json::object([
        ("name", (&phase.name).into()),
        ("from_ns", phase.from_ns.into()),
        ("to_ns", phase.to_ns.into()),
        ("groups", Json::array(phase.groups.iter().map(group))),
    ])
}

fn payload(payload: &PayloadReport) -> Json {
    Json::object([
        ("name", (&payload.name).into()),
        ("argv", Json::array(&payload.argv)),
        ("end", payload.end.map(|end| end.describe()).into()),
        ("error", payload.error.as_ref().into()),
        ("timed_out", payload.timed_out.into()),
        ("killed", payload.killed.into()),
        ("took_ns", payload.took_ns.into()),
        ("output", (&payload.output).into()),
    ])
}

/// Steps, phases and commands of one scenario.
pub fn course_json(record: &Record) -> [(&'static str, Json); 3] {
    [
        ("stimuli", Json::array(record.stimuli.iter().map(stimulus))),
        ("phases", Json::array(record.phases.iter().map(phase))),
        ("payloads", Json::array(record.payloads.iter().map(payload))),
    ]
}

/// Several scenarios, each with its verdict and what it was given on.
pub fn list_json(record: &Record, verdict: &Verdict) -> Json {
    let one = |one: &OfScenario| {
        let mut members = vec![
            ("name", (&one.name).into()),
            ("outcome", one.verdict.outcome.word().to_lowercase().into()),
            ("exit_code", u32::from(one.verdict.exit_code).into()),
            ("headline", (&one.verdict.headline).into()),
            ("checks", Json::array(one.verdict.checks.iter().map(check))),
        ];
        if let Some(own) = one.part.map(|part| &record.parts[part].record) {
            members.push(("groups", Json::array(group_stats(own).iter().map(group))));
            members.push(("workers", Json::array(own.reports.iter().map(|(group, report)| worker(group, report)))));
            members.extend(course_json(own));
        }
        Json::object(members)
    };
    Json::array(verdict.scenarios.iter().map(one))
}

/// Scenarios that were left out.
pub fn skipped_json(record: &Record) -> Json {
    let skipped = record.plan.iter().flat_map(|plan| &plan.skipped);
    Json::array(skipped.map(|(name, why)| Json::object([("name", name.into()), ("reason", why.into())])))
}
