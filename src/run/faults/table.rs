//! Reads the fault matrix, which is text beside this file: one line a fault.
//!
//! Owns the form of a line; leaves what the faults are to matrix.txt, and carrying them out to `play`.
//! Invariant: every line of the text is a fault or is refused with its number; a test holds the text against that.

use crate::run::{silence, watch};
use crate::units::NS_PER_SEC;
use crate::verdict::Outcome;

const MATRIX: &str = include_str!("matrix.txt");

/// Where a fault sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Kernel,
    Scheduler,
    Workload,
    Image,
    Guest,
    Host,
}

impl Layer {
    /// In the order of the document: (layer, its word in the matrix, its name).
    pub const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Kernel, "kernel", "guest kernel"),
        (Self::Scheduler, "scheduler", "scheduler"),
        (Self::Workload, "workload", "workload"),
        (Self::Image, "image", "image"),
        (Self::Guest, "guest", "PID 1 and channel"),
        (Self::Host, "host", "host"),
    ];
}

/// What is done to the run from outside when its workers have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// ktstr gets this signal.
    Signal(i32),
    /// The VM's process is killed.
    KillVm,
}

/// When a run has to be over, counted from its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// At the planned end, or at a deadline of its own.
    AtItsEnd,
    /// Long before the planned end; when the fault was cannot be told.
    Early,
    /// Counted from the loss of the scheduler.
    Dead,
    /// Counted from the kernel's line.
    Line,
    /// The same, of a line that settles nothing where an emulator may be the cause.
    Settled,
    /// Counted from PID 1's last sign of life.
    Silent,
    /// Counted from the signal that ktstr got, to the end of its process.
    Signal,
}

/// From the loss of the scheduler, or the kernel's line, to the end of the run: what ktstr's own waits come to.
const TOLD_NS: u64 = NS_PER_SEC;

impl Prompt {
    /// The longest time from the fault to the verdict, where one is promised.
    pub fn limit_ns(self, emulated: bool) -> Option<u64> {
        // What the guest does meanwhile takes an emulator up to ten times as long: half a second instead of 50 ms, and as
        // much again for its neighbours.
        let slower = if emulated { NS_PER_SEC } else { 0 };
        match self {
            Self::AtItsEnd | Self::Early => None,
            Self::Settled if emulated => None,
            Self::Dead | Self::Line | Self::Settled => Some(TOLD_NS + slower),
            Self::Signal => Some(watch::POLITE_NS + TOLD_NS + slower),
            Self::Silent => Some(silence::limit_ns(emulated) + TOLD_NS + slower),
        }
    }

    /// What the document says of it.
    pub fn promise(self) -> &'static str {
        match self {
            Self::AtItsEnd => "at its end",
            Self::Early => "before its planned end",
            Self::Dead => "1 s after the scheduler is gone",
            Self::Line => "1 s after the kernel's line",
            Self::Settled => "1 s after the kernel's line; under emulation at its end",
            Self::Silent => "20 s after the last sign of life",
            Self::Signal => "4 s after the signal, of which the guest has 3 s",
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub layer: Layer,
    pub name: &'static str,
    /// What is wrong, in words.
    pub what: &'static str,
    pub args: &'static str,
    pub outcome: Outcome,
    /// Where the run stops; empty: nowhere.
    pub stopped: &'static str,
    /// In the headline, or where the run is refused, in the error.
    pub reason: &'static str,
    pub act: Act,
    /// Nothing is booted.
    pub refused: bool,
    pub prompt: Prompt,
    /// One of the few that every test run plays.
    pub short: bool,
    /// It is found by a time, and times of an emulator decide nothing.
    pub by_time: bool,
}

/// Every fault that can be read; a test sees to it that this is all of them.
pub fn faults() -> Vec<Fault> {
    lines().filter_map(|(_, line)| parse(line)).collect()
}

fn lines() -> impl Iterator<Item = (usize, &'static str)> {
    let numbered = MATRIX.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn parse(line: &'static str) -> Option<Fault> {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [layer, name, what, args, outcome, stopped, reason, flags] = cells[..] else { return None };
    let mut fault = Fault {
        layer: Layer::ALL.iter().find(|(_, word, _)| *word == layer)?.0,
        name,
        what,
        args,
        outcome: Outcome::ALL.into_iter().find(|known| known.word() == outcome)?,
        stopped: if stopped == "-" { "" } else { stopped },
        reason,
        act: Act::Nothing,
        refused: false,
        prompt: Prompt::AtItsEnd,
        short: false,
        by_time: false,
    };
    for flag in flags.split_whitespace().filter(|flag| *flag != "-") {
        match flag {
            "refused" => fault.refused = true,
            "early" => fault.prompt = Prompt::Early,
            "dead" => fault.prompt = Prompt::Dead,
            "line" => fault.prompt = Prompt::Line,
            "settled" => fault.prompt = Prompt::Settled,
            "silent" => fault.prompt = Prompt::Silent,
            "short" => fault.short = true,
            "by-time" => fault.by_time = true,
            "SIGINT" => (fault.act, fault.prompt) = (Act::Signal(libc::SIGINT), Prompt::Signal),
            "SIGTERM" => (fault.act, fault.prompt) = (Act::Signal(libc::SIGTERM), Prompt::Signal),
            "kill-vm" => fault.act = Act::KillVm,
            _ => return None,
        }
    }
    Some(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const CATALOG: &str = include_str!("catalog.txt");

    #[test]
    fn every_line_is_a_fault_with_a_name_of_its_own() {
        for (number, line) in lines() {
            assert!(parse(line).is_some(), "line {number} of matrix.txt: {line}");
        }
        let faults = faults();
        let names: BTreeSet<_> = faults.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), faults.len());
        assert!(faults.len() >= 40, "{}", faults.len());
        for (layer, word, _) in Layer::ALL {
            assert!(faults.iter().filter(|fault| fault.layer == layer).count() >= 4, "{word}");
        }
        assert!(faults.iter().all(|fault| !fault.reason.is_empty() && !fault.what.is_empty()));
        assert!(faults.iter().filter(|fault| fault.short).count() >= 8);
    }

    #[test]
    fn every_provocation_is_in_the_matrix() {
        let args: String = faults().iter().map(|fault| format!("{} ", fault.args)).collect();
        for row in crate::proto::guards::PROVOCATIONS {
            assert!(args.contains(&format!("--provoke {} ", row.name)), "{}", row.name);
        }
    }

    #[test]
    fn every_builtin_scheduler_is_in_a_table() {
        for probe in crate::scx::probe::PROBES {
            let word = |line: &str| line.split_whitespace().any(|word| word == format!("builtin:{}", probe.name));
            assert!(MATRIX.lines().chain(CATALOG.lines()).any(word) || probe.name == "noop", "{}", probe.name);
        }
    }

    #[test]
    fn odd_lines_are_refused() {
        for line in ["", "a | b", "kernel | n | w | a | FAIL | - | r | soon", "kernel | n | w | a | BAD | - | r | -"] {
            assert!(parse(line).is_none(), "{line}");
        }
    }
}
