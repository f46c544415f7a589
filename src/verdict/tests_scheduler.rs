//! The check on the scheduler under test: every way it can fail, be unknown, and pass.
//!
//! Owns these tests; leaves reading the kernel's lines to klog/sched_ext.
//! Invariant: each fault is injected alone into a record that passes.

use super::fixture::{STALL, add_log, passing_with_scheduler};
use super::table::defaults;
use super::{Outcome, Status, Verdict, judge};
use crate::proto::message::{Msg, ProcessEnd, SchedFailure, SchedFinal};
use crate::proto::record::{Died, Instance, Record};

/// One thing that goes wrong in a record.
type Fault = fn(&mut Record);
/// One thing that goes wrong at an instance's end.
type BadEnd = fn(&mut SchedFinal);

fn run(change: impl FnOnce(&mut Record)) -> (Verdict, Status, String) {
    let mut record = passing_with_scheduler();
    change(&mut record);
    let verdict = judge(&record, &defaults());
    let check = verdict.checks.iter().find(|check| check.name == "scheduler_alive").unwrap();
    let (status, reason) = (check.status, check.reason.clone());
    (verdict, status, reason)
}

fn last(record: &mut Record) -> &mut SchedFinal {
    record.sched_final.as_mut().unwrap()
}

#[test]
fn same_instance_to_the_end_passes() {
    let (verdict, status, reason) = run(|_| {});
    assert_eq!((verdict.outcome, status), (Outcome::Pass, Status::Pass), "{}", verdict.headline);
    assert!(reason.contains("mini_fifo, the same instance"));
}

#[test]
fn every_wrong_end_fails_for_its_reason() {
    let faults: [(Fault, &str); 8] = [
        (|record| last(record).state = "disabled".into(), "it was 'disabled'"),
        (|record| last(record).ops = Some("other".into()), "'other' was loaded at the end"),
        (|record| last(record).enable_seq = Some(2), "enable_seq 1 became 2"),
        (|record| last(record).killed = true, "ignored SIGINT"),
        (|record| last(record).disabled = false, "did not say 'disabled'"),
        (|record| last(record).end = None, "could not be reaped"),
        (|record| last(record).end = Some(ProcessEnd::Signaled { signal: 11 }), "signal 11"),
        (|record| last(record).end = Some(ProcessEnd::Exited { code: 1 }), "exit code 1"),
    ];
    for (change, why) in faults {
        let (verdict, status, reason) = run(change);
        assert_eq!(status, Status::Fail, "{why}");
        assert!(reason.contains(why), "{reason}");
        assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Fail, 1));
        assert!(verdict.headline.contains(why), "{}", verdict.headline);
    }
}

/// The same faults in an instance that the scenario ended and replaced by another.
#[test]
fn wrong_end_of_an_instance_that_the_scenario_replaced_fails_too() {
    let replaced = |change: BadEnd| {
        run(|record| {
            let enabled = record.sched_enabled.clone().unwrap();
            let mut first = record.sched_final.clone().unwrap();
            change(&mut first);
            record.earlier.push(Instance { enabled, last: Some(first) });
            record.sched_enabled.as_mut().unwrap().enable_seq = 2;
            last(record).enable_seq = Some(2);
        })
    };
    assert_eq!(replaced(|_| {}).0.outcome, Outcome::Pass);
    let faults: [(BadEnd, &str); 5] = [
        (|first| first.killed = true, "ignored SIGINT"),
        (|first| first.disabled = false, "did not say 'disabled'"),
        (|first| first.end = Some(ProcessEnd::Signaled { signal: 11 }), "signal 11"),
        (|first| first.enable_seq = Some(7), "enable_seq 1 became 7"),
        (|first| first.ops = Some("other".into()), "'other' was loaded"),
    ];
    for (change, why) in faults {
        let (verdict, status, reason) = replaced(change);
        assert_eq!((verdict.outcome, status), (Outcome::Fail, Status::Fail), "{why}");
        assert!(reason.contains(why) && reason.contains("(instance 1 of 2, mini_fifo)"), "{reason}");
    }
    // One whose end was never told.
    let (verdict, status, reason) = run(|record| {
        let enabled = record.sched_enabled.clone().unwrap();
        record.earlier.push(Instance { enabled, last: None });
    });
    assert_eq!((verdict.outcome, status), (Outcome::Inconclusive, Status::Inconclusive), "{reason}");
}

