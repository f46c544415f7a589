//! `ktstr run`: one run, from the command line to the exit code.
//!
//! Owns what is shown while it runs and afterwards, and what becomes of the run directory; leaves the run to run/.
//! Invariant: the exit code is the verdict's, unless the verdict could not be told.

use super::args::{ChannelChoice, ColorChoice, JsonTarget, Memory, RunArgs};
use super::{machine, out, plan};
use crate::error::{Context, Error, Kind, Result};
use crate::log::Event;
use crate::proto::record::Record;
use crate::report::{self, Style};
use crate::run::job::{self, Job};
use crate::run::rundir::{Place, RunDir, SUMMARY, VERDICT};
use crate::sys::{poll, tty};
use crate::verdict::{Outcome, Verdict, judge_stored};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// A pipe that is ready takes this much at once (pipe(7)).
const PIPE_BUF: usize = 4096;

/// Runs, tells, and gives the exit code. `exec_ns` is CLOCK_MONOTONIC at exec.
pub fn cmd_run(args: &RunArgs, argv: Vec<String>, exec_ns: u64) -> Result<u8> {
    let (mut plan, sched_program) = plan::make(&args.guest)?;
    plan.limits = args.limits;
    plan.numa = machine::numa(&plan.topology, &args.node_memory, args.distance.as_ref())?;
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
        accel: args.accel,
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
    // Found out before the run, not after it.
    let mut json_file = match &args.json {
        Some(JsonTarget::File(path)) => {
            Some(File::create(path).context(|| format!("create {} for the result", path.display())).map_err(usage)?)
        }
        _ => None,
    };
    let mut screen = Screen { unseen_bytes: 0 };
    let run = job::run(&job, &mut |event| screen.show(args, event))?;
    screen.finish();
    let verdict = judge_stored(run.record());
    tell(args, run, &verdict, json_file.as_mut())
}

fn usage(error: Error) -> Error {
    error.with_kind(Kind::Usage)
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
struct Screen {
    /// Bytes that were not shown because nobody took them.
    unseen_bytes: usize,
}

impl Screen {
    fn show(&mut self, args: &RunArgs, event: Event) {
        match event {
            Event::Note(text) if !args.quiet => self.write(format!("ktstr: {text}\n").as_bytes()),
            Event::Console(bytes) if args.dmesg => self.write(&bytes),
            Event::SchedulerOutput(text) if args.dmesg => self.write(text.as_bytes()),
            _ => {}
        }
    }

    /// Writes only what standard error takes at once: the run's deadlines must not depend on somebody watching it.
    fn write(&mut self, bytes: &[u8]) {
        let err = io::stderr();
        for piece in bytes.chunks(PIPE_BUF) {
            let ready = poll::writable(&[err.as_fd()], 0).is_ok_and(|ready| ready == [true]);
            if !ready || err.lock().write_all(piece).is_err() {
                self.unseen_bytes += piece.len();
            }
        }
    }

    fn finish(&self) {
        if self.unseen_bytes > 0 {
            out::print_error(&format!(
                "ktstr: {} bytes of output were not shown: nobody took them\n",
                self.unseen_bytes
            ));
        }
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
fn tell(args: &RunArgs, run: RunDir, verdict: &Verdict, json_file: Option<&mut File>) -> Result<u8> {
    let to_stdout = args.json == Some(JsonTarget::Stdout);
    let record = run.record();
    let style = Style { color: wants_color(args.color, to_stdout) };
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
    let told = match json_file {
        Some(file) => {
            file.write_all(json.as_bytes()).context(|| "write the result's JSON").and_then(|()| out::print(&text))
        }
        None if to_stdout => {
            out::print_error(&text);
            out::print(&json)
        }
        None => out::print(&text),
    };
    let settled = if kept { stored } else { run.remove() };
    if let Err(error) = settled {
        // The verdict stands; what is lost is its copy on disk.
        out::print_error(&format!("ktstr: warning: {error}\n"));
    }
    told.map(|()| verdict.exit_code)
}

/// The summary as it is stored: all of it, without colour.
fn full_summary(record: &Record, verdict: &Verdict) -> String {
    format!("{}\n{}", report::summary(record, verdict, Style { color: false }), report::timings(record))
}

fn store(run: &RunDir, summary: String, json: &str) -> Result<()> {
    run.write(VERDICT, json)?;
    run.write(SUMMARY, &summary)
}
