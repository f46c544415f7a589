//! Starts the scheduler under test and sees it enabled.
//!
//! Owns the process and its output pipe until the kernel says `enabled`, and telling failures apart; leaves what
//! follows to `watch` and `stop`, and words about programs that cannot be executed to `exec_error`.
//! Invariant: no call here waits: the caller's loop asks again.

use super::state::{DISABLED, ENABLED, Snapshot, sched_ext_dir};
use super::{exec_error, fold, probe};
use crate::error::{Context, Error, Result};
use crate::klog::sched_ext::{BUSY_TOLD, says_busy};
use crate::proto::message::{ProcessEnd, SchedFailure};
use crate::proto::plan::SchedSpec;
use crate::sys::process::{self, End};
use crate::sys::spawn::Spawn;
use crate::sys::{fd, time};
use crate::units;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How much of its latest output is kept to explain a failure: a verifier's log ends with the reason.
const TAIL_BYTES: usize = 64 << 10;
/// One read of its output.
const READ_BYTES: usize = 16 << 10;
/// Reads of one `take_output`, so that a scheduler that never stops printing cannot hold its caller.
const READS_AT_ONCE: usize = 16;
/// Its environment: a fixed one, so that runs are alike.
const ENVIRONMENT: [(&str, &str); 3] = [("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"), ("HOME", "/"), ("LANG", "C.UTF-8")];

/// Marks of a verifier's log in a scheduler's output: libbpf's frame of it, and its error line.
const VERIFIER_MARKS: [&str; 2] = ["BEGIN PROG LOAD LOG", "BPF program load failed"];

/// All that libbpf lets a program say where an `extern CONFIG_...` of its BPF side cannot be resolved: EINVAL.
const BARE_REFUSAL: &str = "Invalid argument";

/// What libbpf prints where the kernel lacks a function or a type that the scheduler needs.
const KERNEL_TOO_OLD: [&str; 2] = ["not found in kernel or module BTFs", "failed to find BTF info for struct_ops"];

/// Where the start has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Starting,
    Enabled { ops: String, enable_seq: u64, took_ns: u64, switch_all: Option<bool> },
    Failed(SchedFailure, String),
}

/// The scheduler under test: its process, its output, and what the kernel says about it.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) spec: SchedSpec,
    /// "/" on a live system.
    root: PathBuf,
    /// /sys/kernel/sched_ext.
    pub(super) dir: PathBuf,
    pub(super) pid: i32,
    /// How the process ended, once that is known.
    pub(super) end: Option<ProcessEnd>,
    /// The process is gone (its end may still be unknown, where somebody else reaped it).
    pub(super) gone: bool,
    output: Option<OwnedFd>,
    tail: Vec<u8>,
    started_ns: u64,
    /// Before the start.
    before: Snapshot,
    /// When it was enabled, and what it looked like then.
    pub(super) enabled: Option<(u64, Snapshot)>,
    /// The last look at it while it was what was enabled: its counters go with it.
    pub(super) last_alive: Option<Snapshot>,
}

