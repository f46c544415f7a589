//! How fast a guest gets to PID 1, what it costs, and how that grows: ours against QEMU on the same KVM.
//!
//! Owns the runs, interleaved in one session, and the ratios; leaves the times of each run to ktstr's own marks.
//! Invariant: only ratios of one session mean anything on an emulated host; absolute times do only on hardware.
//!
//! `make bench` runs all parts; `make bench PARTS="boot vcpus"` some: outside, boot, vcpus, parallel, measures. ROUNDS sets
//! the repetitions; MEASURES="quiet kernel", VCPUS="1 16" and VMS="8 16" choose among those of a part.

mod parallel;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Seconds for one emulated host.
const PART_LIMIT_S: u64 = 1500;
const VCPUS: [u32; 5] = [1, 2, 4, 8, 16];
/// What QEMU reads at its start, where Debian has it.
const FIRMWARE: [&str; 6] = [
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios-microvm.bin",
];
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What the project aims at.
const TARGET_RATIO: f64 = 0.5;
const TARGET_OWN_MIB: f64 = 6.0;
const TARGET_OUTSIDE_MS: f64 = 15.0;

type Times = BTreeMap<String, Vec<f64>>;

/// Where KVM works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Host {
    Hardware,
    Emulated { cpus: u32 },
}

/// An emulated host as it is where nothing was spoiled yet.
const EMULATED: Host = Host::Emulated { cpus: 2 };
/// Its emulator's CPUs disturb each other; one alone is slower, and spoils next to nothing.
const EMULATED_STEADY: Host = Host::Emulated { cpus: 1 };

/// Whether a variable of the environment names this; without it, all are chosen.
fn chosen(variable: &str, name: &str) -> bool {
    let list = std::env::var(variable).unwrap_or_default();
    list.is_empty() || list.split_whitespace().any(|word| word == name)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn binary() -> PathBuf {
    std::env::var_os("KTSTR_BIN").map_or_else(|| root().join("ktstr"), PathBuf::from)
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let user = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    std::env::var_os("KTSTR_CACHE").map_or_else(|| user.join("ktstr"), PathBuf::from)
}

fn main() {
    let parts = std::env::var("PARTS").unwrap_or_else(|_| "outside boot vcpus parallel measures".into());
    let rounds: u32 = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let doctor = Command::new(binary()).arg("doctor").output().expect("run ktstr doctor; build it with make");
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let hardware = text.lines().any(|line| line.split_whitespace().take(2).eq(["ok", "kvm"]));
    println!("on {}", if hardware { "this host's KVM" } else { "KVM in an emulated host: only ratios mean anything" });
    let host = if hardware { Host::Hardware } else { EMULATED };
    for part in parts.split_whitespace() {
        match part {
            "outside" => tell_outside(rounds),
            "boot" => tell_boot(&run(&boot_script(rounds), host), hardware),
            "vcpus" => tell_vcpus(host),
            "parallel" => parallel::tell(host),
            "measures" => tell_measures(&run(&measures_script(rounds), host)),
            other => panic!("there is no part '{other}'"),
        }
    }
}

/// One run whose JSON follows its name; `ktstr` and /k are there already.
fn cell(script: &mut String, name: &str, command: &str) {
    writeln!(script, "echo '@cell {name}'; {command} 2>/dev/null; echo '@end'").expect("write to a string");
}

/// What a run takes of this very host's time before and after the guest. It needs a KVM that makes VMs, but not one that
/// runs kernels to their end: each run is ended after a few seconds.
fn tell_outside(rounds: u32) {
    println!("\noutside the guest, on this host, ms: exec to first instruction, end of the VM to its last trace");
    let scratch = std::env::temp_dir().join(format!("ktstr-bench-{}", std::process::id()));
    let mut times: [Vec<f64>; 2] = Default::default();
    // The first notes the kernel, the second unpacks it.
    for round in 0..rounds + 2 {
        let mut run = Command::new(binary());
        run.arg("--kernel").arg(cache().join("kernels/7/vmlinuz"));
        run.args(["--accel", "kvm", "--topo", "1", "--timeout", "3s", "--duration", "100ms", "--json", "-"])
            .env("KTSTR_BENCH_UNCHECKED", "1");
        let run = run.env("XDG_CACHE_HOME", &scratch).env("XDG_STATE_HOME", &scratch).output().expect("run ktstr");
        let result: Value = serde_json::from_slice(&run.stdout).unwrap_or_default();
        let first = at(&result, "first-instruction");
        let (Some(first), Some(end), Some(gone)) = (first, at(&result, "vm-end"), at(&result, "torn-down")) else {
            println!("  no VM could be started: {}", String::from_utf8_lossy(&run.stderr).trim_end());
            break;
        };
        if round >= 2 {
            times[0].push(first);
            times[1].push(gone - end);
        }
    }
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).expect("remove the scratch directory");
    }
    for (what, list) in
        ["exec to first instruction", "teardown"].iter().zip(&times).filter(|(_, list)| !list.is_empty())
    {
        let (least, median) = (list.iter().copied().fold(f64::INFINITY, f64::min), median(list));
        let met = verdict(median <= TARGET_OUTSIDE_MS);
        println!("  {what:28} {median:6.1}, least {least:.1} ({} runs); target {TARGET_OUTSIDE_MS}: {met}", list.len());
    }
}

