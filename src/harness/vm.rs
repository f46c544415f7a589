//! One run as a value: a VM is described in code, booted, and gives back what it said.
//!
//! Owns the description and the result; leaves the run to the ktstr program, in a process of its own.
//! Invariant: what the command line would refuse is refused by `build`, before anything is started.

use crate::cli::args::Command as Parsed;
use crate::cli::cmd_run::counted;
use crate::cli::out::ERROR_HEAD;
use crate::cli::parse;
use crate::error::{Context, Error, Kind, Result};
use crate::proto::message::{Stage, VmEnd};
use crate::proto::record::Record;
use crate::run::rundir::{CONSOLE, RECORD};
use crate::sys::process::random_number;
use crate::verdict::bad_on::BadOn;
use crate::verdict::{Verdict, judge_stored};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A run that is described, and can be carried out any number of times.
///
/// ```no_run
/// # fn main() -> ktstr::Result<()> {
/// use ktstr::harness::Vm;
///
/// let vm = Vm::builder()
///     .kernel("/boot/vmlinuz")
///     .init_binary("/usr/local/bin/ktstr")
///     .topology(1, 2, 2, 1)
///     .memory_mb(256)
///     .run_args(["--sched", "builtin:fifo", "--duration", "2s"])
///     .build()?;
/// let result = vm.run()?;
/// assert_eq!(result.exit_code, 0, "{}", result.console);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Vm {
    program: PathBuf,
    words: Vec<OsString>,
    bad_on: Option<BadOn>,
}

/// What a VM is made of.
#[derive(Clone, Debug, Default)]
pub struct VmBuilder {
    program: Option<PathBuf>,
    words: Vec<OsString>,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct VmResult {
    /// The command line's and the verdict's: both are one.
    pub exit_code: u8,
    /// As it counts: under `--bad-on` only failures of those kinds do.
    pub verdict: Verdict,
    /// From the start of the program until the VM was gone.
    pub duration: Duration,
    /// The deadline passed and the VM was killed.
    pub timed_out: bool,
    /// All that the guest's kernel printed.
    pub console: String,
    /// Exits of the vCPUs by kind; none under an emulator.
    pub exits: Vec<(String, u64)>,
    /// What PID 1 said when it crashed.
    pub crash: Option<String>,
    /// Everything that the guest and the host observed; that the run's directory could not be removed is in `host_notes`.
    pub record: Record,
}

impl Vm {
    pub fn builder() -> VmBuilder {
        VmBuilder::default()
    }

    /// Boots it and waits for its end. An error where there is no verdict, as the program said it.
    pub fn run(&self) -> Result<VmResult> {
        let number = random_number().context(|| "draw a name for the run")?;
        let dir = std::env::temp_dir().join(format!("ktstr-vm-{number:016x}"));
        fs::create_dir(&dir).context(|| format!("make {} for the run", dir.display()))?;
        let result = self.run_in(&dir);
        let removed = fs::remove_dir_all(&dir).context(|| format!("remove {}", dir.display()));
        result.map(|result| noting(result, removed))
    }

    fn run_in(&self, dir: &Path) -> Result<VmResult> {
        let mut command = Command::new(&self.program);
        command.arg("run").args(&self.words).arg("--run-dir").arg(dir);
        let start = || format!("start {}", self.program.display());
        let done = command.stdin(Stdio::null()).output().context(start)?;
        self.read_back(&done, dir)
    }

