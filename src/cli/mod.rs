//! The command line.
//!
//! Owns flags, commands, help; leaves the work to run/ and image/.
//! Invariant: every flag is in one table, from which parsing, help, man page and completions are made.

pub mod args;
pub mod cmd_bisect_check;
pub mod cmd_completions;
pub mod cmd_doctor;
pub mod cmd_help;
pub mod cmd_image;
pub mod cmd_judge;
pub mod cmd_list;
mod cmd_panic;
pub mod cmd_run;
pub mod cmd_runs;
pub mod cmd_scenario;
pub mod cmd_selftest;
pub mod cmd_suite;
pub mod completions;
mod describe;
mod disk;
mod distinct;
pub mod flags;
mod guards;
pub mod help;
mod limits;
mod machine;
pub mod man;
mod matrix;
pub mod out;
mod own_cgroups;
pub mod parse;
mod plan;
mod result_file;
mod scenarios;
mod screen;
mod selftest_scenarios;
pub mod split;
#[cfg(test)]
mod tests_flags;
mod topic_work;
pub mod topics;

use crate::error::{Error, Result};
use crate::proto::plan::BUILD;
use crate::scx::probe;
use crate::sys::process;
use crate::vmm;
use crate::workload;
use args::Command;
use cmd_list::Listed;
use std::ffi::OsString;

/// Carries out a command line; returns the exit code. `exec_ns` is CLOCK_MONOTONIC at exec.
pub fn main(arguments: Vec<OsString>, exec_ns: u64) -> u8 {
    let argv = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let done = parse::parse(arguments.into_iter().skip(1)).and_then(|command| carry_out(command, argv, exec_ns));
    done.unwrap_or_else(|error| {
        out::show_error(&error);
        error.kind().exit_code()
    })
}

/// From now on a panic is an error like others in its words and its exit code: 101, Rust's own, would mean a bad commit to
/// `git bisect run`. Roles of this binary that report panics elsewhere set their own hook over this one.
pub fn fail_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let error =
            Error::internal(info.to_string().replace('\n', " ")).hint("this is a fault of ktstr's: please report it");
        out::show_error(&error);
        process::exit_now(error.kind().exit_code().into())
    }));
}

fn carry_out(command: Command, argv: Vec<String>, exec_ns: u64) -> Result<u8> {
    distinct::check(&command)?;
    match command {
        Command::Run(args) => cmd_run::cmd_run(&args, argv, exec_ns),
        Command::Judge(args) => cmd_judge::cmd_judge(&args),
        Command::BisectCheck(args) => cmd_bisect_check::cmd_bisect_check(&args, argv, exec_ns),
        Command::Selftest(args) => cmd_selftest::cmd_selftest(&args),
        Command::Suite(args) => cmd_suite::cmd_suite(&args, argv, exec_ns),
        Command::Runs { prune_to_bytes } => cmd_runs::cmd_runs(prune_to_bytes).map(|()| 0),
        Command::Doctor { json } => cmd_doctor::cmd_doctor(json, &vmm::kvm::self_check),
        Command::Image(args) => cmd_image::cmd_image(&args).map(|()| 0),
        Command::List(what) => cmd_list::cmd_list(what, &works(), &schedulers(), &machine::listed()).map(|()| 0),
        Command::Completions(shell) => cmd_completions::cmd_completions(shell).map(|()| 0),
        Command::Check { file, topology, duration_ns } => cmd_scenario::cmd_check(&file, &topology, duration_ns),
        Command::Show { name } => cmd_scenario::cmd_show(&name),
        Command::Help(on) => cmd_help::cmd_help(&on).map(|()| 0),
        Command::Version => cmd_help::cmd_version(BUILD).map(|()| 0),
        Command::Vm { fd } => Ok(vmm::process_main(fd)),
        Command::Freeze => out::print(&format!("{}\n", vmm::freeze_check()?)).map(|()| 0),
        Command::Panic { worker } => cmd_panic::cmd_panic(worker),
        Command::Probe { name } => Ok(probe::main(&name)),
    }
}

fn works() -> Vec<Listed> {
    let listed = |info: &workload::TypeInfo| {
        let mut detail = info.name.to_owned();
        match info.default.parameters_text() {
            none if none.is_empty() => {}
            parameters => detail.push_str(&format!("({parameters})")),
        }
        if info.group != "1" {
            detail.push_str(&format!(", group of {}", info.group));
        }
        if !info.sample_kinds.is_empty() {
            let kinds: Vec<&str> = info.sample_kinds.iter().map(|kind| kind.name()).collect();
            detail.push_str(&format!(", samples {}", kinds.join(" and ")));
        }
        Listed { name: info.cli_name.into(), detail, text: info.description.into() }
    };
    workload::types().map(listed).collect()
}

fn schedulers() -> Vec<Listed> {
    let listed = |probe: &probe::Probe| Listed {
        name: format!("builtin:{}", probe.name),
        detail: String::new(),
        text: probe.about.into(),
    };
    probe::PROBES.iter().map(listed).collect()
}
