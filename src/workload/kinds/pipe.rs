//! Types that meet at a pair of pipes: PipeIo.
//!
//! Owns the exchange; leaves the descriptors to handle.
//! Invariant: a wait is at most one slice long; a partner that is gone ends the exchange, not the process.

use super::{BLOCK_SLICE_NS, Task};
use crate::sys::{fd, poll, time};
use crate::units::NS_PER_MS;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// Places of the sample kinds, as types.rs lists them.
const WAKE: usize = 0;
const BLOCK: usize = 1;
/// Stamps of one direction, used in turn. A worker is at most one exchange ahead of its partner: it writes byte n + 2 only
/// after it has read byte n + 1, which the partner wrote after it had read byte n with its stamp. So two never collide.
const STAMPS: usize = 2;

pub fn pipe_io(task: &mut Task<'_>, burst_iters: u64) {
    while !task.stopped() {
        task.spin(burst_iters);
        if !exchange(task) {
            break;
        }
        task.iteration_done();
    }
    // Without its partner a worker has nothing to do; it stays to report when it is asked.
    while !task.stopped() {
        let now = match time::sleep_ns(BLOCK_SLICE_NS) {
            Ok(()) => time::monotonic_ns(),
            // Only the stop signal interrupts; the loop's condition decides.
            Err(_) => continue,
        };
        task.sampler.resume_at(now);
    }
}

/// Writes one byte, waits for the partner's, reads it. False: stop, or the partner is gone.
fn exchange(task: &mut Task<'_>) -> bool {
    let Some(ends) = task.pipe else { return false };
    let place = (task.iterations as usize) % STAMPS;
    let (own, other) = (task.position * STAMPS + place, (1 - task.position) * STAMPS + place);
    task.group.stamp(own).store(time::monotonic_ns(), Ordering::Release);
    // At most two bytes are ever in a pipe, so this never blocks.
    if fd::write_some(ends.write, &[1]).is_err() {
        return false;
    }
    let before = task.sampler.tick();
    // A byte that is there already is no wake-up.
    let slept = matches!(poll::one_readable(ends.read, 0), Ok(poll::Ready::TimedOut));
    loop {
        match poll::one_readable(ends.read, BLOCK_SLICE_NS / NS_PER_MS) {
            Ok(poll::Ready::Yes) => break,
            Ok(_) if !task.stopped() => {}
            _ => return false,
        }
    }
    let after = time::monotonic_ns();
    task.sampler.resume_at(after);
    let mut byte = [0];
    if !matches!(fd::read_available(ends.read.as_fd(), &mut byte), Ok(Some(1))) {
        return false;
    }
    let stamp = task.group.stamp(other).load(Ordering::Acquire);
    if slept && stamp >= before {
        task.sampler.record(WAKE, after.saturating_sub(stamp));
        task.sampler.record(BLOCK, after.saturating_sub(before));
    }
    true
}
