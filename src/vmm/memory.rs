//! Guest RAM in this process: its own memory or a file, with the ring, the kernel and the initramfs laid over it.
//!
//! Owns the mappings; leaves the address map to layout and what is written where to boot.
//! Invariant: the ring is the memory file, shared with the host's side; kernel and initramfs are private mappings of theirs,
//! so that VMs which map the same file share its pages until their guests write them.

#![allow(unsafe_code)]

use super::x86::layout::{HUGE_PAGE_BYTES, PAGE_BYTES, ram_ranges};
use crate::error::{Context, Error, Result};
use crate::proto::cpuset::CpuSet;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::AsRawFd;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

/// Maps the memory file as RAM; no page exists until it is touched.
pub fn map_ram(file: File, memory_bytes: u64) -> Result<GuestMemoryMmap> {
    let file = std::sync::Arc::new(file);
    let ranges = ram_ranges(memory_bytes).into_iter().map(|range| {
        let offset = FileOffset::from_arc(file.clone(), range.file_offset);
        (GuestAddress(range.gpa), range.bytes as usize, Some(offset))
    });
    GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|cause| {
        Error::host(format!("cannot map {} of guest memory: {cause}", crate::units::size(memory_bytes)))
    })
}

/// What RAM of this process's own is a private mapping of. It is anonymous memory, so that the host's huge pages back it,
/// as they do no memory file where its administrator did not ask for that; and it has a name in smaps, by which it is told
/// from what the process needs for itself (run/machine).
const ZERO_FILE: &str = "/dev/zero";

/// Maps RAM of this process's own, with a window of the memory file in it at `window`: first address and bytes.
/// It stays mapped as long as the process lives.
pub fn map_own_ram(file: &File, memory_bytes: u64, window: (u64, u64)) -> Result<GuestMemoryMmap> {
    let what = || format!("map {} of guest memory", crate::units::size(memory_bytes));
    let zero = File::options().read(true).write(true).open(ZERO_FILE).context(|| format!("open {ZERO_FILE}"))?;
    let mut regions = Vec::new();
    for range in ram_ranges(memory_bytes) {
        let place = reserve(range.bytes).context(what)?;
        // SAFETY: the place was reserved for this region alone, and is as long as it.
        unsafe { map_at(place, range.bytes, libc::MAP_PRIVATE, &zero, 0) }.context(what)?;
        let end = window.0.checked_add(window.1).filter(|_| window.0 >= range.gpa);
        if end.is_some_and(|end| window.1 > 0 && end <= range.gpa + range.bytes) {
            let inside = (window.0 - range.gpa) as usize;
            // SAFETY: the window lies within the region, as was just seen, and nothing refers to it yet.
            unsafe { map_at(place.add(inside), window.1, libc::MAP_SHARED, file, range.file_offset + inside as u64) }
                .context(what)?;
        }
        // SAFETY: the region is mapped for reading and writing, and nothing else uses or unmaps it.
        let region = unsafe { MmapRegion::build_raw(place, range.bytes as usize, READ_WRITE, libc::MAP_PRIVATE) };
        let region = region.map_err(|cause| Error::internal(format!("cannot {}: {cause}", what())))?;
        regions.extend(GuestRegionMmap::new(region, GuestAddress(range.gpa)));
    }
    let memory = GuestMemoryMmap::from_regions(regions)
        .map_err(|cause| Error::internal(format!("cannot {}: {cause}", what())))?;
    // A host that has no huge pages for it backs it with small ones.
    drop(ask_huge_pages(&memory));
    Ok(memory)
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Addresses for `bytes` that begin on a huge page, with nothing behind them yet: KVM maps one as such only where guest and
/// host addresses agree below it.
fn reserve(bytes: u64) -> io::Result<*mut u8> {
    let room = bytes.checked_add(HUGE_PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)? as usize;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, wherever there is room, that nobody may touch.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start.cast::<u8>().wrapping_add(start.align_offset(HUGE_PAGE_BYTES as usize)))
}

