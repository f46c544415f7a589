//! `ktstr run` with `--matrix`, `--repeat` and their like: many runs, one verdict.
//!
//! Owns the order of things, what is shown meanwhile, and the files at the end; leaves the runs to run/suite.
//! Invariant: whatever can be refused is refused before the first run; the exit code is that of the rule in verdict/many.

use super::args::{JsonTarget, SuiteArgs};
use super::result_file::ResultFile;
use super::screen::Meter;
use super::{cmd_run, out};
use crate::error::{Error, Result};
use crate::report::{self, Style, Suite, SuiteCell, SuiteRun};
use crate::run::accel::{self, Accel, AccelChoice};
use crate::run::job::{self, Job};
use crate::run::suite::{self, Budget, Cell, CellEnd, Cost, Next, Progress, SUITE_JSON, SUITE_SUMMARY, SuiteDir};
use crate::sys::time;
use crate::units::{approx, size};
use crate::verdict::Outcome;
use crate::vmm::kernel::KernelImage;
use crate::vmm::kvm::self_check;
use std::path::{Path, PathBuf};

/// This binary, whatever happened to its file meanwhile.
const SELF: &str = "/proc/self/exe";

/// Runs all, tells, and gives the exit code.
pub fn cmd_suite(args: &SuiteArgs, argv: Vec<String>, exec_ns: u64) -> Result<u8> {
    let mut outputs = Outputs::open(args)?;
    let (suite, directory) = execute(args, &argv, exec_ns)?;
    tell(args, &suite, directory, &mut outputs)
}

/// Runs all; nothing is told yet but progress.
pub fn execute(args: &SuiteArgs, argv: &[String], exec_ns: u64) -> Result<(Suite, SuiteDir)> {
    let costs = prepare(args, argv, exec_ns)?;
    let budget = Budget::of_host(args.jobs)?;
    let directory = SuiteDir::create(&cmd_run::place(args.run_dir.as_deref()))?;
    let cells = cells(args, &costs, &directory);
    let mut meter = Meter::new(cells.len(), args.quiet);
    meter.say(&format!(
        "ktstr: {} runs; this host has room for VMs with {} CPUs and {} in all",
        cells.len(),
        budget.cpus,
        size(budget.memory_bytes)
    ));
    let mut suite = empty(args);
    let mut troubles = Vec::new();
    let ran = suite::run(&cells, &budget, &mut |progress| match progress {
        Progress::Started { .. } => Next::Go,
        Progress::Tick { running } => {
            suite.most_at_once = suite.most_at_once.max(running);
            meter.tick(running);
            Next::Go
        }
        Progress::Ended(end) => {
            let name = run_name(args, end.index);
            if !end.stopped {
                let worth = end.outcome != Outcome::Pass;
                meter.ended(&line_of(&name, end), end.outcome == Outcome::Fail, worth);
            }
            if end.told.as_ref().is_none_or(|told| told.directory.is_none()) {
                // Killed, refused or passed: nothing of it is to stay.
                troubles.extend(keep_or_drop(&directory, end).err());
            }
            take(&mut suite, args, end.clone());
            if args.stop_on_first && is_settled(&suite) { Next::Stop } else { Next::Go }
        }
    });
    meter.finish();
    suite.interrupted = ran?;
    suite.took_ns = time::monotonic_ns().saturating_sub(exec_ns);
    for error in troubles {
        out::note(&format!("warning: {error}"));
    }
    Ok((suite, directory))
}

