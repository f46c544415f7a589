//! Grouping: blocks become one finding, users are not judged, the console is used where the log ends.
//!
//! Owns these tests; leaves single lines to tests_table.
//! Invariant: the fixtures are in the kernel's own order of lines.

use super::{Class, KernelLog, Severity, Source, classify, stall};
use crate::proto::record::KlogLine;

fn log(lines: &[&str]) -> Vec<KlogLine> {
    let line = |(index, text): (usize, &&str)| KlogLine {
        priority: 3,
        sequence: index as u64,
        time_us: 1_000_000 + index as u64 * 100,
        text: (*text).into(),
    };
    lines.iter().enumerate().map(line).collect()
}

fn titles(log: &KernelLog) -> Vec<(Class, &str)> {
    log.findings.iter().map(|finding| (finding.class, finding.title.as_str())).collect()
}

#[test]
fn lockup_whose_scheduler_is_not_disabled_yet_is_a_finding_in_its_place() {
    let taken_up = "sched_ext: Soft lockup - CPU 0 stuck for 1s, disabling BPF scheduler";
    let warning = "WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2";
    let open = classify(&log(&[taken_up, warning]), "");
    assert_eq!(titles(&open)[0].1, taken_up);
    assert_eq!((open.findings[0].class, open.findings[0].severity), (Class::SoftLockup, Severity::Fail));
    assert!(titles(&open)[1].1.starts_with("WARNING: "));
    let disabled = "sched_ext: BPF scheduler \"x\" disabled (runtime error)";
    let closed = [taken_up, warning, disabled, "sched_ext: x: soft lockup - CPU 0 stuck for 1s"];
    let closed = classify(&log(&closed), "");
    assert!(closed.findings.iter().all(|finding| finding.class != Class::SoftLockup), "{:?}", titles(&closed));
    assert!(
        stall(2, taken_up).is_some_and(|told| told.starts_with("a CPU stayed in the kernel") && told.contains("1s"))
    );
    let hard = classify(&log(&["sched_ext: Hard lockup - CPU 1, disabling BPF scheduler"]), "");
    assert_eq!(hard.findings[0].class, Class::HardLockup);
    assert_eq!(stall(14, taken_up), None);
}

#[test]
fn allowed_findings_are_notes_and_others_are_not_touched() {
    let lines = ["WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:1 f+0x1/0x2", "BUG: scheduling while atomic: x/1/0x2"];
    let record: Vec<KlogLine> = lines
        .iter()
        .enumerate()
        .map(|(at, text)| KlogLine {
            priority: 4,
            sequence: at as u64,
            time_us: 9_000_000 * at as u64,
            text: (*text).into(),
        })
        .collect();
    let mut log = classify(&record, "");
    assert_eq!(log.findings.len(), 2);
    log.allow(&["at kernel/sched/*.c:*f+".into(), "nothing of this".into()]);
    assert_eq!((log.findings[0].severity, log.findings[0].meaning), (Severity::Note, "allowed by --allow-log"));
    assert_eq!(log.findings[1].severity, Severity::Fail);
}

#[test]
fn warning_block_is_one_finding_with_its_place_and_message() {
    let found = classify(
        &log(&[
            "------------[ cut here ]------------",
            "refcount_t: underflow; use-after-free.",
            "WARNING: CPU: 1 PID: 12 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110",
            "Modules linked in:",
            "RIP: 0010:refcount_warn_saturate+0xba/0x110",
            "Call Trace:",
            " <TASK>",
            "---[ end trace 0000000000000000 ]---",
            "an ordinary line",
        ]),
        "",
    );
    let title = "WARNING: CPU: 1 PID: 12 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110 \
                 (refcount_t: underflow; use-after-free.)";
    assert_eq!(titles(&found), [(Class::Warning, title)]);
    assert_eq!(found.findings[0].lines.len(), 5);
    assert_eq!(found.unknown_errors, 1, "only the line after the block");
    assert_eq!(found.findings[0].source, Source::Klog(2));
}

#[test]
fn oops_and_its_lines_are_one_finding_and_the_panic_another() {
    let found = classify(
        &log(&[
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "#PF: supervisor read access in kernel mode",
            "Oops: Oops: 0000 [#1] SMP NOPTI",
            "CPU: 0 UID: 0 PID: 1 Comm: init",
            "---[ end trace 0000000000000000 ]---",
            "Kernel panic - not syncing: Fatal exception",
            "---[ end Kernel panic - not syncing: Fatal exception ]---",
        ]),
        "",
    );
    assert_eq!(
        titles(&found),
        [
            (Class::Oops, "BUG: kernel NULL pointer dereference, address: 0000000000000008"),
            (Class::Panic, "Kernel panic - not syncing: Fatal exception"),
        ]
    );
}

