//! The machine a guest sees, compared with the machine that was asked for.
//!
//! Owns shapes under emulation, and what happens when the guest's kernel shows another one; our own VMM's are in boot.rs.
//! Invariant: what is expected is computed here from the numbers of the shape, not by the code under test.

use crate::disk;
use crate::lab::{self, Cell, Host, LSCPU, OLD_KERNEL};
use crate::util::{
    RUN_LIMIT, Ran, Scratch, attempt_in, binary, cached, emulation, finish, kernel, ktstr, kvm_works, not_run, run_in,
    share_machine,
};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// `0-3`, or `2` alone.
fn span(first: u64, count: u64) -> String {
    if count == 1 { first.to_string() } else { format!("{first}-{}", first + count - 1) }
}

fn spans(count: u64, size: u64) -> Vec<String> {
    (0..count).map(|index| span(index * size, size)).collect()
}

/// What a guest of nodes, LLCs, cores per LLC and threads must show, in the JSON's own form.
pub fn assert_machine(machine: &Value, [nodes, llcs, cores, threads]: [u64; 4], context: &str) {
    let cpus = llcs * cores * threads;
    assert_eq!(machine["shape"], format!("{nodes}n{llcs}l{cores}c{threads}t"), "{context}");
    assert_eq!(machine["online"], span(0, cpus), "{context}");
    assert_eq!(machine["possible"], span(0, cpus), "{context}");
    assert_eq!(machine["cores"], json!(spans(llcs * cores, threads)), "{context}");
    assert_eq!(machine["llcs"], json!(spans(llcs, cores * threads)), "{context}");
    assert_eq!(machine["packages"], json!(spans(nodes, cpus / nodes)), "{context}");
    // What a kernel makes of our CPUID: it could take the package of any AMD CPU for one die, and be right about all else.
    assert_eq!(machine["dies"], machine["llcs"], "{context}");
    let seen: Vec<&Value> = machine["nodes"].as_array().expect("nodes are an array").iter().collect();
    assert_eq!(seen.len() as u64, nodes, "{context}");
    for (index, node) in (0..nodes).zip(seen) {
        assert_eq!(node["cpus"], span(index * (cpus / nodes), cpus / nodes), "{context}");
        let distances: Vec<u64> = (0..nodes).map(|other| if other == index { 10 } else { 20 }).collect();
        assert_eq!(node["distances"], json!(distances), "{context}");
    }
}

const SHORT: [&str; 8] = ["--accel", "qemu", "--json", "-", "--duration", "100ms", "--workers", "1"];

