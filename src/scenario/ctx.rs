//! What a scenario's own code has in its hands: the machine, cgroups, time, and a line to PID 1.
//!
//! Owns `Ctx` and what can be asked of it; leaves groups of workers to `groups`, the process it runs in to guest/.
//! Invariant: whatever the code measures reaches PID 1 too, so that the host judges it as it judges everything.

use super::link::Link;
use super::topo::TestTopology;
use crate::cgroup::CgroupManager;
use crate::error::{Error, Result};
use crate::proto::asserted::AssertResult;
use crate::proto::coded::{FromCode, ToCode};
use crate::proto::limits::Assert;
use crate::proto::report::WorkerReport;
use crate::proto::scenario::{Backdrop, Step};
use crate::proto::work::WorkType;
use crate::sys::{poll, time};
use crate::units::NS_PER_MS;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// On the guest's kernel command line where an emulator runs it: times are then the emulator's.
pub const EMULATED_WORD: &str = "ktstr.emulated";
/// A hold looks for messages of PID 1 at least this often.
const LOOK_MS: u64 = 20;

/// A scenario in code.
pub type ScenarioFn = fn(&Ctx) -> Result<AssertResult>;

/// A scenario in code, with the name it is found by.
#[derive(Clone, Copy, Debug)]
pub struct Coded {
    pub name: &'static str,
    pub run: ScenarioFn,
}

/// (cgroup, report)
type Reports = Vec<(String, WorkerReport)>;

/// How steps that PID 1 carried out went.
#[derive(Debug)]
struct Executed {
    early: Option<String>,
    error: Option<String>,
}

/// The way out of the code's process.
#[derive(Debug)]
pub struct Outside {
    link: RefCell<Link>,
    stop: Cell<bool>,
    /// Of the steps that PID 1 carries out for the code.
    reports: RefCell<Reports>,
    executed: RefCell<Option<Executed>>,
    /// Why times mean nothing here.
    pub(super) void: Option<String>,
}

impl Outside {
    /// Sends a message, and waits until it is gone.
    pub fn say(&self, message: &FromCode) -> Result<()> {
        self.link.borrow_mut().send(message)
    }

    /// Takes what PID 1 said; waits at most so long for it.
    pub(super) fn look(&self, wait_ms: u64) -> Result<()> {
        let mut link = self.link.borrow_mut();
        poll::readable(&[link.wait_fd()], wait_ms).map_err(|error| Error::os("wait for PID 1", error))?;
        for message in link.take::<ToCode>()? {
            match message {
                ToCode::Stop => self.stop.set(true),
                ToCode::Report { group, report } => self.reports.borrow_mut().push((group, report)),
                ToCode::Executed { early, error } => *self.executed.borrow_mut() = Some(Executed { early, error }),
            }
        }
        Ok(())
    }
}

/// What a scenario runs with.
#[derive(Debug)]
pub struct Ctx {
    /// The subtree that is this scenario's own.
    pub cgroups: CgroupManager,
    pub topo: TestTopology,
    /// How long the scenario is to last: `--duration`.
    pub duration: Duration,
    /// Pause between the making of workers and their start.
    pub settle: Duration,
    /// `--workers`, or as many as CPUs.
    pub workers_per_cgroup: u32,
    /// `--work`: the work of groups for which the code has none in particular.
    pub work_type_override: Option<WorkType>,
    /// The scheduler under test, where there is one.
    pub sched_pid: Option<i32>,
    /// The limits in force: defaults, scheduler's, scenario's, command line's.
    pub assert: Assert,
    pub seed: u64,
    /// From a stop of workers to the SIGKILL of those that have not reported.
    pub(super) collect_ns: u64,
    pub(super) outside: Rc<Outside>,
}

/// What is told to a `Ctx` at its making.
#[derive(Debug)]
pub struct CtxParts {
    pub cgroups: CgroupManager,
    pub topo: TestTopology,
    pub duration: Duration,
    pub settle: Duration,
    pub workers_per_cgroup: u32,
    pub work_type_override: Option<WorkType>,
    pub sched_pid: Option<i32>,
    pub assert: Assert,
    pub seed: u64,
    pub emulated: bool,
    pub collect_ns: u64,
}

impl Ctx {
    pub fn new(parts: CtxParts, link: Link) -> Self {
        let void = parts.emulated.then(|| crate::verdict::EMULATED.to_owned());
        let outside = Outside {
            link: RefCell::new(link),
            stop: Cell::new(false),
            reports: RefCell::default(),
            executed: RefCell::default(),
            void,
        };
        Self {
            cgroups: parts.cgroups,
            topo: parts.topo,
            duration: parts.duration,
            settle: parts.settle,
            workers_per_cgroup: parts.workers_per_cgroup,
            work_type_override: parts.work_type_override,
            sched_pid: parts.sched_pid,
            assert: parts.assert,
            seed: parts.seed,
            collect_ns: parts.collect_ns,
            outside: Rc::new(outside),
        }
    }

    /// Lets time pass while workers work. False where PID 1 ended it early: the scheduler went away, or the run's time is
    /// over. Then collect and return; there are a few seconds left.
    pub fn hold(&self, time: Duration) -> Result<bool> {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let deadline = time::monotonic_ns().saturating_add(ns);
        while !self.stopped() {
            let left_ns = deadline.saturating_sub(time::monotonic_ns());
            if left_ns == 0 {
                return Ok(true);
            }
            self.outside.look(left_ns.div_ceil(NS_PER_MS).min(LOOK_MS))?;
        }
        Ok(false)
    }

    /// Has PID 1 carry out steps, and waits until they are over. Returns what the workers reported, and why it was over
    /// before its time.
    pub(super) fn execute(&self, backdrop: Backdrop, steps: Vec<Step>) -> Result<(Reports, Option<String>)> {
        let duration_ns = u64::try_from(self.duration.as_nanos()).unwrap_or(u64::MAX);
        self.outside.reports.borrow_mut().clear();
        self.outside.say(&FromCode::Execute { backdrop, steps, duration_ns })?;
        loop {
            self.outside.look(LOOK_MS)?;
            if let Some(Executed { early, error }) = self.outside.executed.take() {
                let reports = std::mem::take(&mut *self.outside.reports.borrow_mut());
                return match error {
                    Some(error) => Err(Error::internal(error)),
                    None => Ok((reports, early)),
                };
            }
        }
    }

    /// Whether PID 1 asked to come to an end.
    pub fn stopped(&self) -> bool {
        self.outside.stop.get()
    }

    /// Puts a line into the result's notes.
    pub fn note(&self, text: impl Into<String>) -> Result<()> {
        self.outside.say(&FromCode::Note { text: text.into() })
    }

    /// Whether the guest is emulated, so that times mean nothing.
    pub fn emulated(&self) -> bool {
        self.outside.void.is_some()
    }

    pub(crate) fn finish(&self, result: AssertResult) -> Result<()> {
        self.outside.say(&FromCode::Result { result })
    }
}
