//! The guest image: two archives that make one initramfs.
//!
//! Owns cpio, the closure of shared libraries, and assembly; leaves running it to run/.
//! Invariant: the same inputs give the same bytes.

pub mod cpio;
pub mod elf;
