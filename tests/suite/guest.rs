//! Whole runs in a guest under emulation: every part but our own VMM.

use crate::util::{Ran, Scratch, emulation, kernel, not_run, run_in};
use serde_json::Value;

/// Runs on the emulator, short, with the result as JSON on standard output.
fn run(scratch: &Scratch, kernel: &std::path::Path, args: &[&str]) -> Ran {
    let kernel = kernel.display().to_string();
    let mut all = vec!["--kernel", &kernel, "--accel", "qemu", "--json", "-"];
    all.extend(args);
    if !args.contains(&"--duration") {
        all.extend(["--duration", "1s"]);
    }
    run_in(scratch, &all)
}

fn check<'a>(result: &'a Value, name: &str) -> &'a Value {
    let checks = result["checks"].as_array().expect("checks are an array");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name} in {checks:?}"))
}

#[test]
fn kernel_scheduler_passes_and_emulation_is_named_first() {
    let Some(kernel) = emulation("guest: the kernel's own scheduler", "7") else { return };
    let scratch = Scratch::new();
    let ran = run(&scratch, &kernel, &["--work", "spin"]).exits(0);
    let result = ran.json();
    assert_eq!(result["outcome"], "pass", "{ran}");
    assert!(ran.stderr.contains("PASS"), "{ran}");
    let first = ran.stderr.lines().find(|line| !line.starts_with("ktstr:")).unwrap_or_default();
    assert!(first.to_lowercase().contains("emulat"), "the first line hides the emulation:{ran}");
    for name in ["max_gap", "max_run_delay", "spread"] {
        assert_eq!(check(&result, name)["status"], "not-applied", "{ran}");
    }
    let stages = result["timings"].to_string();
    for stage in ["pid1", "kernel-entry", "scenario-start", "torn-down"] {
        assert!(stages.contains(stage), "no {stage} in {stages}");
    }
    let kept = scratch.0.join("ktstr/runs");
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 0, "a pass left its run directory");
}

#[test]
fn every_work_type_runs_and_reports() {
    let Some(kernel) = emulation("guest: work types", "7") else { return };
    for work in ["yield", "bursty(burst=5ms,sleep=10ms)", "pipe", "ping-pong"] {
        let scratch = Scratch::new();
        let ran = run(&scratch, &kernel, &["--work", work, "--topo", "2", "--cgroups", "1"]).exits(0);
        let result = ran.json();
        assert_eq!(result["groups"].as_array().map(Vec::len), Some(1), "{ran}");
        assert!(result["groups"][0].to_string().contains("p99"), "{work} has no latency:{ran}");
    }
}

#[test]
fn serial_fallback_carries_the_whole_result() {
    let Some(kernel) = emulation("guest: serial fallback", "7") else { return };
    let ran = run(&Scratch::new(), &kernel, &["--channel", "serial"]).exits(0);
    assert!(ran.stdout.contains("serial"), "the channel is not told:{ran}");
}

#[test]
fn kernel_without_sched_ext_cannot_be_judged_with_a_scheduler() {
    let Some(kernel) = emulation("guest: no sched_ext", "6.12") else { return };
    let ran = run(&Scratch::new(), &kernel, &["--sched", "builtin:fifo"]).exits(125).says("CONFIG_SCHED_CLASS_EXT");
    assert_eq!(ran.json()["outcome"], "skip", "{ran}");
}

#[test]
fn builtin_schedulers_pass_and_are_named() {
    let Some(kernel) = emulation("guest: builtin schedulers", "7") else { return };
    for name in ["noop", "fifo"] {
        let ran = run(&Scratch::new(), &kernel, &["--sched", &format!("builtin:{name}")]).exits(0);
        assert_eq!(check(&ran.json(), "scheduler_alive")["status"], "pass", "{ran}");
        assert!(ran.stdout.contains(&format!("ktstr_{name}")), "{ran}");
    }
}

/// Field 41 of /proc/PID/stat, the class (proc_pid_stat(5)), of the workers of this name in what a command saw.
fn classes(seen: &str, name: &str) -> Vec<i32> {
    let of = |line: &str| line.rsplit(") ").next()?.split(' ').nth(41 - 3)?.parse().ok();
    let mut found: Vec<i32> = seen.lines().filter(|line| line.contains(name)).filter_map(of).collect();
    // The shell's order is that of the words: 100 comes before 99.
    found.sort_unstable();
    found
}

