//! The guest's page tables, walked by hand: KVM's own translation refuses user pages where SMAP is on, and an emulator
//! offers none.
//!
//! Owns the walk in long mode; leaves reading guest memory to the caller.
//! Invariant: tables are hostile: every step is bounded, and what is not mapped is none.

/// CR4.LA57: five levels of tables (Intel SDM vol. 3, 5.5).
const CR4_LA57: u64 = 1 << 12;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits of an entry that are an address.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const PAGE_BITS: u32 = 12;
const INDEX_BITS: u32 = 9;
const ENTRY_BYTES: u64 = 8;

/// The guest-physical address of a linear one. `read` reads a word of guest memory.
pub fn translate(read: impl Fn(u64) -> Option<u64>, cr3: u64, cr4: u64, linear: u64) -> Option<u64> {
    let levels = if cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let mut table = cr3 & ADDRESS;
    for level in (0..levels).rev() {
        let shift = PAGE_BITS + INDEX_BITS * level;
        let index = linear >> shift & ((1 << INDEX_BITS) - 1);
        let entry = read(table + index * ENTRY_BYTES).filter(|entry| entry & PRESENT != 0)?;
        // 1 GiB and 2 MiB pages stand in the tables of levels 2 and 1.
        if level == 0 || (entry & LARGE != 0 && level <= 2) {
            let within = (1u64 << shift) - 1;
            return Some((entry & ADDRESS & !within) | (linear & within));
        }
        table = entry & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn small_large_and_missing_pages_in_four_and_five_levels() {
        let user = 7;
        let memory: BTreeMap<u64, u64> = [
            (0x1000, 0x2000 | user),
            (0x2000, 0x3000 | user),
            (0x3000 + 2 * 8, 0x4000 | user),
            (0x4000, 0x8000_0000_0000_9000 | user),
            (0x3000 + 3 * 8, 0x60_0000 | LARGE | user),
            // Five levels: one more on top.
            (0x5000, 0x1000 | user),
        ]
        .into();
        let read = |gpa: u64| memory.get(&gpa).copied().or(Some(0));
        assert_eq!(translate(read, 0x1000, 0, 0x40_0078), Some(0x9078));
        assert_eq!(translate(read, 0x1018, 0, 0x61_2345), Some(0x61_2345), "a 2 MiB page; CR3's low bits are flags");
        assert_eq!(translate(read, 0x5000, CR4_LA57, 0x40_0078), Some(0x9078));
        assert_eq!(translate(read, 0x1000, 0, 0x40_1000), None);
        assert_eq!(translate(|_| None, 0x1000, 0, 0), None);
    }
}
