//! A split virtqueue as the device sees it (VIRTIO 1.2, 2.7).
//!
//! Owns taking chains of buffers and giving them back, with every check of what the guest wrote; leaves their content to
//! the device.
//! Invariant: a chain that `take` returns has at most as many buffers as the ring has entries, none of them empty, all of
//! them in guest memory, the readable ones before the writable ones.

use crate::wire_struct;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Most entries that this device offers.
pub const MAX_ENTRIES: u16 = 256;

/// One descriptor: address, length, flags, next (2.7.5).
const DESCRIPTOR_BYTES: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
/// Flags and index, before the entries of either ring (2.7.6, 2.7.8).
const INDEX_AT: u64 = 2;
const ENTRIES_AT: u64 = 4;
const AVAIL_ENTRY_BYTES: u64 = 2;
const USED_ENTRY_BYTES: u64 = 8;
/// The event word behind the entries of either ring.
const EVENT_BYTES: u64 = 2;
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Alignment of the three parts (2.7).
const DESCRIPTOR_ALIGNMENT: u64 = 16;
const AVAIL_ALIGNMENT: u64 = 2;
const USED_ALIGNMENT: u64 = 4;

wire_struct! {
    /// One queue: what the driver set, and how far the device has come.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Ring {
        pub entries: u16,
        pub ready: bool,
        pub descriptors_gpa: u64,
        pub avail_gpa: u64,
        pub used_gpa: u64,
        pub next_avail: u16,
        pub next_used: u16,
    }
}

/// Guest memory of one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub gpa: u64,
    pub bytes: u64,
}

/// The buffers of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    pub readable: Vec<Segment>,
    pub writable: Vec<Segment>,
}

/// What the driver did that the specification forbids.
pub type Broken = String;

impl Ring {
    /// Whether the driver has set up a ring that can be used.
    pub fn check(&self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        if self.entries == 0 || self.entries > MAX_ENTRIES || !self.entries.is_power_of_two() {
            return Err(format!("a ring of {} entries", self.entries));
        }
        let entries = u64::from(self.entries);
        let parts = [
            ("descriptor table", self.descriptors_gpa, entries * DESCRIPTOR_BYTES, DESCRIPTOR_ALIGNMENT),
            ("available ring", self.avail_gpa, ENTRIES_AT + entries * AVAIL_ENTRY_BYTES + EVENT_BYTES, AVAIL_ALIGNMENT),
            ("used ring", self.used_gpa, ENTRIES_AT + entries * USED_ENTRY_BYTES + EVENT_BYTES, USED_ALIGNMENT),
        ];
        for (name, gpa, bytes, alignment) in parts {
            if gpa % alignment != 0 || !in_memory(memory, gpa, bytes) {
                return Err(format!("the {name} at {gpa:#x} is not aligned or not in guest memory"));
            }
        }
        Ok(())
    }

