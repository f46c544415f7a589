//! What becomes of workers that are killed, halted or starved of what they need.
//!
//! Owns the faults that need calls of their own; leaves SIGKILL, SIGSTOP and panics to the tests of collect.
//! Invariant: each fault gives the sentinel that names it, within the collection deadline, and leaves no process.

#![allow(unsafe_code)]

use super::tests::*;
use crate::not_run::not_run;
use crate::proto::report::ExitInfo;
use crate::proto::work::WorkType;
use crate::sys::{process, time};
use crate::units::{NS_PER_MS, NS_PER_SEC};
use crate::workload::{CustomTask, WorkloadConfig, WorkloadHandle, register_custom};
use std::path::{Path, PathBuf};

/// The collection deadline, the wait after it, and what a busy machine adds.
const BOUND_NS: u64 = 5 * NS_PER_SEC + 4 * NS_PER_SEC;

fn is_gone(pid: i32) -> bool {
    process::kill(pid, 0).is_err()
}

/// The processes of a group that live: one that nobody has waited for yet is dead all the same.
fn members(group: i32) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let text = proc_file(*pid, "stat");
        // Behind the name, which may hold anything: state, parent, group (proc_pid_stat(5)).
        let mut words = text.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, of) = (words.next().unwrap_or("X"), words.nth(1).and_then(|word| word.parse::<i32>().ok()));
        of == Some(group) && !matches!(state, "Z" | "X")
    })
    .collect()
}

/// Longer than any test waits, so that one that was forgotten is seen, and does not stay for ever.
const SLEEPER_NS: u64 = 120 * NS_PER_SEC;

/// Makes a process that outlives its parent unless somebody ends it, and works beside it.
fn with_a_sleeper(task: &mut CustomTask<'_, '_>) {
    if let Ok(process::Fork::Child) = process::fork() {
        let end = time::monotonic_ns() + SLEEPER_NS;
        while time::monotonic_ns() < end {
            // A signal that is meant for the worker, such as the stop, is none of its business.
            if time::sleep_ns(NS_PER_SEC).is_err() {}
        }
        process::exit_now(0);
    }
    while !task.stopped() {
        task.work_done(1);
        task.sleep_ns(NS_PER_MS);
        task.iteration_done();
    }
}

/// What becomes of a worker and its handle.
type Fate = fn(WorkloadHandle, i32);

#[test]
fn grandchildren_die_with_their_worker_whatever_it_dies_of() {
    register_custom("with-a-sleeper", with_a_sleeper);
    let fates: [(&str, Fate); 4] = [
        ("a dropped handle", |handle, _| drop(handle)),
        ("a stop", |handle, _| assert!(handle.stop_and_collect().unwrap()[0].completed)),
        ("SIGKILL", |mut handle, tid| {
            process::kill(tid, libc::SIGKILL).unwrap();
            wait_for("its end", || !handle.check_early_exits().is_empty());
            let reports = handle.stop_and_collect().unwrap();
            assert_eq!(reports[0].exit_info, Some(ExitInfo::Signaled { signal: libc::SIGKILL }));
        }),
        ("the deadline", |handle, tid| {
            process::kill(tid, libc::SIGSTOP).unwrap();
            assert_eq!(handle.stop_and_collect().unwrap()[0].exit_info, Some(ExitInfo::TimedOut));
        }),
    ];
    for (name, fate) in fates {
        let mut handle = WorkloadHandle::spawn(&one_group("custom(name=with-a-sleeper)*1")).unwrap();
        handle.start().unwrap();
        let tid = handle.tids()[0];
        wait_for("the sleeper", || members(tid).len() == 2);
        wait_for("progress", || handle.snapshot_iterations()[0] > 0);
        fate(handle, tid);
        wait_for(&format!("the sleeper's end after {name}"), || members(tid).is_empty());
    }
}

/// The C libraries differ in what they number limits with.
#[cfg(target_env = "musl")]
type Resource = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Resource = libc::__rlimit_resource_t;

/// Lowers a limit of another process.
pub fn limit(pid: i32, resource: Resource, value: u64) {
    let new = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `new` is valid for the call; no old limit is asked for.
    assert_eq!(unsafe { libc::prlimit(pid, resource, &new, std::ptr::null_mut()) }, 0);
}

