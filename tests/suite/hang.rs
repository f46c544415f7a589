//! A guest that hangs, a host that starves it, and one that is asked for performance: what is told of the vCPUs.

use crate::lab::Cell;
use crate::util::{Scratch, emulation, run_in};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Where the program lies that never ends, and where it stands all the time.
const LOAD: u64 = 0x40_0000;
pub const LOOP: u64 = LOAD + HEADERS;
/// One ELF header and one program header.
const HEADERS: u64 = 64 + 56;
/// jmp to itself.
const CODE: [u8; 2] = [0xEB, 0xFE];

/// A program that loops on one instruction, without a libc and without a system call.
fn program() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let length = HEADERS + CODE.len() as u64;
    // ET_EXEC, EM_X86_64, version; entry; program headers at 64; no sections; sizes and counts (System V ABI).
    for half in [2u16, 62, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [LOOP, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0u16, 0, 64, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable, the whole file.
    file.extend([1u8, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, LOAD, LOAD, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

/// Runs at most until a vCPU is found in the loop. The guest's tick interrupts it, and one look in six found the tick where
/// each of its writes to the APIC is emulated.
const LOOKS: usize = 4;

/// The vCPU that runs the program, where it is found in its loop. PID 1 may be on any.
fn in_loop(result: &Value) -> Option<&Value> {
    result["registers"].as_array()?.iter().find(|dump| dump["rip"] == format!("{LOOP:#x}"))
}

fn assert_loop<'a>(result: &'a Value, text: &str) -> &'a Value {
    let dump = in_loop(result).unwrap_or_else(|| panic!("no CPU is at {LOOP:#x}: {text}"));
    assert_eq!(dump["mode"], "64-bit mode with paging", "{text}");
    assert_eq!(dump["missing"], Value::Null, "{text}");
    assert!(text.contains("the vCPUs when it was killed"), "{text}");
    dump
}

#[test]
fn registers_of_a_hung_guest_are_told_under_emulation() {
    let Some(kernel) = emulation("hang: registers", "7") else { return };
    let files = Scratch::new();
    let spin = files.file("spin", program());
    std::fs::set_permissions(&spin, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    let include = format!("{}:/spin", spin.display());
    let kernel = kernel.display().to_string();
    let args = ["--kernel", &kernel, "--accel", "qemu", "--json", "-", "--timeout", "40s", "--duration", "1s"];
    let more = ["--include", &include, "--cmdline", "rdinit=/spin"];
    let run = || {
        let scratch = Scratch::new();
        let ran = run_in(&scratch, &[&args[..], &more[..]].concat()).exits(125);
        (ran.json(), ran.to_string(), scratch)
    };
    let (json, text, scratch) =
        (1..LOOKS).map(|_| run()).find(|(json, ..)| in_loop(json).is_some()).unwrap_or_else(run);
    assert_loop(&json, &text);
    let directory = std::fs::read_dir(scratch.0.join("ktstr/runs")).unwrap().next().unwrap().unwrap().path();
    let registers = std::fs::read_to_string(directory.join("registers.txt")).expect("registers.txt is kept");
    assert!(registers.contains("RAX") && registers.contains("no symbols"), "{registers}");
}

/// How long a scenario would take that loses its scheduler in its first seconds, and by when it has to be told of: far from
/// both its end and the time that it takes, since no time of an emulated host decides anything.
const LOST_OF: Duration = Duration::from_secs(60);
const TOLD_BY: Duration = Duration::from_secs(40);

/// The runs of this file on our own VMM, for the laboratory.
pub fn cells() -> Vec<Cell> {
    let octal: String = program().iter().map(|byte| format!("\\{byte:03o}")).collect();
    let hang = format!(
        "--version >/dev/null; printf '{octal}' >/tmp/spin; chmod 755 /tmp/spin; \
         ktstr --kernel /k/7/vmlinuz --accel kvm --json - --timeout 50s --duration 1s --topo 2 \
         --include /tmp/spin:/spin --cmdline rdinit=/spin"
    );
    // Once the scheduler is enabled, the whole VM gets one CPU, and that is for others.
    let starved = |begun: &str, dir: &str, rest: &str| {
        format!(
            "--version >/dev/null; (until grep -qs {begun} {dir}/record; do sleep 0.1; done; \
             for process in $(grep -ls _vm /proc/[0-9]*/cmdline); do \
             for task in ${{process%/cmdline}}/task/*; do taskset -p 1 ${{task##*/}}; done; done; \
             for i in 1 2 3 4 5 6 7 8; do \
             timeout 6 taskset 1 sh -c 'while :; do :; done' & renice -n -10 $!; done) >/dev/null 2>&1 & \
             {rest} --topo 2 --run-dir {dir}"
        )
    };
    let run = "ktstr --kernel /k/7/vmlinuz --accel kvm --json -";
    let starved_stall = starved("ktstr_drop", "/tmp/starved", &format!("{run} --sched builtin:drop --duration 10s"));
    // No scheduler's, so that no watchdog has a say: four workers take turns on each CPU.
    let starved_workers = starved(
        "add-cgroup",
        "/tmp/starved-workers",
        &format!(
            "printf 'scenario starved\\nbackdrop\\n  cgroup a: spin*8\\nstep 200ms\\nstep 8s\\n  add-cgroup b\\n' \
             >/tmp/starved.scn; {run} --scenario /tmp/starved.scn --max-run-delay 20ms --max-gap off"
        ),
    );
    // While the guest boots, the VM's process is looked at from outside.
    let look = "until [ -s /tmp/perf/record ]; do sleep 0.1; done; sleep 3; \
                for process in $(grep -ls _vm /proc/[0-9]*/cmdline); do process=${process%/cmdline}; \
                for task in $process/task/*; do \
                echo \"@look $(cat $task/comm) $(grep Cpus_allowed_list $task/status) $(grep policy $task/sched)\"; done; \
                echo \"@look $(grep -h ktstr-guest $process/numa_maps)\"; \
                echo \"@look $(grep Hugetlb $process/smaps | sort | uniq)\"; done";
    let perf = format!(
        "--version >/dev/null; echo 140 >/proc/sys/vm/nr_hugepages; ({look}) >/tmp/look 2>&1 & \
         ktstr --kernel /k/7/vmlinuz --accel kvm --json - --topo 1 --perf --duration 2s --run-dir /tmp/perf; \
         cat /tmp/look; grep -o 'PV spinlocks disabled with KVM_HINTS_REALTIME' /tmp/perf/record; \
         echo 0 >/proc/sys/vm/nr_hugepages"
    );
    let plain =
        "--kernel /k/7/vmlinuz --accel kvm --json - --topo 1 --duration 2s --work 'bursty(burst=1ms,sleep=5ms)'"
            .to_owned();
    let busy = plain.replace("--topo 1", "--topo 1 --perf");
    let freeze = "__freeze".to_owned();
    let lost = |sched: &str| {
        let planned = LOST_OF.as_secs();
        format!(
            "--kernel /k/7/vmlinuz --accel kvm --json - --topo 1 --sched builtin:{sched} --duration {planned}s --timeout 100s"
        )
    };
    // A start that never ends, and keeps a CPU most of the time; the one CPU that there is keeps PID 1 waiting, too.
    let start = |cpus: u32| {
        format!(
            "--version >/dev/null; printf '#!/bin/sh\\nwhile :; do /init __probe init-spin; done\\n' >/tmp/again; \
             chmod 755 /tmp/again; ktstr --kernel /k/7/vmlinuz --accel kvm --json - --topo {cpus} --sched /tmp/again \
             --enable-timeout {}s --timeout 100s --cmdline watchdog_thresh=1",
            LOST_OF.as_secs()
        )
    };
    // PID 1 is the program that powers off, or restarts.
    let end = |name: &str| {
        format!(
            "--kernel /k/7/vmlinuz --accel kvm --json - --timeout 60s --duration 1s --include /bin/busybox:/{name} \
             --cmdline 'rdinit=/{name} -- -f'"
        )
    };
    [
        ("hang", hang),
        ("freeze", freeze),
        ("crash told", lost("crash")),
        ("stall told", lost("drop")),
        ("stall at start", start(2)),
        ("stall of all CPUs", start(1)),
        ("poweroff", end("poweroff")),
        ("reboot", end("reboot")),
        ("starved", starved_stall),
        ("starved workers", starved_workers),
        ("perf", perf),
        ("halts", plain),
        ("no halts", busy),
    ]
    .map(|(name, args)| Cell { name: name.into(), args })
    .into()
}

#[test]
fn registers_of_a_hung_guest_are_told_on_kvm() {
    let Some(result) = crate::boot::cell("hang") else { return };
    assert_eq!(result.code, 125, "{}", result.text);
    let json = result.json();
    let dump = assert_loop(&json, &result.text);
    assert_eq!(dump["code"].as_str().map(|code| code.starts_with("eb fe")), Some(true), "{}", result.text);
    assert_eq!(json["registers"].as_array().map(Vec::len), Some(2), "{}", result.text);
}

#[test]
fn loss_of_a_scheduler_is_told_long_before_the_scenario_would_end() {
    for (name, words) in [("crash told", "signal 11"), ("stall told", "runnable task stall")] {
        let Some(result) = crate::boot::cell(name) else { return };
        let json = result.json();
        let headline = json["headline"].as_str().unwrap_or_default();
        assert!(headline.contains(words), "{name}: {}", result.text);
        // The emulated host may have kept the vCPU from its turn for half of the watchdog's time.
        let starved = name == "stall told" && headline.contains("void, as the");
        assert_eq!(result.code, if starved { 125 } else { 1 }, "{name}: {}", result.text);
        let at = |stage: &str| {
            let timings = json["timings"].as_array().expect("timings are a list");
            let mark = timings.iter().find(|mark| mark["stage"] == stage).unwrap_or_else(|| panic!("no {stage}"));
            Duration::from_nanos(mark["at_ns"].as_u64().expect("a time"))
        };
        let told = at("torn-down").saturating_sub(at("scenario-start"));
        println!("{name}: over {told:?} after the scenario's start, of {LOST_OF:?} planned");
        assert!(told < TOLD_BY, "{name}: {told:?}: {}", result.text);
    }
}

#[test]
fn lockup_while_the_scheduler_starts_is_told_long_before_its_start_is_given_up() {
    for name in ["stall at start", "stall of all CPUs"] {
        let Some(result) = crate::boot::cell(name) else { return };
        let json = result.json();
        let headline = json["headline"].as_str().unwrap_or_default();
        assert!(headline.contains("oft lockup - CPU"), "{name}: {}", result.text);
        assert_eq!(json["stopped_at"], "scheduler not enabled", "{name}: {}", result.text);
        // The emulated host may have kept the vCPU from its turn for so long itself.
        let starved = headline.contains("void, as");
        assert_eq!(result.code, if starved { 125 } else { 1 }, "{name}: {}", result.text);
        let timings = json["timings"].as_array().expect("timings are a list");
        let at = |stage: &str| timings.iter().find(|mark| mark["stage"] == stage)?["at_ns"].as_u64();
        let findings = json["kernel_log"]["findings"].as_array().expect("findings are a list");
        let names =
            |finding: &&Value| finding["title"].as_str().is_some_and(|title| title.contains("oft lockup - CPU"));
        let line = findings.iter().find(names).expect("a soft lockup");
        let line_ns = at("kernel-entry").expect("its PID 1 ran") + line["time_us"].as_u64().expect("a time") * 1000;
        let told = Duration::from_nanos(at("torn-down").expect("it ended").saturating_sub(line_ns));
        println!("{name}: over {told:?} after the kernel's line, of {LOST_OF:?} for the start");
        assert!(told < TOLD_BY, "{name}: {told:?}: {}", result.text);
    }
}

#[test]
fn stall_on_a_host_that_starved_the_vcpus_is_inconclusive() {
    let Some(result) = crate::boot::cell("starved") else { return };
    let json = result.json();
    assert_eq!((result.code, &json["outcome"]), (125, &Value::from("inconclusive")), "{}", result.text);
    let headline = json["headline"].as_str().unwrap_or_default();
    assert!(headline.contains("void, as the"), "{headline}");
    let waited = json["host_noise"]["waited_percent"].as_f64().unwrap_or(0.0);
    assert!(waited > 10.0, "the witness saw {waited} %: {}", result.text);
}

#[test]
fn run_delay_on_a_host_that_starved_the_vcpus_is_inconclusive() {
    let Some(result) = crate::boot::cell("starved workers") else { return };
    let json = result.json();
    assert_eq!((result.code, &json["outcome"]), (125, &Value::from("inconclusive")), "{}", result.text);
    let checks = json["checks"].as_array().expect("checks are a list");
    let delay = checks.iter().find(|check| check["name"] == "max_run_delay").expect("max_run_delay is checked");
    assert_eq!(delay["status"], "inconclusive", "{delay}");
    assert!(delay["reason"].as_str().is_some_and(|reason| reason.contains("void, as")), "{delay}");
}

/// The measures of performance mode by name: whether in effect, and the words.
fn measures(result: &Value) -> BTreeMap<String, (bool, String)> {
    let list = result["perf"].as_array().cloned().unwrap_or_default();
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    list.iter().map(|item| (text(item, "name"), (item["in_effect"] == true, text(item, "detail")))).collect()
}

#[test]
fn measures_of_performance_mode_are_seen_from_outside_or_refused_with_their_reason() {
    let Some(result) = crate::boot::cell("perf") else { return };
    let json = result.json();
    let measures = measures(&json);
    assert_eq!(measures.len(), 7, "{}", result.text);
    assert!(measures.values().all(|(_, detail)| !detail.is_empty()), "{measures:?}");
    let looked: Vec<&str> = result.text.lines().filter(|line| line.contains("@look")).collect();
    let vcpu = looked.iter().find(|line| line.contains(" vcpu0 ")).unwrap_or_else(|| panic!("{}", result.text));
    let pinned = measures["vcpu-pinning"].1.rsplit(' ').next().unwrap_or_default();
    let seen = [
        ("vcpu-pinning", vcpu.contains(&format!("Cpus_allowed_list:\t{pinned} "))),
        // SCHED_FIFO is policy 1.
        ("sched-fifo", vcpu.trim_end().ends_with(" 1")),
        ("memory-binding", looked.iter().any(|line| line.contains("bind:"))),
        ("huge-pages", looked.iter().any(|line| line.contains("kernelpagesize_kB=2048"))),
        ("kvm-hints-realtime", result.text.contains("\nPV spinlocks disabled with KVM_HINTS_REALTIME")),
    ];
    for (name, seen) in seen {
        assert_eq!(measures[name].0, seen, "{name}: {:?}\n{}", measures[name], result.text);
    }
    // In the emulated host nothing stands in the way of any.
    if !crate::util::kvm_works() {
        assert!(measures.values().all(|(in_effect, _)| *in_effect), "{measures:?}");
    }
}

#[test]
fn guest_that_halts_without_exits_makes_fewer() {
    let (Some(with), Some(without)) = (crate::boot::cell("halts"), crate::boot::cell("no halts")) else { return };
    let halts = |result: &crate::lab::Result| {
        let exits = result.json()["memory"]["exits"].clone();
        assert!(exits["kvm:exits"].as_u64().unwrap_or(0) > 0, "KVM's own counts are missing:\n{}", result.text);
        exits["kvm:halt_exits"].as_u64().unwrap_or(0)
    };
    if !measures(&without.json()).get("hlt-exits-off").is_some_and(|(in_effect, _)| *in_effect) {
        return crate::util::not_run("hang: exits of a halted guest", "this KVM does not turn them off");
    }
    assert!(halts(with) > 0, "{}", with.text);
    assert_eq!(halts(without), 0, "{}", without.text);
}

#[test]
fn emulation_refuses_every_measure_with_its_reason() {
    let Some(kernel) = emulation("hang: performance mode", "7") else { return };
    let kernel = kernel.display().to_string();
    let args = ["--kernel", &kernel, "--accel", "qemu", "--json", "-", "--duration", "1s", "--perf"];
    let ran = run_in(&Scratch::new(), &args).exits(0);
    let measures = measures(&ran.json());
    assert_eq!(measures.len(), 7, "{ran}");
    assert!(measures.values().all(|(in_effect, why)| !in_effect && why.contains("emulated")), "{ran}");
}

#[test]
fn frozen_vm_goes_on_in_another() {
    let Some(result) = crate::boot::cell("freeze") else { return };
    assert_eq!(result.code, 0, "{}", result.text);
    // Both vCPUs, and what one sends the other.
    for words in ["went on in another VM to ticks", "calls from one vCPU to the other", "the disk's request"] {
        assert!(result.text.contains(words), "{}", result.text);
    }
}

#[test]
fn poweroff_is_told_from_reset() {
    for (name, words) in [("poweroff", "it powered off"), ("reboot", "it reset itself")] {
        let Some(result) = crate::boot::cell(name) else { return };
        if result.code == 128 && crate::util::kvm_works() {
            return crate::util::not_run(
                "hang: poweroff and reset",
                "this machine has no /bin/busybox to put into the guest",
            );
        }
        let headline = result.json()["headline"].to_string();
        assert!(headline.contains(words), "{name}: {}", result.text);
    }
}
