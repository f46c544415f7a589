//! Tests of the one table of commands and flags.
//!
//! Owns the rules that every row keeps; leaves what a flag does to the tests of describe.
//! Invariant: a command that is added to the table is added to `ALL` here.

use super::flags::*;

const ALL: [Cmd; 17] = [
    Cmd::Run,
    Cmd::Judge,
    Cmd::BisectCheck,
    Cmd::BisectHelp,
    Cmd::Runs,
    Cmd::Doctor,
    Cmd::Image,
    Cmd::List,
    Cmd::Completions,
    Cmd::Help,
    Cmd::Vm,
    Cmd::Freeze,
    Cmd::Panic,
    Cmd::Probe,
    Cmd::Selftest,
    Cmd::Check,
    Cmd::Show,
];

#[test]
fn every_command_has_one_row() {
    for cmd in ALL {
        assert_eq!(COMMANDS.iter().filter(|spec| spec.cmd == cmd).count(), 1, "{cmd:?}");
        assert_eq!(spec(cmd).cmd, cmd);
    }
    assert_eq!(COMMANDS.len(), ALL.len());
}

#[test]
fn names_and_letters_are_unique_within_a_command() {
    for cmd in ALL {
        let flags: Vec<_> = flags_of(cmd).collect();
        for (index, flag) in flags.iter().enumerate() {
            assert!(!flags[..index].iter().any(|other| other.long == flag.long), "{cmd:?}: --{}", flag.long);
            assert!(
                flag.short.is_none() || !flags[..index].iter().any(|other| other.short == flag.short),
                "{cmd:?}: -{:?}",
                flag.short
            );
        }
    }
}

#[test]
fn every_row_is_complete() {
    for flag in all() {
        assert!(flag.long.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{}", flag.long);
        assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "--{}", flag.long);
        assert!(!flag.commands.is_empty(), "--{}", flag.long);
        assert!(flag.default.is_empty() || flag.absent.is_empty(), "--{} has two defaults", flag.long);
        assert!(
            flag.choices.is_empty() || flag.choices.contains(&flag.default),
            "--{}: the default is no choice",
            flag.long
        );
        assert!(flag.arity != Arity::Switch || flag.default.is_empty(), "--{}", flag.long);
    }
    for spec in shown_commands() {
        assert!(!spec.help.is_empty() && !spec.help.ends_with('.'), "{}", spec.name);
    }
}

#[test]
fn hidden_commands_are_not_shown() {
    assert!(shown_commands().all(|spec| !spec.name.starts_with('_')));
    assert!(command("__vm").is_some());
}
