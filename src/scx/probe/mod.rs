//! The built-in probe schedulers: small sched_ext schedulers whose behaviour is known, to try checks against.
//!
//! Owns their table, and the life of the hidden process that holds one; leaves programs to `programs`, loading to `load`.
//! Invariant: the scheduler is in the kernel exactly as long as this process holds its link.

pub mod kernel;
pub mod load;
pub mod programs;

use super::state::{ENABLED, Snapshot, sched_ext_dir};
use crate::error::{Context, Error, Result};
use crate::sys::{poll, signal};
use load::{Loaded, Refusal};
use programs::Build;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

/// One operation of a probe.
#[derive(Debug)]
pub struct Program {
    /// The member of sched_ext_ops that it fills.
    pub operation: &'static str,
    pub sleepable: bool,
    pub build: Build,
}

/// One probe scheduler.
#[derive(Debug)]
pub struct Probe {
    /// What users call it: `builtin:NAME`.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    pub programs: &'static [Program],
    /// sched_ext_ops.timeout_ms; none: the kernel's own 30 s.
    pub timeout_ms: Option<u32>,
    /// sched_ext_ops.flags.
    pub flags: u64,
    /// What the word means that its programs share with us, where they use it; it is told when it is no longer 0.
    pub state_means: Option<&'static str>,
}

const fn program(operation: &'static str, build: Build) -> Program {
    Program { operation, sleepable: false, build }
}

/// Every probe scheduler.
pub const PROBES: &[Probe] = &[
    Probe {
        name: "noop",
        about: "has a name and nothing else: every operation is the kernel's default",
        programs: &[],
        timeout_ms: None,
        flags: 0,
        state_means: None,
    },
    Probe {
        name: "fifo",
        about: "puts every task on the global queue in order of arrival",
        programs: &[program("enqueue", programs::enqueue_fifo)],
        timeout_ms: None,
        flags: 0,
        state_means: None,
    },
    Probe {
        name: "drop",
        about: "loses one worker, so that the kernel's watchdog ends it within 2 s",
        programs: &[
            program("select_cpu", programs::select_previous_cpu),
            program("enqueue", programs::enqueue_all_but_one),
        ],
        // The watchdog fires after 1.0 to 1.5 times this.
        timeout_ms: Some(1000),
        flags: 0,
        state_means: Some("lost the task with pid"),
    },
];

/// The probe of this name.
pub fn find(name: &str) -> Option<&'static Probe> {
    PROBES.iter().find(|probe| probe.name == name)
}

/// The hidden command that runs a probe: `ktstr __probe NAME`.
pub const COMMAND: &str = "__probe";

/// The command line of a probe's process, where `program` is this binary.
pub fn argv(program: &str, probe: &str) -> Vec<String> {
    [program, COMMAND, probe].map(String::from).to_vec()
}

/// What the kernel calls it: sched_ext_ops.name, `root/ops` and the kernel log.
pub fn ops_name(probe: &str) -> String {
    // The kernel takes letters, digits, `_` and `.` only.
    format!("ktstr_{}", probe.replace('-', "_"))
}

/// Exit codes of the probe's process.
pub mod exit {
    /// Unloaded because we were asked to.
    pub const STOPPED: u8 = 0;
    /// The kernel disabled it.
    pub const DISABLED: u8 = 1;
    /// There is no probe of this name.
    pub const USAGE: u8 = 2;
    /// This kernel cannot run it.
    pub const UNSUPPORTED: u8 = 3;
    /// The verifier refused it; its log is on standard error.
    pub const REJECTED: u8 = 4;
    /// Another scheduler is loaded.
    pub const BUSY: u8 = 5;
    /// Anything else.
    pub const FAILED: u8 = 6;
}

/// How often the process looks whether the kernel has disabled its scheduler.
const LOOK_EVERY_MS: u64 = 100;
/// What asks the process to unload and end.
const STOP_SIGNALS: [i32; 2] = [libc::SIGINT, libc::SIGTERM];

/// Runs a probe scheduler until SIGINT or SIGTERM, or until the kernel disables it. Returns the exit code.
pub fn main(name: &str) -> u8 {
    let (code, text) = match run(name, Path::new("/")) {
        Ok(outcome) => outcome,
        Err(error) => (exit::FAILED, error.to_string()),
    };
    if text.is_empty() {
        return code;
    }
    // Where nobody reads it any more, the exit code still says what happened.
    match writeln!(std::io::stderr(), "ktstr probe: {text}") {
        Ok(()) => code,
        Err(_) => code.max(exit::DISABLED),
    }
}

