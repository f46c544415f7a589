//! Nothing left, nothing lost: signals, dead parents, closed outputs and full disks.
//!
//! Owns the ways in which a run can be cut off from outside; leaves each signal at each stage to `stages`,
//! and faults inside of the guest to `faults`.
//! Invariant: whatever cut it off, no process and no temporary file is left, and what was recorded can be read.

use crate::util::{
    Ran, Scratch, binary, emulation, end_within, finish, not_run, processes_with, run_in, share_machine, signal,
    spawn_quietly,
};
use ktstr::run::rundir;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A run that was cut off is gone by then, on any machine.
pub const GONE_LIMIT: Duration = Duration::from_secs(30);
/// Until a guest has got where a test wants it.
pub const STAGE_LIMIT: Duration = Duration::from_secs(120);

/// A place of a test's own for run directories and temporary files, and a word that marks its processes.
pub struct Place {
    pub scratch: Scratch,
    pub marker: String,
}

impl Place {
    pub fn new(name: &str) -> Self {
        let place = Self { scratch: Scratch::new(), marker: format!("ktstr.test={name}{}", std::process::id()) };
        fs::create_dir(place.tmp()).unwrap();
        place
    }
    pub fn tmp(&self) -> PathBuf {
        self.scratch.0.join("tmp")
    }
    pub fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.scratch.0.join("ktstr/runs"));
        entries.map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
    }
    pub fn command(&self, program: &Path, kernel: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(["--kernel", &kernel.display().to_string(), "--accel", "qemu", "--cmdline", &self.marker])
            .args(more)
            .env("XDG_STATE_HOME", &self.scratch.0)
            .env("TMPDIR", self.tmp());
        command
    }
    fn start(&self, kernel: &Path, more: &[&str]) -> Child {
        spawn_quietly(&mut self.command(&binary(), kernel, more), &self.scratch)
    }
    /// The same through a shell line, in which `"$@"` is the run.
    fn shell(&self, line: &str, kernel: &Path, more: &[&str]) -> Ran {
        let mut command = self.command(Path::new("/bin/sh"), kernel, more);
        let words: Vec<std::ffi::OsString> = command.get_args().map(ToOwned::to_owned).collect();
        let envs: Vec<_> = command.get_envs().map(|(k, v)| (k.to_owned(), v.unwrap().to_owned())).collect();
        command = Command::new("/bin/sh");
        command.args(["-c", line, "sh"]).arg(binary()).args(words).envs(envs);
        let _shared = share_machine();
        finish(command, STAGE_LIMIT)
    }
    /// Waits until the record on disk says that the guest's workers work.
    fn wait_for_work(&self) {
        let limit = Instant::now() + STAGE_LIMIT;
        let works = |run: &PathBuf| rundir::load(run).is_ok_and(|(record, _)| record.scenario_started.is_some());
        while !self.runs().iter().any(works) {
            assert!(Instant::now() < limit, "no workers in {:?}", self.runs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    pub fn assert_clean(&self, what: &str) {
        let limit = Instant::now() + GONE_LIMIT;
        while !processes_with(&self.marker).is_empty() {
            assert!(Instant::now() < limit, "{what}: left {:?}", processes_with(&self.marker));
            std::thread::sleep(Duration::from_millis(20));
        }
        let temporary: Vec<_> = fs::read_dir(self.tmp()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(temporary.is_empty(), "{what}: left {temporary:?}");
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    end_within(child, GONE_LIMIT)
}

#[test]
fn interrupted_guest_is_asked_to_stop_and_still_reports() {
    let Some(kernel) = emulation("left: polite", "7") else { return };
    let place = Place::new("polite");
    let _shared = share_machine();
    let named = place.scratch.0.join("ktstr/runs/named");
    let mut child = place.start(&kernel, &["--duration", "60s", "--run-dir", &named.display().to_string()]);
    place.wait_for_work();
    signal("INT", &child);
    assert_eq!(wait(&mut child).code(), Some(130));
    place.assert_clean("SIGINT");
    let json = fs::read_to_string(named.join("verdict.json")).unwrap();
    assert!(json.contains("\"outcome\": \"interrupted\""), "{json}");
    // Its workers had time to report: nobody was killed.
    assert!(json.contains("\"work_type\": \"SpinWait\""), "the guest did not report:\n{json}");
}

/// The child of a run that is to run its VM, where there is one.
fn vm_of(run: &Child) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id())).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid| is_vm(*pid))
}

