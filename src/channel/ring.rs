//! The shared-memory ring: two lanes of frames in a region both sides map.
//!
//! Owns the region's layout and the rules of reading and writing it; leaves the frames' meaning to the sessions.
//! Invariant: each word has one writer; a reader checks every number it reads before it uses it.
//!
//! Layout in 64-bit little-endian words:
//!
//! | word | meaning | writer |
//! |---|---|---|
//! | 0 | magic "KTSTRNG1" | host |
//! | 1 | length of the region in bytes | host |
//! | 8 | guest-to-host head: words ever written | guest |
//! | 16 | guest-to-host tail: words ever read | host |
//! | 24 | messages the guest could not send | guest |
//! | 32 | host-to-guest head | host |
//! | 40 | host-to-guest tail | guest |
//! | 48 | 1 once the guest has attached | guest |
//! | 512.. | host-to-guest data, `HOST_LANE_WORDS` | host |
//! | 1024.. | guest-to-host data, to the end | guest |
//!
//! Head and tail never wrap within a run (2^64 words); the place of word n is n modulo the lane's length.

use crate::error::{Error, Result};
use crate::proto::frame::{HEADER_BYTES, MAX_PAYLOAD_BYTES};
use crate::sys::mmap::Mapping;
use std::sync::atomic::{AtomicU64, Ordering};

/// Default size of the region: room for four of the largest frames.
pub const REGION_BYTES: u64 = 1 << 20;
const MAGIC: u64 = u64::from_le_bytes(*b"KTSTRNG1");
const WORD_MAGIC: usize = 0;
const WORD_LENGTH: usize = 1;
const WORD_GUEST_HEAD: usize = 8;
const WORD_GUEST_TAIL: usize = 16;
const WORD_DROPPED: usize = 24;
const WORD_HOST_HEAD: usize = 32;
const WORD_HOST_TAIL: usize = 40;
const WORD_ATTACHED: usize = 48;
const HOST_LANE_START: usize = 512;
const HOST_LANE_WORDS: usize = 512;
const GUEST_LANE_START: usize = 1024;

/// The region, seen from either side.
#[derive(Debug)]
pub struct Ring {
    memory: Mapping,
}

/// One direction: who may write its head is decided by who calls `push`.
struct Lane<'a> {
    head: &'a AtomicU64,
    tail: &'a AtomicU64,
    data: &'a [AtomicU64],
}

impl Ring {
    /// Host side: writes the header of a fresh (zeroed) region.
    pub fn create(memory: Mapping) -> Result<Self> {
        check_length(memory.len())?;
        memory.words()[WORD_LENGTH].store(memory.len() as u64, Ordering::Relaxed);
        memory.words()[WORD_MAGIC].store(MAGIC, Ordering::Release);
        Ok(Self { memory })
    }

    /// Guest side: checks that the region is what the host made.
    pub fn attach(memory: Mapping) -> Result<Self> {
        check_length(memory.len())?;
        let words = memory.words();
        let (magic, length) = (words[WORD_MAGIC].load(Ordering::Acquire), words[WORD_LENGTH].load(Ordering::Relaxed));
        if magic != MAGIC || length != memory.len() as u64 {
            let found = format!("magic {magic:#018x}, length {length}");
            return Err(Error::internal(format!("the reserved region is not the host's ring: {found}")));
        }
        words[WORD_ATTACHED].store(1, Ordering::Release);
        Ok(Self { memory })
    }

    /// Whether the guest has attached.
    pub fn attached(&self) -> bool {
        self.memory.words()[WORD_ATTACHED].load(Ordering::Acquire) == 1
    }
    /// How many messages the guest could not send.
    pub fn dropped(&self) -> u64 {
        self.memory.words()[WORD_DROPPED].load(Ordering::Acquire)
    }
    /// Guest side: one more message could not be sent.
    pub fn count_dropped(&self) {
        self.memory.words()[WORD_DROPPED].fetch_add(1, Ordering::AcqRel);
    }

    fn guest_lane(&self) -> Lane<'_> {
        let words = self.memory.words();
        Lane { head: &words[WORD_GUEST_HEAD], tail: &words[WORD_GUEST_TAIL], data: &words[GUEST_LANE_START..] }
    }
    fn host_lane(&self) -> Lane<'_> {
        let words = self.memory.words();
        let data = &words[HOST_LANE_START..HOST_LANE_START + HOST_LANE_WORDS];
        Lane { head: &words[WORD_HOST_HEAD], tail: &words[WORD_HOST_TAIL], data }
    }

    /// Guest side: writes one frame; `false` where there is no room now.
    pub fn guest_push(&self, frame: &[u8]) -> Result<bool> {
        self.guest_lane().push(frame)
    }
    /// Host side: takes all that the guest has written. An error means that the guest broke the ring.
    pub fn host_take(&self) -> Result<Vec<u8>> {
        self.guest_lane().take()
    }
    /// Host side: writes one frame; `false` where there is no room now.
    pub fn host_push(&self, frame: &[u8]) -> Result<bool> {
        self.host_lane().push(frame)
    }
    /// Guest side: breaks the ring's rules on purpose, to see that the host finds out.
    pub fn break_head(&self) {
        let words = self.memory.words();
        let tail = words[WORD_GUEST_TAIL].load(Ordering::Acquire);
        words[WORD_GUEST_HEAD].store(tail.wrapping_add(1 << 40), Ordering::Release);
    }
    /// Guest side: takes all that the host has written.
    pub fn guest_take(&self) -> Result<Vec<u8>> {
        self.host_lane().take()
    }
}

