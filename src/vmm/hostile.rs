//! A hostile guest against the devices, and hostile files in the place of a kernel.
//!
//! Owns the target of devices, and of kernels what a VM reads; leaves the rest of that target to run/hostile, running both to
//! crate::hostile.
//! Invariant: after whatever the guest did, a reset disk serves a good driver.

use super::bus::Bus;
use super::config::DOORBELL_PORT;
use super::config::fixture::sample;
use super::dev::doorbell::Doorbell;
use super::dev::power::Power;
use super::dev::serial::SerialPort;
use super::dev::virtio::SECTOR_BYTES;
use super::dev::virtio::block::{Block, Limits, Turn};
use super::dev::virtio::disk::Disk;
use super::dev::virtio::mmio::{STATUS, WINDOW_BYTES};
use super::dev::virtio::ring::driver::{
    AVAIL_GPA, DESCRIPTORS_GPA, MEMORY_BYTES, USED_GPA, describe, memory, offer, set, used,
};
use super::kernel::KernelImage;
use super::x86::apic::{ApicIds, LlcRule};
use super::x86::boot;
use super::x86::layout::{DISK_GPA, EXTENDED_RAM_START, HUGE_PAGE_BYTES, MMIO_HOLE_START};
use crate::hostile::input::Input;
use crate::sys::fd::memfd;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ENTRIES: u16 = 8;
const DISK_BYTES: u64 = 64 * SECTOR_BYTES;
const HEADER_GPA: u64 = 0x8000;
const DATA_GPA: u64 = 0x1_0000;
const STATUS_GPA: u64 = 0x9000;
/// Ports that devices own, and one that nobody does.
const PORTS: [u16; 10] = [0x3F8, 0x2F8, 0x60, 0x64, 0x600, 0x604, 0x608, 0xCF9, DOORBELL_PORT, 0x80];

fn bus() -> Bus {
    let null = || OwnedFd::from(File::options().write(true).open("/dev/null").expect("open /dev/null"));
    let serial = || Mutex::new(SerialPort::new(null(), None).expect("make a serial port"));
    let disk = Disk::new(memfd("hostile-disk", DISK_BYTES).expect("make a disk"), DISK_BYTES, false);
    Bus {
        com1: serial(),
        com2: serial(),
        power: Power::default(),
        doorbell: Doorbell::new(null()).expect("make a doorbell"),
        doorbell_port: DOORBELL_PORT,
        disk: Some(Block::new(disk.expect("make a disk"), Limits::default()).expect("make a block device")),
        lost_bytes: AtomicU64::new(0),
    }
}

fn register(bus: &Bus, memory: &GuestMemoryMmap, offset: u64, value: u32) {
    bus.write_memory(DISK_GPA + offset, &value.to_le_bytes(), memory);
}

/// As a good driver does it (VIRTIO 1.2, 3.1.1 and 4.2.3).
fn set_up(bus: &Bus, memory: &GuestMemoryMmap) {
    let ring = [(0x80, DESCRIPTORS_GPA), (0x84, 0), (0x90, AVAIL_GPA), (0x94, 0), (0xA0, USED_GPA), (0xA4, 0)];
    let steps = [(STATUS, 0), (STATUS, 3), (0x24, 1), (0x20, 1), (STATUS, 0xB), (0x30, 0), (0x38, u32::from(ENTRIES))];
    steps.into_iter().chain(ring.map(|(at, gpa)| (at, gpa as u32))).for_each(|(at, v)| register(bus, memory, at, v));
    set(memory, AVAIL_GPA, &[0; 4]);
    register(bus, memory, 0x44, 1);
    register(bus, memory, STATUS, 0xF);
}

/// Offers a request for a sector, as the `number`th chain.
fn request(memory: &GuestMemoryMmap, number: u16, (kind, sector, bytes): (u32, u64, u32)) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    set(memory, HEADER_GPA, &header);
    describe(memory, 0, (HEADER_GPA, 16, 1, 1));
    describe(memory, 1, (DATA_GPA, bytes, if kind == 1 { 1 } else { 3 }, 2));
    describe(memory, 2, (STATUS_GPA, 1, 2, 0));
    offer(memory, ENTRIES, number, 0);
}

thread_local! {
    /// Made once, as system calls would take most of the time.
    static MACHINE: (Bus, GuestMemoryMmap) = (bus(), memory());
}

/// As after power-on: every input begins with the same machine.
fn power_on(bus: &Bus, memory: &GuestMemoryMmap) {
    set(memory, 0, &vec![0; MEMORY_BYTES]);
    register(bus, memory, STATUS, 0);
    for port in [&bus.com1, &bus.com2] {
        let mut port = super::bus::lock(port);
        // LCR, so that the registers below are not the divisor's; IER, MCR; then the divisor, and LCR's default.
        for (at, value) in [(3, 0), (1, 0), (4, 0), (3, 0x80), (0, 0x0C), (1, 0), (3, 3)] {
            port.write(at, value);
        }
        while port.read(5) & 1 != 0 {
            port.read(0);
        }
    }
}

