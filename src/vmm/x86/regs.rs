//! Register values of a vCPU at a kernel's 64-bit entry, and the tables they point to.
//!
//! Owns the values; leaves handing them to KVM to vcpu.
//! Invariant: pure: values in, values out.

use super::layout::{BOOT_PARAMS_GPA, BOOT_STACK_GPA, GDT_GPA, IDT_GPA, PAGE_TABLES_GPA};
use kvm_bindings::{kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

/// Control register bits (Intel SDM vol. 3, 2.5).
const CR0_PE: u64 = 1;
pub const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
pub const CR4_OSFXSR: u64 = 1 << 9;
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// IA32_APIC_BASE: x2APIC mode (Intel SDM vol. 3, 12.12.1).
pub const APIC_BASE_X2APIC: u64 = 1 << 10;
/// IA32_EFER bits (Intel SDM vol. 3, 2.2.1).
pub const EFER_LME: u64 = 1 << 8;
pub const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 always reads as one.
const RFLAGS_RESERVED: u64 = 2;

/// Selectors that the 64-bit boot protocol asks for: __BOOT_CS and __BOOT_DS (Documentation/arch/x86/boot.rst).
pub const BOOT_CS: u16 = 0x10;
pub const BOOT_DS: u16 = 0x18;
/// The task register needs a busy TSS, though nothing uses it.
const BOOT_TSS: u16 = 0x20;
/// Segment types (Intel SDM vol. 3, 3.5): code execute/read accessed, data read/write accessed, busy 64-bit TSS.
const TYPE_CODE: u8 = 0xB;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TSS: u8 = 0xB;

/// Page table entry bits: present, writable, large page (Intel SDM vol. 3, 4.5).
const PTE_PRESENT_WRITABLE: u64 = 3;
const PTE_LARGE: u64 = 1 << 7;
const TABLE_BYTES: u64 = 4096;
const TABLE_ENTRIES: u64 = 512;
const LARGE_PAGE_SHIFT: u64 = 21;
/// The kernel, its boot data and its initramfs all lie below 4 GiB.
const IDENTITY_GIB: u64 = 4;

/// MSRs a BIOS would have set (Intel SDM vol. 4): IA32_MISC_ENABLE with fast strings on, and IA32_MTRR_DEF_TYPE with
/// MTRRs on and everything write-back, without which a reserved region mapped through /dev/mem is uncached.
const MSR_MISC_ENABLE: (u32, u64) = (0x1A0, 1);
const MSR_MTRR_DEF_TYPE: (u32, u64) = (0x2FF, 1 << 11 | 6);

/// The MSRs every vCPU begins with.
pub fn msrs() -> Vec<kvm_msr_entry> {
    [MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE]
        .into_iter()
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect()
}

/// General registers at the entry: RSI points to boot_params.
pub fn general(entry_gpa: u64) -> kvm_regs {
    kvm_regs {
        rip: entry_gpa,
        rsi: BOOT_PARAMS_GPA,
        rsp: BOOT_STACK_GPA,
        rbp: BOOT_STACK_GPA,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    }
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    let code = type_ == TYPE_CODE && selector == BOOT_CS;
    let system = selector == BOOT_TSS;
    kvm_segment {
        base: 0,
        limit: if system { 0x67 } else { u32::MAX },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!code && !system),
        s: u8::from(!system),
        l: u8::from(code),
        g: u8::from(!system),
        ..Default::default()
    }
}

/// Special registers: 64-bit mode over the identity page tables; `reset` is what KVM gave the vCPU.
pub fn special(reset: kvm_sregs) -> kvm_sregs {
    let mut sregs = reset;
    sregs.cs = segment(BOOT_CS, TYPE_CODE);
    let data = segment(BOOT_DS, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(BOOT_TSS, TYPE_BUSY_TSS);
    sregs.gdt = kvm_dtable { base: GDT_GPA, limit: (gdt().len() * 8 - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT_GPA, limit: 7, ..Default::default() };
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = PAGE_TABLES_GPA;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    sregs
}

/// One descriptor (Intel SDM vol. 3, 3.4.5) of a segment.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 { u64::from(segment.limit) >> 12 } else { u64::from(segment.limit) };
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xFFFF) | access << 40 | (limit >> 16 & 0xF) << 48 | flags << 52
}

/// The GDT: two empty entries, code, data, and a TSS of two entries.
pub fn gdt() -> [u64; 6] {
    let code = descriptor(&segment(BOOT_CS, TYPE_CODE));
    let data = descriptor(&segment(BOOT_DS, TYPE_DATA));
    [0, 0, code, data, descriptor(&segment(BOOT_TSS, TYPE_BUSY_TSS)), 0]
}

/// The identity page tables, to be written at `PAGE_TABLES_GPA`: 4 GiB in 2 MiB pages.
pub fn page_tables() -> Vec<u64> {
    let table = |index: u64| PAGE_TABLES_GPA + index * TABLE_BYTES;
    let mut words = vec![0u64; ((2 + IDENTITY_GIB) * TABLE_ENTRIES) as usize];
    words[0] = table(1) | PTE_PRESENT_WRITABLE;
    for gib in 0..IDENTITY_GIB {
        words[(TABLE_ENTRIES + gib) as usize] = table(2 + gib) | PTE_PRESENT_WRITABLE;
    }
    for page in 0..IDENTITY_GIB * TABLE_ENTRIES {
        words[(2 * TABLE_ENTRIES + page) as usize] = page << LARGE_PAGE_SHIFT | PTE_PRESENT_WRITABLE | PTE_LARGE;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::x86::layout::{CMDLINE_GPA, IDT_GPA};

    #[test]
    fn gdt_holds_the_descriptors_of_the_boot_protocol() {
        // Flat 64-bit code and flat data, as any manual's example has them.
        assert_eq!(gdt()[2], 0x00AF_9B00_0000_FFFF);
        assert_eq!(gdt()[3], 0x00CF_9300_0000_FFFF);
        assert_eq!(gdt()[4] >> 40 & 0xFF, 0x8B);
        assert!(GDT_GPA + gdt().len() as u64 * 8 <= IDT_GPA);
    }

    #[test]
    fn page_tables_map_every_address_below_4_gib_to_itself() {
        let words = page_tables();
        let entry = |gpa: u64| words[((gpa - PAGE_TABLES_GPA) / 8) as usize];
        for address in [0u64, 0x1F_FFFF, 0x100_0000, 0x7FFF_FFFF, 0xFFFF_F000] {
            let pml4e = entry(PAGE_TABLES_GPA + (address >> 39) * 8);
            let pdpte = entry((pml4e & !0xFFF) + (address >> 30 & 511) * 8);
            let pde = entry((pdpte & !0xFFF) + (address >> 21 & 511) * 8);
            assert_eq!(pde & 0x83, 0x83);
            assert_eq!((pde & !0x1F_FFFF) | (address & 0x1F_FFFF), address);
        }
        assert!(PAGE_TABLES_GPA + words.len() as u64 * 8 <= CMDLINE_GPA);
    }

    #[test]
    fn entry_state_is_64_bit_mode() {
        let sregs = special(kvm_sregs::default());
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.ds.db), (1, 0, 1));
        assert_eq!(sregs.efer & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA);
        assert_eq!(sregs.cr0 & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
        assert_eq!((general(0x100_0200).rip, general(0).rsi), (0x100_0200, BOOT_PARAMS_GPA));
        assert!(msrs().iter().any(|msr| msr.index == 0x2FF && msr.data == 0x806));
    }
}
