//! The flags of the checks, made from the table of checks, and what they come to.
//!
//! Owns turning a row of that table into a flag and a flag into a limit; leaves names, units and help lines to verdict/table.
//! Invariant: every check with a limit can be set from the command line, under its own name.

use super::describe::{bad, chosen, utf8};
use super::flags::{Arity, Cmd, FLAG, Flag, Group};
use super::parse::Given;
use crate::error::{Error, Result};
use crate::proto::limits::{Assert, Base, CheckId, Layers};
use crate::units;
use crate::verdict::bad_on::{BadKind, BadOn, KINDS};
use crate::verdict::table::ROWS;

/// Rows that have no flag of their own: what a failed boot is, is said by --boot-failure.
const WITHOUT_FLAG: usize = 1;

/// One flag for each check that has one.
pub const FLAGS: [Flag; ROWS.len() - WITHOUT_FLAG] = {
    let mut flags = [FLAG; ROWS.len() - WITHOUT_FLAG];
    let (mut from, mut to) = (0, 0);
    while from < ROWS.len() {
        let row = &ROWS[from];
        if !row.flag.is_empty() {
            flags[to] = Flag {
                long: row.flag,
                arity: Arity::Value(row.value_name()),
                absent: row.default_text,
                group: Group::Checks,
                commands: &[Cmd::Run, Cmd::Judge],
                help: row.help,
                ..FLAG
            };
            to += 1;
        }
        from += 1;
    }
    flags
};

/// The layers that a command line asks for.
pub fn layers(given: &Given) -> Result<Layers> {
    let base = match chosen(given, "check")? {
        "none" => Base::None,
        "strict" => Base::Strict,
        _ => Base::Default,
    };
    let mut command_line = Assert::new();
    for row in ROWS.iter().filter(|row| !row.flag.is_empty()) {
        if let Some(value) = given.one(row.flag) {
            let limit = row.parse(&utf8(row.flag, value)?).map_err(|why| bad(row.flag, why))?;
            command_line = command_line.with(row.id, limit);
        }
    }
    let boot = bad_on(given)?.map(|kinds| kinds.contains(BadKind::Boot));
    let asked = given.has("boot-failure").then(|| chosen(given, "boot-failure")).transpose()?;
    match (boot, asked) {
        (Some(true), Some("skip")) | (Some(false), Some("fail")) => {
            return Err(Error::usage("--bad-on and --boot-failure contradict each other")
                .hint("a kernel that does not boot is bad where --bad-on names boot"));
        }
        (Some(true), None) => command_line = command_line.require(CheckId::BootFailure),
        _ => {}
    }
    if given.has("boot-failure") {
        command_line = match chosen(given, "boot-failure")? {
            "fail" => command_line.require(CheckId::BootFailure),
            _ => command_line.without(CheckId::BootFailure),
        };
    }
    Ok(Layers { base, command_line, ..Layers::default() })
}

/// The kinds of failure that count, where not all do.
pub fn bad_on(given: &Given) -> Result<Option<BadOn>> {
    let Some(value) = given.one("bad-on") else { return Ok(None) };
    let text = utf8("bad-on", value)?;
    let mut kinds = Vec::new();
    for word in text.split(',').map(str::trim) {
        let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == word) else {
            let known = || KINDS.iter().map(|(word, _)| *word);
            let error = bad("bad-on", format!("'{word}' is none of {}", known().collect::<Vec<_>>().join(", ")));
            return Err(match units::nearest(word, known()) {
                Some(near) => error.hint(format!("did you mean '{near}'?")),
                None => error,
            });
        };
        kinds.push(*kind);
    }
    Ok(Some(BadOn(kinds)))
}

#[cfg(test)]
mod tests {
    use super::super::args::{Command, JudgeArgs, RunArgs};
    use super::super::parse::parse;
    use super::*;
    use crate::units::NS_PER_MS;

    fn run(words: &str) -> Result<RunArgs> {
        let words = format!("-k x {words}");
        match parse(words.split_whitespace().map(Into::into))? {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    fn judge(words: &str) -> JudgeArgs {
        match parse(format!("judge {words}").split_whitespace().map(Into::into)).unwrap() {
            Command::Judge(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_check_can_be_set_from_the_command_line() {
        for row in ROWS.iter().filter(|row| !row.flag.is_empty()) {
            let value = match row.value_name() {
                "TIME" => "5ms",
                "on|off" => "on",
                _ => "5",
            };
            let limits = run(&format!("--{} {value}", row.flag)).unwrap().limits;
            assert_eq!(limits.command_line.set().collect::<Vec<_>>(), [(row.id, row.parse(value).unwrap())]);
            let limits = run(&format!("--{} off", row.flag)).unwrap().limits;
            assert_eq!(limits.command_line, Assert::new().without(row.id));
        }
        assert_eq!(FLAGS.iter().filter(|flag| flag.long.is_empty()).count(), 0);
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(run("").unwrap().limits, Layers::default());
        let limits = run("--check none --max-gap 500ms --boot-failure fail").unwrap().limits;
        let asked = Assert::new().max_gap_ns(500 * NS_PER_MS).require(CheckId::BootFailure);
        assert_eq!((limits.base, limits.command_line), (Base::None, asked));
        let bad = run("--bad-on stall,boot").unwrap();
        assert_eq!(bad.limits.command_line, Assert::new().require(CheckId::BootFailure));
        assert_eq!(bad.bad_on.unwrap().text(), "boot,stall");
        assert_eq!(run("--check strict").unwrap().limits.base, Base::Strict);
    }

    #[test]
    fn refusals_name_the_flag_and_what_would_be_right() {
        for (words, why) in [
            ("--max-gap 500", "--max-gap: '500' is not a duration: the unit is missing"),
            ("--spread wide", "--spread: 'wide' is no number such as 10%"),
            ("--isolation yes", "--isolation: 'yes' is neither on nor off"),
            ("--bad-on stal", "--bad-on: 'stal' is none of boot, panic, warn, stall, check (did you mean 'stall'?)"),
            ("--bad-on boot --boot-failure skip", "contradict each other"),
            ("--bad-on warn --boot-failure fail", "contradict each other"),
            ("--check all", "--check: 'all' is none of none, default, strict"),
        ] {
            let error = run(words).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn judge_takes_a_run_and_limits() {
        let args = judge("runs/1 --wake-p99 2ms");
        assert_eq!((args.run.to_str(), args.base), (Some("runs/1"), None));
        assert_eq!(args.limits, Assert::new().wake_p99_ns(2 * NS_PER_MS));
        assert_eq!(judge("runs/1 --check default").base, Some(Base::Default));
        assert!(parse(["judge"].map(Into::into)).unwrap_err().to_string().contains("RUN"));
    }
}
