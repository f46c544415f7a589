//! The one table of commands and flags.
//!
//! Owns names, values, defaults and help lines; leaves reading an argument list to `parse`, meaning to `describe`,
//! and layout to `help`, `man` and `completions`.
//! Invariant: a flag that is not in this table does not exist, and no other file spells a help line.

use super::{cmd_selftest, guards, limits, own_cgroups};

/// A command: the first word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmd {
    /// Also the command where none is named.
    Run,
    /// A stored run, judged again.
    Judge,
    /// The two ends of a bisection, before it begins.
    BisectCheck,
    BisectHelp,
    /// Plays faults, and shows that they are named.
    Selftest,
    /// The kept run directories.
    Runs,
    Doctor,
    Image,
    List,
    Check,
    Show,
    Completions,
    Help,
    /// One VM in one process; started by `run`, not by people.
    Vm,
    /// Freezes a little VM and goes on in another; for tests.
    Freeze,
    /// Panics, here or in a worker; for tests.
    Panic,
    /// A built-in scheduler; started by PID 1 of the guest, not by people.
    Probe,
}

/// What may follow a command besides flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Nothing,
    /// One word; the list is empty where any word will do.
    Required(&'static str, &'static [&'static str]),
    Optional(&'static str),
    /// Two words.
    Two(&'static str, &'static str),
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct CommandSpec {
    pub cmd: Cmd,
    pub name: &'static str,
    pub operand: Operand,
    /// One line.
    pub help: &'static str,
    /// More, for `ktstr help COMMAND`.
    pub about: &'static str,
    pub hidden: bool,
}

/// The shells that completions are written for.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];
/// What `ktstr list` lists.
pub const LISTS: &[&str] = &["works", "schedulers", "topologies", "scenarios", "log-patterns"];

pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        cmd: Cmd::Run,
        name: "run",
        operand: Operand::Nothing,
        help: "boot a kernel, run a scheduler and a workload in it, give a verdict (default)",
        about: "Boots the kernel in a VM, starts the scheduler under test in it, waits until the kernel says that it is \
                enabled, lets groups of workers work, stops everything and judges what was measured. The word 'run' may \
                be left out. What stands after -- is passed to the scheduler.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Selftest,
        name: "selftest",
        operand: Operand::Optional("NAME"),
        help: "play faults in guests and show that each is named correctly",
        about: "Boots a guest for each fault of the matrix (docs/faults.md), brings the fault about, and compares outcome, exit \
                code, stage and reason with what they have to be. With NAME: only faults with that in their name. With --scenarios it plays \
                a fault for each scenario of the catalogue (docs/scenarios.md), and NAME is a part of a scenario's name. Exit \
                code 0 where all were named correctly, 1 where one was not.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Judge,
        name: "judge",
        operand: Operand::Required("RUN", &[]),
        help: "judge a stored run again, without a VM",
        about: "RUN is the directory of a run, or the file 'record' in it. Without flags the run is held to what it was \
                held to, and comes out the same. Limits that are given win over the stored ones; --check begins anew, \
                without those that the stored command line gave.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::BisectCheck,
        name: "bisect-check",
        operand: Operand::Two("GOOD", "BAD"),
        help: "prove both ends of a bisection before it begins",
        about: "GOOD and BAD are the two kernels, or with --vary sched the two schedulers. Each is run --repeat times (3 \
                where nothing is said) with every other flag of 'ktstr run' that is given. Exit code 0 where GOOD passes and \
                BAD fails, 1 where an end is not what it is said to be, 125 where one cannot be judged. It says how often \
                each step has to repeat its run, and how.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::BisectHelp,
        name: "bisect-help",
        operand: Operand::Nothing,
        help: "explain how to find the commit that broke a scheduler",
        about: "The same as 'ktstr help bisect'.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Runs,
        name: "runs",
        operand: Operand::Nothing,
        help: "list the run directories that are kept, and remove the oldest",
        about: "Runs that did not pass keep their directory. With --prune the oldest go, until what is left is no larger than \
                --max-size. A run that still goes on is never removed, nor anything that is no run.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Doctor,
        name: "doctor",
        operand: Operand::Nothing,
        help: "say what this host can do, with the remedy for what it cannot",
        about: "Looks at KVM, QEMU, CPUs, memory, huge pages and cgroups, one line each. Exit code 0 where a run is \
                possible on this host, 128 where it is not.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Image,
        name: "image",
        operand: Operand::Nothing,
        help: "write or list the guest image (an initramfs) of a run, without running it",
        about: "Makes the initramfs that a run with the same flags would boot, so that it can be looked at or booted by \
                any other VMM. Without --output it is listed.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::List,
        name: "list",
        operand: Operand::Required("WHAT", LISTS),
        help: "list work types, built-in schedulers, named topologies, scenarios, or what is read in the kernel's log",
        about: "",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Check,
        name: "check",
        operand: Operand::Required("FILE", &[]),
        help: "read a scenario file, without running it, and print what it would do",
        about: "Reads the file as --scenario does. An error names line, column and the nearest word. Then each scenario is \
                shown with the cgroups, CPUs and workers that it would have on a guest of the shape --topo.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Show,
        name: "show",
        operand: Operand::Required("SCENARIO", &[]),
        help: "print scenarios of the catalogue as a file, to be read, changed and run",
        about: "SCENARIO is a name, category/name, a category, or a pattern such as 'cpuset/*'.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Completions,
        name: "completions",
        operand: Operand::Required("SHELL", SHELLS),
        help: "write the completions for bash, zsh or fish",
        about: "Writes a script to standard output. bash: source it from ~/.bashrc. zsh: save it as _ktstr in a directory \
                of $fpath. fish: save it as ~/.config/fish/completions/ktstr.fish.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Help,
        name: "help",
        operand: Operand::Optional("TOPIC"),
        help: "explain a command or a topic",
        about: "Without a word: the same as --help.",
        hidden: false,
    },
    CommandSpec {
        cmd: Cmd::Vm,
        name: "__vm",
        operand: Operand::Required("FD", &[]),
        help: "",
        about: "",
        hidden: true,
    },
    CommandSpec { cmd: Cmd::Freeze, name: "__freeze", operand: Operand::Nothing, help: "", about: "", hidden: true },
    CommandSpec {
        cmd: Cmd::Panic,
        name: "__panic",
        operand: Operand::Optional("WHERE"),
        help: "",
        about: "",
        hidden: true,
    },
    CommandSpec {
        cmd: Cmd::Probe,
        name: "__probe",
        operand: Operand::Required("NAME", &[]),
        help: "",
        about: "",
        hidden: true,
    },
];

/// Whether a flag takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    Switch,
    Value(&'static str),
    /// `--flag`, `--flag=VALUE` or `--flag VALUE` where the next word does not begin with a dash.
    Optional(&'static str),
}

/// How flags are grouped in help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Subject,
    Load,
    Machine,
    Checks,
    Result,
    Many,
    Image,
    Other,
}

/// Help shows the groups in this order, under these headings.
pub const GROUPS: &[(Group, &str)] = &[
    (Group::Subject, "What is tested"),
    (Group::Load, "Load"),
    (Group::Machine, "Virtual machine"),
    (Group::Image, "Image"),
    (Group::Checks, "What it is held to (each limit may be off)"),
    (Group::Result, "Result"),
    (Group::Many, "Many runs"),
    (Group::Other, "Other"),
];

/// What a shell offers as the value of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complete {
    Nothing,
    File,
    Directory,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    pub arity: Arity,
    /// The text that is parsed where the flag is absent; empty where absence is its own meaning.
    pub default: &'static str,
    /// What absence means, for help, where `default` is empty.
    pub absent: &'static str,
    /// The only values; empty where others decide.
    pub choices: &'static [&'static str],
    pub group: Group,
    pub commands: &'static [Cmd],
    /// May be given several times.
    pub repeat: bool,
    /// Its value may begin with a dash.
    pub dash: bool,
    pub complete: Complete,
    pub help: &'static str,
    pub hidden: bool,
}

