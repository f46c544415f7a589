//! The CPU topology that a test declares: nodes, LLCs, cores, threads, as `1n2l4c2t`, and what is odd about it.
//!
//! Owns the numbers, their text form and their arithmetic; leaves memory and distances to `numa`, making it true to vmm/
//! and run/.
//! Invariant: there is at least one CPU; CPUs are numbered node by node, LLC by LLC, core by core, thread by thread.

use super::cpuset::CpuSet;
use super::presets;
use crate::wire_struct;
use std::fmt;
use std::str::FromStr;

/// Most CPUs a guest may have: KVM's own limit on x86 is 4096 (KVM_MAX_VCPUS, arch/x86/include/asm/kvm_host.h).
pub const MAX_CPUS: u32 = 4096;
/// Most NUMA nodes: MAX_NUMNODES of small kernel configurations (NODES_SHIFT 6, arch/x86/Kconfig).
pub const MAX_NODES: u32 = 64;
/// Unused bits below each core in the APIC ids: with more, ids of a large guest leave KVM's range (KVM_MAX_VCPU_IDS).
const MAX_SPARSE_BITS: u32 = 8;

wire_struct! {
    /// What a plain grid of nodes, LLCs, cores and threads cannot say. Empty for ordinary machines.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Odd {
        /// LLCs of each node, where nodes differ; 0: a node without CPUs.
        pub llcs_of_node: Vec<u32>,
        /// Cores of each LLC, where LLCs differ.
        pub cores_of_llc: Vec<u32>,
        /// Possible CPUs above those that exist, as for later hotplug.
        pub spare_cpus: u32,
        /// CPUs that tell no caches.
        pub cacheless: CpuSet,
        /// Unused bits below each core in the APIC ids.
        pub sparse_bits: u32,
        /// The CPUs of each node, where a machine numbers them in another order than a guest; it has no text form.
        pub node_cpus: Vec<CpuSet>,
    }
}

wire_struct! {
    /// NUMA nodes, last-level caches (in all), cores per LLC (of the largest), threads per core.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    pub struct Topology {
        pub numa_nodes: u32,
        pub llcs: u32,
        pub cores_per_llc: u32,
        pub threads_per_core: u32,
        pub odd: Odd,
    }
}

/// Where a CPU sits. Nodes and LLCs are numbered through the machine, cores through the LLC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: u32,
    pub llc: u32,
    pub llc_in_node: u32,
    pub core: u32,
    pub thread: u32,
}

