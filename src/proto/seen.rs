//! The machine as the guest's kernel shows it in sysfs, beside the machine that was asked for.
//!
//! Owns both pictures and what counts as a difference; leaves reading sysfs to guest/.
//! Invariant: equal pictures have no differences, and every difference names what was asked and what is there.

use super::cpuset::CpuSet;
use super::numa::Numa;
use super::topology::Topology;
use crate::units;
use crate::wire_struct;
use std::collections::BTreeSet;

/// What a node may lack of its memory: the channel's ring (1 MiB), the BIOS area below 1 MiB, an emulator's tables, and
/// room for more of the kind.
const MOST_MISSING_BYTES: u64 = 6 << 20;
/// Environment variable of PID 1, which the kernel makes of a word of its command line that it does not know: PID 1 brings up
/// the CPUs that the kernel left out, before it says that it is there.
pub const LATE_CPUS_VARIABLE: &str = "ktstr_late_cpus";
/// Differences that are told in one error.
const MOST_TOLD: usize = 4;

wire_struct! {
    /// One NUMA node.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct SeenNode {
        pub node: u32,
        pub cpus: CpuSet,
        /// Memory that the node has, whether the kernel manages it or keeps it for itself.
        pub memory_bytes: u64,
        /// To each node.
        pub distances: Vec<u32>,
    }
}

wire_struct! {
    /// A machine.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Seen {
        pub online: CpuSet,
        pub possible: CpuSet,
        /// CPUs of each core, ascending.
        pub cores: Vec<CpuSet>,
        /// CPUs of each last-level cache, ascending.
        pub llcs: Vec<CpuSet>,
        /// CPUs that tell no caches.
        pub cacheless: CpuSet,
        /// CPUs of each package, ascending: one for each node that has CPUs.
        pub packages: Vec<CpuSet>,
        /// CPUs of each die, ascending; empty for a kernel that shows none.
        pub dies: Vec<CpuSet>,
        /// The kernel makes packages and dies of the levels that CPUID tells, whatever the vendor; an older one goes by other
        /// leaves, too.
        pub reads_levels: bool,
        /// Empty for a kernel without NUMA.
        pub nodes: Vec<SeenNode>,
    }
}

impl Seen {
    /// The picture that a guest of this shape has to give.
    pub fn asked(topology: &Topology, numa: &Numa) -> Self {
        let cacheless = &topology.odd.cacheless;
        let dies: Vec<CpuSet> = (0..topology.llcs).map(|llc| topology.llc_cpus(llc)).collect();
        let llcs = dies.iter().map(|cpus| cpus.difference(cacheless));
        let node = |node: u32| SeenNode {
            node,
            cpus: topology.node_cpus(node),
            memory_bytes: numa.memory_bytes.get(node as usize).copied().unwrap_or(0),
            distances: numa.distances.get(node as usize).cloned().unwrap_or_default(),
        };
        Self {
            online: topology.all_cpus(),
            possible: CpuSet::first(topology.possible_cpus()),
            cores: topology.cores(),
            llcs: llcs.filter(|cpus| !cpus.is_empty()).collect(),
            cacheless: cacheless.clone(),
            packages: (0..topology.numa_nodes)
                .map(|node| topology.node_cpus(node))
                .filter(|cpus| !cpus.is_empty())
                .collect(),
            dies,
            reads_levels: true,
            // An empty node does not exist for a kernel.
            nodes: (0..numa.nodes(topology.numa_nodes))
                .map(node)
                .filter(|node| !node.cpus.is_empty() || node.memory_bytes > 0)
                .collect(),
        }
    }

    /// In one word where all parts are alike: `1n2l4c2t`; else the counts. Packages that are no nodes, and dies that are no
    /// LLCs, come behind it.
    pub fn shape(&self) -> String {
        let with_cpus = self.nodes.iter().filter(|node| !node.cpus.is_empty()).count().max(1);
        let mut shape = self.grid();
        if self.packages.len() != with_cpus {
            shape += &format!(", packages: {}", self.packages.len());
        }
        if self.reads_levels && self.cacheless.is_empty() && self.dies.len() != self.llcs.len() {
            shape += &format!(", dies: {}", self.dies.len());
        }
        shape
    }

