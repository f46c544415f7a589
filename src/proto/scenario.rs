//! Scenarios as data: what is set up, what happens step by step, and how long each step is held.
//!
//! Owns the values; leaves their text form and their meaning on a machine to scenario/, carrying them out to the guest.
//! Invariant: a scenario names no CPU unless its author did, so that it fits every topology that has what it needs.

use super::codec::{DecodeError, Reader, Wire};
use super::cpuset::CpuSet;
use super::plan::SchedPolicy;
use super::spec::{MemPolicy, MpolFlags, WorkSetup};
use super::work::WorkType;
use crate::{wire_enum, wire_struct};

/// Parts of one whole in a `Fraction`.
pub const WHOLE: u32 = 1_000_000;

/// A part of a whole, in millionths: exact, so that scenarios can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fraction(u32);

impl Fraction {
    pub const FULL: Self = Self(WHOLE);
    pub const HALF: Self = Self(WHOLE / 2);

    /// `millionths` of a whole; none above one whole.
    pub const fn new(millionths: u32) -> Option<Self> {
        if millionths <= WHOLE { Some(Self(millionths)) } else { None }
    }
    pub fn millionths(self) -> u32 {
        self.0
    }
    /// This part of `whole`, rounded to the nearest.
    pub fn of(self, whole: u64) -> u64 {
        let exact = u128::from(whole) * u128::from(self.0) + u128::from(WHOLE / 2);
        (exact / u128::from(WHOLE)) as u64
    }
}

impl Wire for Fraction {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let raw = u32::get(input)?;
        Self::new(raw).ok_or_else(|| input.error(format!("{raw} millionths are more than a whole")))
    }
}

wire_enum! {
    /// What a count is counted in.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Unit {
        /// Ones.
        One = 0,
        /// CPUs of the machine.
        Cpus = 1,
        /// CPUs that cgroups may use: all but the last one, where there are more than two.
        Usable = 2,
        Llcs = 3,
        Nodes = 4,
        /// Workers of a cgroup as the command line says, or as many as CPUs.
        Auto = 5,
    }
}

wire_struct! {
    /// A number that may grow with the machine: `unit * times / by`, rounded down, at least 1.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Count { pub unit: Unit, pub times: u32, pub by: u32 }
}

impl Count {
    pub const AUTO: Self = Self { unit: Unit::Auto, times: 1, by: 1 };
    pub const fn fixed(times: u32) -> Self {
        Self { unit: Unit::One, times, by: 1 }
    }
}

wire_enum! {
    /// CPUs of a cgroup, in terms of the machine. All but `Exact` leave the CPU out that is kept for the root cgroup.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    pub enum CpusetSpec {
        /// All that cgroups may use.
        Usable = 0,
        /// One last-level cache.
        Llc = 1 { index: u32 },
        /// One NUMA node.
        Numa = 2 { index: u32 },
        /// From a part of the CPUs to another.
        Range = 3 { start: Fraction, end: Fraction },
        /// One of `of` equal parts.
        Disjoint = 4 { index: u32, of: u32 },
        /// One of `of` parts, each grown into the next one by `share` of its size.
        Overlap = 5 { index: u32, of: u32, share: Fraction },
        Exact = 6 { cpus: CpuSet },
        /// One part for each of the cgroups that one definition makes.
        Each = 7,
    }
}

wire_enum! {
    /// What CPUs an author wants the workers of a cgroup pinned to, within the cpuset.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub enum AffinityIntent {
        #[default]
        Inherit = 0,
        /// A random set for each worker: so many CPUs, or half of them.
        Random = 1 { count: Option<u32> },
        /// The last-level cache that has most of the cpuset.
        LlcAligned = 2,
        /// Every CPU of the machine, also those outside the cpuset.
        CrossCgroup = 3,
        /// The first CPU of the cpuset.
        SingleCpu = 4,
        Exact = 5 { cpus: CpuSet },
        /// The two threads of one core.
        SmtSiblingPair = 6,
        /// Each worker its own CPU, one after the other.
        OneEach = 7,
        /// A random set for each worker out of these.
        RandomSubset = 8 { from: CpuSet, count: Option<u32> },
    }
}

wire_struct! {
    /// So many workers of one kind. What `setup` leaves as usual is as the cgroup's definition has it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct DefWork { pub work: WorkType, pub workers: Count, pub setup: WorkSetup }
}

impl DefWork {
    pub fn new(work: WorkType, workers: Count) -> Self {
        Self { work, workers, setup: WorkSetup::default() }
    }
}

wire_struct! {
    /// Processor time of a cgroup: so much of each period (`cpu.max`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct CpuMax { pub quota_ns: u64, pub period_ns: u64 }
}

