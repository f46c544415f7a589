//! The block device as a driver meets it: through its registers and its ring.
//!
//! Owns a small driver; leaves rings and requests alone to the tests of their files.
//! Invariant: each hostile act is followed by a reset, after which the device works.

use super::super::ring::driver::{AVAIL_GPA, DESCRIPTORS_GPA, USED_GPA, describe, memory, offer, set, used};
use super::*;
use crate::sys::fd::memfd;
use crate::units::NS_PER_SEC;

const ENTRIES: u16 = 8;
const HEADER_GPA: u64 = 0x8000;
const DATA_GPA: u64 = 0x1_0000;
const STATUS_GPA: u64 = 0x9000;
const READ: u32 = 0;
const WRITE: u32 = 1;

struct Driver {
    block: Block,
    memory: GuestMemoryMmap,
    offered: u16,
}

impl Driver {
    fn new(limits: Limits) -> Self {
        let disk = Disk::new(memfd("disk", 1 << 20).unwrap(), 1 << 20, false).unwrap();
        let mut driver = Self { block: Block::new(disk, limits).unwrap(), memory: memory(), offered: 0 };
        driver.set_up();
        driver
    }

    fn write(&self, offset: u64, value: u32) {
        self.block.write(offset, &value.to_le_bytes(), &self.memory);
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.block.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Reset, features, ring, DRIVER_OK (VIRTIO 1.2, 3.1.1).
    fn set_up(&mut self) {
        self.write(STATUS, 0);
        self.offered = 0;
        let ring = [(0x80, DESCRIPTORS_GPA), (0x90, AVAIL_GPA), (0xA0, USED_GPA)];
        let steps = [(STATUS, 3), (0x24, 1), (0x20, 1), (STATUS, 0xB), (0x30, 0), (0x38, u32::from(ENTRIES))];
        steps.iter().chain(&ring.map(|(at, gpa)| (at, gpa as u32))).for_each(|(at, value)| self.write(*at, *value));
        set(&self.memory, AVAIL_GPA, &[0; 4]);
        self.write(0x44, 1);
        self.write(STATUS, 0xF);
        assert_eq!(self.read(STATUS), 0xF);
    }

    /// Offers one request of a sector.
    fn offer(&mut self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        set(&self.memory, HEADER_GPA, &header);
        describe(&self.memory, 0, (HEADER_GPA, 16, 1, 1));
        describe(&self.memory, 1, (DATA_GPA, 512, if kind == READ { 3 } else { 1 }, 2));
        describe(&self.memory, 2, (STATUS_GPA, 1, 2, 0));
        offer(&self.memory, ENTRIES, self.offered, 0);
        self.offered = self.offered.wrapping_add(1);
    }

    fn serve(&self) -> Turn {
        self.block.serve(&self.memory, 0)
    }

    fn count(&self, name: &str) -> u64 {
        self.block.counts().iter().find(|(known, _)| *known == name).unwrap().1
    }
}

#[test]
fn request_is_served_once_with_its_interrupt() {
    let mut driver = Driver::new(Limits::default());
    assert_eq!(driver.serve(), Turn::Idle);
    set(&driver.memory, DATA_GPA, &[5; 512]);
    driver.offer(WRITE, 7);
    assert_eq!((driver.serve(), driver.serve()), (Turn::Served, Turn::Idle));
    assert_eq!(driver.block.irq().read().unwrap(), 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), INTERRUPT_USED);
    driver.write(INTERRUPT_ACKNOWLEDGE, INTERRUPT_USED);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    set(&driver.memory, DATA_GPA, &[0; 512]);
    driver.offer(READ, 7);
    driver.serve();
    assert_eq!(used(&driver.memory, ENTRIES), (2, 0, 513));
    let mut back = [0; 512];
    vm_memory::Bytes::read_slice(&driver.memory, &mut back, vm_memory::GuestAddress(DATA_GPA)).unwrap();
    assert_eq!(back, [5; 512]);
    assert_eq!((driver.count("disk-requests"), driver.count("disk-bytes")), (2, 1024));
}

#[test]
fn capacity_and_segments_are_in_the_configuration() {
    let driver = Driver::new(Limits::default());
    assert_eq!((driver.read(0x100), driver.read(0x104), driver.read(0x10C)), (2048, 0, 254));
    driver.write(0x100, 1);
    assert_eq!(driver.read(0x100), 2048);
}

