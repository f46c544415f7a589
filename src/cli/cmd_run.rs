//! `ktstr run`: one run, from the command line to the exit code.
//!
//! Owns what is shown while it runs and afterwards, and what becomes of the run directory; leaves the run to run/.
//! Invariant: the exit code is the verdict's, unless the verdict could not be told.

use super::args::{ChannelChoice, ColorChoice, GuestArgs, JsonTarget, Memory, RunArgs};
use super::result_file::ResultFile;
use super::screen::Screen;
use super::{machine, out, plan};
use crate::error::{Kind, Result};
use crate::log::Event;
use crate::proto::record::Record;
use crate::report::{self, Style};
use crate::run::host::{self, HostJob};
use crate::run::job::{self, Job};
use crate::run::rundir::{Place, RunDir, SCHED_DUMP, SUMMARY, VERDICT};
use crate::run::suite::Told;
use crate::sys::tty;
use crate::verdict::bad_on::BadOn;
use crate::verdict::{Outcome, Verdict, judge_stored};
use std::io;
use std::path::{Path, PathBuf};

/// Runs, tells, and gives the exit code. `exec_ns` is CLOCK_MONOTONIC at exec.
pub fn cmd_run(args: &RunArgs, argv: Vec<String>, exec_ns: u64) -> Result<u8> {
    if args.host {
        return on_this_machine(args, argv, exec_ns);
    }
    carry_out(args, &job(args, argv, exec_ns)?).map(Outcome::exit_code)
}

/// Runs a job, tells of it as the arguments say, and gives its outcome.
pub fn carry_out(args: &RunArgs, job: &Job) -> Result<Outcome> {
    // Found out before the run, not after it.
    let mut json_file = ResultFile::of(args.json.as_ref())?;
    let mut screen = Screen::default();
    let run = job::run(job, &mut |event| show(&mut screen, args, event))?;
    screen.finish();
    let verdict = counted(args.bad_on.as_ref(), run.record(), judge_stored(run.record()));
    tell(args, run, &verdict, json_file.as_mut())
}

/// The verdict where only some failures count.
pub fn counted(bad_on: Option<&BadOn>, record: &Record, verdict: Verdict) -> Verdict {
    match bad_on {
        Some(bad_on) => bad_on.apply(record, verdict),
        None => verdict,
    }
}

/// The same without a VM.
fn on_this_machine(args: &RunArgs, argv: Vec<String>, exec_ns: u64) -> Result<u8> {
    let guest = GuestArgs { topology: host::topology()?, ..args.guest.clone() };
    let (mut plan, _) = plan::make(&guest).map_err(|error| match error.kind() {
        Kind::CannotJudge => error.hint("a machine has the shape it has; without --host, --topo gives a guest another"),
        _ => error,
    })?;
    plan.limits = args.limits;
    let job = HostJob { plan, run_place: place(args.run_dir.as_deref()), argv, exec_ns };
    let mut json_file = ResultFile::of(args.json.as_ref())?;
    let mut screen = Screen::default();
    let run = host::run(&job, &mut |event| show(&mut screen, args, event))?;
    screen.finish();
    let verdict = counted(args.bad_on.as_ref(), run.record(), judge_stored(run.record()));
    tell(args, run, &verdict, json_file.as_mut()).map(Outcome::exit_code)
}

