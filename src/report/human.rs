//! The summary that a person reads: what ran, the groups, the checks, the evidence, and the verdict as the last line.
//!
//! Owns what is shown and in which order; leaves numbers to verdict/, columns to `table`.
//! Invariant: the first line names the emulation where there was one; the last line is the verdict.

use super::noise;
use super::scenarios;
use super::table::{Align, layout};
use super::text::{counted, fit, folded, short_count, tail};
use crate::klog::{Class, Severity, one_line};
use crate::proto::message::VmEnd;
use crate::proto::perf::PerfItem;
use crate::proto::record::Record;
use crate::scx::fold::fold;
use crate::units::{approx, duration, size};
use crate::verdict::table::Side;
use crate::verdict::{
    Check, EMULATOR, GroupStats, METAL, Measure, NOTHING_WRONG, Outcome, Status, Verdict, advice, group_stats,
};

/// Columns of the page.
const WIDTH: usize = 100;
/// Lines of each kind of evidence.
const EVIDENCE_LINES: usize = 8;
/// Findings shown one by one; the JSON has them all.
const FINDINGS_SHOWN: usize = 4;
/// Rows of the table of groups.
const GROUPS_SHOWN: usize = 16;
/// Notes shown.
const NOTES_SHOWN: usize = 4;
/// Characters of the verdict's one line.
const HEADLINE_WIDTH: usize = 400;
/// Characters of a group's and a work type's name: the longest work type of the catalogue is cut, none in daily use.
const NAME_WIDTH: usize = 14;

/// How the summary may look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// ANSI colours.
    pub color: bool,
}

/// SGR codes (ECMA-48 section 8.3.117).
const GREEN: &str = "32";
const RED: &str = "1;31";
const YELLOW: &str = "33";
const DIM: &str = "2";

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The whole summary, with a newline at its end.
pub fn summary(record: &Record, verdict: &Verdict, style: Style) -> String {
    let mut lines = head(record);
    lines.push(String::new());
    if verdict.scenarios.is_empty() {
        lines.extend(of_one(record, verdict, style));
    } else {
        lines.extend(scenarios::table(record, verdict));
    }
    lines.extend(perf(record));
    lines.extend(notes(record, verdict));
    if verdict.outcome != Outcome::Pass {
        lines.extend(evidence(record, verdict));
    }
    let next = advice(record, verdict);
    if verdict.stopped.is_some() || !next.is_empty() {
        lines.push(String::new());
    }
    lines.extend(verdict.stopped.map(|stage| format!("stopped at: {stage}")));
    lines.extend(next.iter().flat_map(|text| folded(&format!("try: {text}"), WIDTH, 5)));
    lines.push(String::new());
    lines.push(verdict_line(verdict, style));
    lines.push(String::new());
    lines.join("\n")
}

/// The groups of a run of one scenario, its course and its checks.
fn of_one(record: &Record, verdict: &Verdict, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    let groups = group_stats(record);
    if !groups.is_empty() {
        lines.extend(group_table(&groups));
        lines.extend(latency_rows(&groups));
        lines.push(String::new());
    }
    let course = scenarios::course(record);
    if !course.is_empty() {
        lines.extend(course);
        lines.push(String::new());
    }
    lines.extend(check_table(&verdict.checks, style));
    lines
}

