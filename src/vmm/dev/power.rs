//! The ACPI power management registers of a PC: event block and control block, through which a guest powers off.
//!
//! Owns the registers; leaves naming their ports to the FADT and what a poweroff means to the caller.
//! Invariant: no event ever happens, so the status is always clear and the interrupt never raised.

use std::sync::atomic::{AtomicU8, Ordering};

/// Free ports above the legacy range: status and enable (two bytes each), then control (ACPI 6.5, 4.8.3).
pub const EVENT_PORT: u16 = 0x600;
pub const EVENT_BYTES: u8 = 4;
pub const CONTROL_PORT: u16 = 0x604;
pub const CONTROL_BYTES: u8 = 2;
/// The interrupt of ACPI events, as on every PC.
pub const SCI_IRQ: u8 = 9;
/// The value of \_S5 for the sleep type field (ACPI 6.5, 7.4.2); any would do.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Control register, high byte: sleep type in bits 4:2, enable in bit 5 (bits 12:10 and 13 of the word).
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
const SLEEP_ENABLE: u8 = 1 << 5;
/// Control register, low byte, bit 0: the machine is in ACPI mode.
const SCI_ENABLED: u8 = 1;

const STATUS_BYTES: usize = 2;
const CONTROL_AT: usize = 4;
const REGISTERS: usize = EVENT_BYTES as usize + CONTROL_BYTES as usize;

/// The registers, byte by byte.
#[derive(Debug, Default)]
pub struct Power([AtomicU8; REGISTERS]);

impl Power {
    /// The registers, for another VM to go on with.
    pub fn state(&self) -> Vec<u8> {
        self.0.iter().map(|register| register.load(Ordering::Relaxed)).collect()
    }
    /// Registers that another VM had; what is missing is clear.
    pub fn restored(state: &[u8]) -> Self {
        Self(std::array::from_fn(|at| AtomicU8::new(state.get(at).copied().unwrap_or(0))))
    }

    /// The register byte that a port is.
    pub fn register(port: u16) -> Option<usize> {
        port.checked_sub(EVENT_PORT).map(usize::from).filter(|at| *at < REGISTERS)
    }

    /// Reads from a register byte on.
    pub fn read(&self, register: usize, data: &mut [u8]) {
        for (at, byte) in (register..).zip(data) {
            let kept = self.0.get(at).map_or(0, |register| register.load(Ordering::Relaxed));
            *byte = if at == CONTROL_AT { kept | SCI_ENABLED } else { kept };
        }
    }

    /// Writes from a register byte on. Returns whether this powers the machine off.
    pub fn write(&self, register: usize, data: &[u8]) -> bool {
        let mut off = false;
        for (at, byte) in (register..).zip(data) {
            let sleep_type = *byte >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            off |= at == CONTROL_AT + 1 && byte & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5;
            // Writing a status bit clears it, and it is clear already.
            if let (true, Some(register)) = (at >= STATUS_BYTES, self.0.get(at)) {
                register.store(*byte, Ordering::Relaxed);
            }
        }
        off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_enable_powers_off() {
        let power = Power::default();
        assert!(power.write(4, &[0, 0x34]) && power.write(5, &[0x34]));
        assert!(!power.write(4, &[0, 0x14]), "not enabled");
        assert!(!power.write(4, &[0, 0x2C]), "another state");
        assert!(!power.write(0, &[0x34, 0x34, 0x34, 0x34]), "another register");
    }

    #[test]
    fn enable_bits_are_kept_and_status_stays_clear() {
        let power = Power::default();
        assert!(!power.write(0, &[0xFF, 0xFF, 0x20, 0x01]));
        let mut data = [9; 6];
        power.read(0, &mut data);
        assert_eq!(data, [0, 0, 0x20, 0x01, SCI_ENABLED, 0]);
        power.read(5, &mut data);
        assert_eq!(Power::register(0x606), None);
        assert_eq!((Power::register(0x600), Power::register(0x605)), (Some(0), Some(5)));
    }
}
