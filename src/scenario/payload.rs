//! An external command of a scenario: its start, its output, its time limit, its end.
//!
//! Owns the process; leaves packing the program to image/ and reaping to the caller.
//! Invariant: no call here waits, and past the limit the command's whole process group is killed.

use crate::error::{Context, Error, Result};
use crate::proto::message::ProcessEnd;
use crate::proto::phase::PayloadReport;
use crate::sys::process::{self, End};
use crate::sys::spawn::{Spawn, Starting};
use crate::sys::{fd, time};
use std::os::fd::{AsFd, OwnedFd};

/// How much of the end of its output is kept: tools print their result last.
const OUTPUT_BYTES: usize = 32 << 10;
/// One read of its output, and how many at once, so that one that never stops printing cannot hold its caller.
const READ_BYTES: usize = 16 << 10;
const READS_AT_ONCE: usize = 16;
/// Its environment: a fixed one, so that runs are alike.
const ENVIRONMENT: [(&str, &str); 3] = [("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"), ("HOME", "/"), ("LANG", "C.UTF-8")];

/// A command that was started.
#[derive(Debug)]
pub struct Payload {
    pub name: String,
    argv: Vec<String>,
    pid: i32,
    /// Until it is known whether it could be executed.
    starting: Option<Starting>,
    started_ns: u64,
    limit_ns: u64,
    output: Option<OwnedFd>,
    text: Vec<u8>,
    end: Option<(ProcessEnd, u64)>,
    error: Option<String>,
    timed_out: bool,
    killed: bool,
    /// Its report was handed out.
    told: bool,
}

impl Payload {
    pub fn start(name: &str, argv: &[String], limit_ns: u64) -> Result<Self> {
        let (output, write) = fd::pipe().context(|| "make a pipe for a command's output")?;
        fd::set_nonblocking(&output).context(|| "make a command's output non-blocking")?;
        let environment = ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let stdio = [None, Some(write.as_fd()), Some(write.as_fd())];
        let spawn = Spawn { argv, environment: &environment, stdio, keep: &[], die_with_parent: true };
        let started_ns = time::monotonic_ns();
        let starting = spawn.begin().context(|| format!("start the command '{name}'"))?;
        Ok(Self {
            name: name.into(),
            argv: argv.to_vec(),
            pid: starting.pid,
            starting: Some(starting),
            started_ns,
            limit_ns,
            output: Some(output),
            text: Vec::new(),
            end: None,
            error: None,
            timed_out: false,
            killed: false,
            told: false,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }
    pub fn ended(&self) -> bool {
        self.end.is_some()
    }
    /// When it is killed.
    pub fn deadline_ns(&self) -> u64 {
        self.started_ns.saturating_add(self.limit_ns)
    }

    /// Tells how a process ended; false: it is none of ours.
    pub fn note_exit(&mut self, pid: i32, end: End) -> bool {
        if pid != self.pid || self.end.is_some() {
            return false;
        }
        let end = match end {
            End::Exited(code) => ProcessEnd::Exited { code },
            End::Signaled(signal) => ProcessEnd::Signaled { signal },
        };
        self.end = Some((end, time::monotonic_ns()));
        true
    }

    /// Takes its output and keeps its limit. The report, once, when it has ended.
    pub fn tick(&mut self, now_ns: u64) -> Option<PayloadReport> {
        if let Some(starting) = &self.starting {
            match starting.poll() {
                Ok(None) => {}
                Ok(Some(())) => self.starting = None,
                Err(error) => {
                    let program = self.argv.first().cloned().unwrap_or_default();
                    self.error = Some(Error::os(format!("execute {program} in the guest"), error).to_string());
                    self.starting = None;
                }
            }
        }
        self.take_output();
        if self.end.is_none() && now_ns >= self.deadline_ns() && !self.timed_out {
            self.timed_out = true;
            self.kill_group();
        }
        if self.end.is_none() || self.told {
            return None;
        }
        // What its children still hold goes with it.
        self.kill_group();
        Some(self.report())
    }

    /// Ends it, because the scenario says so or is over.
    pub fn kill(&mut self) {
        if self.end.is_none() {
            self.killed = true;
            self.kill_group();
        }
    }

    fn kill_group(&self) {
        // ESRCH: nobody is left, which is what is wanted.
        for target in [-self.pid, self.pid] {
            if target < 0 || self.end.is_none() {
                let killed = process::kill(target, libc::SIGKILL);
                debug_assert!(killed.is_ok() || killed.is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH)));
            }
        }
    }

    /// The report, also of one whose end was never seen.
    pub fn report(&mut self) -> PayloadReport {
        self.told = true;
        self.take_output();
        let ended_ns = self.end.map_or_else(time::monotonic_ns, |(_, at_ns)| at_ns);
        PayloadReport {
            name: self.name.clone(),
            argv: self.argv.clone(),
            end: self.end.map(|(end, _)| end).filter(|_| self.error.is_none()),
            error: self.error.clone(),
            timed_out: self.timed_out,
            killed: self.killed,
            took_ns: ended_ns.saturating_sub(self.started_ns),
            output: String::from_utf8_lossy(&self.text).into_owned(),
        }
    }

    pub fn told(&self) -> bool {
        self.told
    }

    fn take_output(&mut self) {
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS_AT_ONCE {
            let Some(output) = &self.output else { break };
            match fd::read_available(output.as_fd(), &mut buffer) {
                Ok(None) => break,
                Ok(Some(count)) if count > 0 => self.text.extend_from_slice(&buffer[..count]),
                // Its end, or an error that reading again would only repeat.
                Ok(Some(_)) | Err(_) => self.output = None,
            }
        }
        let excess = self.text.len().saturating_sub(OUTPUT_BYTES);
        self.text.drain(..excess);
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.kill_group();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{NS_PER_MS, NS_PER_SEC};

    fn run(argv: &[&str], limit_ns: u64) -> PayloadReport {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let mut payload = Payload::start("p", &argv, limit_ns).unwrap();
        let deadline = time::monotonic_ns() + 20 * NS_PER_SEC;
        loop {
            if let Some(report) = payload.tick(time::monotonic_ns()) {
                assert!(payload.tick(time::monotonic_ns()).is_none(), "told twice");
                return report;
            }
            if let Ok(Some((pid, end))) = process::wait(payload.pid(), false) {
                assert!(payload.note_exit(pid, end));
            }
            assert!(time::monotonic_ns() < deadline, "never ended");
            time::sleep_ns(NS_PER_MS).unwrap();
        }
    }

    #[test]
    fn exit_code_and_output_are_reported() {
        let report = run(&["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], 20 * NS_PER_SEC);
        assert_eq!(report.end, Some(ProcessEnd::Exited { code: 3 }));
        assert_eq!((report.output.as_str(), report.timed_out, report.error), ("out\nerr\n", false, None));
    }

    #[test]
    fn limit_is_kept_also_for_its_children() {
        let report = run(&["/bin/sh", "-c", "sleep 100 & wait"], 50 * NS_PER_MS);
        assert_eq!(report.end, Some(ProcessEnd::Signaled { signal: libc::SIGKILL }));
        assert!(report.timed_out && report.took_ns >= 50 * NS_PER_MS && report.took_ns < 20 * NS_PER_SEC);
    }

    #[test]
    fn missing_program_is_an_error_of_its_own() {
        let report = run(&["/nowhere/at/all"], 20 * NS_PER_SEC);
        assert_eq!(report.end, None);
        let error = report.error.unwrap();
        assert!(error.contains("cannot execute /nowhere/at/all") && error.contains("errno 2"), "{error}");
    }
}
