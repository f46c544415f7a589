//! The cause: the one sentence that says why a run came out as it did, and the outcome that follows.
//!
//! Owns the order in which causes count; leaves each check's own result to the check.
//! Invariant: evidence that came first outranks what may only be its consequence.
//!
//! The order, first match wins:
//! 1. The user interrupted the run.
//! 2. The kernel did not reach PID 1: the machine, too little memory, or a kernel that cannot host the test.
//! 3. The guest found that it cannot judge (a kernel without sched_ext, say), and the kernel did not crash, nor report
//!    anything else that fails a run once the scenario had begun.
//! 4. The first finding in the kernel log that fails the run or blames the harness (memory ran out).
//! 5. The kernel did not return from a call; the scheduler would not start, or went away.
//! 6. The guest or the machine broke: PID 1 crashed, could not do its work, KVM gave up.
//! 7. The VM stopped answering, or ended without a word.
//! 8. A check failed; 9. a check is Inconclusive; 10. the scenario skipped itself; 11. nothing is wrong.

use super::check::{Check, Status};
use super::judge::during_scenario;
use super::log_checks::{excuse, vm_end_text};
use super::noise;
use super::outcome::Outcome;
use super::own;
use super::scheduler::start_failure;
use super::stage::{pid1_ran, reached, stopped_at};
use super::table::is_on;
use super::workers::{disturbed, emulated, on_metal};
use crate::klog::{Class, Finding, KernelLog, Severity};
use crate::proto::limits::{Assert, CheckId};
use crate::proto::message::{SchedFailure, Stage, VmEnd};
use crate::proto::record::Record;
use crate::proto::registers::CpuDump;
use crate::units::{MIB, approx, size};

/// Below this a distribution's kernel and its initramfs may not even unpack: with 96 MiB Debian's 7.x cloud kernel
/// panics in an initcall, with 48 MiB it resets without a word.
const LITTLE_MEMORY_BYTES: u64 = 128 * MIB;

/// The headline of a pass.
pub const NOTHING_WRONG: &str = "every check that applies passed";

/// An outcome with its reason.
pub type Cause = (Outcome, String);

/// The cause of the run's outcome.
pub fn find(record: &Record, log: &KernelLog, checks: &[Check], limits: &Assert) -> Cause {
    if record.vm_end == Some(VmEnd::Interrupted) {
        return (Outcome::Interrupted, format!("interrupted{}", at_stage(record, log)));
    }
    if !pid1_ran(record) {
        return not_booted(record, log, limits);
    }
    cannot_judge(record, log, limits)
        .or_else(|| kernel_finding(record, log, limits))
        .or_else(|| hang(record))
        .or_else(|| scheduler_failure(record, log, checks))
        .or_else(|| harness_failure(record))
        .or_else(|| silence(record, log))
        .or_else(|| of_checks(checks))
        .or_else(|| own::skipped(record))
        .unwrap_or_else(|| (Outcome::Pass, NOTHING_WRONG.to_owned()))
}

fn at_stage(record: &Record, log: &KernelLog) -> String {
    stopped_at(record, log.spoke).map_or_else(String::new, |stage| format!(" ({stage})"))
}

fn not_booted(record: &Record, log: &KernelLog, limits: &Assert) -> Cause {
    let stage = stopped_at(record, log.spoke).unwrap_or("no kernel output");
    match &record.vm_end {
        Some(VmEnd::MachineError { text }) => return (Outcome::Error, text.clone()),
        None => return (Outcome::Error, format!("the VM ended without saying how ({stage})")),
        Some(_) => {}
    }
    let given = record.host.as_ref().map(|host| host.memory_bytes);
    // Before PID 1 no cgroup has a limit, so every failed allocation is for want of guest memory.
    if let Some(memory) = log.findings.iter().find(|finding| finding.class == Class::OutOfMemory) {
        let given = given.map_or_else(String::new, |bytes| format!(" ({})", size(bytes)));
        return (Outcome::Error, format!("guest memory is too small{given}: {}", memory.title));
    }
    let outcome = if is_on(limits, CheckId::BootFailure) { Outcome::Fail } else { Outcome::Skip };
    let end = record.vm_end.as_ref().map(vm_end_text).unwrap_or_default();
    let told = boot_finding(log).map(|finding| format!("{} - {}", finding.title, finding.meaning));
    let last = told.or_else(|| last_console_line(&record.console));
    let words = last.map_or_else(String::new, |line| format!(": {line}"));
    let little = given.filter(|bytes| *bytes < LITTLE_MEMORY_BYTES);
    let little =
        little.map_or_else(String::new, |bytes| format!("; {} of memory may be too little for it", size(bytes)));
    (outcome, format!("the kernel did not boot to PID 1 ({stage}; {end}{little}){words}"))
}

