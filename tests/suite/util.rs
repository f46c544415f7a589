//! Runs the binary, and knows what this machine has.
//!
//! Owns deadlines of test runs, the cache of kernels, and the list of tests not run.
//! Invariant: a failing run prints its command, its output and where its console is.

use serde_json::Value;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// No single run of the binary in a test may take longer: three times what the slowest took under emulation.
pub const RUN_LIMIT: Duration = Duration::from_secs(300);

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The static binary that `make` builds; `KTSTR_BIN` names another.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("KTSTR_BIN").map_or_else(|| root().join("ktstr"), PathBuf::from);
    assert!(path.exists(), "{} is missing: run 'make' first, or 'make test'", path.display());
    path
}

/// A kernel that scripts/fetch-kernels put into the cache.
pub fn kernel(name: &str, file: &str) -> Option<PathBuf> {
    cached(&format!("kernels/{name}/{file}"))
}

/// A file that the scripts put into the cache.
pub fn cached(file: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("KTSTR_CACHE").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        Some(home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("ktstr"))
    })?;
    Some(cache.join(file)).filter(|path| path.exists())
}

/// Notes that a test could not run here; `make test` names the file and prints it at its end.
pub fn not_run(test: &str, why: &str) {
    eprintln!("not run: {test}: {why}");
    let Some(path) = std::env::var_os("KTSTR_NOT_RUN") else { return };
    let mut list = OpenOptions::new().create(true).append(true).open(path).expect("open the list of tests not run");
    writeln!(list, "{test}: {why}").expect("write the list of tests not run");
}

/// What guest tests under emulation need; a missing part is noted for this test.
pub fn emulation(test: &str, kernel_name: &str) -> Option<PathBuf> {
    let found = kernel(kernel_name, "vmlinuz");
    if found.is_none() {
        not_run(test, &format!("the kernel '{kernel_name}' is not in the cache (scripts/fetch-kernels)"));
    }
    let qemu = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("qemu-system-x86_64").exists()));
    if !qemu {
        not_run(test, "qemu-system-x86_64 is not installed");
    }
    found.filter(|_| qemu)
}

/// A directory of one test, removed when it goes out of scope.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ktstr-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("make a scratch directory");
        Self(path)
    }
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("write a scratch file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.0).expect("remove a scratch directory");
        }
    }
}

/// What one run of the binary gave.
pub struct Ran {
    pub command: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n$ {}\nexit code {:?} after {:?}", self.command, self.code, self.took)?;
        write!(f, "--- stdout\n{}\n--- stderr\n{}\n", self.stdout, self.stderr)?;
        let directory =
            self.stdout.lines().chain(self.stderr.lines()).find_map(|line| line.strip_prefix("run directory: "));
        let Some(directory) = directory else { return Ok(()) };
        for file in ["console.log", "verdict.json", "vmm.log"] {
            let content = fs::read(Path::new(directory).join(file)).unwrap_or_default();
            writeln!(f, "--- {file}\n{}", String::from_utf8_lossy(&content))?;
        }
        Ok(())
    }
}

impl Ran {
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }
    /// Somewhere in what was printed, wherever messages are wrapped.
    pub fn says(self, text: &str) -> Self {
        let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = |printed: &str| printed.contains(text) || flat(printed).contains(&flat(text));
        assert!(said(&self.stdout) || said(&self.stderr), "'{text}' is not in{self}");
        self
    }
    /// The result that `--json -` printed.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}):{self}"))
    }
}

/// Whether this machine's own KVM runs kernels.
pub fn kvm_works() -> bool {
    let doctor = Command::new(binary()).arg("doctor").output().expect("run doctor");
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    text.lines().any(|line| line.split_whitespace().take(2).eq(["ok", "kvm"]))
}

/// Runs share the machine; the laboratory, which is slow enough alone, has it for itself.
static MACHINE: RwLock<()> = RwLock::new(());

