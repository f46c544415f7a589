//! PID 1's work after Hello: carries out the plan while it takes the kernel's log and the scheduler's output.
//!
//! Owns the order and the event loop; leaves the scheduler to scx/, the workers to scenario/.
//! Invariant: every wait goes on taking the log, and everything that was begun is ended and told.

mod code;

use super::CGROUP_ROOT;
use super::disk;
use super::dump::Dump;
use super::kmsg::Kmsg;
use super::outside::Outside;
use super::provoke;
use super::queues::QueueWatch;
use super::realtime;
use crate::cgroup::guard;
use crate::channel::guest::GuestSession;
use crate::error::{Context, Error, Kind, Result};
use crate::proto::guards::Provocation;
use crate::proto::message::{Msg, SchedFailure, SchedFinal};
use crate::proto::plan::{Plan, SchedSpec};
use crate::proto::report::collect_ns;
use crate::proto::scenario::ScenarioSpec;
use crate::scenario::{self, Around, Coded, EMULATED_WORD, Resolver, SUBTREE, SchedOp, Settings, TestTopology};
use crate::scx::start::{Progress, Scheduler};
use crate::scx::support::Support;
use crate::scx::watch::Lost;
use crate::sys::process::{self, End};
use crate::sys::{mount, poll, time};
use crate::units::NS_PER_MS;
use crate::verdict;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// The disk of the plan: the first virtio disk.
const SCRATCH_DISK: &str = "/dev/vda";
/// One turn of the loop at most; the ring's commands are looked at this often.
const TURN_MS: u64 = 20;
/// Between two looks at the scheduler, so that its death is noticed long before a second has passed.
const LIVENESS_EVERY_NS: u64 = 100 * NS_PER_MS;
/// How long the kernel may take, once a loss is seen, until it is clear what became of the scheduler, and how long its
/// process may take to end by itself: a loss is told within a second. The workers are collected meanwhile.
const SETTLED_NS: u64 = 600 * NS_PER_MS;
const LEAVES_NS: u64 = 300 * NS_PER_MS;
/// The last words of a scheduler that did not end in order, and the kernel's lines about it, are still to come. Of one that
/// did there are none: the kernel logs the end before its state is `disabled`.
const LAST_WORDS_NS: u64 = 200 * NS_PER_MS;

/// The agent.
pub struct Agent {
    outside: Outside,
    /// The machine as this guest's kernel shows it.
    topo: TestTopology,
    scheduler: Option<Scheduler>,
    /// A scheduler did not end in order.
    last_words: bool,
    /// Scenarios that are code.
    codes: Vec<Coded>,
    /// What `attach` starts, and what may take its place.
    spec: Option<SchedSpec>,
    spares: Vec<SchedSpec>,
    /// Why the scheduler under test is no longer what was started.
    lost: Option<String>,
    /// That loss, and when it was seen, until it is clear what became of the scheduler.
    loss: Option<(Lost, u64)>,
    /// Processes that ended and were reaped, until the scenario is told.
    ended: Vec<(i32, End)>,
    next_liveness_ns: u64,
    /// Faults to bring about, and when; none before the workers began.
    provoke: Vec<Provocation>,
    provoke_ns: Option<u64>,
    /// Where a limit on run queues was asked for.
    queues: Option<QueueWatch>,
}

impl Agent {
    pub fn new(session: GuestSession, codes: &[Coded]) -> Self {
        let mut outside = Outside::new(session);
        match Kmsg::open() {
            Ok(kmsg) => outside.kmsg = Some(kmsg),
            Err(error) => outside.say(Msg::Note { text: error.to_string() }),
        }
        Self {
            outside,
            topo: TestTopology::synthetic(1, 1, 1, 1),
            scheduler: None,
            last_words: false,
            codes: codes.to_vec(),
            spec: None,
            spares: Vec::new(),
            lost: None,
            loss: None,
            ended: Vec::new(),
            next_liveness_ns: 0,
            provoke: Vec::new(),
            provoke_ns: None,
            queues: None,
        }
    }

