//! A number of workers that do the same, and how they are set up: class, nice value, CPUs, memory, process or thread.
//!
//! Owns these values; leaves their grammar to workload/grammar and applying them to workload/worker.
//! Invariant: plain data; what an author asks for is kept as asked, and resolved only where the CPUs are known.

use super::cpuset::CpuSet;
use super::scenario::AffinityIntent;
use super::work::{SchedClass, WorkType};
use crate::{wire_enum, wire_struct};

/// SchedClass::Rt as a policy.
const CLASS_FIFO_PRIORITY: u32 = 50;
/// SchedClass::Deadline as a policy: runtime, deadline, period. The runtime is a millisecond and not a microsecond, which is
/// less than the kernel takes (1024 ns) and less than one wake-up costs.
const CLASS_DEADLINE_NS: (u64, u64, u64) = (1_000_000, 5_000_000, 10_000_000);

wire_enum! {
    /// A scheduling class and its parameters, as sched_setattr(2) takes them.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub enum SchedPolicy {
        #[default]
        Normal = 0,
        Batch = 1,
        Idle = 2,
        Fifo = 3 { priority: u32 },
        RoundRobin = 4 { priority: u32 },
        Deadline = 5 { runtime_ns: u64, deadline_ns: u64, period_ns: u64 },
        /// SCHED_EXT.
        Ext = 6,
    }
}

impl From<SchedClass> for SchedPolicy {
    fn from(class: SchedClass) -> Self {
        let (runtime_ns, deadline_ns, period_ns) = CLASS_DEADLINE_NS;
        match class {
            SchedClass::Cfs => Self::Normal,
            SchedClass::Batch => Self::Batch,
            SchedClass::Idle => Self::Idle,
            SchedClass::Rt => Self::Fifo { priority: CLASS_FIFO_PRIORITY },
            SchedClass::Deadline => Self::Deadline { runtime_ns, deadline_ns, period_ns },
            SchedClass::Ext => Self::Ext,
        }
    }
}

wire_enum! {
    /// From which nodes a worker's memory comes, as set_mempolicy(2) takes it.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub enum MemPolicy {
        #[default]
        Default = 0,
        Bind = 1 { nodes: CpuSet },
        Preferred = 2 { node: u32 },
        Interleave = 3 { nodes: CpuSet },
        Local = 4,
        /// Since Linux 5.15.
        PreferredMany = 5 { nodes: CpuSet },
        /// Since Linux 6.9.
        WeightedInterleave = 6 { nodes: CpuSet },
    }
}

impl MemPolicy {
    /// The nodes it names.
    pub fn nodes(&self) -> CpuSet {
        match self {
            Self::Default | Self::Local => CpuSet::new(),
            Self::Preferred { node } => [*node].into_iter().collect(),
            Self::Bind { nodes }
            | Self::Interleave { nodes }
            | Self::PreferredMany { nodes }
            | Self::WeightedInterleave { nodes } => nodes.clone(),
        }
    }
}

wire_struct! {
    /// Flags of a memory policy (include/uapi/linux/mempolicy.h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct MpolFlags { pub bits: u32 }
}

impl MpolFlags {
    pub const NONE: Self = Self { bits: 0 };
    /// Node numbers stay what they are when the cpuset changes.
    pub const STATIC_NODES: Self = Self { bits: 1 << 15 };
    /// Node numbers count within the cpuset.
    pub const RELATIVE_NODES: Self = Self { bits: 1 << 14 };
    /// The balancer may move pages among the bound nodes (since Linux 5.12).
    pub const NUMA_BALANCING: Self = Self { bits: 1 << 13 };
    /// The words of the grammar.
    pub const WORDS: [(&'static str, Self); 3] =
        [("static", Self::STATIC_NODES), ("relative", Self::RELATIVE_NODES), ("balancing", Self::NUMA_BALANCING)];

    pub fn union(self, other: Self) -> Self {
        Self { bits: self.bits | other.bits }
    }
    pub fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }
}

wire_enum! {
    /// What a worker is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum CloneMode {
        /// A process of its own.
        #[default]
        Fork = 0,
        /// A thread of a process that all workers of the spec share.
        Thread = 1,
    }
}

wire_struct! {
    /// How a worker is set up before it works.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct WorkSetup {
        pub policy: SchedPolicy,
        /// 0: as inherited.
        pub nice: i32,
        pub affinity: AffinityIntent,
        pub mem_policy: MemPolicy,
        pub mpol_flags: MpolFlags,
        pub clone_mode: CloneMode,
    }
}

wire_struct! {
    /// A number of workers that do the same.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct WorkSpec {
        pub work: WorkType,
        pub workers: u32,
        pub setup: WorkSetup,
    }
}

impl WorkSpec {
    /// `workers` workers of one type, everything else as inherited.
    pub fn new(work: WorkType, workers: u32) -> Self {
        Self { work, workers, setup: WorkSetup::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn spec_round_trips_and_is_refused_when_cut() {
        let nodes: CpuSet = [0, 1].into_iter().collect();
        let setup = WorkSetup {
            policy: SchedPolicy::Fifo { priority: 3 },
            nice: -1,
            affinity: AffinityIntent::RandomSubset { from: nodes.clone(), count: None },
            mem_policy: MemPolicy::Bind { nodes: nodes.clone() },
            mpol_flags: MpolFlags::STATIC_NODES.union(MpolFlags::NUMA_BALANCING),
            clone_mode: CloneMode::Thread,
        };
        let spec = WorkSpec { setup, ..WorkSpec::new(WorkType::Mixed, 3) };
        let bytes = spec.to_bytes();
        assert_eq!(WorkSpec::from_bytes(&bytes).unwrap(), spec);
        for cut in 0..bytes.len() {
            assert!(WorkSpec::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(spec.setup.mem_policy.nodes(), nodes);
        assert!(
            spec.setup.mpol_flags.has(MpolFlags::NUMA_BALANCING)
                && !spec.setup.mpol_flags.has(MpolFlags::RELATIVE_NODES)
        );
        assert_eq!(SchedPolicy::from(SchedClass::Rt), SchedPolicy::Fifo { priority: 50 });
    }
}