const RUN: &[Cmd] = &[Cmd::Run];
const RUN_IMAGE: &[Cmd] = &[Cmd::Run, Cmd::Image];
const PLANNED: &[Cmd] = &[Cmd::Run, Cmd::Image, Cmd::Check];
const IMAGE: &[Cmd] = &[Cmd::Image];
const JUDGED: &[Cmd] = &[Cmd::Run, Cmd::Judge];
const PUBLIC: &[Cmd] = &[
    Cmd::Run,
    Cmd::Check,
    Cmd::Show,
    Cmd::Judge,
    Cmd::Selftest,
    Cmd::BisectCheck,
    Cmd::BisectHelp,
    Cmd::Runs,
    Cmd::Doctor,
    Cmd::Image,
    Cmd::List,
    Cmd::Completions,
    Cmd::Help,
];

/// What a row of the table is where it does not say otherwise.
pub(super) const FLAG: Flag = Flag {
    long: "",
    short: None,
    arity: Arity::Switch,
    default: "",
    absent: "",
    choices: &[],
    group: Group::Other,
    commands: RUN,
    repeat: false,
    dash: false,
    complete: Complete::Nothing,
    help: "",
    hidden: false,
};

const SUBJECT: Flag = Flag { group: Group::Subject, commands: RUN_IMAGE, ..FLAG };
const LOAD: Flag = Flag { group: Group::Load, commands: RUN_IMAGE, ..FLAG };
const MACHINE: Flag = Flag { group: Group::Machine, ..FLAG };
const RESULT: Flag = Flag { group: Group::Result, ..FLAG };
const MANY: Flag = Flag { group: Group::Many, ..FLAG };