    /// Does what the plan says, and tells whatever it cannot do.
    pub fn carry_out(&mut self, plan: &Plan) {
        self.provoke = plan.guards.provoke.clone();
        // The boot's log first: what stalled there is judged in the end, as is whether this kernel can be judged at all.
        self.outside.look_at_all();
        self.outside.stall_settles = verdict::stall_settles(plan, is_emulated());
        // What PID 1 has compared with the plan by now, and the sizes of caches beyond it.
        match TestTopology::from_system(Path::new("/")) {
            Ok(topo) => self.topo = topo,
            Err(error) => return self.refuse("topology", &error),
        }
        if let Err(error) = self.load_modules(plan) {
            return self.refuse("modules", &error);
        }
        if let Some(bytes) = plan.disk_bytes
            && let Err(error) = disk::wait_for(Path::new("/"), bytes)
        {
            return self.refuse("disk", &error);
        }
        // Before any scheduler could keep the helper from its first turn.
        if let Err(error) = guard::install(true) {
            self.outside.say(Msg::Note { text: format!("cgroup writes are not guarded: {error}") });
        }
        self.queues = verdict::watches_queues(plan).then(|| QueueWatch::open(Path::new("/")));
        let several = plan.scenarios.len() > 1;
        for (index, scenario) in plan.scenarios.iter().enumerate() {
            let index = index as u32;
            let before = self.outside.kmsg.as_ref().map(Kmsg::totals);
            if several {
                // What was told before is no fault of this one's.
                self.outside.stall = None;
                self.outside.say(Msg::ScenarioBegin { index });
            }
            let went_on = self.one(plan, scenario, index);
            if several {
                self.over(index, before);
            }
            if !went_on || self.outside.stop_asked {
                break;
            }
        }
        self.spec = None;
    }

    /// One scenario with a scheduler of its own. False: no other can follow.
    fn one(&mut self, plan: &Plan, scenario: &ScenarioSpec, index: u32) -> bool {
        (self.lost, self.loss, self.spec) = (None, None, plan.sched.clone());
        self.spares = plan.spare_scheds.clone();
        if let Some(spec) = &plan.sched
            && !self.start_scheduler(spec)
        {
            self.stop_scheduler();
            return false;
        }
        self.settle(plan.settle_ns);
        self.queues.iter_mut().for_each(QueueWatch::begin);
        // Before it begins, so that it is told of a guest that does not see its end, too.
        let load = realtime::load(Path::new("/proc"));
        load.iter().for_each(|text| self.outside.say(Msg::Note { text: text.clone() }));
        match scenario.code {
            false => self.run_scenario(plan, scenario, index),
            true => {
                if let Err(error) = self.run_code(plan, scenario, index) {
                    self.refuse("scenario", &error);
                }
            }
        }
        if let Some(seen) = self.queues.as_mut().map(QueueWatch::take) {
            self.outside.say(Msg::Queues { seen });
        }
        // What came meanwhile; the same is not told twice.
        if let Some(text) = realtime::load(Path::new("/proc")).filter(|text| Some(text) != load.as_ref()) {
            self.outside.say(Msg::Note { text });
        }
        self.stop_scheduler();
        guard::hung().is_none()
    }

    /// Tells that one of several scenarios is over, when the kernel has said all it has to say about it.
    fn over(&mut self, index: u32, before: Option<(u64, u64)>) {
        self.hear_last_words();
        let end = self.outside.rest_of_the_log();
        // Without the end of the log the scenario stays open, and what is missing is missing in its record.
        if let (Some((records, lost, true)), Some(before)) = (end, before) {
            let (klog_records, klog_lost) = (records.saturating_sub(before.0), lost.saturating_sub(before.1));
            self.outside.say(Msg::ScenarioOver { index, klog_records, klog_lost });
        }
    }

    /// Tells that something could not be done.
    pub fn refuse(&mut self, stage: &str, error: &Error) {
        let cannot_judge = error.kind() == Kind::CannotJudge;
        self.outside.say(Msg::GuestError { stage: stage.into(), text: error.to_string(), cannot_judge });
    }

