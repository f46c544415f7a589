//! What the kernel's own events say of the same wake-ups.
//!
//! Owns a trace instance, the comparison of its wake-ups with our samples one by one, and what it costs to look from outside
//! of a call; leaves the loads to main and the reading of events to waits.
//! Invariant: the instance and its mount go when they are dropped; only what is the same wake-up for both is compared.

use crate::waits::{self, Wait, number};
use crate::{RUN_NS, config, pause};
use ktstr::proto::report::WorkerReport;
use ktstr::proto::work::SampleKind;
use ktstr::sys::{process, time};
use ktstr::units::{NS_PER_US, approx};
use ktstr::workload::{WorkloadConfig, WorkloadHandle};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Calls of a sleep that is none, and of one, to see how much longer they are for their caller than for the tracepoints.
const SLEEPS: usize = 2000;
const SLEEP_NS: u64 = 50 * NS_PER_US;

/// Two trace instances of our own in a tracefs of our own: one of what some tasks do, one of all migrations, which others may
/// cause too.
struct Trace {
    mount: PathBuf,
    dir: PathBuf,
    moves: PathBuf,
}

impl Trace {
    fn open() -> Result<Self, String> {
        let mount = std::env::temp_dir().join(format!("ktstr-tracefs-{}", process::id()));
        fs::create_dir_all(&mount).map_err(|error| error.to_string())?;
        let mounted = Command::new("mount").args(["-t", "tracefs", "none"]).arg(&mount).output();
        match mounted {
            Ok(output) if output.status.success() => {}
            _ => {
                fs::remove_dir(&mount).map_err(|error| error.to_string())?;
                return Err("tracefs cannot be mounted (root is needed)".into());
            }
        }
        let [dir, moves] = ["ktstr-bench", "ktstr-bench-moves"].map(|name| mount.join("instances").join(name));
        let trace = Self { mount, dir, moves };
        for dir in [&trace.dir, &trace.moves] {
            fs::create_dir_all(dir).map_err(|error| format!("no trace instance: {error}"))?;
        }
        let enable = trace.moves.join("events/sched/sched_migrate_task/enable");
        fs::write(enable, "1").map_err(|error| format!("cannot trace migrations: {error}"))?;
        trace.set("buffer_size_kb", "32768")?;
        trace.set("trace_clock", "x86-tsc")?;
        Ok(trace)
    }
    fn read(dir: &Path) -> Result<String, String> {
        fs::read_to_string(dir.join("trace")).map_err(|error| error.to_string())
    }
    fn set(&self, file: &str, value: &str) -> Result<(), String> {
        fs::write(self.dir.join(file), value).map_err(|error| format!("cannot write {file}: {error}"))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.dir).and(fs::remove_dir(&self.moves));
        let unmounted = Command::new("umount").arg(&self.mount).status();
        let gone = fs::remove_dir(&self.mount);
        if removed.is_err() || unmounted.is_err() || gone.is_err() {
            println!("trace: {} could not be removed", self.mount.display());
        }
    }
}

/// How long sleeps are for their caller, from one look at the clock to another.
fn sleeps(ns: u64) -> Vec<u64> {
    let one = |_| {
        let before = time::monotonic_ns();
        pause(ns);
        time::monotonic_ns() - before
    };
    (0..SLEEPS).map(one).collect()
}

/// What a call takes longer for its caller than traced: the way in, the way out, and the clock.
fn border_ns(seen: &[u64], traced: &[u64]) -> u64 {
    let mut apart: Vec<u64> = seen.iter().zip(traced).map(|(seen, traced)| seen.saturating_sub(*traced)).collect();
    apart.sort_unstable();
    apart.get(apart.len() / 2).copied().unwrap_or(0)
}

/// Our wake latency, run delay and migrations against the kernel's events and counters for the same tasks.
pub fn agreement() {
    for text in ["ping-pong(spin_iters=4096)", "pipe(burst_iters=4096)", "herd(waiters=3,inter_batch=1ms)"] {
        if let Err(why) = agree(text) {
            return println!("tracepoints: not compared: {why}");
        }
    }
}

fn agree(text: &str) -> Result<(), String> {
    let trace = Trace::open()?;
    let load = WorkloadConfig { raw_samples: true, ..config(text) };
    let mut handle = WorkloadHandle::spawn(&load).expect("spawn");
    let tids = handle.tids();
    let traced = tids.iter().copied().chain([process::thread_id()]);
    trace.set("set_event_pid", &traced.map(|tid| tid.to_string()).collect::<Vec<_>>().join(" "))?;
    for event in ["sched/sched_waking", "sched/sched_switch", "raw_syscalls/sys_enter", "raw_syscalls/sys_exit"] {
        trace.set(&format!("events/{event}/enable"), "1")?;
    }
    let mut marks = [0; 2];
    trace.set("trace_marker", "ktstr-mark")?;
    marks[0] = time::monotonic_ns();
    let slept = [0, SLEEP_NS].map(sleeps);
    handle.start().expect("start");
    pause(RUN_NS);
    let outside: u64 = tids.iter().filter_map(|tid| run_delay(*tid)).sum();
    let reports = handle.stop_and_collect().expect("collect");
    trace.set("trace_marker", "ktstr-mark")?;
    marks[1] = time::monotonic_ns();
    trace.set("tracing_on", "0")?;
    let (content, moves) = (Trace::read(&trace.dir)?, Trace::read(&trace.moves)?);
    let told = waits::read(&content, &tids, marks).ok_or("the marks are not in the trace")?;
    let (short, long) = told.sleeps.split_at(SLEEPS.min(told.sleeps.len()));
    println!(
        "{text}: for its caller a call is {} ns longer than from sys_enter to sys_exit, one that sleeps {} ns",
        border_ns(&slept[0], short),
        border_ns(&slept[1], long)
    );
    compare(text, &reports, &told.waits);
    let sum = |of: fn(&WorkerReport) -> u64| reports.iter().map(of).sum::<u64>();
    let delay = sum(|report| report.schedstat_run_delay_ns.unwrap_or(0));
    println!(
        "{text}: run delay {} against {} just before the stop; migrations {} against {} events",
        approx(delay),
        approx(outside),
        sum(|report| report.migration_count),
        moves
            .lines()
            .filter_map(|line| number(line, " pid="))
            .filter(|pid| tids.iter().any(|tid| i64::from(*tid) == *pid))
            .count()
    );
    let (own, counted) = (sum(|report| report.cpu_time_ns), sum(|report| report.schedstat_cpu_time_ns.unwrap_or(0)));
    println!(
        "{text}: CPU time {}, by schedstat {}, ratio {:.3}",
        approx(own),
        approx(counted),
        own as f64 / counted as f64
    );
    Ok(())
}

