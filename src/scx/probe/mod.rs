//! The built-in probe schedulers: small sched_ext schedulers whose behaviour is known, to try checks against.
//!
//! Owns the life of the hidden process that holds one; leaves the list of them to `table`, programs to `programs`,
//! `faulty` and `losing`, loading to `load`.
//! Invariant: the scheduler is in the kernel exactly as long as this process holds its link.

mod faulty;
mod hang;
pub mod kernel;
pub mod load;
mod losing;
pub mod programs;
mod table;

pub use table::{PROBES, Probe, Program, Quirk, find};

use super::state::{ENABLED, Snapshot, sched_ext_dir};
use crate::error::{Context, Error, Result};
use crate::proto::plan::SchedPolicy;
use crate::sys::{poll, process, sched, signal, time};
use crate::units::{NS_PER_MS, NS_PER_SEC};
use load::{Loaded, Refusal};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The hidden command that runs a probe: `ktstr __probe NAME[@TIMEOUT_MS]`.
pub const COMMAND: &str = "__probe";
/// Between a probe's name and the stall timeout that takes the place of its own.
const TIMEOUT_MARK: char = '@';

/// The command line of a probe's process, where `program` is this binary; with another stall timeout where one is given.
pub fn argv(program: &str, probe: &str, timeout_ms: Option<u32>) -> Vec<String> {
    let timeout = timeout_ms.map_or_else(String::new, |ms| format!("{TIMEOUT_MARK}{ms}"));
    vec![program.into(), COMMAND.into(), format!("{probe}{timeout}")]
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
    /// What the probe `early-exit` ends with.
    pub const EARLY: u8 = 7;
}

/// How often the process looks whether the kernel has disabled its scheduler.
const LOOK_EVERY_MS: u64 = 100;
/// How long after it attached the process of a probe does what it is odd for: workers are then at work.
const QUIRK_AFTER_NS: u64 = 2 * NS_PER_SEC;
/// The lowest real-time priority: above every normal task, below all that observes.
const SPIN_PRIORITY: u32 = 1;
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

/// The probe and the stall timeout of `NAME[@TIMEOUT_MS]`.
fn named(word: &str) -> Option<(&'static Probe, Option<u32>)> {
    let (name, timeout) = word.split_once(TIMEOUT_MARK).map_or((word, None), |(name, ms)| (name, Some(ms)));
    let timeout = timeout.map(str::parse).transpose().ok()?;
    find(name).map(|probe| (probe, timeout.or(probe.timeout_ms)))
}

fn run(word: &str, root: &Path) -> Result<(u8, String)> {
    let Some((probe, timeout_ms)) = named(word) else {
        let known: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
        return Ok((exit::USAGE, format!("there is no probe scheduler '{word}' (known: {})", known.join(", "))));
    };
    // Blocked before loading, so that an early signal still meets an orderly end.
    signal::block(&STOP_SIGNALS, true).context(|| "block SIGINT and SIGTERM")?;
    let signals = signal::signalfd(&STOP_SIGNALS).context(|| "make a descriptor for signals")?;
    match probe.quirk {
        Quirk::LeavesAtOnce => return Ok((exit::EARLY, "leaves before it attaches, as its name says".into())),
        Quirk::NeverAttaches => {
            say(&format!("{} does not attach", ops_name(probe.name)))?;
            while signal::take(&signals).context(|| "read a signal")?.is_none() {
                poll::readable(&[signals.as_fd()], LOOK_EVERY_MS).context(|| "wait for a signal")?;
            }
            return Ok((exit::STOPPED, String::new()));
        }
        Quirk::AsksForExt => sched::set_policy(0, &SchedPolicy::Ext, 0, false).context(|| "become a SCHED_EXT task")?,
        _ => {}
    }
    let load = || load::load(probe, timeout_ms, &root.join("sys/kernel/btf/vmlinux"));
    let loaded = match load() {
        Ok(loaded) => loaded,
        Err(refusal) => return Ok(explain(probe, refusal)),
    };
    say(&format!("{} attached", ops_name(probe.name)))?;
    match hold(probe, loaded, root, &signals)? {
        Held::Ended(code, text) => Ok((code, text)),
        Held::Detached => match load() {
            Ok(loaded) => match hold(&Probe { quirk: Quirk::None, ..*probe }, loaded, root, &signals)? {
                Held::Ended(code, text) => Ok((code, text)),
                Held::Detached => Ok((exit::STOPPED, String::new())),
            },
            Err(refusal) => Ok(explain(probe, refusal)),
        },
    }
}

/// Why the process no longer holds its scheduler.
enum Held {
    Ended(u8, String),
    /// It let go of it by itself.
    Detached,
}

/// Holds the scheduler until somebody or something ends it.
fn hold(probe: &Probe, loaded: Loaded, root: &Path, signals: &OwnedFd) -> Result<Held> {
    let ops = ops_name(probe.name);
    let started_ns = time::monotonic_ns();
    if probe.quirk == Quirk::Spins {
        let policy = SchedPolicy::Fifo { priority: SPIN_PRIORITY };
        sched::set_policy(0, &policy, 0, true).context(|| "become a SCHED_FIFO task")?;
    }
    let mut told = false;
    loop {
        if !told && tell_state(probe, &loaded)? {
            told = true;
        }
        if probe.quirk == Quirk::Spins {
            let until = time::monotonic_ns() + LOOK_EVERY_MS * NS_PER_MS;
            while time::monotonic_ns() < until {
                std::hint::spin_loop();
            }
        } else {
            poll::readable(&[signals.as_fd()], LOOK_EVERY_MS).context(|| "wait for a signal")?;
        }
        // The kernel's word comes before the signal: who loses a scheduler asks this process to end soon after.
        let asked = signal::take(signals).context(|| "read a signal")?.is_some();
        let now = Snapshot::read(&sched_ext_dir(root));
        if now.state != ENABLED || now.ops.as_deref() != Some(&ops) {
            let text = format!("the kernel disabled {ops} (state {}): see its log", now.state);
            return Ok(Held::Ended(exit::DISABLED, text));
        }
        if asked && probe.quirk != Quirk::IgnoresSignals {
            drop(loaded);
            say(&format!("{ops} detached"))?;
            return Ok(Held::Ended(exit::STOPPED, String::new()));
        }
        if time::monotonic_ns().saturating_sub(started_ns) < QUIRK_AFTER_NS {
            continue;
        }
        match probe.quirk {
            Quirk::Crashes => process::kill(process::id(), libc::SIGSEGV).context(|| "end by SIGSEGV")?,
            Quirk::Reattaches => {
                drop(loaded);
                say(&format!("{ops} detaches, to attach again"))?;
                return Ok(Held::Detached);
            }
            _ => {}
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

    #[test]
    fn stall_timeout_may_follow_the_name() {
        let of = |word: &str| named(word).map(|(probe, timeout)| (probe.name, timeout));
        assert_eq!(of("drop"), Some(("drop", Some(1000))));
        assert_eq!(of("drop@2500"), Some(("drop", Some(2500))));
        assert_eq!(of("fifo"), Some(("fifo", None)));
        assert_eq!((of("fifo@x"), of("nothing@5")), (None, None));
        assert_eq!(argv("/init", "fifo", Some(7)), ["/init", "__probe", "fifo@7"]);
    }

    #[test]
    fn unknown_probe_is_a_usage_error_that_lists_the_known() {
        let (code, text) = run("nothing", Path::new("/")).unwrap();
        assert_eq!(code, exit::USAGE);
        assert!(text.contains("noop, fifo, slow"), "{text}");
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
