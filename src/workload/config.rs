//! What is asked of a handle: how many workers, doing what, in which class, on which CPUs.
//!
//! Owns the rules that a configuration must keep; leaves carrying it out to handle.
//! Invariant: what passed `validate` can only be refused by the kernel, never by us.

use crate::error::Error;
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::{CloneMode, MemPolicy, MpolFlags, SchedPolicy, WorkSetup, WorkSpec};
use crate::proto::report::COLLECT_NS;
use crate::proto::scenario::AffinityIntent;
use crate::proto::work::WorkType;
use crate::sys::numa::MAX_NODES;
use crate::units::NS_PER_SEC;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Most workers of one handle: a bound on what one plan can make PID 1 fork and map.
pub const MAX_WORKERS: u32 = 4096;

/// Smallest runtime of SCHED_DEADLINE: 2^DL_SCALE ns (kernel/sched/deadline.c, __checkparam_dl).
const MIN_DEADLINE_RUNTIME_NS: u64 = 1024;
/// Real-time priorities that a user may ask for (sched(7)).
const PRIORITIES: RangeInclusive<u32> = 1..=99;
/// Largest buffer of one worker: 1 GiB, so that a slip of the pen is told and not swapped.
const MAX_BUFFER_KB: u64 = 1 << 20;
/// A page of 4096 bytes.
const PAGE_KB: u64 = 4;
/// Most cells of a ring: 16 MiB of shared memory.
const MAX_QUEUE: u64 = 1 << 20;
/// Most cgroups that one worker makes for itself.
const MAX_CHURN_GROUPS: u64 = 64;

/// A field of a configuration and the rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub field: &'static str,
    pub rule: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.rule)
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::usage(format!("cannot use this workload: {error}"))
    }
}

fn refuse(field: &'static str, rule: impl Into<String>) -> Result<(), ConfigError> {
    Err(ConfigError { field, rule: rule.into() })
}

/// A group of workers under one stop word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadConfig {
    pub num_workers: u32,
    pub work_type: WorkType,
    pub sched_policy: SchedPolicy,
    /// 0: as inherited.
    pub nice: i32,
    pub affinity: AffinityIntent,
    pub mem_policy: MemPolicy,
    pub mpol_flags: MpolFlags,
    pub clone_mode: CloneMode,
    /// Secondary groups, which get group indices 1.. and start and stop with the primary one.
    pub composed: Vec<WorkSpec>,
    /// Of every random choice; each worker has its own sequence of it. None: drawn at the spawn, and told by the handle.
    pub seed: Option<u64>,
    /// The CPUs that the workers' cgroup allows, for intents that speak of them; none: those of the caller.
    pub pool: Option<CpuSet>,
    /// A disk whose contents may be destroyed, for the types that need one; none: a temporary file for each worker.
    pub scratch_disk: Option<PathBuf>,
    /// Each worker keeps up to `RAW_CAP` of its samples of each kind as they are, which costs it 800 KB a kind.
    pub raw_samples: bool,
    /// The workers' cgroup, for CgroupChurn, which makes others beside it.
    pub cgroup_dir: Option<PathBuf>,
    /// From the stop to the SIGKILL of those that have not reported. A scenario in code gives at least what its guest needs.
    pub collect_ns: u64,
}

impl Default for WorkloadConfig {
    fn default() -> Self {
        Self {
            num_workers: 1,
            work_type: WorkType::SpinWait,
            sched_policy: SchedPolicy::Normal,
            nice: 0,
            affinity: AffinityIntent::Inherit,
            mem_policy: MemPolicy::Default,
            mpol_flags: MpolFlags::NONE,
            clone_mode: CloneMode::Fork,
            composed: Vec::new(),
            seed: None,
            pool: None,
            scratch_disk: None,
            raw_samples: false,
            cgroup_dir: None,
            collect_ns: COLLECT_NS,
        }
    }
}

impl WorkloadConfig {
    /// `workers` workers of one type, everything else as inherited.
    pub fn new(work_type: WorkType, workers: u32) -> Self {
        Self { num_workers: workers, work_type, ..Self::default() }
    }

    /// The first spec is the primary group, the others are composed.
    pub fn from_specs(specs: &[WorkSpec]) -> Result<Self, ConfigError> {
        let Some((first, rest)) = specs.split_first() else {
            return Err(ConfigError { field: "works", rule: "must not be empty".into() });
        };
        let WorkSpec { work, workers, setup } = first.clone();
        Ok(Self {
            num_workers: workers,
            work_type: work,
            sched_policy: setup.policy,
            nice: setup.nice,
            affinity: setup.affinity,
            mem_policy: setup.mem_policy,
            mpol_flags: setup.mpol_flags,
            clone_mode: setup.clone_mode,
            composed: rest.to_vec(),
            ..Self::default()
        })
    }

