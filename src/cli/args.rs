//! What a command line asks for, as plain values.
//!
//! Owns the fields; leaves filling them to `describe`, and making them real to run/ and image/.
//! Invariant: every value here has passed all checks that need no look at the machine.

use super::flags::Cmd;
use crate::proto::guards::Guards;
use crate::proto::limits::{Assert, Base, Layers};
use crate::proto::scenario::{CgroupDef, DefWork};
use crate::proto::topology::Topology;
pub use crate::run::accel::AccelChoice;
use crate::run::disk::DiskSpec;
use crate::verdict::bad_on::BadOn;
use crate::verdict::many::Rule;
use std::path::PathBuf;

/// One command, ready to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Run(Box<RunArgs>),
    /// Many runs.
    Suite(Box<SuiteArgs>),
    /// The two ends of a bisection: two rows, the good one first.
    BisectCheck(Box<SuiteArgs>),
    /// The kept run directories; with a limit the oldest are removed.
    Runs {
        prune_to_bytes: Option<u64>,
    },
    Doctor {
        json: bool,
    },
    Image(Box<ImageArgs>),
    Judge(Box<JudgeArgs>),
    Selftest(Box<SelftestArgs>),
    List(ListWhat),
    /// Read a scenario file and say what it would do on this machine.
    Check {
        file: PathBuf,
        topology: Topology,
        duration_ns: u64,
    },
    /// Print scenarios as a file.
    Show {
        name: String,
    },
    Completions(Shell),
    Help(HelpOn),
    Version,
    /// Hidden: one VM, told what to do through this descriptor.
    Vm {
        fd: i32,
    },
    /// Hidden: freezes a little VM and goes on in another.
    Freeze,
    /// Hidden: panics here, or in a worker.
    Panic {
        worker: bool,
    },
    /// Hidden: the built-in scheduler of this name.
    Probe {
        name: String,
    },
}

