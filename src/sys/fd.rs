//! Descriptors: anonymous memory files, pipes, eventfds, flags.
//!
//! Owns making them and their flags; leaves reading and writing to std where it can.
//! Invariant: every descriptor made here is close-on-exec until `inheritable` is called.

use super::{c_string, check};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

fn owned(raw: RawFd) -> OwnedFd {
    // SAFETY: every caller passes a descriptor that a successful call has just returned, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// An anonymous memory file of `bytes` bytes; its pages exist when they are touched.
pub fn memfd(name: &str, bytes: u64) -> io::Result<File> {
    let name = c_string(name)?;
    // SAFETY: the name is a valid C string for the length of the call.
    let raw = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    let file = File::from(owned(raw));
    file.set_len(bytes)?;
    Ok(file)
}

/// The same of 2 MiB pages from the system's pool; fails where the kernel has none such.
pub fn memfd_huge(name: &str, bytes: u64) -> io::Result<File> {
    let name = c_string(name)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    // SAFETY: the name is a valid C string for the length of the call.
    let raw = check(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    let file = File::from(owned(raw));
    file.set_len(bytes)?;
    Ok(file)
}

/// A pipe: (read end, write end).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(ends[0]), owned(ends[1])))
}

/// A connected pair of stream sockets.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) })?;
    Ok((owned(ends[0]), owned(ends[1])))
}

/// An event counter, non-blocking.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let raw = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    Ok(owned(raw))
}

/// Reads and writes return at once from now on.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl with F_GETFL takes no memory.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: fcntl with F_SETFL takes no memory.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// Keeps the descriptor open across exec.
pub fn inheritable(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl with F_SETFD takes no memory.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) })?;
    Ok(())
}

/// Locks the open file, alone or shared; false where another open file has it locked against us. Lasts until the last
/// descriptor of this open file is closed, in whatever process.
pub fn try_lock(fd: &impl AsRawFd, alone: bool) -> io::Result<bool> {
    let kind = if alone { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: flock takes no memory.
    match check(unsafe { libc::flock(fd.as_raw_fd(), kind | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes over a descriptor that this process inherited under a number it was told; fails where the number is not open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_SETFD takes no memory.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(owned(number))
}

/// Reads what is there: `Ok(None)` where nothing is yet, `Ok(Some(0))` at the end.
pub fn read_available(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if count >= 0 {
        return Ok(Some(count as usize));
    }
    match io::Error::last_os_error() {
        error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        error => Err(error),
    }
}

/// Opens a file for reading without allocating, so that a forked child may call it.
pub fn open_read(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the path is a valid C string for the length of the call.
    let raw = check(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
    Ok(owned(raw))
}

/// Opens with these flags (and close-on-exec) without allocating; a new file gets mode 0600.
pub fn open_with(path: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the path is a valid C string for the length of the call.
    let raw = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) })?;
    Ok(owned(raw))
}

/// Removes a name, without allocating.
pub fn unlink(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a valid C string for the length of the call.
    check(unsafe { libc::unlink(path.as_ptr()) })?;
    Ok(())
}

/// Makes or removes a directory, without allocating.
pub fn make_directory(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a valid C string for the length of the call.
    check(unsafe { libc::mkdir(path.as_ptr(), 0o755) })?;
    Ok(())
}
pub fn remove_directory(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a valid C string for the length of the call.
    check(unsafe { libc::rmdir(path.as_ptr()) })?;
    Ok(())
}

/// Sets a file's size, without allocating.
pub fn truncate(fd: &impl AsRawFd, bytes: u64) -> io::Result<()> {
    // SAFETY: ftruncate takes numbers.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) })?;
    Ok(())
}

/// Whether a file lives in memory only: tmpfs or ramfs (include/uapi/linux/magic.h).
pub fn in_memory(fd: &impl AsRawFd) -> io::Result<bool> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    Ok([TMPFS_MAGIC, RAMFS_MAGIC].contains(&file_system(fd)?))
}

/// Whether the kernel makes a file's content as it is read: procfs, sysfs, cgroup2, tracefs, debugfs (the same header).
pub fn is_made_by_kernel(fd: &impl AsRawFd) -> io::Result<bool> {
    const MAGICS: [i64; 5] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x7472_6163, 0x6462_6720];
    Ok(MAGICS.contains(&file_system(fd)?))
}

