//! `ktstr selftest`: plays the faults of the matrix and shows that each is named correctly.
//!
//! Owns what is shown, the temporary directory, and the exit code; leaves the faults and playing them to run/faults.
//! Invariant: exit code 0 means that every fault that was played was named as the matrix says, and that one was played; 125
//! that none was named wrongly, but the host disturbed some each time.

use super::args::{JsonTarget, SelftestArgs};
use super::describe::{self, bad, chosen};
use super::flags::{Arity, Cmd, Complete, FLAG, Flag, Group};
use super::parse::Given;
use super::result_file::ResultFile;
use super::{cmd_run, out, selftest_scenarios};
use crate::error::{Context, Error, Result};
use crate::report::Json;
use crate::run::faults::{self, Fault, Layer, Played, Setting, Sight};
use crate::run::rundir::Place;
use crate::sys::signal;
use crate::units::approx;
use crate::verdict::Outcome;
use std::fs;
use std::path::PathBuf;

/// Width of a fault's name: the longest in the matrix.
const NAME: usize = 22;

pub const FLAGS: [Flag; 6] = [
    Flag {
        long: "kernel",
        short: Some('k'),
        arity: Arity::Value("FILE"),
        complete: Complete::File,
        group: Group::Subject,
        commands: &[Cmd::Selftest],
        help: "the kernel to boot; it needs sched_ext",
        ..FLAG
    },
    Flag {
        long: "accel",
        arity: Arity::Value("NAME"),
        default: "auto",
        choices: &["auto", "kvm", "qemu"],
        group: Group::Machine,
        commands: &[Cmd::Selftest],
        help: "what runs the guests: KVM, QEMU's emulation, or KVM where it works and else QEMU",
        ..FLAG
    },
    Flag { long: "list", commands: &[Cmd::Selftest], help: "list the faults and play none", ..FLAG },
    Flag {
        long: "scenarios",
        commands: &[Cmd::Selftest],
        help: "play for each scenario of the catalogue a fault that breaks what it is about",
        ..FLAG
    },
    Flag { long: "short", commands: &[Cmd::Selftest], help: "only a few of them, of every kind", ..FLAG },
    Flag {
        long: "json",
        arity: Arity::Value("FILE|-"),
        complete: Complete::File,
        group: Group::Result,
        commands: &[Cmd::Selftest],
        help: "write the table as JSON; with - to standard output, and the table to standard error",
        ..FLAG
    },
];

/// What the flags say.
pub(super) fn arguments(given: &Given) -> Result<SelftestArgs> {
    let filter = given.operand.as_deref().map(|word| word.to_string_lossy().into_owned());
    let (list, kernel) = (given.has("list"), given.one("kernel").map(PathBuf::from));
    if !list && kernel.is_none() {
        return Err(Error::usage("no kernel is given").hint("ktstr selftest --kernel bzImage"));
    }
    let chosen_accel = chosen(given, "accel")?;
    let args = SelftestArgs {
        kernel: kernel.unwrap_or_default(),
        accel: chosen_accel,
        filter,
        list,
        short: given.has("short"),
        scenarios: given.has("scenarios"),
        json: describe::json(given),
    };
    let (none, whose, how) = match args.scenarios {
        true => (selftest_scenarios::selected(&args).is_empty(), "scenario", "ktstr selftest --scenarios --list"),
        false => (selected(&args).is_empty(), "fault", "ktstr selftest --list"),
    };
    if none {
        let name = args.filter.unwrap_or_default();
        return Err(bad("list", format!("no {whose}'s name has '{name}' in it")).hint(format!("'{how}' lists them")));
    }
    Ok(args)
}

fn selected(args: &SelftestArgs) -> Vec<Fault> {
    let named = |fault: &Fault| args.filter.as_ref().is_none_or(|word| fault.name.contains(word.as_str()));
    faults::faults().into_iter().filter(|fault| named(fault) && (fault.short || !args.short)).collect()
}

