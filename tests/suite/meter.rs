//! What standard error shows while many runs go on: a line that changes on a terminal, plain lines elsewhere.
//!
//! Owns a stand-in for the emulator that ends at once, so that neither a kernel nor time is needed.

use crate::util::{RUN_LIMIT, Ran, Scratch, binary, finish, not_run};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[path = "../fixtures/vmlinux.rs"]
mod fixture;

/// Tells its version; started for a VM, it says on its monitor that the guest reset itself, which fails a run that did not boot.
const EMULATOR: &str = r#"#!/usr/bin/env bash
echo 'QEMU emulator version 9.2.0'
[[ $* =~ id=monitor,fd=([0-9]+) ]] || exit 0
echo '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}' >&"${BASH_REMATCH[1]}"
"#;

/// Three runs, each of which ends, and fails, as soon as its emulator is started; by `how` they are started.
fn three_runs(scratch: &Scratch, how: fn(&str) -> Command) -> Ran {
    let kernel = scratch.file("vmlinux", fixture::vmlinux(&[0; 4096]));
    let emulator = scratch.file("qemu-system-x86_64", EMULATOR);
    std::fs::set_permissions(&emulator, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    let line = format!(
        "'{}' --kernel '{}' --accel qemu --topo 1 --duration 100ms --boot-failure fail --repeat 3 --jobs 1",
        binary().display(),
        kernel.display()
    );
    let mut command = how(&line);
    let path = format!("{}:{}", scratch.0.display(), std::env::var("PATH").unwrap_or_default());
    command.env("PATH", path).env("XDG_STATE_HOME", &scratch.0).env("TERM", "xterm");
    finish(command, RUN_LIMIT)
}

#[test]
fn progress_is_a_line_that_changes_on_a_terminal() {
    // script(1) of util-linux runs a command on a terminal of its own, and prints what that shows.
    let there = Command::new("script").arg("--version").output();
    if !there.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("util-linux")) {
        return not_run("meter: progress on a terminal", "script (util-linux) is not installed");
    }
    let scratch = Scratch::new();
    let ran = three_runs(&scratch, |line| {
        let mut command = Command::new("script");
        command.args(["-qec", line, "/dev/null"]);
        command
    });
    // Drawn at the first turn at the latest; cleared before every line that stays, and at the end.
    let drawn: Vec<&str> = ran.stdout.split("\r\x1b[K").collect();
    assert!(drawn.iter().any(|part| part.contains("/3 done, ") && part.contains(" running, ")), "{ran}");
    for number in 1..=3 {
        assert!(drawn.iter().any(|part| part.starts_with(&format!("[{number}/3] FAIL "))), "run {number}:{ran}");
        // Drawn anew after every line that stays: nothing runs then.
        let counts = format!("{number}/3 done, {number} failed, 0 running, ");
        let eta =
            drawn.iter().filter_map(|part| part.strip_prefix(&counts)).find_map(|rest| rest.split(", ETA ").nth(1));
        let seconds = eta.and_then(|eta| eta.strip_suffix(" s")?.parse::<u64>().ok());
        assert!(seconds.is_some_and(|seconds| number < 3 || seconds == 0), "'{counts}...' and a time:{ran}");
    }
    assert!(!drawn.last().is_some_and(|part| part.contains("/3 done, ")), "the line of progress stays:{ran}");
}

#[test]
fn progress_is_a_line_for_each_run_elsewhere() {
    let scratch = Scratch::new();
    let ran = three_runs(&scratch, |line| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]);
        command
    });
    let of_runs: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("/3] ")).collect();
    assert_eq!(of_runs.iter().map(|line| &line[..6]).collect::<Vec<_>>(), ["[1/3] ", "[2/3] ", "[3/3] "], "{ran}");
    assert!(!ran.stderr.contains(['\x1b', '\r']) && !ran.stderr.contains("ETA"), "{ran}");
}
