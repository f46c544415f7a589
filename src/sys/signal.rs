//! Signals: blocking, descriptors for them, handlers that only set a flag.
//!
//! Owns sigaction and signalfd; leaves what a signal means to the callers.
//! Invariant: no handler does more than store a number and count it.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// The last signal that `note` was asked to note; 0: none yet.
static NOTED: AtomicI32 = AtomicI32::new(0);

/// How many there were.
static NOTED_COUNT: AtomicU32 = AtomicU32::new(0);

extern "C" fn store(signal: libc::c_int) {
    NOTED.store(signal, Ordering::SeqCst);
    NOTED_COUNT.fetch_add(1, Ordering::SeqCst);
}

/// From now on these signals are only noted; a blocking call they meet returns EINTR.
pub fn note(signals: &[i32]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| install(*signal, store as extern "C" fn(libc::c_int) as libc::sighandler_t))
}

/// The last signal that was noted, where one was.
pub fn noted() -> Option<i32> {
    Some(NOTED.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// How many signals were noted: a user who repeats himself is in a hurry.
pub fn noted_count() -> u32 {
    NOTED_COUNT.load(Ordering::SeqCst)
}

/// How many signals `count` has counted.
static COUNTED: AtomicU64 = AtomicU64::new(0);

extern "C" fn add_one(_signal: libc::c_int) {
    COUNTED.fetch_add(1, Ordering::Relaxed);
}

/// From now on this signal is counted; a blocking call that it meets goes on by itself where the kernel can.
pub fn count(signal: i32) -> io::Result<()> {
    install_with(signal, add_one as extern "C" fn(libc::c_int) as libc::sighandler_t, libc::SA_RESTART)
}

/// How many were counted.
pub fn counted() -> u64 {
    COUNTED.load(Ordering::Relaxed)
}

/// Sends a signal to one thread of a process.
pub fn send_to_thread(pid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: tgkill takes numbers only.
    super::check_long(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) })?;
    Ok(())
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Lets `wake_thread` interrupt the calling thread's blocking calls, and nothing more.
pub fn allow_wakeups() -> io::Result<()> {
    install(libc::SIGRTMIN(), nothing as extern "C" fn(libc::c_int) as libc::sighandler_t)?;
    block(&[libc::SIGRTMIN()], false)
}

/// Interrupts a blocking call of a thread of this process that called `allow_wakeups`.
pub fn wake_thread(tid: i32) -> io::Result<()> {
    // SAFETY: tgkill takes numbers only.
    super::check_long(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGRTMIN()) })?;
    Ok(())
}

/// Gives a child what a fresh program expects: no signal blocked, none ignored.
pub fn restore_defaults() -> io::Result<()> {
    default_actions()?;
    set_mask(&Mask::empty()).map(drop)
}

/// Ignores them.
pub fn ignore(signals: &[i32]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| install(*signal, libc::SIG_IGN))
}

fn install(signal: i32, handler: libc::sighandler_t) -> io::Result<()> {
    install_with(signal, handler, 0)
}

fn install_with(signal: i32, handler: libc::sighandler_t, flags: i32) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value of the type.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is valid; the handler, where there is one, only stores to an atomic.
    check(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) })?;
    Ok(())
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset makes the zeroed value a valid empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for the call.
    unsafe { libc::sigemptyset(&mut set) };
    for signal in signals {
        // SAFETY: `set` is valid for the call.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    set
}

/// Blocks (or unblocks) signals for the calling thread.
pub fn block(signals: &[i32], blocked: bool) -> io::Result<()> {
    let how = if blocked { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: the set is valid for the call; no old set is asked for.
    match unsafe { libc::pthread_sigmask(how, &set_of(signals), std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Signals that a thread has blocked.
#[derive(Clone, Copy)]
pub struct Mask(libc::sigset_t);

impl Mask {
    /// Nothing blocked.
    pub fn empty() -> Self {
        Self(set_of(&[]))
    }
}

/// Blocks every signal for the calling thread; returns what was blocked before.
pub fn block_all() -> io::Result<Mask> {
    let mut all = set_of(&[]);
    // SAFETY: `all` is valid for the call.
    unsafe { libc::sigfillset(&mut all) };
    set_mask(&Mask(all))
}

/// Blocks exactly these for the calling thread; returns what was blocked before.
pub fn set_mask(mask: &Mask) -> io::Result<Mask> {
    let mut old = set_of(&[]);
    // SAFETY: both sets are valid for the call.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &mask.0, &mut old) } {
        0 => Ok(Mask(old)),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Highest signal number (_NSIG, arch/x86/include/uapi/asm/signal.h).
const LAST_SIGNAL: i32 = 64;

/// Restores the default action of every signal that can have another.
pub fn default_actions() -> io::Result<()> {
    for signal in 1..=LAST_SIGNAL {
        match install(signal, libc::SIG_DFL) {
            // SIGKILL, SIGSTOP and the signals the C library keeps to itself have no action to restore.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            other => other?,
        }
    }
    Ok(())
}

/// A descriptor that reads as these (blocked) signals.
pub fn signalfd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is valid for the call.
    let raw = check(unsafe { libc::signalfd(-1, &set_of(signals), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the descriptor was just made and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes one pending signal from a `signalfd`.
pub fn take(fd: &impl AsRawFd) -> io::Result<Option<i32>> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
    if count == info.len() as isize {
        // ssi_signo is the first field (include/uapi/linux/signalfd.h).
        return Ok(Some(i32::from_le_bytes([info[0], info[1], info[2], info[3]])));
    }
    match io::Error::last_os_error() {
        error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        error => Err(error),
    }
}
