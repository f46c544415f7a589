//! One plan's groups, from the making of their cgroups to the last report; driven by the caller's event loop.
//!
//! Owns the order: cgroups, workers at their gate, moves, start, hold, stop, reports, removal. Leaves time to the caller.
//! Invariant: no step waits without a bound, also where the scheduler under test never runs a worker; a scenario that is
//! dropped leaves neither worker nor cgroup.

use super::resolve::{GroupPlan, Resolver};
use super::topo::TestTopology;
use crate::cgroup::{CgroupGroup, CgroupManager, Moved, move_task};
use crate::error::{Error, Result};
use crate::proto::plan::Plan;
use crate::proto::report::WorkerReport;
use crate::sys::process::End;
use crate::sys::time;
use crate::units::NS_PER_MS;
use crate::workload::{WorkloadConfig, WorkloadHandle};
use std::io;
use std::path::{Path, PathBuf};

/// The subtree that holds every cgroup of a scenario.
pub const SUBTREE: &str = "ktstr";
/// Pause between two looks at workers that were told to stop.
const POLL_NS: u64 = 2 * NS_PER_MS;

/// Something that happened while the scenario was prepared or ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A worker ended without being told to.
    WorkerEnded { group: String, worker_idx: u32, tid: i32, text: String },
    /// Something the reader of the verdict should know.
    Note(String),
}

impl Finding {
    pub fn describe(&self) -> String {
        match self {
            Self::WorkerEnded { group, text, .. } => format!("cgroup {group}: {text}"),
            Self::Note(text) => text.clone(),
        }
    }
}

/// What a scenario leaves behind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finished {
    /// (cgroup, report): one for every worker of the plan.
    pub reports: Vec<(String, WorkerReport)>,
    /// What went wrong on the way out: cgroups that could not be removed, signals that could not be sent.
    pub notes: Vec<String>,
}

/// The guest's disk.
const GUEST_DISK: &str = "/dev/vda";

/// What all workers of a scenario have in common.
#[derive(Clone, Debug, Default)]
pub struct Common {
    pub seed: u64,
    /// A disk whose contents may be destroyed.
    pub scratch_disk: Option<PathBuf>,
}

/// A group of the plan with its workers.
#[derive(Debug)]
struct Running {
    name: String,
    handle: WorkloadHandle,
}

/// A plan's groups, prepared or running.
#[must_use = "dropping a scenario kills its workers"]
#[derive(Debug)]
pub struct Scenario {
    running: Vec<Running>,
    cgroups: CgroupGroup,
    manager: CgroupManager,
    findings: Vec<Finding>,
}

impl Scenario {
    /// Makes the cgroups under the cgroup2 mount `cgroup_root`, forks the workers and moves them in. Nobody works yet.
    pub fn prepare(plan: &Plan, cgroup_root: &Path) -> Result<Self> {
        let topo = TestTopology::from_spec(&plan.topology);
        let resolver = Resolver { topo, workers_per_cgroup: plan.workers_per_cgroup };
        let mut groups = Vec::new();
        for def in plan.scenarios.iter().flat_map(|scenario| scenario.cgroup_defs()) {
            groups.extend(resolver.groups(def).map_err(Error::internal)?);
        }
        let scratch_disk = plan.disk_is_scratch.then(|| GUEST_DISK.into());
        let common = Common { seed: plan.seed, scratch_disk };
        Self::prepare_groups(&groups, cgroup_root, SUBTREE, &common)
    }

