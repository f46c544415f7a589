//! How many VMs fit on this host at once: its CPUs and its memory, less what others use and what limits forbid.
//!
//! Owns the reading and the arithmetic; leaves starting to `engine`.
//! Invariant: a run that is larger than the whole host still runs, alone.

use crate::error::{Context, Result};
use crate::sys::sched;
use crate::units::MIB;
use std::fs;
use std::path::{Path, PathBuf};

/// Left to the host: what its own work needs while VMs come and go.
const RESERVE_BYTES: u64 = 256 * MIB;
/// And of a large host this part.
const RESERVE_PART: u64 = 10;
/// A limit of cgroup v1 that means none is the largest multiple of the page size (mm/page_counter.c); nothing real comes near.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// What one VM takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub cpus: u32,
    pub memory_bytes: u64,
    /// It takes CPUs of its choice for itself, as any other of its kind would: nothing runs beside it.
    pub alone: bool,
    /// From its start to the time at which it is killed from outside.
    pub limit_ns: u64,
}

/// What all VMs together may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub cpus: u32,
    pub memory_bytes: u64,
    /// VMs at once.
    pub jobs: u32,
}

impl Budget {
    /// This host's, now.
    pub fn of_host(jobs: Option<u32>) -> Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo").context(|| "read /proc/meminfo")?;
        let allowed = sched::affinity(0).context(|| "read the CPUs that this process may use")?.len() as u32;
        let cgroups = Cgroups::of_process();
        let free = available_bytes(&meminfo).min(cgroups.memory_left().unwrap_or(u64::MAX));
        Ok(Self {
            cpus: allowed.min(cgroups.cpus().unwrap_or(u32::MAX)).max(1),
            memory_bytes: free.saturating_sub(RESERVE_BYTES.max(free / RESERVE_PART)),
            jobs: jobs.unwrap_or(u32::MAX).max(1),
        })
    }

    /// Whether one more fits beside those that run.
    pub fn fits(&self, running: &[Cost], next: Cost) -> bool {
        let cpus: u64 = running.iter().chain([&next]).map(|cost| u64::from(cost.cpus)).sum();
        let memory = running.iter().chain([&next]).fold(0u64, |sum, cost| sum.saturating_add(cost.memory_bytes));
        let together = !next.alone && !running.iter().any(|cost| cost.alone);
        running.is_empty()
            || (together
                && running.len() < self.jobs as usize
                && cpus <= u64::from(self.cpus)
                && memory <= self.memory_bytes)
    }
}

fn available_bytes(meminfo: &str) -> u64 {
    let field = |name: &str| -> Option<u64> {
        meminfo.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok())
    };
    // Linux before 3.14 has no MemAvailable.
    field("MemAvailable:").or_else(|| field("MemFree:")).map_or(u64::MAX, |kib| kib.saturating_mul(1024))
}

/// The cgroups of this process: (directory, files of version 2), from its own up to the root.
struct Cgroups {
    memory: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
    root: PathBuf,
}

impl Cgroups {
    fn of_process() -> Self {
        // A host without cgroups limits nothing.
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::read(&own, Path::new("/sys/fs/cgroup"))
    }

