//! A bounded queue for any number of producers and consumers, in words that processes share.
//!
//! Owns the cells and the two positions; leaves waiting to the callers.
//! Invariant: an item that was put in is taken out exactly once. Dmitry Vyukov's bounded queue: each cell's own sequence number
//! says whose turn it is, so a cell is written by one producer, then read by one consumer. Loom tries it in every order: tests/loom.

use super::atomic::{AtomicU64, Ordering};

/// Words of a cache line of 64 bytes: the two positions lie on lines of their own.
const LINE: usize = 8;
const PUT_AT: usize = 0;
const TAKE_AT: usize = LINE;
const CELLS_AT: usize = 2 * LINE;
/// A cell: sequence number, item.
const CELL: usize = 2;

/// Words that a ring of at least so many cells needs.
pub const fn words(depth: u64) -> usize {
    CELLS_AT + CELL * capacity(depth) as usize
}

/// Cells come in powers of two, so that positions may wrap; one cell could not tell full from empty.
pub const fn capacity(depth: u64) -> u64 {
    if depth < 2 { 2 } else { depth.next_power_of_two() }
}

/// The queue. All-zero words are an empty one.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    words: &'a [AtomicU64],
    capacity: u64,
}

impl<'a> Ring<'a> {
    /// Over the words that `words(depth)` asked for.
    pub fn new(words: &'a [AtomicU64], depth: u64) -> Self {
        assert!(words.len() >= self::words(depth), "{} words for a ring of {depth}", words.len());
        Self { words, capacity: capacity(depth) }
    }

    fn cell(&self, position: u64) -> (&'a AtomicU64, &'a AtomicU64) {
        let at = CELLS_AT + CELL * (position & (self.capacity - 1)) as usize;
        (&self.words[at], &self.words[at + 1])
    }

    /// What a cell's sequence number is relative to, so that zeroed memory is an empty ring: its own index.
    fn index(&self, position: u64) -> u64 {
        position & (self.capacity - 1)
    }

    /// Puts an item in; returns the mark that `pop` left in its cell (0 in a fresh one), none: the ring is full.
    pub fn push(&self, item: u64) -> Option<u64> {
        let put = &self.words[PUT_AT];
        let mut position = put.load(Ordering::Relaxed);
        loop {
            let (sequence, value) = self.cell(position);
            let turn = sequence.load(Ordering::Acquire).wrapping_add(self.index(position));
            match turn.wrapping_sub(position) as i64 {
                0 => match put.compare_exchange_weak(position, position + 1, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => {
                        let mark = value.swap(item, Ordering::Relaxed);
                        sequence.store((position + 1).wrapping_sub(self.index(position)), Ordering::Release);
                        return Some(mark);
                    }
                    Err(other) => position = other,
                },
                behind if behind < 0 => return None,
                _ => position = put.load(Ordering::Relaxed),
            }
        }
    }

    /// Takes an item out and leaves a mark for who fills the cell next; none: the ring is empty.
    pub fn pop(&self, mark: u64) -> Option<u64> {
        let take = &self.words[TAKE_AT];
        let mut position = take.load(Ordering::Relaxed);
        loop {
            let (sequence, value) = self.cell(position);
            let turn = sequence.load(Ordering::Acquire).wrapping_add(self.index(position));
            match turn.wrapping_sub(position + 1) as i64 {
                0 => match take.compare_exchange_weak(position, position + 1, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => {
                        let item = value.swap(mark, Ordering::Relaxed);
                        let next = (position + self.capacity).wrapping_sub(self.index(position));
                        sequence.store(next, Ordering::Release);
                        return Some(item);
                    }
                    Err(other) => position = other,
                },
                behind if behind < 0 => return None,
                _ => position = take.load(Ordering::Relaxed),
            }
        }
    }
}
