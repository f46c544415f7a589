//! How long after a fault a run was over it.
//!
//! Owns which moment counts as the fault's, by the guest's own clock; leaves the limits that are promised to docs/faults.md.
//! Invariant: a number is given only where the record has both moments, and only for a run that the fault cut short.

use super::judge::Verdict;
use crate::klog::Severity;
use crate::proto::message::{Stage, VmEnd};
use crate::proto::record::Record;
use crate::units::{NS_PER_MS, NS_PER_US};

/// A guest's time on the host's clock is as exact as the news of its PID 1 was quick.
const CLOCKS_DIFFER_NS: u64 = 100 * NS_PER_MS;

/// What the time is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// The kernel let go of the scheduler: its line, or where it wrote none, the moment at which PID 1 saw it.
    SchedulerGone,
    /// The kernel's line that decided.
    KernelLine,
    /// PID 1's last sign of life.
    LastSign,
}

/// When a run was over: its VM and its memory gone. What is left is to judge it and to print.
fn over_ns(record: &Record) -> Option<u64> {
    [Stage::TornDown, Stage::VmEnd, Stage::Bye].into_iter().find_map(|stage| record.mark(stage))
}

/// The time from the fault to the end of the run; none where it ended as planned, or where nothing tells when the fault was.
pub fn time_to_verdict(record: &Record, verdict: &Verdict) -> Option<(Since, u64)> {
    if let Some(VmEnd::Silent { for_ns, .. }) = record.vm_end {
        return Some((Since::LastSign, for_ns));
    }
    let cut_short = record.scenario_end.as_ref().is_none_or(|end| end.early.is_some());
    let over_ns = over_ns(record)?;
    let until_over = |since, at_ns: u64| {
        (at_ns <= over_ns.saturating_add(CLOCKS_DIFFER_NS)).then(|| (since, over_ns.saturating_sub(at_ns)))
    };
    // The guest's clocks begin with its kernel.
    let on_host =
        |time_us: u64| Some(record.mark(Stage::KernelEntry)?.saturating_add(time_us.saturating_mul(NS_PER_US)));
    if !cut_short {
        return None;
    }
    if let Some(died) = &record.sched_died {
        let seen_ns = record.mark(Stage::SchedulerEnabled)?.saturating_add(died.after_ns);
        // An exit that came later is the end that we asked for.
        let before = |at_ns: &u64| *at_ns <= seen_ns.saturating_add(CLOCKS_DIFFER_NS);
        let exits = verdict.sched_exits.iter().filter_map(|exit| on_host(exit.time_us?));
        return until_over(Since::SchedulerGone, exits.rev().find(before).unwrap_or(seen_ns));
    }
    let decides = |severity| matches!(severity, Severity::Fail | Severity::Harness);
    let finding = verdict.findings.iter().find(|finding| decides(finding.severity))?;
    until_over(Since::KernelLine, on_host(finding.time_us?)?)
}

/// For how much of that time the host kept vCPUs from its CPUs; none where nobody witnessed it.
pub fn host_share(record: &Record, to_verdict_ns: u64) -> Option<u64> {
    let over_ns = over_ns(record)?;
    let waited_ns = record.noise.as_ref()?.waited_between(over_ns.saturating_sub(to_verdict_ns), over_ns);
    Some(waited_ns.min(to_verdict_ns))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{STALL, add_log, passing, passing_with_scheduler, starve};
    use super::super::judge_stored;
    use super::*;
    use crate::proto::record::Died;

    fn of(record: &Record) -> Option<(Since, u64)> {
        time_to_verdict(record, &judge_stored(record))
    }

    fn set(record: &mut Record, stage: Stage, at_ns: u64) {
        record.marks.retain(|(other, _)| *other != stage);
        record.marks.push((stage, at_ns));
    }

    #[test]
    fn run_that_ended_as_planned_has_none() {
        assert_eq!(of(&passing()), None);
        let mut noted = passing();
        add_log(&mut noted, &["WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2"]);
        assert_eq!(of(&noted), None);
    }

    #[test]
    fn stall_counts_from_the_kernels_line_and_a_silent_death_from_when_it_was_seen() {
        let mut record = passing_with_scheduler();
        add_log(&mut record, &STALL);
        record.scenario_end.as_mut().unwrap().early = Some("the scheduler went away".into());
        record.sched_died = Some(Died { after_ns: 700, end: None, state: "disabled".into(), text: "gone".into() });
        let line_us = judge_stored(&record).sched_exits.last().unwrap().time_us.unwrap();
        let line_ns = 5_000_000 + line_us * NS_PER_US;
        set(&mut record, Stage::KernelEntry, 5_000_000);
        set(&mut record, Stage::SchedulerEnabled, line_ns);
        set(&mut record, Stage::Bye, line_ns + 500_000_000);
        set(&mut record, Stage::TornDown, line_ns + 900_000_000);
        assert_eq!(of(&record), Some((Since::SchedulerGone, 900_000_000)));
        record.klog.clear();
        assert_eq!(of(&record), Some((Since::SchedulerGone, 899_999_300)));
    }

    #[test]
    fn share_of_the_host_is_that_of_the_time_before_the_end() {
        let mut record = passing();
        assert_eq!(host_share(&record, NS_PER_MS), None);
        set(&mut record, Stage::TornDown, 3_000 * NS_PER_MS);
        starve(&mut record, 2_500 * NS_PER_MS, 100 * NS_PER_MS);
        assert_eq!(host_share(&record, 1_000 * NS_PER_MS), Some(100 * NS_PER_MS));
        assert_eq!(host_share(&record, 300 * NS_PER_MS), Some(0));
    }

    #[test]
    fn panic_counts_from_its_line_to_the_machines_end() {
        let mut record = passing();
        add_log(&mut record, &["Kernel panic - not syncing: sysrq triggered crash"]);
        (record.bye, record.scenario_end) = (false, None);
        record.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
        let line_us = record.klog.last().unwrap().time_us;
        set(&mut record, Stage::KernelEntry, 1_000);
        set(&mut record, Stage::VmEnd, 1_000 + line_us * NS_PER_US + 42);
        assert_eq!(of(&record), Some((Since::KernelLine, 42)));
        // The guest's clock may be ahead of the host's idea of it, but not by any length.
        set(&mut record, Stage::VmEnd, 1_000 + line_us * NS_PER_US - CLOCKS_DIFFER_NS);
        assert_eq!(of(&record), Some((Since::KernelLine, 0)));
        set(&mut record, Stage::VmEnd, 1_000 + line_us * NS_PER_US - CLOCKS_DIFFER_NS - 1);
        assert_eq!(of(&record), None);
        record.vm_end = Some(VmEnd::Silent { for_ns: 20, busy_percent: None });
        assert_eq!(of(&record), Some((Since::LastSign, 20)));
    }
}
