//! From what was measured to how a check came out: one rule for every check that has a limit.
//!
//! Owns the rule; leaves measuring to the files named after their subject, limits to `table`.
//! Invariant: data that are missing or void never give Pass, except where the limit is kept in spite of the disturbance.

use super::check::{Check, Measure, Status};
use super::table::{Row, Unit, row};
use crate::proto::limits::{Assert, CheckId, Insist, Limit};

/// Reason of a check that nobody wants.
pub const OFF: &str = "switched off";

/// What was measured for one check.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The cgroup it is about, where it is about one.
    pub group: Option<String>,
    /// The worst number there is.
    pub value: Option<Measure>,
    /// Whose number it is.
    pub reason: String,
    /// Why the number of somebody is not known.
    pub missing: Option<String>,
    /// Why there is nothing that the check could be about.
    pub nothing: Option<String>,
    /// Why numbers mean nothing on this machine.
    pub void: Option<String>,
    /// Why a limit that was broken proves nothing in this run.
    pub shaken: Option<String>,
}

impl Found {
    pub fn new(value: Measure, reason: impl Into<String>) -> Self {
        Self { value: Some(value), reason: reason.into(), ..Self::default() }
    }
    pub fn missing(why: impl Into<String>) -> Self {
        Self { missing: Some(why.into()), ..Self::default() }
    }
    pub fn nothing(why: impl Into<String>) -> Self {
        Self { nothing: Some(why.into()), ..Self::default() }
    }
    pub fn of(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }
}

/// Holds what was found to the limit of its check.
pub fn decide(id: CheckId, limits: &Assert, found: Found) -> Check {
    let row = row(id);
    let mut check = Check::new(row.name, Status::Pass, found.reason.clone());
    check.group.clone_from(&found.group);
    check.value = found.value;
    check.side = row.side;
    let Limit::Set { value, insist } = limits.limit(id) else {
        return with(check, Status::NotApplied, OFF);
    };
    if row.unit != Unit::Switch {
        check.threshold = Some(row.measure(value));
    }
    hold(check, row, (value, insist), &found)
}

fn hold(mut check: Check, row: &Row, (limit, insist): (u64, Insist), found: &Found) -> Check {
    if let Some(why) = &found.nothing {
        return with(check, Status::NotApplied, why);
    }
    let broken = found.value.is_some_and(|value| !row.keeps(value, limit));
    if let Some(why) = &found.void {
        return match insist {
            Insist::Asked if broken => {
                let reason = format!("void, {why}; {}", check.reason);
                with(check, Status::Inconclusive, &reason)
            }
            Insist::Asked => missing(check, insist, found),
            Insist::Usual | Insist::WhereKnown => with(check, Status::NotApplied, why),
        };
    }
    if broken {
        check.status = Status::Fail;
        if let Some(why) = &found.shaken {
            let reason = format!("void, as {why}; {}", check.reason);
            return with(check, Status::Inconclusive, &reason);
        }
        return check;
    }
    missing(check, insist, found)
}

/// Where the limit is not broken: whether everything was there to say that it is kept.
fn missing(check: Check, insist: Insist, found: &Found) -> Check {
    let why = match (&found.missing, found.value) {
        (Some(why), _) => why,
        (None, Some(_)) => return check,
        (None, None) => "not measured",
    };
    let status = if insist == Insist::WhereKnown { Status::NotApplied } else { Status::Inconclusive };
    with(check, status, why)
}

pub fn with(mut check: Check, status: Status, reason: &str) -> Check {
    check.status = status;
    check.reason = reason.to_owned();
    check
}

/// Whether somebody asked for the check.
pub fn is_asked(limits: &Assert, id: CheckId) -> bool {
    matches!(limits.limit(id), Limit::Set { insist: Insist::Asked, .. })
}

