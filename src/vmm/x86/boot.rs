//! The Linux x86 boot protocol: kernel, command line, boot_params, tables, all into guest memory.
//!
//! Owns what lies where at the kernel's first instruction; leaves the addresses to layout and the registers to regs.
//! Invariant: the memory map given to the guest is exactly its RAM, without what is reserved.

use super::acpi::{self, Described};
use super::apic::ApicIds;
use super::layout::{
    ACPI_GPA, BOOT_PARAMS_GPA, CMDLINE_GPA, EXTENDED_RAM_START, GDT_GPA, IDT_GPA, LOW_RAM_END, MP_POINTER_GPA,
    MPTABLE_GPA, PAGE_BYTES, PAGE_TABLES_GPA, ram_ranges,
};
use super::{mptable, regs};
use crate::error::{Error, Result};
use crate::vmm::config::VmConfig;
use crate::vmm::kernel::{KernelImage, KernelKind};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use std::fs::File;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// e820 types (Documentation/arch/x86/boot.rst, include/uapi/asm/bootparam.h).
pub const E820_RAM: u32 = 1;
pub const E820_RESERVED: u32 = 2;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;
const BOOT_FLAG: u16 = 0xAA55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Boot protocol 2.15, the newest that this file speaks.
const PROTOCOL: u16 = 0x020F;

/// One line of the guest's memory map: start, bytes, type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    pub gpa: u64,
    pub bytes: u64,
    pub kind: u32,
}

/// The e820 map: RAM round the BIOS area, the MMIO hole and the reserved region.
pub fn memory_map(memory_bytes: u64, reserved: Option<(u64, u64)>) -> Result<Vec<MapEntry>> {
    let ram = |gpa: u64, end: u64| MapEntry { gpa, bytes: end.saturating_sub(gpa), kind: E820_RAM };
    let kept = |gpa: u64, bytes: u64| MapEntry { gpa, bytes, kind: E820_RESERVED };
    let mut map = vec![ram(0, LOW_RAM_END), kept(LOW_RAM_END, EXTENDED_RAM_START - LOW_RAM_END)];
    for range in ram_ranges(memory_bytes) {
        let (start, end) = (range.gpa.max(EXTENDED_RAM_START), range.gpa + range.bytes);
        match reserved {
            Some((base, bytes)) if (start..end).contains(&base) && bytes <= end - base => {
                map.extend([ram(start, base), kept(base, bytes), ram(base + bytes, end)]);
            }
            _ => map.push(ram(start, end)),
        }
    }
    map.retain(|entry| entry.bytes > 0);
    match reserved {
        Some((base, bytes))
            if !map.contains(&kept(base, bytes)) || base % PAGE_BYTES != 0 || bytes % PAGE_BYTES != 0 =>
        {
            Err(Error::internal(format!("the reserved region {base:#x} + {bytes:#x} is not within guest memory")))
        }
        _ => Ok(map),
    }
}

/// Copies the kernel into guest memory; gives the setup header that it brought, where it brought one.
pub fn load_kernel(memory: &GuestMemoryMmap, image: &KernelImage, file: &mut File) -> Result<Option<setup_header>> {
    let (start, none) = (GuestAddress(image.start_gpa), None);
    let loaded: KernelLoaderResult = match image.kind {
        KernelKind::BzImage => BzImage::load(memory, Some(start), file, none),
        // An offset of 0 keeps the physical addresses of the file, and skips its notes, which are not needed.
        KernelKind::Vmlinux => Elf::load(memory, Some(GuestAddress(0)), file, none),
    }
    .map_err(|cause| Error::usage(format!("cannot load kernel {}: {cause}", image.path.display())))?;
    Ok(loaded.setup_header)
}

/// Puts everything else into guest memory that the kernel finds there at its first instruction.
pub fn load_tables(
    memory: &GuestMemoryMmap,
    config: &VmConfig,
    apic: &ApicIds,
    header: Option<setup_header>,
) -> Result<()> {
    let params = zero_page(config, header)?;
    write(memory, BOOT_PARAMS_GPA, params)?;
    write_bytes(memory, CMDLINE_GPA, config.cmdline.as_bytes())?;
    write_bytes(memory, CMDLINE_GPA + config.cmdline.len() as u64, &[0])?;
    write_bytes(memory, PAGE_TABLES_GPA, &words(&regs::page_tables()))?;
    write_bytes(memory, GDT_GPA, &words(&regs::gdt()))?;
    write_bytes(memory, IDT_GPA, &[0; 8])?;
    match mptable::make(apic, config.topology.total_cpus()) {
        Ok(made) => {
            write_bytes(memory, MP_POINTER_GPA, &made.pointer)?;
            write_bytes(memory, MPTABLE_GPA, &made.table)?;
        }
        // Only a kernel that is kept from ACPI needs it.
        Err(error) if config.cmdline.split_whitespace().any(|word| word == "acpi=off") => return Err(error),
        Err(_) => {}
    }
    let described = Described { topology: &config.topology, apic, numa: &config.numa, disk: config.disk.is_some() };
    write_bytes(memory, ACPI_GPA, &acpi::tables(&described)?)
}