/// A cell that an emulated host spoiled is tried again, with one CPU from the third try on; what is shown is the last. Its
/// emulator fails the oftener the more VMs run in it at once.
const TRIES: u32 = 5;
const TRIES_AS_EVER: u32 = 2;

/// Plays one cell in an emulated host of its own, so that one that dies takes no other along; gives what it printed, and
/// which try it was.
fn alone(name: &str, script: &str, host: Host, passed: impl Fn(&str) -> bool) -> (String, String) {
    let mut tried = 0;
    loop {
        tried += 1;
        let host = if host == EMULATED && tried > TRIES_AS_EVER { EMULATED_STEADY } else { host };
        let text = cells(&run(script, host)).remove(name).unwrap_or_default();
        if host == Host::Hardware || tried == TRIES || passed(&text) {
            let steady = if host == EMULATED_STEADY { ", in a host of one CPU" } else { "" };
            return (text, format!("try {tried}{steady}"));
        }
    }
}

/// Without the doorbell, which `-M pc` inside of an emulated host does not survive: PID 1 is then seen by its first message,
/// some tenths of a second later there, alike for all.
/// `-M microvm` has no i8042 to restart by: there a triple fault ends the guest, as its manual says.
/// The kernel is unpacked from the second run on, as it is for anybody who boots it again.
fn boot_script(rounds: u32) -> String {
    let mut script = String::new();
    for round in 0..=rounds {
        for machine in ["ours", "pc", "microvm"] {
            let accel = if machine == "ours" { "kvm" } else { "qemu" };
            let words = if machine == "microvm" { "ktstr_doorbell=off reboot=t" } else { "ktstr_doorbell=off" };
            let command = format!(
                "KTSTR_BENCH_QEMU={machine} ktstr --kernel /k/7/vmlinuz --accel {accel} --topo 1 --duration 100ms \
                 --timeout 120s --cmdline '{words}' --json -"
            );
            cell(&mut script, &format!("{machine} {round}"), &command);
        }
    }
    script
}

fn vcpus_script(vcpus: u32) -> String {
    let mut script = String::new();
    let run = "ktstr --kernel /k/7/vmlinuz --accel kvm --workers 1 --duration 100ms --timeout 180s --json -";
    cell(&mut script, &vcpus.to_string(), &format!("{run} --topo {vcpus}"));
    script
}

