//! Reading and writing one file of a cgroup.
//!
//! Owns the names of the core files and the form of their errors; leaves what is written to knobs.
//! Invariant: a file is never created, only written; each write is one write(2), as the kernel takes it.

use super::guard;
use crate::error::{Context, Result};
use crate::sys::errand::Errand;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Core files (kernel: Documentation/admin-guide/cgroup-v2.rst).
pub const CONTROLLERS: &str = "cgroup.controllers";
pub const SUBTREE_CONTROL: &str = "cgroup.subtree_control";
pub const PROCS: &str = "cgroup.procs";
pub const EVENTS: &str = "cgroup.events";
/// Since Linux 5.14.
pub const KILL: &str = "cgroup.kill";

/// One write; the bare `io::Error`, for callers that branch on the errno.
pub fn try_write(dir: &Path, name: &str, data: &str) -> io::Result<()> {
    let path = dir.join(name);
    let text = path.display().to_string();
    guard::call(Errand::Write { path: &text, data: data.as_bytes() }, || {
        OpenOptions::new().write(true).open(&path)?.write_all(data.as_bytes())
    })
}

/// mkdir(2) of one level.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    guard::call(Errand::MakeDir(&dir.display().to_string()), || fs::create_dir(dir))
}

/// rmdir(2).
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    guard::call(Errand::RemoveDir(&dir.display().to_string()), || fs::remove_dir(dir))
}

/// The words for a failed write.
pub fn write_attempt(dir: &Path, name: &str, data: &str) -> String {
    format!("write '{data}' to {}", dir.join(name).display())
}

pub fn write(dir: &Path, name: &str, data: &str) -> Result<()> {
    try_write(dir, name, data).context(|| write_attempt(dir, name, data))
}

pub fn read(dir: &Path, name: &str) -> Result<String> {
    fs::read_to_string(dir.join(name)).context(|| format!("read {}", dir.join(name).display()))
}

/// The same; `None` where this kernel has no such file.
pub fn read_optional(dir: &Path, name: &str) -> Result<Option<String>> {
    match fs::read_to_string(dir.join(name)) {
        // PSI files exist but answer EOPNOTSUPP where the kernel was booted with psi=0.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Ok(None),
        other => other.map(Some).context(|| format!("read {}", dir.join(name).display())),
    }
}