/// The boot_params of this VM, over the setup header that the kernel brought, where it brought one.
fn zero_page(config: &VmConfig, header: Option<setup_header>) -> Result<boot_params> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: PROTOCOL,
            loadflags: 1,
            ..Default::default()
        }),
        acpi_rsdp_addr: ACPI_GPA,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE_GPA as u32;
    params.hdr.cmdline_size = config.cmdline.len() as u32;
    if config.initramfs_bytes > 0 {
        let fits = |value: u64| u32::try_from(value).map_err(|_| Error::internal("the initramfs lies above 4 GiB"));
        params.hdr.ramdisk_image = fits(config.initramfs_gpa)?;
        params.hdr.ramdisk_size = fits(config.initramfs_bytes)?;
    }
    let map = memory_map(config.memory_bytes, config.reserved)?;
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: entry.gpa, size: entry.bytes, r#type: entry.kind };
    }
    params.e820_table = table;
    Ok(params)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn write_bytes(memory: &GuestMemoryMmap, gpa: u64, bytes: &[u8]) -> Result<()> {
    memory.write_slice(bytes, GuestAddress(gpa)).map_err(|cause| outside(gpa, cause))
}

fn write(memory: &GuestMemoryMmap, gpa: u64, value: boot_params) -> Result<()> {
    memory.write_obj(value, GuestAddress(gpa)).map_err(|cause| outside(gpa, cause))
}

fn outside(gpa: u64, cause: impl std::fmt::Display) -> Error {
    Error::internal(format!("cannot write guest memory at {gpa:#x}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::config::tests::sample;
    use crate::vmm::x86::layout::CMDLINE_AREA_BYTES;

    fn ram_bytes(map: &[MapEntry]) -> u64 {
        map.iter().filter(|entry| entry.kind == E820_RAM).map(|entry| entry.bytes).sum()
    }

    #[test]
    fn memory_map_is_ordered_and_without_overlap() {
        for memory in [64u64 << 20, 256 << 20, 3 << 30, 4 << 30, 64 << 30] {
            let reserved = Some((32 << 20, 2 << 20));
            let map = memory_map(memory, reserved).unwrap();
            assert!(map.windows(2).all(|pair| pair[0].gpa + pair[0].bytes <= pair[1].gpa), "{map:?}");
            let bios = EXTENDED_RAM_START - LOW_RAM_END;
            assert_eq!(ram_bytes(&map), memory - bios - (2 << 20));
            assert!(map.contains(&MapEntry { gpa: 32 << 20, bytes: 2 << 20, kind: E820_RESERVED }));
        }
    }

    #[test]
    fn reserved_region_outside_ram_is_refused() {
        for reserved in [(256 << 20, 4096), (0xC000_0000, 4096), (255 << 20, 2 << 20), (0, 4096), ((1 << 20) + 1, 4096)]
        {
            assert!(memory_map(256 << 20, Some(reserved)).is_err(), "{reserved:?}");
        }
        assert!(memory_map(256 << 20, Some((u64::MAX, u64::MAX))).is_err());
        assert_eq!(memory_map(256 << 20, None).unwrap().len(), 3);
    }

    #[test]
    fn zero_page_names_initramfs_cmdline_and_rsdp() {
        let config = sample();
        let params = zero_page(&config, None).unwrap();
        let (image, size, rsdp) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size, params.acpi_rsdp_addr);
        assert_eq!((u64::from(image), u64::from(size), rsdp), (config.initramfs_gpa, 4096, ACPI_GPA));
        let (magic, flag) = (params.hdr.header, params.hdr.boot_flag);
        assert_eq!((magic, flag), (HEADER_MAGIC, BOOT_FLAG));
        assert_eq!(params.e820_entries, 5);
    }

    #[test]
    fn writing_outside_ram_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        assert!(write_bytes(&memory, CMDLINE_GPA, &[0; 4096]).is_ok());
        assert!(write_bytes(&memory, (16 << 20) - 1, &[0, 0]).is_err());
        const { assert!(CMDLINE_GPA + CMDLINE_AREA_BYTES <= LOW_RAM_END) };
    }
}