#[test]
fn bug_block_absorbs_its_opcode_line_and_a_warning_does_not_absorb_an_oops() {
    let bug =
        ["------------[ cut here ]------------", "kernel BUG at kernel/x.c:1!", "Oops: invalid opcode: 0000 [#1] SMP"];
    assert_eq!(titles(&classify(&log(&bug), "")), [(Class::Bug, "kernel BUG at kernel/x.c:1!")]);
    let warning = [
        "------------[ cut here ]------------",
        "WARNING: kernel/x.c:1 at f+0x1/0x2, CPU#0: a/1",
        "Oops: 0000 [#1] SMP",
    ];
    let found = classify(&log(&warning), "");
    assert_eq!(found.findings.iter().map(|finding| finding.class).collect::<Vec<_>>(), [Class::Warning, Class::Oops]);
}

#[test]
fn block_of_an_unknown_kind_is_not_lost() {
    let found = classify(
        &log(&["------------[ cut here ]------------", "list_add corruption. next is NULL", "---[ end trace 0 ]---"]),
        "",
    );
    assert_eq!(titles(&found), [(Class::Warning, "list_add corruption. next is NULL")]);
    assert_eq!(found.findings[0].severity, Severity::Fail);
}

#[test]
fn block_ends_where_the_kernel_was_silent() {
    let mut lines =
        log(&["UBSAN: shift-out-of-bounds in x.c:1:2", "shift exponent 64", "much later", "Oops: 0000 [#1]"]);
    lines[2].time_us += 10_000_000;
    lines[3].time_us += 10_000_000;
    let found = classify(&lines, "");
    assert_eq!(found.findings.len(), 2);
    assert_eq!(found.findings[0].lines.len(), 2);
    assert_eq!(found.unknown_errors, 1);
}

#[test]
fn stall_is_one_finding_with_victim_and_backtrace() {
    let found = classify(
        &log(&[
            "sched_ext: BPF scheduler \"raw_drop\" enabled",
            "sched_ext: BPF scheduler \"raw_drop\" disabled (runnable task stall)",
            "sched_ext: raw_drop: victim[184] failed to run for 4.292s",
            "   __scx_exit+0x4f/0x70",
        ]),
        "",
    );
    let title = "sched_ext disabled \"raw_drop\": runnable task stall: victim[184] failed to run for 4.292s";
    assert_eq!(titles(&found), [(Class::SchedExtExit, title)]);
    assert_eq!(found.findings[0].severity, Severity::Fail);
    assert_eq!(found.findings[0].lines.len(), 3);
    assert_eq!(found.exits[0].victim.as_ref().unwrap().pid, 184);
}

#[test]
fn clean_stop_is_a_note() {
    let found = classify(&log(&["sched_ext: BPF scheduler \"x\" disabled (unregistered from user space)"]), "");
    assert_eq!(found.findings[0].severity, Severity::Note);
}

#[test]
fn what_users_write_to_the_log_is_not_judged() {
    let mut lines =
        log(&["BUG: soft lockup - CPU#1 stuck for 22s!", "sched_ext: BPF scheduler \"x\" disabled (runtime error)"]);
    for line in &mut lines {
        line.priority = 8 + 3;
    }
    assert_eq!(classify(&lines, ""), KernelLog::default());
}

#[test]
fn repeats_are_counted_and_the_list_is_bounded() {
    let same = ["rcu: INFO: rcu_preempt self-detected stall on CPU"; 5];
    let found = classify(&log(&same), "");
    assert_eq!((found.findings.len(), found.findings[0].repeats), (1, 5));
    let many: Vec<String> = (0..300).map(|index| format!("BUG: number {index}")).collect();
    let mut lines = log(&many.iter().map(String::as_str).collect::<Vec<_>>());
    // Far apart, so that no block takes the next.
    lines.iter_mut().enumerate().for_each(|(index, line)| line.time_us = index as u64 * 10_000_000);
    let found = classify(&lines, "");
    assert_eq!((found.findings.len(), found.findings_cut), (200, 100));
}

#[test]
fn notes_beyond_the_cap_leave_room_for_what_fails_a_run() {
    let killed = |index| format!("Memory cgroup out of memory: Killed process {index} (x)");
    let mut texts: Vec<String> = (0..300).map(killed).collect();
    texts.push("WARNING: possible circular locking dependency detected".into());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = classify(&log(&texts), "");
    assert_eq!((found.findings.len(), found.findings_cut), (201, 0));
    assert_eq!((found.findings[200].class, found.findings[200].severity), (Class::Lockdep, Severity::Fail));
}

