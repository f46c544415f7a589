//! The words by which a handle and its workers come to terms: gate, stop and state, and the hand-over between two workers.
//!
//! Owns the order in which they are written and read; leaves their memory to slot, and sleeping to the callers.
//! Invariant: who sees a word changed sees all that was written before it; who sleeps compares the word as it falls asleep.
//!
//! The same text is compiled against loom's atomics, which try every order that the memory model allows: tests/loom.

use super::atomic::{AtomicU32, AtomicU64, Ordering};

const CLOSED: u32 = 0;
const OPEN: u32 = 1;

/// How all workers of a handle are started and stopped.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// A futex word.
    pub word: &'a AtomicU32,
    /// When it was opened: every worker's time begins then, whenever it first runs.
    pub opened_ns: &'a AtomicU64,
    /// 0: work; 1: stop.
    pub stop: &'a AtomicU32,
}

impl<'a> Gate<'a> {
    /// Opens the gate; the caller then wakes who sleeps at the word that this returns.
    pub fn open(&self, now_ns: u64) -> &'a AtomicU32 {
        self.opened_ns.store(now_ns, Ordering::Relaxed);
        self.word.store(OPEN, Ordering::Release);
        self.word
    }
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) == OPEN
    }
    /// Returns once the gate is open, with the time of its opening. `sleep` sleeps as long as the word has the value it is
    /// given, or a while.
    pub fn pass<E>(&self, mut sleep: impl FnMut(&AtomicU32, u32) -> Result<(), E>) -> Result<u64, E> {
        while !self.is_open() {
            sleep(self.word, CLOSED)?;
        }
        Ok(self.opened_ns.load(Ordering::Relaxed))
    }
    /// Tells all workers to stop. Before the gate is opened: then nobody works at all.
    pub fn stop(&self) {
        self.stop.store(1, Ordering::Release);
    }
    #[inline]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) != 0
    }
}

/// Sets a state word; what was written before is visible to whoever sees it.
pub fn publish(state: &AtomicU64, value: u64) {
    state.store(value, Ordering::Release);
}

pub fn published(state: &AtomicU64) -> u64 {
    state.load(Ordering::Acquire)
}

/// Gives a word to another worker, with the time of it. One stamp is enough where the next is written only after the other has
/// handed the word back.
pub fn hand_over(stamp: &AtomicU64, now_ns: u64, word: &AtomicU32, value: u32) {
    stamp.store(now_ns, Ordering::Relaxed);
    word.store(value, Ordering::Release);
}
