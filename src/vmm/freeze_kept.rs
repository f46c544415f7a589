//! What a frozen VM has besides its vCPUs, and whether another VM has it, too: interrupt chips, clock, second serial port and
//! power management, none of which the guest of the freeze check looks at.
//!
//! Owns the marks by which each is known, and comparing; leaves saving and restoring to snapshot and freeze_check.
//! Invariant: what is compared is different in a VM that was just made, so that nothing passes by being forgotten.

use super::dev::power::{Power, SCI_IRQ};
use super::dev::serial::SerialPort;
use super::kvm::{Machine, bytes_of, failed, value_of};
use super::snapshot::{self, VmState};
use crate::error::{Error, Result};
use crate::proto::codec::Wire;
use crate::sys::time;
use crate::units::{self, NS_PER_SEC};
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip};

/// Where the union of chips begins in kvm_irqchip, and what is used of it (arch/x86/include/uapi/asm/kvm.h).
const CHIP_AT: usize = 8;
const CHIP_BYTES: usize = size_of::<kvm_irqchip>();
const PIC_LAST_IRR: usize = CHIP_AT;
const PIC_IRR: usize = CHIP_AT + 1;
const PIC_IMR: usize = CHIP_AT + 2;
const IOAPIC_IRR: usize = CHIP_AT + 16;
const IOAPIC_ENTRIES: usize = CHIP_AT + 24;
const IOAPIC_ENTRY_BYTES: usize = 8;
/// The timer's line, on either chip: it ticks while nobody runs.
const TIMER_LINE: u8 = 1;

/// The marks: a line of the IOAPIC with a vector, masked; lines of the second PIC masked; a byte in COM2's scratch register;
/// an event enabled; and an hour on the clock, which no new VM has.
const MARKED_LINE: usize = 20;
const MARK_ENTRY: u64 = 1 << 16 | 0x5A;
const MARK_MASK: u8 = 0xA5;
const SCRATCH_REGISTER: u8 = 7;
const MARK_SCRATCH: u8 = b'k';
const EVENT_ENABLE_REGISTER: usize = 3;
const MARK_EVENT: u8 = 1 << (SCI_IRQ - 8);
const MARK_CLOCK_NS: u64 = 3600 * NS_PER_SEC;
/// The clock may run this much past the time between two looks, which are minutes at most: a host's clocks differ.
const CLOCK_SLACK_NS: u64 = 60 * NS_PER_SEC;

/// Leaves the marks in a VM that has not run.
pub fn mark(machine: &Machine, com2: &mut SerialPort, power: &Power) -> Result<()> {
    for chip_id in [KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        machine.vm.get_irqchip(&mut chip).map_err(|cause| failed("read an interrupt chip", cause))?;
        let mut bytes = bytes_of(&chip);
        if chip_id == KVM_IRQCHIP_IOAPIC {
            let at = IOAPIC_ENTRIES + MARKED_LINE * IOAPIC_ENTRY_BYTES;
            bytes[at..at + IOAPIC_ENTRY_BYTES].copy_from_slice(&MARK_ENTRY.to_le_bytes());
        } else {
            bytes[PIC_IMR] = MARK_MASK;
        }
        machine.vm.set_irqchip(&value_of(&bytes)?).map_err(|cause| failed("mark an interrupt chip", cause))?;
    }
    let clock = kvm_clock_data { clock: MARK_CLOCK_NS, ..Default::default() };
    machine.vm.set_clock(&clock).map_err(|cause| failed("mark the VM's clock", cause))?;
    com2.write(SCRATCH_REGISTER, MARK_SCRATCH);
    power.write(EVENT_ENABLE_REGISTER, &[MARK_EVENT]);
    Ok(())
}

/// What was looked at, at a time of the host's.
#[derive(Debug)]
pub struct Kept {
    parts: Vec<(&'static str, Vec<u8>)>,
    clock_ns: u64,
    at_ns: u64,
}

impl Kept {
    /// Of a VM whose vCPUs stand still.
    pub fn of(machine: &Machine, com2: &mut SerialPort, power: &Power) -> Result<Self> {
        let (chips, _, clock_ns) = snapshot::save_chips(machine)?;
        Ok(Self::new(&chips, com2.state().to_bytes(), power.state(), clock_ns))
    }

