//! The guest's end of the channel: finds the ring through the command line, else takes the serial line.
//!
//! Owns opening, sending with a bound, and the doorbell; leaves what is said to guest/.
//! Invariant: a message that cannot be sent within the bound is counted, never lost in silence.

use super::ring::Ring;
use super::serial::{Line, LineDecoder};
use super::{COM2_DEVICE, DOORBELL_ALIVE, DOORBELL_DATA, DOORBELL_PORT, DOORBELL_VARIABLE, PARAM_CHANNEL, PARAM_RING};
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::frame::{self, Frame, MAX_PAYLOAD_BYTES};
use crate::proto::message::Msg;
use crate::sys::mmap::Mapping;
use crate::sys::port::Port;
use crate::sys::{fd, time, tty};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

/// How long a full ring may make the guest wait; the host drains it many times a second.
const FULL_WAIT_NS: u64 = 2_000_000_000;
/// Pause between two tries.
const RETRY_NS: u64 = 1_000_000;

/// Next sequence number; in a static, so that a panic hook that opens the channel again goes on where it was.
static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// What can be damaged on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Bytes that are no frame.
    Garbage,
    /// A count that cannot be.
    Head,
}

#[derive(Debug)]
enum Transport {
    Ring(Ring),
    Serial { line: File, input: LineDecoder },
}

/// Access to the doorbell, where there is one and it may be rung.
pub fn doorbell() -> std::io::Result<Port> {
    if std::env::var_os(DOORBELL_VARIABLE).is_some_and(|value| value == "off") {
        return Err(std::io::Error::other("switched off"));
    }
    Port::open(DOORBELL_PORT)
}

/// One end of one run's channel.
#[derive(Debug)]
pub struct GuestSession {
    transport: Transport,
    door: Option<Port>,
    /// Why the ring is not in use, and what else was odd.
    notes: Vec<String>,
}

impl GuestSession {
    /// Opens the channel that the kernel command line names.
    pub fn open(cmdline: &str) -> Result<Self> {
        let mut notes = Vec::new();
        let door = doorbell().map_err(|error| notes.push(format!("no doorbell: {error}"))).ok();
        if parameter(cmdline, PARAM_CHANNEL) != Some("serial") {
            match open_ring(cmdline) {
                Ok(ring) => return Ok(Self { transport: Transport::Ring(ring), door, notes }),
                Err(error) => notes.push(format!("the ring cannot be used, COM2 is: {error}")),
            }
        }
        let mut line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(COM2_DEVICE)
            .context(|| format!("open {COM2_DEVICE}, the fallback channel"))?;
        tty::make_raw(&line).context(|| format!("make {COM2_DEVICE} raw"))?;
        writeln!(line, "{}", frame::TEXT_START).context(|| format!("write to {COM2_DEVICE}"))?;
        Ok(Self { transport: Transport::Serial { line, input: LineDecoder::default() }, door, notes })
    }

    /// Over any line, without a doorbell.
    #[cfg(test)]
    pub fn over(line: File) -> Self {
        Self { transport: Transport::Serial { line, input: LineDecoder::default() }, door: None, notes: Vec::new() }
    }

