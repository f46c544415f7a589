//! Where everything lies in guest-physical memory, for our own VMM and for `qemu-system-x86_64 -M pc` alike.
//!
//! Owns the address map and the placing of ring and initramfs; leaves writing them there to boot and memory.
//! Invariant: nothing overlaps, and one placement of the ring is right under both accelerators.

use crate::error::{Error, Result};
use crate::units::{self, MIB};
use crate::vmm::kernel::KernelImage;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// RAM ends here below 4 GiB: room for the APICs (as `-M pc` has it for large guests; hw/i386/pc_piix.c).
pub const MMIO_HOLE_START: u64 = 0xC000_0000;
/// RAM goes on here.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Boot GDT and IDT, in the unused part of the BIOS data area's page.
pub const GDT_GPA: u64 = 0x500;
pub const IDT_GPA: u64 = 0x540;
/// struct boot_params, the "zero page" (Documentation/arch/x86/zero-page.rst).
pub const BOOT_PARAMS_GPA: u64 = 0x7000;
/// A stack for the first instructions, growing down.
pub const BOOT_STACK_GPA: u64 = 0x8FF0;
/// Identity page tables: one PML4, one PDPT, four page directories for 4 GiB.
pub const PAGE_TABLES_GPA: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE_GPA: u64 = 0x2_0000;
/// Room for it; no kernel reads more than COMMAND_LINE_SIZE, 2048.
pub const CMDLINE_AREA_BYTES: u64 = 0x1_0000;
/// Conventional memory ends here, as where a BIOS keeps its extended data area.
pub const LOW_RAM_END: u64 = 0x9_FC00;
/// ACPI tables; a kernel that is not told looks for the RSDP from here on (ACPI 6.5, 5.2.5.1).
pub const ACPI_GPA: u64 = 0xE_0000;
/// The MP table's pointer, where a kernel looks for it at the end of conventional memory; and the table, in the BIOS area
/// (MultiProcessor Specification 1.4, 4).
pub const MP_POINTER_GPA: u64 = LOW_RAM_END;
pub const MPTABLE_GPA: u64 = 0xC_0000;
pub const MPTABLE_AREA_BYTES: u64 = ACPI_GPA - MPTABLE_GPA;
/// Extended memory begins here.
pub const EXTENDED_RAM_START: u64 = 0x10_0000;

/// I/O APIC and local APIC at their reset addresses (Intel SDM vol. 3, 10.4.1; 82093AA data sheet).
pub const IOAPIC_GPA: u32 = 0xFEC0_0000;
pub const LAPIC_GPA: u32 = 0xFEE0_0000;
/// The disk's registers, in the MMIO hole; and its interrupt: free on a PC without ISA cards.
pub const DISK_GPA: u64 = 0xD000_0000;
pub const DISK_IRQ: u32 = 5;
/// One page for KVM's real-mode identity map and three for its TSS (Documentation/virt/kvm/api.rst, 4.41 and 4.9).
pub const IDENTITY_MAP_GPA: u64 = 0xFFFB_C000;
pub const TSS_GPA: u64 = 0xFFFB_D000;

/// `-M pc` keeps this much below the end of low memory for ACPI data (acpi_data_size, hw/i386/pc_piix.c).
const QEMU_ACPI_DATA_BYTES: u64 = 0x2_8000;
/// QEMU puts the initramfs of an ELF kernel, or of an old bzImage, below this (hw/i386/x86-common.c).
const QEMU_OLD_INITRD_END: u64 = 0x3800_0000;
/// Room between the ring and the initramfs: QEMU's and our rounding, and SeaBIOS' high tables.
const PLACEMENT_SLACK_BYTES: u64 = MIB;
/// Large pages of x86: the ring begins on one, so that it splits no mapping.
pub const HUGE_PAGE_BYTES: u64 = 2 * MIB;
/// What a kernel and its first process need beyond the image and the initramfs; measured with a distribution's kernel.
const BASE_BYTES: u64 = 40 * MIB;

/// One stretch of RAM: guest-physical base, bytes, offset in the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    pub gpa: u64,
    pub bytes: u64,
    pub file_offset: u64,
}

