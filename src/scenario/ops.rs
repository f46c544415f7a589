//! What each op does to the world.
//!
//! Owns the meaning of ops; leaves their order and their time to `engine`, the scheduler to whoever runs the scenario.
//! Invariant: an op that the kernel refuses is an error that names the op, never a scenario that goes on without it.

use super::engine::Around;
use super::payload::Payload;
use super::world::World;
use crate::cgroup::{self, move_task, set_cpuset, set_max, set_weight};
use crate::error::{Context, Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::message::Msg;
use crate::proto::scenario::{AffinityIntent, CpusetSpec, Op};
use crate::sys::errand::{Errand, Outcome, Runner};
use crate::sys::time;
use crate::units::{NS_PER_MS, NS_PER_SEC, duration};

/// How long the kernel may take to freeze a cgroup: each of its tasks must run once more to stop itself.
const FREEZE_NS: u64 = NS_PER_SEC;
/// How long it may take to bring a CPU down or up: a stop of the machine, and under emulation seconds.
const HOTPLUG_NS: u64 = 20 * NS_PER_SEC;
/// Pause between two looks at something under way.
const POLL_NS: u64 = 2 * NS_PER_MS;

/// What is to become of the scheduler under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchedOp {
    Detach,
    Attach,
    Restart,
    Replace(String),
}

impl World {
    /// Carries out one op. `Snapshot` is the engine's.
    pub fn apply(&mut self, op: &Op, around: &mut dyn Around) -> Result<()> {
        match op {
            Op::AddCgroup { name } => self.add_group(name).map(|_| ()),
            Op::RemoveCgroup { name } => self.remove(name, around),
            Op::SetCpuset { name, cpuset } => self.set_cpusets(name, cpuset),
            Op::ClearCpuset { name } => {
                for index in self.matching(name)? {
                    let name = self.groups[index].name.clone();
                    self.cpuset_changing(&name);
                    cgroup::clear_cpuset(&self.groups[index].dir)?;
                    self.groups[index].cpuset = None;
                    self.cpuset_changed(&name);
                }
                Ok(())
            }
            Op::SwapCpusets { a, b } => self.swap(a, b),
            Op::SetWeight { name, weight } => {
                self.matching(name)?.into_iter().try_for_each(|index| set_weight(&self.groups[index].dir, *weight))
            }
            Op::SetMax { name, max } => {
                self.matching(name)?.into_iter().try_for_each(|index| set_max(&self.groups[index].dir, *max))
            }
            Op::Spawn { name, work } => {
                let works = [self.resolver.lone_work(work).map_err(Error::usage)?];
                for index in self.matching(name)? {
                    self.spawn(index, &works)?.into_iter().for_each(|message| around.say(message));
                }
                self.start()
            }
            Op::SpawnHost { work } => {
                let works = [self.resolver.lone_work(work).map_err(Error::usage)?];
                self.spawn(0, &works)?.into_iter().for_each(|message| around.say(message));
                self.start()
            }
            Op::StopCgroup { name } => {
                let groups = self.matching(name)?;
                self.stop(&groups, around)
            }
            Op::SetAffinity { name, affinity } => self.set_affinities(name, affinity, around),
            Op::MoveAllTasks { from, to } => self.move_all(from, to, around),
            Op::FreezeCgroup { name } => self.freeze(name, around),
            Op::UnfreezeCgroup { name } => {
                for index in self.matching(name)? {
                    cgroup::unfreeze(&self.groups[index].dir)?;
                    self.groups[index].frozen = false;
                }
                Ok(())
            }
            Op::RunPayload { name, argv, limit_ns, cgroup } => {
                self.run_payload(name, argv, *limit_ns, cgroup.as_deref())
            }
            Op::WaitPayload { name } => self.wait_payload(name, around),
            Op::KillPayload { name } => {
                self.payload(name)?.kill();
                self.wait_payload(name, around)
            }
            Op::CpuOffline { cpu } => self.hotplug(*cpu, false, around),
            Op::CpuOnline { cpu } => self.hotplug(*cpu, true, around),
            Op::DetachScheduler => around.scheduler(&SchedOp::Detach),
            Op::AttachScheduler => around.scheduler(&SchedOp::Attach),
            Op::RestartScheduler => around.scheduler(&SchedOp::Restart),
            Op::ReplaceScheduler { name } => around.scheduler(&SchedOp::Replace(name.clone())),
            Op::Snapshot => Ok(()),
        }
    }