    /// Of a state that was saved just now.
    pub fn saved(state: &VmState) -> Self {
        Self::new(&state.chips, state.com2.to_bytes(), state.power.clone(), state.clock_ns)
    }

    fn new(chips: &[Vec<u8>], com2: Vec<u8>, power: Vec<u8>, clock_ns: u64) -> Self {
        let at_ns = time::monotonic_ns();
        let chip = |id: u32| {
            let mut chip = chips
                .iter()
                .find(|chip| chip.starts_with(&id.to_le_bytes()))
                .cloned()
                .unwrap_or_else(|| vec![0; CHIP_BYTES]);
            let lines: &[usize] = if id == KVM_IRQCHIP_IOAPIC { &[IOAPIC_IRR] } else { &[PIC_LAST_IRR, PIC_IRR] };
            for at in lines {
                chip[*at] &= !TIMER_LINE;
            }
            chip
        };
        let parts = vec![
            ("the first PIC", chip(KVM_IRQCHIP_PIC_MASTER)),
            ("the second PIC", chip(KVM_IRQCHIP_PIC_SLAVE)),
            ("the IOAPIC", chip(KVM_IRQCHIP_IOAPIC)),
            ("COM2", com2),
            ("power management", power),
        ];
        Self { parts, clock_ns, at_ns }
    }

    /// Whether a VM that looked `fresh` when it was made now has what was saved.
    pub fn is_given_back(&self, fresh: &Self, now: &Self) -> Result<()> {
        for (((name, saved), (_, fresh)), (_, now)) in self.parts.iter().zip(&fresh.parts).zip(&now.parts) {
            if fresh == saved {
                return Err(Error::host(format!("{name}: a new VM has the saved state by itself")));
            }
            if now != saved {
                let at = saved.iter().zip(now).take_while(|(saved, now)| saved == now).count();
                let [saved, now] = [saved, now].map(|bytes| bytes.get(at..).unwrap_or_default().iter().take(8));
                let text = format!("{name}: from byte {at} on {saved:x?} was saved, and {now:x?} given back");
                return Err(Error::host(text));
            }
        }
        let most_ns = self.clock_ns + now.at_ns.saturating_sub(self.at_ns) + CLOCK_SLACK_NS;
        if fresh.clock_ns >= self.clock_ns || !(self.clock_ns..=most_ns).contains(&now.clock_ns) {
            let [fresh, saved, now] = [fresh, self, now].map(|kept| units::duration(kept.clock_ns));
            let text = format!("the VM's clock was saved at {saved}, {fresh} in a new VM, and {now} after it was set");
            return Err(Error::host(text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(fill: u8, clock_ns: u64) -> Kept {
        let chip = |id: u32| [&id.to_le_bytes()[..], &[0; 4], &[fill; CHIP_BYTES - CHIP_AT]].concat();
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].map(chip);
        Kept::new(&chips, vec![fill], vec![fill], clock_ns)
    }

    #[test]
    fn each_part_that_is_not_given_back_is_named() {
        let (saved, fresh) = (kept(0xF0, MARK_CLOCK_NS), kept(0, 5));
        assert!(saved.is_given_back(&fresh, &kept(0xF0, MARK_CLOCK_NS + 1)).is_ok());
        // The timer's line may change by itself, and no other.
        assert!(
            saved
                .is_given_back(&fresh, &kept(0xF1, MARK_CLOCK_NS))
                .is_err_and(|error| error.to_string().contains("PIC"))
        );
        for part in 0..saved.parts.len() {
            let mut now = kept(0xF0, MARK_CLOCK_NS);
            now.parts[part].1 = fresh.parts[part].1.clone();
            let error = saved.is_given_back(&fresh, &now).unwrap_err().to_string();
            assert!(error.contains(saved.parts[part].0), "{error}");
        }
        for clock_ns in [5, MARK_CLOCK_NS - 1, 2 * MARK_CLOCK_NS] {
            let error = saved.is_given_back(&fresh, &kept(0xF0, clock_ns)).unwrap_err().to_string();
            assert!(error.contains("clock"), "{error}");
        }
        let error = saved.is_given_back(&saved, &saved).unwrap_err().to_string();
        assert!(error.contains("by itself"), "{error}");
    }
}
