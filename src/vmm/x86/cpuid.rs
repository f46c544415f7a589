//! CPUID of a vCPU: what KVM supports, with the topology, the APIC ids and the TSC frequency of this VM.
//!
//! Owns the rules, one function a leaf; leaves caches to `caches`, ids to `apic`, asking KVM and telling it to vcpu.
//! Invariant: pure: the source table is passed in, so the rules are tested with tables of any vendor.

use super::apic::{ApicIds, LlcRule, XAPIC_ID_MAX};
use super::caches;
use crate::proto::topology::{Place, Topology};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaves (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst).
pub(super) const LEAF_VENDOR: u32 = 0;
pub(super) const LEAF_FEATURES: u32 = 1;
pub(super) const LEAF_PERFMON: u32 = 0xA;
pub(super) const LEAF_TOPOLOGY: u32 = 0xB;
pub(super) const LEAF_TSC: u32 = 0x15;
pub(super) const LEAF_TOPOLOGY_V2: u32 = 0x1F;
pub(super) const LEAF_KVM: u32 = 0x4000_0000;
pub(super) const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
pub(super) const LEAF_TIMING: u32 = 0x4000_0010;
pub(super) const LEAF_AMD_HIGHEST: u32 = 0x8000_0000;
pub(super) const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
pub(super) const LEAF_AMD_SIZES: u32 = 0x8000_0008;
pub(super) const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001E;
pub(super) const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Leaf 1: ECX perfmon MSRs, x2APIC, TSC-deadline timer, running under a hypervisor; EDX several logical CPUs.
pub(super) const ECX_PDCM: u32 = 1 << 15;
pub(super) const ECX_X2APIC: u32 = 1 << 21;
pub(super) const ECX_TSC_DEADLINE: u32 = 1 << 24;
pub(super) const ECX_HYPERVISOR: u32 = 1 << 31;
pub(super) const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x80000001 ECX: leaf 1's logical count means cores; there are leaves 0x8000001D and 0x8000001E.
pub(super) const ECX_CMP_LEGACY: u32 = 1 << 1;
pub(super) const ECX_TOPOEXT: u32 = 1 << 22;
/// KVM's leaf 0x40000001 EAX: interrupts reach APIC ids above 254 (KVM_FEATURE_MSI_EXT_DEST_ID). Without it a kernel
/// starts no CPU with such an id, for want of interrupt remapping.
pub(super) const EAX_MSI_EXT_DEST_ID: u32 = 1 << 15;
/// Level types in ECX bits 15:8 of leaf 0xB and 0x1F.
pub(super) const LEVEL_SMT: u32 = 1;
pub(super) const LEVEL_CORE: u32 = 2;
pub(super) const LEVEL_DIE: u32 = 5;
/// Of leaf 0x80000026 (AMD APM vol. 3, E.4.24): threads of a core, of a core complex, of a die, of a socket.
pub(super) const AMD_LEVEL_CORE: u32 = 1;
pub(super) const AMD_LEVEL_COMPLEX: u32 = 2;
pub(super) const AMD_LEVEL_DIE: u32 = 3;
pub(super) const AMD_LEVEL_SOCKET: u32 = 4;
/// Frequency of KVM's local APIC timer, in kHz (APIC_BUS_CYCLE_NS, arch/x86/kvm/lapic.h).
pub(super) const APIC_BUS_KHZ: u32 = 1_000_000;
/// Vendor strings as EBX holds their first four letters.
pub(super) const EBX_INTEL: u32 = u32::from_le_bytes(*b"Genu");
pub(super) const EBX_AMD: u32 = u32::from_le_bytes(*b"Auth");
pub(super) const EBX_HYGON: u32 = u32::from_le_bytes(*b"Hygo");
/// The first family of Zen, and the last model of its first generations (cacheinfo_amd_init_llc_id,
/// arch/x86/kernel/cpu/cacheinfo.c).
const FAMILY_ZEN: u32 = 0x17;
const MODEL_ZEN_LAST_OF_FOUR_CORES: u32 = 0x1F;

/// What one vCPU's table depends on besides the host.
#[derive(Clone, Copy, Debug)]
pub struct CpuShape<'a> {
    pub topology: &'a Topology,
    pub apic: &'a ApicIds,
    pub cpu: u32,
    /// The guest's TSC frequency, where KVM tells it.
    pub tsc_khz: Option<u32>,
    /// KVM emulates the TSC-deadline timer, so that the guest need not calibrate its APIC timer.
    pub tsc_deadline: bool,
}

