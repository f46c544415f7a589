//! A group of workers as their owner sees it: spawn, start, look, steer, and no orphan when it is dropped.
//!
//! Owns the fork and the list of workers; leaves stopping and collecting to collect, the child's side to worker.
//! Invariant: a dropped handle has killed its workers and waited for them, within a named time.

use super::affinity::{self, AffinityError, Cpus, ResolvedAffinity};
use super::collect::{Collection, Worker};
use super::config::WorkloadConfig;
use super::kinds::{self, Links, Means};
use super::report::Identity;
use super::rng::Rng;
use super::slot::{Field, Shared, State};
use super::worker::{self, Birth};
use crate::error::{Context, Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::{CloneMode, WorkSpec};
use crate::proto::scenario::AffinityIntent;
use crate::proto::work::WorkType;
use crate::sys::process::Fork;
use crate::sys::sched::CpuMask;
use crate::sys::{futex, numa, process, sched, signal, time};
use crate::units::{NS_PER_MS, NS_PER_SEC};
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// How long threads may take to be there: they only have to be made.
const THREADS_NS: u64 = 10 * NS_PER_SEC;
/// Most descriptors that are open at once for groups about to be forked: far below the usual limit of 1024 a process.
const BATCH_DESCRIPTORS: usize = 64;

/// A group of forked workers. Dropping it without collecting kills them.
///
/// The thread that spawned the workers must outlive them: the kernel kills a worker when that thread ends.
#[must_use = "dropping a handle kills its workers"]
#[derive(Debug)]
pub struct WorkloadHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) specs: Vec<WorkSpec>,
    pub(super) workers: Vec<Worker>,
    pub(super) started: bool,
    seed: u64,
    pub(super) collection: Collection,
}

/// Where one worker belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Index of its spec: 0 primary, 1.. composed.
    spec: usize,
    /// Index of its group area, and position among the members.
    pub(super) group: usize,
    position: usize,
    /// Index of its group within the spec.
    nth: usize,
}

/// What is the same for all workers of one spec.
struct Common {
    means: Means,
    affinity: ResolvedAffinity,
}

impl WorkloadHandle {
    /// Forks the workers. None of them works before `start`.
    pub fn spawn(config: &WorkloadConfig) -> Result<Self> {
        Self::spawn_placed(config, |_| {})
    }

    /// The same, with each worker's place changed first: so a test makes a worker that cannot work.
    pub(super) fn spawn_placed(config: &WorkloadConfig, change: impl Fn(&mut Place)) -> Result<Self> {
        config.validate()?;
        let specs = config.specs();
        let mut places = places(&specs);
        let mut areas = Vec::new();
        for place in places.iter().filter(|place| place.position == 0) {
            areas.push(kinds::group_words(&specs[place.spec].work));
        }
        places.iter_mut().for_each(change);
        let kinds = specs.iter().map(|spec| spec.work.sample_kinds().len()).max().unwrap_or(0);
        let common = specs.iter().map(|spec| Common::of(config, spec)).collect::<Result<Vec<Common>>>()?;
        let shared = Shared::with_raw(places.len(), &areas, kinds, config.raw_samples)
            .context(|| format!("map the memory shared with {} workers", places.len()))?;
        worker::install_panic_hook();
        let seed = config.seed.map_or_else(process::random_number, Ok).context(|| "draw a seed")?;
        let mut handle = Self {
            shared: Arc::new(shared),
            specs,
            workers: Vec::with_capacity(places.len()),
            started: false,
            seed,
            collection: Collection::within(config.collect_ns),
        };
        // An error below drops the handle, which kills those already forked.
        handle.fork_all(&places, &common, seed)?;
        Ok(handle)
    }

