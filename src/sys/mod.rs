//! The only home of libc calls outside KVM, as a safe API that returns `io::Result`.
//!
//! Owns the calls and their safety; leaves meaning to the callers.
//! Invariant: a function here adds no policy: it does one thing the kernel offers.

#![allow(unsafe_code)]

pub mod bpf;
pub mod errand;
pub mod fd;
pub mod futex;
pub mod mmap;
pub mod mount;
pub mod numa;
pub mod pass;
pub mod poll;
pub mod port;
pub mod process;
pub mod sched;
pub mod signal;
pub mod spawn;
pub mod time;
pub mod tty;

use std::io;

/// Turns the -1 of a libc call into the errno behind it.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a long.
pub(crate) fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A path or name as C wants it.
pub(crate) fn c_string(text: impl AsRef<[u8]>) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(text.as_ref()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
