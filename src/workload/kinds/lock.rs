//! Types that fight for a lock: MutexContention, PriorityInversion; and the locks.
//!
//! Owns the futex lock, plain and priority-inheriting, and their loops; leaves classes to types.
//! Invariant: nobody releases a lock it does not hold, and nobody waits for one longer than a slice without looking at the stop
//! word.

use super::{BLOCK_SLICE_NS, Task};
use crate::proto::work::PiMode;
use crate::sys::{futex, process, time};
use crate::units::NS_PER_MS;
use std::sync::atomic::{AtomicU32, Ordering};

/// Place of the one sample kind of each type here.
const ONLY: usize = 0;
/// States of the plain lock (Drepper: Futexes Are Tricky, mutex 2).
const FREE: u32 = 0;
const HELD: u32 = 1;
const WANTED: u32 = 2;
/// How long a medium task of PriorityInversion is in the way: longer than a slice of any scheduler.
const MEDIUM_BURST_NS: u64 = 10 * NS_PER_MS;
/// Pause of every member of PriorityInversion between its turns, without which real-time tasks would leave nothing to others.
const PAUSE_NS: u64 = NS_PER_MS;

/// Takes the lock; false: stop, and it is not held. The time from the first failed try is a sample.
fn lock(task: &mut Task<'_>, word: &AtomicU32) -> bool {
    if word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return true;
    }
    let before = task.sampler.tick();
    while word.swap(WANTED, Ordering::Acquire) != FREE {
        if task.stopped() || futex::wait(word, WANTED, BLOCK_SLICE_NS).is_err() {
            return false;
        }
    }
    acquired(task, before);
    true
}

fn unlock(word: &AtomicU32) -> bool {
    word.swap(FREE, Ordering::Release) != WANTED || futex::wake(word, 1).is_ok()
}

/// The same with a lock that lends its holder the priority of who waits.
fn lock_pi(task: &mut Task<'_>, word: &AtomicU32, tid: u32) -> bool {
    if word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return true;
    }
    let before = task.sampler.tick();
    while !task.stopped() {
        match futex::lock_pi(word, BLOCK_SLICE_NS) {
            Ok(true) => {
                acquired(task, before);
                return true;
            }
            Ok(false) => {}
            // Its holder has died.
            Err(_) => return false,
        }
    }
    false
}

fn unlock_pi(word: &AtomicU32, tid: u32) -> bool {
    word.compare_exchange(tid, 0, Ordering::Release, Ordering::Relaxed).is_ok() || futex::unlock_pi(word).is_ok()
}

fn acquired(task: &mut Task<'_>, before: u64) {
    let after = time::monotonic_ns();
    task.sampler.resume_at(after);
    task.sampler.record(ONLY, after.saturating_sub(before));
}

pub fn mutex(task: &mut Task<'_>, hold_iters: u64, work_iters: u64) {
    let word = task.group.turn();
    while !task.stopped() {
        task.spin(work_iters);
        if !lock(task, word) {
            break;
        }
        task.spin(hold_iters);
        if !unlock(word) {
            break;
        }
        task.iteration_done();
    }
    // Where a member died with the lock, the others have nothing to do.
    task.idle_until_stopped();
}

/// `high` members want the lock that those after `medium` hold; the medium ones are in the way.
pub fn priority_inversion(task: &mut Task<'_>, (high, medium): (u32, u32), (hold, work): (u64, u64), mode: PiMode) {
    let (word, tid) = (task.group.turn(), process::thread_id() as u32);
    let position = task.position as u32;
    while !task.stopped() {
        if position >= high && position < high.saturating_add(medium) {
            task.spin_for(MEDIUM_BURST_NS);
        } else {
            // The low ones hold the lock long, the high ones shortly.
            let steps = if position < high { work } else { hold };
            let held = match mode {
                PiMode::Plain => lock(task, word),
                PiMode::Pi => lock_pi(task, word, tid),
            };
            if !held {
                break;
            }
            task.spin(steps);
            let released = match mode {
                PiMode::Plain => unlock(word),
                PiMode::Pi => unlock_pi(word, tid),
            };
            if !released {
                break;
            }
        }
        task.sleep_once(PAUSE_NS, None);
        task.iteration_done();
    }
    task.idle_until_stopped();
}
