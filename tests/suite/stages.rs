//! Nothing left, nothing lost, whenever it comes: each way to cut a run off from outside, at each stage of the run.
//!
//! Owns the grid of stages and ways; leaves closed outputs, full disks and second signals to `left`, runs without a VM to
//! `host`.
//! Invariant: a stage is waited for by what shows it. One that could pass by meanwhile is held, and one that waits for
//! nothing but its time is long.

use crate::left::{GONE_LIMIT, Place, STAGE_LIMIT, processes_pids};
use crate::util::{binary, emulation, end_within, run_in, share_machine, signal, spawn_quietly};
use ktstr::proto::message::Stage;
use ktstr::proto::record::Record;
use ktstr::run::rundir;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A file of this size to pack keeps the image under construction for some 100 ms.
const PACKED_BYTES: u64 = 48 << 20;
/// The image of a run that was not stopped in time was complete; then another run is begun.
const IMAGE_TRIES: u32 = 50;
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Where a run is when it is cut off.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// The image is under construction, and no VM there. The run is stopped meanwhile.
    Image,
    /// The VM's process is there, and its kernel not at PID 1. The process stops itself before it runs anything.
    Started,
    /// PID 1 waits for a scheduler that never attaches.
    Scheduler,
    /// The workers work.
    Scenario,
    /// The scenario is over, and PID 1 waits for a scheduler that does not stop when it is asked to.
    Shutdown,
}

/// How it is cut off.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Signal(&'static str),
    Kill,
    /// The reader of both outputs goes, and SIGPIPE comes.
    Reader,
    /// Whoever started it is killed, and nobody holds the other ends of its three standard descriptors.
    Parent,
}

use Way::{Kill, Parent, Reader, Signal};

/// Left out: at `Scenario` SIGINT and SIGKILL, and at `Shutdown` SIGINT and SIGHUP, which `left` has with more to say;
/// at `Scheduler` SIGTERM and SIGHUP, as one handler takes them and SIGINT, and the cells around have them;
/// at `Image` and `Scheduler` `Reader`, as `Parent` closes the same pipes there, and each cell that goes on costs a whole run.
const GRID: [(At, &[Way]); 5] = [
    (At::Image, &[Signal("INT"), Signal("TERM"), Signal("HUP"), Kill, Parent]),
    (At::Started, &[Signal("INT"), Signal("TERM"), Signal("HUP"), Kill, Reader, Parent]),
    (At::Scheduler, &[Signal("INT"), Kill, Parent]),
    (At::Scenario, &[Signal("TERM"), Signal("HUP"), Reader, Parent]),
    (At::Shutdown, &[Signal("TERM"), Kill, Reader, Parent]),
];

#[test]
fn run_cut_off_while_its_image_is_made() {
    each_way(At::Image);
}
#[test]
fn run_cut_off_before_its_kernel_runs() {
    each_way(At::Started);
}
#[test]
fn run_cut_off_while_its_scheduler_starts() {
    each_way(At::Scheduler);
}
#[test]
fn run_cut_off_while_its_workers_work() {
    each_way(At::Scenario);
}
#[test]
fn run_cut_off_while_it_shuts_down() {
    each_way(At::Shutdown);
}

fn each_way(at: At) {
    let Some(kernel) = emulation(&format!("stages: {at:?}"), "7") else { return };
    let ways = GRID.iter().find(|(known, _)| *known == at).map(|(_, ways)| *ways).expect("every stage is in the grid");
    for way in ways {
        let _shared = share_machine();
        Cell::new(at, *way, &kernel).play();
    }
}

/// A run under way; its process is `child`, or a child of that where it is to lose its parent.
struct Running {
    child: Child,
    pid: String,
}

struct Cell<'a> {
    at: At,
    way: Way,
    kernel: &'a Path,
    place: Place,
}

impl<'a> Cell<'a> {
    fn new(at: At, way: Way, kernel: &'a Path) -> Self {
        let place = Place::new(&format!("{at:?}{way:?}").replace(['"', '(', ')'], ""));
        // An emulator that waits to be let go, in the way of the other.
        let emulator = place.scratch.0.join("bin/qemu-system-x86_64");
        fs::create_dir(place.scratch.0.join("bin")).expect("make a directory");
        let text = "#!/bin/sh\nPATH=${PATH#*:}\ncase \"$*\" in *-append*) kill -STOP $$ ;; esac\n\
                    exec qemu-system-x86_64 \"$@\"\n";
        fs::write(&emulator, text).expect("write the emulator that waits");
        fs::set_permissions(&emulator, fs::Permissions::from_mode(0o755)).expect("make it a program");
        let packed = fs::File::create(place.scratch.0.join("packed")).expect("create a file to pack");
        packed.set_len(PACKED_BYTES).expect("make it long");
        Self { at, way, kernel, place }
    }

