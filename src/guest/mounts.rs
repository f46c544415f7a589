//! The file systems of the guest.
//!
//! Owns the table and mounting it; leaves what is in them to their users.
//! Invariant: a mount that fails is named with the kernel option it may need.

use crate::sys::mount;
use std::fs;
use std::io;

/// One file system: (source, target, kind, options, kernel option it may need, whether the guest is useless without it).
struct Entry {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    options: &'static str,
    kernel_option: &'static str,
    needed: bool,
}

const fn entry(kind: &'static str, target: &'static str, kernel_option: &'static str, needed: bool) -> Entry {
    Entry { source: kind, target, kind, options: "", kernel_option, needed }
}

/// In mounting order.
const TABLE: [Entry; 12] = [
    entry("proc", "/proc", "CONFIG_PROC_FS", true),
    entry("sysfs", "/sys", "CONFIG_SYSFS", true),
    entry("devtmpfs", "/dev", "CONFIG_DEVTMPFS", true),
    entry("devpts", "/dev/pts", "CONFIG_UNIX98_PTYS", false),
    entry("tmpfs", "/dev/shm", "CONFIG_TMPFS", false),
    entry("tmpfs", "/tmp", "CONFIG_TMPFS", false),
    entry("tmpfs", "/run", "CONFIG_TMPFS", false),
    entry("cgroup2", super::CGROUP_ROOT, "CONFIG_CGROUPS", false),
    entry("bpf", "/sys/fs/bpf", "CONFIG_BPF_SYSCALL", false),
    entry("debugfs", "/sys/kernel/debug", "CONFIG_DEBUG_FS", false),
    entry("tracefs", "/sys/kernel/tracing", "CONFIG_TRACING", false),
    entry("securityfs", "/sys/kernel/security", "CONFIG_SECURITYFS", false),
];

/// What could not be mounted: (in words with the option, whether the guest is useless without it).
pub struct Missing {
    pub text: String,
    pub needed: bool,
}

/// Mounts everything in order.
pub fn mount_all() -> Vec<Missing> {
    TABLE.iter().filter_map(|entry| mount_one(entry).err().map(|error| missing(entry, &error))).collect()
}

fn mount_one(entry: &Entry) -> io::Result<()> {
    // In sysfs the directories are there or cannot be made; elsewhere they are ours to make.
    if !entry.target.starts_with("/sys/") {
        fs::create_dir_all(entry.target)?;
    }
    match mount::mount(entry.source, entry.target, entry.kind, entry.options) {
        // CONFIG_DEVTMPFS_MOUNT has been here before us.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other,
    }
}

fn missing(entry: &Entry, error: &io::Error) -> Missing {
    let text =
        format!("{} on {} (kernel option {} may be missing): {error}", entry.kind, entry.target, entry.kernel_option);
    Missing { text, needed: entry.needed }
}
