//! What a cgroup says about itself.
//!
//! Owns parsing of its statistics files; leaves judging them to the callers.
//! Invariant: a file this kernel lacks is `None`, not zero.

use super::file;
use crate::error::{Error, Result};
use crate::proto::cpuset::CpuSet;
use std::path::Path;

/// A look at one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupStat {
    /// Processes in it.
    pub procs: Vec<i32>,
    /// Whether it, or one below it, has live processes (`cgroup.events`).
    pub populated: bool,
    /// `cpu.stat`: name and value.
    pub cpu: Vec<(String, u64)>,
    /// `cpu.pressure`, as the kernel writes it.
    pub cpu_pressure: Option<String>,
    pub memory_current_bytes: Option<u64>,
    pub cpus_effective: Option<CpuSet>,
}

/// The value of a `name value` line.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Process ids of a cgroup. A 0 stands for one outside our pid namespace and is left out.
pub(super) fn procs(dir: &Path) -> Result<Vec<i32>> {
    let text = file::read(dir, file::PROCS)?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).collect())
}

/// Whether live processes are in or below it; a root cgroup has no such file and counts as populated.
pub(super) fn populated(dir: &Path) -> Result<bool> {
    Ok(file::read_optional(dir, file::EVENTS)?.and_then(|text| keyed(&text, "populated")) != Some(0))
}

/// Whether all its tasks have stopped after a freeze.
pub fn is_frozen(dir: &Path) -> Result<bool> {
    Ok(keyed(&file::read(dir, file::EVENTS)?, "frozen") == Some(1))
}

pub fn stat(dir: &Path) -> Result<CgroupStat> {
    let cpu = file::read_optional(dir, "cpu.stat")?.unwrap_or_default();
    let cpu = cpu.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    });
    let number = |text: String| text.trim().parse().ok();
    let effective = file::read_optional(dir, "cpuset.cpus.effective")?;
    let effective = effective.map(|text| text.parse()).transpose();
    Ok(CgroupStat {
        procs: procs(dir)?,
        populated: populated(dir)?,
        cpu: cpu.collect(),
        cpu_pressure: file::read_optional(dir, "cpu.pressure")?,
        memory_current_bytes: file::read_optional(dir, "memory.current")?.and_then(number),
        cpus_effective: effective.map_err(|what: String| {
            Error::internal(format!("cannot read the effective CPUs of {}: {what}", dir.display()))
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::FakeMount;
    use super::*;

    #[test]
    fn files_parse_and_missing_ones_are_none() {
        let fake = FakeMount::new("");
        fake.file("cgroup.procs", "12\n0\n34\n");
        assert_eq!(stat(&fake.0).unwrap().cpus_effective, None);
        assert_eq!(stat(&fake.0).unwrap().cpu_pressure, None);
        fake.file("cgroup.events", "populated 0\nfrozen 0\n");
        fake.file("cpu.stat", "usage_usec 77\nuser_usec 70\n");
        fake.file("cpuset.cpus.effective", "0-1\n");
        fake.file("memory.current", "4096\n");
        let seen = stat(&fake.0).unwrap();
        assert_eq!((seen.procs, seen.populated), (vec![12, 34], false));
        assert_eq!(seen.cpu, [("usage_usec".into(), 77), ("user_usec".into(), 70)]);
        assert_eq!(seen.cpus_effective, Some(CpuSet::first(2)));
        assert_eq!(seen.memory_current_bytes, Some(4096));
        assert!(!is_frozen(&fake.0).unwrap());
        fake.file("cgroup.events", "populated 1\nfrozen 1\n");
        assert!(is_frozen(&fake.0).unwrap());
        assert!(populated(&fake.0).unwrap());
    }
}