    fn remove(&mut self, pattern: &str, around: &mut dyn Around) -> Result<()> {
        let first = self.matching(pattern)?;
        let names: Vec<String> = first.iter().map(|index| self.groups[*index].name.clone()).collect();
        let inside = |name: &str| {
            names
                .iter()
                .any(|top| name.strip_prefix(top.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        };
        let all: Vec<usize> = (1..self.groups.len()).filter(|index| inside(&self.groups[*index].name)).collect();
        self.stop(&all, around)?;
        for name in &names {
            self.remove_groups(name, around)?;
        }
        Ok(())
    }

    fn set_cpusets(&mut self, pattern: &str, spec: &CpusetSpec) -> Result<()> {
        let groups = self.matching(pattern)?;
        let of = groups.len() as u32;
        for (at, index) in groups.into_iter().enumerate() {
            let name = self.groups[index].name.clone();
            let cpus = self.resolver.cpuset(spec, (at as u32, of));
            let cpus = cpus.map_err(|why| Error::cannot_judge(format!("cpuset of cgroup {name}: {why}")))?;
            self.put_cpuset(index, cpus)?;
        }
        Ok(())
    }

    fn put_cpuset(&mut self, index: usize, cpus: CpuSet) -> Result<()> {
        let name = self.groups[index].name.clone();
        self.cpuset_changing(&name);
        set_cpuset(&self.groups[index].dir, &cpus)?;
        self.groups[index].cpuset = Some(cpus);
        self.cpuset_changed(&name);
        Ok(())
    }

    fn one(&self, name: &str) -> Result<usize> {
        match self.matching(name)?.as_slice() {
            [index] => Ok(*index),
            several => Err(Error::usage(format!("'{name}' stands for {} cgroups, and one is needed", several.len()))),
        }
    }

    fn swap(&mut self, a: &str, b: &str) -> Result<()> {
        let (first, second) = (self.one(a)?, self.one(b)?);
        let sets = (self.groups[first].cpuset.clone(), self.groups[second].cpuset.clone());
        let (Some(of_a), Some(of_b)) = sets else {
            return Err(Error::usage(format!(
                "cannot swap the cpusets of {a} and {b}: one of them has none of its own"
            )));
        };
        self.put_cpuset(first, of_b)?;
        self.put_cpuset(second, of_a)
    }

    fn set_affinities(&mut self, pattern: &str, intent: &AffinityIntent, around: &mut dyn Around) -> Result<()> {
        for index in self.matching(pattern)? {
            let name = self.groups[index].name.clone();
            let pool = self.in_force(&name).unwrap_or_else(|| self.resolver.topo.all_cpuset());
            for crew in &self.groups[index].crews {
                let tids = crew.handle.tids();
                let sets = self.resolver.affinities(intent, &pool, tids.len(), &mut self.random);
                let sets = sets.map_err(|why| Error::cannot_judge(format!("affinity of cgroup {name}: {why}")))?;
                for (worker, cpus) in sets.into_iter().enumerate() {
                    // Inheriting again means: every CPU, of which the kernel leaves those of the cpuset.
                    let cpus = cpus.unwrap_or_else(|| self.resolver.topo.all_cpuset());
                    match crew.handle.set_affinity(worker, &cpus) {
                        Err(error) if error.errno() == Some(libc::ESRCH) => {
                            around.say(Msg::Note { text: format!("cgroup {name}: {error}") });
                        }
                        other => other?,
                    }
                }
            }
        }
        Ok(())
    }

    fn move_all(&mut self, from: &str, to: &str, around: &mut dyn Around) -> Result<()> {
        let target = self.one(to)?;
        for source in self.matching(from)?.into_iter().filter(|source| *source != target) {
            // What is seen until all have moved belongs to neither cgroup's cpuset.
            let now = time::monotonic_ns();
            self.groups[source].crews.iter_mut().for_each(|crew| crew.allow(None, now));
            for pid in cgroup::stat(&self.groups[source].dir)?.procs {
                if move_task(&self.groups[target].dir, pid)? == cgroup::Moved::Gone {
                    around
                        .say(Msg::Note { text: format!("process {pid} had ended before it was moved to cgroup {to}") });
                }
            }
            let mut crews = std::mem::take(&mut self.groups[source].crews);
            self.groups[target].crews.append(&mut crews);
        }
        let name = self.groups[target].name.clone();
        self.cpuset_changed(&name);
        Ok(())
    }

    fn freeze(&mut self, pattern: &str, around: &mut dyn Around) -> Result<()> {
        let groups = self.matching(pattern)?;
        for index in &groups {
            cgroup::freeze(&self.groups[*index].dir)?;
            self.groups[*index].frozen = true;
        }
        let deadline = time::monotonic_ns() + FREEZE_NS;
        for index in groups {
            while !cgroup::is_frozen(&self.groups[index].dir)? {
                if time::monotonic_ns() >= deadline {
                    let (name, limit) = (&self.groups[index].name, duration(FREEZE_NS));
                    around.say(Msg::Note { text: format!("cgroup {name} was not frozen within {limit}") });
                    break;
                }
                around.turn(time::monotonic_ns() + POLL_NS);
            }
        }
        Ok(())
    }

    fn run_payload(&mut self, name: &str, argv: &[String], limit_ns: u64, cgroup: Option<&str>) -> Result<()> {
        if self.payloads.iter().any(|payload| payload.name == name && !payload.ended()) {
            return Err(Error::usage(format!("the command '{name}' still runs")));
        }
        let payload = Payload::start(name, argv, limit_ns)?;
        let pid = payload.pid();
        self.payloads.push(payload);
        if let Some(cgroup) = cgroup {
            let index = self.one(cgroup)?;
            // It may have ended already: its report says so.
            let _: cgroup::Moved = move_task(&self.groups[index].dir, pid)?;
        }
        Ok(())
    }

    fn payload(&mut self, name: &str) -> Result<&mut Payload> {
        let found = self.payloads.iter_mut().rev().find(|payload| payload.name == name);
        found.ok_or_else(|| Error::usage(format!("there is no command '{name}' at this point of the scenario")))
    }

    fn wait_payload(&mut self, name: &str, around: &mut dyn Around) -> Result<()> {
        let deadline = self.payload(name)?.deadline_ns() + FREEZE_NS;
        while !self.payload(name)?.ended() && around.over().is_none() {
            let now = time::monotonic_ns();
            if now >= deadline {
                // Killed at its limit, and still there: its report says that its end was not seen.
                around.say(Msg::Note { text: format!("the command '{name}' did not end when it was killed") });
                break;
            }
            around.turn(now + POLL_NS);
            around.ended().into_iter().for_each(|(pid, end)| self.note_exit(pid, end));
            self.tick(now).into_iter().for_each(|message| around.say(message));
        }
        Ok(())
    }

    fn hotplug(&mut self, cpu: u32, online: bool, around: &mut dyn Around) -> Result<()> {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        let data: &[u8] = if online { b"1" } else { b"0" };
        let attempt = || format!("bring CPU {cpu} {} ({path})", if online { "online" } else { "offline" });
        let mut runner = Runner::start(true).context(|| "start the helper that writes to the kernel")?;
        runner.begin(Errand::Write { path: &path, data }).context(attempt)?;
        let deadline = time::monotonic_ns() + HOTPLUG_NS;
        let outcome = loop {
            if let Some(outcome) = runner.poll().context(attempt)? {
                break outcome;
            }
            if time::monotonic_ns() >= deadline {
                runner.give_up();
                break Outcome::Hung;
            }
            around.turn(time::monotonic_ns() + POLL_NS);
        };
        match outcome {
            Outcome::Done => {}
            Outcome::Refused(error) => {
                return Err(Error::os(attempt(), error).with_kind(crate::error::Kind::CannotJudge));
            }
            Outcome::Hung => {
                let text = format!("the write to {path} did not return within {}", duration(HOTPLUG_NS));
                around.say(Msg::KernelHang { text: text.clone() });
                return Err(Error::internal(text));
            }
        }
        self.offline.retain(|known| *known != cpu);
        if !online {
            self.offline.push(cpu);
        }
        Ok(())
    }

    /// Brings back what the scenario took offline.
    pub fn all_online(&mut self, around: &mut dyn Around) -> Result<()> {
        self.offline.clone().into_iter().try_for_each(|cpu| self.hotplug(cpu, true, around))
    }
}