    fn name(&self) -> String {
        format!("{:?} at {:?}", self.way, self.at)
    }
    fn result(&self) -> PathBuf {
        self.place.scratch.0.join("result.json")
    }
    fn goes_on(&self) -> bool {
        matches!(self.way, Reader | Parent)
    }

    /// The command line of the run; one that goes on has its whole console to tell, and an end.
    fn words(&self) -> Vec<String> {
        let (packed, result) = (self.place.scratch.0.join("packed"), self.result());
        let duration = match (self.at, self.goes_on()) {
            (At::Scenario, false) => "60s",
            (At::Scenario, true) => "3s",
            _ => "1s",
        };
        // A lone worker has a CPU for itself, however slow the machine is.
        let mut words: Vec<String> =
            ["--duration", duration, "--cgroups", "1", "--workers", "1"].map(str::to_owned).into();
        match self.at {
            At::Image => words.extend([
                "--memory".into(),
                "512M".into(),
                "--include".into(),
                format!("{}:/packed", packed.display()),
            ]),
            At::Scheduler => {
                let limit = if self.goes_on() { "5s" } else { "60s" };
                words.extend(["--sched", "builtin:never", "--enable-timeout", limit].map(str::to_owned));
            }
            // It is given 10 s to stop.
            At::Shutdown => words.extend(["--sched", "builtin:stubborn"].map(str::to_owned)),
            At::Started | At::Scenario => {}
        }
        if self.goes_on() {
            words.extend(["--dmesg".into(), "--json".into(), result.display().to_string()]);
        }
        words
    }

    fn command(&self, program: &Path, words: &[String], waits: bool) -> Command {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.place.command(program, self.kernel, &words);
        command.env("XDG_CACHE_HOME", self.place.scratch.0.join("cache"));
        if waits {
            let path = std::env::var("PATH").expect("PATH is text");
            command.env("PATH", format!("{}:{path}", self.place.scratch.0.join("bin").display()));
        }
        command
    }

