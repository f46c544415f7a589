//! Starting a program: fork and exec with exactly the descriptors it is to have.
//!
//! Owns the steps between fork and exec; leaves waiting for the program to the callers.
//! Invariant: everything that allocates happens before the fork, and an exec that fails is reported with its errno.

use super::{c_string, fd, process};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A program to be started.
pub struct Spawn<'a> {
    pub argv: &'a [String],
    /// The whole environment.
    pub environment: &'a [(String, String)],
    /// Standard input, output and error; none: /dev/null.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Descriptors that stay open, under their own numbers.
    pub keep: &'a [RawFd],
    /// It is killed when the caller's thread ends.
    pub die_with_parent: bool,
}

impl Spawn<'_> {
    /// Starts it as the leader of a process group of its own; returns its process id. Waits until it was executed.
    pub fn start(&self) -> io::Result<i32> {
        let starting = self.begin()?;
        let mut errno = [0; 4];
        match File::from(starting.failed).read_exact(&mut errno) {
            Err(_) => Ok(starting.pid),
            Ok(()) => {
                process::wait(starting.pid, true)?;
                Err(io::Error::from_raw_os_error(i32::from_le_bytes(errno)))
            }
        }
    }

    /// The same without waiting, for a caller whom a scheduler that never runs the new task must not hold.
    pub fn begin(&self) -> io::Result<Starting> {
        let arguments = self.argv.iter().map(c_string).collect::<io::Result<Vec<CString>>>()?;
        let pairs = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let environment = pairs.map(c_string).collect::<io::Result<Vec<CString>>>()?;
        if arguments.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let (failed_read, failed_write) = fd::pipe()?;
        let argument_pointers = process::pointers(&arguments);
        let environment_pointers = process::pointers(&environment);
        let parent = process::id();
        match process::fork()? {
            process::Fork::Parent(pid) => {
                drop(failed_write);
                Ok(Starting { pid, failed: failed_read })
            }
            process::Fork::Child => {
                let prepared = self.prepare_child(&null, parent);
                let error = match prepared {
                    Ok(()) => process::exec_prepared(&argument_pointers, &environment_pointers),
                    Err(error) => error,
                };
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let mut report = File::from(failed_write);
                // Nobody is left to tell where even this fails; the exit code still says it.
                process::exit_now(if report.write_all(&errno.to_le_bytes()).is_ok() { 127 } else { 126 })
            }
        }
    }

    fn prepare_child(&self, null: &File, parent: i32) -> io::Result<()> {
        process::set_own_group(0)?;
        if self.die_with_parent {
            process::die_with_parent(libc::SIGKILL, parent)?;
        }
        super::signal::restore_defaults()?;
        for (number, stream) in self.stdio.iter().enumerate() {
            match stream {
                Some(stream) => process::redirect(stream, number as i32)?,
                None => process::redirect(null, number as i32)?,
            }
        }
        self.keep.iter().try_for_each(fd::inheritable)
    }
}

/// A process between fork and exec.
#[derive(Debug)]
pub struct Starting {
    pub pid: i32,
    /// Closes on exec; a number in it is the errno of the failure.
    failed: OwnedFd,
}

impl Starting {
    /// Whether it was executed; `None` where that is not decided yet. After a failure the process still is to be waited for.
    pub fn poll(&self) -> io::Result<Option<()>> {
        fd::set_nonblocking(&self.failed)?;
        let mut errno = [0; 4];
        match fd::read_available(self.failed.as_fd(), &mut errno)? {
            None => Ok(None),
            Some(4) => Err(io::Error::from_raw_os_error(i32::from_le_bytes(errno))),
            Some(_) => Ok(Some(())),
        }
    }
}

/// A descriptor's number, for a command line that names it.
pub fn number(fd: &impl AsRawFd) -> RawFd {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(argv: &[&str], out: &OwnedFd, keep: &[RawFd]) -> io::Result<i32> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let environment = [("GREETING".to_owned(), "hi".to_owned())];
        let stdio = [None, Some(out.as_fd()), Some(out.as_fd())];
        Spawn { argv: &argv, environment: &environment, stdio, keep, die_with_parent: true }.start()
    }

    #[test]
    fn output_environment_and_kept_descriptors_arrive() {
        let (read, write) = fd::pipe().unwrap();
        let kept = fd::memfd("kept", 0).unwrap();
        let script = format!("echo $GREETING; test -e /proc/self/fd/{} && echo kept", kept.as_raw_fd());
        let pid = spawn(&["/bin/sh", "-c", &script], &write, &[kept.as_raw_fd()]).unwrap();
        drop(write);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi\nkept\n");
        assert_eq!(process::wait(pid, true).unwrap(), Some((pid, process::End::Exited(0))));
    }

    #[test]
    fn missing_program_is_reported_with_its_errno() {
        let (_read, write) = fd::pipe().unwrap();
        assert_eq!(spawn(&["/nowhere/at/all"], &write, &[]).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(spawn(&["/etc/passwd"], &write, &[]).unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
