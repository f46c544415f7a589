//! Futexes shared between processes.
//!
//! Owns wait and wake with a bound; leaves the protocol of the word to the callers.
//! Invariant: no wait is unbounded, so that a lost wake cannot hide a stop flag.

use std::io;
use std::sync::atomic::AtomicU32;

/// Why a wait returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Somebody woke us (or the wake was spurious).
    Wake,
    /// The word had another value already.
    Changed,
    /// The bound passed.
    TimedOut,
    /// A signal came.
    Interrupted,
}

/// Waits while the word is `expected`, at most `timeout_ns`.
pub fn wait(word: &AtomicU32, expected: u32, timeout_ns: u64) -> io::Result<Woken> {
    let limit =
        libc::timespec { tv_sec: (timeout_ns / 1_000_000_000) as i64, tv_nsec: (timeout_ns % 1_000_000_000) as i64 };
    // SAFETY: the word lives as long as the reference; the time-out is valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &limit) };
    if result == 0 {
        return Ok(Woken::Wake);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok(Woken::Changed),
        Some(libc::ETIMEDOUT) => Ok(Woken::TimedOut),
        Some(libc::EINTR) => Ok(Woken::Interrupted),
        _ => Err(error),
    }
}

/// Takes a priority-inheriting lock, whose word the kernel owns, at most `timeout_ns` from now. False: not in time, or a signal.
pub fn lock_pi(word: &AtomicU32, timeout_ns: u64) -> io::Result<bool> {
    // The limit is absolute, on CLOCK_REALTIME (futex(2), FUTEX_LOCK_PI).
    let until = super::time::realtime_ns().saturating_add(timeout_ns);
    let limit = libc::timespec { tv_sec: (until / 1_000_000_000) as i64, tv_nsec: (until % 1_000_000_000) as i64 };
    // SAFETY: the word lives as long as the reference; the time-out is valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_LOCK_PI, 0, &limit) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT | libc::EINTR | libc::EAGAIN) => Ok(false),
        _ => Err(error),
    }
}

/// Releases a priority-inheriting lock that others wait for.
pub fn unlock_pi(word: &AtomicU32) -> io::Result<()> {
    // SAFETY: the word lives as long as the reference.
    super::check_long(unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_UNLOCK_PI) })?;
    Ok(())
}

/// Wakes at most `count` waiters; returns how many.
pub fn wake(word: &AtomicU32, count: u32) -> io::Result<u32> {
    let count = count.min(i32::MAX as u32);
    // SAFETY: the word lives as long as the reference.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
    super::check_long(woken).map(|woken| woken as u32)
}
