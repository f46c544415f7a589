//! The live side of a scenario: its cgroups, the crews that work in them, its commands.
//!
//! Owns making, changing and ending them; leaves which op does what to `ops`, and the order to `engine`.
//! Invariant: every crew that was forked is collected and told exactly once, whatever became of its cgroup.

use super::engine::Around;
use super::payload::Payload;
use super::phases::PhaseSums;
use super::resolve::{GroupPlan, Random, Resolver};
use super::slices::Slices;
use crate::cgroup::{CgroupGroup, CgroupManager, guard, move_task, set_cpuset, set_max, set_weight};
use crate::cgroup::{Moved, unfreeze};
use crate::error::{Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::message::Msg;
use crate::proto::phase::PhaseGroup;
use crate::proto::plan::WorkSpec;
use crate::proto::report::{COLLECT_NS, WorkerReport};
use crate::sys::process::End;
use crate::sys::time;
use crate::units::NS_PER_MS;
use crate::workload::{Counters, SchedStat, WorkloadConfig, WorkloadHandle};
use std::path::{Path, PathBuf};

/// What workers of the root cgroup are called in reports.
pub const HOST: &str = "host";
/// Pause between two looks at workers that were told to stop.
const POLL_NS: u64 = 2 * NS_PER_MS;

/// Workers that were forked together.
#[derive(Debug)]
pub struct Crew {
    pub handle: WorkloadHandle,
    /// The cgroup they were forked into, under which they report.
    pub label: String,
    /// Workers and works that reported under this name before.
    first_worker: u32,
    first_spec: u32,
    /// At the last border of a phase.
    base: Vec<Counters>,
    slices: Slices,
    started: bool,
    /// When its workers were asked to stop: what they do after that is no scenario's.
    stopped_ns: Option<u64>,
}

impl Crew {
    pub fn allow(&mut self, allowed: Option<CpuSet>, now_ns: u64) {
        let taken = self.handle.take_cpus();
        self.slices.allow(allowed, &taken, now_ns);
    }
}

/// One cgroup of the scenario, or the root cgroup.
#[derive(Debug)]
pub struct Group {
    pub name: String,
    pub dir: PathBuf,
    /// Its own cpuset; none: its parent's.
    pub cpuset: Option<CpuSet>,
    pub frozen: bool,
    pub crews: Vec<Crew>,
}

/// All that lives.
#[derive(Debug)]
pub struct World {
    pub resolver: Resolver,
    pub random: Random,
    pub manager: CgroupManager,
    pub cgroups: CgroupGroup,
    /// In the order of their making; the first is the root cgroup.
    pub groups: Vec<Group>,
    pub payloads: Vec<Payload>,
    /// CPUs that the scenario took offline.
    pub offline: Vec<u32>,
    /// A disk that workers may write to.
    pub scratch_disk: Option<PathBuf>,
    pub raw_samples: bool,
    pub collect_ns: u64,
    sums: PhaseSums,
    /// (name, workers, works) that were ever forked under it.
    history: Vec<(String, u32, u32)>,
}

impl World {
    pub fn new(resolver: Resolver, cgroup_root: &Path, subtree: &str, seed: u64) -> Result<Self> {
        let manager = CgroupManager::new(cgroup_root, subtree)?;
        let root = Group { name: HOST.into(), dir: cgroup_root.into(), cpuset: None, frozen: false, crews: Vec::new() };
        Ok(Self {
            resolver,
            random: Random::new(seed),
            cgroups: CgroupGroup::new(manager.clone()),
            manager,
            groups: vec![root],
            payloads: Vec::new(),
            offline: Vec::new(),
            scratch_disk: None,
            raw_samples: false,
            collect_ns: COLLECT_NS,
            sums: PhaseSums::default(),
            history: Vec::new(),
        })
    }

    /// The cgroups that a name or a pattern (`c*`) stands for. None is an error: a scenario that does nothing says nothing.
    pub fn matching(&self, pattern: &str) -> Result<Vec<usize>> {
        let fits = |group: &Group| match pattern.strip_suffix('*') {
            Some(prefix) => group.name.starts_with(prefix),
            None => group.name == pattern,
        };
        let found: Vec<usize> =
            self.groups.iter().enumerate().skip(1).filter(|(_, group)| fits(group)).map(|(index, _)| index).collect();
        match found.is_empty() {
            true => Err(Error::usage(format!("there is no cgroup '{pattern}' at this point of the scenario"))),
            false => Ok(found),
        }
    }

    /// The CPUs that bound a cgroup: its own and those of all above it; none where no cpuset was set.
    pub fn in_force(&self, name: &str) -> Option<CpuSet> {
        let above = |group: &&Group| {
            name.strip_prefix(group.name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let mut levels: Vec<&Group> = self.groups.iter().skip(1).filter(above).collect();
        levels.sort_by_key(|group| group.name.len());
        levels.iter().filter_map(|group| group.cpuset.as_ref()).fold(None, |allowed: Option<CpuSet>, own| {
            match allowed.map(|allowed| (allowed.intersection(own), allowed)) {
                None => Some(own.clone()),
                // The kernel gives a cgroup its parent's CPUs where its own are none of them.
                Some((both, allowed)) => Some(if both.is_empty() { allowed } else { both }),
            }
        })
    }

    /// A cpuset is about to be written: what is seen until it is in force belongs to neither the old nor the new one.
    pub fn cpuset_changing(&mut self, name: &str) {
        let now = time::monotonic_ns();
        for index in self.below(name) {
            self.groups[index].crews.iter_mut().for_each(|crew| crew.allow(None, now));
        }
    }

    /// A cpuset changed: everything in and below the cgroup has a new border.
    pub fn cpuset_changed(&mut self, name: &str) {
        let now = time::monotonic_ns();
        for index in self.below(name) {
            let allowed = self.in_force(&self.groups[index].name);
            self.groups[index].crews.iter_mut().for_each(|crew| crew.allow(allowed.clone(), now));
        }
    }

    /// The cgroup and all below it.
    fn below(&self, name: &str) -> Vec<usize> {
        let is_below = |index: &usize| {
            let rest = self.groups[*index].name.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        (1..self.groups.len()).filter(is_below).collect()
    }

    /// Makes a cgroup (again: changes nothing).
    pub fn add_group(&mut self, name: &str) -> Result<usize> {
        if let Some(index) = self.groups.iter().skip(1).position(|group| group.name == name) {
            return Ok(index + 1);
        }
        let dir = self.cgroups.add_cgroup_no_cpuset(name)?;
        self.groups.push(Group { name: name.into(), dir, cpuset: None, frozen: false, crews: Vec::new() });
        Ok(self.groups.len() - 1)
    }

    /// Makes the cgroup of a definition with its settings and workers. Nobody works yet.
    pub fn set_up(&mut self, plan: &GroupPlan) -> Result<Vec<Msg>> {
        let index = self.add_group(&plan.name)?;
        let group = &mut self.groups[index];
        if let Some(cpus) = &plan.cpuset {
            set_cpuset(&group.dir, cpus)?;
            group.cpuset = Some(cpus.clone());
        }
        if let Some(weight) = plan.def.weight {
            set_weight(&group.dir, weight)?;
        }
        if plan.def.max.is_some() {
            set_max(&group.dir, plan.def.max)?;
        }
        match plan.works.is_empty() {
            true => Ok(Vec::new()),
            false => self.spawn(index, &plan.works),
        }
    }

    /// Forks workers into a cgroup. Nobody works yet.
    pub fn spawn(&mut self, index: usize, works: &[WorkSpec]) -> Result<Vec<Msg>> {
        let label = self.groups[index].name.clone();
        let allowed = if index == 0 { None } else { self.in_force(&label) };
        let mut config = WorkloadConfig::from_specs(works)?;
        config.seed = Some(self.random.draw());
        config.pool = Some(allowed.clone().unwrap_or_else(|| self.resolver.topo.all_cpuset()));
        config.cgroup_dir = Some(self.groups[index].dir.clone());
        config.scratch_disk = self.scratch_disk.clone();
        config.raw_samples = self.raw_samples;
        config.collect_ns = self.collect_ns;
        config.validate()?;
        let handle = WorkloadHandle::spawn(&config)?;
        let tids = handle.tids();
        let (first_worker, first_spec) = self.count(&label, tids.len() as u32, works.len() as u32);
        let mut base = handle.counters();
        // A task that has not run yet has no schedstat; its counters begin at zero.
        base.iter_mut().for_each(|counters| counters.sched = counters.sched.or(Some(SchedStat::default())));
        let mut crew = Crew {
            label: label.clone(),
            first_worker,
            first_spec,
            base,
            slices: Slices::new(tids.len()),
            started: false,
            stopped_ns: None,
            handle,
        };
        crew.allow(allowed, time::monotonic_ns());
        // From here on the world owns the crew, so an error below leaves no worker.
        let group = &mut self.groups[index];
        group.crews.push(crew);
        let mut told = vec![Msg::Spawned { group: label.clone(), workers: tids.len() as u32 }];
        for tid in tids.into_iter().filter(|_| index > 0) {
            if move_task(&group.dir, tid)? == Moved::Gone {
                let text = format!("worker with tid {tid} had ended before it was moved into cgroup {label}");
                told.push(Msg::Note { text });
            }
        }
        Ok(told)
    }

    /// Counts workers and works under a name; returns how many there were before.
    fn count(&mut self, name: &str, workers: u32, specs: u32) -> (u32, u32) {
        match self.history.iter_mut().find(|(known, ..)| known == name) {
            Some((_, before_workers, before_specs)) => {
                let before = (*before_workers, *before_specs);
                (*before_workers, *before_specs) = (before.0 + workers, before.1 + specs);
                before
            }
            None => {
                self.history.push((name.into(), workers, specs));
                (0, 0)
            }
        }
    }

    /// Lets every crew work that does not yet.
    pub fn start(&mut self) -> Result<()> {
        for crew in self.groups.iter_mut().flat_map(|group| &mut group.crews).filter(|crew| !crew.started) {
            crew.started = true;
            crew.slices.begin(time::monotonic_ns());
            crew.handle.start()?;
        }
        Ok(())
    }

    /// Takes what happened since the last call. Does not wait.
    pub fn tick(&mut self, now_ns: u64) -> Vec<Msg> {
        let mut told = Vec::new();
        for group in &mut self.groups {
            for crew in &mut group.crews {
                if crew.slices.due_ns().is_some_and(|due| now_ns >= due) {
                    let taken = crew.handle.take_cpus();
                    crew.slices.end_grace(&taken, now_ns);
                }
                let ended = crew.handle.check_early_exits();
                told.extend(
                    ended.iter().map(|exit| Msg::Note { text: format!("cgroup {}: {}", crew.label, exit.describe()) }),
                );
            }
        }
        told.extend(
            self.payloads.iter_mut().filter_map(|payload| payload.tick(now_ns)).map(|report| Msg::Payload { report }),
        );
        told
    }

    /// Tells how a process ended that the caller waited for.
    pub fn note_exit(&mut self, pid: i32, end: End) {
        let crews = self.groups.iter_mut().flat_map(|group| &mut group.crews);
        let worker = crews.into_iter().any(|crew| crew.handle.note_exit(pid, end));
        if !worker {
            self.payloads.iter_mut().any(|payload| payload.note_exit(pid, end));
        }
    }

    /// The counters at a border: the phase's sums, and a new base.
    pub fn border(&mut self) -> Vec<PhaseGroup> {
        self.add_up();
        self.sums.take()
    }

    /// The sums so far, without a border.
    pub fn look(&self) -> Vec<PhaseGroup> {
        let mut sums = self.sums.clone();
        for crew in self.groups.iter().flat_map(|group| &group.crews) {
            sums.add(&crew.label, crew.first_spec, &crew.base, &crew.handle.counters());
        }
        sums.take()
    }

    fn add_up(&mut self) {
        for crew in self.groups.iter_mut().flat_map(|group| &mut group.crews) {
            let now = crew.handle.take_counters();
            self.sums.add(&crew.label, crew.first_spec, &crew.base, &now);
            crew.base = now;
        }
    }

    /// Stops the crews of some groups, all at once, and tells their reports.
    pub fn stop(&mut self, groups: &[usize], around: &mut dyn Around) -> Result<()> {
        for index in groups {
            self.thaw(*index)?;
        }
        let mut crews: Vec<Crew> = Vec::new();
        for index in groups {
            crews.append(&mut self.groups[*index].crews);
        }
        for crew in &mut crews {
            // What is done between this look and the end is in the report, but in no phase.
            self.sums.add(&crew.label, crew.first_spec, &crew.base, &crew.handle.counters());
            crew.stopped_ns = Some(time::monotonic_ns());
            if let Err(error) = crew.handle.request_stop() {
                around.say(Msg::Note { text: format!("cgroup {}: {error}", crew.label) });
            }
        }
        while !crews.is_empty() {
            let mut left = Vec::new();
            for mut crew in crews {
                match crew.handle.poll_collect() {
                    Some(reports) => tell_reports(crew, reports, around),
                    None => left.push(crew),
                }
            }
            crews = left;
            if !crews.is_empty() {
                around.turn(time::monotonic_ns() + POLL_NS);
                for (pid, end) in around.ended() {
                    let ours = crews.iter_mut().any(|crew| crew.handle.note_exit(pid, end));
                    if !ours {
                        self.note_exit(pid, end);
                    }
                }
            }
        }
        Ok(())
    }

    /// A frozen worker can neither stop nor report.
    fn thaw(&mut self, index: usize) -> Result<()> {
        let group = &mut self.groups[index];
        if group.frozen {
            unfreeze(&group.dir)?;
            group.frozen = false;
        }
        Ok(())
    }

    /// Removes a cgroup and those below it, the deepest first. Its workers are stopped already.
    pub fn remove_groups(&mut self, name: &str, around: &mut dyn Around) -> Result<()> {
        let below = format!("{name}/");
        let mut names: Vec<String> = self.groups.iter().skip(1).map(|group| group.name.clone()).collect();
        names.retain(|known| known == name || known.starts_with(&below));
        names.sort_by_key(|known| std::cmp::Reverse(known.matches('/').count()));
        for name in &names {
            self.cgroups.remove(name, &mut || around.turn(time::monotonic_ns()))?;
            self.groups.retain(|group| group.name != *name);
        }
        Ok(())
    }

    /// Ends everything; what could not be ended is told.
    pub fn end(mut self, around: &mut dyn Around) {
        let all: Vec<usize> = (0..self.groups.len()).collect();
        if let Err(error) = self.stop(&all, around) {
            around.say(Msg::Note { text: error.to_string() });
        }
        for payload in &mut self.payloads {
            payload.kill();
        }
        let deadline = time::monotonic_ns() + PAYLOAD_END_NS;
        while self.payloads.iter().any(|payload| !payload.ended()) && time::monotonic_ns() < deadline {
            around.turn(time::monotonic_ns() + POLL_NS);
            around.ended().into_iter().for_each(|(pid, end)| self.note_exit(pid, end));
        }
        for payload in self.payloads.iter_mut().filter(|payload| !payload.told()) {
            around.say(Msg::Payload { report: payload.report() });
        }
        if guard::hung().is_some() {
            // Whoever asks the kernel for anything about cgroups now would wait for ever.
            return;
        }
        let mut notes = self.cgroups.remove_all(&mut || around.turn(time::monotonic_ns()));
        if self.manager.parent_path().is_dir() {
            notes.extend(self.manager.cleanup_all(&mut || around.turn(time::monotonic_ns())));
        }
        notes.into_iter().for_each(|text| around.say(Msg::Note { text }));
    }
}

/// From the SIGKILL of a command until we stop waiting for it: a task that the scheduler under test never runs cannot die.
const PAYLOAD_END_NS: u64 = 2_000 * NS_PER_MS;

/// Raw samples of one message: 128 KiB, half of what a frame holds.
const RAW_PART: usize = 16 << 10;

/// Tells the reports of a crew whose workers have all ended.
fn tell_reports(crew: Crew, reports: Vec<WorkerReport>, around: &mut dyn Around) {
    let taken = crew.handle.take_cpus();
    let seen = crew.slices.finish(&taken, crew.stopped_ns.unwrap_or_else(time::monotonic_ns));
    for (mut report, (cpus, slices)) in reports.into_iter().zip(seen) {
        report.worker_idx += crew.first_worker;
        report.group_idx += crew.first_spec;
        report.cpus_used = report.cpus_used.union(&cpus);
        report.slices = slices;
        let (worker_idx, raw) = (report.worker_idx, report.take_raw(RAW_PART));
        around.say(Msg::Report { group: crew.label.clone(), report });
        for (kind, raw_ns) in raw {
            around.say(Msg::Raw { group: crew.label.clone(), worker_idx, kind, raw_ns });
        }
    }
}
