//! CPUID of a vCPU: what KVM supports, with the topology, the APIC ids and the TSC frequency of this VM.
//!
//! Owns the rules, one function a leaf, and the APIC ids; leaves asking KVM and telling it to vcpu.
//! Invariant: pure: the source table is passed in, so the rules are tested with tables of any vendor.

use crate::proto::topology::Topology;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaves (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst).
const LEAF_VENDOR: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHE: u32 = 4;
const LEAF_PERFMON: u32 = 0xA;
const LEAF_TOPOLOGY: u32 = 0xB;
const LEAF_TSC: u32 = 0x15;
const LEAF_TOPOLOGY_V2: u32 = 0x1F;
const LEAF_KVM: u32 = 0x4000_0000;
const LEAF_TIMING: u32 = 0x4000_0010;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHE: u32 = 0x8000_001D;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001E;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Leaf 1: ECX perfmon MSRs, x2APIC, TSC-deadline timer, running under a hypervisor; EDX several logical CPUs.
const ECX_PDCM: u32 = 1 << 15;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x80000001 ECX: leaf 1's logical count means cores.
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0xB: level types in ECX bits 15:8.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// Leaf 4 and 0x8000001D: cache type and level in EAX.
const CACHE_LEVEL_SHIFT: u32 = 5;
const CACHE_SHARING_SHIFT: u32 = 14;
const CACHE_SHARING_MASK: u32 = 0xFFF << CACHE_SHARING_SHIFT;
const CACHE_CORES_SHIFT: u32 = 26;
const LAST_LEVEL: u32 = 3;
/// Frequency of KVM's local APIC timer, in kHz (APIC_BUS_CYCLE_NS, arch/x86/kvm/lapic.h).
const APIC_BUS_KHZ: u32 = 1_000_000;
/// Vendor strings as EBX holds their first four letters.
const EBX_INTEL: u32 = u32::from_le_bytes(*b"Genu");

/// Bits that each level of the topology takes in an APIC id.
struct Widths {
    thread: u32,
    core: u32,
    llc: u32,
}

impl Widths {
    fn of(topology: &Topology) -> Self {
        let bits = |count: u32| count.max(1).next_power_of_two().trailing_zeros();
        Self {
            thread: bits(topology.threads_per_core),
            core: bits(topology.cores_per_llc),
            llc: bits(topology.llcs / topology.numa_nodes.max(1)),
        }
    }
    /// All levels below the package; a package is one node.
    fn package(&self) -> u32 {
        self.thread + self.core + self.llc
    }
}

/// The APIC id of a CPU: node, LLC, core and thread, each in its own bits.
pub fn apic_id(topology: &Topology, cpu: u32) -> u32 {
    let widths = Widths::of(topology);
    let llcs_per_node = topology.llcs / topology.numa_nodes.max(1);
    let (core, thread) = (cpu / topology.threads_per_core, cpu % topology.threads_per_core);
    let (llc, core) = (core / topology.cores_per_llc, core % topology.cores_per_llc);
    let (node, llc) = (llc / llcs_per_node, llc % llcs_per_node);
    ((node << widths.llc | llc) << widths.core | core) << widths.thread | thread
}

/// What one vCPU's table depends on besides the host.
#[derive(Clone, Copy, Debug)]
pub struct CpuShape<'a> {
    pub topology: &'a Topology,
    pub cpu: u32,
    /// The guest's TSC frequency, where KVM tells it.
    pub tsc_khz: Option<u32>,
    /// KVM emulates the TSC-deadline timer, so that the guest need not calibrate its APIC timer.
    pub tsc_deadline: bool,
}

