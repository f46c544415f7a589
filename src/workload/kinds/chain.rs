//! WakeChain.
//!
//! Owns its loop and its layout of the shared words; leaves pipes to means.
//! Invariant: one token goes round, so a stamp is read before it is written again.

use super::futex::{hand_over, wait_until};
use super::{Task, pipe};
use crate::proto::work::WakeMechanism;
use crate::sys::fd;
use std::sync::atomic::{AtomicU32, Ordering};

/// Places of the sample kinds, as the rows list them.
const WAKE: usize = 0;
const BLOCK: usize = 1;
/// Words of a cache line of 64 bytes: each member's futex word and stamp have a line of their own.
const LINE: usize = 8;

/// Shared words of one group: a line a member.
pub fn words(depth: usize) -> usize {
    depth * LINE
}

pub fn wake_chain(task: &mut Task<'_>, depth: u32, wake: WakeMechanism, work_ns: u64) {
    let next = (task.position + 1) % depth as usize;
    let group = task.group;
    let place =
        |member: usize| -> (&AtomicU32, _) { (&group.halves()[2 * LINE * member], &group.words()[LINE * member + 1]) };
    let ((own, own_stamp), (other, other_stamp)) = (place(task.position), place(next));
    let mut seen = 0u32;
    // Position 0 begins with the token.
    let mut has_token = task.position == 0;
    while !task.stopped() {
        if !has_token {
            let wait = match wake {
                WakeMechanism::Futex => wait_until(task, own, |value| value != seen),
                WakeMechanism::Pipe => pipe::wait_for_byte(task),
            };
            let Some(wait) = wait else { break };
            seen = own.load(Ordering::Acquire);
            task.sample_wake(&wait, own_stamp.load(Ordering::Acquire), WAKE, Some(BLOCK));
        }
        has_token = false;
        task.spin_for(work_ns);
        let passed = match wake {
            WakeMechanism::Futex => {
                let value = other.load(Ordering::Relaxed).wrapping_add(1);
                hand_over(task, other_stamp, other, value)
            }
            WakeMechanism::Pipe => task.birth.links.ends(task.position).is_some_and(|ends| {
                other_stamp.store(task.sampler.last_ns(), Ordering::Release);
                fd::write_some(ends.write, &[1]).is_ok()
            }),
        };
        if !passed {
            break;
        }
        task.iteration_done();
    }
    task.idle_until_stopped();
}