impl Topology {
    /// A machine whose nodes, LLCs and cores are all alike.
    pub fn grid(numa_nodes: u32, llcs: u32, cores_per_llc: u32, threads_per_core: u32) -> Self {
        Self { numa_nodes, llcs, cores_per_llc, threads_per_core, odd: Odd::default() }
    }
    /// One node, one LLC, `cpus` cores of one thread.
    pub fn flat(cpus: u32) -> Self {
        Self::grid(1, 1, cpus.max(1), 1)
    }
    pub fn total_cpus(&self) -> u32 {
        (0..self.llcs).map(|llc| self.cores_of(llc)).sum::<u32>() * self.threads_per_core
    }
    /// CPUs that exist and CPUs that might be added.
    pub fn possible_cpus(&self) -> u32 {
        self.total_cpus() + self.odd.spare_cpus
    }
    pub fn all_cpus(&self) -> CpuSet {
        CpuSet::first(self.total_cpus())
    }
    /// Whether there is anything but one node, one LLC and no SMT to show the guest.
    pub fn is_flat(&self) -> bool {
        self.numa_nodes == 1 && self.llcs == 1 && self.threads_per_core == 1 && self.odd == Odd::default()
    }
    /// Cores of one LLC.
    pub fn cores_of(&self, llc: u32) -> u32 {
        self.odd.cores_of_llc.get(llc as usize).copied().unwrap_or(self.cores_per_llc)
    }
    /// LLCs of one node.
    pub fn llcs_of(&self, node: u32) -> u32 {
        self.odd.llcs_of_node.get(node as usize).copied().unwrap_or(self.llcs / self.numa_nodes.max(1))
    }
    /// The node that an LLC belongs to.
    pub fn node_of_llc(&self, llc: u32) -> u32 {
        let mut end = 0;
        (0..self.numa_nodes)
            .find(|node| {
                end += self.llcs_of(*node);
                llc < end
            })
            .unwrap_or(0)
    }
    /// Where each CPU sits, by its number.
    pub fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        let mut llc = 0;
        for node in 0..self.numa_nodes {
            for llc_in_node in 0..self.llcs_of(node) {
                for core in 0..self.cores_of(llc) {
                    places.extend((0..self.threads_per_core).map(|thread| Place {
                        node,
                        llc,
                        llc_in_node,
                        core,
                        thread,
                    }));
                }
                llc += 1;
            }
        }
        places
    }
    fn cpus_where(&self, wanted: impl Fn(&Place) -> bool) -> CpuSet {
        let places = self.places();
        (0u32..).zip(&places).filter(|(_, place)| wanted(place)).map(|(cpu, _)| cpu).collect()
    }
    /// The CPUs that share an LLC; empty where there is no such LLC.
    pub fn llc_cpus(&self, llc: u32) -> CpuSet {
        self.cpus_where(|place| place.llc == llc)
    }
    /// The CPUs of a node; empty for one without CPUs.
    pub fn node_cpus(&self, node: u32) -> CpuSet {
        if let Some(cpus) = self.odd.node_cpus.get(node as usize) {
            return cpus.clone();
        }
        self.cpus_where(|place| place.node == node)
    }
    /// The CPUs of each core, in order.
    pub fn cores(&self) -> Vec<CpuSet> {
        let threads = self.threads_per_core;
        (0..self.total_cpus() / threads).map(|core| (core * threads..(core + 1) * threads).collect()).collect()
    }

    fn checked(self) -> Result<Self, String> {
        if self.numa_nodes == 0 || self.threads_per_core == 0 || self.llcs == 0 || self.cores_per_llc == 0 {
            return Err("every count must be at least 1".into());
        }
        if self.odd.cores_of_llc.contains(&0) {
            return Err("every LLC must have at least 1 core".into());
        }
        if self.numa_nodes > MAX_NODES {
            return Err(format!("{} nodes are more than {MAX_NODES}", self.numa_nodes));
        }
        if self.odd.llcs_of_node.is_empty() && self.llcs % self.numa_nodes != 0 {
            return Err(format!("{} LLCs cannot be divided among {} nodes", self.llcs, self.numa_nodes)
                + "; 2+1l gives the first node 2 and the second 1");
        }
        for (list, count, what) in
            [(&self.odd.llcs_of_node, self.numa_nodes, "nodes"), (&self.odd.cores_of_llc, self.llcs, "LLCs")]
        {
            if !list.is_empty() && list.len() as u64 != u64::from(count) {
                return Err(format!("{} counts are given for {count} {what}", list.len()));
            }
        }
        let cores: u64 = match self.odd.cores_of_llc.as_slice() {
            [] => u64::from(self.llcs) * u64::from(self.cores_per_llc),
            list => list.iter().map(|cores| u64::from(*cores)).sum(),
        };
        let cpus = cores.saturating_mul(u64::from(self.threads_per_core));
        if cpus.saturating_add(u64::from(self.odd.spare_cpus)) > u64::from(MAX_CPUS) {
            let cpus = cpus.saturating_add(u64::from(self.odd.spare_cpus));
            return Err(format!("{cpus} CPUs are more than the {MAX_CPUS} that KVM allows"));
        }
        if self.odd.cacheless.last().is_some_and(|last| u64::from(last) >= cpus) {
            return Err(format!("there is no CPU {} to be without caches", self.odd.cacheless.last().unwrap_or(0)));
        }
        if self.odd.sparse_bits > MAX_SPARSE_BITS {
            return Err(format!("sparse{} is more than sparse{MAX_SPARSE_BITS}", self.odd.sparse_bits));
        }
        Ok(self)
    }

    fn parse_grid(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let cpus: u32 = text.parse().map_err(|_| "the count is too large")?;
            return Ok(Self::grid(1, 1, cpus, 1));
        }
        let mut rest = text;
        let mut counts: [Vec<u32>; 4] = Default::default();
        for (counts, letter) in counts.iter_mut().zip(['n', 'l', 'c', 't']) {
            let (numbers, after) = rest.split_once(letter).ok_or_else(|| format!("'{letter}' is missing"))?;
            let may_differ = matches!(letter, 'l' | 'c');
            for number in numbers.split('+') {
                *counts = std::mem::take(counts).into_iter().chain([number_before(number, letter)?]).collect();
            }
            if counts.len() > 1 && !may_differ {
                return Err(format!("'{numbers}' before '{letter}' is no number"));
            }
            rest = after;
        }
        if !rest.is_empty() {
            return Err(format!("'{rest}' is left over"));
        }
        let [nodes, llcs, cores, threads] = &counts;
        let mut topology = Self::grid(nodes[0], llcs[0], cores[0], threads[0]);
        if llcs.len() > 1 {
            topology.llcs = llcs.iter().fold(0, |sum, count| sum.saturating_add(*count));
            // Nodes that are all alike need no list.
            if llcs.iter().any(|count| count != &llcs[0]) || llcs.len() as u32 != nodes[0] {
                topology.odd.llcs_of_node.clone_from(llcs);
            }
        }
        if cores.len() > 1 {
            topology.cores_per_llc = cores.iter().copied().max().unwrap_or(0);
            if cores.iter().any(|count| count != &cores[0]) || cores.len() as u32 != topology.llcs {
                topology.odd.cores_of_llc.clone_from(cores);
            }
        }
        Ok(topology)
    }

    fn add_oddity(&mut self, word: &str) -> Result<(), String> {
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
        if let Some(count) = word.strip_prefix("spare").and_then(number) {
            self.odd.spare_cpus = count;
        } else if let Some(bits) = word.strip_prefix("sparse").and_then(number) {
            self.odd.sparse_bits = bits;
        } else if let Some(cpus) = word.strip_prefix("nocache").filter(|cpus| !cpus.is_empty()) {
            self.odd.cacheless = cpus.parse()?;
        } else {
            return Err(format!("'{word}' is none of spareN, sparseN, nocacheCPUS"));
        }
        Ok(())
    }
}

