//! What the kernel's own events say of the same wake-ups.
//!
//! Owns a trace instance and the reading of it, and what it costs to look from outside of a call; leaves the loads to main.
//! Invariant: the instance and its mount go when they are dropped.

use crate::{RUN_NS, config, pause};
use ktstr::proto::hist::Hist;
use ktstr::proto::report::WorkerReport;
use ktstr::proto::work::SampleKind;
use ktstr::sys::{process, time};
use ktstr::units::{NS_PER_US, approx};
use ktstr::workload::WorkloadHandle;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Calls of a sleep that is none, and of one, to see how much longer they are for their caller than for the tracepoints.
const SLEEPS: usize = 2000;
const SLEEP_NS: u64 = 50 * NS_PER_US;
/// clock_nanosleep(2) on x86-64, as `raw_syscalls:sys_enter` shows it.
const SLEEP_CALL: &str = "NR 230 ";

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

/// `field=number` of a trace line.
pub fn number(line: &str, field: &str) -> Option<i64> {
    let rest = &line[line.find(field)? + field.len()..];
    rest.split(|c: char| !c.is_ascii_digit() && c != '-').next()?.parse().ok()
}

/// What the kernel's own events say of these tasks.
#[derive(Default)]
struct Told {
    /// sched_waking to sched_switch.
    wakes: Hist,
    /// From the waker's entry into its call to the wakee's return from its own: what two processes can see.
    calls: Hist,
    /// The sleeps of the benchmark itself in their order, from entry to return.
    sleeps: Vec<u64>,
}

fn read_trace(text: &str, tids: &[i32], marks: [u64; 2]) -> Option<Told> {
    let mut lines = Vec::new();
    let mut marked = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, event)) = line.split_once(": ") else { continue };
        let Some(tsc) = head.split_whitespace().last().and_then(|word| word.parse::<u64>().ok()) else { continue };
        if event.contains("ktstr-mark") {
            marked.push(tsc);
        } else {
            // `NAME-PID [CPU] FLAGS TIME`; the name may hold dashes, and no blank.
            let current = head.split_whitespace().next().and_then(|task| task.rsplit('-').next()?.parse::<i64>().ok());
            lines.push((tsc, current.unwrap_or(-1), event));
        }
    }
    let [first, last] = marked[..] else { return None };
    let ns_per_tick = (marks[1] - marks[0]) as f64 / (last - first) as f64;
    let ns = |from: u64, until: u64| ((until - from) as f64 * ns_per_tick) as u64;
    // When a task entered its call; when another was woken, and from which call; which call's wake has switched it in.
    let mut entered: HashMap<i64, u64> = HashMap::new();
    let mut waking: HashMap<i64, (u64, Option<u64>)> = HashMap::new();
    let mut running: HashMap<i64, u64> = HashMap::new();
    let mut told = Told::default();
    let own = i64::from(process::id());
    let ours = |pid: i64| tids.iter().any(|tid| i64::from(*tid) == pid);
    for (tsc, current, event) in lines {
        if event.starts_with("sys_enter") {
            // Of the benchmark itself only the calls that it times too.
            if current != own || event.contains(SLEEP_CALL) {
                entered.insert(current, tsc);
            }
        } else if event.starts_with("sys_exit") {
            if let Some(begin) = entered.remove(&current).filter(|_| current == own) {
                told.sleeps.push(ns(begin, tsc));
            }
            if let Some(call) = running.remove(&current) {
                told.calls.record(ns(call, tsc));
            }
        } else if event.starts_with("sched_waking") {
            if let Some(pid) = number(event, " pid=").filter(|pid| ours(*pid)) {
                waking.entry(pid).or_insert((tsc, entered.get(&current).copied()));
            }
        } else if event.starts_with("sched_switch") {
            let next = number(event, "next_pid=");
            if let Some((pid, (begin, call))) = next.and_then(|pid| Some((pid, waking.remove(&pid)?))) {
                told.wakes.record(ns(begin, tsc));
                running.extend(call.map(|call| (pid, call)));
            }
        }
    }
    Some(told)
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
    let mut handle = WorkloadHandle::spawn(&config(text)).expect("spawn");
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
    // Who only wakes others is itself woken by timers, which is another latency.
    let sampled = reports.iter().filter(|report| report.hist(SampleKind::Wake).is_some_and(|hist| hist.count() > 0));
    let wakees: Vec<i32> = sampled.map(|report| report.tid).collect();
    let told = read_trace(&content, &wakees, marks).ok_or("the marks are not in the trace")?;
    let mut ours = Hist::new();
    reports.iter().filter_map(|report| report.hist(SampleKind::Wake)).for_each(|hist| ours.merge(hist));
    let (short, long) = told.sleeps.split_at(SLEEPS.min(told.sleeps.len()));
    println!(
        "{text}: for its caller a call is {} ns longer than from sys_enter to sys_exit, one that sleeps {} ns",
        border_ns(&slept[0], short),
        border_ns(&slept[1], long)
    );
    for (name, part) in [("p50", 5000), ("p90", 9000), ("p99", 9900)] {
        let all = [&ours, &told.wakes, &told.calls].map(|hist| hist.percentile_ns(part));
        if let [Some(mine), Some(theirs), Some(calls)] = all {
            let ratio = |to: u64| mine as f64 / to.max(1) as f64;
            println!(
                "{text}: wake {name}: ours {}, sched_waking to sched_switch {}, ratio {:.2}; call to return {}, ratio {:.2}, \
                 {} ns apart",
                approx(mine),
                approx(theirs),
                ratio(theirs),
                approx(calls),
                ratio(calls),
                mine.saturating_sub(calls),
            );
        }
    }
    let sum = |of: fn(&WorkerReport) -> u64| reports.iter().map(of).sum::<u64>();
    let delay = sum(|report| report.schedstat_run_delay_ns.unwrap_or(0));
    println!(
        "{text}: {} samples of {} wake-ups; run delay {} against {} just before the stop; migrations {} against {} events",
        ours.count(),
        told.wakes.count(),
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

/// Field 2 of a task's schedstat.
fn run_delay(tid: i32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{tid}/schedstat")).ok()?.split(' ').nth(1)?.parse().ok()
}
