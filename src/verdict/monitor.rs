//! Run queues as the host sees them, and the rates of sched_ext's own events.
//!
//! Owns these checks; leaves counting events to scx/.
//! Invariant: where nothing watches the run queues, their checks are listed as not applied, or Inconclusive if asked for.

use super::check::{Check, Measure};
use super::decide::{Found, decide};
use crate::proto::limits::{Assert, CheckId};
use crate::proto::message::{SchedFinal, Stage};
use crate::proto::record::Record;
use crate::units::{NS_PER_SEC, approx};

const QUEUES: [CheckId; 3] = [CheckId::MaxImbalance, CheckId::MaxDsqDepth, CheckId::ClockStall];
/// Counters of /sys/kernel/sched_ext/root/events.
const EVENTS: [(CheckId, &str); 2] =
    [(CheckId::MaxFallbackRate, "SCX_EV_SELECT_CPU_FALLBACK"), (CheckId::MaxKeepLastRate, "SCX_EV_DISPATCH_KEEP_LAST")];

pub fn checks(record: &Record, limits: &Assert) -> Vec<Check> {
    let unwatched = || Found::missing("no monitor looks into this guest's run queues");
    let mut list: Vec<Check> = QUEUES.map(|id| decide(id, limits, unwatched())).into();
    list.extend(EVENTS.map(|(id, event)| decide(id, limits, rate(record, event))));
    list
}

/// Events a second from the scheduler's enabling to just before its stop.
fn rate(record: &Record, event: &str) -> Found {
    if record.plan.as_ref().is_some_and(|plan| plan.sched.is_none()) {
        return Found::nothing("the kernel's own scheduler is the subject");
    }
    let Some(last) = &record.sched_final else { return Found::missing("the scheduler's end was not seen") };
    let Some(count) = count(last, event) else {
        return Found::missing(format!("this kernel does not count {event}"));
    };
    let Some(ns) = enabled_ns(record).filter(|ns| *ns > 0) else {
        return Found::missing("how long the scheduler was enabled is not known");
    };
    let rate = count as f64 * NS_PER_SEC as f64 / ns as f64;
    Found::new(Measure::PerSecond(rate), format!("{count} times {event} in {}", approx(ns)))
}

/// A counter that went back was reset meanwhile, and tells nothing.
fn count(last: &SchedFinal, event: &str) -> Option<u64> {
    let (_, delta) = last.events.iter().find(|(name, _)| name == event)?;
    u64::try_from(*delta).ok()
}

fn enabled_ns(record: &Record) -> Option<u64> {
    record.mark(Stage::ScenarioEnd)?.checked_sub(record.mark(Stage::SchedulerEnabled)?)
}