/// What was asked for and could be applied nowhere is Inconclusive, not passed over.
pub fn insist(checks: &mut [Check], limits: &Assert) {
    for id in CheckId::ALL {
        let asked = is_asked(limits, id);
        let mut of_id = checks.iter_mut().filter(|check| check.name == row(id).name).peekable();
        if asked && of_id.peek().is_some() {
            let mut of_id: Vec<&mut Check> = of_id.collect();
            if of_id.iter().all(|check| check.status == Status::NotApplied) {
                if let Some(first) = of_id.first_mut() {
                    first.status = Status::Inconclusive;
                    first.reason = format!("asked for, but {}", first.reason);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Assert = Assert::new().max_gap_ns(10);

    fn limits(insist: Insist) -> Assert {
        Assert::new().with(CheckId::MaxGap, Limit::Set { value: 10, insist })
    }

    fn status(limits: &Assert, found: Found) -> Status {
        decide(CheckId::MaxGap, limits, found).status
    }

    #[test]
    fn a_number_alone_decides() {
        let found = |ns| Found::new(Measure::Ns(ns), "w");
        for insist in [Insist::WhereKnown, Insist::Usual, Insist::Asked] {
            assert_eq!(status(&limits(insist), found(10)), Status::Pass);
            assert_eq!(status(&limits(insist), found(11)), Status::Fail);
        }
        assert_eq!(status(&Assert::none(), found(11)), Status::NotApplied);
        assert_eq!(status(&Assert::new(), found(11)), Status::NotApplied);
    }

    #[test]
    fn missing_data_are_inconclusive_unless_only_wanted_where_known() {
        for found in [Found::missing("gone"), Found::default()] {
            assert_eq!(status(&limits(Insist::WhereKnown), found.clone()), Status::NotApplied);
            assert_eq!(status(&limits(Insist::Usual), found.clone()), Status::Inconclusive);
            assert_eq!(status(&ASKED, found), Status::Inconclusive);
        }
        let partly = |ns| Found { missing: Some("gone".into()), ..Found::new(Measure::Ns(ns), "w") };
        assert_eq!(status(&ASKED, partly(10)), Status::Inconclusive);
        assert_eq!(status(&ASKED, partly(11)), Status::Fail, "one that fails is enough");
    }

    #[test]
    fn void_numbers_are_left_out_unless_asked_for() {
        let void = |ns| Found { void: Some("slow".into()), ..Found::new(Measure::Ns(ns), "w") };
        for insist in [Insist::WhereKnown, Insist::Usual] {
            assert_eq!(status(&limits(insist), void(11)), Status::NotApplied);
            assert_eq!(status(&limits(insist), void(9)), Status::NotApplied);
        }
        // A machine that only makes things worse cannot make a bad number good.
        assert_eq!(status(&ASKED, void(9)), Status::Pass);
        let check = decide(CheckId::MaxGap, &ASKED, void(11));
        assert_eq!((check.status, check.reason.as_str()), (Status::Inconclusive, "void, slow; w"));
    }

    #[test]
    fn what_was_asked_for_and_applied_nowhere_is_inconclusive() {
        let decide_all = |limits: &Assert, found: &[Found]| {
            let decided = found.iter().map(|found| decide(CheckId::MaxGap, limits, found.clone()));
            let mut checks: Vec<Check> = decided.collect();
            insist(&mut checks, limits);
            checks.into_iter().map(|check| check.status).collect::<Vec<_>>()
        };
        let (nothing, good) = (Found::nothing("no worker"), Found::new(Measure::Ns(1), "w"));
        let (alone, beside) = ([nothing.clone(), nothing.clone()], [nothing, good]);
        assert_eq!(decide_all(&ASKED, &alone), [Status::Inconclusive, Status::NotApplied]);
        assert_eq!(decide_all(&ASKED, &beside), [Status::NotApplied, Status::Pass]);
        assert_eq!(decide_all(&limits(Insist::Usual), &alone), [Status::NotApplied; 2]);
    }
}
