//! From `--matrix`, `--repeat` and their like to the list of runs.
//!
//! Owns the syntax of an axis and the product of axes; leaves the meaning of each single run to `describe`.
//! Invariant: every run of the product has passed the same checks as a run that was typed; does no I/O.

use super::args::{Axis, JsonTarget, Row, SuiteArgs};
use super::describe;
use super::flags::{self, Arity, Cmd, Flag, Group};
use super::parse::Given;
use crate::error::{Error, Result};
use crate::units;
use crate::verdict::many::Rule;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Runs of one command at most: beyond, a comma or a range is not what was meant.
const MOST_RUNS: u64 = 10_000;
/// Steps of a bisection over about 1000 commits, for the chance of a wrong step where nobody says how many there are.
const USUAL_STEPS: u32 = 10;
/// The value that stands for the absence of a flag.
const NONE: &str = "none";

/// Whether any flag asks for more than one plain run, or for a form of result that only many runs have.
pub(super) fn is_asked(given: &Given) -> bool {
    given.flags.iter().any(|(flag, _)| flag.group == Group::Many)
}

/// All runs.
pub(super) fn suite(given: &Given) -> Result<SuiteArgs> {
    suite_of(given, axes(given)?, 1)
}

/// Runs of each end of a bisection where nobody says how many: with them a fault in two of three runs hides in 4 %.
const USUAL_END_RUNS: u32 = 3;

/// The runs of the two ends of a bisection, the good one first.
pub(super) fn ends(given: &Given) -> Result<SuiteArgs> {
    let name = describe::chosen(given, "vary")?;
    let flag = axis_flag(name)?;
    if given.has(flag.long) {
        return Err(Error::usage(format!("{} is given, and GOOD and BAD are its values too", flag.dashed()))
            .hint("--vary says what GOOD and BAD are"));
    }
    let word = |word: &Option<OsString>| describe::utf8(name, word.as_deref().unwrap_or_default());
    let values = vec![word(&given.operand)?, word(&given.second)?];
    if values[0] == values[1] {
        return Err(Error::usage(format!("GOOD and BAD are the same: '{}'", values[0])));
    }
    suite_of(given, vec![Axis { name: flag.long, values }], USUAL_END_RUNS)
}

fn suite_of(given: &Given, axes: Vec<Axis>, usual_repeat: u32) -> Result<SuiteArgs> {
    for switch in ["dmesg", "cell-result"] {
        if given.has(switch) {
            return Err(Error::usage(format!("--{switch} is for one run, not for many"))
                .hint("each run that is kept has its console.log"));
        }
    }
    if given.has("host") {
        return Err(Error::usage("--host is for one run, not for many, and has no form of result but --json")
            .hint("a loop of the shell repeats it"));
    }
    let repeat = repeat(given)?.unwrap_or(usual_repeat);
    let combinations = axes.iter().fold(1u64, |product, axis| product.saturating_mul(axis.values.len() as u64));
    let runs = combinations.saturating_mul(u64::from(repeat));
    if runs > MOST_RUNS {
        return Err(Error::usage(format!("these are {runs} runs, more than the {MOST_RUNS} that one command does")));
    }
    let rows = (0..combinations).map(|number| row(given, &axes, number)).collect::<Result<Vec<_>>>()?;
    let path = |long: &str| given.one(long).map(Into::into);
    if [given.one("json"), given.one("ktap")] == [Some(OsStr::new("-")); 2] {
        return Err(Error::usage("--json - and --ktap - both want standard output"));
    }
    Ok(SuiteArgs {
        rows,
        axes,
        repeat,
        rule: Rule { pass_ratio: ratio(given, "pass-ratio")?.unwrap_or(1.0), allow_skip: given.has("allow-skip") },
        stop_on_first: given.has("stop-on-first") || given.has("until-fail"),
        jobs: given.one("jobs").map(|value| describe::count("jobs", value)).transpose()?,
        flake_rate: ratio(given, "flake-rate")?,
        steps: given.one("steps").map_or(Ok(USUAL_STEPS), |value| describe::count("steps", value))?,
        json: describe::json(given),
        junit: path("junit"),
        ktap: given.one("ktap").map(target),
        run_dir: path("run-dir"),
        keep: given.has("keep"),
        quiet: given.has("quiet"),
        color: describe::color(given)?,
    })
}

