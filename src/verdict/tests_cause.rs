//! The cause: which of several things that went wrong becomes the headline and the exit code.
//!
//! Owns these tests; leaves single checks to tests_checks.
//! Invariant: every row of the order in `cause` has a record that reaches it, and one that an earlier row takes away.

use super::fixture::{STALL, add_log, passing, passing_with_scheduler};
use super::table::defaults;
use super::{Outcome, Verdict, judge, stopped_at};
use crate::proto::limits::CheckId;
use crate::proto::message::{SchedFailure, Stage, VmEnd};
use crate::proto::record::{GuestError, Record};
use crate::proto::registers::CpuDump;

/// A record of a run that stopped before this stage was reached.
fn stopped_before(mut record: Record, stage: Stage, end: VmEnd) -> Record {
    record.marks.retain(|(known, _)| *known < stage || *known >= Stage::VmEnd);
    record.bye = false;
    record.klog_end = None;
    if stage <= Stage::ScenarioEnd {
        record.scenario_end = None;
        record.reports.clear();
        record.sched_final = None;
    }
    if stage <= Stage::ScenarioStart {
        record.scenario_started = None;
    }
    if stage <= Stage::SchedulerEnabled {
        record.sched_enabled = None;
    }
    if stage <= Stage::Hello {
        record.hello = None;
        record.klog.clear();
    }
    record.vm_end = Some(end);
    record
}

fn default(record: &Record) -> Verdict {
    judge(record, &defaults())
}

fn assert_cause(verdict: &Verdict, outcome: Outcome, code: u8, words: &str) {
    assert_eq!((verdict.outcome, verdict.exit_code), (outcome, code), "{}", verdict.headline);
    assert!(verdict.headline.contains(words), "{}", verdict.headline);
}

#[test]
fn every_stage_has_its_words() {
    let table = [
        (Stage::Exec, "the VM did not start"),
        (Stage::KernelEntry, "no kernel output"),
        (Stage::Hello, "PID 1 but no Hello"),
        (Stage::SchedulerEnabled, "scheduler not enabled"),
        (Stage::ScenarioStart, "scheduler enabled but scenario not started"),
        (Stage::ScenarioEnd, "scenario started but no result"),
        (Stage::Bye, "scenario ended but the guest did not finish"),
    ];
    for (stage, words) in table {
        let record = stopped_before(passing_with_scheduler(), stage, VmEnd::TimedOut);
        assert_eq!(stopped_at(&record, false), Some(words));
    }
    let mut record = stopped_before(passing(), Stage::Pid1, VmEnd::TimedOut);
    record.console = "[    0.100000] Linux version 7\n".into();
    assert_eq!(stopped_at(&record, true), Some("kernel but no PID 1"));
    assert_eq!(stopped_at(&passing(), true), None);
}

#[test]
fn interrupt_outranks_everything() {
    let mut record = stopped_before(passing_with_scheduler(), Stage::ScenarioEnd, VmEnd::Interrupted);
    add_log(&mut record, &STALL);
    assert_cause(&default(&record), Outcome::Interrupted, 130, "scenario started but no result");
    let early = stopped_before(passing(), Stage::FirstInstruction, VmEnd::Interrupted);
    assert_cause(&default(&early), Outcome::Interrupted, 130, "interrupted");
}

#[test]
fn kernel_that_does_not_boot_is_a_skip_or_as_asked_a_failure() {
    let mut record = stopped_before(passing(), Stage::Pid1, VmEnd::Reset);
    record.console = "[    0.100000] Linux version 7\n\
                      [    0.900000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
        .into();
    assert_cause(&default(&record), Outcome::Skip, 125, "VFS: Unable to mount root fs");
    assert_cause(&default(&record), Outcome::Skip, 125, "kernel but no PID 1");
    let strict = defaults().require(CheckId::BootFailure);
    assert_cause(&judge(&record, &strict), Outcome::Fail, 1, "did not boot to PID 1");
}

