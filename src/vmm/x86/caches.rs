//! The caches that CPUID tells: leaf 4 of Intel, leaf 0x8000001D of AMD, and AMD's older leaf 0x80000006.
//!
//! Owns who shares which cache, and caches for hosts that tell none; leaves APIC ids to `apic`.
//! Invariant: unless they are hidden, there is a last level, and its sharing is the asked LLC.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const LEAF_CACHE: u32 = 4;
const LEAF_AMD_L3: u32 = 0x8000_0006;
const LEAF_AMD_CACHE: u32 = 0x8000_001D;

/// EAX of a cache: type, level, sharing, and on Intel the cores of the package.
const TYPE_MASK: u32 = 0x1F;
const TYPE_DATA: u32 = 1;
const TYPE_INSTRUCTION: u32 = 2;
const TYPE_UNIFIED: u32 = 3;
const LEVEL_SHIFT: u32 = 5;
const SELF_INITIALIZING: u32 = 1 << 8;
const SHARING_SHIFT: u32 = 14;
const SHARING_MASK: u32 = 0xFFF;
const CORES_SHIFT: u32 = 26;
const CORES_MASK: u32 = 0x3F;
const LAST_LEVEL: u32 = 3;
/// EBX: ways above the line size.
const WAYS_SHIFT: u32 = 22;
const LINE_BYTES: u32 = 64;
/// Leaf 0x80000006 EDX: an L3 of 16 MiB (in 512 KiB), associativity as in leaf 0x8000001D, one line a tag. A kernel takes
/// zero to say that there is no L3.
const AMD_L3_16_MIB: u32 = 32 << 18 | 9 << 12 | 1 << 8 | LINE_BYTES;

/// A cache for hosts that tell none: type, level, ways, sets. 32 KiB, 32 KiB, 1 MiB, 16 MiB, as many CPUs have.
const USUAL: [(u32, u32, u32, u32); 4] =
    [(TYPE_DATA, 1, 8, 64), (TYPE_INSTRUCTION, 1, 8, 64), (TYPE_UNIFIED, 2, 16, 1024), (TYPE_UNIFIED, 3, 16, 16384)];

/// Who shares what, in bits of the APIC id.
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    /// Of a core: shares the inner caches.
    pub thread_bits: u32,
    /// Of an LLC.
    pub llc_bits: u32,
    /// Of the cores in a package.
    pub core_bits: u32,
    /// Tell no caches at all.
    pub hidden: bool,
    pub amd: bool,
}

/// Rewrites the cache leaves of a table.
pub fn describe(table: &mut Vec<kvm_cpuid_entry2>, sharing: &Sharing) {
    let leaf = if sharing.amd { LEAF_AMD_CACHE } else { LEAF_CACHE };
    let mut told: Vec<kvm_cpuid_entry2> =
        table.iter().filter(|entry| entry.function == leaf && entry.eax & TYPE_MASK != 0).copied().collect();
    table.retain(|entry| entry.function != leaf);
    let is_last = |entry: &kvm_cpuid_entry2| entry.eax >> LEVEL_SHIFT & 7 >= LAST_LEVEL;
    if told.is_empty() {
        told.extend(USUAL.map(usual));
    } else if !told.iter().any(is_last) {
        told.push(usual(USUAL[3]));
    }
    if sharing.hidden {
        told.clear();
    }
    for (index, entry) in (0..).zip(&mut told) {
        (entry.function, entry.index, entry.flags) = (leaf, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        let bits = if is_last(entry) { sharing.llc_bits } else { sharing.thread_bits };
        set_field(&mut entry.eax, SHARING_SHIFT, SHARING_MASK, bits);
        if !sharing.amd {
            set_field(&mut entry.eax, CORES_SHIFT, CORES_MASK, sharing.core_bits);
        }
    }
    // The end of the list.
    told.push(kvm_cpuid_entry2 {
        function: leaf,
        index: told.len() as u32,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..Default::default()
    });
    table.extend(told);
    if sharing.amd {
        match table.iter_mut().find(|entry| entry.function == LEAF_AMD_L3) {
            Some(entry) if entry.edx == 0 => entry.edx = AMD_L3_16_MIB,
            Some(_) => {}
            None => table.push(kvm_cpuid_entry2 { function: LEAF_AMD_L3, edx: AMD_L3_16_MIB, ..Default::default() }),
        }
    }
}

/// Writes the largest number of `bits` bits, as far as the field goes.
fn set_field(register: &mut u32, shift: u32, mask: u32, bits: u32) {
    let most = 1u32.checked_shl(bits).unwrap_or(0).wrapping_sub(1).min(mask);
    *register = (*register & !(mask << shift)) | most << shift;
}

fn usual((kind, level, ways, sets): (u32, u32, u32, u32)) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        eax: kind | level << LEVEL_SHIFT | SELF_INITIALIZING,
        ebx: (ways - 1) << WAYS_SHIFT | (LINE_BYTES - 1),
        ecx: sets - 1,
        ..Default::default()
    }
}