    /// The same for any groups, in a subtree of its own.
    pub fn prepare_groups(groups: &[GroupPlan], root: &Path, subtree: &str, common: &Common) -> Result<Self> {
        // What is wrong with the plan is found before anything is made.
        let configs = groups.iter().enumerate().map(|(index, group)| {
            let config = WorkloadConfig {
                // Groups that do the same choose differently.
                seed: common.seed.wrapping_add(index as u64),
                pool: group.cpuset.clone(),
                scratch_disk: common.scratch_disk.clone(),
                cgroup_dir: Some(root.join(subtree).join(&group.name)),
                ..WorkloadConfig::from_specs(&group.works)?
            };
            config.validate()?;
            Ok(config)
        });
        let configs = configs.collect::<Result<Vec<_>>>()?;
        let manager = CgroupManager::new(root, subtree)?;
        let mut scenario =
            Self { running: Vec::new(), cgroups: CgroupGroup::new(manager.clone()), manager, findings: Vec::new() };
        scenario.enable_controllers(groups)?;
        for (group, config) in groups.iter().zip(&configs) {
            scenario.prepare_group(group, config).map_err(|e| e.while_doing(format!("cgroup {}", group.name)))?;
        }
        Ok(scenario)
    }

    /// `cpuset` is needed where a group has CPUs of its own; `cpu` gives each group a share, and is noted where it is missing.
    fn enable_controllers(&mut self, groups: &[GroupPlan]) -> Result<()> {
        if self.manager.has_controller("cpuset")? || groups.iter().any(|group| group.cpuset.is_some()) {
            self.manager.setup(&["cpuset"])?;
        }
        match self.manager.has_controller("cpu")? {
            true => self.manager.setup(&["cpu"]),
            false => {
                let text =
                    "cgroups share no CPU time by weight: this kernel offers no cpu controller (CONFIG_CGROUP_SCHED)";
                self.findings.push(Finding::Note(text.into()));
                Ok(())
            }
        }
    }

    fn prepare_group(&mut self, group: &GroupPlan, config: &WorkloadConfig) -> Result<()> {
        let dir = match &group.cpuset {
            Some(cpus) => self.cgroups.add_cgroup(&group.name, cpus)?,
            None => self.cgroups.add_cgroup_no_cpuset(&group.name)?,
        };
        let handle = WorkloadHandle::spawn(config)?;
        let tids = handle.tids();
        // From here on the scenario owns the handle, so an error below leaves no worker.
        self.running.push(Running { name: group.name.clone(), handle });
        for tid in tids {
            if move_task(&dir, tid)? == Moved::Gone {
                let text = format!("worker with tid {tid} had ended before it was moved into cgroup {}", group.name);
                self.findings.push(Finding::Note(text));
            }
        }
        Ok(())
    }

    /// Lets all workers of all groups work.
    pub fn start(&mut self) -> Result<()> {
        self.running.iter_mut().try_for_each(|group| group.handle.start())
    }

    /// What happened since the last call. Does not wait.
    pub fn tick(&mut self) -> Vec<Finding> {
        let mut findings = std::mem::take(&mut self.findings);
        for Running { name, handle } in &mut self.running {
            findings.extend(handle.check_early_exits().into_iter().map(|exit| Finding::WorkerEnded {
                group: name.clone(),
                worker_idx: exit.worker_idx,
                tid: exit.tid,
                text: exit.describe(),
            }));
        }
        findings
    }

    /// Workers that have not ended, as far as we know.
    pub fn alive(&self) -> usize {
        self.running.iter().map(|group| group.handle.alive()).sum()
    }

    /// Every worker's (cgroup, tid).
    pub fn tids(&self) -> Vec<(&str, i32)> {
        self.running.iter().flat_map(|g| g.handle.tids().into_iter().map(|tid| (g.name.as_str(), tid))).collect()
    }

    /// Workers of each group.
    pub fn owed(&self) -> Vec<(&str, u32)> {
        self.running.iter().map(|g| (g.name.as_str(), g.handle.tids().len() as u32)).collect()
    }

    /// Outer loops done so far, per group and worker.
    pub fn snapshot_iterations(&self) -> Vec<(&str, Vec<u64>)> {
        self.running.iter().map(|group| (group.name.as_str(), group.handle.snapshot_iterations())).collect()
    }

    /// Tells how a process ended that the caller waited for; false: it is none of ours.
    pub fn note_exit(&mut self, pid: i32, end: End) -> bool {
        self.running.iter_mut().any(|group| group.handle.note_exit(pid, end))
    }