/// What all leaves of one vCPU are made from.
struct Cpu<'a> {
    shape: &'a CpuShape<'a>,
    place: Place,
    id: u32,
    /// Logical CPUs of the largest package, which is a node, and of the largest LLC.
    in_package: u32,
    in_llc: u32,
    amd: bool,
    intel: bool,
}

fn find(table: &[kvm_cpuid_entry2], function: u32) -> Option<&kvm_cpuid_entry2> {
    table.iter().find(|entry| entry.function == function)
}

pub(super) fn is_amd(source: &[kvm_cpuid_entry2]) -> bool {
    find(source, LEAF_VENDOR).is_some_and(|entry| [EBX_AMD, EBX_HYGON].contains(&entry.ebx))
}

/// How a kernel on this CPU tells LLCs apart.
pub fn llc_rule(source: &[kvm_cpuid_entry2]) -> LlcRule {
    let vendor = find(source, LEAF_VENDOR).map_or(0, |entry| entry.ebx);
    let version = find(source, LEAF_FEATURES).map_or(0, |entry| entry.eax);
    // Family and model with their extensions (AMD APM vol. 3, E.3.2).
    let family = (version >> 8 & 0xF) + (version >> 20 & 0xFF);
    let model = version >> 4 & 0xF | version >> 12 & 0xF0;
    match vendor {
        EBX_HYGON => LlcRule::ThreeBits,
        EBX_AMD if family < FAMILY_ZEN => LlcRule::AmdNode,
        EBX_AMD if family == FAMILY_ZEN && model <= MODEL_ZEN_LAST_OF_FOUR_CORES => LlcRule::ThreeBits,
        _ => LlcRule::CacheLeaf,
    }
}

/// The table of one vCPU, made of what KVM supports.
pub fn for_vcpu(source: &[kvm_cpuid_entry2], shape: &CpuShape<'_>) -> Vec<kvm_cpuid_entry2> {
    let mut table: Vec<kvm_cpuid_entry2> = source.to_vec();
    table.retain(|entry| {
        !matches!(
            entry.function,
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_TSC | LEAF_TIMING | LEAF_AMD_TOPOLOGY | LEAF_AMD_TOPOLOGY_V2
        )
    });
    let vendor = find(&table, LEAF_VENDOR).copied().unwrap_or_default();
    let places = shape.topology.places();
    let place = places[shape.cpu as usize];
    // Of the largest, as a whole family of CPUs has the same numbers: before 6.9 a kernel whose first package has one CPU
    // takes it for the size of all, and shows every CPU alone (detect_extended_topology, arch/x86/kernel/cpu/topology.c).
    let most = |group: fn(&Place) -> u32| {
        let mut counts = vec![0u32; shape.topology.numa_nodes.max(shape.topology.llcs) as usize];
        places.iter().for_each(|place| counts[group(place) as usize] += 1);
        counts.into_iter().max().unwrap_or(0)
    };
    let cpu = Cpu {
        shape,
        place,
        id: shape.apic.id(shape.cpu),
        in_package: most(|place| place.node),
        in_llc: most(|place| place.llc),
        amd: is_amd(source),
        intel: vendor.ebx == EBX_INTEL,
    };
    // Of Intel's leaves 0x1F alone tells of dies.
    let highest = if cpu.intel { LEAF_TOPOLOGY_V2 } else { LEAF_TOPOLOGY };
    for entry in &mut table {
        match entry.function {
            LEAF_VENDOR => entry.eax = entry.eax.max(highest),
            LEAF_FEATURES => features(entry, &cpu),
            LEAF_PERFMON => clear(entry),
            LEAF_KVM => entry.eax = entry.eax.max(LEAF_TIMING),
            LEAF_KVM_FEATURES => set(&mut entry.eax, EAX_MSI_EXT_DEST_ID, shape.apic.highest() > XAPIC_ID_MAX),
            LEAF_AMD_HIGHEST if cpu.amd => entry.eax = entry.eax.max(LEAF_AMD_TOPOLOGY_V2),
            LEAF_AMD_FEATURES if cpu.amd => {
                set(&mut entry.ecx, ECX_CMP_LEGACY, cpu.in_package > 1);
                set(&mut entry.ecx, ECX_TOPOEXT, true);
            }
            LEAF_AMD_FEATURES => set(&mut entry.ecx, ECX_CMP_LEGACY, false),
            LEAF_AMD_SIZES if cpu.amd => amd_sizes(entry, &cpu),
            _ => {}
        }
    }
    let sharing = caches::Sharing {
        thread_bits: shape.apic.thread_bits,
        llc_bits: shape.apic.in_llc(),
        core_bits: shape.apic.in_package() - shape.apic.thread_bits,
        hidden: shape.topology.odd.cacheless.contains(shape.cpu),
        amd: cpu.amd,
    };
    caches::describe(&mut table, &sharing);
    if cpu.amd {
        table.push(amd_topology(&cpu));
        table.extend(topology_levels(LEAF_AMD_TOPOLOGY_V2, &cpu));
    }
    table.extend(topology_levels(LEAF_TOPOLOGY, &cpu));
    if cpu.intel || vendor.eax >= LEAF_TOPOLOGY_V2 {
        table.extend(topology_levels(LEAF_TOPOLOGY_V2, &cpu));
    }
    let under_kvm = find(&table, LEAF_KVM).is_some();
    table.extend(timing(shape).filter(|_| under_kvm));
    table.extend(crystal(shape).filter(|_| cpu.intel));
    table
}

