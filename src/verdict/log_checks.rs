//! Checks on what was heard: the kernel log is clean, and the telemetry is whole.
//!
//! Owns these two checks; leaves the log's meaning to klog/, the workers' numbers to `workers`.
//! Invariant: a log or a report that was cut can confirm a failure, never a pass.

use super::check::{Check, Measure, Status};
use super::judge::during_scenario;
use super::noise;
use super::table::{self, in_force, is_on};
use super::workers::{disturbed, emulated, missing_reports, on_metal};
use crate::klog::{Finding, KernelLog, Severity};
use crate::proto::limits::{Assert, CheckId, Layers};
use crate::proto::message::VmEnd;
use crate::proto::plan::Plan;
use crate::proto::record::Record;
use crate::units::approx;

/// The kernel log holds nothing that fails a run.
pub fn kernel_log_clean(record: &Record, log: &KernelLog, limits: &Assert) -> Check {
    const NAME: &str = "kernel_log_clean";
    let bad: Vec<_> = log.findings.iter().filter(|finding| finding.severity == Severity::Fail).collect();
    let measured = Measure::Count(bad.len() as u64);
    let check = |status, reason: String| Check::new(NAME, status, reason).value(measured);
    if !is_on(limits, CheckId::KernelLogClean) {
        return check(Status::NotApplied, "switched off".into());
    }
    if on_metal(record) {
        return check(Status::NotApplied, "the log of this machine is not this run's alone".into());
    }
    let excuses: Option<Vec<String>> = bad.iter().map(|finding| excuse(record, log, finding)).collect();
    if let (Some(first), Some(Some(why))) = (bad.first(), excuses.as_ref().map(|list| list.first())) {
        return check(Status::Inconclusive, format!("void, as {why}: {}", first.title));
    }
    if let Some(first) = bad.first() {
        let more = if bad.len() > 1 { format!(", and {} more", bad.len() - 1) } else { String::new() };
        return check(Status::Fail, format!("{}{more}", first.title));
    }
    if let Some(harness) = log.findings.iter().find(|finding| finding.severity == Severity::Harness) {
        return check(Status::Inconclusive, harness.title.clone());
    }
    if log.findings_cut > 0 {
        let why = format!("{} findings were beyond the number that is kept", log.findings_cut);
        return check(Status::Inconclusive, why);
    }
    match log_gaps(record).first() {
        Some(gap) => check(Status::Inconclusive, gap.clone()),
        None => check(Status::Pass, format!("nothing bad in {} records", record.klog.len())),
    }
}

/// Whether a stall that the kernel reports fails every run of this plan, which then need not go on. The stalls of an emulated
/// guest never do, nor do those of a run in which another kind of failure is looked for; a pattern of --allow-log may be in
/// a line of the report that is still to come.
pub fn stall_settles(plan: &Plan, emulated: bool) -> bool {
    let on = |scenario| is_on(&in_force(&Layers { scenario, ..plan.limits }), CheckId::KernelLogClean);
    let mut own = plan.scenarios.iter().filter_map(|scenario| table::of_pairs(&scenario.asserts).ok());
    let always = on(plan.limits.scenario) && own.all(|own| on(plan.limits.scenario.merge(&own)));
    always && !emulated && plan.guards.allow_log.is_empty() && !plan.guards.stalls_may_be
}

/// Why a finding of the kernel may be the host's doing; none where it is not. What share of the scenario the host took says
/// nothing of a stall before it.
pub fn excuse(record: &Record, log: &KernelLog, finding: &Finding) -> Option<String> {
    let within = emulated(record) || during_scenario(record, finding.time_us);
    let of_times = || disturbed(record).filter(|_| within && finding.class.is_stall());
    of_times().or_else(|| noise::explains_finding(record, log, finding))
}

