//! The guest image: two archives that make one initramfs.
//!
//! Owns cpio, the closure of shared libraries, kernel modules and assembly; leaves running it to run/.
//! Invariant: the same inputs give the same bytes.