/// The finding that tells most about a failed boot: what stood before the panic, or the panic.
fn boot_finding(log: &KernelLog) -> Option<&Finding> {
    let tells =
        |finding: &&Finding| matches!(finding.severity, Severity::Fail | Severity::CannotJudge | Severity::Harness);
    let crash = log.findings.iter().find(|finding| finding.severity == Severity::Fail && finding.class.is_crash());
    let boot = log.findings.iter().find(|finding| finding.class == Class::BootFailure);
    boot.or(crash).or_else(|| log.findings.iter().find(tells))
}

fn last_console_line(console: &str) -> Option<String> {
    let line =
        console.lines().rev().map(|line| crate::klog::console_line(line).1.trim()).find(|line| !line.is_empty())?;
    Some(format!("last line: {}", crate::klog::one_line(line)))
}

fn cannot_judge(record: &Record, log: &KernelLog, limits: &Assert) -> Option<Cause> {
    let fails = |finding: &Finding| finding.severity == Severity::Fail;
    // What the kernel said before the scenario is no reason to judge a kernel that cannot be judged.
    let later = |finding: &Finding| record.scenario_started.is_some() && during_scenario(record, finding.time_us);
    let counts = |finding: &Finding| later(finding) && is_decisive(record, limits, finding);
    let stands = |finding: &Finding| {
        fails(finding) && (finding.class.is_crash() || counts(finding) && excuse(record, log, finding).is_none())
    };
    if log.findings.iter().any(stands) {
        return None;
    }
    if let Some((SchedFailure::KernelLacksSchedExt, text)) = &record.sched_failed {
        return Some((Outcome::Skip, start_failure(SchedFailure::KernelLacksSchedExt, text)));
    }
    let error = record.guest_errors.iter().find(|error| error.cannot_judge)?;
    Some((Outcome::Skip, format!("{}: {}", error.stage, error.text)))
}

/// Whether the finding decides the run where nothing excuses it.
fn is_decisive(record: &Record, limits: &Assert, finding: &Finding) -> bool {
    match finding.severity {
        // PID 1's own last words say more than the panic that follows them.
        Severity::Harness => finding.class != Class::InitKilled || record.crash.is_none(),
        Severity::Fail => {
            is_on(limits, CheckId::KernelLogClean) || finding.class.is_crash() || finding.class == Class::SchedExtExit
        }
        _ => false,
    }
}

fn kernel_finding(record: &Record, log: &KernelLog, limits: &Assert) -> Option<Cause> {
    let decisive = |finding: &&Finding| is_decisive(record, limits, finding);
    let undisturbed = |finding: &&Finding| excuse(record, log, finding).is_none();
    let finding = log.findings.iter().filter(undisturbed).find(decisive)?;
    if finding.severity == Severity::Fail {
        return Some((Outcome::Fail, finding.title.clone()));
    }
    Some((Outcome::Error, format!("{}: {}", finding.meaning, finding.title)))
}

/// The kernel did not return from a call.
fn hang(record: &Record) -> Option<Cause> {
    let text = record.hangs.first()?;
    match disturbed(record) {
        None => Some((Outcome::Fail, format!("the kernel hangs: {text}"))),
        Some(why) => Some((Outcome::Inconclusive, format!("the kernel may hang, but {why}: {text}"))),
    }
}

fn scheduler_failure(record: &Record, log: &KernelLog, checks: &[Check]) -> Option<Cause> {
    if let Some((why, text)) = &record.sched_failed {
        let outcome = match why {
            SchedFailure::KernelLacksSchedExt => Outcome::Skip,
            SchedFailure::NotExecutable => Outcome::Error,
            // A stall that counts is a cause of its own, and comes before this.
            SchedFailure::OutOfTime | SchedFailure::KernelStalled => Outcome::Inconclusive,
            // An emulator may be too slow for our own limit; whoever names one has thought of that.
            SchedFailure::EnableTimeout if emulated(record) && !names_enable_timeout(record) => Outcome::Inconclusive,
            SchedFailure::ExitedEarly
            | SchedFailure::VerifierRejected
            | SchedFailure::EnableTimeout
            | SchedFailure::DisabledEarly => Outcome::Fail,
        };
        let void_stall = if *why == SchedFailure::KernelStalled { void(record, log) } else { String::new() };
        let failure = format!("{}{void_stall}", start_failure(*why, text));
        return match noise::explains_start(record, log).filter(|_| outcome == Outcome::Fail) {
            Some(void) => Some((Outcome::Inconclusive, format!("{failure}; {void}"))),
            None => Some((outcome, failure)),
        };
    }
    record.sched_died.as_ref()?;
    let check = checks.iter().find(|check| check.name == "scheduler_alive")?;
    (check.status == Status::Fail).then(|| (Outcome::Fail, check.reason.clone()))
}

