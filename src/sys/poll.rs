//! Waiting for several descriptors at once, with a limit.
//!
//! Owns poll(2); leaves what readiness means to the callers.
//! Invariant: an interrupted wait returns, so that a caller can look at its stop flag.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Waits until one of `fds` is readable (or closed, or broken), or `timeout_ms` passed. Returns which.
pub fn readable(fds: &[BorrowedFd<'_>], timeout_ms: u64) -> io::Result<Vec<bool>> {
    wait(fds, libc::POLLIN, timeout_ms)
}

/// The same for writing.
pub fn writable(fds: &[BorrowedFd<'_>], timeout_ms: u64) -> io::Result<Vec<bool>> {
    wait(fds, libc::POLLOUT, timeout_ms)
}

/// What waiting for one descriptor gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    Yes,
    TimedOut,
    Interrupted,
}

/// Waits for one descriptor without allocating, so that a forked child may call it.
pub fn one_readable(fd: &impl AsRawFd, timeout_ms: u64) -> io::Result<Ready> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the one entry is valid for the call.
    match unsafe { libc::poll(&mut entry, 1, timeout_ms.min(i32::MAX as u64) as i32) } {
        0 => Ok(Ready::TimedOut),
        1.. => Ok(Ready::Yes),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Ready::Interrupted),
            error => Err(error),
        },
    }
}

/// An epoll instance that watches one descriptor for input, level-triggered and not exclusive.
pub fn epoll_of(watched: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1 takes flags.
    let raw = super::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the descriptor was just made and is owned by nobody else.
    let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: the event is valid for the call.
    let added = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, watched.as_raw_fd(), &mut event) };
    super::check(added)?;
    Ok(epoll)
}

/// Waits for an epoll instance without allocating.
pub fn epoll_wait(epoll: &impl AsRawFd, timeout_ms: u64) -> io::Result<Ready> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let timeout = timeout_ms.min(i32::MAX as u64) as i32;
    // SAFETY: there is room for the one event.
    match unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, timeout) } {
        0 => Ok(Ready::TimedOut),
        1.. => Ok(Ready::Yes),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Ready::Interrupted),
            error => Err(error),
        },
    }
}

fn wait(fds: &[BorrowedFd<'_>], events: i16, timeout_ms: u64) -> io::Result<Vec<bool>> {
    let mut entries: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }).collect();
    let timeout = timeout_ms.min(i32::MAX as u64) as i32;
    // SAFETY: the array is valid for its stated length.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok(vec![false; fds.len()]);
    }
    Ok(entries.iter().map(|entry| entry.revents != 0).collect())
}
