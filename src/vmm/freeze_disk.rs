//! The disk of the freeze check: a request that was offered before the freeze is carried out after it, in another VM.
//!
//! Owns a small driver, which works from outside of the guest; leaves the device to dev/virtio and the freeze to freeze_check.
//! Invariant: between the two calls nothing but guest memory, the disk's file and the saved state tells of the request.

use super::dev::virtio::block::{Block, Limits, Turn};
use super::dev::virtio::disk::Disk;
use super::dev::virtio::mmio::{
    AVAIL_LOW, DESCRIPTORS_LOW, DRIVER_FEATURES, DRIVER_FEATURES_SELECT, FEATURE_VERSION_1, INTERRUPT_STATUS,
    INTERRUPT_USED, QUEUE_READY, QUEUE_SIZE, STATUS, USED_LOW,
};
use crate::error::{Context, Error, Result};
use crate::sys::{fd, time};
use std::fs::File;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Ring and buffers, where the guest of the freeze check has nothing; the used ring is zero as all fresh memory is.
const DESCRIPTORS_GPA: u64 = 0x4_0000;
const AVAIL_GPA: u64 = 0x4_1000;
const USED_GPA: u64 = 0x4_2000;
const HEADER_GPA: u64 = 0x4_3000;
const DATA_GPA: u64 = 0x4_4000;
const RESULT_GPA: u64 = 0x4_5000;
const ENTRIES: u32 = 4;
const SECTOR_BYTES: u64 = 512;
/// A read (VIRTIO 1.2, 5.2.6) of this sector, and what lies there; the result that the device must replace by 0.
const REQUEST_READ: u32 = 0;
const SECTOR: u64 = 3;
const CONTENT: u8 = 0xD5;
const UNTOUCHED: u8 = 0xFF;
/// Flags of a descriptor (2.7.5): another follows; the device writes.
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
/// Status bits (2.1): acknowledged, driver found, features chosen, driver ready.
const STATUS_STEPS: [u32; 3] = [1 | 2, 1 | 2 | 8, 1 | 2 | 8 | 4];

/// A file of few sectors, one of which has content.
pub fn file() -> Result<File> {
    let what = || "make the disk of the freeze check";
    let file = fd::memfd("ktstr-freeze-disk", (SECTOR + 1) * SECTOR_BYTES).context(what)?;
    file.write_all_at(&[CONTENT; SECTOR_BYTES as usize], SECTOR * SECTOR_BYTES).context(what)?;
    Ok(file)
}

/// A device over it, as a VM has one after its start.
pub fn device(file: &File) -> Result<Block> {
    let file = file.try_clone().context(|| "share the disk of the freeze check")?;
    Block::new(Disk::new(file, (SECTOR + 1) * SECTOR_BYTES, true)?, Limits::default())
}

/// Sets the device up and offers the request, which nobody carries out yet.
pub fn offer(disk: &Block, memory: &GuestMemoryMmap) -> Result<()> {
    let write = |register: u64, value: u32| disk.write(register, &value.to_le_bytes(), memory);
    write(STATUS, STATUS_STEPS[0]);
    write(DRIVER_FEATURES_SELECT, 1);
    write(DRIVER_FEATURES, (FEATURE_VERSION_1 >> 32) as u32);
    write(STATUS, STATUS_STEPS[1]);
    write(QUEUE_SIZE, ENTRIES);
    for (register, gpa) in [(DESCRIPTORS_LOW, DESCRIPTORS_GPA), (AVAIL_LOW, AVAIL_GPA), (USED_LOW, USED_GPA)] {
        write(register, gpa as u32);
    }
    write(QUEUE_READY, 1);
    write(STATUS, STATUS_STEPS[2]);
    let chain = [
        (HEADER_GPA, 16u32, NEXT, 1u16),
        (DATA_GPA, SECTOR_BYTES as u32, NEXT | DEVICE_WRITES, 2),
        (RESULT_GPA, 1, DEVICE_WRITES, 0),
    ];
    let mut descriptors = Vec::new();
    for (gpa, bytes, flags, next) in chain {
        descriptors.extend(gpa.to_le_bytes());
        descriptors.extend(bytes.to_le_bytes());
        descriptors.extend([flags, next].iter().flat_map(|half| half.to_le_bytes()));
    }
    let header: Vec<u8> = [u64::from(REQUEST_READ), SECTOR].iter().flat_map(|word| word.to_le_bytes()).collect();
    // The available ring: flags, index, and the first entry, which is descriptor 0.
    for (gpa, bytes) in [
        (DESCRIPTORS_GPA, &descriptors[..]),
        (HEADER_GPA, &header),
        (RESULT_GPA, &[UNTOUCHED]),
        (AVAIL_GPA, &[0, 0, 1, 0, 0, 0]),
    ] {
        let written = memory.write_slice(bytes, GuestAddress(gpa));
        written.map_err(|cause| Error::internal(format!("cannot write guest memory at {gpa:#x}: {cause}")))?;
    }
    Ok(())
}

/// Carries out what is offered; it must be the request, with the content of its sector.
pub fn finish(disk: &Block, memory: &GuestMemoryMmap) -> Result<()> {
    let turns = [disk.serve(memory, time::monotonic_ns()), disk.serve(memory, time::monotonic_ns())];
    let mut data = [0; SECTOR_BYTES as usize];
    let mut result = [UNTOUCHED];
    let read = memory.read_slice(&mut data, GuestAddress(DATA_GPA));
    read.and_then(|()| memory.read_slice(&mut result, GuestAddress(RESULT_GPA)))
        .map_err(|cause| Error::internal(format!("cannot read guest memory: {cause}")))?;
    let mut interrupt = [0; 4];
    disk.read(INTERRUPT_STATUS, &mut interrupt);
    let right = turns == [Turn::Served, Turn::Idle] && result == [0] && data == [CONTENT; SECTOR_BYTES as usize];
    if right && u32::from_le_bytes(interrupt) == INTERRUPT_USED {
        return Ok(());
    }
    Err(Error::host(format!("the disk lost a request over the freeze: {turns:?}, result {result:?}, {interrupt:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;
    use crate::vmm::dev::virtio::block::DiskState;

    #[test]
    fn offered_request_is_carried_out_by_the_next_device_only_with_the_state_of_the_first() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let file = file().unwrap();
        let first = device(&file).unwrap();
        offer(&first, &memory).unwrap();
        let bytes = first.save(7).to_bytes();
        drop(first);
        let forgetful = device(&file).unwrap();
        assert!(finish(&forgetful, &memory).unwrap_err().to_string().contains("lost a request"));
        let second = device(&file).unwrap();
        second.restore(&DiskState::from_bytes(&bytes).unwrap(), 9);
        finish(&second, &memory).unwrap();
    }
}
