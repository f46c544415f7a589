//! What is set on a cgroup: its CPUs and its members.
//!
//! Owns the file and the data of each setting; leaves writing to file.
//! Invariant: a busy kernel is asked again a named number of times, every other refusal is returned.

use super::file;
use crate::error::{Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::sys::time;
use crate::units::NS_PER_MS;
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
    file::write(dir, "cpuset.cpus", &cpus.to_string())
}

/// Moves a process into a cgroup.
pub fn move_task(dir: &Path, tid: i32) -> Result<Moved> {
    let data = tid.to_string();
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match file::try_write(dir, file::PROCS, &data) {
            Ok(()) => return Ok(Moved::Yes),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::ESRCH) => return Ok(Moved::Gone),
            Some(libc::EBUSY) if tries < MOVE_TRIES => {
                // An interrupted pause only makes the next try come earlier.
                if time::sleep_ns(MOVE_PAUSE_NS).is_err() {
                    continue;
                }
            }
            _ => return Err(Error::os(file::write_attempt(dir, file::PROCS, &data), error)),
        }
    }
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
        assert_eq!(fs::read_to_string(cpus).unwrap(), "0-3,8");
        assert_eq!(fs::read_to_string(procs).unwrap(), "42");
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
