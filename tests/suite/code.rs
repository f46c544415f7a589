//! Scenarios in code: the example crate, built as a user builds it and run under emulation.

use crate::util::{DISTURBED, Ran, TRIES, emulation, not_run, root, try_command};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Building the crate, and ktstr with it, takes about a minute on two busy cores; a case about ten seconds.
const LIMIT: Duration = Duration::from_secs(900);
const EXAMPLE: &str = "examples/scenarios";

fn cargo(kernel: Option<&Path>, words: &[&str]) -> Ran {
    finish_undisturbed(|| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // The crate's own lock file, and nothing from the network.
        command.args(["test", "--locked", "--offline", "--quiet", "--test", "scheduler", "--"]).args(words);
        example(command, kernel)
    })
}

/// Runs in which the machine spoiled a case are repeated without this process's own load.
fn finish_undisturbed(make: impl Fn() -> Command) -> Ran {
    for attempt in 1.. {
        let ran = try_command(make(), attempt, LIMIT);
        // The last is what a case of the example itself says of a machine that stood still.
        let words = DISTURBED.into_iter().chain(["no progress in the second half"]);
        let disturbed = words.into_iter().any(|words| ran.stdout.contains(words) || ran.stderr.contains(words));
        if ran.code == Some(0) || !disturbed || attempt == TRIES {
            return ran;
        }
        not_run(
            &format!("code: try {attempt} of the example crate"),
            "the machine was too busy for a verdict; tried once more",
        );
    }
    unreachable!("the last try returns")
}

/// Where and with what the crate's tests are built and run.
fn example(mut command: Command, kernel: Option<&Path>) -> Command {
    command.current_dir(root().join(EXAMPLE));
    // One of the cases wants progress in each half.
    command.env_remove("KTSTR_KERNEL").env("KTSTR_ARGS", "--accel qemu --duration 2s");
    // What a build of our own tests may have set is not for this one.
    command.env_remove("CARGO_BUILD_TARGET").env_remove("RUSTFLAGS");
    if let Some(kernel) = kernel {
        command.env("KTSTR_KERNEL", kernel);
    }
    command
}

#[test]
fn example_lists_filters_and_runs_as_cargo_test_does() {
    // What nextest asks first.
    let list = cargo(None, &["--list", "--format", "terse"]).exits(0);
    let names: Vec<&str> = list.stdout.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert!(names.contains(&"two_groups_share_under_fifo") && names.contains(&"this_one_fails"), "{list}");
    assert_eq!(names.len(), list.stdout.lines().count(), "something else is in the list:{list}");
    let ignored = cargo(None, &["--list", "--format", "terse", "--ignored"]).exits(0);
    assert_eq!(ignored.stdout, "this_one_fails: test\n", "{ignored}");
    // Without a kernel it says what to do.
    let lost = cargo(None, &["two_groups_share", "--exact"]).exits(101);
    lost.says("KTSTR_KERNEL=").says("test result: FAILED. 0 passed; 1 failed");

    let Some(kernel) = emulation("code: the example crate", "7") else { return };
    let mut ran = cargo(Some(&kernel), &["--show-output"]).exits(0);
    for name in names.iter().filter(|name| !["needs_two_llcs", "this_one_fails"].contains(name)) {
        ran = ran.says(&format!("test {name} ... ok"));
    }
    let ran = ran.says("test needs_two_llcs ... ignored, needs two LLCs").says("iterations half way: [");
    let ran = ran.says("ktstr_fifo, the same instance to the end").says("own_assertions      passed, on 4 workers");
    let ran = ran.says("14 settings in force");
    ran.says("test result: ok. 8 passed; 0 failed; 2 ignored");
    // A panic of the user's code is a failure with its place, and not the guest's end.
    let fails = cargo(Some(&kernel), &["this_one_fails", "--ignored"]).exits(101);
    fails.says("FAIL: own_assertions: panicked at tests/scheduler.rs:").says("add up to 1 only");
}

#[test]
fn example_runs_under_nextest() {
    let installed =
        Command::new("cargo-nextest").args(["nextest", "--version"]).output().is_ok_and(|told| told.status.success());
    if !installed {
        return not_run("code: the example crate under nextest", "cargo-nextest is not installed");
    }
    let Some(kernel) = emulation("code: the example crate under nextest", "7") else { return };
    let ran = finish_undisturbed(|| {
        let mut command = Command::new("cargo-nextest");
        command.args(["nextest", "run", "--locked", "--offline", "confined_group_stays_inside"]);
        example(command, Some(&kernel))
    });
    let ran = ran.exits(0);
    ran.says("confined_group_stays_inside").says("1 test run: 1 passed");
}
