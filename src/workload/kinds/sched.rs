//! Types that change how they are scheduled while they run: nice value, CPUs, class.
//!
//! Owns their loops; leaves the calls to sys/sched.
//! Invariant: what the kernel refuses is left out of the walk, and what the worker had first is restored at the end.

use super::Task;
use crate::proto::plan::SchedPolicy;
use crate::sys::sched;
use crate::workload::slot::Field;
use std::io;

/// Place of the one sample kind of each type here.
const ONLY: usize = 0;
/// Spin steps at each nice value.
const NICE_STEPS: u64 = 512;
/// Real-time priority of the classes of the walk: the lowest, so that the rest of the system lives.
const LOWEST_PRIORITY: u32 = 1;

fn errno(error: &io::Error) -> u64 {
    error.raw_os_error().unwrap_or(libc::EIO) as u64
}

pub fn nice_sweep(task: &mut Task<'_>) {
    let first = match sched::nice(0) {
        Ok(nice) => nice,
        Err(error) => task.fail("read its nice value", &error),
    };
    // Without the right to go down, 0 to 19 is walked as far as it goes up.
    let may_raise = sched::set_nice(0, -20).is_ok();
    let lowest = if may_raise { -20 } else { 0 };
    let mut next = lowest;
    while !task.stopped() {
        task.spin(NICE_STEPS);
        let set = sched::set_nice(0, next);
        if let (true, Err(error)) = (may_raise, &set) {
            task.slot.set(Field::NiceErrno, errno(error));
        }
        next = if next >= 19 { lowest } else { next + 1 };
        task.yield_once(ONLY);
        task.iteration_done();
    }
    if let (true, Err(error)) = (may_raise, sched::set_nice(0, first)) {
        task.slot.set(Field::NiceErrno, errno(&error));
    }
}

pub fn affinity_churn(task: &mut Task<'_>, spin_iters: u64) {
    let all = match sched::mask(0) {
        Ok(mask) => mask,
        Err(error) => task.fail("read its CPUs", &error),
    };
    let count = u64::from(all.count());
    while !task.stopped() {
        task.spin(spin_iters);
        let draw = task.rng.below(count) as u32;
        if let Some(cpu) = all.nth(draw)
            && let Err(error) = sched::set_mask(0, &sched::CpuMask::of([cpu]))
        {
            task.slot.set(Field::AffinityErrno, errno(&error));
        }
        task.yield_once(ONLY);
        task.iteration_done();
    }
    if let Err(error) = sched::set_mask(0, &all) {
        task.slot.set(Field::AffinityErrno, errno(&error));
    }
}

pub fn policy_churn(task: &mut Task<'_>, spin_iters: u64) {
    const WALK: [SchedPolicy; 6] = [
        SchedPolicy::Normal,
        SchedPolicy::Batch,
        SchedPolicy::Idle,
        SchedPolicy::Ext,
        SchedPolicy::Fifo { priority: LOWEST_PRIORITY },
        SchedPolicy::RoundRobin { priority: LOWEST_PRIORITY },
    ];
    const IDLE: usize = 2;
    let first = &task.birth.policy;
    let nice = match sched::nice(0) {
        Ok(nice) => nice,
        Err(error) => task.fail("read its nice value", &error),
    };
    let mut allowed = [true; WALK.len()];
    // Without the right to a lower nice value there is no way out of the idle class (sched(7)).
    allowed[IDLE] = sched::set_nice(0, nice - 1).is_ok();
    if let (true, Err(error)) = (allowed[IDLE], sched::set_nice(0, nice)) {
        task.slot.set(Field::NiceErrno, errno(&error));
    }
    let mut at = 0;
    while !task.stopped() {
        task.spin(spin_iters);
        if allowed[at] {
            allowed[at] = sched::set_policy(0, &WALK[at], nice, false).is_ok();
            task.yield_once(ONLY);
        }
        at = (at + 1) % WALK.len();
        task.iteration_done();
    }
    if let Err(error) = sched::set_policy(0, first, nice, false) {
        task.slot.set(Field::PolicyErrno, errno(&error));
    }
}
