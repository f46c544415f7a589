//! How true and how cheap the workload engine's numbers are: ratios against the kernel's tracepoints and other tools.
//!
//! Owns the comparisons; leaves boot times to benches/boot.
//! Invariant: prints figures and asserts nothing, because they are this machine's and this moment's.
//!
//! `make bench-workload`. What needs root (tracefs) or a tool that is not installed is named and left out.

mod bare;

use ktstr::proto::cpuset::CpuSet;
use ktstr::proto::hist::Hist;
use ktstr::proto::plan::SchedPolicy;
use ktstr::proto::report::WorkerReport;
use ktstr::proto::scenario::AffinityIntent;
use ktstr::proto::work::{SampleKind, WorkType};
use ktstr::sys::{process, sched, time};
use ktstr::units::{NS_PER_MS, NS_PER_SEC, approx};
use ktstr::workload::{WorkloadConfig, WorkloadHandle, parse_workspecs};
use std::collections::HashMap;
use std::fs;
use std::hint::{black_box, spin_loop};
use std::path::PathBuf;
use std::process::Command;

/// How long each load runs.
const RUN_NS: u64 = NS_PER_SEC;

fn main() {
    println!("workload engine on {} CPUs", sched::online_cpus());
    spin_cost();
    memory();
    thousand();
    agreement();
    exchange_rates();
    timers();
}

fn config(text: &str) -> WorkloadConfig {
    let specs = parse_workspecs(text, 1).expect("a work of this file");
    WorkloadConfig::from_specs(&specs).expect("a work of this file")
}

/// Runs for `RUN_NS`, lets `look` see the workers just before the stop.
fn run(config: &WorkloadConfig, look: impl FnOnce(&[i32])) -> Vec<WorkerReport> {
    let mut handle = WorkloadHandle::spawn(config).expect("spawn");
    handle.start().expect("start");
    pause(RUN_NS);
    look(&handle.tids());
    handle.stop_and_collect().expect("collect")
}

