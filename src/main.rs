//! Decides the role of this process, and turns an error into an exit code.
//!
//! Owns nothing else.
//! Invariant: the only place that exits.

fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(ktstr::scx::probe::COMMAND) {
        return ktstr::scx::probe::main(&args.next().unwrap_or_default()).into();
    }
    std::process::ExitCode::SUCCESS
}
