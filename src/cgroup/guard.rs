//! The guard of writes to cgroups: a helper makes them, so that a kernel that never returns hangs the helper and not us.
//!
//! Owns the limit and the words of a hang; leaves the helper to sys/errand.
//! Invariant: once a call hangs, no other is made: the kernel's cgroup lock is held, and whoever asks next hangs too.

use crate::sys::errand::{Errand, Outcome, Runner};
use crate::units::NS_PER_SEC;
use std::cell::RefCell;
use std::io;

/// A cgroup write takes microseconds to some milliseconds; a second is what a migration of many tasks may take on a
/// crowded machine; twice that is no load any more.
pub const LIMIT_NS: u64 = 2 * NS_PER_SEC;

struct Guard {
    runner: Runner,
    /// The first call that hung, in words.
    hung: Option<String>,
}

thread_local! {
    /// The guard of this thread's cgroup calls; none: they are made directly.
    static GUARD: RefCell<Option<Guard>> = const { RefCell::new(None) };
}

/// From now on the cgroup calls of this thread are made by a helper. `real_time`: it runs in SCHED_FIFO.
pub fn install(real_time: bool) -> io::Result<()> {
    let runner = Runner::start(real_time)?;
    GUARD.with_borrow_mut(|guard| *guard = Some(Guard { runner, hung: None }));
    Ok(())
}

/// Calls are made directly again.
pub fn remove() {
    GUARD.with_borrow_mut(|guard| *guard = None);
}

/// The call that hung, in words; none as long as all returned.
pub fn hung() -> Option<String> {
    GUARD.with_borrow(|guard| guard.as_ref().and_then(|guard| guard.hung.clone()))
}

/// Makes the call, through the guard where there is one. A hang is ETIMEDOUT here, and in `hung`.
pub(super) fn call(errand: Errand<'_>, direct: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    call_within(errand, LIMIT_NS, direct)
}

fn call_within(errand: Errand<'_>, limit_ns: u64, direct: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    GUARD.with_borrow_mut(|guard| {
        let Some(guard) = guard else { return direct() };
        match guard.runner.run(errand, limit_ns) {
            Outcome::Done => Ok(()),
            Outcome::Refused(error) => Err(error),
            Outcome::Hung => {
                let seconds = limit_ns / NS_PER_SEC;
                guard.hung.get_or_insert_with(|| {
                    let what = match errand {
                        Errand::Write { path, data } => {
                            format!("the write of '{}' to {path}", String::from_utf8_lossy(data).trim_end())
                        }
                        Errand::MakeDir(path) => format!("making the directory {path}"),
                        Errand::RemoveDir(path) => format!("removing the directory {path}"),
                    };
                    format!("{what} did not return within {seconds} s")
                });
                Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::FakeMount;
    use super::super::{file, knobs};
    use super::*;
    use crate::proto::cpuset::CpuSet;

    #[test]
    fn guarded_writes_arrive_and_refusals_keep_their_words() {
        let fake = FakeMount::new("");
        let cpus = fake.file("cpuset.cpus", "");
        install(false).unwrap();
        knobs::set_cpuset(&fake.0, &CpuSet::first(3)).unwrap();
        assert_eq!(std::fs::read_to_string(cpus).unwrap(), "0-2");
        let error = file::write(&fake.0, "nothing", "x").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
        assert_eq!(hung(), None);
        remove();
    }

    #[test]
    fn hang_is_told_once_with_what_was_written_where() {
        let fake = FakeMount::new("");
        let made = std::process::Command::new("mkfifo").arg(fake.0.join("cpu.weight")).status().unwrap();
        assert!(made.success());
        install(false).unwrap();
        let fifo = fake.0.join("cpu.weight").display().to_string();
        let errand = Errand::Write { path: &fifo, data: b"100\n" };
        let error = call_within(errand, NS_PER_SEC / 10, || panic!("not guarded")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
        let told = hung().unwrap();
        assert!(told.starts_with("the write of '100' to ") && told.contains("cpu.weight did not return"), "{told}");
        assert!(file::write(&fake.0, "cpu.max", "max").is_err());
        assert_eq!(hung().unwrap(), told);
        remove();
    }
}
