//! `ktstr help`, `--help` and `--version`.
//!
//! Owns the version line; leaves help texts to `help`.
//! Invariant: all of it goes to standard output, because it was asked for.

use super::args::HelpOn;
use super::{help, out};
use crate::error::Result;

/// Prints the help that was asked for.
pub fn cmd_help(on: &HelpOn) -> Result<()> {
    out::print(&help::render(on))
}

/// Prints version, build and target. `build` is the build id that the plan carries too.
pub fn cmd_version(build: &str) -> Result<()> {
    out::print(&version(build))
}

/// `ktstr 0.1.0 (build 1a2b3c4, x86_64-linux-musl)`.
fn version(build: &str) -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("ktstr {} (build {build}, {}-linux-{libc})\n", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_names_build_and_target() {
        let text = version("1a2b3c4");
        assert!(text.starts_with(concat!("ktstr ", env!("CARGO_PKG_VERSION"), " (build 1a2b3c4, ")), "{text}");
        assert!(text.contains(std::env::consts::ARCH));
    }
}