/// A guest that writes ports, registers and its memory as it likes, while the disk does its work.
pub fn devices(data: &[u8]) {
    MACHINE.with(|(bus, memory)| {
        power_on(bus, memory);
        attack(bus, memory, data);
    });
}

fn attack(bus: &Bus, memory: &GuestMemoryMmap, data: &[u8]) {
    let disk = bus.disk.as_ref().expect("the bus has a disk");
    let (mut input, mut number, mut now_ns) = (Input(data), 0u16, 0u64);
    let mut wide = [0; 8];
    while let Some(op) = input.byte() {
        match op % 12 {
            0 | 1 => {
                let port = PORTS[usize::from(input.word8()) % PORTS.len()].wrapping_add(u16::from(op >> 5));
                let width = usize::from(input.word8() % 9);
                match op % 12 {
                    0 => drop(bus.write(port, input.take(width))),
                    _ => bus.read(port, &mut wide[..width]),
                }
            }
            2 => {
                let (gpa, width) = (DISK_GPA + u64::from(input.word16()) % (WINDOW_BYTES + 16), 1 << (op >> 5 & 3));
                bus.write_memory(gpa, input.take(width), memory);
            }
            // The width that registers have.
            3 => register(bus, memory, u64::from(input.word8()) & !3, input.word32()),
            4 => {
                bus.read_memory(DISK_GPA + u64::from(input.word16()) % (WINDOW_BYTES + 16), &mut wide[..1 << (op >> 6)])
            }
            5 => {
                let gpa = u64::from(input.word32()) % (MEMORY_BYTES as u64 - 256);
                set(memory, gpa, input.take(usize::from(op)));
            }
            6 => {
                now_ns += u64::from(input.word16());
                disk.serve(memory, now_ns);
            }
            7 => (set_up(bus, memory), number = 0).1,
            8 => {
                request(
                    memory,
                    number,
                    (u32::from(input.word8()), u64::from(input.word8()), input.word32() >> (op >> 3)),
                );
                number = number.wrapping_add(1);
            }
            9 => {
                let (gpa, bytes) = (input.word64() >> (op >> 2), input.word32() >> (op >> 3));
                describe(memory, u16::from(op % ENTRIES as u8), (gpa, bytes, input.word16(), input.word16()));
            }
            10 => (offer(memory, ENTRIES, number, input.word16()), number = number.wrapping_add(u16::from(op >> 4))).1,
            _ => {
                let mut port = super::bus::lock(if op > 127 { &bus.com2 } else { &bus.com1 });
                let bytes = input.some();
                assert!(port.feed(bytes) <= bytes.len());
                assert!(port.room() <= 64, "more than a 16550 holds");
                port.flush();
            }
        }
    }
    set_up(bus, memory);
    request(memory, 0, (0, 1, SECTOR_BYTES as u32));
    set(memory, USED_GPA, &[0; 4]);
    assert_eq!(disk.serve(memory, now_ns), Turn::Served, "a reset disk does not serve");
    let status: u8 = memory.read_obj(GuestAddress(STATUS_GPA)).expect("read the status");
    assert_eq!((used(memory, ENTRIES), status), ((1, 0, SECTOR_BYTES as u32 + 1), 0));
}

pub fn device_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![7, 8, 0, 0, 0, 2, 0, 0, 6, 0, 0, 8, 1, 5, 0, 2, 0, 0, 6, 0, 0],
        vec![7, 8, 0, 0, 0, 2, 0, 0, 9, 0, 0x80, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 6, 0, 0],
        vec![3, 0x70, 1, 0, 0, 0, 3, 0x20, 0, 2, 0, 0, 3, 0x70, 0xB, 0, 0, 0, 3, 0x38, 8, 0, 0, 0, 3, 0x44, 1, 0, 0, 0],
        vec![7, 10, 0, 0, 6, 0, 0, 10, 9, 0, 6, 0, 0, 4, 0, 1],
        vec![0, 0, 1, b'a', 1, 0, 1, 0, 0, 3, 15, b'x', 0, 1, 11, 5, 1, 2, 3, 4, 5, 131, 3, 1, 2, 3],
        vec![5, 0, 0x30, 0, 0, 1, 2, 3, 4, 5, 2, 0x50, 0, 0, 0, 0, 0],
    ]
}

/// A file given as the kernel: looked at, and loaded where it passes.
pub fn kernel(data: &[u8]) {
    let file = memfd("hostile-kernel", 0).expect("make a memory file");
    file.write_all_at(data, 0).expect("write to memory");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Ok((image, mut opened)) = KernelImage::open_file(Path::new(&path)) else { return };
    assert!(image.start_gpa <= image.end_gpa, "{image:?}");
    drop(image.release());
    // What loading refuses here, a run refuses too, with the same words.
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LOAD_MEMORY_BYTES)]).expect("map guest memory");
    if let Ok(header) = boot::load_kernel(&memory, &image, &mut opened) {
        let config = sample();
        let apic = ApicIds::new(&config.topology, LlcRule::CacheLeaf);
        drop(boot::load_tables(&memory, &config, &apic, header));
    }
}

