//! What repeated runs say about a fault that shows only now and then.
//!
//! Owns rates, intervals and chances; leaves counting runs to run/ and the rule over them to `many`.
//! Invariant: every interval is exact (Clopper-Pearson), so that few runs never look like certainty.

/// The confidence that intervals are given for.
pub const CONFIDENCE: f64 = 0.95;
/// Halvings of an interval of probabilities: beyond these a double has no more digits.
const HALVINGS: u32 = 60;

/// How often runs failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flake {
    pub failed: u32,
    /// Runs that passed or failed; others say nothing.
    pub judged: u32,
}

impl Flake {
    /// The share of judged runs that failed; none where nothing was judged.
    pub fn rate(self) -> Option<f64> {
        (self.judged > 0).then(|| f64::from(self.failed) / f64::from(self.judged))
    }

    /// The Clopper-Pearson interval of that share (C. Clopper, E. Pearson, Biometrika 26, 1934): the rates under which a
    /// count as high, or as low, as this one is not rarer than half of what the confidence leaves over.
    pub fn interval(self) -> (f64, f64) {
        if self.judged == 0 {
            return (0.0, 1.0);
        }
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let low = match self.failed {
            0 => 0.0,
            failed => solve(|p| 1.0 - at_most(failed - 1, self.judged, p) >= tail),
        };
        let high = match self.failed {
            failed if failed == self.judged => 1.0,
            failed => solve(|p| at_most(failed, self.judged, p) <= tail),
        };
        (low, high)
    }
}

/// The lowest rate at which `holds`, which is false below it and true from it on.
fn solve(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if holds(middle) { high = middle } else { low = middle }
    }
    high
}

/// The chance that of `runs` runs, each of which fails with chance `rate`, at most `failed` fail.
pub fn at_most(failed: u32, runs: u32, rate: f64) -> f64 {
    if failed >= runs || rate <= 0.0 {
        return 1.0;
    }
    if rate >= 1.0 {
        return 0.0;
    }
    // In logarithms: with many runs the single terms are below what a double holds.
    let mut ln_term = f64::from(runs) * (-rate).ln_1p();
    let odds_ln = rate.ln() - (-rate).ln_1p();
    let mut sum = ln_term.exp();
    for k in 1..=failed {
        ln_term += f64::from(runs - k + 1).ln() - f64::from(k).ln() + odds_ln;
        sum += ln_term.exp();
    }
    sum.min(1.0)
}

/// The failure rate from which on more than `failed` of `runs` runs would have failed with the confidence.
pub fn seen_from(failed: u32, runs: u32) -> f64 {
    if failed >= runs { 1.0 } else { solve(|p| at_most(failed, runs, p) <= 1.0 - CONFIDENCE) }
}

/// The chance that at least one of `steps` steps, each wrong with chance `each`, is wrong.
pub fn over_steps(each: f64, steps: u32) -> f64 {
    -(f64::from(steps) * (-each.min(1.0)).ln_1p()).exp_m1()
}

/// The least number of runs, of which `may_fail` may fail, that something which fails at `rate` passes in any of `steps`
/// steps with at most the chance `wrong`; none where no number up to `most` does.
pub fn runs_for(rate: f64, steps: u32, wrong: f64, most: u32, may_fail: impl Fn(u32) -> u32) -> Option<u32> {
    (1..=most).find(|runs| over_steps(at_most(may_fail(*runs), *runs, rate), steps) <= wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 5e-5
    }

    #[test]
    fn intervals_are_those_of_published_tables() {
        // Values of R's binom.test(failed, judged)$conf.int.
        for (failed, judged, low, high) in [
            (0, 5, 0.0, 0.52182),
            (1, 10, 0.00253, 0.44502),
            (5, 10, 0.18709, 0.81291),
            (10, 10, 0.69150, 1.0),
            (3, 100, 0.00623, 0.08518),
        ] {
            let interval = Flake { failed, judged }.interval();
            assert!(near(interval.0, low) && near(interval.1, high), "{failed} of {judged}: {interval:?}");
        }
        assert_eq!(Flake { failed: 0, judged: 0 }.interval(), (0.0, 1.0));
        assert_eq!(Flake { failed: 0, judged: 0 }.rate(), None);
    }

    #[test]
    fn chances_add_up() {
        assert!(near(at_most(0, 5, 0.3), 0.16807));
        assert!(near(at_most(1, 5, 0.3), 0.52822));
        assert_eq!((at_most(5, 5, 0.3), at_most(0, 5, 0.0), at_most(0, 5, 1.0)), (1.0, 1.0, 0.0));
        assert!(at_most(500, 1000, 0.5) > 0.5 && at_most(500, 1000, 0.5) < 0.52);
        assert!(near(over_steps(0.16807, 10), 0.84118));
        // 1 - 0.05^(1/5).
        assert!(near(seen_from(0, 5), 0.45072) && seen_from(5, 5) == 1.0);
        assert_eq!(over_steps(1.0, 3), 1.0);
        assert_eq!(over_steps(0.0, 3), 0.0);
    }

    #[test]
    fn runs_needed_keep_the_promise_and_one_less_does_not() {
        let runs = runs_for(0.3, 10, 0.01, 1000, |_| 0).unwrap();
        assert!(over_steps(at_most(0, runs, 0.3), 10) <= 0.01);
        assert!(over_steps(at_most(0, runs - 1, 0.3), 10) > 0.01);
        assert_eq!(runs_for(1.0, 10, 0.01, 1000, |_| 0), Some(1));
        let forgiving = runs_for(0.5, 10, 0.01, 1000, |runs| runs / 5).unwrap();
        assert!(forgiving > runs_for(0.5, 10, 0.01, 1000, |_| 0).unwrap());
        assert_eq!(runs_for(0.0, 10, 0.01, 1000, |_| 0), None);
    }
}
