//! The judgement: all checks, the findings, the cause, and the exit code.
//!
//! Owns putting them together; leaves each to its file.
//! Invariant: the outcome is never better than any check says, except where the cause explains it away.

use super::assert::Thresholds;
use super::cause;
use super::check::Check;
use super::log_checks::{kernel_log_clean, telemetry_complete};
use super::outcome::Outcome;
use super::stage::{reached, stopped_at};
use super::{scheduler, workers};
use crate::klog::sched_ext::SchedExit;
use crate::klog::{self, Finding, Severity};
use crate::proto::message::Stage;
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
}

/// Whether the kernel said it while workers worked; what it said at boot disturbed none of them.
fn during_scenario(record: &Record, time_us: Option<u64>) -> bool {
    let (Some(time_us), Some(end)) = (time_us, &record.scenario_end) else { return true };
    let start_ns = end.uptime_ns.saturating_sub(end.elapsed_ns);
    time_us.saturating_mul(NS_PER_US) >= start_ns
}

/// Judges a record.
pub fn judge(record: &Record, thresholds: &Thresholds) -> Verdict {
    let log = klog::classify(&record.klog, &record.console);
    let noise = log
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::HostNoise && during_scenario(record, finding.time_us));
    let mut checks = vec![scheduler::check(record, &log), kernel_log_clean(record, &log, thresholds)];
    checks.extend(workers::checks(record, thresholds, noise.map(|finding| finding.title.as_str())));
    checks.push(telemetry_complete(record));
    let (outcome, headline) = cause::find(record, &log, &checks, thresholds);
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
    }
}
