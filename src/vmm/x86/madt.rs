//! The MADT: interrupt controllers and processors.
//!
//! Owns its body (ACPI specification 6.5, 5.2.12); leaves the header to `acpi`, the ids to `apic`.
//! Invariant: every possible CPU is listed once, in the order of CPU numbers, and only those that exist are enabled.

use super::apic::{ApicIds, XAPIC_ID_MAX};
use super::layout::{IOAPIC_GPA, LAPIC_GPA};
use crate::vmm::dev::power::SCI_IRQ;

pub const REVISION: u8 = 5;
/// Dual 8259s are present.
const PCAT_COMPAT: u32 = 1;
/// Entry types.
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;
/// Flags of a processor: there now, or may be added.
const ENABLED: u32 = 1;
const ONLINE_CAPABLE: u32 = 2;
/// Non-maskable interrupts come through the second local interrupt pin.
const LINT1: u8 = 1;
const LEVEL_ACTIVE_HIGH: u8 = 0x0D;
/// KVM's I/O APIC gets the id 0 and the interrupts from 0 on. KVM's default routing is one to one, the timer's too,
/// so that only the SCI needs an override.
const IOAPIC_ID: u8 = 0;

/// The body, for a machine on which the first `cpus` of all possible CPUs exist.
pub fn body(apic: &ApicIds, cpus: u32) -> Vec<u8> {
    let mut body = LAPIC_GPA.to_le_bytes().to_vec();
    body.extend(PCAT_COMPAT.to_le_bytes());
    let mut wide = false;
    for (cpu, id) in (0u32..).zip(apic.all().iter().copied()) {
        let flags = if cpu < cpus { ENABLED } else { ONLINE_CAPABLE };
        if id <= XAPIC_ID_MAX && cpu <= XAPIC_ID_MAX {
            body.extend([LOCAL_APIC, 8, cpu as u8, id as u8]);
            body.extend(flags.to_le_bytes());
        } else {
            wide = true;
            body.extend([LOCAL_X2APIC, 16, 0, 0]);
            body.extend([id, flags, cpu].map(u32::to_le_bytes).concat());
        }
    }
    body.extend([IO_APIC, 12, IOAPIC_ID, 0]);
    body.extend(IOAPIC_GPA.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    body.extend([OVERRIDE, 10, 0, SCI_IRQ, SCI_IRQ, 0, 0, 0, LEVEL_ACTIVE_HIGH, 0]);
    body.extend([LOCAL_APIC_NMI, 6, 0xFF, 0, 0, LINT1]);
    if wide {
        body.extend([LOCAL_X2APIC_NMI, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, LINT1, 0, 0, 0]);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::topology::Topology;
    use crate::vmm::x86::apic::LlcRule;

    /// (APIC id, enabled) of every processor, and how many entries there are of each type.
    fn listed(text: &str) -> (Vec<(u32, bool)>, [usize; 16]) {
        let topology: Topology = text.parse().unwrap();
        let body = body(&ApicIds::new(&topology, LlcRule::CacheLeaf), topology.total_cpus());
        let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        let (mut at, mut found, mut kinds) = (8, Vec::new(), [0; 16]);
        while at < body.len() {
            kinds[body[at] as usize] += 1;
            match body[at] {
                LOCAL_APIC => found.push((u32::from(body[at + 3]), word(at + 4) == ENABLED)),
                LOCAL_X2APIC => found.push((word(at + 4), word(at + 8) == ENABLED)),
                _ => {}
            }
            at += body[at + 1] as usize;
        }
        (found, kinds)
    }

    #[test]
    fn every_cpu_is_listed_once_and_wide_ids_as_x2apic() {
        for (cpus, narrow, wide) in [(1, 1, 0), (4, 4, 0), (255, 255, 0), (256, 255, 1), (1024, 255, 769)] {
            let (found, kinds) = listed(&cpus.to_string());
            assert_eq!(found, (0..cpus).map(|id| (id, true)).collect::<Vec<_>>());
            assert_eq!((kinds[0], kinds[9], kinds[1]), (narrow, wide, 1), "{cpus} CPUs");
            assert_eq!(kinds[10], usize::from(wide > 0), "wide ids have their own NMI entry");
        }
    }

    #[test]
    fn possible_cpus_are_listed_but_not_enabled() {
        let (found, _) = listed("2:spare2");
        assert_eq!(found, [(0, true), (1, true), (2, false), (3, false)]);
    }
}
