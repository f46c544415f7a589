//! One case: from its options to a run, in a process of its own.
//!
//! Owns the words of that run and its exit code; leaves the run to cli/.
//! Invariant: the exit code tells a skip from every other outcome.

use super::Case;
use crate::cli::args::{Command, RunArgs};
use crate::cli::{cmd_run, out, parse, split};
use crate::error::{Error, Result};
use crate::proto::plan::Plan;
use crate::proto::scenario::ScenarioSpec;
use crate::verdict::Outcome;
use std::ffi::OsString;

/// The hidden first word.
pub const COMMAND: &str = "__case";
/// Exit code of a run that skipped: automake's, and free among ours.
pub const EXIT_SKIP: u8 = 77;
/// Where the kernel is named.
const KERNEL: &str = "KTSTR_KERNEL";
/// Where more flags stand.
const ARGS: &str = "KTSTR_ARGS";

/// Runs the case of this name.
pub fn main(cases: &[Case], words: &[OsString], exec_ns: u64) -> u8 {
    let name = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let done = cases.iter().find(|case| case.coded.name == name).map(|case| run(case, exec_ns));
    match done.unwrap_or_else(|| Err(Error::internal(format!("there is no case '{name}'")))) {
        Ok(Outcome::Skip) => EXIT_SKIP,
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            out::show_error(&error);
            error.kind().exit_code()
        }
    }
}

fn run(case: &Case, exec_ns: u64) -> Result<Outcome> {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let words = words(case, &text(KERNEL), &text(ARGS))?;
    let args = run_args(&words)?;
    let argv = std::iter::once(case.coded.name.to_owned()).chain(words).collect();
    let mut job = cmd_run::job(&args, argv, exec_ns)?;
    adopt(&mut job.plan, case);
    cmd_run::carry_out(&args, &job)
}

/// Makes the plan of a command line the case's.
fn adopt(plan: &mut Plan, case: &Case) {
    plan.scenarios = vec![ScenarioSpec {
        name: case.coded.name.into(),
        about: "a scenario in code".into(),
        code: true,
        ..ScenarioSpec::default()
    }];
    // The kernel's own scheduler has no limits of its own.
    if plan.sched.is_some() {
        plan.limits.scheduler = case.sched_assert;
    }
    plan.limits.scenario = case.assert;
}

fn run_args(words: &[String]) -> Result<RunArgs> {
    match parse::parse(words.iter().map(OsString::from))? {
        Command::Run(args) => Ok(*args),
        _ => Err(Error::usage(format!("'{}' is no single run", words.join(" ")))
            .hint("a case takes flags of 'ktstr run' for one VM")),
    }
}

/// The words of the run: the case's own, without those that the environment gives too, and the environment's.
fn words(case: &Case, kernel: &str, environment: &str) -> Result<Vec<String>> {
    let split =
        |what: &str, text: &str| split::words(text).map_err(|why| Error::usage(format!("{what}: {why}"))).map(groups);
    let own = split(case.coded.name, case.args)?;
    let mut given = split(ARGS, environment)?;
    if !kernel.is_empty() {
        given.push(vec!["--kernel".into(), kernel.into()]);
    }
    let named = |groups: &[Vec<String>], flag: &str| groups.iter().any(|group| flag_of(group) == flag);
    if !named(&own, "--kernel") && !named(&given, "--kernel") {
        let text = format!("no kernel is given for the case '{}'", case.coded.name);
        return Err(Error::usage(text).hint(format!("{KERNEL}=/path/to/bzImage cargo test")));
    }
    let kept = own.into_iter().filter(|group| !named(&given, flag_of(group)));
    Ok(std::iter::once("run".to_owned()).chain(kept.collect::<Vec<_>>().concat()).chain(given.concat()).collect())
}

/// Each flag with the words that belong to it.
fn groups(words: Vec<String>) -> Vec<Vec<String>> {
    let mut groups: Vec<Vec<String>> = Vec::new();
    for word in words {
        match groups.last_mut() {
            Some(group) if !word.starts_with('-') => group.push(word),
            _ => groups.push(vec![word]),
        }
    }
    groups
}

fn flag_of(group: &[String]) -> &str {
    let first = group.first().map(String::as_str).unwrap_or_default();
    first.split_once('=').map_or(first, |(flag, _)| flag)
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use crate::proto::asserted::AssertResult;
    use crate::proto::limits::{Assert, CheckId, Layers};
    use crate::verdict::fixture::{passing, passing_with_scheduler};
    use crate::verdict::table::in_force;

    fn case(args: &'static str) -> Case {
        Case::new("share", |_| Ok(AssertResult::pass())).with(Options::new().args(args))
    }

    #[test]
    fn environment_wins_over_the_case() {
        let case = case("--topo 4 --sched=builtin:fifo --keep");
        let all = words(&case, "/k", "--topo=2 --accel qemu").unwrap();
        assert_eq!(all.join(" "), "run --sched=builtin:fifo --keep --topo=2 --accel qemu --kernel /k");
        assert!(run_args(&all).is_ok());
    }

    #[test]
    fn limits_merge_from_the_scheduler_over_the_scenario_to_the_command_line() {
        let sched = Assert::new().max_gap_ns(1).max_run_delay_ns(1).spread_percent(1);
        let options = Options::new().sched_assert(sched).assert(Assert::new().max_run_delay_ns(2).spread_percent(2));
        let case = Case::new("share", |_| Ok(AssertResult::pass())).with(options);
        let command_line = Assert::new().spread_percent(3);
        let gap = |id: CheckId, limits: &Layers| in_force(limits).limit(id);
        let asked = |assert: Assert, id: CheckId| assert.limit(id);
        for record in [passing(), passing_with_scheduler()] {
            let mut plan = record.plan.unwrap();
            plan.limits.command_line = command_line;
            adopt(&mut plan, &case);
            assert!(plan.scenarios.len() == 1 && plan.scenarios[0].code);
            let of_sched = if plan.sched.is_some() { sched } else { in_force(&Layers::default()) };
            assert_eq!(gap(CheckId::MaxGap, &plan.limits), asked(of_sched, CheckId::MaxGap));
            assert_eq!(gap(CheckId::MaxRunDelay, &plan.limits), asked(case.assert, CheckId::MaxRunDelay));
            assert_eq!(gap(CheckId::Spread, &plan.limits), asked(command_line, CheckId::Spread));
        }
    }

    #[test]
    fn kernel_may_stand_anywhere_but_must_stand() {
        assert!(words(&case("--kernel /a"), "", "").is_ok());
        assert_eq!(words(&case("--kernel /a"), "/b", "").unwrap(), ["run", "--kernel", "/b"]);
        let error = words(&case(""), "", "").unwrap_err();
        assert!(error.to_string().contains("no kernel") && error.hint_text().unwrap().contains("KTSTR_KERNEL="));
        assert!(words(&case("'open"), "/k", "").is_err());
    }
}
