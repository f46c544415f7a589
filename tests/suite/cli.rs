//! The command line as a user types it, wrong ones above all.

use crate::util::{Scratch, ktstr, run_in};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn help_shows_the_main_job_and_the_exit_codes() {
    let ran = ktstr(&["--help"]).exits(0).says("ktstr --kernel bzImage --sched ./scx_foo --work spin").says("125");
    assert!(ran.stdout.lines().all(|line| line.chars().count() <= 80), "{ran}");
    ktstr(&["help", "run"]).exits(0).says("--topo");
}

#[test]
fn version_names_the_build() {
    let ran = ktstr(&["--version"]).exits(0).says(env!("CARGO_PKG_VERSION"));
    assert!(ran.stderr.is_empty(), "{ran}");
}

#[test]
fn panic_is_an_error_that_stops_a_bisection() {
    ktstr(&["__panic"]).exits(128).says("ktstr: error: panicked at src/cli/").says("provoked").says("please report it");
}

/// One line of words, however it was wrapped.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_work_type_is_listed_and_explained_with_all_that_is_its_own() {
    let listed = ktstr(&["list", "works"]).exits(0);
    // An entry begins in the first column; its other lines are indented.
    let entries = listed.stdout.replace("\n ", " ");
    let mut names = Vec::new();
    for info in ktstr::workload::types() {
        let line = entries.lines().find(|line| line.split(' ').next() == Some(info.cli_name));
        let line = words(line.unwrap_or_else(|| panic!("{} is not listed:{listed}", info.cli_name)));
        let parameters = info.default.parameters_text();
        let kinds: Vec<&str> = info.sample_kinds.iter().map(|kind| kind.name()).collect();
        let head = if parameters.is_empty() { info.name.to_owned() } else { format!("{}({parameters})", info.name) };
        assert!(line.contains(&head) && line.ends_with(&words(info.description)), "{line}");
        assert_eq!(line.contains("group of "), info.default.worker_group_size() > 1, "{line}");
        assert!(kinds.is_empty() || line.contains(&format!("samples {}", kinds.join(" and "))), "{line}");

        // By each of its names, with defaults, members of a group, samples and the method.
        let ran = ktstr(&["help", "work", info.cli_name]).exits(0);
        let text = words(&ran.stdout);
        let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
        for part in [
            format!("{} ({}): {}", info.cli_name, info.name, info.description),
            format!("parameters {}", or_none(parameters)),
            format!("group size {}", info.group),
            format!("samples {}", or_none(kinds.join(", "))),
            info.method.to_owned(),
        ] {
            assert!(text.contains(&words(&part)), "'{part}' is missing:{ran}");
        }
        assert_eq!(ktstr(&["help", "work", info.name]).exits(0).stdout, ran.stdout);
        names.push(info.name);
    }
    assert_eq!(names, ktstr::workload::ALL_NAMES);
    assert_eq!(entries.lines().count(), names.len(), "{listed}");
}

/// In the binary as it is delivered, where a panic ends the process at once.
#[test]
fn worker_that_panics_is_told_with_its_words_and_disturbs_no_other() {
    let mut ran = ktstr(&["__panic", "worker"]).exits(0);
    for kind in ["process", "thread"] {
        let panicked = "panicked: provoked in a worker at src/cli/cmd_panic.rs:";
        ran = ran.says(&format!("{kind}: worker 0 (tid ")).says(&format!("{kind}: Custom in group 0 {panicked}"));
        ran = ran.says(&format!("{kind}: SpinWait in group 1 completed"));
    }
    assert!(ran.stderr.is_empty(), "{ran}");
}

#[test]
fn unknown_words_suggest_the_nearest() {
    ktstr(&["--kernl", "x"]).exits(128).says("--kernel");
    ktstr(&["dcotor"]).exits(128).says("doctor");
    ktstr(&["--kernel", "x", "--work", "spni"]).exits(128).says("spin");
    ktstr(&["--kernel", "x", "--sched", "builtin:fifoo"]).exits(128).says("builtin:fifo");
}

#[test]
fn missing_kernel_flag_is_told() {
    ktstr(&[]).exits(128).says("no kernel");
}