/// Checks every run as far as that goes without a VM; returns what each row costs.
fn prepare(args: &SuiteArgs, argv: &[String], exec_ns: u64) -> Result<Vec<Cost>> {
    let named = |name: &str, error: Error| if name.is_empty() { error } else { error.while_doing(name) };
    // First what is wrong by itself, then what is wrong on this machine.
    let jobs = args.rows.iter().map(|row| {
        let job = cmd_run::job(&row.run, argv.to_vec(), exec_ns);
        job.map_err(|error| named(&row.name, error))
    });
    let jobs = jobs.collect::<Result<Vec<Job>>>()?;
    let mut kernels: Vec<&Path> = Vec::new();
    let mut accels: Vec<(AccelChoice, Accel)> = Vec::new();
    let mut costs = Vec::new();
    for (row, job) in args.rows.iter().zip(&jobs) {
        if !kernels.contains(&job.kernel.as_path()) {
            KernelImage::open(&job.kernel).map_err(|error| named(&row.name, error))?;
            kernels.push(&job.kernel);
        }
    }
    for (row, job) in args.rows.iter().zip(&jobs) {
        if !accels.iter().any(|(choice, _)| *choice == job.accel) {
            accels.push((job.accel, accel::choose(job.accel, self_check).map_err(|error| named(&row.name, error))?));
        }
        let accel = accels.iter().find(|(choice, _)| *choice == job.accel);
        costs.push(accel.map_or_else(Cost::default, |(_, accel)| job::cost(job, accel.kind)));
    }
    if !args.quiet {
        for (_, accel) in &accels {
            out::print_error(&format!("ktstr: accel {}: {}\n", accel.kind.name(), accel.reason));
        }
    }
    Ok(costs)
}

/// All runs: every row once before any row a second time, so that a fault of one row is seen early.
fn cells(args: &SuiteArgs, costs: &[Cost], directory: &SuiteDir) -> Vec<Cell> {
    let mut cells = Vec::new();
    for _ in 0..args.repeat {
        for (row, cost) in args.rows.iter().zip(costs) {
            let index = cells.len();
            // After these words may come those of the scheduler.
            let words = ["--quiet", "--color=never"].map(str::to_owned).into_iter().chain(row.words.iter().cloned());
            cells.push(Cell {
                name: run_name(args, index),
                program: SELF.into(),
                words: words.collect(),
                cost: *cost,
                directory: directory.run(index + 1),
            });
        }
    }
    cells
}

/// The row and the repetition, from 1, of a run.
fn place_of(args: &SuiteArgs, index: usize) -> (usize, u32) {
    (index % args.rows.len(), (index / args.rows.len()) as u32 + 1)
}

fn run_name(args: &SuiteArgs, index: usize) -> String {
    let (row, number) = place_of(args, index);
    match (args.rows[row].name.as_str(), args.repeat) {
        (name, 1) if !name.is_empty() => name.to_owned(),
        ("", _) => format!("run {number}"),
        (name, _) => format!("{name} run {number}"),
    }
}

fn line_of(name: &str, end: &CellEnd) -> String {
    let reason = if end.outcome == Outcome::Pass { String::new() } else { format!(": {}", end.headline) };
    format!("{} {name} ({}){reason}", end.outcome.word(), approx(end.took_ns))
}

/// A run that told nothing has left its directory; that of one that died by itself is worth a look.
fn keep_or_drop(directory: &SuiteDir, end: &CellEnd) -> Result<()> {
    let died = end.told.is_none() && !end.stopped && end.outcome != Outcome::Interrupted;
    let path = directory.run(end.index + 1);
    if died && path.exists() { Ok(()) } else { directory.drop_run(end.index + 1) }
}

fn empty(args: &SuiteArgs) -> Suite {
    let cells = args.rows.iter().map(|row| SuiteCell {
        name: row.name.clone(),
        values: row.values.clone(),
        words: row.words.clone(),
        runs: Vec::new(),
    });
    Suite {
        axes: args.axes.iter().map(|axis| axis.name).collect(),
        cells: cells.collect(),
        repeat: args.repeat,
        rule: args.rule,
        interrupted: false,
        took_ns: 0,
        most_at_once: 0,
        flake_rate: args.flake_rate,
        steps: args.steps,
    }
}