fn set(register: &mut u32, bits: u32, on: bool) {
    *register = if on { *register | bits } else { *register & !bits };
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

fn features(entry: &mut kvm_cpuid_entry2, cpu: &Cpu<'_>) {
    let logical = 1u32.checked_shl(cpu.shape.apic.in_package()).unwrap_or(u32::MAX).min(0xFF);
    entry.ebx = (entry.ebx & 0xFFFF) | logical << 16 | (cpu.id & 0xFF) << 24;
    set(&mut entry.ecx, ECX_HYPERVISOR | ECX_X2APIC, true);
    set(&mut entry.ecx, ECX_TSC_DEADLINE, cpu.shape.tsc_deadline);
    // Without leaf 0xA there are no counters to describe.
    set(&mut entry.ecx, ECX_PDCM, false);
    set(&mut entry.edx, EDX_HTT, cpu.in_package > 1);
}

fn amd_sizes(entry: &mut kvm_cpuid_entry2, cpu: &Cpu<'_>) {
    let count = (cpu.in_package - 1).min(0xFF);
    entry.ecx = (entry.ecx & !0xF0FF) | count | cpu.shape.apic.in_package().min(0xF) << 12;
}

/// Leaf 0x8000001E: core within the package, threads, and the node, which before Zen stands for the LLC.
fn amd_topology(cpu: &Cpu<'_>) -> kvm_cpuid_entry2 {
    let apic = cpu.shape.apic;
    let core = cpu.id & ((1 << apic.in_package()) - 1);
    let node = if apic.rule == LlcRule::AmdNode { cpu.place.llc } else { cpu.place.node };
    kvm_cpuid_entry2 {
        function: LEAF_AMD_TOPOLOGY,
        eax: cpu.id,
        ebx: (core >> apic.thread_bits & 0xFF) | (cpu.shape.topology.threads_per_core - 1) << 8,
        ecx: node & 0xFF,
        ..Default::default()
    }
}

/// The levels of leaf 0xB, of 0x1F and of AMD's 0x80000026: threads of a core, cores of a die or package, dies of a
/// package, and the end. A die is an LLC; leaf 0xB knows no dies.
fn topology_levels(leaf: u32, cpu: &Cpu<'_>) -> Vec<kvm_cpuid_entry2> {
    let apic = cpu.shape.apic;
    let threads = cpu.shape.topology.threads_per_core;
    let mut levels = vec![(LEVEL_SMT, apic.thread_bits, threads)];
    if leaf == LEAF_AMD_TOPOLOGY_V2 {
        // Numbers of levels that mean something else than Intel's, but the first.
        levels[0].0 = AMD_LEVEL_CORE;
        levels.extend([AMD_LEVEL_COMPLEX, AMD_LEVEL_DIE].map(|kind| (kind, apic.in_llc(), cpu.in_llc)));
        levels.push((AMD_LEVEL_SOCKET, apic.in_package(), cpu.in_package));
    } else if leaf == LEAF_TOPOLOGY_V2 && apic.llc_bits > 0 {
        levels.push((LEVEL_CORE, apic.in_llc(), cpu.in_llc));
        levels.push((LEVEL_DIE, apic.in_package(), cpu.in_package));
    } else {
        levels.push((LEVEL_CORE, apic.in_package(), cpu.in_package));
    }
    levels.push((0, 0, 0));
    let entry = |(index, (kind, shift, count)): (u32, (u32, u32, u32))| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: cpu.id,
        ..Default::default()
    };
    (0..).zip(levels).map(entry).collect()
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
