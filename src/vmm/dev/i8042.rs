//! The one function of the keyboard controller that a VM needs: its reset line.
//!
//! Owns the two ports; leaves what a reset means to the caller. There is no keyboard: every read says so at once.
//! Invariant: a driver that probes gives up at once, and one that waits for a ready controller never waits.

/// Data and command/status port (IBM PC AT technical reference).
pub const DATA_PORT: u16 = 0x60;
pub const COMMAND_PORT: u16 = 0x64;
/// Pulse output line 0, the CPU's reset.
pub const RESET_COMMAND: u8 = 0xFE;
/// Status: output buffer full for ever, input buffer empty. Linux finds a controller whose output cannot be drained
/// absent after 16 reads (i8042_flush), and its reboot path finds the controller ready (kb_wait).
const STATUS_NO_CONTROLLER: u8 = 1;
const DATA_NONE: u8 = 0xFF;

/// What a read gives.
pub fn read(port: u16) -> u8 {
    if port == COMMAND_PORT { STATUS_NO_CONTROLLER } else { DATA_NONE }
}

/// Whether this write asks for a reset.
pub fn is_reset(port: u16, value: u8) -> bool {
    port == COMMAND_PORT && value == RESET_COMMAND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        assert!(is_reset(0x64, 0xFE));
        assert!(!is_reset(0x60, 0xFE) && !is_reset(0x64, 0xFF) && !is_reset(0x64, 0xAA));
    }

    #[test]
    fn controller_is_ready_for_commands_and_never_drained() {
        assert_eq!((read(COMMAND_PORT) & 2, read(COMMAND_PORT) & 1), (0, 1));
    }
}