/// Maps `bytes` of a file at a place, instead of what is there.
///
/// # Safety
///
/// The place must be `bytes` long, and nothing may rely on what is mapped there.
unsafe fn map_at(place: *mut u8, bytes: u64, kind: libc::c_int, file: &File, offset: u64) -> io::Result<()> {
    let flags = kind | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the caller vouches for the place.
    let mapped =
        unsafe { libc::mmap(place.cast(), bytes as usize, READ_WRITE, flags, file.as_raw_fd(), offset as libc::off_t) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lays `bytes` of a file, from a page of it on, over RAM at `gpa`, copy-on-write, without copying.
pub fn overlay(memory: &GuestMemoryMmap, gpa: u64, (file, offset): (&File, u64), bytes: u64) -> Result<()> {
    let what = || format!("map {bytes} bytes of a file at guest address {gpa:#x}");
    let length = file.metadata().context(what)?.len();
    let span = bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES;
    // Page-aligned and within both, so that nothing but pages of this guest's RAM is replaced.
    let within = offset.checked_add(bytes).is_some_and(|end| end <= length);
    if gpa % PAGE_BYTES != 0 || offset % PAGE_BYTES != 0 || bytes == 0 || !within {
        return Err(Error::internal(format!("cannot {}: the file has {length} bytes", what())));
    }
    let slice = memory
        .get_slice(GuestAddress(gpa), span as usize)
        .map_err(|cause| Error::internal(format!("cannot {}: {cause}", what())))?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range lies within one mapping of `memory`, begins on a page, and is reached only through volatile
    // accesses, which find the new pages in the place of the old; the mapping's owner unmaps it with the rest.
    unsafe { map_at(guard.as_ptr(), span, libc::MAP_PRIVATE, file, offset) }.context(what)
}

/// Copies the same into RAM, where pages cannot be laid over it: RAM of huge pages cannot be split.
pub fn copy_in(memory: &GuestMemoryMmap, gpa: u64, (file, offset): (&mut File, u64), bytes: u64) -> Result<()> {
    let what = || format!("copy {bytes} bytes of a file to guest address {gpa:#x}");
    let failed = |cause| Error::host(format!("cannot {}: {cause}", what()));
    file.seek(io::SeekFrom::Start(offset)).context(what)?;
    memory.read_exact_volatile_from(GuestAddress(gpa), file, bytes as usize).map_err(failed)
}

/// Makes the pages of a stretch as if they had been written, with what they show; what others write meanwhile stays. An error
/// where the host's kernel cannot (before 5.14), or has no memory for it, loses nothing: each page is made when it is written.
pub fn populate(memory: &GuestMemoryMmap, gpa: u64, bytes: u64) -> io::Result<()> {
    let slice = memory.get_slice(GuestAddress(gpa), bytes as usize).map_err(io::Error::other)?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range lies within one mapping of `memory`, and what is in it does not change.
    check(unsafe { libc::madvise(guard.as_ptr().cast(), bytes as usize, libc::MADV_POPULATE_WRITE) }.into())
}

/// MPOL_BIND, and MPOL_F_ADDR of get_mempolicy(2) (include/uapi/linux/mempolicy.h).
const POLICY_BIND: libc::c_int = 2;
const POLICY_OF_ADDRESS: libc::c_ulong = 2;
/// Words of a node mask: as many nodes as MAX_NUMNODES of any kernel.
const NODE_WORDS: usize = 1024 / 64;

/// Binds what nobody has touched yet of RAM, and of what lies over it, to these nodes of the host; reads the policy back.
pub fn bind(memory: &GuestMemoryMmap, nodes: &CpuSet) -> io::Result<()> {
    let mut mask = [0u64; NODE_WORDS];
    for node in nodes.iter().filter(|node| (*node as usize) < NODE_WORDS * 64) {
        mask[node as usize / 64] |= 1 << (node % 64);
    }
    for region in memory.iter() {
        let (start, bits) = (region.as_ptr(), NODE_WORDS * 64);
        // SAFETY: the range is one mapping of `memory`; the policy of its pages changes nothing that references rely on.
        let bound = unsafe { libc::syscall(libc::SYS_mbind, start, region.len(), POLICY_BIND, mask.as_ptr(), bits, 0) };
        check(bound)?;
        let mode = policy_at(start)?;
        if mode != POLICY_BIND {
            return Err(io::Error::other(format!("the policy read back is {mode}")));
        }
    }
    Ok(())
}

/// The policy of the page at an address of this process.
fn policy_at(start: *const u8) -> io::Result<libc::c_int> {
    let mut mode: libc::c_int = -1;
    let no_mask = std::ptr::null_mut::<u64>();
    // SAFETY: `mode` is valid for the call, no mask is asked for, and the address is only looked up.
    check(unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut mode, no_mask, 0, start, POLICY_OF_ADDRESS) })?;
    Ok(mode)
}

