//! Removing a cgroup, also one whose tasks do not die at once.
//!
//! Owns kill, drain and the retried rmdir; leaves the workers' own end to workload/.
//! Invariant: a removal ends within `DRAIN_AFTER_NS + GIVE_UP_AFTER_NS`, with the directory gone or an error that says who is left.

use super::{file, knobs, stat};
use crate::error::{Error, Result};
use crate::sys::{process, time};
use crate::units::NS_PER_MS;
use std::io;
use std::path::{Path, PathBuf};

/// From the kill until what is left is moved out: killed tasks that the scheduler never runs cannot die, but can be moved.
const DRAIN_AFTER_NS: u64 = 500 * NS_PER_MS;
/// From the drain until we stop trying: rmdir is EBUSY while dying tasks are still charged to the cgroup.
const GIVE_UP_AFTER_NS: u64 = 1500 * NS_PER_MS;
/// Pause between two tries.
const RETRY_NS: u64 = 5 * NS_PER_MS;

/// A removal under way.
#[derive(Debug)]
pub struct Removal {
    dir: PathBuf,
    /// Where tasks go that do not die in time.
    refuge: PathBuf,
    begun_ns: u64,
    drained: bool,
    removed: bool,
}

/// Kills what is in a cgroup, and begins to remove it. One that does not exist is an error.
pub fn begin_remove(dir: &Path, refuge: &Path) -> Result<Removal> {
    if !dir.is_dir() {
        return Err(Error::internal(format!("cannot remove the cgroup {}: it does not exist", dir.display())));
    }
    let mut removal = Removal {
        dir: dir.to_owned(),
        refuge: refuge.to_owned(),
        begun_ns: time::monotonic_ns(),
        drained: false,
        removed: false,
    };
    // The usual case: the workers were collected, and the cgroup is empty.
    if !removal.try_rmdir()? {
        kill(dir)?;
    }
    Ok(removal)
}

impl Removal {
    /// One try, which does not wait. True: the directory is gone.
    pub fn poll(&mut self) -> Result<bool> {
        if self.removed || self.try_rmdir()? {
            return Ok(true);
        }
        let elapsed = time::monotonic_ns().saturating_sub(self.begun_ns);
        if elapsed >= DRAIN_AFTER_NS && !self.drained {
            self.drained = true;
            drain_tasks(&self.dir, &self.refuge)?;
        }
        if elapsed < DRAIN_AFTER_NS + GIVE_UP_AFTER_NS {
            return Ok(false);
        }
        let left: Vec<String> = stat::procs(&self.dir)?.iter().map(i32::to_string).collect();
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        let who = if left.is_empty() { "none that can be seen".into() } else { left.join(", ") };
        Err(Error::os(format!("remove the cgroup {} (processes left: {who})", self.dir.display()), busy))
    }

    /// False: busy.
    fn try_rmdir(&mut self) -> Result<bool> {
        match file::remove_dir(&self.dir) {
            Ok(()) => self.removed = true,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(Error::os(format!("remove the cgroup {}", self.dir.display()), error)),
        }
        Ok(self.removed)
    }
}

/// Removes a cgroup and waits for it; `idle` is called meanwhile.
pub fn remove_cgroup(dir: &Path, refuge: &Path, idle: &mut dyn FnMut()) -> Result<()> {
    let mut removal = begin_remove(dir, refuge)?;
    while !removal.poll()? {
        idle();
        if let Err(error) = time::sleep_ns(RETRY_NS) {
            // Only a signal ends the pause, and it is the caller's.
            debug_assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
    }
    Ok(())
}

/// SIGKILL to everything in and below the cgroup.
fn kill(dir: &Path) -> Result<()> {
    match file::try_write(dir, file::KILL, "1") {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            for pid in stat::procs(dir)? {
                match process::kill(pid, libc::SIGKILL) {
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                        return Err(Error::os(format!("kill process {pid} of {}", dir.display()), error));
                    }
                    _ => {}
                }
            }
            Ok(())
        }
        other => other.map_err(|error| Error::os(file::write_attempt(dir, file::KILL, "1"), error)),
    }
}

/// Moves all processes of a cgroup elsewhere; returns how many.
pub fn drain_tasks(dir: &Path, into: &Path) -> Result<usize> {
    let pids = stat::procs(dir)?;
    let mut moved = 0;
    for pid in pids {
        moved += usize::from(knobs::move_task(into, pid)? == knobs::Moved::Yes);
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FakeMount, real_mount};
    use super::*;
    use crate::sys::process::{End, Fork};
    use crate::units::NS_PER_SEC;
    use std::fs;

    /// A child that only sleeps.
    fn sleeper() -> i32 {
        match process::fork().unwrap() {
            Fork::Parent(pid) => pid,
            Fork::Child => loop {
                if time::sleep_ns(NS_PER_SEC).is_err() {
                    process::exit_now(0)
                }
            },
        }
    }

    #[test]
    fn removing_what_was_never_made_is_an_error() {
        let fake = FakeMount::new("");
        let error = remove_cgroup(&fake.0.join("nowhere"), &fake.0, &mut || {}).unwrap_err();
        assert!(error.to_string().contains("does not exist"));
    }

    #[test]
    fn drain_names_every_process_in_the_other_group() {
        let fake = FakeMount::new("");
        fake.file("a/cgroup.procs", "7\n9\n");
        let into = fake.file("b/cgroup.procs", "");
        assert_eq!(drain_tasks(&fake.0.join("a"), &fake.0.join("b")).unwrap(), 2);
        // A plain file keeps the last write only.
        assert_eq!(fs::read_to_string(into).unwrap(), "9");
    }

    #[test]
    fn members_are_killed_and_the_directory_goes() {
        let Some(mount) = real_mount() else { return };
        let dir = mount.join(format!("ktstr-remove-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let pid = sleeper();
        assert_eq!(knobs::move_task(&dir, pid).unwrap(), knobs::Moved::Yes);
        assert_eq!(stat::stat(&dir).unwrap().procs, [pid]);
        assert!(stat::populated(&dir).unwrap());
        let mut idles = 0;
        remove_cgroup(&dir, &mount, &mut || idles += 1).unwrap();
        assert!(!dir.exists());
        assert_eq!(process::wait(pid, true).unwrap(), Some((pid, End::Signaled(libc::SIGKILL))));
        assert!(remove_cgroup(&dir, &mount, &mut || {}).is_err());
    }

    #[test]
    fn group_with_a_child_group_is_given_up_with_its_errno() {
        let Some(mount) = real_mount() else { return };
        let dir = mount.join(format!("ktstr-busy-{}", std::process::id()));
        fs::create_dir_all(dir.join("inner")).unwrap();
        let error = remove_cgroup(&dir, &mount, &mut || {}).unwrap_err();
        fs::remove_dir(dir.join("inner")).unwrap();
        fs::remove_dir(&dir).unwrap();
        assert_eq!(error.errno(), Some(libc::EBUSY), "{error}");
        assert!(error.to_string().contains("processes left: none"), "{error}");
    }
}
