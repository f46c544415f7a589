//! A scenario that is code of the user's: run in a process of its own, heard, and ended in time.
//!
//! Owns that process and what is told of it; leaves what the code may do to scenario/.
//! Invariant: PID 1 never runs code of the user's itself, so a loop, a crash or an `exit` in it ends only that process.

use super::{Agent, settings, stolen_ns};
use crate::cgroup::CgroupManager;
use crate::error::{Context, Error, Kind, Result};
use crate::guest::CGROUP_ROOT;
use crate::proto::asserted::AssertResult;
use crate::proto::coded::{CODE_GRACE_NS, CODE_OVERTIME_NS, FromCode, ToCode};
use crate::proto::message::Msg;
use crate::proto::plan::{Plan, SchedPolicy};
use crate::proto::scenario::ScenarioSpec;
use crate::scenario::{self, Around, Coded, Ctx, CtxParts, Link, SUBTREE, SchedOp};
use crate::sys::process::{self, End, Fork};
use crate::sys::{sched, time};
use crate::units::NS_PER_SEC;
use crate::verdict::table::in_force;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The code steers and observes, so it must run although a scheduler stops every normal task; below PID 1, which must run
/// although the code loops.
const CODE_PRIORITY: u32 = 50;
/// Cgroups of steps that the code asks for, beside its own.
const STEPS_SUBTREE: &str = "ktstr-steps";
/// From asking code to end until it is killed, where the host's deadline is near: it asks 3 s before it kills the VM.
const LAST_GRACE_NS: u64 = NS_PER_SEC;

/// The process, and what was heard of it.
struct Process {
    pid: i32,
    link: Link,
    end: Option<End>,
    result: Option<AssertResult>,
    /// It was asked to come to an end, and is killed at this time.
    kill_ns: Option<u64>,
}

impl Agent {
    /// Runs the scenario of this name, and tells all that comes of it.
    pub(super) fn run_code(&mut self, plan: &Plan, spec: &ScenarioSpec, index: u32) -> Result<()> {
        let coded = self.codes.iter().find(|coded| coded.name == spec.name).copied();
        let coded =
            coded.ok_or_else(|| Error::internal(format!("there is no scenario '{}' in this binary", spec.name)))?;
        let manager = CgroupManager::new(Path::new(CGROUP_ROOT), SUBTREE)?;
        self.outside.say(Msg::ScenarioStart { name: spec.name.clone(), uptime_ns: time::boottime_ns() });
        let stolen_before_ns = stolen_ns();
        let started_ns = time::monotonic_ns();
        let parts = self.parts(plan, spec, manager.clone());
        let mut process = start(coded, parts)?;
        let overtime_ns =
            started_ns + spec.planned_ns(plan.duration_ns) + super::time_to_report(&self.topo) + CODE_OVERTIME_NS;
        let early = self.accompany(&mut process, (plan, index), overtime_ns);
        let elapsed_ns = time::monotonic_ns() - started_ns;
        if let Some(result) = process.result.take().or_else(|| of_end(process.end, early.is_some())) {
            self.outside.say(Msg::Asserted { result });
        }
        let outside = &mut self.outside;
        let notes = manager.cleanup_all(&mut || outside.look());
        notes.into_iter().for_each(|text| self.outside.say(Msg::Note { text }));
        let steal_ns = stolen_ns().saturating_sub(stolen_before_ns);
        self.outside.say(Msg::ScenarioEnd { uptime_ns: time::boottime_ns(), elapsed_ns, early, steal_ns });
        Ok(())
    }

    fn parts(&self, plan: &Plan, spec: &ScenarioSpec, cgroups: CgroupManager) -> CtxParts {
        CtxParts {
            cgroups,
            workers_per_cgroup: plan.workers_per_cgroup.unwrap_or_else(|| self.topo.total_cpus()),
            topo: self.topo.clone(),
            work_type_override: plan.work_override.clone(),
            duration: std::time::Duration::from_nanos(spec.planned_ns(plan.duration_ns)),
            settle: std::time::Duration::from_nanos(plan.settle_ns),
            sched_pid: self.scheduler.as_ref().map(|scheduler| scheduler.pid()),
            assert: in_force(&plan.limits),
            seed: plan.seed,
            emulated: super::is_emulated(),
            collect_ns: super::time_to_report(&self.topo),
        }
    }

    /// Hears the process until it has ended. Returns why it was asked to come to an end before its time.
    fn accompany(&mut self, process: &mut Process, of: (&Plan, u32), overtime_ns: u64) -> Option<String> {
        let mut early: Option<String> = None;
        let grace_ns = super::time_to_report(&self.topo) + CODE_GRACE_NS;
        loop {
            let at_end = process.end.is_some();
            if let Err(error) = self.hear(process, of) {
                self.refuse("scenario", &error);
                process.ask_to_end(LAST_GRACE_NS);
            }
            // What it had said before it ended has been heard now.
            if at_end {
                return early;
            }
            self.turn_until(overtime_ns);
            for (pid, end) in self.ended.drain(..) {
                if pid == process.pid {
                    process.end = Some(end);
                }
            }
            if early.is_none() {
                // A look around steps may have found it already.
                self.see_loss();
                early = self.lost.clone().or_else(|| self.outside.stalled());
                if early.is_some() {
                    process.ask_to_end(grace_ns);
                }
            }
            if self.outside.stop_asked && early.is_none() {
                early = Some("the host asked to stop: the run's time is nearly over".into());
                process.ask_to_end(LAST_GRACE_NS);
            }
            let now = time::monotonic_ns();
            if now > overtime_ns && early.is_none() {
                early = Some("the scenario's code went on long after its duration".into());
                process.ask_to_end(grace_ns);
            }
            if process.kill_ns.is_some_and(|kill_ns| now > kill_ns) {
                process.kill_ns = None;
                if let Err(error) = process::kill(process.pid, libc::SIGKILL) {
                    self.outside.say(Msg::Note { text: format!("cannot kill the scenario's process: {error}") });
                }
            }
        }
    }

