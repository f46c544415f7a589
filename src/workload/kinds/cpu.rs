//! Types whose subject is the CPU itself: SpinWait, YieldHeavy, Bursty.
//!
//! Owns their loops and the spin primitive; leaves counters to `Task`.
//! Invariant: a worker here blocks only in Bursty's sleep.

use super::Task;
use crate::sys::{sched, time};
use std::hint::{black_box, spin_loop};

/// Place of YieldHeavy's and Bursty's one sample kind.
const ONLY: usize = 0;

/// `steps` increments that the optimiser cannot fold, each with a CPU pause hint.
#[inline(never)]
pub fn spin_burst(units: &mut u64, steps: u64) {
    for _ in 0..steps {
        *units = black_box(units.wrapping_add(1));
        spin_loop();
    }
}

pub fn spin_wait(task: &mut Task<'_>) {
    while !task.stopped() {
        task.spin(super::BURST_STEPS);
        task.iteration_done();
    }
}

pub fn yield_heavy(task: &mut Task<'_>) {
    while !task.stopped() {
        task.units = black_box(task.units.wrapping_add(1));
        let before = task.sampler.tick();
        sched::yield_now();
        // A stay in sched_yield counts as a gap: the worker was runnable.
        let after = task.sampler.tick();
        task.sampler.record(ONLY, after.saturating_sub(before));
        task.iteration_done();
    }
}

pub fn bursty(task: &mut Task<'_>, burst_ns: u64, sleep_ns: u64) {
    while !task.stopped() {
        let burst_end = task.sampler.tick().saturating_add(burst_ns);
        while !task.stopped() {
            spin_burst(&mut task.units, super::BURST_STEPS);
            if task.sampler.tick() >= burst_end {
                break;
            }
        }
        let before = task.sampler.tick();
        if task.stopped() {
            break;
        }
        let slept = time::sleep_ns(sleep_ns);
        let after = time::monotonic_ns();
        task.sampler.resume_at(after);
        // An interrupted sleep is the stop signal: no sample, and the loop's condition ends it.
        if slept.is_ok() {
            task.sampler.record(ONLY, after.saturating_sub(before).saturating_sub(sleep_ns));
        }
        task.iteration_done();
    }
}
