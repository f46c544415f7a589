//! Groups of workers as a scenario's own code handles them: made, started, collected, asserted.
//!
//! Owns these helpers; leaves workers to workload/, cgroups to cgroup/, comparing to verdict/.
//! Invariant: every report that is collected is told to PID 1 before it is asserted on.

use super::ctx::{Ctx, Outside};
use crate::cgroup::{CgroupGroup, Moved, move_task};
use crate::error::{Error, Result};
use crate::proto::asserted::AssertResult;
use crate::proto::coded::FromCode;
use crate::proto::cpuset::CpuSet;
use crate::proto::limits::Assert;
use crate::proto::report::WorkerReport;
use crate::proto::scenario::{Backdrop, CgroupDef, HoldSpec, Step};
use crate::proto::work::WorkType;
use crate::workload::{WorkloadConfig, WorkloadHandle};
use std::rc::Rc;
use std::time::Duration;

/// Pause between two looks at workers that were told to stop.
const COLLECT_LOOK_MS: u64 = 2;

/// The workers of one cgroup. Dropping it kills them.
#[must_use = "dropping a group kills its workers"]
#[derive(Debug)]
pub struct GroupHandle {
    name: String,
    cpuset: Option<CpuSet>,
    handle: WorkloadHandle,
    outside: Rc<Outside>,
}

impl GroupHandle {
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The workers, to start or steer one by one.
    pub fn workers(&mut self) -> &mut WorkloadHandle {
        &mut self.handle
    }
    /// Lets them work.
    pub fn start(&mut self) -> Result<()> {
        self.handle.start()
    }
    pub fn tids(&self) -> Vec<i32> {
        self.handle.tids()
    }
    /// Outer loops done so far, per worker.
    pub fn iterations(&self) -> Vec<u64> {
        self.handle.snapshot_iterations()
    }
}

/// The default load: as many workers as the run gives each cgroup, with the work that `--work` names where that number is one
/// of whole groups of it, and else spinning.
pub fn dfl_wl(ctx: &Ctx) -> WorkloadConfig {
    WorkloadConfig::new(dfl_work(ctx.work_type_override.as_ref(), ctx.workers_per_cgroup), ctx.workers_per_cgroup)
}

fn dfl_work(asked: Option<&WorkType>, workers: u32) -> WorkType {
    let fits = |work: &&WorkType| workers % work.worker_group_size().max(1) == 0;
    asked.filter(fits).cloned().unwrap_or(WorkType::SpinWait)
}

impl Ctx {
    /// An empty list of cgroups in this scenario's subtree, with the controllers `cpuset` and `cpu` where the kernel has them.
    pub fn cgroup_group(&self) -> Result<CgroupGroup> {
        for controller in ["cpuset", "cpu"] {
            if self.cgroups.has_controller(controller)? {
                self.cgroups.setup(&[controller])?;
            }
        }
        Ok(CgroupGroup::new(self.cgroups.clone()))
    }

    /// Makes a cgroup and forks workers into it, who wait for their start.
    pub fn spawn(
        &self,
        cgroups: &mut CgroupGroup,
        name: &str,
        cpuset: Option<&CpuSet>,
        load: &WorkloadConfig,
    ) -> Result<GroupHandle> {
        let dir = match cpuset {
            Some(cpus) => cgroups.add_cgroup(name, cpus)?,
            None => cgroups.add_cgroup_no_cpuset(name)?,
        };
        let collect_ns = load.collect_ns.max(self.collect_ns);
        let handle = WorkloadHandle::spawn(&WorkloadConfig { collect_ns, ..load.clone() })?;
        let tids = handle.tids();
        // From here on an error drops the group, which kills its workers.
        let outside = Rc::clone(&self.outside);
        let group = GroupHandle { name: name.into(), cpuset: cpuset.cloned(), handle, outside };
        for tid in &tids {
            if move_task(&dir, *tid)? == Moved::Gone {
                return Err(Error::internal(format!("worker {tid} ended before it was moved into cgroup {name}")));
            }
        }
        self.outside.say(&FromCode::Spawned { group: name.into(), workers: tids.len() as u32 })?;
        Ok(group)
    }

    /// Starts groups together, after the settling time.
    pub fn start(&self, groups: &mut [GroupHandle]) -> Result<()> {
        self.hold(self.settle)?;
        groups.iter_mut().try_for_each(GroupHandle::start)
    }
}

/// `count` cgroups `cg_0`, `cg_1`, ... with the same load, working.
pub fn setup_cgroups(ctx: &Ctx, count: u32, load: &WorkloadConfig) -> Result<(Vec<GroupHandle>, CgroupGroup)> {
    let mut cgroups = ctx.cgroup_group()?;
    let spawned = (0..count).map(|index| ctx.spawn(&mut cgroups, &format!("cg_{index}"), None, load));
    let mut groups = spawned.collect::<Result<Vec<_>>>()?;
    ctx.start(&mut groups)?;
    Ok((groups, cgroups))
}

