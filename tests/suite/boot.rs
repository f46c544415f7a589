//! Our own VMM on real KVM: kernels, formats, CPUs, memory, schedulers and faults.

use crate::lab::{self, Cell, Result};
use crate::util::{ktstr, kvm_works, not_run};

const KERNELS: [&str; 2] = ["7", "6.12"];
const FORMATS: [&str; 2] = ["vmlinuz", "vmlinux"];
const CPUS: [u32; 3] = [1, 2, 4];
const MEMORIES: [&str; 2] = ["256M", "4G"];
/// The short run that must pass ten times in a row.
const REPEATS: u32 = 10;

fn cells() -> Vec<Cell> {
    let run = |name: String, kernel: &str, rest: &str| Cell {
        name,
        args: format!("--kernel /k/{kernel} --accel kvm --json - {rest}"),
    };
    let mut cells = vec![Cell { name: "doctor".into(), args: "doctor".into() }];
    for kernel in KERNELS {
        for format in FORMATS {
            for cpus in CPUS {
                for memory in MEMORIES {
                    let name = shape(kernel, format, cpus, memory);
                    let kernel = format!("{kernel}/{format}");
                    cells.push(run(name, &kernel, &format!("--topo {cpus} --memory {memory}")));
                }
            }
        }
    }
    cells.push(run("fifo".into(), "7/vmlinuz", "--topo 2 --sched builtin:fifo"));
    cells.push(run("drop".into(), "7/vmlinuz", "--topo 2 --sched builtin:drop --duration 10s"));
    cells.push(run("fifo on 6.12".into(), "6.12/vmlinuz", "--topo 2 --sched builtin:fifo"));
    cells.push(run("serial".into(), "7/vmlinuz", "--topo 2 --channel serial"));
    cells.push(run("early panic".into(), "7/vmlinuz", "--cmdline 'rdinit=/no/such init=/no/such'"));
    cells.extend(crate::hang::cells());
    cells.extend(crate::topology::cells());
    cells.extend(crate::disk::cells());
    cells.extend(crate::scenarios::cells());
    for index in 0..REPEATS {
        cells.push(run(format!("repeat {index}"), "7/vmlinux", "--topo 2 --sched builtin:fifo"));
    }
    if let Some(last) = cells.last_mut() {
        last.args = with_a_warm_cache(&last.args);
    }
    cells.push(Cell { name: "left".into(), args: "--version; ps | grep -c '[_]_vm'".into() });
    cells
}

/// The run, once its kernel has been seen, if only by a run that is refused; and behind its result the kernels of the cache
/// that a process had mapped meanwhile.
fn with_a_warm_cache(run: &str) -> String {
    let look = "until grep -hso 'unpacked/[^/]*[.]kernel' /proc/[0-9]*/maps; do sleep 0.1; done";
    format!(
        "{run} --cmdline \"$(printf %04000d 0)\" >/dev/null 2>&1; ({look}) >/tmp/mapped & look=$!; \
         ktstr {run}; c=$?; kill $look 2>/dev/null; sed 's/^/@mapped /' /tmp/mapped; (exit $c)"
    )
}

fn shape(kernel: &str, format: &str, cpus: u32, memory: &str) -> String {
    format!("{kernel} {format} {cpus} CPUs {memory}")
}

/// The result of a cell, or none where the laboratory cannot run here.
pub fn cell(name: &str) -> Option<&'static Result> {
    if !lab::is_chosen(name) {
        not_run(&format!("boot: '{name}'"), "KTSTR_CELLS names others only");
        return None;
    }
    let results = lab::results(cells)?;
    Some(results.get(name).unwrap_or_else(|| panic!("no result of '{name}'; there are {:?}", results.keys())))
}

fn assert_outcome(name: &str, outcome: &str, code: i32) -> Option<&'static Result> {
    let result = cell(name)?;
    assert_eq!(result.code, code, "{name}:\n{}", result.text);
    assert_eq!(result.json()["outcome"], outcome, "{name}:\n{}", result.text);
    Some(result)
}

#[test]
fn every_kernel_format_cpu_count_and_memory_passes() {
    for kernel in KERNELS {
        for format in FORMATS {
            for cpus in CPUS {
                for memory in MEMORIES {
                    let Some(result) = assert_outcome(&shape(kernel, format, cpus, memory), "pass", 0) else { return };
                    let json = result.json();
                    assert_eq!(json["guest"]["online_cpus"], cpus, "{}", result.text);
                    let least_kib: u64 = if memory == "4G" { 3_800_000 } else { 180_000 };
                    let seen = json["guest"]["memory_kib"].as_u64().unwrap_or(0);
                    assert!(seen > least_kib, "the guest sees {seen} KiB of {memory}");
                }
            }
        }
    }
}

#[test]
fn builtin_fifo_passes_on_kvm() {
    assert_outcome("fifo", "pass", 0);
}

#[test]
fn dropped_task_is_a_stall_on_kvm() {
    let Some(result) = assert_outcome("drop", "fail", 1) else { return };
    let json = result.json();
    let headline = json["headline"].as_str().unwrap_or_default();
    assert!(headline.contains("runnable task stall") && headline.contains("kw"), "{headline}");
}

