//! A guest that hangs, and a host that starves it: what is told of the vCPUs, and whom it is held against.

use crate::lab::Cell;
use crate::util::{Scratch, emulation, run_in};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

/// Where the program lies that never ends, and where it stands all the time.
const LOAD: u64 = 0x40_0000;
const LOOP: u64 = LOAD + HEADERS;
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

fn assert_loop(result: &Value, text: &str) {
    let dump = &result["registers"][0];
    assert_eq!(dump["rip"], format!("{LOOP:#x}"), "{text}");
    assert_eq!(dump["mode"], "64-bit mode with paging", "{text}");
    assert_eq!(dump["missing"], Value::Null, "{text}");
    assert!(text.contains("the vCPUs when it was killed"), "{text}");
}

#[test]
fn registers_of_a_hung_guest_are_told_under_emulation() {
    let Some(kernel) = emulation("hang: registers", "7") else { return };
    let scratch = Scratch::new();
    let spin = scratch.file("spin", program());
    std::fs::set_permissions(&spin, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    let include = format!("{}:/spin", spin.display());
    let kernel = kernel.display().to_string();
    let args = ["--kernel", &kernel, "--accel", "qemu", "--json", "-", "--timeout", "20s", "--duration", "1s"];
    let more = ["--include", &include, "--cmdline", "rdinit=/spin"];
    let ran = run_in(&scratch, &[&args[..], &more[..]].concat()).exits(125);
    assert_loop(&ran.json(), &ran.to_string());
    let directory = std::fs::read_dir(scratch.0.join("ktstr/runs")).unwrap().next().unwrap().unwrap().path();
    let registers = std::fs::read_to_string(directory.join("registers.txt")).expect("registers.txt is kept");
    assert!(registers.contains("RAX") && registers.contains("no symbols"), "{registers}");
}

/// The runs of this file on our own VMM, for the laboratory.
pub fn cells() -> Vec<Cell> {
    let octal: String = program().iter().map(|byte| format!("\\{byte:03o}")).collect();
    let hang = format!(
        "--version >/dev/null; printf '{octal}' >/tmp/spin; chmod 755 /tmp/spin; \
         ktstr --kernel /k/7/vmlinuz --accel kvm --json - --timeout 40s --duration 1s --topo 2 \
         --include /tmp/spin:/spin --cmdline rdinit=/spin"
    );
    // Once the scheduler is enabled, the whole VM gets one CPU, and that is for others.
    let starve = "until grep -qs ktstr_drop /tmp/starved/record; do sleep 0.1; done; \
                  for task in /proc/$(pgrep -f '[_]_vm' | head -n 1)/task/*; do taskset -p 1 ${task##*/}; done; \
                  for i in 1 2 3 4 5 6 7 8; do nice -n -10 timeout 6 taskset 1 sh -c 'while :; do :; done' & done";
    let starved = format!(
        "--version >/dev/null; ({starve}) >/dev/null 2>&1 & \
         ktstr --kernel /k/7/vmlinuz --accel kvm --json - --topo 2 --sched builtin:drop --duration 10s \
         --run-dir /tmp/starved"
    );
    vec![Cell { name: "hang".into(), args: hang }, Cell { name: "starved".into(), args: starved }]
}

#[test]
fn registers_of_a_hung_guest_are_told_on_kvm() {
    let Some(result) = crate::boot::cell("hang") else { return };
    assert_eq!(result.code, 125, "{}", result.text);
    let json = result.json();
    assert_loop(&json, &result.text);
    assert_eq!(json["registers"][0]["code"].as_str().map(|code| code.starts_with("eb fe")), Some(true));
    assert_eq!(json["registers"].as_array().map(Vec::len), Some(2), "{}", result.text);
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