    /// Sends the end of the log and Bye.
    pub fn finish(mut self) -> Result<()> {
        self.hear_last_words();
        if let Some((records, lost, complete)) = self.outside.rest_of_the_log() {
            match complete {
                true => self.outside.say(Msg::KlogEnd { records, lost }),
                false => self.outside.say(Msg::Note { text: "the kernel log has no end: it was still growing".into() }),
            }
        }
        if let Some(error) = self.outside.unsent.take() {
            self.outside.say(Msg::Note { text: format!("a message could not be sent: {error}") });
        }
        self.outside.say(Msg::Bye { uptime_ns: time::boottime_ns() });
        self.outside.session.finish(0)
    }

    fn load_modules(&mut self, plan: &Plan) -> Result<()> {
        for path in &plan.modules {
            let file = File::open(path).context(|| format!("open the kernel module {path}"))?;
            let compressed = !path.ends_with(".ko");
            match mount::load_module(&file, "", compressed) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                other => other.context(|| format!("load the kernel module {path}"))?,
            }
        }
        Ok(())
    }

    /// Whether the scheduler is enabled now; where not, why was told.
    fn start_scheduler(&mut self, spec: &SchedSpec) -> bool {
        if let Some(text) = Support::detect(Path::new("/")).describe() {
            self.outside.say(Msg::SchedFailed { why: SchedFailure::KernelLacksSchedExt, text });
            return false;
        }
        if self.outside.dump.is_none() {
            match Dump::open() {
                Ok(dump) => self.outside.dump = Some(dump),
                Err(error) => self.outside.say(Msg::Note { text: format!("no dump of the scheduler: {error}") }),
            }
        }
        match Scheduler::start(spec, Path::new("/")) {
            Ok(scheduler) => self.scheduler = Some(scheduler),
            Err(error) => {
                self.outside.say(Msg::SchedFailed { why: SchedFailure::NotExecutable, text: error.to_string() });
                return false;
            }
        }
        loop {
            self.turn_until(u64::MAX);
            let Some(scheduler) = &mut self.scheduler else { return false };
            let pid = scheduler.pid();
            let outside = &mut self.outside;
            match scheduler.poll_enable(&mut |text| outside.scheduler_said(text)) {
                Progress::Starting => {}
                Progress::Enabled { ops, enable_seq, took_ns, switch_all } => {
                    outside.say(Msg::SchedEnabled { ops, enable_seq, took_ns, pid, switch_all });
                    return true;
                }
                Progress::Failed(why, text) => {
                    outside.say(Msg::SchedFailed { why, text });
                    self.pass(LAST_WORDS_NS);
                    return false;
                }
            }
            if let Some((why, text)) = self.outside.given_up(&spec.name) {
                self.outside.say(Msg::SchedFailed { why, text });
                return false;
            }
        }
    }

    /// Gives an enabled scheduler its time, as long as it is there and nothing has settled the verdict: then the scenario ends
    /// where it begins.
    fn settle(&mut self, ns: u64) {
        let until = time::monotonic_ns() + ns;
        while time::monotonic_ns() < until && Around::over(self).is_none() {
            self.turn(until);
        }
    }

    fn run_scenario(&mut self, plan: &Plan, scenario: &ScenarioSpec, index: u32) {
        let settings = settings(plan, &self.topo, index, SUBTREE);
        let stolen_before_ns = stolen_ns();
        let finished = scenario::execute(scenario, &settings, self);
        let steal_ns = stolen_ns().saturating_sub(stolen_before_ns);
        if let Some(error) = &finished.error {
            self.refuse("scenario", error);
        }
        let (uptime_ns, elapsed_ns) = (time::boottime_ns(), finished.elapsed_ns);
        self.outside.say(Msg::ScenarioEnd { uptime_ns, elapsed_ns, early: finished.early, steal_ns });
    }

    /// Stops the scheduler because the scenario says so.
    fn detach(&mut self) {
        if let Some(last) = self.end_scheduler() {
            self.outside.say(Msg::SchedDetached { last });
        }
    }

    /// Starts one because the scenario says so.
    fn attach(&mut self, spec: &SchedSpec) -> Result<()> {
        match self.scheduler.is_some() || self.start_scheduler(spec) {
            true => Ok(()),
            false => Err(Error::internal(format!("the scheduler '{}' could not be started again", spec.name))),
        }
    }

    /// Why the scheduler under test is no longer what was started, told once now, and again when all is known.
    fn scheduler_lost(&mut self) -> Option<String> {
        let now = time::monotonic_ns();
        if now < self.next_liveness_ns {
            return None;
        }
        self.next_liveness_ns = now + LIVENESS_EVERY_NS;
        let lost = self.scheduler.as_mut()?.check()?;
        self.tell_loss(&lost);
        let text = format!("the scheduler went away: {}", lost.text);
        self.loss = Some((lost, now));
        Some(text)
    }

    fn see_loss(&mut self) {
        if self.lost.is_none() {
            self.lost = self.scheduler_lost();
        }
    }

    fn tell_loss(&mut self, lost: &Lost) {
        let Lost { after_ns, end, state, text, .. } = lost.clone();
        self.outside.say(Msg::SchedDied { after_ns, end, state, text });
    }

    /// The kernel may still be about to end what was lost, or its process to leave: a moment later it can be said what
    /// became of them.
    fn settle_loss(&mut self) {
        let Some((first, seen_ns)) = self.loss.take() else { return };
        let mut last = first.clone();
        loop {
            last = self.scheduler.as_mut().and_then(Scheduler::check).unwrap_or(last);
            let limit_ns = match last.is_settled() {
                true if last.replaced || last.end.is_some() => 0,
                true => LEAVES_NS,
                false => SETTLED_NS,
            };
            if time::monotonic_ns() >= seen_ns.saturating_add(limit_ns) {
                break;
            }
            self.turn_until(u64::MAX);
        }
        last.after_ns = first.after_ns;
        if last != first {
            self.tell_loss(&last);
        }
    }

    fn hear_last_words(&mut self) {
        if std::mem::take(&mut self.last_words) {
            self.pass(LAST_WORDS_NS);
        }
    }

    /// Brings about what was asked for, when it is due.
    fn provoke(&mut self) {
        if self.provoke_ns.is_none_or(|due_ns| time::monotonic_ns() < due_ns) {
            return;
        }
        for which in std::mem::take(&mut self.provoke) {
            self.outside.say(Msg::Note { text: format!("provoked: {}", which.name()) });
            let targets = provoke::targets(self.scheduler.as_ref().map(Scheduler::pid));
            if let Err(error) = provoke::carry_out(which, &targets, &mut self.outside.session) {
                self.refuse("provoke", &error);
            }
        }
    }

    fn stop_scheduler(&mut self) {
        if let Some(last) = self.end_scheduler() {
            self.outside.say(Msg::SchedStopped { last });
        }
    }

    fn end_scheduler(&mut self) -> Option<SchedFinal> {
        self.settle_loss();
        let mut scheduler = self.scheduler.take()?;
        let outside = &mut self.outside;
        let last = scheduler.stop(&mut |text| {
            outside.scheduler_said(text);
            outside.look();
        });
        self.last_words |= !(last.disabled && last.end.is_some());
        Some(last)
    }

    /// Lets time pass without missing anything.
    fn pass(&mut self, ns: u64) {
        let until = time::monotonic_ns() + ns;
        while time::monotonic_ns() < until && !self.outside.stop_asked {
            self.turn_until(until);
        }
    }

    /// One turn: waits for something to happen, but not beyond `until_ns`, and takes it.
    fn turn_until(&mut self, until_ns: u64) {
        let left_ms = until_ns.saturating_sub(time::monotonic_ns()).div_ceil(NS_PER_MS);
        let fds: Vec<BorrowedFd<'_>> = [
            self.outside.kmsg.as_ref().map(Kmsg::wait_fd),
            self.outside.session.wait_fd(),
            self.scheduler.as_ref().and_then(Scheduler::output_fd),
        ]
        .into_iter()
        .flatten()
        .collect();
        if let Err(error) = poll::readable(&fds, left_ms.min(TURN_MS)) {
            self.outside.unsent.get_or_insert(Error::os("wait for something to happen", error));
        }
        self.outside.look();
        self.queues.iter_mut().for_each(|queues| queues.tick(time::monotonic_ns()));
        if let Some(scheduler) = &mut self.scheduler {
            let text = scheduler.take_output();
            self.outside.scheduler_said(text);
        }
        self.reap();
    }

    /// PID 1 reaps everything: its own children, and the orphans of others. The scheduler is told of its end here.
    fn reap(&mut self) {
        // An error means that there are no children.
        while let Ok(Some((pid, end))) = process::wait(-1, false) {
            if let Some(scheduler) = &mut self.scheduler {
                scheduler.note_exit(pid, end);
            }
            self.ended.push((pid, end));
        }
    }
}

