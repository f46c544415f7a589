//! The summary's shape: first line, last line, width, height, and what must be found in it.
//!
//! Owns these tests; leaves numbers to verdict/'s.
//! Invariant: one golden text pins the layout; the rest look for facts, not for layout.

use super::human::{Style, summary};
use crate::proto::message::{SchedFailure, Stage, VmEnd};
use crate::proto::part::Part;
use crate::proto::record::Record;
use crate::verdict::fixture::{STALL, add_log, passing, passing_with_scheduler};
use crate::verdict::table::defaults;
use crate::verdict::{judge, judge_stored};

fn text(record: &Record) -> String {
    summary(record, &judge(record, &defaults()), Style::default())
}

/// Lines of a terminal that a passing run must fit.
const SCREEN_LINES: usize = 24;
const SCREEN_COLUMNS: usize = 100;

#[test]
fn passing_run_golden() {
    let golden = include_str!("golden_pass.txt");
    assert_eq!(text(&passing_with_scheduler()), golden);
    assert!(golden.lines().count() <= SCREEN_LINES);
}

#[test]
fn every_line_fits_the_screen_but_the_verdict() {
    let mut record = passing_with_scheduler();
    add_log(&mut record, &STALL);
    record.sched_output = format!("{}\nDEBUG DUMP\n", "x".repeat(500));
    record.notes = vec!["n".repeat(300); 9];
    for (group, report) in &mut record.reports {
        group.push_str(&"long".repeat(30));
        report.work_units = u64::MAX / 4;
        report.max_gap_ns = 1_999_999_999;
    }
    let text = text(&record);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[..lines.len() - 1] {
        assert!(line.chars().count() <= SCREEN_COLUMNS, "{line}");
    }
}

#[test]
fn emulation_stands_in_the_first_line() {
    let mut record = passing();
    record.host.as_mut().unwrap().accel = "qemu".into();
    record.host.as_mut().unwrap().accel_reason = "this KVM cannot run an ordinary kernel".into();
    let text = text(&record);
    assert!(text.lines().next().unwrap().contains("(emulated: QEMU TCG)"), "{text}");
    assert!(text.contains("why emulated: this KVM cannot run an ordinary kernel\n"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("--") && line.contains("software emulation")).count(), 3);
    assert_eq!(text.lines().last(), Some("PASS"));
}

#[test]
fn failure_shows_evidence_and_ends_in_its_cause() {
    let mut record = passing_with_scheduler();
    add_log(&mut record, &[STALL[0], STALL[1], "   __scx_exit+0x4f/0x70"]);
    record.sched_output = "starting\nEXIT: runnable task stall\n".into();
    let text = text(&record);
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("FAIL: sched_ext disabled") && last.contains("kw0.0-spin[184] failed to run"), "{text}");
    for fact in
        ["kernel log:", "__scx_exit", "scheduler's last output:", "EXIT: runnable task stall", "FAIL  scheduler_alive"]
    {
        assert!(text.contains(fact), "{fact} in {text}");
    }
}

#[test]
fn several_scenarios_show_the_evidence_of_their_failure_too() {
    let mut record = passing_with_scheduler();
    let part = |index: u32, record: &Record| Part { index, over: true, record: record.clone() };
    let spec = record.plan.as_ref().unwrap().scenarios[0].clone();
    add_log(&mut record, &[STALL[0], STALL[1], "   __scx_exit+0x4f/0x70"]);
    record.sched_output = "EXIT: runnable task stall\n".into();
    record.parts = vec![part(0, &passing_with_scheduler()), part(1, &record)];
    record.outside = Some(Box::new(passing_with_scheduler()));
    record.plan.as_mut().unwrap().scenarios = vec![spec.clone(), spec];
    let all = summary(&record, &judge_stored(&record), Style::default());
    for fact in ["scenario", "kernel log:", "__scx_exit", "scheduler's last output:", "try: find out where"] {
        assert!(all.contains(fact), "{fact} in {all}");
    }
    assert!(all.lines().last().unwrap().starts_with("FAIL: 1 of 2 scenarios did not pass"), "{all}");
    assert!(!all.contains("stopped at:"), "{all}");
}

#[test]
fn run_that_did_not_end_as_planned_says_where_it_stopped() {
    let mut record = passing();
    record.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
    (record.scenario_end, record.bye, record.vm_end) = (None, false, Some(VmEnd::TimedOut));
    let text = text(&record);
    assert!(text.contains("\n\nstopped at: scenario started but no result\ntry: registers.txt"), "{text}");
}

#[test]
fn dead_guest_shows_the_end_of_its_console() {
    let mut record = passing();
    record.klog_end = None;
    record.console = "one\ntwo \x1b[2J\n".into();
    let text = text(&record);
    assert!(text.contains("end of the console:\n  one\n  two \\u{1b}[2J"), "{text}");
    assert!(!text.contains('\x1b'));
}

#[test]
fn what_the_guest_lacks_is_a_note() {
    let mut record = passing();
    record.hello.as_mut().unwrap().missing = vec!["debugfs (CONFIG_DEBUG_FS)".into()];
    assert!(text(&record).contains("note: the guest lacks debugfs (CONFIG_DEBUG_FS)\n"));
}

#[test]
fn failed_start_shows_all_that_the_guest_said() {
    let mut record = passing_with_scheduler();
    record.sched_failed = Some((SchedFailure::VerifierRejected, "ops.enqueue\nR1 invalid mem access".into()));
    let text = text(&record);
    assert!(text.contains("why the scheduler did not start:\n  ops.enqueue\n  R1 invalid mem access\n"), "{text}");
}

#[test]
fn skip_names_its_reason() {
    let mut record = passing_with_scheduler();
    record.sched_failed = Some((SchedFailure::KernelLacksSchedExt, "CONFIG_SCHED_CLASS_EXT is not set".into()));
    let text = text(&record);
    assert!(text.lines().last().unwrap().starts_with("SKIP: this kernel cannot run"), "{text}");
}

#[test]
fn many_groups_are_cut_and_only_the_worst_pass_is_shown() {
    let mut record = passing();
    for index in 2..40 {
        let mut more = record.reports[..2].to_vec();
        more.iter_mut().for_each(|(group, _)| *group = format!("g{index}"));
        record.reports.extend(more);
    }
    record.reports[9].1.cpu_time_ns -= 100_000_000;
    let text = text(&record);
    assert!(text.contains("and 24 more groups"), "{text}");
    let spread: Vec<&str> = text.lines().filter(|line| line.contains("spread")).collect();
    assert_eq!(spread.len(), 1);
    assert!(spread[0].contains("5.0 %"), "{spread:?}");
}

#[test]
fn colour_changes_no_text() {
    let record = passing_with_scheduler();
    let verdict = judge(&record, &defaults());
    let coloured = summary(&record, &verdict, Style { color: true });
    assert!(coloured.contains("\x1b[32mok\x1b[0m") && coloured.ends_with("\x1b[32mPASS\x1b[0m\n"));
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    assert_eq!(plain, summary(&record, &verdict, Style::default()));
}

#[test]
fn empty_record_gives_a_summary() {
    let text = text(&Record::default());
    assert!(text.starts_with("ktstr: ") && text.lines().last().unwrap().starts_with("ERROR: "), "{text}");
}
