//! The six outcomes, their order, and the exit code of each.
//!
//! Owns how outcomes merge; leaves finding the cause to `cause`.
//! Invariant: merging is commutative and associative, and never gives less than either side.

use crate::error::Kind;

/// What a run came to. The order is the order of merging: the later one wins.
///
/// - A Fail stands on evidence, so missing telemetry (Inconclusive) does not take it back.
/// - An Error means that the harness itself is in doubt, and with it whatever it observed: it outranks Fail. `cause`
///   names the exceptions, where the evidence against the scheduler or the kernel came first.
/// - Interrupted outranks all: the user said that the result is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    Pass,
    /// This kernel or machine cannot be judged.
    Skip,
    /// Telemetry is missing, or the host disturbed the run.
    Inconclusive,
    /// The scheduler, or the kernel under it, misbehaved.
    Fail,
    /// The harness could not do its job.
    Error,
    Interrupted,
}

/// The scheduler or the kernel misbehaved (`git bisect run`: bad).
const EXIT_FAIL: u8 = 1;

impl Outcome {
    pub const ALL: [Self; 6] = [Self::Pass, Self::Skip, Self::Inconclusive, Self::Fail, Self::Error, Self::Interrupted];

    pub fn merge(self, other: Self) -> Self {
        self.max(other)
    }

    /// The process exit code; the codes that errors share are theirs.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => EXIT_FAIL,
            Self::Skip | Self::Inconclusive => Kind::CannotJudge.exit_code(),
            Self::Error => Kind::Internal.exit_code(),
            Self::Interrupted => Kind::Interrupted.exit_code(),
        }
    }

    /// The word of the verdict line and of the JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Skip => "SKIP",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Fail => "FAIL",
            Self::Error => "ERROR",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_is_commutative_associative_and_never_better() {
        for a in Outcome::ALL {
            assert_eq!(a.merge(a), a);
            assert_eq!(a.merge(Outcome::Pass), a);
            for b in Outcome::ALL {
                assert_eq!(a.merge(b), b.merge(a));
                assert!(a.merge(b) >= a && a.merge(b) >= b);
                for c in Outcome::ALL {
                    assert_eq!(a.merge(b).merge(c), a.merge(b.merge(c)));
                }
            }
        }
        assert_eq!(Outcome::Fail.merge(Outcome::Inconclusive), Outcome::Fail);
        assert_eq!(Outcome::Pass.merge(Outcome::Inconclusive), Outcome::Inconclusive);
    }

    #[test]
    fn exit_codes_are_those_that_bisect_expects() {
        let codes: Vec<u8> = Outcome::ALL.iter().map(|outcome| outcome.exit_code()).collect();
        assert_eq!(codes, [0, 125, 125, 1, 128, 130]);
    }
}
