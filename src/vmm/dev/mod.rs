//! The devices of a VM: two serial ports, the keyboard controller's reset, the power management registers, the doorbell,
//! a disk.
//!
//! Owns one device a file; leaves which port goes where to the bus.
//! Invariant: a device's state is plain data; a byte from the guest can confuse its device, never this process.

pub mod doorbell;
pub mod i8042;
pub mod power;
pub mod serial;
pub mod virtio;
