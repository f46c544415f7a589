//! The flags about the scheduler's life and the kernel's log, and what they come to.
//!
//! Owns the rows of these flags, their limits and their meaning; leaves what a run makes of them to `plan` and verdict/.
//! Invariant: does no I/O; a value that the kernel would refuse is refused here.

use super::args::{GuestArgs, SchedChoice};
use super::describe::{bad, utf8};
use super::flags::{Arity, Cmd, FLAG, Flag, Group};
use super::limits;
use super::parse::Given;
use crate::error::{Error, Result};
use crate::proto::guards::{Guards, PROVOCATIONS, Provocation};
use crate::units::{self, NS_PER_MS};
use crate::verdict::bad_on::BadKind;

/// SCX_WATCHDOG_MAX_TIMEOUT (kernel/sched/ext_internal.h): 30 s. The kernel refuses a scheduler that wants more.
const LONGEST_WATCHDOG_MS: u64 = 30_000;
/// Stands in --sched-args for the stall timeout in milliseconds, or in whole seconds.
pub const WATCHDOG_MS: &str = "{watchdog_ms}";
pub const WATCHDOG_S: &str = "{watchdog_s}";

pub const FLAGS: [Flag; 6] = [
    Flag {
        long: "watchdog",
        arity: Arity::Value("TIME"),
        absent: "the scheduler's own",
        group: Group::Subject,
        commands: &[Cmd::Run, Cmd::Image],
        help: "how long a task may wait until the kernel ends the scheduler, up to 30s: built-in ones take it, others where \
           --sched-args says {watchdog_ms} or {watchdog_s}",
        ..FLAG
    },
    Flag {
        long: "enable-timeout",
        arity: Arity::Value("TIME"),
        default: "60s",
        group: Group::Subject,
        commands: &[Cmd::Run, Cmd::Image],
        help: "how long the scheduler may take until the kernel says that it is enabled; a limit that is given holds under an \
           emulator too",
        ..FLAG
    },
    Flag {
        long: "max-event",
        arity: Arity::Value("NAME=N"),
        absent: "off",
        repeat: true,
        group: Group::Subject,
        commands: &[Cmd::Run, Cmd::Image],
        help: "most that a counter of /sys/kernel/sched_ext/root/events may grow by, such as enq_skip_exiting=0",
        ..FLAG
    },
    Flag {
        long: "max-rejected",
        arity: Arity::Value("N"),
        absent: "off",
        group: Group::Subject,
        commands: &[Cmd::Run, Cmd::Image],
        help: "most tasks that the scheduler may refuse (nr_rejected)",
        ..FLAG
    },
    Flag {
        long: "allow-log",
        arity: Arity::Value("PATTERN"),
        absent: "none",
        repeat: true,
        group: Group::Subject,
        commands: &[Cmd::Run, Cmd::Image],
        help: "a text of the kernel's log that does not fail the run; * stands for any text",
        ..FLAG
    },
    Flag {
        long: "provoke",
        arity: Arity::Value("FAULT"),
        absent: "none",
        repeat: true,
        group: Group::Subject,
        commands: &[Cmd::Run, Cmd::Image],
        help: "bring a fault about in the guest, to see that it is named; 'ktstr help faults' lists them",
        ..FLAG
    },
];

/// All of them.
pub fn guards(given: &Given, sched: Option<&SchedChoice>) -> Result<Guards> {
    let provoke = given.all("provoke").map(|value| provocation(&utf8("provoke", value)?)).collect::<Result<_>>()?;
    let allow_log = given.all("allow-log").map(|value| pattern(utf8("allow-log", value)?)).collect::<Result<_>>()?;
    let max_events =
        given.all("max-event").map(|value| counter(&utf8("max-event", value)?)).collect::<Result<Vec<_>>>()?;
    let max_rejected = match given.one("max-rejected") {
        Some(value) => Some(number("max-rejected", &utf8("max-rejected", value)?)?),
        None => None,
    };
    if sched.is_none() && (max_rejected.is_some() || !max_events.is_empty()) {
        return Err(Error::usage("--max-event and --max-rejected are about a scheduler, and none is given")
            .hint("--sched PATH"));
    }
    let (watchdog_ms, enable_timeout_ns) = (watchdog(given, sched)?, enable_timeout(given, sched)?);
    let stalls_may_be = limits::bad_on(given)?.is_some_and(|kinds| !kinds.contains(BadKind::Stall));
    Ok(Guards { provoke, allow_log, max_events, max_rejected, watchdog_ms, enable_timeout_ns, stalls_may_be })
}

fn provocation(name: &str) -> Result<Provocation> {
    Provocation::by_name(name).ok_or_else(|| {
        let error = bad("provoke", format!("there is no fault '{name}'"));
        match units::nearest(name, PROVOCATIONS.iter().map(|row| row.name)) {
            Some(near) => error.hint(format!("did you mean '{near}'?")),
            None => error.hint("'ktstr help faults' lists them"),
        }
    })
}

/// A pattern that matches everything would switch the check off without saying so.
fn pattern(text: String) -> Result<String> {
    match text.chars().all(|c| c == '*' || c.is_whitespace()) {
        true => Err(bad("allow-log", format!("'{text}' allows everything")).hint("--kernel-log-clean off says so")),
        false => Ok(text),
    }
}

fn number(long: &str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| bad(long, format!("'{text}' is not a whole number")))
}

