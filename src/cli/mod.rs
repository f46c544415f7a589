//! The command line.
//!
//! Owns flags, commands, help; leaves the work to run/ and image/.
//! Invariant: every flag is in one table, from which parsing, help, man page and completions are made.

pub mod args;
pub mod cmd_completions;
pub mod cmd_doctor;
pub mod cmd_help;
pub mod cmd_list;
pub mod completions;
mod describe;
pub mod flags;
pub mod help;
pub mod man;
pub mod out;
pub mod parse;
pub mod split;
pub mod topics;
