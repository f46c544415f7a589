//! The MP table: processors and interrupts for a kernel that does not read ACPI (`acpi=off`).
//!
//! Owns its bytes (MultiProcessor Specification 1.4, chapter 4); leaves where it lies to layout.
//! Invariant: pure; check sums are right, and a machine that it cannot describe has none.

use super::apic::{ApicIds, XAPIC_ID_MAX};
use super::layout::{IOAPIC_GPA, LAPIC_GPA, MPTABLE_AREA_BYTES, MPTABLE_GPA};
use crate::error::{Error, Result};

/// Entry types [4.3].
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// CPU flags: enabled, boot processor.
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// Interrupt types: vectored, NMI, external.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ISA_BUS: u8 = 0;
const ISA_INTERRUPTS: u8 = 16;
const ALL_APICS: u8 = 0xFF;
/// KVM's local APICs are of version 0x14, its I/O APIC of 0x11 (arch/x86/kvm/lapic.h, ioapic.h).
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const SPEC_1_4: u8 = 4;
const HEADER_BYTES: usize = 44;

/// Both parts: the floating pointer, to be written at `MP_POINTER_GPA`, and the table, at `MPTABLE_GPA`.
pub struct MpTable {
    pub pointer: Vec<u8>,
    pub table: Vec<u8>,
}

/// Describes CPUs 0 to `cpus` - 1.
pub fn make(apic: &ApicIds, cpus: u32) -> Result<MpTable> {
    let refuse = |why: String| {
        Err(Error::usage(format!("acpi=off leaves the MP table, which cannot describe this machine: {why}"))
            .hint("leave out acpi=off, or ask for fewer CPUs with --topo"))
    };
    // The I/O APIC needs an 8-bit id of its own.
    let ids = &apic.all()[..cpus as usize];
    if let Some(wide) = ids.iter().find(|id| **id >= XAPIC_ID_MAX) {
        return refuse(format!("APIC id {wide} of {cpus} CPUs is not below {XAPIC_ID_MAX}"));
    }
    let ioapic_id = XAPIC_ID_MAX as u8;
    let mut entries = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        let flags = CPU_ENABLED | if index == 0 { CPU_BOOT } else { 0 };
        entries.push([&[PROCESSOR, *id as u8, LAPIC_VERSION, flags][..], &[0; 16]].concat());
    }
    entries.push([&[BUS, ISA_BUS][..], b"ISA   "].concat());
    entries.push([&[IO_APIC, ioapic_id, IOAPIC_VERSION, CPU_ENABLED][..], &IOAPIC_GPA.to_le_bytes()].concat());
    for line in 0..ISA_INTERRUPTS {
        entries.push(vec![IO_INTERRUPT, INT, 0, 0, ISA_BUS, line, ioapic_id, line]);
    }
    entries.push(vec![LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA_BUS, 0, ALL_APICS, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);

    let count = entries.len() as u16;
    let bytes: Vec<u8> = entries.concat();
    let mut header = b"PCMP".to_vec();
    header.extend(((HEADER_BYTES + bytes.len()) as u16).to_le_bytes());
    header.extend([SPEC_1_4, 0]);
    header.extend(b"KTSTR   KTSTRVM     ");
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(LAPIC_GPA.to_le_bytes());
    header.extend([0; 4]);
    header.extend(bytes);
    header[7] = checksum(&header);

    let mut pointer = b"_MP_".to_vec();
    pointer.extend((MPTABLE_GPA as u32).to_le_bytes());
    pointer.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    if header.len() as u64 > MPTABLE_AREA_BYTES {
        return refuse(format!("{cpus} CPUs need {} bytes of {MPTABLE_AREA_BYTES}", header.len()));
    }
    Ok(MpTable { pointer, table: header })
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::topology::Topology;
    use crate::vmm::x86::apic::LlcRule;

    fn made(text: &str) -> Result<MpTable> {
        let topology: Topology = text.parse().unwrap();
        make(&ApicIds::new(&topology, LlcRule::CacheLeaf), topology.total_cpus())
    }

    #[test]
    fn sums_are_zero_and_every_processor_is_listed() {
        let MpTable { pointer, table } = made("1n2l3c2t").unwrap();
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&pointer), sum(&table)), (0, 0));
        assert_eq!(u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap())), MPTABLE_GPA);
        assert_eq!(u16::from_le_bytes(table[4..6].try_into().unwrap()) as usize, table.len());
        let (mut at, mut ids, mut count) = (HEADER_BYTES, Vec::new(), 0);
        while at < table.len() {
            if table[at] == PROCESSOR {
                ids.push((table[at + 1], table[at + 3]));
            }
            at += if table[at] == PROCESSOR { 20 } else { 8 };
            count += 1;
        }
        assert_eq!(u16::from_le_bytes(table[34..36].try_into().unwrap()), count);
        let boot_first: Vec<u8> = ids.iter().map(|(id, _)| *id).collect();
        assert_eq!(boot_first, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert!(ids.iter().enumerate().all(|(index, (_, flags))| *flags == if index == 0 { 3 } else { 1 }));
    }

    #[test]
    fn machines_with_wide_ids_are_refused_in_words() {
        assert!(made("254").is_ok());
        for text in ["255", "max-cpu", "4:sparse7"] {
            let error = made(text).err().unwrap().to_string();
            assert!(error.contains("acpi=off") && error.contains("APIC id") && error.contains("--topo"), "{error}");
        }
    }
}
