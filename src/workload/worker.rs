//! A worker's life, from the fork to its exit.
//!
//! Owns what the child does before, around and after its loop; leaves the loop to kinds/.
//! Invariant: nothing here allocates or takes a lock, because other threads may have held locks when the parent forked; and a
//! worker leaves by `exit_now` only. Threads are the exception: making them allocates, so a parent of `CloneMode::Thread`
//! workers has one thread, or a C library that keeps malloc usable after fork (glibc and musl both do).

use super::kinds::{self, Links};
use super::rng::Rng;
use super::sampler::{Baseline, Sampler};
use super::slot::{Field, Shared, Slot, State};
use crate::proto::plan::{MemPolicy, SchedPolicy, WorkSpec};
use crate::sys::numa::NodeMask;
use crate::sys::sched::CpuMask;
use crate::sys::{fd, futex, numa, process, sched, signal, time};
use crate::units::NS_PER_SEC;
use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Once, OnceLock};

/// Interrupts a worker's blocking call. No work type uses it for anything else.
pub const STOP_SIGNAL: i32 = libc::SIGUSR2;
/// Longest wait for the start: a parent that forgot its workers must not leave them behind.
const START_WAIT_NS: u64 = 30 * NS_PER_SEC;
/// One slice of that wait, so that a lost wake costs no more.
const GATE_SLICE_NS: u64 = NS_PER_SEC;
/// Exit code after a panic, as the Rust runtime's.
const EXIT_PANICKED: i32 = 101;
/// Exit code of a worker that could not begin.
const EXIT_FAILED: i32 = 1;
/// First descriptor that is not standard input, output or error.
const FIRST_OWN_FD: i32 = 3;
/// Stack of a worker that is a thread: its frames are small, and a thousand of them must fit.
const THREAD_STACK_BYTES: usize = 128 << 10;

/// Everything a child needs, made before the fork.
pub struct Birth<'a> {
    pub shared: &'a Arc<Shared>,
    pub spec: &'a WorkSpec,
    /// The class that this position has: the type's own, or the one asked for.
    pub policy: SchedPolicy,
    /// Index within the handle.
    pub idx: usize,
    /// Which group area it shares, and its position among the members.
    pub group: usize,
    pub position: usize,
    /// The descriptors of its group, and their numbers in ascending order.
    pub links: &'a Links,
    pub keep: Vec<RawFd>,
    pub name: CString,
    pub parent: i32,
    pub seed: u64,
    /// The CPUs it is pinned to.
    pub cpus: Option<CpuMask>,
    /// The nodes of its memory policy.
    pub policy_nodes: NodeMask,
    /// What its type needs of the machine.
    pub means: &'a kinds::Means,
}

/// Set in a child only: where its panic goes.
static SHARED: OnceLock<Arc<Shared>> = OnceLock::new();
thread_local! {
    /// Which worker this thread is.
    static INDEX: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Has every later panic of a forked worker stored in its slot. The hook that was there keeps all other panics; one that is
/// set later must pass on to this one.
pub fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let (Some(shared), Some(idx)) = (SHARED.get(), INDEX.get()) else { return others(info) };
            let slot = shared.slot(idx);
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
            match info.location() {
                Some(at) => slot.set_text(format_args!("{text} at {}:{}", at.file(), at.line())),
                None => slot.set_text(format_args!("{text}")),
            }
            slot.set_state(State::Panicked);
            process::exit_now(EXIT_PANICKED)
        }));
    });
}

