//! The virtual machine monitor: one VM in one process, on /dev/kvm.
//!
//! Owns guest memory, boot, devices, vCPUs and their end; knows no plan and no scenario.
//! Invariant: all guest RAM is one memory file, and every device keeps its state in plain data.

mod bus;
pub mod config;
mod dev;
mod exit;
pub mod kernel;
pub mod kvm;
mod memory;
mod process;
mod self_check;
mod vcpu;
pub mod x86;

pub use process::process_main;
