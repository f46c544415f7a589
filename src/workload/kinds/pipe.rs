//! Types that meet at a pair of pipes: PipeIo, CachePipe.
//!
//! Owns the exchange; leaves the descriptors to means.
//! Invariant: a wait is at most one slice long; a partner that is gone ends the exchange, not the process.

use super::cache::Walk;
use super::futex::Wait;
use super::{BLOCK_SLICE_NS, BURST_STEPS, Task};
use crate::sys::{fd, poll, time};
use crate::units::NS_PER_MS;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// Places of the sample kinds, as the rows list them.
const WAKE: usize = 0;
const BLOCK: usize = 1;
/// Stamps of one direction, used in turn. A worker is at most one exchange ahead of its partner: it writes byte n + 2 only
/// after it has read byte n + 1, which the partner wrote after it had read byte n with its stamp. So two never collide.
const STAMPS: usize = 2;
/// CachePipe walks cache lines of 64 bytes.
const LINE_BYTES: u64 = 64;

pub fn pipe_io(task: &mut Task<'_>, burst_iters: u64) {
    while !task.stopped() {
        task.spin(burst_iters);
        if !exchange(task) {
            break;
        }
        task.iteration_done();
    }
    // Without its partner a worker has nothing to do.
    task.idle_until_stopped();
}

pub fn cache_pipe(task: &mut Task<'_>, size_kb: u64, burst_iters: u64) {
    let mut walk = match Walk::new(size_kb, LINE_BYTES) {
        Ok(walk) => walk,
        Err(error) => task.fail("map its buffer", &error),
    };
    while !task.stopped() {
        let mut left = burst_iters;
        while left > 0 && !task.stopped() {
            let part = left.min(BURST_STEPS);
            walk.rmw(part);
            task.units += part;
            task.sampler.tick();
            left -= part;
        }
        if !exchange(task) {
            break;
        }
        task.iteration_done();
    }
    task.idle_until_stopped();
    task.held = Some(walk.memory);
}

/// Just after a tick: writes one byte, waits for the partner's, reads it. False: stop, or the partner is gone.
fn exchange(task: &mut Task<'_>) -> bool {
    let Some(ends) = task.birth.links.ends(task.position) else { return false };
    let place = (task.iterations as usize) % STAMPS;
    let (own, other) = (task.position * STAMPS + place, (1 - task.position) * STAMPS + place);
    task.group.stamp(own).store(task.sampler.last_ns(), Ordering::Release);
    // At most two bytes are ever in a pipe, so this never blocks.
    if fd::write_some(ends.write, &[1]).is_err() {
        return false;
    }
    let Some(wait) = wait_for_byte(task) else { return false };
    task.sample_wake(&wait, task.group.stamp(other).load(Ordering::Acquire), WAKE, Some(BLOCK));
    true
}

/// Waits for one byte from the member before, and reads it; none: stop, or that one is gone.
pub fn wait_for_byte(task: &mut Task<'_>) -> Option<Wait> {
    let ends = task.birth.links.ends(task.position)?;
    let before = task.sampler.tick();
    // A byte that is there already is no wake-up.
    let woken = matches!(poll::one_readable(ends.read, 0), Ok(poll::Ready::TimedOut));
    loop {
        match poll::one_readable(ends.read, BLOCK_SLICE_NS / NS_PER_MS) {
            Ok(poll::Ready::Yes) => break,
            Ok(_) if !task.stopped() => {}
            _ => return None,
        }
    }
    let after = time::monotonic_ns();
    task.sampler.resume_at(after);
    let mut byte = [0];
    match fd::read_available(ends.read.as_fd(), &mut byte) {
        Ok(Some(1)) => Some(Wait { before, after, woken }),
        _ => None,
    }
}