pub fn cmd_selftest(args: &SelftestArgs) -> Result<u8> {
    if args.scenarios {
        return selftest_scenarios::run(args);
    }
    let faults = selected(args);
    if args.list {
        return out::print(&listing(&faults)).map(|()| 0);
    }
    let mut json_file = ResultFile::of(args.json.as_ref())?;
    in_directory(args, |setting| {
        let played = play_all(args, &faults, setting)?;
        let count = |sight| played.iter().filter(|played| played.sight() == sight).count();
        let (right, disturbed, wrong) = (count(Sight::Right), count(Sight::Disturbed), count(Sight::Wrong));
        let mut text = format!("{} faults played, {right} named correctly, {wrong} not", played.len());
        if disturbed > 0 {
            text.push_str(&format!(", {disturbed} disturbed by the host each time"));
        }
        show(args, &format!("{text}\n"))?;
        match &mut json_file {
            Some(file) => file.write(json(&played, &faults).as_bytes())?,
            None if args.json.is_some() => out::print(&json(&played, &faults))?,
            None => {}
        }
        Ok(match (wrong, disturbed) {
            (0, 0) => Outcome::Pass,
            (0, _) => Outcome::Inconclusive,
            _ => Outcome::Fail,
        })
    })
}

/// Plays in a directory that goes afterwards, or stays where not all was right, as `play` says.
pub(super) fn in_directory(args: &SelftestArgs, play: impl FnOnce(&Setting) -> Result<Outcome>) -> Result<u8> {
    let Place::FreshIn(parent) = cmd_run::place(None) else {
        return Err(Error::internal("there is no place for runs"));
    };
    let dir = parent.join(format!("selftest-{}", crate::sys::process::id()));
    signal::note(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).context(|| "take signals")?;
    fs::create_dir_all(&dir).context(|| format!("make {}", dir.display()))?;
    let outcome = play(&Setting { kernel: args.kernel.clone(), accel: args.accel, dir: dir.clone() });
    match outcome {
        Ok(Outcome::Pass) | Err(_) => fs::remove_dir_all(&dir).context(|| format!("remove {}", dir.display()))?,
        Ok(_) => show(args, &format!("the runs are in {}\n", dir.display()))?,
    }
    outcome.map(Outcome::exit_code)
}

fn play_all(args: &SelftestArgs, faults: &[Fault], setting: &Setting) -> Result<Vec<Played>> {
    faults::prepare(&setting.dir)?;
    let (took, verdict, host) = ("took", "verdict", "host");
    show(args, &format!("       {:NAME$} {:12} {took:>8} {verdict:>8} {host:>8}\n", "fault", "outcome"))?;
    let mut played = Vec::new();
    for fault in faults {
        let one = faults::play(fault, setting)?;
        show(args, &line(fault, &one))?;
        played.push(one);
    }
    Ok(played)
}

/// As it happens: where standard output is for JSON, on standard error.
pub(super) fn show(args: &SelftestArgs, text: &str) -> Result<()> {
    if args.json == Some(JsonTarget::Stdout) {
        out::print_error(text);
        return Ok(());
    }
    out::print(text)
}

fn line(fault: &Fault, played: &Played) -> String {
    let mark = match played.sight() {
        Sight::Right => "ok   ",
        Sight::Disturbed => "noise",
        Sight::Wrong => "WRONG",
    };
    let (outcome, took) = (played.outcome.word(), approx(played.took_ns));
    let known = |ns: Option<u64>| ns.map_or_else(|| "-".into(), approx);
    let (told, host) = (known(played.to_verdict_ns), known(played.host_ns));
    let mut text =
        format!("{mark}  {:NAME$} {outcome:12} {took:>8} {told:>8} {host:>8}  {}\n", fault.name, played.headline);
    if played.plays > 1 {
        text.push_str(&format!("       played {} times\n", played.plays));
    }
    text.extend(played.disturbed.iter().map(|why| format!("       disturbed: {why}\n")));
    played.wrong.iter().for_each(|why| text.push_str(&format!("       {why}\n")));
    text
}