/// What is missing of the kernel log.
fn log_gaps(record: &Record) -> Vec<String> {
    let mut gaps = Vec::new();
    match record.klog_end {
        None => gaps.push("the kernel log was not read to its end".into()),
        Some((_, lost)) if lost > 0 => {
            gaps.push(format!("{lost} kernel log records were overwritten before they were read"))
        }
        Some((forwarded, _)) => {
            let kept = record.klog.len() as u64 + record.klog_cut;
            if kept < forwarded {
                gaps.push(format!("{} of {forwarded} kernel log records did not arrive", forwarded - kept));
            }
        }
    }
    if record.klog_cut > 0 {
        gaps.push(format!("{} kernel log records were beyond the cap", record.klog_cut));
    }
    gaps
}

/// Everything that the checks need was there.
pub fn telemetry_complete(record: &Record, limits: &Assert) -> Check {
    const NAME: &str = "telemetry_complete";
    let gaps = gaps(record, limits);
    let measured = Measure::Count(gaps.len() as u64);
    let status = if gaps.is_empty() { Status::Pass } else { Status::Inconclusive };
    let reason = match gaps.split_first() {
        None if on_metal(record) => "every report".to_owned(),
        None => "every report, the whole kernel log, an orderly end".to_owned(),
        Some((first, [])) => first.clone(),
        Some((first, more)) => format!("{first}; and {} more: {}", more.len(), more.join("; ")),
    };
    Check::new(NAME, status, reason).value(measured)
}

/// What is missing, the most telling first.
fn gaps(record: &Record, limits: &Assert) -> Vec<String> {
    let mut gaps: Vec<String> = Vec::new();
    let mut need = |there: bool, what: &str| {
        if !there {
            gaps.push(what.to_owned());
        }
    };
    need(record.host.is_some(), "the host's own facts are missing");
    need(record.plan.is_some(), "the plan is missing");
    need(record.hello.is_some(), "the guest did not say hello");
    need(record.scenario_end.is_some(), "the scenario's end was not seen");
    if let Some(early) = record.scenario_end.as_ref().and_then(|end| end.early.as_ref()) {
        gaps.push(format!("the scenario ended early: {early}"));
    }
    gaps.extend(missing_reports(record));
    let mute = record.reports.iter().find(|(_, report)| report.completed && report.max_run_delay_ns.is_none());
    if let Some((group, report)) = mute.filter(|_| is_on(limits, CheckId::MaxRunDelay)) {
        gaps.push(format!(
            "no run delay from worker {} of {group} (CONFIG_SCHED_INFO, sched_schedstats)",
            report.worker_idx
        ));
    }
    if on_metal(record) {
        // There is neither a log of its own nor a VM.
        return gaps;
    }
    gaps.extend(gaps_of_end(record));
    gaps
}

/// What is missing of the log, and of an orderly end.
pub fn gaps_of_end(record: &Record) -> Vec<String> {
    let mut gaps = log_gaps(record);
    gaps.extend(record.channel_damage.first().map(|text| format!("the channel was damaged: {text}")));
    if !record.bye {
        gaps.push("the guest did not say goodbye".into());
    }
    match &record.vm_end {
        Some(VmEnd::Reset | VmEnd::Poweroff) => {}
        // All that is judged was there when it said goodbye; that it then does not restart is told beside the verdict.
        Some(VmEnd::TimedOut) if record.bye => {}
        Some(end) => gaps.push(format!("the VM did not end in order: {}", vm_end_text(end))),
        None => gaps.push("how the VM ended is not known".into()),
    }
    gaps
}

/// How a VM ended, in words.
pub fn vm_end_text(end: &VmEnd) -> String {
    match end {
        VmEnd::Reset => "it reset itself".into(),
        VmEnd::Poweroff => "it powered off".into(),
        VmEnd::TripleFault => "triple fault".into(),
        VmEnd::TimedOut => "it was killed at the deadline".into(),
        VmEnd::Silent { for_ns, .. } => format!("it was killed after {} without a sign of life", approx(*for_ns)),
        VmEnd::Interrupted => "interrupted".into(),
        VmEnd::MachineError { text } => format!("machine error: {text}"),
        VmEnd::Cut { reason } => format!("ended early: {reason}"),
    }
}