pub const FLAGS: &[Flag] = &[
    Flag {
        long: "kernel",
        short: Some('k'),
        arity: Arity::Value("FILE"),
        complete: Complete::File,
        commands: RUN,
        help: "the kernel to boot: bzImage or ELF vmlinux",
        ..SUBJECT
    },
    Flag {
        long: "host",
        commands: RUN,
        help: "no VM: run on this machine's own kernel and scheduler, in cgroups that go with the run",
        ..SUBJECT
    },
    Flag {
        long: "sched",
        short: Some('s'),
        arity: Arity::Value("PATH|builtin:NAME"),
        absent: "the kernel's own",
        complete: Complete::File,
        help: "the scheduler under test: a program, whose libraries are packed too, or a built-in one",
        ..SUBJECT
    },
    Flag {
        long: "sched-args",
        arity: Arity::Value("ARGS"),
        repeat: true,
        dash: true,
        help: "arguments for the scheduler, split at blanks as a shell does; or give them after --",
        ..SUBJECT
    },
    Flag {
        long: "kernel-config",
        arity: Arity::Value("FILE"),
        absent: "looked for beside the kernel",
        complete: Complete::File,
        help: "the kernel's configuration, which schedulers read in the guest as /boot/config-RELEASE",
        ..SUBJECT
    },
    Flag {
        long: "include",
        arity: Arity::Value("HOST[:GUEST]"),
        repeat: true,
        complete: Complete::File,
        help: "a file to pack into the guest as well, at an absolute path",
        ..SUBJECT
    },
    Flag {
        long: "scenario",
        arity: Arity::Value("FILE|NAME|GLOB"),
        repeat: true,
        complete: Complete::File,
        absent: "the load that the flags below describe",
        help: "what happens: a scenario file, or the catalogue's by name, category or pattern ('cpuset/*')",
        ..LOAD
    },
    Flag {
        long: "sched-flags",
        arity: Arity::Value("LIST|none"),
        absent: "everything",
        help: "what the scheduler claims to support; scenarios that need more are skipped",
        ..LOAD
    },
    Flag {
        long: "work",
        short: Some('w'),
        arity: Arity::Value("NAME"),
        default: "spin",
        help: "what each worker does; 'ktstr list works' lists them",
        ..LOAD
    },
    Flag {
        long: "workers",
        arity: Arity::Value("N"),
        absent: "as many as CPUs",
        help: "workers in each cgroup",
        ..LOAD
    },
    Flag {
        long: "cgroups",
        arity: Arity::Value("N"),
        default: "2",
        help: "cgroups of equal weight that compete for the CPUs",
        ..LOAD
    },
    Flag {
        long: "duration",
        commands: PLANNED,
        short: Some('d'),
        arity: Arity::Value("TIME"),
        default: "2s",
        help: "how long the workers work: 500ms, 2s, 1m30s",
        ..LOAD
    },
    Flag {
        long: "seed",
        arity: Arity::Value("N"),
        absent: "drawn, and told",
        help: "seed of every random choice",
        ..LOAD
    },
    Flag { long: "raw-samples", help: "keep up to 100000 latencies of each kind and worker, in the JSON", ..LOAD },
    Flag {
        long: "topo",
        arity: Arity::Value("SPEC"),
        default: "1n1l2c1t",
        commands: PLANNED,
        help: "CPUs of the guest: a count, NUMA nodes n, LLCs l, cores per LLC c, threads per core t, or a name of \
               'ktstr list topologies'; see 'ktstr help topology'",
        ..MACHINE
    },
    Flag {
        long: "node-memory",
        arity: Arity::Value("SIZE,SIZE,..."),
        absent: "shared out evenly",
        help: "memory of each NUMA node; more sizes than nodes make nodes without CPUs",
        ..MACHINE
    },
    Flag {
        long: "distance",
        arity: Arity::Value("N|FILE"),
        absent: "20",
        complete: Complete::File,
        help: "distance of NUMA nodes from each other, or a file with the matrix, one row a line",
        ..MACHINE
    },
    Flag {
        long: "memory",
        arity: Arity::Value("SIZE|auto"),
        default: "auto",
        help: "memory of the guest: 256M, 4GiB; auto: what kernel, image and CPUs need",
        ..MACHINE
    },
    Flag {
        long: "disk",
        arity: Arity::Value("SIZE|FILE[,OPTION...]"),
        absent: "none",
        complete: Complete::File,
        commands: RUN_IMAGE,
        help: "/dev/vda of the guest: memory of this size, or a raw image; options: ro, scratch, rate=BYTES, iops=N",
        ..MACHINE
    },
    Flag {
        long: "modules",
        arity: Arity::Value("DIR"),
        absent: "looked for beside the kernel and in /lib/modules",
        complete: Complete::Directory,
        commands: RUN_IMAGE,
        help: "where the kernel's modules are: those that --disk needs are packed and loaded",
        ..MACHINE
    },
    Flag {
        long: "cmdline",
        arity: Arity::Value("TEXT"),
        repeat: true,
        dash: true,
        help: "text to append to the kernel command line",
        ..MACHINE
    },
    Flag {
        long: "accel",
        arity: Arity::Value("NAME"),
        default: "auto",
        choices: &["auto", "kvm", "qemu"],
        help: "what runs the guest: KVM, QEMU's emulation, or KVM where it works and else QEMU",
        ..MACHINE
    },
    Flag {
        long: "channel",
        arity: Arity::Value("NAME"),
        default: "auto",
        choices: &["auto", "ring", "serial"],
        help: "how results leave the guest: a ring in shared memory, the second serial port, or the first that works",
        ..MACHINE
    },
    Flag {
        long: "timeout",
        arity: Arity::Value("TIME"),
        absent: "the duration and a margin",
        help: "hard limit for the whole VM; it is killed at this time",
        ..MACHINE
    },
    Flag {
        long: "perf",
        help: "performance mode: CPUs of their own for the vCPUs, huge pages, fewer exits; the result says what took effect",
        ..MACHINE
    },
    Flag {
        long: "boot-failure",
        arity: Arity::Value("VERDICT"),
        default: "skip",
        choices: &["fail", "skip"],
        help: "what a kernel is that does not boot: fail (exit 1) or skip (exit 125)",
        commands: JUDGED,
        group: Group::Checks,
        ..RESULT
    },
    Flag {
        long: "bad-on",
        arity: Arity::Value("KIND,KIND.."),
        absent: "any failure",
        commands: JUDGED,
        group: Group::Checks,
        help: "only these failures count: boot, panic, warn, stall, check; see 'ktstr help bisect'",
        ..RESULT
    },
    Flag {
        long: "check",
        arity: Arity::Value("WHICH"),
        default: "default",
        choices: &["none", "default", "strict"],
        help: "what the limits below begin with; none: only those that are given",
        commands: JUDGED,
        group: Group::Checks,
        ..RESULT
    },
    Flag {
        long: "json",
        arity: Arity::Value("FILE|-"),
        complete: Complete::File,
        help: "write the result as JSON; with - to standard output, and the summary to standard error",
        commands: JUDGED,
        ..RESULT
    },
    Flag {
        long: "run-dir",
        arity: Arity::Value("DIR"),
        absent: "see Files below",
        complete: Complete::Directory,
        help: "where console, record and verdict of this run go; it is kept",
        ..RESULT
    },
    Flag { long: "keep", help: "keep the run directory after a pass too", ..RESULT },
    Flag {
        long: "timings",
        commands: JUDGED,
        help: "print the time of each stage and the memory of the VMM",
        ..RESULT
    },
    Flag { long: "quiet", short: Some('q'), commands: JUDGED, help: "print the verdict line only", ..RESULT },
    Flag { long: "dmesg", help: "show the guest's console while it runs", ..RESULT },
    Flag {
        long: "color",
        arity: Arity::Value("WHEN"),
        default: "auto",
        choices: &["auto", "always", "never"],
        help: "colour in the summary; auto: on a terminal, unless NO_COLOR is set",
        commands: JUDGED,
        ..RESULT
    },
    Flag {
        long: "cell-result",
        arity: Arity::Value("FD"),
        hidden: true,
        help: "hand the result over through this descriptor; used between processes of ktstr",
        ..RESULT
    },
    Flag {
        long: "matrix",
        short: Some('m'),
        arity: Arity::Value("FLAG=A,B,.."),
        repeat: true,
        help: "run once for each value of the flag, such as topo=1,2,4; several multiply; see 'ktstr help matrix'",
        ..MANY
    },
    Flag {
        long: "repeat",
        short: Some('n'),
        arity: Arity::Value("N"),
        absent: "1",
        help: "do every run N times",
        ..MANY
    },
    Flag {
        long: "until-fail",
        arity: Arity::Value("N"),
        help: "repeat up to N times, and stop at the first failure",
        ..MANY
    },
    Flag {
        long: "pass-ratio",
        arity: Arity::Value("SHARE"),
        absent: "1",
        help: "of the repeated runs this share has to pass: 0.8 or 80%",
        ..MANY
    },
    Flag { long: "stop-on-first", help: "stop as soon as the failure of the whole is certain", ..MANY },
    Flag { long: "allow-skip", help: "runs that are skipped do not count beside others that pass", ..MANY },
    Flag {
        long: "jobs",
        short: Some('j'),
        arity: Arity::Value("N"),
        absent: "as CPUs and memory allow",
        help: "VMs at once, at most",
        ..MANY
    },
    Flag {
        long: "flake-rate",
        arity: Arity::Value("SHARE"),
        absent: "not known",
        help: "how often a bad commit fails, to tell the chance that one passed by luck",
        ..MANY
    },
    Flag {
        long: "steps",
        arity: Arity::Value("N"),
        absent: "10",
        help: "steps of the bisection that this run belongs to, for the same",
        ..MANY
    },
    Flag {
        long: "junit",
        arity: Arity::Value("FILE"),
        complete: Complete::File,
        help: "write the results as JUnit XML",
        ..MANY
    },
    Flag {
        long: "ktap",
        arity: Arity::Value("FILE|-"),
        complete: Complete::File,
        help: "write the results as KTAP, the kernel's own test format",
        ..MANY
    },
    Flag {
        long: "vary",
        arity: Arity::Value("FLAG"),
        default: "kernel",
        choices: &["kernel", "sched"],
        commands: &[Cmd::BisectCheck],
        help: "what GOOD and BAD are values of",
        ..FLAG
    },
    Flag { long: "prune", commands: &[Cmd::Runs], help: "remove the oldest, down to --max-size", ..FLAG },
    Flag {
        long: "max-size",
        arity: Arity::Value("SIZE"),
        default: "1G",
        commands: &[Cmd::Runs],
        help: "with --prune: what may be left",
        ..FLAG
    },
    Flag { long: "json", commands: &[Cmd::Doctor], help: "print the facts as one JSON object", ..FLAG },
    Flag {
        long: "kernel",
        short: Some('k'),
        arity: Arity::Value("FILE"),
        absent: "none",
        commands: IMAGE,
        complete: Complete::File,
        help: "the kernel that the image is for, to find its configuration and modules",
        ..SUBJECT
    },
    Flag {
        long: "output",
        short: Some('o'),
        arity: Arity::Value("FILE"),
        commands: IMAGE,
        group: Group::Image,
        complete: Complete::File,
        help: "write the image to this file",
        ..FLAG
    },
    Flag {
        long: "list",
        arity: Arity::Optional("FILE"),
        commands: IMAGE,
        group: Group::Image,
        complete: Complete::File,
        help: "list what is in the image, and why; with FILE, what is in that archive",
        ..FLAG
    },
    Flag { long: "man", commands: &[Cmd::Help], help: "write the man page (roff) to standard output", ..FLAG },
    Flag { long: "help", short: Some('h'), commands: PUBLIC, help: "explain, and leave", ..FLAG },
    Flag {
        long: "version",
        short: Some('V'),
        commands: PUBLIC,
        help: "print version, build and target, and leave",
        ..FLAG
    },
];

