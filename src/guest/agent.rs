//! PID 1's work after Hello: carries out the plan while it takes the kernel's log and the scheduler's output.
//!
//! Owns the order and the event loop; leaves the scheduler to scx/, the workers to scenario/.
//! Invariant: every wait goes on taking the log, and everything that was begun is ended and told.

use super::disk;
use super::kmsg::Kmsg;
use super::{CGROUP_ROOT, power};
use crate::channel::guest::GuestSession;
use crate::error::{Context, Error, Kind, Result};
use crate::proto::message::{Msg, SchedFailure};
use crate::proto::plan::{Plan, SchedSpec};
use crate::scenario::Scenario;
use crate::scx::start::{Progress, Scheduler};
use crate::scx::support::Support;
use crate::sys::process::{self, End};
use crate::sys::{mount, poll, time};
use crate::units::NS_PER_MS;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// One turn of the loop at most; the ring's commands are looked at this often.
const TURN_MS: u64 = 20;
/// Between two looks at the scheduler, so that its death is noticed long before a second has passed.
const LIVENESS_EVERY_NS: u64 = 100 * NS_PER_MS;
/// A log that is still growing after this long has no end.
const LOG_END_NS: u64 = 2_000 * NS_PER_MS;
/// One message of a scheduler's output: far below the largest frame.
const OUTPUT_PIECE_BYTES: usize = 32 * 1024;
/// After the scheduler went away its last words and the kernel's lines about it are still to come.
const LAST_WORDS_NS: u64 = 200 * NS_PER_MS;

/// What talks to the outside: channel and kernel log. Apart from the agent, so that it can go on while a scheduler or a
/// scenario is being waited for.
struct Outside {
    session: GuestSession,
    kmsg: Option<Kmsg>,
    stop_asked: bool,
    /// Messages that could not be sent; the host sees the gap, this is for the console.
    unsent: Option<Error>,
}

impl Outside {
    fn say(&mut self, message: Msg) {
        if let Err(error) = self.session.send(&message) {
            self.unsent.get_or_insert(error);
        }
    }

    /// Sends on what the kernel has logged, and looks for commands.
    fn look(&mut self) {
        let fresh = self.kmsg.as_mut().map(Kmsg::take).unwrap_or_default();
        fresh.into_iter().for_each(|message| self.say(message));
        match self.session.receive() {
            Ok(commands) => commands.into_iter().for_each(|command| self.obey(command)),
            Err(error) => {
                self.unsent.get_or_insert(error);
            }
        }
    }

    /// Sends on the log until it is quiet, within a limit. Returns its totals and whether its end was reached.
    fn rest_of_the_log(&mut self) -> Option<(u64, u64, bool)> {
        let deadline = time::monotonic_ns() + LOG_END_NS;
        loop {
            let before = self.kmsg.as_ref()?.totals().0;
            self.look();
            let kmsg = self.kmsg.as_ref()?;
            let (records, lost) = kmsg.totals();
            let quiet = records == before;
            if quiet || time::monotonic_ns() > deadline {
                return Some((records, lost, quiet && !kmsg.is_broken()));
            }
        }
    }

    fn obey(&mut self, command: Msg) {
        match command {
            Msg::Stop => self.stop_asked = true,
            Msg::Abort => power::restart(),
            Msg::Dump => {
                // SysRq-D: the scheduler's state goes to the tracepoint sched_ext_dump.
                if let Err(error) = std::fs::write("/proc/sysrq-trigger", "D") {
                    self.say(Msg::Note { text: format!("cannot ask for a dump: {error}") });
                }
            }
            _ => {}
        }
    }

    fn scheduler_said(&mut self, text: String) {
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let mut end = rest.len().min(OUTPUT_PIECE_BYTES);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            self.say(Msg::SchedOutput { text: rest[..end].to_owned() });
            rest = &rest[end..];
        }
    }
}

/// The agent.
pub struct Agent {
    outside: Outside,
    scheduler: Option<Scheduler>,
    had_scheduler: bool,
    /// Processes that ended and were reaped, until the scenario is told.
    ended: Vec<(i32, End)>,
    next_liveness_ns: u64,
}

impl Agent {
    pub fn new(session: GuestSession) -> Self {
        let mut outside = Outside { session, kmsg: None, stop_asked: false, unsent: None };
        match Kmsg::open() {
            Ok(kmsg) => outside.kmsg = Some(kmsg),
            Err(error) => outside.say(Msg::Note { text: error.to_string() }),
        }
        Self { outside, scheduler: None, had_scheduler: false, ended: Vec::new(), next_liveness_ns: 0 }
    }

