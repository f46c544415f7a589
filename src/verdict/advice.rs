//! What to try next: for each way a run can end, the step that tells more or mends it.
//!
//! Owns these sentences; leaves the cause to `cause`.
//! Invariant: advice names only flags and files that there are, and a pass needs none.

use super::check::Status;
use super::judge::Verdict;
use super::noise;
use super::outcome::Outcome;
use super::workers::EMULATED;
use crate::klog::sched_ext::ExitReason;
use crate::klog::{Class, Severity};
use crate::proto::message::{SchedFailure, Stage, VmEnd};
use crate::proto::record::Record;

/// What the reason of a check says that was made void.
const VOID: &str = "void, ";

/// The most telling first; never empty, but for a pass and for a run that was interrupted.
pub fn advice(record: &Record, verdict: &Verdict) -> Vec<String> {
    if matches!(verdict.outcome, Outcome::Pass | Outcome::Interrupted) {
        return Vec::new();
    }
    let mut list = Vec::new();
    let memory = verdict.findings.iter().any(|finding| {
        finding.class == Class::OutOfMemory && matches!(finding.severity, Severity::Harness | Severity::Note)
    });
    if memory && verdict.outcome == Outcome::Error {
        list.push("give the guest more memory: --memory 1G".into());
    }
    list.extend(of_start(record));
    list.extend(of_exit(record, verdict));
    list.extend(of_end(record, verdict));
    let void = verdict.outcome == Outcome::Inconclusive && verdict.headline.contains(VOID);
    if list.is_empty() || void {
        list.push(of_outcome(record, verdict));
    }
    list
}

/// Where nothing else tells more.
fn of_outcome(record: &Record, verdict: &Verdict) -> String {
    match verdict.outcome {
        Outcome::Inconclusive => of_missing(record, verdict).into(),
        Outcome::Skip if record.guest_errors.is_empty() => {
            "the reason above names what is needed: --topo gives a VM another shape, --memory more memory".into()
        }
        Outcome::Skip => "use a kernel with the options that are named above, or a --topo that it brings up".into(),
        Outcome::Error if record.crash.is_some() => {
            "this is a fault of ktstr's, not of what is tested: please report it with the run directory".into()
        }
        Outcome::Error => {
            "the run directory has all that was said before it; 'ktstr doctor' looks at this machine".into()
        }
        _ => {
            let seed = record.plan.as_ref().map_or_else(String::new, |plan| format!(" --seed {}", plan.seed));
            format!("see whether it comes again: --repeat 5{seed}; 'ktstr judge DIR' judges this run by other limits")
        }
    }
}

/// A run without a verdict: its data are void, or not there.
fn of_missing(record: &Record, verdict: &Verdict) -> &'static str {
    let undecided = || verdict.checks.iter().filter(|check| check.status == Status::Inconclusive);
    let said = |words: &str| verdict.headline.contains(words) || undecided().any(|check| check.reason.contains(words));
    if said(EMULATED) {
        return "times need a host with KVM: 'ktstr doctor' says what this one lacks";
    }
    // What is void without an emulator is so because of the host, and so is a call that may only have been slow.
    if said(VOID) || !record.hangs.is_empty() || said(noise::KEPT_WAITING) {
        return "run it while the host has less to do, or with --perf, which gives vCPUs CPUs of their own where it can";
    }
    if record.scenario_end.as_ref().is_some_and(|end| end.early.is_some()) {
        return "what ended the run early is named above: without that the same command gives a verdict";
    }
    match undecided().any(|check| check.name == "telemetry_complete") {
        true => {
            "run it again, with --keep: what is missing above was lost on the way, and the run directory has the rest"
        }
        false => "what is named above has to be there for a verdict: see to that, or switch its check off",
    }
}

/// A scheduler that did not start.
fn of_start(record: &Record) -> Option<String> {
    let (why, _) = record.sched_failed.as_ref()?;
    Some(match why {
        SchedFailure::KernelLacksSchedExt => "use a kernel with the options that are named above".into(),
        SchedFailure::NotExecutable => "'ktstr image --list' with the same flags shows what is packed, and why".into(),
        SchedFailure::VerifierRejected => "the verifier's whole log is in scheduler.log of the run directory".into(),
        SchedFailure::ExitedEarly | SchedFailure::DisabledEarly => {
            "all that it printed is in scheduler.log of the run directory; --sched-args passes it options".into()
        }
        SchedFailure::KernelStalled => {
            "the kernel's lines above name the CPU that was kept, and a backtrace there by what: ops.init, as a rule".into()
        }
        SchedFailure::EnableTimeout | SchedFailure::OutOfTime => {
            "where the machine is slow, --enable-timeout and --timeout give it longer; scheduler.log has what it printed".into()
        }
    })
}