impl Flag {
    /// `--long`.
    pub fn dashed(&self) -> String {
        format!("--{}", self.long)
    }
    /// The name of its value, where it takes one.
    pub fn value_name(&self) -> Option<&'static str> {
        match self.arity {
            Arity::Switch => None,
            Arity::Value(name) | Arity::Optional(name) => Some(name),
        }
    }
    /// As in help: `--list[=FILE]`, `--kernel FILE`, `--keep`; closed choices in place of the value's name.
    pub fn usage(&self) -> String {
        match self.arity {
            Arity::Switch => self.dashed(),
            Arity::Optional(name) => format!("--{}[={name}]", self.long),
            Arity::Value(_) if !self.choices.is_empty() => format!("--{} {}", self.long, self.choices.join("|")),
            Arity::Value(name) => format!("--{} {name}", self.long),
        }
    }
    /// The help line with what absence means: `text (default: 2s)`.
    pub fn help_with_default(&self) -> String {
        match [self.default, self.absent].into_iter().find(|text| !text.is_empty()) {
            Some(text) => format!("{} (default: {text})", self.help),
            None => self.help.into(),
        }
    }
}

/// Every flag there is: the table, and the flags of the checks.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().chain(&own_cgroups::FLAGS).chain(&guards::FLAGS).chain(&cmd_selftest::FLAGS).chain(&limits::FLAGS)
}

