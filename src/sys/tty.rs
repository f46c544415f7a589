//! Serial lines: raw mode, draining, asking for input; and whether a descriptor is a terminal.
//!
//! Owns termios; leaves what goes over the line to channel/.
//! Invariant: settings are those of the open line only.

use super::check;
use std::io;
use std::os::fd::AsRawFd;

/// Bytes pass unchanged in both directions, without echo.
pub fn make_raw(line: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: an all-zero termios is a valid value to be filled in.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is valid for the call.
    check(unsafe { libc::tcgetattr(line.as_raw_fd(), &mut settings) })?;
    // SAFETY: `settings` is valid for the call.
    unsafe { libc::cfmakeraw(&mut settings) };
    // SAFETY: `settings` is valid for the call. The highest rate, because the driver paces its output by it.
    check(unsafe { libc::cfsetspeed(&mut settings, libc::B115200) })?;
    // SAFETY: `settings` is valid for the call.
    check(unsafe { libc::tcsetattr(line.as_raw_fd(), libc::TCSANOW, &settings) })?;
    Ok(())
}

/// Waits until all output has left.
pub fn drain(line: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: tcdrain takes no memory.
    check(unsafe { libc::tcdrain(line.as_raw_fd()) })?;
    Ok(())
}

/// Whether a read would return at once.
pub fn input_waiting(line: &impl AsRawFd) -> io::Result<bool> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(line.as_raw_fd(), libc::FIONREAD as _, &mut count) })?;
    Ok(count > 0)
}

/// Whether this descriptor is a terminal.
pub fn is_terminal(fd: &impl AsRawFd) -> bool {
    // SAFETY: isatty takes no memory.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}
