//! A trace read as waits: what each wake-up of a worker was for the kernel.
//!
//! Owns the text of the events; leaves the comparison to trace.
//! Invariant: a wait is one here where our own engine calls it one: a call that may block, which a wake ended.

use ktstr::sys::process;
use std::collections::HashMap;

/// Calls of x86-64 as `raw_syscalls` numbers them (kernel: arch/x86/entry/syscalls/syscall_64.tbl).
const POLL: i64 = 7;
const FUTEX: i64 = 202;
const CLOCK_NANOSLEEP: i64 = 230;
/// Of a futex call's operation, without its flags (linux/futex.h, FUTEX_CMD_MASK).
const FUTEX_COMMAND: i64 = 0x7f;
const FUTEX_WAIT: i64 = 0;

/// One wait of a worker that a wake ended, in ns.
#[derive(Default)]
pub struct Wait {
    /// From sched_waking to the sched_switch that put it on a CPU; none: it had not left its own.
    pub switch: Option<u64>,
    /// From the waker's entry into its call to the return of the wait: what two processes can see. None: it was woken before it
    /// slept, or not from a call.
    pub call: Option<u64>,
}

#[derive(Default)]
pub struct Told {
    /// By thread, in their order.
    pub waits: HashMap<i32, Vec<Wait>>,
    /// The sleeps of the benchmark itself in their order, from entry to return.
    pub sleeps: Vec<u64>,
}

/// `field=number` of a trace line.
pub fn number(line: &str, field: &str) -> Option<i64> {
    let rest = &line[line.find(field)? + field.len()..];
    rest.split(|c: char| !c.is_ascii_digit() && c != '-').next()?.parse().ok()
}

/// A call under way.
struct Call {
    number: i64,
    begin: u64,
    may_block: bool,
}

/// A thread that was just woken.
#[derive(Clone, Copy)]
struct Waking {
    at: u64,
    waker: i32,
    /// When its waker entered the call that woke it.
    entered: Option<u64>,
}

/// `sys_enter: NR 202 (7f00, 0, 1, ...)`: hexadecimal arguments.
fn entry(event: &str, begin: u64) -> Option<Call> {
    let (number, arguments) = event.strip_prefix("sys_enter: NR ")?.trim_end().strip_suffix(')')?.split_once(" (")?;
    let arguments: Vec<i64> =
        arguments.split(", ").map_while(|word| u64::from_str_radix(word, 16).ok()).map(|word| word as i64).collect();
    let number = number.parse().ok()?;
    let may_block = match number {
        FUTEX => arguments.get(1)? & FUTEX_COMMAND == FUTEX_WAIT,
        POLL => *arguments.get(2)? != 0,
        _ => false,
    };
    Some(Call { number, begin, may_block })
}

fn result(event: &str) -> i64 {
    event.rsplit_once(" = ").and_then(|(_, result)| result.trim().parse().ok()).unwrap_or(-1)
}

/// Whether a call was a wait that a wake ended. A worker first looks without waiting whether its byte is there already;
/// `had_nothing` says that it was not.
fn is_woken(call: &Call, result: i64, had_nothing: bool) -> bool {
    call.may_block && if call.number == FUTEX { result == 0 } else { had_nothing && result > 0 }
}

/// The trace of x86-tsc times, between two marks whose CLOCK_MONOTONIC is known.
pub fn read(text: &str, tids: &[i32], marks: [u64; 2]) -> Option<Told> {
    let mut lines = Vec::new();
    let mut marked = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, event)) = line.split_once(": ") else { continue };
        let Some(tsc) = head.split_whitespace().last().and_then(|word| word.parse::<u64>().ok()) else { continue };
        if event.contains("ktstr-mark") {
            marked.push(tsc);
        } else {
            // `NAME-PID [CPU] FLAGS TIME`; the name may hold dashes, and no blank.
            let current = head.split_whitespace().next().and_then(|task| task.rsplit('-').next()?.parse::<i32>().ok());
            lines.push((tsc, current.unwrap_or(-1), event));
        }
    }
    let [first, last] = marked[..] else { return None };
    let ns_per_tick = (marks[1] - marks[0]) as f64 / (last - first) as f64;
    let ns = |from: u64, until: u64| (until.saturating_sub(from) as f64 * ns_per_tick) as u64;
    let thread = |event: &str, field: &str| {
        let tid = i32::try_from(number(event, field)?).ok()?;
        tids.contains(&tid).then_some(tid)
    };
    let own = process::id();
    // The calls under way; who was woken; since when a thread is on a CPU again.
    let mut calls: HashMap<i32, Call> = HashMap::new();
    let mut waking: HashMap<i32, Waking> = HashMap::new();
    let mut switched: HashMap<i32, u64> = HashMap::new();
    // What the last look of a thread that did not wait has found.
    let mut had_nothing: HashMap<i32, bool> = HashMap::new();
    let mut told = Told::default();
    for (tsc, current, event) in lines {
        if event.starts_with("sys_enter") {
            // A wake that came before this call has nothing to do with it.
            waking.remove(&current);
            switched.remove(&current);
            if let Some(call) = entry(event, tsc) {
                calls.insert(current, call);
            }
        } else if event.starts_with("sys_exit") {
            let Some(call) = calls.remove(&current) else { continue };
            if current == own && call.number == CLOCK_NANOSLEEP {
                told.sleeps.push(ns(call.begin, tsc));
            }
            let (woken, on_cpu) = (waking.remove(&current), switched.remove(&current));
            let (result, nothing) = (result(event), had_nothing.get(&current).copied().unwrap_or(false));
            if call.number == POLL && !call.may_block {
                had_nothing.insert(current, result == 0);
            }
            // At the start and at the stop the benchmark wakes them, which is no part of their work.
            let by_us = woken.is_some_and(|woken| woken.waker == own);
            if tids.contains(&current) && !by_us && is_woken(&call, result, nothing) {
                told.waits.entry(current).or_default().push(Wait {
                    switch: woken.zip(on_cpu).map(|(woken, end)| ns(woken.at, end)),
                    call: woken.and_then(|woken| woken.entered).map(|entered| ns(entered, tsc)),
                });
            }
        } else if event.starts_with("sched_waking") {
            if let Some(tid) = thread(event, " pid=") {
                let entered = calls.get(&current).map(|call| call.begin);
                waking.insert(tid, Waking { at: tsc, waker: current, entered });
                switched.remove(&tid);
            }
        } else if event.starts_with("sched_switch") {
            // The first switch to it after the wake; later ones are of others that took its CPU again.
            if let Some(tid) = thread(event, "next_pid=").filter(|tid| waking.contains_key(tid)) {
                switched.entry(tid).or_insert(tsc);
            }
        }
    }
    Some(told)
}