/// To be held while a run goes on.
pub fn share_machine() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// To be held while nothing else may run.
pub fn take_machine() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the binary with a state directory of its own, so that run directories go with the test.
pub fn ktstr(args: &[&str]) -> Ran {
    let scratch = Scratch::new();
    run_in(&scratch, args)
}

/// How the binary says that the machine was too busy for a verdict. No test on a shared machine can rule that out.
pub const DISTURBED: [&str; 2] = ["void, as the host kept a vCPU waiting", "void, as the vCPUs waited"];
/// Runs that the machine may spoil one after another before a test fails by it.
pub const TRIES: u32 = 6;
/// Before each but the first try, times its number: load of others comes and goes.
const PAUSE: Duration = Duration::from_secs(3);

/// A run that the machine's other load left without a verdict is repeated, and noted; without this process's own load beside it.
pub fn run_in(scratch: &Scratch, args: &[&str]) -> Ran {
    let runs = scratch.0.join("ktstr/runs");
    let kept = || -> Vec<PathBuf> { fs::read_dir(&runs).into_iter().flatten().flatten().map(|e| e.path()).collect() };
    let before = kept();
    for attempt in 1.. {
        let ran = attempt_in(scratch, args, attempt, RUN_LIMIT);
        let disturbed = ran.code == Some(125) && DISTURBED.iter().any(|words| ran.stdout.contains(words));
        if !disturbed || attempt == TRIES {
            return ran;
        }
        not_run(
            &format!("try {attempt} of '{}'", args.join(" ")),
            "the machine was too busy for a verdict; tried once more",
        );
        for path in kept().iter().filter(|path| !before.contains(path)) {
            fs::remove_dir_all(path).expect("remove the run directory of a disturbed run");
        }
    }
    unreachable!("the last try returns")
}

/// One try of a run.
pub fn attempt_in(scratch: &Scratch, args: &[&str], attempt: u32, limit: Duration) -> Ran {
    let mut command = Command::new(binary());
    command.args(args).env("XDG_STATE_HOME", &scratch.0);
    try_command(command, attempt, limit)
}

/// One try, counted from 1: beside others the first, after a pause and alone every other.
pub fn try_command(command: Command, attempt: u32, limit: Duration) -> Ran {
    let (_shared, _alone) = if attempt == 1 {
        (Some(share_machine()), None)
    } else {
        std::thread::sleep(PAUSE * attempt);
        (None, Some(take_machine()))
    };
    finish(command, limit)
}

/// Runs a command to its end, within a limit.
pub fn finish(mut command: Command, limit: Duration) -> Ran {
    let scratch = Scratch::new();
    let (out, err) = (scratch.0.join("out"), scratch.0.join("err"));
    let create = |path: &Path| File::create(path).expect("make an output file");
    let text = format!("{command:?}");
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(create(&out))
        .stderr(create(&err))
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {text}: {error}"));
    let code = loop {
        if let Some(status) = child.try_wait().expect("wait for the command") {
            break status.code();
        }
        if started.elapsed() > limit {
            child.kill().expect("kill the command");
            child.wait().expect("reap the command");
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("read an output file");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ran { command: text, code, stdout: read(&out), stderr: read(&err), took: started.elapsed() }
}

/// Starts what will be ended before its time; what it prints is of no matter.
pub fn spawn_quietly(command: &mut Command, scratch: &Scratch) -> Child {
    command.env("XDG_STATE_HOME", &scratch.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start the binary")
}

/// Sends a signal, by the name that kill(1) knows.
pub fn signal(name: &str, child: &Child) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.expect("run kill").success());
}

/// Waits for it; one that does not end in time fails the test.
pub fn end_within(child: &mut Child, limit: Duration) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if started.elapsed() > limit {
            child.kill().expect("kill the binary");
            child.wait().expect("reap the binary");
            panic!("process {} still ran after {limit:?}", child.id());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes whose command line has this text.
pub fn processes_with(text: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("read /proc");
    entries
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}