fn is_vm(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("__vm"))
}

/// The VM's process is there before the image is, and waits to be told what VM it is to run.
#[test]
fn process_that_waits_for_its_vm_goes_with_the_run() {
    let Some(kernel) = emulation("left: waiting", "7") else { return };
    let scratch = Scratch::new();
    let _shared = share_machine();
    // Takes long to pack. Whatever the machine can, a run that was told to end meanwhile says so.
    let big = scratch.file("big", "");
    fs::File::options().write(true).open(&big).unwrap().set_len(256 << 20).unwrap();
    for (end, include, code) in [
        ("INT", big.display().to_string(), Some(130)),
        ("TERM", big.display().to_string(), Some(130)),
        ("HUP", big.display().to_string(), Some(130)),
        ("KILL", big.display().to_string(), None),
        ("", "/nowhere".to_owned(), Some(128)),
    ] {
        let limit = Instant::now() + STAGE_LIMIT;
        loop {
            let mut command = Command::new(binary());
            command.args(["--kernel", &kernel.display().to_string(), "--accel", "auto", "--memory", "1G"]);
            command.args(["--include", &format!("{include}:/big")]).env("XDG_CACHE_HOME", scratch.0.join("cache"));
            let mut child = spawn_quietly(&mut command, &scratch);
            let mut vm = None;
            while vm.is_none() && child.try_wait().expect("wait").is_none() {
                vm = vm_of(&child);
                std::thread::sleep(Duration::from_micros(200));
            }
            if !end.is_empty() {
                signal(end, &child);
            }
            assert_eq!(wait(&mut child).code(), code, "{end}");
            let Some(vm) = vm else {
                // It was over too soon to be seen.
                assert!(Instant::now() < limit, "{end}: no process waits for its VM");
                continue;
            };
            let limit = Instant::now() + GONE_LIMIT;
            while is_vm(vm) {
                assert!(Instant::now() < limit, "{end}: {vm} is left");
                std::thread::sleep(Duration::from_millis(5));
            }
            break;
        }
    }
}

