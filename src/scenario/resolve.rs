//! From what an author asked for to what it is on one machine: counts, cpusets, affinities, cgroups.
//!
//! Owns these translations; leaves carrying them out to the engine.
//! Invariant: pure; the same scenario, machine and seed give the same result on host and guest.

use super::topo::TestTopology;
use crate::proto::cpuset::{CpuSet, MAX_CPU};
use crate::proto::plan::WorkSpec;
use crate::proto::scenario::{AffinityIntent, CgroupDef, Count, CpusetSpec, DefWork, Needs, ScenarioSpec, Unit};
use crate::proto::work::WorkType;
use crate::workload::{self, MAX_WORKERS, validate_spec};

/// Most cgroups of one definition: a bound on what a plan can make PID 1 create.
pub const MAX_COPIES: u32 = 1024;

/// What translations depend on.
#[derive(Clone, Debug)]
pub struct Resolver {
    pub topo: TestTopology,
    /// Workers of a cgroup that does not say; none: as many as CPUs.
    pub workers_per_cgroup: Option<u32>,
}

/// One cgroup, ready to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    pub name: String,
    pub cpuset: Option<CpuSet>,
    pub works: Vec<WorkSpec>,
    pub def: CgroupDef,
}

impl Resolver {
    /// The number that a count is here; at least 1.
    pub fn count(&self, count: Count) -> u32 {
        let unit = match count.unit {
            Unit::One => 1,
            Unit::Cpus => self.topo.total_cpus(),
            Unit::Usable => self.topo.usable_cpuset().len() as u32,
            Unit::Llcs => self.topo.num_llcs(),
            Unit::Nodes => self.topo.num_numa_nodes(),
            Unit::Auto => self.workers_per_cgroup.unwrap_or_else(|| self.topo.total_cpus()),
        };
        let exact = u64::from(unit) * u64::from(count.times) / u64::from(count.by.max(1));
        u32::try_from(exact).unwrap_or(u32::MAX).max(1)
    }

    /// The CPUs of a cpuset. `each` is (index, of) among the copies of one definition.
    pub fn cpuset(&self, spec: &CpusetSpec, each: (u32, u32)) -> Result<CpuSet, String> {
        validate(spec)?;
        let pool = self.topo.usable_cpus();
        let slice = |from: usize, to: usize| pool[from.min(to)..to].iter().copied().collect::<CpuSet>();
        let part = |index: u32, of: u32| {
            let at = |index: u32| index as usize * pool.len() / of.max(1) as usize;
            slice(at(index), at(index + 1))
        };
        let cpus = match spec {
            CpusetSpec::Usable => self.topo.usable_cpuset(),
            CpusetSpec::Llc { index } => self.topo.llc_aligned_cpuset(*index).ok_or_else(|| {
                let count = self.topo.num_llcs();
                format!("there is no usable CPU in LLC {index}: the machine has {count} (from 0), and keeps its last CPU for the root cgroup")
            })?,
            CpusetSpec::Numa { index } => self.topo.numa_aligned_cpuset(*index).ok_or_else(|| {
                let count = self.topo.num_numa_nodes();
                format!("there is no usable CPU in node {index}: the machine has {count} (from 0), and keeps its last CPU for the root cgroup")
            })?,
            CpusetSpec::Range { start, end } => {
                let at = |part: crate::proto::scenario::Fraction| part.of(pool.len() as u64) as usize;
                slice(at(*start), at(*end))
            }
            CpusetSpec::Disjoint { index, of } => part(*index, *of),
            CpusetSpec::Each => part(each.0, each.1),
            CpusetSpec::Overlap { index, of, share } => {
                let mut sets = self.topo.overlapping_cpusets(*of, *share);
                sets.swap_remove(*index as usize)
            }
            CpusetSpec::Exact { cpus } => {
                let strange = cpus.difference(&self.topo.all_cpuset());
                if !strange.is_empty() {
                    return Err(format!("CPUs {strange} do not exist: the machine has {}", self.topo.all_cpuset()));
                }
                cpus.clone()
            }
        };
        if cpus.is_empty() {
            return Err(format!("no CPU is left for it: the cgroups' CPUs are {}", self.topo.usable_cpuset()));
        }
        Ok(cpus)
    }

