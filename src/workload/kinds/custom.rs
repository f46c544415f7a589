//! Custom: a function of the user's own.
//!
//! Owns the register of functions and what such a function sees; leaves everything else to the user.
//! Invariant: a function is looked up before the fork, by name, so that host and guest, being one binary, find the same one.

use super::{BLOCK_SLICE_NS, Task};
use crate::sys::time;
use std::sync::{Mutex, PoisonError};

/// Place of the one sample kind.
const ONLY: usize = 0;

/// Works until it is told to stop. It runs in a forked child, so it should allocate little and print nothing.
pub type CustomFn = fn(&mut CustomTask<'_, '_>);

static REGISTERED: Mutex<Vec<(String, CustomFn)>> = Mutex::new(Vec::new());

/// Makes a function known under a name, in place of an earlier one. To be called before anything else, in every role.
pub fn register_custom(name: &str, function: CustomFn) {
    let mut known = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|(other, _)| other != name);
    known.push((name.to_owned(), function));
}

/// The function of a name.
pub fn find(name: &str) -> Option<CustomFn> {
    let known = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().find(|(other, _)| other == name).map(|(_, function)| *function)
}

/// What a custom function sees of its worker.
pub struct CustomTask<'t, 'a> {
    task: &'t mut Task<'a>,
}

impl CustomTask<'_, '_> {
    /// To be looked at at least every few milliseconds.
    pub fn stopped(&self) -> bool {
        self.task.stopped()
    }
    /// Position within the group, from 0.
    pub fn position(&self) -> usize {
        self.task.position
    }
    /// A random number of this worker's own sequence.
    pub fn random(&mut self) -> u64 {
        self.task.rng.draw()
    }
    /// Counts work, and looks at CPU, gaps and run delay where it is time.
    pub fn work_done(&mut self, units: u64) {
        self.task.units += units;
        self.task.sampler.tick();
    }
    /// One outer loop is done.
    pub fn iteration_done(&mut self) {
        self.task.iteration_done();
    }
    /// One sample of kind `user`.
    pub fn record_ns(&mut self, ns: u64) {
        self.task.sampler.record(ONLY, ns);
    }
    /// Spins.
    pub fn spin(&mut self, steps: u64) {
        self.task.spin(steps);
    }
    /// Sleeps, in slices so that the stop is seen. The time is no gap.
    pub fn sleep_ns(&mut self, ns: u64) {
        let end = time::monotonic_ns().saturating_add(ns);
        while !self.stopped() {
            let left = end.saturating_sub(time::monotonic_ns());
            if left == 0 {
                return;
            }
            self.task.sleep_once(left.min(BLOCK_SLICE_NS), None);
        }
    }
}

pub fn custom(task: &mut Task<'_>) {
    if let Some(function) = task.birth.means.custom {
        function(&mut CustomTask { task });
    }
}