fn target(value: &OsStr) -> JsonTarget {
    if value == "-" { JsonTarget::Stdout } else { JsonTarget::File(value.into()) }
}

fn repeat(given: &Given) -> Result<Option<u32>> {
    match (given.one("repeat"), given.one("until-fail")) {
        (Some(_), Some(_)) => Err(Error::usage("--repeat and --until-fail contradict each other")
            .hint("--until-fail N is --repeat N --stop-on-first")),
        (Some(value), None) => describe::count("repeat", value).map(Some),
        (None, Some(value)) => describe::count("until-fail", value).map(Some),
        (None, None) => Ok(None),
    }
}

/// A share: `0.8` or `80%`.
fn ratio(given: &Given, long: &str) -> Result<Option<f64>> {
    let Some(value) = given.one(long) else { return Ok(None) };
    let text = describe::utf8(long, value)?;
    let number = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    match number {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Some(ratio)),
        _ => Err(describe::bad(long, format!("'{text}' is no share between 0 and 1, or 0% and 100%"))),
    }
}

/// Whether an axis may be made of a flag.
fn may_vary(flag: &Flag) -> bool {
    let group = matches!(flag.group, Group::Subject | Group::Load | Group::Machine);
    group && !flag.hidden && matches!(flag.arity, Arity::Value(_))
}

fn axes(given: &Given) -> Result<Vec<Axis>> {
    let mut axes: Vec<Axis> = Vec::new();
    for value in given.all("matrix") {
        let text = describe::utf8("matrix", value)?;
        let Some((name, list)) = text.split_once('=') else {
            return Err(describe::bad("matrix", format!("'{text}' is no FLAG=VALUE,VALUE"))
                .hint("such as --matrix topo=1,2,4 --matrix sched=none,builtin:fifo"));
        };
        let flag = axis_flag(name)?;
        if !flag.repeat && given.has(flag.long) {
            return Err(Error::usage(format!("{} is given, and --matrix {name}= too", flag.dashed())));
        }
        let mut values = Vec::new();
        for value in split(list).map_err(|why| describe::bad("matrix", format!("{name}: {why}")))? {
            values.extend(range(&value)?.unwrap_or_else(|| vec![value]));
        }
        let axis = match axes.iter().position(|axis| axis.name == flag.long) {
            Some(at) => &mut axes[at],
            None => {
                axes.push(Axis { name: flag.long, values: Vec::new() });
                let last = axes.len() - 1;
                &mut axes[last]
            }
        };
        for value in values {
            if axis.values.contains(&value) {
                return Err(describe::bad("matrix", format!("{name}: '{value}' stands there twice")));
            }
            axis.values.push(value);
        }
    }
    Ok(axes)
}

fn axis_flag(name: &str) -> Result<&'static Flag> {
    // What people call the lists is understood as well as the flags' own names.
    let singular = name.strip_suffix('s').unwrap_or(name);
    let find = |name: &str| flags::long(Cmd::Run, name).filter(|flag| may_vary(flag));
    if let Some(flag) = find(name).or_else(|| find(singular)) {
        return Ok(flag);
    }
    let known = || flags::flags_of(Cmd::Run).filter(|flag| may_vary(flag)).map(|flag| flag.long);
    let error = describe::bad("matrix", format!("'{name}' is no flag that a matrix can vary"));
    Err(match units::nearest(name, known()) {
        Some(near) => error.hint(format!("did you mean '{near}'?")),
        None => error.hint(format!("it can vary {}", known().collect::<Vec<_>>().join(", "))),
    })
}