    /// Forks one process after the other: for a worker, or for all workers of a spec of threads.
    ///
    /// What they need is made for a batch at once, because whatever this process writes between two forks stays with the
    /// earlier child as a copy of its own.
    fn fork_all(&mut self, places: &[Place], common: &[Common], seed: u64) -> Result<()> {
        let mut from = 0;
        while from < places.len() {
            let spec_idx = places[from].spec;
            let of_spec = places[from..].iter().take_while(|place| place.spec == spec_idx).count();
            let spec = &self.specs[spec_idx];
            let threads = spec.setup.clone_mode == CloneMode::Thread;
            let size = spec.work.worker_group_size().max(1) as usize;
            let count = match Links::descriptors(&spec.work) {
                descriptors if descriptors > 0 && !threads => {
                    of_spec.min(size * (BATCH_DESCRIPTORS / descriptors).max(1))
                }
                _ => of_spec,
            };
            let links = (0..count.div_ceil(size))
                .map(|_| Links::make(&spec.work))
                .collect::<io::Result<Vec<Links>>>()
                .context(|| format!("make the descriptors that worker {from} shares with its partners"))?;
            let shared = Arc::clone(&self.shared);
            let mut births = Vec::with_capacity(count);
            for idx in from..from + count {
                let links = &links[(idx - from) / size];
                births.push(birth(&shared, spec, (idx, &places[idx]), &common[spec_idx], links, seed)?);
            }
            if threads {
                let keep: Vec<_> = births.iter().flat_map(|birth| birth.keep.iter().copied()).collect();
                if let Some(first) = births.first_mut() {
                    first.keep = keep;
                    first.keep.sort_unstable();
                }
            }
            let mut inherited = Some(Arc::clone(&self.shared));
            let mut forks = births.chunks(if threads { count } else { 1 });
            let forked = forks.try_for_each(|crew| fork_crew(crew, &mut inherited));
            for birth in &births {
                let pid = shared.slot(birth.idx).get(Field::Pid) as i32;
                let (idx, position) = (birth.idx as u32, birth.position as u32);
                let who = Identity { pid, tid: pid, idx, group_idx: spec_idx as u32, position };
                if pid != 0 {
                    self.workers.push(Worker::new(who));
                }
            }
            forked?;
            drop(births);
            if threads {
                self.await_threads(from..from + count)?;
            }
            // Our copies of the groups' descriptors are closed here, so that the members see each other's end.
            from += count;
        }
        Ok(())
    }

    /// Waits until every thread is there, because only it knows its id.
    fn await_threads(&mut self, indices: Range<usize>) -> Result<()> {
        let deadline = time::monotonic_ns() + THREADS_NS;
        for idx in indices {
            let slot = self.shared.slot(idx);
            while slot.state() == State::Spawned {
                let pid = self.workers[idx].who.pid;
                if time::monotonic_ns() > deadline || process::has_ended(pid).context(|| "look at the threads")? {
                    return Err(Error::host(format!("cannot start the threads of worker {idx}")));
                }
                if let Err(error) = time::sleep_ns(NS_PER_MS) {
                    debug_assert_eq!(error.kind(), io::ErrorKind::Interrupted);
                }
            }
            self.workers[idx].who.tid = slot.get(Field::Tid) as i32;
        }
        Ok(())
    }

    /// What repeats every random choice of these workers, given or drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// One thread id per worker, from the moment of the spawn.
    pub fn tids(&self) -> Vec<i32> {
        self.workers.iter().map(|worker| worker.who.tid).collect()
    }

    /// The same under the name of those that think of processes.
    pub fn worker_pids(&self) -> Vec<i32> {
        self.tids()
    }

    /// Opens the gate. Doing it again changes nothing.
    pub fn start(&mut self) -> Result<()> {
        if self.started {
            return Ok(());
        }
        self.started = true;
        let sleepers = self.shared.gate().open(time::monotonic_ns());
        futex::wake(sleepers, u32::MAX).context(|| "wake the workers at the gate")?;
        Ok(())
    }

    /// Restricts one worker to these CPUs.
    pub fn set_affinity(&self, idx: usize, cpus: &CpuSet) -> Result<()> {
        let tid = self.task_for(idx, cpus)?;
        sched::set_affinity(tid, cpus).context(|| format!("restrict worker {idx} to CPUs {cpus}"))
    }

    /// The task of a worker that may be restricted to these CPUs.
    fn task_for(&self, worker: usize, cpus: &CpuSet) -> std::result::Result<i32, AffinityError> {
        match self.workers.get(worker).map(|worker| worker.who.tid) {
            None => Err(AffinityError::NoWorker { worker, workers: self.workers.len() }),
            Some(_) if cpus.is_empty() => Err(AffinityError::NoCpu { worker }),
            Some(tid) if tid <= 0 => Err(AffinityError::NoTask { worker, tid }),
            Some(tid) => Ok(tid),
        }
    }

    /// Outer loops done so far, per worker.
    pub fn snapshot_iterations(&self) -> Vec<u64> {
        (0..self.shared.workers()).map(|idx| self.shared.slot(idx).get(Field::Iterations)).collect()
    }
}

impl Common {
    fn of(config: &WorkloadConfig, spec: &WorkSpec) -> Result<Self> {
        // Pairs of one core are part of what the type is.
        let intent = match spec.work {
            WorkType::SmtSiblingSpin => &AffinityIntent::SmtSiblingPair,
            _ => &spec.setup.affinity,
        };
        let affinity = match intent {
            AffinityIntent::Inherit => ResolvedAffinity::None,
            intent => {
                let pool = match &config.pool {
                    Some(pool) => pool.clone(),
                    None => sched::affinity(0).context(|| "read the caller's CPUs")?,
                };
                affinity::resolve(intent, &pool, &Cpus::read(Path::new("/")))?
            }
        };
        Ok(Self { means: Means::gather(config, spec)?, affinity })
    }

