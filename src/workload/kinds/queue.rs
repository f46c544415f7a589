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
/// Before the ring: on one line what grows when an item came, on the next what grows when one went, each with the stamp of the
/// latest wake (words), its counter as a futex word (halves) and the number of those that wait.
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
        self.group.words()[LINE * news as usize].store(time::monotonic_ns(), Ordering::Relaxed);
        self.counter(news).fetch_add(1, Ordering::SeqCst);
        if self.waiting(news).load(Ordering::SeqCst) > 0
            && let Err(error) = futex::wake(self.counter(news), 1)
        {
            self.fail("wake its partner", &error);
        }
    }

    /// Tries until it succeeds; none: stop.
    fn until<T>(&mut self, news: News, attempt: impl Fn() -> Option<T>) -> Option<T> {
        if let Some(done) = attempt() {
            return Some(done);
        }
        let before = self.sampler.tick();
        self.waiting(news).fetch_add(1, Ordering::SeqCst);
        let mut woken = false;
        let done = loop {
            let seen = self.counter(news).load(Ordering::SeqCst);
            if let Some(done) = attempt() {
                break Some(done);
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
        let stamp = self.group.words()[LINE * news as usize].load(Ordering::Relaxed);
        if done.is_some() {
            self.sample_wake(&Wait { before, after, woken }, stamp.min(after), WAKE, Some(BLOCK));
        }
        done
    }
}

/// The first `producers` members produce.
pub fn producer_consumer(task: &mut Task<'_>, producers: u32, rate_hz: u64, consume_iters: u64) {
    let ring = Ring::new(&task.group.words()[HEAD_WORDS..], depth_of(task));
    let period_ns = NS_PER_SEC / rate_hz;
    let mut due = task.sampler.tick();
    while !task.stopped() {
        if (task.position as u32) < producers {
            let item = (task.position as u64) << 48 | task.iterations;
            if task.until(News::Room, || ring.push(item).then_some(())).is_none() {
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
            if task.until(News::Item, || ring.pop()).is_none() {
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