#[test]
fn values_out_of_range_are_refused_before_anything_starts() {
    for (args, why) in [
        (["--topo", "0"], "at least 1"),
        (["--topo", "1n2l"], "not a topology"),
        (["--workers", "0"], "--workers"),
        (["--cgroups", "0"], "--cgroups"),
        (["--duration", "0s"], "--duration"),
        (["--duration", "5"], "unit"),
        (["--duration", "1ns"], "too short"),
        (["--memory", "lots"], "--memory"),
        (["--accel", "xen"], "--accel"),
    ] {
        let ran = ktstr(&["--kernel", "/nowhere", args[0], args[1]]).exits(128).says(why);
        assert!(ran.took.as_secs() < 5, "{ran}");
    }
}

#[test]
fn result_that_would_fall_on_an_input_or_on_another_result_is_refused() {
    let scratch = Scratch::new();
    let kernel = scratch.file("kernel", "precious").display().to_string();
    let new = scratch.0.join("new").display().to_string();
    for words in [
        &["--kernel", &kernel, "--json", &kernel][..],
        &["--kernel", &kernel, "--matrix", "topo=1,2", "--junit", &kernel],
        &["--kernel", &kernel, "--junit", &new, "--ktap", &new],
        &["selftest", "--kernel", &kernel, "--json", &kernel],
        &["image", "--include", &kernel, "--output", &kernel],
    ] {
        run_in(&scratch, words).exits(128).says("a result needs a file of its own");
        assert_eq!(std::fs::read_to_string(&kernel).expect("read the kernel"), "precious", "{words:?}");
        assert!(!scratch.0.join("new").exists(), "{words:?}");
    }
}

#[test]
fn names_and_files_that_are_odd_are_told_and_do_no_harm() {
    let scratch = Scratch::new();
    let odd = scratch.0.join("a\u{1b}[31mb").display().to_string();
    let ran = run_in(&scratch, &["--kernel", &odd]).exits(128).says("\\u{1b}[31mb");
    assert!(!format!("{}{}", ran.stdout, ran.stderr).contains('\u{1b}'), "{ran}");
    // What the kernel makes as it is read says that it is empty.
    let image = scratch.0.join("image").display().to_string();
    let ran = run_in(&scratch, &["image", "--include", "/proc/version:/data/version", "--output", &image]);
    ran.exits(128).says("beforehand");
    assert!(!scratch.0.join("image").exists());

    let scenario = "scenario a\nstep 50%\n  cgroup x: spin\n";
    let plain = scratch.file("plain", scenario).display().to_string();
    let marked = scratch.file("marked", format!("\u{feff}{scenario}")).display().to_string();
    let [plain, marked] = [plain, marked].map(|path| ktstr(&["check", &path]).exits(0).stdout);
    assert_eq!(plain.replace("plain", "marked"), marked);
    let latin = scratch.file("latin", [&scenario.as_bytes()[..11], b"# \xe9\n"].concat()).display().to_string();
    ktstr(&["check", &latin]).exits(128).says("line 2 is not UTF-8");
}