    /// Takes the next chain that the driver offers.
    pub fn take(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Broken> {
        // The driver writes the index after the entry and its descriptors (2.7.13.3): Acquire is the other half.
        let offered: u16 = load(memory, self.avail_gpa + INDEX_AT, Ordering::Acquire)?;
        let waiting = offered.wrapping_sub(self.next_avail);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.entries {
            return Err(format!("{waiting} chains offered in a ring of {}", self.entries));
        }
        let slot = u64::from(self.next_avail % self.entries);
        let head: u16 = load(memory, self.avail_gpa + ENTRIES_AT + slot * AVAIL_ENTRY_BYTES, Ordering::Relaxed)?;
        let chain = self.walk(memory, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Whether nothing is offered; a ring that cannot be read has something to tell.
    pub fn is_empty(&self, memory: &GuestMemoryMmap) -> bool {
        load(memory, self.avail_gpa + INDEX_AT, Ordering::Acquire) == Ok(self.next_avail)
    }

    /// Follows a chain, each word of which the guest may change meanwhile: each is read once.
    fn walk(&self, memory: &GuestMemoryMmap, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, ..Chain::default() };
        let mut index = head;
        for _ in 0..self.entries {
            if index >= self.entries {
                return Err(format!("descriptor {index} in a ring of {}", self.entries));
            }
            let mut raw = [0; DESCRIPTOR_BYTES as usize];
            let gpa = self.descriptors_gpa + u64::from(index) * DESCRIPTOR_BYTES;
            memory.read_slice(&mut raw, GuestAddress(gpa)).map_err(|cause| format!("descriptor {index}: {cause}"))?;
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = raw;
            let segment = Segment {
                gpa: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                bytes: u64::from(u32::from_le_bytes([i, j, k, l])),
            };
            let (flags, next) = (u16::from_le_bytes([m, n]), u16::from_le_bytes([o, p]));
            if flags & FLAG_INDIRECT != 0 {
                return Err(format!("descriptor {index} is indirect, which was not offered"));
            }
            if segment.bytes == 0 {
                return Err(format!("descriptor {index} is empty"));
            }
            if !in_memory(memory, segment.gpa, segment.bytes) {
                let Segment { gpa, bytes } = segment;
                return Err(format!("descriptor {index}: {bytes} bytes at {gpa:#x} are not guest memory"));
            }
            match (flags & FLAG_WRITE != 0, chain.writable.is_empty()) {
                (true, _) => chain.writable.push(segment),
                (false, true) => chain.readable.push(segment),
                (false, false) => return Err(format!("descriptor {index} is readable behind a writable one")),
            }
            if flags & FLAG_NEXT == 0 {
                return Ok(chain);
            }
            index = next;
        }
        Err(format!("the chain at descriptor {head} does not end"))
    }

    /// Gives a chain back, of whose writable part `written` bytes were written.
    pub fn give_back(&mut self, memory: &GuestMemoryMmap, head: u16, written: u32) -> Result<(), Broken> {
        let slot = self.used_gpa + ENTRIES_AT + u64::from(self.next_used % self.entries) * USED_ENTRY_BYTES;
        let entry = [u32::from(head).to_le_bytes(), written.to_le_bytes()].concat();
        memory.write_slice(&entry, GuestAddress(slot)).map_err(|cause| format!("used ring: {cause}"))?;
        self.next_used = self.next_used.wrapping_add(1);
        // The driver reads the entry after the index: Release is the other half of its barrier.
        memory
            .store(self.next_used, GuestAddress(self.used_gpa + INDEX_AT), Ordering::Release)
            .map_err(|cause| format!("used ring: {cause}"))
    }

    /// Whether the driver wants to be told of what was given back.
    pub fn wants_interrupt(&self, memory: &GuestMemoryMmap) -> bool {
        // Orders the used index before this look: the driver writes the flag and then looks at the index (2.7.7).
        std::sync::atomic::fence(Ordering::SeqCst);
        load(memory, self.avail_gpa, Ordering::Relaxed).is_ok_and(|flags: u16| flags & AVAIL_NO_INTERRUPT == 0)
    }
}

fn load(memory: &GuestMemoryMmap, gpa: u64, order: Ordering) -> Result<u16, Broken> {
    memory.load(GuestAddress(gpa), order).map_err(|cause| format!("available ring: {cause}"))
}

/// Whether every byte is RAM; the hole between its parts is none.
fn in_memory(memory: &GuestMemoryMmap, gpa: u64, bytes: u64) -> bool {
    usize::try_from(bytes).is_ok_and(|bytes| memory.check_range(GuestAddress(gpa), bytes))
}

/// A driver's side of a ring, for tests: it can write whatever a hostile guest can.
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
pub mod driver {
    use super::*;

    pub const MEMORY_BYTES: usize = 1 << 20;
    pub const DESCRIPTORS_GPA: u64 = 0x1000;
    pub const AVAIL_GPA: u64 = 0x3000;
    pub const USED_GPA: u64 = 0x4000;

    pub fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("map guest memory")
    }

    pub fn ring(entries: u16) -> Ring {
        let (descriptors_gpa, avail_gpa, used_gpa) = (DESCRIPTORS_GPA, AVAIL_GPA, USED_GPA);
        Ring { entries, ready: true, descriptors_gpa, avail_gpa, used_gpa, next_avail: 0, next_used: 0 }
    }

    pub fn set(memory: &GuestMemoryMmap, gpa: u64, bytes: &[u8]) {
        memory.write_slice(bytes, GuestAddress(gpa)).expect("write guest memory");
    }

    /// Writes descriptor `index`: (address, length, flags, next).
    pub fn describe(memory: &GuestMemoryMmap, index: u16, (gpa, bytes, flags, next): (u64, u32, u16, u16)) {
        let mut raw = gpa.to_le_bytes().to_vec();
        raw.extend(bytes.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        set(memory, DESCRIPTORS_GPA + u64::from(index) * DESCRIPTOR_BYTES, &raw);
    }

    /// Offers a chain as the `number`th of a ring of `entries`.
    pub fn offer(memory: &GuestMemoryMmap, entries: u16, number: u16, head: u16) {
        set(memory, AVAIL_GPA + ENTRIES_AT + u64::from(number % entries) * AVAIL_ENTRY_BYTES, &head.to_le_bytes());
        set(memory, AVAIL_GPA + INDEX_AT, &number.wrapping_add(1).to_le_bytes());
    }

    /// The used index and the entry before it: (index, head, written).
    pub fn used(memory: &GuestMemoryMmap, entries: u16) -> (u16, u32, u32) {
        let read = |gpa| memory.read_obj::<u32>(GuestAddress(gpa)).expect("read guest memory");
        let index = memory.read_obj::<u16>(GuestAddress(USED_GPA + INDEX_AT)).expect("read guest memory");
        let slot = USED_GPA + ENTRIES_AT + u64::from(index.wrapping_sub(1) % entries) * USED_ENTRY_BYTES;
        (index, read(slot), read(slot + 4))
    }
}

#[cfg(test)]
mod tests {
    use super::driver::*;
    use super::*;

    const NEXT: u16 = FLAG_NEXT;
    const WRITE: u16 = FLAG_WRITE;

    /// Takes one chain that begins at descriptor 0 of a ring of 8.
    fn taken(descriptors: &[(u64, u32, u16, u16)]) -> Result<Option<Chain>, Broken> {
        let memory = memory();
        for (index, descriptor) in descriptors.iter().enumerate() {
            describe(&memory, index as u16, *descriptor);
        }
        offer(&memory, 8, 0, 0);
        ring(8).take(&memory)
    }

    #[test]
    fn chain_is_taken_with_its_parts_in_order() {
        let chain = taken(&[(0x8000, 16, NEXT, 1), (0x9000, 512, NEXT | WRITE, 2), (0xA000, 1, WRITE, 0)]);
        let chain = chain.unwrap().unwrap();
        assert_eq!(chain.readable, [Segment { gpa: 0x8000, bytes: 16 }]);
        assert_eq!(chain.writable, [Segment { gpa: 0x9000, bytes: 512 }, Segment { gpa: 0xA000, bytes: 1 }]);
    }

    #[test]
    fn chain_of_every_entry_is_taken() {
        let full: Vec<_> = (0..8).map(|i| (0x8000, 1, if i < 7 { NEXT } else { 0 }, i + 1)).collect();
        assert_eq!(taken(&full).unwrap().unwrap().readable.len(), 8);
    }

    #[test]
    fn each_forbidden_chain_is_refused_with_its_reason() {
        let end = MEMORY_BYTES as u64;
        for (descriptors, reason) in [
            (vec![(0x8000, 1, NEXT, 0)], "does not end"),
            (vec![(0x8000, 1, NEXT, 1), (0x8000, 1, NEXT, 0)], "does not end"),
            (vec![(0x8000, 1, NEXT, 8)], "descriptor 8 in a ring of 8"),
            (vec![(0x8000, 1, NEXT, 0xFFFF)], "descriptor 65535"),
            (vec![(0x8000, 0, 0, 0)], "is empty"),
            (vec![(end, 1, 0, 0)], "not guest memory"),
            (vec![(end - 1, 2, WRITE, 0)], "not guest memory"),
            (vec![(u64::MAX, u32::MAX, 0, 0)], "not guest memory"),
            (vec![(u64::MAX - 3, 8, 0, 0)], "not guest memory"),
            (vec![(0, u32::MAX, WRITE, 0)], "not guest memory"),
            (vec![(0x8000, 1, FLAG_INDIRECT, 0)], "indirect"),
            (vec![(0x8000, 1, NEXT | WRITE, 1), (0x8000, 1, 0, 0)], "readable behind a writable"),
        ] {
            let error = taken(&descriptors).unwrap_err();
            assert!(error.contains(reason), "{descriptors:?}: {error}");
        }
    }

    #[test]
    fn heads_and_indices_out_of_range_are_refused() {
        let memory = memory();
        offer(&memory, 8, 0, 8);
        assert!(ring(8).take(&memory).unwrap_err().contains("descriptor 8"));
        offer(&memory, 8, 8, 0);
        assert!(ring(8).take(&memory).unwrap_err().contains("9 chains offered"));
        assert_eq!(Ring { next_avail: 9, ..ring(8) }.take(&memory), Ok(None));
        assert!(Ring { next_avail: 10, ..ring(8) }.take(&memory).unwrap_err().contains("65535 chains"));
    }

    #[test]
    fn rings_outside_memory_or_of_odd_size_are_refused() {
        let memory = memory();
        assert_eq!(ring(8).check(&memory), Ok(()));
        assert_eq!(ring(MAX_ENTRIES).check(&memory), Ok(()));
        for entries in [0, 3, 257, 512, u16::MAX] {
            assert!(ring(entries).check(&memory).is_err(), "{entries}");
        }
        let end = MEMORY_BYTES as u64;
        for gpa in [end, end - 16, u64::MAX - 15, 1] {
            assert!(Ring { descriptors_gpa: gpa, ..ring(8) }.check(&memory).is_err(), "{gpa:#x}");
            assert!(Ring { avail_gpa: gpa, ..ring(8) }.check(&memory).is_err(), "{gpa:#x}");
            assert!(Ring { used_gpa: gpa, ..ring(8) }.check(&memory).is_err(), "{gpa:#x}");
        }
    }

    #[test]
    fn indices_wrap_and_used_entries_follow() {
        let memory = memory();
        let mut ring = Ring { next_avail: u16::MAX, next_used: u16::MAX, ..ring(4) };
        describe(&memory, 2, (0x8000, 1, WRITE, 0));
        offer(&memory, 4, u16::MAX, 2);
        assert_eq!(ring.take(&memory).unwrap().unwrap().head, 2);
        assert_eq!(ring.take(&memory), Ok(None));
        ring.give_back(&memory, 2, 7).unwrap();
        assert_eq!(used(&memory, 4), (0, 2, 7));
        assert!(ring.wants_interrupt(&memory));
        set(&memory, AVAIL_GPA, &AVAIL_NO_INTERRUPT.to_le_bytes());
        assert!(!ring.wants_interrupt(&memory));
    }
}
