//! Many runs as JSON: schema `ktstr.suite/1`.
//!
//! Owns the schema; leaves each run's own result to `result`.
//! Invariant: within one version members are only added; each run's `result` is what `--json` gives for it alone.

use super::json::Json;
use super::suite::{Suite, SuiteCell, SuiteRun, false_good};
use crate::verdict::flake::CONFIDENCE;
use crate::verdict::many::Counts;

/// Name and version of the schema.
pub const SUITE_SCHEMA: &str = "ktstr.suite/1";

/// The whole result of many runs.
pub fn suite_json(suite: &Suite) -> String {
    let outcome = suite.outcome();
    Json::object([
        ("schema", SUITE_SCHEMA.into()),
        ("outcome", outcome.word().to_lowercase().into()),
        ("exit_code", u32::from(outcome.exit_code()).into()),
        ("headline", suite.headline().into()),
        ("interrupted", Json::Bool(suite.interrupted)),
        ("planned", suite.planned().into()),
        ("counts", counts(suite.counts())),
        ("pass_ratio", suite.rule.pass_ratio.into()),
        ("allow_skip", Json::Bool(suite.rule.allow_skip)),
        ("repeat", suite.repeat.into()),
        ("took_ns", suite.took_ns.into()),
        ("most_at_once", (suite.most_at_once as u64).into()),
        ("axes", Json::array(suite.axes.iter().copied())),
        ("cells", Json::array(suite.cells.iter().map(|cell| self::cell(suite, cell)))),
    ])
    .pretty()
}

fn counts(counts: Counts) -> Json {
    Json::object([
        ("done", counts.done().into()),
        ("pass", counts.passed.into()),
        ("fail", counts.failed.into()),
        ("inconclusive", counts.inconclusive.into()),
        ("skip", counts.skipped.into()),
        ("error", counts.errors.into()),
        ("interrupted", Json::from(counts.interrupted)),
    ])
}

fn cell(suite: &Suite, cell: &SuiteCell) -> Json {
    let counts = cell.counts();
    let flake = counts.flake();
    let (low, high) = flake.interval();
    let luck = false_good(suite, cell);
    Json::object([
        ("name", (&cell.name).into()),
        ("values", Json::object(suite.axes.iter().zip(&cell.values).map(|(axis, value)| (*axis, value.into())))),
        ("outcome", suite.rule.outcome(counts).word().to_lowercase().into()),
        ("counts", self::counts(counts)),
        (
            "flake",
            Json::object([
                ("rate", flake.rate().into()),
                ("method", "Clopper-Pearson".into()),
                ("confidence", CONFIDENCE.into()),
                ("low", low.into()),
                ("high", high.into()),
                ("false_good_per_step", luck.map(|(each, _)| each).into()),
                ("false_good_over_steps", luck.map(|(_, all)| all).into()),
                ("steps", suite.steps.into()),
            ]),
        ),
        ("arguments", Json::array(&cell.words)),
        ("runs", Json::array(cell.runs.iter().map(run))),
    ])
}

fn run(run: &SuiteRun) -> Json {
    let end = &run.end;
    let told = end.told.as_ref();
    Json::object([
        ("number", run.number.into()),
        ("outcome", end.outcome.word().to_lowercase().into()),
        ("exit_code", u32::from(end.exit_code).into()),
        ("headline", (&end.headline).into()),
        ("stopped", Json::Bool(end.stopped)),
        ("took_ns", end.took_ns.into()),
        ("seed", told.map(|told| told.seed.to_string()).into()),
        ("run_dir", told.and_then(|told| told.directory.as_ref()).into()),
        ("said", (&end.said).into()),
        (
            "result",
            told.filter(|told| !told.json.is_empty()).map_or(Json::Null, |told| Json::Raw(told.json.trim_end().into())),
        ),
    ])
}
