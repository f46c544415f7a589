//! Runs on the host: one job from image to record, and the accelerators under it.
//!
//! Owns processes, deadlines and the run directory; leaves judging to verdict/ and printing to report/.
//! Invariant: whatever happens, no process and no file outlives a run unasked.

pub mod accel;
mod cache;
pub mod cmdline;
mod detectors;
pub mod disk;
pub mod faults;
mod hmp;
pub mod host;
mod host_cpus;
mod host_left;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod job;
pub mod kept;
mod kvm;
mod machine;
mod noise;
mod perf;
pub mod probe;
mod qemu;
mod qemu_shape;
pub mod rundir;
mod shared;
mod silence;
mod stall;
pub mod suite;
mod symbols;
mod unpacked;
mod watch;

pub use cache::DIRECTORY as KERNEL_CACHE;
pub use kvm::VM_COMMAND;
