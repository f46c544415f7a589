//! Types that meet at a futex word: FutexPingPong.
//!
//! Owns their loops; leaves the word's memory to slot.
//! Invariant: a wait is at most one slice long, so that a lost wake cannot hide the stop word.

use super::{BLOCK_SLICE_NS, Task};
use crate::sys::{futex, time};
use std::sync::atomic::Ordering;

/// Places of the sample kinds, as types.rs lists them.
const WAKE: usize = 0;
const BLOCK: usize = 1;
/// The stamp of the last hand-over. One is enough: the next is written only after this one was read.
const STAMP: usize = 0;

/// Position 0 has the first turn.
pub fn ping_pong(task: &mut Task<'_>, spin_iters: u64) {
    let (own, other) = (task.position as u32, 1 - task.position as u32);
    let (turn, stamp) = (task.group.turn(), task.group.stamp(STAMP));
    while wait_for_turn(task, own) {
        task.spin(spin_iters);
        stamp.store(time::monotonic_ns(), Ordering::Relaxed);
        turn.store(other, Ordering::Release);
        // FUTEX_WAKE of a mapped, aligned word cannot fail; were it lost, the partner's slice would end its wait.
        if futex::wake(turn, 1).is_err() {
            return;
        }
        task.iteration_done();
    }
}

/// Waits until the word is ours; false: stop.
fn wait_for_turn(task: &mut Task<'_>, own: u32) -> bool {
    let turn = task.group.turn();
    if turn.load(Ordering::Acquire) == own {
        return !task.stopped();
    }
    let before = task.sampler.tick();
    let mut woken = false;
    let mut word = turn.load(Ordering::Acquire);
    while word != own {
        if task.stopped() {
            return false;
        }
        match futex::wait(turn, word, BLOCK_SLICE_NS) {
            Ok(how) => woken |= how == futex::Woken::Wake,
            Err(_) => return false,
        }
        word = turn.load(Ordering::Acquire);
    }
    let after = time::monotonic_ns();
    task.sampler.resume_at(after);
    let stamp = task.group.stamp(STAMP).load(Ordering::Relaxed);
    // Where the kernel did not put us to sleep, or the stamp is older than our wait, nothing woke us.
    if woken && stamp >= before {
        task.sampler.record(WAKE, after.saturating_sub(stamp));
        task.sampler.record(BLOCK, after.saturating_sub(before));
    }
    !task.stopped()
}