#[test]
fn kernels_that_are_none_are_each_told_apart() {
    let scratch = Scratch::new();
    let elf = |machine: u8, class: u8| {
        let mut bytes = vec![0u8; 128];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        bytes[16] = 2;
        bytes[18] = machine;
        bytes
    };
    let mut cut = vec![0u8; 1024];
    cut[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    cut[0x202..0x206].copy_from_slice(b"HdrS");
    for (name, content, why) in [
        ("empty", vec![], "empty"),
        ("garbage", b"this is a shell script, perhaps".to_vec(), "kernel"),
        ("truncated", cut, "trunc"),
        ("arm64", elf(183, 2), "aarch64"),
        ("i386", elf(3, 1), "32-bit"),
    ] {
        let path = scratch.file(name, content);
        let ran = run_in(&scratch, &["--kernel", &path.display().to_string(), "--accel", "qemu"]).exits(128);
        assert!(ran.stderr.to_lowercase().contains(why), "{name}: no '{why}' in{ran}");
        assert!(ran.stderr.contains(name), "the file is not named in{ran}");
    }
    run_in(&scratch, &["--kernel", "/no/such/kernel"]).exits(128).says("/no/such/kernel");
    run_in(&scratch, &["--kernel", "/tmp"]).exits(128).says("directory");
    assert!(!scratch.0.join("ktstr").exists(), "a refused run left a run directory");
}

#[test]
fn schedulers_that_cannot_run_are_each_told_apart() {
    let scratch = Scratch::new();
    let script = |name: &str, text: &str, mode: u32| {
        let path = scratch.file(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    for (sched, why) in [
        ("/no/such/scx_foo".to_owned(), "no such file"),
        (script("plain", "#!/bin/sh\n", 0o644), "execut"),
        (script("nointerp", "#!/no/such/interpreter\n", 0o755), "/no/such/interpreter"),
        (script("text", "just text\n", 0o755), "text"),
        ("/tmp".to_owned(), "directory"),
    ] {
        let ran = run_in(&scratch, &["image", "--list", "--sched", &sched]).exits(128);
        assert!(ran.stderr.to_lowercase().contains(why), "no '{why}' in{ran}");
    }
}

#[test]
fn result_that_cannot_be_written_is_found_out_before_the_run() {
    let Some(kernel) = crate::util::kernel("7", "vmlinuz") else {
        return crate::util::not_run("cli: unwritable result", "the kernel '7' is not in the cache");
    };
    let kernel = kernel.display().to_string();
    let scratch = Scratch::new();
    for (args, why) in [
        (["--json", "/no/such/place/x.json"], "/no/such/place/x.json"),
        (["--memory", "100000G"], "more than"),
        (["--kernel-config", "/dev/null"], "--kernel-config"),
    ] {
        let ran = run_in(&scratch, &["--kernel", &kernel, args[0], args[1]]).exits(128).says(why);
        assert!(ran.took.as_secs() < 5, "{ran}");
    }
    assert!(!scratch.0.join("ktstr").exists(), "a refused run left a run directory");
}

#[test]
fn refused_run_directory_loses_nothing() {
    let scratch = Scratch::new();
    let kernel = crate::util::kernel("7", "vmlinuz");
    let Some(kernel) = kernel else {
        return crate::util::not_run("cli: run directory", "the kernel '7' is not in the cache");
    };
    fs::create_dir(scratch.0.join("rd")).unwrap();
    scratch.file("rd/record", "mine");
    scratch.file("rd/foreign", "mine too");
    let directory = scratch.0.join("rd").display().to_string();
    run_in(&scratch, &["--kernel", &kernel.display().to_string(), "--accel", "qemu", "--run-dir", &directory])
        .exits(128)
        .says("foreign");
    assert_eq!(fs::read(scratch.0.join("rd/record")).unwrap(), b"mine");
}

#[test]
fn lists_and_completions_come_from_the_same_tables() {
    ktstr(&["list", "works"]).exits(0).says("ping-pong").says("FutexPingPong");
    ktstr(&["list", "schedulers"]).exits(0).says("builtin:drop");
    ktstr(&["list", "log-patterns"])
        .exits(0)
        .says("'Kernel panic - not syncing: ")
        .says("ignore ")
        .says("sched-ext-exit");
    ktstr(&["completions", "bash"]).exits(0).says("--kernel");
}

#[test]
fn help_on_bisection_shows_a_step_and_every_exit_code_that_git_knows() {
    let ran = ktstr(&["bisect-help"]).exits(0).says("git bisect run").says("--repeat").says("bisect-check");
    for code in ["0", "1", "125", "127"] {
        assert!(
            ran.stdout.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == code),
            "no exit code {code}{ran}"
        );
    }
    assert_eq!(ran.stdout, ktstr(&["help", "bisect"]).exits(0).stdout);
}

#[test]
fn doctor_gives_a_line_and_a_remedy_for_each_fact() {
    let ran = ktstr(&["doctor"]);
    assert!(matches!(ran.code, Some(0 | 128)), "{ran}");
    for fact in ["KVM", "QEMU", "CPU", "memory", "cgroup"] {
        assert!(ran.stdout.to_lowercase().contains(&fact.to_lowercase()), "no {fact} in{ran}");
    }
}

#[test]
fn kept_runs_are_listed_and_only_they_are_pruned() {
    let scratch = Scratch::new();
    // A process id that no Linux gives out.
    let run = scratch.0.join("ktstr/runs/1600000000-4194305-0");
    fs::create_dir_all(&run).unwrap();
    fs::create_dir_all(scratch.0.join("ktstr/runs/mine")).unwrap();
    scratch.file("ktstr/runs/1600000000-4194305-0/record", [0; 9000]);
    run_in(&scratch, &["runs"]).exits(0).says("1600000000-4194305-0").says("cut").says("1 kept in");
    run_in(&scratch, &["runs", "--prune"]).exits(0).says("0 removed");
    run_in(&scratch, &["runs", "--prune", "--max-size", "0M"]).exits(0).says("1 removed");
    assert!(!run.exists() && scratch.0.join("ktstr/runs/mine").exists());
}