wire_struct! {
    /// One cgroup, or several alike, and what works in it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CgroupDef {
        /// With more than one copy: `name0`, `name1` and so on.
        pub name: String,
        pub copies: Count,
        pub cpuset: Option<CpusetSpec>,
        pub works: Vec<DefWork>,
        pub policy: SchedPolicy,
        pub nice: i32,
        pub affinity: AffinityIntent,
        pub mem_policy: MemPolicy,
        pub mpol_flags: MpolFlags,
        pub weight: Option<u32>,
        pub max: Option<CpuMax>,
        /// The user may replace what works in it.
        pub swappable: bool,
    }
}

impl CgroupDef {
    /// A cgroup of so many workers, everything else as inherited.
    pub fn new(name: &str, work: WorkType, workers: Count) -> Self {
        Self {
            name: name.into(),
            copies: Count::fixed(1),
            cpuset: None,
            works: vec![DefWork::new(work, workers)],
            policy: SchedPolicy::Normal,
            nice: 0,
            affinity: AffinityIntent::Inherit,
            mem_policy: MemPolicy::Default,
            mpol_flags: MpolFlags::NONE,
            weight: None,
            max: None,
            swappable: false,
        }
    }

    /// How one of its works is set up: what the work leaves as usual is as here.
    pub fn setup_of(&self, work: &DefWork) -> WorkSetup {
        let mut setup = work.setup.clone();
        if setup.policy == SchedPolicy::Normal {
            setup.policy = self.policy.clone();
        }
        if setup.nice == 0 {
            setup.nice = self.nice;
        }
        if setup.affinity == AffinityIntent::Inherit {
            setup.affinity = self.affinity.clone();
        }
        if setup.mem_policy == MemPolicy::Default {
            // Flags belong to their policy.
            (setup.mem_policy, setup.mpol_flags) = (self.mem_policy.clone(), self.mpol_flags);
        }
        setup
    }
}

wire_enum! {
    /// One thing that happens at once. A cgroup's name may end in `*`: all that begin so, in order of their making.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Op {
        /// Makes a cgroup without workers.
        AddCgroup = 1 { name: String },
        /// Stops its workers, then removes it.
        RemoveCgroup = 2 { name: String },
        SetCpuset = 3 { name: String, cpuset: CpusetSpec },
        ClearCpuset = 4 { name: String },
        SwapCpusets = 5 { a: String, b: String },
        SetWeight = 6 { name: String, weight: u32 },
        /// None: no limit.
        SetMax = 7 { name: String, max: Option<CpuMax> },
        /// More workers into a cgroup that exists.
        Spawn = 8 { name: String, work: DefWork },
        /// Stops and collects its workers; the cgroup stays.
        StopCgroup = 9 { name: String },
        SetAffinity = 10 { name: String, affinity: AffinityIntent },
        /// Workers in the root cgroup.
        SpawnHost = 11 { work: DefWork },
        MoveAllTasks = 12 { from: String, to: String },
        FreezeCgroup = 13 { name: String },
        UnfreezeCgroup = 14 { name: String },
        /// Starts a command; `name` is what the other two call it.
        RunPayload = 15 { name: String, argv: Vec<String>, limit_ns: u64, cgroup: Option<String> },
        /// Waits for its end, at most until its limit.
        WaitPayload = 16 { name: String },
        KillPayload = 17 { name: String },
        CpuOffline = 18 { cpu: u32 },
        CpuOnline = 19 { cpu: u32 },
        DetachScheduler = 20,
        AttachScheduler = 21,
        RestartScheduler = 22,
        /// Another scheduler in place of the one under test.
        ReplaceScheduler = 23 { name: String },
        /// Tells all counters now.
        Snapshot = 24,
    }
}

wire_enum! {
    /// How long a step lasts.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum HoldSpec {
        /// A part of the scenario's duration.
        Frac = 0 { part: Fraction },
        Fixed = 1 { ns: u64 },
        /// Until the scenario's duration is over; meanwhile the ops happen again and again.
        Loop = 2 { interval_ns: u64 },
    }
}

impl HoldSpec {
    pub const FULL: Self = Self::Frac { part: Fraction::FULL };
}

wire_struct! {
    /// Ops, then cgroups, then time. With `HoldSpec::Loop`: cgroups once, then the ops at every interval.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Step { pub ops: Vec<Op>, pub setup: Vec<CgroupDef>, pub hold: HoldSpec }
}

wire_struct! {
    /// What lives through all steps.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Backdrop {
        pub cgroups: Vec<CgroupDef>,
        /// Workers of the root cgroup.
        pub host: Vec<DefWork>,
    }
}

wire_struct! {
    /// The least machine that a scenario says something on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Needs { pub cpus: u32, pub llcs: u32, pub nodes: u32, pub threads_per_core: u32 }
}

impl Default for Needs {
    fn default() -> Self {
        Self { cpus: 1, llcs: 1, nodes: 1, threads_per_core: 1 }
    }
}