#[test]
fn restarts_are_folded_into_instances_with_their_ends() {
    let good = passing_with_scheduler();
    let (enabled, end) = (good.sched_enabled.clone().unwrap(), good.sched_final.clone().unwrap());
    let start = |enable_seq| Msg::SchedEnabled {
        ops: enabled.ops.clone(),
        enable_seq,
        took_ns: enabled.took_ns,
        pid: enabled.pid,
        switch_all: enabled.switch_all,
    };
    let ended = |enable_seq, killed| SchedFinal { enable_seq: Some(enable_seq), killed, ..end.clone() };
    let mut record = Record { sched_enabled: None, sched_final: None, ..good.clone() };
    for message in [
        start(1),
        Msg::SchedDetached { last: ended(1, true) },
        start(2),
        Msg::SchedDetached { last: ended(2, false) },
        start(3),
        Msg::SchedStopped { last: ended(3, false) },
    ] {
        record.apply(message);
    }
    let killed: Vec<bool> = record.sched_ends().map(|last| last.unwrap().killed).collect();
    assert_eq!(killed, [true, false, false]);
    let verdict = judge(&record, &defaults());
    assert_eq!(verdict.outcome, Outcome::Fail);
    assert!(verdict.headline.contains("ignored SIGINT") && verdict.headline.contains("1 of 3"), "{}", verdict.headline);
}

#[test]
fn one_that_found_another_loaded_says_so() {
    let with = |code, state: &str| {
        run(|record| {
            let end = Some(ProcessEnd::Exited { code });
            record.sched_died = Some(Died { after_ns: 1, end, state: state.into(), text: "its process ended".into() });
            record.sched_output = "Error: Device or resource busy (os error 16)\n".into();
        })
        .2
    };
    assert!(with(1, "enabled").ends_with(": another scheduler is loaded already (EBUSY)"));
    // Where none is enabled, these words of its are of something else.
    assert!(!with(0, "enabled").contains("EBUSY") && !with(1, "disabled").contains("EBUSY"));
}

#[test]
fn ends_by_our_own_sigint_are_clean() {
    for end in [ProcessEnd::Signaled { signal: 2 }, ProcessEnd::Exited { code: 130 }] {
        assert_eq!(run(|record| last(record).end = Some(end)).1, Status::Pass);
    }
}

#[test]
fn unknown_end_is_inconclusive() {
    let faults: [Fault; 4] = [
        |record| record.sched_final = None,
        |record| last(record).ops = None,
        |record| last(record).enable_seq = None,
        |record| {
            record.sched_enabled = None;
            record.sched_final = None;
        },
    ];
    for change in faults {
        let (verdict, status, _) = run(change);
        assert_eq!((verdict.outcome, status), (Outcome::Inconclusive, Status::Inconclusive), "{}", verdict.headline);
    }
}

#[test]
fn watchdog_stall_is_the_headline_with_its_victim() {
    let (verdict, status, _) = run(|record| {
        add_log(record, &STALL);
        record.sched_died =
            Some(Died { after_ns: 1_500_000_000, end: None, state: "disabled".into(), text: "x".into() });
        record.sched_final = None;
        record.reports[0].1.work_units = 0;
    });
    assert_eq!((verdict.outcome, status, verdict.exit_code), (Outcome::Fail, Status::Fail, 1));
    let headline = &verdict.headline;
    assert!(headline.contains("runnable task stall: kw0.0-spin[184] failed to run for 1.400s"), "{headline}");
    assert_eq!(verdict.sched_exits.last().unwrap().victim.as_ref().unwrap().pid, 184);
}

#[test]
fn process_that_crashed_fails_although_the_kernel_log_is_clean() {
    let (verdict, status, _) = run(|record| {
        let end = Some(ProcessEnd::Signaled { signal: 11 });
        record.sched_died = Some(Died { after_ns: 1_200_000_000, end, state: "disabled".into(), text: "x".into() });
        record.sched_final = None;
        record.crash = Some("a later panic of PID 1".into());
    });
    assert_eq!((verdict.outcome, status), (Outcome::Fail, Status::Fail));
    assert!(verdict.headline.contains("went away 1.20 s into the scenario: x; signal 11"), "{}", verdict.headline);
}

