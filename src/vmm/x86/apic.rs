//! APIC ids: node, LLC, core and thread of every CPU, each in bits of its own.
//!
//! Owns the widths and the ids; leaves telling them to cpuid, acpi and mptable.
//! Invariant: ids are unique, ascend with the CPU's number, and begin at 0.

use crate::proto::topology::Topology;

/// An 8-bit APIC id ends here; 255 is the broadcast (Intel SDM vol. 3, 12.6.2.1).
pub const XAPIC_ID_MAX: u32 = 254;

/// How a kernel finds out which CPUs share an LLC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlcRule {
    /// By the sharing count that a cache leaf tells: all but some AMD CPUs.
    CacheLeaf,
    /// AMD before family 17h: the "node" of leaf 0x8000001E is the LLC.
    AmdNode,
    /// AMD family 17h up to model 1Fh, and Hygon: three bits of the APIC id, whatever any leaf says.
    ThreeBits,
}

/// The APIC ids of all possible CPUs, and the bits of each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApicIds {
    pub thread_bits: u32,
    pub core_bits: u32,
    pub llc_bits: u32,
    pub rule: LlcRule,
    ids: Vec<u32>,
}

impl ApicIds {
    pub fn new(topology: &Topology, rule: LlcRule) -> Self {
        let bits = |count: u32| count.max(1).next_power_of_two().trailing_zeros();
        let most_llcs = (0..topology.numa_nodes).map(|node| topology.llcs_of(node)).max().unwrap_or(1);
        let thread_bits = bits(topology.threads_per_core) + topology.odd.sparse_bits;
        let core_bits = match rule {
            // Such a kernel takes the three lowest bits for one core complex.
            LlcRule::ThreeBits => bits(topology.cores_per_llc).max(3u32.saturating_sub(thread_bits)),
            _ => bits(topology.cores_per_llc),
        };
        let mut ids = Self { thread_bits, core_bits, llc_bits: bits(most_llcs), rule, ids: Vec::new() };
        let (mut package, mut node) = (0, None);
        let mut made = Vec::new();
        for place in topology.places() {
            // A package is a node; one without CPUs has none, so that CPU 0 has the id 0.
            if node.is_some_and(|node| node != place.node) {
                package += 1;
            }
            node = Some(place.node);
            made.push(ids.compose(package, place.llc_in_node, place.core, place.thread));
        }
        // Possible CPUs that do not exist fill packages behind the last.
        for spare in 0..topology.odd.spare_cpus {
            let (core, thread) = (spare / topology.threads_per_core, spare % topology.threads_per_core);
            let (llc, core) = (core / topology.cores_per_llc, core % topology.cores_per_llc);
            made.push(ids.compose(package + 1 + llc / most_llcs, llc % most_llcs, core, thread));
        }
        ids.ids = made;
        ids
    }

    fn compose(&self, package: u32, llc: u32, core: u32, thread: u32) -> u32 {
        ((package << self.llc_bits | llc) << self.core_bits | core) << self.thread_bits | thread
    }
    pub fn id(&self, cpu: u32) -> u32 {
        self.ids.get(cpu as usize).copied().unwrap_or(u32::MAX)
    }
    /// The ids of all possible CPUs, in the order of their numbers.
    pub fn all(&self) -> &[u32] {
        &self.ids
    }
    pub fn highest(&self) -> u32 {
        self.ids.iter().copied().max().unwrap_or(0)
    }
    /// Bits of an LLC: its threads and cores.
    pub fn in_llc(&self) -> u32 {
        self.thread_bits + self.core_bits
    }
    /// Bits of all levels below the package.
    pub fn in_package(&self) -> u32 {
        self.in_llc() + self.llc_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> ApicIds {
        ApicIds::new(&text.parse().unwrap(), LlcRule::CacheLeaf)
    }

    #[test]
    fn ids_ascend_from_0_and_pack_their_levels() {
        for text in ["1n1l1c1t", "1n1l4c1t", "2n4l3c2t", "1n3l5c2t", "4n12l8c2t", "3n0+2+1l2+1+3c2t:spare5:sparse3"] {
            let made = ids(text);
            assert!(made.all().is_sorted_by(|a, b| a < b), "{text}: {made:?}");
            assert_eq!(made.id(0), 0, "{text}");
        }
        let flat = ids("300");
        assert!((0..300).all(|cpu| flat.id(cpu) == cpu));
        assert_eq!(ids("2n4l3c2t").id(6), 0b0_1000, "LLC 1 of node 0");
        assert_eq!(ids("2n4l3c2t").id(12), 0b1_0000, "node 1");
        assert_eq!(ids("max-cpu").highest(), 13 << 5 | 8 << 1 | 1);
    }

    #[test]
    fn oddities_leave_gaps() {
        assert_eq!(ids("4:sparse7").all(), [0, 128, 256, 384]);
        assert_eq!(ids("1n2l3+1c1t").all(), [0, 1, 2, 4]);
        assert_eq!(ids("2n0+1l2c1t").all(), [0, 1]);
        assert_eq!(ids("1n2l2c1t:spare3").all(), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn core_complexes_of_zen_begin_at_every_eighth_id() {
        let zen = |text: &str| ApicIds::new(&text.parse().unwrap(), LlcRule::ThreeBits);
        assert_eq!(zen("1n2l2c1t").all(), [0, 1, 8, 9]);
        assert_eq!(zen("1n2l2c2t").all(), [0, 1, 2, 3, 8, 9, 10, 11]);
        assert_eq!(zen("1n2l4c2t").id(8), 8);
    }
}
