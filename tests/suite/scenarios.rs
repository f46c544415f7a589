//! Scenarios through the binary: the catalogue in a few boots, files, faults.

use crate::util::{Ran, Scratch, binary, emulation, finish, ktstr, root, run_in, share_machine};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Runs scenarios on the emulator, the result as JSON on standard output.
fn run(scratch: &Scratch, kernel: &Path, args: &[&str]) -> Ran {
    let kernel = kernel.display().to_string();
    let mut all = vec!["--kernel", &kernel, "--accel", "qemu", "--json", "-", "--duration", "1s", "--workers", "2"];
    all.extend(args);
    run_in(scratch, &all)
}

fn of<'a>(result: &'a Value, name: &str) -> &'a Value {
    let list = result["scenarios"].as_array().expect("scenarios are an array");
    list.iter().find(|one| one["name"].as_str().is_some_and(|full| full.ends_with(name))).expect(name)
}

#[test]
fn catalogue_passes_under_the_kernels_own_scheduler_and_skips_with_a_reason() {
    let Some(kernel) = emulation("scenarios: the catalogue", "7") else { return };
    let mut names = Vec::new();
    for categories in [["basic", "cpuset", "nested", "dynamic"], ["stress", "affinity", "stall", "performance"]] {
        let mut args = vec!["--topo", "4"];
        categories.iter().for_each(|category| args.extend(["--scenario", category]));
        let ran = run(&Scratch::new(), &kernel, &args).exits(0);
        let result = ran.json();
        for one in result["scenarios"].as_array().unwrap() {
            assert_eq!(one["outcome"], "pass", "{}{ran}", one["name"]);
            names.push(one["name"].as_str().unwrap().to_owned());
        }
        for skipped in result["skipped"].as_array().unwrap() {
            assert!(skipped["reason"].as_str().unwrap().contains("LLCs"), "{skipped}{ran}");
        }
    }
    // Those of the eight categories that need no second LLC.
    assert_eq!(names.len(), 33, "{names:?}");
}

#[test]
fn scenarios_of_several_llcs_and_nodes_pass_where_these_are() {
    let Some(kernel) = emulation("scenarios: several LLCs", "7") else { return };
    let names = ["llc_steady", "crossllc_steady", "numa_swap", "crossllc_race", "llc_affinity"];
    let names: Vec<String> = names.iter().map(|name| format!("cgroup_cpuset_{name}")).collect();
    let mut args = vec!["--topo", "2n2l2c1t", "--scenario", "cgroup_llc_overflow"];
    names.iter().for_each(|name| args.extend(["--scenario", name]));
    let ran = run(&Scratch::new(), &kernel, &args).exits(0);
    assert_eq!(ran.json()["scenarios"].as_array().unwrap().len(), 6, "{ran}");
}

#[test]
fn steps_phases_and_isolation_are_told() {
    let Some(kernel) = emulation("scenarios: phases", "7") else { return };
    let args = ["--topo", "4", "--scenario", "cgroup_cpuset_resize", "--scenario", "stall_recovery"];
    let ran = run(&Scratch::new(), &kernel, &args).exits(0);
    let result = ran.json();
    let resize = of(&result, "cgroup_cpuset_resize");
    let phases: Vec<&str> =
        resize["phases"].as_array().unwrap().iter().filter_map(|phase| phase["name"].as_str()).collect();
    assert_eq!(phases, ["step 1", "step 2", "step 3"], "{ran}");
    let stimuli = resize["stimuli"].to_string();
    assert!(stimuli.contains("set-cpuset a range:0%..34%"), "{ran}");
    let isolation = resize["checks"].as_array().unwrap().iter().find(|check| check["name"] == "isolation").unwrap();
    assert!(isolation["reason"].as_str().unwrap().contains("in force"), "{ran}");
    assert!(of(&result, "stall_recovery")["stimuli"].to_string().contains("restart-scheduler"), "{ran}");
}

#[test]
fn commands_keep_their_time_limit_and_tell_their_output() {
    let Some(kernel) = emulation("scenarios: commands", "7") else { return };
    let scratch = Scratch::new();
    let file = scratch.file(
        "mine.scn",
        "scenario mine\nstep 500ms\n  run hello: /bin/echo hi there\n  wait hello\n  run long limit=200ms: /bin/sleep 100\n  wait long\n  cgroup a: spin\n",
    );
    let ran = run(&scratch, &kernel, &["--scenario", &file.display().to_string()]).exits(0);
    let payloads = ran.json()["payloads"].clone();
    assert_eq!(payloads[0]["output"], "hi there\n", "{ran}");
    assert_eq!(payloads[0]["end"], "exit code 0", "{ran}");
    assert_eq!((&payloads[1]["timed_out"], &payloads[1]["end"]), (&true.into(), &"signal 9".into()), "{ran}");
}