/// What help is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelpOn {
    /// The whole.
    Top,
    Command(Cmd),
    /// A name of `topics::TOPICS`.
    Topic(&'static str),
    /// A work type, by its name in reports.
    Work(&'static str),
    /// The man page.
    Man,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListWhat {
    Works,
    Schedulers,
    Scenarios,
    LogPatterns,
    Topologies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The scheduler under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchedChoice {
    /// A program of the host.
    External(PathBuf),
    /// One of ours, by the name after `builtin:`; whether it exists is for scx/ to say.
    Builtin(String),
}

/// A file to pack: from the host's path to the guest's; none: the same absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include {
    pub host: PathBuf,
    pub guest: Option<PathBuf>,
}

/// What the image and the plan in it are made of: the same for a run and for `ktstr image`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestArgs {
    pub sched: Option<SchedChoice>,
    pub sched_args: Vec<String>,
    pub kernel_config: Option<PathBuf>,
    pub include: Vec<Include>,
    /// As given; `workload::types::parse_work` reads it.
    pub work: String,
    /// Scenario files, names and patterns; empty: the one that the other flags describe.
    pub scenarios: Vec<String>,
    /// Cgroups that were described one by one; empty: `cgroups` equal ones.
    pub own_cgroups: Vec<CgroupDef>,
    /// What the scheduler under test claims to support; none: everything.
    pub sched_flags: Option<Vec<String>>,
    /// The one work that was asked for: beside scenarios, or for one in code.
    pub work_override: Option<DefWork>,
    /// Workers in each cgroup; none: as many as CPUs.
    pub workers: Option<u32>,
    pub cgroups: u32,
    pub duration_ns: u64,
    /// None: to be drawn.
    pub seed: Option<u64>,
    /// Workers keep some of their samples as they are.
    pub raw_samples: bool,
    pub topology: Topology,
    pub disk: Option<DiskSpec>,
    /// Where the kernel's modules are; none: to be looked for.
    pub modules: Option<PathBuf>,
    pub guards: Guards,
}

impl GuestArgs {
    /// Workers in each cgroup, with the default applied.
    pub fn workers_per_cgroup(&self) -> u32 {
        self.workers.unwrap_or_else(|| self.topology.total_cpus())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// What kernel, image and CPUs need.
    Auto,
    Bytes(u64),
}

/// How far NUMA nodes are from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distance {
    Uniform(u32),
    /// A file with a matrix.
    Matrix(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelChoice {
    Auto,
    Ring,
    Serial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorChoice {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonTarget {
    Stdout,
    File(PathBuf),
}

/// `ktstr run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunArgs {
    /// Empty with `host`.
    pub kernel: PathBuf,
    /// On this machine itself, without a VM.
    pub host: bool,
    pub guest: GuestArgs,
    pub memory: Memory,
    /// Bytes of each NUMA node; empty: shared out.
    pub node_memory: Vec<u64>,
    /// None: the usual.
    pub distance: Option<Distance>,
    /// Appended to the kernel command line.
    pub cmdline: String,
    pub accel: AccelChoice,
    pub channel: ChannelChoice,
    /// Hard limit of the VM; none: to be computed.
    pub timeout_ns: Option<u64>,
    /// What the run is held to.
    pub limits: Layers,
    /// Performance mode.
    pub perf: bool,
    pub json: Option<JsonTarget>,
    pub run_dir: Option<PathBuf>,
    pub keep: bool,
    pub timings: bool,
    pub quiet: bool,
    pub dmesg: bool,
    pub color: ColorChoice,
    /// The only failures that count; none: all.
    pub bad_on: Option<BadOn>,
    /// Hidden: this run belongs to many, and hands its result over through this descriptor.
    pub cell_result: Option<i32>,
}

/// A flag that a matrix varies, and its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    pub name: &'static str,
    pub values: Vec<String>,
}

/// One combination of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `topo=2 work=spin`; empty where nothing varies.
    pub name: String,
    /// In the order of the axes.
    pub values: Vec<String>,
    /// The words after `ktstr run` that make this one run.
    pub words: Vec<String>,
    pub run: RunArgs,
}

/// `ktstr run` with `--matrix`, `--repeat` and their like.
#[derive(Clone, Debug, PartialEq)]
pub struct SuiteArgs {
    pub axes: Vec<Axis>,
    pub rows: Vec<Row>,
    /// Runs of each row.
    pub repeat: u32,
    pub rule: Rule,
    pub stop_on_first: bool,
    /// VMs at once; none: as many as there is room for.
    pub jobs: Option<u32>,
    /// How often a bad commit fails; none: not known.
    pub flake_rate: Option<f64>,
    pub steps: u32,
    pub json: Option<JsonTarget>,
    pub junit: Option<PathBuf>,
    pub ktap: Option<JsonTarget>,
    pub run_dir: Option<PathBuf>,
    pub keep: bool,
    pub quiet: bool,
    pub color: ColorChoice,
}

/// `ktstr judge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgeArgs {
    /// A run's directory, or its record.
    pub run: PathBuf,
    /// In place of the stored limits; none: on top of them.
    pub base: Option<Base>,
    pub limits: Assert,
    pub bad_on: Option<BadOn>,
    pub json: Option<JsonTarget>,
    pub timings: bool,
    pub quiet: bool,
    pub color: ColorChoice,
}

/// What `ktstr image` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageAction {
    /// Write the image to this file, and list it too where `list` is set.
    Write { output: PathBuf, list: bool },
    /// List the image that would be written.
    List,
    /// List an archive that exists.
    ListFile(PathBuf),
}

/// `ktstr image`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageArgs {
    pub action: ImageAction,
    pub kernel: Option<PathBuf>,
    pub guest: GuestArgs,
}

/// `ktstr selftest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelftestArgs {
    pub kernel: PathBuf,
    /// As `--accel` takes it.
    pub accel: &'static str,
    /// Only faults with this in their name.
    pub filter: Option<String>,
    pub list: bool,
    pub short: bool,
    /// The catalogue's scenarios, and not the matrix.
    pub scenarios: bool,
    pub json: Option<JsonTarget>,
}
