//! From a worker's slot to its report, or to the sentinel that stands for a worker which gave none.
//!
//! Owns the reading of slots; leaves the report's meaning to proto/report.
//! Invariant: a slot becomes a completed report only when its state is `Done`.

use super::slot::{Field, Slot, State};
use crate::proto::plan::WorkSpec;
use crate::proto::report::{ExitInfo, Samples, WorkerReport};
use crate::sys::process::End;
use std::io;

/// Who a worker is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub pid: i32,
    /// Differs from `pid` where workers are threads.
    pub tid: i32,
    /// Index within the handle.
    pub idx: u32,
    /// 0: primary; 1..: composed.
    pub group_idx: u32,
    /// Position within its group.
    pub position: u32,
}

/// How a worker's process ended, as far as its handle knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The kernel or the caller said how.
    Known(End),
    /// We killed it at the collection deadline.
    TimedOut,
    /// The wait failed.
    WaitFailed(String),
}

/// The report of a worker that has ended.
pub fn of(who: &Identity, spec: &WorkSpec, slot: Slot<'_>, ending: &Ending) -> WorkerReport {
    let state = slot.state();
    if state == State::Done {
        return measured(who, spec, slot);
    }
    let exit = match (state, ending) {
        (State::Panicked, _) => ExitInfo::Panicked { text: slot.text() },
        (_, Ending::Known(End::Exited(code))) => ExitInfo::Exited { code: *code },
        (_, Ending::Known(End::Signaled(signal))) => ExitInfo::Signaled { signal: *signal },
        (_, Ending::TimedOut) => ExitInfo::TimedOut,
        (_, Ending::WaitFailed(text)) => ExitInfo::WaitFailed { text: text.clone() },
    };
    let mut report = WorkerReport::sentinel(who.tid, who.idx, who.group_idx, spec.work.name(), exit);
    report.role = spec.work.role(who.position);
    if state == State::Failed {
        report.setup_error = Some(format!("{}: {}", slot.text(), errno_text(slot.get(Field::FailErrno) as i32)));
    }
    report
}

fn measured(who: &Identity, spec: &WorkSpec, slot: Slot<'_>) -> WorkerReport {
    let known = slot.get(Field::SchedKnown) == 1;
    let sched = |field| known.then(|| slot.get(field));
    let (wall, cpu) = (slot.get(Field::WallNs), slot.get(Field::CpuNs));
    let kinds = spec.work.sample_kinds().iter().enumerate();
    WorkerReport {
        tid: slot.get(Field::Tid) as i32,
        worker_idx: who.idx,
        group_idx: who.group_idx,
        work_type: spec.work.name().into(),
        role: spec.work.role(who.position),
        work_units: slot.get(Field::WorkUnits),
        iterations: slot.get(Field::Iterations),
        wall_time_ns: wall,
        cpu_time_ns: cpu,
        off_cpu_ns: wall.saturating_sub(cpu),
        schedstat_run_delay_ns: sched(Field::SchedDelayNs),
        schedstat_run_count: sched(Field::SchedRuns),
        schedstat_cpu_time_ns: sched(Field::SchedCpuNs),
        max_run_delay_ns: sched(Field::MaxRunDelayNs),
        migration_count: slot.get(Field::MigrationCount),
        migrations: slot.migrations(),
        slices: Vec::new(),
        cpus_used: slot.cpus().collect(),
        max_gap_ns: slot.get(Field::MaxGapNs),
        max_gap_cpu: slot.get(Field::MaxGapCpu) as u32,
        max_gap_at_ns: slot.get(Field::MaxGapAtNs),
        samples: kinds
            .map(|(place, kind)| Samples { kind: *kind, hist: slot.hist(place), raw_ns: slot.raw(place) })
            .collect(),
        completed: true,
        exit_info: None,
        affinity_error: refusal(slot, Field::AffinityErrno),
        sched_policy_error: refusal(slot, Field::PolicyErrno),
        nice_error: refusal(slot, Field::NiceErrno),
        mem_policy_error: refusal(slot, Field::MemPolicyErrno),
        setup_error: None,
        notice: Some(slot.text()).filter(|text| !text.is_empty()),
        numa_pages: (slot.get(Field::PagesKnown) == 1).then(|| slot.pages()),
        vmstat_numa_pages_migrated: (slot.get(Field::MovedKnown) == 1).then(|| slot.get(Field::PagesMoved)),
    }
}

/// The kernel's refusal in words, where there was one.
fn refusal(slot: Slot<'_>, field: Field) -> Option<String> {
    let errno = slot.get(field) as i32;
    (errno != 0).then(|| errno_text(errno))
}

/// `operation not permitted (errno 1)`.
fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    format!("{} (errno {errno})", text.split(" (os error").next().unwrap_or_default().to_lowercase())
}
