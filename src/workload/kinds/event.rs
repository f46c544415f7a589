//! EpollStorm.
//!
//! Owns its loop; leaves the descriptors, which are made before the fork, to means.
//! Invariant: no wait is longer than a slice.

use super::futex::Wait;
use super::{BLOCK_SLICE_NS, Task};
use crate::sys::{fd, poll, time};
use crate::units::{NS_PER_MS, NS_PER_US};
use std::os::fd::AsFd;

/// Places of the sample kinds, as the rows list them.
const WAKE: usize = 0;
const BLOCK: usize = 1;
/// Events between two looks at the clock and the stop word.
const EVENTS_PER_LOOK: u64 = 64;
/// A producer's pause between two bursts.
const PAUSE_NS: u64 = 500 * NS_PER_US;

/// The first `producers` members post events.
pub fn epoll_storm(task: &mut Task<'_>, producers: u32, events_per_burst: u64) {
    let links = task.birth.links;
    let Some((event, epoll)) = links.events() else { return };
    while !task.stopped() {
        if (task.position as u32) < producers {
            task.stamp_members(producers as usize);
            for posted in 0..events_per_burst {
                // Full at 2^64 - 2, which nobody reaches; interrupted by the stop signal only.
                if fd::write_some(event, &1u64.to_ne_bytes()).is_err() {
                    break;
                }
                task.units += 1;
                if posted % EVENTS_PER_LOOK == EVENTS_PER_LOOK - 1 {
                    task.sampler.tick();
                    if task.stopped() {
                        break;
                    }
                }
            }
            task.sampler.tick();
            task.sleep_once(PAUSE_NS, None);
        } else {
            task.arm();
            let before = task.sampler.tick();
            let woken = matches!(poll::epoll_wait(epoll, 0), Ok(poll::Ready::TimedOut));
            match poll::epoll_wait(epoll, BLOCK_SLICE_NS / NS_PER_MS) {
                Ok(poll::Ready::Yes) => {}
                Ok(_) => {
                    task.sampler.resume_at(time::monotonic_ns());
                    continue;
                }
                Err(error) => task.fail("wait for an event", &error),
            }
            let after = time::monotonic_ns();
            task.sampler.resume_at(after);
            task.sample_wake(&Wait { before, after, woken }, task.first_wake(), WAKE, Some(BLOCK));
            // Another consumer may have been faster; being woken is work all the same.
            let mut count = [0; 8];
            if let Err(error) = fd::read_available(event.as_fd(), &mut count) {
                task.fail("take its events", &error);
            }
            task.units += 1;
        }
        task.iteration_done();
    }
}
