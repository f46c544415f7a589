//! What many runs came to, for a person: a table of cells, the flake rates, and the verdict as the last line.
//!
//! Owns the values that all reports of many runs share, and their text; leaves the rule to verdict/many.
//! Invariant: every run that did not pass is named, with its reason and its run directory where it has one.

use super::human::{Style, outcome_word};
use super::table::{Align, layout};
use super::text::{counted, fit};
use crate::run::suite::CellEnd;
use crate::units::approx;
use crate::verdict::Outcome;
use crate::verdict::flake::{self, CONFIDENCE};
use crate::verdict::many::{Counts, Rule};

/// Characters of a reason in the table.
const REASON_WIDTH: usize = 60;
/// Characters of a value of an axis.
const VALUE_WIDTH: usize = 28;
/// Runs that did not pass and are named one by one; the JSON has them all.
const NAMED_RUNS: usize = 10;

/// One run.
#[derive(Clone, Debug)]
pub struct SuiteRun {
    /// From 1, among the repetitions of its cell.
    pub number: u32,
    pub end: CellEnd,
}

/// One combination of a matrix, with its repetitions.
#[derive(Clone, Debug)]
pub struct SuiteCell {
    /// `topo=2 work=spin`; empty where nothing varies.
    pub name: String,
    /// Its value on each axis.
    pub values: Vec<String>,
    /// The words that make one run of it by hand.
    pub words: Vec<String>,
    pub runs: Vec<SuiteRun>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Suite {
    pub axes: Vec<&'static str>,
    pub cells: Vec<SuiteCell>,
    /// Runs of each cell, as planned.
    pub repeat: u32,
    pub rule: Rule,
    /// The user stopped it.
    pub interrupted: bool,
    pub took_ns: u64,
    /// VMs that ran at once, at most.
    pub most_at_once: usize,
    /// How often a bad commit fails, where that is known, and how many steps a bisection has.
    pub flake_rate: Option<f64>,
    pub steps: u32,
}

impl SuiteCell {
    /// Runs that were stopped on the way do not count.
    pub fn counted(&self) -> impl Iterator<Item = &SuiteRun> {
        self.runs.iter().filter(|run| !run.end.stopped)
    }
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.counted().for_each(|run| counts.add(run.end.outcome));
        counts
    }
    /// The run whose reason stands for the cell: the first of the worst.
    pub fn worst(&self, rule: Rule) -> Option<&SuiteRun> {
        let outcome = rule.outcome(self.counts());
        let of = |outcome: Outcome| self.counted().find(move |run| run.end.outcome == outcome);
        of(outcome).or_else(|| of(Outcome::Fail))
    }
    /// As a test's name.
    pub fn title(&self) -> &str {
        if self.name.is_empty() { "run" } else { &self.name }
    }
}

impl Suite {
    pub fn outcome(&self) -> Outcome {
        if self.interrupted {
            return Outcome::Interrupted;
        }
        let outcomes: Vec<Outcome> = self
            .cells
            .iter()
            .filter(|cell| cell.counts().done() > 0)
            .map(|cell| self.rule.outcome(cell.counts()))
            .collect();
        self.rule.all(&outcomes)
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.cells.iter().flat_map(SuiteCell::counted).for_each(|run| counts.add(run.end.outcome));
        counts
    }

    pub fn planned(&self) -> u32 {
        self.cells.len() as u32 * self.repeat
    }

    /// `2 of 8 runs failed, 1 skipped; topo=2: runnable task stall`.
    pub fn headline(&self) -> String {
        let counts = self.counts();
        let done = counts.done();
        let mut parts = Vec::new();
        for (count, word) in [
            (counts.failed, "failed"),
            (counts.errors, "could not be done"),
            (counts.inconclusive, "inconclusive"),
            (counts.skipped, "skipped"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {word}"));
            }
        }
        if parts.is_empty() || counts.passed > 0 {
            parts.insert(0, format!("{} passed", counts.passed));
        }
        let mut text = format!("of {}, {}", counted(u64::from(done), "run"), parts.join(", "));
        let left = self.planned() - done;
        if left > 0 {
            text.push_str(&format!("; {left} of {} not done", self.planned()));
        }
        let outcome = self.outcome();
        let cell =
            self.cells.iter().find(|cell| cell.counts().done() > 0 && self.rule.outcome(cell.counts()) == outcome);
        if let Some((cell, run)) =
            cell.filter(|_| outcome != Outcome::Pass).and_then(|cell| Some((cell, cell.worst(self.rule)?)))
        {
            let name = if cell.name.is_empty() { String::new() } else { format!("{}: ", cell.name) };
            text.push_str(&format!("; {name}{}", run.end.headline));
        }
        text
    }

    /// The first run that failed, with all it has to say.
    fn first_failure(&self) -> Option<(&SuiteCell, &SuiteRun)> {
        let runs = || self.cells.iter().flat_map(|cell| cell.counted().map(move |run| (cell, run)));
        runs().find(|(_, run)| run.end.outcome == Outcome::Fail)
    }
}

