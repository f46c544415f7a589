//! Types that meet at a futex word: FutexPingPong, FutexFanOut, FanOutCompute, ThunderingHerd, AsymmetricWaker.
//!
//! Owns their loops and the wait for a word; leaves the word's memory to slot.
//! Invariant: a wait is at most one slice long, so that a lost wake cannot hide the stop word; a wake sample is of a wait that
//! the kernel ended by a wake, with the stamp of that wake.

use super::{BLOCK_SLICE_NS, Task, cpu};
use crate::sys::mmap::Mapping;
use crate::sys::{futex, time};
use crate::workload::handshake;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Places of the sample kinds, as the rows list them.
const WAKE: usize = 0;
const BLOCK: usize = 1;
/// The stamp of the last hand-over. One is enough: the next is written only after this one was read.
const STAMP: usize = 0;
/// Words before the stamps of a group whose members each have one.
const HEAD_WORDS: usize = 16;
/// Products of two words between two looks at the clock and the stop word: some ten microseconds.
const PRODUCTS_PER_LOOK: usize = 8192;
/// Spin steps of a messenger between two wakes.
const MESSENGER_STEPS: u64 = 256;

/// How a wait for a word went.
#[derive(Clone, Copy)]
pub struct Wait {
    pub before: u64,
    pub after: u64,
    /// The kernel put us to sleep, and a wake ended it.
    pub woken: bool,
}

/// Waits until the word is as it must be; none: stop.
pub fn wait_until(task: &mut Task<'_>, word: &AtomicU32, ready: impl Fn(u32) -> bool) -> Option<Wait> {
    let mut value = word.load(Ordering::Acquire);
    if ready(value) {
        let now = task.sampler.tick();
        return (!task.stopped()).then_some(Wait { before: now, after: now, woken: false });
    }
    let before = task.sampler.tick();
    let mut woken = false;
    while !ready(value) {
        if task.stopped() {
            return None;
        }
        match futex::wait(word, value, BLOCK_SLICE_NS) {
            Ok(how) => woken |= how == futex::Woken::Wake,
            Err(_) => return None,
        }
        value = word.load(Ordering::Acquire);
    }
    let after = time::monotonic_ns();
    task.sampler.resume_at(after);
    (!task.stopped()).then_some(Wait { before, after, woken })
}

impl Task<'_> {
    /// Samples a wait that was ended by the wake of this stamp. An older stamp is another wake's.
    pub fn sample_wake(&mut self, wait: &Wait, stamp: u64, wake: usize, block: Option<usize>) {
        if wait.woken && stamp >= wait.before {
            self.sampler.record(wake, wait.after.saturating_sub(stamp));
            if let Some(block) = block {
                self.sampler.record(block, wait.after.saturating_sub(wait.before));
            }
        }
    }
}

/// Hands the word over to one waiter, just after a tick, whose time is the stamp. False: the kernel refused, which it does for no
/// mapped word.
pub fn hand_over(task: &Task<'_>, stamp: &AtomicU64, word: &AtomicU32, value: u32) -> bool {
    handshake::hand_over(stamp, task.sampler.last_ns(), word, value);
    futex::wake(word, 1).is_ok()
}

/// Position 0 has the first turn.
pub fn ping_pong(task: &mut Task<'_>, spin_iters: u64) {
    let (own, other) = (task.position as u32, 1 - task.position as u32);
    let (turn, stamp) = (task.group.turn(), task.group.stamp(STAMP));
    while let Some(wait) = wait_until(task, turn, |value| value == own) {
        task.sample_wake(&wait, stamp.load(Ordering::Relaxed), WAKE, Some(BLOCK));
        task.spin(spin_iters);
        if !hand_over(task, stamp, turn, other) {
            return;
        }
        task.iteration_done();
    }
}

/// Shared words of a group of so many members with a stamp each.
pub fn words(members: usize) -> usize {
    HEAD_WORDS + members
}

impl Task<'_> {
    /// Where the first wake after this member began to wait leaves its time.
    fn wake_stamp(&self, member: usize) -> &AtomicU64 {
        &self.group.words()[HEAD_WORDS + member]
    }

    /// The next wake is the one that counts. A later one must not hide how long a late member was on its way.
    pub fn arm(&self) {
        self.wake_stamp(self.position).store(0, Ordering::SeqCst);
    }

    /// When the first wake after `arm` was; 0: there was none.
    pub fn first_wake(&self) -> u64 {
        self.wake_stamp(self.position).load(Ordering::Acquire)
    }

    /// Leaves the time with every member from `first` on that has had no wake since it armed itself. Where two wakers meet, one
    /// of their times stays, which are then as good as the same.
    pub fn stamp_members(&self, first: usize) {
        let now = time::monotonic_ns();
        for member in first..self.work.worker_group_size() as usize {
            let stamp = self.wake_stamp(member);
            // Whoever has its stamp already keeps the older one.
            if stamp.load(Ordering::SeqCst) == 0 {
                stamp.store(now, Ordering::Release);
            }
        }
    }
}

