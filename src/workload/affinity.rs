//! From what an author asks of the CPUs to the CPUs of each worker.
//!
//! Owns reading the machine's caches, cores and nodes from sysfs, and resolving an intent; leaves setting it to worker.
//! Invariant: an intent that cannot be met is a typed error before anybody is forked.

use crate::error::Error;
use crate::proto::cpuset::CpuSet;
use crate::proto::scenario::AffinityIntent;
use std::fmt;
use std::path::Path;

/// Why an intent cannot be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AffinityError {
    /// A subset of no CPUs.
    CountIsZero,
    /// What was asked for and what is allowed have nothing in common.
    Empty { asked: CpuSet, pool: CpuSet },
    /// No core of the pool has two threads in it.
    NoSmtPair { pool: CpuSet },
    /// There is no worker of this index.
    NoWorker { worker: usize, workers: usize },
    /// No CPU is named for this worker.
    NoCpu { worker: usize },
    /// sched_setaffinity(2) takes 0 for its caller, and a number below is no task.
    NoTask { worker: usize, tid: i32 },
}

impl fmt::Display for AffinityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CountIsZero => write!(f, "affinity: a subset of 0 CPUs is no place to run"),
            Self::Empty { asked, pool } => {
                write!(f, "affinity: none of the CPUs '{asked}' is among those allowed, '{pool}'")
            }
            Self::NoSmtPair { pool } => {
                write!(f, "affinity: no core has two hardware threads among the CPUs '{pool}'")
            }
            Self::NoWorker { worker, workers } => {
                write!(f, "affinity: there is no worker {worker}: there are {workers} workers")
            }
            Self::NoCpu { worker } => write!(f, "affinity: no CPU is named for worker {worker}"),
            Self::NoTask { worker, tid } => write!(f, "affinity: worker {worker} has no task: its thread id is {tid}"),
        }
    }
}

impl std::error::Error for AffinityError {}

impl From<AffinityError> for Error {
    fn from(error: AffinityError) -> Self {
        Error::usage(format!("cannot place the workers: {error}"))
    }
}

/// What is left of an intent once CPUs and cgroup are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolvedAffinity {
    /// As inherited.
    None,
    Fixed(CpuSet),
    /// Each worker draws so many of these.
    Random {
        from: CpuSet,
        count: u32,
    },
    SingleCpu(u32),
    /// The n-th worker runs on the n-th of these, in turn.
    OneEach(CpuSet),
    /// Position p of the n-th group runs on thread p of pair n, in turn.
    Pairs(Vec<[u32; 2]>),
}

impl ResolvedAffinity {
    /// The CPUs of one worker, which is member `position` of the `nth` group; `below` draws a number below another. None: as
    /// inherited.
    pub fn of_worker(
        &self,
        worker: usize,
        (nth, position): (usize, usize),
        below: &mut dyn FnMut(u64) -> u64,
    ) -> Option<CpuSet> {
        let one = |cpu: Option<u32>| cpu.map(|cpu| [cpu].into_iter().collect());
        match self {
            Self::None => None,
            Self::Fixed(cpus) => Some(cpus.clone()),
            Self::SingleCpu(cpu) => one(Some(*cpu)),
            Self::OneEach(cpus) => one(cpus.iter().nth(worker % cpus.len().max(1))),
            Self::Pairs(pairs) => one(pairs.get(nth % pairs.len().max(1)).map(|pair| pair[position % pair.len()])),
            Self::Random { from, count } => {
                let mut rest: Vec<u32> = from.iter().collect();
                Some((0..*count).map(|_| rest.swap_remove(below(rest.len() as u64) as usize)).collect())
            }
        }
    }
}

/// The machine's CPUs as sysfs shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus {
    pub online: CpuSet,
    /// CPUs that share a last-level cache.
    pub llcs: Vec<CpuSet>,
    /// Threads of one core.
    pub cores: Vec<CpuSet>,
    /// (node, its CPUs), nodes without CPUs included.
    pub nodes: Vec<(u32, CpuSet)>,
}