/// A scheduler that the kernel ended.
fn of_exit(record: &Record, verdict: &Verdict) -> Option<String> {
    let exit = verdict.sched_exits.iter().find(|exit| exit.reason.is_error())?;
    let dump =
        if record.sched_dump.is_empty() { "" } else { "; sched_ext_dump.txt has the kernel's view of every queue" };
    Some(match exit.reason {
        ExitReason::Stall => {
            let whom = exit
                .victim
                .as_ref()
                .map_or_else(|| "the task".to_owned(), |task| format!("{}[{}]", task.comm, task.pid));
            format!(
                "find out where {} was queued{dump}; --watchdog sets how long it may wait",
                crate::klog::one_line(&whom)
            )
        }
        _ if exit.is_lockup() => {
            format!(
                "the kernel's backtrace above shows what kept a CPU: an operation of the scheduler that does not return, if it is there{dump}"
            )
        }
        _ => format!("the kernel's backtrace above shows which call was refused{dump}"),
    })
}

/// A guest that did not get there, or ended badly.
fn of_end(record: &Record, verdict: &Verdict) -> Option<String> {
    if matches!(record.vm_end, Some(VmEnd::TimedOut | VmEnd::Silent { .. }))
        && !record.bye
        && verdict.reached >= Some(Stage::Pid1)
    {
        return Some(
            "registers.txt of the run directory shows where each vCPU stood; --timeout gives it longer".into(),
        );
    }
    if verdict.reached < Some(Stage::Pid1) && record.vm_end.is_some() {
        let bisect = if verdict.outcome == Outcome::Skip { "; --boot-failure fail makes this a failure" } else { "" };
        return Some(format!("--dmesg shows the kernel while it boots; console.log has what it printed{bisect}"));
    }
    if !record.channel_damage.is_empty() {
        return Some("--channel serial takes another way out of the guest".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{STALL, add_log, passing, passing_with_scheduler, starve};
    use super::super::judge_stored;
    use super::*;
    use crate::proto::record::GuestError;
    use crate::units::NS_PER_SEC;

    fn of(mut record: Record, change: impl FnOnce(&mut Record)) -> String {
        change(&mut record);
        advice(&record, &judge_stored(&record)).join("\n")
    }

    #[test]
    fn each_ending_has_its_advice_and_a_pass_has_none() {
        assert_eq!(of(passing(), |_| {}), "");
        let stall = of(passing_with_scheduler(), |record| {
            add_log(record, &STALL);
            record.sched_dump = "CPU 0\n".into();
        });
        assert!(stall.contains("kw0.0-spin[184] was queued; sched_ext_dump.txt"), "{stall}");
        let refused = of(passing_with_scheduler(), |record| {
            record.sched_failed = Some((SchedFailure::VerifierRejected, "x".into()));
        });
        assert!(refused.contains("scheduler.log"), "{refused}");
        let hung = of(passing(), |record| (record.bye, record.vm_end) = (false, Some(VmEnd::TimedOut)));
        assert!(hung.contains("registers.txt"), "{hung}");
        let memory = of(passing(), |record| add_log(record, &["Out of memory: Killed process 1 (x)"]));
        assert!(memory.contains("--memory"), "{memory}");
        let starved = of(passing(), |record| record.reports[0].1.work_units = 0);
        assert!(starved.contains("--repeat 5 --seed 42"), "{starved}");
        let boot = of(passing(), |record| {
            record.marks.retain(|(stage, _)| *stage < Stage::Pid1);
            (record.hello, record.bye, record.scenario_started, record.scenario_end) = (None, false, None, None);
        });
        assert!(boot.contains("--dmesg") && boot.contains("--boot-failure fail"), "{boot}");
    }

    #[test]
    fn run_that_cannot_be_judged_has_its_advice() {
        let busy = of(passing(), |record| {
            starve(record, 0, 4 * NS_PER_SEC);
            record.reports[0].1.work_units = 0;
        });
        assert!(busy.contains("--perf"), "{busy}");
        let emulated = of(passing(), |record| {
            record.host.as_mut().unwrap().accel = "qemu".into();
            add_log(record, &["rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"]);
        });
        assert!(emulated.contains("'ktstr doctor'"), "{emulated}");
        let lost = of(passing(), |record| record.klog_end = None);
        assert!(lost.contains("--keep"), "{lost}");
        let error = |text: &str, cannot_judge| GuestError { stage: "s".into(), text: text.into(), cannot_judge };
        let lacks = of(passing(), |record| record.guest_errors = vec![error("CONFIG_CPUSETS is not set", true)]);
        assert!(lacks.contains("options that are named above"), "{lacks}");
        let broken = of(passing(), |record| record.guest_errors = vec![error("cannot mount", false)]);
        assert!(broken.contains("the run directory"), "{broken}");
        let crashed = of(passing(), |record| (record.crash, record.bye) = (Some("panic at x".into()), false));
        assert!(crashed.contains("a fault of ktstr's"), "{crashed}");
    }
}