/// The table of one vCPU, made of what KVM supports.
pub fn for_vcpu(source: &[kvm_cpuid_entry2], shape: &CpuShape<'_>) -> Vec<kvm_cpuid_entry2> {
    let mut table: Vec<kvm_cpuid_entry2> = source.to_vec();
    table.retain(|entry| !matches!(entry.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_TSC | LEAF_TIMING));
    let vendor = table.iter().find(|entry| entry.function == LEAF_VENDOR).copied().unwrap_or_default();
    let widths = Widths::of(shape.topology);
    for entry in &mut table {
        match entry.function {
            LEAF_VENDOR => entry.eax = entry.eax.max(LEAF_TOPOLOGY),
            LEAF_FEATURES => features(entry, shape, &widths),
            LEAF_CACHE | LEAF_AMD_CACHE => cache(entry, &widths),
            LEAF_PERFMON | LEAF_AMD_TOPOLOGY_V2 => clear(entry),
            LEAF_KVM => entry.eax = entry.eax.max(LEAF_TIMING),
            LEAF_AMD_FEATURES => set(&mut entry.ecx, ECX_CMP_LEGACY, vendor.ebx != EBX_INTEL && per_package(shape) > 1),
            LEAF_AMD_SIZES => amd_sizes(entry, shape, &widths),
            LEAF_AMD_TOPOLOGY => amd_topology(entry, shape),
            _ => {}
        }
    }
    table.extend(topology_levels(LEAF_TOPOLOGY, shape, &widths));
    if vendor.eax >= LEAF_TOPOLOGY_V2 {
        table.extend(topology_levels(LEAF_TOPOLOGY_V2, shape, &widths));
    }
    let under_kvm = table.iter().any(|entry| entry.function == LEAF_KVM);
    table.extend(timing(shape).filter(|_| under_kvm));
    table.extend(crystal(shape).filter(|_| vendor.ebx == EBX_INTEL && vendor.eax >= LEAF_TSC));
    table
}

