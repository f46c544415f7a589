//! Processes: fork, wait, kill, groups, descriptors of processes.
//!
//! Owns the calls; leaves who may fork when to the callers.
//! Invariant: after `fork` in a child only what is async-signal-safe or written for it runs, and it leaves by `exit_now`.

use super::{c_string, check, check_long};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    Child,
    Parent(i32),
}

/// How a waited-for process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Signaled(i32),
}

/// Forks. The child has one thread: the caller must itself be single-threaded, or do only what is async-signal-safe.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: callers are single-threaded (PID 1, tests' children) or do only async-signal-safe work in the child.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Leaves at once: no destructors, no flushing, as a forked child must.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Dies of SIGABRT, or where that is ignored, as by PID 1, of an instruction that no process survives.
pub fn abort_now() -> ! {
    // SAFETY: abort never returns and touches no memory of ours.
    unsafe { libc::abort() }
}

/// Waits for one process; with `block` false returns `None` where it still runs.
pub fn wait(pid: i32, block: bool) -> io::Result<Option<(i32, End)>> {
    let mut status = 0;
    let flags = if block { 0 } else { libc::WNOHANG };
    let reaped = loop {
        // SAFETY: `status` is valid for the call.
        match check(unsafe { libc::waitpid(pid, &mut status, flags) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if reaped == 0 {
        return Ok(None);
    }
    let end = match libc::WIFSIGNALED(status) {
        true => End::Signaled(libc::WTERMSIG(status)),
        false => End::Exited(libc::WEXITSTATUS(status)),
    };
    Ok(Some((reaped, end)))
}

/// Waits for one process until it ends or a signal comes; `None` for the latter.
pub fn wait_once(pid: i32) -> io::Result<Option<End>> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    match check(unsafe { libc::waitpid(pid, &mut status, 0) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
        Ok(_) if libc::WIFSIGNALED(status) => Ok(Some(End::Signaled(libc::WTERMSIG(status)))),
        Ok(_) => Ok(Some(End::Exited(libc::WEXITSTATUS(status)))),
    }
}

/// Whether a child has ended; it stays to be waited for, so that its pid cannot be recycled meanwhile.
pub fn has_ended(pid: i32) -> io::Result<bool> {
    // SAFETY: an all-zero siginfo is a valid value of the type.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is valid for the call.
    check(unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) })?;
    // si_signo stays 0 where no state change was there (waitid(2)); a child that the caller traces reports its stops too.
    let ended = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code);
    Ok(info.si_signo != 0 && ended)
}

/// Sends a signal to a process, or to a process group where `pid` is negative.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes no memory.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// A descriptor that becomes readable when the process ends.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes no memory.
    let raw = check_long(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the descriptor was just made and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

/// Sends a signal through a descriptor of a process, which cannot hit a recycled pid.
pub fn pidfd_signal(pidfd: &impl AsRawFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo asks for the default one.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) };
    check_long(sent)?;
    Ok(())
}

/// Makes the process the leader of a group of its own (`0`: the caller).
pub fn set_own_group(pid: i32) -> io::Result<()> {
    // SAFETY: setpgid takes no memory.
    check(unsafe { libc::setpgid(pid, pid) })?;
    Ok(())
}

/// The caller gets this signal when its parent ends. Fails with ESRCH where the parent is gone already.
pub fn die_with_parent(signal: i32, parent: i32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) })?;
    if parent_id() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Names the calling thread, as `ps` and the kernel log show it (at most 15 bytes are kept).
pub fn set_name(name: &str) -> io::Result<()> {
    set_name_c(&c_string(name)?)
}

/// The same without allocating, so that a forked child may call it.
pub fn set_name_c(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: the name is a valid C string for the length of the call.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) })?;
    Ok(())
}

pub fn id() -> i32 {
    // SAFETY: getpid takes nothing and cannot fail.
    unsafe { libc::getpid() }
}
pub fn parent_id() -> i32 {
    // SAFETY: getppid takes nothing and cannot fail.
    unsafe { libc::getppid() }
}
pub fn thread_id() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}
/// A number that nobody can guess, from the kernel (getrandom(2)).
pub fn random_number() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the bytes are valid for their length. So few come whole or not at all (getrandom(2)).
    check_long(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
    Ok(u64::from_le_bytes(bytes))
}
/// Makes `fd` appear as `number` (0, 1 or 2), inheritable.
pub fn redirect(fd: &impl AsRawFd, number: i32) -> io::Result<()> {
    // SAFETY: dup2 takes no memory; the caller gives up what `number` was.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
    Ok(())
}

/// Pointers to the strings, ended by a null, as exec wants them.
pub(super) fn pointers(strings: &[std::ffi::CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Replaces the program, from arrays made by `pointers` whose strings still live. Returns only where that failed.
pub(super) fn exec_prepared(arguments: &[*const libc::c_char], environment: &[*const libc::c_char]) -> io::Error {
    // SAFETY: both arrays end with a null, the first has a program, and their strings outlive the call.
    unsafe { libc::execve(arguments[0], arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(body: impl FnOnce()) -> i32 {
        match fork().unwrap() {
            Fork::Parent(pid) => pid,
            Fork::Child => {
                body();
                exit_now(7)
            }
        }
    }

    #[test]
    fn exit_code_and_signal_are_told_apart() {
        let pid = child(|| {});
        assert_eq!(wait(pid, true).unwrap(), Some((pid, End::Exited(7))));
        let pid = child(|| {
            let _kept = std::hint::black_box(0);
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        });
        assert_eq!(wait(pid, false).unwrap(), None);
        kill(pid, libc::SIGKILL).unwrap();
        assert_eq!(wait(pid, true).unwrap(), Some((pid, End::Signaled(libc::SIGKILL))));
    }
}