#[test]
fn signal_while_a_run_is_shutting_down_leaves_nothing() {
    let Some(kernel) = emulation("left: shutting down", "7") else { return };
    for name in ["INT", "HUP"] {
        let place = Place::new(&format!("down{name}"));
        let _shared = share_machine();
        let run = place.scratch.0.join("run");
        let mut child = place.start(&kernel, &["--duration", "300ms", "--run-dir", &run.display().to_string()]);
        // The scenario is over, and the guest on its way out, or gone.
        let limit = Instant::now() + STAGE_LIMIT;
        while !rundir::load(&run).is_ok_and(|(record, _)| record.scenario_end.is_some()) {
            assert!(Instant::now() < limit, "no end of the scenario in {}", run.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(name, &child);
        let code = wait(&mut child).code();
        // The signal is too late for the scenario's own outcome, which so short a run may leave open or, starved, fail.
        assert!(matches!(code, Some(0 | 1 | 125 | 130)), "SIG{name}: {code:?}");
        place.assert_clean(name);
        let (record, _) = rundir::load(&run).expect("the record can be read");
        assert!(!record.reports.is_empty() && record.vm_end.is_some(), "SIG{name}: {:?}", record.vm_end);
    }
}

#[test]
fn second_interrupt_ends_a_guest_that_does_not_listen() {
    let Some(kernel) = emulation("left: impolite", "7") else { return };
    let place = Place::new("impolite");
    let _shared = share_machine();
    let mut child = place.start(&kernel, &["--duration", "60s"]);
    place.wait_for_work();
    // A stopped VM answers to nobody.
    let vm = processes_pids("-append", &place.marker);
    assert_eq!(vm.len(), 1, "{vm:?}");
    assert!(Command::new("kill").args(["-STOP", &vm[0]]).status().unwrap().success());
    signal("INT", &child);
    signal("TERM", &child);
    assert_eq!(wait(&mut child).code(), Some(130));
    place.assert_clean("two signals");
    assert!(place.runs().is_empty(), "{:?}", place.runs());
}

/// Process ids of those whose command line has both texts.
pub fn processes_pids(one: &str, other: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    let matching = entries.filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(one) && line.contains(other)
    });
    matching.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn killed_run_leaves_a_record_that_can_be_judged() {
    let Some(kernel) = emulation("left: SIGKILL", "7") else { return };
    let place = Place::new("killed");
    let mut child = {
        let _shared = share_machine();
        let mut child = place.start(&kernel, &["--duration", "60s"]);
        place.wait_for_work();
        child.kill().expect("kill the binary");
        child
    };
    wait(&mut child);
    place.assert_clean("SIGKILL");
    let [run] = place.runs().try_into().expect("one run directory");
    let judged = run_in(&place.scratch, &["judge", &run.display().to_string()]).exits(128);
    // As far as it came: the guest had said what it is, and no worker had reported.
    judged.says("Linux 7").says("no worker reported").says("the VM ended without saying how");
}

#[test]
fn killed_matrix_takes_its_runs_and_their_vms_along() {
    let Some(kernel) = emulation("left: killed matrix", "7") else { return };
    let place = Place::new("killedmatrix");
    let _shared = share_machine();
    let mut child = place.start(&kernel, &["--duration", "60s", "--repeat", "2"]);
    let limit = Instant::now() + STAGE_LIMIT;
    while processes_pids("-append", &place.marker).is_empty() {
        assert!(Instant::now() < limit, "no VM started");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("kill the binary");
    wait(&mut child);
    place.assert_clean("SIGKILL of a matrix");
}

#[test]
fn reader_that_closes_the_pipe_changes_nothing() {
    let Some(kernel) = emulation("left: SIGPIPE", "7") else { return };
    let place = Place::new("sigpipe");
    // The reader of both outputs is gone at once; the console would fill its pipe.
    let line = r#"{ "$@" --dmesg --duration 300ms; echo $? >"$TMPDIR/../code"; } 2>&1 | true"#;
    let ran = place.shell(line, &kernel, &[]);
    assert_eq!(fs::read_to_string(place.scratch.0.join("code")).unwrap(), "0\n", "{ran}");
    place.assert_clean("SIGPIPE");
    assert!(place.runs().is_empty());
}

#[test]
fn closed_outputs_change_nothing() {
    let Some(kernel) = emulation("left: closed outputs", "7") else { return };
    let place = Place::new("closed");
    let ran = place.shell(r#"exec "$@" --duration 300ms <&- >&- 2>&-"#, &kernel, &[]).exits(0);
    place.assert_clean("closed outputs");
    assert!(place.runs().is_empty(), "{ran}");
}

#[test]
fn verdict_that_cannot_be_told_is_an_error() {
    let Some(kernel) = emulation("left: full output", "7") else { return };
    let place = Place::new("fulloutput");
    place.shell(r#"exec "$@" --duration 300ms >/dev/full"#, &kernel, &[]).exits(128).says("standard output");
    place.assert_clean("a full output");
}

/// A file system of 64 KiB mounted there, of a test's own: the command, where that is allowed.
fn small_disk(test: &str, at: &Path) -> Option<String> {
    fs::create_dir_all(at).expect("make a mount point");
    let mount = format!("mount -t tmpfs -o size=64k none {}", at.display());
    let probe = Command::new("unshare").args(["-m", "sh", "-c", &mount]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        not_run(test, "a mount namespace needs root");
        return None;
    }
    Some(mount)
}

#[test]
fn full_disk_takes_no_half_of_a_result_and_no_verdict_with_it() {
    let Some(kernel) = emulation("left: full disk of results", "7") else { return };
    let place = Place::new("fullresults");
    let disk = place.scratch.0.join("full");
    let Some(mount) = small_disk("left: full disk of results", &disk) else { return };
    let fill = "dd if=/dev/zero of=\"$0\"/fill bs=1k count=64 2>/dev/null";
    // The image is larger than the disk; then there is no room at all; then no home but a full temporary directory.
    let image = "\"$1\" image --kernel \"$3\" --output \"$0\"/image; echo image $?, left: $(ls -A \"$0\").";
    let homeless =
        "env -u HOME -u XDG_STATE_HOME TMPDIR=\"$0\" \"$@\"; echo homeless $?, left: $(ls -A \"$0\"/ktstr/runs).";
    let json = "\"$@\" -q --json \"$0\"/result; code=$?; echo left: $(ls -A \"$0\").; exit $code";
    let script = format!("{mount}; {image}; {fill}; {image}; {homeless}; rmdir \"$0\"/ktstr/runs \"$0\"/ktstr; {json}");
    let line = format!("exec unshare -m sh -c '{script}' '{}' \"$@\" --duration 300ms", disk.display());
    let ran = place.shell(&line, &kernel, &[]).exits(128);
    let stderr = ran.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    for (file, times) in [("image", 2), ("result", 1)] {
        let words = format!("cannot write {}/{file}: no space left on device (errno 28)", disk.display());
        assert_eq!(stderr.matches(&words).count(), times, "{ran}");
    }
    assert_eq!(stderr.matches("hint: make room there, or name another place").count(), 3, "{ran}");
    assert!(stderr.contains("record: no space left on device (errno 28) hint: name a writable directory"), "{ran}");
    let left = ["image 128, left: .", "image 128, left: fill.", "homeless 128, left: .", "left: fill."];
    let lines: Vec<&str> = ran.stdout.lines().filter(|line| line.contains("left:")).collect();
    assert_eq!(lines, left, "{ran}");
    // What could not be stored is told all the same; so short a run may have no verdict on a busy machine.
    assert!(ran.stdout.lines().any(|line| line.starts_with("PASS") || line.starts_with("INCONCLUSIVE")), "{ran}");
    place.assert_clean("a full disk of results");
}

#[test]
fn full_disk_of_the_cache_costs_the_unpacked_kernel_alone() {
    let Some(kernel) = emulation("left: full cache", "7") else { return };
    let place = Place::new("fullcache");
    let cache = place.scratch.0.join("cache/ktstr");
    let Some(mount) = small_disk("left: full cache", &cache) else { return };
    // A kernel is unpacked for its second boot; the first is killed before it boots.
    let run = "env XDG_CACHE_HOME=\"$0\"/.. \"$1\" \"$2\" \"$3\" \"$6\" \"$7\" --duration 300ms --quiet";
    let list = "cd \"$0\"/unpacked; echo left: $(ls -A); cat *.seen";
    let script = format!("{mount}; {run} --timeout 1500ms; {run}; code=$?; {list}; exit $code");
    let line = format!("exec unshare -m sh -c '{script}' '{}' \"$@\"", cache.display());
    let ran = place.shell(&line, &kernel, &[]);
    // So short a run may have no verdict on a busy machine.
    assert!(matches!(ran.code, Some(0 | 125)), "{ran}");
    let left: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("left:")).collect();
    assert!(left.len() == 1 && left[0].ends_with(".seen") && left[0].split_whitespace().count() == 2, "{ran}");
    if ran.stdout.contains("cannot unpack the kernel") || ran.stdout.contains("(errno 2)") {
        return not_run("left: full cache", "the program that unpacks the kernel is not installed");
    }
    assert!(ran.stdout.contains(".kernel: no space left on device (errno 28)"), "{ran}");
    place.assert_clean("a full cache");
}

#[test]
fn full_disk_costs_the_stored_run_and_not_the_verdict() {
    let Some(kernel) = emulation("left: full disk", "7") else { return };
    let place = Place::new("fulldisk");
    let disk = place.scratch.0.join("ktstr");
    let Some(mount) = small_disk("left: full disk", &disk) else { return };
    // All of it is taken, or all but 16 KiB.
    let line = |taken: &str, then: &str| {
        format!(
            "exec unshare -m sh -c '{mount}; dd if=/dev/zero of=\"$0\"/fill bs=1k count={taken} 2>/dev/null; \"$@\"; code=$?; \
             {then}; exit $code' '{}' \"$@\" --duration 300ms --keep",
            disk.display()
        )
    };
    let list = "echo left: $(ls -A \"$0\"/runs)";
    place.shell(&line("64", list), &kernel, &[]).exits(128).says("errno 28").says("left:\n");
    let judge = "\"$1\" judge -q \"$0\"/runs/*; echo judged $?";
    let ran = place.shell(&line("48", judge), &kernel, &[]).exits(0).says("PASS").says("the stored run is incomplete");
    // What is left of the record can be read, says that it was cut, and is no pass.
    let ran = ran.says("was cut");
    assert!(ran.stdout.contains("judged ") && !ran.stdout.contains("judged 0"), "{ran}");
    place.assert_clean("a full disk");
}