    fn start(&self) -> Running {
        let mut command = self.command(&binary(), &self.words(), self.at == At::Started);
        if self.way == Parent {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "\"$@\"; exit $?", "sh"]).arg(binary()).args(command.get_args());
            command.get_envs().for_each(|(name, value)| {
                shell.env(name, value.unwrap_or_default());
            });
            command = shell;
        }
        if !self.goes_on() {
            let child = spawn_quietly(&mut command, &self.place.scratch);
            return Running { pid: child.id().to_string(), child };
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("start the run");
        if self.way == Reader {
            return Running { pid: child.id().to_string(), child };
        }
        let program = fs::canonicalize(binary()).expect("the binary is there");
        let is_run = |pid: &String| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        let pid = self.wait("a process", || processes_pids(&self.place.marker, "--accel").into_iter().find(is_run));
        Running { pid, child }
    }

    /// Looks until there is what is looked for.
    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let limit = Instant::now() + STAGE_LIMIT;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < limit, "{}: no {what}; runs {:?}", self.name(), self.place.runs());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The record as it is on disk now, where there is a run directory.
    fn record(&self) -> Option<Record> {
        rundir::load(self.place.runs().first()?).ok().map(|(record, _)| record)
    }
    fn vms(&self) -> Vec<String> {
        processes_pids("-append", &self.place.marker)
    }

    /// Brings a run to the stage.
    fn reach(&self) -> Running {
        if self.at == At::Image {
            return self.stop_at_image();
        }
        let running = self.start();
        self.wait("stage", || {
            let record = self.record()?;
            let reached = match self.at {
                At::Image => unreachable!("it has no record yet"),
                At::Started => {
                    record.mark(Stage::VmSpawned).is_some() && self.vms().iter().any(|vm| state(vm) == Some('T'))
                }
                At::Scheduler => record.hello.is_some(),
                At::Scenario => record.scenario_started.is_some(),
                At::Shutdown => record.scenario_end.is_some(),
            };
            reached.then_some(())
        });
        running
    }

    /// A run that stands still while its image is made.
    fn stop_at_image(&self) -> Running {
        for _ in 0..IMAGE_TRIES {
            let mut running = self.start();
            let files = format!("/proc/{}/fd", running.pid);
            self.wait("image", || {
                let mut entries = fs::read_dir(&files).into_iter().flatten().flatten();
                let is_image = |entry: fs::DirEntry| {
                    fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("memfd:ktstr-initramfs"))
                };
                entries.any(is_image).then_some(())
            });
            send("STOP", &running.pid);
            self.wait("stop", || (state(&running.pid) == Some('T')).then_some(()));
            if self.place.runs().is_empty() && self.vms().is_empty() {
                return running;
            }
            send("KILL", &running.pid);
            end_within(&mut running.child, GONE_LIMIT);
            self.place.assert_clean(&self.name());
            self.place.runs().iter().for_each(|run| fs::remove_dir_all(run).expect("remove a run directory"));
        }
        panic!("{}: {IMAGE_TRIES} images were complete before they could be looked at", self.name());
    }

    fn play(&self) {
        let mut running = self.reach();
        match self.way {
            Signal(name) => signal(name, &running.child),
            Kill => running.child.kill().expect("kill the run"),
            Reader => {
                close(&mut running.child);
                signal("PIPE", &running.child);
            }
            Parent => {
                running.child.kill().expect("kill the shell");
                running.child.wait().expect("reap the shell");
                close(&mut running.child);
            }
        }
        match self.at {
            At::Image if self.way != Kill => send("CONT", &running.pid),
            At::Started if self.goes_on() => self.vms().iter().for_each(|vm| send("CONT", vm)),
            _ => {}
        }
        match self.way {
            Signal(_) => self.is_interrupted(&mut running),
            Kill => self.is_killed(&mut running),
            Reader | Parent => self.has_gone_on(&mut running),
        }
        self.place.assert_clean(&self.name());
        self.next_one_runs();
    }

    fn is_interrupted(&self, running: &mut Running) {
        let status = end_within(&mut running.child, GONE_LIMIT);
        assert_eq!(status.code(), Some(130), "{}: {status}", self.name());
        assert!(self.place.runs().is_empty(), "{}: {:?}", self.name(), self.place.runs());
    }

    /// What was recorded until then can be read, and says that it was cut.
    fn is_killed(&self, running: &mut Running) {
        let status = end_within(&mut running.child, GONE_LIMIT);
        assert_eq!(status.signal(), Some(9), "{}: {status}", self.name());
        self.place.assert_clean(&self.name());
        if self.at == At::Image {
            // There was nothing to record.
            assert!(self.place.runs().is_empty(), "{}: {:?}", self.name(), self.place.runs());
            return;
        }
        let [run] = self.place.runs().try_into().expect("one run directory");
        let judged = run_in(&self.place.scratch, &["judge", &run.display().to_string()]).exits(128);
        let judged = judged.says("was cut").says("the VM ended without saying how");
        let (record, _) = rundir::load(&run).expect("the record can be read");
        assert!(record.vm_end.is_none() && !record.bye, "{judged}");
        assert_eq!(record.hello.is_some(), self.at != At::Started, "{judged}");
        assert_eq!(record.scenario_end.is_some(), self.at == At::Shutdown, "{judged}");
        assert_eq!(!record.reports.is_empty(), self.at == At::Shutdown, "{judged}");
    }

    /// The run came to its own end, and its verdict is where it was asked for.
    fn has_gone_on(&self, running: &mut Running) {
        // A zombie has ended; who reaps an orphan is not ours to say.
        self.wait("end", || matches!(state(&running.pid), None | Some('Z')).then_some(()));
        let text = fs::read_to_string(self.result()).expect("read the result");
        let result: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.name()));
        let headline = result["headline"].as_str().unwrap_or_default();
        let (outcome, words) = match self.at {
            At::Image | At::Started | At::Scenario => ("pass", ""),
            At::Scheduler => ("fail", "did not enable it in time"),
            At::Shutdown => ("fail", "ignored SIGINT and had to be killed"),
        };
        // A machine that is too busy for a verdict cannot be ruled out; then, too, the run has been judged.
        let is_own = result["outcome"] == outcome && headline.contains(words) || result["outcome"] == "inconclusive";
        assert!(is_own, "{}: {text}", self.name());
        if self.way == Reader {
            let code = end_within(&mut running.child, GONE_LIMIT).code();
            assert_eq!(code.map(i64::from), result["exit_code"].as_i64(), "{}: {text}", self.name());
        }
    }

    /// No lock and no half of a file is in the way of another run at the same places, at once.
    fn next_one_runs(&self) {
        let before = self.place.runs();
        let words = ["--duration", "300ms"].map(str::to_owned);
        let mut next = spawn_quietly(&mut self.command(&binary(), &words, true), &self.place.scratch);
        self.wait("second VM", || self.vms().iter().any(|vm| state(vm) == Some('T')).then_some(()));
        signal("TERM", &next);
        assert_eq!(end_within(&mut next, GONE_LIMIT).code(), Some(130), "the run after {}", self.name());
        self.place.assert_clean(&format!("the run after {}", self.name()));
        assert_eq!(self.place.runs(), before, "the run after {}", self.name());
    }
}

/// Nobody holds the other ends any more.
fn close(child: &mut Child) {
    drop((child.stdin.take(), child.stdout.take(), child.stderr.take()));
}

/// Sends a signal to a process that is there.
fn send(name: &str, pid: &str) {
    assert!(
        Command::new("kill").args([&format!("-{name}"), pid]).status().expect("run kill").success(),
        "{name} {pid}"
    );
}

/// The state of a process (proc_pid_stat(5): behind the name in parentheses); none where there is no such process.
fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}
