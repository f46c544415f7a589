//! What a unit test could not try on this machine, told where `make test` looks for it.
//!
//! Owns the line that is told; leaves the reason to the tests, and those of tests/suite to their own helper.
//! Invariant: a test that leaves something out says so here, and not to a terminal that nobody reads.

use std::fs::OpenOptions;
use std::io::Write;

/// Notes that the test which calls this leaves something out; `make test` names the file and prints it at its end.
pub(crate) fn not_run(why: &str) {
    // The harness names each test's thread after it.
    let thread = std::thread::current();
    let line = format!("{}: {why}", thread.name().unwrap_or("a unit test"));
    eprintln!("not run: {line}");
    let Some(path) = std::env::var_os("KTSTR_NOT_RUN") else { return };
    let mut list = OpenOptions::new().create(true).append(true).open(path).expect("open the list of tests not run");
    // One write, so that the lines of tests that run at once stay whole.
    list.write_all(format!("{line}\n").as_bytes()).expect("write the list of tests not run");
}
