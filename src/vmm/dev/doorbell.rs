//! The doorbell: a port whose writes wake the host, byte for byte.
//!
//! Owns handing the bytes over without waiting; leaves their meaning to the channel.
//! Invariant: a vCPU never waits here: where the pipe is full, the host is awake already.

use crate::error::{Context, Result};
use crate::sys::fd;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;

/// The write end of the host's pipe.
#[derive(Debug)]
pub struct Doorbell(File);

impl Doorbell {
    pub fn new(pipe: OwnedFd) -> Result<Self> {
        fd::set_nonblocking(&pipe).context(|| "make the doorbell pipe non-blocking")?;
        Ok(Self(File::from(pipe)))
    }

    /// Returns false where the pipe is broken; a full one counts as rung.
    pub fn ring(&self, bytes: &[u8]) -> bool {
        // Where only part of the bytes fits, the host has more than enough to wake it.
        match (&self.0).write_all(bytes) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn bytes_arrive_and_a_full_pipe_does_not_block() {
        let (read, write) = fd::pipe().unwrap();
        let bell = Doorbell::new(write).unwrap();
        assert!(bell.ring(b"ab"));
        let mut got = [0; 2];
        let mut read = File::from(read);
        read.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ab");
        for _ in 0..200 {
            assert!(bell.ring(&[0; 1024]));
        }
        drop(read);
        assert!(!bell.ring(b"c"));
    }
}