#[test]
fn mute_kernel_is_a_skip_that_says_so() {
    let record = stopped_before(passing(), Stage::KernelEntry, VmEnd::TimedOut);
    assert_cause(&default(&record), Outcome::Skip, 125, "no kernel output; it was killed at the deadline");
    let mut record = stopped_before(passing(), Stage::KernelEntry, VmEnd::TripleFault);
    record.console = "early text\x1b[2J\n\n".into();
    assert_cause(&default(&record), Outcome::Skip, 125, "triple fault): last line: early text\\u{1b}[2J");
    record.console =
        "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2)\r\nBooting from ROM..\x1bc\x1b[?7l\x1b[2J".into();
    assert_cause(&default(&record), Outcome::Skip, 125, "(no kernel output; triple fault)");
}

#[test]
fn too_little_memory_is_the_harness_error() {
    let mut record = stopped_before(passing(), Stage::Pid1, VmEnd::Reset);
    record.console = "[    0.9] x\n[    0.900000] Initramfs unpacking failed: write error\n".into();
    assert_cause(&default(&record), Outcome::Error, 128, "guest memory is too small (256 MiB)");
    record.console = "[    1.8] x\n[    1.840573] Memory cgroup min protection 0kB -- low protection 0kB\n\
                      [    1.841082] Kernel panic - not syncing: bio: can't create integrity buf pool\n"
        .into();
    assert_cause(&default(&record), Outcome::Error, 128, "guest memory is too small (256 MiB)");
    record.console.clear();
    record.host.as_mut().unwrap().memory_bytes = 48 << 20;
    assert_cause(&default(&record), Outcome::Skip, 125, "48 MiB of memory may be too little");
    let mut record = passing();
    add_log(&mut record, &["Out of memory: Killed process 120 (kw0.0-spin) total-vm:1kB"]);
    record.reports[0].1.work_units = 0;
    assert_cause(&default(&record), Outcome::Error, 128, "the guest ran out of memory");
}

#[test]
fn first_of_two_kernel_findings_decides() {
    let oom = "Out of memory: Killed process 120 (x)";
    let mut record = passing_with_scheduler();
    add_log(&mut record, &[STALL[0], STALL[1], oom]);
    assert_cause(&default(&record), Outcome::Fail, 1, "runnable task stall");
    let mut record = passing_with_scheduler();
    add_log(&mut record, &[oom, STALL[0], STALL[1]]);
    assert_cause(&default(&record), Outcome::Error, 128, "ran out of memory");
}

#[test]
fn machine_error_is_the_hosts_whenever_it_comes() {
    let end = || VmEnd::MachineError { text: "KVM could not emulate cmpxchg16b at 0x1000".into() };
    for stage in [Stage::KernelEntry, Stage::Pid1, Stage::ScenarioEnd] {
        let record = stopped_before(passing(), stage, end());
        assert_cause(&default(&record), Outcome::Error, 128, "could not emulate cmpxchg16b");
    }
}

#[test]
fn panic_after_pid_1_fails_from_the_console_alone() {
    let mut record = stopped_before(passing(), Stage::ScenarioEnd, VmEnd::Reset);
    record.console = "[    1.500000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n\
                      [    1.500100] Oops: Oops: 0000 [#1] SMP NOPTI\n\
                      [    1.500900] ---[ end trace 0000000000000000 ]---\n\
                      [    1.501000] Kernel panic - not syncing: Fatal exception\n"
        .into();
    let verdict = default(&record);
    assert_cause(&verdict, Outcome::Fail, 1, "BUG: kernel NULL pointer dereference");
    assert_eq!(verdict.findings.len(), 2);
}

#[test]
fn silence_after_pid_1_fails_with_its_stage() {
    for (end, words) in [
        (VmEnd::TimedOut, "stopped answering and was killed at the deadline (scenario started but no result)"),
        (VmEnd::Silent { for_ns: 21_000_000_000, busy_percent: Some(150) }, "for 21.0 s, while its CPUs were busy"),
        (VmEnd::Silent { for_ns: 21_000_000_000, busy_percent: Some(3) }, "its CPUs were idle: PID 1 waits"),
        (VmEnd::Silent { for_ns: 21_000_000_000, busy_percent: None }, "no sign of life from PID 1 for 21.0 s (scen"),
        (VmEnd::Reset, "went down before it had finished"),
        (VmEnd::TripleFault, "triple fault"),
    ] {
        let record = stopped_before(passing(), Stage::ScenarioEnd, end);
        assert_cause(&default(&record), Outcome::Fail, 1, words);
    }
}