#[test]
fn worker_that_is_traced_to_a_halt_times_out() {
    let mut handle = WorkloadHandle::spawn(&one_group("spin*2")).unwrap();
    handle.start().unwrap();
    let tids = handle.tids();
    wait_for("progress", || handle.snapshot_iterations().iter().all(|done| *done > 0));
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: both requests take no memory.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tids[0], nothing, nothing) };
    if seized != 0 {
        return not_run(&format!("no right to trace a child: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tids[0], nothing, nothing) }, 0);
    wait_for("the halt", || status(tids[0], "State").starts_with('t'));
    let begin = time::monotonic_ns();
    let reports = handle.stop_and_collect().unwrap();
    assert!(time::monotonic_ns() - begin < BOUND_NS);
    assert_eq!(reports[0].exit_info, Some(ExitInfo::TimedOut));
    assert!(reports[1].completed && tids.iter().all(|tid| is_gone(*tid)));
}

#[test]
fn worker_without_memory_or_descriptors_says_what_it_could_not_do() {
    for (text, resource, value, what, errno) in [
        ("cache(size_kb=65536)*1", libc::RLIMIT_AS, 1 << 20, "cannot map its buffer: ", 12),
        ("io-sync*1", libc::RLIMIT_NOFILE, 3, "cannot open its backing file or disk: ", 24),
    ] {
        let mut handle = WorkloadHandle::spawn(&one_group(text)).unwrap();
        let tid = handle.tids()[0];
        wait_for("its wait at the gate", || proc_file(tid, "comm").starts_with("kw0"));
        limit(tid, resource, value);
        handle.start().unwrap();
        let mut early = Vec::new();
        wait_for("its end", || {
            early.extend(handle.check_early_exits());
            !early.is_empty()
        });
        let told = early[0].setup_error.clone().unwrap();
        assert!(told.starts_with(what) && told.ends_with(&format!("(errno {errno})")), "{told}");
        let reports = handle.stop_and_collect().unwrap();
        assert_eq!(reports[0].exit_info, Some(ExitInfo::Exited { code: 1 }));
        assert!(!reports[0].completed && is_gone(tid));
    }
}

#[test]
fn parent_without_descriptors_gets_an_error_and_no_worker() {
    let child = match process::fork().unwrap() {
        process::Fork::Parent(pid) => pid,
        process::Fork::Child => {
            limit(process::id(), libc::RLIMIT_NOFILE, 3);
            let refused = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::PipeIo { burst_iters: 1 }, 2));
            let told = refused.err().is_some_and(|error| error.errno() == Some(libc::EMFILE));
            process::exit_now(if told { 0 } else { 1 });
        }
    };
    assert_eq!(process::wait(child, true).unwrap(), Some((child, process::End::Exited(0))));
}

/// A cgroup whose memory is bounded, of version 1 or 2.
fn bounded(bytes: u64) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let of = |kind: &str, option: &str| {
        let line = mounts.lines().find(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[2] == kind && (option.is_empty() || words[3].split(',').any(|word| word == option))
        })?;
        Some(Path::new(line.split(' ').nth(1)?).join(format!("ktstr-oom-{}", process::id())))
    };
    for (dir, file) in [(of("cgroup", "memory"), "memory.limit_in_bytes"), (of("cgroup2", ""), "memory.max")] {
        let Some(dir) = dir else { continue };
        if std::fs::create_dir(&dir).is_ok() {
            if std::fs::write(dir.join(file), bytes.to_string()).is_ok() {
                return Some(dir);
            }
            std::fs::remove_dir(&dir).unwrap();
        }
    }
    not_run("no memory controller that this process may use");
    None
}

#[test]
fn worker_that_the_kernel_kills_for_memory_is_reported_as_killed() {
    let Some(dir) = bounded(4 << 20) else { return };
    let mut handle = WorkloadHandle::spawn(&one_group("cache(size_kb=65536,stride=4096)*1")).unwrap();
    let tid = handle.tids()[0];
    std::fs::write(dir.join("cgroup.procs"), tid.to_string()).unwrap();
    handle.start().unwrap();
    let mut early = Vec::new();
    wait_for("the kill", || {
        early.extend(handle.check_early_exits());
        !early.is_empty()
    });
    let reports = handle.stop_and_collect().unwrap();
    wait_for("the empty cgroup", || std::fs::remove_dir(&dir).is_ok());
    assert_eq!(reports[0].exit_info, Some(ExitInfo::Signaled { signal: libc::SIGKILL }));
    assert!(is_gone(tid));
}

#[test]
fn a_thousand_spawns_and_drops_leave_no_process() {
    let (pipe, fork) = (one_group("pipe*1"), one_group("fork*1"));
    for round in 0..1000 {
        // Those that have children of their own, in the middle of making them.
        let forks = round % 8 == 0;
        let mut handle = WorkloadHandle::spawn(if forks { &fork } else { &pipe }).unwrap();
        if round % 2 == 0 {
            handle.start().unwrap();
        }
        if forks {
            wait_for("a child", || handle.snapshot_iterations()[0] > 0);
        }
        let tids = handle.tids();
        drop(handle);
        assert!(tids.iter().all(|tid| is_gone(*tid)), "round {round}");
        if forks {
            wait_for("the end of its children", || members(tids[0]).is_empty());
        }
    }
}

/// No count that a configuration may hold keeps a worker from looking at the stop word.
#[test]
fn worker_with_a_count_that_never_ends_stops_when_it_is_told() {
    const ENDLESS: &str = "1000000000000000";
    for text in [
        "ping-pong(spin_iters=N)",
        "fan-out(spin_iters=N)",
        "cache-pipe(burst_iters=N)",
        "fan-out-compute(operations=N)",
        "fan-out-compute(operations=N,cache_footprint_kb=65536)",
        "mutex(hold_iters=N)",
        "producer-consumer(consume_iters=N)",
        "epoll-storm(events_per_burst=N)",
        "signal-storm(signals_per_iter=N)",
        "page-fault(touches_per_cycle=N)",
        "ipc-variance(hot_iters=N)",
        "ipc-variance(cold_iters=N)",
        "ipc-variance(period_iters=N)",
    ] {
        let text = text.replace('N', ENDLESS);
        let mut handle = WorkloadHandle::spawn(&one_group(&text)).unwrap();
        handle.start().unwrap();
        // Whether they are in the middle of it or just about to begin, they have to come out.
        time::sleep_ns(20 * NS_PER_MS).unwrap();
        for report in handle.stop_and_collect().unwrap() {
            assert!(report.completed, "{text}: {report:?}");
        }
    }
}