fn listing(faults: &[Fault]) -> String {
    let line = |fault: &Fault| {
        let layer = Layer::ALL.iter().find(|(layer, ..)| *layer == fault.layer).map_or("", |(_, word, _)| word);
        let (outcome, code) = (fault.outcome.word(), fault.outcome.exit_code());
        let by_time = if fault.by_time { " (INCONCLUSIVE under an emulator)" } else { "" };
        format!("{:NAME$} {layer:10} {outcome:12} {code:>3}  {}{by_time}\n", fault.name, fault.what)
    };
    faults.iter().map(line).collect()
}

fn json(played: &[Played], faults: &[Fault]) -> String {
    let row = |(played, fault): (&Played, &Fault)| {
        Json::object([
            ("name", fault.name.into()),
            ("what", fault.what.into()),
            ("args", fault.args.into()),
            ("outcome", played.outcome.word().to_lowercase().into()),
            ("exit_code", u32::from(played.outcome.exit_code()).into()),
            ("reason", played.reason.into()),
            ("correct", played.wrong.is_empty().into()),
            ("wrong", Json::array(&played.wrong)),
            ("seen_exit_code", played.code.into()),
            ("seen_headline", (&played.headline).into()),
            ("seen_stopped_at", played.stopped.into()),
            ("took_ns", played.took_ns.into()),
            ("to_verdict_ns", played.to_verdict_ns.into()),
            ("to_verdict_host_ns", played.host_ns.into()),
            ("disturbed", played.disturbed.as_deref().into()),
            ("plays", played.plays.into()),
        ])
    };
    let rows = played.iter().zip(faults).map(row);
    Json::object([("schema", "ktstr.selftest/1".into()), ("faults", Json::array(rows))]).pretty()
}

#[cfg(test)]
mod tests {
    use super::super::args::Command;
    use super::super::parse::parse;
    use super::*;

    fn args(words: &str) -> Result<SelftestArgs> {
        match parse(words.split(' ').map(Into::into))? {
            Command::Selftest(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_select_and_unknown_ones_are_refused() {
        let all = selected(&args("selftest --list").unwrap()).len();
        let few = selected(&args("selftest --list --short").unwrap());
        assert!(few.len() < all && few.iter().all(|fault| fault.short));
        let stalls = selected(&args("selftest --kernel x sched-stall").unwrap());
        assert_eq!(stalls.iter().map(|fault| fault.name).collect::<Vec<_>>(), ["sched-stall"]);
        assert!(args("selftest").unwrap_err().to_string().contains("no kernel"));
        assert!(args("selftest -k x nothing").unwrap_err().to_string().contains("no fault's name has 'nothing'"));
    }

    #[test]
    fn table_and_json_tell_what_was_wrong() {
        let fault = faults::faults()[0];
        let played = Played {
            wrong: vec!["exit code Some(0), not 1".into()],
            code: Some(0),
            headline: "h".into(),
            took_ns: 5_000_000_000,
            to_verdict_ns: Some(800_000_000),
            host_ns: Some(30_000_000),
            ..Played::expecting(&fault, (fault.outcome, fault.reason))
        };
        assert!(line(&fault, &played).starts_with("WRONG  kernel-panic"));
        assert!(line(&fault, &played).contains("\n       exit code Some(0), not 1\n"));
        assert!(line(&fault, &played).contains("  800 ms  30.0 ms  h\n"), "{}", line(&fault, &played));
        let noisy = Played { disturbed: Some("the vCPUs waited".into()), plays: 3, ..played.clone() };
        assert!(line(&fault, &noisy).starts_with("noise  kernel-panic"));
        assert!(line(&fault, &noisy).contains("       played 3 times\n       disturbed: the vCPUs waited\n"));
        let text = json(&[played], &[fault]);
        assert!(text.contains("\"correct\": false") && text.contains("\"seen_exit_code\": 0"), "{text}");
        let unsure = Played::expecting(&fault, (Outcome::Inconclusive, "times are the emulator's"));
        assert!(line(&fault, &unsure).contains(" INCONCLUSIVE "), "{}", line(&fault, &unsure));
        let text = json(&[unsure], &[fault]);
        assert!(text.contains("\"exit_code\": 125") && text.contains("\"reason\": \"times are"), "{text}");
        assert!(listing(&[fault]).contains("FAIL           1  it panics while workers work"), "{}", listing(&[fault]));
    }
}