fn counter(text: &str) -> Result<(String, u64)> {
    let (name, most) = text.split_once('=').ok_or_else(|| bad("max-event", format!("'{text}' is not NAME=N")))?;
    let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !fits {
        return Err(bad("max-event", format!("'{name}' is not the name of a counter")));
    }
    Ok((name.to_owned(), number("max-event", most)?))
}

/// The stall timeout in milliseconds.
fn watchdog(given: &Given, sched: Option<&SchedChoice>) -> Result<Option<u32>> {
    let Some(value) = given.one("watchdog") else { return Ok(None) };
    if sched.is_none() {
        return Err(bad("watchdog", "there is no scheduler to watch".into()).hint("--sched PATH"));
    }
    let ns = units::parse_duration(&utf8("watchdog", value)?).map_err(|why| bad("watchdog", why))?;
    match ns / NS_PER_MS {
        ms @ 1..=LONGEST_WATCHDOG_MS => Ok(Some(ms as u32)),
        _ => Err(bad(
            "watchdog",
            format!("{} is not from 1ms to 30s, which is all the kernel takes", units::duration(ns)),
        )),
    }
}

/// How long its start may take.
fn enable_timeout(given: &Given, sched: Option<&SchedChoice>) -> Result<Option<u64>> {
    let Some(value) = given.one("enable-timeout") else { return Ok(None) };
    if sched.is_none() {
        return Err(bad("enable-timeout", "there is no scheduler to wait for".into()).hint("--sched PATH"));
    }
    match units::parse_duration(&utf8("enable-timeout", value)?).map_err(|why| bad("enable-timeout", why))? {
        0 => Err(bad("enable-timeout", "no scheduler is enabled in no time".into())),
        ns => Ok(Some(ns)),
    }
}

/// An external scheduler's arguments with the stall timeout in its places, and whether there was one.
pub fn with_watchdog(args: &GuestArgs) -> (Vec<String>, bool) {
    let Some(ms) = args.guards.watchdog_ms else { return (args.sched_args.clone(), false) };
    let seconds = ms.div_ceil(1000).to_string();
    let put = |word: &String| word.replace(WATCHDOG_MS, &ms.to_string()).replace(WATCHDOG_S, &seconds);
    let filled: Vec<String> = args.sched_args.iter().map(put).collect();
    let found = filled != args.sched_args;
    (filled, found)
}

#[cfg(test)]
mod tests {
    use super::super::args::Command;
    use super::super::parse::parse;
    use super::*;

    fn guest(words: &str) -> Result<GuestArgs> {
        match parse(format!("-k x {words}").split(' ').map(Into::into))? {
            Command::Run(args) => Ok(args.guest),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn enable_timeout_is_the_users_or_none() {
        let of = |words: &str| guest(words).map(|args| args.guards.enable_timeout_ns);
        assert_eq!(of("--sched builtin:fifo --enable-timeout 2s").unwrap(), Some(2_000_000_000));
        assert_eq!(of("--sched builtin:fifo").unwrap(), None);
        for (words, why) in [
            ("--enable-timeout 2s", "no scheduler to wait for"),
            ("--sched a --enable-timeout 0s", "in no time"),
            ("--sched a --enable-timeout 2", "unit"),
        ] {
            assert!(of(words).unwrap_err().to_string().contains(why), "{words}");
        }
    }

    #[test]
    fn watchdog_is_bounded_as_the_kernel_bounds_it() {
        assert_eq!(guest("--sched builtin:fifo --watchdog 2s").unwrap().guards.watchdog_ms, Some(2000));
        for (words, why) in [
            ("--sched a --watchdog 31s", "is all the kernel takes"),
            ("--sched a --watchdog 5us", "is all the kernel takes"),
            ("--watchdog 2s", "no scheduler to watch"),
            ("--sched a --watchdog 2", "unit"),
        ] {
            assert!(guest(words).unwrap_err().to_string().contains(why), "{words}");
        }
    }

    #[test]
    fn guards_are_read_and_odd_ones_refused() {
        let guards =
            guest("-s a --max-event x=3 --max-event SCX_EV_Y=0 --max-rejected 2 --allow-log a*b --provoke panic")
                .unwrap()
                .guards;
        assert_eq!(guards.max_events, [("x".to_owned(), 3), ("SCX_EV_Y".to_owned(), 0)]);
        assert_eq!((guards.max_rejected, guards.allow_log), (Some(2), vec!["a*b".to_owned()]));
        assert_eq!(guards.provoke, [Provocation::Panic]);
        let stalls = |words: &str| guest(words).unwrap().guards.stalls_may_be;
        assert!(stalls("--bad-on panic,boot") && !stalls("--bad-on panic,stall") && !stalls("-s a"));
        for (words, why) in [
            ("--max-rejected 1", "none is given"),
            ("-s a --max-event x", "not NAME=N"),
            ("-s a --max-event x=y", "not a whole number"),
            ("-s a --max-event a-b=1", "not the name of a counter"),
            ("--allow-log **", "allows everything"),
            ("--provoke panik", "did you mean 'panic'?"),
        ] {
            let error = guest(words).unwrap_err().to_string();
            assert!(error.contains(why), "{words}: {error}");
        }
    }

    #[test]
    fn external_scheduler_takes_it_where_its_arguments_say_so() {
        let args =
            guest("--sched a --watchdog 1500ms --sched-args=-t={watchdog_ms} --sched-args={watchdog_s}").unwrap();
        assert_eq!(with_watchdog(&args), (vec!["-t=1500".into(), "2".into()], true));
        assert!(!with_watchdog(&guest("--sched a --watchdog 2s --sched-args=-v").unwrap()).1);
    }
}
