//! KVM's own counts of a vCPU: exits that never reach user space, such as halts and interrupts.
//!
//! Owns reading the binary statistics; leaves the descriptor to kvm and adding up to exit.
//! Invariant: the format tells its own offsets, and each is checked; what cannot be read is left out.
//!
//! Format: Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// All statistics of a vCPU take a few KiB.
const MOST_BYTES: usize = 64 * 1024;
const HEADER_BYTES: usize = 24;
/// A descriptor before its name.
const DESCRIPTOR_BYTES: usize = 16;
/// Low bits of a descriptor's flags: 0 is a count that only grows.
const TYPE_MASK: u32 = 0xF;
/// The counts that are told: exits, and how a halted vCPU was waited for.
const TOLD: [&str; 2] = ["exits", "_poll"];

/// The growing counts of a vCPU by name, where they are not zero.
pub fn read(statistics: &File) -> Vec<(String, u64)> {
    let mut bytes = vec![0; MOST_BYTES];
    let mut length = 0;
    // The file gives descriptors and data in separate reads.
    while let Ok(count @ 1..) = statistics.read_at(&mut bytes[length..], length as u64) {
        length += count;
    }
    parse(&bytes[..length])
}

fn parse(bytes: &[u8]) -> Vec<(String, u64)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let header = |index: usize| word(index * 4).map(|value| value as usize);
    let (Some(name_bytes), Some(count), Some(descriptors), Some(data)) = (header(1), header(2), header(4), header(5))
    else {
        return Vec::new();
    };
    if descriptors < HEADER_BYTES {
        return Vec::new();
    }
    let one = |index: usize| {
        let at = descriptors.checked_add(index.checked_mul(DESCRIPTOR_BYTES + name_bytes)?)?;
        let name = bytes.get(at + DESCRIPTOR_BYTES..at.checked_add(DESCRIPTOR_BYTES + name_bytes)?)?;
        let name = std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()?;
        let (flags, size) = (word(at)?, word(at + 4)? >> 16);
        let value_at = data.checked_add(word(at + 8)? as usize)?;
        let value = u64::from_le_bytes(bytes.get(value_at..value_at.checked_add(8)?)?.try_into().ok()?);
        let told = flags & TYPE_MASK == 0 && size == 1 && value > 0 && TOLD.iter().any(|end| name.ends_with(end));
        Some(told.then(|| (name.to_owned(), value)))
    };
    // The count is a number from a file: the first descriptor beyond it ends the reading.
    (0..count).map_while(one).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: usize = 24;

    /// Statistics of these (flags, size, name, value).
    fn statistics(list: &[(u32, u16, &str, u64)]) -> Vec<u8> {
        let descriptors = HEADER_BYTES + 8;
        let data = descriptors + list.len() * (DESCRIPTOR_BYTES + NAME);
        let mut bytes: Vec<u8> = [0, NAME, list.len(), HEADER_BYTES, descriptors, data]
            .iter()
            .flat_map(|word| (*word as u32).to_le_bytes())
            .collect();
        bytes.extend([0; 8]);
        for (index, (flags, size, name, _)) in list.iter().enumerate() {
            bytes.extend(flags.to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(size.to_le_bytes());
            bytes.extend((index as u32 * 8).to_le_bytes());
            bytes.extend([0; 4]);
            let mut padded = name.as_bytes().to_vec();
            padded.resize(NAME, 0);
            bytes.extend(padded);
        }
        list.iter().for_each(|(.., value)| bytes.extend(value.to_le_bytes()));
        bytes
    }

    #[test]
    fn growing_counts_of_exits_are_read() {
        let bytes = statistics(&[
            (0, 1, "exits", 70),
            (0, 1, "halt_exits", 9),
            (0, 1, "irq_exits", 0),
            (1, 1, "guest_mode_exits", 1),
            (0, 4, "some_exits", 1),
            (0, 1, "halt_attempted_poll", 5),
            (0, 1, "insn_emulation", 3),
        ]);
        let told: Vec<(String, u64)> = parse(&bytes);
        let want = [("exits", 70), ("halt_exits", 9), ("halt_attempted_poll", 5)];
        assert_eq!(told, want.map(|(name, value)| (name.to_owned(), value)));
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).len() <= 3, "cut at {cut}");
        }
        let mut hostile = bytes;
        hostile[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        hostile[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&hostile).is_empty());
    }
}