/// What makes a boot fast, and how it is switched off from outside.
struct Measure {
    name: &'static str,
    about: &'static str,
    /// Words of the run without it.
    flags: &'static str,
    /// What is done to the host, or to the cache in $XDG_CACHE_HOME, before and after the run without it.
    before: &'static str,
    after: &'static str,
}

const NONE: Measure = Measure { name: "", about: "", flags: "", before: "", after: "" };
const MEASURES: [Measure; 7] = [
    Measure {
        name: "kernel",
        about: "the kernel unpacked on the host, and mapped",
        // Without its mark in the cache it counts as seen for the first time.
        before: "mkdir -p $off; mv $cache/*.kernel $off/; rm -f $cache/*.seen",
        after: "mv $off/*.kernel $cache/",
        ..NONE
    },
    Measure {
        name: "image",
        about: "the initramfs shared with other VMs",
        // A directory in its place is no image, and cannot be replaced by one.
        before: "mkdir -p $off; for f in $cache/*.image; do mv $f $off/; mkdir $f; done",
        after: "rmdir $cache/*.image; mv $off/*.image $cache/",
        ..NONE
    },
    Measure { name: "quiet", about: "the console says nothing but warnings", flags: "--dmesg", ..NONE },
    Measure {
        name: "probing",
        about: "no PCI, no PS/2 probing, no cipher tests",
        flags: "--cmdline 'pci=conf1 i8042.noaux=0 i8042.nomux=0 i8042.nopnp=0 i8042.dumbkbd=0 \
                cryptomgr.notests=0'",
        ..NONE
    },
    Measure { name: "tsc", about: "the TSC's frequency told by kvm-clock", flags: "--cmdline 'no-kvmclock'", ..NONE },
    Measure {
        name: "deadline",
        about: "the TSC-deadline timer, which needs no calibration",
        flags: "--cmdline 'lapic=notscdeadline'",
        ..NONE
    },
    Measure {
        name: "huge",
        about: "guest memory of the host's huge pages",
        before: "[ -w $thp ] || echo '@cannot huge'; pages=$(sed 's/.*\\[\\(.*\\)\\].*/\\1/' $thp); echo never >$thp",
        after: "echo $pages >$thp",
        ..NONE
    },
];

/// Runs that fill the cache, which is done before a guest begins: the first notes a kernel, the second unpacks it.
fn fill_cache(script: &mut String) {
    let fill = "ktstr --kernel /k/7/vmlinuz --accel kvm --topo 1 --duration 10ms --timeout 1s >/dev/null 2>&1";
    (0..2).for_each(|_| writeln!(script, "{fill}").expect("write to a string"));
}

/// For each measure a run with it and one without, in turns.
fn measures_script(rounds: u32) -> String {
    let run = "ktstr --kernel /k/7/vmlinuz --accel kvm --topo 1 --duration 100ms --timeout 120s --json -";
    let mut script = String::from(
        "cache=$XDG_CACHE_HOME/ktstr/unpacked; off=$XDG_CACHE_HOME/off; thp=/sys/kernel/mm/transparent_hugepage/enabled\n",
    );
    fill_cache(&mut script);
    for round in 0..rounds {
        for measure in MEASURES.iter().filter(|measure| chosen("MEASURES", measure.name)) {
            cell(&mut script, &format!("{} on {round}", measure.name), run);
            let Measure { name, before, after, flags, .. } = measure;
            writeln!(script, "{before}").expect("write to a string");
            cell(&mut script, &format!("{name} off {round}"), &format!("{run} {flags}"));
            writeln!(script, "{after}").expect("write to a string");
        }
    }
    script
}

