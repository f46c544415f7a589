//! Scenarios through the binary: the catalogue in a few boots, files, faults.

use crate::lab::Cell;
use crate::util::{
    Ran, Scratch, TRIES, attempt_in, binary, emulation, finish, ktstr, not_run, root, run_in, share_machine,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
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

/// No try to play the whole catalogue takes longer: five times what it took beside other load.
const CATALOGUE_LIMIT: Duration = Duration::from_secs(900);

/// Whether everything that failed is about how far somebody came in a time, which the machine's other load may have taken:
/// never a worker on a CPU that is not its own, a refused setting, or a kernel that complains of something else.
fn fails_by_a_time(one: &Value) -> bool {
    let failed = one["checks"].as_array().into_iter().flatten().filter(|check| check["status"] == "fail");
    let of_time = |check: &Value| {
        let reason = check["reason"].as_str().unwrap_or_default();
        match check["name"].as_str().unwrap_or_default() {
            "not_starved" => true,
            "kernel_log_clean" => ["stall", "lockup", "hung"].iter().any(|word| reason.contains(word)),
            _ => false,
        }
    };
    let mut failed = failed.peekable();
    one["outcome"] == "fail" && failed.peek().is_some() && failed.all(of_time)
}

#[test]
fn only_a_failure_about_a_time_is_tried_again() {
    let failed = |name: &str, reason: &str| {
        let good = json!({"name": "spread", "status": "pass", "reason": ""});
        json!({"outcome": "fail", "checks": [good, {"name": name, "status": "fail", "reason": reason}]})
    };
    assert!(fails_by_a_time(&failed("not_starved", "worker 0 of a, tid 9 (Mixed) did no work")));
    assert!(fails_by_a_time(&failed("kernel_log_clean", "rcu: INFO: rcu_preempt self-detected stall on CPU")));
    assert!(!fails_by_a_time(&failed("kernel_log_clean", "WARNING: CPU: 0 PID: 1")));
    assert!(!fails_by_a_time(&failed("isolation", "worker 0 of a, tid 9 ran on CPUs 1, outside of 0")));
    assert!(!fails_by_a_time(&json!({"outcome": "fail", "checks": []})));
    assert!(!fails_by_a_time(&json!({"outcome": "pass", "checks": []})));
}

/// All of them in one boot; those that the machine's other load left without a verdict once more, without the others.
#[test]
fn catalogue_passes_under_the_kernels_own_scheduler() {
    let Some(kernel) = emulation("scenarios: the catalogue", "7") else { return };
    let kernel = kernel.display().to_string();
    let args = ["--kernel", &kernel, "--accel", "qemu", "--json", "-", "--topo", "2n2l2c1t", "--workers", "2"];
    let args = [&args[..], &["--duration", "1s", "--timeout", "14m"]].concat();
    let mut passed = BTreeSet::new();
    let mut left = vec!["*".to_owned()];
    for attempt in 1..=TRIES {
        let mut all = args.clone();
        left.iter().for_each(|name| all.extend(["--scenario", name]));
        let ran = attempt_in(&Scratch::new(), &all, attempt, CATALOGUE_LIMIT);
        let result = ran.json();
        // A run of one scenario is told as that scenario.
        let several = result["scenarios"].as_array().filter(|list| !list.is_empty());
        let played: Vec<(&str, &Value)> = match several {
            Some(list) => list.iter().map(|one| (one["name"].as_str().expect("a name"), one)).collect(),
            None => vec![(left[0].as_str(), &result)],
        };
        // Alone, and without the load of this process, each of them has to pass.
        let is_spoiled = |one: &Value| one["outcome"] == "inconclusive" || (attempt == 1 && fails_by_a_time(one));
        let (spoiled, judged): (Vec<_>, Vec<_>) = played.iter().partition(|(_, one)| is_spoiled(one));
        for (name, one) in judged {
            assert_eq!(one["outcome"], "pass", "{name}{ran}");
            passed.insert((*name).to_owned());
        }
        left = spoiled.iter().map(|(name, _)| (*name).to_owned()).collect();
        if left.is_empty() {
            break;
        }
        not_run(
            &format!("try {attempt} of {}", left.join(", ")),
            "the machine was too busy for a verdict; tried once more",
        );
    }
    assert_eq!((passed.len(), left.as_slice()), (73, &[][..]), "{passed:?}");
}

const ON_KVM: &str = "scenarios on KVM";
/// Of `basic` and `performance`, what two CPUs are enough for.
const OF_TWO_CPUS: [&str; 5] = [
    "basic/cgroup_steady",
    "performance/cache_pressure_imbalance",
    "performance/cache_yield_wake_affine",
    "performance/cache_pipe_io_compute_imbalance",
    "performance/fanout_wake",
];

/// Runs of our own VMM on real KVM.
pub fn cells() -> Vec<Cell> {
    let names = OF_TWO_CPUS.map(|name| format!(" --scenario {name}")).concat();
    // Shares of one second are not even on a host whose own CPUs are emulated.
    let machine = "--kernel /k/7/vmlinuz --accel kvm --json - --topo 2";
    let args = format!("{machine} --workers 2 --duration 1s --spread off{names}");
    vec![Cell { name: ON_KVM.into(), args }]
}

/// Where the emulator's own times are not judged: gaps, run delays and wake-ups are, there.
#[test]
fn checks_on_times_are_applied_on_kvm_and_pass() {
    let Some(result) = crate::boot::cell(ON_KVM) else { return };
    let json = result.json();
    let played = json["scenarios"].as_array().expect("scenarios are an array");
    for wanted in OF_TWO_CPUS {
        let named = |one: &&Value| one["name"] == *wanted;
        let one = played.iter().find(named).unwrap_or_else(|| panic!("{wanted}:\n{}", result.text));
        let name = one["name"].as_str().expect("a name");
        let headline = one["headline"].as_str().unwrap_or_default();
        // What a busy host took of a limit is nobody's failure, and no success. What the emulated host's own host took of it
        // nobody in there can see.
        let of_host =
            one["outcome"] == "inconclusive" && (headline.contains("host") || headline.contains("vCPUs waited"));
        let of_time =
            ["max_gap", "max_run_delay", "wake_", "throughput_cv"].iter().any(|time| headline.starts_with(time));
        let checks = one["checks"].as_array().expect("checks are an array");
        let own: &[&str] = match name {
            "performance/fanout_wake" => &["wake_cv", "wake_p99"],
            "performance/cache_pressure_imbalance" => &["throughput_cv"],
            _ => &[],
        };
        let all_are = |wanted: &[&str]| {
            for check in ["not_starved", "max_gap", "max_run_delay"].iter().chain(own) {
                // A group of one has nothing to compare, another has.
                let known = checks.iter().filter(|known| known["name"] == *check);
                let statuses: Vec<&str> = known.filter_map(|known| known["status"].as_str()).collect();
                let is_one = statuses.iter().any(|status| wanted.contains(status));
                assert!(is_one, "{name}: {check} is {statuses:?}:\n{}", result.text);
            }
        };
        if of_host || (of_time && !crate::util::kvm_works()) {
            all_are(&["pass", "fail", "inconclusive"]);
            not_run(&format!("scenarios: {name} on KVM"), headline);
            continue;
        }
        assert_eq!(one["outcome"], "pass", "{name}:\n{}", result.text);
        all_are(&["pass"]);
    }
}

#[test]
fn steps_phases_and_isolation_are_told() {
    let Some(kernel) = emulation("scenarios: phases", "7") else { return };
    let names = ["cgroup_cpuset_resize", "stall_recovery", "cgroup_cpuset_llc_steady"];
    let mut args = vec!["--topo", "4"];
    names.iter().for_each(|name| args.extend(["--scenario", name]));
    let ran = run(&Scratch::new(), &kernel, &args).exits(0);
    let result = ran.json();
    let skipped = &result["skipped"][0];
    assert!(skipped["name"].as_str().unwrap().ends_with(names[2]), "{ran}");
    assert!(skipped["reason"].as_str().unwrap().contains("LLCs"), "{ran}");
    let resize = of(&result, "cgroup_cpuset_resize");
    let phases: Vec<&str> =
        resize["phases"].as_array().unwrap().iter().filter_map(|phase| phase["name"].as_str()).collect();
    assert_eq!(phases, ["step 1", "step 2", "step 3"], "{ran}");
    // What was longest begins anew with each phase, and is known where the kernel counts at all.
    for phase in resize["phases"].as_array().unwrap() {
        let groups = phase["groups"].as_array().unwrap();
        assert!(groups.iter().any(|group| group["max_gap_ns"].as_u64() > Some(0)), "{ran}");
        assert!(groups.iter().all(|group| group["max_run_delay_ns"].is_u64()), "{ran}");
    }
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

/// What no scenario of the catalogue does. Programs in the guest look what became of it.
#[test]
fn ops_on_shares_cpus_commands_and_the_scheduler_do_what_they_say() {
    let Some(kernel) = emulation("scenarios: ops", "7") else { return };
    const FILE: &str = "scenario ops
backdrop
  host: spin*1
step 200ms
  cgroup a weight=50 max=80ms/100ms: spin*1
step 200ms
  run before: /bin/cat /sys/fs/cgroup/ktstr/a/cpu.weight /sys/fs/cgroup/ktstr/a/cpu.max
  wait before
  set-weight a 300
  set-max a 50%
  run after: /bin/cat /sys/fs/cgroup/ktstr/a/cpu.weight /sys/fs/cgroup/ktstr/a/cpu.max
  wait after
  add-cgroup b
  run sleeper cgroup=b: /bin/sleep 100
  run members: /bin/cat /sys/fs/cgroup/ktstr/b/cgroup.procs
  wait members
  kill sleeper
  cgroup c: spin*2
step 1s
  remove-cgroup c
  detach-scheduler
  run detached: /bin/cat /sys/kernel/sched_ext/state
  wait detached
  cpu-offline 1
  run fewer: /bin/cat /sys/devices/system/cpu/online
  wait fewer
step 200ms
  cpu-online 1
  run all: /bin/cat /sys/devices/system/cpu/online
  wait all
  attach-scheduler
  run attached: /bin/cat /sys/kernel/sched_ext/root/ops
  wait attached
  replace-scheduler builtin:noop
  run replaced: /bin/cat /sys/kernel/sched_ext/root/ops
  wait replaced
";
    let scratch = Scratch::new();
    let file = scratch.file("ops.scn", FILE).display().to_string();
    let ran = run(&scratch, &kernel, &["--topo", "2", "--sched", "builtin:fifo", "--scenario", &file]).exits(0);
    let result = ran.json();
    let payloads = result["payloads"].as_array().expect("payloads are an array");
    let of = |name: &str| payloads.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}{ran}"));
    let outputs = [
        ("before", "50\n80000 100000\n"),
        ("after", "300\n50000 100000\n"),
        ("detached", "disabled\n"),
        ("fewer", "0\n"),
        ("all", "0-1\n"),
        ("attached", "ktstr_fifo\n"),
        ("replaced", "ktstr_noop\n"),
    ];
    for (name, output) in outputs {
        assert_eq!(of(name)["output"].as_str().unwrap().trim_end(), output.trim_end(), "{name}{ran}");
    }
    assert!(of("members")["output"].as_str().unwrap().trim().parse::<u32>().is_ok(), "{ran}");
    assert_eq!((&of("sleeper")["killed"], &of("sleeper")["end"]), (&true.into(), &"signal 9".into()), "{ran}");
    // Those of a cgroup that is gone are reported and judged as all others are.
    let removed = result["workers"].as_array().unwrap().iter().filter(|worker| worker["group"] == "c");
    assert!(removed.clone().count() == 2 && removed.clone().all(|worker| worker["completed"] == true), "{ran}");
    let starved = result["checks"].as_array().unwrap().iter().find(|check| check["name"] == "not_starved").unwrap();
    assert!(starved["reason"].as_str().unwrap().contains("all 4 workers worked"), "{ran}");
    let stimuli = result["stimuli"].to_string();
    let ops = ["set-weight a 300", "set-max a ", "kill sleeper", "cpu-offline 1", "cpu-online 1", "detach-scheduler"];
    for op in ops.iter().chain(&["attach-scheduler", "replace-scheduler builtin:noop", "run sleeper", "add-cgroup b"]) {
        assert!(stimuli.contains(op), "{op}{ran}");
    }
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