    /// Does what the plan says, and tells whatever it cannot do.
    pub fn carry_out(&mut self, plan: &Plan) {
        self.outside.look();
        if let Err(error) = self.load_modules(plan) {
            return self.refuse("modules", &error);
        }
        if let Some(bytes) = plan.disk_bytes
            && let Err(error) = disk::wait_for(Path::new("/"), bytes)
        {
            return self.refuse("disk", &error);
        }
        if let Some(spec) = &plan.sched
            && !self.start_scheduler(spec)
        {
            return self.stop_scheduler();
        }
        self.pass(plan.settle_ns);
        if let Err(error) = self.run_scenario(plan) {
            self.refuse("scenario", &error);
        }
        self.stop_scheduler();
    }

    /// Tells that something could not be done.
    pub fn refuse(&mut self, stage: &str, error: &Error) {
        let cannot_judge = error.kind() == Kind::CannotJudge;
        self.outside.say(Msg::GuestError { stage: stage.into(), text: error.to_string(), cannot_judge });
    }

    /// Sends the end of the log and Bye.
    pub fn finish(mut self) -> Result<()> {
        // What the kernel still has to say about a scheduler that is gone comes a little later.
        if self.had_scheduler {
            self.pass(LAST_WORDS_NS);
        }
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
        match Scheduler::start(spec, Path::new("/")) {
            Ok(scheduler) => (self.scheduler, self.had_scheduler) = (Some(scheduler), true),
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
            if self.outside.stop_asked {
                self.outside.say(Msg::SchedFailed {
                    why: SchedFailure::OutOfTime,
                    text: format!("the run's time was over before the scheduler '{}' was enabled", spec.name),
                });
                return false;
            }
        }
    }

    fn run_scenario(&mut self, plan: &Plan) -> Result<()> {
        let mut scenario = Scenario::prepare(plan, Path::new(CGROUP_ROOT))?;
        self.outside.say(Msg::ScenarioStart { name: "steady".into(), uptime_ns: time::boottime_ns() });
        for (group, workers) in scenario.owed() {
            self.outside.say(Msg::Spawned { group: group.into(), workers });
        }
        let stolen_before_ns = stolen_ns();
        let started_ns = time::monotonic_ns();
        scenario.start()?;
        let deadline = started_ns + plan.planned_ns().saturating_sub(plan.settle_ns);
        let mut early = None;
        while time::monotonic_ns() < deadline && early.is_none() {
            self.turn_until(deadline);
            early = self.scheduler_lost();
            if early.is_some() {
                self.pass(LAST_WORDS_NS);
            }
            for (pid, end) in self.ended.drain(..) {
                scenario.note_exit(pid, end);
            }
            scenario.tick().iter().for_each(|finding| self.outside.say(Msg::Note { text: finding.describe() }));
            if self.outside.stop_asked {
                early = Some("the host asked to stop: the run's time is nearly over".into());
            }
        }
        let elapsed_ns = time::monotonic_ns() - started_ns;
        let outside = &mut self.outside;
        let finished = scenario.finish(&mut || outside.look());
        for (group, report) in finished.reports {
            outside.say(Msg::Report { group, report });
        }
        finished.notes.into_iter().for_each(|text| outside.say(Msg::Note { text }));
        let steal_ns = stolen_ns().saturating_sub(stolen_before_ns);
        outside.say(Msg::ScenarioEnd { uptime_ns: time::boottime_ns(), elapsed_ns, early, steal_ns });
        Ok(())
    }

    /// Why the scheduler under test is no longer what was started, told once.
    fn scheduler_lost(&mut self) -> Option<String> {
        let now = time::monotonic_ns();
        if now < self.next_liveness_ns {
            return None;
        }
        self.next_liveness_ns = now + LIVENESS_EVERY_NS;
        let lost = self.scheduler.as_mut()?.check()?;
        self.outside.say(Msg::SchedDied { after_ns: lost.after_ns, end: lost.end, state: lost.state });
        Some(lost.text)
    }

    fn stop_scheduler(&mut self) {
        if let Some(mut scheduler) = self.scheduler.take() {
            let outside = &mut self.outside;
            let last = scheduler.stop(&mut |text| {
                outside.scheduler_said(text);
                outside.look();
            });
            self.outside.say(Msg::SchedStopped { last });
        }
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

/// Time the host took from this guest's CPUs: the eighth number of /proc/stat's first line, in ticks of 10 ms
/// (USER_HZ is 100 on x86; Documentation/filesystems/proc.rst). Nothing where the hypervisor does not tell.
fn stolen_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    ticks.unwrap_or(0) * 10 * NS_PER_MS
}