fn pause(ns: u64) {
    time::sleep_ns(ns).expect("sleep");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Steps per CPU second of SpinWait with all its telemetry, against the same steps in a bare loop on the same CPU.
fn spin_cost() {
    const ROUNDS: usize = 5;
    let cpu = sched::affinity(0).expect("own CPUs").iter().next().unwrap_or(0);
    let one: CpuSet = [cpu].into_iter().collect();
    let (mut bare, mut full) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let own = one.clone();
        let thread = std::thread::spawn(move || {
            sched::set_affinity(0, &own).expect("pin");
            let (begin, end) = (time::thread_cpu_ns(), time::monotonic_ns() + RUN_NS / 2);
            let mut units = 0u64;
            while time::monotonic_ns() < end {
                // A hundred bursts between two looks at the clock: nothing but the steps.
                for _ in 0..100 * 1024 {
                    units = black_box(units.wrapping_add(1));
                    spin_loop();
                }
            }
            units as f64 / (time::thread_cpu_ns() - begin) as f64
        });
        bare.push(thread.join().expect("bare loop"));
        let affinity = AffinityIntent::Exact { cpus: one.clone() };
        let pinned = WorkloadConfig { affinity, ..WorkloadConfig::new(WorkType::SpinWait, 1) };
        let report = run(&pinned, |_| {}).remove(0);
        full.push(report.work_units as f64 / report.cpu_time_ns as f64);
    }
    let (bare, full) = (median(bare), median(full));
    println!("spin: {full:.4} steps/ns with telemetry, {bare:.4} bare, ratio {:.4} (aim >= 0.99)", full / bare);
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
        run(&load, |tids| {
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

/// A trace instance of our own in a tracefs of our own; both go when this is dropped.
struct Trace {
    mount: PathBuf,
    dir: PathBuf,
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
        let dir = mount.join("instances/ktstr-bench");
        let trace = Self { mount, dir };
        fs::create_dir_all(&trace.dir).map_err(|error| format!("no trace instance: {error}"))?;
        trace.set("buffer_size_kb", "32768")?;
        trace.set("trace_clock", "x86-tsc")?;
        Ok(trace)
    }
    fn set(&self, file: &str, value: &str) -> Result<(), String> {
        fs::write(self.dir.join(file), value).map_err(|error| format!("cannot write {file}: {error}"))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.dir);
        let unmounted = Command::new("umount").arg(&self.mount).status();
        let gone = fs::remove_dir(&self.mount);
        if removed.is_err() || unmounted.is_err() || gone.is_err() {
            println!("trace: {} could not be removed", self.mount.display());
        }
    }
}

/// `field=number` of a trace line.
fn number(line: &str, field: &str) -> Option<i64> {
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
    migrations: u64,
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
    let ours = |pid: i64| tids.iter().any(|tid| i64::from(*tid) == pid);
    for (tsc, current, event) in lines {
        if event.starts_with("sys_enter") {
            entered.insert(current, tsc);
        } else if event.starts_with("sys_exit") {
            entered.remove(&current);
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
        } else if event.starts_with("sched_migrate_task") {
            told.migrations += u64::from(number(event, " pid=").is_some_and(ours));
        }
    }
    Some(told)
}

/// Our wake latency, run delay and migrations against the kernel's events and counters for the same tasks.
fn agreement() {
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
    let list = tids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ");
    trace.set("set_event_pid", &list)?;
    for event in [
        "sched/sched_waking",
        "sched/sched_switch",
        "sched/sched_migrate_task",
        "raw_syscalls/sys_enter",
        "raw_syscalls/sys_exit",
    ] {
        trace.set(&format!("events/{event}/enable"), "1")?;
    }
    let mut marks = [0; 2];
    trace.set("trace_marker", "ktstr-mark")?;
    marks[0] = time::monotonic_ns();
    handle.start().expect("start");
    pause(RUN_NS);
    let outside: u64 = tids.iter().filter_map(|tid| run_delay(*tid)).sum();
    let reports = handle.stop_and_collect().expect("collect");
    trace.set("trace_marker", "ktstr-mark")?;
    marks[1] = time::monotonic_ns();
    trace.set("tracing_on", "0")?;
    let content = fs::read_to_string(trace.dir.join("trace")).map_err(|error| error.to_string())?;
    // Who only wakes others is itself woken by timers, which is another latency.
    let sampled = reports.iter().filter(|report| report.hist(SampleKind::Wake).is_some_and(|hist| hist.count() > 0));
    let wakees: Vec<i32> = sampled.map(|report| report.tid).collect();
    let told = read_trace(&content, &wakees, marks).ok_or("the marks are not in the trace")?;
    let mut ours = Hist::new();
    reports.iter().filter_map(|report| report.hist(SampleKind::Wake)).for_each(|hist| ours.merge(hist));
    for (name, part) in [("p50", 5000), ("p90", 9000), ("p99", 9900)] {
        let all = [&ours, &told.wakes, &told.calls].map(|hist| hist.percentile_ns(part));
        if let [Some(mine), Some(theirs), Some(calls)] = all {
            let [near, same] = [theirs, calls].map(|other| mine as f64 / other as f64);
            println!(
                "{text}: wake {name}: ours {}, sched_waking to sched_switch {}, ratio {near:.2}; call to return {}, ratio {same:.2}",
                approx(mine),
                approx(theirs),
                approx(calls),
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
        told.migrations
    );
    Ok(())
}

/// Field 2 of a task's schedstat.
fn run_delay(tid: i32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{tid}/schedstat")).ok()?.split(' ').nth(1)?.parse().ok()
}

/// The output of a tool; none where it is not installed or fails.
fn tool(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    if output.is_none() {
        println!("{program}: not compared: it is not installed, or it failed");
    }
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Exchanges a second of the pair types, against `perf bench sched pipe` and against bare pairs that make the same calls, all on
/// one CPU, where placement decides nothing, and in the FIFO class, where the load of others decides nothing.
fn exchange_rates() {
    const ROUNDS: usize = 3;
    const LOOPS: u32 = 100_000;
    let cpu = sched::affinity(0).expect("own CPUs").iter().next().unwrap_or(0);
    let real_time = bare::may_be_real_time();
    println!("exchanges on CPU {cpu}, {}:", if real_time { "SCHED_FIFO" } else { "normal class, no right to FIFO" });
    let (cpu_text, loops) = (cpu.to_string(), LOOPS.to_string());
    let mut words = vec!["-c", &cpu_text];
    if real_time {
        words.extend(["chrt", "-f", "10"]);
    }
    words.extend(["perf", "bench", "-f", "simple", "sched", "pipe", "-l", &loops]);
    let perf: Vec<f64> = (0..ROUNDS)
        .map_while(|_| tool("taskset", &words)?.trim().parse::<f64>().ok())
        .map(|seconds| f64::from(LOOPS) / seconds)
        .collect();
    let theirs = (!perf.is_empty()).then(|| median(perf));
    for (text, way) in [
        ("pipe(burst_iters=1)", bare::Way::Pipe),
        ("ping-pong(spin_iters=1)", bare::Way::Futex),
        ("wake-chain(depth=2,work_per_hop=1ns)", bare::Way::Chain),
    ] {
        let sched_policy = match real_time {
            true => SchedPolicy::Fifo { priority: bare::PRIORITY },
            false => SchedPolicy::Normal,
        };
        let load = WorkloadConfig { affinity: AffinityIntent::SingleCpu, sched_policy, ..config(text) };
        let (mut ours, mut same) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let report = run(&load, |_| {}).remove(0);
            ours.push(report.iterations as f64 * NS_PER_SEC as f64 / report.wall_time_ns as f64);
            same.push(bare::rate(way, cpu, real_time));
        }
        let (ours, same) = (median(ours), median(same));
        let against = theirs.map_or(String::new(), |theirs| {
            format!(", perf bench sched pipe {theirs:.0}/s, ratio {:.2}", ours / theirs)
        });
        // What is between them is the telemetry, and a look at the stop word.
        let apart = 1e9 / ours - 1e9 / same;
        println!(
            "{text}: {ours:.0}/s; the same calls bare {same:.0}/s, ratio {:.2}, {apart:.0} ns an exchange{against}",
            ours / same
        );
    }
    // One message a byte, from one sender to one receiver, who does not answer: several go with one wake-up.
    let said = tool("hackbench", &["-p", "-g", "1", "-f", "1", "-s", "1", "-l", "100000"]);
    let seconds = said.and_then(|text| text.lines().find_map(|line| line.strip_prefix("Time: ")?.trim().parse().ok()));
    if let Some(seconds) = seconds.filter(|seconds: &f64| *seconds > 0.0) {
        println!("hackbench -p -g 1 -f 1 -s 1: {:.0} messages/s, unanswered", 100_000.0 / seconds);
    }
}

/// Oversleep of IdleChurn against cyclictest with the same sleep, class and timer slack: the precise one in the FIFO class, where
/// slack does not count; the other one in the normal class, where both have the usual 50 us.
fn timers() {
    const ROUNDS: usize = 3;
    let real_time = bare::may_be_real_time();
    for (text, class) in [
        ("idle-churn(burst=1us,sleep=1ms,precise_timing=true)*1 policy=fifo:10", &["-p", "10", "--policy=fifo"]),
        ("idle-churn(burst=1us,sleep=1ms)*1", &["-p", "0", "--policy=other"]),
    ] {
        if text.contains("fifo") && !real_time {
            println!("{text}: not compared: no right to a real-time class");
            continue;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let reports = run(&config(text), |_| {});
            ours.extend(reports[0].hist(SampleKind::Timer).and_then(Hist::mean_ns).map(|ns| ns as f64));
            // Without its tuning of idle states, which IdleChurn leaves as they are; in nanoseconds.
            let common = ["-q", "-N", "-i", "1000", "-l", "1000", "-t", "1", "--default-system"];
            let Some(said) = tool("cyclictest", &[&common[..], &class[..]].concat()) else { break };
            theirs.extend(number(&said.replace(' ', ""), "Avg:").map(|ns| ns as f64));
        }
        match (ours.is_empty(), theirs.is_empty()) {
            (false, false) => {
                let (ours, theirs) = (median(ours), median(theirs));
                let told = [ours, theirs].map(|ns| approx(ns as u64));
                println!(
                    "{text}: oversleep {} on average, cyclictest {}, ratio {:.2}",
                    told[0],
                    told[1],
                    ours / theirs
                );
            }
            _ => println!("{text}: not compared"),
        }
    }
}
