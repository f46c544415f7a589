//! ProducerConsumerImbalance.
//!
//! Owns the waiting around the ring and the loops; leaves the ring to workload/ring.
//! Invariant: who changes the ring tells the other side after it did, and who waits has looked once more after it read the word
//! it waits for, so no change is slept through.

use super::futex::Wait;
use super::{BLOCK_SLICE_NS, Task};
use crate::sys::{futex, time};
use crate::units::NS_PER_SEC;
use crate::workload::ring::{self, Ring};
use std::sync::atomic::{AtomicU32, Ordering};

/// Places of the sample kinds, as the rows list them.
const WAKE: usize = 0;
const BLOCK: usize = 1;
/// Before the ring: on one line the news that items came, on the next that room came, each with its counter as a futex word and
/// the number of those that wait.
const HEAD_WORDS: usize = 16;
const LINE: usize = 8;

/// Shared words of one group.
pub fn words(depth: u64) -> usize {
    HEAD_WORDS + ring::words(depth)
}

/// One side's news: items came, or room came.
#[derive(Clone, Copy)]
enum News {
    Item = 0,
    Room = 1,
}

impl Task<'_> {
    fn counter(&self, news: News) -> &'_ AtomicU32 {
        &self.group.halves()[2 * LINE * news as usize + 2]
    }
    fn waiting(&self, news: News) -> &'_ AtomicU32 {
        &self.group.halves()[2 * LINE * news as usize + 4]
    }

    /// Tells that something came; wakes one where somebody waits.
    fn tell(&self, news: News) {
        self.counter(news).fetch_add(1, Ordering::SeqCst);
        if self.waiting(news).load(Ordering::SeqCst) > 0
            && let Err(error) = futex::wake(self.counter(news), 1)
        {
            self.fail("wake its partner", &error);
        }
    }

    /// Tries until it succeeds, which gives the partner's stamp; false: stop.
    fn until(&mut self, news: News, attempt: impl Fn() -> Option<u64>) -> bool {
        if attempt().is_some() {
            return true;
        }
        let before = self.sampler.tick();
        self.waiting(news).fetch_add(1, Ordering::SeqCst);
        let mut woken = false;
        let stamp = loop {
            let seen = self.counter(news).load(Ordering::SeqCst);
            if let Some(stamp) = attempt() {
                break Some(stamp);
            }
            if self.stopped() {
                break None;
            }
            match futex::wait(self.counter(news), seen, BLOCK_SLICE_NS) {
                Ok(how) => woken |= how == futex::Woken::Wake,
                Err(_) => break None,
            }
        };
        let after = time::monotonic_ns();
        self.waiting(news).fetch_sub(1, Ordering::SeqCst);
        self.sampler.resume_at(after);
        if let Some(stamp) = stamp {
            self.sample_wake(&Wait { before, after, woken }, stamp, WAKE, Some(BLOCK));
        }
        stamp.is_some()
    }
}

/// The first `producers` members produce. An item is the time at which it was put in; what is left in an emptied cell is the time
/// at which it was emptied: so whoever was woken finds the stamp of what it was woken for, however late it is.
pub fn producer_consumer(task: &mut Task<'_>, producers: u32, rate_hz: u64, consume_iters: u64) {
    let ring = Ring::new(&task.group.words()[HEAD_WORDS..], depth_of(task));
    let period_ns = NS_PER_SEC / rate_hz;
    let mut due = task.sampler.tick();
    while !task.stopped() {
        if (task.position as u32) < producers {
            if !task.until(News::Room, || ring.push(time::monotonic_ns())) {
                break;
            }
            task.tell(News::Item);
            task.units += 1;
            task.iteration_done();
            due += period_ns;
            let now = task.sampler.tick();
            // Who is late does not try to catch up: a burst would be another load than the one asked for.
            match due.checked_sub(now) {
                Some(ahead) => task.sleep_once(ahead, None),
                None => due = now,
            }
        } else {
            if !task.until(News::Item, || ring.pop(time::monotonic_ns())) {
                break;
            }
            task.tell(News::Room);
            task.spin(consume_iters);
            task.iteration_done();
        }
    }
}

fn depth_of(task: &Task<'_>) -> u64 {
    match *task.work {
        crate::proto::work::WorkType::ProducerConsumerImbalance { queue_depth_target, .. } => queue_depth_target,
        _ => 0,
    }
}
