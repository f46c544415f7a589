//! How far a run came, and in words where it stopped.
//!
//! Owns the reading of marks and messages as stages; leaves what a stop means to `cause`.
//! Invariant: a stage counts as reached by its mark or by a message that only it can send.

use crate::klog;
use crate::proto::message::{Stage, VmEnd};
use crate::proto::record::Record;

/// The last stage that was reached.
pub fn reached(record: &Record) -> Option<Stage> {
    let told = [
        (record.hello.is_some(), Stage::Hello),
        (record.sched_enabled.is_some(), Stage::SchedulerEnabled),
        (record.scenario_started.is_some(), Stage::ScenarioStart),
        (record.scenario_end.is_some(), Stage::ScenarioEnd),
        (record.bye, Stage::Bye),
    ];
    let told = told.into_iter().filter(|(seen, _)| *seen).map(|(_, stage)| stage);
    // The host's marks after `Bye` come at every end, however early the guest stopped.
    let marked = record.marks.iter().map(|(stage, _)| *stage).filter(|stage| *stage <= Stage::Bye);
    told.chain(marked).max()
}

/// Whether PID 1 ran.
pub fn pid1_ran(record: &Record) -> bool {
    reached(record) >= Some(Stage::Pid1) || !record.guest_errors.is_empty() || record.crash.is_some()
}

/// Where the run stopped, in the guest's order of things; none: it said all it had to say.
pub fn stopped_at(record: &Record, kernel_spoke: bool) -> Option<&'static str> {
    let sched_planned = record.plan.as_ref().is_some_and(|plan| plan.sched.is_some());
    match reached(record) {
        // It may well have said goodbye after that.
        _ if record.sched_failed.is_some() => Some("scheduler not enabled"),
        Some(Stage::Bye | Stage::VmEnd | Stage::TornDown) => None,
        Some(Stage::ScenarioEnd) => Some("scenario ended but the guest did not finish"),
        Some(Stage::ScenarioStart) => Some("scenario started but no result"),
        Some(Stage::SchedulerEnabled) => Some("scheduler enabled but scenario not started"),
        Some(Stage::Hello) if sched_planned => Some("scheduler not enabled"),
        Some(Stage::Hello) => Some("guest ready but scenario not started"),
        Some(Stage::Pid1) => Some("PID 1 but no Hello"),
        _ if pid1_ran(record) => Some("PID 1 but no Hello"),
        _ if kernel_spoke || !klog::is_blank(&record.console) => Some("kernel but no PID 1"),
        Some(Stage::FirstInstruction | Stage::KernelEntry) => Some("no kernel output"),
        // Firmware that printed, and a machine that reset itself, ran.
        _ if !record.console.is_empty() => Some("no kernel output"),
        _ if matches!(record.vm_end, Some(VmEnd::Reset | VmEnd::Poweroff | VmEnd::TripleFault)) => {
            Some("no kernel output")
        }
        _ => Some("the VM did not start"),
    }
}
