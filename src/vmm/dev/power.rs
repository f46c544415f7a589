//! The ACPI sleep registers of a hardware-reduced machine: how a guest powers off.
//!
//! Owns the two ports and the encoding; leaves naming them to the FADT and what a poweroff means to the caller.
//! Invariant: only the sleep type of S5 together with the enable bit powers off.

/// Free ports above the legacy range.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The value of \_S5 for the sleep type field (ACPI 6.5, 7.4.2).
pub const SLEEP_TYPE_S5: u8 = 5;
/// Sleep control register: type in bits 4:2, enable in bit 5 (ACPI 6.5, 4.8.3.7).
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;

/// Whether this write powers the machine off.
pub fn is_poweroff(port: u16, value: u8) -> bool {
    port == SLEEP_CONTROL_PORT && value & !0xC3 == SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_enable_powers_off() {
        assert!(is_poweroff(SLEEP_CONTROL_PORT, 0x34));
        assert!(!is_poweroff(SLEEP_CONTROL_PORT, 0x14), "not enabled");
        assert!(!is_poweroff(SLEEP_CONTROL_PORT, 0x2C), "another state");
        assert!(!is_poweroff(SLEEP_STATUS_PORT, 0x34), "another port");
    }
}