    /// All groups in order: the primary one, then the composed ones.
    pub fn specs(&self) -> Vec<WorkSpec> {
        let setup = WorkSetup {
            policy: self.sched_policy.clone(),
            nice: self.nice,
            affinity: self.affinity.clone(),
            mem_policy: self.mem_policy.clone(),
            mpol_flags: self.mpol_flags,
            clone_mode: self.clone_mode,
        };
        let primary = WorkSpec { work: self.work_type.clone(), workers: self.num_workers, setup };
        std::iter::once(primary).chain(self.composed.iter().cloned()).collect()
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        let specs = self.specs();
        specs.iter().try_for_each(validate_spec)?;
        match specs.iter().map(|spec| u64::from(spec.workers)).sum::<u64>() {
            total if total > u64::from(MAX_WORKERS) => {
                refuse("num_workers", format!("must be at most {MAX_WORKERS} in all, not {total}"))
            }
            _ => Ok(()),
        }
    }
}

/// The rules of one group of workers.
pub fn validate_spec(spec: &WorkSpec) -> Result<(), ConfigError> {
    spec.work.check()?;
    let size = spec.work.worker_group_size();
    if spec.workers % size != 0 {
        let rule = format!("must be a multiple of {size} for {}, not {}", spec.work.name(), spec.workers);
        return refuse("num_workers", rule);
    }
    let setup = &spec.setup;
    if !(-20..=19).contains(&setup.nice) {
        return refuse("nice", format!("must be from -20 to 19, not {}", setup.nice));
    }
    validate_affinity(&setup.affinity)?;
    if setup.clone_mode == CloneMode::Thread && matches!(spec.work, WorkType::ForkExit | WorkType::CgroupChurn { .. }) {
        return refuse("clone_mode", format!("must be fork for {}, which is about processes", spec.work.name()));
    }
    validate_mem_policy(&setup.mem_policy, setup.mpol_flags)?;
    validate_policy(&setup.policy)
}

fn validate_affinity(affinity: &AffinityIntent) -> Result<(), ConfigError> {
    match affinity {
        AffinityIntent::Exact { cpus } | AffinityIntent::RandomSubset { from: cpus, .. } if cpus.is_empty() => {
            refuse("affinity", "must name at least one CPU")
        }
        AffinityIntent::Random { count: Some(0) } | AffinityIntent::RandomSubset { count: Some(0), .. } => {
            refuse("affinity.count", "must be above zero")
        }
        _ => Ok(()),
    }
}

fn validate_policy(policy: &SchedPolicy) -> Result<(), ConfigError> {
    match policy {
        SchedPolicy::Fifo { priority } | SchedPolicy::RoundRobin { priority } if !PRIORITIES.contains(priority) => {
            refuse("sched_policy.priority", format!("must be from 1 to 99, not {priority}"))
        }
        SchedPolicy::Deadline { runtime_ns, .. } if *runtime_ns < MIN_DEADLINE_RUNTIME_NS => {
            refuse("sched_policy.runtime_ns", format!("must be at least {MIN_DEADLINE_RUNTIME_NS}, not {runtime_ns}"))
        }
        SchedPolicy::Deadline { runtime_ns, deadline_ns, period_ns }
            if runtime_ns > deadline_ns || deadline_ns > period_ns =>
        {
            let rule =
                format!("must keep runtime <= deadline <= period, not {runtime_ns} <= {deadline_ns} <= {period_ns}");
            refuse("sched_policy", rule)
        }
        _ => Ok(()),
    }
}

/// What set_mempolicy(2) says it refuses; which nodes there are is the kernel's to say.
fn validate_mem_policy(policy: &MemPolicy, flags: MpolFlags) -> Result<(), ConfigError> {
    let names_nodes = !matches!(policy, MemPolicy::Default | MemPolicy::Local);
    if names_nodes && policy.nodes().is_empty() {
        return refuse("mem_policy", "must name at least one node");
    }
    if policy.nodes().last().is_some_and(|node| node >= MAX_NODES) {
        return refuse("mem_policy", format!("must name nodes below {MAX_NODES}"));
    }
    if flags.has(MpolFlags::STATIC_NODES) && flags.has(MpolFlags::RELATIVE_NODES) {
        return refuse("mpol_flags", "must not be static and relative at once");
    }
    if flags.has(MpolFlags::NUMA_BALANCING)
        && !matches!(policy, MemPolicy::Bind { .. } | MemPolicy::PreferredMany { .. })
    {
        return refuse("mpol_flags", "may have balancing only with bind or preferred-many");
    }
    if flags != MpolFlags::NONE && !names_nodes {
        return refuse("mpol_flags", "need a memory policy that names nodes");
    }
    Ok(())
}