    /// From the text of /proc/PID/cgroup (cgroups(7)): `0::/path`, or `4:memory:/path` for version 1.
    fn read(own: &str, root: &Path) -> Self {
        let mut cgroups = Self { memory: Vec::new(), cpu: Vec::new(), root: root.to_owned() };
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let unified = controllers.is_empty();
            let has = |name: &str| unified || controllers.split(',').any(|controller| controller == name);
            let mount = |name: &str| match (unified, root.join("unified").exists()) {
                (true, false) => root.to_owned(),
                (true, true) => root.join("unified"),
                (false, _) => root.join(name),
            };
            let up = |mount: PathBuf| -> Vec<PathBuf> {
                let path = Path::new(path.trim_start_matches('/'));
                path.ancestors().map(|part| mount.join(part)).collect()
            };
            if has("memory") {
                cgroups.memory.extend(up(mount("memory")));
            }
            if has("cpu") {
                cgroups.cpu.extend(up(mount("cpu")));
            }
        }
        cgroups
    }

    /// The least that any cgroup leaves.
    fn memory_left(&self) -> Option<u64> {
        let left = |directory: &PathBuf, limit: &str, used: &str| {
            let limit = number(&directory.join(limit)).filter(|bytes| *bytes < NO_LIMIT_BYTES)?;
            Some(limit.saturating_sub(number(&directory.join(used)).unwrap_or(0)))
        };
        let of = |directory: &PathBuf| {
            left(directory, "memory.max", "memory.current")
                .or_else(|| left(directory, "memory.limit_in_bytes", "memory.usage_in_bytes"))
        };
        self.inside(&self.memory).filter_map(of).min()
    }

    /// Whole CPUs of the smallest quota, at least one.
    fn cpus(&self) -> Option<u32> {
        let of = |directory: &PathBuf| {
            let v2 = fs::read_to_string(directory.join("cpu.max")).ok().and_then(|text| {
                let mut words = text.split_whitespace();
                Some((words.next()?.parse::<u64>().ok()?, words.next()?.parse::<u64>().ok()?))
            });
            let v1 =
                || Some((number(&directory.join("cpu.cfs_quota_us"))?, number(&directory.join("cpu.cfs_period_us"))?));
            v2.or_else(v1).filter(|(_, period)| *period > 0).map(|(quota, period)| (quota / period).max(1) as u32)
        };
        self.inside(&self.cpu).filter_map(of).min()
    }

    /// A path with `..`, as a cgroup namespace shows what lies above it, leads elsewhere.
    fn inside<'a>(&'a self, directories: &'a [PathBuf]) -> impl Iterator<Item = &'a PathBuf> {
        directories
            .iter()
            .filter(|path| path.starts_with(&self.root) && !path.components().any(|part| part.as_os_str() == ".."))
    }
}

/// A file of one number; none where it is absent or says `max` or -1.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(cpus: u32, mib: u64) -> Cost {
        Cost { cpus, memory_bytes: mib * MIB, ..Cost::default() }
    }

    #[test]
    fn run_that_takes_its_cpus_for_itself_has_no_other_beside_it() {
        let budget = Budget { cpus: 64, memory_bytes: 1024 * MIB, jobs: 64 };
        let alone = Cost { alone: true, ..cost(1, 1) };
        assert!(budget.fits(&[], alone));
        assert!(!budget.fits(&[cost(1, 1)], alone) && !budget.fits(&[alone], cost(1, 1)));
        assert!(!budget.fits(&[alone], alone));
    }

    #[test]
    fn vms_fit_by_cpus_memory_and_count() {
        let budget = Budget { cpus: 4, memory_bytes: 1024 * MIB, jobs: 3 };
        assert!(budget.fits(&[cost(2, 256)], cost(2, 256)));
        assert!(!budget.fits(&[cost(2, 256)], cost(3, 256)));
        assert!(!budget.fits(&[cost(1, 512)], cost(1, 600)));
        assert!(!budget.fits(&[cost(1, 1); 3], cost(1, 1)));
        assert!(budget.fits(&[], cost(64, 999_999)), "too large a VM runs alone");
    }

    #[test]
    fn host_has_at_least_one_cpu_and_some_memory() {
        let budget = Budget::of_host(None).unwrap();
        assert!(budget.cpus >= 1 && budget.memory_bytes > 0 && budget.jobs > 1000, "{budget:?}");
        assert_eq!(Budget::of_host(Some(2)).unwrap().jobs, 2);
    }

    #[test]
    fn available_memory_is_read() {
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemFree:  1 kB\nMemAvailable:    4 kB\n"), 4096);
        assert_eq!(available_bytes("MemFree: 1 kB\n"), 1024);
    }

    #[test]
    fn cgroup_limits_count_at_every_level() {
        let root = std::env::temp_dir().join(format!("ktstr-budget-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000000\n");
        write("a/memory.current", "400000\n");
        write("a/b/cpu.max", "350000 100000\n");
        write("a/cpu.max", "max 100000\n");
        let unified = Cgroups::read("0::/a/b\n", &root);
        assert_eq!((unified.memory_left(), unified.cpus()), (Some(600_000), Some(3)));
        write("memory/c/memory.limit_in_bytes", "5000\n");
        write("memory/c/memory.usage_in_bytes", "2000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("cpu/c/cpu.cfs_quota_us", "50000\n");
        write("cpu/c/cpu.cfs_period_us", "100000\n");
        write("cpu/cpu.cfs_quota_us", "-1\n");
        let first = Cgroups::read("4:memory:/c\n3:cpu,cpuacct:/c\n1:name=systemd:/c\n", &root);
        assert_eq!((first.memory_left(), first.cpus()), (Some(3000), Some(1)));
        let outside = Cgroups::read("0::/../../x\n", &root);
        assert_eq!((outside.memory_left(), outside.cpus()), (None, None));
        fs::remove_dir_all(root).unwrap();
    }
}
