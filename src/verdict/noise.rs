//! What host noise excuses: findings that the host can have caused by not running the vCPUs.
//!
//! Owns the thresholds and their reasons; leaves the values to proto/noise and the use to the checks and the cause.
//! Invariant: noise turns a failure into Inconclusive, never into a pass, and never without naming what was waited.

use super::judge::during_scenario;
use super::workers::{disturbed, emulated};
use crate::klog::sched_ext::SchedExit;
use crate::klog::{self, Class, Finding, KernelLog};
use crate::proto::message::{Stage, VmEnd};
use crate::proto::noise::HostNoise;
use crate::proto::plan::Plan;
use crate::proto::record::Record;
use crate::proto::report::{ExitInfo, WorkerReport, collect_ns};
use crate::units::{NS_PER_MS, NS_PER_SEC, approx};

/// Share of the guest's CPU time that the host may take before timing says more about the host than the guest: well below
/// the 15 points by which equal workers may differ.
pub const TAKEN_PERCENT: u64 = 10;
/// A stall is the host's where vCPUs waited for half of the time that it is about: then the guest had less of its CPU than
/// the host, and what the watchdog counted as the guest's time was for the most part not.
const STALL_PARTS: u64 = 2;
/// The time that a stall is about where the line does not say: the kernel's own shortest, RCU's 21 s
/// (CONFIG_RCU_CPU_STALL_TIMEOUT), rounded down.
const STALL_NS: u64 = 20 * NS_PER_SEC;
/// How an excuse begins that names the wait of one vCPU.
pub const KEPT_WAITING: &str = "the host kept a vCPU waiting";

/// Why times of the whole scenario say nothing: vCPUs waited too long for CPUs of the host, or the host itself got too
/// little of its own. None where neither was so, or where nothing was witnessed.
pub fn whole_scenario(record: &Record) -> Option<String> {
    let noise = record.noise.as_ref()?;
    // One that was cut lasted until then.
    let (from_ns, end_ns) = (record.mark(Stage::ScenarioStart)?, record.mark(Stage::ScenarioEnd));
    let to_ns = end_ns.unwrap_or(noise.to_ns);
    let cpus = u64::from(record.host.as_ref()?.topology.total_cpus());
    let given_ns = to_ns.saturating_sub(from_ns).saturating_mul(cpus);
    let waited_ns = noise.waited_between(from_ns, to_ns);
    if waited_ns.saturating_mul(100) > given_ns.saturating_mul(TAKEN_PERCENT) {
        let (waited, given) = (approx(waited_ns), approx(given_ns));
        return Some(format!("the vCPUs waited {waited} of {given} for the host's CPUs"));
    }
    let percent = noise.stolen_percent_between(from_ns, to_ns).filter(|percent| *percent > TAKEN_PERCENT as f64)?;
    Some(format!("the host's own hypervisor took {percent:.0} % of the CPU time that the host wanted"))
}

/// How a whole run was disturbed, from its start to its end: the share of the time they wanted to run in which its vCPUs
/// waited for the host's CPUs. None where that is little, or where nothing was witnessed.
pub fn disturbed_host(record: &Record) -> Option<String> {
    let percent = record.noise.as_ref()?.waited_percent()?;
    (percent > TAKEN_PERCENT as f64)
        .then(|| format!("the vCPUs waited {percent:.0} % of the time that they wanted to run"))
}

/// Why a time above its limit says nothing: without what the host took in an interval of that length it would be within.
pub fn explains(record: &Record, measured_ns: u64, limit_ns: u64) -> Option<String> {
    let waited_ns = record.noise.as_ref()?.most_within(measured_ns);
    (measured_ns.saturating_sub(waited_ns) <= limit_ns).then(|| {
        let (waited, measured) = (approx(waited_ns), approx(measured_ns));
        format!("{KEPT_WAITING} for {waited} of {measured}")
    })
}

/// Why a finding of the kernel is the host's doing: what it says did not run was kept from running.
pub fn explains_finding(record: &Record, log: &KernelLog, finding: &Finding) -> Option<String> {
    match finding.class {
        class if class.is_stall() => {
            // What other lines say may be a task's name.
            let says = matches!(class, Class::SoftLockup | Class::HardLockup | Class::WorkqueueLockup);
            let stuck_ns = klog::stuck_ms(&finding.title).filter(|_| says).map(|stuck| stuck.saturating_mul(NS_PER_MS));
            explains_stall(record, stuck_ns.unwrap_or(STALL_NS))
        }
        Class::SchedExtExit => {
            log.exits.iter().filter(|exit| exit.time_us == finding.time_us).find_map(|exit| explains_exit(record, exit))
        }
        _ => None,
    }
}

