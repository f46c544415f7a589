//! SignalStorm.
//!
//! Owns its loop; leaves handlers to sys/signal.
//! Invariant: a partner is sent a signal only after it has said that it counts them, and it is not the stop signal.

use super::Task;
use crate::sys::{process, signal};
use std::sync::atomic::Ordering;

/// What is sent. SIGUSR2 ends a run.
pub const STORM_SIGNAL: i32 = libc::SIGUSR1;
/// Signals between two looks at the clock.
const PER_LOOK: u64 = 64;

pub fn signal_storm(task: &mut Task<'_>, signals: u64, work_iters: u64) {
    if let Err(error) = signal::count(STORM_SIGNAL) {
        task.fail("count signals", &error);
    }
    let (own, other) = (task.group.stamp(task.position), task.group.stamp(1 - task.position));
    own.store((process::id() as u64) << 32 | process::thread_id() as u64, Ordering::Release);
    while !task.stopped() {
        let partner = other.load(Ordering::Acquire);
        let (pid, tid) = ((partner >> 32) as i32, partner as u32 as i32);
        for sent in 0..signals {
            // Not there yet, or gone already.
            if partner == 0 || signal::send_to_thread(pid, tid, STORM_SIGNAL).is_err() {
                break;
            }
            task.units += 1;
            if sent % PER_LOOK == PER_LOOK - 1 {
                task.sampler.tick();
                if task.stopped() {
                    break;
                }
            }
        }
        task.spin(work_iters);
        task.iteration_done();
    }
}