/// The messenger's part: the next generation.
fn advance(task: &Task<'_>, count: u32) -> bool {
    let word = task.group.turn();
    let next = word.load(Ordering::Relaxed).wrapping_add(1);
    task.stamp_members(1);
    word.store(next, Ordering::Release);
    futex::wake(word, count).is_ok()
}

/// A receiver's part: waits for another generation than `seen`; returns it.
fn next_generation(task: &mut Task<'_>, seen: u32) -> Option<u32> {
    let word = task.group.turn();
    task.arm();
    let wait = wait_until(task, word, |value| value != seen)?;
    task.sample_wake(&wait, task.first_wake(), WAKE, None);
    Some(word.load(Ordering::Acquire))
}

pub fn fan_out(task: &mut Task<'_>, fan_out: u32, spin_iters: u64) {
    let mut seen = 0;
    while !task.stopped() {
        task.spin(spin_iters);
        if task.position == 0 {
            if !advance(task, fan_out) {
                return;
            }
            task.spin(MESSENGER_STEPS);
        } else {
            match next_generation(task, seen) {
                Some(generation) => seen = generation,
                None => return,
            }
        }
        task.iteration_done();
    }
}

/// Side of the square matrices, three of which fill so many KiB.
fn side(footprint_kb: u64) -> usize {
    (footprint_kb as usize * 1024 / 3 / size_of::<u64>()).isqrt().max(1)
}

/// The product of two matrices into a third, all in one mapping. Stops within it where it is told to.
fn matrix_multiply(task: &mut Task<'_>, memory: &Mapping, side: usize) {
    let words = memory.words();
    let (a, rest) = words.split_at(side * side);
    let (b, c) = rest.split_at(side * side);
    let mut products = 0;
    for row in 0..side {
        for column in 0..side {
            let mut sum = 0u64;
            for k in 0..side {
                let product = a[row * side + k]
                    .load(Ordering::Relaxed)
                    .wrapping_mul(b[k * side + column].load(Ordering::Relaxed));
                sum = sum.wrapping_add(product);
            }
            c[row * side + column].store(sum, Ordering::Relaxed);
            products += side;
            if products >= PRODUCTS_PER_LOOK {
                products = 0;
                task.sampler.tick();
                if task.stopped() {
                    return;
                }
            }
        }
    }
    task.sampler.tick();
    task.units += 1;
}

pub fn fan_out_compute(task: &mut Task<'_>, fan_out: u32, (footprint_kb, operations): (u64, u64), sleep_ns: u64) {
    if task.position == 0 {
        while !task.stopped() {
            if !advance(task, fan_out) {
                return;
            }
            cpu::spin_burst(&mut task.units, MESSENGER_STEPS);
            task.sampler.tick();
            task.iteration_done();
        }
        return;
    }
    let side = side(footprint_kb);
    let memory = match Mapping::private_anonymous(3 * side * side * size_of::<u64>()) {
        Ok(memory) => memory,
        Err(error) => task.fail("map its matrices", &error),
    };
    let mut seen = 0;
    while let Some(generation) = next_generation(task, seen) {
        seen = generation;
        task.sleep_once(sleep_ns, None);
        for _ in 0..operations {
            if task.stopped() {
                break;
            }
            matrix_multiply(task, &memory, side);
        }
        task.iteration_done();
    }
}

/// Position 0 sleeps and wakes everybody, so many times; the others wait.
pub fn herd(task: &mut Task<'_>, batches: u64, inter_batch_ns: u64) {
    if task.position == 0 {
        while !task.stopped() && task.iterations < batches {
            task.sleep_once(inter_batch_ns, None);
            if task.stopped() || !advance(task, u32::MAX) {
                break;
            }
            task.units += 1;
            task.iteration_done();
        }
    } else {
        let mut seen = 0;
        while task.iterations < batches {
            match next_generation(task, seen) {
                Some(generation) => seen = generation,
                None => return,
            }
            task.units += 1;
            task.iteration_done();
            if u64::from(seen) >= batches {
                break;
            }
        }
    }
    task.idle_until_stopped();
}

pub fn asymmetric_waker(task: &mut Task<'_>, burst_iters: u64) {
    let mut seen = 0;
    while !task.stopped() {
        if task.position == 0 {
            task.spin(burst_iters);
            if !advance(task, 1) {
                return;
            }
        } else {
            match next_generation(task, seen) {
                Some(generation) => seen = generation,
                None => return,
            }
            task.spin(burst_iters);
        }
        task.iteration_done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_matrices_fill_the_footprint() {
        assert_eq!(side(256), 104);
        let bytes = 3 * side(256) * side(256) * 8;
        assert!(bytes <= 256 << 10 && bytes > 250 << 10);
        assert_eq!(side(1), 6);
    }
}