    /// Stops all groups at once, collects every report and removes the cgroups. Calls `idle` at least every 10 ms.
    pub fn finish(mut self, idle: &mut dyn FnMut()) -> Finished {
        let mut finished = Finished::default();
        for Running { name, handle } in &mut self.running {
            if let Err(error) = handle.request_stop() {
                finished.notes.push(format!("cgroup {name}: {error}"));
            }
        }
        let mut reports: Vec<Option<Vec<WorkerReport>>> = self.running.iter().map(|_| None).collect();
        loop {
            for (group, reports) in self.running.iter_mut().zip(&mut reports).filter(|(_, reports)| reports.is_none()) {
                *reports = group.handle.poll_collect();
            }
            if reports.iter().all(Option::is_some) {
                break;
            }
            idle();
            if let Err(error) = time::sleep_ns(POLL_NS) {
                debug_assert_eq!(error.kind(), io::ErrorKind::Interrupted);
            }
        }
        for (group, reports) in self.running.iter().zip(reports) {
            finished.reports.extend(reports.into_iter().flatten().map(|report| (group.name.clone(), report)));
        }
        finished.notes.extend(self.clear(idle));
        finished
    }

    /// Ends what is left of the workers, then removes the cgroups and the subtree. Returns what could not be removed.
    fn clear(&mut self, idle: &mut dyn FnMut()) -> Vec<String> {
        self.running.clear();
        let mut notes = self.cgroups.remove_all(idle);
        if self.manager.parent_path().is_dir() {
            notes.extend(self.manager.cleanup_all(idle));
        }
        notes
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        // An error or a panic is on its way to the user; what could not be removed would only hide it.
        drop(self.clear(&mut || {}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::proto::cpuset::CpuSet;
    use crate::proto::plan::WorkSpec;
    use crate::proto::report::ExitInfo;
    use crate::proto::scenario::{CgroupDef, Count};
    use crate::proto::work::WorkType;
    use crate::sys::process;
    use crate::units::NS_PER_SEC;

    fn group(name: &str, work: WorkType, workers: u32, cpuset: Option<CpuSet>) -> GroupPlan {
        let def = CgroupDef::new(name, work.clone(), Count::fixed(workers));
        let spec = WorkSpec::new(work, workers);
        GroupPlan { name: name.into(), cpuset, works: vec![spec], def }
    }

    /// A writable cgroup2 mount, and whether it has the cpuset controller.
    fn mount() -> Option<(PathBuf, bool)> {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let targets = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let found = targets.filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).find(|dir| {
            let probe = dir.join(format!("ktstr-scenario-probe-{}", std::process::id()));
            std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
        });
        let Some(dir) = found else {
            eprintln!("skipped: no writable cgroup2 mount on this machine");
            return None;
        };
        let controllers = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap();
        let cpuset = controllers.split_whitespace().any(|word| word == "cpuset");
        Some((dir, cpuset))
    }

    fn subtree(test: &str) -> String {
        format!("ktstr-{test}-{}", std::process::id())
    }

    fn wait_for_progress(scenario: &Scenario) {
        let deadline = time::monotonic_ns() + 20 * NS_PER_SEC;
        while scenario.snapshot_iterations().iter().any(|(_, done)| done.contains(&0)) {
            assert!(time::monotonic_ns() < deadline, "no progress");
            time::sleep_ns(NS_PER_MS).unwrap();
        }
    }

    #[test]
    fn two_groups_work_in_their_cgroups_and_leave_nothing() {
        let Some((mount, cpuset)) = mount() else { return };
        let subtree = subtree("two");
        let cpus = cpuset.then(|| CpuSet::first(1));
        let groups = [
            group("a", WorkType::SpinWait, 2, cpus.clone()),
            group("b", WorkType::FutexPingPong { spin_iters: 16 }, 2, None),
        ];
        let mut scenario = Scenario::prepare_groups(&groups, &mount, &subtree, &Common::default()).unwrap();
        let procs = |name: &str| std::fs::read_to_string(mount.join(&subtree).join(name).join("cgroup.procs")).unwrap();
        for (name, tid) in scenario.tids() {
            assert!(procs(name).lines().any(|line| line == tid.to_string()), "{name}");
        }
        assert_eq!(scenario.snapshot_iterations(), [("a", vec![0, 0]), ("b", vec![0, 0])]);
        scenario.start().unwrap();
        wait_for_progress(&scenario);
        assert_eq!(scenario.alive(), 4);
        assert!(!scenario.tick().iter().any(|finding| matches!(finding, Finding::WorkerEnded { .. })));
        let finished = scenario.finish(&mut || {});
        assert_eq!(finished.notes, Vec::<String>::new());
        let names: Vec<&str> = finished.reports.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "a", "b", "b"]);
        for (name, report) in &finished.reports {
            assert!(report.completed && report.iterations > 0, "{report:?}");
            assert!(name != "a" || cpus.as_ref().is_none_or(|cpus| report.cpus_used.is_subset(cpus)), "{report:?}");
        }
        assert!(!mount.join(subtree).exists());
    }