#[test]
fn silence_with_interrupts_off_on_every_cpu_says_so() {
    let end = VmEnd::Silent { for_ns: 21_000_000_000, busy_percent: Some(99) };
    let mut record = stopped_before(passing(), Stage::ScenarioEnd, end);
    let cpu = |rflags| CpuDump { rflags, ..CpuDump::default() };
    for (registers, off) in [
        (vec![cpu(0x46), cpu(0x2)], true),
        (vec![cpu(0x46), cpu(0x246)], false),
        (vec![cpu(0x46), CpuDump::missing(1, "no answer")], false),
        (vec![], false),
    ] {
        record.registers = registers;
        let headline = default(&record).headline;
        assert_eq!(headline.contains("its CPUs were busy, with interrupts off"), off, "{headline}");
        assert_eq!(headline.contains("its CPUs were busy: PID 1"), !off, "{headline}");
    }
}

#[test]
fn guest_that_hangs_after_its_goodbye_is_judged_by_what_it_did_before() {
    let mut record = passing();
    record.vm_end = Some(VmEnd::TimedOut);
    assert_cause(&default(&record), Outcome::Pass, 0, "every check that applies passed");
    record.reports[0].1.work_units = 0;
    assert_cause(&default(&record), Outcome::Fail, 1, "not_starved");
    // Without the goodbye the same end is a guest that hangs, and with a gap in the data it is no pass.
    let hung = stopped_before(passing(), Stage::ScenarioEnd, VmEnd::TimedOut);
    assert_cause(&default(&hung), Outcome::Fail, 1, "stopped answering");
    let mut gap = passing();
    (gap.vm_end, gap.klog_end) = (Some(VmEnd::TimedOut), None);
    assert_eq!(default(&gap).outcome, Outcome::Inconclusive);
}

#[test]
fn broken_channel_is_inconclusive_also_after_the_goodbye() {
    let cut = || VmEnd::Cut { reason: "the guest broke the channel's rules".into() };
    let record = stopped_before(passing(), Stage::ScenarioEnd, cut());
    assert_cause(&default(&record), Outcome::Inconclusive, 125, "broke the channel's rules");
    let mut record = passing();
    record.vm_end = Some(cut());
    assert_cause(&default(&record), Outcome::Inconclusive, 125, "did not end in order");
}

#[test]
fn scheduler_that_ran_out_of_time_is_inconclusive_and_a_slow_one_too_under_emulation() {
    let failed = |why, accel: &str| {
        let mut record = stopped_before(passing_with_scheduler(), Stage::SchedulerEnabled, VmEnd::Reset);
        record.host.as_mut().unwrap().accel = accel.into();
        record.sched_failed = Some((why, "text".into()));
        default(&record)
    };
    assert_cause(&failed(SchedFailure::OutOfTime, "kvm"), Outcome::Inconclusive, 125, "time was over");
    assert_cause(&failed(SchedFailure::EnableTimeout, "kvm"), Outcome::Fail, 1, "did not enable it in time");
    assert_cause(&failed(SchedFailure::EnableTimeout, "qemu"), Outcome::Inconclusive, 125, "did not enable it in time");
}

#[test]
fn slow_emulator_is_not_held_against_the_kernel() {
    let mut record = stopped_before(passing_with_scheduler(), Stage::SchedulerEnabled, VmEnd::TimedOut);
    record.host.as_mut().unwrap().accel = "qemu".into();
    assert_cause(&default(&record), Outcome::Inconclusive, 125, "--timeout");
}