/// Opens a file to be read; a FIFO that nobody writes to is opened, too, instead of waited for.
pub fn open_at_once(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn file_system(fd: &impl AsRawFd) -> io::Result<i64> {
    // SAFETY: an all-zero statfs is a valid value of the type.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is valid for the call.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &mut stat) })?;
    #[allow(clippy::unnecessary_cast)] // The field's type differs between C libraries.
    Ok(stat.f_type as i64)
}

/// BLKGETSIZE64: _IOR(0x12, 114, size_t) (include/uapi/linux/fs.h).
const BLKGETSIZE64: u64 = 0x8008_1272;

/// The size of a block device.
pub fn device_bytes(fd: &impl AsRawFd) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 stores 64 bits into `bytes`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &mut bytes) })?;
    Ok(bytes)
}

/// Waits until what was written is on the device.
pub fn data_sync(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fdatasync takes a number.
    check(unsafe { libc::fdatasync(fd.as_raw_fd()) })?;
    Ok(())
}

/// Reads from the start of the file, whatever its position; returns how many bytes came.
pub fn read_start(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { libc::pread(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Writes once; returns how many bytes went.
pub fn write_some(fd: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes are valid for their length.
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Closes every descriptor from `first` up, except those in `keep`.
pub fn close_from(first: RawFd, keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    keep.sort_unstable();
    close_from_sorted(first, &keep)
}

/// The same without allocating, so that a forked child may call it; `keep` is ascending.
pub fn close_from_sorted(first: RawFd, keep: &[RawFd]) -> io::Result<()> {
    let mut from = first as libc::c_uint;
    for end in keep.iter().filter(|fd| **fd >= first).map(|fd| *fd as libc::c_uint).chain([libc::c_uint::MAX]) {
        if from < end {
            // SAFETY: close_range takes no memory; the caller gives up these descriptors.
            let closed = super::check_long(unsafe {
                libc::syscall(libc::SYS_close_range, from, end - u32::from(end != u32::MAX), 0)
            });
            match closed {
                // Linux before 5.9 closes one by one.
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => close_one_by_one(from, end),
                other => drop(other?),
            }
        }
        from = end.saturating_add(1);
    }
    Ok(())
}

/// Descriptors above this are not looked for where close_range(2) is missing: the usual soft limit of RLIMIT_NOFILE.
const USUAL_MAX_FD: libc::c_uint = 1024;

fn close_one_by_one(from: libc::c_uint, end: libc::c_uint) {
    for fd in from..end.min(USUAL_MAX_FD) {
        // SAFETY: close takes no memory; the caller gives up these descriptors. EBADF means that there was none.
        unsafe { libc::close(fd as RawFd) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn pipe_carries_bytes_and_tells_empty_from_closed() {
        let (read, write) = pipe().unwrap();
        set_nonblocking(&read).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read_available(read.as_fd(), &mut buffer).unwrap(), None);
        File::from(write).write_all(b"abc").unwrap();
        assert_eq!(read_available(read.as_fd(), &mut buffer).unwrap(), Some(3));
        assert_eq!(read_available(read.as_fd(), &mut buffer).unwrap(), Some(0));
    }

    #[test]
    fn memfd_has_its_size_and_reads_zero() {
        let mut file = memfd("test", 4096).unwrap();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content, vec![0; 4096]);
    }

    #[test]
    fn adopting_a_closed_number_fails() {
        assert_eq!(adopt(987_654).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