/// A stranger's ELF kernel, as it lies in a file or inside of another: whether what it only reads was found.
pub fn elf(data: &[u8]) -> bool {
    let Ok(segments) = KernelImage::segments(data) else { return false };
    for segment in &segments {
        let (end, end_gpa) = (segment.offset + segment.bytes, segment.gpa + segment.bytes);
        let fits = segment.bytes > 0 && end <= data.len() as u64 && segment.gpa >= EXTENDED_RAM_START;
        assert!(fits && end_gpa <= MMIO_HOLE_START, "{segment:?}");
    }
    let Some((start, end)) = KernelImage::read_only(data, &segments) else { return false };
    let first = segments.iter().map(|segment| segment.gpa).min().unwrap_or(u64::MAX);
    let last = segments.iter().map(|segment| segment.gpa + segment.bytes).max().unwrap_or(0);
    assert!([first, start, end, last].is_sorted() && start < end, "{start:#x} to {end:#x} of {segments:?}");
    assert_eq!((start % HUGE_PAGE_BYTES, end % HUGE_PAGE_BYTES), (0, 0));
    true
}

/// Guest memory that a kernel file is loaded into.
const LOAD_MEMORY_BYTES: usize = 32 << 20;

pub fn kernel_seeds() -> Vec<Vec<u8>> {
    let mut bzimage = vec![0; 0x1000];
    let mut at = |place: usize, bytes: &[u8]| bzimage[place..place + bytes.len()].copy_from_slice(bytes);
    // setup_sects, syssize, the flag, the magic with protocol 2.15, loaded high, the entry, alignment, 64-bit, init_size.
    at(0x1F1, &[1]);
    at(0x1F4, &0xA0u32.to_le_bytes());
    at(0x1FE, &[0x55, 0xAA]);
    at(0x202, b"HdrS\x0f\x02");
    at(0x20E, &0x100u16.to_le_bytes());
    at(0x211, &[1]);
    at(0x214, &0x10_0000u32.to_le_bytes());
    at(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    at(0x230, &0x20_0000u32.to_le_bytes());
    at(0x234, &[1, 21, 0x3F, 0]);
    at(0x238, &2047u32.to_le_bytes());
    at(0x258, &0x100_0000u64.to_le_bytes());
    at(0x260, &0x8000u32.to_le_bytes());
    at(0x300, b"7.2.0-test (x)\0");
    let mut vmlinux = b"\x7fELF\x02\x01\x01".to_vec();
    vmlinux.resize(16, 0);
    vmlinux.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    vmlinux.extend(0x100_0000u64.to_le_bytes());
    vmlinux.extend(64u64.to_le_bytes());
    vmlinux.extend([0; 12]);
    vmlinux.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    vmlinux.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0x78u64, 0xFFFF_FFFF_8100_0000, 0x100_0000, 0x40, 0x1000, 0x20_0000] {
        vmlinux.extend(word.to_le_bytes());
    }
    vmlinux.extend(b"Linux version 7.2.0-test (x) #1");
    vmlinux.resize(0x100, 0x90);
    // The second has no whole huge page that is only read.
    let [sections, none_whole] = [0x140_0000, 0x100_1000].map(|data_gpa| with_sections(&vmlinux, data_gpa));
    vec![bzimage, vmlinux, sections, none_whole, b"#!/bin/sh\n".to_vec(), b"\x1f\x8b\x08".to_vec()]
}

/// That kernel with what it only reads from 16 MiB to its data, as two sections in two segments tell.
fn with_sections(vmlinux: &[u8], data_gpa: u64) -> Vec<u8> {
    const SECTIONS_AT: u64 = 0x100;
    const NAMES_AT: u64 = 0x1E0;
    let mut file = vmlinux[..64].to_vec();
    file[40..48].copy_from_slice(&SECTIONS_AT.to_le_bytes());
    // Two program headers; three section headers of 64 bytes, the last of which is that of the names.
    file[56..64].copy_from_slice(&[2, 0, 64, 0, 3, 0, 2, 0]);
    let parts = [(0x1C0u64, 0x100_0000u64, 0u32), (0x1D0, data_gpa, 8)];
    for (offset, gpa, _) in parts {
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        for word in [offset, 0xFFFF_FFFF_8000_0000 + gpa, gpa, 0x10, 0x10, 0x20_0000] {
            file.extend(word.to_le_bytes());
        }
    }
    file.resize(SECTIONS_AT as usize, 0);
    for (offset, name) in parts.map(|(offset, _, name)| (offset, name)).into_iter().chain([(NAMES_AT, 0)]) {
        file.extend(name.to_le_bytes());
        file.extend([0; 20]);
        file.extend(offset.to_le_bytes());
        file.extend([0; 32]);
    }
    file.resize(NAMES_AT as usize, 0x90);
    file.extend(b".rodata\0.data\0");
    file
}
