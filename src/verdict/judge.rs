//! The judgement: all checks, the findings, the cause, and the exit code.
//!
//! Owns putting them together; leaves each to its file.
//! Invariant: the outcome is never better than any check says, except where the cause explains it away.

use super::cause;
use super::check::{Check, Status};
use super::decide::{OFF, insist, with};
use super::log_checks::{kernel_log_clean, telemetry_complete};
use super::outcome::Outcome;
use super::scene::Scene;
use super::several::{OfScenario, judge_by};
use super::stage::{reached, stopped_at};
use super::{counters, monitor, own, scheduler, table, workers};
use crate::klog::sched_ext::SchedExit;
use crate::klog::{self, Finding, KernelLog, Severity};
use crate::proto::limits::{Assert, CheckId, Layers};
use crate::proto::message::Stage;
use crate::proto::plan::Plan;
use crate::proto::record::Record;
use crate::units::NS_PER_US;

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub outcome: Outcome,
    /// The cause in one sentence.
    pub headline: String,
    /// The last stage that was reached.
    pub reached: Option<Stage>,
    /// Where it stopped, in words; none: it said all it had to say.
    pub stopped: Option<&'static str>,
    pub checks: Vec<Check>,
    /// What the kernel reported, in order.
    pub findings: Vec<Finding>,
    /// The schedulers that the kernel disabled, in order.
    pub sched_exits: Vec<SchedExit>,
    /// Kernel lines of level error or worse that no pattern knows.
    pub unknown_kernel_errors: u64,
    pub exit_code: u8,
    /// Where there were several scenarios: the verdict on each.
    pub scenarios: Vec<OfScenario>,
}

fn scheduler_alive(record: &Record, log: &KernelLog, limits: &Assert) -> Check {
    let check = scheduler::check(record, log);
    if table::is_on(limits, CheckId::SchedulerAlive) { check } else { with(check, Status::NotApplied, OFF) }
}

/// Whether the kernel said it while workers worked; what it said at boot disturbed none of them.
pub(super) fn during_scenario(record: &Record, time_us: Option<u64>) -> bool {
    let ended = record.scenario_end.as_ref().map(|end| end.uptime_ns.saturating_sub(end.elapsed_ns));
    match (time_us, ended.or(record.scenario_uptime_ns)) {
        (Some(time_us), Some(start_ns)) => time_us.saturating_mul(NS_PER_US) >= start_ns,
        _ => true,
    }
}

/// The limits that a record knows, in layers, its scenario's among them.
pub fn stored_layers(record: &Record) -> Layers {
    record.plan.as_ref().map(layers_of).unwrap_or_default()
}

/// The same of a plan: what any of its scenarios says counts.
pub fn layers_of(plan: &Plan) -> Layers {
    let own = plan.scenarios.iter().filter_map(|scenario| table::of_pairs(&scenario.asserts).ok());
    // What a scenario says in words is refused before the run where it cannot be read.
    let scenario = own.fold(plan.limits.scenario, |sum, layer| sum.merge(&layer));
    Layers { scenario, ..plan.limits }
}

/// Judges a record by the limits that it knows itself.
pub fn judge_stored(record: &Record) -> Verdict {
    judge_by(record, &stored_layers(record))
}

/// Judges a record of one scenario.
pub fn judge(record: &Record, limits: &Assert) -> Verdict {
    let mut log = klog::classify(&record.klog, &record.console);
    if let Some(plan) = &record.plan {
        log.allow(&plan.guards.allow_log);
    }
    let noise = log
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::HostNoise && during_scenario(record, finding.time_us));
    let scene = Scene::of_record(record, noise.map(|finding| finding.title.as_str()));
    let mut checks = vec![scheduler_alive(record, &log, limits), kernel_log_clean(record, &log, limits)];
    checks.extend(workers::checks(&scene, limits));
    checks.extend(monitor::checks(&scene, record, limits));
    checks.extend(counters::checks(record));
    checks.extend(own::check(record));
    insist(&mut checks, limits);
    checks.push(telemetry_complete(record, limits));
    let (outcome, headline) = cause::find(record, &log, &checks, limits);
    Verdict {
        outcome,
        headline,
        reached: reached(record),
        stopped: stopped_at(record, log.spoke),
        checks,
        findings: log.findings,
        sched_exits: log.exits,
        unknown_kernel_errors: log.unknown_errors,
        exit_code: outcome.exit_code(),
        scenarios: Vec::new(),
    }
}