/// The RAM of a guest of `memory_bytes`, split round the MMIO hole with no byte lost.
pub fn ram_ranges(memory_bytes: u64) -> Vec<RamRange> {
    let low = memory_bytes.min(MMIO_HOLE_START);
    let mut ranges = vec![RamRange { gpa: 0, bytes: low, file_offset: 0 }];
    if memory_bytes > low {
        ranges.push(RamRange { gpa: HIGH_RAM_START, bytes: memory_bytes - low, file_offset: low });
    }
    ranges
}

/// The RAM of each node: nodes lie one behind the other, and round the MMIO hole as all RAM does.
pub fn node_ranges(node_bytes: &[u64]) -> Vec<(u32, RamRange)> {
    let mut found = Vec::new();
    let mut start = 0;
    for (node, bytes) in (0u32..).zip(node_bytes) {
        let end = start + bytes;
        for ram in ram_ranges(node_bytes.iter().sum()) {
            let (from, to) = (start.max(ram.file_offset), end.min(ram.file_offset + ram.bytes));
            if from < to {
                let gpa = ram.gpa + (from - ram.file_offset);
                found.push((node, RamRange { gpa, bytes: to - from, file_offset: from }));
            }
        }
        start = end;
    }
    found
}

/// Where the parts that are not fixed lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLayout {
    pub memory_bytes: u64,
    /// The shared-memory ring; its offset in the memory file is the same number.
    pub ring_gpa: u64,
    pub ring_bytes: u64,
    /// Where our own VMM puts the initramfs. QEMU chooses for itself, never over the ring.
    pub initramfs_gpa: u64,
    pub initramfs_bytes: u64,
}

