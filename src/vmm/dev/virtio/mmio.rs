//! The registers of a virtio device on MMIO (VIRTIO 1.2, 4.2), with one queue.
//!
//! Owns what each register reads and writes; leaves locking and the work to the device.
//! Invariant: plain data; a register that the driver may not touch now keeps its value.

use super::ring::{MAX_ENTRIES, Ring};
use crate::wire_struct;
use vm_memory::GuestMemoryMmap;

/// Bytes of the device's place: the registers and the configuration behind them.
pub const WINDOW_BYTES: u64 = 0x200;
/// The device's configuration begins here; before it every register has four bytes.
const CONFIG_AT: u64 = 0x100;

/// Registers (table 4.1).
const MAGIC: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0C;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SELECT: u64 = 0x14;
pub const DRIVER_FEATURES: u64 = 0x20;
pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE_MAX: u64 = 0x34;
pub const QUEUE_SIZE: u64 = 0x38;
pub const QUEUE_READY: u64 = 0x44;
pub const QUEUE_NOTIFY: u64 = 0x50;
pub const INTERRUPT_STATUS: u64 = 0x60;
pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
pub const STATUS: u64 = 0x70;
pub const DESCRIPTORS_LOW: u64 = 0x80;
const DESCRIPTORS_HIGH: u64 = 0x84;
pub const AVAIL_LOW: u64 = 0x90;
const AVAIL_HIGH: u64 = 0x94;
pub const USED_LOW: u64 = 0xA0;
const USED_HIGH: u64 = 0xA4;
const SHM_LENGTH_LOW: u64 = 0xB0;
const SHM_LENGTH_HIGH: u64 = 0xB4;
const CONFIG_GENERATION: u64 = 0xFC;

/// `virt`, and the layout's version since VIRTIO 1.0.
const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const LAYOUT_VERSION: u32 = 2;
/// `KTST`: any value is allowed, drivers only show it.
const VENDOR: u32 = u32::from_le_bytes(*b"KTST");
/// A shared memory region that is not there (4.2.2).
const NO_SHM: u32 = u32::MAX;

/// Device status (2.1).
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const STATUS_NEEDS_RESET: u32 = 0x40;
const STATUS_FAILED: u32 = 0x80;
/// The driver sets these; NEEDS_RESET is ours.
const STATUS_OF_DRIVER: u32 = 1 | 2 | STATUS_DRIVER_OK | STATUS_FEATURES_OK | STATUS_FAILED;
/// VIRTIO_F_VERSION_1: without it a driver speaks the layout of before VIRTIO 1.0, which this device does not.
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// Reasons of an interrupt (4.2.2): buffers were used, the configuration or the state changed.
pub const INTERRUPT_USED: u32 = 1;
pub const INTERRUPT_CONFIG: u32 = 2;

/// What a device is, for the registers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its number (5): 2 is a block device.
    pub device: u32,
    pub features: u64,
    /// What a driver reads from 0x100 on.
    pub config: Vec<u8>,
}

wire_struct! {
    /// All that the driver has set.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Registers {
        pub status: u32,
        pub device_features_select: u32,
        pub driver_features_select: u32,
        pub driver_features: u64,
        pub queue_select: u32,
        pub ring: Ring,
    }
}

