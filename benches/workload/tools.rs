//! The engine's rates and timers against the field's tools, in turns with them.
//!
//! Owns which tool is called how, and which bare pair makes whose calls; leaves the rounds to turns.
//! Invariant: what is compared is on one CPU, where placement decides nothing, and in one class.

use crate::bare::{self, Way};
use crate::turns::{self, Spread, against};
use crate::waits::number;
use crate::{config, first_cpu, pause, run};
use ktstr::proto::plan::SchedPolicy;
use ktstr::proto::scenario::AffinityIntent;
use ktstr::proto::work::SampleKind;
use ktstr::sys::time;
use ktstr::units::{NS_PER_MS, NS_PER_SEC, NS_PER_US, approx};
use ktstr::workload::{WorkloadConfig, WorkloadHandle};
use std::process::Command;

/// Rounds of each comparison.
const ROUNDS: usize = 9;
/// How long ours runs in a round.
const TURN_NS: u64 = 300 * NS_PER_MS;

/// Length of cyclictest's histogram; what is later is only counted.
const HISTOGRAM_US: &str = "5000";

/// The output of a tool; none where it is not installed or fails.
fn tool(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    if output.is_none() {
        println!("{program}: not compared: it is not installed, or it failed");
    }
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same on one CPU and, where that is allowed, in the FIFO class.
fn placed(cpu: u32, real_time: bool, words: &[&str]) -> Option<String> {
    let (cpu, priority) = (cpu.to_string(), bare::PRIORITY.to_string());
    let mut all = vec!["-c", &cpu];
    if real_time {
        all.extend(["chrt", "-f", &priority]);
    }
    all.extend(words);
    tool("taskset", &all)
}

/// The pair that makes nothing but exchanges through pipes.
const PIPE: &str = "pipe(burst_iters=1)";

/// Exchanges a second of one of our pairs: as the bare ones, between two looks, after a start that is not counted.
fn ours(text: &str, real_time: bool) -> impl FnMut() -> Option<f64> {
    let sched_policy = match real_time {
        true => SchedPolicy::Fifo { priority: bare::PRIORITY },
        false => SchedPolicy::Normal,
    };
    let load = WorkloadConfig { affinity: AffinityIntent::SingleCpu, sched_policy, ..config(text) };
    move || {
        let mut handle = WorkloadHandle::spawn(&load).expect("spawn");
        handle.start().expect("start");
        let look = |handle: &WorkloadHandle| (time::monotonic_ns(), handle.snapshot_iterations()[0]);
        pause(bare::WARM_UP_NS);
        let (from, before) = look(&handle);
        pause(TURN_NS - bare::WARM_UP_NS);
        let (until, after) = look(&handle);
        handle.stop_and_collect().expect("collect");
        (after > before).then(|| (after - before) as f64 * NS_PER_SEC as f64 / (until - from) as f64)
    }
}

/// Exchanges a second of the pair types, against `perf bench sched pipe` and against bare pairs, which tell how much of a
/// difference is in the calls, and how much is our telemetry.
pub fn exchange_rates() {
    const LOOPS: u32 = 100_000;
    let cpu = first_cpu();
    let real_time = bare::may_be_real_time();
    println!("exchanges on CPU {cpu}, {}:", if real_time { "SCHED_FIFO" } else { "normal class, no right to FIFO" });
    let loops = LOOPS.to_string();
    let mut perf = || {
        let words = ["perf", "bench", "-f", "simple", "sched", "pipe", "-l", &loops];
        let seconds: f64 = placed(cpu, real_time, &words)?.trim().parse().ok()?;
        Some(f64::from(LOOPS) / seconds)
    };
    let bare = |way: Way| move || bare::rate(way, cpu, real_time);
    let pairs = [
        (PIPE, Way::Pipe),
        ("ping-pong(spin_iters=1)", Way::Futex),
        ("wake-chain(depth=2,work_per_hop=1ns)", Way::Chain),
    ];
    let [mut pipe, mut futex, mut chain] = pairs.map(|(text, _)| ours(text, real_time));
    let [mut bare_pipe, mut bare_futex, mut bare_chain] = pairs.map(|(_, way)| bare(way));
    let mut bare_read = bare(Way::Read);
    let taken = turns::take(
        ROUNDS,
        &mut [
            &mut perf,
            &mut bare_read,
            &mut pipe,
            &mut bare_pipe,
            &mut futex,
            &mut bare_futex,
            &mut chain,
            &mut bare_chain,
        ],
    );
    let rate = |way: usize| taken.of(way).map_or(0.0, |rate| rate.median);
    println!("perf bench sched pipe: {:.0}/s", rate(0));
    println!("its calls bare (write, blocking read): {:.0}/s{}", rate(1), against("perf", taken.ratio(1, 0)));
    for (index, (text, _)) in pairs.iter().enumerate() {
        let (mine, same) = (2 + 2 * index, 3 + 2 * index);
        let apart = taken.over(|figures| Some(1e9 / figures[mine]? - 1e9 / figures[same]?));
        println!(
            "{text}: {:.0}/s{}{}, {:.0} ns an exchange, which is telemetry; its calls bare: {:.0}/s{}",
            rate(mine),
            against("perf", taken.ratio(mine, 0)),
            against("its calls bare", taken.ratio(mine, same)),
            apart.map_or(0.0, |apart| apart.median),
            rate(same),
            against("perf", taken.ratio(same, 0)),
        );
    }
    hackbench(cpu, real_time);
}

/// One message a byte, from one sender to one receiver who does not answer: several go with one wake-up.
fn hackbench(cpu: u32, real_time: bool) {
    const MESSAGES: u32 = 100_000;
    let messages = MESSAGES.to_string();
    let mut theirs = || {
        let said = placed(cpu, real_time, &["hackbench", "-p", "-g", "1", "-f", "1", "-s", "1", "-l", &messages])?;
        let seconds: f64 = said.lines().find_map(|line| line.strip_prefix("Time: ")?.trim().parse().ok())?;
        (seconds > 0.0).then(|| f64::from(MESSAGES) / seconds)
    };
    let mut stream = || bare::rate(Way::Stream, cpu, real_time);
    let taken = turns::take(ROUNDS, &mut [&mut theirs, &mut stream, &mut ours(PIPE, real_time)]);
    if let (Some(theirs), Some(stream), Some(pipe)) = (taken.of(0), taken.of(1), taken.of(2)) {
        println!(
            "hackbench -p -g 1 -f 1 -s 1: {:.0} messages/s, unanswered; its calls bare {:.0}/s{}; {PIPE}: {:.0} exchanges/s, \
             of two messages each{}",
            theirs.median,
            stream.median,
            against("hackbench", taken.ratio(1, 0)),
            pipe.median,
            against("hackbench", taken.ratio(2, 0)),
        );
    }
}

/// The median of cyclictest's histogram: `MICROSECONDS COUNT` lines; the middle of its bucket.
fn median_ns(said: &str) -> Option<f64> {
    let bars: Vec<(u64, u64)> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(us, count)| Some((us.parse().ok()?, count.trim().parse().ok()?)))
        .collect();
    // Beyond the histogram's end, which no count there tells.
    let longer = number(&said.replace(' ', ""), "HistogramOverflows:").unwrap_or(0) as u64;
    let all = bars.iter().map(|(_, count)| count).sum::<u64>() + longer;
    let mut below = 0;
    let reached = bars.iter().find(|(_, count)| {
        below += count;
        below * 2 >= all
    });
    reached.filter(|_| all > 0).map(|(us, _)| (*us as f64 + 0.5) * NS_PER_US as f64)
}