fn names_enable_timeout(record: &Record) -> bool {
    record.plan.as_ref().is_some_and(|plan| plan.guards.enable_timeout_ns.is_some())
}

fn harness_failure(record: &Record) -> Option<Cause> {
    if let Some(error) = record.guest_errors.first() {
        return Some((Outcome::Error, format!("{}: {}", error.stage, error.text)));
    }
    if let Some(text) = &record.crash {
        return Some((Outcome::Error, format!("ktstr's PID 1 crashed: {text}")));
    }
    match &record.vm_end {
        Some(VmEnd::MachineError { text }) => Some((Outcome::Error, text.clone())),
        None if on_metal(record) && record.bye => None,
        None if on_metal(record) => Some((Outcome::Error, "the run ended without saying how".into())),
        None => Some((Outcome::Error, "the VM ended without saying how".into())),
        Some(_) => None,
    }
}

/// The guest fell silent: it hung until the deadline, or it ended without saying goodbye.
fn silence(record: &Record, log: &KernelLog) -> Option<Cause> {
    let stage = stopped_at(record, log.spoke);
    match (&record.vm_end, stage) {
        (Some(VmEnd::TripleFault), stage) => {
            let stage = stage.unwrap_or("after the guest said goodbye");
            Some((Outcome::Fail, format!("the kernel crashed with a triple fault ({stage})")))
        }
        // A channel that broke is lost telemetry; what the guest did wrong, if anything, is in the log.
        (Some(VmEnd::Cut { reason }), _) if !record.bye => {
            Some((Outcome::Inconclusive, format!("{reason}{}", void(record, log))))
        }
        (Some(VmEnd::TimedOut), Some(stage)) => {
            // An emulator can be too slow to get there; a guest that began its scenario has shown that it can.
            if emulated(record) && reached(record) < Some(Stage::ScenarioStart) {
                let why = format!(
                    "the emulated guest did not get there before the deadline ({stage}); --timeout gives it longer"
                );
                return Some((Outcome::Inconclusive, why));
            }
            if let Some(why) = noise::explains_silence(record) {
                let silent = format!("the guest was killed at the deadline ({stage}), and {why}");
                return Some((Outcome::Inconclusive, silent));
            }
            Some((Outcome::Fail, format!("the guest stopped answering and was killed at the deadline ({stage})")))
        }
        (Some(VmEnd::Silent { for_ns, busy_percent }), stage) => {
            let stage = stage.unwrap_or("after the guest said goodbye");
            let silent =
                format!("no sign of life from PID 1 for {}{} ({stage})", approx(*for_ns), busy(record, *busy_percent));
            if let Some(why) = noise::explains_silence(record) {
                return Some((Outcome::Inconclusive, format!("{silent}, and {why}")));
            }
            Some((Outcome::Fail, format!("the guest stopped answering: {silent}")))
        }
        (Some(VmEnd::Reset | VmEnd::Poweroff), Some(stage)) => {
            let last = last_console_line(&record.console).map_or_else(String::new, |line| format!(": {line}"));
            Some((Outcome::Fail, format!("the guest went down before it had finished ({stage}){last}")))
        }
        _ => None,
    }
}

/// Why the stall for which a run was cut decides nothing, where it was one.
fn void(record: &Record, log: &KernelLog) -> String {
    let stalls = log.findings.iter().filter(|finding| finding.class.is_stall());
    let why = stalls.filter(|finding| finding.severity == Severity::Fail).find_map(|stall| excuse(record, log, stall));
    why.map_or_else(String::new, |why| format!("; void, as {why}"))
}

/// Below this share of one CPU a guest waits, above it works: PID 1's own looks take a percent.
const IDLE_PERCENT: u32 = 20;

/// RFLAGS.IF (Intel SDM volume 1, section 3.4.3.3).
const INTERRUPTS_ON: u64 = 1 << 9;

/// What the VM's CPU time and the registers tell of a guest that fell silent.
fn busy(record: &Record, percent: Option<u32>) -> &'static str {
    let off = |cpu: &CpuDump| cpu.missing.is_none() && cpu.rflags & INTERRUPTS_ON == 0;
    match percent {
        None => "",
        Some(..IDLE_PERCENT) => ", while its CPUs were idle: PID 1 waits for something",
        Some(_) if !record.registers.is_empty() && record.registers.iter().all(off) => {
            ", while its CPUs were busy, with interrupts off: the kernel does not come to PID 1"
        }
        Some(_) => ", while its CPUs were busy: PID 1 waits, or is kept from running",
    }
}

fn of_checks(checks: &[Check]) -> Option<Cause> {
    let worst = checks.iter().map(|check| check.status.outcome()).fold(Outcome::Pass, Outcome::merge);
    let first = checks.iter().find(|check| check.status.outcome() == worst)?;
    (worst != Outcome::Pass).then(|| (worst, first.sentence()))
}