    fn grid(&self) -> String {
        let sizes = |sets: &[CpuSet]| sets.iter().map(CpuSet::len).collect::<BTreeSet<_>>();
        let nodes = self.nodes.len().max(1);
        let (cores, llcs) = (sizes(&self.cores), sizes(&self.llcs));
        let alike = cores.len() == 1 && llcs.len() == 1 && self.cacheless.is_empty() && self.llcs.len() % nodes == 0;
        match (llcs.first(), cores.first()) {
            (Some(cpus), Some(threads)) if alike && cpus % threads == 0 => {
                format!("{nodes}n{}l{}c{threads}t", self.llcs.len(), cpus / threads)
            }
            _ => format!(
                "{} CPUs, {} cores, {} LLCs, {nodes} nodes",
                self.online.len(),
                self.cores.len(),
                self.llcs.len()
            ),
        }
    }

    /// What is there that was not asked for, and what is missing; none: the machine is as asked.
    pub fn differences(&self, asked: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut differ = |what: &str, asked: String, there: String| {
            let name = |text: String| if text.is_empty() { "none".to_owned() } else { text };
            if asked != there {
                found.push(format!("{what} {} instead of {}", name(there), name(asked)));
            }
        };
        differ("CPUs online", asked.online.to_string(), self.online.to_string());
        differ("CPUs possible", asked.possible.to_string(), self.possible.to_string());
        differ("cores", sets(&asked.cores, &self.cores), sets(&self.cores, &asked.cores));
        // A kernel that finds no caches on one CPU as it starts takes back what it showed of the others
        // (cacheinfo_sysfs_init, drivers/base/cacheinfo.c): all or nothing, both are what was asked.
        let all_hidden = !asked.cacheless.is_empty() && self.cacheless == self.online;
        let (llcs, cacheless) =
            if all_hidden { (&self.llcs, &self.cacheless) } else { (&asked.llcs, &asked.cacheless) };
        differ("LLCs", sets(llcs, &self.llcs), sets(&self.llcs, llcs));
        differ("CPUs without caches", cacheless.to_string(), self.cacheless.to_string());
        // Before Linux 6.9 a die of AMD's could be a package, and one CPU in each die of Intel's meant that none has
        // neighbours (match_die and has_mp, arch/x86/kernel/smpboot.c).
        let alone = asked.dies.iter().all(|die| die.len() == 1) && self.packages == asked.dies;
        if self.reads_levels || !alone {
            differ("packages", sets(&asked.packages, &self.packages), sets(&self.packages, &asked.packages));
        }
        let whole = self.dies.is_empty() || self.dies == asked.packages;
        if self.reads_levels || !whole {
            differ("dies", sets(&asked.dies, &self.dies), sets(&self.dies, &asked.dies));
        }
        // A kernel without NUMA shows no node, which is right for a machine of one.
        if self.nodes.is_empty() && asked.nodes.len() == 1 {
            return found;
        }
        let numbers = |nodes: &[SeenNode]| nodes.iter().map(|node| node.node).collect::<CpuSet>().to_string();
        differ("nodes", numbers(&asked.nodes), numbers(&self.nodes));
        // An image that another VMM boots knows nothing of its memory.
        let shared_out = asked.nodes.iter().any(|node| node.memory_bytes > 0);
        for there in &self.nodes {
            let Some(asked) = asked.nodes.iter().find(|node| node.node == there.node) else { continue };
            let node = there.node;
            differ(&format!("node {node} with CPUs"), asked.cpus.to_string(), there.cpus.to_string());
            let enough = asked.memory_bytes.saturating_sub(MOST_MISSING_BYTES)..=asked.memory_bytes;
            if shared_out && !enough.contains(&there.memory_bytes) {
                let (asked, there) = (units::size(asked.memory_bytes), units::size(there.memory_bytes));
                differ(&format!("node {node} with memory of"), asked, there);
            }
            let row = |row: &[u32]| row.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
            if !asked.distances.is_empty() {
                differ(&format!("node {node} at distances"), row(&asked.distances), row(&there.distances));
            }
        }
        found
    }

