//! The command line.
//!
//! Owns flags, commands, help; leaves the work to run/ and image/.
//! Invariant: every flag is in one table, from which parsing and help are made.