#[test]
fn broken_ring_needs_a_reset_and_works_after_it() {
    let mut driver = Driver::new(Limits::default());
    let acts: [fn(&Driver); 5] = [
        |driver| describe(&driver.memory, 0, (HEADER_GPA, 16, 1, 0)),
        |driver| describe(&driver.memory, 1, (u64::MAX, 512, 3, 2)),
        |driver| set(&driver.memory, AVAIL_GPA + 4, &[0xFF; 16]),
        |driver| set(&driver.memory, AVAIL_GPA + 2, &[0xFF; 2]),
        // No room for a status.
        |driver| describe(&driver.memory, 0, (HEADER_GPA, 16, 0, 0)),
    ];
    for (at, act) in acts.iter().enumerate() {
        driver.offer(READ, 0);
        act(&driver);
        driver.serve();
        assert_eq!(driver.read(STATUS), 0x4F, "act {at}");
        assert_eq!(driver.read(INTERRUPT_STATUS) & INTERRUPT_CONFIG, INTERRUPT_CONFIG, "act {at}");
        driver.offer(READ, 0);
        assert_eq!(driver.serve(), Turn::Idle, "act {at}: a broken device goes on");
        driver.set_up();
        driver.offer(READ, 0);
        assert_eq!(driver.serve(), Turn::Served, "act {at}");
        assert_eq!((driver.count("disk-broken-by-driver"), driver.read(STATUS)), (at as u64 + 1, 0xF));
    }
}

#[test]
fn ring_outside_memory_breaks_the_device_when_it_is_made_ready() {
    let mut driver = Driver::new(Limits::default());
    driver.write(STATUS, 0);
    driver.write(0x38, 8);
    driver.write(0x84, 1);
    driver.write(0x44, 1);
    assert_eq!((driver.read(0x44), driver.read(STATUS)), (0, 0x40));
    driver.set_up();
}

#[test]
fn throttled_requests_wait_their_time() {
    let mut driver = Driver::new(Limits { bytes_per_s: 0, requests_per_s: 10 });
    let start_ns = time::monotonic_ns();
    let (mut now_ns, mut served) = (start_ns, 0);
    driver.offer(READ, 0);
    while now_ns < start_ns + 10 * NS_PER_SEC {
        match driver.block.serve(&driver.memory, now_ns) {
            Turn::Served => {
                served += 1;
                driver.offer(READ, 0);
            }
            Turn::Wait { ns } => now_ns += ns,
            Turn::Idle => panic!("idle with a request on the ring"),
        }
    }
    assert!((98..=103).contains(&served), "{served} in 10 s at 10 a second");
}

#[test]
fn idle_disk_is_not_throttled() {
    let mut driver = Driver::new(Limits { bytes_per_s: 1, requests_per_s: 0 });
    driver.offer(READ, 0);
    assert_eq!(driver.serve(), Turn::Served);
    assert_eq!(driver.serve(), Turn::Idle);
    driver.offer(READ, 0);
    assert!(matches!(driver.serve(), Turn::Wait { ns } if ns > 400 * NS_PER_SEC));
}

#[test]
fn saved_device_goes_on_in_another() {
    let mut driver = Driver::new(Limits::default());
    driver.offer(READ, 0);
    driver.serve();
    let state = driver.block.save(0);
    let mut later = Driver::new(Limits::default());
    // The other's memory is the first's, as after a snapshot.
    std::mem::swap(&mut later.memory, &mut driver.memory);
    later.block.restore(&state, 0);
    later.offered = driver.offered;
    assert_eq!(later.read(INTERRUPT_STATUS), INTERRUPT_USED);
    assert_eq!(later.block.kick().read().unwrap(), 1);
    later.offer(READ, 1);
    assert_eq!(later.serve(), Turn::Served);
    assert_eq!(used(&later.memory, ENTRIES).0, 2);
}

#[test]
fn accesses_of_other_widths_do_nothing() {
    let driver = Driver::new(Limits::default());
    let before = driver.block.save(0);
    for data in [&[0; 1][..], &[0; 2], &[0; 8], &[]] {
        for offset in (0..0x200).chain([u64::MAX]) {
            driver.block.write(offset, data, &driver.memory);
            driver.block.read(offset, &mut data.to_vec());
        }
    }
    assert_eq!(driver.block.save(0), before);
}
