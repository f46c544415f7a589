//! PageFaultChurn.
//!
//! Owns its loop; leaves the mapping to sys/mmap.
//! Invariant: a touched page is a write, so that it is a fault of its own and not the zero page's.

use super::Task;
use crate::sys::mmap::Mapping;
use std::sync::atomic::Ordering;

/// Words of a page of 4096 bytes.
const PAGE_WORDS: u64 = 512;
/// Touches between two looks at the clock: a fault takes about a microsecond.
const TOUCHES_PER_LOOK: u64 = 64;

pub fn page_fault_churn(task: &mut Task<'_>, region_kb: u64, touches: u64, spin_iters: u64) {
    let region = match Mapping::private_anonymous(region_kb as usize * 1024) {
        Ok(region) => region,
        Err(error) => task.fail("map its region", &error),
    };
    let words = region.words();
    let pages = words.len() as u64 / PAGE_WORDS;
    'cycles: while !task.stopped() {
        for touch in 0..touches {
            let page = task.rng.below(pages);
            words[(page * PAGE_WORDS) as usize].store(touch, Ordering::Relaxed);
            task.units += 1;
            if touch % TOUCHES_PER_LOOK == TOUCHES_PER_LOOK - 1 {
                task.sampler.tick();
                if task.stopped() {
                    break 'cycles;
                }
            }
        }
        if let Err(error) = region.discard() {
            task.fail("give its pages back", &error);
        }
        task.spin(spin_iters);
        task.iteration_done();
    }
    task.held = Some(region);
}
