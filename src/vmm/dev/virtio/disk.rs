//! What a disk is made of, and the requests that a driver makes of it (VIRTIO 1.2, 5.2.6).
//!
//! Owns decoding a request, its limits, and moving its bytes; leaves rings to ring.rs and waiting to block.rs.
//! Invariant: no byte outside the disk's length is read or written, and memory used is one buffer, whatever is asked.

use super::SECTOR_BYTES;
use super::ring::{Broken, Chain, Segment};
use crate::error::{Context, Error, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Request types.
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
/// Type, a reserved word, first sector.
const HEADER_BYTES: u64 = 16;
/// What GET_ID returns is this long, padded with zeroes.
const ID_BYTES: usize = 20;
const ID: &[u8] = b"ktstr";

/// The last byte of a request, written by the device.
const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// Bytes moved at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// A file as a disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    pub bytes: u64,
    pub read_only: bool,
    buffer: Vec<u8>,
}

/// What was done, for the counts and the throttle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Bytes written into the guest's buffers, the status among them.
    pub written: u32,
    /// Bytes moved from or to the disk.
    pub moved: u64,
    pub failed: bool,
}

impl Disk {
    pub fn new(file: File, bytes: u64, read_only: bool) -> Result<Self> {
        if bytes == 0 || bytes % SECTOR_BYTES != 0 {
            return Err(Error::internal(format!("a disk of {bytes} bytes")));
        }
        let length = file.metadata().context(|| "look at the disk")?.len();
        // A block device says 0.
        if length != 0 && length < bytes {
            return Err(Error::host(format!("the disk's file has {length} bytes instead of {bytes}")));
        }
        Ok(Self { file, bytes, read_only, buffer: vec![0; BUFFER_BYTES] })
    }

    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR_BYTES
    }

    /// Carries out one request. An error means that the driver cannot even be told of it.
    pub fn carry_out(&mut self, memory: &GuestMemoryMmap, chain: &Chain) -> std::result::Result<Done, Broken> {
        let (readable, writable) = (total(&chain.readable), total(&chain.writable));
        if readable < HEADER_BYTES || writable == 0 {
            return Err(format!("a request of {readable} readable and {writable} writable bytes"));
        }
        let (header, out) = split(&chain.readable, HEADER_BYTES);
        let (input, status) = split(&chain.writable, writable - 1);
        let mut raw = [0; HEADER_BYTES as usize];
        let mut at = 0;
        for segment in header {
            let end = at + segment.bytes as usize;
            memory.read_slice(&mut raw[at..end], GuestAddress(segment.gpa)).map_err(|cause| cause.to_string())?;
            at = end;
        }
        let [a, b, c, d, _, _, _, _, i, j, k, l, m, n, o, p] = raw;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        let (code, moved) = match kind {
            TYPE_IN => self.transfer(memory, sector, &input, Self::read),
            TYPE_OUT if self.read_only => (STATUS_IO_ERROR, 0),
            TYPE_OUT => self.transfer(memory, sector, &out, Self::write),
            TYPE_FLUSH => (if self.file.sync_data().is_ok() { STATUS_OK } else { STATUS_IO_ERROR }, 0),
            TYPE_GET_ID => self.identify(memory, &input),
            _ => (STATUS_UNSUPPORTED, 0),
        };
        for segment in status {
            memory.write_slice(&[code], GuestAddress(segment.gpa)).map_err(|cause| cause.to_string())?;
        }
        // 32 bits are what the ring has for it; drivers look at the status.
        let written = if kind == TYPE_IN { u32::try_from(moved + 1).unwrap_or(u32::MAX) } else { 1 };
        Ok(Done { written, moved, failed: code != STATUS_OK })
    }

    /// Moves the bytes of a read or write, where all of them lie on the disk.
    fn transfer(
        &mut self,
        memory: &GuestMemoryMmap,
        sector: u64,
        segments: &[Segment],
        step: fn(&mut Self, &GuestMemoryMmap, u64, Segment) -> io::Result<()>,
    ) -> (u8, u64) {
        let bytes = total(segments);
        let start = sector.checked_mul(SECTOR_BYTES);
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|end| *end <= self.bytes);
        let (Some(mut at), Some(_), true) = (start, end, bytes % SECTOR_BYTES == 0) else {
            return (STATUS_IO_ERROR, 0);
        };
        let mut moved = 0;
        for segment in segments {
            let mut left = *segment;
            while left.bytes > 0 {
                let piece = Segment { bytes: left.bytes.min(BUFFER_BYTES as u64), ..left };
                if step(self, memory, at, piece).is_err() {
                    return (STATUS_IO_ERROR, moved);
                }
                (at, moved) = (at + piece.bytes, moved + piece.bytes);
                left = Segment { gpa: left.gpa + piece.bytes, bytes: left.bytes - piece.bytes };
            }
        }
        (STATUS_OK, moved)
    }

    fn read(&mut self, memory: &GuestMemoryMmap, at: u64, to: Segment) -> io::Result<()> {
        let buffer = &mut self.buffer[..to.bytes as usize];
        self.file.read_exact_at(buffer, at)?;
        memory.write_slice(buffer, GuestAddress(to.gpa)).map_err(io::Error::other)
    }

    fn write(&mut self, memory: &GuestMemoryMmap, at: u64, from: Segment) -> io::Result<()> {
        let buffer = &mut self.buffer[..from.bytes as usize];
        memory.read_slice(buffer, GuestAddress(from.gpa)).map_err(io::Error::other)?;
        self.file.write_all_at(buffer, at)
    }

    fn identify(&mut self, memory: &GuestMemoryMmap, segments: &[Segment]) -> (u8, u64) {
        let mut id = [0; ID_BYTES];
        id[..ID.len()].copy_from_slice(ID);
        let mut rest = &id[..];
        for segment in segments {
            let (now, later) = rest.split_at(rest.len().min(segment.bytes as usize));
            if memory.write_slice(now, GuestAddress(segment.gpa)).is_err() {
                return (STATUS_IO_ERROR, 0);
            }
            rest = later;
        }
        (STATUS_OK, 0)
    }
}