    /// What the program left, where it is what the program said.
    fn read_back(&self, done: &Output, dir: &Path) -> Result<VmResult> {
        let program = self.program.display();
        let unsaid = |what: &str| {
            let kind = match done.status.code() {
                Some(130) => Kind::Interrupted,
                Some(125) => Kind::CannotJudge,
                _ => Kind::Host,
            };
            let text = String::from_utf8_lossy(&done.stderr);
            // What stands before its error are notes.
            let said = text.rsplit(ERROR_HEAD).next().unwrap_or(&text);
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            Error::new(kind, format!("{program} {what} ({}): {said}", done.status))
        };
        let Ok(bytes) = fs::read(dir.join(RECORD)) else { return Err(unsaid("left no record")) };
        let (record, complete) = Record::from_file_bytes(&bytes)
            .map_err(|cause| Error::host(format!("the record of {program} cannot be read: {cause}")))?;
        if !complete {
            return Err(unsaid("left a record that is cut short or damaged"));
        }
        let verdict = counted(self.bad_on.as_ref(), &record, judge_stored(&record));
        let exit_code = verdict.exit_code;
        if done.status.code() != Some(exit_code.into()) {
            return Err(unsaid(&format!("left a record of another exit code, {exit_code}")));
        }
        let console = fs::read(dir.join(CONSOLE)).context(|| "read the console of the run")?;
        Ok(VmResult {
            exit_code,
            verdict,
            duration: Duration::from_nanos(record.mark(Stage::TornDown).unwrap_or_default()),
            timed_out: record.vm_end == Some(VmEnd::TimedOut),
            console: String::from_utf8_lossy(&console).into_owned(),
            exits: record.stats.as_ref().map(|stats| stats.exits.clone()).unwrap_or_default(),
            crash: record.crash.clone(),
            record,
        })
    }
}

/// The result, which stands where its directory does, too.
fn noting(mut result: VmResult, removed: Result<()>) -> VmResult {
    if let Err(error) = removed {
        result.record.host_notes.push(error.to_string());
    }
    result
}

impl VmBuilder {
    /// The kernel: a bzImage or an ELF vmlinux.
    pub fn kernel(self, path: impl AsRef<Path>) -> Self {
        self.words_of("--kernel", path.as_ref())
    }
    /// The ktstr program of this version: PID 1 in the guest, the VMM on the host.
    pub fn init_binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }
    /// LLCs are those of all nodes together.
    pub fn topology(self, numa_nodes: u32, llcs: u32, cores_per_llc: u32, threads_per_core: u32) -> Self {
        self.words_of("--topo", format!("{numa_nodes}n{llcs}l{cores_per_llc}c{threads_per_core}t"))
    }
    /// Guest memory in MiB; what kernel, image and CPUs need where it is not given.
    pub fn memory_mb(self, mib: u64) -> Self {
        self.words_of("--memory", format!("{mib}M"))
    }
    /// More flags of `ktstr run`, as on the command line.
    pub fn run_args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(args.into_iter().map(Into::into));
        self
    }

    fn words_of(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.words.extend([flag.into(), value.into()]);
        self
    }

    /// Checks everything that can be checked without a look at the machine.
    pub fn build(self) -> Result<Vm> {
        let program = self.program.ok_or_else(|| {
            Error::usage("no program is given that runs the VM and is its PID 1").hint("init_binary names ktstr")
        })?;
        match parse::parse(std::iter::once("run".into()).chain(self.words.iter().cloned()))? {
            Parsed::Run(args) if args.host => Err(Error::usage("--host runs without a VM")),
            Parsed::Run(args) if args.run_dir.is_some() => {
                Err(Error::usage("--run-dir: the result has what the run directory would hold"))
            }
            Parsed::Run(args) => Ok(Vm { program, words: self.words, bad_on: args.bad_on }),
            _ => Err(Error::usage("the arguments describe no single run of one VM")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Outcome;
    use crate::verdict::fixture::passing;
    use crate::verdict::tests_properties::file;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn builder() -> VmBuilder {
        Vm::builder().kernel("/k").init_binary("/bin/sh")
    }

    #[test]
    fn builder_gives_the_words_of_the_command_line() {
        let vm = builder().topology(2, 4, 3, 2).memory_mb(512).run_args(["--duration", "1s"]).build().unwrap();
        assert_eq!(vm.words, ["--kernel", "/k", "--topo", "2n4l3c2t", "--memory", "512M", "--duration", "1s"]);
    }

    #[test]
    fn what_is_no_run_of_one_vm_is_refused_with_its_reason() {
        for (refused, reason) in [
            (Vm::builder().kernel("/k"), "init_binary"),
            (Vm::builder().init_binary("/bin/sh"), "kernel"),
            (builder().topology(2, 3, 1, 1), "--topo"),
            (builder().topology(1, 0, 1, 1), "--topo"),
            (builder().topology(1, 1, 1, 1).run_args(["--topo", "2"]), "given twice"),
            (builder().run_args(["--no-such-flag"]), "--no-such-flag"),
            (builder().run_args(["--repeat", "2"]), "no single run"),
            (builder().run_args(["--help"]), "no single run"),
            (builder().run_args(["--run-dir", "/tmp/x"]), "--run-dir"),
            (Vm::builder().init_binary("/bin/sh").run_args(["--host"]), "--host"),
        ] {
            let error = refused.clone().build().expect_err(&format!("{refused:?}"));
            assert!(error.to_string().contains(reason), "{refused:?}: {error}");
        }
    }

    #[test]
    fn program_that_is_not_ktstr_is_told_by_what_it_said() {
        // The shell takes `run` for a script that is not there.
        let error = builder().build().unwrap().run().unwrap_err();
        assert!(error.to_string().starts_with("/bin/sh left no record"), "{error}");
        let error = Vm::builder().kernel("/k").init_binary("/nowhere/ktstr").build().unwrap().run().unwrap_err();
        assert!(error.to_string().contains("start /nowhere/ktstr"), "{error}");
    }

    /// What is made of a run of these words whose program left a worker without work, and this exit code.
    fn left(words: &[&str], code: i32, change: fn(&Path)) -> Result<VmResult> {
        let number = random_number().unwrap();
        let dir = std::env::temp_dir().join(format!("ktstr-left-{number:016x}"));
        let mut starved = passing();
        (starved.reports[0].1.work_units, starved.reports[0].1.iterations) = (0, 0);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(RECORD), file(&starved)).unwrap();
        fs::write(dir.join(CONSOLE), "").unwrap();
        change(&dir.join(RECORD));
        let stderr = format!("a note\n{ERROR_HEAD}no room").into_bytes();
        // The exit code is the second byte (wait(2)).
        let done = Output { status: ExitStatus::from_raw(code << 8), stdout: Vec::new(), stderr };
        let result = builder().run_args(words).build().unwrap().read_back(&done, &dir);
        fs::remove_dir_all(dir).unwrap();
        result
    }

    #[test]
    fn exit_code_and_verdict_are_one() {
        for (words, code, outcome) in [
            (&[][..], 1, Outcome::Fail),
            (&["--bad-on", "check"], 1, Outcome::Fail),
            (&["--bad-on", "panic"], 0, Outcome::Pass),
        ] {
            let result = left(words, code, |_| ()).unwrap();
            assert_eq!((result.exit_code, result.verdict.outcome), (code as u8, outcome), "{words:?}");
            assert_eq!(result.verdict.exit_code, result.exit_code);
        }
        let error = left(&[], 0, |_| ()).unwrap_err().to_string();
        assert!(error.contains("another exit code, 1 (exit status: 0): no room"), "{error}");
    }

    #[test]
    fn record_that_is_not_whole_is_no_result() {
        for change in [
            (|record: &Path| {
                let bytes = fs::read(record).unwrap();
                fs::write(record, &bytes[..bytes.len() - 3]).unwrap();
            }) as fn(&Path),
            |record| {
                let mut bytes = fs::read(record).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(record, bytes).unwrap();
            },
        ] {
            let error = left(&[], 1, change).unwrap_err().to_string();
            assert!(error.contains("cut short or damaged (exit status: 1): no room"), "{error}");
        }
    }

    #[test]
    fn directory_that_stays_costs_no_result() {
        let result = noting(left(&[], 1, |_| ()).unwrap(), Err(Error::host("remove /tmp/x: it is busy")));
        assert_eq!(result.exit_code, 1);
        assert!(result.record.host_notes.iter().any(|note| note.contains("remove /tmp/x")));
    }
}