/// One cgroup for each name, with different loads in turn: spinning, bursty, synchronous writes, mixed, yielding.
pub fn spawn_diverse(ctx: &Ctx, names: &[&str]) -> Result<(Vec<GroupHandle>, CgroupGroup)> {
    const KINDS: [&str; 5] = ["spin", "bursty", "io-sync", "mixed", "yield"];
    let mut cgroups = ctx.cgroup_group()?;
    let mut groups = Vec::new();
    for (name, kind) in names.iter().zip(KINDS.iter().cycle()) {
        let work = crate::workload::parse_work(kind).map_err(|error| Error::internal(error.to_string()))?;
        let workers = ctx.workers_per_cgroup.next_multiple_of(work.worker_group_size());
        groups.push(ctx.spawn(&mut cgroups, name, None, &WorkloadConfig::new(work, workers))?);
    }
    ctx.start(&mut groups)?;
    Ok((groups, cgroups))
}

/// Stops all groups at once, tells every report, and holds them to `checks`: to having worked, where none of the checks is
/// about workers. One failing group fails all.
pub fn collect_all(groups: Vec<GroupHandle>, checks: &Assert) -> Result<AssertResult> {
    let Some(first) = groups.first() else { return Ok(AssertResult::undecided("there are no workers to collect")) };
    let outside = Rc::clone(&first.outside);
    let cpusets: Vec<(String, CpuSet)> =
        groups.iter().filter_map(|group| Some((group.name.clone(), group.cpuset.clone()?))).collect();
    let reports = stop_all(groups, &outside)?;
    for (group, report) in &reports {
        // Raw samples that the code asked for are the code's: they would not fit into a message.
        let mut report = report.clone();
        report.take_raw(usize::MAX);
        outside.say(&FromCode::Report { group: group.clone(), report })?;
    }
    Ok(checks.assert_groups(&reports, &cpusets, outside.void.as_deref()))
}

/// Carries out steps, as a scenario in a file has them, and holds their workers to the limits in force.
pub fn execute_steps(ctx: &Ctx, steps: Vec<Step>) -> Result<AssertResult> {
    execute_steps_with(ctx, steps, &ctx.assert)
}

/// The same, held to these limits.
pub fn execute_steps_with(ctx: &Ctx, steps: Vec<Step>, checks: &Assert) -> Result<AssertResult> {
    carry_out(ctx, Backdrop::default(), steps, checks)
}

/// The same over cgroups and workers that live through all steps.
pub fn execute_scenario(ctx: &Ctx, backdrop: Backdrop, steps: Vec<Step>) -> Result<AssertResult> {
    carry_out(ctx, backdrop, steps, &ctx.assert)
}

fn carry_out(ctx: &Ctx, backdrop: Backdrop, steps: Vec<Step>, checks: &Assert) -> Result<AssertResult> {
    let (reports, early) = ctx.execute(backdrop, steps)?;
    let result = checks.assert_groups(&reports, &[], ctx.outside.void.as_deref());
    Ok(match early {
        Some(why) => result.merge(AssertResult::undecided(format!("the steps ended early: {why}"))),
        None => result,
    })
}

/// Carries out one step: these cgroups, held for the whole duration.
pub fn execute_defs(ctx: &Ctx, cgroups: Vec<CgroupDef>) -> Result<AssertResult> {
    execute_steps(ctx, vec![Step { ops: Vec::new(), setup: cgroups, hold: HoldSpec::FULL }])
}

fn stop_all(mut groups: Vec<GroupHandle>, outside: &Outside) -> Result<Vec<(String, WorkerReport)>> {
    groups.iter_mut().try_for_each(|group| group.handle.request_stop())?;
    let mut collected: Vec<Option<Vec<WorkerReport>>> = groups.iter().map(|_| None).collect();
    loop {
        for (group, reports) in groups.iter_mut().zip(&mut collected).filter(|(_, reports)| reports.is_none()) {
            *reports = group.handle.poll_collect();
        }
        if collected.iter().all(Option::is_some) {
            break;
        }
        outside.look(0)?;
        std::thread::sleep(Duration::from_millis(COLLECT_LOOK_MS));
    }
    let of_group = |(group, reports): (&GroupHandle, Option<Vec<WorkerReport>>)| {
        reports.into_iter().flatten().map(|report| (group.name.clone(), report)).collect::<Vec<_>>()
    };
    Ok(groups.iter().zip(collected).flat_map(of_group).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_was_asked_for_is_taken_where_its_groups_are_whole() {
        let pipe = WorkType::PipeIo { burst_iters: 1 };
        assert_eq!(dfl_work(Some(&pipe), 4), pipe);
        assert_eq!(dfl_work(Some(&pipe), 3), WorkType::SpinWait);
        assert_eq!(dfl_work(Some(&WorkType::YieldHeavy), 3), WorkType::YieldHeavy);
        assert_eq!(dfl_work(None, 4), WorkType::SpinWait);
    }
}