/// Caches are numbered from the core outwards; no CPU has more levels than this many index directories.
const MOST_CACHES: u32 = 8;

impl Cpus {
    /// Reads `/sys/devices/system` below `root`. What is not there is left out: a CPU without caches listed is its own.
    pub fn read(root: &Path) -> Self {
        let base = root.join("sys/devices/system");
        let list = |path: &Path| -> Option<CpuSet> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
        let online = list(&base.join("cpu/online")).unwrap_or_default();
        let mut cpus = Self { online: online.clone(), ..Self::default() };
        for cpu in online.iter() {
            let dir = base.join(format!("cpu/cpu{cpu}"));
            let alone: CpuSet = [cpu].into_iter().collect();
            let last =
                (0..MOST_CACHES).rev().find_map(|at| list(&dir.join(format!("cache/index{at}/shared_cpu_list"))));
            add(&mut cpus.llcs, last.unwrap_or_else(|| alone.clone()));
            add(&mut cpus.cores, list(&dir.join("topology/thread_siblings_list")).unwrap_or(alone));
        }
        for node in list(&base.join("node/online")).unwrap_or_default().iter() {
            cpus.nodes.push((node, list(&base.join(format!("node/node{node}/cpulist"))).unwrap_or_default()));
        }
        if cpus.nodes.is_empty() {
            cpus.nodes.push((0, online));
        }
        cpus
    }

    /// Two threads of each core that has them in the pool.
    pub fn pairs(&self, pool: &CpuSet) -> Vec<[u32; 2]> {
        let within = self.cores.iter().map(|core| core.intersection(pool).iter().take(2).collect::<Vec<u32>>());
        within.filter_map(|threads| <[u32; 2]>::try_from(threads).ok()).collect()
    }
}

fn add(sets: &mut Vec<CpuSet>, set: CpuSet) {
    if !sets.contains(&set) {
        sets.push(set);
    }
}

