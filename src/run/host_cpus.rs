//! The CPUs of this host that may be used: their last-level cache, core and node.
//!
//! Owns reading them from sysfs; leaves choosing among them to perf.rs.
//! Invariant: what sysfs does not tell makes all CPUs look alike, never a CPU vanish.

use crate::proto::cpuset::CpuSet;
use std::fs;
use std::path::Path;

/// Where the kernel shows its CPUs and nodes.
pub const SYSFS: &str = "/sys/devices/system";

/// One CPU of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCpu {
    pub cpu: u32,
    /// The lowest CPU that shares its last-level cache.
    pub llc: u32,
    /// The lowest CPU that shares its core.
    pub core: u32,
    /// Which thread of its core it is.
    pub thread: u32,
    pub node: u32,
}

/// The CPUs of `allowed`, in order, as sysfs under `root` describes them.
pub fn read(root: &Path, allowed: &CpuSet) -> Vec<HostCpu> {
    let list = |path: String| fs::read_to_string(root.join(path)).ok()?.trim().parse::<CpuSet>().ok();
    let nodes: Vec<(u32, CpuSet)> = list("node/online".into())
        .into_iter()
        .flat_map(|online| online.iter().collect::<Vec<_>>())
        .filter_map(|node| Some((node, list(format!("node/node{node}/cpulist"))?)))
        .collect();
    let of = |cpu: u32| {
        let cache = |index: u32| list(format!("cpu/cpu{cpu}/cache/index{index}/shared_cpu_list"));
        // The highest index is the last level.
        let llc = (0..).map_while(cache).last();
        let core = list(format!("cpu/cpu{cpu}/topology/thread_siblings_list")).unwrap_or_default();
        HostCpu {
            cpu,
            // Where no cache is told, as in some VMs, all CPUs share one.
            llc: llc.and_then(|cpus| cpus.iter().next()).unwrap_or(0),
            core: core.iter().next().unwrap_or(cpu),
            thread: core.iter().position(|sibling| sibling == cpu).unwrap_or(0) as u32,
            node: nodes.iter().find(|(_, cpus)| cpus.contains(cpu)).map_or(0, |(node, _)| *node),
        }
    };
    allowed.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_cores_and_nodes_are_read_and_absence_makes_all_alike() {
        let root = std::env::temp_dir().join(format!("ktstr-host-cpus-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (cpu, llc, core) in [(0, "0-1", "0-1"), (1, "0-1", "0-1"), (4, "4-5", "4")] {
            write(&format!("cpu/cpu{cpu}/cache/index0/shared_cpu_list"), core);
            write(&format!("cpu/cpu{cpu}/cache/index1/shared_cpu_list"), llc);
            write(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), core);
        }
        write("node/online", "0-1\n");
        write("node/node0/cpulist", "0-3\n");
        write("node/node1/cpulist", "4-7\n");
        let cpus = read(&root, &[0, 1, 4].into_iter().collect());
        let known = |cpu, llc, core, thread, node| HostCpu { cpu, llc, core, thread, node };
        assert_eq!(cpus, [known(0, 0, 0, 0, 0), known(1, 0, 0, 1, 0), known(4, 4, 4, 0, 1)]);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(read(&root, &[2].into_iter().collect()), [known(2, 0, 2, 0, 0)]);
    }
}
