//! How true and how cheap the workload engine's numbers are: ratios against the kernel's tracepoints and other tools.
//!
//! Owns the comparisons; leaves boot times to benches/boot.
//! Invariant: prints figures and asserts nothing, because they are this machine's and this moment's; what is compared takes
//! turns, and a ratio is a median over the rounds, with the middle half of them.
//!
//! `make bench-workload`, a minute and a half; PARTS="spin timers" names some. What needs root (tracefs) or a tool that is not installed is named and left out.

mod bare;
mod tools;
mod trace;
mod turns;
mod waits;

use ktstr::proto::cpuset::CpuSet;
use ktstr::proto::report::WorkerReport;
use ktstr::proto::scenario::AffinityIntent;
use ktstr::proto::work::WorkType;
use ktstr::sys::{sched, time};
use ktstr::units::{NS_PER_MS, NS_PER_SEC, approx};
use ktstr::workload::{WorkloadConfig, WorkloadHandle, parse_workspecs};
use std::fs;
use std::hint::{black_box, spin_loop};

/// How long a load runs that is looked at once.
const RUN_NS: u64 = NS_PER_SEC;

/// All comparisons in their order, by the names that `PARTS="spin timers"` takes.
const PARTS: [(&str, fn()); 6] = [
    ("spin", spin_cost),
    ("memory", memory),
    ("thousand", thousand),
    ("trace", trace::agreement),
    ("exchanges", tools::exchange_rates),
    ("timers", tools::timers),
];

fn main() -> Result<(), String> {
    let begin = time::monotonic_ns();
    let wanted = std::env::var("PARTS").unwrap_or_default();
    if let Some(word) = wanted.split_whitespace().find(|word| PARTS.iter().all(|(name, _)| name != word)) {
        let names = PARTS.map(|(name, _)| name).join(", ");
        return Err(format!("PARTS: '{word}' is no part of this benchmark; there are {names}"));
    }
    println!("workload engine on {} CPUs", sched::online_cpus());
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.split_whitespace().any(|word| word == name) {
            part();
        }
    }
    println!("all of it took {}", approx(time::monotonic_ns() - begin));
    Ok(())
}

fn config(text: &str) -> WorkloadConfig {
    let specs = parse_workspecs(text, 1).expect("a work of this file");
    WorkloadConfig::from_specs(&specs).expect("a work of this file")
}

/// Runs for so long, lets `look` see the workers just before the stop.
fn run(config: &WorkloadConfig, ns: u64, look: impl FnOnce(&[i32])) -> Vec<WorkerReport> {
    let mut handle = WorkloadHandle::spawn(config).expect("spawn");
    handle.start().expect("start");
    pause(ns);
    look(&handle.tids());
    handle.stop_and_collect().expect("collect")
}

fn pause(ns: u64) {
    time::sleep_ns(ns).expect("sleep");
}

/// The CPU that everything runs on which is not to be moved.
fn first_cpu() -> u32 {
    sched::affinity(0).expect("own CPUs").iter().next().unwrap_or(0)
}

/// Steps per CPU nanosecond of a loop that does nothing but the steps of SpinWait.
fn bare_spin(cpu: u32, ns: u64) -> f64 {
    /// Steps between two looks at the clock: some milliseconds.
    const STEPS: u64 = 100 * 1024;
    let loops = move || {
        sched::set_affinity(0, &[cpu].into_iter().collect::<CpuSet>()).expect("pin");
        let (begin, end) = (time::thread_cpu_ns(), time::monotonic_ns() + ns);
        let mut units = 0u64;
        while time::monotonic_ns() < end {
            for _ in 0..STEPS {
                units = black_box(units.wrapping_add(1));
                spin_loop();
            }
        }
        units as f64 / (time::thread_cpu_ns() - begin) as f64
    };
    std::thread::spawn(loops).join().expect("bare loop")
}

/// SpinWait with all its telemetry, against the same steps in a bare loop on the same CPU, in CPU time.
fn spin_cost() {
    const ROUNDS: usize = 25;
    const TURN_NS: u64 = 150 * NS_PER_MS;
    let cpu = first_cpu();
    let affinity = AffinityIntent::Exact { cpus: [cpu].into_iter().collect() };
    let pinned = WorkloadConfig { affinity, ..WorkloadConfig::new(WorkType::SpinWait, 1) };
    let mut full = || {
        let report = run(&pinned, TURN_NS, |_| {}).remove(0);
        Some(report.work_units as f64 / report.cpu_time_ns as f64)
    };
    let turns = turns::take(
        ROUNDS,
        &mut [&mut full, &mut || Some(bare_spin(cpu, TURN_NS)), &mut || {
            // The same again: how well this machine at this moment can tell two equal loops apart.
            Some(bare_spin(cpu, TURN_NS))
        }],
    );
    if let (Some(full), Some(ratio), Some(noise)) = (turns.of(0), turns.ratio(0, 1), turns.ratio(2, 1)) {
        println!(
            "spin: {full} steps/ns with telemetry, ratio to a bare loop {ratio} (aim >= 0.99); bare to bare {noise}"
        );
    }
}

/// KiB of a task that would not be there without it: its private pages, and its part of what it shares with others.
fn own_kib(tid: i32) -> [u64; 2] {
    let (mut shared, mut kib) = (false, [0; 2]);
    for line in fs::read_to_string(format!("/proc/{tid}/smaps")).unwrap_or_default().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [range, permissions, ..] if range.contains('-') => shared = permissions.ends_with('s'),
            ["Private_Dirty:", count, "kB"] if !shared => kib[0] += count.parse().unwrap_or(0),
            ["Pss:", count, "kB"] if shared => kib[1] += count.parse().unwrap_or(0),
            _ => {}
        }
    }
    kib
}

/// What one worker adds, after a second of work. Page tables and the kernel's stacks are not counted.
fn memory() {
    const WORKERS: u32 = 100;
    for text in ["spin", "ping-pong", "sequence(spin 1ms, yield 1ms, io 1ms)"] {
        let mut load = config(text);
        load.num_workers = WORKERS;
        run(&load, RUN_NS, |tids| {
            let all = tids.iter().map(|tid| own_kib(*tid)).fold([0, 0], |all, one| [all[0] + one[0], all[1] + one[1]]);
            let [own, part] = all.map(|kib| kib / u64::from(WORKERS));
            println!("memory: {text}: {} KiB a worker ({own} private, {part} shared; aim < 64)", own + part);
        });
    }
}

/// A thousand workers: from the start until all have worked, and until all reports are there.
fn thousand() {
    let before = time::monotonic_ns();
    let mut handle = WorkloadHandle::spawn(&config("yield*1000")).expect("spawn");
    let spawned = time::monotonic_ns();
    handle.start().expect("start");
    while handle.snapshot_iterations().contains(&0) && time::monotonic_ns() < spawned + 60 * NS_PER_SEC {
        pause(NS_PER_MS);
    }
    let started = time::monotonic_ns();
    let reports = handle.stop_and_collect().expect("collect");
    let done = reports.iter().filter(|report| report.completed).count();
    let (spawn, start, collect) = (spawned - before, started - spawned, time::monotonic_ns() - started);
    println!(
        "1000 workers: spawned in {}, all at work {} after the start (aim < 1 s), {done} reports in {}",
        approx(spawn),
        approx(start),
        approx(collect)
    );
}