/// What the intent means for workers whose cgroup allows `pool`.
pub fn resolve(intent: &AffinityIntent, pool: &CpuSet, cpus: &Cpus) -> Result<ResolvedAffinity, AffinityError> {
    let within = |asked: &CpuSet| match asked.intersection(pool) {
        both if both.is_empty() => Err(AffinityError::Empty { asked: asked.clone(), pool: pool.clone() }),
        both => Ok(both),
    };
    Ok(match intent {
        AffinityIntent::Inherit => ResolvedAffinity::None,
        AffinityIntent::Exact { cpus } => ResolvedAffinity::Fixed(within(cpus)?),
        AffinityIntent::CrossCgroup => ResolvedAffinity::Fixed(cpus.online.clone()),
        AffinityIntent::SingleCpu => match pool.iter().next() {
            Some(cpu) => ResolvedAffinity::SingleCpu(cpu),
            None => return Err(AffinityError::Empty { asked: cpus.online.clone(), pool: pool.clone() }),
        },
        AffinityIntent::LlcAligned => {
            // Of equals the first, so that a run can be repeated.
            let best = cpus.llcs.iter().rev().max_by_key(|llc| llc.intersection(pool).len());
            ResolvedAffinity::Fixed(within(best.unwrap_or(&cpus.online))?)
        }
        AffinityIntent::Random { count: Some(0) } | AffinityIntent::RandomSubset { count: Some(0), .. } => {
            return Err(AffinityError::CountIsZero);
        }
        AffinityIntent::Random { count } => {
            return resolve(&AffinityIntent::RandomSubset { from: pool.clone(), count: *count }, pool, cpus);
        }
        AffinityIntent::OneEach => ResolvedAffinity::OneEach(within(pool)?),
        AffinityIntent::RandomSubset { from, count } => {
            let from = within(from)?;
            let half = (from.len() as u32 / 2).max(1);
            ResolvedAffinity::Random { count: count.unwrap_or(half).min(from.len() as u32), from }
        }
        AffinityIntent::SmtSiblingPair => match cpus.pairs(pool) {
            pairs if pairs.is_empty() => return Err(AffinityError::NoSmtPair { pool: pool.clone() }),
            pairs => ResolvedAffinity::Pairs(pairs),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    /// 8 CPUs: two caches of four, cores of two threads, two nodes.
    fn machine() -> Cpus {
        Cpus {
            online: set("0-7"),
            llcs: vec![set("0-3"), set("4-7")],
            cores: vec![set("0-1"), set("2-3"), set("4-5"), set("6-7")],
            nodes: vec![(0, set("0-3")), (1, set("4-7"))],
        }
    }

    #[test]
    fn every_intent_resolves_within_the_pool() {
        let resolved = |intent: AffinityIntent, pool: &str| resolve(&intent, &set(pool), &machine());
        assert_eq!(resolved(AffinityIntent::Inherit, "0-7"), Ok(ResolvedAffinity::None));
        assert_eq!(resolved(AffinityIntent::LlcAligned, "3-5"), Ok(ResolvedAffinity::Fixed(set("4-5"))));
        assert_eq!(resolved(AffinityIntent::LlcAligned, "0-7"), Ok(ResolvedAffinity::Fixed(set("0-3"))));
        assert_eq!(resolved(AffinityIntent::CrossCgroup, "0-1"), Ok(ResolvedAffinity::Fixed(set("0-7"))));
        assert_eq!(resolved(AffinityIntent::SingleCpu, "5-6"), Ok(ResolvedAffinity::SingleCpu(5)));
        let exact = AffinityIntent::Exact { cpus: set("0-5") };
        assert_eq!(resolved(exact, "4-7"), Ok(ResolvedAffinity::Fixed(set("4-5"))));
        let half = AffinityIntent::Random { count: None };
        assert_eq!(resolved(half, "0-4"), Ok(ResolvedAffinity::Random { from: set("0-4"), count: 2 }));
        let one = AffinityIntent::RandomSubset { from: set("7"), count: None };
        assert_eq!(resolved(one, "0-7"), Ok(ResolvedAffinity::Random { from: set("7"), count: 1 }));
        let pairs = resolved(AffinityIntent::SmtSiblingPair, "1-5").unwrap();
        assert_eq!(pairs, ResolvedAffinity::Pairs(vec![[2, 3], [4, 5]]));
    }

    #[test]
    fn intents_that_cannot_be_met_are_typed_errors() {
        let refused = |intent: AffinityIntent, pool: &str| resolve(&intent, &set(pool), &machine()).unwrap_err();
        let zero = AffinityIntent::Random { count: Some(0) };
        assert_eq!(refused(zero, "0-7"), AffinityError::CountIsZero);
        let apart = refused(AffinityIntent::Exact { cpus: set("0") }, "4-7");
        assert_eq!(apart, AffinityError::Empty { asked: set("0"), pool: set("4-7") });
        assert_eq!(refused(AffinityIntent::SmtSiblingPair, "0,2"), AffinityError::NoSmtPair { pool: set("0,2") });
        let text = Error::from(apart).to_string();
        assert!(text.contains("none of the CPUs '0' is among those allowed, '4-7'"), "{text}");
    }

    #[test]
    fn this_machine_reads_as_at_least_one_cpu_in_one_core_cache_and_node() {
        let cpus = Cpus::read(Path::new("/"));
        assert!(!cpus.online.is_empty() && !cpus.nodes.is_empty());
        for sets in [&cpus.llcs, &cpus.cores] {
            let all = sets.iter().fold(CpuSet::new(), |all, set| all.union(set));
            assert!(cpus.online.is_subset(&all));
        }
        let nothing = Cpus::read(Path::new("/nonexistent"));
        assert!(nothing.online.is_empty() && nothing.cores.is_empty());
    }
}