    /// A work of a definition as the workload engine takes it.
    pub fn work(&self, work: &DefWork, def: &CgroupDef) -> Result<WorkSpec, String> {
        let size = work.work.worker_group_size().max(1);
        let count = self.count(work.workers);
        if count > MAX_WORKERS {
            return Err(format!("{}: {count} workers are more than {MAX_WORKERS}", work.work.cli_name()));
        }
        // A number that somebody wrote must fit; one that follows from the machine is made to.
        let workers = if work.workers.unit == Unit::One { count } else { count.next_multiple_of(size) };
        let spec = WorkSpec { work: work.work.clone(), workers, setup: def.setup_of(work) };
        validate_spec(&spec).map_err(|error| format!("{} {error}", work.work.cli_name()))?;
        Ok(spec)
    }

    /// A work that no definition stands behind.
    pub fn lone_work(&self, work: &DefWork) -> Result<WorkSpec, String> {
        self.work(work, &CgroupDef::new("", work.work.clone(), work.workers))
    }

    /// The cgroups of one definition.
    pub fn groups(&self, def: &CgroupDef) -> Result<Vec<GroupPlan>, String> {
        let copies = self.count(def.copies);
        if copies > MAX_COPIES {
            return Err(format!("cgroup {}: {copies} copies are more than {MAX_COPIES}", def.name));
        }
        let single = def.copies == Count::fixed(1);
        let group = |index: u32| {
            let name = if single { def.name.clone() } else { format!("{}{index}", def.name) };
            let cpuset = def.cpuset.as_ref().map(|spec| self.cpuset(spec, (index, copies))).transpose();
            let works = def.works.iter().map(|work| self.work(work, def)).collect::<Result<Vec<_>, _>>();
            let named = |why: String| format!("cgroup {name}: {why}");
            let (cpuset, works) = (cpuset.map_err(named)?, works.map_err(named)?);
            let pool = cpuset.clone().unwrap_or_else(|| self.topo.all_cpuset());
            let workers: usize = works.iter().map(|work| work.workers as usize).sum();
            if workers > MAX_WORKERS as usize {
                return Err(named(format!("{workers} workers in all are more than {MAX_WORKERS}")));
            }
            self.affinities(&def.affinity, &pool, workers, &mut Random::new(0)).map_err(named)?;
            for spec in &works {
                // Pairs of one core are part of what that type is.
                let intent = match spec.work {
                    WorkType::SmtSiblingSpin => &AffinityIntent::SmtSiblingPair,
                    _ => &spec.setup.affinity,
                };
                self.affinities(intent, &pool, 1, &mut Random::new(0)).map_err(named)?;
            }
            Ok(GroupPlan { name, cpuset, works, def: def.clone() })
        };
        (0..copies).map(group).collect()
    }

    /// The CPUs of each worker of a group whose cgroup has `pool`; none: as inherited.
    pub fn affinities(
        &self,
        intent: &AffinityIntent,
        pool: &CpuSet,
        workers: usize,
        random: &mut Random,
    ) -> Result<Vec<Option<CpuSet>>, String> {
        let resolved = workload::resolve(intent, pool, &self.topo.cpus()).map_err(|why| why.to_string())?;
        // Of a pair each worker in turn has one thread.
        let of = |worker: usize| resolved.of_worker(worker, (worker / 2, worker % 2), &mut |count| random.below(count));
        Ok((0..workers).map(of).collect())
    }

    /// Why the machine is too small for it; none where it fits.
    pub fn too_small(&self, needs: &Needs) -> Option<String> {
        let have = [
            (self.topo.total_cpus(), needs.cpus, "CPUs"),
            (self.topo.num_llcs(), needs.llcs, "LLCs"),
            (self.topo.num_numa_nodes(), needs.nodes, "NUMA nodes"),
            (self.topo.threads_per_core(), needs.threads_per_core, "threads per core"),
        ];
        let missing = have.iter().find(|(have, needs, _)| have < needs)?;
        let (have, needs, what) = missing;
        Some(format!("it needs {needs} {what}, and the machine has {have}"))
    }

    /// Whether the whole scenario can be made here.
    pub fn check(&self, scenario: &ScenarioSpec) -> Result<(), String> {
        if let Some(why) = self.too_small(&scenario.needs) {
            return Err(why);
        }
        scenario.cgroup_defs().try_for_each(|def| self.groups(def).map(|_| ()))
    }
}

