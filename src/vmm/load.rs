//! What a guest finds in its memory at the start: kernel, tables, initramfs.
//!
//! Owns what is mapped, what is copied, and which pages are made ahead of the guest; leaves how to memory, and where to the
//! configuration and to x86/boot.
//! Invariant: all of it is there before a vCPU runs.

use super::adopt;
use super::config::{UnpackedKernel, VmConfig};
use super::kernel::KernelImage;
use super::memory;
use super::threads::STACK_BYTES;
use super::x86::apic::ApicIds;
use super::x86::boot;
use crate::error::Result;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use vm_memory::GuestMemoryMmap;

/// Brings in the kernel and what it finds beside it; gives its entry point.
pub fn kernel(memory: &GuestMemoryMmap, config: &VmConfig, apic: &ApicIds) -> Result<u64> {
    if let Some(unpacked) = &config.unpacked {
        let mut file = File::from(adopt(unpacked.fd, "the unpacked kernel")?);
        lay(memory, config, unpacked.start_gpa, (&mut file, unpacked.offset), unpacked.bytes)?;
        boot::load_tables(memory, config, apic, None)?;
        return Ok(unpacked.entry_gpa);
    }
    let (image, mut file) = KernelImage::open_file(Path::new(&config.kernel_path))?;
    let header = boot::load_kernel(memory, &image, &mut file)?;
    boot::load_tables(memory, config, apic, header)?;
    Ok(image.entry_gpa)
}

/// Brings in the initramfs, where there is one.
pub fn initramfs(memory: &GuestMemoryMmap, config: &VmConfig) -> Result<()> {
    if config.initramfs_bytes == 0 {
        return Ok(());
    }
    let mut initramfs = File::from(adopt(config.initramfs_fd, "the initramfs")?);
    let mut from = 0;
    if let Some(part) = &config.initramfs_shared {
        from = part.bytes.min(config.initramfs_bytes);
        let mut shared = File::from(adopt(part.fd, "the shared part of the initramfs")?);
        lay(memory, config, config.initramfs_gpa, (&mut shared, 0), from)?;
    }
    let (gpa, bytes) = (config.initramfs_gpa + from, config.initramfs_bytes - from);
    lay(memory, config, gpa, (&mut initramfs, from), bytes)
}

/// Maps part of a file into guest memory, or copies it where that is of reserved huge pages, which cannot be split.
fn lay(memory: &GuestMemoryMmap, config: &VmConfig, gpa: u64, part: (&mut File, u64), bytes: u64) -> Result<()> {
    match has_reserved_pages(config) {
        true => memory::copy_in(memory, gpa, part, bytes),
        false => memory::overlay(memory, gpa, (part.0, part.1), bytes),
    }
}

pub fn has_reserved_pages(config: &VmConfig) -> bool {
    config.perf.as_ref().is_some_and(|perf| perf.huge_pages)
}

/// What is made at once: a mapping can be changed in between, such as for the stack of a thread.
const PIECE_BYTES: u64 = 256 << 10;

/// Makes the pages that the guest's kernel will write while it boots, beside it. It writes nearly every page but those that
/// it only reads (its text is patched, its data filled, its start-up part given back), and a page that is mapped
/// copy-on-write costs it two faults: one to read it, and one to write it. The thread is not joined: it ends by itself, or
/// with the process; without it the guest makes them all.
pub fn start_populating(memory: &GuestMemoryMmap, config: &VmConfig) {
    // In performance mode nothing of ours may run where vCPUs do; and where it is not known what the kernel only reads, all of
    // that would be lost to other VMs.
    let known = |kernel: &&UnpackedKernel| kernel.read_only_gpa < kernel.read_only_end;
    let Some(kernel) = config.unpacked.as_ref().filter(known).filter(|_| config.perf.is_none()) else { return };
    let (memory, written) = (memory.clone(), written(kernel));
    let body = move || {
        for piece in written.into_iter().flat_map(pieces) {
            // One that fails is like none.
            if memory::populate(&memory, piece.start, piece.end - piece.start).is_err() {
                return;
            }
        }
    };
    drop(std::thread::Builder::new().name("populate".into()).stack_size(STACK_BYTES).spawn(body));
}

/// What the kernel writes: first its data and its start-up part, in which it begins.
fn written(kernel: &UnpackedKernel) -> [Range<u64>; 2] {
    [kernel.read_only_end..kernel.start_gpa + kernel.bytes, kernel.start_gpa..kernel.read_only_gpa]
}

fn pieces(whole: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    (whole.start..whole.end).step_by(PIECE_BYTES as usize).map(move |at| at..(at + PIECE_BYTES).min(whole.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_made_once_and_what_it_reads_is_not() {
        const MIB: u64 = 1 << 20;
        let kernel = UnpackedKernel {
            fd: -1,
            offset: 4096,
            start_gpa: 16 * MIB,
            bytes: 46 * MIB + 4096,
            entry_gpa: 50 * MIB,
            read_only_gpa: 36 * MIB,
            read_only_end: 50 * MIB,
        };
        let all: Vec<Range<u64>> = written(&kernel).into_iter().flat_map(pieces).collect();
        assert!(all.iter().all(|piece| piece.end - piece.start <= PIECE_BYTES && piece.start % 4096 == 0));
        assert_eq!(all[0].start, 50 * MIB);
        let bytes: u64 = all.iter().map(|piece| piece.end - piece.start).sum();
        assert_eq!(bytes, 32 * MIB + 4096);
        assert!(all.iter().all(|piece| piece.end <= 36 * MIB || piece.start >= 50 * MIB));
    }
}
