//! Tests of the CPUID rules, with tables of hosts as KVM_GET_SUPPORTED_CPUID gives them.
//!
//! Owns the recorded tables and what a kernel makes of the result; leaves the rules to `cpuid` and `caches`.
//! Invariant: a leaf is there once, and the kernel's own decoding of it gives the asked topology.

use super::apic::{ApicIds, LlcRule};
use super::cpuid::*;
use crate::proto::topology::Topology;
use kvm_bindings::kvm_cpuid_entry2;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

/// A text table: `leaf index eax ebx ecx edx`, all hexadecimal.
fn table(text: &str) -> Vec<kvm_cpuid_entry2> {
    let rows = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|row| {
        let words: Vec<u32> = row.split_whitespace().map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
        entry(words[0], words[1], [words[2], words[3], words[4], words[5]])
    })
    .collect()
}

/// Recorded: a Xeon server that is a virtual machine itself. Its topology leaves are empty.
fn xeon() -> Vec<kvm_cpuid_entry2> {
    table(include_str!("fixtures/xeon.cpuid"))
}
/// A Skylake desktop, as its data sheets describe it.
fn skylake() -> Vec<kvm_cpuid_entry2> {
    table(include_str!("fixtures/skylake.cpuid"))
}
/// An EPYC of the Rome generation, as its manual describes it.
fn rome() -> Vec<kvm_cpuid_entry2> {
    table(include_str!("fixtures/rome.cpuid"))
}
/// Recorded: what KVM finds on QEMU's emulated CPU `max`: an AMD CPU of family 15 without topology extensions.
fn emulated() -> Vec<kvm_cpuid_entry2> {
    table(include_str!("fixtures/qemu-max.cpuid"))
}
/// Recorded on bare metal: what the CPU itself says, with the leaves that KVM adds for its guests.
fn bare_metal(text: &str) -> Vec<kvm_cpuid_entry2> {
    let mut table = table(text);
    table.extend(rome().into_iter().filter(|entry| [LEAF_KVM, LEAF_KVM_FEATURES].contains(&entry.function)));
    table
}
fn genoa() -> Vec<kvm_cpuid_entry2> {
    bare_metal(include_str!("fixtures/epyc-9124.cpuid"))
}
fn first_epyc() -> Vec<kvm_cpuid_entry2> {
    bare_metal(include_str!("fixtures/epyc-7551p.cpuid"))
}
fn cascade_lake() -> Vec<kvm_cpuid_entry2> {
    bare_metal(include_str!("fixtures/xeon-6252.cpuid"))
}
fn alder_lake() -> Vec<kvm_cpuid_entry2> {
    bare_metal(include_str!("fixtures/i9-12900k.cpuid"))
}
/// The first generation of Zen, of the same leaves as Rome.
fn naples() -> Vec<kvm_cpuid_entry2> {
    let mut table = rome();
    table.iter_mut().find(|entry| entry.function == 1).unwrap().eax = 0x0080_0F12;
    table
}

struct Made {
    topology: Topology,
    tables: Vec<Vec<kvm_cpuid_entry2>>,
}

fn made(source: &[kvm_cpuid_entry2], text: &str) -> Made {
    let topology: Topology = text.parse().unwrap();
    let apic = ApicIds::new(&topology, llc_rule(source));
    let one = |cpu| {
        for_vcpu(
            source,
            &CpuShape { topology: &topology, apic: &apic, cpu, tsc_khz: Some(2_500_000), tsc_deadline: true },
        )
    };
    let tables = (0..topology.total_cpus()).map(one).collect();
    Made { topology, tables }
}

impl Made {
    fn leaf(&self, cpu: u32, function: u32, index: u32) -> Option<[u32; 4]> {
        let table = &self.tables[cpu as usize];
        let mut found = table.iter().filter(|entry| entry.function == function && entry.index == index);
        let first = found.next().map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
        assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
        first
    }
    fn must(&self, cpu: u32, function: u32, index: u32) -> [u32; 4] {
        self.leaf(cpu, function, index).unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"))
    }

