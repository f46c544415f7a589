//! Many runs: matrices, repetitions, budgets, and one run that dies.

use crate::util::{
    Scratch, binary, emulation, end_within, finish, processes_with, run_in, share_machine, signal, spawn_quietly,
};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SHORT: [&str; 4] = ["--accel", "qemu", "--duration", "300ms"];

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Run directories, and files in them, that are left.
fn left(scratch: &Scratch) -> usize {
    std::fs::read_dir(scratch.0.join("ktstr/runs")).map(Iterator::count).unwrap_or(0)
}

#[test]
fn wrong_matrices_are_refused_before_anything_runs() {
    let scratch = Scratch::new();
    for (args, why) in [
        (["--matrix", "tpoo=1"], "did you mean 'topo'"),
        (["--matrix", "work=spin,spni"], "work=spni: --work:"),
        (["--matrix", "kernel=/no/such/kernel"], "/no/such/kernel"),
        (["--matrix", "scenario=cpuset/*,no-such"], "scenario=no-such: there is no scenario 'no-such'"),
        (["--repeat", "0"], "at least 1"),
        (["--pass-ratio", "2"], "no share"),
    ] {
        let kernel: &[&str] = if args[1].starts_with("kernel") { &[] } else { &["--kernel", "/nowhere"] };
        let ran = run_in(&scratch, &[&args[..], kernel, &["--accel", "qemu"]].concat()).exits(128).says(why);
        assert!(ran.took < Duration::from_secs(5), "{ran}");
    }
    assert!(!scratch.0.join("ktstr").exists(), "a refused matrix left a directory");
}

