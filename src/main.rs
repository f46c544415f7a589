//! Decides the role of this process, and turns the outcome into an exit code.
//!
//! Owns nothing else.
//! Invariant: the only place that exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    let exec_ns = ktstr::sys::time::monotonic_ns();
    if ktstr::guest::is_our_role() {
        ktstr::guest::init::main();
    }
    ExitCode::from(ktstr::cli::main(std::env::args_os().collect(), exec_ns))
}