/// At most 256 buffers of 32-bit lengths: no overflow.
fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.bytes).sum()
}

/// The first `at` bytes of some buffers, and the rest of them: a driver may cut a request where it likes (2.7.4.2).
fn split(segments: &[Segment], at: u64) -> (Vec<Segment>, Vec<Segment>) {
    let (mut before, mut after, mut left) = (Vec::new(), Vec::new(), at);
    for segment in segments {
        let now = segment.bytes.min(left);
        left -= now;
        if now > 0 {
            before.push(Segment { gpa: segment.gpa, bytes: now });
        }
        if now < segment.bytes {
            after.push(Segment { gpa: segment.gpa + now, bytes: segment.bytes - now });
        }
    }
    (before, after)
}

#[cfg(test)]
mod tests {
    use super::super::ring::driver::{memory, set};
    use super::*;
    use crate::sys::fd::memfd;

    const HEADER_GPA: u64 = 0x8000;
    const DATA_GPA: u64 = 0x1_0000;
    const STATUS_GPA: u64 = 0x9000;

    fn disk(sectors: u64, read_only: bool) -> Disk {
        let bytes = sectors * SECTOR_BYTES;
        Disk::new(memfd("disk", bytes).unwrap(), bytes, read_only).unwrap()
    }

    fn header(memory: &GuestMemoryMmap, kind: u32, sector: u64) {
        let mut raw = kind.to_le_bytes().to_vec();
        raw.extend([0; 4]);
        raw.extend(sector.to_le_bytes());
        set(memory, HEADER_GPA, &raw);
    }

    fn segment(gpa: u64, bytes: u64) -> Segment {
        Segment { gpa, bytes }
    }

    /// A request with `bytes` of data on the side that its type has it.
    fn request(disk: &mut Disk, memory: &GuestMemoryMmap, kind: u32, sector: u64, bytes: u64) -> (u8, Done) {
        header(memory, kind, sector);
        let data = (bytes > 0).then(|| segment(DATA_GPA, bytes));
        let (out, input) = if kind == TYPE_OUT { (data, None) } else { (None, data) };
        let chain = Chain {
            head: 0,
            readable: [Some(segment(HEADER_GPA, 16)), out].into_iter().flatten().collect(),
            writable: [input, Some(segment(STATUS_GPA, 1))].into_iter().flatten().collect(),
        };
        set(memory, STATUS_GPA, &[0xEE]);
        let done = disk.carry_out(memory, &chain).unwrap();
        let mut status = [0];
        memory.read_slice(&mut status, GuestAddress(STATUS_GPA)).unwrap();
        (status[0], done)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (mut disk, memory) = (disk(1024, false), memory());
        let content: Vec<u8> = (0..200 * 1024u32).map(|i| (i % 251) as u8).collect();
        set(&memory, DATA_GPA, &content);
        let bytes = content.len() as u64;
        assert_eq!(
            request(&mut disk, &memory, TYPE_OUT, 3, bytes),
            (0, Done { written: 1, moved: bytes, failed: false })
        );
        set(&memory, DATA_GPA, &vec![0; content.len()]);
        let (status, done) = request(&mut disk, &memory, TYPE_IN, 3, bytes);
        assert_eq!((status, u64::from(done.written)), (0, bytes + 1));
        let mut back = vec![0; content.len()];
        memory.read_slice(&mut back, GuestAddress(DATA_GPA)).unwrap();
        assert!(back == content);
        assert_eq!(request(&mut disk, &memory, TYPE_FLUSH, 0, 0).0, STATUS_OK);
        assert_eq!(request(&mut disk, &memory, TYPE_GET_ID, 0, 20).0, STATUS_OK);
        memory.read_slice(&mut back[..6], GuestAddress(DATA_GPA)).unwrap();
        assert_eq!(&back[..6], b"ktstr\0");
    }