impl Around for Agent {
    fn turn(&mut self, until_ns: u64) {
        self.turn_until(until_ns);
        self.provoke();
        self.see_loss();
    }
    fn look(&mut self) {
        self.turn_until(time::monotonic_ns());
        self.see_loss();
    }
    fn ended(&mut self) -> Vec<(i32, End)> {
        std::mem::take(&mut self.ended)
    }
    fn over(&mut self) -> Option<String> {
        let stop = || "the host asked to stop: the run's time is nearly over".to_owned();
        self.lost.clone().or_else(|| self.outside.stop_asked.then(stop)).or_else(|| self.outside.stalled())
    }
    fn say(&mut self, message: Msg) {
        if matches!(message, Msg::ScenarioStart { .. }) {
            self.provoke_ns = Some(time::monotonic_ns() + provoke::AFTER_START_NS);
        }
        self.outside.say(message);
    }
    fn scheduler(&mut self, op: &SchedOp) -> Result<()> {
        let next = match op {
            SchedOp::Detach => None,
            SchedOp::Attach | SchedOp::Restart => self.spec.clone(),
            SchedOp::Replace(name) => {
                let spare = self.spares.iter().find(|spare| spare.name == *name).cloned();
                Some(spare.ok_or_else(|| Error::internal(format!("the plan has no scheduler '{name}'")))?)
            }
        };
        if !matches!(op, SchedOp::Attach) {
            self.detach();
        }
        match (next, op) {
            (Some(spec), _) => {
                self.spec = Some(spec.clone());
                self.attach(&spec)
            }
            (None, SchedOp::Detach) => Ok(()),
            (None, _) => {
                let text = "there is no scheduler under test to start: the kernel's own goes on";
                self.outside.say(Msg::Note { text: text.into() });
                Ok(())
            }
        }
    }
}

