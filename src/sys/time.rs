//! Clocks and sleeping.
//!
//! Owns reading the clocks; leaves which one to use to the callers.
//! Invariant: all times are nanoseconds.

use std::io;

fn clock(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the call, and the clocks used here always exist.
    unsafe { libc::clock_gettime(id, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// CLOCK_MONOTONIC.
pub fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}
/// CLOCK_BOOTTIME: since the kernel's clock started.
pub fn boottime_ns() -> u64 {
    clock(libc::CLOCK_BOOTTIME)
}
/// CPU time of the calling thread.
pub fn thread_cpu_ns() -> u64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}
/// CPU time of the calling process.
pub fn process_cpu_ns() -> u64 {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}
/// CLOCK_REALTIME: since 1970.
pub fn realtime_ns() -> u64 {
    clock(libc::CLOCK_REALTIME)
}
/// Seconds since 1970.
pub fn unix_s() -> u64 {
    clock(libc::CLOCK_REALTIME) / 1_000_000_000
}

/// Sleeps once; `EINTR` is returned to the caller, who knows what the signal meant.
pub fn sleep_ns(ns: u64) -> io::Result<()> {
    let want = libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    // SAFETY: `want` is valid for the call; no remainder is asked for.
    match unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &want, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}