    /// The CPUs of one worker.
    fn cpus(&self, place: &Place, idx: usize, seed: u64) -> Option<CpuMask> {
        let mut rng = Rng::of_worker(seed, place.spec, idx);
        let cpus = self.affinity.of_worker(idx, (place.nth, place.position), &mut |count| rng.below(count))?;
        Some(CpuMask::of(cpus.iter()))
    }
}

/// Every worker's place, in the order of their indices.
fn places(specs: &[WorkSpec]) -> Vec<Place> {
    let mut places = Vec::new();
    let mut group = 0;
    for (spec_idx, spec) in specs.iter().enumerate() {
        let size = spec.work.worker_group_size().max(1) as usize;
        for worker in 0..spec.workers as usize {
            let nth = worker / size;
            places.push(Place { spec: spec_idx, group: group + nth, position: worker % size, nth });
        }
        group += spec.workers as usize / size;
    }
    places
}

fn birth<'a>(
    shared: &'a Arc<Shared>,
    spec: &'a WorkSpec,
    (idx, place): (usize, &Place),
    common: &'a Common,
    links: &'a Links,
    seed: u64,
) -> Result<Birth<'a>> {
    Ok(Birth {
        shared,
        spec,
        policy: spec.work.own_policy(place.position as u32).unwrap_or_else(|| spec.setup.policy.clone()),
        idx,
        group: place.group,
        position: place.position,
        links,
        keep: links.kept_by(&spec.work, place.position),
        name: worker_name(&spec.work, idx)?,
        parent: process::id(),
        seed,
        cpus: common.cpus(place, idx, seed),
        policy_nodes: numa::build_nodemask(spec.setup.mem_policy.nodes().iter()),
        means: &common.means,
    })
}

/// What `ps`, /proc and the kernel log call a worker: `kw3-spin`. The probe schedulers know workers by `kw` and a digit.
fn worker_name(work: &WorkType, idx: usize) -> Result<CString> {
    let name = format!("kw{idx}-{}", work.cli_name());
    CString::new(name).map_err(|_| Error::internal(format!("the name of worker {idx} holds a zero byte")))
}

/// Forks with every signal blocked, so that none meets the child half made. Its id goes to the shared memory, because to write
/// anywhere else would cost the child a page.
fn fork_crew(crew: &[Birth<'_>], inherited: &mut Option<Arc<Shared>>) -> Result<()> {
    let Some(first) = crew.first() else { return Ok(()) };
    let mut fork = || -> io::Result<i32> {
        let before = signal::block_all()?;
        let forked = process::fork();
        if let Ok(Fork::Child) = forked {
            worker::run(crew, inherited.take());
        }
        signal::set_mask(&before)?;
        match forked? {
            Fork::Parent(pid) => Ok(pid),
            Fork::Child => process::exit_now(1),
        }
    };
    let attempt = || format!("fork worker {}", first.idx);
    let pid = fork().context(attempt)?;
    crew.iter().for_each(|birth| birth.shared.slot(birth.idx).set(Field::Pid, pid as u64));
    // The child does the same; whoever is first. It can only fail because the child has ended already.
    match process::set_own_group(pid) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error).context(attempt),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 would restrict the caller, and a negative number is nobody.
    #[test]
    fn worker_without_a_task_is_refused_by_its_own_error() {
        let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::SpinWait, 1)).unwrap();
        let one: CpuSet = sched::affinity(0).unwrap().iter().take(1).collect();
        let before = sched::affinity(0).unwrap();
        let true_tid = handle.workers[0].who.tid;
        assert_eq!(handle.task_for(0, &one), Ok(true_tid));
        for tid in [0, -1, -true_tid] {
            handle.workers[0].who.tid = tid;
            assert_eq!(handle.task_for(0, &one), Err(AffinityError::NoTask { worker: 0, tid }));
            let told = handle.set_affinity(0, &one).unwrap_err().to_string();
            assert!(told.contains(&format!("worker 0 has no task: its thread id is {tid}")), "{told}");
        }
        handle.workers[0].who.tid = true_tid;
        assert_eq!(handle.task_for(1, &one), Err(AffinityError::NoWorker { worker: 1, workers: 1 }));
        assert_eq!(handle.task_for(0, &CpuSet::new()), Err(AffinityError::NoCpu { worker: 0 }));
        assert_eq!(sched::affinity(0).unwrap(), before);
    }
}
