//! `ktstr bisect-check GOOD BAD`: both ends of a bisection are run before it begins.
//!
//! Owns what is printed; leaves the runs to `cmd_suite`, and what they prove to report/.
//! Invariant: exit code 0 only where GOOD passed and BAD failed.

use super::args::SuiteArgs;
use super::cmd_run::wants_color;
use super::{cmd_suite, out};
use crate::error::Result;
use crate::report::{self, Style};

/// Runs both ends, tells, and gives the exit code.
pub fn cmd_bisect_check(args: &SuiteArgs, argv: Vec<String>, exec_ns: u64) -> Result<u8> {
    let (suite, directory) = cmd_suite::execute(args, &argv, exec_ns)?;
    let ends = report::ends(&suite);
    let plain = format!("{}\n{}", report::suite_summary(&suite, Style::default()), ends.text);
    let mut text = match args.quiet {
        true => String::new(),
        false => report::suite_summary(&suite, Style { color: wants_color(args.color, false) }) + "\n",
    };
    match cmd_suite::settle(args, &suite, directory, &plain) {
        Ok(Some(kept)) if !args.quiet => text.push_str(&format!("run directory: {}\n\n", kept.display())),
        Ok(_) => {}
        // What was proven stands; what is lost is its copy on disk.
        Err(error) => out::note(&format!("warning: {error}")),
    }
    text.push_str(&ends.text);
    out::print(&text).map(|()| ends.exit_code)
}
