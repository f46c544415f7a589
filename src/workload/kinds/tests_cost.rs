//! What a worker costs in memory, and that a thousand of them begin and report.
//!
//! Owns these tests; leaves costs in time to benches/workload, because no time decides green or red.
//! Invariant: what is measured is forked from a process with one thread, whose memory no other test writes meanwhile.

use super::tests::*;
use crate::not_run::not_run;
use crate::sys::mmap::Mapping;
use crate::sys::{process, time};
use crate::units::NS_PER_SEC;
use crate::workload::WorkloadHandle;
use std::sync::atomic::Ordering;

/// Bytes of one worker that would not be there without it: its private pages (its copies of its parent's among them), and its
/// part of the memory shared with the others. Page tables and the kernel's stack are the kernel's.
pub fn own_bytes(tid: i32) -> u64 {
    let (mut shared, mut kilobytes) = (false, 0);
    for line in proc_file(tid, "smaps").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // A mapping's first line: range and permissions, which end in s or p.
            [range, permissions, ..] if range.contains('-') => shared = permissions.ends_with('s'),
            ["Private_Dirty:", count, "kB"] if !shared => kilobytes += count.parse::<u64>().unwrap(),
            ["Pss:", count, "kB"] if shared => kilobytes += count.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    kilobytes << 10
}

/// Runs in a forked child, which is alone in its memory; the words it returns are handed to the caller.
pub fn alone<const N: usize>(job: impl FnOnce() -> [u64; N]) -> [u64; N] {
    let told = Mapping::shared_anonymous(N * 8).unwrap();
    let child = match process::fork().unwrap() {
        process::Fork::Parent(pid) => pid,
        process::Fork::Child => {
            for (word, value) in told.words().iter().zip(job()) {
                word.store(value, Ordering::Relaxed);
            }
            process::exit_now(0);
        }
    };
    assert_eq!(process::wait(child, true).unwrap(), Some((child, process::End::Exited(0))));
    std::array::from_fn(|at| told.words()[at].load(Ordering::Relaxed))
}

/// What any forked process costs, with this C library: it sleeps, and does nothing else.
fn bare_fork_bytes() -> u64 {
    let child = match process::fork().unwrap() {
        process::Fork::Parent(pid) => pid,
        process::Fork::Child => loop {
            time::sleep_ns(NS_PER_SEC).unwrap();
        },
    };
    wait_for("the child's sleep", || in_call(child).is_some() || proc_file(child, "stat").contains(") S "));
    let bytes = own_bytes(child);
    process::kill(child, libc::SIGKILL).unwrap();
    process::wait(child, true).unwrap();
    bytes
}

#[test]
fn worker_costs_less_than_64_kib_beyond_its_buffer() {
    /// The bound that the engine promises, in the static binary.
    const MOST_BYTES: u64 = 64 << 10;
    /// The engine's own part of it: the histograms of three kinds, and a few pages of stack, which is larger in unoptimised code.
    const MOST_OWN_BYTES: u64 = 48 << 10;
    const WORKERS: u64 = 40;
    if proc_file(process::id(), "smaps").is_empty() {
        return not_run("this kernel shows no smaps");
    }
    for text in ["spin*40", "pipe*20", "ping-pong*20", "fan-out*8", "sequence(spin 1ms, sleep 1ms, yield 1ms)*40"] {
        let config = one_group(text);
        let [bare, all, done] = alone(|| {
            let bare = bare_fork_bytes();
            let mut handle = WorkloadHandle::spawn(&config).unwrap();
            handle.start().unwrap();
            // Enough for latencies of all sizes to have left their traces in the histograms.
            wait_for("progress", || handle.snapshot_iterations().iter().all(|done| *done > 20));
            let all = handle.tids().iter().map(|tid| own_bytes(*tid)).sum();
            [bare, all, handle.stop_and_collect().unwrap().iter().filter(|report| report.completed).count() as u64]
        });
        assert_eq!(done, WORKERS, "{text}");
        let each = all / WORKERS;
        println!("{text}: {} KiB a worker, {} KiB a bare fork", each >> 10, bare >> 10);
        assert!(
            bare > 0 && each > bare && each - bare < MOST_OWN_BYTES,
            "{text}: {each} bytes a worker, {bare} a bare fork"
        );
        // Another C library's fork writes more than half of it: its locks, its lists of threads.
        assert!(each < MOST_BYTES || !cfg!(target_env = "musl"), "{text}: {each} bytes a worker");
    }
}

#[test]
fn a_thousand_workers_all_begin_and_report() {
    let config = one_group("yield*1000");
    let [begun, reported] = alone(|| {
        let mut handle = WorkloadHandle::spawn(&config).unwrap();
        handle.start().unwrap();
        wait_for("all at work", || handle.snapshot_iterations().iter().all(|done| *done > 0));
        let begun = handle.snapshot_iterations().len() as u64;
        [begun, handle.stop_and_collect().unwrap().iter().filter(|report| report.completed).count() as u64]
    });
    assert_eq!((begun, reported), (1000, 1000));
}
