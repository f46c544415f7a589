//! x86 I/O ports from user space: how the guest rings the host's doorbell.
//!
//! Owns ioperm and the one instruction; leaves the port's meaning to channel/.
//! Invariant: a port is written only after the kernel gave access to it.

use super::check;
use std::io;

/// A port the kernel has opened for this process.
#[derive(Debug)]
pub struct Port(u16);

impl Port {
    /// Asks the kernel for access (needs CAP_SYS_RAWIO, CONFIG_X86_IOPL_IOPERM, no lockdown).
    pub fn open(port: u16) -> io::Result<Self> {
        // SAFETY: ioperm takes numbers only.
        check(unsafe { libc::ioperm(libc::c_ulong::from(port), 1, 1) })?;
        Ok(Self(port))
    }

    /// Writes one byte.
    pub fn write(&self, value: u8) {
        // SAFETY: `open` got access to this port; the instruction touches no memory.
        unsafe {
            std::arch::asm!("out dx, al", in("dx") self.0, in("al") value, options(nomem, nostack, preserves_flags))
        };
    }
}