/// Where unpacked kernels are kept; none where there is no home to keep them in.
fn kernel_cache() -> Option<PathBuf> {
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = directory("XDG_CACHE_HOME").or_else(|| directory("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join(crate::run::KERNEL_CACHE))
}

/// The job that a command line describes.
pub fn job(args: &RunArgs, argv: Vec<String>, exec_ns: u64) -> Result<Job> {
    let (mut plan, sched_program) = plan::make(&args.guest)?;
    plan.limits = args.limits;
    plan.numa = machine::numa(&plan.topology, &args.node_memory, args.distance.as_ref())?;
    let modules = plan::add_disk(&mut plan, &args.guest, Some(&args.kernel))?;
    let given = args.guest.include.iter().map(|include| {
        let guest = include.guest.as_ref().unwrap_or(&include.host);
        (include.host.clone(), guest.display().to_string())
    });
    let includes = given.chain(plan::includes(&plan)?).collect();
    Ok(Job {
        kernel: args.kernel.clone(),
        kernel_config: args.guest.kernel_config.clone(),
        sched_program,
        includes,
        modules,
        disk: args.guest.disk.clone(),
        plan,
        accel: args.accel,
        memory_bytes: match args.memory {
            Memory::Auto => None,
            Memory::Bytes(bytes) => Some(bytes),
        },
        cmdline: args.cmdline.clone(),
        force_serial: args.channel == ChannelChoice::Serial,
        verbose_kernel: args.dmesg,
        timeout_ns: args.timeout_ns,
        run_place: place(args.run_dir.as_deref()),
        argv,
        perf: args.perf,
        kernel_cache: kernel_cache(),
        exec_ns,
    })
}

/// Where run directories go: the one that was named, or a fresh one among the kept.
pub fn place(named: Option<&Path>) -> Place {
    if let Some(named) = named {
        return Place::Named(named.to_owned());
    }
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = directory("XDG_STATE_HOME").or_else(|| directory("HOME").map(|home| home.join(".local/state")));
    // Without a home, as in some CI jobs, the temporary directory does.
    Place::FreshIn(state.unwrap_or_else(std::env::temp_dir).join("ktstr/runs"))
}

fn show(screen: &mut Screen, args: &RunArgs, event: Event) {
    match event {
        Event::Note(text) if !args.quiet => screen.write(format!("ktstr: {}\n", out::visible_lines(&text)).as_bytes()),
        Event::Console(bytes) if args.dmesg => screen.write(&bytes),
        Event::SchedulerOutput(text) if args.dmesg => screen.write(text.as_bytes()),
        _ => {}
    }
}

/// Whether the summary is coloured; it goes to standard error where JSON goes to standard output.
pub(super) fn wants_color(choice: ColorChoice, json_to_stdout: bool) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            let terminal =
                if json_to_stdout { tty::is_terminal(&io::stderr()) } else { tty::is_terminal(&io::stdout()) };
            terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

/// Prints, stores, and keeps or removes the run directory; only then an error counts, and never one of the storing alone.
fn tell(args: &RunArgs, run: RunDir, verdict: &Verdict, json_file: Option<&mut ResultFile>) -> Result<Outcome> {
    let to_stdout = args.json == Some(JsonTarget::Stdout);
    let record = run.record();
    let style = Style { color: wants_color(args.color, to_stdout) };
    let mut text =
        if args.quiet { report::verdict_line(verdict, style) + "\n" } else { report::summary(record, verdict, style) };
    if args.timings {
        text.push_str(&format!("\n{}", report::timings(record)));
    }
    let json = report::result_json(record, verdict);
    // Among many runs a named directory is only a place.
    let named = args.run_dir.is_some() && args.cell_result.is_none();
    let kept = args.keep || named || !matches!(verdict.outcome, Outcome::Pass | Outcome::Interrupted);
    let stored = store(&run, full_summary(record, verdict), &json);
    if kept && !args.quiet {
        text.push_str(&format!("run directory: {}\n", out::visible(&run.path().display().to_string())));
    }
    let told = match json_file {
        Some(file) => {
            // What cannot be stored is at least seen.
            let printed = out::print(&text);
            file.write(json.as_bytes()).and(printed)
        }
        None if to_stdout => {
            out::print_error(&text);
            out::print(&json)
        }
        None => out::print(&text),
    };
    let directory = kept.then(|| run.path().display().to_string());
    let handed = args.cell_result.map(|number| hand_over(number, record, verdict, directory, json));
    let settled = if kept { stored } else { run.remove() };
    if let Err(error) = settled {
        // The verdict stands; what is lost is its copy on disk.
        out::note(&format!("warning: {error}"));
    }
    told.and(handed.unwrap_or(Ok(()))).map(|()| verdict.outcome)
}

/// Tells the process that runs many.
fn hand_over(number: i32, record: &Record, verdict: &Verdict, directory: Option<String>, json: String) -> Result<()> {
    let told = Told {
        outcome: verdict.outcome.word().into(),
        exit_code: verdict.exit_code,
        headline: verdict.headline.clone(),
        directory,
        seed: record.plan.as_ref().map_or(0, |plan| plan.seed),
        summary: report::summary(record, verdict, Style { color: false }),
        json,
    };
    told.tell(number)
}

/// The summary as it is stored: all of it, without colour.
fn full_summary(record: &Record, verdict: &Verdict) -> String {
    format!("{}\n{}", report::summary(record, verdict, Style { color: false }), report::timings(record))
}

fn store(run: &RunDir, summary: String, json: &str) -> Result<()> {
    run.write(VERDICT, json)?;
    let record = run.record();
    if !record.sched_dump.is_empty() {
        run.write(SCHED_DUMP, &record.sched_dump)?;
    }
    run.write(SUMMARY, &summary)
}
