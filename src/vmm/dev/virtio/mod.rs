//! A block device behind virtio-mmio: VIRTIO 1.2, written for a guest that is not trusted.
//!
//! Owns the parts and the few numbers they share; leaves the address and the interrupt to x86/layout.
//! Invariant: no word that the guest writes, in registers or in its memory, can do more than break this device.

pub mod block;
pub mod disk;
pub mod mmio;
pub mod ring;
pub mod throttle;

/// Unit of a block device's addresses (VIRTIO 1.2, 5.2.4).
pub const SECTOR_BYTES: u64 = 512;