impl Registers {
    /// Whether the device may use the ring.
    pub fn is_live(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET | STATUS_FAILED) == STATUS_DRIVER_OK && self.ring.ready
    }

    #[cfg(test)]
    pub fn is_broken(&self) -> bool {
        self.status & STATUS_NEEDS_RESET != 0
    }

    /// The driver broke the rules: nothing more is done until it resets the device.
    pub fn break_down(&mut self) {
        self.status |= STATUS_NEEDS_RESET;
    }

    /// The driver reads; an access of another width than the register's reads as zero.
    pub fn read(&self, identity: &Identity, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG_AT {
            let rest = usize::try_from(offset - CONFIG_AT).ok().and_then(|at| identity.config.get(at..)).unwrap_or(&[]);
            data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.register(identity, offset).to_le_bytes();
        }
    }

    fn register(&self, identity: &Identity, offset: u64) -> u32 {
        let this_queue = self.queue_select == 0;
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => LAYOUT_VERSION,
            DEVICE_ID => identity.device,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(identity.features, self.device_features_select),
            QUEUE_SIZE_MAX if this_queue => u32::from(MAX_ENTRIES),
            QUEUE_READY if this_queue => u32::from(self.ring.ready),
            STATUS => self.status,
            SHM_LENGTH_LOW | SHM_LENGTH_HIGH => NO_SHM,
            // The configuration never changes.
            CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// The driver writes a register; those that other parts act on are not known here. Says what was against the rules.
    pub fn write(
        &mut self,
        identity: &Identity,
        offset: u64,
        value: u32,
        memory: &GuestMemoryMmap,
    ) -> Result<(), String> {
        let open = self.queue_select == 0 && !self.ring.ready;
        let ring = &mut self.ring;
        match offset {
            DEVICE_FEATURES_SELECT => self.device_features_select = value,
            DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            DRIVER_FEATURES if self.status & STATUS_FEATURES_OK == 0 => match self.driver_features_select {
                0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | u64::from(value),
                1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | u64::from(value) << 32,
                _ => {}
            },
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_SIZE if open => ring.entries = u16::try_from(value).unwrap_or(u16::MAX),
            DESCRIPTORS_LOW if open => set_low(&mut ring.descriptors_gpa, value),
            DESCRIPTORS_HIGH if open => set_high(&mut ring.descriptors_gpa, value),
            AVAIL_LOW if open => set_low(&mut ring.avail_gpa, value),
            AVAIL_HIGH if open => set_high(&mut ring.avail_gpa, value),
            USED_LOW if open => set_low(&mut ring.used_gpa, value),
            USED_HIGH if open => set_high(&mut ring.used_gpa, value),
            QUEUE_READY if self.queue_select == 0 => {
                if value == 0 {
                    ring.ready = false;
                } else if !ring.ready {
                    ring.check(memory)?;
                    (ring.ready, ring.next_avail, ring.next_used) = (true, 0, 0);
                }
            }
            STATUS => self.set_status(identity, value),
            _ => {}
        }
        Ok(())
    }

    fn set_status(&mut self, identity: &Identity, value: u32) {
        let mut status = value & STATUS_OF_DRIVER | self.status & STATUS_NEEDS_RESET;
        // The driver sees that its choice is refused by reading FEATURES_OK back (3.1.1).
        let fits = self.driver_features & !identity.features == 0 && self.driver_features & FEATURE_VERSION_1 != 0;
        if !fits {
            status &= !(STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        }
        if status & STATUS_FEATURES_OK == 0 {
            status &= !STATUS_DRIVER_OK;
        }
        self.status = status;
    }
}

/// 32 of the 64 feature bits; there are no more.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(gpa: &mut u64, value: u32) {
    *gpa = *gpa & !0xFFFF_FFFF | u64::from(value);
}

fn set_high(gpa: &mut u64, value: u32) {
    *gpa = *gpa & 0xFFFF_FFFF | u64::from(value) << 32;
}

#[cfg(test)]
mod tests {
    use super::super::ring::driver::{AVAIL_GPA, DESCRIPTORS_GPA, USED_GPA, memory};
    use super::*;
    use crate::proto::codec::Wire;

    fn identity() -> Identity {
        Identity { device: 2, features: FEATURE_VERSION_1 | 1 << 9, config: vec![1, 2, 3, 4, 5] }
    }

