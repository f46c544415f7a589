//! A group of workers as their owner sees it: spawn, start, look, steer, and no orphan when it is dropped.
//!
//! Owns the fork and the list of workers; leaves stopping and collecting to collect, the child's side to worker.
//! Invariant: a dropped handle has killed its workers and waited for them, within a named time.

use super::collect::{Collection, Worker};
use super::config::WorkloadConfig;
use super::report::Identity;
use super::slot::Shared;
use super::worker::{self, Birth, Ends};
use crate::error::{Context, Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::WorkSpec;
use crate::proto::work::WorkType;
use crate::sys::process::Fork;
use crate::sys::{fd, futex, process, sched, signal, time};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
}

/// Two pipes between the members of one group: (read, write) ends of position 0's pipe to 1, and of 1's to 0.
type PipePair = [(OwnedFd, OwnedFd); 2];

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
        let groups = places.last().map_or(0, |last| last.group + 1);
        places.iter_mut().for_each(change);
        let kinds = specs.iter().map(|spec| spec.work.sample_kinds().len()).max().unwrap_or(0);
        let shared = Shared::new(places.len(), groups, kinds)
            .context(|| format!("map the memory shared with {} workers", places.len()))?;
        worker::install_panic_hook();
        let mut handle = Self {
            shared: Arc::new(shared),
            specs,
            workers: Vec::with_capacity(places.len()),
            started: false,
            collection: Collection::default(),
        };
        // An error below drops the handle, which kills those already forked.
        handle.fork_all(&places)?;
        Ok(handle)
    }

    fn fork_all(&mut self, places: &[Place]) -> Result<()> {
        let parent = process::id();
        let mut pair: Option<PipePair> = None;
        for (idx, place) in places.iter().enumerate() {
            let spec = &self.specs[place.spec];
            if place.position == 0 {
                // Our copies of the pair before are closed here, so that its members see each other's end.
                pair = pipes_of(&spec.work).context(|| format!("make the pipes of worker {idx}"))?;
            }
            let birth = Birth {
                shared: &self.shared,
                spec,
                idx,
                group: place.group,
                position: place.position,
                pipe: pair.as_ref().map(|pair| ends(pair, place.position)),
                name: worker_name(&spec.work, idx)?,
                parent,
            };
            let pid = fork_worker(&birth).context(|| format!("fork worker {idx}"))?;
            let who = Identity { pid, idx: idx as u32, group_idx: place.spec as u32 };
            self.workers.push(Worker::new(who));
        }
        Ok(())
    }

    /// One thread id per worker, from the moment of the spawn.
    pub fn tids(&self) -> Vec<i32> {
        self.workers.iter().map(|worker| worker.who.pid).collect()
    }

    /// The same: a worker is a process of one thread.
    pub fn worker_pids(&self) -> Vec<i32> {
        self.tids()
    }

    /// Opens the gate. Doing it again changes nothing.
    pub fn start(&mut self) -> Result<()> {
        if self.started {
            return Ok(());
        }
        self.started = true;
        self.shared.opened_ns().store(time::monotonic_ns(), Ordering::Relaxed);
        self.shared.gate().store(1, Ordering::Release);
        futex::wake(self.shared.gate(), u32::MAX).context(|| "wake the workers at the gate")?;
        Ok(())
    }

    /// Restricts one worker to these CPUs.
    pub fn set_affinity(&self, idx: usize, cpus: &CpuSet) -> Result<()> {
        let Some(worker) = self.workers.get(idx) else {
            let count = self.workers.len();
            return Err(Error::usage(format!("cannot set the affinity of worker {idx}: there are {count} workers")));
        };
        if cpus.is_empty() {
            return Err(Error::usage(format!("cannot set the affinity of worker {idx}: no CPU is named")));
        }
        sched::set_affinity(worker.who.pid, cpus).context(|| format!("restrict worker {idx} to CPUs {cpus}"))
    }

    /// Outer loops done so far, per worker.
    pub fn snapshot_iterations(&self) -> Vec<u64> {
        (0..self.shared.workers()).map(|idx| self.shared.slot(idx).get(super::slot::Field::Iterations)).collect()
    }
}

/// Every worker's place, in the order of their indices.
fn places(specs: &[WorkSpec]) -> Vec<Place> {
    let mut places = Vec::new();
    let mut group = 0;
    for (spec_idx, spec) in specs.iter().enumerate() {
        let size = spec.work.worker_group_size().max(1) as usize;
        for worker in 0..spec.workers as usize {
            places.push(Place { spec: spec_idx, group: group + worker / size, position: worker % size });
        }
        group += spec.workers as usize / size;
    }
    places
}

fn pipes_of(work: &WorkType) -> io::Result<Option<PipePair>> {
    match work {
        WorkType::PipeIo { .. } => Ok(Some([fd::pipe()?, fd::pipe()?])),
        _ => Ok(None),
    }
}

/// The ends that belong to a position: it writes into its own pipe and reads from its partner's.
fn ends(pair: &PipePair, position: usize) -> Ends<'_> {
    Ends { read: &pair[1 - position].0, write: &pair[position].1 }
}

/// What `ps`, /proc and the kernel log call a worker: `kw3-spin`. The probe schedulers know workers by `kw` and a digit.
fn worker_name(work: &WorkType, idx: usize) -> Result<CString> {
    let name = format!("kw{idx}-{}", work.cli_name());
    CString::new(name).map_err(|_| Error::internal(format!("the name of worker {idx} holds a zero byte")))
}

/// Forks with every signal blocked, so that none meets the child half made.
fn fork_worker(birth: &Birth<'_>) -> io::Result<i32> {
    let before = signal::block_all()?;
    let forked = process::fork();
    if let Ok(Fork::Child) = forked {
        worker::run(birth);
    }
    signal::set_mask(&before)?;
    match forked? {
        Fork::Parent(pid) => {
            // The child does the same; whoever is first. It can only fail because the child has ended already.
            match process::set_own_group(pid) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
                _ => Ok(pid),
            }
        }
        Fork::Child => process::exit_now(1),
    }
}
