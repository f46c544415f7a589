//! The guest's disk, under both machines: read, written, throttled, and refused.

use crate::boot::cell;
use crate::lab::Cell;
use crate::util::{Ran, Scratch, emulation, kernel, not_run, run_in};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A file that the guest copies within, a disk that serves 20 requests a second, and one of so many bytes a second.
const FILE: &str = "disk";
const SLOW: &str = "disk throttled";
const OLD: &str = "disk on 6.12";
const REQUESTS_PER_S: u64 = 20;
/// So many that a worker's sixteen blocks take a second.
const BYTES_PER_S: u64 = 64 << 10;
/// What a kernel reads ahead at once (read_ahead_kb); workers write a block at a time.
const LARGEST_REQUEST: u64 = 128 << 10;
/// One that is only read: its bytes, and the first of them.
const READ_ONLY_BYTES: u64 = 1 << 20;
const READ_ONLY_TEXT: &str = "a disk to be read";

pub fn cells() -> Vec<Cell> {
    let run = |name: &str, kernel: &str, rest: &str| Cell {
        name: name.into(),
        args: format!("--kernel /k/{kernel}/vmlinuz --accel kvm --json - --topo 1 --cgroups 1 {rest}"),
    };
    // The second half of the file is content that no other file has by chance.
    let copied = run(FILE, "7", "--sched /tmp/copier --include /bin/dd --disk /tmp/disk.img");
    let file = format!(
        "--version >/dev/null; printf '{}' >/tmp/copier; chmod 755 /tmp/copier; \
         cat /k/7/vmlinuz | head -c {HALF_BYTES} >/tmp/half; \
         (head -c {HALF_BYTES} </dev/zero; cat /tmp/half) >/tmp/disk.img; \
         ktstr {}; c=$?; cat /tmp/half /tmp/half | cmp - /tmp/disk.img && echo '@disk copied'; (exit $c)",
        COPIER.replace('\n', "\\n"),
        copied.args
    );
    vec![
        Cell { args: file, ..copied },
        run(SLOW, "7", &format!("--work io-sync --disk 16M,iops={REQUESTS_PER_S}")),
        run(OLD, "6.12", &format!("--work io-sync --disk 16M,rate={BYTES_PER_S} --max-gap off --max-run-delay off")),
    ]
}

/// How often the machine counted something.
fn count(json: &Value, name: &str) -> u64 {
    json["memory"]["exits"][name].as_u64().unwrap_or(0)
}

#[test]
fn workers_write_to_our_own_disk_on_both_kernels() {
    for name in [SLOW, OLD] {
        let Some(result) = cell(name) else { return };
        let json = result.json();
        assert_eq!((result.code, &json["outcome"]), (0, &Value::from("pass")), "{name}:\n{}", result.text);
        assert_eq!(json["plan"]["disk_bytes"], 16 << 20, "{}", result.text);
        let modules = json["plan"]["modules"].to_string();
        assert!(modules.contains("virtio_mmio") && modules.contains("virtio_blk"), "{modules}");
        // Each write is synchronous, so it reached the disk: some at least, however slow the machine.
        assert!(count(&json, "disk-requests") > 10 && count(&json, "disk-bytes") > 10 * 4096, "{}", result.text);
        for bad in ["disk-failed-requests", "disk-broken-by-driver"] {
            assert_eq!(count(&json, bad), 0, "{bad}:\n{}", result.text);
        }
    }
}

#[test]
fn file_is_read_and_written_through_our_own_disk() {
    let Some(result) = cell(FILE) else { return };
    let json = result.json();
    assert_eq!((result.code, &json["outcome"]), (0, &Value::from("pass")), "{}", result.text);
    assert!(result.text.contains("\n@disk copied"), "the guest's copy did not arrive:\n{}", result.text);
    assert!(count(&json, "disk-bytes") >= 2 * HALF_BYTES as u64, "{}", result.text);
    for bad in ["disk-failed-requests", "disk-broken-by-driver", "disk-throttled-ms"] {
        assert_eq!(count(&json, bad), 0, "{bad}:\n{}", result.text);
    }
}

#[test]
fn throttled_disk_serves_no_more_than_its_rate() {
    let rates = [(SLOW, "disk-requests", REQUESTS_PER_S, 1), (OLD, "disk-bytes", BYTES_PER_S, LARGEST_REQUEST)];
    for (name, what, per_s, request) in rates {
        let Some(result) = cell(name) else { return };
        let json = result.json();
        let stages = json["timings"].as_array().expect("timings are an array");
        let at_ns = |name: &str| {
            let stage = stages.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("no {name}"));
            stage["at_ns"].as_u64().expect("a time")
        };
        // Since PID 1 loads the driver, with a tenth of a second's burst and one request more.
        let served_s = (at_ns("vm-end") - at_ns("pid1")).div_ceil(1_000_000_000);
        let most = per_s * served_s + per_s / 10 + request;
        let served = count(&json, what);
        assert!(served > 0 && served <= most, "{what} are {served}, {most} allowed:\n{}", result.text);
        assert!(count(&json, "disk-throttled-ms") > 0, "{}", result.text);
    }
}

