//! What is asked of a handle: how many workers, doing what, in which class, on which CPUs.
//!
//! Owns the rules that a configuration must keep; leaves carrying it out to handle.
//! Invariant: what passed `validate` can only be refused by the kernel, never by us.

use crate::error::Error;
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::{SchedPolicy, WorkSpec};
use crate::proto::work::WorkType;
use std::fmt;

/// Most workers of one handle: a bound on what one plan can make PID 1 fork and map.
pub const MAX_WORKERS: u32 = 4096;

/// Smallest runtime of SCHED_DEADLINE: 2^DL_SCALE ns (kernel/sched/deadline.c, __checkparam_dl).
const MIN_DEADLINE_RUNTIME_NS: u64 = 1024;

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
    /// CPUs each worker is pinned to; none: as inherited.
    pub affinity: Option<CpuSet>,
    /// Secondary groups, which get group indices 1.. and start and stop with the primary one.
    pub composed: Vec<WorkSpec>,
}

impl Default for WorkloadConfig {
    fn default() -> Self {
        Self {
            num_workers: 1,
            work_type: WorkType::SpinWait,
            sched_policy: SchedPolicy::Normal,
            nice: 0,
            affinity: None,
            composed: Vec::new(),
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
        let first = first.clone();
        Ok(Self {
            num_workers: first.workers,
            work_type: first.work,
            sched_policy: first.policy,
            nice: first.nice,
            affinity: first.affinity,
            composed: rest.to_vec(),
        })
    }

    /// All groups in order: the primary one, then the composed ones.
    pub fn specs(&self) -> Vec<WorkSpec> {
        let primary = WorkSpec {
            work: self.work_type.clone(),
            workers: self.num_workers,
            policy: self.sched_policy.clone(),
            nice: self.nice,
            affinity: self.affinity.clone(),
        };
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
    if !(-20..=19).contains(&spec.nice) {
        return refuse("nice", format!("must be from -20 to 19, not {}", spec.nice));
    }
    if spec.affinity.as_ref().is_some_and(CpuSet::is_empty) {
        return refuse("affinity", "must name at least one CPU");
    }
    match &spec.policy {
        SchedPolicy::Fifo { priority } | SchedPolicy::RoundRobin { priority } if !(1..=99).contains(priority) => {
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

impl WorkType {
    /// The rules of the parameters.
    pub fn check(&self) -> Result<(), ConfigError> {
        let positive = |field, value: u64| if value == 0 { refuse(field, "must be above zero") } else { Ok(()) };
        match self {
            Self::SpinWait | Self::YieldHeavy => Ok(()),
            Self::Bursty { burst_ns, sleep_ns } => positive("burst", *burst_ns).and(positive("sleep", *sleep_ns)),
            Self::PipeIo { burst_iters } => positive("burst_iters", *burst_iters),
            Self::FutexPingPong { spin_iters } => positive("spin_iters", *spin_iters),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let zero = refused(|c| c.work_type = WorkType::Bursty { burst_ns: 1, sleep_ns: 0 });
        assert_eq!(zero.field, "sleep");
        assert_eq!(refused(|c| c.work_type = WorkType::FutexPingPong { spin_iters: 0 }).field, "spin_iters");
        assert_eq!(refused(|c| c.nice = 20).field, "nice");
        assert_eq!(refused(|c| c.affinity = Some(CpuSet::new())).field, "affinity");
        assert_eq!(refused(|c| c.num_workers = MAX_WORKERS + 1).field, "num_workers");
        assert_eq!(refused(|c| c.sched_policy = SchedPolicy::Fifo { priority: 0 }).field, "sched_policy.priority");
        let deadline = |runtime_ns, deadline_ns, period_ns| {
            refused(|c| c.sched_policy = SchedPolicy::Deadline { runtime_ns, deadline_ns, period_ns }).field
        };
        assert_eq!(deadline(1023, 2000, 2000), "sched_policy.runtime_ns");
        assert_eq!(deadline(3000, 2000, 4000), "sched_policy");
        let spec = WorkloadConfig::new(WorkType::PipeIo { burst_iters: 1 }, 1).specs().remove(0);
        assert_eq!(refused(|c| c.composed = vec![spec]).field, "num_workers");
        assert!(Error::from(odd).to_string().starts_with("cannot use this workload: num_workers"));
    }
}