fn set(register: &mut u32, bits: u32, on: bool) {
    *register = if on { *register | bits } else { *register & !bits };
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// Logical CPUs of one package.
fn per_package(shape: &CpuShape<'_>) -> u32 {
    shape.topology.total_cpus() / shape.topology.numa_nodes.max(1)
}

fn features(entry: &mut kvm_cpuid_entry2, shape: &CpuShape<'_>, widths: &Widths) {
    let logical = (1u32 << widths.package()).min(0xFF);
    let id = apic_id(shape.topology, shape.cpu) & 0xFF;
    entry.ebx = (entry.ebx & 0xFFFF) | logical << 16 | id << 24;
    set(&mut entry.ecx, ECX_HYPERVISOR | ECX_X2APIC, true);
    set(&mut entry.ecx, ECX_TSC_DEADLINE, shape.tsc_deadline);
    // Without leaf 0xA there are no counters to describe.
    set(&mut entry.ecx, ECX_PDCM, false);
    set(&mut entry.edx, EDX_HTT, per_package(shape) > 1);
}

/// Who shares a cache: a core's threads the inner levels, an LLC's CPUs the last. Intel tells the cores here, too.
fn cache(entry: &mut kvm_cpuid_entry2, widths: &Widths) {
    if entry.eax & 0x1F == 0 {
        return;
    }
    let level = entry.eax >> CACHE_LEVEL_SHIFT & 7;
    let shared_bits = if level >= LAST_LEVEL { widths.thread + widths.core } else { widths.thread };
    let shared = ((1u32 << shared_bits) - 1).min(0xFFF);
    entry.eax = (entry.eax & !CACHE_SHARING_MASK) | shared << CACHE_SHARING_SHIFT;
    if entry.function == LEAF_CACHE {
        let cores = ((1u32 << (widths.core + widths.llc)) - 1).min(0x3F);
        entry.eax = (entry.eax & !(0x3F << CACHE_CORES_SHIFT)) | cores << CACHE_CORES_SHIFT;
    }
}

fn amd_sizes(entry: &mut kvm_cpuid_entry2, shape: &CpuShape<'_>, widths: &Widths) {
    let count = (per_package(shape) - 1).min(0xFF);
    entry.ecx = (entry.ecx & !0xF0FF) | count | widths.package().min(0xF) << 12;
}

fn amd_topology(entry: &mut kvm_cpuid_entry2, shape: &CpuShape<'_>) {
    let topology = shape.topology;
    let core_in_package = shape.cpu % per_package(shape) / topology.threads_per_core;
    let node = shape.cpu / per_package(shape);
    entry.eax = apic_id(topology, shape.cpu);
    entry.ebx = (core_in_package & 0xFF) | (topology.threads_per_core - 1) << 8;
    entry.ecx = node & 0xFF;
}

/// The levels of leaf 0xB and 0x1F: SMT, core, and the end.
fn topology_levels(leaf: u32, shape: &CpuShape<'_>, widths: &Widths) -> [kvm_cpuid_entry2; 3] {
    let id = apic_id(shape.topology, shape.cpu);
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    [
        level(0, LEVEL_SMT, widths.thread, shape.topology.threads_per_core),
        level(1, LEVEL_CORE, widths.package(), per_package(shape)),
        level(2, 0, 0, 0),
    ]
}

/// KVM's timing leaf: the frequencies of TSC and local APIC timer in kHz.
fn timing(shape: &CpuShape<'_>) -> Option<kvm_cpuid_entry2> {
    shape.tsc_khz.map(|khz| kvm_cpuid_entry2 {
        function: LEAF_TIMING,
        eax: khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    })
}

/// Intel's TSC leaf: a crystal of the TSC's frequency with the ratio 1. Linux takes the local APIC timer's frequency
/// from it, too, which is wrong here, and does not matter where the TSC-deadline timer is used instead.
fn crystal(shape: &CpuShape<'_>) -> Option<kvm_cpuid_entry2> {
    let hertz = shape.tsc_khz.filter(|_| shape.tsc_deadline)?.checked_mul(1000)?;
    Some(kvm_cpuid_entry2 { function: LEAF_TSC, eax: 1, ebx: 1, ecx: hertz, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn intel() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0, 0, [0x16, EBX_INTEL, u32::from_le_bytes(*b"ntel"), u32::from_le_bytes(*b"ineI")]),
            entry(1, 0, [0x506E3, 0x0710_0800, ECX_PDCM, EDX_HTT]),
            entry(4, 0, [0x1C00_4121, 0x01C0_003F, 0x3F, 0]),
            entry(4, 3, [0x1C03_C163, 0x03C0_003F, 0x1FFF, 6]),
            entry(4, 4, [0, 0, 0, 0]),
            entry(0xA, 0, [0x0730_0404, 0, 0, 0x603]),
            entry(0xB, 0, [1, 2, 0x100, 7]),
            entry(LEAF_KVM, 0, [0x4000_0001, 0x4B4D_564B, 0, 0]),
            entry(0x4000_0001, 0, [0x0100_7EFB, 0, 0, 0]),
            entry(LEAF_AMD_FEATURES, 0, [0, 0, 0x121, 0]),
        ]
    }

    fn amd() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0, 0, [0x0D, u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"cAMD"), 0]),
            entry(1, 0, [0x80_0F12, 0x0910_0800, 0, 0]),
            entry(LEAF_AMD_FEATURES, 0, [0, 0, 1 << 22, 0]),
            entry(LEAF_AMD_SIZES, 0, [0x3030, 0, 0x700F, 0]),
            entry(LEAF_AMD_CACHE, 0, [0x4121, 0, 0, 0]),
            entry(LEAF_AMD_CACHE, 3, [0x1C163, 0, 0, 0]),
            entry(LEAF_AMD_TOPOLOGY, 0, [9, 0x104, 0x203, 0]),
            entry(LEAF_AMD_TOPOLOGY_V2, 0, [1, 2, 3, 4]),
        ]
    }

    fn made(source: &[kvm_cpuid_entry2], topology: &str, cpu: u32) -> impl Fn(u32, u32) -> Option<[u32; 4]> + use<> {
        let topology: Topology = topology.parse().unwrap();
        let shape = CpuShape { topology: &topology, cpu, tsc_khz: Some(2_500_000), tsc_deadline: true };
        let table = for_vcpu(source, &shape);
        move |function, index| {
            let mut found = table.iter().filter(|entry| entry.function == function && entry.index == index);
            let first = found.next().map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
            assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
            first
        }
    }

    #[test]
    fn apic_ids_are_unique_and_pack_their_levels() {
        for text in ["1n1l1c1t", "1n1l4c1t", "2n4l3c2t", "1n3l5c2t", "4n12l8c2t"] {
            let topology: Topology = text.parse().unwrap();
            let ids: Vec<u32> = (0..topology.total_cpus()).map(|cpu| apic_id(&topology, cpu)).collect();
            assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{text}: {ids:?}");
        }
        let flat = Topology::flat(300);
        assert!((0..300).all(|cpu| apic_id(&flat, cpu) == cpu));
        assert_eq!(apic_id(&"2n4l3c2t".parse().unwrap(), 6), 0b0_1000, "LLC 1 of node 0");
        assert_eq!(apic_id(&"2n4l3c2t".parse().unwrap(), 12), 0b1_0000, "node 1");
    }

    #[test]
    fn intel_flat_table_shows_one_package_of_cores() {
        let leaf = made(&intel(), "1n1l4c1t", 3);
        let [_, ebx, ecx, edx] = leaf(1, 0).unwrap();
        assert_eq!(ebx, 0x0304_0800);
        assert_eq!(ecx, ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE);
        assert_eq!(edx & EDX_HTT, EDX_HTT);
        assert_eq!(leaf(4, 0).unwrap()[0], 0x0C00_0121, "L1 of one thread, four cores");
        assert_eq!(leaf(4, 3).unwrap()[0], 0x0C00_C163, "LLC of four CPUs");
        assert_eq!(leaf(4, 4).unwrap()[0], 0);
        assert_eq!(leaf(0xA, 0).unwrap(), [0; 4]);
        assert_eq!(leaf(0xB, 0).unwrap(), [0, 1, 0x100, 3]);
        assert_eq!(leaf(0xB, 1).unwrap(), [2, 4, 0x201, 3]);
        assert_eq!(leaf(0xB, 2).unwrap(), [0, 0, 2, 3]);
        assert_eq!(leaf(0x1F, 0), None);
        assert_eq!(leaf(0x15, 0).unwrap(), [1, 1, 2_500_000_000, 0]);
        assert_eq!(leaf(LEAF_TIMING, 0).unwrap(), [2_500_000, APIC_BUS_KHZ, 0, 0]);
        assert_eq!(leaf(LEAF_KVM, 0).unwrap()[0], LEAF_TIMING);
        assert_eq!(leaf(0x4000_0001, 0).unwrap()[0], 0x0100_7EFB, "features of KVM are kept");
        assert_eq!(leaf(LEAF_AMD_FEATURES, 0).unwrap()[2], 0x121);
    }

    #[test]
    fn amd_flat_table_shows_one_package_of_cores() {
        let leaf = made(&amd(), "1n1l4c1t", 2);
        assert_eq!(leaf(LEAF_AMD_SIZES, 0).unwrap()[2], 0x2003);
        assert_eq!(leaf(LEAF_AMD_CACHE, 0).unwrap()[0], 0x0121);
        assert_eq!(leaf(LEAF_AMD_CACHE, 3).unwrap()[0], 0xC163);
        assert_eq!(leaf(LEAF_AMD_TOPOLOGY, 0).unwrap()[..3], [2, 2, 0]);
        assert_eq!(leaf(LEAF_AMD_TOPOLOGY_V2, 0).unwrap(), [0; 4]);
        assert_eq!(leaf(LEAF_AMD_FEATURES, 0).unwrap()[2], 1 << 22 | ECX_CMP_LEGACY);
        assert_eq!(leaf(0x15, 0), None);
        assert_eq!(leaf(0, 0).unwrap()[0], 0x0D);
    }

    #[test]
    fn smt_and_llc_widths_follow_the_topology() {
        let leaf = made(&intel(), "1n2l4c2t", 9);
        assert_eq!(leaf(0xB, 0).unwrap()[..2], [1, 2]);
        assert_eq!(leaf(0xB, 1).unwrap()[..2], [4, 16]);
        assert_eq!(leaf(0xB, 0).unwrap()[3], 9);
        assert_eq!(leaf(4, 3).unwrap()[0] >> 14 & 0xFFF, 7);
        let leaf = made(&amd(), "1n2l4c2t", 9);
        assert_eq!(leaf(LEAF_AMD_TOPOLOGY, 0).unwrap()[..2], [9, 4 | 1 << 8]);
    }

    #[test]
    fn single_cpu_has_no_siblings() {
        let leaf = made(&amd(), "1", 0);
        assert_eq!(leaf(1, 0).unwrap()[3] & EDX_HTT, 0);
        assert_eq!(leaf(LEAF_AMD_SIZES, 0).unwrap()[2], 0);
        assert_eq!(leaf(LEAF_AMD_FEATURES, 0).unwrap()[2] & ECX_CMP_LEGACY, 0);
        let leaf = made(&[], "1", 0);
        assert_eq!(leaf(0xB, 0).unwrap(), [0, 1, 0x100, 0]);
        assert_eq!(leaf(LEAF_TIMING, 0), None);
    }
}
