//! Runs without a VM, on the machine that the tests run on.
//!
//! Owns what only a real cgroup2 mount shows; leaves finding a place for cgroups to the unit tests of run/host.
//! Invariant: after a run no cgroup of it is left.

use crate::util::*;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A cgroup2 mount that this process may make cgroups in.
fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let targets = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    targets.filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).find(|dir| {
        let probe = dir.join(format!("ktstr-suite-probe-{}", std::process::id()));
        std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
    })
}

const TEST: &str = "host: a run on this machine";

#[test]
fn run_on_this_machine_gives_a_verdict_and_leaves_no_cgroup() {
    let Some(mount) = cgroup2() else { return not_run(TEST, "no writable cgroup2 mount") };
    let text = "ping-pong*1; bursty(burst=1ms,sleep=2ms)*1 nice=5";
    let ran =
        ktstr(&["run", "--host", "--work", text, "--duration", "300ms", "--seed", "7", "--raw-samples", "--json", "-"]);
    // A busy machine may not be fair; what matters here is that everything was measured.
    let result = ran.json();
    let workers = result["workers"].as_array().unwrap_or_else(|| panic!("no workers:{ran}"));
    assert_eq!(workers.len(), 6, "{ran}");
    for worker in workers {
        assert_eq!(worker["completed"], true, "{ran}");
        for (kind, of) in worker["latency"].as_object().expect("latency") {
            let raw = worker["raw_ns"][kind].as_array().map_or(0, |raw| raw.len() as u64);
            assert_eq!(Some(raw), of["count"].as_u64(), "{kind}: {ran}");
        }
        let kinds: Vec<&String> = worker["latency"].as_object().expect("latency").keys().collect();
        // The map that the test reads into is in the order of its keys.
        let want: &[&str] = if worker["work_type"] == "Bursty" { &["timer"] } else { &["block", "wake"] };
        assert_eq!(kinds, want, "{ran}");
    }
    assert!(ran.stderr.contains("this machine, no VM") && ran.stderr.contains("seed 7"), "{ran}");
    assert!(!cgroups_of(&ran, &mount).exists(), "{ran}");
}

/// The subtree of a run, of which it tells itself: others may have theirs beside it at the same time.
fn cgroups_of(ran: &Ran, mount: &Path) -> PathBuf {
    let rest = ran.stderr.split("cgroups under ").nth(1).unwrap_or_else(|| panic!("no subtree is told:{ran}"));
    let place = PathBuf::from(rest.split_whitespace().next().unwrap_or_default());
    assert!(place.starts_with(mount), "{ran}");
    place
}

/// Where the kernel offers no cpuset controller the run cannot begin, but has made its subtree by then.
#[test]
fn run_that_cannot_begin_leaves_no_cgroup() {
    let Some(mount) = cgroup2() else {
        return not_run("host: a controller that is missing", "no writable cgroup2 mount");
    };
    let ran = ktstr(&["run", "--host", "--cgroup", "a cpuset=cpus:0: bursty*1", "--duration", "300ms"]);
    assert!(!cgroups_of(&ran, &mount).exists(), "{ran}");
    if !std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap().contains("cpuset") {
        ran.exits(125).says("cgroup controller 'cpuset'");
    }
}

#[test]
fn class_that_the_kernel_refuses_fails_a_run_on_this_machine() {
    if cgroup2().is_none() || std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return not_run("host: a refused class", "no writable cgroup2 mount, or one CPU");
    }
    let text = "bursty*1 policy=deadline:1ms:5ms:10ms affinity=single";
    let ran = ktstr(&["run", "--host", "--work", text, "--cgroups", "1", "--duration", "300ms"]).exits(1);
    ran.says("settings_applied").says("scheduling policy refused");
}

/// The processes of a cgroup and of all below it.
fn members(dir: &Path) -> usize {
    let own = std::fs::read_to_string(dir.join("cgroup.procs")).map_or(0, |text| text.lines().count());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    own + entries.filter(|entry| entry.path().is_dir()).map(|entry| members(&entry.path())).sum::<usize>()
}