#[test]
fn scheduler_on_a_kernel_without_sched_ext_is_skipped_on_kvm() {
    let Some(result) = assert_outcome("fifo on 6.12", "skip", 125) else { return };
    assert!(result.text.contains("CONFIG_SCHED_CLASS_EXT"), "{}", result.text);
}

#[test]
fn serial_fallback_works_on_kvm() {
    let Some(result) = assert_outcome("serial", "pass", 0) else { return };
    assert_eq!(result.json()["guest"]["channel"], "serial", "{}", result.text);
}

#[test]
fn kernel_without_init_is_skipped_on_kvm() {
    assert_outcome("early panic", "skip", 125);
}

#[test]
fn ten_runs_in_a_row_pass() {
    for index in 0..REPEATS {
        assert_outcome(&format!("repeat {index}"), "pass", 0);
    }
}

#[test]
fn kernel_of_a_warm_cache_is_mapped_and_the_image_shared() {
    let name = format!("repeat {}", REPEATS - 1);
    let Some(result) = assert_outcome(&name, "pass", 0) else { return };
    assert!(result.text.contains("@mapped unpacked/"), "no VM has mapped an unpacked kernel:\n{}", result.text);
    let json = result.json();
    let words = json["host"]["kernel_cmdline"].as_str().unwrap_or_default();
    // The image is retained where VMs share it, and nowhere else.
    assert!(words.split(' ').any(|word| word == "retain_initrd"), "the image is not shared: {words}");
    assert!(result.text.contains("ktstr: accel kvm: "), "notes are not shown:\n{}", result.text);
    for fallback in ["booted packed", "not shared"] {
        assert!(!result.text.contains(fallback), "{fallback}:\n{}", result.text);
    }
}

/// Samples at least, if they should be ten times as frequent: the emulated host is late for most of them.
const SAMPLED_EVERY_NS_AT_MOST: u64 = 100_000_000;

/// The witness has looked at every vCPU, and often.
pub fn assert_witnessed(result: &Result, vcpus: u64) {
    let noise = &result.json()["host_noise"];
    let number = |key: &str| noise[key].as_u64().unwrap_or_else(|| panic!("no {key} in {noise}"));
    let seen: Vec<Option<u64>> =
        noise["vcpus"].as_array().into_iter().flatten().map(|one| one["vcpu"].as_u64()).collect();
    assert_eq!(seen, (0..vcpus).map(Some).collect::<Vec<_>>(), "{noise}");
    let window_ns = number("to_ns") - number("from_ns");
    assert!(number("samples") >= window_ns / SAMPLED_EVERY_NS_AT_MOST, "too few samples: {noise}");
}

#[test]
fn host_s_witness_samples_every_vcpu_all_the_time() {
    for (name, vcpus) in [(shape("7", "vmlinuz", 4, "256M").as_str(), 4), ("halts", 1), ("no halts", 1)] {
        let Some(result) = cell(name) else { continue };
        assert_eq!(result.json()["perf"].as_array().is_some_and(|list| !list.is_empty()), name == "no halts");
        assert_witnessed(result, vcpus);
    }
}

#[test]
fn timings_of_every_stage_and_the_vmm_memory_are_in_the_result() {
    let Some(result) = cell("repeat 0") else { return };
    let json = result.json();
    let text = json["timings"].to_string();
    for stage in ["first-instruction", "kernel-entry", "pid1", "scheduler-enabled", "scenario-end", "torn-down"] {
        assert!(text.contains(stage), "no {stage} in {text}");
    }
    assert!(result.text.contains("own_kib"), "{}", result.text);
}

#[test]
fn doctor_finds_kvm_usable_where_it_is() {
    let Some(result) = cell("doctor") else { return };
    assert_eq!(result.code, 0, "{}", result.text);
}

#[test]
fn runs_leave_no_process_behind() {
    let Some(result) = cell("left") else { return };
    assert!(result.text.lines().last().is_some_and(|count| count.trim() == "0"), "{}", result.text);
}

#[test]
fn kvm_that_cannot_run_a_kernel_is_refused_with_its_cause() {
    if kvm_works() {
        return not_run("boot: refusal of a KVM that cannot run kernels", "the KVM of this machine works");
    }
    let Some(kernel) = crate::util::kernel("7", "vmlinuz") else { return };
    let refused = ktstr(&["--kernel", &kernel.display().to_string(), "--accel", "kvm"]).exits(128);
    refused.says("--accel kvm").says("/dev/kvm");
}

/// By its headline a result tells the emulated host's own faults, and JSON alone has it in a line of its own.
#[test]
fn every_run_of_the_laboratory_tells_its_headline() {
    let mute = |cell: &Cell| cell.args.contains("--kernel") && !cell.args.contains("--json -");
    let mute: Vec<String> = cells().into_iter().filter(mute).map(|cell| cell.name).collect();
    assert_eq!(mute, Vec::<String>::new());
}