/// Asks for transparent huge pages in RAM.
pub fn ask_huge_pages(memory: &GuestMemoryMmap) -> io::Result<()> {
    memory.iter().try_for_each(|region| {
        // SAFETY: the range is one mapping of `memory`, and the advice does not change what is in it.
        check(unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_HUGEPAGE) }.into())
    })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd;
    use crate::vmm::x86::layout::{HIGH_RAM_START, MMIO_HOLE_START};
    use std::os::unix::fs::FileExt;

    #[test]
    fn ram_is_the_file_on_both_sides_of_the_hole() {
        let bytes = MMIO_HOLE_START + (1 << 20);
        let file = fd::memfd("ram", bytes).unwrap();
        let memory = map_ram(file.try_clone().unwrap(), bytes).unwrap();
        memory.write_slice(b"low", GuestAddress(0x1000)).unwrap();
        memory.write_slice(b"high", GuestAddress(HIGH_RAM_START)).unwrap();
        let mut got = [0; 4];
        file.read_exact_at(&mut got[..3], 0x1000).unwrap();
        assert_eq!(&got[..3], b"low");
        file.read_exact_at(&mut got, MMIO_HOLE_START).unwrap();
        assert_eq!(&got, b"high");
        assert!(memory.write_slice(b"x", GuestAddress(MMIO_HOLE_START)).is_err());
    }

    #[test]
    fn own_ram_shares_the_window_and_nothing_else_with_the_file() {
        let bytes = MMIO_HOLE_START + (4 << 20);
        let file = fd::memfd("ram", bytes).unwrap();
        for window in [0x30_0000, HIGH_RAM_START + 0x10_0000] {
            let memory = map_own_ram(&file, bytes, (window, 0x2000)).unwrap();
            for gpa in [0x1000, window - 1, window + 0x1FFF, window + 0x2000, HIGH_RAM_START] {
                memory.write_slice(b"x", GuestAddress(gpa)).unwrap();
            }
            let offset = if window < HIGH_RAM_START { window } else { window - HIGH_RAM_START + MMIO_HOLE_START };
            let byte = |at: u64| {
                let mut got = [0];
                file.read_exact_at(&mut got, at).unwrap();
                got[0]
            };
            assert_eq!([0x1000, offset - 1, offset + 0x1FFF, offset + 0x2000].map(byte), [0, 0, b'x', 0]);
            file.write_all_at(b"y", offset).unwrap();
            let mut got = [0];
            memory.read_slice(&mut got, GuestAddress(window)).unwrap();
            assert_eq!(got, *b"y");
            let start = memory.get_host_address(GuestAddress(0)).unwrap();
            assert_eq!(start.align_offset(HUGE_PAGE_BYTES as usize), 0);
        }
        // Where the window is not RAM there is none.
        let memory = map_own_ram(&file, 1 << 20, (1 << 30, 0x2000)).unwrap();
        assert!(memory.write_slice(b"x", GuestAddress(1 << 30)).is_err());
    }

    #[test]
    fn overlay_shows_the_file_and_keeps_it_unwritten() {
        let ram = fd::memfd("ram", 1 << 20).unwrap();
        let memory = map_ram(ram, 1 << 20).unwrap();
        let file = fd::memfd("initramfs", 0).unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        overlay(&memory, 0x8000, (&file, 0), 5000).unwrap();
        let mut got = [0; 5001];
        memory.read_slice(&mut got, GuestAddress(0x8000)).unwrap();
        assert_eq!((&got[..5000], got[5000]), (&[7; 5000][..], 0));
        memory.write_slice(&[9], GuestAddress(0x8000)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn populated_pages_show_what_they_showed_and_are_of_this_process() {
        let memory = map_own_ram(&fd::memfd("ram", 1 << 20).unwrap(), 1 << 20, (0, 0)).unwrap();
        let file = fd::memfd("kernel", 0).unwrap();
        file.write_all_at(&[7; 3 * PAGE_BYTES as usize], 0).unwrap();
        overlay(&memory, 0x8000, (&file, 0), 3 * PAGE_BYTES).unwrap();
        memory.write_slice(&[9], GuestAddress(0x9000)).unwrap();
        match populate(&memory, 0x8000, 2 * PAGE_BYTES) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                eprintln!("not run: populating pages: this kernel does not know it: {error}");
                return;
            }
            done => done.unwrap(),
        }
        // What becomes of the file is seen in the page alone that was left out.
        file.write_all_at(&[8; 3 * PAGE_BYTES as usize], 0).unwrap();
        let byte = |gpa: u64| memory.read_obj::<u8>(GuestAddress(gpa)).unwrap();
        assert_eq!([0x8000, 0x9000, 0x9001, 0xA000].map(byte), [7, 9, 7, 8]);
        assert!(populate(&memory, 1 << 30, PAGE_BYTES).is_err());
    }

    /// KiB of the mapping at an address that somebody else maps, too (Documentation/filesystems/proc.rst, smaps).
    fn shared_kib(start: *const u8) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let place = format!("{:x}-", start as usize);
        let (mut of_file, mut sum) = (false, 0);
        for line in smaps.lines() {
            let first = line.split(' ').next().unwrap_or("");
            if first.contains('-') {
                of_file = line.starts_with(&place);
            } else if of_file && ["Shared_Clean:", "Shared_Dirty:"].contains(&first) {
                sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn guests_share_the_pages_of_a_file_until_they_write_them() {
        const PAGES: u64 = 16;
        let file = fd::memfd("ktstr-shared-pages", PAGES * PAGE_BYTES).unwrap();
        let ram = || fd::memfd("ram", 1 << 20).unwrap();
        let guests = [(); 2].map(|()| map_own_ram(&ram(), 1 << 20, (0, 0)).unwrap());
        for guest in &guests {
            overlay(guest, 0x8000, (&file, 0), PAGES * PAGE_BYTES).unwrap();
            let mut content = vec![0; (PAGES * PAGE_BYTES) as usize];
            guest.read_slice(&mut content, GuestAddress(0x8000)).unwrap();
        }
        // Of the guest that writes nothing: a process that another test forks has no page of it until it asks.
        let start = guests[1].get_host_address(GuestAddress(0x8000)).unwrap();
        assert_eq!(shared_kib(start), PAGES * PAGE_BYTES / 1024);
        guests[0].write_slice(&[1], GuestAddress(0x8000)).unwrap();
        let first = |guest: &GuestMemoryMmap| guest.read_obj::<u8>(GuestAddress(0x8000)).unwrap();
        assert_eq!((first(&guests[0]), first(&guests[1])), (1, 0));
        assert_eq!(shared_kib(start), (PAGES - 1) * PAGE_BYTES / 1024);
    }

    #[test]
    fn copy_shows_the_file_too() {
        let memory = map_ram(fd::memfd("ram", 1 << 20).unwrap(), 1 << 20).unwrap();
        let mut file = fd::memfd("initramfs", 0).unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        copy_in(&memory, 0x8000, (&mut file, 0), 5000).unwrap();
        let mut got = [0; 5001];
        memory.read_slice(&mut got, GuestAddress(0x8000)).unwrap();
        assert_eq!((&got[..5000], got[5000]), (&[7; 5000][..], 0));
        assert!(copy_in(&memory, 0x8000, (&mut file, 1), 5000).is_err(), "the file has no more");
    }

    #[test]
    fn binding_to_a_node_that_is_not_there_is_refused() {
        let memory = map_ram(fd::memfd("ram", 1 << 20).unwrap(), 1 << 20).unwrap();
        assert!(bind(&memory, &[1000].into_iter().collect()).is_err());
    }

    #[test]
    fn what_is_laid_over_bound_memory_is_bound_by_the_second_call() {
        let ram = fd::memfd("ram", 1 << 20).unwrap();
        let memory = map_own_ram(&ram, 1 << 20, (0x4_0000, 0x1000)).unwrap();
        let file = fd::memfd("initramfs", 8192).unwrap();
        let node: CpuSet = [0].into_iter().collect();
        if let Err(error) = bind(&memory, &node) {
            eprintln!("not run: binding of overlays: this kernel binds no memory: {error}");
            return;
        }
        overlay(&memory, 0x8000, (&file, 0), 8192).unwrap();
        let there = memory.get_host_address(GuestAddress(0x8000)).unwrap();
        assert_ne!(policy_at(there).unwrap(), POLICY_BIND, "a new mapping has none");
        bind(&memory, &node).unwrap();
        for gpa in [0, 0x8000, 0x9000, 0x4_0000, 0xF_F000] {
            let address = memory.get_host_address(GuestAddress(gpa)).unwrap();
            assert_eq!(policy_at(address).unwrap(), POLICY_BIND, "{gpa:#x}");
        }
    }

    #[test]
    fn overlay_outside_ram_or_file_is_refused() {
        let memory = map_ram(fd::memfd("ram", 1 << 20).unwrap(), 1 << 20).unwrap();
        let file = fd::memfd("initramfs", 8192).unwrap();
        for (gpa, bytes) in [(0x8001, 4096), (0xFF000, 8192), (0x8000, 8193), (0x8000, 0), (1 << 40, 4096)] {
            assert!(overlay(&memory, gpa, (&file, 0), bytes).is_err(), "{gpa:#x} {bytes}");
        }
    }
}