/// Median oversleep of IdleChurn against cyclictest with the same sleep, class, CPU and timer slack: the precise one in the FIFO class,
/// where slack does not count; the other one in the normal class, where both have the usual 50 us.
pub fn timers() {
    let (real_time, cpu) = (bare::may_be_real_time(), first_cpu());
    for (text, class) in [
        ("idle-churn(burst=1us,sleep=1ms,precise_timing=true)*1 policy=fifo:10", ["-p", "10", "--policy=fifo"]),
        ("idle-churn(burst=1us,sleep=1ms)*1", ["-p", "0", "--policy=other"]),
    ] {
        if text.contains("fifo") && !real_time {
            println!("{text}: not compared: no right to a real-time class");
            continue;
        }
        let load = WorkloadConfig { affinity: AffinityIntent::SingleCpu, ..config(text) };
        let mut ours = || {
            let reports = run(&load, TURN_NS, |_| {});
            reports[0].hist(SampleKind::Timer).and_then(|hist| hist.percentile_ns(5000)).map(|ns| ns as f64)
        };
        // Without its tuning of idle states, which IdleChurn leaves as they are. Relative sleeps are IdleChurn's own call;
        // absolute ones are cyclictest's usual. Medians, because a mean of 300 is that of the two longest.
        let cyclictest = |relative: bool| {
            let cpu = cpu.to_string();
            move || {
                let mut words = vec![
                    "-q",
                    "-h",
                    HISTOGRAM_US,
                    "-i",
                    "1000",
                    "-l",
                    "300",
                    "-t",
                    "1",
                    "-a",
                    &cpu,
                    "--default-system",
                ];
                words.extend(class);
                if relative {
                    words.push("-r");
                }
                median_ns(&tool("cyclictest", &words)?)
            }
        };
        let taken = turns::take(ROUNDS, &mut [&mut ours, &mut cyclictest(true), &mut cyclictest(false)]);
        let told = |spread: Option<Spread>| spread.map_or("none".into(), |spread| approx(spread.median as u64));
        println!(
            "{text}: median oversleep {}, cyclictest -r {}, cyclictest {}{}{}",
            told(taken.of(0)),
            told(taken.of(1)),
            told(taken.of(2)),
            against("-r", taken.ratio(0, 1)),
            against("its usual", taken.ratio(0, 2)),
        );
    }
}
