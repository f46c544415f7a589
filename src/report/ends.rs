//! What the runs of both ends of a bisection prove, and what each step needs.
//!
//! Owns the reading of the two cells and the advice; leaves the runs to run/suite and the rule to verdict/many.
//! Invariant: the ends are called proven only where the good one passed and the bad one failed.

use super::suite::{Suite, SuiteCell};
use crate::error::Kind;
use crate::verdict::Outcome;
use crate::verdict::flake::{self, Flake};

/// The chance of a wrong good, over the whole bisection, that the advice aims at.
const ACCEPTED: f64 = 0.01;
/// More runs of one step than this are no advice.
const MOST_RUNS: u32 = 200;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    pub exit_code: u8,
    /// The whole text, with a newline at its end.
    pub text: String,
}

/// Reads the two cells, the good one first.
pub fn ends(suite: &Suite) -> Ends {
    let [good, bad] = suite.cells.as_slice() else {
        return Ends { exit_code: Kind::Internal.exit_code(), text: "there are not two ends\n".into() };
    };
    let of = |cell: &SuiteCell| suite.rule.outcome(cell.counts());
    let mut lines = vec![line("GOOD", suite, good), line("BAD ", suite, bad)];
    let (exit_code, words) = match (of(good), of(bad)) {
        _ if suite.interrupted => (Kind::Interrupted.exit_code(), "interrupted: nothing is proven".to_owned()),
        (Outcome::Pass, Outcome::Fail) => (0, "both ends are what they are said to be".to_owned()),
        (Outcome::Fail, Outcome::Pass) => (1, "GOOD fails and BAD passes: they look exchanged".into()),
        (Outcome::Fail, Outcome::Fail) => {
            (1, "GOOD fails too: take an older one, or name the fault with --bad-on if this is another".into())
        }
        (Outcome::Pass, Outcome::Pass) => (
            1,
            "BAD passes: the fault does not show here; try more --repeat, another --work, or a longer --duration"
                .into(),
        ),
        (Outcome::Fail, _) => (1, "GOOD fails".into()),
        (_, Outcome::Pass) => (1, "BAD passes".into()),
        (Outcome::Error, _) | (_, Outcome::Error) => {
            (Kind::Internal.exit_code(), "ktstr could not do a run: nothing is proven".into())
        }
        (Outcome::Pass, _) => (Kind::CannotJudge.exit_code(), format!("BAD cannot be judged; {}", skipped(bad))),
        _ => (Kind::CannotJudge.exit_code(), format!("GOOD cannot be judged; {}", skipped(good))),
    };
    if exit_code == 0 {
        lines.push(String::new());
        lines.extend(advice(suite, bad.counts().flake()));
    }
    lines.push(String::new());
    lines.push(format!("{}: {words}", if exit_code == 0 { "PROVEN" } else { "NOT PROVEN" }));
    Ends { exit_code, text: lines.join("\n") + "\n" }
}

fn skipped(cell: &SuiteCell) -> &'static str {
    let unbooted = cell.counted().any(|run| run.end.headline.contains("did not boot"));
    match unbooted {
        true => "if the boot is what broke, add --boot-failure fail",
        false => "git bisect would skip it",
    }
}

fn line(role: &str, suite: &Suite, cell: &SuiteCell) -> String {
    let counts = cell.counts();
    let others = counts.done() - counts.passed - counts.failed;
    let others = if others > 0 { format!(", {others} not judged") } else { String::new() };
    let reason = cell.worst(suite.rule).filter(|run| run.end.outcome != Outcome::Pass);
    let reason = reason.map_or_else(String::new, |run| format!(": {}", run.end.headline));
    let value = cell.values.first().map_or("", String::as_str);
    format!("{role} {value}: {} passed, {} failed{others}{reason}", counts.passed, counts.failed)
}

/// How often each step has to repeat its run.
fn advice(suite: &Suite, bad: Flake) -> Vec<String> {
    let Some(rate) = bad.rate() else { return Vec::new() };
    let (low, high) = bad.interval();
    let needed = |rate: f64| {
        flake::runs_for(rate, suite.steps, ACCEPTED, MOST_RUNS, |runs| suite.rule.may_fail(runs))
            .map_or_else(|| format!("more than {MOST_RUNS}"), |runs| runs.to_string())
    };
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let mut lines = vec![format!(
        "BAD fails in {} of its runs (95 % Clopper-Pearson interval {:.1} to {})",
        percent(rate),
        low * 100.0,
        percent(high)
    )];
    lines.push(format!(
        "for at most {} of a false good over {} steps, each step needs --repeat {} at that rate, and --repeat {} at the low \
         end of its interval",
        percent(ACCEPTED),
        suite.steps,
        needed(rate),
        needed(low)
    ));
    lines.push(format!("each step: --repeat N --stop-on-first --flake-rate {rate:.2} --steps {}", suite.steps));
    lines
}
