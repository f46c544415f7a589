//! The guest image through `ktstr image`.

use crate::util::{Scratch, run_in};
use std::fs;

#[test]
fn written_image_is_the_same_twice_and_lists_its_entries() {
    let scratch = Scratch::new();
    let write = |name: &str| {
        let path = scratch.0.join(name).display().to_string();
        run_in(&scratch, &["image", "--output", &path, "--seed", "1"]).exits(0);
        path
    };
    let (first, second) = (write("a.cpio"), write("b.cpio"));
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap(), "two images of one plan differ");
    run_in(&scratch, &["image", "--list", &first]).exits(0).says("/init").says("/ktstr/plan").says("/ktstr/end");
}

#[test]
fn dynamic_scheduler_brings_its_libraries() {
    let scratch = Scratch::new();
    let ran = run_in(&scratch, &["image", "--list", "--sched", "/bin/ls"]).exits(0);
    for part in ["/ktstr/sched/ls", "libc.so.6", "ld-linux-x86-64.so.2"] {
        assert!(ran.stdout.contains(part), "no {part} in{ran}");
    }
}

#[test]
fn missing_library_is_told_with_its_chain() {
    let scratch = Scratch::new();
    let library = scratch.file("foo.c", "int foo(void) { return 1; }\n");
    let program = scratch.file("main.c", "int foo(void); int main(void) { return foo(); }\n");
    let cc = |args: &[&str]| {
        let done = std::process::Command::new("cc").args(args).current_dir(&scratch.0).status().expect("run cc");
        assert!(done.success(), "cc {args:?}");
    };
    cc(&["-shared", "-fPIC", "-o", "libktstrgone.so", &library.display().to_string()]);
    cc(&["-o", "scx_gone", &program.display().to_string(), "-L.", "-lktstrgone"]);
    fs::remove_file(scratch.0.join("libktstrgone.so")).unwrap();
    let sched = scratch.0.join("scx_gone").display().to_string();
    run_in(&scratch, &["image", "--list", "--sched", &sched]).exits(128).says("scx_gone needs libktstrgone.so");
}

#[test]
fn garbage_is_no_image() {
    let scratch = Scratch::new();
    let path = scratch.file("garbage", "not an archive").display().to_string();
    run_in(&scratch, &["image", "--list", &path]).exits(128).says("garbage");
}

#[test]
fn device_that_takes_no_image_stays_in_its_place() {
    use std::os::unix::fs::FileTypeExt;
    let scratch = Scratch::new();
    run_in(&scratch, &["image", "--output", "/dev/full"]).exits(128).says("write /dev/full");
    assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device(), "the device was removed");
}