    /// Carries out steps for the code, which waits meanwhile.
    fn execute(&mut self, process: &mut Process, of: (&Plan, u32), spec: ScenarioSpec) -> Result<()> {
        let topo = self.topo.clone();
        let settings = settings(of.0, &topo, of.1, STEPS_SUBTREE);
        let finished = scenario::execute(&spec, &settings, &mut ForCode { agent: self, process });
        let error = finished.error.map(|error| error.to_string());
        process.link.post(&ToCode::Executed { early: finished.early, error })
    }

    fn hear(&mut self, process: &mut Process, of: (&Plan, u32)) -> Result<()> {
        process.link.flush()?;
        for message in process.link.take::<FromCode>()? {
            match message {
                FromCode::Note { text } => self.outside.say(Msg::Note { text }),
                FromCode::Spawned { group, workers } => self.outside.say(Msg::Spawned { group, workers }),
                FromCode::Report { group, report } => self.outside.say(Msg::Report { group, report }),
                FromCode::Execute { backdrop, steps, duration_ns } => {
                    let (name, duration_ns) = ("steps".into(), Some(duration_ns));
                    let spec = ScenarioSpec { name, backdrop, steps, duration_ns, ..ScenarioSpec::default() };
                    self.execute(process, of, spec)?;
                }
                FromCode::Result { result } => process.result = Some(result),
            }
        }
        Ok(())
    }
}

/// PID 1 around steps that the code asked for: what the workers report goes to both.
struct ForCode<'a> {
    agent: &'a mut Agent,
    process: &'a mut Process,
}

impl Around for ForCode<'_> {
    fn turn(&mut self, until_ns: u64) {
        Around::turn(self.agent, until_ns);
    }
    fn look(&mut self) {
        Around::look(self.agent);
    }
    fn ended(&mut self) -> Vec<(i32, End)> {
        let mut ended = Around::ended(self.agent);
        if let Some((_, end)) = ended.iter().find(|(pid, _)| *pid == self.process.pid) {
            self.process.end = Some(*end);
        }
        ended.retain(|(pid, _)| *pid != self.process.pid);
        ended
    }
    fn over(&mut self) -> Option<String> {
        let gone = || "the scenario's code is gone".to_owned();
        Around::over(self.agent).or_else(|| self.process.end.map(|_| gone()))
    }
    fn say(&mut self, message: Msg) {
        match message {
            // The code's own start was told.
            Msg::ScenarioStart { .. } => {}
            Msg::Report { group, report } => {
                let copy = ToCode::Report { group: group.clone(), report: report.clone() };
                self.agent.outside.say(Msg::Report { group, report });
                if let Err(error) = self.process.link.post(&copy) {
                    self.agent.outside.say(Msg::Note { text: error.to_string() });
                }
            }
            other => self.agent.outside.say(other),
        }
    }
    fn scheduler(&mut self, op: &SchedOp) -> Result<()> {
        Around::scheduler(self.agent, op)
    }
}

impl Process {
    fn ask_to_end(&mut self, grace_ns: u64) {
        if self.kill_ns.is_none() {
            self.kill_ns = Some(time::monotonic_ns() + grace_ns);
            // A process that cannot be told has ended, or is killed in time.
            drop(self.link.post(&ToCode::Stop));
        }
    }
}

/// What the end of a process says that gave no result; nothing where we ended it ourselves.
fn of_end(end: Option<End>, ended_by_us: bool) -> Option<AssertResult> {
    if ended_by_us {
        return None;
    }
    Some(AssertResult::fail(match end? {
        End::Exited(code) => format!("the scenario's code left the process with exit code {code}"),
        End::Signaled(signal) => format!("the scenario's code was ended by signal {signal}"),
    }))
}

fn start(coded: Coded, parts: CtxParts) -> Result<Process> {
    let (near, far) = Link::pair().context(|| "make the line to the scenario's code")?;
    match process::fork().context(|| "fork the scenario's code")? {
        Fork::Parent(pid) => {
            drop(far);
            Ok(Process { pid, link: near, end: None, result: None, kill_ns: None })
        }
        Fork::Child => {
            drop(near);
            run(coded, parts, far)
        }
    }
}

/// The last panic's message with its place.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// The child's whole life.
fn run(coded: Coded, parts: CtxParts, link: Link) -> ! {
    std::panic::set_hook(Box::new(|info| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string().replace('\n', " ");
    }));
    let observer = SchedPolicy::Fifo { priority: CODE_PRIORITY };
    let refused = sched::set_policy(0, &observer, 0, true).err();
    let named = process::set_name("ktstr-code").err();
    let ctx = Ctx::new(parts, link);
    for error in refused.into_iter().chain(named) {
        if ctx.note(format!("the scenario's process: {error}")).is_err() {
            process::exit_now(1);
        }
    }
    let result = match catch_unwind(AssertUnwindSafe(|| (coded.run)(&ctx))) {
        Ok(Ok(result)) => result,
        Ok(Err(error)) if error.kind() == Kind::CannotJudge => AssertResult::skip(error.to_string()),
        Ok(Err(error)) => AssertResult::fail(error.to_string()),
        Err(_) => AssertResult::fail(PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone()),
    };
    let told = ctx.finish(result);
    process::exit_now(if told.is_ok() { 0 } else { 1 })
}