#[test]
fn ended_run_on_this_machine_leaves_no_cgroup_and_a_killed_one_only_until_the_next() {
    let Some(mount) = cgroup2() else { return not_run("host: signals", "no writable cgroup2 mount") };
    let namespace = std::fs::metadata("/proc/self/ns/pid").expect("look at our pid namespace").ino();
    for name in ["INT", "TERM", "HUP", "KILL"] {
        let scratch = Scratch::new();
        let mut command = std::process::Command::new(binary());
        command.args(["run", "--host", "--work", "bursty*1", "--duration", "60s"]);
        let mut child = spawn_quietly(&mut command, &scratch);
        // One that cannot write to the root has its place elsewhere.
        let subtree = mount.join(format!("ktstr-host-{namespace}-{}", child.id()));
        let limit = Instant::now() + Duration::from_secs(30);
        while members(&subtree) == 0 {
            assert!(
                child.try_wait().expect("look at the run").is_none() && Instant::now() < limit,
                "no workers: {name}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        signal(name, &child);
        let status = end_within(&mut child, Duration::from_secs(30));
        if name != "KILL" {
            assert_eq!(status.code(), Some(130), "{name}");
            assert!(!subtree.exists(), "{name}");
            continue;
        }
        let limit = Instant::now() + Duration::from_secs(30);
        while members(&subtree) > 0 {
            assert!(Instant::now() < limit, "its workers outlive it");
            std::thread::sleep(Duration::from_millis(10));
        }
        let [run] = &std::fs::read_dir(scratch.0.join("ktstr/runs")).unwrap().collect::<Vec<_>>()[..] else {
            panic!("not one run directory");
        };
        let run = run.as_ref().expect("read the runs").path();
        run_in(&scratch, &["judge", &run.display().to_string()]).exits(128).says("was cut").says("without saying how");
        // Nobody can remove the cgroup of a killed run but the next one.
        let next = run_in(&scratch, &["run", "--host", "--work", "bursty*1", "--duration", "100ms"]);
        assert!(!subtree.exists(), "{next}");
    }
}

#[test]
fn run_on_this_machine_goes_on_without_whoever_started_it() {
    let Some(mount) = cgroup2() else { return not_run("host: a dead parent", "no writable cgroup2 mount") };
    let namespace = std::fs::metadata("/proc/self/ns/pid").expect("look at our pid namespace").ino();
    let scratch = Scratch::new();
    let result = scratch.0.join("result.json");
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "\"$@\" & echo $!; wait", "sh"]).arg(binary());
    command.args(["run", "--host", "--work", "bursty*1", "--duration", "4s", "--json"]).arg(&result);
    command.env("XDG_STATE_HOME", &scratch.0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = command.spawn().expect("start the shell");
    let mut told = String::new();
    BufReader::new(shell.stdout.take().expect("a pipe")).read_line(&mut told).expect("read the run's number");
    let pid: u32 = told.trim().parse().expect("a number");
    let subtree = mount.join(format!("ktstr-host-{namespace}-{pid}"));
    let wait = |what: &str, until: &dyn Fn() -> bool| {
        let limit = Instant::now() + Duration::from_secs(60);
        while !until() {
            assert!(Instant::now() < limit, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait("no workers", &|| members(&subtree) > 0);
    shell.kill().expect("kill the shell");
    shell.wait().expect("reap the shell");
    drop(shell.stderr.take());
    // A zombie has no command line; who reaps an orphan is not ours to say.
    wait("the run does not end", &|| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty());
    assert!(!subtree.exists(), "its cgroups outlive it");
    let text = std::fs::read_to_string(&result).expect("read the result");
    let result: serde_json::Value = serde_json::from_str(&text).expect("the result is JSON");
    // Whatever so busy a machine makes of it, it was measured to its end.
    let workers = result["workers"].as_array().unwrap_or_else(|| panic!("no workers: {text}"));
    assert!(!workers.is_empty() && workers.iter().all(|worker| worker["completed"] == true), "{text}");
}