fn take(suite: &mut Suite, args: &SuiteArgs, mut end: CellEnd) {
    let (row, number) = place_of(args, end.index);
    // Thousands of results are not held for nothing.
    let first_failure = end.outcome == Outcome::Fail && suite.counts().failed == 0;
    if let Some(told) = &mut end.told {
        if args.json.is_none() {
            told.json = String::new();
        }
        if !first_failure && args.junit.is_none() {
            told.summary = String::new();
        }
    }
    let runs = &mut suite.cells[row].runs;
    let at = runs.partition_point(|run| run.number < number);
    runs.insert(at, SuiteRun { number, end });
}

/// Whether what is left cannot change the outcome: a cell has failed for good, or all are settled.
fn is_settled(suite: &Suite) -> bool {
    let settled = |cell: &SuiteCell| {
        let counts = cell.counts();
        suite.rule.settled(counts, suite.repeat.saturating_sub(counts.done()))
    };
    let outcomes: Vec<Option<Outcome>> = suite.cells.iter().map(settled).collect();
    outcomes.contains(&Some(Outcome::Fail)) || outcomes.iter().all(Option::is_some)
}

/// The files that were asked for, created before the first run.
struct Outputs {
    json: Option<ResultFile>,
    junit: Option<ResultFile>,
    ktap: Option<ResultFile>,
}

impl Outputs {
    fn open(args: &SuiteArgs) -> Result<Self> {
        Ok(Self {
            json: ResultFile::of(args.json.as_ref())?,
            junit: args.junit.as_deref().map(ResultFile::create).transpose()?,
            ktap: ResultFile::of(args.ktap.as_ref())?,
        })
    }
}

/// Keeps the directory with what was made of all, or removes it; returns where it is kept.
pub fn settle(args: &SuiteArgs, suite: &Suite, directory: SuiteDir, summary: &str) -> Result<Option<PathBuf>> {
    let mut runs = suite.cells.iter().flat_map(|cell| &cell.runs);
    let any_kept = runs.any(|run| directory.run(run.end.index + 1).exists());
    if !any_kept && !args.keep && args.run_dir.is_none() {
        return directory.remove().map(|()| None);
    }
    directory.write(SUITE_SUMMARY, summary)?;
    if args.json.is_some() {
        directory.write(SUITE_JSON, &report::suite_json(suite))?;
    }
    Ok(Some(directory.path().to_owned()))
}

fn tell(args: &SuiteArgs, suite: &Suite, directory: SuiteDir, outputs: &mut Outputs) -> Result<u8> {
    let stdout = [&args.json, &args.ktap].iter().any(|target| **target == Some(JsonTarget::Stdout));
    let style = Style { color: cmd_run::wants_color(args.color, stdout) };
    let plain = report::suite_summary(suite, Style::default());
    let mut text = match args.quiet {
        true => report::suite_line(suite, style) + "\n",
        false => report::suite_summary(suite, style),
    };
    let outcome = suite.outcome();
    let settled = settle(args, suite, directory, &plain);
    if let (Ok(Some(kept)), false) = (&settled, args.quiet) {
        text.push_str(&format!("run directory: {}\n", out::visible(&kept.display().to_string())));
    }
    let mut told = Ok(());
    if stdout {
        out::print_error(&text)
    } else {
        told = out::print(&text)
    }
    let to_stdout = |target: &Option<JsonTarget>| *target == Some(JsonTarget::Stdout);
    type Form = fn(&Suite) -> String;
    let forms: [(&mut Option<ResultFile>, bool, Form); 3] = [
        (&mut outputs.json, to_stdout(&args.json), report::suite_json),
        (&mut outputs.junit, false, report::junit),
        (&mut outputs.ktap, to_stdout(&args.ktap), report::ktap),
    ];
    for (file, to_stdout, form) in forms {
        if let Some(file) = file {
            told = told.and(file.write(form(suite).as_bytes()));
        } else if to_stdout {
            told = told.and(out::print(&form(suite)));
        }
    }
    if let Err(error) = settled {
        // The verdict stands; what is lost is its copy on disk.
        out::note(&format!("warning: {error}"));
    }
    told.map(|()| outcome.exit_code())
}
