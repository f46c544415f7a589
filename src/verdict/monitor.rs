//! Run queues as the monitor saw them, and the rates of sched_ext's own events.
//!
//! Owns these checks, and when the monitor runs; leaves looking to guest/ and scx/, counting events to scx/.
//! Invariant: where nobody asked for a limit on run queues they are not looked into, and their checks are listed as not applied.

use super::check::{Check, Measure};
use super::decide::{Found, decide, is_asked};
use super::scene::Scene;
use super::table::{self, in_force};
use crate::proto::limits::{Assert, CheckId, Layers, MILLI};
use crate::proto::message::{SchedFinal, Stage};
use crate::proto::plan::Plan;
use crate::proto::record::Record;
use crate::proto::runqueues::{LOOK_EVERY_NS, Lasting, RunQueues, WINDOW};
use crate::units::{NS_PER_SEC, approx};

const QUEUES: [CheckId; 3] = [CheckId::MaxImbalance, CheckId::MaxDsqDepth, CheckId::ClockStall];
/// Counters of /sys/kernel/sched_ext/root/events.
const EVENTS: [(CheckId, &str); 2] =
    [(CheckId::MaxFallbackRate, "SCX_EV_SELECT_CPU_FALLBACK"), (CheckId::MaxKeepLastRate, "SCX_EV_DISPATCH_KEEP_LAST")];
/// Ends the reason of a check on clocks.
const NOT_ASKED: &str = "; CPUs of nohz_full= were not asked";

pub fn checks(scene: &Scene<'_>, record: &Record, limits: &Assert) -> Vec<Check> {
    let mut list: Vec<Check> = QUEUES.map(|id| decide(id, limits, queues(id, scene, record))).into();
    list.extend(EVENTS.map(|(id, event)| decide(id, limits, rate(record, event))));
    list
}

/// Whether a run of this plan is to look into the run queues: its looks cost time, so somebody has to ask for one of them.
pub fn watches_queues(plan: &Plan) -> bool {
    let asked = |scenario: Assert| {
        let limits = in_force(&Layers { scenario, ..plan.limits });
        QUEUES.into_iter().any(|id| is_asked(&limits, id))
    };
    let own = plan.scenarios.iter().filter_map(|scenario| table::of_pairs(&scenario.asserts).ok());
    asked(plan.limits.scenario) || own.map(|own| plan.limits.scenario.merge(&own)).any(asked)
}

fn queues(id: CheckId, scene: &Scene<'_>, record: &Record) -> Found {
    let no_scheduler = record.plan.as_ref().is_some_and(|plan| plan.sched.is_none());
    if id == CheckId::MaxDsqDepth && no_scheduler {
        return Found::nothing("the kernel's own scheduler has no dispatch queues");
    }
    let Some(seen) = &record.queues else {
        return Found::missing("no monitor looks into this guest's run queues");
    };
    // Whoever has no time from the host cannot keep its clock.
    let mut told = if id == CheckId::ClockStall { scene.timing(found(id, seen)) } else { found(id, seen) };
    if id == CheckId::ClockStall && has_tickless_cpus(record) {
        told.reason.push_str(NOT_ASKED);
    }
    if let Some(error) = &seen.error {
        return Found { missing: Some(error.clone()), ..told };
    }
    if (seen.looks as usize) < WINDOW {
        return Found::missing(format!("{} looks into the run queues are too few for {WINDOW} in a row", seen.looks));
    }
    told
}

/// Whose clock may rightly stand.
fn has_tickless_cpus(record: &Record) -> bool {
    let words = record.host.iter().flat_map(|host| host.kernel_cmdline.split_whitespace());
    words.into_iter().any(|word| word.starts_with("nohz_full="))
}

fn found(id: CheckId, seen: &RunQueues) -> Found {
    let text = |what: &str, worst: Lasting| {
        let looks = format!("{WINDOW} looks in a row, {} apart", approx(LOOK_EVERY_NS));
        format!("{what} of CPU {}, {looks}, at {}", worst.cpu, approx(worst.at_ns))
    };
    match (id, seen.imbalance, seen.depth) {
        (CheckId::MaxImbalance, Some(worst), _) => {
            Found::new(Measure::Ratio(worst.value as f64 / MILLI as f64), text("the queue", worst))
        }
        (CheckId::MaxDsqDepth, _, Some(worst)) => {
            Found::new(Measure::Count(worst.value), text("the local queue", worst))
        }
        (CheckId::MaxDsqDepth, ..) => Found::missing("this kernel shows no local dispatch queues"),
        (CheckId::ClockStall, ..) => match seen.still.filter(|worst| worst.value >= WINDOW as u64) {
            Some(worst) => Found::new(
                Measure::Count(worst.value),
                format!(
                    "the clock of CPU {} stood still for {} looks, {} apart, while it had tasks, until {}",
                    worst.cpu,
                    worst.value,
                    approx(LOOK_EVERY_NS),
                    approx(worst.at_ns)
                ),
            ),
            None => Found::new(Measure::Count(0), "no run queue's clock stood still while it had tasks"),
        },
        _ => Found::default(),
    }
}

/// Events a second from the scheduler's enabling to just before its stop.
fn rate(record: &Record, event: &str) -> Found {
    if record.plan.as_ref().is_some_and(|plan| plan.sched.is_none()) {
        return Found::nothing("the kernel's own scheduler is the subject");
    }
    let ends: Option<Vec<&SchedFinal>> = record.sched_ends().collect();
    let Some(ends) = ends else { return Found::missing("the scheduler's end was not seen") };
    let counts: Option<Vec<u64>> = ends.into_iter().map(|last| count(last, event)).collect();
    let Some(counts) = counts else { return Found::missing(format!("this kernel does not count {event}")) };
    let count = counts.into_iter().fold(0, u64::saturating_add);
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
