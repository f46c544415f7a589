//! Types whose subject is the execution units: AluHot, SmtSiblingSpin, IpcVariance.
//!
//! Owns the multiply chains in each width and their loops; leaves the choice of cores to affinity.
//! Invariant: a width is used only where the CPU has it; the result of a chain is used, so none of it is optimised away.

#![allow(unsafe_code)]

use super::{Task, cpu};
use crate::proto::work::{AluWidth, Word};
use crate::sys::mmap::Mapping;
use std::hint::black_box;
use std::sync::atomic::Ordering;

/// Place of the one sample kind of each type here.
const ONLY: usize = 0;
/// Steps of one iteration of AluHot.
const CHAIN_STEPS: u64 = 1024;
/// What the cold part of IpcVariance walks: more than a first-level cache, less than most second-level ones hold.
const COLD_BYTES: usize = 512 << 10;
/// An odd multiplier, so that no stream becomes zero (Knuth's MMIX generator).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

/// The width that is used where this one is asked for.
pub fn available(asked: AluWidth) -> AluWidth {
    let best = widest();
    match asked {
        AluWidth::Widest => best,
        other => other.min(best),
    }
}

#[cfg(target_arch = "x86_64")]
fn widest() -> AluWidth {
    if std::is_x86_feature_detected!("avx512f") {
        AluWidth::Vec512
    } else if std::is_x86_feature_detected!("avx2") {
        AluWidth::Vec256
    } else {
        // SSE2 is part of x86-64.
        AluWidth::Vec128
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn widest() -> AluWidth {
    AluWidth::Scalar
}

/// Four independent streams of `steps` multiplications each, in registers of this width. Returns what came out.
pub fn alu_hot_chain(width: AluWidth, steps: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    match width {
        AluWidth::Vec512 => return vector512(steps),
        AluWidth::Vec256 => return vector256(steps),
        AluWidth::Vec128 => return vector128(steps),
        AluWidth::Scalar | AluWidth::Widest => {}
    }
    let mut streams = black_box([1u64, 3, 5, 7]);
    for _ in 0..steps {
        for stream in &mut streams {
            *stream = black_box(stream.wrapping_mul(MULTIPLIER));
        }
    }
    streams.iter().fold(0, |all, stream| all ^ stream)
}

/// Numbers in a register of the widest kind.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 8;

/// The loop of one vector width, and the sum of all lanes of all streams: the registers' letter, and what clears them.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_chain {
    ($name:ident, $load:literal, $multiply:literal, $spread:literal, $store:literal, $r:literal, $end:literal) => {
        fn $name(steps: u64) -> u64 {
            let mut lanes = [0u64; LANES];
            let mut left: u64;
            // SAFETY: `available` chose a width that the CPU has; only the named registers and `lanes`, which holds the widest,
            // are touched, and the upper halves are cleared at the end where there are any.
            unsafe {
                std::arch::asm!(
                    concat!($load, " xmm4, {multiplier}"),
                    concat!($spread, " ", $r, "mm4, xmm4"),
                    concat!($spread, " ", $r, "mm0, xmm4"),
                    concat!($spread, " ", $r, "mm1, xmm4"),
                    concat!($spread, " ", $r, "mm2, xmm4"),
                    concat!($spread, " ", $r, "mm3, xmm4"),
                    "2:",
                    concat!($multiply, " ", $r, "mm0, ", $r, "mm0, ", $r, "mm4"),
                    concat!($multiply, " ", $r, "mm1, ", $r, "mm1, ", $r, "mm4"),
                    concat!($multiply, " ", $r, "mm2, ", $r, "mm2, ", $r, "mm4"),
                    concat!($multiply, " ", $r, "mm3, ", $r, "mm3, ", $r, "mm4"),
                    "dec {left}",
                    "jnz 2b",
                    concat!("vpaddq ", $r, "mm0, ", $r, "mm0, ", $r, "mm1"),
                    concat!("vpaddq ", $r, "mm2, ", $r, "mm2, ", $r, "mm3"),
                    concat!("vpaddq ", $r, "mm0, ", $r, "mm0, ", $r, "mm2"),
                    concat!($store, " [{out}], ", $r, "mm0"),
                    $end,
                    multiplier = in(reg) MULTIPLIER,
                    left = inout(reg) steps.max(1) => left,
                    out = in(reg) lanes.as_mut_ptr(),
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                    options(nostack),
                );
            }
            lanes.iter().fold(left, |sum, lane| sum.wrapping_add(*lane))
        }
    };
}
#[cfg(target_arch = "x86_64")]
vector_chain!(vector512, "vmovq", "vpmuludq", "vpbroadcastq", "vmovdqu64", "z", "vzeroupper");
#[cfg(target_arch = "x86_64")]
vector_chain!(vector256, "vmovq", "vpmuludq", "vpbroadcastq", "vmovdqu", "y", "vzeroupper");

/// The same with SSE2, whose instructions take two operands.
#[cfg(target_arch = "x86_64")]
fn vector128(steps: u64) -> u64 {
    let mut lanes = [0u64; LANES];
    let mut left: u64;
    // SAFETY: SSE2 is part of x86-64; only the named registers and the first two of `lanes` are touched.
    unsafe {
        std::arch::asm!(
            "movq xmm4, {multiplier}",
            "punpcklqdq xmm4, xmm4",
            "movdqa xmm0, xmm4",
            "movdqa xmm1, xmm4",
            "movdqa xmm2, xmm4",
            "movdqa xmm3, xmm4",
            "2:",
            "pmuludq xmm0, xmm4",
            "pmuludq xmm1, xmm4",
            "pmuludq xmm2, xmm4",
            "pmuludq xmm3, xmm4",
            "dec {left}",
            "jnz 2b",
            "paddq xmm0, xmm1",
            "paddq xmm2, xmm3",
            "paddq xmm0, xmm2",
            "movdqu [{out}], xmm0",
            multiplier = in(reg) MULTIPLIER,
            left = inout(reg) steps.max(1) => left,
            out = in(reg) lanes.as_mut_ptr(),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
            options(nostack),
        );
    }
    lanes.iter().fold(left, |sum, lane| sum.wrapping_add(*lane))
}

pub fn alu_hot(task: &mut Task<'_>, asked: AluWidth) {
    let width = task.birth.means.width.unwrap_or(AluWidth::Scalar);
    if asked != AluWidth::Widest && asked != width {
        task.notice(format_args!("width lowered from {} to {}: the CPU has no more", asked.word(), width.word()));
    } else {
        task.notice(format_args!("width {}", width.word()));
    }
    let mut before = task.sampler.tick();
    while !task.stopped() {
        black_box(alu_hot_chain(width, CHAIN_STEPS));
        let after = task.sampler.tick();
        task.sampler.record(ONLY, after.saturating_sub(before));
        task.units += CHAIN_STEPS;
        task.iteration_done();
        before = after;
    }
}

pub fn smt_sibling_spin(task: &mut Task<'_>) {
    let mut before = task.sampler.tick();
    while !task.stopped() {
        cpu::spin_burst(&mut task.units, super::BURST_STEPS);
        let after = task.sampler.tick();
        task.sampler.record(ONLY, after.saturating_sub(before));
        task.iteration_done();
        before = after;
    }
}

pub fn ipc_variance(task: &mut Task<'_>, hot_iters: u64, cold_iters: u64, period_iters: u64) {
    let memory = match Mapping::private_anonymous(COLD_BYTES) {
        Ok(memory) => memory,
        Err(error) => task.fail("map its buffer", &error),
    };
    let words = memory.words();
    while !task.stopped() {
        let before = task.sampler.tick();
        for _ in 0..period_iters {
            // What the stop cut short is no sample.
            if task.stopped() {
                return;
            }
            let mut left = hot_iters;
            while left > 0 && !task.stopped() {
                let part = left.min(CHAIN_STEPS);
                black_box(alu_hot_chain(AluWidth::Scalar, part));
                task.units += part;
                left -= part;
                task.sampler.tick();
            }
            let mut left = cold_iters;
            while left > 0 && !task.stopped() {
                let part = left.min(CHAIN_STEPS);
                for _ in 0..part {
                    let word = &words[task.rng.below(words.len() as u64) as usize];
                    word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
                }
                task.units += part;
                left -= part;
                task.sampler.tick();
            }
        }
        if task.stopped() {
            return;
        }
        let after = task.sampler.tick();
        task.sampler.record(ONLY, after.saturating_sub(before));
        task.iteration_done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What pmuludq makes of a lane: the product of the low halves.
    fn model(steps: u64) -> u64 {
        (0..steps).fold(MULTIPLIER, |lane, _| (lane & 0xFFFF_FFFF) * (MULTIPLIER & 0xFFFF_FFFF))
    }

    #[test]
    fn every_width_the_cpu_has_computes_its_chain() {
        #[cfg(target_arch = "x86_64")]
        for (width, lanes) in [(AluWidth::Vec128, 2), (AluWidth::Vec256, 4), (AluWidth::Vec512, 8)] {
            if available(width) == width {
                // Four streams of so many numbers each: one that is not computed is missing from the sum.
                assert_eq!(alu_hot_chain(width, 7), model(7).wrapping_mul(4 * lanes), "{width:?}");
            }
        }
        let scalar = |steps: i32| {
            let one = |seed: u64| (0..steps).fold(seed, |value, _| value.wrapping_mul(MULTIPLIER));
            one(1) ^ one(3) ^ one(5) ^ one(7)
        };
        assert_eq!(alu_hot_chain(AluWidth::Scalar, 9), scalar(9));
        assert_eq!(available(AluWidth::Scalar), AluWidth::Scalar);
        assert_eq!(available(AluWidth::Widest), widest());
        assert!(available(AluWidth::Vec512) <= widest());
    }
}
