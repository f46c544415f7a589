//! What a type needs beyond its own process: shared words, descriptors, disks, nodes, cgroups, a user's function.
//!
//! Owns gathering these before the fork; leaves using them to the loops.
//! Invariant: everything that allocates or may fail for the caller's reasons happens here, in the parent.

use super::custom::{self, CustomFn};
use super::{alu, chain, futex, queue};
use crate::error::{Context, Error, Result};
use crate::proto::plan::{MemPolicy, WorkSpec};
use crate::proto::work::{AluWidth, WakeMechanism, WorkType};
use crate::sys::sched::CpuMask;
use crate::sys::{fd, poll};
use crate::workload::WorkloadConfig;
use crate::workload::affinity::Cpus;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Words that the members of one group share: a futex word with room around it, then eight stamps.
const USUAL_WORDS: usize = 16;

/// There where the machine has more than one NUMA node.
const SECOND_NODE: &str = "/sys/devices/system/node/node1";

/// The shared words of one group.
pub fn group_words(work: &WorkType) -> usize {
    match work {
        WorkType::WakeChain { depth, .. } => chain::words(*depth as usize),
        WorkType::ProducerConsumerImbalance { queue_depth_target, .. } => queue::words(*queue_depth_target),
        WorkType::FutexFanOut { .. }
        | WorkType::FanOutCompute { .. }
        | WorkType::ThunderingHerd { .. }
        | WorkType::AsymmetricWaker { .. }
        | WorkType::EpollStorm { .. } => futex::words(work.worker_group_size() as usize),
        _ => USUAL_WORDS,
    }
}

/// The descriptors that the members of one group share.
#[derive(Debug, Default)]
pub struct Links {
    /// (read, write) ends.
    pipes: Vec<(OwnedFd, OwnedFd)>,
    /// An eventfd, and the epoll instance that watches it.
    events: Option<(OwnedFd, OwnedFd)>,
}

/// A worker's ends: what it reads from, and what it writes into.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    pub read: &'a OwnedFd,
    pub write: &'a OwnedFd,
}

impl Links {
    pub fn make(work: &WorkType) -> io::Result<Self> {
        let pipes = |count: u32| (0..count).map(|_| fd::pipe()).collect::<io::Result<Vec<_>>>();
        Ok(match work {
            WorkType::PipeIo { .. } | WorkType::CachePipe { .. } => Self { pipes: pipes(2)?, events: None },
            WorkType::WakeChain { depth, wake: WakeMechanism::Pipe, .. } => {
                Self { pipes: pipes(*depth)?, events: None }
            }
            WorkType::EpollStorm { .. } => {
                let event = fd::eventfd()?;
                let epoll = poll::epoll_of(&event)?;
                Self { pipes: Vec::new(), events: Some((event, epoll)) }
            }
            _ => Self::default(),
        })
    }

    /// How many descriptors `make` opens.
    pub fn descriptors(work: &WorkType) -> usize {
        match work {
            WorkType::PipeIo { .. } | WorkType::CachePipe { .. } => 4,
            WorkType::WakeChain { depth, wake: WakeMechanism::Pipe, .. } => 2 * *depth as usize,
            WorkType::EpollStorm { .. } => 2,
            _ => 0,
        }
    }

    /// The pipe from the member before, and the one to the member after. With two members each is both.
    pub fn ends(&self, position: usize) -> Option<Ends<'_>> {
        let next = (position + 1) % self.pipes.len().max(1);
        Some(Ends { read: &self.pipes.get(position)?.0, write: &self.pipes.get(next)?.1 })
    }

    /// The eventfd, and the epoll instance.
    pub fn events(&self) -> Option<(&OwnedFd, &OwnedFd)> {
        self.events.as_ref().map(|(event, epoll)| (event, epoll))
    }

    /// What this member keeps open, in ascending order.
    pub fn kept_by(&self, work: &WorkType, position: usize) -> Vec<RawFd> {
        let mut keep: Vec<RawFd> = match (work, self.ends(position), self.events()) {
            (_, Some(ends), _) => vec![ends.read.as_raw_fd(), ends.write.as_raw_fd()],
            (_, None, Some((event, epoll))) => vec![event.as_raw_fd(), epoll.as_raw_fd()],
            (_, None, None) => Vec::new(),
        };
        keep.sort_unstable();
        keep
    }
}

