//! The order of a scenario: backdrop, steps with ops, cgroups and holds, phases, the end.
//!
//! Owns time and order; leaves what ops do to `ops`, and what happens meanwhile outside of the scenario to its caller.
//! Invariant: nothing here waits but through the caller's turns, and whatever happens, all workers are collected and told.

use super::ops::SchedOp;
use super::resolve::Resolver;
use super::text;
use super::world::World;
use crate::cgroup::guard;
use crate::error::{Error, Result};
use crate::proto::message::Msg;
use crate::proto::phase::{BASELINE, PhaseReport, Stimulus};
use crate::proto::scenario::{CgroupDef, HoldSpec, Op, ScenarioSpec, Step};
use crate::sys::process::End;
use crate::sys::time;
use std::path::{Path, PathBuf};

/// The subtree of cgroups that a guest's scenarios use.
pub const SUBTREE: &str = "ktstr";

/// What surrounds a scenario: PID 1 of a guest, or a test.
pub trait Around {
    /// Lets time pass, at most a turn and not beyond `until_ns`, and misses nothing meanwhile.
    fn turn(&mut self, until_ns: u64);
    /// Misses nothing while something is being made; does not wait, and does nothing to it.
    fn look(&mut self) {
        self.turn(time::monotonic_ns());
    }
    /// Processes that ended since the last call.
    fn ended(&mut self) -> Vec<(i32, End)>;
    /// Why the scenario must end now.
    fn over(&mut self) -> Option<String>;
    fn say(&mut self, message: Msg);
    fn scheduler(&mut self, op: &SchedOp) -> Result<()>;
}

/// Where and with what a scenario is carried out.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    pub cgroup_root: &'a Path,
    /// The subtree that holds all of its cgroups.
    pub subtree: &'a str,
    pub resolver: Resolver,
    /// Of a scenario that does not say.
    pub duration_ns: u64,
    /// How long the backdrop works before the first step.
    pub settle_ns: u64,
    pub seed: u64,
    /// A disk that workers may write to.
    pub scratch_disk: Option<PathBuf>,
    /// Workers keep some of their samples as they are.
    pub raw_samples: bool,
    /// From a stop of workers to the SIGKILL of those that have not reported.
    pub collect_ns: u64,
}

/// How it went.
#[derive(Debug, Default)]
pub struct Finished {
    /// From the first step, or the backdrop's start, to the end of the last step.
    pub elapsed_ns: u64,
    /// Why it ended before its time.
    pub early: Option<String>,
    /// What could not be done.
    pub error: Option<Error>,
}

/// Carries out a scenario.
pub fn execute(spec: &ScenarioSpec, settings: &Settings<'_>, around: &mut dyn Around) -> Finished {
    let world = match prepare(spec, settings, around) {
        Ok(world) => world,
        Err(error) => return Finished { error: Some(error), ..Finished::default() },
    };
    let duration_ns = spec.duration_ns.unwrap_or(settings.duration_ns);
    let started_ns = time::monotonic_ns();
    let mut run = Run { world, around, started_ns, duration_ns, step: 0, phase_from_ns: 0, snapshots: 0, early: None };
    run.around.say(Msg::ScenarioStart { name: spec.full_name(), uptime_ns: time::boottime_ns() });
    let result = run.all(spec, settings.settle_ns);
    let elapsed_ns = time::monotonic_ns() - started_ns;
    let Run { mut world, early, .. } = run;
    let back = if early.is_none() || world.offline.is_empty() { world.all_online(around) } else { Ok(()) };
    world.end(around);
    Finished { elapsed_ns, early, error: result.and(back).err() }
}

/// Finds out what is wrong before anything is made.
fn prepare(spec: &ScenarioSpec, settings: &Settings<'_>, around: &mut dyn Around) -> Result<World> {
    settings
        .resolver
        .check(spec)
        .map_err(|why| Error::cannot_judge(format!("scenario {}: {why}", spec.full_name())))?;
    let mut world = World::new(settings.resolver.clone(), settings.cgroup_root, settings.subtree, settings.seed)?;
    world.scratch_disk = settings.scratch_disk.clone();
    world.raw_samples = settings.raw_samples;
    world.collect_ns = settings.collect_ns;
    // The subtree is there by now, and nobody else would remove it.
    if let Err(error) = enable_controllers(&world, spec, around) {
        world.end(around);
        return Err(error);
    }
    Ok(world)
}