/// A lane must hold the largest frame, or a writer could wait for ever.
fn check_length(bytes: usize) -> Result<()> {
    let least = GUEST_LANE_START * 8 + HEADER_BYTES + MAX_PAYLOAD_BYTES + 8;
    if bytes < least {
        return Err(Error::internal(format!("a ring of {bytes} bytes is too small, {least} is the least")));
    }
    Ok(())
}

impl Lane<'_> {
    /// Words in use; an error where the other side's numbers cannot be.
    fn used(&self) -> Result<u64> {
        let (head, tail) = (self.head.load(Ordering::Acquire), self.tail.load(Ordering::Acquire));
        let used = head.wrapping_sub(tail);
        if used > self.data.len() as u64 {
            let capacity = self.data.len();
            return Err(Error::host(format!(
                "the ring is damaged: head {head}, tail {tail}, capacity {capacity} words"
            )));
        }
        Ok(used)
    }

    fn push(&self, frame: &[u8]) -> Result<bool> {
        let need = frame.len().div_ceil(8);
        if need as u64 + self.used()? > self.data.len() as u64 {
            return Ok(false);
        }
        let head = self.head.load(Ordering::Relaxed);
        for (offset, chunk) in frame.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.place(head.wrapping_add(offset as u64)).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        self.head.store(head.wrapping_add(need as u64), Ordering::Release);
        Ok(true)
    }

    fn take(&self) -> Result<Vec<u8>> {
        let used = self.used()?;
        let tail = self.tail.load(Ordering::Relaxed);
        let mut bytes = Vec::with_capacity(used as usize * 8);
        for offset in 0..used {
            bytes.extend_from_slice(&self.place(tail.wrapping_add(offset)).load(Ordering::Relaxed).to_le_bytes());
        }
        self.tail.store(tail.wrapping_add(used), Ordering::Release);
        Ok(bytes)
    }

    fn place(&self, position: u64) -> &AtomicU64 {
        &self.data[(position % self.data.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd::memfd;

    fn both_sides() -> (Ring, Ring) {
        let file = memfd("ring", REGION_BYTES).unwrap();
        let map = || Mapping::shared_file(&file, 0, REGION_BYTES as usize).unwrap();
        (Ring::create(map()).unwrap(), Ring::attach(map()).unwrap())
    }

    #[test]
    fn frames_cross_in_both_directions() {
        let (host, guest) = both_sides();
        assert!(host.attached());
        assert!(guest.guest_push(b"hello ring").unwrap());
        assert_eq!(&host.host_take().unwrap()[..10], b"hello ring");
        assert_eq!(host.host_take().unwrap(), b"");
        assert!(host.host_push(b"stop").unwrap());
        assert_eq!(&guest.guest_take().unwrap()[..4], b"stop");
    }

    #[test]
    fn full_lane_refuses_and_recovers_across_the_wrap() {
        let (host, guest) = both_sides();
        let frame = vec![7u8; 100_000];
        let mut sent = 0;
        for _ in 0..30 {
            while guest.guest_push(&frame).unwrap() {
                sent += 1;
            }
            let taken = host.host_take().unwrap();
            assert_eq!(taken.len() % 100_000, 0);
            assert!(taken.iter().all(|byte| *byte == 7));
        }
        assert!(sent > 200, "{sent}");
    }

    #[test]
    fn hostile_head_is_an_error_not_a_read() {
        let (host, guest) = both_sides();
        for head in [u64::MAX, 1 << 40, 131_073] {
            guest.memory.words()[WORD_GUEST_HEAD].store(head, Ordering::Relaxed);
            assert!(host.host_take().unwrap_err().message().contains("damaged"), "head {head}");
        }
    }

    #[test]
    fn numbers_at_the_end_of_their_range_do_not_overflow() {
        let (host, guest) = both_sides();
        for word in [WORD_GUEST_HEAD, WORD_GUEST_TAIL, WORD_HOST_HEAD, WORD_HOST_TAIL] {
            guest.memory.words()[word].store(u64::MAX, Ordering::Relaxed);
        }
        assert!(guest.guest_push(b"twelve bytes").unwrap() && host.host_push(b"twelve bytes").unwrap());
        assert_eq!(host.host_take().unwrap().len(), 16);
    }

    #[test]
    fn foreign_region_is_refused_by_the_guest() {
        let blank = Mapping::shared_anonymous(REGION_BYTES as usize).unwrap();
        assert!(Ring::attach(blank).unwrap_err().message().contains("not the host's ring"));
        assert!(Ring::create(Mapping::shared_anonymous(4096).unwrap()).is_err());
    }
}