/// What ran, and how.
fn head(record: &Record) -> Vec<String> {
    let plan = record.plan.as_ref();
    let subject = match plan.map(|plan| &plan.sched) {
        Some(Some(sched)) => format!("scheduler {}", sched.name),
        Some(None) => "the kernel's own scheduler".into(),
        None => "no plan".into(),
    };
    let kernel = match (&record.hello, &record.host) {
        (Some(hello), _) => format!("Linux {}", hello.kernel),
        (None, Some(host)) => host.kernel.clone(),
        (None, None) => "an unknown kernel".into(),
    };
    let how = match record.host.as_ref().map(|host| host.accel.as_str()) {
        Some(EMULATOR) => "emulated: QEMU TCG".to_owned(),
        Some(METAL) => "this machine, no VM".to_owned(),
        Some(accel) => accel.to_uppercase(),
        None => "host unknown".into(),
    };
    let mut lines = vec![fit(&format!("ktstr: {subject} on {kernel} ({how})"), WIDTH)];
    if let Some(host) = record.host.as_ref().filter(|host| host.accel == EMULATOR && !host.accel_reason.is_empty()) {
        lines.push(fit(&format!("       why emulated: {}", host.accel_reason), WIDTH));
    }
    let mut parts: Vec<String> = Vec::new();
    if let Some(host) = &record.host {
        parts.push(format!("{} ({})", counted(u64::from(host.topology.total_cpus()), "CPU"), host.topology));
        parts.push(size(host.memory_bytes));
    }
    if let Some(plan) = plan {
        let owed = record.owed();
        if !owed.is_empty() {
            let workers = counted(owed.iter().map(|(_, workers)| workers).sum(), "worker");
            let cgroups = counted(owed.len() as u64, "cgroup");
            parts.push(format!("{workers} in {cgroups} for {}", duration(plan.duration_ns)));
        }
        parts.push(format!("seed {}", plan.seed));
    }
    if !parts.is_empty() {
        lines.push(fit(&format!("       {}", parts.join(", ")), WIDTH));
    }
    lines
}

fn group_table(groups: &[GroupStats]) -> Vec<String> {
    let header = ["group", "work", "n", "units/s", "CPU %", "max delay", "max gap", "migr"];
    let mut align = vec![Align::Right; header.len()];
    align[..2].fill(Align::Left);
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(groups.iter().take(GROUPS_SHOWN).map(group_row));
    let mut lines = layout(&align, &rows);
    if groups.len() > GROUPS_SHOWN {
        lines.push(format!("... and {} more groups", groups.len() - GROUPS_SHOWN));
    }
    lines
}

/// Every kind of latency of every group, each with its count. Wake-ups, oversleep, blocking and the rest are never one number.
/// The labels stand in the rows: a headline would cost the screen a line.
fn latency_rows(groups: &[GroupStats]) -> Vec<String> {
    const PARTS: [(&str, u32); 4] = [("p50", 5000), ("p90", 9000), ("p99", 9900), ("p99.9", 9990)];
    let mut rows = Vec::new();
    for group in groups.iter().take(GROUPS_SHOWN) {
        for (kind, hist) in group.samples.iter().filter(|(_, hist)| hist.count() > 0) {
            let mut row = vec![fit(&group.group, NAME_WIDTH), fit(&group.work_type, NAME_WIDTH), kind.name().into()];
            let time = |name: &str, ns: Option<u64>| format!("{name} {}", ns.map_or_else(|| "-".into(), approx));
            row.extend(PARTS.map(|(name, part)| time(name, hist.percentile_ns(part))));
            row.extend([time("max", hist.max_ns()), format!("n {}", short_count(hist.count() as f64))]);
            rows.push(row);
        }
    }
    let columns = rows.first().map_or(0, Vec::len);
    layout(&vec![Align::Left; columns], &rows)
}

fn group_row(group: &GroupStats) -> Vec<String> {
    let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), approx);
    let workers = if group.completed == group.workers {
        group.workers.to_string()
    } else {
        format!("{}/{}", group.completed, group.workers)
    };
    vec![
        fit(&group.group, NAME_WIDTH),
        fit(&group.work_type, NAME_WIDTH),
        workers,
        short_count(group.units_per_s),
        format!("{:.1}", group.cpu_percent),
        time(group.max_run_delay_ns),
        time(group.max_gap_ns),
        short_count(group.migrations as f64),
    ]
}

/// The checks to show: of several groups' passes of one name, only the worst.
fn shown(checks: &[Check]) -> Vec<&Check> {
    // The worst of several groups: the largest, or the smallest where less is worse.
    let number = |check: &Check| match (check.value.map_or(0.0, Measure::number), check.side) {
        (value, Side::AtMost) => value,
        (value, Side::AtLeast) => -value,
    };
    let hidden = |check: &Check| {
        let same = |other: &&Check| other.name == check.name && other.status == check.status;
        let worst = checks.iter().filter(same).rev().max_by(|a, b| number(a).total_cmp(&number(b)));
        check.status != Status::Fail && worst.is_some_and(|worst| !std::ptr::eq(worst, check))
    };
    checks.iter().filter(|check| !is_left_out(check) && !hidden(check)).collect()
}