    /// As a kernel decodes them: (package, LLC, core), equal for CPUs that share one.
    fn decode(&self, cpu: u32, source: &[kvm_cpuid_entry2]) -> (u32, u32, u32) {
        let amd = is_amd(source);
        let id = self.must(cpu, 0xB, 0)[3];
        // As Linux since 6.9 looks: the shift of the last level is the package's. Older ones look at other leaves.
        let places =
            [0x1F, 0x8000_0026, 0xB].into_iter().filter(|leaf| self.leaf(cpu, *leaf, 0).is_some()).map(|leaf| {
                assert_eq!(self.must(cpu, leaf, 0)[3], id, "the leaves name different ids");
                let level = |index: u32| self.must(cpu, leaf, index);
                let last = (0..).take_while(|index| level(*index)[2] >> 8 != 0).last().unwrap();
                (id >> level(last)[0], id >> level(0)[0])
            });
        let places: Vec<(u32, u32)> = places.collect();
        let (package, core) = places[0];
        assert!(places.iter().all(|place| *place == places[0]), "the leaves differ: {places:x?}");
        let sharing = |leaf: u32| {
            let caches = (0..).map(|index| self.must(cpu, leaf, index)[0]).take_while(|eax| eax & 0x1F != 0);
            let last = caches.max_by_key(|eax| eax >> 5 & 7).expect("no cache");
            assert_eq!(last >> 5 & 7, 3, "no L3");
            id >> ((last >> 14 & 0xFFF) + 1).next_power_of_two().trailing_zeros()
        };
        let llc = match llc_rule(source) {
            LlcRule::CacheLeaf => sharing(if amd { 0x8000_001D } else { 4 }),
            LlcRule::AmdNode => self.must(cpu, 0x8000_001E, 0)[2] & 0xFF,
            LlcRule::ThreeBits => id >> 3,
        };
        (package, llc, core)
    }
}

#[test]
fn kernels_see_the_asked_topology_on_every_host() {
    let shapes =
        ["1n1l1c1t", "1n1l4c1t", "1n2l4c2t", "2n4l3c2t", "4n12l8c2t", "max-cpu", "3n2+0+1l3+1+2c2t", "4:sparse7"];
    for (name, source) in [
        ("xeon", xeon()),
        ("skylake", skylake()),
        ("rome", rome()),
        ("naples", naples()),
        ("emulated", emulated()),
        ("genoa", genoa()),
        ("first epyc", first_epyc()),
        ("cascade lake", cascade_lake()),
        ("alder lake", alder_lake()),
    ] {
        for shape in shapes {
            if llc_rule(&source) == LlcRule::ThreeBits && ["max-cpu", "4n12l8c2t", "4:sparse7"].contains(&shape) {
                // An LLC of more than 8 ids cannot be shown there.
                continue;
            }
            let made = made(&source, shape);
            let places = made.topology.places();
            for (a, place) in (0u32..).zip(&places) {
                let seen = made.decode(a, &source);
                for (b, other) in (0u32..).zip(&places) {
                    let there = made.decode(b, &source);
                    let asked = (
                        place.node == other.node,
                        place.llc == other.llc,
                        (place.llc, place.core) == (other.llc, other.core),
                    );
                    let shown = (seen.0 == there.0, seen.1 == there.1, seen.2 == there.2);
                    assert_eq!(shown, asked, "{name} {shape}: CPUs {a} and {b}");
                }
                if made.topology.total_cpus() > 100 {
                    break;
                }
            }
        }
    }
}