/// With what a scenario of the plan is carried out.
fn settings<'a>(plan: &Plan, topo: &TestTopology, index: u32, subtree: &'a str) -> Settings<'a> {
    Settings {
        cgroup_root: Path::new(CGROUP_ROOT),
        subtree,
        resolver: Resolver { topo: topo.clone(), workers_per_cgroup: plan.workers_per_cgroup },
        duration_ns: plan.duration_ns,
        settle_ns: plan.settle_ns,
        seed: plan.seed.wrapping_add(u64::from(index)),
        scratch_disk: plan.disk_is_scratch.then(|| SCRATCH_DISK.into()),
        raw_samples: plan.raw_samples,
        collect_ns: time_to_report(topo),
    }
}

/// From a stop of workers to the SIGKILL of those that have not reported.
fn time_to_report(topo: &TestTopology) -> u64 {
    collect_ns(topo.total_cpus(), is_emulated())
}

/// The host says so; the emulated machine itself need not show it.
fn is_emulated() -> bool {
    std::fs::read_to_string("/proc/cmdline").unwrap_or_default().split_whitespace().any(|word| word == EMULATED_WORD)
}

/// Time the host took from this guest's CPUs: the eighth number of /proc/stat's first line, in ticks of 10 ms
/// (USER_HZ is 100 on x86; Documentation/filesystems/proc.rst). Nothing where the hypervisor does not tell.
fn stolen_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    ticks.unwrap_or(0) * 10 * NS_PER_MS
}