/// Splits at commas outside of brackets; at semicolons instead where there is one.
fn split(list: &str) -> std::result::Result<Vec<String>, String> {
    let parts = |separator: char| {
        let (mut parts, mut depth) = (vec![String::new()], 0u32);
        for c in list.chars() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            let last = parts.len() - 1;
            if c == separator && depth == 0 { parts.push(String::new()) } else { parts[last].push(c) }
        }
        parts
    };
    let mut values = parts(';');
    if values.len() == 1 {
        values = parts(',');
    } else if values.last().is_some_and(String::is_empty) {
        // `a,b;` is one value that has a comma.
        values.pop();
    }
    let values: Vec<String> = values.iter().map(|value| value.trim().to_owned()).collect();
    match values.iter().any(String::is_empty) {
        true => Err("a value is empty".into()),
        false => Ok(values),
    }
}

/// `3..5` is 3, 4, 5.
fn range(value: &str) -> Result<Option<Vec<String>>> {
    let Some((first, last)) = value.split_once("..") else { return Ok(None) };
    let (Ok(first), Ok(last)) = (first.parse::<u64>(), last.parse::<u64>()) else { return Ok(None) };
    if last < first || last - first >= MOST_RUNS {
        return Err(describe::bad("matrix", format!("the range '{value}' is empty or too long")));
    }
    Ok(Some((first..=last).map(|number| number.to_string()).collect()))
}

/// The combination of this number; the last axis turns fastest.
fn row(given: &Given, axes: &[Axis], number: u64) -> Result<Row> {
    let mut rest = number;
    let mut chosen: Vec<(&Axis, &str)> = Vec::new();
    for axis in axes.iter().rev() {
        let count = axis.values.len() as u64;
        chosen.push((axis, axis.values[(rest % count) as usize].as_str()));
        rest /= count;
    }
    chosen.reverse();
    let values: Vec<String> = chosen.iter().map(|(axis, value)| label(axis, value)).collect();
    let name =
        axes.iter().zip(&values).map(|(axis, value)| format!("{}={value}", axis.name)).collect::<Vec<_>>().join(" ");
    single(given, &chosen)
        .map(|(run, words)| Row { name: name.clone(), values, words, run })
        .map_err(|error| if name.is_empty() { error } else { error.while_doing(&name) })
}

/// A value as it is shown: of paths without the directories that all of them begin with.
fn label(axis: &Axis, value: &str) -> String {
    let Some(first) = axis.values.first().filter(|_| axis.values.len() > 1) else { return value.to_owned() };
    let shared = |length: usize| axis.values.iter().all(|value| value.get(..length) == first.get(..length));
    let cut = first.match_indices('/').map(|(at, _)| at + 1).filter(|length| shared(*length)).max();
    value[cut.unwrap_or(0)..].to_owned()
}

/// The command line of one run: what was given, less what concerns the whole, with this combination.
fn single(given: &Given, chosen: &[(&Axis, &str)]) -> Result<(super::args::RunArgs, Vec<String>)> {
    const OF_THE_WHOLE: [&str; 5] = ["json", "run-dir", "quiet", "color", "vary"];
    let of_a_run = |flag: &Flag| flag.group != Group::Many && !OF_THE_WHOLE.contains(&flag.long);
    let mut one = Given {
        cmd: Cmd::Run,
        flags: given.flags.iter().filter(|(flag, _)| of_a_run(flag)).cloned().collect(),
        operand: None,
        second: None,
        rest: given.rest.clone(),
    };
    for (axis, value) in chosen {
        let Some(flag) = flags::long(Cmd::Run, axis.name) else { continue };
        if *value != NONE || flag.default == NONE {
            one.flags.push((flag, Some(OsString::from(value))));
        }
    }
    let run = describe::run(&one)?;
    let mut words = Vec::new();
    for (flag, value) in &one.flags {
        words.push(match value {
            Some(value) => format!("{}={}", flag.dashed(), describe::utf8(flag.long, value)?),
            None => flag.dashed(),
        });
    }
    if !one.rest.is_empty() {
        words.push("--".into());
        for word in &one.rest {
            words.push(utf8_rest(word)?);
        }
    }
    Ok((run, words))
}

