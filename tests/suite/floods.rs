//! Guests that never stop talking: what is kept of them is bounded, and says where it was cut.

use crate::util::{Ran, Scratch, emulation, run_in};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A scheduler's program that begins with these words of the shell, and then works as `fifo`.
fn talker(scratch: &Scratch, kernel: &Path, words: &str, more: &[&str]) -> Ran {
    let script = scratch.file("talker", format!("#!/bin/sh\n{words}\nexec /init __probe fifo\n"));
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let (kernel, script) = (kernel.display().to_string(), script.display().to_string());
    let words = ["--kernel", &kernel, "--accel", "qemu", "--duration", "1s", "--sched", &script];
    run_in(scratch, &[&words[..], more].concat())
}

/// The size of each file that a run has left.
fn left_by(scratch: &Scratch) -> Vec<(String, u64)> {
    let runs = fs::read_dir(scratch.0.join("ktstr/runs")).expect("the run was kept");
    let files = runs.flat_map(|run| fs::read_dir(run.unwrap().path()).unwrap()).map(|file| file.unwrap());
    files.map(|file| (file.file_name().to_string_lossy().into_owned(), file.metadata().unwrap().len())).collect()
}

#[test]
fn endless_console_is_cut_in_the_record_which_says_so() {
    let Some(kernel) = emulation("floods: endless console", "7") else { return };
    let scratch = Scratch::new();
    // Lines of 1 KiB, from before the scheduler's start to the end of the VM.
    let words = "line=x; for i in 1 2 3 4 5 6 7 8 9 10; do line=$line$line; done\n\
                 (while :; do echo $line; done >/dev/ttyS0) &\nsleep 1";
    let ran = talker(&scratch, &kernel, words, &["--keep", "--include", "/bin/sleep"]);
    assert!(ran.code.is_some(), "{ran}");
    let files = left_by(&scratch);
    let size = |name: &str| files.iter().find(|(known, _)| known == name).map_or(0, |(_, bytes)| *bytes);
    // 16 MiB and the line that says that it was cut.
    assert!(size("console.log") > 300 << 10 && size("console.log") < (16 << 20) + 100, "{files:?}");
    let run = fs::read_dir(scratch.0.join("ktstr/runs")).unwrap().next().unwrap().unwrap().path();
    let record = fs::read(run.join("record")).unwrap();
    let said = record.windows(29).any(|bytes| bytes == b"[here the record left out wha");
    assert!(said && record.len() < 2 << 20, "{} bytes of record, cut told: {said}", record.len());
}

#[test]
fn guest_that_never_stops_sending_is_cut_and_named() {
    let Some(kernel) = emulation("floods: endless sending", "7") else { return };
    let scratch = Scratch::new();
    let words = "line=x; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do line=$line$line; done\nwhile :; do echo $line; done";
    let ran = talker(&scratch, &kernel, words, &["--timeout", "120s"]);
    assert!(matches!(ran.code, Some(1 | 2 | 125)), "{ran}");
    let ran = ran.says("never stopped sending");
    let bytes: u64 = left_by(&scratch).iter().map(|(_, bytes)| bytes).sum();
    // The record's 64 MiB, once, and what lies beside it.
    assert!(bytes < 100 << 20, "{bytes} bytes were left:{ran}");
}
