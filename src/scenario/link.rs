//! The line between a scenario's own code and PID 1: framed messages over a socket, both ways.
//!
//! Owns buffers and framing; leaves what the messages mean to the two ends.
//! Invariant: neither end blocks in a read; what cannot be written yet waits in order.

use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::frame::{self, FrameError};
use crate::sys::{fd, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A write may take this long at once; then the other end is looked at again.
const WRITE_WAIT_MS: u64 = 100;

/// One end.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sequence: u32,
    ended: bool,
}

impl Link {
    /// Two ends of one line.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (near, far) = fd::socket_pair()?;
        let end = |socket: OwnedFd| {
            fd::set_nonblocking(&socket)?;
            Ok::<_, io::Error>(Self { socket, inbox: Vec::new(), outbox: Vec::new(), sequence: 0, ended: false })
        };
        Ok((end(near)?, end(far)?))
    }

    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
    /// Whether the other end is closed, and all it had said was taken.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Puts a message into the outbox, and writes what goes at once.
    pub fn post(&mut self, message: &impl Wire) -> Result<()> {
        let payload = message.to_bytes();
        if payload.len() > frame::MAX_PAYLOAD_BYTES {
            return Err(Error::internal(format!("a message of {} bytes is too large", payload.len())));
        }
        self.outbox.extend(frame::encode(self.sequence, &payload));
        self.sequence = self.sequence.wrapping_add(1);
        self.flush()
    }

    /// Writes what goes at once.
    pub fn flush(&mut self) -> Result<()> {
        while !self.outbox.is_empty() {
            match fd::write_some(&self.socket, &self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context(|| "write to the other end of the scenario's line"),
            }
        }
        Ok(())
    }

    /// Writes all of it, however long the other end takes.
    pub fn send(&mut self, message: &impl Wire) -> Result<()> {
        self.post(message)?;
        while !self.outbox.is_empty() {
            poll::writable(&[self.socket.as_fd()], WRITE_WAIT_MS).context(|| "wait for the scenario's line")?;
            self.flush()?;
        }
        Ok(())
    }

    /// The messages that are there.
    pub fn take<M: Wire>(&mut self) -> Result<Vec<M>> {
        let mut buffer = [0; 16 * 1024];
        while !self.ended {
            match fd::read_available(self.socket.as_fd(), &mut buffer) {
                Ok(None) => break,
                Ok(Some(0)) => self.ended = true,
                Ok(Some(count)) => self.inbox.extend_from_slice(&buffer[..count]),
                // The other end was killed while bytes of ours were under way to it.
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => self.ended = true,
                Err(error) => return Err(error).context(|| "read from the scenario's line"),
            }
        }
        let mut messages = Vec::new();
        loop {
            match frame::decode(&self.inbox) {
                Ok((frame, used)) => {
                    self.inbox.drain(..used);
                    let message = M::from_bytes(&frame.payload);
                    messages
                        .push(message.map_err(|error| Error::internal(format!("on the scenario's line: {error}")))?);
                }
                Err(FrameError::Incomplete) => return Ok(messages),
                Err(FrameError::Corrupt(why)) => {
                    return Err(Error::internal(format!("the scenario's line is damaged: {why}")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::asserted::AssertResult;
    use crate::proto::coded::{FromCode, ToCode};

    #[test]
    fn messages_cross_both_ways_and_the_end_is_seen() {
        let (mut near, mut far) = Link::pair().unwrap();
        let result = FromCode::Result { result: AssertResult::fail("x") };
        far.send(&FromCode::Note { text: "a".into() }).unwrap();
        far.send(&result).unwrap();
        near.post(&ToCode::Stop).unwrap();
        assert_eq!(far.take::<ToCode>().unwrap(), [ToCode::Stop]);
        drop(far);
        assert_eq!(near.take::<FromCode>().unwrap(), [FromCode::Note { text: "a".into() }, result]);
        assert!(near.ended());
        assert!(near.take::<FromCode>().unwrap().is_empty());
    }

    #[test]
    fn full_line_keeps_the_order() {
        let (mut near, mut far) = Link::pair().unwrap();
        let text = |index: usize| format!("{index}-{}", "x".repeat(50_000));
        for index in 0..40 {
            near.post(&FromCode::Note { text: text(index) }).unwrap();
        }
        let mut seen = Vec::new();
        while seen.len() < 40 {
            seen.extend(far.take::<FromCode>().unwrap());
            near.flush().unwrap();
        }
        for (index, message) in seen.into_iter().enumerate() {
            assert_eq!(message, FromCode::Note { text: text(index) });
        }
    }

    #[test]
    fn foreign_bytes_are_an_error() {
        let (mut near, far) = Link::pair().unwrap();
        fd::write_some(&far.socket, b"this is no frame at all").unwrap();
        assert!(near.take::<FromCode>().unwrap_err().to_string().contains("damaged"));
    }
}
