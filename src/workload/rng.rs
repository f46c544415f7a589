//! Random choices that a seed repeats.
//!
//! Owns the generator and how each worker gets its own; leaves what is chosen to the loops.
//! Invariant: the same seed, group and worker give the same sequence on every machine.

/// splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Copy, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of one worker of one group.
    pub fn of_worker(seed: u64, group: usize, worker: usize) -> Self {
        let mut rng = Self(seed ^ (group as u64) << 32 ^ worker as u64);
        // Neighbouring seeds would otherwise begin alike.
        rng = Self(rng.draw());
        rng
    }
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    /// One of `count` numbers; 0 where there are none. The bias is below `count` / 2^64.
    pub fn below(&mut self, count: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(count)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_choices_and_workers_differ() {
        let draws = |seed, group, worker| {
            let mut rng = Rng::of_worker(seed, group, worker);
            (0..8).map(|_| rng.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draws(1, 0, 0), draws(1, 0, 0));
        assert_ne!(draws(1, 0, 0), draws(1, 0, 1));
        assert_ne!(draws(1, 0, 0), draws(1, 1, 0));
        assert_ne!(draws(1, 0, 0), draws(2, 0, 0));
        assert!(draws(3, 0, 0).iter().all(|draw| *draw < 1000));
        assert_eq!(Rng::of_worker(1, 0, 0).below(0), 0);
    }
}
