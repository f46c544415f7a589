//! Hostile files in the place of a kernel, to the last of their readers: the ELF file that is packed inside of one, and a
//! file of the cache of unpacked kernels.
//!
//! Owns the target; leaves what a VM reads of a kernel to vmm/hostile, running the target to crate::hostile.
//! Invariant: whatever a file says of its size, no more than `UNPACKED_MOST_BYTES` is unpacked.

use super::unpacked::{self, CONTENT_AT};
use crate::sys::fd::memfd;
use crate::vmm;
use crate::vmm::x86::layout::{EXTENDED_RAM_START, MMIO_HOLE_START};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Room for every seed, and for the sections of what a fuzzer makes of one.
const UNPACKED_MOST_BYTES: u64 = 1 << 20;

/// A file given as the kernel, what is packed in it, and the same bytes as the cache's.
pub fn kernel(data: &[u8]) {
    vmm::hostile::kernel(data);
    vmm::hostile::elf(data);
    if let Ok(inside) = unpacked::unpack(data, UNPACKED_MOST_BYTES) {
        assert!(inside.len() as u64 <= UNPACKED_MOST_BYTES, "{} bytes unpacked", inside.len());
        vmm::hostile::elf(&inside);
    }
    cached(data);
}

/// Whether it was taken for whole.
fn cached(data: &[u8]) -> bool {
    let file = memfd("hostile-cache", 0).expect("make a memory file");
    file.write_all_at(data, 0).expect("write to memory");
    // What a header tells is compared with the length: whole pages, as of a file that was not cut.
    let length = (data.len() as u64).next_multiple_of(CONTENT_AT).max(2 * CONTENT_AT);
    file.set_len(length).expect("set the length of a memory file");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Some(found) = unpacked::open(Path::new(&path)).expect("open a file of the cache") else { return false };
    // All of it is mapped, where the VM's RAM is: past its end a guest would meet SIGBUS.
    assert_eq!(found.bytes + CONTENT_AT, length);
    let places = [EXTENDED_RAM_START, found.start_gpa, found.start_gpa + found.bytes, MMIO_HOLE_START];
    assert!(places.is_sorted() && found.entry_gpa < places[2] && found.entry_gpa >= places[1], "{found:?}");
    let (start, end) = found.read_only;
    assert!(places[1] <= start && start <= end && end <= places[2], "{found:?}");
    assert!([found.start_gpa, found.bytes, start, end].iter().all(|number| number % CONTENT_AT == 0), "{found:?}");
    true
}

/// Those of a VM, one of them packed into another, and a file of the cache.
pub fn kernel_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vmm::hostile::kernel_seeds();
    let (bzimage, vmlinux) = (&seeds[0], &seeds[2]);
    // The payload behind all else: its offset in the protected-mode part, behind two sectors, and its length.
    let (payload, mut packed) = (stored_gzip(vmlinux), bzimage.clone());
    packed[0x248..0x24C].copy_from_slice(&(bzimage.len() as u32 - 0x400).to_le_bytes());
    packed[0x24C..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    packed.extend(payload);
    let mut cached = unpacked::MAGIC.to_vec();
    for number in [0x100_0000u64, CONTENT_AT, 0x100_0010, 0x100_0000, 0x100_1000] {
        cached.extend(number.to_le_bytes());
    }
    seeds.extend([packed, cached]);
    seeds
}

/// A gzip file of one block that is stored as it is (RFC 1952, RFC 1951 3.2.4).
fn stored_gzip(content: &[u8]) -> Vec<u8> {
    let length = content.len() as u16;
    let mut file = vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF, 1];
    file.extend(length.to_le_bytes());
    file.extend((!length).to_le_bytes());
    file.extend(content);
    file.extend(crc32fast::hash(content).to_le_bytes());
    file.extend(u32::from(length).to_le_bytes());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_reach_the_kernel_inside_and_the_cache() {
        let seeds = kernel_seeds();
        let reached = seeds.iter().map(|seed| {
            let inside = unpacked::unpack(seed, UNPACKED_MOST_BYTES).unwrap_or_default();
            [vmm::hostile::elf(seed), vmm::hostile::elf(&inside), cached(seed)]
        });
        let reached: Vec<[bool; 3]> = reached.collect();
        for way in 0..3 {
            assert!(reached.iter().any(|seed| seed[way]), "way {way}: {reached:?}");
        }
    }
}
