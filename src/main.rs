//! Decides the role of this process, and turns the outcome into an exit code.
//!
//! Owns nothing else.
//! Invariant: the only place that exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    ktstr::cli::fail_on_panic();
    let exec_ns = ktstr::sys::time::monotonic_ns();
    // A file limit is then an error of the write, with its words, and not the end of the process.
    if let Err(error) = ktstr::sys::signal::ignore(&[libc::SIGXFSZ]) {
        eprintln!("ktstr: warning: cannot ignore SIGXFSZ: {error}");
    }
    if ktstr::guest::is_our_role() {
        ktstr::guest::init::main(&[]);
    }
    ExitCode::from(ktstr::cli::main(std::env::args_os().collect(), exec_ns))
}