    fn read(registers: &Registers, offset: u64) -> u32 {
        let mut data = [0xEE; 4];
        registers.read(&identity(), offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(registers: &mut Registers, offset: u64, value: u32) -> Result<(), String> {
        registers.write(&identity(), offset, value, &memory())
    }

    /// As a driver does it (3.1.1, 4.2.3).
    fn set_up(features: u64) -> Registers {
        let mut registers = Registers::default();
        let steps = [
            (STATUS, 1),
            (STATUS, 3),
            (DRIVER_FEATURES_SELECT, 0),
            (DRIVER_FEATURES, features as u32),
            (DRIVER_FEATURES_SELECT, 1),
            (DRIVER_FEATURES, (features >> 32) as u32),
            (STATUS, 0xB),
            (QUEUE_SELECT, 0),
            (QUEUE_SIZE, 8),
            (DESCRIPTORS_LOW, DESCRIPTORS_GPA as u32),
            (DESCRIPTORS_HIGH, 0),
            (AVAIL_LOW, AVAIL_GPA as u32),
            (USED_LOW, USED_GPA as u32),
            (QUEUE_READY, 1),
            (STATUS, 0xF),
        ];
        for (offset, value) in steps {
            write(&mut registers, offset, value).unwrap();
        }
        registers
    }

    #[test]
    fn driver_finds_the_device_and_sets_it_up() {
        let registers = set_up(FEATURE_VERSION_1 | 1 << 9);
        assert_eq!([MAGIC, VERSION, DEVICE_ID].map(|at| read(&registers, at)), [0x7472_6976, 2, 2]);
        assert_eq!(read(&registers, STATUS), 0xF);
        assert!(registers.is_live());
        assert_eq!(Registers::from_bytes(&registers.to_bytes()).unwrap(), registers);
    }

    #[test]
    fn features_not_offered_or_too_old_are_refused() {
        for features in [0, 1 << 9, FEATURE_VERSION_1 | 1 << 5, u64::MAX] {
            let registers = set_up(features);
            assert!(!registers.is_live(), "{features:#x}");
            assert_eq!(read(&registers, STATUS) & (STATUS_FEATURES_OK | STATUS_DRIVER_OK), 0, "{features:#x}");
        }
    }

    #[test]
    fn ring_of_a_live_device_keeps_its_place() {
        let mut registers = set_up(FEATURE_VERSION_1);
        let before = registers.clone();
        for offset in [QUEUE_SIZE, DESCRIPTORS_LOW, DESCRIPTORS_HIGH, AVAIL_LOW, AVAIL_HIGH, USED_LOW, USED_HIGH] {
            write(&mut registers, offset, 0x1234_5678).unwrap();
        }
        write(&mut registers, DRIVER_FEATURES, 7).unwrap();
        assert_eq!(registers, before);
        write(&mut registers, QUEUE_READY, 0).unwrap();
        assert!(!registers.is_live());
    }

    #[test]
    fn ring_that_cannot_be_is_told_and_never_ready() {
        let mut registers = Registers::default();
        assert!(write(&mut registers, QUEUE_READY, 1).is_err());
        write(&mut registers, QUEUE_SIZE, 0x1_0008).unwrap();
        assert!(write(&mut registers, QUEUE_READY, 1).is_err());
        assert!(!registers.ring.ready);
    }

    #[test]
    fn other_queues_and_widths_read_as_nothing() {
        let mut registers = set_up(FEATURE_VERSION_1);
        assert_eq!(read(&registers, QUEUE_SIZE_MAX), u32::from(MAX_ENTRIES));
        write(&mut registers, QUEUE_SELECT, 1).unwrap();
        assert_eq!((read(&registers, QUEUE_SIZE_MAX), read(&registers, QUEUE_READY)), (0, 0));
        write(&mut registers, QUEUE_READY, 0).unwrap();
        assert!(registers.ring.ready);
        let mut wide = [0xEE; 8];
        registers.read(&identity(), MAGIC, &mut wide);
        assert_eq!(wide, [0; 8]);
        registers.read(&identity(), CONFIG_AT + 3, &mut wide);
        assert_eq!(wide, [4, 5, 0, 0, 0, 0, 0, 0]);
        registers.read(&identity(), u64::MAX, &mut wide);
        assert_eq!(wide, [0; 8]);
    }

    #[test]
    fn broken_device_stays_so_until_reset() {
        let mut registers = set_up(FEATURE_VERSION_1);
        registers.break_down();
        write(&mut registers, STATUS, 0xF).unwrap();
        assert!(registers.is_broken() && !registers.is_live());
    }
}
