//! The virtual machine monitor: one VM in one process, on /dev/kvm.
//!
//! Owns guest memory, boot, devices, vCPUs and their end; knows no plan and no scenario.
//! Invariant: all guest RAM is one memory file, and every device keeps its state in plain data.