fn run(name: &str, root: &Path) -> Result<(u8, String)> {
    let Some(probe) = find(name) else {
        let known: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
        return Ok((exit::USAGE, format!("there is no probe scheduler '{name}' (known: {})", known.join(", "))));
    };
    // Blocked before loading, so that an early signal still meets an orderly end.
    signal::block(&STOP_SIGNALS, true).context(|| "block SIGINT and SIGTERM")?;
    let signals = signal::signalfd(&STOP_SIGNALS).context(|| "make a descriptor for signals")?;
    let loaded = match load::load(probe, &root.join("sys/kernel/btf/vmlinux")) {
        Ok(loaded) => loaded,
        Err(refusal) => return Ok(explain(probe, refusal)),
    };
    let ops = ops_name(name);
    say(&format!("{ops} attached"))?;
    let mut told = false;
    loop {
        if !told && tell_state(probe, &loaded)? {
            told = true;
        }
        poll::readable(&[signals.as_fd()], LOOK_EVERY_MS).context(|| "wait for a signal")?;
        // The kernel's word comes before the signal: who loses a scheduler asks this process to end soon after.
        let asked = signal::take(&signals).context(|| "read a signal")?.is_some();
        let now = Snapshot::read(&sched_ext_dir(root));
        if now.state != ENABLED || now.ops.as_deref() != Some(&ops) {
            return Ok((exit::DISABLED, format!("the kernel disabled {ops} (state {}): see its log", now.state)));
        }
        if asked {
            drop(loaded);
            say(&format!("{ops} detached"))?;
            return Ok((exit::STOPPED, String::new()));
        }
    }
}

/// Says what the shared word means once it is set.
fn tell_state(probe: &Probe, loaded: &Loaded) -> Result<bool> {
    let Some(meaning) = probe.state_means else { return Ok(true) };
    let value = loaded.state().context(|| "read the probe's BPF map")?;
    if value != 0 {
        say(&format!("{} {meaning} {value}", ops_name(probe.name)))?;
    }
    Ok(value != 0)
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context(|| "write to standard output")
}

fn explain(probe: &Probe, refusal: Refusal) -> (u8, String) {
    let ops = ops_name(probe.name);
    match refusal {
        Refusal::Unsupported(text) => (exit::UNSUPPORTED, text),
        Refusal::Rejected { operation, cause, log } => {
            // The marks are those of libbpf, so that one reader finds both.
            let log = log.trim_end();
            let refused = Error::os(format!("load {ops}.{operation} into the kernel"), cause);
            let text = format!("{refused}\n-- BEGIN PROG LOAD LOG --\n{log}\n-- END PROG LOAD LOG --");
            (exit::REJECTED, text)
        }
        Refusal::Busy => (exit::BUSY, format!("cannot attach {ops}: another scheduler is loaded (errno 16)")),
        Refusal::Failed(error) => (exit::FAILED, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::is_object_name;

    #[test]
    fn every_probe_has_a_name_that_the_kernel_takes() {
        for probe in PROBES {
            assert!(is_object_name(&ops_name(probe.name)), "{}", probe.name);
            assert!(!probe.about.is_empty());
            assert_eq!(PROBES.iter().filter(|other| other.name == probe.name).count(), 1, "{}", probe.name);
            assert!(probe.timeout_ms.unwrap_or(0) <= 30_000, "the kernel refuses more");
        }
        assert_eq!(ops_name("init-fail"), "ktstr_init_fail");
    }

    #[test]
    fn unknown_probe_is_a_usage_error_that_lists_the_known() {
        let (code, text) = run("nothing", Path::new("/")).unwrap();
        assert_eq!(code, exit::USAGE);
        assert!(text.contains("noop, fifo, drop"), "{text}");
    }

    #[test]
    fn refusals_have_exit_codes_of_their_own() {
        let probe = &PROBES[1];
        let rejected = Refusal::Rejected {
            operation: "enqueue",
            cause: std::io::Error::from_raw_os_error(libc::EACCES),
            log: "R1 invalid mem access\n".into(),
        };
        let (code, text) = explain(probe, rejected);
        assert_eq!(code, exit::REJECTED);
        assert!(text.contains("ktstr_fifo.enqueue") && text.contains("R1 invalid mem access"), "{text}");
        assert_eq!(explain(probe, Refusal::Busy).0, exit::BUSY);
        assert_eq!(explain(probe, Refusal::Unsupported(String::new())).0, exit::UNSUPPORTED);
    }
}
