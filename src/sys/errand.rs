//! Calls that a sick kernel may never return from, made by a helper process while the caller keeps its eyes on the clock.
//!
//! Owns the helper's life and the bytes between the two; leaves what is written where, and what a hang means, to the callers.
//! Invariant: the caller waits no longer than the limit it gave, and after a hang never asks again.

use super::poll::{self, Ready};
use super::process::{self, Fork};
use super::{check, fd, sched, signal, time};
use crate::proto::plan::SchedPolicy;
use crate::units::NS_PER_MS;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Longest path (PATH_MAX, include/uapi/linux/limits.h) and most data of one errand.
const MOST_PATH: usize = 4096;
const MOST_DATA: usize = 4096;
/// Kind, length of the path with its zero byte, length of the data.
const HEADER: usize = 5;
/// It must run where normal tasks do not: one below its parent, PID 1 of the guest.
const PRIORITY: u32 = 97;
/// First descriptor that is not standard input, output or error.
const FIRST_OWN_FD: i32 = 3;

/// One call.
#[derive(Clone, Copy, Debug)]
pub enum Errand<'a> {
    /// One write(2) to a file that exists.
    Write {
        path: &'a str,
        data: &'a [u8],
    },
    MakeDir(&'a str),
    RemoveDir(&'a str),
}

/// What became of it.
#[derive(Debug)]
pub enum Outcome {
    Done,
    Refused(io::Error),
    /// It has not returned within the limit.
    Hung,
}

/// The helper process.
#[derive(Debug)]
pub struct Runner {
    to: File,
    from: OwnedFd,
    pid: i32,
    hung: bool,
}

impl Runner {
    /// Forks it. With `real_time` it runs in SCHED_FIFO, as its caller has to.
    pub fn start(real_time: bool) -> io::Result<Self> {
        let (theirs_in, to) = fd::pipe()?;
        let (from, theirs_out) = fd::pipe()?;
        let parent = process::id();
        let before = signal::block_all()?;
        let forked = process::fork();
        if let Ok(Fork::Child) = forked {
            serve(&theirs_in, &theirs_out, parent, real_time);
        }
        signal::set_mask(&before)?;
        match forked? {
            Fork::Parent(pid) => Ok(Self { to: File::from(to), from, pid, hung: false }),
            Fork::Child => process::exit_now(1),
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Has one errand run, and waits at most `limit_ns` for its end.
    pub fn run(&mut self, errand: Errand<'_>, limit_ns: u64) -> Outcome {
        if self.hung {
            return Outcome::Hung;
        }
        let deadline = time::monotonic_ns().saturating_add(limit_ns);
        let asked = self.begin(errand).and_then(|()| self.wait(deadline));
        asked.unwrap_or_else(Outcome::Refused)
    }

    /// Has one errand begun, without waiting for it.
    pub fn begin(&mut self, errand: Errand<'_>) -> io::Result<()> {
        let (kind, path, data): (u8, &str, &[u8]) = match errand {
            Errand::Write { path, data } => (0, path, data),
            Errand::MakeDir(path) => (1, path, &[]),
            Errand::RemoveDir(path) => (2, path, &[]),
        };
        if path.len() + 1 > MOST_PATH || data.len() > MOST_DATA || path.as_bytes().contains(&0) {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        let mut message = vec![kind];
        message.extend_from_slice(&((path.len() + 1) as u16).to_le_bytes());
        message.extend_from_slice(&(data.len() as u16).to_le_bytes());
        message.extend_from_slice(path.as_bytes());
        message.push(0);
        message.extend_from_slice(data);
        // The pipe is empty, as every errand before this one was answered, and holds more than one message (pipe(7)).
        self.to.write_all(&message)
    }

    /// What became of the errand that was begun; `None` while it is under way. Does not wait.
    pub fn poll(&mut self) -> io::Result<Option<Outcome>> {
        match poll::one_readable(&self.from, 0)? {
            Ready::Yes => self.answer().map(Some),
            Ready::Interrupted | Ready::TimedOut => Ok(None),
        }
    }

    /// The caller has waited long enough.
    pub fn give_up(&mut self) {
        self.hung = true;
    }

    fn wait(&mut self, deadline: u64) -> io::Result<Outcome> {
        loop {
            let left_ms = deadline.saturating_sub(time::monotonic_ns()).div_ceil(NS_PER_MS);
            match poll::one_readable(&self.from, left_ms)? {
                Ready::Yes => return self.answer(),
                Ready::Interrupted if left_ms > 0 => {}
                Ready::Interrupted | Ready::TimedOut => {
                    self.hung = true;
                    return Ok(Outcome::Hung);
                }
            }
        }
    }

    fn answer(&mut self) -> io::Result<Outcome> {
        let mut errno = [0; 4];
        borrowed(&self.from).read_exact(&mut errno)?;
        Ok(match i32::from_le_bytes(errno) {
            0 => Outcome::Done,
            errno => Outcome::Refused(io::Error::from_raw_os_error(errno)),
        })
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // One that hangs in the kernel cannot be waited for; whoever reaps orphans will.
        let killed = process::kill(self.pid, libc::SIGKILL);
        if killed.is_ok() && !self.hung {
            let waited = process::wait(self.pid, true);
            debug_assert!(waited.is_ok() || waited.is_err_and(|error| error.raw_os_error() == Some(libc::ECHILD)));
        }
    }
}

/// A descriptor as a file that does not close it.
fn borrowed(fd: &OwnedFd) -> ManuallyDrop<File> {
    // SAFETY: the descriptor is open for the whole life of `fd`, and ManuallyDrop keeps the file from closing it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd.as_raw_fd()) })
}

/// The helper: allocates nothing, because other threads may have held locks when it was forked.
fn serve(input: &OwnedFd, output: &OwnedFd, parent: i32, real_time: bool) -> ! {
    let policy = SchedPolicy::Fifo { priority: PRIORITY };
    let prepared = process::die_with_parent(libc::SIGKILL, parent)
        .and_then(|()| if real_time { sched::set_policy(0, &policy, 0, true) } else { Ok(()) })
        .and_then(|()| process::set_name_c(c"ktstr-writer"))
        .and_then(|()| {
            let (a, b) = (input.as_raw_fd(), output.as_raw_fd());
            fd::close_from_sorted(FIRST_OWN_FD, &[a.min(b), a.max(b)])
        });
    if prepared.is_err() {
        process::exit_now(1);
    }
    let (mut input, mut output) = (borrowed(input), borrowed(output));
    let mut buffer = [0u8; HEADER + MOST_PATH + MOST_DATA];
    loop {
        let Some(errno) = one(&mut input, &mut buffer) else { process::exit_now(0) };
        if output.write_all(&errno.to_le_bytes()).is_err() {
            process::exit_now(0);
        }
    }
}

/// Reads and does one errand: its errno, 0 where it succeeded; none where nobody asks any more.
fn one(input: &mut File, buffer: &mut [u8]) -> Option<i32> {
    let (header, rest) = buffer.split_at_mut(HEADER);
    input.read_exact(header).ok()?;
    let path_length = usize::from(u16::from_le_bytes([header[1], header[2]]));
    let data_length = usize::from(u16::from_le_bytes([header[3], header[4]]));
    let body = rest.get_mut(..path_length + data_length)?;
    input.read_exact(body).ok()?;
    let (path, data) = body.split_at(path_length);
    let path = CStr::from_bytes_with_nul(path).ok()?;
    let done = match header[0] {
        0 => write_once(path, data),
        1 => make_dir(path),
        _ => remove_dir(path),
    };
    Some(done.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)))
}

fn write_once(path: &CStr, data: &[u8]) -> io::Result<()> {
    // SAFETY: the path is a valid C string for the length of the call.
    let raw = check(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: the descriptor was just made and is owned by nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(raw) };
    // One write: what the kernel takes of a setting, it takes whole.
    fd::write_some(&file, data).map(|_| ())
}

/// Permissions of a directory that is made: what mkdir(1) asks for.
const MODE: libc::mode_t = 0o755;

fn make_dir(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a valid C string for the length of the call.
    check(unsafe { libc::mkdir(path.as_ptr(), MODE) })?;
    Ok(())
}

fn remove_dir(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a valid C string for the length of the call.
    check(unsafe { libc::rmdir(path.as_ptr()) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NS_PER_SEC;

    const LIMIT_NS: u64 = 20 * NS_PER_SEC;

    fn path(name: &str) -> String {
        std::env::temp_dir().join(format!("ktstr-errand-{name}-{}", std::process::id())).display().to_string()
    }

    #[test]
    fn errands_are_run_and_refusals_have_their_errno() {
        let mut runner = Runner::start(false).unwrap();
        let dir = path("dir");
        let file = format!("{dir}/file");
        let refused = |outcome: Outcome| match outcome {
            Outcome::Refused(error) => error.raw_os_error(),
            other => panic!("{other:?}"),
        };
        assert!(matches!(runner.run(Errand::MakeDir(&dir), LIMIT_NS), Outcome::Done));
        assert_eq!(refused(runner.run(Errand::MakeDir(&dir), LIMIT_NS)), Some(libc::EEXIST));
        let write = Errand::Write { path: &file, data: b"0-3" };
        assert_eq!(refused(runner.run(write, LIMIT_NS)), Some(libc::ENOENT), "a file is never made");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(runner.run(write, LIMIT_NS), Outcome::Done));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "0-3");
        assert_eq!(refused(runner.run(Errand::RemoveDir(&dir), LIMIT_NS)), Some(libc::ENOTEMPTY));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(runner.run(Errand::RemoveDir(&dir), LIMIT_NS), Outcome::Done));
    }

    #[test]
    fn call_that_never_returns_is_a_hang_and_nobody_asks_again() {
        let mut runner = Runner::start(false).unwrap();
        // Opening a FIFO for writing waits for a reader that never comes.
        let fifo = path("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let begin = time::monotonic_ns();
        let write = Errand::Write { path: &fifo, data: b"x" };
        assert!(matches!(runner.run(write, 100 * NS_PER_MS), Outcome::Hung));
        assert!(time::monotonic_ns() - begin >= 100 * NS_PER_MS);
        let again = time::monotonic_ns();
        assert!(matches!(runner.run(Errand::MakeDir("/tmp/never"), LIMIT_NS), Outcome::Hung));
        assert!(time::monotonic_ns() - again < LIMIT_NS);
        std::fs::remove_file(fifo).unwrap();
    }
}