#[test]
fn workers_of_the_schedulers_own_class_are_in_it_as_the_kernel_says() {
    let Some(kernel) = emulation("guest: SCHED_EXT workers", "7") else { return };
    let scratch = Scratch::new();
    // A shell's own words: nothing but the shell is packed.
    let look = r#"for f in /proc/[0-9]*/stat; do
        read -r line < $f && case "$line" in *"(kw"*) echo "$line";; esac; done"#
        .replace("\n", " ");
    let file = scratch.file(
        "ext.scn",
        format!(
            "scenario ext\nbackdrop\n  cgroup a: spin*1 policy=ext; asym-waker(wakee_class=ext)*1\n\
             step 50%\nstep 50%\n  run look: /bin/sh -c '{look}'\n  wait look\n"
        ),
    );
    let file = file.display().to_string();
    // What is asked is the class and nothing of fairness, which a slow emulator may deny.
    let load = ["--sched", "builtin:fifo", "--scenario", &file, "--topo", "2", "--duration", "3s"];
    let args = [&load[..], &["--check", "none"]].concat();
    let ran = run(&scratch, &kernel, &args).exits(0);
    let result = ran.json();
    let workers = result["workers"].as_array().unwrap_or_else(|| panic!("no workers:{ran}"));
    assert_eq!(workers.len(), 3, "{ran}");
    for worker in workers {
        assert_eq!((&worker["completed"], &worker["refusals"]), (&Value::Bool(true), &Value::Array(vec![])), "{ran}");
    }
    let seen = result["payloads"][0]["output"].as_str().unwrap_or_default();
    // SCHED_EXT is 7 and SCHED_OTHER 0 (include/uapi/linux/sched.h).
    assert_eq!((classes(seen, "-spin"), classes(seen, "-asym")), (vec![7], vec![0, 7]), "{ran}");
}

#[test]
fn dropped_task_is_a_stall_with_its_victim() {
    let Some(kernel) = emulation("guest: builtin:drop", "7") else { return };
    let scratch = Scratch::new();
    let ran = run(&scratch, &kernel, &["--sched", "builtin:drop", "--duration", "10s"]).exits(1);
    let result = ran.json();
    assert_eq!(result["outcome"], "fail", "{ran}");
    let headline = result["headline"].as_str().unwrap_or_default();
    assert!(headline.contains("runnable task stall") && headline.contains("kw"), "{headline}{ran}");
    let kept = std::fs::read_dir(scratch.0.join("ktstr/runs")).unwrap().next().unwrap().unwrap().path();
    for file in ["record", "console.log", "verdict.json", "summary.txt"] {
        assert!(kept.join(file).exists(), "{file} was not kept");
    }
    // The kernel's dump: whom it names, in the file and in the result alike.
    let dump = std::fs::read_to_string(kept.join("sched_ext_dump.txt")).expect("the dump was kept");
    assert!(
        dump.contains("ktstr_drop") && dump.contains("runnable task stall") && dump.contains("CPU states"),
        "{dump}"
    );
    let told = result["scheduler"]["dump"].as_str().unwrap_or_default();
    assert_eq!(told.trim_end(), dump.trim_end(), "{ran}");
}

#[test]
fn real_scheduler_passes_with_its_libraries_and_the_kernel_config() {
    let test = "guest: a real scheduler";
    let Some(kernel) = emulation(test, "7") else { return };
    let home = std::env::var("HOME").unwrap_or_default();
    let Some(sched) = std::env::var_os("KTSTR_REAL_SCHED").map(std::path::PathBuf::from).or_else(|| {
        Some(std::path::PathBuf::from(home).join(".cache/ktstr-scx/bin/scx_cosmos")).filter(|path| path.exists())
    }) else {
        return not_run(test, "no real scheduler: set KTSTR_REAL_SCHED to a program such as scx_cosmos");
    };
    let ran = run(&Scratch::new(), &kernel, &["--sched", &sched.display().to_string()]).exits(0);
    assert_eq!(check(&ran.json(), "scheduler_alive")["status"], "pass", "{ran}");
}

#[test]
fn unpacked_kernel_boots_too() {
    let test = "guest: vmlinux under emulation";
    if emulation(test, "7").is_none() {
        return;
    }
    let Some(vmlinux) = kernel("7", "vmlinux") else { return not_run(test, "no vmlinux in the cache") };
    run(&Scratch::new(), &vmlinux, &[]).exits(0);
}
