//! Which failures count where one certain fault is looked for, as in a bisection.
//!
//! Owns the kinds of failure and what a failure of another kind is worth; leaves finding failures to `judge`.
//! Invariant: a failure that is asked for stays one; another never becomes a pass unless the run came to its end in spite
//! of it.

use super::check::{Check, Status};
use super::judge::Verdict;
use super::log_checks::excuse;
use super::noise;
use super::outcome::Outcome;
use super::several::{OUTSIDE, OfScenario};
use super::stage::pid1_ran;
use super::workers::disturbed;
use crate::klog::{Class, KernelLog, Severity};
use crate::proto::message::VmEnd;
use crate::proto::record::Record;

/// A kind of failure, as people name it when they look for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadKind {
    /// The kernel does not boot to PID 1.
    Boot,
    /// The kernel crashes: panic, BUG, Oops, triple fault, a reset out of nowhere.
    Panic,
    /// The kernel complains and goes on: WARNING, lockdep, sleeping in atomic context, sanitizers.
    Warn,
    /// Something does not run: sched_ext's watchdog, RCU stalls, lockups, hung tasks, a guest that hangs.
    Stall,
    /// Everything else: a limit of a check, a scheduler that ends by itself.
    Check,
}

/// The words, with what each stands for.
pub const KINDS: [(&str, BadKind); 5] = [
    ("boot", BadKind::Boot),
    ("panic", BadKind::Panic),
    ("warn", BadKind::Warn),
    ("stall", BadKind::Stall),
    ("check", BadKind::Check),
];

/// Some kinds of failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadOn(pub Vec<BadKind>);

impl BadOn {
    pub fn contains(&self, kind: BadKind) -> bool {
        self.0.contains(&kind)
    }

    /// As it was given.
    pub fn text(&self) -> String {
        let words = KINDS.iter().filter(|(_, kind)| self.contains(*kind)).map(|(word, _)| *word);
        words.collect::<Vec<_>>().join(",")
    }

    /// The verdict where only these kinds count.
    pub fn apply(&self, record: &Record, verdict: Verdict) -> Verdict {
        if verdict.outcome != Outcome::Fail {
            return verdict;
        }
        let outcome = match verdict.scenarios.is_empty() {
            true => self.of_one(record, &verdict),
            // Another scenario than the one that failed first may have what is looked for, or not have got to it.
            false => verdict.scenarios.iter().fold(Outcome::Pass, |worst, one| worst.merge(self.of_part(record, one))),
        };
        let what = match outcome {
            Outcome::Fail => return self.by_its_scenario(record, verdict),
            Outcome::Pass => "the run came to its end all the same",
            _ => {
                "it ended the run before the one that is looked for could show, or something else kept that from showing"
            }
        };
        let headline = format!(
            "the failure is not of a kind that --bad-on {} names, and {what}: {}",
            self.text(),
            verdict.headline
        );
        Verdict { outcome, headline, exit_code: outcome.exit_code(), ..verdict }
    }

    /// A failure is told by the scenario that shows what is looked for.
    fn by_its_scenario(&self, record: &Record, verdict: Verdict) -> Verdict {
        let shows = |one: &&OfScenario| self.of_part(record, one) == Outcome::Fail;
        let Some(one) = verdict.scenarios.iter().find(shows) else { return verdict };
        if verdict.headline.ends_with(&one.verdict.headline) {
            return verdict;
        }
        let headline = format!("{}: {}", one.name, one.verdict.headline);
        let (checks, reached, stopped) = (one.verdict.checks.clone(), one.verdict.reached, one.verdict.stopped);
        Verdict { headline, checks, reached, stopped, ..verdict }
    }

