//! Whole reports as kernels print them, each one finding.
//!
//! Owns reading the fixtures; leaves single lines to tests_table and odd orders to tests_classify.
//! Invariant: a fixture says where it comes from: `real`, cut from a run of this program, or `form`, where the kernels at
//! hand cannot be made to print it.

use super::{Class, Finding, KernelLog, Severity, classify};
use crate::proto::record::KlogLine;

const FIXTURES: [(&str, &str); 12] = [
    ("sched-stall", include_str!("fixtures/sched-stall.txt")),
    ("oom-kill", include_str!("fixtures/oom-kill.txt")),
    ("init-killed", include_str!("fixtures/init-killed.txt")),
    ("panic", include_str!("fixtures/panic.txt")),
    ("rcu-stall", include_str!("fixtures/rcu-stall.txt")),
    ("soft-lockup", include_str!("fixtures/soft-lockup.txt")),
    ("hung-task", include_str!("fixtures/hung-task.txt")),
    ("kasan", include_str!("fixtures/kasan.txt")),
    ("lockdep-rcu", include_str!("fixtures/lockdep-rcu.txt")),
    ("lockdep-circular", include_str!("fixtures/lockdep-circular.txt")),
    ("warning", include_str!("fixtures/warning.txt")),
    ("hard-lockup", include_str!("fixtures/hard-lockup.txt")),
];

/// Its origin, what each finding must be, and the lines as a console has them.
fn parts(text: &str) -> (Vec<&str>, Vec<&str>, String) {
    let (head, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('#'));
    let of = |mark: &str| head.iter().filter_map(|line| line.strip_prefix(mark)).collect::<Vec<_>>();
    ([of("# form: "), of("# real: ")].concat(), of("# is: "), lines.join("\n"))
}

fn judged(log: &KernelLog) -> impl Iterator<Item = &Finding> {
    log.findings.iter().filter(|finding| matches!(finding.severity, Severity::Fail | Severity::Harness))
}

fn found(log: &KernelLog) -> Vec<String> {
    judged(log)
        .map(|finding| format!("{} {} {}", finding.class.name(), finding.severity.name(), finding.title))
        .collect()
}

/// The lines of a console as records of /dev/kmsg.
fn records(console: &str) -> Vec<KlogLine> {
    let record = |(sequence, line): (usize, &str)| {
        let (time, text) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).expect(line);
        let (seconds, micros) = time.trim().split_once('.').expect(line);
        let time_us = seconds.parse::<u64>().expect(line) * 1_000_000 + micros.parse::<u64>().expect(line);
        KlogLine {
            priority: 4,
            sequence: sequence as u64,
            time_us,
            text: text.strip_prefix(' ').unwrap_or(text).into(),
        }
    };
    console.lines().enumerate().map(record).collect()
}

#[test]
fn each_report_is_what_it_is_in_the_log_and_on_the_console() {
    for (name, text) in FIXTURES {
        let (origin, wanted, console) = parts(text);
        assert!(origin.len() == 1 && !wanted.is_empty(), "{name} does not say where it comes from, or what it is");
        assert_eq!(found(&classify(&records(&console), "")), wanted, "{name} in the log");
        assert_eq!(found(&classify(&[], &console)), wanted, "{name} on the console");
    }
}

#[test]
fn each_report_keeps_its_lines_together() {
    for (name, text) in FIXTURES {
        let (_, _, console) = parts(text);
        let log = classify(&records(&console), "");
        let first = judged(&log).next().unwrap_or_else(|| panic!("{name}: {:#?}", log.findings));
        // Of a kill, one line says all; what stands before it is a note.
        assert!(first.lines.len() >= 4 || first.class == Class::OutOfMemory, "{name}: {:#?}", first.lines);
    }
}