/// The command of this name, hidden ones too.
pub fn command(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|spec| spec.name == name)
}

/// The row of a command.
pub fn spec(cmd: Cmd) -> &'static CommandSpec {
    // COMMANDS has a row for each variant, which a test checks.
    COMMANDS.iter().find(|spec| spec.cmd == cmd).unwrap_or(&COMMANDS[0])
}

/// What makes no sense for the two ends of a bisection.
const NOT_FOR_ENDS: &[&str] = &[
    "matrix",
    "until-fail",
    "stop-on-first",
    "allow-skip",
    "junit",
    "ktap",
    "json",
    "dmesg",
    "timings",
    "cell-result",
];

/// Whether a command takes a flag: its own, and the ends of a bisection those of a run.
fn takes(cmd: Cmd, flag: &Flag) -> bool {
    let ends = cmd == Cmd::BisectCheck && flag.commands.contains(&Cmd::Run) && !NOT_FOR_ENDS.contains(&flag.long);
    ends || flag.commands.contains(&cmd)
}

/// The flags that a command takes, in the table's order.
pub fn flags_of(cmd: Cmd) -> impl Iterator<Item = &'static Flag> {
    all().filter(move |flag| takes(cmd, flag))
}

/// The flag of this name that the command takes.
pub fn long(cmd: Cmd, name: &str) -> Option<&'static Flag> {
    flags_of(cmd).find(|flag| flag.long == name)
}

/// The flag of this letter that the command takes.
pub fn short(cmd: Cmd, letter: char) -> Option<&'static Flag> {
    flags_of(cmd).find(|flag| flag.short == Some(letter))
}

/// The commands and flags that help, man page and completions show.
pub fn shown_commands() -> impl Iterator<Item = &'static CommandSpec> {
    COMMANDS.iter().filter(|spec| !spec.hidden)
}
pub fn shown_flags(cmd: Cmd) -> impl Iterator<Item = &'static Flag> {
    // What a command takes from another is explained there.
    flags_of(cmd).filter(move |flag| !flag.hidden && flag.commands.contains(&cmd))
}