/// Nothing of the host's own shape is left: neither its ids, nor its counts, nor who shares its caches.
#[test]
fn recorded_hosts_lose_their_own_shape_and_keep_their_caches() {
    for (source, leaf) in [(cascade_lake(), 4), (alder_lake(), 4), (genoa(), 0x8000_001D)] {
        let made = made(&source, "1n2l2c2t");
        // Package of 8, LLC of 4, core of 2: bits of the ids.
        assert_eq!(made.must(5, 1, 0)[1] >> 16, 5 << 8 | 8);
        assert_eq!(made.must(5, 0xB, 0), [1, 2, 0x100, 5]);
        assert_eq!(made.must(5, 0xB, 1), [3, 8, 0x201, 5]);
        assert_eq!(made.must(5, 0xA, 0), [0; 4]);
        for index in 0..4 {
            let host = source.iter().find(|entry| (entry.function, entry.index) == (leaf, index)).unwrap();
            let guest = made.must(5, leaf, index);
            assert_eq!(guest[1..], [host.ebx, host.ecx, host.edx], "a cache has the host's size");
            assert_eq!(guest[0] & 0x3FFF, host.eax & 0x3FFF, "and its kind");
            let sharing = if index == 3 { 3 } else { 1 };
            let cores = if leaf == 4 { 3 << 26 } else { 0 };
            assert_eq!(guest[0] & !0x3FFF, sharing << 14 | cores, "but not its neighbours");
        }
        assert_eq!(made.must(5, leaf, 4), [0; 4]);
    }
    let epyc = made(&genoa(), "1n2l2c2t");
    assert_eq!(epyc.must(5, LEAF_AMD_SIZES, 0)[2] & 0xF0FF, 0x3007);
    assert_eq!(epyc.must(5, LEAF_AMD_TOPOLOGY, 0), [5, 2 | 1 << 8, 0, 0]);
    assert_eq!(epyc.must(5, LEAF_AMD_HIGHEST, 0)[0], 0x8000_0028, "higher than what is added");
    let levels = [[1, 2, 0x100, 5], [2, 4, 0x201, 5], [2, 4, 0x302, 5], [3, 8, 0x403, 5], [0, 0, 4, 5]];
    (0..).zip(levels).for_each(|(index, level)| assert_eq!(epyc.must(5, 0x8000_0026, index), level));
    // This one's crystal does not fit a guest's TSC, and its leaf 0x1F knows no dies.
    let core = made(&alder_lake(), "1n2l2c2t");
    assert_eq!(core.must(5, 0x15, 0), [1, 1, 2_500_000_000, 0]);
    assert_eq!((core.must(5, 0, 0)[0], core.must(5, 0x1F, 2)), (0x20, [3, 8, 0x502, 5]));
    // And these had no such leaf.
    assert_eq!(made(&cascade_lake(), "1n2l2c2t").must(5, 0, 0)[0], 0x1F);
    let first = made(&first_epyc(), "1n2l2c2t");
    assert_eq!((first.must(5, 0, 0)[0], first.must(5, 0x8000_0000, 0)[0]), (0xD, 0x8000_0026));
}

/// The first CPU's counts are those that an older kernel goes by for all.
#[test]
fn counts_are_those_of_the_largest_package_and_cache() {
    for source in [cascade_lake(), genoa()] {
        let made = made(&source, "3n1+0+2l1+2+1c1t");
        for cpu in 0..4 {
            assert_eq!(made.must(cpu, 0xB, 1)[1], 3, "of the package of CPUs 1 to 3");
            assert_ne!(made.must(cpu, 1, 0)[3] & EDX_HTT, 0);
        }
    }
    let (intel, amd) = (made(&cascade_lake(), "2n1+2l1+2+1c1t"), made(&genoa(), "2n1+2l1+2+1c1t"));
    let counts = |made: &Made, leaf: u32| (0..3).map(|level| made.must(0, leaf, level)[1]).collect::<Vec<_>>();
    assert_eq!((counts(&intel, 0x1F), counts(&amd, 0x8000_0026)), (vec![1, 2, 3], vec![1, 2, 2]));
    assert_eq!(amd.must(0, LEAF_AMD_SIZES, 0)[2] & 0xFF, 2);
}

