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

/// Summed over every instance of the scheduler: a scenario that starts it again starts its counters again.
fn event(record: &Record, name: &str, most: u64) -> Check {
    let (mut total, mut named, mut unread) = (0_u64, None, None);
    for end in record.sched_ends() {
        let events = end.map_or(&[][..], |last| &last.events);
        match events.iter().find(|(counter, _)| is_named(counter, name)) {
            Some((counter, delta)) => {
                // A counter that went down belongs to another instance, which is another check's business.
                total = total.saturating_add(u64::try_from(*delta).unwrap_or(0));
                named = Some(counter.clone());
            }
            None if end.is_none() => {
                unread = Some(format!("{name}: the scheduler's counters were not read at its end"));
            }
            None if events.is_empty() => unread = Some(format!("{name}: this kernel shows no counters")),
            None => {
                let known: Vec<&str> = events.iter().map(|(counter, _)| counter.as_str()).collect();
                unread = Some(format!("{name} is no counter of this kernel, which has {}", known.join(", ")));
            }
        }
    }
    let check = held(Check::new("max_event", Status::Pass, named.unwrap_or_else(|| name.to_owned())), total, most);
    unless(check, unread)
}

/// Where something was not read, a limit can be broken, but not kept.
fn unless(check: Check, unread: Option<String>) -> Check {
    match unread {
        Some(why) if check.status == Status::Pass => Check::new(check.name, Status::Inconclusive, why),
        _ => check,
    }
}

fn rejected(record: &Record, most: u64) -> Check {
    let counts = || record.sched_ends().map(|end| end.and_then(|last| last.nr_rejected));
    let total = counts().flatten().fold(0_u64, u64::saturating_add);
    let unread = counts().any(|count| count.is_none());
    let check = held(Check::new("max_rejected", Status::Pass, "tasks that asked for SCHED_EXT"), total, most);
    unless(check, unread.then(|| "nr_rejected was not read at the scheduler's end".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::passing_with_scheduler;
    use super::super::{Outcome, judge_stored};
    use super::*;
    use crate::proto::guards::Guards;
    use crate::proto::message::SchedFinal;
    use crate::proto::record::Instance;

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
    fn counters_are_summed_over_the_instances_that_a_scenario_restarts() {
        let again = |change: fn(&mut Option<SchedFinal>)| {
            move |record: &mut Record| {
                let last = record.sched_final.as_mut().unwrap();
                last.events[0].1 = 2;
                last.nr_rejected = Some(2);
                let mut first = record.sched_final.clone();
                change(&mut first);
                record.earlier.push(Instance { enabled: record.sched_enabled.clone().unwrap(), last: first });
            }
        };
        let rejected = |most| Guards { max_rejected: Some(most), ..Guards::default() };
        for limit in [rejected as fn(u64) -> Guards, |most| events("select_cpu_fallback", most)] {
            assert_eq!(held_to(limit(4), again(|_| {})).0, Outcome::Pass);
            assert_eq!(held_to(limit(3), again(|_| {})).0, Outcome::Fail);
        }
        let unread = again(|first| first.as_mut().unwrap().nr_rejected = None);
        assert_eq!(held_to(rejected(4), unread).0, Outcome::Inconclusive);
        let unread = again(|first| first.as_mut().unwrap().nr_rejected = None);
        assert_eq!(held_to(rejected(1), unread).0, Outcome::Fail);
        assert_eq!(held_to(events("select_cpu_fallback", 4), again(|first| *first = None)).0, Outcome::Inconclusive);
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
