//! SRAT and SLIT: which CPUs and which memory belong to which NUMA node, and how far nodes are from each other.
//!
//! Owns the bodies of both tables (ACPI specification 6.5, 5.2.16 and 5.2.17); leaves the header to `acpi`.
//! Invariant: pure; every possible CPU and every byte of RAM is in exactly one node.

use super::apic::{ApicIds, XAPIC_ID_MAX};
use super::layout::node_ranges;
use crate::proto::numa::Numa;
use crate::proto::topology::Topology;

/// SRAT revision, and the 12 reserved bytes in front of its entries, the first four of which are 1.
pub const SRAT_REVISION: u8 = 3;
const SRAT_RESERVED: [u8; 12] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LOCAL_APIC: u8 = 0;
const LOCAL_APIC_BYTES: u8 = 16;
const MEMORY: u8 = 1;
const MEMORY_BYTES: u8 = 40;
const LOCAL_X2APIC: u8 = 2;
const LOCAL_X2APIC_BYTES: u8 = 24;
const ENABLED: u32 = 1;
pub const SLIT_REVISION: u8 = 1;

/// The entries of the SRAT: CPUs, then memory.
pub fn srat(topology: &Topology, apic: &ApicIds, numa: &Numa) -> Vec<u8> {
    let mut body = SRAT_RESERVED.to_vec();
    let places = topology.places();
    let last = places.last().map_or(0, |place| place.node);
    // CPUs that might be added come to the last node that has some.
    let cpus = apic.all().iter().enumerate().map(|(cpu, id)| (places.get(cpu).map_or(last, |place| place.node), *id));
    // A kernel numbers nodes as it meets them, CPUs first. An id that no CPU has keeps a node without CPUs in its place.
    let without = (0..last).filter(|node| topology.llcs_of(*node) == 0).map(|node| (node, apic.highest() + 1));
    let mut listed: Vec<(u32, u32)> = cpus.chain(without).collect();
    listed.sort_by_key(|(node, _)| *node);
    for (node, id) in &listed {
        if *id <= XAPIC_ID_MAX {
            let [low, high @ ..] = node.to_le_bytes();
            body.extend([LOCAL_APIC, LOCAL_APIC_BYTES, low, *id as u8]);
            body.extend(ENABLED.to_le_bytes());
            body.push(0);
            body.extend(high);
            body.extend(0u32.to_le_bytes());
        } else {
            body.extend([LOCAL_X2APIC, LOCAL_X2APIC_BYTES, 0, 0]);
            body.extend([*node, *id, ENABLED, 0, 0].map(u32::to_le_bytes).concat());
        }
    }
    for (node, range) in node_ranges(&numa.memory_bytes) {
        body.extend([MEMORY, MEMORY_BYTES]);
        body.extend(node.to_le_bytes());
        body.extend([0; 2]);
        body.extend(range.gpa.to_le_bytes());
        body.extend(range.bytes.to_le_bytes());
        body.extend(0u32.to_le_bytes());
        body.extend(ENABLED.to_le_bytes());
        body.extend(0u64.to_le_bytes());
    }
    body
}

/// The matrix of the SLIT, row by row.
pub fn slit(numa: &Numa) -> Vec<u8> {
    let mut body = (numa.distances.len() as u64).to_le_bytes().to_vec();
    body.extend(numa.distances.iter().flatten().map(|distance| *distance as u8));
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::x86::apic::LlcRule;

    const MIB: u64 = 1 << 20;

    fn numa(memory_mib: &[u64], nodes: u32) -> Numa {
        let memory_bytes: Vec<u64> = memory_mib.iter().map(|mib| mib * MIB).collect();
        let sum = memory_bytes.iter().sum();
        Numa { memory_bytes, distances: vec![] }.settled(nodes, sum).unwrap()
    }

    fn entries(body: &[u8]) -> Vec<&[u8]> {
        let (mut at, mut found) = (SRAT_RESERVED.len(), Vec::new());
        while at < body.len() {
            let end = at + body[at + 1] as usize;
            found.push(&body[at..end]);
            at = end;
        }
        found
    }

    fn number(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn cpus_and_memory_lie_in_their_nodes() {
        let topology: Topology = "2n2l2c1t".parse().unwrap();
        let apic = ApicIds::new(&topology, LlcRule::CacheLeaf);
        let body = srat(&topology, &apic, &numa(&[2048, 2048, 64], 2));
        let entries = entries(&body);
        let cpus: Vec<(u8, u8)> = entries.iter().filter(|e| e[0] == LOCAL_APIC).map(|e| (e[3], e[2])).collect();
        assert_eq!(cpus, [(0, 0), (1, 0), (2, 1), (3, 1)]);
        let memory: Vec<(u8, u64, u64)> = entries
            .iter()
            .filter(|e| e[0] == MEMORY)
            .map(|e| (e[2], number(e, 8) / MIB, number(e, 16) / MIB))
            .collect();
        assert_eq!(memory, [(0, 0, 2048), (1, 2048, 1024), (1, 4096, 1024), (2, 5120, 64)]);
    }

    #[test]
    fn wide_ids_and_possible_cpus_are_listed() {
        let topology: Topology = "2n2l2c1t:sparse7:spare1".parse().unwrap();
        let apic = ApicIds::new(&topology, LlcRule::CacheLeaf);
        let body = srat(&topology, &apic, &numa(&[64, 64], 2));
        let wide: Vec<(u32, u32)> = entries(&body)
            .iter()
            .filter(|e| e[0] == LOCAL_X2APIC)
            .map(|e| {
                let word = |at: usize| u32::from_le_bytes(e[at..at + 4].try_into().unwrap());
                (word(8), word(4))
            })
            .collect();
        assert_eq!(wide, [(256, 1), (384, 1), (512, 1)]);
    }

    #[test]
    fn nodes_appear_in_their_order_even_without_cpus() {
        let topology: Topology = "3n1+0+1l1c1t".parse().unwrap();
        let apic = ApicIds::new(&topology, LlcRule::CacheLeaf);
        let body = srat(&topology, &apic, &numa(&[64, 64, 64], 3));
        let cpus: Vec<(u8, u8)> = entries(&body).iter().filter(|e| e[0] == LOCAL_APIC).map(|e| (e[3], e[2])).collect();
        assert_eq!(cpus, [(0, 0), (2, 1), (1, 2)]);
    }

    #[test]
    fn slit_is_the_matrix() {
        let mut numa = numa(&[64, 64], 2);
        numa.distances = vec![vec![10, 31], vec![41, 10]];
        assert_eq!(slit(&numa), [2, 0, 0, 0, 0, 0, 0, 0, 10, 31, 41, 10]);
    }
}