fn arguments<'a>(kernel: &'a Path, args: &[&'a str]) -> Vec<&'a str> {
    let kernel = kernel.to_str().expect("a path of UTF-8");
    ["--kernel", kernel].into_iter().chain(SHORT).chain(args.iter().copied()).collect()
}

fn run(kernel: &Path, args: &[&str]) -> Ran {
    run_in(&Scratch::new(), &arguments(kernel, args))
}

#[test]
fn nodes_dies_and_threads_are_as_asked_under_emulation() {
    for (name, topo, shape) in [("7", "2n4l1c2t", [2, 4, 1, 2]), ("6.12", "tiny-2llc", [1, 2, 2, 1])] {
        let Some(kernel) = emulation("topology: under emulation", name) else { return };
        let ran = run(&kernel, &["--topo", topo]).exits(0);
        assert_machine(&ran.json()["guest"]["machine"], shape, &ran.to_string());
    }
}

/// The distribution's QEMU and the one of the emulated host are some years apart.
#[test]
fn nodes_dies_and_threads_are_as_asked_under_a_newer_emulator() {
    let test = "topology: a newer emulator";
    let Some(kernel) = emulation(test, "7") else { return };
    let Some(ran) = under_a_newer_emulator(test, &kernel, "2n4l2c2t", RUN_LIMIT) else { return };
    let ran = ran.exits(0);
    assert_machine(&ran.json()["guest"]["machine"], [2, 4, 2, 2], &ran.to_string());
}

/// One run under the emulator that scripts/emulated-host has fetched, where it has.
fn under_a_newer_emulator(test: &str, kernel: &Path, topo: &str, limit: Duration) -> Option<Ran> {
    let Some(ready) = cached("qemu/ready") else {
        not_run(test, "the distribution's own QEMU is the newest there is here");
        return None;
    };
    let root = ready.parent().expect("a directory").join("usr");
    let scratch = Scratch::new();
    let newer = scratch.file(
        "qemu-system-x86_64",
        format!(
            "#!/bin/sh\nexec {0}/bin/qemu-system-x86_64 -L {0}/share/qemu -L {0}/share/seabios \
             -L /usr/share/seabios -L /usr/lib/ipxe/qemu \"$@\"\n",
            root.display()
        ),
    );
    std::fs::set_permissions(&newer, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    let mut command = Command::new(binary());
    command.args(arguments(kernel, &["--topo", topo, "--cgroups", "1"]));
    let path = format!("{}:{}", scratch.0.display(), std::env::var("PATH").unwrap_or_default());
    command.env("PATH", path).env("XDG_STATE_HOME", &scratch.0);
    Some(finish(command, limit))
}

#[test]
fn node_of_memory_alone_has_its_size_and_distance() {
    let Some(kernel) = emulation("topology: memory without CPUs", "7") else { return };
    let scratch = Scratch::new();
    let matrix = scratch.file("matrix", "10 17 41\n17 10 33\n41 33 10\n").display().to_string();
    let ran = run(&kernel, &["--topo", "2n2l1c1t", "--node-memory", "192M,64M,32M", "--distance", &matrix]).exits(0);
    let json = ran.json();
    let nodes = json["guest"]["machine"]["nodes"].as_array().expect("nodes are an array").clone();
    let bytes: Vec<u64> = nodes.iter().map(|node| node["memory_bytes"].as_u64().expect("bytes") >> 20).collect();
    assert!((186..=192).contains(&bytes[0]) && (58..=64).contains(&bytes[1]) && (26..=32).contains(&bytes[2]), "{ran}");
    assert_eq!((&nodes[1]["cpus"], &nodes[2]["cpus"]), (&json!("1"), &json!("")), "{ran}");
    assert_eq!(nodes[2]["distances"], json!([41, 33, 10]), "{ran}");
}

#[test]
fn kernel_that_shows_another_machine_ends_the_run_with_both_shapes() {
    let Some(kernel) = emulation("topology: a difference", "7") else { return };
    let ran = run(&kernel, &["--topo", "2n2l1c1t", "--cmdline", "numa=off"]).exits(125);
    let json = ran.json();
    let headline = json["headline"].as_str().unwrap_or_default();
    assert!(headline.contains("the guest is 1n2l1c1t, packages: 2 and 2n2l1c1t was asked for"), "{ran}");
    assert!(headline.contains("nodes 0 instead of 0-1"), "{ran}");
    assert_eq!(json["groups"], json!([]), "workers ran on another machine:{ran}");
}

/// As more than 64 emulated CPUs do, by the words that they get; `large` looks whether they do.
#[test]
fn cpus_that_the_kernel_left_out_are_brought_up_by_pid_1() {
    let test = "topology: late CPUs";
    let Some(kernel) = emulation(test, "7") else { return };
    let ran = run(&kernel, &["--topo", "2n2l2c1t", "--cgroups", "1", "--cmdline", LATE]).exits(0);
    let json = ran.json();
    assert_machine(&json["guest"]["machine"], [2, 2, 2, 1], &ran.to_string());
    // Without PID 1's part they stay away.
    let ran = run(&kernel, &["--topo", "2n2l2c1t", "--cgroups", "1", "--cmdline", "maxcpus=1"]).exits(125);
    let headline = ran.json()["headline"].to_string();
    assert!(headline.contains("CPUs online 0 instead of 0-3"), "{ran}");
}

/// What brings CPUs up behind the boot.
const LATE: &str = "maxcpus=1 ktstr_late_cpus=1";

#[test]
fn shapes_that_cannot_be_are_refused_before_anything_starts() {
    let Some(kernel) = emulation("topology: refusals", "7") else { return };
    let kernel = kernel.display().to_string();
    let qemu = ["--accel", "qemu"];
    for (args, why) in [
        (&["--topo", "1n2l2+1c1t", qemu[0], qemu[1]][..], "--accel kvm can"),
        (&["--topo", "2:sparse1", qemu[0], qemu[1]], "a sparse APIC id space"),
        (&["--topo", "2n3l1c1t"], "cannot be divided"),
        (&["--topo", "tiny-2lc"], "did you mean 'tiny-2llc'?"),
        (&["--topo", "2n2l1c1t", "--node-memory", "64M"], "1 sizes for 2 nodes"),
        (&["--memory", "1G", "--node-memory", "1G"], "both say"),
        (&["--distance", "/no/such/file"], "/no/such/file"),
        (&["--distance", "5"], "within 11 to 254"),
    ] {
        let mut all = vec!["--kernel", &kernel];
        all.extend(args);
        ktstr(&all).exits(128).says(why);
    }
    let list = ktstr(&["list", "topologies"]).exits(0).says("max-cpu").says("1n14l9c2t");
    assert_eq!(list.stdout.lines().filter(|line| !line.starts_with(' ')).count(), 24, "{list}");
}

/// A test per preset: its name, and its nodes, LLCs, cores per LLC and threads per core.
macro_rules! presets {
    ($($test:ident: $name:literal, $shape:expr;)*) => {
        const PRESETS: &[(&str, [u64; 4])] = &[$(($name, $shape)),*];
        $(#[test] fn $test() { preset($name, $shape); })*
    };
}

presets! {
    tiny_1llc: "tiny-1llc", [1, 1, 4, 1];
    tiny_2llc: "tiny-2llc", [1, 2, 2, 1];
    odd_3llc: "odd-3llc", [1, 3, 3, 1];
    odd_5llc: "odd-5llc", [1, 5, 3, 1];
    odd_7llc: "odd-7llc", [1, 7, 2, 1];
    smt_2llc: "smt-2llc", [1, 2, 2, 2];
    smt_3llc: "smt-3llc", [1, 3, 2, 2];
    smt_3llc_nosmt: "smt-3llc-nosmt", [1, 3, 2, 1];
    medium_4llc: "medium-4llc", [1, 4, 4, 2];
    medium_4llc_nosmt: "medium-4llc-nosmt", [1, 4, 4, 1];
    medium_8llc: "medium-8llc", [1, 8, 4, 2];
    medium_8llc_nosmt: "medium-8llc-nosmt", [1, 8, 4, 1];
    large_4llc: "large-4llc", [1, 4, 16, 2];
    large_4llc_nosmt: "large-4llc-nosmt", [1, 4, 16, 1];
    large_8llc: "large-8llc", [1, 8, 8, 2];
    large_8llc_nosmt: "large-8llc-nosmt", [1, 8, 8, 1];
    near_max_llc: "near-max-llc", [1, 15, 8, 2];
    near_max_llc_nosmt: "near-max-llc-nosmt", [1, 15, 8, 1];
    max_cpu: "max-cpu", [1, 14, 9, 2];
    max_cpu_nosmt: "max-cpu-nosmt", [1, 14, 9, 1];
    numa2_4llc: "numa2-4llc", [2, 4, 4, 1];
    numa2_8llc: "numa2-8llc", [2, 8, 8, 2];
    numa4_8llc: "numa4-8llc", [4, 8, 4, 1];
    numa4_12llc: "numa4-12llc", [4, 12, 8, 2];
}

/// In the emulated host, where the emulator spoils guests the more often the more vCPUs they have.
const MOST_CPUS_IN_EMULATED_HOST: u64 = 9;
/// Larger, and of several nodes: in a host of one CPU, which spoils nothing.
const LARGE_IN_EMULATED_HOST: &str = "numa2-4llc";
/// Of a run in a host of its own: it boots in 10 s, and in some minutes where the machine is busy. A worker's times are no
/// part of it.
const PATIENT: &str = "--timeout 1200s --check none";
/// A Zen 2 as far as kernels look: family 17h, model 31h, whose LLCs are those of leaf 0x8000001D.
const ZEN: &str = "max,family=23,model=49";
/// Under plain emulation, where each CPU takes a fifth of a second to boot, and three times that on a busy machine.
const MOST_CPUS_UNDER_EMULATION: u64 = 64;
/// One CPU after another starts under emulation, 260 of them at most; more than such a run's own deadline.
const LARGE_LIMIT: Duration = Duration::from_secs(2400);
/// With this set, whatever the emulator can be given is tried, however long it takes.
const LARGE: &str = "KTSTR_LARGE";

fn cpus([_, llcs, cores, threads]: [u64; 4]) -> u64 {
    llcs * cores * threads
}

fn on_our_vmm(shape: [u64; 4]) -> bool {
    cpus(shape) <= MOST_CPUS_IN_EMULATED_HOST || kvm_works()
}

fn preset(name: &str, shape: [u64; 4]) {
    if on_our_vmm(shape) {
        let Some(result) = crate::boot::cell(&format!("preset {name}")) else { return };
        assert_eq!(result.code, 0, "{name}:\n{}", result.text);
        return assert_machine(&result.json()["guest"]["machine"], shape, &result.text);
    }
    if name == LARGE_IN_EMULATED_HOST {
        let cell = Cell { name: format!("preset {name}"), args: format!("{} --topo {name} {PATIENT}", short("7")) };
        let Some(result) = lab::alone(cell, Host { model: lab::MODEL, cpus: 1 }) else { return };
        assert_eq!(result.code, 0, "{name}:\n{}", result.text);
        return assert_machine(&result.json()["guest"]["machine"], shape, &result.text);
    }
    under_emulation(&format!("topology: preset {name}"), name, shape);
}

/// On the laboratory's usual CPU kernels take the node of leaf 0x8000001E for the LLC.
#[test]
fn llcs_within_a_node_are_those_of_the_cache_leaf_on_zen() {
    let test = "topology: LLCs of a Zen";
    if kvm_works() {
        return not_run(test, "every cell runs on this machine's own CPU");
    }
    let args =
        format!("{} --topo 1n2l2c2t {PATIENT}; c=$?; grep -m2 -E 'family|model' /proc/cpuinfo; [ $c = 0 ]", short("7"));
    let Some(result) = lab::alone(Cell { name: "zen".into(), args }, Host { model: ZEN, cpus: 1 }) else { return };
    assert_eq!(result.code, 0, "{}", result.text);
    assert!(result.text.contains("cpu family\t: 23\nmodel\t\t: 49"), "another CPU:\n{}", result.text);
    assert_machine(&result.json()["guest"]["machine"], [1, 2, 2, 2], &result.text);
}

/// More than an APIC id of 8 bits can name, so that they cannot but use x2APIC.
#[test]
fn more_cpus_than_apic_ids_of_8_bits_boot() {
    let shape = [2, 10, 13, 2];
    if kvm_works() {
        let Some(machine) = odd_machine(WIDE.0) else { return };
        return assert_machine(&machine, shape, WIDE.0);
    }
    under_emulation("topology: 260 CPUs", WIDE.1, shape);
}

/// Its cell, where real KVM has room for it, and its shape.
const WIDE: (&str, &str) = ("260 CPUs", "2n10l13c2t");

/// A run that only shows its machine.
fn short(kernel: &str) -> String {
    format!("--kernel /k/{kernel}/vmlinuz --accel kvm --json - --duration 100ms --workers 1 --cgroups 1")
}

fn under_emulation(test: &str, topo: &str, shape: [u64; 4]) {
    let is_large = cpus(shape) > MOST_CPUS_UNDER_EMULATION;
    if is_large && std::env::var_os(LARGE).is_none() {
        return not_run(test, &format!("{} CPUs take minutes to boot without KVM; {LARGE}=1 tries", cpus(shape)));
    }
    let Some(kernel) = emulation(test, "7") else { return };
    let ran = match is_large {
        true => large(test, &kernel, topo),
        false => Some(run(&kernel, &["--topo", topo, "--cgroups", "1"])),
    };
    let Some(ran) = ran.map(|ran| ran.exits(0)) else { return };
    assert_eq!(ran.json()["host"]["kernel_cmdline"].to_string().contains(LATE), is_large, "{ran}");
    assert_machine(&ran.json()["guest"]["machine"], shape, &ran.to_string());
}

/// By the distribution's emulator or, where that refuses so many CPUs at once, by the newer one.
fn large(test: &str, kernel: &Path, topo: &str) -> Option<Ran> {
    // One at a time: each wants the machine for minutes.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ran = attempt_in(&Scratch::new(), &arguments(kernel, &["--topo", topo, "--cgroups", "1"]), 1, LARGE_LIMIT);
    if !ran.stderr.contains("where 9.0 would do") {
        return Some(ran);
    }
    let _shared = share_machine();
    under_a_newer_emulator(test, kernel, topo, LARGE_LIMIT)
}

/// Machines that are not all alike: what makes them so, and what the guest must show.
const ODD: &[(&str, &str)] = &[
    ("LLCs of unequal size", "--topo 1n3l2+1+1c1t"),
    ("nodes of unequal LLCs", "--topo 2n2+1l1c1t"),
    ("possible CPUs", "--topo 3:spare2"),
    ("a CPU without caches", "--topo 3:nocache2"),
    ("APIC ids above 254", "--topo 3:sparse7"),
    ("a node without CPUs", "--topo 3n1+0+1l1c1t"),
];
/// An old kernel goes by the counts that its first CPU is told.
const SMALL_FIRST: (&str, &str) = ("a first node of one CPU on 6.1", "2n1+1l1+2c1t");
/// Two nodes of one LLC of one core of two threads, at which programs look from inside, on 6.12.
pub const SEEN_BY_PROGRAMS: &str = "nodes on 6.12";
const SEEN_SHAPE: [u64; 4] = [2, 2, 1, 2];

/// What a kernel says where it takes offence at its firmware.
const OFFENCE: &str = "firmware (bug|warn)|acpi[^a-z]*(error|warning|bios)|bios bug|apic id mismatch|not used|rejected";

/// What a kernel says where it measures a clock by another (arch/x86/kernel/tsc.c, arch/x86/kernel/apic/apic.c,
/// init/calibrate.c), which takes time, and on a busy host is wrong: our machine tells each clock's rate.
const CALIBRATION: &str = "tsc: [ -~]*calibrat|calibrating apic|calibrating delay loop[.]{3}";

/// lscpu and dd in a guest, where there is an lscpu to put into it.
fn seen_by_programs() -> Cell {
    let [nodes, llcs, cores, threads] = SEEN_SHAPE;
    let lscpu = Path::new(LSCPU).exists();
    let mut scenario = "scenario look\nbackdrop\n  cgroup a: spin*1\nstep 100ms\n".to_owned();
    if lscpu {
        scenario.push_str(&format!("  run lscpu limit=100s: {LSCPU} -p=CPU,CORE,SOCKET,NODE,CACHE\n  wait lscpu\n"));
    }
    scenario.push_str(&disk::read_only_step());
    let args = format!(
        "--version >/dev/null; printf '{}' >/tmp/look.scn; {}",
        scenario.replace('\n', "\\n"),
        disk::on_a_read_only_disk(&format!(
            "--kernel /k/6.12/vmlinuz --accel kvm --json - --topo {nodes}n{llcs}l{cores}c{threads}t \
             --scenario /tmp/look.scn --max-gap off --timeout 250s"
        ))
    );
    Cell { name: SEEN_BY_PROGRAMS.into(), args }
}

/// What our own VMM runs for this file.
pub fn cells() -> Vec<Cell> {
    let small = PRESETS.iter().filter(|(_, shape)| on_our_vmm(*shape));
    let mut cells: Vec<Cell> = small
        .map(|(name, _)| Cell { name: format!("preset {name}"), args: format!("{} --topo {name}", short("7")) })
        .collect();
    for (name, topo) in ODD {
        cells.push(Cell { name: (*name).into(), args: format!("{} {topo}", short("7")) });
    }
    if kvm_works() {
        cells.push(Cell { name: WIDE.0.into(), args: format!("{} --topo {}", short("7"), WIDE.1) });
    }
    cells.push(seen_by_programs());
    if firmware_kernels().contains(&OLD_KERNEL) {
        let args = format!("{} --topo 3 --cmdline acpi=off", short(OLD_KERNEL));
        cells.push(Cell { name: "MP table".into(), args });
        // Three vCPUs on two emulated CPUs: what becomes of its workers is another matter.
        let args = format!("{} --topo {} --check none", short(OLD_KERNEL), SMALL_FIRST.1);
        cells.push(Cell { name: SMALL_FIRST.0.into(), args });
        let args = format!("{} --topo 3:sparse7 --cmdline acpi=off", short(OLD_KERNEL));
        cells.push(Cell { name: "MP table of wide ids".into(), args });
    }
    for kernel in firmware_kernels() {
        // APIC ids beyond 8 bits and CPUs that are not there yet have entries of their own.
        let odd = if kernel == "6.12" { ":sparse7:spare2" } else { "" };
        // The emulated host has no modules of the old kernel.
        let disk = if kernel == OLD_KERNEL { "" } else { " --disk 16M" };
        let shape = format!("--topo 2n2l1c1t{odd} --node-memory 128M,128M,64M --distance 31{disk}");
        // Each record of the kernel's log stands in the stored record, between bytes that are no text.
        let look = format!(
            "c=$?; grep -a -i -o -E '[ -~]*({OFFENCE}|{CALIBRATION})[ -~]*' /tmp/firmware-run/record; [ $c = 0 ]"
        );
        let args = format!(
            "{} {shape} --max-gap off --cmdline apic=verbose --run-dir /tmp/firmware-run; {look}",
            short(kernel)
        );
        cells.push(Cell { name: format!("firmware on {kernel}"), args });
    }
    cells
}

#[test]
fn kernel_without_acpi_finds_its_cpus_in_the_mp_table() {
    if !firmware_kernels().contains(&OLD_KERNEL) {
        // The cloud kernels cannot read MP tables (CONFIG_X86_MPPARSE).
        return not_run("topology: MP table", "the kernel '6.1' is not in the cache (scripts/fetch-kernels 6.1)");
    }
    let Some(machine) = odd_machine("MP table") else { return };
    assert_eq!((&machine["online"], &machine["possible"]), (&json!("0-2"), &json!("0-2")));
    let Some(refused) = crate::boot::cell("MP table of wide ids") else { return };
    assert_eq!(refused.code, 128, "{}", refused.text);
    assert!(
        refused.text.contains("acpi=off leaves the MP table, which cannot describe this machine"),
        "{}",
        refused.text
    );
}

fn firmware_kernels() -> Vec<&'static str> {
    let old = kernel(OLD_KERNEL, "vmlinuz").map(|_| OLD_KERNEL);
    ["7", "6.12"].into_iter().chain(old).collect()
}

fn odd_machine(name: &str) -> Option<Value> {
    let result = crate::boot::cell(name)?;
    assert_eq!(result.code, 0, "{name}:\n{}", result.text);
    Some(result.json()["guest"]["machine"].clone())
}

#[test]
fn llcs_of_unequal_size_boot() {
    let Some(machine) = odd_machine("LLCs of unequal size") else { return };
    assert_eq!(machine["llcs"], json!(["0-1", "2", "3"]));
    let Some(machine) = odd_machine("nodes of unequal LLCs") else { return };
    assert_eq!((&machine["llcs"], &machine["nodes"][0]["cpus"]), (&json!(["0", "1", "2"]), &json!("0-1")));
    if !firmware_kernels().contains(&OLD_KERNEL) {
        return not_run("topology: a first node of one CPU", "the kernel '6.1' is not in the cache");
    }
    let Some(machine) = odd_machine(SMALL_FIRST.0) else { return };
    assert_eq!((&machine["llcs"], &machine["nodes"][1]["cpus"]), (&json!(["0", "1-2"]), &json!("1-2")));
}

#[test]
fn possible_cpus_above_the_online_ones_boot() {
    let Some(machine) = odd_machine("possible CPUs") else { return };
    assert_eq!((&machine["online"], &machine["possible"]), (&json!("0-2"), &json!("0-4")));
}

#[test]
fn cpu_without_caches_boots() {
    let Some(machine) = odd_machine("a CPU without caches") else { return };
    // Kernels hide the caches of all CPUs then, or of that one.
    let hidden = machine["cacheless"].as_str().unwrap_or_default();
    assert!(["2", "0-2"].contains(&hidden), "{machine}");
}

#[test]
fn apic_ids_above_254_boot() {
    let Some(machine) = odd_machine("APIC ids above 254") else { return };
    assert_eq!((&machine["online"], &machine["llcs"]), (&json!("0-2"), &json!(["0-2"])));
}

#[test]
fn node_without_cpus_keeps_its_place() {
    let Some(machine) = odd_machine("a node without CPUs") else { return };
    let cpus: Vec<&Value> = machine["nodes"].as_array().expect("nodes").iter().map(|node| &node["cpus"]).collect();
    assert_eq!(cpus, ["0", "", "1"]);
    let Some(machine) = odd_machine(SEEN_BY_PROGRAMS) else { return };
    assert_machine(&machine, SEEN_SHAPE, "6.12");
}

#[test]
fn lscpu_in_the_guest_shows_the_shape_that_was_asked_for() {
    if !Path::new(LSCPU).exists() {
        return not_run("topology: lscpu", "there is no /usr/bin/lscpu to put into the guest (util-linux)");
    }
    let Some(result) = crate::boot::cell(SEEN_BY_PROGRAMS) else { return };
    let json = result.json();
    let payloads = json["payloads"].as_array().expect("payloads are an array");
    let lscpu = payloads.iter().find(|one| one["name"] == "lscpu").expect("lscpu is a payload");
    assert_eq!(lscpu["end"], "exit code 0", "{}", result.text);
    let lines = lscpu["output"].as_str().unwrap_or_default().lines().filter(|line| !line.starts_with('#'));
    // CPU, core, socket, node, then the caches, which some versions put between colons and some behind an empty column.
    let seen: Vec<Vec<u64>> =
        lines.map(|line| line.split([',', ':']).filter_map(|number| number.parse().ok()).collect()).collect();
    let [nodes, llcs, cores, threads] = SEEN_SHAPE;
    let wanted: Vec<Vec<u64>> = (0..llcs * cores * threads)
        .map(|cpu| {
            let (core, llc) = (cpu / threads, cpu / threads / cores);
            let node = llc / (llcs / nodes);
            // L1d, L1i and L2 are a core's own.
            vec![cpu, core, node, node, core, core, core, llc]
        })
        .collect();
    assert_eq!(seen, wanted, "{lscpu}");
}

#[test]
fn kernels_take_no_offence_at_our_firmware() {
    if !firmware_kernels().contains(&OLD_KERNEL) {
        not_run("topology: firmware on 6.1", "the kernel '6.1' is not in the cache (scripts/fetch-kernels 6.1)");
    }
    for kernel in firmware_kernels() {
        let Some(result) = crate::boot::cell(&format!("firmware on {kernel}")) else { return };
        assert_eq!(result.code, 0, "{}", result.text);
        let machine = &result.json()["guest"]["machine"];
        assert_eq!(machine["nodes"][2]["distances"], json!([31, 31, 10]), "{}", result.text);
        // What grep found stands behind the JSON.
        let after = result.text.rsplit_once("\n}").map_or("", |(_, after)| after).trim();
        assert!(after.is_empty(), "the kernel {kernel} complains:\n{after}");
    }
}
