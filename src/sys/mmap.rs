//! Mappings: shared memory that is atomics only, and read-only files.
//!
//! Owns the pointer and its lifetime; leaves what the words mean to the callers.
//! Invariant: memory that another process may write is reached through atomics only.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A mapping that is unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: the mapping is plain memory; all access to it goes through atomics or is read-only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn map(bytes: usize, protection: i32, flags: i32, fd: i32, offset: u64) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, offset as libc::off_t) };
        if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { base, bytes }) }
    }

    /// Zeroed memory shared with children forked from here.
    pub fn shared_anonymous(bytes: usize) -> io::Result<Self> {
        // Miri knows no shared mappings; its one process cannot tell.
        let sharing = if cfg!(miri) { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE, sharing | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Zeroed memory of this process alone, a page at a time when it is touched.
    pub fn private_anonymous(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Part of a file or device, shared with whoever else maps it. `offset` is page-aligned.
    pub fn shared_file(fd: &impl AsRawFd, offset: u64, bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd.as_raw_fd(), offset)
    }

    /// A private, read-only view of a file that nobody writes meanwhile.
    pub fn read_only(fd: &impl AsRawFd, bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::PROT_READ, libc::MAP_PRIVATE, fd.as_raw_fd(), 0)
    }

    pub fn len(&self) -> usize {
        self.bytes
    }
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
    /// The start, for calls that hand the memory to the kernel.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.cast()
    }

    /// The memory as 64-bit words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: a mapping is page-aligned, lives as long as `self`, and AtomicU64 has the layout of u64.
        unsafe { std::slice::from_raw_parts(self.base.cast::<AtomicU64>(), self.bytes / 8) }
    }

    /// The memory as 32-bit words, which is what a futex needs.
    pub fn halves(&self) -> &[AtomicU32] {
        // SAFETY: a mapping is page-aligned, lives as long as `self`, and AtomicU32 has the layout of u32.
        unsafe { std::slice::from_raw_parts(self.base.cast::<AtomicU32>(), self.bytes / 4) }
    }

    /// Gives the pages of an anonymous mapping back; it reads as zero afterwards.
    pub fn discard(&self) -> io::Result<()> {
        // SAFETY: the range is a mapping of ours, and all access to it is through atomics, for which zero is a value.
        super::check(unsafe { libc::madvise(self.base, self.bytes, libc::MADV_DONTNEED) })?;
        Ok(())
    }

    /// Writes its first `bytes` bytes into a file, at an offset; returns how many went.
    pub fn write_to(&self, file: &impl AsRawFd, bytes: usize, offset: u64) -> io::Result<usize> {
        let bytes = bytes.min(self.bytes);
        // SAFETY: the mapping is valid for `bytes`.
        let count = unsafe { libc::pwrite(file.as_raw_fd(), self.base, bytes, offset as libc::off_t) };
        super::check_long(count as libc::c_long).map(|count| count as usize)
    }

    /// Fills its first `bytes` bytes from a file, at an offset; returns how many came.
    pub fn read_from(&self, file: &impl AsRawFd, bytes: usize, offset: u64) -> io::Result<usize> {
        let bytes = bytes.min(self.bytes);
        // SAFETY: the mapping is valid for `bytes`, and every value of its words is valid.
        let count = unsafe { libc::pread(file.as_raw_fd(), self.base, bytes, offset as libc::off_t) };
        super::check_long(count as libc::c_long).map(|count| count as usize)
    }

    /// The bytes of a `read_only` mapping.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as `self`; callers map only files that nobody writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.base.cast::<u8>(), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a successful mmap, and no reference outlives `self`.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_of_one_file_see_the_same_words() {
        let file = super::super::fd::memfd("test", 8192).unwrap();
        let a = Mapping::shared_file(&file, 4096, 4096).unwrap();
        let b = Mapping::shared_file(&file, 0, 8192).unwrap();
        a.words()[3].store(42, Ordering::Release);
        assert_eq!(b.words()[512 + 3].load(Ordering::Acquire), 42);
        assert_eq!(b.words().len(), 1024);
    }
}
