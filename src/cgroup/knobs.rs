//! What is set on a cgroup: its CPUs, its shares and limits, its members.
//!
//! Owns the file and the data of each setting; leaves writing to file.
//! Invariant: a busy kernel is asked again a named number of times, every other refusal is returned.

use super::file;
use crate::error::{Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::scenario::CpuMax;
use crate::sys::time;
use crate::units::{NS_PER_MS, NS_PER_US};
use std::io;
use std::path::Path;

/// A move into a cgroup that is busy is tried again so often, after so long.
const MOVE_TRIES: u32 = 4;
const MOVE_PAUSE_NS: u64 = 100 * NS_PER_MS;

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Moved {
    Yes,
    /// The task had ended: for the caller to note.
    Gone,
}

/// Restricts a cgroup to these CPUs.
pub fn set_cpuset(dir: &Path, cpus: &CpuSet) -> Result<()> {
    file::write(dir, "cpuset.cpus", &list(cpus))
}

/// Gives a cgroup its parent's CPUs again.
pub fn clear_cpuset(dir: &Path) -> Result<()> {
    set_cpuset(dir, &CpuSet::new())
}

/// Restricts the memory of a cgroup to these nodes; an empty set: its parent's.
pub fn set_mems(dir: &Path, nodes: &CpuSet) -> Result<()> {
    file::write(dir, "cpuset.mems", &list(nodes))
}

/// A list as the kernel reads it; an empty one is a lone newline, because a write of no bytes never reaches the kernel.
fn list(set: &CpuSet) -> String {
    if set.is_empty() { "\n".into() } else { set.to_string() }
}

/// What a cgroup is to its parent's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    Member,
    Root,
    Isolated,
}

pub fn set_partition(dir: &Path, partition: Partition) -> Result<()> {
    let word = match partition {
        Partition::Member => "member",
        Partition::Root => "root",
        Partition::Isolated => "isolated",
    };
    file::write(dir, "cpuset.cpus.partition", word)
}

/// Share of CPU time among siblings: 1 to 10000, 100 by default.
pub fn set_weight(dir: &Path, weight: u32) -> Result<()> {
    file::write(dir, "cpu.weight", &weight.to_string())
}

/// So much CPU time of each period; none: no limit.
pub fn set_max(dir: &Path, max: Option<CpuMax>) -> Result<()> {
    let data = match max {
        None => "max".into(),
        Some(CpuMax { quota_ns, period_ns }) => format!("{} {}", quota_ns / NS_PER_US, period_ns / NS_PER_US),
    };
    file::write(dir, "cpu.max", &data)
}

/// A number of bytes, or no limit.
fn limit(dir: &Path, name: &str, bytes: Option<u64>) -> Result<()> {
    file::write(dir, name, &bytes.map_or_else(|| "max".into(), |bytes| bytes.to_string()))
}

pub fn set_memory_max(dir: &Path, bytes: Option<u64>) -> Result<()> {
    limit(dir, "memory.max", bytes)
}
pub fn set_memory_high(dir: &Path, bytes: Option<u64>) -> Result<()> {
    limit(dir, "memory.high", bytes)
}
pub fn set_memory_low(dir: &Path, bytes: Option<u64>) -> Result<()> {
    limit(dir, "memory.low", bytes)
}
pub fn set_memory_swap_max(dir: &Path, bytes: Option<u64>) -> Result<()> {
    limit(dir, "memory.swap.max", bytes)
}

/// Share of I/O time among siblings: 1 to 10000, 100 by default.
pub fn set_io_weight(dir: &Path, weight: u32) -> Result<()> {
    file::write(dir, "io.weight", &format!("default {weight}"))
}

/// Most processes of a cgroup; none: no limit.
pub fn set_pids_max(dir: &Path, most: Option<u64>) -> Result<()> {
    limit(dir, "pids.max", most)
}

/// Asks the kernel to stop all tasks of a cgroup; `stat` says when they are.
pub fn freeze(dir: &Path) -> Result<()> {
    file::write(dir, "cgroup.freeze", "1")
}

pub fn unfreeze(dir: &Path) -> Result<()> {
    file::write(dir, "cgroup.freeze", "0")
}

/// Moves processes into a cgroup; returns those that had ended.
pub fn move_tasks(dir: &Path, tids: &[i32]) -> Result<Vec<i32>> {
    let mut gone = Vec::new();
    for tid in tids {
        if move_task(dir, *tid)? == Moved::Gone {
            gone.push(*tid);
        }
    }
    Ok(gone)
}

/// Moves a process into a cgroup.
pub fn move_task(dir: &Path, tid: i32) -> Result<Moved> {
    let data = tid.to_string();
    // An interrupted pause only makes the next try come earlier.
    let moved = retrying(&mut || file::try_write(dir, file::PROCS, &data), &mut || drop(time::sleep_ns(MOVE_PAUSE_NS)));
    moved.map_err(|error| Error::os(file::write_attempt(dir, file::PROCS, &data), error))
}