fn utf8_rest(word: &OsStr) -> Result<String> {
    let text = std::str::from_utf8(word.as_bytes());
    text.map(str::to_owned).map_err(|_| Error::usage(format!("'{}' is not UTF-8", word.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Command;
    use crate::cli::parse::parse;

    fn parsed(words: &[&str]) -> Command {
        parse(words.iter().map(OsString::from)).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
    fn suite_of(words: &[&str]) -> SuiteArgs {
        match parsed(words) {
            Command::Suite(args) => *args,
            other => panic!("{words:?}: {other:?}"),
        }
    }
    fn ends_of(words: &[&str]) -> SuiteArgs {
        match parsed(&[&["bisect-check"], words].concat()) {
            Command::BisectCheck(args) => *args,
            other => panic!("{words:?}: {other:?}"),
        }
    }
    fn refused(words: &[&str]) -> String {
        parse(words.iter().map(OsString::from)).expect_err(&words.join(" ")).to_string()
    }

    #[test]
    fn axes_multiply_and_the_last_turns_fastest() {
        let suite = suite_of(&["--matrix", "kernel=a,b", "--matrix=topo=1,2", "-d", "3s", "--matrix", "seed=5..6"]);
        let names: Vec<&str> = suite.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(names[..3], ["kernel=a topo=1 seed=5", "kernel=a topo=1 seed=6", "kernel=a topo=2 seed=5"]);
        let last = &suite.rows[7];
        assert_eq!(last.values, ["b", "2", "6"]);
        assert_eq!(last.words, ["--duration=3s", "--kernel=b", "--topo=2", "--seed=6"]);
        assert_eq!((last.run.guest.topology.total_cpus(), last.run.guest.seed), (2, Some(6)));
    }

    #[test]
    fn words_of_a_run_parse_to_that_run() {
        let given = [
            "-k",
            "K",
            "-qs",
            "a",
            "--matrix",
            "work=spin,pipe",
            "--keep",
            "--json",
            "-",
            "--repeat=2",
            "--",
            "-x",
            "y",
        ];
        for row in suite_of(&given).rows {
            let words = ["run".to_owned()].into_iter().chain(row.words.iter().cloned()).map(OsString::from);
            assert_eq!(parse(words).unwrap(), Command::Run(Box::new(row.run.clone())), "{:?}", row.words);
            assert_eq!(row.run.guest.sched_args, ["-x", "y"]);
            assert!(row.run.json.is_none() && !row.run.quiet && row.run.keep);
        }
    }

    #[test]
    fn commas_in_brackets_and_semicolons_keep_values_whole() {
        for (list, values) in [
            ("a,b", &["a", "b"][..]),
            ("spin,bursty(burst=1ms,sleep=2ms)", &["spin", "bursty(burst=1ms,sleep=2ms)"]),
            ("a,b;c", &["a,b", "c"]),
            ("a,b;", &["a,b"]),
            (" a , b ", &["a", "b"]),
        ] {
            assert_eq!(split(list).unwrap(), values, "{list}");
        }
        assert!(split("a,,b").is_err() && split("").is_err());
    }

    #[test]
    fn none_leaves_the_flag_out_and_plurals_are_understood() {
        let suite = suite_of(&["-k", "K", "--matrix", "scheds=none,builtin:fifo"]);
        assert_eq!(suite.axes[0].name, "sched");
        assert_eq!(suite.rows[0].run.guest.sched, None);
        assert!(suite.rows[1].run.guest.sched.is_some());
    }

    #[test]
    fn paths_are_named_by_what_differs() {
        let suite = suite_of(&["--matrix", "kernel=/a/b/1/vmlinuz,/a/b/2/vmlinuz,/a/b/é"]);
        let names: Vec<&str> = suite.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["kernel=1/vmlinuz", "kernel=2/vmlinuz", "kernel=é"]);
        assert_eq!(suite.rows[1].words, ["--kernel=/a/b/2/vmlinuz"]);
        assert_eq!(suite_of(&["--matrix", "kernel=/a/b"]).rows[0].name, "kernel=/a/b");
    }

    #[test]
    fn scenarios_are_an_axis_and_come_after_those_that_every_run_plays() {
        let given = ["-k", "K", "--scenario", "every", "--matrix", "scenarios=b,cpuset/*", "--matrix", "topo=2,1"];
        let suite = suite_of(&[&given[..], &["--matrix", "scenario=/s/a.txt"]].concat());
        assert_eq!(suite.axes.iter().map(|axis| axis.name).collect::<Vec<_>>(), ["scenario", "topo"]);
        let names: Vec<&str> = suite.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "scenario=b topo=2",
                "scenario=b topo=1",
                "scenario=cpuset/* topo=2",
                "scenario=cpuset/* topo=1",
                "scenario=/s/a.txt topo=2",
                "scenario=/s/a.txt topo=1"
            ]
        );
        let scenarios = suite.rows.iter().map(|row| row.run.guest.scenarios.join(" "));
        let wanted = ["every b", "every b", "every cpuset/*", "every cpuset/*", "every /s/a.txt", "every /s/a.txt"];
        assert_eq!(scenarios.collect::<Vec<_>>(), wanted);
        assert_eq!(suite.rows[2].words, ["--kernel=K", "--scenario=every", "--scenario=cpuset/*", "--topo=2"]);
        // Without a scenario a run has the load of the other flags.
        let suite = suite_of(&["-k", "K", "--matrix", "scenario=none,b"]);
        let scenarios = suite.rows.iter().map(|row| row.run.guest.scenarios.as_slice());
        assert_eq!(scenarios.collect::<Vec<_>>(), [&[][..], &["b".to_owned()]]);
    }

    #[test]
    fn same_axis_given_twice_grows() {
        let suite = suite_of(&["-k", "K", "--matrix", "topo=1", "--matrix", "topo=2"]);
        assert_eq!(suite.axes.len(), 1);
        assert_eq!(suite.rows.len(), 2);
    }

    #[test]
    fn wrong_axes_name_the_nearest_right_one() {
        for (words, message) in [
            (&["--matrix", "tpoo=1"][..], "'tpoo' is no flag that a matrix can vary (did you mean 'topo'?)"),
            (&["--matrix", "json=a"], "'json' is no flag that a matrix can vary"),
            (&["--matrix", "matrix=a"], "'matrix' is no flag that a matrix can vary"),
            (&["--matrix", "topo"], "'topo' is no FLAG=VALUE,VALUE"),
            (&["--matrix", "topo=1,1"], "'1' stands there twice"),
            (&["--matrix", "topo=1,,2"], "a value is empty"),
            (&["--matrix", "topo=1,none-such"], "topo=none-such: --topo:"),
            (&["--matrix", "topo=1", "--topo", "2"], "--topo is given, and --matrix topo= too"),
            (&["--matrix", "seed=5..4"], "empty or too long"),
            (&["--matrix", "scenraio=a"], "(did you mean 'scenario'?)"),
            (&["--matrix", "scenario=a,b", "--matrix", "scenario=a"], "scenario: 'a' stands there twice"),
            (&["--matrix", "scenario=a,"], "scenario: a value is empty"),
            (&["--matrix", "scenario=a", "--cgroups", "2"], "scenario=a: --cgroups is for a run without --scenario"),
            (&["--matrix", "seed=1..5000", "--repeat", "3"], "these are 15000 runs"),
            (&["--repeat", "0"], "--repeat: it must be at least 1"),
            (&["--repeat", "2", "--until-fail", "3"], "contradict each other"),
            (&["--repeat", "2", "--dmesg"], "--dmesg is for one run"),
            (&["--host", "--ktap", "x"], "--host is for one run"),
            (&["--repeat", "2", "--pass-ratio", "1.5"], "'1.5' is no share"),
            (&["--repeat", "2", "--flake-rate", "x"], "--flake-rate: 'x' is no share"),
            (&["--json", "-", "--ktap", "-"], "both want standard output"),
            (&["--jobs", "none"], "--jobs: 'none' is not a whole number"),
        ] {
            let error = refused(&[&["--kernel", "K"], words].concat());
            assert!(error.contains(message), "{words:?}: {error}");
        }
        assert!(refused(&["--matrix", "topo=1"]).contains("no kernel is given"));
    }

    #[test]
    fn every_flag_of_many_runs_changes_what_is_parsed() {
        let plain = || parsed(&["--kernel", "K", "--matrix", "topo=1"]);
        for flag in flags::flags_of(Cmd::Run).filter(|flag| flag.group == Group::Many) {
            let value = match (flag.arity, flag.long) {
                (Arity::Switch, _) => String::new(),
                (_, "matrix") => "=work=spin,pipe".into(),
                (_, "pass-ratio" | "flake-rate") => "=50%".into(),
                (_, "repeat" | "until-fail" | "jobs" | "steps") => "=3".into(),
                _ => "=x".into(),
            };
            let changed = parsed(&["--kernel", "K", "--matrix", "topo=1", &format!("{}{value}", flag.dashed())]);
            assert_ne!(plain(), changed, "{} is read by nobody", flag.dashed());
        }
        for words in [&["--json=-"][..], &["--run-dir=x"], &["--quiet"], &["--color=always"], &["--keep"]] {
            assert_ne!(plain(), parsed(&[&["--kernel", "K", "--matrix", "topo=1"], words].concat()), "{words:?}");
        }
    }

    #[test]
    fn until_fail_is_repeat_and_stop() {
        let suite = suite_of(&["-k", "K", "--until-fail", "7"]);
        assert_eq!((suite.repeat, suite.stop_on_first, suite.rows.len()), (7, true, 1));
        assert_eq!(suite.rows[0].name, "");
        assert!((suite_of(&["-k", "K", "--repeat=2", "--pass-ratio=80%"]).rule.pass_ratio - 0.8).abs() < 1e-9);
    }

    #[test]
    fn ends_of_a_bisection_are_two_rows() {
        let ends = ends_of(&["/k/old", "/k/new", "-d", "3s", "--bad-on", "stall"]);
        assert_eq!((ends.rows.len(), ends.repeat, ends.axes[0].name), (2, 3, "kernel"));
        assert_eq!(ends.rows[1].words, ["--duration=3s", "--bad-on=stall", "--kernel=/k/new"]);
        let scheds = ends_of(&["a", "b", "--vary", "sched", "-k", "K", "-n", "7", "--pass-ratio", "90%", "--", "-x"]);
        assert_eq!((scheds.repeat, scheds.rows[0].run.guest.sched_args.as_slice()), (7, &["-x".to_owned()][..]));
        assert!((scheds.rule.pass_ratio - 0.9).abs() < 1e-9);
        for (words, message) in [
            (&["a"][..], "needs two words: GOOD BAD"),
            (&["a", "a"], "GOOD and BAD are the same"),
            (&["a", "b", "-k", "K"], "--kernel is given, and GOOD and BAD are its values too"),
            (&["a", "b", "--vary", "sched"], "no kernel is given"),
            (&["a", "b", "c"], "unexpected argument 'c'"),
            (&["a", "b", "--matrix", "topo=1"], "--matrix is no flag of 'ktstr bisect-check'"),
        ] {
            let error = refused(&[&["bisect-check"], words].concat());
            assert!(error.contains(message), "{words:?}: {error}");
        }
    }
}
