//! Mounts, device nodes, modules, limits, reboot: what PID 1 needs.
//!
//! Owns the calls; leaves their order to guest/.
//! Invariant: nothing here is done unless asked for by name.

use super::{c_string, check, check_long};
use std::io;
use std::os::fd::AsRawFd;

/// Mounts a file system.
pub fn mount(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    let (source, target, kind, options) = (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(options)?);
    // SAFETY: all strings are valid for the call.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
    check(result)?;
    Ok(())
}

/// Loads a kernel module from an open file; the kernel unpacks compressed ones only where it was built to.
pub fn load_module(file: &impl AsRawFd, parameters: &str, compressed: bool) -> io::Result<()> {
    /// MODULE_INIT_COMPRESSED_FILE (include/uapi/linux/module.h).
    const COMPRESSED: libc::c_int = 4;
    let parameters = c_string(parameters)?;
    let flags = if compressed { COMPRESSED } else { 0 };
    // SAFETY: the parameter string is valid for the call.
    check_long(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), flags) })?;
    Ok(())
}

/// A limit of the calling process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    LockedMemory,
    OpenFiles,
}

/// Sets a limit, soft and hard alike.
pub fn set_limit(which: Limit, value: u64) -> io::Result<()> {
    let resource = match which {
        Limit::LockedMemory => libc::RLIMIT_MEMLOCK,
        Limit::OpenFiles => libc::RLIMIT_NOFILE,
    };
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` is valid for the call.
    check(unsafe { libc::setrlimit(resource, &limit) })?;
    Ok(())
}

/// Brings the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: socket takes no memory.
    let raw = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and is owned by nobody else.
    let socket = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) };
    // SAFETY: an all-zero ifreq is a valid value of the type.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
    Ok(())
}

/// Where `kexec_load` puts its code: memory that every guest has, far above what firmware and boot loader use.
const KEXEC_AT: usize = 64 << 20;
/// A page of x86.
const PAGE_BYTES: usize = 4096;

/// Loads code that `kexec` is to jump to.
pub fn kexec_load(code: &[u8]) -> io::Result<()> {
    /// struct kexec_segment (include/linux/kexec.h).
    #[repr(C)]
    struct Segment {
        buffer: *const u8,
        buffer_bytes: usize,
        memory: usize,
        memory_bytes: usize,
    }
    let memory_bytes = code.len().next_multiple_of(PAGE_BYTES);
    let segment = Segment { buffer: code.as_ptr(), buffer_bytes: code.len(), memory: KEXEC_AT, memory_bytes };
    // SAFETY: the segment and its buffer are valid for the call; one segment, no flags.
    check_long(unsafe { libc::syscall(libc::SYS_kexec_load, KEXEC_AT, 1, &segment, 0) })?;
    Ok(())
}

/// Leaves the kernel for what was loaded. Returns only where that failed.
pub fn kexec() -> io::Error {
    // SAFETY: reboot takes numbers only.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    io::Error::last_os_error()
}

/// Writes everything back and restarts the machine. Returns only where that failed.
pub fn restart() -> io::Error {
    // SAFETY: both take no memory.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_AUTOBOOT);
    }
    io::Error::last_os_error()
}