    fn of_part(&self, whole: &Record, one: &OfScenario) -> Outcome {
        match one.part.and_then(|place| whole.parts.get(place)) {
            Some(part) => self.of_one(&part.record, &one.verdict),
            None if one.name == OUTSIDE => whole.outside.as_deref().map_or(one.verdict.outcome, |outside| {
                let mut outside = outside.clone();
                if !whole.is_outside() {
                    // The scenario that was open is asked how the machine ended.
                    outside.vm_end = None;
                }
                self.of_one(&outside, &one.verdict)
            }),
            // It was not begun.
            None => one.verdict.outcome,
        }
    }

    fn of_one(&self, record: &Record, verdict: &Verdict) -> Outcome {
        let shown = shown(record, verdict);
        if verdict.outcome != Outcome::Fail || shown.kinds.iter().any(|kind| self.contains(*kind)) {
            return verdict.outcome;
        }
        let judged = verdict.checks.iter().all(|check| check.status != Status::Inconclusive);
        if verdict.stopped.is_none() && judged && !shown.excused { Outcome::Pass } else { Outcome::Inconclusive }
    }
}

fn of_class(class: Class) -> Option<BadKind> {
    Some(match class {
        Class::Panic | Class::Oops | Class::Bug | Class::InitKilled | Class::Reboot => BadKind::Panic,
        Class::Warning | Class::Lockdep | Class::Atomic | Class::Sanitizer => BadKind::Warn,
        Class::RcuStall | Class::SoftLockup | Class::HardLockup | Class::HungTask | Class::WorkqueueLockup => {
            BadKind::Stall
        }
        Class::BootFailure => BadKind::Boot,
        // Why the scheduler left is told by its exit.
        Class::SchedExtState | Class::SchedExtExit => return None,
        Class::OutOfMemory | Class::Clock | Class::UserCrash | Class::Other => BadKind::Check,
    })
}

/// What a failed run of one scenario shows.
#[derive(Default)]
struct Shown {
    kinds: Vec<BadKind>,
    /// Something that would be of a kind, and that the host or the emulator may have done.
    excused: bool,
}

impl Shown {
    fn add(&mut self, kind: BadKind, excuse: Option<String>) {
        match excuse {
            None => self.kinds.push(kind),
            Some(_) => self.excused = true,
        }
    }
}