/// Pairs the samples of a worker with its waits, in order. A few waits give none: those that the stop ended, and those whose
/// waker took its stamp just before the worker began to wait. Which they are is what leaves the least difference in all; none
/// where they are more than one in a hundred.
fn align<'a>(mine: &[u64], theirs: &'a [Wait]) -> Option<Vec<(u64, &'a Wait)>> {
    let left_out = theirs.len().checked_sub(mine.len()).filter(|count| *count <= 2 + theirs.len() / 100)?;
    // The least difference up to a sample where so many waits before it are left out, and how many were at the sample before.
    let mut least = vec![0; left_out + 1];
    let mut before = Vec::with_capacity(mine.len());
    for (at, sample) in mine.iter().enumerate() {
        let (mut best, mut from) = (u64::MAX, 0);
        let mut steps = Vec::with_capacity(least.len());
        for (out, so_far) in least.iter_mut().enumerate() {
            if *so_far < best {
                (best, from) = (*so_far, out);
            }
            *so_far = best + sample.abs_diff(theirs[at + out].call.unwrap_or(0));
            steps.push(from);
        }
        before.push(steps);
    }
    let mut out = (0..=left_out).min_by_key(|out| least[*out])?;
    let mut pairs = Vec::with_capacity(mine.len());
    for at in (0..mine.len()).rev() {
        pairs.push((mine[at], &theirs[at + out]));
        out = before[at][out];
    }
    pairs.reverse();
    Some(pairs)
}

/// Our samples against the kernel's account of the very same waits: both in the order in which the worker had them.
fn compare(text: &str, reports: &[WorkerReport], waits: &HashMap<i32, Vec<Wait>>) {
    let mut pairs = Vec::new();
    let (mut samples, mut without) = (0, 0);
    for report in reports {
        let (mine, theirs) = (report.raw_ns(SampleKind::Wake), waits.get(&report.tid).map_or(&[][..], Vec::as_slice));
        samples += mine.len();
        // Who only wakes others waits for timers, without samples.
        if mine.is_empty() {
            continue;
        }
        match align(mine, theirs) {
            Some(found) => {
                without += theirs.len() - found.len();
                pairs.extend(found);
            }
            None => {
                let (mine, theirs) = (mine.len(), theirs.len());
                println!("{text}: a worker has {mine} samples of {theirs} waits that a wake ended: not compared");
            }
        }
    }
    let asleep = |wait: &Wait| wait.switch.is_some();
    let awake = pairs.iter().filter(|(_, wait)| !asleep(wait) && wait.call.is_some()).count();
    let early = pairs.iter().filter(|(_, wait)| wait.call.is_none()).count();
    println!(
        "{text}: {} wake-ups of {samples} samples compared one by one: {awake} came before the sleeper was off its CPU, {early} \
         before it was asleep; {without} gave no sample",
        pairs.len()
    );
    type Theirs = fn(&Wait) -> Option<u64>;
    let ways: [(&str, Theirs); 3] = [
        ("sched_waking to sched_switch", |wait| wait.switch),
        ("call to return, switched in", |wait| wait.call.filter(|_| wait.switch.is_some())),
        ("call to return, not switched", |wait| wait.call.filter(|_| wait.switch.is_none())),
    ];
    for (name, of) in ways {
        let both: Vec<(u64, u64)> = pairs.iter().filter_map(|(mine, wait)| Some((*mine, of(wait)?))).collect();
        let sorted = |mut list: Vec<u64>| {
            list.sort_unstable();
            list
        };
        let mine = sorted(both.iter().map(|(mine, _)| *mine).collect());
        let theirs = sorted(both.iter().map(|(_, theirs)| *theirs).collect());
        let apart = sorted(both.iter().map(|(mine, theirs)| mine.saturating_sub(*theirs)).collect());
        for (part, percent) in [("p50", 50), ("p90", 90), ("p99", 99)] {
            let at = |list: &[u64]| list.get((list.len() * percent).div_ceil(100).saturating_sub(1)).copied();
            if let (Some(mine), Some(theirs), Some(apart)) = (at(&mine), at(&theirs), at(&apart)) {
                println!(
                    "{text}: {name}, {} pairs, {part}: ours {}, theirs {}, ratio {:.2}; {part} of what a pair is apart {} ns",
                    both.len(),
                    approx(mine),
                    approx(theirs),
                    mine as f64 / theirs.max(1) as f64,
                    apart,
                );
            }
        }
    }
}

/// Field 2 of a task's schedstat.
fn run_delay(tid: i32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{tid}/schedstat")).ok()?.split(' ').nth(1)?.parse().ok()
}
