//! `ktstr run`: one run, from the command line to the exit code.
//!
//! Owns what is shown while it runs and afterwards, and what becomes of the run directory; leaves the run to run/.
//! Invariant: the exit code is the verdict's, unless the verdict could not be told.

use super::args::{self, ChannelChoice, ColorChoice, JsonTarget, Memory, RunArgs};
use super::{out, plan};
use crate::error::{Context, Result};
use crate::log::Event;
use crate::proto::record::Record;
use crate::report::{self, Style};
use crate::run::accel::AccelChoice;
use crate::run::job::{self, Job};
use crate::run::rundir::{Place, RunDir, SUMMARY, VERDICT};
use crate::sys::tty;
use crate::verdict::{Outcome, Thresholds, Verdict, judge};
use std::io::{self, Write};
use std::path::PathBuf;

/// Runs, tells, and gives the exit code. `exec_ns` is CLOCK_MONOTONIC at exec.
pub fn cmd_run(args: &RunArgs, argv: Vec<String>, exec_ns: u64) -> Result<u8> {
    let (plan, sched_program) = plan::make(&args.guest)?;
    let includes = args.guest.include.iter().map(|include| {
        let guest = include.guest.as_ref().unwrap_or(&include.host);
        (include.host.clone(), guest.display().to_string())
    });
    let job = Job {
        kernel: args.kernel.clone(),
        kernel_config: args.guest.kernel_config.clone(),
        sched_program,
        includes: includes.collect(),
        plan,
        accel: match args.accel {
            args::AccelChoice::Auto => AccelChoice::Auto,
            args::AccelChoice::Kvm => AccelChoice::Kvm,
            args::AccelChoice::Qemu => AccelChoice::Qemu,
        },
        memory_bytes: match args.memory {
            Memory::Auto => None,
            Memory::Bytes(bytes) => Some(bytes),
        },
        cmdline: args.cmdline.clone(),
        force_serial: args.channel == ChannelChoice::Serial,
        verbose_kernel: args.dmesg,
        timeout_ns: args.timeout_ns,
        run_place: place(args)?,
        argv,
        exec_ns,
    };
    let run = job::run(&job, &mut |event| show(args, event))?;
    let thresholds =
        Thresholds { boot_failure_fails: args.boot_failure == args::BootFailure::Fail, ..Thresholds::default() };
    let verdict = judge(run.record(), &thresholds);
    tell(args, run, &verdict)
}

fn place(args: &RunArgs) -> Result<Place> {
    if let Some(named) = &args.run_dir {
        return Ok(Place::Named(named.clone()));
    }
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = directory("XDG_STATE_HOME").or_else(|| directory("HOME").map(|home| home.join(".local/state")));
    // Without a home, as in some CI jobs, the temporary directory does.
    Ok(Place::FreshIn(state.unwrap_or_else(std::env::temp_dir).join("ktstr/runs")))
}

/// What is shown while the run goes on. Standard output is for the verdict only.
fn show(args: &RunArgs, event: Event) {
    let mut err = io::stderr().lock();
    let written = match event {
        Event::Note(text) if !args.quiet => writeln!(err, "ktstr: {text}"),
        Event::Warning(text) => writeln!(err, "ktstr: warning: {text}"),
        Event::Console(bytes) if args.dmesg => err.write_all(&bytes),
        Event::SchedulerOutput(text) if args.dmesg => err.write_all(text.as_bytes()),
        _ => Ok(()),
    };
    // The run does not depend on somebody watching it.
    drop(written);
}

fn tell(args: &RunArgs, run: RunDir, verdict: &Verdict) -> Result<u8> {
    let to_stdout = args.json == Some(JsonTarget::Stdout);
    let color = match args.color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            let terminal = if to_stdout { tty::is_terminal(&io::stderr()) } else { tty::is_terminal(&io::stdout()) };
            terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    };
    let record = run.record();
    let style = Style { color };
    let mut text =
        if args.quiet { report::verdict_line(verdict, style) } else { report::summary(record, verdict, style) };
    if args.timings {
        text.push_str(&format!("\n{}", report::timings(record)));
    }
    let json = report::result_json(record, verdict);
    let kept = args.keep || args.run_dir.is_some() || !matches!(verdict.outcome, Outcome::Pass | Outcome::Interrupted);
    let stored = store(&run, full_summary(record, verdict), &json);
    if kept && !args.quiet {
        text.push_str(&format!("run directory: {}\n", run.path().display()));
    }
    match &args.json {
        Some(JsonTarget::Stdout) => {
            out::print(&json)?;
            out::print_error(&text);
        }
        Some(JsonTarget::File(path)) => {
            std::fs::write(path, &json).context(|| format!("write the result to {}", path.display()))?;
            out::print(&text)?;
        }
        None => out::print(&text)?,
    }
    if kept {
        stored?
    } else {
        run.remove()?
    }
    Ok(verdict.exit_code)
}

/// The summary as it is stored: all of it, without colour.
fn full_summary(record: &Record, verdict: &Verdict) -> String {
    format!("{}\n{}", report::summary(record, verdict, Style { color: false }), report::timings(record))
}

fn store(run: &RunDir, summary: String, json: &str) -> Result<()> {
    run.write(VERDICT, json)?;
    run.write(SUMMARY, &summary)
}