fn shown(record: &Record, verdict: &Verdict) -> Shown {
    let mut shown = Shown::default();
    if !pid1_ran(record) {
        shown.kinds.push(BadKind::Boot);
        return shown;
    }
    let log = KernelLog { exits: verdict.sched_exits.clone(), ..KernelLog::default() };
    let switched_off = |check: &Check| check.name == "kernel_log_clean" && check.status == Status::NotApplied;
    let only_crashes = verdict.checks.iter().any(switched_off);
    for finding in verdict.findings.iter().filter(|finding| finding.severity == Severity::Fail) {
        if let Some(kind) = of_class(finding.class).filter(|_| !only_crashes || finding.class.is_crash()) {
            shown.add(kind, excuse(record, &log, finding));
        }
    }
    for exit in verdict.sched_exits.iter().filter(|exit| exit.is_stall()) {
        shown.add(BadKind::Stall, noise::explains_exit(record, exit));
    }
    // A call that the kernel does not return from.
    if !record.hangs.is_empty() {
        shown.add(BadKind::Stall, disturbed(record));
    }
    match &record.vm_end {
        Some(VmEnd::TripleFault) => shown.add(BadKind::Panic, None),
        Some(VmEnd::Silent { .. }) => shown.add(BadKind::Stall, noise::explains_silence(record)),
        Some(VmEnd::TimedOut) if verdict.stopped.is_some() => {
            shown.add(BadKind::Stall, noise::explains_silence(record));
        }
        Some(VmEnd::Reset | VmEnd::Poweroff) if verdict.stopped.is_some() => shown.add(BadKind::Panic, None),
        _ => {}
    }
    let own = |name: &str| name != "kernel_log_clean" && name != "scheduler_alive";
    let check_failed = verdict.checks.iter().any(|check| check.status == Status::Fail && own(check.name));
    // A scheduler that left without stalling anybody, or never started, is what no other kind has a word for.
    if check_failed || shown.kinds.is_empty() {
        shown.kinds.push(BadKind::Check);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{LOCKUP, STALL, add_log, passing, passing_with_scheduler};
    use super::*;
    use crate::proto::message::Stage;
    use crate::proto::part::Part;
    use crate::verdict::judge_stored;

    fn only(kind: BadKind) -> BadOn {
        BadOn(vec![kind])
    }

    fn outcome(kind: BadKind, record: &Record) -> Outcome {
        only(kind).apply(record, judge_stored(record)).outcome
    }

    fn with_log(lines: &[&str]) -> Record {
        let mut record = passing();
        add_log(&mut record, lines);
        record
    }

    #[test]
    fn warning_is_bad_where_warnings_are_looked_for_and_good_where_they_are_not() {
        let record = with_log(&["WARNING: CPU: 0 PID: 5 at kernel/sched/core.c:1234 foo+0x1/0x2"]);
        assert_eq!(judge_stored(&record).outcome, Outcome::Fail, "{}", judge_stored(&record).headline);
        assert_eq!(outcome(BadKind::Warn, &record), Outcome::Fail);
        assert_eq!(outcome(BadKind::Panic, &record), Outcome::Pass);
        let verdict = only(BadKind::Panic).apply(&record, judge_stored(&record));
        assert!(
            verdict.headline.contains("--bad-on panic") && verdict.headline.contains("WARNING"),
            "{}",
            verdict.headline
        );
        assert_eq!(verdict.exit_code, 0);
    }

    #[test]
    fn other_failure_that_cut_the_run_short_cannot_be_judged() {
        let mut record = with_log(&["Oops: general protection fault, probably for non-canonical address"]);
        record.bye = false;
        record.scenario_end = None;
        record.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
        record.vm_end = Some(VmEnd::Reset);
        assert_eq!(outcome(BadKind::Panic, &record), Outcome::Fail);
        assert_eq!(outcome(BadKind::Warn, &record), Outcome::Inconclusive);
    }

    #[test]
    fn boot_and_nothing_else_is_found_before_pid1() {
        let mut record = passing();
        record.marks.retain(|(stage, _)| *stage < Stage::Pid1);
        (record.hello, record.scenario_started, record.scenario_end, record.bye) = (None, None, None, false);
        let verdict = Verdict { outcome: Outcome::Fail, exit_code: 1, ..judge_stored(&record) };
        assert_eq!(shown(&record, &verdict).kinds, [BadKind::Boot]);
        assert_eq!(only(BadKind::Boot).apply(&record, verdict.clone()).outcome, Outcome::Fail);
        assert_eq!(only(BadKind::Stall).apply(&record, verdict).outcome, Outcome::Inconclusive);
    }

    #[test]
    fn stalls_and_checks_are_told_apart() {
        let mut stalled = passing_with_scheduler();
        add_log(&mut stalled, &STALL);
        assert!(shown(&stalled, &judge_stored(&stalled)).kinds.contains(&BadKind::Stall));
        let mut locked_up = passing_with_scheduler();
        add_log(&mut locked_up, &LOCKUP);
        assert_eq!(
            shown(&locked_up, &judge_stored(&locked_up)).kinds,
            [BadKind::Stall],
            "a lockup, told by sched_ext alone"
        );
        assert_eq!(outcome(BadKind::Stall, &locked_up), Outcome::Fail);
        let mut starved = passing();
        starved.reports[0].1.work_units = 0;
        starved.reports[0].1.iterations = 0;
        let verdict = judge_stored(&starved);
        assert_eq!((verdict.outcome, shown(&starved, &verdict).kinds), (Outcome::Fail, vec![BadKind::Check]));
        assert_eq!(outcome(BadKind::Stall, &starved), Outcome::Pass);
        assert_eq!(BadOn(vec![BadKind::Stall, BadKind::Boot]).text(), "boot,stall");
    }

    #[test]
    fn stall_that_is_void_is_none_beside_another_failure() {
        let mut record = with_log(&[
            "WARNING: CPU: 0 PID: 5 at kernel/sched/core.c:1234 foo+0x1/0x2",
            "---[ end trace 0 ]---",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        ]);
        let of = |record: &Record| [BadKind::Stall, BadKind::Warn, BadKind::Panic].map(|kind| outcome(kind, record));
        assert_eq!(of(&record), [Outcome::Fail, Outcome::Fail, Outcome::Pass]);
        record.host.as_mut().unwrap().accel = "qemu".into();
        // An emulator's stall decides nothing, and does not show that there is none.
        assert_eq!(of(&record), [Outcome::Inconclusive, Outcome::Fail, Outcome::Inconclusive]);
    }

    #[test]
    fn guest_that_hangs_is_a_stall_and_no_failed_check() {
        let mut silent = passing();
        (silent.bye, silent.scenario_end) = (false, None);
        silent.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
        silent.vm_end = Some(VmEnd::Silent { for_ns: 20_000_000_000, busy_percent: Some(100) });
        let mut hung = passing();
        hung.hangs = vec!["cgroup.procs was written to for 10 s".into()];
        for record in [silent, hung] {
            let verdict = judge_stored(&record);
            assert_eq!(shown(&record, &verdict).kinds, [BadKind::Stall], "{}", verdict.headline);
            assert_eq!(outcome(BadKind::Stall, &record), Outcome::Fail);
            assert_ne!(outcome(BadKind::Check, &record), Outcome::Fail);
        }
    }

    /// Two scenarios, of which the first failed a check.
    fn first_failed() -> Record {
        let one = passing();
        let mut whole = one.clone();
        let scenarios = &mut whole.plan.as_mut().unwrap().scenarios;
        scenarios.push(scenarios[0].clone());
        whole.parts = (0..2).map(|index| Part { index, over: true, record: one.clone() }).collect();
        whole.outside = Some(Box::new(one));
        let starved = &mut whole.parts[0].record.reports[0].1;
        (starved.work_units, starved.iterations) = (0, 0);
        whole
    }

    /// The guest is gone before it had finished, in that record.
    fn cut_short(record: &mut Record, end: VmEnd) {
        (record.bye, record.vm_end) = (false, Some(end));
        record.marks.retain(|(stage, _)| *stage < Stage::ScenarioEnd);
    }

    #[test]
    fn every_scenario_of_several_is_asked_and_not_the_first_that_failed() {
        let whole = first_failed();
        assert_eq!(judge_stored(&whole).outcome, Outcome::Fail);
        assert_eq!(outcome(BadKind::Check, &whole), Outcome::Fail);
        assert_eq!(outcome(BadKind::Panic, &whole), Outcome::Pass);

        let mut never_begun = whole.clone();
        never_begun.parts.pop();
        assert_eq!(outcome(BadKind::Check, &never_begun), Outcome::Fail);
        assert_eq!(outcome(BadKind::Panic, &never_begun), Outcome::Inconclusive);

        let mut hung = whole.clone();
        hung.parts[1].over = false;
        cut_short(&mut hung.parts[1].record, VmEnd::TimedOut);
        assert_eq!(judge_stored(&hung).stopped, None, "the first scenario's");
        assert_eq!(outcome(BadKind::Stall, &hung), Outcome::Fail);
        let told = only(BadKind::Stall).apply(&hung, judge_stored(&hung));
        assert!(told.headline.contains("stopped answering") && told.stopped.is_some(), "{}", told.headline);
        assert_eq!(outcome(BadKind::Panic, &hung), Outcome::Inconclusive);

        let mut reset = whole;
        cut_short(reset.outside.as_mut().unwrap(), VmEnd::Reset);
        assert_eq!(judge_stored(&reset).scenarios[2].verdict.outcome, Outcome::Fail);
        assert_eq!(outcome(BadKind::Panic, &reset), Outcome::Fail);
        assert_eq!(outcome(BadKind::Stall, &reset), Outcome::Inconclusive);
    }
}