/// A parameter that must be at least so large.
fn least(field: &'static str, value: u64, least: u64) -> Result<(), ConfigError> {
    match (value >= least, least) {
        (true, _) => Ok(()),
        (false, 1) => refuse(field, "must be above zero"),
        (false, _) => refuse(field, format!("must be at least {least}, not {value}")),
    }
}

fn at_most(field: &'static str, value: u64, most: u64) -> Result<(), ConfigError> {
    if value <= most { Ok(()) } else { refuse(field, format!("must be at most {most}, not {value}")) }
}

/// A buffer of so many KiB.
fn buffer(field: &'static str, kb: u64) -> Result<(), ConfigError> {
    least(field, kb, 1).and(at_most(field, kb, MAX_BUFFER_KB))
}

/// Members of a group of one kind.
fn members(field: &'static str, count: u32) -> Result<(), ConfigError> {
    least(field, u64::from(count), 1).and(at_most(field, u64::from(count), u64::from(MAX_WORKERS)))
}

impl WorkType {
    /// The rules of the parameters.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::SpinWait
            | Self::YieldHeavy
            | Self::Mixed
            | Self::IoSyncWrite
            | Self::IoRandRead
            | Self::IoConvoy
            | Self::ForkExit
            | Self::NiceSweep
            | Self::AluHot { .. }
            | Self::SmtSiblingSpin => Ok(()),
            Self::Bursty { burst_ns, sleep_ns } | Self::IdleChurn { burst_ns, sleep_ns, .. } => {
                least("burst", *burst_ns, 1).and(least("sleep", *sleep_ns, 1))
            }
            Self::PipeIo { burst_iters } => least("burst_iters", *burst_iters, 1),
            Self::FutexPingPong { spin_iters }
            | Self::AffinityChurn { spin_iters }
            | Self::PolicyChurn { spin_iters } => least("spin_iters", *spin_iters, 1),
            Self::CachePressure { size_kb, stride } | Self::CacheYield { size_kb, stride } => {
                buffer("size_kb", *size_kb)?;
                least("stride", *stride, 1)?;
                at_most("stride", *stride, size_kb * 1024)
            }
            Self::CachePipe { size_kb, burst_iters } => {
                buffer("size_kb", *size_kb).and(least("burst_iters", *burst_iters, 1))
            }
            Self::FutexFanOut { fan_out, spin_iters } => {
                members("fan_out", *fan_out).and(least("spin_iters", *spin_iters, 1))
            }
            Self::FanOutCompute { fan_out, cache_footprint_kb, operations, sleep_ns } => {
                members("fan_out", *fan_out)?;
                buffer("cache_footprint_kb", *cache_footprint_kb)?;
                least("operations", *operations, 1).and(least("sleep", *sleep_ns, 1))
            }
            Self::Sequence { first, rest } => {
                std::iter::once(first).chain(rest).try_for_each(|p| least("phase", p.ns(), 1))
            }
            Self::PageFaultChurn { region_kb, touches_per_cycle, spin_iters } => {
                least("region_kb", *region_kb, PAGE_KB).and(at_most("region_kb", *region_kb, MAX_BUFFER_KB))?;
                least("touches_per_cycle", *touches_per_cycle, 1).and(least("spin_iters", *spin_iters, 1))
            }
            Self::MutexContention { contenders, hold_iters, work_iters } => {
                members("contenders", *contenders)?;
                least("hold_iters", *hold_iters, 1).and(least("work_iters", *work_iters, 1))
            }
            Self::ThunderingHerd { waiters, batches, inter_batch_ns } => {
                members("waiters", *waiters)?;
                least("batches", *batches, 1).and(least("inter_batch", *inter_batch_ns, 1))
            }
            Self::PriorityInversion { high, medium, low, hold_iters, work_iters, .. } => {
                members("high", *high).and(members("medium", *medium)).and(members("low", *low))?;
                least("hold_iters", *hold_iters, 1).and(least("work_iters", *work_iters, 1))
            }
            Self::ProducerConsumerImbalance {
                producers,
                consumers,
                produce_rate_hz,
                consume_iters,
                queue_depth_target,
            } => {
                members("producers", *producers).and(members("consumers", *consumers))?;
                least("produce_rate_hz", *produce_rate_hz, 1).and(at_most(
                    "produce_rate_hz",
                    *produce_rate_hz,
                    NS_PER_SEC,
                ))?;
                least("consume_iters", *consume_iters, 1)?;
                // A ring of one cell cannot tell full from empty.
                least("queue_depth_target", *queue_depth_target, 2).and(at_most(
                    "queue_depth_target",
                    *queue_depth_target,
                    MAX_QUEUE,
                ))
            }
            Self::RtStarvation { rt_workers, cfs_workers, rt_priority, burst_iters } => {
                members("rt_workers", *rt_workers).and(members("cfs_workers", *cfs_workers))?;
                if !PRIORITIES.contains(rt_priority) {
                    return refuse("rt_priority", format!("must be from 1 to 99, not {rt_priority}"));
                }
                least("burst_iters", *burst_iters, 1)
            }
            Self::AsymmetricWaker { burst_iters, .. } => least("burst_iters", *burst_iters, 1),
            Self::WakeChain { depth, work_per_hop_ns, .. } => {
                least("depth", u64::from(*depth), 2).and(members("depth", *depth))?;
                least("work_per_hop", *work_per_hop_ns, 1)
            }
            Self::NumaWorkingSetSweep { region_kb, sweep_period_ns, target_nodes } => {
                least("region_kb", *region_kb, PAGE_KB).and(at_most("region_kb", *region_kb, MAX_BUFFER_KB))?;
                least("sweep_period", *sweep_period_ns, 1)?;
                match target_nodes.iter().find(|node| **node >= MAX_NODES) {
                    Some(node) => refuse("target_nodes", format!("must be below {MAX_NODES}, not {node}")),
                    None => at_most("target_nodes", target_nodes.len() as u64, u64::from(MAX_NODES)),
                }
            }
            Self::CgroupChurn { groups, cycle_ns } => {
                least("groups", u64::from(*groups), 1).and(at_most("groups", u64::from(*groups), MAX_CHURN_GROUPS))?;
                least("cycle", *cycle_ns, 1)
            }
            Self::SignalStorm { signals_per_iter, work_iters } => {
                least("signals_per_iter", *signals_per_iter, 1).and(least("work_iters", *work_iters, 1))
            }
            Self::PreemptStorm { cfs_workers, rt_burst_iters, rt_sleep_ns } => {
                members("cfs_workers", *cfs_workers)?;
                least("rt_burst_iters", *rt_burst_iters, 1).and(least("rt_sleep", *rt_sleep_ns, 1))
            }
            Self::EpollStorm { producers, consumers, events_per_burst } => {
                members("producers", *producers).and(members("consumers", *consumers))?;
                least("events_per_burst", *events_per_burst, 1)
            }
            Self::NumaMigrationChurn { period_ns } => least("period", *period_ns, 1),
            Self::IpcVariance { hot_iters, cold_iters, period_iters } => {
                least("hot_iters", *hot_iters, 1).and(least("cold_iters", *cold_iters, 1))?;
                least("period_iters", *period_iters, 1)
            }
            Self::Custom { name } if name.is_empty() => refuse("name", "must be that of a registered function"),
            Self::Custom { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::types::{Form, types};

    fn refused(change: impl FnOnce(&mut WorkloadConfig)) -> ConfigError {
        let mut config = WorkloadConfig::default();
        change(&mut config);
        config.validate().unwrap_err()
    }

    #[test]
    fn defaults_are_valid_and_zero_workers_too() {
        WorkloadConfig::default().validate().unwrap();
        WorkloadConfig::new(WorkType::SpinWait, 0).validate().unwrap();
    }

    #[test]
    fn every_refusal_names_field_and_rule() {
        let odd = refused(|c| *c = WorkloadConfig::new(WorkType::PipeIo { burst_iters: 1 }, 3));
        assert_eq!(odd.to_string(), "num_workers must be a multiple of 2 for PipeIo, not 3");
        let zero = refused(|c| c.work_type = WorkType::Bursty { burst_ns: 0, sleep_ns: 1 });
        assert_eq!(zero.to_string(), "burst must be above zero");
        assert_eq!(refused(|c| c.nice = 20).field, "nice");
        assert_eq!(refused(|c| c.affinity = AffinityIntent::Exact { cpus: CpuSet::new() }).field, "affinity");
        assert_eq!(refused(|c| c.affinity = AffinityIntent::Random { count: Some(0) }).field, "affinity.count");
        assert_eq!(refused(|c| c.num_workers = MAX_WORKERS + 1).field, "num_workers");
        assert_eq!(refused(|c| c.sched_policy = SchedPolicy::Fifo { priority: 0 }).field, "sched_policy.priority");
        assert_eq!(
            refused(|c| c.sched_policy = SchedPolicy::RoundRobin { priority: 100 }).field,
            "sched_policy.priority"
        );
        let deadline = |runtime_ns, deadline_ns, period_ns| {
            refused(|c| c.sched_policy = SchedPolicy::Deadline { runtime_ns, deadline_ns, period_ns }).field
        };
        assert_eq!(deadline(1023, 2000, 2000), "sched_policy.runtime_ns");
        assert_eq!(deadline(3000, 2000, 4000), "sched_policy");
        assert_eq!(deadline(2000, 5000, 4000), "sched_policy");
        let spec = WorkloadConfig::new(WorkType::PipeIo { burst_iters: 1 }, 1).specs().remove(0);
        assert_eq!(refused(|c| c.composed = vec![spec]).field, "num_workers");
        assert!(Error::from(odd).to_string().starts_with("cannot use this workload: num_workers"));
        for work in [WorkType::ForkExit, WorkType::CgroupChurn { groups: 2, cycle_ns: 1 }] {
            let thread = refused(|c| (c.work_type, c.clone_mode) = (work.clone(), CloneMode::Thread));
            assert_eq!(thread.field, "clone_mode");
        }
    }

    #[test]
    fn memory_policies_that_no_kernel_takes_are_refused() {
        let none = MemPolicy::Bind { nodes: CpuSet::new() };
        let one = MemPolicy::Interleave { nodes: CpuSet::first(1) };
        let both = MpolFlags::STATIC_NODES.union(MpolFlags::RELATIVE_NODES);
        assert_eq!(refused(|c| c.mem_policy = none).field, "mem_policy");
        assert_eq!(refused(|c| c.mem_policy = MemPolicy::Preferred { node: MAX_NODES }).field, "mem_policy");
        assert_eq!(refused(|c| (c.mem_policy, c.mpol_flags) = (one.clone(), both)).field, "mpol_flags");
        assert_eq!(refused(|c| (c.mem_policy, c.mpol_flags) = (one, MpolFlags::NUMA_BALANCING)).field, "mpol_flags");
        assert_eq!(refused(|c| c.mpol_flags = MpolFlags::STATIC_NODES).field, "mpol_flags");
    }

    /// Every whole-number and time parameter of every type is refused at zero, by its name.
    #[test]
    fn every_parameter_is_refused_at_zero() {
        let mut seen = 0;
        for info in types() {
            let count = info.default.clone().parameters().len();
            for index in 0..count {
                let mut work = info.default.clone();
                let name = {
                    let mut parameters = work.parameters();
                    let (name, param) = &mut parameters[index];
                    let zero = match param.form() {
                        Form::Duration => "0s",
                        Form::Count => "0",
                        _ => continue,
                    };
                    param.set(zero).unwrap();
                    *name
                };
                let error = work.check().expect_err(&format!("{} takes {name}=0", info.name));
                assert_eq!(error.field, name, "{}", info.name);
                seen += 1;
            }
        }
        assert_eq!(seen, 62);
    }

    #[test]
    fn parameters_beyond_their_bounds_are_refused() {
        for (text, field) in [
            ("wake-chain(depth=1)", "depth"),
            ("cache(size_kb=1,stride=1025)", "stride"),
            ("cache(size_kb=2000000)", "size_kb"),
            ("page-fault(region_kb=3)", "region_kb"),
            ("rt-starvation(rt_priority=100)", "rt_priority"),
            ("producer-consumer(queue_depth_target=1)", "queue_depth_target"),
            ("producer-consumer(queue_depth_target=2000000)", "queue_depth_target"),
            ("producer-consumer(produce_rate_hz=2000000000)", "produce_rate_hz"),
            ("numa-sweep(target_nodes=1024)", "target_nodes"),
            ("cgroup-churn(groups=65)", "groups"),
            ("herd(waiters=5000)", "waiters"),
        ] {
            let error = crate::workload::parse_work(text).expect_err(text).to_string();
            assert!(error.contains(&format!("{field} must be")), "{text}: {error}");
        }
    }
}
