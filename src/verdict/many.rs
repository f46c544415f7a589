//! The outcome of many runs: of one cell that was repeated, and of all cells together.
//!
//! Owns the rule; leaves each run's own outcome to `judge`, rates and intervals to `flake`.
//! Invariant: what was not judged never helps to pass.

use super::flake::Flake;
use super::outcome::Outcome;

/// How runs came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub inconclusive: u32,
    pub skipped: u32,
    pub errors: u32,
    pub interrupted: u32,
}

impl Counts {
    pub fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Pass => &mut self.passed,
            Outcome::Fail => &mut self.failed,
            Outcome::Inconclusive => &mut self.inconclusive,
            Outcome::Skip => &mut self.skipped,
            Outcome::Error => &mut self.errors,
            Outcome::Interrupted => &mut self.interrupted,
        } += 1;
    }
    pub fn done(self) -> u32 {
        self.passed + self.failed + self.inconclusive + self.skipped + self.errors + self.interrupted
    }
    pub fn flake(self) -> Flake {
        Flake { failed: self.failed, judged: self.passed + self.failed }
    }
}

/// What the runs of a cell are held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Of the runs, this share has to pass; 1: all of them.
    pub pass_ratio: f64,
    /// A skipped run does not count, where another was judged.
    pub allow_skip: bool,
}

impl Default for Rule {
    fn default() -> Self {
        Self { pass_ratio: 1.0, allow_skip: false }
    }
}

/// A ratio that was meant to be a whole number of runs may miss it by this much: 0.7 * 10 is 7.000000000000001 or so.
const ROUNDING: f64 = 1e-9;

impl Rule {
    /// How many of so many runs may fail.
    pub fn may_fail(self, runs: u32) -> u32 {
        let must_pass = (f64::from(runs) * self.pass_ratio - ROUNDING).ceil().max(0.0) as u32;
        runs.saturating_sub(must_pass)
    }

    /// The outcome of one cell whose runs are done.
    ///
    /// Too many failures are a Fail, whatever the other runs were: each run stands on its own evidence. A run that the
    /// harness could not do is an Error. A run that could not be judged might have failed: it counts against the cell.
    pub fn outcome(self, counts: Counts) -> Outcome {
        let skipped = if self.allow_skip { 0 } else { counts.skipped };
        let runs = counts.passed + counts.failed + counts.inconclusive + skipped;
        let may_fail = self.may_fail(runs);
        let unjudged = counts.inconclusive + skipped;
        if counts.failed > may_fail {
            Outcome::Fail
        } else if counts.interrupted > 0 {
            Outcome::Interrupted
        } else if counts.errors > 0 {
            Outcome::Error
        } else if counts.failed + unjudged <= may_fail && counts.passed + counts.failed > 0 {
            Outcome::Pass
        } else if counts.inconclusive > 0 || counts.done() == 0 {
            Outcome::Inconclusive
        } else {
            Outcome::Skip
        }
    }

    /// The outcome where the `left` runs that are not done cannot change it any more.
    pub fn settled(self, counts: Counts, left: u32) -> Option<Outcome> {
        let may_fail = self.may_fail(counts.done() + left);
        if counts.failed > may_fail {
            return Some(Outcome::Fail);
        }
        let others = counts.done() - counts.passed - counts.failed;
        (left == 0 || (others == 0 && counts.failed + left <= may_fail)).then(|| self.outcome(counts))
    }

    /// The outcome of all cells: an interruption first; then a failure, which stands by itself; then an error, then what
    /// could not be judged.
    pub fn all(self, cells: &[Outcome]) -> Outcome {
        const ORDER: [Outcome; 5] =
            [Outcome::Interrupted, Outcome::Fail, Outcome::Error, Outcome::Inconclusive, Outcome::Skip];
        let passed = cells.contains(&Outcome::Pass);
        let counts = |outcome: &Outcome| !(self.allow_skip && passed && *outcome == Outcome::Skip);
        let worst = ORDER.into_iter().find(|outcome| counts(outcome) && cells.contains(outcome));
        worst.unwrap_or(if passed { Outcome::Pass } else { Outcome::Skip })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::*;

    fn counts(outcomes: &[Outcome]) -> Counts {
        let mut counts = Counts::default();
        outcomes.iter().for_each(|outcome| counts.add(*outcome));
        counts
    }

    #[test]
    fn every_run_has_to_pass_by_default() {
        let rule = Rule::default();
        for (outcomes, expected) in [
            (&[Pass, Pass][..], Pass),
            (&[Pass, Fail], Fail),
            (&[Pass, Skip], Skip),
            (&[Pass, Inconclusive, Skip], Inconclusive),
            (&[Pass, Error], Error),
            (&[Error, Fail, Skip], Fail),
            (&[Pass, Interrupted], Interrupted),
            (&[], Inconclusive),
        ] {
            assert_eq!(rule.outcome(counts(outcomes)), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn ratio_forgives_failures_up_to_its_share_and_doubt_counts_as_failure() {
        let rule = Rule { pass_ratio: 0.7, ..Rule::default() };
        assert_eq!((rule.may_fail(10), rule.may_fail(9), rule.may_fail(1)), (3, 2, 0));
        let of = |failed, inconclusive| Counts {
            passed: 10 - failed - inconclusive,
            failed,
            inconclusive,
            ..Counts::default()
        };
        assert_eq!(rule.outcome(of(3, 0)), Pass);
        assert_eq!(rule.outcome(of(4, 0)), Fail);
        assert_eq!(rule.outcome(of(2, 1)), Pass);
        assert_eq!(rule.outcome(of(3, 1)), Inconclusive);
        assert_eq!(Rule { pass_ratio: 0.0, ..rule }.outcome(counts(&[Fail])), Pass);
    }

    #[test]
    fn skips_count_unless_they_are_allowed_beside_a_judged_run() {
        let rule = Rule { allow_skip: true, ..Rule::default() };
        assert_eq!(rule.outcome(counts(&[Pass, Skip])), Pass);
        assert_eq!(rule.outcome(counts(&[Skip, Skip])), Skip);
        assert_eq!(rule.outcome(counts(&[Skip, Fail])), Fail);
        assert_eq!(rule.all(&[Pass, Skip]), Pass);
        assert_eq!(rule.all(&[Skip]), Skip);
        assert_eq!(Rule::default().all(&[Pass, Skip]), Skip);
    }

    #[test]
    fn settled_is_only_what_the_rest_cannot_change() {
        let rule = Rule { pass_ratio: 0.5, ..Rule::default() };
        assert_eq!(rule.settled(counts(&[Fail, Fail]), 2), None);
        assert_eq!(rule.settled(counts(&[Fail, Fail, Fail]), 1), Some(Fail));
        assert_eq!(rule.settled(counts(&[Pass, Pass]), 2), Some(Pass));
        assert_eq!(rule.settled(counts(&[Pass, Skip]), 2), None);
        assert_eq!(Rule::default().settled(counts(&[Pass]), 1), None);
        assert_eq!(Rule::default().settled(counts(&[Fail]), 9), Some(Fail));
        assert_eq!(Rule::default().settled(counts(&[Pass]), 0), Some(Pass));
    }

    #[test]
    fn failure_of_one_cell_outranks_the_error_of_another() {
        let rule = Rule::default();
        assert_eq!(rule.all(&[Pass, Error, Fail, Skip]), Fail);
        assert_eq!(rule.all(&[Pass, Error, Skip]), Error);
        assert_eq!(rule.all(&[Fail, Interrupted]), Interrupted);
        assert_eq!(rule.all(&[Pass, Pass]), Pass);
    }
}