#[test]
fn intel_flat_table_shows_one_package_of_cores() {
    let made = made(&skylake(), "1n1l4c1t");
    let leaf = |function, index| made.must(3, function, index);
    let [_, ebx, ecx, edx] = leaf(1, 0);
    assert_eq!(ebx, 0x0304_0800);
    assert_eq!(
        ecx & (ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE | ECX_PDCM),
        ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE
    );
    assert_eq!(edx & EDX_HTT, EDX_HTT);
    assert_eq!(leaf(4, 0)[0], 0x0C00_0121, "L1 of one thread, four cores");
    assert_eq!(leaf(4, 3)[0], 0x0C00_C163, "LLC of four CPUs");
    assert_eq!(leaf(4, 3)[1..], [0x03C0_003F, 0x1FFF, 6], "its size is the host's");
    assert_eq!(leaf(4, 4)[0], 0);
    assert_eq!(leaf(0xA, 0), [0; 4]);
    assert_eq!(leaf(0xB, 0), [0, 1, 0x100, 3]);
    assert_eq!(leaf(0xB, 1), [2, 4, 0x201, 3]);
    assert_eq!(leaf(0xB, 2), [0, 0, 2, 3]);
    assert_eq!(leaf(0x1F, 1), [2, 4, 0x201, 3]);
    assert_eq!(leaf(0, 0)[0], 0x1F);
    assert_eq!(leaf(0x15, 0), [1, 1, 2_500_000_000, 0]);
    assert_eq!(leaf(LEAF_TIMING, 0), [2_500_000, APIC_BUS_KHZ, 0, 0]);
    assert_eq!(leaf(LEAF_KVM, 0)[0], LEAF_TIMING);
    assert_eq!(leaf(LEAF_KVM_FEATURES, 0)[0], 0x0100_7EFB, "features of KVM are kept");
    assert_eq!(leaf(LEAF_AMD_FEATURES, 0)[2], 0x121);
    assert_eq!(made.leaf(3, 0x8000_001E, 0), None);
}

#[test]
fn intel_dies_are_llcs() {
    let made = made(&skylake(), "2n4l3c2t");
    let leaf = |index| made.must(6, 0x1F, index);
    assert_eq!(leaf(0), [1, 2, 0x100, 8]);
    assert_eq!(leaf(1), [3, 6, 0x201, 8]);
    assert_eq!(leaf(2), [4, 12, 0x502, 8]);
    assert_eq!(leaf(3), [0, 0, 3, 8]);
    assert_eq!(made.must(6, 0xB, 1)[..2], [4, 12]);
}

#[test]
fn amd_table_shows_cores_threads_and_nodes() {
    let made = made(&rome(), "2n4l2c2t");
    let leaf = |function, index| made.must(10, function, index);
    assert_eq!(leaf(LEAF_AMD_SIZES, 0)[2] & 0xF0FF, 0x3007);
    assert_eq!(leaf(0x8000_001D, 3)[0] >> 14 & 0xFFF, 3);
    assert_eq!(leaf(LEAF_AMD_TOPOLOGY, 0), [10, 1 | 1 << 8, 1, 0]);
    assert_eq!(leaf(LEAF_AMD_FEATURES, 0)[2] & (ECX_CMP_LEGACY | ECX_TOPOEXT), ECX_CMP_LEGACY | ECX_TOPOEXT);
    assert_eq!(made.leaf(10, 0x15, 0), None);
    assert_eq!(leaf(0, 0)[0], 0x10);
}