fn tell_measures(output: &str) {
    println!("\nmeasures: the time without each, over the time with it");
    let cells = cells(output);
    for Measure { name, about, .. } in MEASURES {
        let of = |state: &str, stage: &str| {
            let runs = cells.iter().filter(|(cell, _)| cell.starts_with(&format!("{name} {state} ")));
            // What becomes of its workers is no matter of the boot.
            let results = runs.map(|(_, text)| serde_json::from_str::<Value>(text).unwrap_or_default());
            let reached = results.filter(|result| at(result, "pid1").is_some());
            reached.filter_map(|result| at(&result, stage)).collect::<Vec<_>>()
        };
        if !cells.keys().any(|cell| cell.starts_with(&format!("{name} "))) {
            continue;
        }
        if output.contains(&format!("@cannot {name}")) {
            println!("  {name:9} could not be switched off here");
            continue;
        }
        let ratio = |stage: &str| median(&of("off", stage)) / median(&of("on", stage));
        let (start, pid1) = (ratio("first-instruction"), ratio("pid1"));
        let (without, with) = (of("off", "pid1").len(), of("on", "pid1").len());
        println!(
            "  {name:9} to first instruction {start:5.2}, to PID 1 {pid1:5.2}  ({without} and {with} runs): {about}"
        );
    }
}

