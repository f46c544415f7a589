//! The one grammar of work: `bursty(burst=5ms, sleep=10ms)*4 nice=5 policy=fifo:10; spin*2`.
//!
//! Owns that text, for the command line and for scenario files alike: reading works here, the values of their options in
//! `options`, writing in `write`; leaves the rules that values must keep to config.
//! Invariant: what `spec_text` writes, `parse_workspecs` reads back; what is read has passed every rule; an error knows
//! its column and, where one is near, the valid word.
//!
//! ```text
//! works  := work { ";" work }
//! work   := NAME [ "(" [ item { "," item } ] ")" ] [ "*" COUNT ] { option }
//! item   := PARAMETER "=" VALUE            and in a sequence:  ("spin" | "sleep" | "yield" | "io") DURATION
//! option := "policy=" policy | "nice=" NUMBER | "affinity=" affinity | "mem=" mem | "mpol=" flag { "+" flag }
//!         | "clone=" ( "fork" | "thread" )
//! policy := "normal" | "batch" | "idle" | "fifo:" 1..99 | "rr:" 1..99 | "deadline:" RUNTIME ":" DEADLINE ":" PERIOD | "ext"
//! affinity := "inherit" | "llc" | "cross" | "single" | "each" | "smt" | "cpus:" LIST | "random" [ ":" COUNT ] [ "@" LIST ]
//! mem    := "default" | "local" | "preferred:" NODE | ("bind" | "interleave" | "preferred-many" | "weighted") ":" LIST
//! flag   := "static" | "relative" | "balancing"
//! ```
//!
//! `*COUNT` counts whole groups: `pipe*3` is three pairs. Without it there are as many workers as the caller says, rounded up to
//! whole groups.

mod options;
mod write;

#[cfg(test)]
mod tests;

pub use write::spec_text;

use super::config::{ConfigError, validate_spec};
use super::types::{find, suggest, types};
use crate::proto::plan::{WorkSetup, WorkSpec};
use crate::proto::scenario::{Count, DefWork};
use crate::proto::work::{Phase, WorkType};
use crate::units::{nearest, parse_duration};
use std::fmt;

/// Why a text describes no work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkParseError {
    /// Character of the text at which it goes wrong, from 1.
    pub column: usize,
    pub what: String,
    /// The nearest valid word, where one is near.
    pub nearest: Option<String>,
}