    #[test]
    fn worker_that_dies_is_found_and_still_has_its_report() {
        let Some((mount, _)) = mount() else { return };
        let subtree = subtree("dies");
        let mut scenario =
            Scenario::prepare_groups(&[group("a", WorkType::SpinWait, 2, None)], &mount, &subtree, &Common::default())
                .unwrap();
        scenario.start().unwrap();
        wait_for_progress(&scenario);
        let tid = scenario.tids()[1].1;
        process::kill(tid, libc::SIGKILL).unwrap();
        let deadline = time::monotonic_ns() + 20 * NS_PER_SEC;
        let ended = loop {
            let mut ended = scenario.tick().into_iter().filter(|f| matches!(f, Finding::WorkerEnded { .. }));
            if let Some(finding) = ended.next() {
                break finding;
            }
            assert!(time::monotonic_ns() < deadline, "never told");
            time::sleep_ns(NS_PER_MS).unwrap();
        };
        assert_eq!(ended.describe(), format!("cgroup a: worker 1 (tid {tid}) was killed by signal 9"));
        let finished = scenario.finish(&mut || {});
        assert_eq!(finished.reports[1].1.exit_info, Some(ExitInfo::Signaled { signal: 9 }));
        assert!(!mount.join(subtree).exists());
    }

    #[test]
    fn dropped_scenario_leaves_no_worker_and_no_group() {
        let Some((mount, _)) = mount() else { return };
        let subtree = subtree("drop");
        let scenario =
            Scenario::prepare_groups(&[group("a", WorkType::SpinWait, 2, None)], &mount, &subtree, &Common::default())
                .unwrap();
        let tids: Vec<i32> = scenario.tids().iter().map(|(_, tid)| *tid).collect();
        drop(scenario);
        assert!(tids.iter().all(|tid| process::kill(*tid, 0).is_err()));
        assert!(!mount.join(subtree).exists());
    }

    #[test]
    fn missing_cgroup2_cannot_be_judged_and_a_wrong_plan_is_refused_first() {
        let good = group("a", WorkType::SpinWait, 1, None);
        let error = Scenario::prepare_groups(&[good], Path::new("/proc"), "t", &Common::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::CannotJudge);
        assert!(error.to_string().contains("CONFIG_CGROUPS"), "{error}");
        let odd = group("a", WorkType::PipeIo { burst_iters: 1 }, 3, None);
        let error = Scenario::prepare_groups(&[odd], Path::new("/proc"), "t", &Common::default()).unwrap_err();
        assert!(error.to_string().contains("must be a multiple of 2"), "{error}");
        let Some((mount, cpuset)) = mount() else { return };
        if !cpuset {
            let pinned = group("a", WorkType::SpinWait, 1, Some(CpuSet::first(1)));
            let subtree = subtree("cpuset");
            let error = Scenario::prepare_groups(&[pinned], &mount, &subtree, &Common::default()).unwrap_err();
            assert!(error.to_string().contains("CONFIG_CPUSETS"), "{error}");
            assert!(!mount.join(subtree).exists());
        }
    }
}
