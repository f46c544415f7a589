//! Types that walk a private buffer: CachePressure, CacheYield; and the walk itself.
//!
//! Owns the buffer and the read-modify-write loop; leaves yielding and pipes to others.
//! Invariant: every step reads and writes memory; the optimiser can drop none, because the words are atomics.

use super::Task;
use crate::sys::mmap::Mapping;
use std::io;
use std::sync::atomic::Ordering;

/// Place of CacheYield's one sample kind.
const ONLY: usize = 0;

/// A buffer with the place where the walk stands.
pub struct Walk {
    pub memory: Mapping,
    stride: usize,
    at: usize,
}

impl Walk {
    /// `stride` is in bytes.
    pub fn new(size_kb: u64, stride: u64) -> io::Result<Self> {
        Ok(Self { memory: Mapping::private_anonymous(size_kb as usize * 1024)?, stride: stride as usize, at: 0 })
    }

    /// `steps` read-modify-writes, each `stride` bytes further, modulo the length.
    #[inline(never)]
    pub fn rmw(&mut self, steps: u64) {
        let (words, len) = (self.memory.words(), self.memory.len());
        for _ in 0..steps {
            let word = &words[self.at / 8];
            word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            self.at += self.stride;
            if self.at >= len {
                self.at %= len;
            }
        }
    }
}

pub fn pressure(task: &mut Task<'_>, size_kb: u64, stride: u64, yields: bool) {
    let mut walk = match Walk::new(size_kb, stride) {
        Ok(walk) => walk,
        Err(error) => task.fail("map its buffer", &error),
    };
    while !task.stopped() {
        walk.rmw(super::BURST_STEPS);
        task.units += super::BURST_STEPS;
        match yields {
            true => task.yield_once(ONLY),
            false => {
                task.sampler.tick();
            }
        }
        task.iteration_done();
    }
    task.held = Some(walk.memory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walk_touches_every_stride_and_wraps() {
        let mut walk = Walk::new(1, 64).unwrap();
        walk.rmw(17);
        let touched: Vec<u64> = walk.memory.words().iter().map(|word| word.load(Ordering::Relaxed)).collect();
        assert_eq!((touched[0], touched[8], touched[120]), (2, 1, 1));
        assert_eq!(touched.iter().sum::<u64>(), 17);
        let mut odd = Walk::new(1, 1000).unwrap();
        odd.rmw(3);
        assert_eq!(odd.at, 3000 % 1024);
    }
}