/// The same for a scheduler that the kernel disabled for a stall. What another detector than sched_ext's found is void where
/// that one's own report is. Emulation alone excuses none: the kernel took a scheduler away, which is an act and no time.
pub fn explains_exit(record: &Record, exit: &SchedExit) -> Option<String> {
    if !exit.is_stall() {
        return None;
    }
    let within = exit.is_lockup() && during_scenario(record, exit.time_us);
    let of_times = || disturbed(record).filter(|_| within && !emulated(record));
    let stalled_ns = exit.stalled_ms.map_or(STALL_NS, |stalled| stalled.saturating_mul(NS_PER_MS));
    of_times().or_else(|| explains_stall(record, stalled_ns))
}

/// Why a scheduler that did not start may only have been kept from it: the kernel disabled it for such a stall.
pub fn explains_start(record: &Record, log: &KernelLog) -> Option<String> {
    let exit = log.exits.iter().find(|exit| exit.reason.is_error())?;
    explains_exit(record, exit).map(|why| format!("void, as {why}: {}", exit.describe()))
}

/// Why workers that did no work, or gave no report, may only have been kept from it: vCPUs waited for half of the scenario,
/// or of the time that workers have to report. One that ended by itself, or could not begin, was not kept from anything.
pub fn explains_no_work(record: &Record) -> Option<String> {
    let late = |report: &WorkerReport| !report.completed && report.exit_info == Some(ExitInfo::TimedOut);
    let reports = || record.reports.iter().map(|(_, report)| report);
    if reports().any(|report| report.setup_error.is_some() || !report.completed && !late(report)) {
        return None;
    }
    // Of a crew that came and went the life, and not the scenario, is what the host may have taken.
    let idle = reports().filter(|report| report.completed && report.work_units == 0);
    let of_idle = match idle.map(|report| report.wall_time_ns).max() {
        Some(lived_ns) => Some(explains_stall(record, lived_ns.min(record.scenario_end.as_ref()?.elapsed_ns))?),
        None => None,
    };
    match reports().any(late) {
        true => explains_late_report(record),
        false => of_idle,
    }
}

/// Why the time to report passed without one: the host took half of it. What it took before any worker was there excuses
/// nothing, as a boot keeps every vCPU of an emulated guest busy.
fn explains_late_report(record: &Record) -> Option<String> {
    let begun_ns = record.mark(Stage::ScenarioStart)?;
    let cpus = record.host.as_ref()?.topology.total_cpus();
    let given_ns = collect_ns(cpus, emulated(record));
    taken(record.noise.as_ref()?.most_within_since(begun_ns, given_ns), given_ns)
}

fn explains_stall(record: &Record, about_ns: u64) -> Option<String> {
    taken(record.noise.as_ref()?.most_within(about_ns), about_ns)
}

/// In words, where it is half of the time that something is about.
fn taken(waited_ns: u64, about_ns: u64) -> Option<String> {
    (about_ns > 0 && waited_ns.saturating_mul(STALL_PARTS) >= about_ns).then(|| {
        let (waited, about) = (approx(waited_ns), approx(about_ns));
        format!("{KEPT_WAITING} for {waited} of {about}")
    })
}

/// Why a guest that hangs may only have been kept from going on: for half of the hang vCPUs waited, as with any stall. A guest
/// stands still where one vCPU does, with PID 1 on it or a lock, so of each moment the one that waited longest counts. The
/// share of the time that vCPUs wanted to run would be another thing: a guest that hangs idly wants next to none, and on
/// a busy host waits for most of that.
pub fn explains_silence(record: &Record) -> Option<String> {
    let noise = record.noise.as_ref().filter(|_| !emulated(record))?;
    let from_ns = hang_began_ns(record, noise)?.max(noise.from_ns);
    taken(noise.most_between(from_ns, noise.to_ns), noise.to_ns.saturating_sub(from_ns))
}

/// From when on the guest hung; none where it did not.
fn hang_began_ns(record: &Record, noise: &HostNoise) -> Option<u64> {
    match record.vm_end {
        // The witness looks for the last time when the VM is killed.
        Some(VmEnd::Silent { for_ns, .. }) => Some(noise.to_ns.saturating_sub(for_ns)),
        Some(VmEnd::TimedOut) => {
            if let Some(end_ns) = record.mark(Stage::ScenarioEnd) {
                return Some(end_ns);
            }
            // A boot, or the start of a scheduler, has no length of its own: all of the time until then was for it.
            let Some(start_ns) = record.mark(Stage::ScenarioStart) else { return Some(noise.from_ns) };
            // A scenario takes its time on any host. What it owes behind that, the host may have kept it from.
            let planned = |plan: &Plan| plan.scenarios.first().map_or(0, |one| one.planned_ns(plan.duration_ns));
            let over_ns = start_ns.saturating_add(record.plan.as_ref().map_or(0, planned));
            Some(if over_ns < noise.to_ns { over_ns } else { start_ns })
        }
        _ => None,
    }
}
