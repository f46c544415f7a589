//! A user's own scenarios as tests: one binary that is the driver on the host and PID 1 in the guest.
//!
//! Owns the list of cases and the role of the process; leaves a run to cli/ and run/, the guest to guest/.
//! Invariant: what `cargo test` and nextest expect of a test binary holds, whatever a case does.

mod args;
mod case;
mod output;
mod suite;
mod vm;

use crate::proto::limits::Assert;
use crate::scenario::{Coded, ScenarioFn};
use crate::sys::{signal, time};
use crate::{cli, guest};
use std::process::ExitCode;
pub use vm::{Vm, VmBuilder, VmResult};

/// One scenario in code, and how it is run.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub(crate) coded: Coded,
    pub(crate) args: &'static str,
    pub(crate) sched_assert: Assert,
    pub(crate) assert: Assert,
    pub(crate) ignored: Option<&'static str>,
}

impl Case {
    pub const fn new(name: &'static str, run: ScenarioFn) -> Self {
        let (sched_assert, assert) = (Assert::new(), Assert::new());
        Self { coded: Coded { name, run }, args: "", sched_assert, assert, ignored: None }
    }
    /// With these options.
    pub const fn with(mut self, options: Options) -> Self {
        self.args = options.args;
        self.sched_assert = options.sched_assert;
        self.assert = options.assert;
        self.ignored = options.ignored;
        self
    }
}

/// How a case is run, where it does not suit the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    args: &'static str,
    sched_assert: Assert,
    assert: Assert,
    ignored: Option<&'static str>,
}

impl Options {
    pub const fn new() -> Self {
        Self { args: "", sched_assert: Assert::new(), assert: Assert::new(), ignored: None }
    }
    /// Flags as on the command line of ktstr: `--sched builtin:fifo --topo 4 --duration 5s`.
    pub const fn args(mut self, args: &'static str) -> Self {
        self.args = args;
        self
    }
    /// What the scheduler under test is held to beyond the defaults, in whatever scenario: a constant for all of its cases.
    pub const fn sched_assert(mut self, assert: Assert) -> Self {
        self.sched_assert = assert;
        self
    }
    /// What this scenario is held to, whatever the scheduler is.
    pub const fn assert(mut self, assert: Assert) -> Self {
        self.assert = assert;
        self
    }
    /// Not run unless asked for, for this reason.
    pub const fn ignored(mut self, why: &'static str) -> Self {
        self.ignored = Some(why);
        self
    }
}

/// The `main` of a test binary. `ktstr::main!` calls it.
pub fn main(cases: &[Case]) -> ExitCode {
    let exec_ns = time::monotonic_ns();
    if let Err(error) = signal::ignore(&[libc::SIGXFSZ]) {
        cli::out::print_error(&format!("ktstr: warning: cannot ignore SIGXFSZ: {error}\n"));
    }
    if guest::is_our_role() {
        let codes: Vec<Coded> = cases.iter().map(|case| case.coded).collect();
        guest::init::main(&codes);
    }
    let words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let first = words.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    if first == case::COMMAND {
        return ExitCode::from(case::main(cases, &words[2..], exec_ns));
    }
    // The roles of ktstr's own binary: one VM, a built-in scheduler.
    if first.starts_with("__") {
        return ExitCode::from(cli::main(words, exec_ns));
    }
    ExitCode::from(suite::main(cases, &words[1..]))
}

/// Makes the `main` of a test target with `harness = false` from scenarios in code.
///
/// ```no_run
/// use ktstr::prelude::*;
///
/// fn two_groups_share(ctx: &Ctx) -> Result<AssertResult> {
///     let (groups, _cgroups) = setup_cgroups(ctx, 2, &dfl_wl(ctx))?;
///     ctx.hold(ctx.duration)?;
///     collect_all(groups, &ctx.assert)
/// }
///
/// ktstr::main! {
///     two_groups_share,
///     two_groups_share as "under_fifo" => Options::new().args("--sched builtin:fifo"),
/// }
/// ```
#[macro_export]
macro_rules! main {
    ($($run:ident $(as $name:literal)? $(=> $options:expr)?),+ $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::harness::main(&[
                $($crate::harness::Case::new($crate::main!(@name $run $($name)?), $run)$(.with($options))?),+
            ])
        }
    };
    (@name $run:ident) => { stringify!($run) };
    (@name $run:ident $name:literal) => { $name };
}
