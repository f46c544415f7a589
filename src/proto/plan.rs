//! The plan: all that the guest is told, as data.
//!
//! Owns the plan's fields; leaves making one to cli/ and scenario/, and carrying it out to guest/.
//! Invariant: host and guest are the same binary, so a plan of another build is refused, not guessed at.

use super::guards::Guards;
use super::limits::Layers;
use super::numa::Numa;
use super::scenario::ScenarioSpec;
pub use super::spec::{CloneMode, MemPolicy, MpolFlags, SchedPolicy, WorkSetup, WorkSpec};
use super::topology::Topology;
use super::work::WorkType;
use crate::wire_struct;

/// Version of the plan and of the messages; grows with every change of either.
pub const PROTOCOL: u32 = 12;
/// Names the build: the commit, or the version where there is none. Host and guest compare it.
pub const BUILD: &str = env!("KTSTR_BUILD");

wire_struct! {
    /// The scheduler under test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct SchedSpec {
        /// What the user called it.
        pub name: String,
        /// Program and arguments in the guest.
        pub argv: Vec<String>,
        /// How long it may take until the kernel says `enabled`.
        pub enable_timeout_ns: u64,
        /// How long it may take to go away after SIGINT.
        pub stop_timeout_ns: u64,
    }
}

wire_struct! {
    /// What the guest is to do.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Plan {
        pub protocol: u32,
        /// Build id of the host's binary.
        pub build: String,
        pub seed: u64,
        pub topology: Topology,
        pub numa: Numa,
        pub sched: Option<SchedSpec>,
        /// Others that a step may put in its place, by their names.
        pub spare_scheds: Vec<SchedSpec>,
        /// In their order, each in a clean cgroup tree.
        pub scenarios: Vec<ScenarioSpec>,
        /// Scenarios that were asked for and cannot be judged here: their names, and why.
        pub skipped: Vec<(String, String)>,
        /// Workers of a cgroup that does not say; none: as many as CPUs.
        pub workers_per_cgroup: Option<u32>,
        /// The work that a scenario in code uses where none is fixed in it.
        pub work_override: Option<WorkType>,
        /// How long a scenario lasts that does not say.
        pub duration_ns: u64,
        /// Pause between scheduler enabled and workers started.
        pub settle_ns: u64,
        /// Kernel modules to load, in order, as paths in the guest.
        pub modules: Vec<String>,
        /// What the run is held to.
        pub limits: Layers,
        /// Length of /dev/vda, where the guest has a disk.
        pub disk_bytes: Option<u64>,
        /// Its contents are nobody's: work types may write it.
        pub disk_is_scratch: bool,
        /// Workers keep some of their samples as they are.
        pub raw_samples: bool,
        pub guards: Guards,
    }
}

impl Plan {
    /// How long its scenarios take in all when nothing goes wrong.
    pub fn planned_ns(&self) -> u64 {
        let each = self.scenarios.iter().map(|scenario| scenario.planned_ns(self.duration_ns));
        each.fold(0, |sum, ns| sum.saturating_add(ns).saturating_add(self.settle_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;
    use crate::proto::scenario::{CgroupDef, Count};

    #[test]
    fn plan_round_trips_and_is_refused_when_cut() {
        let plan = Plan {
            protocol: PROTOCOL,
            build: "b".into(),
            seed: 9,
            topology: Topology::flat(2),
            numa: Numa::default(),
            sched: Some(SchedSpec {
                name: "x".into(),
                argv: vec!["/x".into()],
                enable_timeout_ns: 1,
                stop_timeout_ns: 2,
            }),
            spare_scheds: vec![],
            scenarios: vec![ScenarioSpec::steady(vec![CgroupDef::new("g0", WorkType::SpinWait, Count::AUTO)])],
            skipped: vec![],
            workers_per_cgroup: Some(3),
            work_override: Some(WorkType::YieldHeavy),
            duration_ns: 5,
            settle_ns: 1,
            modules: vec![],
            limits: Layers::default(),
            disk_bytes: Some(1 << 20),
            disk_is_scratch: true,
            raw_samples: true,
            guards: Guards::default(),
        };
        let bytes = plan.to_bytes();
        assert_eq!(Plan::from_bytes(&bytes).unwrap(), plan);
        for cut in 0..bytes.len() {
            assert!(Plan::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