/// Runs a script where KVM works, here or in the emulated host, and gives what it printed.
fn run(script: &str, host: Host) -> String {
    let scratch = std::env::temp_dir().join(format!("ktstr-bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).expect("make a scratch directory");
    let job = scratch.join("job.sh");
    let (state, user) = (scratch.display(), scratch.join("cache"));
    let mut command = match host {
        Host::Hardware => {
            let prologue = format!(
                "export XDG_STATE_HOME={state} XDG_CACHE_HOME={}\nktstr() {{ {} \"$@\"; }}\n",
                user.display(),
                binary().display()
            );
            let kernels = cache().join("kernels");
            let script = script.replace(" /k/", &format!(" {}/", kernels.display()));
            std::fs::write(&job, prologue + &script).expect("write the job");
            let mut command = Command::new("/bin/sh");
            command.arg(&job);
            command
        }
        Host::Emulated { cpus } => {
            let unpacked = unpack_outside(&user);
            std::fs::write(&job, format!("export XDG_STATE_HOME=/tmp XDG_CACHE_HOME=/c\n{script}"))
                .expect("write the job");
            let mut command = Command::new(root().join("scripts/emulated-host"));
            command
                .args(["-m", "8192", "-s", &cpus.to_string(), "-t", &PART_LIMIT_S.to_string()])
                .env("KTSTR_BIN", binary());
            let files = FIRMWARE.iter().chain([&QEMU]).filter(|path| Path::new(path).exists());
            for path in files {
                command.args(["-f", &format!("{path}:{path}")]);
            }
            for path in unpacked {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                command.args(["-f", &format!("{}:/c/ktstr/unpacked/{name}", path.display())]);
            }
            command.arg(&job);
            command
        }
    };
    let output = command.output().expect("run the job");
    std::fs::remove_dir_all(&scratch).expect("remove the scratch directory");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

/// The emulated host has no program that unpacks kernels: the cache is filled here, by runs that end without KVM.
fn unpack_outside(user: &Path) -> Vec<PathBuf> {
    let kernel = cache().join("kernels/7/vmlinuz");
    for _ in 0..2 {
        let mut tried = Command::new(binary());
        tried.arg("--kernel").arg(&kernel).args(["--accel", "kvm"]);
        tried.env("XDG_CACHE_HOME", user).env("XDG_STATE_HOME", user).output().expect("fill the cache");
    }
    let entries = std::fs::read_dir(user.join("ktstr/unpacked")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "kernel")).collect()
}

/// What each cell printed, by name.
fn cells(output: &str) -> BTreeMap<String, String> {
    let parts = output.split("@cell ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.filter_map(|(name, rest)| Some((name.trim().to_owned(), rest.split_once("@end")?.0.to_owned()))).collect()
}

/// Milliseconds after exec of a stage.
fn at(result: &Value, stage: &str) -> Option<f64> {
    let list = result["timings"].as_array()?;
    Some(list.iter().find(|mark| mark["stage"] == stage)?["at_ns"].as_f64()? / 1e6)
}

fn mib(result: &Value, member: &str) -> Option<f64> {
    Some(result["memory"][member].as_f64()? / 1024.0)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn verdict(good: bool) -> &'static str {
    if good { "met" } else { "MISSED" }
}

fn tell_boot(output: &str, hardware: bool) {
    let mut numbers: BTreeMap<String, Times> = BTreeMap::new();
    for (name, text) in cells(output) {
        let Some((machine, round)) = name.split_once(' ') else { continue };
        let result: Value = serde_json::from_str(&text).unwrap_or_default();
        // The first round warms the page cache.
        if round == "0" {
            continue;
        }
        // It did all it had to, whatever a loaded machine makes of its workers, or of how `-M microvm` ends.
        if at(&result, "bye").is_none() {
            println!("{machine} {round}: left out: {}", result["headline"]);
            continue;
        }
        let of = numbers.entry(machine.to_owned()).or_default();
        let torn_down = at(&result, "torn-down");
        for (what, value) in [
            ("exec to PID 1, ms", at(&result, "pid1")),
            ("total, ms", torn_down),
            ("exec to first instruction, ms", at(&result, "first-instruction")),
            ("teardown, ms", torn_down.zip(at(&result, "vm-end")).map(|(end, start)| end - start)),
            ("own memory, MiB", mib(&result, "vm_own_kib")),
            ("guest memory touched, MiB", mib(&result, "guest_touched_kib")),
        ] {
            if let Some(value) = value {
                of.entry(what.to_owned()).or_default().push(value);
            }
        }
    }
    println!("\nboot: medians, with the number of runs");
    for (machine, values) in &numbers {
        for (what, list) in values {
            println!("  {machine:8} {what:32} {:10.1}  ({})", median(list), list.len());
        }
    }
    let of = |machine: &str, what: &str| numbers.get(machine).and_then(|of| of.get(what)).map(|list| median(list));
    for what in ["exec to PID 1, ms", "total, ms"] {
        for other in ["pc", "microvm"] {
            if let (Some(ours), Some(theirs)) = (of("ours", what), of(other, what)) {
                let target = match (what, other) {
                    ("exec to PID 1, ms", "pc") => {
                        format!("; target {TARGET_RATIO}: {}", verdict(ours / theirs <= TARGET_RATIO))
                    }
                    _ => String::new(),
                };
                println!("  ours / {other}: {what}: {:.2}{target}", ours / theirs);
            }
        }
    }
    for (what, limit, is_time) in [
        ("own memory, MiB", TARGET_OWN_MIB, false),
        ("exec to first instruction, ms", TARGET_OUTSIDE_MS, true),
        ("teardown, ms", TARGET_OUTSIDE_MS, true),
    ] {
        match of("ours", what) {
            Some(ours) if hardware || !is_time => {
                println!("  {what}: {ours:.1}, target {limit}: {}", verdict(ours <= limit))
            }
            Some(ours) => println!("  {what}: {ours:.1} of an emulated host's; part 'outside' has this host's"),
            None => {}
        }
    }
}

fn tell_vcpus(host: Host) {
    println!("\nvCPUs: exec to PID 1, total, own memory");
    let result = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    for vcpus in VCPUS.into_iter().filter(|vcpus| chosen("VCPUS", &vcpus.to_string())) {
        let passed = |text: &str| result(text)["outcome"] == "pass";
        let (text, tried) = alone(&vcpus.to_string(), &vcpus_script(vcpus), host, passed);
        let result = result(&text);
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        let (pid1, total) = (shown(at(&result, "pid1")), shown(at(&result, "torn-down")));
        let (own, outcome) = (shown(mib(&result, "vm_own_kib")), &result["outcome"]);
        println!("  {vcpus:3} vCPUs: {pid1:>9} ms {total:>9} ms {own:>6} MiB  {outcome}, {tried}");
    }
}
