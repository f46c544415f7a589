//! From an argument list to the flags that were given.
//!
//! Owns the reading of the list against the table of `flags`; leaves the meaning of values to `describe`.
//! Invariant: does no I/O, and a word that nobody asked for is an error that says what would have been right.

use super::args::{Command, HelpOn};
use super::describe;
use super::flags::{self, Arity, Cmd, Flag, Operand};
use crate::error::{Error, Result};
use crate::units;
use lexopt::Arg;
use std::ffi::{OsStr, OsString};

/// Reads a command line, without the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let given = match scan(args)? {
        Scanned::Asked(command) => return Ok(command),
        Scanned::Given(given) => given,
    };
    describe::describe(&given)
}

/// What was given, each word known and each value present, but none understood yet.
#[derive(Debug)]
pub(super) struct Given {
    pub cmd: Cmd,
    pub flags: Vec<(&'static Flag, Option<OsString>)>,
    pub operand: Option<OsString>,
    /// Where a command takes two words.
    pub second: Option<OsString>,
    /// What stood after `--`.
    pub rest: Vec<OsString>,
}

/// `--help` and `--version` end the reading: what follows them is not looked at.
enum Scanned {
    Asked(Command),
    Given(Given),
}

fn scan(args: impl IntoIterator<Item = OsString>) -> Result<Scanned> {
    let mut parser = lexopt::Parser::from_args(args);
    let named = match parser.try_raw_args().and_then(|mut raw| raw.next_if(|word| !is_dashed(word))) {
        Some(word) => Some(command_named(&word)?),
        None => None,
    };
    let cmd = named.unwrap_or(Cmd::Run);
    let mut given = Given { cmd, flags: Vec::new(), operand: None, second: None, rest: Vec::new() };
    loop {
        if let Some(mut raw) = parser.try_raw_args() {
            if raw.next_if(|word| word == "--").is_some() {
                given.rest = raw.collect();
                break;
            }
        }
        let (flag, is_long) = match parser.next().map_err(|error| Error::usage(error.to_string()))? {
            None => break,
            Some(Arg::Value(word)) => {
                given.take_operand(word)?;
                continue;
            }
            Some(Arg::Long(name)) => {
                (flags::long(cmd, name).ok_or_else(|| unknown_flag(cmd, &format!("--{name}")))?, true)
            }
            Some(Arg::Short(letter)) => {
                (flags::short(cmd, letter).ok_or_else(|| unknown_flag(cmd, &format!("-{letter}")))?, false)
            }
        };
        let value = match flag.arity {
            // What follows the letter of a switch is the next letter.
            Arity::Switch if !is_long => None,
            _ => take_value(&mut parser, flag)?,
        };
        match flag.long {
            "help" => return Ok(Scanned::Asked(Command::Help(named.map_or(HelpOn::Top, HelpOn::Command)))),
            "version" => return Ok(Scanned::Asked(Command::Version)),
            _ => given.take_flag(flag, value)?,
        }
    }
    given.check_words()?;
    Ok(Scanned::Given(given))
}

impl Given {
    fn take_flag(&mut self, flag: &'static Flag, value: Option<OsString>) -> Result<()> {
        let before = self.flags.iter().find(|(known, _)| known.long == flag.long);
        match (before, flag.arity) {
            // A switch given twice says the same as once.
            (None, _) | (Some(_), Arity::Switch) => {}
            (Some(_), _) if flag.repeat => {}
            (Some((_, first)), _) => {
                let shown = |value: &Option<OsString>| match value {
                    Some(text) => format!("'{}'", text.to_string_lossy()),
                    None => "no value".into(),
                };
                return Err(Error::usage(format!(
                    "{} is given twice: with {}, then with {}",
                    flag.dashed(),
                    shown(first),
                    shown(&value)
                )));
            }
        }
        self.flags.push((flag, value));
        Ok(())
    }

