//! `ktstr completions SHELL`.
//!
//! Owns nothing but the printing; leaves the scripts to `completions`.
//! Invariant: standard output holds the script and nothing else.

use super::args::Shell;
use super::{completions, out};
use crate::error::Result;

/// Prints the script for one shell.
pub fn cmd_completions(shell: Shell) -> Result<()> {
    out::print(&completions::script(shell))
}
