//! The I/O ports and device memory of a VM: which device an address belongs to.
//!
//! Owns the devices and the dispatch; leaves what each does to `dev/` and the exits to vcpu.
//! Invariant: a port nobody owns reads as all ones and swallows writes, as on a PC without the device.

use super::dev::doorbell::Doorbell;
use super::dev::i8042;
use super::dev::power::Power;
use super::dev::serial::{COM1, COM2, PortMap, SerialPort};
use super::dev::virtio::block::Block;
use super::dev::virtio::mmio::WINDOW_BYTES;
use super::x86::layout::DISK_GPA;
use crate::proto::message::VmEnd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vm_memory::GuestMemoryMmap;

/// What a bus without a device on it reads as.
pub const FLOATING: u8 = 0xFF;

/// The devices of a VM, shared by its vCPUs.
pub struct Bus {
    pub com1: Mutex<SerialPort>,
    pub com2: Mutex<SerialPort>,
    pub power: Power,
    pub doorbell: Doorbell,
    pub doorbell_port: u16,
    pub disk: Option<Block>,
    /// Bytes of a serial port or the doorbell that nobody was there to take.
    pub lost_bytes: AtomicU64,
}

/// A device's lock. Whoever panicked holding it left plain data behind, which is still valid.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus {
    fn serial(&self, port: u16) -> Option<(&Mutex<SerialPort>, u8)> {
        let find = |map: &PortMap, device| map.register(port).map(|register| (device, register));
        find(&COM1, &self.com1).or_else(|| find(&COM2, &self.com2))
    }

    /// The guest reads a port: one byte, or a string of them.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if let Some((device, register)) = self.serial(port) {
            let mut device = lock(device);
            data.iter_mut().for_each(|byte| *byte = device.read(register));
            return;
        }
        if let Some(register) = Power::register(port) {
            return self.power.read(register, data);
        }
        let value = match port {
            i8042::DATA_PORT | i8042::COMMAND_PORT => i8042::read(port),
            _ => FLOATING,
        };
        data.fill(value);
    }

    /// The disk and the register of it that a guest-physical address is, where it is one.
    fn disk_at(&self, gpa: u64) -> Option<(&Block, u64)> {
        let offset = gpa.checked_sub(DISK_GPA).filter(|offset| *offset < WINDOW_BYTES)?;
        self.disk.as_ref().map(|disk| (disk, offset))
    }

    /// The guest reads an address that is not RAM.
    pub fn read_memory(&self, gpa: u64, data: &mut [u8]) {
        match self.disk_at(gpa) {
            Some((disk, offset)) => disk.read(offset, data),
            None => data.fill(FLOATING),
        }
    }

    /// The guest writes an address that is not RAM.
    pub fn write_memory(&self, gpa: u64, data: &[u8], memory: &GuestMemoryMmap) {
        if let Some((disk, offset)) = self.disk_at(gpa) {
            disk.write(offset, data, memory);
        }
    }

    /// The guest writes a port. Some writes end the VM.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<VmEnd> {
        if let Some((device, register)) = self.serial(port) {
            let mut device = lock(device);
            // A lost byte means that the parent does not want it; it is counted, and the guest goes on.
            let lost = data.iter().filter(|byte| !device.write(register, **byte)).count();
            self.lost_bytes.fetch_add(lost as u64, Ordering::Relaxed);
            return None;
        }
        if port == self.doorbell_port {
            if !self.doorbell.ring(data) {
                self.lost_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            return None;
        }
        if let Some(register) = Power::register(port) {
            return self.power.write(register, data).then_some(VmEnd::Poweroff);
        }
        data.iter().any(|byte| i8042::is_reset(port, *byte)).then_some(VmEnd::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd;
    use crate::vmm::dev::power::CONTROL_PORT;
    use std::os::fd::{AsFd, OwnedFd};

    fn bus() -> (Bus, [OwnedFd; 3]) {
        let (com1, com1_out) = fd::pipe().unwrap();
        let (com2, com2_out) = fd::pipe().unwrap();
        let (bell, bell_out) = fd::pipe().unwrap();
        let serial = |out| Mutex::new(SerialPort::new(out, None).unwrap());
        let bus = Bus {
            com1: serial(com1_out),
            com2: serial(com2_out),
            power: Power::default(),
            doorbell: Doorbell::new(bell_out).unwrap(),
            doorbell_port: 0xE9,
            disk: None,
            lost_bytes: AtomicU64::new(0),
        };
        (bus, [com1, com2, bell])
    }

    #[test]
    fn each_port_reaches_its_device() {
        let (bus, outputs) = bus();
        assert_eq!(bus.write(0x3F8, b"one\n"), None);
        assert_eq!(bus.write(0x2F8, b"two\n"), None);
        assert_eq!(bus.write(0xE9, b"ring"), None);
        for (output, text) in outputs.iter().zip(["one\n", "two\n", "ring"]) {
            let mut buffer = [0; 16];
            assert_eq!(fd::read_available(output.as_fd(), &mut buffer).unwrap(), Some(4));
            assert_eq!(&buffer[..4], text.as_bytes());
        }
    }

    #[test]
    fn bytes_without_a_reader_are_counted_as_lost() {
        let (bus, outputs) = bus();
        drop(outputs);
        assert_eq!(bus.write(0x3F8, b"\n\n"), None);
        assert_eq!(bus.write(0xE9, b"r"), None);
        assert_eq!(bus.lost_bytes.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn ends_are_told_apart() {
        let (bus, _outputs) = bus();
        assert_eq!(bus.write(0x64, &[0xFE]), Some(VmEnd::Reset));
        assert_eq!(bus.write(0x64, &[0xAA]), None);
        assert_eq!(bus.write(CONTROL_PORT, &[0x01, 0x34]), Some(VmEnd::Poweroff));
    }

    #[test]
    fn unowned_ports_float_and_swallow() {
        let (bus, _outputs) = bus();
        let mut data = [0; 4];
        bus.read(0xCF8, &mut data);
        assert_eq!(data, [0xFF; 4]);
        assert_eq!(bus.write(0x80, &[1]), None);
        bus.read(0x3FD, &mut data[..1]);
        assert_eq!(data[0] & 0x60, 0x60, "transmitter empty");
    }
}
