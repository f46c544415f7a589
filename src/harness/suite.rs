//! All chosen cases of a test binary: each run in a process of its own, so many at a time.
//!
//! Owns starting them, taking what they print, and the exit code; leaves the words to `output`.
//! Invariant: a case that cannot be started has failed.

use super::Case;
use super::args::{self, Args};
use super::case::{COMMAND, EXIT_SKIP};
use super::output::{self, Came, Ended};
use crate::cli::out;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Instant;

/// Exit code of Rust's own test harness where a test failed.
const EXIT_FAILED: u8 = 101;

pub fn main(cases: &[Case], words: &[OsString]) -> u8 {
    let threads = std::env::var("RUST_TEST_THREADS").ok();
    let done = args::parse(words, threads.as_deref()).and_then(|args| carry_out(cases, &args));
    done.unwrap_or_else(|error| {
        out::show_error(&error);
        EXIT_FAILED
    })
}

fn carry_out(cases: &[Case], args: &Args) -> Result<u8> {
    let chosen = args.choose(cases);
    if args.help {
        return out::print(args::HELP).map(|()| 0);
    }
    if args.list {
        return out::print(&output::list(&chosen, args.format)).map(|()| 0);
    }
    let started = Instant::now();
    out::print(&output::head(chosen.len()))?;
    let ended = run_all(&chosen, args)?;
    out::print(&output::tail(&ended, cases.len() - chosen.len(), started.elapsed(), args.show_output))?;
    let failed = ended.iter().any(|case| case.came == Came::Failed);
    Ok(if failed { EXIT_FAILED } else { 0 })
}

/// Runs them, and prints a line as each ends.
fn run_all(chosen: &[&Case], args: &Args) -> Result<Vec<Ended>> {
    let queue = Mutex::new(chosen.iter());
    let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next().copied();
    let (tell, told) = mpsc::channel();
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..args.threads.min(chosen.len()) {
            let tell = tell.clone();
            scope.spawn(move || {
                // The receiver lives as long as this scope.
                while let Some(ended) = next().map(|case| run_one(case, args)) {
                    if tell.send(ended).is_err() {
                        break;
                    }
                }
            });
        }
        drop(tell);
        for ended in told {
            out::print(&output::line(&ended))?;
            all.push(ended);
        }
        Ok(all)
    })
}

fn run_one(case: &Case, args: &Args) -> Ended {
    let name = case.coded.name;
    if args.passes_over(case) {
        let why = case.ignored.unwrap_or_default().to_owned();
        return Ended { name, came: Came::Ignored, why, output: String::new() };
    }
    match start(name, args.nocapture) {
        Ok((Some(0), output)) => Ended { name, came: Came::Ok, why: String::new(), output },
        Ok((Some(code), output)) if code == i32::from(EXIT_SKIP) => {
            let why = output.lines().filter_map(|line| line.strip_prefix("SKIP: ")).next_back();
            Ended { name, came: Came::Ignored, why: why.unwrap_or("skipped by the run").to_owned(), output }
        }
        Ok((code, mut output)) => {
            if code.is_none() {
                output.push_str("the run was ended by a signal\n");
            }
            Ended { name, came: Came::Failed, why: String::new(), output }
        }
        Err(error) => Ended { name, came: Came::Failed, why: String::new(), output: format!("{error}\n") },
    }
}

/// Runs this binary again for one case; returns its exit code and what it printed.
fn start(name: &str, nocapture: bool) -> Result<(Option<i32>, String)> {
    let failed = |error| Error::os(format!("run the case '{name}' in a process of its own"), error);
    let mut command = Command::new("/proc/self/exe");
    command.args([COMMAND, name]).stdin(Stdio::null());
    if nocapture {
        let status = command.status().map_err(failed)?;
        return Ok((status.code(), String::new()));
    }
    let done = command.output().map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((done.status.code(), format!("{}{}", text(&done.stderr), text(&done.stdout))))
}