wire_struct! {
    /// One scenario.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct ScenarioSpec {
        pub name: String,
        /// Empty: the user's own.
        pub category: String,
        /// What happens in it and why, for a reader without the code.
        pub about: String,
        /// The checks it is about.
        pub checks: Vec<String>,
        /// What the scheduler under test must claim to support, and must not.
        pub required_flags: Vec<String>,
        pub excluded_flags: Vec<String>,
        pub needs: Needs,
        /// Its cgroups are no scheduling entities: the cpu controller stays off.
        pub no_cpu_controller: bool,
        /// It is code of the user's, found by its name in the same binary; its steps are empty.
        pub code: bool,
        /// None: the run's.
        pub duration_ns: Option<u64>,
        /// Thresholds of its own: name and value as on the command line.
        pub asserts: Vec<(String, String)>,
        pub backdrop: Backdrop,
        pub steps: Vec<Step>,
    }
}

/// The scenario that a command line without a scenario describes.
pub const STEADY: &str = "steady";

impl ScenarioSpec {
    /// The cgroups, held for the whole duration.
    pub fn steady(cgroups: Vec<CgroupDef>) -> Self {
        Self {
            name: STEADY.into(),
            about: "cgroups that work side by side, undisturbed".into(),
            steps: vec![Step { ops: Vec::new(), setup: cgroups, hold: HoldSpec::FULL }],
            ..Self::default()
        }
    }

    /// `category/name`, or the name alone.
    pub fn full_name(&self) -> String {
        match self.category.as_str() {
            "" => self.name.clone(),
            category => format!("{category}/{}", self.name),
        }
    }

    /// How long it takes when every step is held as planned, its ops not counted.
    pub fn planned_ns(&self, run_duration_ns: u64) -> u64 {
        let duration_ns = self.duration_ns.unwrap_or(run_duration_ns);
        if self.code {
            return duration_ns;
        }
        let mut spent_ns: u64 = 0;
        for step in &self.steps {
            spent_ns = spent_ns.saturating_add(match step.hold {
                HoldSpec::Frac { part } => part.of(duration_ns),
                HoldSpec::Fixed { ns } => ns,
                HoldSpec::Loop { .. } => duration_ns.saturating_sub(spent_ns),
            });
        }
        spent_ns
    }

    /// Every definition of a cgroup, in order.
    pub fn cgroup_defs(&self) -> impl Iterator<Item = &CgroupDef> {
        self.backdrop.cgroups.iter().chain(self.steps.iter().flat_map(|step| &step.setup))
    }

    /// Every op, in order.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.steps.iter().flat_map(|step| &step.ops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NS_PER_SEC;

    #[test]
    fn fraction_is_exact_and_bounded() {
        assert_eq!(Fraction::HALF.of(5), 3);
        assert_eq!(Fraction::FULL.of(u64::MAX), u64::MAX);
        assert_eq!(Fraction::new(WHOLE + 1), None);
        assert!(Fraction::from_bytes(&(WHOLE + 1).to_bytes()).is_err());
    }

    #[test]
    fn planned_time_counts_parts_fixed_holds_and_loops() {
        let step = |hold| Step { ops: vec![], setup: vec![], hold };
        let mut spec = ScenarioSpec::steady(vec![]);
        assert_eq!(spec.planned_ns(2 * NS_PER_SEC), 2 * NS_PER_SEC);
        spec.steps = vec![
            step(HoldSpec::Frac { part: Fraction::HALF }),
            step(HoldSpec::Fixed { ns: NS_PER_SEC / 2 }),
            step(HoldSpec::Loop { interval_ns: 1 }),
        ];
        assert_eq!(spec.planned_ns(4 * NS_PER_SEC), 4 * NS_PER_SEC);
        spec.duration_ns = Some(NS_PER_SEC);
        assert_eq!(spec.planned_ns(4 * NS_PER_SEC), NS_PER_SEC);
    }

    #[test]
    fn scenario_round_trips_and_is_refused_when_cut() {
        let mut def = CgroupDef::new("a", WorkType::SpinWait, Count { unit: Unit::Cpus, times: 3, by: 2 });
        def.cpuset = Some(CpusetSpec::Overlap { index: 1, of: 3, share: Fraction::HALF });
        def.affinity = AffinityIntent::Random { count: Some(2) };
        def.max = Some(CpuMax { quota_ns: 1, period_ns: 2 });
        let mut spec = ScenarioSpec::steady(vec![def]);
        spec.asserts.push(("isolation".into(), "on".into()));
        spec.steps[0].ops.push(Op::RunPayload {
            name: "p".into(),
            argv: vec!["/bin/true".into()],
            limit_ns: 9,
            cgroup: None,
        });
        let bytes = spec.to_bytes();
        assert_eq!(ScenarioSpec::from_bytes(&bytes).unwrap(), spec);
        for cut in 0..bytes.len() {
            assert!(ScenarioSpec::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
