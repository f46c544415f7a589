//! Sequence.
//!
//! Owns the order of phases; leaves what each does to the primitives of the other families.
//! Invariant: a phase ends at its time or at the stop, whichever is first.

use super::Task;
use super::io::Backing;
use crate::proto::work::Phase;
use crate::sys::time;
use std::io;

/// Places of the sample kinds, as the rows list them.
const TIMER: usize = 0;
const YIELD: usize = 1;
const IO: usize = 2;

pub fn sequence(task: &mut Task<'_>, first: &Phase, rest: &[Phase]) {
    let has_io = std::iter::once(first).chain(rest).any(|phase| matches!(phase, Phase::Io { .. }));
    let mut backing = has_io.then(|| Backing::open(task, libc::O_SYNC));
    while !task.stopped() {
        for phase in std::iter::once(first).chain(rest) {
            match phase {
                Phase::Spin { ns } => {
                    task.spin_for(*ns);
                }
                Phase::Sleep { ns } => {
                    task.sleep_once(*ns, Some(TIMER));
                    task.units += 1;
                }
                Phase::Yield { ns } => {
                    let end = task.sampler.tick().saturating_add(*ns);
                    while task.sampler.tick() < end && !task.stopped() {
                        task.yield_once(YIELD);
                        task.units += 1;
                    }
                }
                Phase::Io { ns } => {
                    if let Some(backing) = &mut backing {
                        io_for(task, backing, *ns);
                    }
                }
            }
        }
        task.iteration_done();
    }
}

fn io_for(task: &mut Task<'_>, backing: &mut Backing, ns: u64) {
    let end = task.sampler.tick().saturating_add(ns);
    loop {
        let before = task.sampler.tick();
        if before >= end || task.stopped() {
            return;
        }
        match backing.write_next() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => task.fail("write its backing", &error),
            Ok(()) => {}
        }
        let after = time::monotonic_ns();
        task.sampler.resume_at(after);
        task.sampler.record(IO, after.saturating_sub(before));
        task.units += 1;
    }
}
