//! Checks on the kernel's own counters of a scheduler: events, and tasks that it refused.
//!
//! Owns these two checks; leaves reading the counters to scx/, their limits to the command line.
//! Invariant: a counter with a limit that was not read is Inconclusive, and says which.

use super::check::{Check, Measure, Status};
use super::decide::OFF;
use crate::proto::record::Record;

/// What every counter's name begins with, and may be left out.
const PREFIX: &str = "SCX_EV_";

/// One check for each limit, and one line for what has none.
pub fn checks(record: &Record) -> Vec<Check> {
    let Some(plan) = &record.plan else { return Vec::new() };
    let guards = &plan.guards;
    let mut list: Vec<Check> = guards.max_events.iter().map(|(name, most)| event(record, name, *most)).collect();
    if list.is_empty() {
        list.push(Check::new("max_event", Status::NotApplied, OFF));
    }
    list.push(match guards.max_rejected {
        Some(most) => rejected(record, most),
        None => Check::new("max_rejected", Status::NotApplied, OFF),
    });
    list
}

/// Whether a counter of the kernel's is meant.
pub fn is_named(counter: &str, name: &str) -> bool {
    counter == name || counter.strip_prefix(PREFIX).is_some_and(|short| short.eq_ignore_ascii_case(name))
}

fn held(check: Check, value: u64, most: u64) -> Check {
    let status = if value > most { Status::Fail } else { Status::Pass };
    Check { status, threshold: Some(Measure::Count(most)), ..check }.value(Measure::Count(value))
}

fn event(record: &Record, name: &str, most: u64) -> Check {
    let check = |status, reason: String| Check::new("max_event", status, reason);
    let Some(last) = &record.sched_final else {
        return check(Status::Inconclusive, format!("{name}: the scheduler's counters were not read at its end"));
    };
    match last.events.iter().find(|(counter, _)| is_named(counter, name)) {
        // A counter that went down belongs to another instance, which is another check's business.
        Some((counter, delta)) => held(check(Status::Pass, counter.clone()), u64::try_from(*delta).unwrap_or(0), most),
        None if last.events.is_empty() => check(Status::Inconclusive, format!("{name}: this kernel shows no counters")),
        None => {
            let known: Vec<&str> = last.events.iter().map(|(counter, _)| counter.as_str()).collect();
            check(Status::Inconclusive, format!("{name} is no counter of this kernel, which has {}", known.join(", ")))
        }
    }
}

fn rejected(record: &Record, most: u64) -> Check {
    match record.sched_final.as_ref().and_then(|last| last.nr_rejected) {
        Some(count) => held(Check::new("max_rejected", Status::Pass, "tasks that asked for SCHED_EXT"), count, most),
        None => Check::new("max_rejected", Status::Inconclusive, "nr_rejected was not read at the scheduler's end"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::passing_with_scheduler;
    use super::super::{Outcome, judge_stored};
    use super::*;
    use crate::proto::guards::Guards;

    fn held_to(guards: Guards, change: impl FnOnce(&mut Record)) -> (Outcome, Vec<Check>) {
        let mut record = passing_with_scheduler();
        record.plan.as_mut().unwrap().guards = guards;
        change(&mut record);
        (judge_stored(&record).outcome, checks(&record))
    }

    fn events(name: &str, most: u64) -> Guards {
        Guards { max_events: vec![(name.into(), most)], ..Guards::default() }
    }

    #[test]
    fn counter_above_its_limit_fails_and_at_it_passes() {
        let grown = |record: &mut Record| record.sched_final.as_mut().unwrap().events[0].1 = 3;
        for name in ["SCX_EV_SELECT_CPU_FALLBACK", "select_cpu_fallback"] {
            let (outcome, list) = held_to(events(name, 2), grown);
            assert_eq!((outcome, list[0].status), (Outcome::Fail, Status::Fail));
            assert!(
                list[0].sentence().contains("max_event is 3, more than 2 (SCX_EV_SELECT"),
                "{}",
                list[0].sentence()
            );
            assert_eq!(held_to(events(name, 3), grown).0, Outcome::Pass);
        }
    }

    #[test]
    fn unread_and_unknown_counters_are_inconclusive() {
        let (outcome, list) = held_to(events("NOTHING", 2), |_| {});
        assert_eq!(outcome, Outcome::Inconclusive);
        assert!(list[0].reason.contains("no counter of this kernel, which has SCX_EV_"), "{}", list[0].reason);
        let none = |record: &mut Record| record.sched_final.as_mut().unwrap().events.clear();
        assert_eq!(held_to(events("X", 2), none).0, Outcome::Inconclusive);
        assert_eq!(held_to(Guards::default(), none).0, Outcome::Pass);
    }

    #[test]
    fn refused_tasks_beyond_the_limit_fail() {
        let limit = || Guards { max_rejected: Some(0), ..Guards::default() };
        let one = |record: &mut Record| record.sched_final.as_mut().unwrap().nr_rejected = Some(1);
        assert_eq!(held_to(limit(), one).0, Outcome::Fail);
        assert_eq!(held_to(Guards::default(), one).0, Outcome::Pass);
        assert_eq!(held_to(limit(), |_| {}).0, Outcome::Pass);
        let none = |record: &mut Record| record.sched_final.as_mut().unwrap().nr_rejected = None;
        assert_eq!(held_to(limit(), none).0, Outcome::Inconclusive);
    }
}