/// The child, from just after the fork: one worker, or several that are its threads. All signals are blocked. It is given its
/// reference to the shared memory, because counting another one would cost a page.
pub fn run(crew: &[Birth<'_>], shared: Option<Arc<Shared>>) -> ! {
    let (Some(first), Some(shared)) = (crew.first(), shared) else { process::exit_now(EXIT_FAILED) };
    // The parent never sets it, so this cannot find another's value.
    if SHARED.set(shared).is_err() {
        process::exit_now(EXIT_FAILED);
    }
    if let Err((what, error)) = prepare(first) {
        crew.iter().for_each(|birth| note_failure(birth.shared.slot(birth.idx), what, &error));
        process::exit_now(EXIT_FAILED);
    }
    match crew {
        [alone] => live(alone),
        crew => std::thread::scope(|scope| {
            for birth in crew {
                let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
                if let Err(error) = thread.spawn_scoped(scope, || live(birth)) {
                    fail(birth.shared.slot(birth.idx), "start a thread", &error);
                }
            }
        }),
    }
    process::exit_now(0)
}

/// One worker, from its set-up to its report.
fn live(birth: &Birth<'_>) {
    INDEX.set(Some(birth.idx));
    let slot = birth.shared.slot(birth.idx);
    slot.set(Field::Tid, process::thread_id() as u64);
    if let Err(error) = process::set_name_c(&birth.name) {
        fail(slot, "set its name", &error);
    }
    let baseline = Baseline::read(birth.shared.gate().is_open());
    slot.set_state(State::Ready);
    let opened_ns = match wait_at_gate(birth.shared) {
        Ok(opened_ns) => opened_ns,
        Err(error) => fail(slot, "wait for the start", &error),
    };
    apply_settings(birth, slot);
    slot.set_state(State::Running);
    // Not the sequence of the type's own choices, which stay as they are.
    let rng = Rng::of_worker(!birth.seed, birth.group, birth.idx);
    let mut task = kinds::Task::new(birth, Sampler::start(slot, baseline, opened_ns).with_raw(rng));
    task.run();
    task.finish();
    slot.set_state(State::Done);
}

fn note_failure(slot: Slot<'_>, what: &str, error: &io::Error) {
    slot.set_text(format_args!("cannot {what}"));
    slot.set(Field::FailErrno, error.raw_os_error().unwrap_or(libc::EIO) as u64);
    slot.set_state(State::Failed);
}

/// Tells why this worker cannot work, and ends its process.
pub fn fail(slot: Slot<'_>, what: &str, error: &io::Error) -> ! {
    note_failure(slot, what, error);
    process::exit_now(EXIT_FAILED)
}

/// Makes the child a process that nothing of the parent's can disturb.
fn prepare(birth: &Birth<'_>) -> Result<(), (&'static str, io::Error)> {
    let at = |what| move |error| (what, error);
    process::die_with_parent(libc::SIGKILL, birth.parent).map_err(at("follow the parent"))?;
    process::set_own_group(0).map_err(at("make a process group"))?;
    signal::default_actions().map_err(at("reset signal actions"))?;
    // A partner that is gone is found by EPIPE, which can be told from a kill.
    signal::ignore(&[libc::SIGPIPE]).map_err(at("ignore SIGPIPE"))?;
    signal::note(&[STOP_SIGNAL]).map_err(at("arm the stop signal"))?;
    signal::set_mask(&signal::Mask::empty()).map_err(at("unblock signals"))?;
    fd::close_from_sorted(FIRST_OWN_FD, &birth.keep).map_err(at("close inherited descriptors"))
}

/// Waits for the gate to open, at most `START_WAIT_NS`; returns when it was opened.
fn wait_at_gate(shared: &Shared) -> io::Result<u64> {
    let deadline = time::monotonic_ns() + START_WAIT_NS;
    shared.gate().pass(|word, closed| {
        let left = deadline.saturating_sub(time::monotonic_ns());
        if left == 0 {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        futex::wait(word, closed, left.min(GATE_SLICE_NS)).map(|_| ())
    })
}

/// Affinity, class, memory policy, nice value, in this order and after the move into the cgroup, which may change the first. A
/// refusal is kept.
fn apply_settings(birth: &Birth<'_>, slot: Slot<'_>) {
    let note = |field: Field, result: io::Result<()>| {
        if let Err(error) = result {
            slot.set(field, error.raw_os_error().unwrap_or(libc::EIO) as u64);
        }
    };
    let setup = &birth.spec.setup;
    if let Some(cpus) = &birth.cpus {
        note(Field::AffinityErrno, sched::set_mask(0, cpus));
    }
    note(Field::PolicyErrno, take_class(&birth.policy));
    if setup.mem_policy != MemPolicy::Default {
        let set = numa::set_mempolicy(&setup.mem_policy, setup.mpol_flags, &birth.policy_nodes);
        note(Field::MemPolicyErrno, set);
    }
    if setup.nice != 0 {
        note(Field::NiceErrno, sched::set_nice(0, setup.nice));
    }
}

/// Goes into a class, whichever the parent's was. The nice value stays: one that is asked for comes after this.
fn take_class(policy: &SchedPolicy) -> io::Result<()> {
    match sched::policy_number(0)? {
        libc::SCHED_OTHER if *policy == SchedPolicy::Normal => Ok(()),
        _ => sched::set_policy(0, policy, sched::nice(0)?, false),
    }
}