/// The whole text, with a newline at its end.
pub fn suite_summary(suite: &Suite, style: Style) -> String {
    let mut lines = Vec::new();
    if let Some((cell, run)) = suite.first_failure() {
        if let Some(told) = &run.end.told {
            lines.push(format!("first failure: {}, run {}", cell.title(), run.number));
            lines.extend(told.summary.lines().map(|line| format!("  {line}").trim_end().to_owned()));
            lines.push(String::new());
        }
    }
    lines.extend(cell_table(suite, style));
    lines.extend(named_runs(suite));
    lines.extend(flake_lines(suite));
    let at_once =
        if suite.most_at_once > 1 { format!(", up to {} at once", suite.most_at_once) } else { String::new() };
    lines.push(format!("{} in {}{at_once}", counted(u64::from(suite.counts().done()), "run"), approx(suite.took_ns)));
    lines.push(suite_line(suite, style));
    lines.join("\n") + "\n"
}

/// The verdict on one line.
pub fn suite_line(suite: &Suite, style: Style) -> String {
    format!("{}: {}", outcome_word(suite.outcome(), style), fit(&suite.headline(), 400))
}

fn cell_table(suite: &Suite, style: Style) -> Vec<String> {
    let repeated = suite.repeat > 1;
    let mut head: Vec<String> = suite.axes.iter().map(|axis| (*axis).to_owned()).collect();
    let mut columns = vec![Align::Left; head.len()];
    let numbers: &[&str] = if repeated { &["pass", "fail", "other", "mean"] } else { &["time"] };
    for name in numbers {
        head.push((*name).to_owned());
        columns.push(Align::Right);
    }
    head.extend(["verdict".to_owned(), String::new()]);
    columns.extend([Align::Left, Align::Left]);
    let mut rows = vec![head];
    for cell in &suite.cells {
        let counts = cell.counts();
        let mut row: Vec<String> = cell.values.iter().map(|value| fit(value, VALUE_WIDTH)).collect();
        let took: u64 = cell.counted().map(|run| run.end.took_ns).sum();
        let mean = if counts.done() == 0 { "-".to_owned() } else { approx(took / u64::from(counts.done())) };
        if repeated {
            let others = counts.done() - counts.passed - counts.failed;
            row.extend([counts.passed, counts.failed, others].map(|count| count.to_string()));
        }
        row.push(mean);
        let outcome = suite.rule.outcome(counts);
        row.push(if counts.done() == 0 { "not run".into() } else { outcome.word().into() });
        let worst = cell.worst(suite.rule).filter(|_| outcome != Outcome::Pass);
        row.push(worst.map(|run| fit(&run.end.headline, REASON_WIDTH)).unwrap_or_default());
        rows.push(row);
    }
    let mut lines = layout(&columns, &rows);
    if style.color {
        for (line, cell) in lines.iter_mut().skip(1).zip(&suite.cells) {
            let outcome = suite.rule.outcome(cell.counts());
            *line = line.replacen(outcome.word(), &outcome_word(outcome, style), 1);
        }
    }
    lines.push(String::new());
    lines
}

/// The runs that did not pass, where a run directory was kept.
fn named_runs(suite: &Suite) -> Vec<String> {
    let runs = suite.cells.iter().flat_map(|cell| cell.counted().map(move |run| (cell, run)));
    let kept: Vec<String> = runs
        .filter(|(_, run)| run.end.outcome != Outcome::Pass)
        .filter_map(|(cell, run)| {
            let directory = run.end.told.as_ref()?.directory.as_ref()?;
            Some(format!("{} run {}: {}", cell.title(), run.number, directory))
        })
        .collect();
    let more = kept.len().saturating_sub(NAMED_RUNS);
    let mut lines: Vec<String> = kept.into_iter().take(NAMED_RUNS).collect();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// How often runs failed, and what a pass is worth.
fn flake_lines(suite: &Suite) -> Vec<String> {
    if suite.repeat < 2 {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for cell in &suite.cells {
        let counts = cell.counts();
        let flake = counts.flake();
        let Some(rate) = flake.rate() else { continue };
        let (low, high) = flake.interval();
        let name = if cell.name.is_empty() { String::new() } else { format!(" of {}", cell.name) };
        let early = if counts.done() < suite.repeat { ", stopped early" } else { "" };
        lines.push(format!(
            "flake rate{name}: {} of {} failed, {} ({:.0} % Clopper-Pearson interval {:.1} to {}{early})",
            flake.failed,
            flake.judged,
            percent(rate),
            CONFIDENCE * 100.0,
            low * 100.0,
            percent(high)
        ));
        if suite.rule.outcome(counts) == Outcome::Pass {
            lines.push(format!("  {}", luck(suite, flake.judged)));
        }
    }
    lines.push(String::new());
    lines
}

/// The chance that a cell which passed is bad all the same.
fn luck(suite: &Suite, judged: u32) -> String {
    let may_fail = suite.rule.may_fail(judged);
    match suite.flake_rate {
        Some(rate) => {
            let each = flake::at_most(may_fail, judged, rate);
            format!(
                "false good: what fails in {} of its runs passes this with a chance of {}; one such step or more in {}: {}",
                percent(rate),
                percent(each),
                suite.steps,
                percent(flake::over_steps(each, suite.steps))
            )
        }
        None => format!(
            "false good: a fault in {} of runs or more would have shown with {:.0} % certainty, a rarer one may not; \
             --flake-rate SHARE tells the chance",
            percent(flake::seen_from(may_fail, judged)),
            CONFIDENCE * 100.0
        ),
    }
}

/// The chance of a false good as numbers: of one step, and over all; none where the rate is not known.
pub fn false_good(suite: &Suite, cell: &SuiteCell) -> Option<(f64, f64)> {
    let judged = cell.counts().flake().judged;
    let each = flake::at_most(suite.rule.may_fail(judged), judged, suite.flake_rate?);
    Some((each, flake::over_steps(each, suite.steps)))
}