#[test]
fn matrix_of_kernels_and_schedulers_is_one_verdict_in_every_form() {
    let (Some(new), Some(old)) = (emulation("many: matrix", "7"), emulation("many: matrix", "6.12")) else { return };
    let scratch = Scratch::new();
    let kernels = format!("kernel={},{}", shown(&new), shown(&old));
    let (junit, ktap) = (shown(&scratch.0.join("j.xml")), shown(&scratch.0.join("k.tap")));
    let args = [
        "--matrix",
        &kernels,
        "--matrix",
        "sched=none,builtin:fifo",
        "--junit",
        &junit,
        "--ktap",
        &ktap,
        "--json",
        "-",
    ];
    let ran = run_in(&scratch, &[&args[..], &SHORT].concat()).exits(125);
    let json = ran.json();
    assert_eq!((json["schema"].as_str(), json["outcome"].as_str()), (Some("ktstr.suite/1"), Some("skip")), "{ran}");
    assert_eq!((json["counts"]["pass"].as_u64(), json["counts"]["skip"].as_u64()), (Some(3), Some(1)), "{ran}");
    let outcomes: Vec<&str> =
        json["cells"].as_array().unwrap().iter().filter_map(|cell| cell["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["pass", "pass", "pass", "skip"], "{ran}");
    let result = &json["cells"][1]["runs"][0]["result"];
    assert_eq!(
        (&result["schema"], &result["scheduler"]["ops"]),
        (&"ktstr.result/1".into(), &"ktstr_fifo".into()),
        "{ran}"
    );
    let junit = std::fs::read_to_string(junit).unwrap();
    assert!(junit.contains("tests=\"4\" failures=\"0\" errors=\"0\" skipped=\"1\""), "{junit}");
    let ktap = std::fs::read_to_string(ktap).unwrap();
    assert!(ktap.starts_with("KTAP version 1\n1..4\nok 1 ") && ktap.contains("# SKIP"), "{ktap}");
    // One directory for all, with the one run in it that did not pass.
    let root = std::fs::read_dir(scratch.0.join("ktstr/runs")).unwrap().next().unwrap().unwrap().path();
    let mut names: Vec<String> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["0004", "suite.json", "summary.txt"], "{ran}");
    assert!(root.join("0004/record").exists());
}

#[test]
fn failing_combination_is_named_and_the_rest_still_runs() {
    let Some(kernel) = emulation("many: failure", "7") else { return };
    let scratch = Scratch::new();
    // The kernel under one of the two command lines has no init, which counts as a failure here.
    let args = ["--kernel", &shown(&kernel), "--matrix", "cmdline=rdinit=/no/such;quiet", "--boot-failure", "fail"];
    let ran = run_in(&scratch, &[&args[..], &SHORT].concat()).exits(1);
    let ran = ran.says("FAIL: of 2 runs, 1 passed, 1 failed; cmdline=rdinit=/no/such: ").says("did not boot");
    assert!(ran.stdout.contains("first failure: cmdline=rdinit=/no/such, run 1"), "{ran}");
}

#[test]
fn passing_repetitions_leave_nothing_and_tell_what_they_are_worth() {
    let Some(kernel) = emulation("many: repeat", "7") else { return };
    let scratch = Scratch::new();
    let args = ["--kernel", &shown(&kernel), "--repeat", "2", "--flake-rate", "30%", "--steps", "10"];
    let ran = run_in(&scratch, &[&args[..], &SHORT].concat()).exits(0);
    let ran = ran.says("0 of 2 failed, 0.0 % (95 % Clopper-Pearson interval 0.0 to 84.2 %)");
    // 0.7^2, and 1 - (1 - 0.49)^10.
    ran.says("with a chance of 49.0 %; one such step or more in 10: 99.9 %");
    assert_eq!(left(&scratch), 0);
}

/// In the command line of an emulator.
const OF_EMULATORS: &str = " -append ";

/// Kills a process that has these words in its command line, as soon as there is an emulator that has the second, too.
fn kill_when_started(words: [&str; 2]) {
    let limit = Instant::now() + Duration::from_secs(60);
    while Instant::now() < limit {
        // Asked first: before its exec an emulator looks like the run that starts it.
        let started = processes_with(OF_EMULATORS).iter().any(|line| line.contains(words[1]));
        for entry in std::fs::read_dir("/proc").unwrap().flatten().filter(|_| started) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if words.iter().all(|word| line.contains(word)) {
                let pid = entry.file_name().to_string_lossy().into_owned();
                assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no process with {words:?} appeared");
}

#[test]
fn process_that_dies_takes_only_its_own_cell() {
    let Some(kernel) = emulation("many: death", "7") else { return };
    let scratch = Scratch::new();
    let [of_run, of_vm] = ["run", "vm"].map(|name| format!("ktstr.test={name}{}", std::process::id()));
    let mut command = Command::new(binary());
    command
        .args(["--kernel", &shown(&kernel), "--matrix", &format!("cmdline={of_run},{of_vm},quiet"), "--json", "-"])
        .args(SHORT)
        .env("XDG_STATE_HOME", &scratch.0);
    // The process of one run, and with it its VM; of another the VM's own process.
    let killers = [("/proc/self/exe run ", of_run.clone()), (OF_EMULATORS, of_vm.clone())]
        .map(|(process, marker)| std::thread::spawn(move || kill_when_started([process, &marker])));
    let _shared = share_machine();
    let ran = finish(command, Duration::from_secs(120)).exits(128);
    killers.into_iter().for_each(|killer| killer.join().unwrap());
    let json = ran.json();
    let ends: Vec<[&str; 2]> = json["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| [&cell["outcome"], &cell["runs"][0]["headline"]].map(|value| value.as_str().unwrap_or_default()))
        .collect();
    assert_eq!(ends[0], ["error", "its process was ended by signal 9"], "{ran}");
    assert_eq!(ends[1][0], "error", "{ran}");
    assert!(ends[1][1].contains("the VM's process ended unexpectedly with signal 9"), "{ran}");
    assert_eq!(ends[2][0], "pass", "{ran}");
    for marker in [of_run, of_vm] {
        assert_eq!(processes_with(&marker), Vec::<String>::new(), "a VM outlived its run");
    }
}

#[test]
fn interrupted_matrix_stops_all_and_leaves_nothing() {
    let Some(kernel) = emulation("many: interruption", "7") else { return };
    let scratch = Scratch::new();
    let _shared = share_machine();
    let marker = format!("ktstr.test=matrix{}", std::process::id());
    let mut command = Command::new(binary());
    command.args(["--kernel", &shown(&kernel), "--cmdline", &marker, "--repeat", "8"]);
    command.args(["--accel", "qemu", "--duration", "30s"]);
    let mut child = spawn_quietly(&mut command, &scratch);
    let limit = Instant::now() + Duration::from_secs(60);
    while processes_with("-append").iter().filter(|line| line.contains(&marker)).count() == 0 {
        assert!(Instant::now() < limit, "no VM started");
        std::thread::sleep(Duration::from_millis(50));
    }
    signal("INT", &child);
    let status = end_within(&mut child, Duration::from_secs(30));
    assert_eq!(status.code(), Some(130));
    assert_eq!(processes_with(&marker), Vec::<String>::new());
    assert_eq!(left(&scratch), 0);
}

/// Runs that fail before PID 1, which is quick.
const FAILS: [&str; 6] = ["--cmdline", "rdinit=/no/such", "--cmdline", "init=/no/such", "--boot-failure", "fail"];

#[test]
fn until_fail_stops_at_the_first_failure() {
    let Some(kernel) = emulation("many: until fail", "7") else { return };
    let kernel = shown(&kernel);
    // One at a time: two that end together are both counted.
    let until = ["--kernel", &kernel, "--until-fail", "3", "--jobs", "1", "--json", "-"];
    let args = [&until[..], &FAILS, &SHORT].concat();
    let ran = run_in(&Scratch::new(), &args).exits(1);
    let json = ran.json();
    assert_eq!((json["counts"]["fail"].as_u64(), json["counts"]["pass"].as_u64()), (Some(1), Some(0)), "{ran}");
    ran.says("of 1 run, 1 failed; 2 of 3 not done");
}

#[test]
fn pass_ratio_says_how_many_may_fail() {
    let Some(kernel) = emulation("many: pass ratio", "7") else { return };
    let kernel = shown(&kernel);
    for (ratio, code) in [("0", 0), ("50%", 1)] {
        let args = [&["--kernel", &kernel, "--repeat", "2", "--pass-ratio", ratio][..], &FAILS, &SHORT].concat();
        run_in(&Scratch::new(), &args).exits(code).says("of 2 runs, 2 failed");
    }
}