    /// Both shapes and the first differences; none: the machine is as asked.
    pub fn complaint(&self, asked: &Self) -> Option<String> {
        let found = self.differences(asked);
        if found.is_empty() {
            return None;
        }
        let more = match found.len().saturating_sub(MOST_TOLD) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let told = found[..found.len().min(MOST_TOLD)].join("; ");
        Some(format!("the guest is {} and {} was asked for: {told}{more}", self.shape(), asked.shape()))
    }
}

/// The sets that the other side does not have, so that a large machine's difference stays readable.
fn sets(sets: &[CpuSet], other: &[CpuSet]) -> String {
    const MOST: usize = 4;
    let other: BTreeSet<&CpuSet> = other.iter().collect();
    let own: Vec<String> = sets.iter().filter(|set| !other.contains(set)).map(CpuSet::to_string).collect();
    let more = if own.len() > MOST { " ..." } else { "" };
    own[..own.len().min(MOST)].join(" ") + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    const MIB: u64 = 1 << 20;

    fn asked(topology: &str, memory_mib: &[u64]) -> Seen {
        let topology: Topology = topology.parse().unwrap();
        let memory_bytes: Vec<u64> = memory_mib.iter().map(|mib| mib * MIB).collect();
        let sum = memory_bytes.iter().sum();
        let numa = Numa { memory_bytes, distances: vec![] }.settled(topology.numa_nodes, sum).unwrap();
        Seen::asked(&topology, &numa)
    }

    #[test]
    fn picture_of_what_is_asked_has_no_differences() {
        for (topology, memory) in [
            ("1n2l4c2t", &[256][..]),
            ("2n4l4c2t", &[128, 128, 64]),
            ("3n1+0+1l2c1t", &[64, 64, 64]),
            ("1n2l3+1c1t:spare2:nocache3", &[64]),
        ] {
            let seen = asked(topology, memory);
            assert_eq!(seen.complaint(&seen), None);
            assert_eq!(Seen::from_bytes(&seen.to_bytes()).unwrap(), seen);
        }
        let seen = asked("2n4l4c2t", &[128, 128, 64]);
        assert_eq!(
            seen.nodes[2],
            SeenNode { node: 2, cpus: CpuSet::new(), memory_bytes: 64 * MIB, distances: vec![20, 20, 10] }
        );
        assert_eq!(seen.shape(), "32 CPUs, 16 cores, 4 LLCs, 3 nodes");
        assert_eq!(asked("1n2l4c2t", &[64]).shape(), "1n2l4c2t");
        assert_eq!(asked("1n2l1c1t:nocache1", &[64]).llcs.len(), 1);
    }

    #[test]
    fn every_kind_of_difference_is_told_with_both_sides() {
        let right = asked("2n2l2c1t", &[64, 64]);
        let broken = |change: fn(&mut Seen), words: &[&str]| {
            let mut seen = right.clone();
            change(&mut seen);
            let complaint = seen.complaint(&right).unwrap_or_else(|| panic!("{words:?} passes"));
            assert!(complaint.contains("2n2l2c1t was asked for"), "{complaint}");
            words.iter().for_each(|word| assert!(complaint.contains(word), "{word}: {complaint}"));
        };
        broken(|seen| seen.online = CpuSet::first(3), &["CPUs online 0-2 instead of 0-3"]);
        broken(|seen| seen.possible = CpuSet::first(5), &["CPUs possible 0-4 instead of 0-3"]);
        broken(|seen| seen.llcs = vec![CpuSet::first(4)], &["1 LLCs", "LLCs 0-3 instead of 0-1 2-3"]);
        broken(|seen| seen.llcs.clear(), &["LLCs none instead of 0-1 2-3"]);
        broken(|seen| seen.cores.truncate(3), &["cores none instead of 3"]);
        broken(|seen| seen.cacheless = CpuSet::first(1), &["CPUs without caches 0 instead of none"]);
        broken(|seen| seen.packages = vec![CpuSet::first(4)], &["packages: 1 and", "packages 0-3 instead of 0-1 2-3"]);
        broken(|seen| seen.packages.clear(), &["packages: 0 and", "packages none instead of 0-1 2-3"]);
        broken(|seen| seen.dies = vec![CpuSet::first(4)], &["dies: 1 and", "dies 0-3 instead of 0-1 2-3"]);
        broken(|seen| seen.dies.clear(), &["dies: 0 and", "dies none instead of 0-1 2-3"]);
        broken(|seen| seen.nodes.truncate(1), &["nodes 0 instead of 0-1"]);
        broken(|seen| seen.nodes.clear(), &["nodes none instead of 0-1"]);
        broken(|seen| seen.nodes[1].cpus = CpuSet::new(), &["node 1 with CPUs none instead of 2-3"]);
        broken(|seen| seen.nodes[1].memory_bytes = 57 * MIB, &["node 1 with memory of 57 MiB instead of 64 MiB"]);
        broken(|seen| seen.nodes[1].memory_bytes = 65 * MIB, &["65 MiB instead of 64 MiB"]);
        broken(|seen| seen.nodes[0].distances = vec![10, 21], &["node 0 at distances 10 21 instead of 10 20"]);
    }

    /// Seen on 6.1: on an AMD CPU since Zen it takes a package for one die, on Intel's each CPU for a package where it is
    /// alone in its die. Even older ones show no dies.
    #[test]
    fn kernel_that_reads_no_levels_may_show_other_packages_and_dies() {
        let right = asked("2n4l2c1t", &[64, 64]);
        let shows = |dies: &[CpuSet], reads_levels| Seen { dies: dies.to_vec(), reads_levels, ..right.clone() };
        for dies in [&[][..], &right.packages] {
            assert_eq!(shows(dies, false).complaint(&right), None);
            assert!(shows(dies, true).complaint(&right).unwrap().contains("dies"));
        }
        assert_eq!(shows(&right.dies, false).complaint(&right), None);
        let halves = [CpuSet::first(2), (2..8).collect()];
        assert!(shows(&halves, false).complaint(&right).unwrap().contains("dies 2-7 instead of 2-3 4-5 6-7"));
        let single = |topology: &str, reads_levels| {
            let right = asked(topology, &[64, 64]);
            let packages = (0..4).map(|cpu| [cpu].into_iter().collect()).collect();
            Seen { packages, reads_levels, ..right.clone() }.complaint(&right)
        };
        assert_eq!(single("2n4l1c1t", false), None);
        assert!(single("2n4l1c1t", true).unwrap().contains("packages 0 1 2 3 instead of 0-1 2-3"));
        assert!(single("2n2l2c1t", false).unwrap().contains("packages"));
    }

    #[test]
    fn reserved_memory_and_a_kernel_without_numa_are_no_difference() {
        let right = asked("1n2l2c1t", &[256]);
        let mut seen = right.clone();
        seen.nodes[0].memory_bytes -= 5 * MIB;
        assert_eq!(seen.complaint(&right), None);
        seen.nodes.clear();
        assert_eq!(seen.complaint(&right), None);
    }

    #[test]
    fn kernel_that_hides_all_caches_for_one_is_no_difference() {
        let right = asked("1n2l2c1t:nocache3", &[256]);
        let mut seen = right.clone();
        (seen.llcs, seen.cacheless) = (vec![], CpuSet::first(4));
        assert_eq!(seen.complaint(&right), None);
        seen.cacheless = CpuSet::first(3);
        assert!(seen.complaint(&right).is_some());
    }

    #[test]
    fn difference_of_a_large_machine_stays_readable() {
        let right = asked("1n14l9c2t", &[256]);
        let seen = asked("252", &[256]);
        let complaint = seen.complaint(&right).unwrap();
        assert!(complaint.len() < 400 && complaint.contains("1n1l252c1t and 1n14l9c2t"), "{complaint}");
    }
}