/// Whatever the cgroups of this scenario need, and what is there anyway.
fn enable_controllers(world: &World, spec: &ScenarioSpec, around: &mut dyn Around) -> Result<()> {
    let cpusets = spec.cgroup_defs().any(|def| def.cpuset.is_some())
        || spec.ops().any(|op| matches!(op, Op::SetCpuset { .. } | Op::SwapCpusets { .. } | Op::ClearCpuset { .. }));
    if cpusets || world.manager.has_controller("cpuset")? {
        world.manager.setup(&["cpuset"])?;
    }
    let shares = spec.cgroup_defs().any(|def| def.weight.is_some() || def.max.is_some())
        || spec.ops().any(|op| matches!(op, Op::SetWeight { .. } | Op::SetMax { .. }));
    match (spec.no_cpu_controller, shares || world.manager.has_controller("cpu")?) {
        (true, _) => {}
        (false, true) => world.manager.setup(&["cpu"])?,
        (false, false) => {
            let text =
                "cgroups share no CPU time by weight: this kernel offers no cpu controller (CONFIG_CGROUP_SCHED)";
            around.say(Msg::Note { text: text.into() });
        }
    }
    Ok(())
}

struct Run<'a> {
    world: World,
    around: &'a mut dyn Around,
    started_ns: u64,
    duration_ns: u64,
    /// 0: the baseline; 1..: the step.
    step: u32,
    /// When the phase began, from the start.
    phase_from_ns: u64,
    snapshots: u32,
    early: Option<String>,
}

