//! Types whose subject is processes and their groups: ForkExit, CgroupChurn.
//!
//! Owns their loops; leaves reaping the worker itself to its handle.
//! Invariant: a worker waits for every child it made and removes every cgroup it made; where it is killed first, its process
//! group and the owner of the subtree do.

use super::Task;
use super::path::Path;
use crate::sys::{fd, process, time};
use std::fmt;
use std::io;

/// Place of ForkExit's one sample kind.
const ONLY: usize = 0;
/// A cgroup that was just left may be busy for a moment: tried again so often, a millisecond apart.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE_NS: u64 = crate::units::NS_PER_MS;

pub fn fork_exit(task: &mut Task<'_>) {
    while !task.stopped() {
        let pid = match process::fork() {
            Ok(process::Fork::Child) => process::exit_now(0),
            Ok(process::Fork::Parent(pid)) => pid,
            Err(error) => task.fail("fork a child", &error),
        };
        let before = task.sampler.tick();
        let ended = loop {
            match process::wait_once(pid) {
                Ok(Some(_)) => break true,
                // A signal: where it was the stop, the child need not come to its end.
                Ok(None) => {
                    if task.stopped()
                        && let Err(error) = process::kill(pid, libc::SIGKILL)
                    {
                        debug_assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
                    }
                }
                Err(error) => task.fail("wait for its child", &error),
            }
        };
        let after = time::monotonic_ns();
        task.sampler.resume_at(after);
        if ended && !task.stopped() {
            task.sampler.record(ONLY, after.saturating_sub(before));
        }
        task.units += 1;
        task.iteration_done();
    }
}

/// Moves the calling process into the cgroup of this directory.
fn enter(dir: fmt::Arguments<'_>) -> io::Result<()> {
    let path = Path::format(format_args!("{dir}/cgroup.procs"))?;
    let file = fd::open_with(path.as_c_str(), libc::O_WRONLY)?;
    fd::write_some(&file, b"0").map(drop)
}

pub fn cgroup_churn(task: &mut Task<'_>, groups: u32, cycle_ns: u64) {
    let Some((parent, own)) = &task.birth.means.cgroup else { return };
    // The name says whose it is, so that workers never meet.
    let tid = process::thread_id();
    let make =
        |index: u32| fd::make_directory(Path::format(format_args!("{parent}/{own}.churn{tid}-{index}"))?.as_c_str());
    let mut made = 0;
    for index in 0..groups {
        match make(index) {
            Ok(()) => made = index + 1,
            Err(error) => {
                remove(parent, own, tid, made);
                task.fail("make a cgroup", &error);
            }
        }
    }
    while !task.stopped() {
        let index = task.iterations % u64::from(groups);
        if let Err(error) = enter(format_args!("{parent}/{own}.churn{tid}-{index}")) {
            // A failure to go back is told by what cannot be removed then.
            let back = enter(format_args!("{parent}/{own}"));
            if back.is_ok() {
                remove(parent, own, tid, made);
            }
            task.fail("enter a cgroup", &error);
        }
        task.spin_for(cycle_ns);
        task.iteration_done();
    }
    if let Err(error) = enter(format_args!("{parent}/{own}")) {
        task.fail("go back into its cgroup", &error);
    }
    remove(parent, own, tid, made);
}

/// Removes the first `made` cgroups. What stays is removed with the subtree.
fn remove(parent: &str, own: &str, tid: i32, made: u32) {
    for index in 0..made {
        let Ok(path) = Path::format(format_args!("{parent}/{own}.churn{tid}-{index}")) else { return };
        for _ in 0..REMOVE_TRIES {
            match fd::remove_directory(path.as_c_str()) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                _ => break,
            }
            if time::sleep_ns(REMOVE_PAUSE_NS).is_err() {
                // The stop signal, sent again: the next try comes earlier.
                continue;
            }
        }
    }
}