impl Scheduler {
    /// Executes it. `root` is "/" on a live system.
    pub fn start(spec: &SchedSpec, root: &Path) -> Result<Self> {
        if spec.argv.is_empty() {
            return Err(Error::internal(format!("the plan has no program for the scheduler '{}'", spec.name)));
        }
        let dir = sched_ext_dir(root);
        let before = Snapshot::read(&dir);
        let (output, output_write) = fd::pipe().context(|| "make a pipe for the scheduler's output")?;
        fd::set_nonblocking(&output).context(|| "make the scheduler's output non-blocking")?;
        let environment = ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let stdio = [None, Some(output_write.as_fd()), Some(output_write.as_fd())];
        let spawn = Spawn { argv: &spec.argv, environment: &environment, stdio, keep: &[], die_with_parent: true };
        let started_ns = time::monotonic_ns();
        let pid = spawn.start().map_err(|cause| {
            let errno = cause.raw_os_error().unwrap_or(libc::EIO);
            Error::host(exec_error::explain(&spec.argv[0], errno))
        })?;
        Ok(Self {
            spec: spec.clone(),
            root: root.to_path_buf(),
            dir,
            pid,
            end: None,
            gone: false,
            output: Some(output),
            tail: Vec::new(),
            started_ns,
            before,
            enabled: None,
            last_alive: None,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }
    /// How the process ended, once that is known.
    pub fn end(&self) -> Option<ProcessEnd> {
        self.end
    }
    /// The reading end of its output, for the caller's poll; none once it was closed.
    pub fn output_fd(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(|fd| fd.as_fd())
    }

    /// What it printed since the last call; empty where nothing. Text that is not UTF-8 is marked as such.
    pub fn take_output(&mut self) -> String {
        let mut fresh = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS_AT_ONCE {
            let Some(output) = &self.output else { break };
            match fd::read_available(output.as_fd(), &mut buffer) {
                Ok(None) => break,
                Ok(Some(count)) if count > 0 => fresh.extend_from_slice(&buffer[..count]),
                // Its end, or an error that reading again would only repeat.
                Ok(Some(_)) | Err(_) => self.output = None,
            }
        }
        self.tail.extend_from_slice(&fresh);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        String::from_utf8_lossy(&fresh).into_owned()
    }

    /// For a caller that reaps all children itself.
    pub fn note_exit(&mut self, pid: i32, end: End) {
        if pid == self.pid {
            self.gone = true;
            self.end = Some(process_end(end));
        }
    }

    /// Reaps the process where it has ended.
    pub(super) fn reap(&mut self) {
        if self.gone {
            return;
        }
        match process::wait(self.pid, false) {
            Ok(None) => {}
            Ok(Some((pid, end))) => self.note_exit(pid, end),
            // ECHILD: somebody else reaped it, and did not tell.
            Err(_) => self.gone = true,
        }
    }

    /// Where the start has come to. To be asked again, every few milliseconds, while `Starting`.
    /// What the scheduler printed meanwhile goes to `fresh_output`.
    pub fn poll_enable(&mut self, fresh_output: &mut dyn FnMut(String)) -> Progress {
        self.reap();
        let text = self.take_output();
        if !text.is_empty() {
            fresh_output(text);
        }
        let now = Snapshot::read(&self.dir);
        let was_enabled = now.enable_seq.unwrap_or(0) > self.before.enable_seq.unwrap_or(0);
        let took_ns = time::monotonic_ns().saturating_sub(self.started_ns);
        if self.gone {
            return self.explain_exit(was_enabled, &now);
        }
        if now.state == ENABLED && was_enabled {
            if let (Some(ops), Some(enable_seq)) = (now.ops.clone(), now.enable_seq) {
                let switch_all = now.switch_all;
                self.enabled = Some((time::monotonic_ns(), now));
                return Progress::Enabled { ops, enable_seq, took_ns, switch_all };
            }
        } else if was_enabled && now.ops.is_none() {
            let text = format!(
                "the kernel enabled the scheduler '{}' and disabled it again before the scenario began (state {})",
                self.spec.name, now.state
            );
            return Progress::Failed(SchedFailure::DisabledEarly, self.with_last_words(text));
        }
        if took_ns > self.spec.enable_timeout_ns {
            let limit = units::duration(self.spec.enable_timeout_ns);
            let state = if now.state.is_empty() { "absent" } else { &now.state };
            let text = format!("the scheduler '{}' was not enabled within {limit} (state {state})", self.spec.name);
            return Progress::Failed(SchedFailure::EnableTimeout, self.with_last_words(text));
        }
        Progress::Starting
    }

    /// It ended before it was enabled, or was enabled only for a moment.
    fn explain_exit(&self, was_enabled: bool, now: &Snapshot) -> Progress {
        let words = String::from_utf8_lossy(&self.tail);
        // The kernel refuses one with EBUSY unless none is loaded, nor comes or goes (scx_enable, kernel/sched/ext.c).
        let loaded = |seen: &Snapshot| !seen.state.is_empty() && seen.state != DISABLED;
        let seen = Seen { was_enabled, another: loaded(&self.before) || loaded(now) };
        let (why, text) = why_ended(&self.spec, self.end, &words, seen);
        let mut text = self.with_last_words(text);
        if why == SchedFailure::ExitedEarly && words.contains(BARE_REFUSAL) && !has_kernel_config(&self.root) {
            text.push_str("\n(libbpf needs the kernel's config, and the guest has neither /boot/config-RELEASE nor /proc/config.gz)");
        }
        Progress::Failed(why, text)
    }

    /// The text, and the last lines that the scheduler printed.
    fn with_last_words(&self, text: String) -> String {
        /// A screen's part; all of it is in the output that the caller forwards.
        const LINES: usize = 12;
        let words = String::from_utf8_lossy(&self.tail);
        let lines = fold::fold(&words);
        if lines.is_empty() {
            return format!("{text}; it printed nothing");
        }
        let last = &lines[lines.len().saturating_sub(LINES)..];
        format!("{text}; it printed last:\n  {}", last.join("\n  "))
    }
}

/// Whether libbpf would find the kernel's config.
fn has_kernel_config(root: &Path) -> bool {
    let release = std::fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    root.join("proc/config.gz").exists() || root.join(format!("boot/config-{}", release.trim())).exists()
}

/// What the kernel showed when the process had ended.
#[derive(Clone, Copy, Debug)]
struct Seen {
    was_enabled: bool,
    /// Another scheduler was there.
    another: bool,
}

/// Why the process ended too early, by its end and its last words.
fn why_ended(spec: &SchedSpec, end: Option<ProcessEnd>, words: &str, seen: Seen) -> (SchedFailure, String) {
    let name = &spec.name;
    let how = end.map_or("an unknown status".into(), ProcessEnd::describe);
    // A probe of ours that this kernel cannot run says so by its exit code.
    let is_probe = spec.argv.get(1).is_some_and(|word| word == probe::COMMAND);
    let unsupported = ProcessEnd::Exited { code: i32::from(probe::exit::UNSUPPORTED) };
    if is_probe && end == Some(unsupported) {
        return (SchedFailure::KernelLacksSchedExt, format!("the kernel cannot run the scheduler '{name}'"));
    }
    if let Some(library) = exec_error::missing_library(words) {
        return (SchedFailure::NotExecutable, format!("the scheduler '{name}' lacks the library {library}"));
    }
    if KERNEL_TOO_OLD.iter().any(|mark| words.contains(mark)) {
        let text = format!("the kernel lacks what the scheduler '{name}' is built on ({how})");
        return (SchedFailure::KernelLacksSchedExt, text);
    }
    if VERIFIER_MARKS.iter().any(|mark| words.contains(mark)) {
        let text = format!("the kernel's verifier refused the scheduler '{name}' ({how})");
        return (SchedFailure::VerifierRejected, text);
    }
    if is_probe && end == Some(ProcessEnd::Exited { code: i32::from(probe::exit::BUSY) })
        || (!seen.was_enabled && seen.another && says_busy(words))
    {
        return (SchedFailure::ExitedEarly, format!("{BUSY_TOLD}: the scheduler '{name}' ended with {how}"));
    }
    if seen.was_enabled {
        let text = format!("the scheduler '{name}' was enabled, but ended with {how} before the scenario began");
        return (SchedFailure::DisabledEarly, text);
    }
    (SchedFailure::ExitedEarly, format!("the scheduler '{name}' ended with {how} before it was enabled"))
}

fn process_end(end: End) -> ProcessEnd {
    match end {
        End::Exited(code) => ProcessEnd::Exited { code },
        End::Signaled(signal) => ProcessEnd::Signaled { signal },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scx::state::tests::FakeRoot;

    /// A scheduler as a shell script; `$1` is the directory that stands for /sys/kernel/sched_ext.
    fn spec(root: &FakeRoot, script: &str) -> SchedSpec {
        // Written aside and renamed: the reader must not see a half-written file.
        let set = r#"set_file() { echo "$2" >"$D/new" && mv "$D/new" "$D/$1"; }; D="$1"; "#;
        let dir = root.dir().display().to_string();
        SchedSpec {
            name: "fake".into(),
            argv: ["/bin/sh", "-c", &format!("{set}{script}"), "sh", &dir].map(String::from).to_vec(),
            enable_timeout_ns: 20 * units::NS_PER_SEC,
            stop_timeout_ns: 20 * units::NS_PER_SEC,
        }
    }

    const ENABLE: &str = "mkdir -p $D/root; set_file root/ops fake_ops; set_file root/events 'EV_A 5'; \
        set_file enable_seq 4; set_file state enabled;";
    const RUN: &str = "while :; do sleep 0.01; done";

    fn fake_root(name: &str) -> FakeRoot {
        let root = FakeRoot::new(name);
        root.set("state", "disabled\n");
        root.set("enable_seq", "3\n");
        root
    }

    /// Polls until the start is decided. Returns it, the scheduler, and its output.
    fn started(spec: &SchedSpec, root: &FakeRoot) -> (Progress, Scheduler, String) {
        let mut scheduler = Scheduler::start(spec, &root.0).unwrap();
        let mut output = String::new();
        loop {
            match scheduler.poll_enable(&mut |text| output.push_str(&text)) {
                Progress::Starting => time::sleep_ns(units::NS_PER_MS).unwrap(),
                decided => return (decided, scheduler, output),
            }
        }
    }

    fn failure(name: &str, script: &str) -> (SchedFailure, String) {
        let root = fake_root(name);
        let (progress, mut scheduler, _) = started(&spec(&root, script), &root);
        let last = scheduler.stop(&mut |_| {});
        assert!(last.end.is_some());
        match progress {
            Progress::Failed(why, text) => (why, text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn enabled_watched_and_stopped_in_order() {
        let root = fake_root("life");
        let script =
            format!("trap 'rm -r $D/root; set_file state disabled; echo bye; exit 0' INT; {ENABLE} echo hello; {RUN}");
        let (progress, mut scheduler, _) = started(&spec(&root, &script), &root);
        let Progress::Enabled { ops, enable_seq, .. } = progress else { panic!("{progress:?}") };
        assert_eq!((ops.as_str(), enable_seq), ("fake_ops", 4));
        assert_eq!(scheduler.check(), None);
        root.set("root/events", "EV_A 7");
        let mut output = String::new();
        let last = scheduler.stop(&mut |text| output.push_str(&text));
        assert!(output.contains("bye"), "{output}");
        assert_eq!((last.state.as_str(), last.ops.as_deref()), ("enabled", Some("fake_ops")));
        assert_eq!(last.events, [("EV_A".to_string(), 2)]);
        assert_eq!((last.end, last.disabled, last.killed), (Some(ProcessEnd::Exited { code: 0 }), true, false));
    }

    #[test]
    fn instance_that_comes_while_it_is_asked_to_end_counts() {
        let root = fake_root("again");
        let script =
            format!("trap 'rm -r $D/root; set_file enable_seq 5; set_file state disabled; exit 0' INT; {ENABLE} {RUN}");
        let (_, mut scheduler, _) = started(&spec(&root, &script), &root);
        let last = scheduler.stop(&mut |_| {});
        assert_eq!((last.state.as_str(), last.enable_seq, last.disabled), ("enabled", Some(5), true));
    }

    #[test]
    fn scheduler_that_ignores_signals_is_killed_at_the_deadline() {
        let root = fake_root("stubborn");
        let mut spec = spec(&root, &format!("trap '' INT TERM; {ENABLE} {RUN}"));
        spec.stop_timeout_ns = 50 * units::NS_PER_MS;
        let (_, mut scheduler, _) = started(&spec, &root);
        let mut calls = 0;
        let last = scheduler.stop(&mut |_| {
            calls += 1;
            // The kernel unloads what was killed.
            if calls > 30 && root.dir().join("root").exists() {
                root.unload();
            }
        });
        assert_eq!((last.end, last.killed), (Some(ProcessEnd::Signaled { signal: libc::SIGKILL }), true));
        assert!(last.disabled);
    }

    #[test]
    fn death_while_watched_is_lost() {
        let root = fake_root("death");
        let (_, mut scheduler, _) = started(&spec(&root, &format!("{ENABLE} {RUN}")), &root);
        process::kill(scheduler.pid(), libc::SIGKILL).unwrap();
        let lost = loop {
            if let Some(lost) = scheduler.check() {
                break lost;
            }
        };
        assert_eq!(lost.end, Some(ProcessEnd::Signaled { signal: libc::SIGKILL }));
        assert!(lost.text.contains("signal 9"), "{}", lost.text);
        root.unload();
        scheduler.stop(&mut |_| {});
    }

    #[test]
    fn early_exit_shows_code_and_last_words() {
        let (why, text) = failure("early", "echo no such option >&2; exit 3");
        assert_eq!(why, SchedFailure::ExitedEarly);
        assert!(text.contains("exit code 3") && text.contains("no such option"), "{text}");
    }

    #[test]
    fn verifier_and_library_are_told_apart_by_the_output() {
        let (why, text) = failure("verifier", "echo '-- BEGIN PROG LOAD LOG --'; echo 'R1 invalid'; exit 1");
        assert_eq!(why, SchedFailure::VerifierRejected);
        assert!(text.contains("R1 invalid"), "{text}");
        let (why, text) =
            failure("ksym", "echo \"extern (func ksym) 'scx_bpf_x': not found in kernel or module BTFs\"; exit 1");
        assert_eq!(why, SchedFailure::KernelLacksSchedExt);
        assert!(text.contains("lacks what the scheduler"), "{text}");
        let line = "x: error while loading shared libraries: libelf.so.1: cannot open";
        let (why, text) = failure("library", &format!("echo '{line}'; exit 127"));
        assert_eq!(why, SchedFailure::NotExecutable);
        assert!(text.contains("lacks the library libelf.so.1"), "{text}");
    }

    #[test]
    fn bare_refusal_without_kernel_config_gets_a_hint() {
        let (why, text) = failure("config", "echo 'Error: Invalid argument (os error 22)'; exit 1");
        assert_eq!(why, SchedFailure::ExitedEarly);
        assert!(text.contains("libbpf needs the kernel's config"), "{text}");
        let root = fake_root("config2");
        for (file, text) in [("proc/sys/kernel/osrelease", "7.2.13\n"), ("boot/config-7.2.13", "")] {
            assert!(!has_kernel_config(&root.0));
            std::fs::create_dir_all(root.0.join(file).parent().unwrap()).unwrap();
            std::fs::write(root.0.join(file), text).unwrap();
        }
        assert!(has_kernel_config(&root.0));
    }

    #[test]
    fn enabled_and_gone_at_once_is_disabled_early() {
        let (why, _) = failure("moment", "set_file enable_seq 4; exit 1");
        assert_eq!(why, SchedFailure::DisabledEarly);
        let (why, text) = failure("moment2", "set_file enable_seq 4; trap 'exit 0' INT; while :; do sleep 0.01; done");
        assert_eq!(why, SchedFailure::DisabledEarly);
        assert!(text.contains("disabled it again"), "{text}");
    }

    #[test]
    fn never_enabled_is_a_timeout_that_names_the_limit() {
        let root = fake_root("never");
        let mut spec = spec(&root, "trap 'exit 0' INT; while :; do sleep 0.01; done");
        spec.enable_timeout_ns = 100 * units::NS_PER_MS;
        let (progress, mut scheduler, _) = started(&spec, &root);
        let Progress::Failed(why, text) = progress else { panic!("{progress:?}") };
        assert_eq!(why, SchedFailure::EnableTimeout);
        assert!(text.contains("within 100ms (state disabled); it printed nothing"), "{text}");
        scheduler.stop(&mut |_| {});
    }

    #[test]
    fn what_cannot_be_executed_says_why() {
        let root = fake_root("exec");
        let mut spec = spec(&root, "");
        spec.argv = vec!["/nowhere/scx".into()];
        let error = Scheduler::start(&spec, &root.0).unwrap_err();
        assert!(error.message().contains("/nowhere/scx: there is no such file"), "{error}");
    }

    #[test]
    fn plan_without_a_program_is_refused() {
        let root = fake_root("argv");
        let spec = SchedSpec { argv: Vec::new(), ..spec(&root, "") };
        assert!(Scheduler::start(&spec, &root.0).unwrap_err().message().contains("no program"));
    }

    #[test]
    fn probe_that_the_kernel_cannot_run_is_no_early_exit() {
        let root = fake_root("probe");
        let mut spec = spec(&root, "");
        let end = |code: u8| Some(ProcessEnd::Exited { code: code.into() });
        spec.argv = probe::argv("/init", "drop", None);
        let alone = Seen { was_enabled: false, another: false };
        let unsupported = why_ended(&spec, end(probe::exit::UNSUPPORTED), "", alone);
        assert_eq!(unsupported.0, SchedFailure::KernelLacksSchedExt);
        let busy = why_ended(&spec, end(probe::exit::BUSY), "", alone);
        assert!(busy.0 == SchedFailure::ExitedEarly && busy.1.starts_with(BUSY_TOLD), "{busy:?}");
        // Another program's exit code 3 or 5 is its own; what it printed is not.
        spec.argv = vec!["/scx".into()];
        assert!(!why_ended(&spec, end(probe::exit::BUSY), "", alone).1.contains(BUSY_TOLD));
        let words = "libbpf: failed to attach struct_ops: -EBUSY\nError: Device or resource busy (os error 16)";
        assert!(why_ended(&spec, end(1), words, Seen { another: true, ..alone }).1.starts_with(BUSY_TOLD));
        // A device, a file or a cgroup may be busy, too.
        assert!(!why_ended(&spec, end(1), words, alone).1.contains(BUSY_TOLD));
        assert_eq!(why_ended(&spec, end(probe::exit::UNSUPPORTED), "", alone).0, SchedFailure::ExitedEarly);
    }

    #[test]
    fn busy_is_another_scheduler_only_where_the_kernel_shows_one() {
        let (why, text) = failure("busy", "echo 'Error: Device or resource busy (os error 16)'; exit 1");
        assert_eq!(why, SchedFailure::ExitedEarly);
        assert!(!text.contains(BUSY_TOLD) && text.contains("Device or resource busy"), "{text}");
        let root = fake_root("busy2");
        root.set("state", "enabled\n");
        let (progress, ..) = started(&spec(&root, "echo 'Device or resource busy'; exit 1"), &root);
        let Progress::Failed(SchedFailure::ExitedEarly, text) = progress else { panic!("{progress:?}") };
        assert!(text.starts_with(BUSY_TOLD), "{text}");
    }

    #[test]
    fn only_the_end_of_a_long_output_is_kept() {
        let (why, text) = failure("long", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 1");
        assert_eq!(why, SchedFailure::ExitedEarly);
        assert!(text.contains("line 19999") && !text.contains("line 19000"), "{text}");
    }
}
