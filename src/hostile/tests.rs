//! A short, repeatable fuzz of every target: mutated seeds from a fixed random sequence.
//!
//! Owns the mutation; leaves finding new ways by coverage to tests/fuzz.
//! Invariant: the same inputs in every run, and a failure names the input.

use super::TARGETS;

/// Inputs for each target: some seconds in all, unoptimised.
const INPUTS: u64 = 2500;
const INPUT_MAX_BYTES: usize = 4096;

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Numbers at which counts and offsets go wrong.
const EDGES: [u64; 10] = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, i64::MAX as u64, u64::MAX];

fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(bytes.len());
    match random.below(7) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.splice(at..at, (0..random.below(9)).map(|_| 0).collect::<Vec<u8>>())),
        4 => {
            let (edge, width) = (EDGES[random.below(EDGES.len())].to_le_bytes(), 1 << random.below(4));
            let end = bytes.len().min(at + width);
            bytes[at..end].copy_from_slice(&edge[..end - at]);
        }
        5 => {
            let from = random.below(other.len());
            let piece = other[from..].iter().take(random.below(64)).copied().collect::<Vec<u8>>();
            drop(bytes.splice(at..at, piece));
        }
        _ if !bytes.is_empty() => drop(bytes.drain(at..bytes.len().min(at + random.below(16)))),
        _ => bytes.push(random.next() as u8),
    }
    bytes.truncate(INPUT_MAX_BYTES);
}

/// Says which input it was when the target panics.
struct Named<'a>(&'a str, u64, &'a [u8]);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Named(target, number, bytes) = self;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("target {target}, input {number}: {hex}");
        }
    }
}

#[test]
fn no_target_panics_on_mutated_seeds() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        let mut random = Random(0x6B74_7374_7221);
        for number in 0..INPUTS {
            let mut bytes = seeds[number as usize % seeds.len()].clone();
            let other = &seeds[random.below(seeds.len())];
            // The seeds themselves come first.
            for _ in 0..number.min(random.next() % 16) {
                mutate(&mut random, &mut bytes, other);
            }
            let _named = Named(target.name, number, &bytes);
            (target.run)(&bytes);
        }
    }
}
