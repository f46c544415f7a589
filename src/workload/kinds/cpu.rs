//! Types whose subject is the CPU itself: spinning, yielding, bursts and sleeps.
//!
//! Owns their loops and the spin primitive; leaves counters to `Task`.
//! Invariant: a worker here blocks only in a sleep.

use super::Task;
use crate::sys::sched;
use crate::units::NS_PER_MS;
use std::hint::{black_box, spin_loop};

/// Place of the one sample kind of each type here.
const ONLY: usize = 0;
/// Most steps of a worker that does nothing else, between two looks at the clock: some 50 to 200 us, by which a gap may be told
/// too long.
const STEPS_PER_LOOK: u64 = 4096;
/// Where they take longer than this, as under emulation, each burst has its own look: a checkpoint is due every millisecond.
const LONG_LOOK_NS: u64 = NS_PER_MS / 2;
/// Timer slack that means none (prctl(2), PR_SET_TIMERSLACK).
const LEAST_SLACK_NS: u64 = 1;

/// `steps` increments that the optimiser cannot fold, each with a CPU pause hint.
#[inline(never)]
pub fn spin_burst(units: &mut u64, steps: u64) {
    // Counted in a register: the step is the same as that of a bare loop.
    let mut done = *units;
    for _ in 0..steps {
        done = black_box(done.wrapping_add(1));
        spin_loop();
    }
    *units = done;
}

pub fn spin_wait(task: &mut Task<'_>) {
    spin_bursts(task, super::BURST_STEPS);
}

/// Spins `steps` steps an iteration. Several short iterations have one look at the clock, which costs more than all else here.
pub fn spin_bursts(task: &mut Task<'_>, steps: u64) {
    let (mut unseen, mut per_look) = (0, STEPS_PER_LOOK);
    while !task.stopped() {
        if steps > super::BURST_STEPS {
            task.spin(steps);
        } else {
            spin_burst(&mut task.units, steps);
            unseen += steps;
            if unseen >= per_look {
                unseen = 0;
                let before = task.sampler.last_ns();
                let took_ns = task.sampler.tick() - before;
                per_look = if took_ns > LONG_LOOK_NS { steps } else { STEPS_PER_LOOK };
            }
        }
        task.iteration_done();
    }
    // Who was kept from the CPU until after the stop has had a gap, too.
    task.sampler.tick();
}

pub fn yield_heavy(task: &mut Task<'_>) {
    while !task.stopped() {
        task.units = black_box(task.units.wrapping_add(1));
        task.yield_once(ONLY);
        task.iteration_done();
    }
}

pub fn mixed(task: &mut Task<'_>) {
    while !task.stopped() {
        task.spin(super::BURST_STEPS);
        task.yield_once(ONLY);
        task.iteration_done();
    }
}

pub fn bursty(task: &mut Task<'_>, burst_ns: u64, sleep_ns: u64) {
    while !task.stopped() {
        task.spin_for(burst_ns);
        task.sleep_once(sleep_ns, Some(ONLY));
        task.iteration_done();
    }
}

pub fn idle_churn(task: &mut Task<'_>, burst_ns: u64, sleep_ns: u64, precise: bool) {
    if precise && let Err(error) = sched::set_timer_slack(LEAST_SLACK_NS) {
        task.fail("set the timer slack", &error);
    }
    bursty(task, burst_ns, sleep_ns);
}

/// Position 0 bursts and sleeps; the others spin.
pub fn preempt_storm(task: &mut Task<'_>, burst_iters: u64, sleep_ns: u64) {
    if task.position > 0 {
        return spin_wait(task);
    }
    while !task.stopped() {
        task.spin(burst_iters);
        task.sleep_once(sleep_ns, Some(ONLY));
        task.iteration_done();
    }
}