impl Run<'_> {
    fn all(&mut self, spec: &ScenarioSpec, settle_ns: u64) -> Result<()> {
        if !(spec.backdrop.cgroups.is_empty() && spec.backdrop.host.is_empty()) {
            self.stimulus("backdrop".into());
            self.set_up(&spec.backdrop.cgroups)?;
            for work in &spec.backdrop.host {
                self.world.apply(&Op::SpawnHost { work: work.clone() }, self.around)?;
            }
            self.world.start()?;
            self.hold_until(time::monotonic_ns() + settle_ns);
            self.phase(BASELINE.into());
        }
        let first_ns = time::monotonic_ns();
        for step in &spec.steps {
            if self.early.is_some() {
                break;
            }
            self.step += 1;
            self.stimulus(format!("step {}, {}", self.step, text::hold(step.hold)));
            let held = match step.hold {
                HoldSpec::Loop { interval_ns } => self.repeat(step, interval_ns, first_ns + self.duration_ns),
                HoldSpec::Frac { part } => self.once(step, part.of(self.duration_ns)),
                HoldSpec::Fixed { ns } => self.once(step, ns),
            };
            self.phase(format!("step {}", self.step));
            held?;
        }
        Ok(())
    }

    /// Ops, then cgroups, then time.
    fn once(&mut self, step: &Step, hold_ns: u64) -> Result<()> {
        self.ops(&step.ops)?;
        self.set_up(&step.setup)?;
        self.world.start()?;
        self.hold_until(time::monotonic_ns() + hold_ns);
        Ok(())
    }

    /// Cgroups once, then the ops at every interval.
    fn repeat(&mut self, step: &Step, interval_ns: u64, end_ns: u64) -> Result<()> {
        self.set_up(&step.setup)?;
        self.world.start()?;
        while self.early.is_none() && time::monotonic_ns() < end_ns {
            self.hold_until(end_ns.min(time::monotonic_ns() + interval_ns));
            if time::monotonic_ns() < end_ns {
                self.ops(&step.ops)?;
            }
        }
        Ok(())
    }

    fn ops(&mut self, ops: &[Op]) -> Result<()> {
        for op in ops {
            if self.early.is_some() {
                return Ok(());
            }
            let words = text::op(op);
            self.stimulus(words.clone());
            let done = self.world.apply(op, self.around);
            if self.look_at_guard() {
                return Ok(());
            }
            done.map_err(|error| error.while_doing(words))?;
            if *op == Op::Snapshot {
                self.snapshots += 1;
                let (to_ns, groups) = (self.now(), self.world.look());
                let name = format!("snapshot {}", self.snapshots);
                self.around.say(Msg::Phase { phase: PhaseReport { name, from_ns: self.phase_from_ns, to_ns, groups } });
            }
            self.take();
        }
        Ok(())
    }

    fn set_up(&mut self, defs: &[CgroupDef]) -> Result<()> {
        for def in defs {
            for plan in self.world.resolver.groups(def).map_err(Error::cannot_judge)? {
                let told = self.world.set_up(&plan);
                if self.look_at_guard() {
                    return Ok(());
                }
                let told = told.map_err(|error| error.while_doing(format!("cgroup {}", plan.name)))?;
                told.into_iter().for_each(|message| self.around.say(message));
                // Many cgroups take their time, in which nothing may be missed.
                self.around.look();
                self.take();
                if self.early.is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A hang of the kernel ends the scenario, and is told as what it is.
    fn look_at_guard(&mut self) -> bool {
        let Some(text) = guard::hung() else { return false };
        if self.early.is_none() {
            self.around.say(Msg::KernelHang { text: text.clone() });
            self.early = Some(format!("the kernel hangs: {text}"));
        }
        true
    }

    fn hold_until(&mut self, until_ns: u64) {
        while self.early.is_none() && time::monotonic_ns() < until_ns {
            self.around.turn(until_ns);
            self.take();
        }
    }

    /// Takes what happened.
    fn take(&mut self) {
        self.around.ended().into_iter().for_each(|(pid, end)| self.world.note_exit(pid, end));
        self.world.tick(time::monotonic_ns()).into_iter().for_each(|message| self.around.say(message));
        if self.early.is_none() {
            self.early = self.around.over();
        }
    }

    fn now(&self) -> u64 {
        time::monotonic_ns() - self.started_ns
    }

    fn stimulus(&mut self, text: String) {
        let stimulus = Stimulus { step: self.step, at_ns: self.now(), text };
        self.around.say(Msg::Step { stimulus });
    }

    fn phase(&mut self, name: String) {
        let (from_ns, to_ns) = (self.phase_from_ns, self.now());
        self.phase_from_ns = to_ns;
        let groups = self.world.border();
        self.around.say(Msg::Phase { phase: PhaseReport { name, from_ns, to_ns, groups } });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::report::COLLECT_NS;
    use crate::scenario::{TestTopology, parse};
    use crate::sys::process;
    use crate::units::NS_PER_MS;

    /// Surroundings that only listen, and end the scenario at once where that is asked for.
    #[derive(Default)]
    struct Listener {
        said: Vec<Msg>,
        end: bool,
    }

    impl Around for Listener {
        fn turn(&mut self, until_ns: u64) {
            let left = until_ns.saturating_sub(time::monotonic_ns());
            time::sleep_ns(left.min(5 * NS_PER_MS)).unwrap();
        }
        fn ended(&mut self) -> Vec<(i32, End)> {
            // The test's process has children of other tests: workers are waited for by their handles.
            Vec::new()
        }
        fn over(&mut self) -> Option<String> {
            self.end.then(|| "enough".into())
        }
        fn say(&mut self, message: Msg) {
            self.said.push(message);
        }
        fn scheduler(&mut self, _op: &SchedOp) -> Result<()> {
            Ok(())
        }
    }

    fn settings<'a>(root: &'a Path, subtree: &'a str) -> Settings<'a> {
        Settings {
            cgroup_root: root,
            subtree,
            resolver: Resolver { topo: TestTopology::synthetic(1, 1, 2, 1), workers_per_cgroup: None },
            duration_ns: 100 * NS_PER_MS,
            settle_ns: 0,
            seed: 1,
            scratch_disk: None,
            raw_samples: false,
            collect_ns: COLLECT_NS,
        }
    }

    /// A writable cgroup2 mount.
    fn mount() -> Option<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let targets = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let found = targets.filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).find(|dir| {
            let probe = dir.join(format!("ktstr-engine-probe-{}", process::id()));
            std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
        });
        if found.is_none() {
            crate::not_run::not_run("no writable cgroup2 mount on this machine");
        }
        found
    }

    #[test]
    fn missing_cgroup2_cannot_be_judged_and_nothing_is_begun() {
        let spec = parse("scenario x\nstep\n  cgroup a: spin*1\n").unwrap().remove(0);
        let mut around = Listener::default();
        let finished = execute(&spec, &settings(Path::new("/proc"), "t"), &mut around);
        let error = finished.error.unwrap();
        assert_eq!(error.kind(), crate::error::Kind::CannotJudge);
        assert!(error.to_string().contains("CONFIG_CGROUPS"), "{error}");
        assert!(around.said.is_empty());
    }

    #[test]
    fn scenario_that_ends_early_still_tells_every_worker_and_leaves_no_cgroup() {
        let Some(mount) = mount() else { return };
        let subtree = format!("ktstr-engine-{}", process::id());
        let spec = parse(
            "scenario x\nstep\n  cgroup a: spin*2\n  cgroup b: pipe*1\nstep 200ms\n  remove-cgroup b\n  cgroup c: spin*1\n",
        );
        for end in [false, true] {
            let mut around = Listener { end, ..Listener::default() };
            let finished = execute(&spec.as_ref().unwrap()[0], &settings(&mount, &subtree), &mut around);
            assert!(finished.error.is_none(), "{:?}", finished.error);
            assert_eq!(finished.early.is_some(), end);
            let mut groups: Vec<&str> = around
                .said
                .iter()
                .filter_map(|message| match message {
                    Msg::Report { group, report } if report.completed => Some(group.as_str()),
                    _ => None,
                })
                .collect();
            // Who has ended first is told first.
            groups.sort_unstable();
            // A cgroup that is gone is told when it goes, before what comes after it.
            let place = |wanted: fn(&Msg) -> bool| around.said.iter().position(wanted);
            let b_told = place(|message| matches!(message, Msg::Report { group, .. } if group == "b"));
            let c_made = place(|message| matches!(message, Msg::Spawned { group, .. } if group == "c"));
            assert!(end || b_told.is_some() && b_told < c_made, "{b_told:?} {c_made:?}");
            // What is over while its cgroups are made gets no more of them.
            let want: &[&str] = if end { &["a", "a"] } else { &["a", "a", "b", "b", "c"] };
            assert_eq!(groups, want);
            assert!(!mount.join(&subtree).exists());
        }
    }
}
