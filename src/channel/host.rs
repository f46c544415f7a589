//! The host's end of the channel: takes messages from ring and serial line alike, and sends commands.
//!
//! Owns the checks of what the guest says; leaves waiting to run/.
//! Invariant: whatever the guest writes, the host gets messages, damage notes, or silence; never a panic.

use super::ring::Ring;
use super::serial::{Line, LineDecoder};
use crate::proto::codec::Wire;
use crate::proto::frame::{self, Frame, FrameError};
use crate::proto::message::Msg;

/// Damage notes kept; a hostile guest could make millions.
const DAMAGE_CAP: usize = 32;

/// One end of one run's channel.
#[derive(Debug)]
pub struct HostSession {
    ring: Ring,
    lines: LineDecoder,
    next_sequence: u32,
    sent: u32,
    damage: Vec<String>,
    damage_count: usize,
    ring_broken: bool,
}

impl HostSession {
    pub fn new(ring: Ring) -> Self {
        Self {
            ring,
            lines: LineDecoder::default(),
            next_sequence: 0,
            sent: 0,
            damage: Vec::new(),
            damage_count: 0,
            ring_broken: false,
        }
    }

    /// Takes what the guest has put into the ring.
    pub fn drain_ring(&mut self) -> Vec<Msg> {
        if self.ring_broken {
            return Vec::new();
        }
        let bytes = match self.ring.host_take() {
            Ok(bytes) => bytes,
            Err(error) => {
                self.ring_broken = true;
                self.note_damage(error.to_string());
                return Vec::new();
            }
        };
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match frame::decode(rest) {
                Ok((frame, used)) => {
                    messages.extend(self.accept(&frame));
                    // A frame begins on a word.
                    rest = &rest[used.next_multiple_of(8).min(rest.len())..];
                }
                Err(error) => {
                    // What follows cannot be trusted to begin where we think.
                    self.ring_broken = true;
                    self.note_damage(match error {
                        FrameError::Incomplete => "the ring ends within a frame".into(),
                        FrameError::Corrupt(what) => format!("a frame in the ring is damaged: {what}"),
                    });
                    break;
                }
            }
        }
        messages
    }

    /// Takes bytes that came over COM2.
    pub fn feed_serial(&mut self, bytes: &[u8]) -> Vec<Msg> {
        // A guest that has the ring does not speak here: what comes is somebody else's, such as a program under test.
        if self.ring.attached() {
            return Vec::new();
        }
        let mut messages = Vec::new();
        for line in self.lines.feed(bytes) {
            match line {
                Line::Frame(frame) => messages.extend(self.accept(&frame)),
                Line::Damaged(what) => self.note_damage(format!("serial line: {what}")),
                Line::Start | Line::End | Line::Exit(_) => {}
            }
        }
        messages
    }

    fn accept(&mut self, frame: &Frame) -> Option<Msg> {
        if frame.sequence != self.next_sequence {
            self.note_damage(format!("frame {} came where {} was due", frame.sequence, self.next_sequence));
        }
        self.next_sequence = frame.sequence.wrapping_add(1);
        match Msg::from_bytes(&frame.payload) {
            Ok(message) if message.from_guest() => Some(message),
            Ok(_) => {
                self.note_damage(format!("frame {} carries a message that only the host may write", frame.sequence));
                None
            }
            Err(error) => {
                self.note_damage(format!("frame {} cannot be decoded: {error}", frame.sequence));
                None
            }
        }
    }

    fn note_damage(&mut self, text: String) {
        self.damage_count += 1;
        if self.damage.len() < DAMAGE_CAP {
            self.damage.push(text);
        }
    }

    /// What was damaged or lost since the last call.
    pub fn take_damage(&mut self) -> Vec<String> {
        std::mem::take(&mut self.damage)
    }

    /// Whether the guest broke the ring's rules so that nothing more can be read from it.
    pub fn is_broken(&self) -> bool {
        self.ring_broken || self.damage_count >= DAMAGE_CAP
    }

    /// At the end: what the guest itself says it could not send.
    pub fn dropped_by_guest(&self) -> u64 {
        self.ring.dropped()
    }

    /// Sends a command both ways, as it is not known where the guest will listen: into the ring, and as the bytes returned,
    /// which are to be written to COM2.
    pub fn send(&mut self, message: &Msg) -> Vec<u8> {
        let payload = message.to_bytes();
        let sequence = self.sent;
        self.sent += 1;
        // Commands are few and tiny; a full lane means that the guest no longer reads, which the deadline handles.
        if let Err(error) = self.ring.host_push(&frame::encode(sequence, &payload)) {
            self.note_damage(error.to_string());
        }
        format!("{}\n", frame::to_text(sequence, &payload)).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::REGION_BYTES;
    use super::*;
    use crate::sys::{fd::memfd, mmap::Mapping};

    fn pair() -> (HostSession, Ring) {
        let file = memfd("ring", REGION_BYTES).unwrap();
        let map = || Mapping::shared_file(&file, 0, REGION_BYTES as usize).unwrap();
        let host = HostSession::new(Ring::create(map()).unwrap());
        (host, Ring::attach(map()).unwrap())
    }

    /// A host whose guest has not found the ring.
    fn alone() -> HostSession {
        HostSession::new(Ring::create(Mapping::shared_anonymous(REGION_BYTES as usize).unwrap()).unwrap())
    }

    fn note(text: &str) -> Msg {
        Msg::Note { text: text.into() }
    }

    #[test]
    fn messages_arrive_in_order_and_a_gap_is_told() {
        let (mut host, guest) = pair();
        guest.guest_push(&frame::encode(0, &note("a").to_bytes())).unwrap();
        guest.guest_push(&frame::encode(2, &note("b").to_bytes())).unwrap();
        assert_eq!(host.drain_ring(), [note("a"), note("b")]);
        assert_eq!(host.take_damage(), ["frame 2 came where 1 was due"]);
        assert!(!host.is_broken());
    }

    #[test]
    fn garbage_in_the_ring_breaks_it_and_nothing_else() {
        let (mut host, guest) = pair();
        guest.guest_push(&[0xff; 64]).unwrap();
        assert!(host.drain_ring().is_empty());
        assert!(host.is_broken());
        assert!(host.take_damage()[0].contains("magic"));
        guest.guest_push(&frame::encode(0, &note("a").to_bytes())).unwrap();
        assert!(host.drain_ring().is_empty());
    }

    #[test]
    fn guest_speaking_for_the_host_is_damage() {
        let (mut host, guest) = pair();
        guest.guest_push(&frame::encode(0, &Msg::HostNote { text: "x".into() }.to_bytes())).unwrap();
        assert!(host.drain_ring().is_empty());
        assert!(host.take_damage()[0].contains("only the host"));
    }

    #[test]
    fn serial_lines_carry_the_same_messages() {
        let mut host = alone();
        let text = format!("{}\n{}\n", frame::TEXT_START, frame::to_text(0, &note("s").to_bytes()));
        assert_eq!(host.feed_serial(text.as_bytes()), [note("s")]);
        assert!(host.send(&Msg::Stop).starts_with(b"KTF1:"));
    }

    #[test]
    fn command_goes_into_the_ring_and_stray_serial_output_is_nobodys() {
        let (mut host, guest) = pair();
        host.send(&Msg::Stop);
        assert!(!guest.guest_take().unwrap().is_empty());
        assert!(host.feed_serial(b"KTF1: fake\n").is_empty());
        assert!(host.take_damage().is_empty());
    }

    #[test]
    fn endless_damage_is_capped() {
        let mut host = alone();
        for _ in 0..1000 {
            host.feed_serial(b"KTF1:zz\n");
        }
        assert_eq!(host.take_damage().len(), DAMAGE_CAP);
        assert!(host.is_broken());
    }
}