impl fmt::Display for WorkParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at column {}", self.what, self.column)?;
        match &self.nearest {
            Some(word) => write!(f, " (did you mean '{word}'?)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for WorkParseError {}

type Parsed<T> = Result<T, WorkParseError>;

/// Reads one type with its parameters: `spin` or `bursty(burst=5ms, sleep=10ms)`.
pub fn parse_work(text: &str) -> Parsed<WorkType> {
    let mut cursor = Cursor { text, at: 0 };
    let work = cursor.work()?;
    match cursor.rest().is_empty() {
        true => Ok(work),
        false => Err(cursor.error_here(format!("'{}' is left over", cursor.rest()))),
    }
}

/// Reads all groups of one cgroup. A group without `*COUNT` has as many workers as a cgroup has (`Count::AUTO`).
pub fn parse_works(text: &str) -> Parsed<Vec<DefWork>> {
    let mut cursor = Cursor { text, at: 0 };
    let mut works = Vec::new();
    loop {
        works.push(cursor.spec()?);
        if !cursor.takes(';') {
            break;
        }
    }
    match cursor.rest().is_empty() {
        true => Ok(works),
        false => Err(cursor.error_here(format!("'{}' is left over", cursor.rest()))),
    }
}

/// The same as the engine takes it. A group without `*COUNT` has `default_workers` workers, rounded up to whole groups.
pub fn parse_workspecs(text: &str, default_workers: u32) -> Parsed<Vec<WorkSpec>> {
    let spec = |work: DefWork| {
        let usual = work.workers == Count::AUTO;
        let workers = match usual {
            true => default_workers.next_multiple_of(work.work.worker_group_size().max(1)),
            false => work.workers.times,
        };
        WorkSpec { work: work.work, workers, setup: work.setup }
    };
    Ok(parse_works(text)?.into_iter().map(spec).collect())
}

/// A place in the text. Blanks mean nothing but the end of a word.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn error(&self, at: usize, what: String, nearest: Option<String>) -> WorkParseError {
        WorkParseError { column: self.text[..at].chars().count() + 1, what, nearest }
    }
    fn error_here(&self, what: String) -> WorkParseError {
        self.error(self.at, what, None)
    }
    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }
    /// What is left, from the next word on.
    fn rest(&self) -> &'a str {
        self.text[self.at..].trim()
    }
    fn takes(&mut self, sign: char) -> bool {
        self.skip_blanks();
        let there = self.text[self.at..].starts_with(sign);
        if there {
            self.at += sign.len_utf8();
        }
        there
    }
    /// The text up to one of these signs (or the end), and where it begins.
    fn until(&mut self, ends: &[char]) -> (usize, &'a str) {
        self.skip_blanks();
        let from = self.at;
        let rest = &self.text[from..];
        self.at += rest.find(ends).unwrap_or(rest.len());
        (from, self.text[from..self.at].trim_end())
    }

    fn spec(&mut self) -> Parsed<DefWork> {
        self.skip_blanks();
        let from = self.at;
        let work = self.work()?;
        let size = work.worker_group_size().max(1);
        let workers = match self.takes('*') {
            false => Some(Count::AUTO),
            true => {
                let (at, word) = self.until(&[' ', '\t', '\n', ';', '=']);
                match word.parse::<u32>() {
                    Ok(groups) if groups > 0 => groups.checked_mul(size).map(Count::fixed),
                    _ => return Err(self.error(at, format!("'{word}' is no count of groups"), None)),
                }
            }
        };
        let Some(workers) = workers else {
            return Err(self.error(from, "more workers than can be counted".into(), None));
        };
        // The rules about one worker are those about all.
        let mut spec = WorkSpec::new(work, size);
        let mut seen = Vec::new();
        while !self.rest().is_empty() && !self.rest().starts_with(';') {
            self.option(&mut spec.setup, &mut seen)?;
        }
        validate_spec(&spec)
            .map_err(|ConfigError { field, rule }| self.error(from, format!("{field} {rule}"), None))?;
        Ok(DefWork { work: spec.work, workers, setup: spec.setup })
    }

    fn work(&mut self) -> Parsed<WorkType> {
        let (at, name) = self.until(&['(', '*', ' ', '\t', '\n', ';']);
        if name.is_empty() {
            return Err(self.error(at, "the name of a work type is missing".into(), None));
        }
        let Some(info) = find(name) else {
            let known: Vec<&str> = types().map(|info| info.cli_name).collect();
            let what = format!("'{name}' is no work type ({})", known.join(", "));
            return Err(self.error(at, what, suggest(name).map(str::to_owned)));
        };
        let mut work = info.default.clone();
        if self.takes('(') {
            match work {
                WorkType::Sequence { .. } => work = self.phases()?,
                _ => self.arguments(&mut work)?,
            }
        }
        work.check().map_err(|ConfigError { field, rule }| self.error(at, format!("{field} {rule}"), None))?;
        Ok(work)
    }

    /// `KEY=VALUE, ...)`. A list of nodes may hold commas itself: a part without `=` belongs to the value before it.
    fn arguments(&mut self, work: &mut WorkType) -> Parsed<()> {
        let mut seen: Vec<&str> = Vec::new();
        while !self.takes(')') {
            let (key_at, key) = self.until(&['=', ',', ')']);
            if !self.takes('=') {
                let what = match self.at == self.text.len() {
                    true => "')' is missing".into(),
                    false => format!("'{key}' is no KEY=VALUE"),
                };
                let at = if self.at == self.text.len() { self.at } else { key_at };
                return Err(self.error(at, what, None));
            }
            let (value_at, mut value) = self.until(&[',', ')']);
            while let Some(more) = self.continued() {
                value = self.text[value_at..more].trim_end();
                self.at = more;
            }
            if seen.contains(&key) {
                return Err(self.error(key_at, format!("'{key}' is given twice"), None));
            }
            seen.push(key);
            let type_name = work.cli_name();
            let mut parameters = work.parameters();
            let Some(index) = parameters.iter().position(|(name, _)| *name == key) else {
                let near = nearest(key, parameters.iter().map(|(name, _)| *name)).map(str::to_owned);
                let what = match parameters.is_empty() {
                    true => format!("{type_name} has no parameters, so no '{key}'"),
                    false => format!("{type_name} has no parameter '{key}'"),
                };
                return Err(self.error(key_at, what, near));
            };
            parameters[index].1.set(value).map_err(|(what, near)| self.error(value_at, what, near))?;
            drop(parameters);
            // Rules about this parameter are told where it stands; those about several, at the type.
            match work.check() {
                Err(ConfigError { field, rule }) if field == key => {
                    return Err(self.error(value_at, format!("{field} {rule}"), None));
                }
                _ => {}
            }
            if !self.takes(',') && !self.rest().starts_with(')') {
                return Err(self.error(self.at, "')' is missing".into(), None));
            }
        }
        Ok(())
    }

    /// Where the value goes on: a comma and a part without `=` up to the next comma or the bracket.
    fn continued(&self) -> Option<usize> {
        let rest = self.text[self.at..].strip_prefix(',')?;
        let end = rest.find([',', ')'])?;
        let part = rest[..end].trim();
        (part.starts_with(|c: char| c.is_ascii_digit()) && !part.contains('=')).then_some(self.at + 1 + end)
    }

    /// `spin 2ms, sleep 1ms)`.
    fn phases(&mut self) -> Parsed<WorkType> {
        let mut phases = Vec::new();
        while !self.takes(')') {
            let (at, part) = self.until(&[',', ')']);
            let (word, time) = part.split_once(char::is_whitespace).unwrap_or((part, ""));
            let Some((_, make)) = Phase::WORDS.iter().find(|(known, _)| *known == word) else {
                if self.at == self.text.len() && part.is_empty() {
                    return Err(self.error_here("')' is missing".into()));
                }
                let known = Phase::WORDS.iter().map(|(word, _)| *word);
                let what = format!("'{word}' is no phase ({})", known.clone().collect::<Vec<_>>().join(", "));
                return Err(self.error(at, what, nearest(word, known).map(str::to_owned)));
            };
            let time_at = at + part.len() - time.trim_start().len();
            match parse_duration(time.trim()) {
                Ok(0) => return Err(self.error(time_at, "a phase must be above zero".into(), None)),
                Ok(ns) => phases.push(make(ns)),
                Err(why) => return Err(self.error(time_at, why, None)),
            }
            if !self.takes(',') && !self.rest().starts_with(')') {
                return Err(self.error(self.at, "')' is missing".into(), None));
            }
        }
        let mut phases = phases.into_iter();
        match phases.next() {
            Some(first) => Ok(WorkType::Sequence { first, rest: phases.collect() }),
            None => Err(self.error_here("a sequence needs a phase, such as spin 2ms".into())),
        }
    }

    fn option(&mut self, setup: &mut WorkSetup, seen: &mut Vec<&'a str>) -> Parsed<()> {
        const KEYS: [&str; 6] = ["policy", "nice", "affinity", "mem", "mpol", "clone"];
        let (at, key) = self.until(&['=', ' ', '\t', '\n', ';']);
        if !KEYS.contains(&key) || !self.text[self.at..].starts_with('=') {
            let what = match KEYS.contains(&key) {
                true => format!("'{key}' needs a value: {key}=..."),
                false => format!("'{key}' is no option ({})", KEYS.join(", ")),
            };
            let near = (!KEYS.contains(&key)).then(|| nearest(key, KEYS).map(str::to_owned)).flatten();
            return Err(self.error(at, what, near));
        }
        if seen.contains(&key) {
            return Err(self.error(at, format!("'{key}' is given twice"), None));
        }
        seen.push(key);
        self.at += 1;
        let (value_at, value) = self.until(&[' ', '\t', '\n', ';']);
        let done = match key {
            "policy" => options::policy(value).map(|policy| setup.policy = policy),
            "nice" => value
                .parse()
                .map(|nice| setup.nice = nice)
                .map_err(|_| (format!("'{value}' is no nice value (a whole number from -20 to 19)"), None)),
            "affinity" => options::affinity(value).map(|affinity| setup.affinity = affinity),
            "mem" => options::mem_policy(value).map(|policy| setup.mem_policy = policy),
            "mpol" => options::mpol_flags(value).map(|flags| setup.mpol_flags = flags),
            _ => options::clone_mode(value).map(|mode| setup.clone_mode = mode),
        };
        done.map_err(|(what, near)| self.error(value_at, what, near))
    }
}
