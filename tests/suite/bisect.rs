//! Bisections as people run them: git, make, the scripts of the documents, and kernels that work, break and hang.
//!
//! Owns a small tree whose builds pick between kernel images and schedulers; leaves the exit codes' unit tests to the code.
//! Invariant: the step is the very script that docs/bisect.md shows.

use crate::util::{Scratch, binary, emulation, finish, not_run, root, run_in, share_machine};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A bisection boots up to eight kernels, one of which hangs until its own limit.
const BISECT_LIMIT: Duration = Duration::from_secs(600);
/// A scheduler that works: the built-in one, as a program.
const WORKS: &str = "#!/bin/sh\nexec /init __probe fifo\n";
/// One that takes the kernel down.
const CRASHES: &str = "#!/bin/sh\necho c > /proc/sysrq-trigger\nexec /init __probe fifo\n";
/// One that fails in seven of eight boots, by the kernel's own random numbers.
const FLAKY: &str = "#!/bin/sh\nread id < /proc/sys/kernel/random/uuid\ncase $id in [2-9a-f]*) exit 3 ;; esac\nexec /init __probe fifo\n";

/// What the tree's scenario runs in the guest: it stands for a fault that came with kernel 7.
const SCENARIO: &str = "scenario load\nstep 100%\n  run fault: /bin/sh -c 'read -r release </proc/sys/kernel/osrelease; \
                        case $release in 7.*) echo c >/proc/sysrq-trigger; while :; do :; done ;; esac'\n  \
                        cgroup a workers=1: spin\n";

/// Offset of setup_sects in a bzImage (Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
/// The same of payload_offset, which counts from the start of the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x248;

fn protected_mode_start(image: &[u8]) -> usize {
    (usize::from(image[SETUP_SECTS]) + 1) * 512
}

/// The kernel with a hole in its compressed part: it says that it cannot unpack itself.
fn unbootable(mut image: Vec<u8>) -> Vec<u8> {
    let offset = u32::from_le_bytes(image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].try_into().unwrap()) as usize;
    let start = protected_mode_start(&image) + offset + 64 * 1024;
    image[start..start + 4096].fill(0);
    image
}

/// The kernel whose first instruction in protected mode is a jump to itself.
fn hanging(mut image: Vec<u8>) -> Vec<u8> {
    let start = protected_mode_start(&image);
    image[start..start + 2].copy_from_slice(&[0xeb, 0xfe]);
    image
}

/// A tree in git, and the step script beside it.
struct Tree {
    scratch: Scratch,
    commits: Vec<String>,
    /// The step, as seen from the tree.
    step: &'static str,
}

impl Tree {
    /// One commit for each (kernel, scheduler).
    fn new(kernel: &Path, history: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        let image = fs::read(kernel).unwrap();
        for part in ["kernels", "tree/tools/sched_ext", "bin", "state"] {
            fs::create_dir_all(scratch.0.join(part)).unwrap();
        }
        scratch.file("kernels/unbootable", unbootable(image.clone()));
        scratch.file("kernels/hanging", hanging(image.clone()));
        scratch.file("kernels/good", image);
        std::os::unix::fs::symlink(binary(), scratch.0.join("bin/ktstr")).unwrap();
        for (number, name) in ["step.sh", "step-own.sh"].into_iter().enumerate() {
            let step = scratch.file(name, step_script(number));
            fs::set_permissions(step, fs::Permissions::from_mode(0o755)).unwrap();
        }
        scratch.file(
            "tree/Makefile",
            "bzImage:\n\tmkdir -p arch/x86/boot && cp \"$(KERNELS)/$$(cat version)\" arch/x86/boot/bzImage\n",
        );
        scratch.file(
            "tree/tools/sched_ext/Makefile",
            "all:\n\tmkdir -p build/bin && cp scx_simple build/bin && chmod +x build/bin/scx_simple\n",
        );
        scratch.file("tree/.gitignore", "arch\nbuild\nbuild.log\n");
        let mut tree = Self { scratch, commits: Vec::new(), step: "../step.sh" };
        tree.git(&["init", "-q"]);
        tree.commit(history);
        tree
    }

    /// More of them.
    fn commit(&mut self, history: &[(&str, &str)]) {
        let tree = self;
        for (number, (version, scheduler)) in history.iter().enumerate() {
            tree.scratch.file("tree/version", version);
            tree.scratch.file("tree/tools/sched_ext/scx_simple", scheduler);
            // Something differs even where kernel and scheduler do not.
            tree.scratch.file("tree/number", number.to_string());
            tree.git(&["add", "-A"]);
            tree.git(&["commit", "-q", "-m", &format!("change {number}")]);
            let commit = tree.git(&["rev-parse", "HEAD"]).trim().to_owned();
            tree.commits.push(commit);
        }
    }

    fn command(&self, program: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .current_dir(self.scratch.0.join("tree"))
            .env("PATH", format!("{}:{path}", self.scratch.0.join("bin").display()))
            .env("KERNELS", self.scratch.0.join("kernels"))
            .env("XDG_STATE_HOME", self.scratch.0.join("state"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "test").env(format!("GIT_{who}_EMAIL"), "test@localhost");
        }
        command
    }