/// One line a check. What has a threshold shows its number beside it; the others only words.
fn check_table(checks: &[Check], style: Style) -> Vec<String> {
    let shown = shown(checks);
    let width = |cell: fn(&Check) -> String| shown.iter().map(|check| cell(check).chars().count()).max().unwrap_or(0);
    let limited = |check: &Check| if check.threshold.is_some() { check.value_text() } else { String::new() };
    let limit = |check: &Check| {
        check.threshold.map_or_else(String::new, |limit| {
            format!("{} {}", if check.side == Side::AtMost { "<=" } else { ">=" }, limit.text())
        })
    };
    let (names, values, limits) = (width(|check| check.name.to_owned()), width(limited), width(limit));
    let line = |check: &Check| {
        let numbers = match check.threshold {
            Some(_) => format!("  {:>values$}  {:<limits$}", limited(check), limit(check)),
            None => String::new(),
        };
        let text = format!("{:<4}  {:<names$}{numbers}  {}", mark(check.status), check.name, check.reason);
        painted(&fit(&text, WIDTH), check.status, style)
    };
    let mut lines: Vec<String> = shown.iter().map(|check| line(check)).collect();
    lines.extend(left_out(checks).iter().map(|text| painted(text, Status::NotApplied, style)));
    lines
}

/// Checks that were not applied for want of a wish or of data, by their reason: names only, there are many.
fn left_out(checks: &[Check]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for check in checks.iter().filter(|check| is_left_out(check)) {
        match reasons.iter_mut().find(|(reason, _)| *reason == check.reason) {
            Some((_, names)) if names.contains(&check.name) => {}
            Some((_, names)) => names.push(check.name),
            None => reasons.push((&check.reason, vec![check.name])),
        }
    }
    let mut lines = Vec::new();
    for (reason, names) in reasons {
        let mut line = format!("--    {reason}:");
        for name in names {
            if line.chars().count() + name.len() + 2 > WIDTH {
                lines.push(std::mem::replace(&mut line, String::from("     ")));
            }
            line.push_str(&format!(" {name}"));
        }
        lines.push(line);
    }
    lines
}

fn is_left_out(check: &Check) -> bool {
    check.status == Status::NotApplied && (check.threshold.is_none() || check.value.is_none())
}

fn mark(status: Status) -> &'static str {
    match status {
        Status::Pass => "ok",
        Status::Fail => "FAIL",
        Status::Inconclusive => "??",
        Status::NotApplied => "--",
    }
}

/// Colours a line's mark, or the whole of a line that was not applied.
fn painted(line: &str, status: Status, style: Style) -> String {
    let code = match status {
        Status::Pass => GREEN,
        Status::Fail => RED,
        Status::Inconclusive => YELLOW,
        Status::NotApplied => return style.paint(DIM, line),
    };
    let word = mark(status);
    match line.strip_prefix(word) {
        Some(rest) => format!("{}{rest}", style.paint(code, word)),
        None => line.to_owned(),
    }
}

/// What the reader should know although it did not decide: notes, and kernel lines that are shown and not judged.
fn notes(record: &Record, verdict: &Verdict) -> Vec<String> {
    let mut list: Vec<String> = noise::noisy_line(record).into_iter().collect();
    list.extend(record.host_notes.iter().chain(&record.notes).cloned());
    for (_, report) in &record.reports {
        let notice = report.notice.as_ref().map(|text| format!("{}: {text}", report.work_type));
        // Workers that do the same say the same.
        list.extend(notice.filter(|text| !list.contains(text)));
    }
    let missing = record.hello.iter().flat_map(|hello| &hello.missing);
    list.extend(missing.map(|what| format!("the guest lacks {what}")));
    let told = |severity| matches!(severity, Severity::Note | Severity::HostNoise);
    for finding in &verdict.findings {
        if told(finding.severity) && finding.class != Class::SchedExtExit {
            list.push(format!("kernel: {} ({})", finding.title, finding.meaning));
        }
    }
    if verdict.unknown_kernel_errors > 0 {
        let errors = counted(verdict.unknown_kernel_errors, "kernel line");
        list.push(format!("{errors} of level error that no pattern knows"));
    }
    let more = list.len().saturating_sub(NOTES_SHOWN);
    let mut lines: Vec<String> =
        list.iter().take(NOTES_SHOWN).map(|text| fit(&format!("note: {text}"), WIDTH)).collect();
    if more > 0 {
        lines.push(format!("... and {}", counted(more as u64, "more note")));
    }
    lines
}

