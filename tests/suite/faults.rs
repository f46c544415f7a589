//! Faults injected from outside: what breaks must be named, with the right exit code, and nothing may be left behind.

use crate::util::{
    Scratch, binary, emulation, end_within, finish, not_run, processes_with, run_in, share_machine, signal,
    spawn_quietly, take_machine,
};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn args(kernel: &Path, duration: &str) -> Vec<String> {
    ["--kernel", &kernel.display().to_string(), "--accel", "qemu", "--duration", duration].map(str::to_owned).to_vec()
}

fn run(scratch: &Scratch, kernel: &Path, more: &[&str]) -> crate::util::Ran {
    let mut all = args(kernel, "1s");
    all.extend(more.iter().map(|word| (*word).to_owned()));
    run_in(scratch, &all.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn too_little_memory_names_what_would_do() {
    let Some(kernel) = emulation("faults: memory", "7") else { return };
    let scratch = Scratch::new();
    let ran = run(&scratch, &kernel, &["--memory", "16M"]).exits(128).says("--memory");
    assert!(ran.took < Duration::from_secs(10), "{ran}");
    assert!(!scratch.0.join("ktstr").exists());
}

#[test]
fn kernel_that_panics_before_pid1_cannot_be_judged() {
    let Some(kernel) = emulation("faults: early panic", "7") else { return };
    let more = ["--cmdline", "rdinit=/no/such/init init=/no/such/init"];
    run(&Scratch::new(), &kernel, &more).exits(125).says("did not boot");
    run(&Scratch::new(), &kernel, &[more[0], more[1], "--boot-failure", "fail"]).exits(1);
}

#[test]
fn oops_during_the_run_fails_with_its_line() {
    let Some(kernel) = emulation("faults: crash by SysRq", "7") else { return };
    // The scheduler under test is a script that crashes the kernel as soon as it starts.
    let scratch = Scratch::new();
    let script = scratch.file("crasher", "#!/bin/sh\nsleep 0.5\necho c > /proc/sysrq-trigger\nsleep 60\n");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.display().to_string();
    let sleep = ["--include", "/bin/sleep"];
    let ran = run(&scratch, &kernel, &["--sched", &script, sleep[0], sleep[1]]).exits(1);
    assert!(ran.stdout.to_lowercase().contains("sysrq"), "the panic's cause is not named:{ran}");
}

#[test]
fn scheduler_that_leaves_early_fails_with_its_last_words() {
    let Some(kernel) = emulation("faults: early exit", "7") else { return };
    let scratch = Scratch::new();
    let script = scratch.file("quitter", "#!/bin/sh\necho I will not run here >&2\nexit 3\n");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    run(&scratch, &kernel, &["--sched", &script.display().to_string()])
        .exits(1)
        .says("exit code 3")
        .says("I will not run here");
}

#[test]
fn hard_limit_ends_a_guest_that_takes_too_long() {
    let Some(kernel) = emulation("faults: hard limit", "7") else { return };
    let scratch = Scratch::new();
    let ran = run(&scratch, &kernel, &["--timeout", "2s"]);
    assert_eq!(ran.code, Some(125), "a guest without time to boot cannot be judged:{ran}");
    assert!(ran.took < Duration::from_secs(15), "{ran}");
}

#[test]
fn guest_without_the_cpus_asked_for_cannot_be_judged() {
    let Some(kernel) = emulation("faults: missing CPUs", "7") else { return };
    run(&Scratch::new(), &kernel, &["--topo", "2", "--cmdline", "maxcpus=1"])
        .exits(125)
        .says("CPUs online 0 instead of 0-1");
}

#[test]
fn stray_output_on_the_second_serial_port_does_no_harm() {
    let Some(kernel) = emulation("faults: stray serial output", "7") else { return };
    let scratch = Scratch::new();
    let script = scratch.file("chatty", "#!/bin/sh\necho KTF1:fake >/dev/ttyS1\nexec /init __probe fifo\n");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    run(&scratch, &kernel, &["--sched", &script.display().to_string()]).exits(0);
}

#[test]
fn unwritable_run_directory_is_refused() {
    let Some(kernel) = emulation("faults: run directory", "7") else { return };
    run(&Scratch::new(), &kernel, &["--run-dir", "/proc/nowhere"]).exits(128).says("/proc/nowhere").says("--run-dir");
}

#[test]
fn interruption_at_any_moment_leaves_nothing() {
    let Some(kernel) = emulation("faults: interruption", "7") else { return };
    // Before its first line, while the image is made, while the guest boots, and while its workers work.
    let delays = [5, 50, 400, 2000, 4500].into_iter();
    for (delay_ms, name) in delays.flat_map(|delay_ms| [(delay_ms, "INT"), (delay_ms, "TERM")]) {
        let scratch = Scratch::new();
        let _shared = share_machine();
        let marker = format!("ktstr.test=interrupt{delay_ms}{name}");
        let mut command = Command::new(binary());
        let temporary = scratch.0.join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        command.args(args(&kernel, "30s")).args(["--cmdline", &marker]).env("TMPDIR", &temporary);
        let mut child = spawn_quietly(&mut command, &scratch);
        std::thread::sleep(Duration::from_millis(delay_ms));
        signal(name, &child);
        let status = end_within(&mut child, Duration::from_secs(30));
        // A signal that meets the process before its first line ends it as the shell expects: also 130 there.
        let by_default = matches!(status.signal(), Some(libc::SIGINT | libc::SIGTERM));
        let interrupted = status.code() == Some(130) || (delay_ms <= 50 && by_default);
        assert!(interrupted, "SIG{name} after {delay_ms} ms: {status:?}");
        assert_eq!(processes_with(&marker), Vec::<String>::new(), "processes left after {delay_ms} ms");
        let runs = scratch.0.join("ktstr/runs");
        let left = std::fs::read_dir(runs).map(Iterator::count).unwrap_or(0);
        assert_eq!(left, 0, "files left after {delay_ms} ms");
        let left: Vec<_> = std::fs::read_dir(temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "temporary files left after {delay_ms} ms: {left:?}");
    }
}

#[test]
fn killed_parent_takes_its_vm_along() {
    let Some(kernel) = emulation("faults: killed parent", "7") else { return };
    for delay_ms in [50, 400, 1500, 4500] {
        let scratch = Scratch::new();
        let _shared = share_machine();
        let marker = format!("ktstr.test=killedparent{delay_ms}");
        let mut command = Command::new(binary());
        command.args(args(&kernel, "30s")).args(["--cmdline", &marker]);
        let mut child = spawn_quietly(&mut command, &scratch);
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().expect("kill the binary");
        child.wait().expect("reap the binary");
        let limit = Instant::now() + Duration::from_secs(30);
        while !processes_with(&marker).is_empty() {
            assert!(Instant::now() < limit, "the VM outlives its parent: {:?}", processes_with(&marker));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn selftest_names_a_few_faults_of_every_kind() {
    let Some(kernel) = emulation("faults: selftest", "7") else { return };
    let scratch = Scratch::new();
    let kernel = kernel.display().to_string();
    let selftest = |what: &str| {
        let mut command = Command::new(binary());
        command.args(["selftest", what, "--kernel", &kernel, "--accel", "qemu", "--json", "-"]);
        command.env("XDG_STATE_HOME", &scratch.0);
        // A dozen guests, each of them up to a minute on a busy machine.
        finish(command, Duration::from_secs(900))
    };
    let ran = {
        let _shared = share_machine();
        selftest("--short")
    };
    let played = ran.json();
    let played = played["faults"].as_array().expect("faults are an array");
    assert!(played.len() >= 8, "{ran}");
    let is_right = |fault: &serde_json::Value| fault["correct"] == true;
    let left = || std::fs::read_dir(scratch.0.join("ktstr/runs")).map(Iterator::count).unwrap_or(0);
    let all_right = played.iter().all(is_right);
    assert_eq!((ran.code == Some(0), left() == 0), (all_right, all_right), "{ran}");
    // What was not right beside other tests has to be right alone; only noise from outside of this process excuses it.
    for fault in played.iter().filter(|fault| !is_right(fault)) {
        let name = fault["name"].as_str().expect("a name");
        not_run(&format!("faults: selftest {name} beside others"), &fault["wrong"].to_string());
        let _alone = take_machine();
        let again = selftest(name);
        let faults = again.json();
        let found = faults["faults"].as_array().into_iter().flatten().find(|fault| fault["name"] == name);
        let found = found.unwrap_or_else(|| panic!("{name} was not played:{again}"));
        if !is_right(found) {
            assert!(found["disturbed"].is_string(), "{again}");
            not_run(&format!("faults: selftest {name}"), "the host disturbed it each time");
        }
    }
}

/// Until an emulator runs this kernel; a child that ends before, or that takes too long, fails the test.
fn await_guest(child: &mut std::process::Child, kernel: &str) {
    let limit = Instant::now() + Duration::from_secs(120);
    while !processes_with(kernel).iter().any(|line| line.contains(" -append ")) {
        let ended = child.try_wait().expect("look at the child");
        if ended.is_some() || Instant::now() > limit {
            panic!("no guest was begun: {:?}", ended.unwrap_or_else(|| end_within(child, Duration::ZERO)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn selftest_that_is_asked_to_end_leaves_no_run_behind() {
    let Some(kernel) = emulation("faults: interrupted selftest", "7") else { return };
    let scratch = Scratch::new();
    // By its own name for the kernel each emulator that it starts is known.
    let link = scratch.0.join("vmlinuz");
    std::os::unix::fs::symlink(&kernel, &link).expect("link the kernel");
    let place = link.display().to_string();
    let _shared = share_machine();
    for selftest in [&["selftest", "fake-log"][..], &["selftest", "--scenarios"]] {
        let mut command = Command::new(binary());
        command.args(selftest).args(["--kernel", &place, "--accel", "qemu"]);
        let mut child = spawn_quietly(&mut command, &scratch);
        await_guest(&mut child, &place);
        signal("TERM", &child);
        assert_eq!(end_within(&mut child, Duration::from_secs(30)).code(), Some(130), "{selftest:?}");
        assert_eq!(processes_with(&place), Vec::<String>::new(), "{selftest:?}");
        assert_eq!(std::fs::read_dir(scratch.0.join("ktstr/runs")).map(Iterator::count).unwrap_or(0), 0);
    }
}

#[test]
fn killed_selftest_takes_its_run_and_its_guest_along() {
    let Some(kernel) = emulation("faults: killed selftest", "7") else { return };
    let scratch = Scratch::new();
    let link = scratch.0.join("vmlinuz");
    std::os::unix::fs::symlink(&kernel, &link).expect("link the kernel");
    let place = link.display().to_string();
    let _shared = share_machine();
    let mut command = Command::new(binary());
    command.args(["selftest", "fake-log", "--kernel", &place, "--accel", "qemu"]);
    let mut child = spawn_quietly(&mut command, &scratch);
    await_guest(&mut child, &place);
    child.kill().expect("kill the selftest");
    child.wait().expect("reap the selftest");
    let limit = Instant::now() + Duration::from_secs(30);
    while !processes_with(&place).is_empty() {
        assert!(Instant::now() < limit, "its run outlives it: {:?}", processes_with(&place));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn selftest_lists_the_matrix() {
    let ran = run_in(&Scratch::new(), &["selftest", "--list"]).exits(0).says("kernel-panic").says("ring-garbage");
    assert!(ran.stdout.lines().count() >= 40, "{ran}");
}