    fn take_operand(&mut self, word: OsString) -> Result<()> {
        if flags::spec(self.cmd).operand != Operand::Nothing && self.operand.is_none() {
            self.operand = Some(word);
            return Ok(());
        }
        // `help work NAME` is the one thing with a second word.
        if self.cmd == Cmd::Help && self.operand.as_deref() == Some("work".as_ref()) {
            self.operand = Some([OsStr::new("work "), &word].into_iter().collect());
            return Ok(());
        }
        if matches!(flags::spec(self.cmd).operand, Operand::Two(..)) && self.second.is_none() {
            self.second = Some(word);
            return Ok(());
        }
        let text = word.to_string_lossy();
        let error = Error::usage(format!("unexpected argument '{text}'"));
        let last = self.flags.last().map(|(flag, _)| flag.long);
        Err(if last == Some("sched-args") {
            error.hint("give several scheduler arguments as --sched-args 'A B', or after --")
        } else if last == Some("cmdline") {
            error.hint("quote the text: --cmdline 'A B'")
        } else if flags::command(&text).is_some_and(|spec| !spec.hidden) {
            error.hint(format!("a command is the first word: ktstr {text}"))
        } else {
            error.hint(format!("'ktstr help {}' lists what it takes", flags::spec(self.cmd).name))
        })
    }

    /// What can only be said when all words are known.
    fn check_words(&self) -> Result<()> {
        let spec = flags::spec(self.cmd);
        if let (Operand::Required(name, choices), None) = (spec.operand, &self.operand) {
            let error = Error::usage(format!("'ktstr {}' needs a word: {name}", spec.name));
            return Err(if choices.is_empty() { error } else { error.hint(format!("one of {}", choices.join(", "))) });
        }
        if let (Operand::Two(first, second), None) = (spec.operand, &self.second) {
            return Err(Error::usage(format!("'ktstr {}' needs two words: {first} {second}", spec.name)));
        }
        let takes_rest = matches!(self.cmd, Cmd::Run | Cmd::Image | Cmd::BisectCheck);
        match self.rest.first() {
            Some(word) if !takes_rest => Err(Error::usage(format!(
                "unexpected argument '{}' after --: 'ktstr {}' passes nothing on",
                word.to_string_lossy(),
                spec.name
            ))),
            _ => Ok(()),
        }
    }