    fn git(&self, args: &[&str]) -> String {
        let output = self.command("git").args(args).output().expect("run git");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Bisects from the first to the last commit; returns what git found and all that was printed.
    fn bisect(&self, flags: &[&str]) -> (String, crate::util::Ran) {
        self.git(&["bisect", "start", self.commits.last().unwrap(), &self.commits[0]]);
        let mut command = self.command("git");
        command.args(["bisect", "run", self.step, "--accel", "qemu", "--duration", "1s"]).args(flags);
        let _shared = share_machine();
        let ran = finish(command, BISECT_LIMIT).exits(0);
        let found = ran.stdout.lines().find_map(|line| line.strip_suffix(" is the first bad commit"));
        (found.unwrap_or_else(|| panic!("no first bad commit:{ran}")).to_owned(), ran)
    }
}

/// A script of the document, by its number.
fn step_script(number: usize) -> String {
    let text = fs::read_to_string(root().join("docs/bisect.md")).expect("read docs/bisect.md");
    let script = text.split("```sh\n").nth(number + 1).and_then(|rest| rest.split("```").next());
    script.expect("docs/bisect.md has a script").to_owned()
}

/// The kernel, where there are git, make and an emulator.
fn tools(test: &str) -> Option<PathBuf> {
    for tool in ["git", "make"] {
        if Command::new(tool).arg("--version").output().is_err() {
            not_run(test, &format!("{tool} is not installed"));
            return None;
        }
    }
    emulation(test, "7")
}

#[test]
fn bisection_ends_at_the_bad_commit_among_unbootable_and_hanging_ones() {
    let Some(kernel) = tools("bisect: kernels") else { return };
    let history = [
        ("good", WORKS),
        ("good", WORKS),
        ("unbootable", WORKS),
        ("good", WORKS),
        ("hanging", WORKS),
        ("good", WORKS),
        ("good", CRASHES),
        ("unbootable", CRASHES),
        ("good", CRASHES),
    ];
    let tree = Tree::new(&kernel, &history);
    let (found, ran) = tree.bisect(&["--timeout", "40s"]);
    assert_eq!(found, tree.commits[6], "{ran}");
    assert!(ran.stdout.contains("SKIP: the kernel did not boot to PID 1"), "the hanging one comes first:{ran}");
    assert!(ran.stdout.contains("FAIL: Kernel panic - not syncing: sysrq triggered crash"), "{ran}");
}

#[test]
fn bisection_over_kernels_of_several_versions_ends_at_the_first_that_breaks() {
    let Some(kernel) = tools("bisect: versions") else { return };
    let (Some(old), Some(middle)) = (emulation("bisect: versions", "6.1"), emulation("bisect: versions", "6.12"))
    else {
        return;
    };
    // Without a scheduler of its own a commit is its kernel alone.
    let versions = ["6.1", "6.1", "unbootable", "6.12", "hanging", "6.12", "good", "unbootable", "good"];
    let mut tree = Tree::new(&kernel, &[]);
    for (name, image) in [("6.1", &old), ("6.12", &middle)] {
        fs::copy(image, tree.scratch.0.join("kernels").join(name)).unwrap();
    }
    tree.scratch.file("load.scn", SCENARIO);
    tree.commit(&versions.map(|version| (version, "")));
    tree.step = "../step-own.sh";
    let (found, ran) = tree.bisect(&["--scenario", "../load.scn", "--topo", "1", "--timeout", "30s"]);
    assert_eq!(found, tree.commits[6], "{ran}");
    assert!(ran.stdout.contains("SKIP: the kernel did not boot to PID 1"), "the hanging one comes first:{ran}");
    assert!(ran.stdout.contains("FAIL: Kernel panic - not syncing: sysrq triggered crash"), "{ran}");
    assert!(ran.stdout.contains("PASS"), "an older kernel passes:{ran}");
}

#[test]
fn bisection_of_a_flaky_fault_ends_right_with_repetitions() {
    let Some(kernel) = tools("bisect: flaky") else { return };
    let history = [("good", WORKS), ("good", WORKS), ("good", FLAKY), ("good", FLAKY), ("good", FLAKY)];
    let tree = Tree::new(&kernel, &history);
    // A commit that fails in 7 of 8 runs passes 4 of them once in 4096 times.
    let (found, ran) = tree.bisect(&["--repeat", "4", "--stop-on-first", "--flake-rate", "88%", "--steps", "2"]);
    assert_eq!(found, tree.commits[2], "{ran}");
    assert!(ran.stdout.contains("PASS: of 4 runs, 4 passed"), "{ran}");
    assert!(ran.stdout.contains("exit code 3"), "{ran}");
}

#[test]
fn ends_are_proven_before_a_bisection_and_kinds_of_failure_are_told_apart() {
    let Some(kernel) = emulation("bisect: ends", "7") else { return };
    let scratch = Scratch::new();
    let kernel = kernel.display().to_string();
    let script = |name: &str, text: &str| {
        let path = scratch.file(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let (works, crashes) = (script("works", WORKS), script("crashes", CRASHES));
    let common = ["--vary", "sched", "--kernel", &kernel, "--accel", "qemu", "--duration", "300ms", "--repeat", "1"];
    let run = |good: &str, bad: &str| run_in(&scratch, &[&["bisect-check", good, bad], &common[..]].concat());
    let ran = run(&works, &crashes).exits(0).says("PROVEN: both ends are what they are said to be");
    assert!(ran.stdout.contains("BAD fails in 100.0 % of its runs") && ran.stdout.contains("--repeat"), "{ran}");
    // The record of the bad end, judged with an eye on other faults.
    let directory = ran.stdout.lines().find_map(|line| line.strip_prefix("run directory: ")).expect("a kept directory");
    let bad = format!("{directory}/0002");
    run_in(&scratch, &["judge", "-q", &bad, "--bad-on", "panic"]).exits(1).says("sysrq triggered crash");
    run_in(&scratch, &["judge", "-q", &bad, "--bad-on", "warn,check"]).exits(125).says("--bad-on warn,check");
    run(&crashes, &works).exits(1).says("look exchanged");
}
