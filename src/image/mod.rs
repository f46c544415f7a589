//! The guest image: three archives that make one initramfs.
//!
//! Owns cpio, the closure of shared libraries, and assembly; leaves running it to run/.
//! Invariant: the same inputs give the same bytes.

pub mod assemble;
pub mod closure;
pub mod contents;
pub mod cpio;
pub mod elf;
pub mod kconfig;
pub mod ldcache;
pub mod modules;
pub mod program;
pub mod search;
mod strip;
#[cfg(test)]
mod tempdir;

pub use assemble::{Entry, INIT, Image, ImageSpec, PLAN, SCHED_DIR, assemble, list, sched_guest_path};
pub use contents::{BASE, END};