    #[test]
    fn requests_beyond_the_disk_or_against_its_rules_fail_alone() {
        let (mut disk, memory) = (disk(16, false), memory());
        for kind in [TYPE_IN, TYPE_OUT] {
            for (sector, bytes) in
                [(16, 512), (15, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511), (1 << 55, 0)]
            {
                let (status, done) = request(&mut disk, &memory, kind, sector, bytes);
                assert_eq!((status, done.moved, done.failed), (STATUS_IO_ERROR, 0, true), "{kind} {sector} {bytes}");
            }
            assert_eq!(request(&mut disk, &memory, kind, 15, 512).0, STATUS_OK);
        }
        assert_eq!(request(&mut disk, &memory, 99, 0, 512).0, STATUS_UNSUPPORTED);
    }

    #[test]
    fn read_only_disk_is_not_written() {
        let (mut disk, memory) = (disk(16, true), memory());
        set(&memory, DATA_GPA, &[7; 512]);
        assert_eq!(request(&mut disk, &memory, TYPE_OUT, 0, 512).0, STATUS_IO_ERROR);
        assert_eq!(request(&mut disk, &memory, TYPE_IN, 0, 512).0, STATUS_OK);
        let mut first = [1];
        memory.read_slice(&mut first, GuestAddress(DATA_GPA)).unwrap();
        assert_eq!(first, [0]);
    }

    #[test]
    fn request_cut_into_odd_pieces_is_the_same_request() {
        let (mut disk, memory) = (disk(16, false), memory());
        set(&memory, DATA_GPA, &[9; 512]);
        request(&mut disk, &memory, TYPE_OUT, 2, 512);
        header(&memory, TYPE_IN, 2);
        let chain = Chain {
            head: 0,
            readable: vec![segment(HEADER_GPA, 5), segment(HEADER_GPA + 5, 11)],
            // The last data byte and the status share a buffer.
            writable: vec![segment(0x2_0000, 500), segment(0x3_0000, 13)],
        };
        assert_eq!(disk.carry_out(&memory, &chain).unwrap().written, 513);
        let mut tail = [0; 13];
        memory.read_slice(&mut tail, GuestAddress(0x3_0000)).unwrap();
        assert_eq!(tail, [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, STATUS_OK]);
    }

    #[test]
    fn request_without_header_or_status_is_broken() {
        let (mut disk, memory) = (disk(16, false), memory());
        let short = Chain { head: 0, readable: vec![segment(HEADER_GPA, 15)], writable: vec![segment(STATUS_GPA, 1)] };
        assert!(disk.carry_out(&memory, &short).is_err());
        let mute = Chain { head: 0, readable: vec![segment(HEADER_GPA, 16)], writable: vec![] };
        assert!(disk.carry_out(&memory, &mute).is_err());
    }

    #[test]
    fn file_that_shrinks_is_an_error_of_the_request() {
        let (mut disk, memory) = (disk(16, false), memory());
        disk.file.set_len(512).unwrap();
        assert_eq!(request(&mut disk, &memory, TYPE_IN, 0, 512).0, STATUS_OK);
        assert_eq!(request(&mut disk, &memory, TYPE_IN, 1, 512).0, STATUS_IO_ERROR);
    }

    #[test]
    fn disk_longer_than_its_file_is_refused() {
        assert!(Disk::new(memfd("disk", 512).unwrap(), 1024, false).is_err());
        assert!(Disk::new(memfd("disk", 1024).unwrap(), 1000, false).is_err());
        assert!(Disk::new(memfd("disk", 1024).unwrap(), 0, false).is_err());
    }
}
