//! libFuzzer over the project's targets: one program, the target named by `KTSTR_FUZZ_TARGET`.
//!
//! Owns choosing the target and writing its seeds into the corpus `KTSTR_FUZZ_CORPUS`; leaves the targets to
//! ktstr::hostile.
//! Invariant: an unknown name ends the program before it fuzzes anything.

#![no_main]

use ktstr::hostile::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("KTSTR_FUZZ_TARGET").unwrap_or_default();
    let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("KTSTR_FUZZ_TARGET is one of {known:?}"))
});

fn write_seeds() {
    let Some(corpus) = std::env::var_os("KTSTR_FUZZ_CORPUS").map(PathBuf::from) else { return };
    for (number, seed) in (TARGET.seeds)().into_iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{number}")), seed).expect("write a seed");
    }
}

fuzz_target!(init: write_seeds(), |data: &[u8]| (TARGET.run)(data));