/// Linux takes a complex for its cores, a die for a tile, a socket for its dies (topology_ext.c): what lies above the die's
/// bits and within the socket tells dies apart.
#[test]
fn amd_dies_are_llcs_too() {
    for source in [rome(), emulated()] {
        let made = made(&source, "2n4l3c2t");
        let leaf = |index| made.must(6, 0x8000_0026, index);
        assert_eq!(leaf(0), [1, 2, 0x100, 8]);
        assert_eq!(leaf(1), [3, 6, 0x201, 8]);
        assert_eq!(leaf(2), [3, 6, 0x302, 8]);
        assert_eq!(leaf(3), [4, 12, 0x403, 8]);
        assert_eq!(leaf(4), [0, 0, 4, 8]);
        // The same core and package as the older leaves have.
        assert_eq!(made.must(6, LEAF_AMD_TOPOLOGY, 0)[0], 8);
        assert_eq!(leaf(3)[..2], made.must(6, 0xB, 1)[..2]);
        assert_eq!(made.must(6, LEAF_AMD_HIGHEST, 0)[0], LEAF_AMD_TOPOLOGY_V2);
    }
    assert_eq!(made(&skylake(), "2n4l3c2t").leaf(0, 0x8000_0026, 0), None);
}

#[test]
fn host_without_cache_and_topology_leaves_gets_them() {
    let made = made(&emulated(), "1n2l2c1t");
    let leaf = |function, index| made.must(2, function, index);
    assert_eq!(leaf(0x8000_0000, 0)[0], LEAF_AMD_TOPOLOGY_V2);
    assert_eq!(leaf(0x8000_001D, 0)[0] & 0xFF, 0x21);
    assert_eq!(leaf(0x8000_001D, 3)[0] & 0xFF, 0x63);
    assert_ne!(leaf(0x8000_0006, 0)[3], 0, "a kernel asks here whether there is an L3");
    assert_eq!(leaf(LEAF_AMD_TOPOLOGY, 0)[2], 1, "the LLC");
}

#[test]
fn cpu_without_caches_tells_none_and_its_neighbour_does() {
    for (source, leaf) in [(skylake(), 4), (rome(), 0x8000_001D)] {
        let made = made(&source, "1n1l2c1t:nocache1");
        assert_eq!(made.must(1, leaf, 0), [0; 4]);
        assert_eq!(made.leaf(1, leaf, 1), None);
        assert_ne!(made.must(0, leaf, 0)[0], 0);
    }
}

#[test]
fn wide_apic_ids_are_announced_to_the_kernel() {
    let bit = |text: &str| made(&skylake(), text).must(0, LEAF_KVM_FEATURES, 0)[0] & EAX_MSI_EXT_DEST_ID;
    assert_eq!(bit("255"), 0);
    assert_ne!(bit("256"), 0);
    assert_ne!(bit("4:sparse7"), 0);
}

#[test]
fn single_cpu_has_no_siblings() {
    let one = made(&rome(), "1");
    assert_eq!(one.must(0, 1, 0)[3] & EDX_HTT, 0);
    assert_eq!(one.must(0, LEAF_AMD_SIZES, 0)[2] & 0xFF, 0);
    assert_eq!(one.must(0, LEAF_AMD_FEATURES, 0)[2] & ECX_CMP_LEGACY, 0);
    let bare = made(&[], "1");
    assert_eq!(bare.must(0, 0xB, 0), [0, 1, 0x100, 0]);
    assert_eq!(bare.leaf(0, LEAF_TIMING, 0), None);
}

#[test]
fn rules_follow_vendor_family_and_model() {
    assert_eq!(llc_rule(&skylake()), LlcRule::CacheLeaf);
    assert_eq!(llc_rule(&xeon()), LlcRule::CacheLeaf);
    assert_eq!(llc_rule(&rome()), LlcRule::CacheLeaf);
    assert_eq!(llc_rule(&naples()), LlcRule::ThreeBits);
    assert_eq!(llc_rule(&emulated()), LlcRule::AmdNode);
    assert_eq!(llc_rule(&genoa()), LlcRule::CacheLeaf);
    assert_eq!(llc_rule(&first_epyc()), LlcRule::ThreeBits);
    assert_eq!(llc_rule(&cascade_lake()), LlcRule::CacheLeaf);
    assert_eq!(llc_rule(&alder_lake()), LlcRule::CacheLeaf);
}
