//! Reads the machine back from sysfs, and refuses one that is not what was asked for.
//!
//! Owns the files and their form; leaves what counts as a difference to proto/.
//! Invariant: what cannot be read is left out of the picture, so that it shows as a difference.

use crate::error::{Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::Plan;
use crate::proto::seen::{Seen, SeenNode};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Bytes of a page on x86, which /proc/zoneinfo counts in.
const PAGE_BYTES: u64 = 4096;
/// Caches of a CPU in sysfs: L1 data and instructions, L2, L3; room for more.
const MOST_CACHES: u32 = 8;

/// Since then a kernel reads the levels of AMD's leaf 0x80000026 as those of Intel's leaf 0x1F, and goes by nothing else
/// (arch/x86/kernel/cpu/topology_ext.c). Before, a die of AMD's was what leaf 0x8000001E calls a node.
const READS_LEVELS_SINCE: (u32, u32) = (6, 9);

/// What was asked for must be what is there, or the numbers would be another machine's.
pub fn check(plan: &Plan, seen: &Seen) -> Result<()> {
    match seen.complaint(&Seen::asked(&plan.topology, &plan.numa)) {
        None => Ok(()),
        Some(complaint) => Err(Error::cannot_judge(complaint)
            .hint("a word of --cmdline such as maxcpus= or numa=off, or the kernel's configuration, may be why")),
    }
}

/// The machine, below a root directory that has `sys` and `proc`.
pub fn read(root: &Path) -> Seen {
    let cpus = root.join("sys/devices/system/cpu");
    let online = list(&cpus.join("online"));
    let (mut cores, mut llcs, mut cacheless) = (BTreeSet::new(), BTreeSet::new(), CpuSet::new());
    let (mut packages, mut dies) = (BTreeSet::new(), BTreeSet::new());
    for cpu in online.iter() {
        let directory = cpus.join(format!("cpu{cpu}"));
        cores.insert(first_first(&list(&directory.join("topology/thread_siblings_list"))));
        // By the older name of package_cpus_list, which every kernel has.
        packages.insert(first_first(&list(&directory.join("topology/core_siblings_list"))));
        let die = directory.join("topology/die_cpus_list");
        if die.exists() {
            dies.insert(first_first(&list(&die)));
        }
        match last_cache(&directory.join("cache")) {
            Some(sharing) => drop(llcs.insert(first_first(&sharing))),
            None => drop(cacheless.insert(cpu)),
        }
    }
    let sets = |sets: BTreeSet<(u32, CpuSet)>| sets.into_iter().map(|(_, set)| set).collect();
    Seen {
        possible: list(&cpus.join("possible")),
        cores: sets(cores),
        llcs: sets(llcs),
        cacheless,
        packages: sets(packages),
        dies: sets(dies),
        reads_levels: release(&text(&root.join("proc/sys/kernel/osrelease"))) >= Some(READS_LEVELS_SINCE),
        nodes: nodes(root),
        online,
    }
}

/// Orders sets by their first CPU.
fn first_first(set: &CpuSet) -> (u32, CpuSet) {
    (set.iter().next().unwrap_or(0), set.clone())
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A list of CPUs, empty where there is none.
pub(super) fn list(path: &Path) -> CpuSet {
    text(path).parse().unwrap_or_default()
}

/// The first two numbers of a kernel's release.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Who shares the cache of the highest level; none where the CPU tells no caches.
fn last_cache(directory: &Path) -> Option<CpuSet> {
    let level = |index: &u32| text(&directory.join(format!("index{index}/level"))).parse::<u32>().ok();
    let index = (0..MOST_CACHES).map_while(|index| Some((level(&index)?, index))).max()?.1;
    Some(list(&directory.join(format!("index{index}/shared_cpu_list"))))
}

fn nodes(root: &Path) -> Vec<SeenNode> {
    let directory = root.join("sys/devices/system/node");
    let memory = present_bytes(&text(&root.join("proc/zoneinfo")));
    let node = |node: u32| {
        let directory = directory.join(format!("node{node}"));
        let distances = text(&directory.join("distance"));
        SeenNode {
            node,
            cpus: list(&directory.join("cpulist")),
            memory_bytes: memory.get(&node).copied().unwrap_or(0),
            distances: distances.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        }
    };
    list(&directory.join("online")).iter().map(node).collect()
}

/// Memory of each node: the `present` pages of its zones in /proc/zoneinfo, which count what the kernel itself lies in.
fn present_bytes(zoneinfo: &str) -> BTreeMap<u32, u64> {
    let mut bytes = BTreeMap::new();
    let mut node = None;
    for line in zoneinfo.lines() {
        if let Some(rest) = line.strip_prefix("Node ") {
            node = rest.split(',').next().and_then(|number| number.trim().parse::<u32>().ok());
        } else if let (Some(pages), Some(node)) = (line.trim().strip_prefix("present "), node) {
            *bytes.entry(node).or_insert(0) += pages.trim().parse::<u64>().unwrap_or(0) * PAGE_BYTES;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A machine of two nodes, each one package and one LLC of two cores; CPU 3 tells no caches.
    fn machine(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("ktstr-sysfs-{name}-{}", std::process::id()));
        let put = |path: &str, content: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        };
        put("sys/devices/system/cpu/online", "0-3");
        put("sys/devices/system/cpu/possible", "0-5");
        for cpu in 0..4 {
            let directory = format!("sys/devices/system/cpu/cpu{cpu}");
            put(&format!("{directory}/topology/thread_siblings_list"), &cpu.to_string());
            put(&format!("{directory}/topology/core_siblings_list"), ["0-1", "2-3"][cpu / 2]);
            put(&format!("{directory}/topology/die_cpus_list"), ["0-1", "2-3"][cpu / 2]);
            if cpu < 3 {
                for (index, level) in [1, 1, 2, 3].into_iter().enumerate() {
                    let shared = if level == 3 { ["0-1", "0-1", "2"][cpu] } else { ["0", "1", "2"][cpu] };
                    put(&format!("{directory}/cache/index{index}/level"), &level.to_string());
                    put(&format!("{directory}/cache/index{index}/shared_cpu_list"), shared);
                }
            }
        }
        put("sys/devices/system/node/online", "0-1");
        for (node, (cpus, distance)) in [("0-1", "10 21"), ("2-3", "21 10")].into_iter().enumerate() {
            put(&format!("sys/devices/system/node/node{node}/cpulist"), cpus);
            put(&format!("sys/devices/system/node/node{node}/distance"), distance);
        }
        let zone = |node: u32, zone: &str, present: u64| {
            format!(
                "Node {node}, zone {zone:>8}\n  pages free     12\n        spanned  4095\n        present  {present}\n"
            )
        };
        put("proc/sys/kernel/osrelease", "6.12.4-cloud");
        put("proc/zoneinfo", &(zone(0, "DMA", 3998) + &zone(0, "DMA32", 12000) + &zone(1, "DMA32", 16384)));
        root
    }

    #[test]
    fn machine_is_read_whole() {
        let root = machine("whole");
        let seen = read(&root);
        assert_eq!((seen.online.to_string(), seen.possible.to_string()), ("0-3".into(), "0-5".into()));
        assert_eq!(seen.cores.len(), 4);
        let llcs: Vec<String> = seen.llcs.iter().map(CpuSet::to_string).collect();
        assert_eq!((llcs, seen.cacheless.to_string()), (vec!["0-1".to_owned(), "2".into()], "3".into()));
        let two: Vec<CpuSet> = ["0-1", "2-3"].map(|cpus| cpus.parse().unwrap()).into();
        assert_eq!((&seen.packages, &seen.dies, seen.reads_levels), (&two, &two, true));
        assert_eq!(seen.nodes[0].memory_bytes, (3998 + 12000) * 4096);
        assert_eq!(seen.nodes[1].memory_bytes, 64 << 20);
        assert_eq!(seen.nodes[1].distances, [21, 10]);
        fs::remove_dir_all(root).unwrap();
    }

    /// All else is right: threads, caches, nodes.
    #[test]
    fn package_or_die_alone_is_a_difference_with_both_shapes() {
        let root = machine("alone");
        let right = read(&root);
        let told = |file: &str, lists: [&str; 4]| {
            for (cpu, list) in lists.into_iter().enumerate() {
                fs::write(root.join(format!("sys/devices/system/cpu/cpu{cpu}/topology/{file}")), list).unwrap();
            }
            read(&root).complaint(&right)
        };
        let packages = told("core_siblings_list", ["0-3"; 4]).unwrap();
        let shape = right.shape();
        assert!(
            packages.contains(&format!("the guest is {shape}, packages: 1 and {shape} was asked for")),
            "{packages}"
        );
        assert!(packages.contains("packages 0-3 instead of 0-1 2-3"), "{packages}");
        assert_eq!(told("core_siblings_list", ["0-1", "0-1", "2-3", "2-3"]), None);
        let dies = told("die_cpus_list", ["0-1", "0-1", "2", "3"]).unwrap();
        assert!(dies.contains(&format!("{shape} was asked for: dies 2 3 instead of 2-3")), "{dies}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn levels_are_read_by_kernels_since_6_9() {
        for (text, reads) in [("6.8.12", false), ("6.9.0-rc1", true), ("7.0.4+deb13", true), ("10", false), ("", false)]
        {
            assert_eq!(release(text) >= Some(READS_LEVELS_SINCE), reads, "{text}");
        }
    }

    #[test]
    fn file_that_is_missing_is_a_hole_in_the_picture() {
        let root = machine("hole");
        let right = read(&root);
        fs::remove_file(root.join("sys/devices/system/cpu/cpu1/topology/thread_siblings_list")).unwrap();
        assert!(read(&root).complaint(&right).unwrap().contains("cores"));
        fs::remove_dir_all(root.join("sys/devices/system/node")).unwrap();
        assert!(read(&root).complaint(&right).unwrap().contains("nodes none instead of 0-1"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(read(&root), Seen::default());
    }
}