/// A step of a scenario that writes to such a disk and reads it, and what it is run with.
pub fn read_only_step() -> String {
    format!(
        "  run write limit=60s: /bin/dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync\n  wait write\n  \
         run read limit=60s: /bin/dd if=/dev/vda bs=1 count={}\n  wait read\n",
        READ_ONLY_TEXT.len()
    )
}

/// Makes such a disk, runs on it, and tells whether it was written.
pub fn on_a_read_only_disk(run: &str) -> String {
    format!(
        "(printf '{READ_ONLY_TEXT}'; head -c {READ_ONLY_BYTES} </dev/zero) | head -c {READ_ONLY_BYTES} >/tmp/read-only; \
         cp /tmp/read-only /tmp/read-only.kept; \
         ktstr {run} --disk /tmp/read-only,ro; c=$?; \
         cmp /tmp/read-only /tmp/read-only.kept && echo '@disk unchanged'; (exit $c)"
    )
}

#[test]
fn read_only_file_is_read_and_never_written_through_our_own_disk() {
    let Some(result) = cell(crate::topology::SEEN_BY_PROGRAMS) else { return };
    let json = result.json();
    let payload = |name: &str| {
        let list = json["payloads"].as_array().into_iter().flatten().find(|one| one["name"] == name).cloned();
        list.unwrap_or_else(|| panic!("no {name}:\n{}", result.text))
    };
    let (read, write) = (payload("read"), payload("write"));
    assert_eq!(read["end"], "exit code 0", "{}", result.text);
    assert!(read["output"].as_str().is_some_and(|text| text.contains(READ_ONLY_TEXT)), "{read}");
    assert_ne!(write["end"], "exit code 0", "a read-only disk was written:\n{}", result.text);
    assert!(result.text.contains("\n@disk unchanged"), "{}", result.text);
    assert_eq!(count(&json, "disk-broken-by-driver"), 0, "{}", result.text);
}

/// A scheduler that copies the second half of the disk over the first, before it does its work.
const COPIER: &str = "#!/bin/sh\nset -e\ndd if=/dev/vda of=/tmp/half bs=64k skip=16 count=16\n\
    dd if=/tmp/half of=/dev/vda bs=64k conv=fsync\nexec /init __probe fifo\n";
const HALF_BYTES: usize = 1 << 20;

fn copy(scratch: &Scratch, kernel: &std::path::Path, disk: &str) -> Ran {
    let script = scratch.file("copier", COPIER);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let (kernel, script) = (kernel.display().to_string(), script.display().to_string());
    let words = ["--kernel", &kernel, "--accel", "qemu", "--duration", "500ms", "--sched", &script, "--disk", disk];
    run_in(scratch, &[&words[..], &["--include", "/bin/dd"]].concat())
}

#[test]
fn file_is_read_and_written_by_the_guest() {
    let Some(kernel) = emulation("disk: a file", "7") else { return };
    let scratch = Scratch::new();
    let pattern: Vec<u8> = (0..HALF_BYTES).map(|at| (at % 251) as u8).collect();
    let disk = scratch.file("disk.img", [vec![0; HALF_BYTES], pattern.clone()].concat());
    copy(&scratch, &kernel, &disk.display().to_string()).exits(0);
    let after = fs::read(&disk).unwrap();
    assert!(after[..HALF_BYTES] == pattern && after[HALF_BYTES..] == pattern, "the guest's copy did not arrive");
}

#[test]
fn read_only_file_stays_as_it_was() {
    let Some(kernel) = emulation("disk: a read-only file", "7") else { return };
    let scratch = Scratch::new();
    let disk = scratch.file("disk.img", vec![7; 2 * HALF_BYTES]);
    // The copy fails, and with it the scheduler, in its own words.
    copy(&scratch, &kernel, &format!("{},ro", disk.display())).exits(1).says("dd: ");
    assert!(fs::read(&disk).unwrap() == vec![7; 2 * HALF_BYTES], "a read-only disk was written");
}

#[test]
fn disks_that_cannot_be_are_refused_before_anything_boots() {
    let Some(kernel) = kernel("7", "vmlinuz") else {
        return not_run("disk: refusals", "the kernel '7' is not in the cache (scripts/fetch-kernels)");
    };
    let scratch = Scratch::new();
    let odd = scratch.file("odd.img", [0; 1000]).display().to_string();
    let empty = scratch.0.join("empty");
    fs::create_dir(&empty).unwrap();
    let (kernel, empty) = (kernel.display().to_string(), empty.display().to_string());
    for (disk, more, reason) in [
        (odd.as_str(), vec![], "no whole number of 512-byte sectors"),
        ("/no/such/disk", vec![], "--disk takes a size"),
        ("/dev/null", vec![], "neither a file nor a block device"),
        ("64M", vec!["--modules", empty.as_str()], "--modules DIR"),
    ] {
        let words = ["--kernel", &kernel, "--accel", "qemu", "--disk", disk];
        run_in(&scratch, &[&words[..], &more].concat()).exits(128).says(reason);
    }
}