#[test]
fn kernel_that_starts_again_is_seen_on_the_console_beside_its_log() {
    let lines = log(&["Linux version 7.0.1 (gcc)", "x"]);
    let once = "SeaBIOS\n[    0.000000] Linux version 7.0.1 (gcc)\n[    0.900000] x\n";
    assert_eq!(classify(&lines, once).findings, []);
    let twice = format!("{once}[    3.000000] y\n[    0.000000] Linux version 7.0.1 (gcc)\n[    0.100000] z\n");
    for lines in [&lines[..], &[]] {
        assert_eq!(titles(&classify(lines, &twice)), [(Class::Reboot, "Linux version 7.0.1 (gcc)")]);
    }
    // A console that came late is given the whole log again.
    let replayed = format!("{once}[    0.000000] Linux version 7.0.1 (gcc)\n[    1.000100] x\n");
    assert_eq!(classify(&lines, &replayed).findings, []);
    assert_eq!(classify(&lines, &replayed.replace("] x", "][    T1] x")).findings, []);
    assert_eq!(titles(&classify(&lines, &format!("{replayed}[    0.000000] Linux version 7.0.1 (gcc)\n"))).len(), 1);
    // More replays than there are consoles are none.
    let again = &replayed[once.len()..];
    assert_eq!(classify(&lines, &format!("{once}{}", again.repeat(4))).findings, []);
    assert_eq!(titles(&classify(&lines, &format!("{once}{}", again.repeat(5)))).len(), 1);
    // What a program prints has no time of the kernel's, and what it writes to the log has the present one.
    let said = format!("{once}Linux version 7.0.1 (gcc)\n[    0.950000] Linux version 7.0.1 (gcc)\n");
    assert_eq!(classify(&lines, &said).findings, []);
}

#[test]
fn console_adds_only_what_the_log_does_not_hold() {
    let lines = log(&["BUG: one", "---[ end trace 0 ]---"]);
    let console = "[    1.000000] BUG: one\n[    1.000100] ---[ end trace 0 ]---\r\n\
                   user text\nBUG: printed by a user\n[    2.500000][   T12] Kernel panic - not syncing: x\n";
    let found = classify(&lines, console);
    assert_eq!(titles(&found), [(Class::Bug, "BUG: one"), (Class::Panic, "Kernel panic - not syncing: x")]);
    assert_eq!((found.findings[1].time_us, found.findings[1].source), (Some(2_500_000), Source::Console(4)));
}

#[test]
fn console_without_stamps_is_used_only_where_there_is_no_log() {
    let console = "Kernel panic - not syncing: x\n";
    assert_eq!(classify(&[], console).findings.len(), 1);
    assert!(classify(&log(&["hello"]), console).findings.is_empty());
}

#[test]
fn second_banner_is_an_unexpected_reboot() {
    let console = "[    0.000000] Linux version 7\n[    1.0] x\n[    0.000000] Linux version 7\n";
    assert_eq!(classify(&[], console).findings[0].class, Class::Reboot);
    assert!(classify(&log(&["Linux version 7"]), "").findings.is_empty());
}

#[test]
fn device_dictionary_and_control_characters_do_not_reach_titles() {
    let found = classify(&log(&["BUG: a\x1b[31mb\n SUBSYSTEM=pci\n DEVICE=+pci:0"]), "");
    assert_eq!(found.findings[0].title, "BUG: a\\u{1b}[31mb");
}

#[test]
fn nonsense_never_panics() {
    let pieces =
        ["[", "]", "(", ")", "\"", "sched_ext: ", "BPF scheduler \"", "\" disabled (", "é", "\n", "BUG: ", "9", "s"];
    let mut state: u64 = 1;
    for _ in 0..3000 {
        let mut text = String::new();
        for _ in 0..8 {
            // Knuth's MMIX generator: any sequence serves here.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        classify(&log(&[&text, &text]), &text);
    }
}

#[test]
fn stall_line_ends_a_run_unless_it_is_allowed_or_a_program_wrote_it() {
    let rcu = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:";
    assert!(stall(3, rcu).unwrap().ends_with(": INFO: rcu_preempt detected stalls on CPUs/tasks:"));
    assert!(stall(0, "watchdog: BUG: soft lockup - CPU#1 stuck for 4s! [kw0:1]").is_some());
    assert_eq!(stall(8, rcu), None);
    for other in ["", "WARNING: CPU: 1 PID: 1 at kernel/x.c:1 f+0x1/0x2", "sched: RT throttling activated"] {
        assert_eq!(stall(3, other), None, "{other}");
    }
}