fn retrying(write: &mut dyn FnMut() -> io::Result<()>, pause: &mut dyn FnMut()) -> io::Result<Moved> {
    for attempt in 1.. {
        let error = match write() {
            Ok(()) => break,
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::ESRCH) => return Ok(Moved::Gone),
            Some(libc::EBUSY) if attempt < MOVE_TRIES => pause(),
            _ => return Err(error),
        }
    }
    Ok(Moved::Yes)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FakeMount, real_mount};
    use super::*;
    use std::fs;

    #[test]
    fn settings_write_their_file_in_the_kernels_form() {
        let fake = FakeMount::new("");
        let cpus = fake.file("cpuset.cpus", "");
        let procs = fake.file("cgroup.procs", "");
        set_cpuset(&fake.0, &"0-3,8".parse().unwrap()).unwrap();
        assert_eq!(move_task(&fake.0, 42).unwrap(), Moved::Yes);
        assert_eq!(fs::read_to_string(&cpus).unwrap(), "0-3,8");
        fs::write(&cpus, "").unwrap();
        clear_cpuset(&fake.0).unwrap();
        assert_eq!(fs::read_to_string(cpus).unwrap(), "\n");
        assert_eq!(fs::read_to_string(procs).unwrap(), "42");
    }

    #[test]
    fn every_knob_has_its_file_and_form() {
        type Knob = fn(&Path) -> Result<()>;
        let nodes: Knob = |dir| set_mems(dir, &CpuSet::first(2));
        let knobs: [(&str, &str, Knob); 16] = [
            ("cpuset.mems", "0-1", nodes),
            ("cpuset.cpus.partition", "member", |dir| set_partition(dir, Partition::Member)),
            ("cpuset.cpus.partition", "root", |dir| set_partition(dir, Partition::Root)),
            ("cpuset.cpus.partition", "isolated", |dir| set_partition(dir, Partition::Isolated)),
            ("cpu.weight", "200", |dir| set_weight(dir, 200)),
            ("cpu.max", "50000 100000", |dir| {
                set_max(dir, Some(CpuMax { quota_ns: 50_000_000, period_ns: 100_000_000 }))
            }),
            ("cpu.max", "max", |dir| set_max(dir, None)),
            ("memory.max", "4096", |dir| set_memory_max(dir, Some(4096))),
            ("memory.high", "max", |dir| set_memory_high(dir, None)),
            ("memory.low", "1", |dir| set_memory_low(dir, Some(1))),
            ("memory.swap.max", "0", |dir| set_memory_swap_max(dir, Some(0))),
            ("io.weight", "default 50", |dir| set_io_weight(dir, 50)),
            ("pids.max", "7", |dir| set_pids_max(dir, Some(7))),
            ("cgroup.freeze", "1", freeze),
            ("cgroup.freeze", "0", unfreeze),
            ("cgroup.procs", "8", |dir| move_tasks(dir, &[8]).map(|gone| assert!(gone.is_empty()))),
        ];
        for (name, data, set) in knobs {
            let fake = FakeMount::new("");
            let error = set(&fake.0).unwrap_err().to_string();
            assert!(error.contains(&format!("cannot write '{data}' to")) && error.contains(name), "{error}");
            let path = fake.file(name, "");
            set(&fake.0).unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), data, "{name}");
        }
    }

    #[test]
    fn busy_cgroup_is_tried_again_a_named_number_of_times_and_other_refusals_are_not() {
        let attempts = |answers: &[i32]| {
            let (mut tries, mut pauses) = (0, 0);
            let mut write = || {
                tries += 1;
                match answers.get(tries - 1) {
                    Some(0) => Ok(()),
                    errno => Err(io::Error::from_raw_os_error(*errno.unwrap_or(&libc::EBUSY))),
                }
            };
            let moved = retrying(&mut write, &mut || pauses += 1).map_err(|error| error.raw_os_error());
            (moved, tries, pauses)
        };
        assert_eq!(attempts(&[0]), (Ok(Moved::Yes), 1, 0));
        assert_eq!(attempts(&[libc::EBUSY, libc::EBUSY, libc::EBUSY, 0]), (Ok(Moved::Yes), 4, 3));
        assert_eq!(attempts(&[libc::EBUSY, libc::ESRCH]), (Ok(Moved::Gone), 2, 1));
        assert_eq!(attempts(&[]), (Err(Some(libc::EBUSY)), 4, 3));
        assert_eq!(attempts(&[libc::EOPNOTSUPP]), (Err(Some(libc::EOPNOTSUPP)), 1, 0));
    }

    #[test]
    fn a_task_that_is_gone_is_told_and_a_wrong_one_is_an_error() {
        let Some(mount) = real_mount() else { return };
        let dir = mount.join(format!("ktstr-move-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let gone = move_task(&dir, i32::MAX);
        let wrong = move_task(&dir, -1);
        fs::remove_dir(&dir).unwrap();
        assert_eq!(gone.unwrap(), Moved::Gone);
        assert!(wrong.unwrap_err().to_string().contains("cannot write '-1' to"));
    }
}