/// What is wrong with a cpuset on any machine.
pub fn validate(spec: &CpusetSpec) -> Result<(), String> {
    match spec {
        CpusetSpec::Range { start, end } if start >= end => Err("a range must end after its start".into()),
        CpusetSpec::Disjoint { of: 0, .. } | CpusetSpec::Overlap { of: 0, .. } => Err("there are no 0 parts".into()),
        CpusetSpec::Disjoint { of, .. } | CpusetSpec::Overlap { of, .. } if *of > MAX_CPU => {
            Err(format!("{of} parts are more than the {MAX_CPU} CPUs that a machine can have"))
        }
        CpusetSpec::Disjoint { index, of } | CpusetSpec::Overlap { index, of, .. } if index >= of => {
            Err(format!("part {index} of {of} does not exist: parts are counted from 0"))
        }
        CpusetSpec::Exact { cpus } if cpus.is_empty() => Err("it names no CPU".into()),
        _ => Ok(()),
    }
}

/// Random choices that a seed repeats: splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    /// One of `count` numbers.
    pub fn below(&mut self, count: u64) -> u64 {
        self.draw() % count.max(1)
    }
    /// `size` of the CPUs, each choice alike.
    pub fn subset(&mut self, cpus: &[u32], size: usize) -> CpuSet {
        let mut rest = cpus.to_vec();
        let size = size.min(rest.len());
        (0..size).map(|_| rest.swap_remove(self.below(rest.len() as u64) as usize)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::scenario::Fraction;

    fn resolver(shape: &str) -> Resolver {
        Resolver { topo: TestTopology::from_spec(&shape.parse().unwrap()), workers_per_cgroup: None }
    }
    fn cpuset(shape: &str, spec: CpusetSpec) -> String {
        resolver(shape).cpuset(&spec, (0, 1)).map_or_else(|why| why, |set| set.to_string())
    }
    fn fraction(percent: u32) -> Fraction {
        Fraction::new(percent * 10_000).unwrap()
    }

    #[test]
    fn cpusets_resolve_on_the_machine() {
        let range = |start, end| CpusetSpec::Range { start: fraction(start), end: fraction(end) };
        for (spec, want) in [
            (CpusetSpec::Usable, "0-6"),
            (CpusetSpec::Llc { index: 1 }, "4-6"),
            (CpusetSpec::Numa { index: 1 }, "4-6"),
            (range(0, 50), "0-3"),
            (range(50, 100), "4-6"),
            (range(25, 75), "2-4"),
            (CpusetSpec::Disjoint { index: 2, of: 3 }, "4-6"),
            (CpusetSpec::Overlap { index: 1, of: 2, share: fraction(50) }, "0-1,3-6"),
            (CpusetSpec::Exact { cpus: "7".parse().unwrap() }, "7"),
        ] {
            assert_eq!(cpuset("2n2l4c1t", spec.clone()), want, "{spec:?}");
        }
    }

    #[test]
    fn cpusets_out_of_range_say_why() {
        for (spec, why) in [
            (CpusetSpec::Llc { index: 1 }, "no usable CPU in LLC 1"),
            (CpusetSpec::Numa { index: 3 }, "no usable CPU in node 3"),
            (CpusetSpec::Range { start: fraction(50), end: fraction(50) }, "must end after its start"),
            (CpusetSpec::Range { start: fraction(1), end: fraction(2) }, "no CPU is left"),
            (CpusetSpec::Disjoint { index: 3, of: 3 }, "counted from 0"),
            (CpusetSpec::Disjoint { index: 0, of: 0 }, "no 0 parts"),
            (CpusetSpec::Disjoint { index: 0, of: 9 }, "no CPU is left"),
            (CpusetSpec::Exact { cpus: "2-9".parse().unwrap() }, "CPUs 4-9 do not exist"),
            (CpusetSpec::Exact { cpus: CpuSet::new() }, "names no CPU"),
        ] {
            let said = cpuset("4", spec.clone());
            assert!(said.contains(why), "{spec:?}: {said}");
        }
    }

    #[test]
    fn counts_grow_with_the_machine_and_whole_groups_are_made() {
        let resolver = resolver("2n2l4c1t");
        let count = |unit, times, by| resolver.count(Count { unit, times, by });
        assert_eq!(count(Unit::Cpus, 3, 2), 12);
        assert_eq!(count(Unit::Usable, 1, 1), 7);
        assert_eq!((count(Unit::Llcs, 1, 1), count(Unit::Nodes, 1, 4), count(Unit::Auto, 1, 1)), (2, 1, 8));
        let mut def =
            CgroupDef::new("p", WorkType::PipeIo { burst_iters: 1 }, Count { unit: Unit::Usable, times: 1, by: 1 });
        assert_eq!(resolver.groups(&def).unwrap()[0].works[0].workers, 8);
        def.works[0].workers = Count::fixed(7);
        assert!(resolver.groups(&def).unwrap_err().contains("cgroup p: pipe num_workers must be a multiple of 2"));
    }

    #[test]
    fn counts_beyond_any_machine_are_refused_before_anything_is_made_of_them() {
        let resolver = resolver("4");
        let mut def = CgroupDef::new("c", WorkType::SpinWait, Count::fixed(2_555_555_555));
        assert!(resolver.groups(&def).unwrap_err().contains("2555555555 workers are more than 4096"));
        def.works = vec![DefWork { workers: Count::fixed(4096), ..def.works[0].clone() }; 2];
        assert!(resolver.groups(&def).unwrap_err().contains("8192 workers in all are more than 4096"));
        let parts = CpusetSpec::Overlap { index: 0, of: 4_000_000_000, share: fraction(50) };
        assert!(validate(&parts).unwrap_err().contains("4000000000 parts are more than"));
    }

    #[test]
    fn copies_share_the_cpus_among_them() {
        let resolver = resolver("8");
        let mut def = CgroupDef::new("c", WorkType::SpinWait, Count::fixed(1));
        def.copies = Count { unit: Unit::Usable, times: 1, by: 2 };
        def.cpuset = Some(CpusetSpec::Each);
        let groups = resolver.groups(&def).unwrap();
        let told: Vec<String> =
            groups.iter().map(|group| format!("{}={}", group.name, group.cpuset.as_ref().unwrap())).collect();
        assert_eq!(told, ["c0=0-1", "c1=2-3", "c2=4-6"]);
    }

    #[test]
    fn affinities_follow_the_intent_and_refuse_the_impossible() {
        let resolver = resolver("1n2l2c2t");
        let pool: CpuSet = "2-5".parse().unwrap();
        let of = |intent: AffinityIntent| {
            let sets = resolver.affinities(&intent, &pool, 2, &mut Random::new(7));
            sets.map(|sets| {
                sets.iter().map(|set| set.as_ref().map_or("-".into(), CpuSet::to_string)).collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(of(AffinityIntent::Inherit).unwrap(), "- -");
        assert_eq!(of(AffinityIntent::LlcAligned).unwrap(), "2-3 2-3");
        assert_eq!(of(AffinityIntent::CrossCgroup).unwrap(), "0-7 0-7");
        assert_eq!(of(AffinityIntent::SingleCpu).unwrap(), "2 2");
        assert_eq!(of(AffinityIntent::OneEach).unwrap(), "2 3");
        assert_eq!(of(AffinityIntent::SmtSiblingPair).unwrap(), "2 3");
        assert_eq!(of(AffinityIntent::Exact { cpus: "5-7".parse().unwrap() }).unwrap(), "5 5");
        assert!(of(AffinityIntent::Exact { cpus: "7".parse().unwrap() }).is_err());
        assert!(of(AffinityIntent::Random { count: Some(0) }).is_err());
        let random = || resolver.affinities(&AffinityIntent::Random { count: None }, &pool, 9, &mut Random::new(7));
        assert_eq!(random(), random());
        let sets = random().unwrap();
        assert!(sets.iter().flatten().all(|set| set.len() == 2 && set.is_subset(&pool)));
        assert!(sets.iter().any(|set| *set != sets[0]));
        let flat = Resolver { topo: TestTopology::synthetic(1, 1, 4, 1), workers_per_cgroup: None };
        assert!(flat.affinities(&AffinityIntent::SmtSiblingPair, &pool, 1, &mut Random::new(0)).is_err());
    }

    #[test]
    fn pairs_of_one_core_are_refused_where_there_are_none() {
        let def = CgroupDef::new("c", WorkType::SmtSiblingSpin, Count::fixed(2));
        assert!(resolver("1n1l4c2t").groups(&def).is_ok());
        let why = resolver("4").groups(&def).unwrap_err();
        assert!(why.starts_with("cgroup c: ") && why.contains("no core has two hardware threads"), "{why}");
    }

    #[test]
    fn too_small_a_machine_says_what_it_lacks() {
        let needs = Needs { cpus: 4, llcs: 2, nodes: 1, threads_per_core: 1 };
        assert_eq!(resolver("1n2l2c1t").too_small(&needs), None);
        assert_eq!(resolver("4").too_small(&needs).unwrap(), "it needs 2 LLCs, and the machine has 1");
        assert_eq!(resolver("2").too_small(&needs).unwrap(), "it needs 4 CPUs, and the machine has 2");
    }
}