    /// The values of a flag, in their order.
    pub fn all(&self, long: &str) -> impl Iterator<Item = &OsStr> {
        self.flags.iter().filter(move |(flag, _)| flag.long == long).filter_map(|(_, value)| value.as_deref())
    }
    /// The value of a flag that is given once.
    pub fn one(&self, long: &str) -> Option<&OsStr> {
        self.all(long).next()
    }
    /// Whether a flag is given at all.
    pub fn has(&self, long: &str) -> bool {
        self.flags.iter().any(|(flag, _)| flag.long == long)
    }
}

/// A dash and something: a lone dash is a value (standard output).
fn is_dashed(word: &OsStr) -> bool {
    word.len() > 1 && word.as_encoded_bytes().starts_with(b"-")
}

fn command_named(word: &OsStr) -> Result<Cmd> {
    let text = word.to_string_lossy();
    if let Some(spec) = flags::command(&text) {
        return Ok(spec.cmd);
    }
    let error = Error::usage(format!("unknown command '{text}'"));
    Err(match units::nearest(&text, flags::shown_commands().map(|spec| spec.name)) {
        Some(near) => error.hint(format!("did you mean '{near}'?")),
        None => error.hint("a kernel is given as --kernel FILE; 'ktstr --help' lists the commands"),
    })
}

/// The value of a flag, from `=`, from the rest of a cluster, or from the next word.
fn take_value(parser: &mut lexopt::Parser, flag: &'static Flag) -> Result<Option<OsString>> {
    let attached = parser.optional_value();
    if flag.arity == Arity::Switch {
        return match attached {
            Some(value) => {
                Err(Error::usage(format!("{} takes no value, but has '{}'", flag.dashed(), value.to_string_lossy())))
            }
            None => Ok(None),
        };
    }
    let may_follow = |word: &OsStr| flag.dash || !is_dashed(word);
    let value = match attached {
        Some(value) => Some(value),
        None => parser.try_raw_args().and_then(|mut raw| raw.next_if(may_follow)),
    };
    let missing = |why: &str| Error::usage(format!("{} {why}: {}", flag.dashed(), flag.usage()));
    // What follows is a negative number, and no flag.
    let negative = |word: &OsStr| word.as_encoded_bytes().get(1).is_some_and(u8::is_ascii_digit);
    match value {
        Some(value) if value.is_empty() && !flag.dash => Err(missing("has an empty value")),
        Some(value) => Ok(Some(value)),
        None if matches!(flag.arity, Arity::Optional(_)) => Ok(None),
        None => match parser.try_raw_args().and_then(|mut raw| raw.next_if(negative)) {
            Some(word) => {
                Err(missing(&format!("needs a value, and '{}' begins as a flag does", word.to_string_lossy())))
            }
            None => Err(missing("needs a value")),
        },
    }
}

fn unknown_flag(cmd: Cmd, name: &str) -> Error {
    let owner = flags::shown_commands().find(|spec| {
        flags::flags_of(spec.cmd)
            .any(|flag| flag.dashed() == name || flag.short.is_some_and(|letter| format!("-{letter}") == name))
    });
    let command = flags::spec(cmd).name;
    if let Some(owner) = owner {
        return Error::usage(format!("{name} is no flag of 'ktstr {command}'"))
            .hint(format!("it belongs to 'ktstr {}'", owner.name));
    }
    let error = Error::usage(format!("unknown flag '{name}'"));
    // The dashes are left out of the comparison: they would make any two short words near.
    let near = units::nearest(name.trim_start_matches('-'), flags::shown_flags(cmd).map(|flag| flag.long));
    match near.filter(|_| name.starts_with("--")) {
        Some(near) => error.hint(format!("did you mean --{near}?")),
        None => error.hint(format!("'ktstr help {command}' lists the flags")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn given(words: &[&str]) -> Given {
        match scan(words.iter().map(OsString::from)).unwrap() {
            Scanned::Given(given) => given,
            Scanned::Asked(command) => panic!("{command:?}"),
        }
    }

    /// Message and hint of the refusal.
    fn refused(words: &[&str]) -> String {
        let error = parse(words.iter().map(OsString::from)).expect_err(&words.join(" "));
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(error.kind().exit_code(), 128);
        format!("{} / {}", error.message(), error.hint_text().unwrap_or(""))
    }

    #[test]
    fn all_forms_of_a_value_read_the_same() {
        for words in [&["--kernel", "a"][..], &["--kernel=a"], &["-k", "a"], &["-ka"], &["-k=a"], &["run", "-k", "a"]] {
            assert_eq!(given(words).one("kernel"), Some(OsStr::new("a")), "{words:?}");
        }
        assert_eq!(given(&["--json", "-"]).one("json"), Some(OsStr::new("-")));
        let clustered = given(&["-qk", "a"]);
        assert!(clustered.has("quiet") && clustered.one("kernel").is_some());
    }

    #[test]
    fn words_after_two_dashes_are_kept_for_the_scheduler() {
        let given = given(&["-k", "a", "--", "--kernel", "b", "--"]);
        assert_eq!(given.rest, ["--kernel", "b", "--"]);
        assert_eq!(given.all("kernel").count(), 1);
    }

    #[test]
    fn optional_value_is_taken_where_it_stands() {
        for (words, value) in [
            (&["image", "--list"][..], None),
            (&["image", "--list", "a"], Some("a")),
            (&["image", "--list=a"], Some("a")),
            (&["image", "--list", "--output", "a"], None),
        ] {
            let given = given(words);
            assert!(given.has("list"));
            assert_eq!(given.one("list"), value.map(OsStr::new), "{words:?}");
        }
    }

    #[test]
    fn values_with_a_dash_are_taken_where_they_make_sense() {
        assert_eq!(given(&["--sched-args", "--slice 5"]).one("sched-args"), Some(OsStr::new("--slice 5")));
        assert_eq!(given(&["--work=-x"]).one("work"), Some(OsStr::new("-x")));
        assert!(refused(&["--kernel", "--sched", "x"]).contains("--kernel needs a value: --kernel FILE"));
    }

    #[test]
    fn wrong_words_name_the_nearest_right_one() {
        for (words, message) in [
            (&["--kernl", "a"][..], "unknown flag '--kernl' / did you mean --kernel?"),
            (&["--durationn=2s"], "did you mean --duration?"),
            (&["doctr"], "unknown command 'doctr' / did you mean 'doctor'?"),
            (&["vmlinuz-7.1"], "unknown command 'vmlinuz-7.1' / a kernel is given as --kernel FILE"),
            (&["--output", "x"], "--output is no flag of 'ktstr run' / it belongs to 'ktstr image'"),
            (&["doctor", "--kernel", "x"], "it belongs to 'ktstr run'"),
            (&["-z"], "unknown flag '-z' / 'ktstr help run' lists the flags"),
            (&["--zzzzzzzzz"], "'ktstr help run' lists the flags"),
        ] {
            assert!(refused(words).contains(message), "{words:?}: {}", refused(words));
        }
    }

    #[test]
    fn hidden_commands_are_never_suggested() {
        assert!(!refused(&["_vm"]).contains("__vm"), "{}", refused(&["_vm"]));
        assert!(!refused(&["__prob"]).contains("__probe"));
    }

    #[test]
    fn values_missing_empty_or_unasked_are_named() {
        for (words, message) in [
            (&["--kernel"][..], "--kernel needs a value: --kernel FILE"),
            (&["-k"], "--kernel needs a value"),
            (&["--accel"], "--accel needs a value: --accel auto|kvm|qemu"),
            (&["-d", "-1s"], "--duration needs a value, and '-1s' begins as a flag does: --duration TIME"),
            (&["--kernel="], "--kernel has an empty value"),
            (&["--keep=yes"], "--keep takes no value, but has 'yes'"),
            (&["-q=yes"], "unexpected argument for option '-q': \"yes\""),
            (&["--kernel", "a", "--kernel=b"], "--kernel is given twice: with 'a', then with 'b'"),
            (&["list"], "'ktstr list' needs a word: WHAT / one of works, schedulers"),
            (&["--sched-args", "-a", "5"], "unexpected argument '5' / give several scheduler arguments as"),
            (&["--cmdline", "a", "b"], "quote the text"),
            (&["--quiet", "doctor"], "unexpected argument 'doctor' / a command is the first word: ktstr doctor"),
            (&["doctor", "now"], "'ktstr help doctor' lists what it takes"),
            (&["list", "works", "more"], "unexpected argument 'more'"),
            (&["doctor", "--", "x"], "unexpected argument 'x' after --"),
        ] {
            assert!(refused(words).contains(message), "{words:?}: {}", refused(words));
        }
    }

    #[test]
    fn switch_given_twice_says_the_same() {
        assert!(given(&["--keep", "--keep"]).has("keep"));
    }

    #[test]
    fn help_and_version_win_over_what_follows() {
        let asked = |words: &[&str]| parse(words.iter().map(OsString::from)).unwrap();
        assert_eq!(asked(&["--help", "--nonsense"]), Command::Help(HelpOn::Top));
        assert_eq!(asked(&["--kernel", "x", "-h"]), Command::Help(HelpOn::Top));
        assert_eq!(asked(&["image", "--help"]), Command::Help(HelpOn::Command(Cmd::Image)));
        assert_eq!(asked(&["-V"]), Command::Version);
    }
}