    /// `ring` or `serial`.
    pub fn kind(&self) -> &'static str {
        match self.transport {
            Transport::Ring(_) => "ring",
            Transport::Serial { .. } => "serial",
        }
    }

    /// What the opening had to say.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Sends one message; waits a bounded time for room.
    pub fn send(&mut self, message: &Msg) -> Result<()> {
        let payload = message.to_bytes();
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(Error::internal(format!("a message of {} bytes is above the limit", payload.len())));
        }
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        match &mut self.transport {
            Transport::Serial { line, .. } => {
                let text = format!("{}\n", frame::to_text(sequence, &payload));
                line.write_all(text.as_bytes()).context(|| format!("write to {COM2_DEVICE}"))
            }
            Transport::Ring(ring) => {
                let bytes = frame::encode(sequence, &payload);
                let deadline = time::monotonic_ns() + FULL_WAIT_NS;
                while !ring.guest_push(&bytes)? {
                    if time::monotonic_ns() > deadline {
                        ring.count_dropped();
                        return Err(Error::host("the host does not drain the ring"));
                    }
                    knock(&self.door);
                    pause();
                }
                knock(&self.door);
                Ok(())
            }
        }
    }

    /// Damages the channel on purpose, to see that the host finds out.
    pub fn damage(&mut self, how: Damage) -> Result<()> {
        match (&mut self.transport, how) {
            (Transport::Ring(ring), Damage::Head) => ring.break_head(),
            (Transport::Ring(ring), Damage::Garbage) => {
                ring.guest_push(&[0xff; 64])?;
            }
            // A serial line has no head; what looks like the beginning of a frame and is none is damage there.
            (Transport::Serial { line, .. }, _) => {
                let text = "KTF1:garbage\n".repeat(64);
                line.write_all(text.as_bytes()).context(|| format!("write to {COM2_DEVICE}"))?;
            }
        }
        knock(&self.door);
        Ok(())
    }

    /// Tells the host that PID 1 still runs.
    pub fn sign_of_life(&self) {
        if let Some(door) = &self.door {
            door.write(DOORBELL_ALIVE);
        }
    }

    /// Takes the commands that have come.
    pub fn receive(&mut self) -> Result<Vec<Msg>> {
        let frames = match &mut self.transport {
            Transport::Ring(ring) => frames_of(&ring.guest_take()?)?,
            Transport::Serial { line, input } => {
                let mut buffer = [0; 512];
                let mut frames = Vec::new();
                while tty::input_waiting(line).context(|| format!("ask {COM2_DEVICE} for input"))? {
                    match fd::read_available(line.as_fd(), &mut buffer).context(|| format!("read {COM2_DEVICE}"))? {
                        None | Some(0) => break,
                        Some(count) => {
                            frames.extend(input.feed(&buffer[..count]).into_iter().filter_map(|line| match line {
                                Line::Frame(frame) => Some(frame),
                                _ => None,
                            }))
                        }
                    }
                }
                frames
            }
        };
        frames
            .iter()
            .map(|frame| {
                Msg::from_bytes(&frame.payload).map_err(|error| Error::internal(format!("host command: {error}")))
            })
            .collect()
    }

    /// A descriptor that becomes readable when a command comes; the ring has none and is looked at on every turn.
    pub fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.transport {
            Transport::Ring(_) => None,
            Transport::Serial { line, .. } => Some(line.as_fd()),
        }
    }

    /// Says that nothing follows, with the guest's own exit code.
    pub fn finish(&mut self, code: i32) -> Result<()> {
        if let Transport::Serial { line, .. } = &mut self.transport {
            let text = format!("{}\n{}{code}\n", frame::TEXT_END, frame::TEXT_EXIT);
            line.write_all(text.as_bytes()).context(|| format!("write to {COM2_DEVICE}"))?;
            tty::drain(line).context(|| format!("drain {COM2_DEVICE}"))?;
        }
        Ok(())
    }
}

fn knock(door: &Option<Port>) {
    if let Some(door) = door {
        door.write(DOORBELL_DATA);
    }
}

/// A bounded pause; a signal only shortens it.
fn pause() {
    if let Err(error) = time::sleep_ns(RETRY_NS) {
        debug_assert_eq!(error.raw_os_error(), Some(libc::EINTR));
    }
}

fn frames_of(bytes: &[u8]) -> Result<Vec<Frame>> {
    let mut rest = bytes;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let (frame, used) = frame::decode(rest).map_err(|error| Error::internal(format!("host frame: {error:?}")))?;
        frames.push(frame);
        rest = &rest[used.next_multiple_of(8).min(rest.len())..];
    }
    Ok(frames)
}

/// The value of `name=value` on the kernel command line.
fn parameter<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    cmdline.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// `0xBASE,0xBYTES`.
fn ring_place(cmdline: &str) -> Option<(u64, u64)> {
    let (base, bytes) = parameter(cmdline, PARAM_RING)?.split_once(',')?;
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    Some((hex(base)?, hex(bytes)?))
}

fn open_ring(cmdline: &str) -> Result<Ring> {
    let (base, bytes) = ring_place(cmdline)
        .ok_or_else(|| Error::internal(format!("{PARAM_RING} is not on the kernel command line")))?;
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/mem")
        .context(|| "open /dev/mem, which the ring needs (CONFIG_DEVMEM is off, or the kernel is locked down)")?;
    let mapping = Mapping::shared_file(&memory, base, bytes as usize)
        .context(|| format!("map {bytes} bytes at {base:#x} through /dev/mem"))?;
    Ring::attach(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_names_the_ring() {
        let cmdline = "console=ttyS0 ktstr.ring=0xe000000,0x100000 ktstr.channel=serial";
        assert_eq!(ring_place(cmdline), Some((0xe00_0000, 0x10_0000)));
        assert_eq!(parameter(cmdline, PARAM_CHANNEL), Some("serial"));
        for broken in
            ["", "ktstr.ring=", "ktstr.ring=1,2", "ktstr.ring=0xzz,0x1", "xktstr.ring=0x1,0x1", "ktstr.rings=0x1,0x1"]
        {
            assert_eq!(ring_place(broken), None, "{broken}");
        }
    }

    #[test]
    fn host_commands_are_framed_on_words() {
        let mut bytes = frame::encode(0, &Msg::Stop.to_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(frame::encode(1, &Msg::Dump.to_bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        assert_eq!(frames_of(&bytes).unwrap().len(), 2);
        bytes[0] ^= 1;
        assert!(frames_of(&bytes).is_err());
    }
}