/// What the workers of one spec need of the machine.
#[derive(Default)]
pub struct Means {
    /// A disk whose contents may be destroyed.
    pub disk: Option<CString>,
    /// Where a worker's temporary file goes.
    pub temporary: String,
    /// Nodes that have CPUs.
    pub nodes: Vec<(u32, CpuMask)>,
    /// Every node that is there.
    pub all_nodes: Vec<u32>,
    /// Its pages by node are of interest.
    pub tell_pages: bool,
    /// Parent and name of the workers' cgroup.
    pub cgroup: Option<(String, String)>,
    /// The width that the CPU has of the one asked for.
    pub width: Option<AluWidth>,
    pub custom: Option<CustomFn>,
}

impl Means {
    pub fn gather(config: &WorkloadConfig, spec: &WorkSpec) -> Result<Self> {
        // With one node there is nothing to tell, and a thousand workers would read a thousand files for it.
        let tell_pages = spec.setup.mem_policy != MemPolicy::Default || Path::new(SECOND_NODE).exists();
        let mut means = Self { tell_pages, ..Self::default() };
        match &spec.work {
            WorkType::IoSyncWrite | WorkType::IoRandRead | WorkType::IoConvoy | WorkType::Sequence { .. } => {
                let disk = config.scratch_disk.as_ref().filter(|path| path.exists());
                let text = |path: &PathBuf| CString::new(path.as_os_str().as_bytes());
                means.disk = disk.map(text).transpose().map_err(|_| Error::usage("a disk's name holds a zero byte"))?;
                means.temporary = std::env::temp_dir().display().to_string();
            }
            WorkType::NumaWorkingSetSweep { .. } | WorkType::NumaMigrationChurn { .. } => {
                let cpus = Cpus::read(Path::new("/"));
                means.all_nodes = cpus.nodes.iter().map(|(node, _)| *node).collect();
                let with_cpus = cpus.nodes.iter().filter(|(_, cpus)| !cpus.is_empty());
                means.nodes = with_cpus.map(|(node, cpus)| (*node, CpuMask::of(cpus.iter()))).collect();
                means.tell_pages = true;
            }
            WorkType::CgroupChurn { .. } => means.cgroup = Some(cgroup(config)?),
            WorkType::AluHot { width } => means.width = Some(alu::available(*width)),
            WorkType::Custom { name } => {
                means.custom = Some(custom::find(name).ok_or_else(|| {
                    Error::usage(format!(
                        "cannot use the custom work '{name}': no function is registered under this name"
                    ))
                })?);
            }
            _ => {}
        }
        Ok(means)
    }
}

/// The workers' cgroup in two parts: where the configuration says, or where the caller itself is.
fn cgroup(config: &WorkloadConfig) -> Result<(String, String)> {
    let dir = match &config.cgroup_dir {
        Some(dir) => dir.clone(),
        None => own_cgroup()?,
    };
    match (dir.parent().and_then(Path::to_str), dir.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => Ok((parent.into(), name.into())),
        _ => Err(Error::usage(format!("cannot make cgroups beside {}: it has no parent", dir.display()))),
    }
}

/// The caller's cgroup v2 directory.
fn own_cgroup() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").context(|| "read /proc/mounts")?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let groups = std::fs::read_to_string("/proc/self/cgroup").context(|| "read /proc/self/cgroup")?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    match (mount.and_then(|line| line.split(' ').nth(1)), path) {
        (Some(mount), Some(path)) => Ok(Path::new(mount).join(path)),
        _ => Err(Error::cannot_judge("cannot make cgroups: no cgroup2 file system is mounted")),
    }
}