#[test]
fn guest_that_cannot_judge_skips_unless_the_kernel_crashed() {
    let error = GuestError { stage: "mounts".into(), text: "no cgroup2 (CONFIG_CGROUPS)".into(), cannot_judge: true };
    let mut record = passing();
    (record.scenario_started, record.scenario_end) = (None, None);
    record.guest_errors.push(error);
    assert_cause(&default(&record), Outcome::Skip, 125, "CONFIG_CGROUPS");
    add_log(&mut record, &["WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2"]);
    assert_cause(&default(&record), Outcome::Skip, 125, "CONFIG_CGROUPS");
    add_log(&mut record, &["Kernel panic - not syncing: Fatal exception"]);
    assert_cause(&default(&record), Outcome::Fail, 1, "WARNING");
}

#[test]
fn what_the_kernel_reported_in_the_scenario_outranks_a_call_that_it_refused() {
    let error = GuestError { stage: "scenario".into(), text: "bring CPU 1 offline: EBUSY".into(), cannot_judge: true };
    let refused = |lines: &[&str]| {
        let mut record = passing_with_scheduler();
        record.guest_errors.push(error.clone());
        add_log(&mut record, lines);
        record
    };
    assert_cause(&default(&refused(&[])), Outcome::Skip, 125, "CPU 1 offline");
    for (line, title) in [
        ("BUG: KASAN: slab-use-after-free in f+0x1/0x2", "KASAN"),
        ("WARNING: possible circular locking dependency detected", "circular locking"),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "rcu_preempt"),
        ("INFO: task kworker/0:1:9 blocked for more than 20 seconds.", "blocked for more"),
    ] {
        assert_cause(&default(&refused(&[line])), Outcome::Fail, 1, title);
    }
    assert_cause(&default(&refused(&STALL)), Outcome::Fail, 1, "runnable task stall");
    // What an emulator may have caused, and what was said before the scenario, decide nothing.
    let mut slow = refused(&["rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"]);
    slow.host.as_mut().unwrap().accel = "qemu".into();
    assert_cause(&default(&slow), Outcome::Skip, 125, "CPU 1 offline");
    let mut early = refused(&["BUG: KASAN: slab-use-after-free in f+0x1/0x2"]);
    let end = early.scenario_end.as_mut().unwrap();
    end.uptime_ns = early.klog.last().unwrap().time_us * 1000 + 1 + end.elapsed_ns;
    assert_cause(&default(&early), Outcome::Skip, 125, "CPU 1 offline");
}

#[test]
fn broken_harness_is_an_error_unless_evidence_came_first() {
    let error = GuestError { stage: "cgroup".into(), text: "cannot write cpuset.cpus".into(), cannot_judge: false };
    let mut record = passing();
    record.guest_errors.push(error);
    record.reports[0].1.work_units = 0;
    assert_cause(&default(&record), Outcome::Error, 128, "cgroup: cannot write cpuset.cpus");
    add_log(&mut record, &STALL);
    assert_cause(&default(&record), Outcome::Fail, 1, "runnable task stall");
    let mut record = stopped_before(passing(), Stage::ScenarioEnd, VmEnd::Reset);
    record.crash = Some("index out of bounds".into());
    record.console = "[    9.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000006\n".into();
    assert_cause(&default(&record), Outcome::Error, 128, "PID 1 crashed: index out of bounds");
}

#[test]
fn kernel_without_sched_ext_skips_with_the_option() {
    let mut record = stopped_before(passing_with_scheduler(), Stage::SchedulerEnabled, VmEnd::Reset);
    record.sched_failed = Some((SchedFailure::KernelLacksSchedExt, "needs CONFIG_SCHED_CLASS_EXT=y".into()));
    assert_cause(&default(&record), Outcome::Skip, 125, "CONFIG_SCHED_CLASS_EXT=y");
}

#[test]
fn empty_record_is_an_error_and_does_not_panic() {
    let verdict = default(&Record::default());
    assert_cause(&verdict, Outcome::Error, 128, "the VM ended without saying how");
    assert!(verdict.checks.iter().all(|check| check.status != super::Status::Pass));
}