#[test]
fn instance_that_came_after_the_loss_is_named_however_late() {
    const FIRST: &str = "sched_ext: BPF scheduler \"mini_fifo\" disabled (unregistered from BPF)";
    const HOTPLUG: &str = "sched_ext: BPF scheduler \"mini_fifo\" disabled (unregistered from the main kernel)";
    const OURS: &str = "sched_ext: BPF scheduler \"mini_fifo\" disabled (unregistered from user space)";
    let cases = [
        (2, true, &[FIRST, OURS][..], Status::Fail, "replaced (enable_seq 1 became 2)", "unregistered from BPF"),
        (2, false, &[FIRST], Status::Fail, "replaced (enable_seq 1 became 2)", "unregistered from BPF"),
        (3, true, &[FIRST, OURS, OURS], Status::Fail, "replaced (enable_seq 1 became 3)", "unregistered from BPF"),
        (2, true, &[HOTPLUG, OURS], Status::Inconclusive, "enable_seq 1 became 2", "unregistered from the main kernel"),
        (9, true, &[FIRST], Status::Fail, "enable_seq 1 became 9", "unregistered from BPF"),
        (1, true, &[FIRST], Status::Fail, "the kernel's state is disabled", "unregistered from BPF"),
    ];
    for (seq, disabled, lines, wanted, words, exit) in cases {
        let (_, status, told) = run(|record| {
            record.klog.pop();
            add_log(record, lines);
            let text = "the kernel's state is disabled".into();
            record.sched_died = Some(Died { after_ns: 1, end: None, state: "disabled".into(), text });
            (last(record).enable_seq, last(record).disabled) = (Some(seq), disabled);
        });
        assert_eq!(status, wanted, "{told}");
        assert!(told.contains(words) && told.ends_with(exit), "{told}");
    }
}

#[test]
fn scheduler_ended_by_its_surroundings_is_inconclusive() {
    for reason in ["disabled by sysrq-S", "unregistered from the main kernel", "parent exiting"] {
        let line = format!("sched_ext: BPF scheduler \"mini_fifo\" disabled ({reason})");
        let (verdict, status, told) = run(|record| {
            record.klog.pop();
            add_log(record, &[&line]);
            record.sched_died = Some(Died { after_ns: 1, end: None, state: "disabled".into(), text: "x".into() });
        });
        assert_eq!((verdict.outcome, status), (Outcome::Inconclusive, Status::Inconclusive), "{}", verdict.headline);
        assert!(told.contains(reason), "{told}");
    }
}

#[test]
fn scheduler_that_ended_itself_fails() {
    let (verdict, ..) = run(|record| {
        record.klog.pop();
        add_log(record, &["sched_ext: BPF scheduler \"mini_fifo\" disabled (unregistered from BPF)"]);
        last(record).state = "disabled".into();
    });
    assert_eq!(verdict.outcome, Outcome::Fail);
    assert!(verdict.headline.contains("unregistered from BPF"), "{}", verdict.headline);
}

#[test]
fn each_failed_start_has_its_outcome() {
    let table = [
        (SchedFailure::KernelLacksSchedExt, Outcome::Skip, 125),
        (SchedFailure::NotExecutable, Outcome::Error, 128),
        (SchedFailure::ExitedEarly, Outcome::Fail, 1),
        (SchedFailure::VerifierRejected, Outcome::Fail, 1),
        (SchedFailure::EnableTimeout, Outcome::Fail, 1),
        (SchedFailure::DisabledEarly, Outcome::Fail, 1),
        (SchedFailure::KernelStalled, Outcome::Inconclusive, 125),
    ];
    for (why, outcome, code) in table {
        let (verdict, status, _) = run(|record| {
            record.sched_failed = Some((why, "CONFIG_SCHED_CLASS_EXT is not set\nmore".into()));
            record.sched_enabled = None;
            record.sched_final = None;
            record.scenario_started = None;
            record.scenario_end = None;
            record.reports.clear();
        });
        assert_eq!((verdict.outcome, verdict.exit_code), (outcome, code), "{why:?}: {}", verdict.headline);
        assert!(verdict.headline.ends_with(": CONFIG_SCHED_CLASS_EXT is not set"), "{}", verdict.headline);
        assert_ne!(status, Status::Pass);
    }
}

#[test]
fn refused_program_is_told_with_the_verifier_s_reason() {
    let log = "it printed last:\n  -- BEGIN PROG LOAD LOG --\n  0: R1=ctx() R10=fp0\n  0: (79) r0 = *(u64 *)(r1 +4096)\n  \
        invalid bpf_context access off=4096 size=8\n  processed 1 insns (limit 1000000)\n  -- END PROG LOAD LOG --";
    let (verdict, ..) = run(|record| {
        record.sched_failed = Some((SchedFailure::VerifierRejected, log.into()));
        record.sched_enabled = None;
    });
    assert!(
        verdict.headline.ends_with("refused the scheduler: invalid bpf_context access off=4096 size=8"),
        "{}",
        verdict.headline
    );
    assert_eq!(verdict.stopped, Some("scheduler not enabled"));
}