impl GuestLayout {
    /// Places ring and initramfs, or says how much memory would do.
    pub fn plan(memory_bytes: u64, kernel: &KernelImage, initramfs_bytes: u64, ring_bytes: u64) -> Result<Self> {
        let needed = Self::floor(kernel, initramfs_bytes, ring_bytes);
        let too_small = || {
            Error::usage(format!(
                "{} of guest memory are too little for this kernel ({} from {:#x} on) and its initramfs ({})",
                units::size(memory_bytes),
                units::size(kernel.end_gpa - kernel.start_gpa),
                kernel.start_gpa,
                units::size(initramfs_bytes)
            ))
            .hint(format!("--memory {}M is the smallest that would do", needed.div_ceil(MIB)))
        };
        if memory_bytes < needed {
            return Err(too_small());
        }
        let low_end = memory_bytes.min(MMIO_HOLE_START) & !(PAGE_BYTES - 1);
        let pages = |bytes: u64| bytes.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES);
        let our_end = low_end.min(kernel.initramfs_end_max);
        let initramfs_gpa = our_end.checked_sub(pages(initramfs_bytes)).ok_or_else(too_small)?;
        let ring_gpa = our_end
            .min(low_end - QEMU_ACPI_DATA_BYTES)
            .min(QEMU_OLD_INITRD_END - QEMU_ACPI_DATA_BYTES)
            .checked_sub(pages(initramfs_bytes).saturating_add(PLACEMENT_SLACK_BYTES).saturating_add(ring_bytes))
            .ok_or_else(too_small)?
            & !(HUGE_PAGE_BYTES - 1);
        if ring_gpa < kernel.end_gpa {
            return Err(too_small());
        }
        Ok(Self { memory_bytes, ring_gpa, ring_bytes, initramfs_gpa, initramfs_bytes })
    }

    /// The smallest memory that holds kernel, initramfs (packed and unpacked), ring, and what the kernel itself needs.
    pub fn floor(kernel: &KernelImage, initramfs_bytes: u64, ring_bytes: u64) -> u64 {
        let placement = QEMU_ACPI_DATA_BYTES + PLACEMENT_SLACK_BYTES + HUGE_PAGE_BYTES;
        let parts = [kernel.end_gpa, initramfs_bytes, initramfs_bytes, ring_bytes, placement, BASE_BYTES];
        let sum = parts.iter().fold(0u64, |sum, part| sum.saturating_add(*part));
        sum.div_ceil(MIB).saturating_mul(MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::kernel::KernelKind;

    fn kernel() -> KernelImage {
        KernelImage {
            path: "/k".into(),
            kind: KernelKind::BzImage,
            start_gpa: 0x100_0000,
            end_gpa: 0x4C3_B000,
            entry_gpa: 0x100_0200,
            initramfs_end_max: 0x8000_0000,
            cmdline_max_bytes: 2047,
        }
    }

    #[test]
    fn ram_is_split_round_the_hole_without_loss() {
        assert_eq!(ram_ranges(256 << 20), [RamRange { gpa: 0, bytes: 256 << 20, file_offset: 0 }]);
        let four = ram_ranges(4 << 30);
        assert_eq!(four[0], RamRange { gpa: 0, bytes: 3 << 30, file_offset: 0 });
        assert_eq!(four[1], RamRange { gpa: 1 << 32, bytes: 1 << 30, file_offset: 3 << 30 });
        assert_eq!(ram_ranges(MMIO_HOLE_START).len(), 1);
    }

    #[test]
    fn nodes_share_out_ram_without_loss() {
        let nodes = node_ranges(&[2 << 30, 0, 2 << 30]);
        let range = |gpa, bytes, file_offset| RamRange { gpa, bytes, file_offset };
        assert_eq!(nodes[0], (0, range(0, 2 << 30, 0)));
        assert_eq!(nodes[1], (2, range(2 << 30, 1 << 30, 2 << 30)));
        assert_eq!(nodes[2], (2, range(HIGH_RAM_START, 1 << 30, 3 << 30)));
        assert_eq!(nodes.len(), 3);
    }

    #[test]
    fn ring_is_clear_of_kernel_and_initramfs_under_both_accelerators() {
        for memory in [192 * MIB, 256 * MIB, 1024 * MIB, 3072 * MIB, 3328 * MIB, 4096 * MIB, 65536 * MIB] {
            for initramfs in [1, 4096, 3 * MIB + 17, 20 * MIB] {
                for ring in [PAGE_BYTES, 2 * MIB, 8 * MIB] {
                    let layout = GuestLayout::plan(memory, &kernel(), initramfs, ring).unwrap();
                    let ring_end = layout.ring_gpa + ring;
                    assert!(layout.ring_gpa >= kernel().end_gpa);
                    assert!(ring_end <= layout.initramfs_gpa);
                    assert!(layout.initramfs_gpa + initramfs <= memory.min(0x8000_0000));
                    assert_eq!((layout.ring_gpa % HUGE_PAGE_BYTES, layout.initramfs_gpa % PAGE_BYTES), (0, 0));
                    // QEMU's own rule, for each limit it may apply.
                    let low = if memory >= 0xE000_0000 { 0xC000_0000 } else { memory };
                    for limit in [u64::from(u32::MAX), 0x7FFF_FFFF, 0x37FF_FFFF] {
                        let end = limit.min(low - QEMU_ACPI_DATA_BYTES - 1);
                        let start = (end - initramfs) & !(PAGE_BYTES - 1);
                        assert!(ring_end <= start, "{memory:#x} {initramfs:#x}: ring ends {ring_end:#x}, {start:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn too_little_memory_names_what_would_do() {
        let error = GuestLayout::plan(16 * MIB, &kernel(), 4 * MIB, 2 * MIB).unwrap_err();
        let floor = GuestLayout::floor(&kernel(), 4 * MIB, 2 * MIB);
        assert!(error.to_string().contains("16 MiB of guest memory are too little"), "{error}");
        assert!(error.to_string().contains(&format!("--memory {}M", floor / MIB)), "{error}");
        assert!(GuestLayout::plan(floor, &kernel(), 4 * MIB, 2 * MIB).is_ok());
        assert!(GuestLayout::plan(floor - 1, &kernel(), 4 * MIB, 2 * MIB).is_err());
        assert!(GuestLayout::plan(1 << 40, &kernel(), 3 << 30, 2 * MIB).is_err());
        assert!(GuestLayout::plan(u64::MAX, &kernel(), u64::MAX, u64::MAX).is_err());
    }
}