#[test]
fn dropped_task_fails_one_scenario_and_the_next_is_judged_apart() {
    let Some(kernel) = emulation("scenarios: a fault", "7") else { return };
    let args = [
        "--duration",
        "8s",
        "--sched",
        "builtin:drop",
        "--scenario",
        "cgroup_steady",
        "--scenario",
        "cgroup_oversubscribed",
    ];
    let kernel = kernel.display().to_string();
    let mut all = vec!["--kernel", &kernel, "--accel", "qemu", "--json", "-"];
    all.extend(args);
    let ran = run_in(&Scratch::new(), &all).exits(1);
    let result = ran.json();
    assert_eq!(result["outcome"], "fail", "{ran}");
    assert_eq!(result["scenarios"].as_array().unwrap().len(), 2, "{ran}");
}

#[test]
fn scenarios_fail_for_their_own_reason_under_a_fault() {
    let Some(kernel) = emulation("scenarios: a fault for each", "7") else { return };
    let scratch = Scratch::new();
    let kernel = kernel.display().to_string();
    let args = ["selftest", "--scenarios", "--short", "--kernel", &kernel, "--accel", "qemu", "--json", "-"];
    let ran = run_in(&scratch, &args).exits(0);
    let played = ran.json();
    let played = played["scenarios"].as_array().expect("scenarios are an array");
    assert!(played.len() >= 3 && played.iter().all(|one| one["correct"] == true), "{ran}");
    for check in ["isolation", "not_starved"] {
        assert!(played.iter().any(|one| one["check"] == check && one["seen_outcome"] == "FAIL"), "{check}{ran}");
    }
    let left = std::fs::read_dir(scratch.0.join("ktstr/runs")).map(Iterator::count).unwrap_or(0);
    assert_eq!(left, 0, "selftest left files");
}

#[test]
fn recipe_of_the_readme_does_what_it_says() {
    let Some(kernel) = emulation("scenarios: the recipe", "7") else { return };
    let readme = std::fs::read_to_string(root().join("README.md")).expect("read README.md");
    let chapter = readme.split("## Recipe").nth(1).expect("a chapter with the recipe");
    let script = chapter.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a script");
    // What a newcomer builds and fetches is here already; all else is taken literally.
    let rest = script.split_once("cat >").expect("a scenario file in it").1;
    let rest = rest.replace("~/.cache/ktstr/kernels/7/vmlinuz", &kernel.display().to_string());
    let scratch = Scratch::new();
    std::os::unix::fs::symlink(binary(), scratch.0.join("ktstr")).expect("link the binary");
    let mut command = Command::new("sh");
    command
        .args(["-ec", &format!("cat >{rest}")])
        .current_dir(&scratch.0)
        .env("XDG_STATE_HOME", scratch.0.join("state"));
    let _shared = share_machine();
    let ran = finish(command, Duration::from_secs(300)).exits(1);
    let verdicts: Vec<&str> =
        ran.stdout.lines().filter(|line| line.starts_with("PASS") || line.starts_with("FAIL:")).collect();
    assert_eq!(verdicts.len(), 2, "{ran}");
    assert!(verdicts[0].starts_with("PASS") && verdicts[1].contains("not_starved: worker 0 of newcomers"), "{ran}");
}

#[test]
fn catalogue_has_a_fault_for_every_scenario() {
    let ran = ktstr(&["selftest", "--scenarios", "--list"]).exits(0);
    assert_eq!(ran.stdout.lines().count(), 73, "{ran}");
    ktstr(&["selftest", "--scenarios", "--list", "no_such"]).exits(128).says("no scenario's name has 'no_such'");
}

#[test]
fn cgroups_can_be_given_one_by_one() {
    let Some(kernel) = emulation("scenarios: --cgroup", "7") else { return };
    let args =
        ["--topo", "4", "--cgroup", "a cpuset=cpus:0-1 weight=200: spin*2", "--cgroup", "b: pipe*1 nice=5; yield*1"];
    let ran = run(&Scratch::new(), &kernel, &args).exits(0);
    let result = ran.json();
    let workers = result["workers"].as_array().expect("workers are an array");
    assert_eq!(workers.len(), 5, "{ran}");
    let isolation = result["checks"].as_array().unwrap().iter().find(|check| check["name"] == "isolation").unwrap();
    assert_eq!((&isolation["group"], &isolation["status"]), (&"a".into(), &"pass".into()), "{ran}");
    ktstr(&["--kernel", "x", "--cgroup", "a wieght=2: spin"])
        .exits(128)
        .says("column 3")
        .says("did you mean 'weight'?");
}

#[test]
fn file_is_checked_without_running_it() {
    let scratch = Scratch::new();
    let shown = ktstr(&["show", "cpuset"]).exits(0);
    let file = scratch.file("all.scn", &shown.stdout);
    ktstr(&["check", &file.display().to_string(), "--topo", "4"])
        .exits(0)
        .says("cgroup a on CPUs 0-1")
        .says("would be skipped");
    let bad = scratch.file("bad.scn", "scenario x\nstep\n  cgruop a: spin\n");
    ktstr(&["check", &bad.display().to_string()]).exits(128).says("line 3, column 3").says("did you mean 'cgroup'?");
    ktstr(&["list", "scenarios"]).exits(0).says("performance/fanout_wake");
}