/// Performance mode: what took effect, and what did not and why; whole lines, as a cut could hide the reason.
fn perf(record: &Record) -> Vec<String> {
    let line = |item: &PerfItem| {
        format!("perf: {} {}: {}", if item.in_effect { "on" } else { "no" }, item.name, one_line(&item.detail))
    };
    record.perf.iter().map(line).collect()
}

/// The lines that show why a run did not pass.
fn evidence(record: &Record, verdict: &Verdict) -> Vec<String> {
    let mut lines = Vec::new();
    let bad: Vec<_> = verdict
        .findings
        .iter()
        .filter(|finding| matches!(finding.severity, Severity::Fail | Severity::Harness | Severity::CannotJudge))
        .collect();
    if !bad.is_empty() {
        lines.push(String::new());
        lines.push("kernel log:".into());
    }
    for (index, finding) in bad.iter().take(FINDINGS_SHOWN).enumerate() {
        let time =
            finding.time_us.map_or_else(String::new, |us| format!("[{}.{:06}] ", us / 1_000_000, us % 1_000_000));
        let repeats = if finding.repeats > 1 { format!(" ({} times)", finding.repeats) } else { String::new() };
        lines.push(fit(&format!("  {time}{}{repeats}", finding.title), WIDTH));
        // The block of the first finding: the others are most often its consequence.
        let block = if index == 0 {
            finding.lines.iter().skip(1).take(EVIDENCE_LINES)
        } else {
            finding.lines.iter().skip(1).take(0)
        };
        lines.extend(block.map(|line| fit(&format!("    {line}"), WIDTH)));
    }
    if bad.len() > FINDINGS_SHOWN {
        lines.push(format!("  ... and {} more", bad.len() - FINDINGS_SHOWN));
    }
    let told = record.sched_failed.as_ref().map_or("", |(_, text)| text.as_str());
    if told.lines().nth(1).is_some() {
        section(&mut lines, "why the scheduler did not start:", told);
    }
    section(&mut lines, "scheduler's last output:", &record.sched_output);
    if !record.sched_dump.is_empty() {
        let count = record.sched_dump.lines().count() as u64;
        lines.push(format!("the kernel's dump of the scheduler: {} (sched_ext_dump.txt)", counted(count, "line")));
    }
    let registers: Vec<String> = record.registers.iter().map(|dump| dump.headline()).collect();
    section(&mut lines, "the vCPUs when it was killed (registers.txt has all):", &registers.join("\n"));
    if record.klog_end.is_none() && record.vm_end != Some(VmEnd::Interrupted) {
        section(&mut lines, "end of the console:", &record.console);
    }
    lines
}

/// The last lines of a text under a title; nothing where the text says nothing.
fn section(lines: &mut Vec<String>, title: &str, text: &str) {
    let shown = tail(&fold(text).join("\n"), EVIDENCE_LINES, WIDTH - 2);
    if !shown.is_empty() {
        lines.push(String::new());
        lines.push(title.to_owned());
        lines.extend(shown.iter().map(|line| format!("  {line}")));
    }
}

/// The verdict and its cause, on one line.
pub fn verdict_line(verdict: &Verdict, style: Style) -> String {
    let word = outcome_word(verdict.outcome, style);
    if verdict.outcome == Outcome::Pass && verdict.headline == NOTHING_WRONG {
        return word;
    }
    // One line, however long: whoever reads only the last line must see the cause.
    format!("{word}: {}", fit(&verdict.headline, HEADLINE_WIDTH))
}

/// The word of an outcome in its colour.
pub fn outcome_word(outcome: Outcome, style: Style) -> String {
    let code = match outcome {
        Outcome::Pass => GREEN,
        Outcome::Fail | Outcome::Error => RED,
        Outcome::Skip | Outcome::Inconclusive | Outcome::Interrupted => YELLOW,
    };
    style.paint(code, outcome.word())
}
