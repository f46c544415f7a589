//! Types whose subject is where memory and CPUs lie: NumaWorkingSetSweep, NumaMigrationChurn.
//!
//! Owns their loops; leaves nodes to means and the calls to sys/numa.
//! Invariant: what the kernel refuses is a field of the report; the loop goes on.

use super::Task;
use crate::sys::mmap::Mapping;
use crate::sys::numa::{bind_and_move, build_nodemask};
use crate::sys::sched;
use crate::workload::slot::Field;
use std::sync::atomic::Ordering;

/// Place of the one sample kind of each type here.
const ONLY: usize = 0;
/// Words of a page of 4096 bytes.
const PAGE_WORDS: usize = 512;
/// Pages between two looks at the clock.
const PAGES_PER_LOOK: usize = 64;
/// Spin steps of NumaMigrationChurn between two sleeps.
const CHURN_STEPS: u64 = 256;

pub fn working_set_sweep(task: &mut Task<'_>, region_kb: u64, period_ns: u64, targets: &[u32]) {
    let region = match Mapping::private_anonymous(region_kb as usize * 1024) {
        Ok(region) => region,
        Err(error) => task.fail("map its region", &error),
    };
    let nodes = if targets.is_empty() { &task.birth.means.all_nodes[..] } else { targets };
    while !task.stopped() {
        let node = nodes.get(task.iterations as usize % nodes.len().max(1)).copied().unwrap_or(0);
        if let Err(error) = bind_and_move(&region, &build_nodemask([node])) {
            task.slot.set(Field::MemPolicyErrno, error.raw_os_error().unwrap_or(libc::EIO) as u64);
        }
        for pages in region.words().chunks(PAGE_WORDS * PAGES_PER_LOOK) {
            for page in pages.chunks(PAGE_WORDS) {
                page[0].store(task.iterations, Ordering::Relaxed);
                task.units += 1;
            }
            task.sampler.tick();
            if task.stopped() {
                break;
            }
        }
        task.sleep_once(period_ns, Some(ONLY));
        task.iteration_done();
    }
    task.held = Some(region);
}

pub fn migration_churn(task: &mut Task<'_>, period_ns: u64) {
    let nodes = &task.birth.means.nodes;
    while !task.stopped() {
        let draw = task.rng.below(nodes.len() as u64) as usize;
        if let Some((_, cpus)) = nodes.get(draw)
            && let Err(error) = sched::set_mask(0, cpus)
        {
            task.slot.set(Field::AffinityErrno, error.raw_os_error().unwrap_or(libc::EIO) as u64);
        }
        task.sleep_once(period_ns, Some(ONLY));
        task.spin(CHURN_STEPS);
        task.iteration_done();
    }
}