fn number_before(number: &str, letter: char) -> Result<u32, String> {
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("'{number}' before '{letter}' is no number"));
    }
    number.parse().map_err(|_| format!("'{number}' is too large"))
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = |list: &[u32], all: u32| match list {
            [] => all.to_string(),
            list => list.iter().map(u32::to_string).collect::<Vec<_>>().join("+"),
        };
        let odd = &self.odd;
        let (llcs, cores) = (counts(&odd.llcs_of_node, self.llcs), counts(&odd.cores_of_llc, self.cores_per_llc));
        write!(f, "{}n{llcs}l{cores}c{}t", self.numa_nodes, self.threads_per_core)?;
        if odd.spare_cpus > 0 {
            write!(f, ":spare{}", odd.spare_cpus)?;
        }
        if odd.sparse_bits > 0 {
            write!(f, ":sparse{}", odd.sparse_bits)?;
        }
        if !odd.cacheless.is_empty() {
            write!(f, ":nocache{}", odd.cacheless)?;
        }
        Ok(())
    }
}

impl FromStr for Topology {
    type Err = String;

    /// `1n2l4c2t` (nodes, LLCs in all, cores per LLC, threads per core), a bare count of CPUs, or the name of a preset;
    /// then oddities, each after a colon.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(':');
        let first = words.next().unwrap_or_default();
        let grid = presets::find(first).map_or(first, |preset| preset.shape);
        let made = Self::parse_grid(grid).and_then(|mut topology| {
            words.try_for_each(|word| topology.add_oddity(word))?;
            topology.checked()
        });
        made.map_err(|why| {
            let near = crate::units::nearest(first, presets::PRESETS.iter().map(|preset| preset.name));
            let near = near.map_or_else(String::new, |name| format!("; did you mean '{name}'?"));
            format!(
                "'{text}' is not a topology: {why} (nodes n LLCs l cores-per-LLC c threads t, such as 1n2l4c2t, or a bare CPU count{near})"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    fn topology(text: &str) -> Topology {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn text_form_round_trips() {
        for text in [
            "1n1l4c1t",
            "2n4l4c2t",
            "4n12l8c2t",
            "2n2+1l4c1t",
            "3n1+0+1l2c1t",
            "1n3l4+2+1c2t",
            "1n1l4c1t:spare2:sparse7:nocache1,3",
        ] {
            assert_eq!(topology(text).to_string(), text);
        }
        assert_eq!(topology("4"), Topology::flat(4));
        assert_eq!(topology("4:spare1").possible_cpus(), 5);
        assert_eq!(topology("2n4l4c2t").total_cpus(), 32);
        assert_eq!(topology("2n1+1l2+2c1t"), Topology::grid(2, 2, 2, 1));
        assert_eq!(topology("tiny-2llc"), Topology::grid(1, 2, 2, 1));
    }

    #[test]
    fn wrong_forms_say_why() {
        for (text, why) in [
            ("0", "at least 1"),
            ("", "'n' is missing"),
            ("1n1l4c", "'t' is missing"),
            ("1n1l4c1tx", "left over"),
            ("1nxl4c1t", "no number"),
            ("2n3l1c1t", "cannot be divided"),
            ("2n3l1c1t", "2+1l"),
            ("1n1l9999c1t", "more than"),
            ("1n1l99999999999c1t", "too large"),
            ("-4", "'n' is missing"),
            ("1+1n2l1c1t", "no number"),
            ("1n2l1c1+1t", "no number"),
            ("2n1+1+1l1c1t", "3 counts are given for 2 nodes"),
            ("1n2l1+2+3c1t", "3 counts are given for 2 LLCs"),
            ("1n2l1+0c1t", "at least 1 core"),
            ("2n0+0l1c1t", "at least 1"),
            ("65n65l1c1t", "more than 64"),
            ("2:spare", "none of spareN"),
            ("2:nocache2", "no CPU 2"),
            ("2:nocache1-", "no CPU number"),
            ("2:sparse9", "more than sparse8"),
            ("4096:spare1", "4097 CPUs are more"),
            ("1n4294967295l4294967295c4294967295t", "more than"),
            ("tiny-2lc", "did you mean 'tiny-2llc'?"),
        ] {
            let error = text.parse::<Topology>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn places_follow_the_numbering() {
        let uneven = topology("3n2+0+1l3+1+2c2t");
        assert_eq!(uneven.total_cpus(), 12);
        assert_eq!(uneven.llc_cpus(0).to_string(), "0-5");
        assert_eq!(uneven.llc_cpus(1).to_string(), "6-7");
        assert_eq!(uneven.llc_cpus(2).to_string(), "8-11");
        assert_eq!(uneven.node_cpus(0).to_string(), "0-7");
        assert!(uneven.node_cpus(1).is_empty());
        assert_eq!(uneven.node_cpus(2).to_string(), "8-11");
        assert_eq!((uneven.node_of_llc(1), uneven.node_of_llc(2)), (0, 2));
        assert_eq!(uneven.cores()[3].to_string(), "6-7");
        let last = uneven.places()[11];
        assert_eq!(last, Place { node: 2, llc: 2, llc_in_node: 0, core: 1, thread: 1 });
    }

    #[test]
    fn wire_round_trip() {
        for text in ["2n4l4c2t", "2n2+1l1+2+3c1t:spare2:nocache0"] {
            assert_eq!(Topology::from_bytes(&topology(text).to_bytes()).unwrap(), topology(text));
        }
    }
}
