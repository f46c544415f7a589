//! The one grammar of work: `bursty(burst=5ms, sleep=10ms)*4 nice=5 policy=fifo:10; spin*2`.
//!
//! Owns reading and writing that text, for the command line and for scenario files alike; leaves the rules that values must
//! keep to config.
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

use super::config::{ConfigError, validate_spec};
use super::types::{find, suggest, types};
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::{CloneMode, MemPolicy, MpolFlags, SchedPolicy, WorkSetup, WorkSpec};
use crate::proto::scenario::{AffinityIntent, Count, DefWork};
use crate::proto::work::{Phase, WorkType};
use crate::units::{duration, nearest, parse_duration};
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
            "policy" => policy(value).map(|policy| setup.policy = policy),
            "nice" => value
                .parse()
                .map(|nice| setup.nice = nice)
                .map_err(|_| (format!("'{value}' is no nice value (a whole number from -20 to 19)"), None)),
            "affinity" => affinity(value).map(|affinity| setup.affinity = affinity),
            "mem" => mem_policy(value).map(|policy| setup.mem_policy = policy),
            "mpol" => mpol_flags(value).map(|flags| setup.mpol_flags = flags),
            _ => clone_mode(value).map(|mode| setup.clone_mode = mode),
        };
        done.map_err(|(what, near)| self.error(value_at, what, near))
    }
}

type Value<T> = Result<T, (String, Option<String>)>;

/// Splits `name:rest`, and refuses a name that is not known.
fn head<'a>(what: &str, value: &'a str, known: &[&str]) -> Value<(&'a str, Option<&'a str>)> {
    let (name, rest) = match value.split_once(':') {
        Some((name, rest)) => (name, Some(rest)),
        None => (value, None),
    };
    match known.contains(&name) {
        true => Ok((name, rest)),
        false => {
            let near = nearest(name, known.iter().copied()).map(str::to_owned);
            Err((format!("'{name}' is no {what} ({})", known.join(", ")), near))
        }
    }
}

fn needs<T>(example: &str) -> Value<T> {
    Err((format!("more is needed, such as {example}"), None))
}

fn too_much<T>(name: &str, rest: &str) -> Value<T> {
    Err((format!("'{name}' takes nothing, yet ':{rest}' follows"), None))
}

fn policy(value: &str) -> Value<SchedPolicy> {
    let (name, rest) = head("policy", value, &["normal", "batch", "idle", "fifo", "rr", "deadline", "ext"])?;
    let priority = |text: &str| text.parse().map_err(|_| (format!("'{text}' is no priority (1 to 99)"), None));
    Ok(match (name, rest) {
        ("fifo", Some(text)) => SchedPolicy::Fifo { priority: priority(text)? },
        ("rr", Some(text)) => SchedPolicy::RoundRobin { priority: priority(text)? },
        ("deadline", Some(text)) => {
            let times = text.split(':').map(|time| parse_duration(time).map_err(|why| (why, None)));
            match times.collect::<Result<Vec<u64>, _>>()?[..] {
                [runtime_ns, deadline_ns, period_ns] => SchedPolicy::Deadline { runtime_ns, deadline_ns, period_ns },
                _ => return needs("deadline:1ms:5ms:10ms (runtime, deadline, period)"),
            }
        }
        ("fifo" | "rr", None) => return needs(&format!("{name}:10")),
        ("deadline", None) => return needs("deadline:1ms:5ms:10ms"),
        (name, Some(rest)) => return too_much(name, rest),
        ("batch", None) => SchedPolicy::Batch,
        ("idle", None) => SchedPolicy::Idle,
        ("ext", None) => SchedPolicy::Ext,
        _ => SchedPolicy::Normal,
    })
}

fn list(text: &str) -> Value<CpuSet> {
    match text.parse::<CpuSet>() {
        Ok(set) if set.is_empty() => needs("0-3,8"),
        Ok(set) => Ok(set),
        Err(why) => Err((why, None)),
    }
}

fn affinity(value: &str) -> Value<AffinityIntent> {
    const NAMES: [&str; 8] = ["inherit", "llc", "cross", "single", "each", "smt", "cpus", "random"];
    // `random@0-3` has no colon.
    let (value, from) = match value.strip_prefix("random").and_then(|rest| rest.split_once('@')) {
        Some((count, from)) => (format!("random{count}"), Some(list(from)?)),
        None => (value.to_owned(), None),
    };
    let (name, rest) = head("affinity", &value, &NAMES)?;
    Ok(match (name, rest) {
        ("cpus", Some(text)) => AffinityIntent::Exact { cpus: list(text)? },
        ("cpus", None) => return needs("cpus:0-3,8"),
        ("random", count) => {
            let number = |text: &str| text.parse().map_err(|_| (format!("'{text}' is no count of CPUs"), None));
            let count = count.map(number).transpose()?;
            match from {
                None => AffinityIntent::Random { count },
                Some(from) => AffinityIntent::RandomSubset { from, count },
            }
        }
        (name, Some(rest)) => return too_much(name, rest),
        ("llc", None) => AffinityIntent::LlcAligned,
        ("cross", None) => AffinityIntent::CrossCgroup,
        ("single", None) => AffinityIntent::SingleCpu,
        ("each", None) => AffinityIntent::OneEach,
        ("smt", None) => AffinityIntent::SmtSiblingPair,
        _ => AffinityIntent::Inherit,
    })
}

fn mem_policy(value: &str) -> Value<MemPolicy> {
    const NAMES: [&str; 7] = ["default", "local", "preferred", "bind", "interleave", "preferred-many", "weighted"];
    let (name, rest) = head("memory policy", value, &NAMES)?;
    Ok(match (name, rest) {
        ("default", None) => MemPolicy::Default,
        ("local", None) => MemPolicy::Local,
        ("default" | "local", Some(rest)) => return too_much(name, rest),
        (_, None) => return needs(&format!("{name}:0")),
        ("preferred", Some(text)) => match text.parse() {
            Ok(node) => MemPolicy::Preferred { node },
            Err(_) => return Err((format!("'{text}' is no node (preferred-many takes several)"), None)),
        },
        ("bind", Some(text)) => MemPolicy::Bind { nodes: list(text)? },
        ("interleave", Some(text)) => MemPolicy::Interleave { nodes: list(text)? },
        ("preferred-many", Some(text)) => MemPolicy::PreferredMany { nodes: list(text)? },
        (_, Some(text)) => MemPolicy::WeightedInterleave { nodes: list(text)? },
    })
}

fn mpol_flags(value: &str) -> Value<MpolFlags> {
    let mut flags = MpolFlags::NONE;
    for word in value.split('+') {
        match MpolFlags::WORDS.iter().find(|(known, _)| *known == word) {
            Some((_, flag)) => flags = flags.union(*flag),
            None => {
                let known = MpolFlags::WORDS.map(|(word, _)| word);
                return Err((
                    format!("'{word}' is no flag ({})", known.join(", ")),
                    nearest(word, known).map(str::to_owned),
                ));
            }
        }
    }
    Ok(flags)
}

fn clone_mode(value: &str) -> Value<CloneMode> {
    match value {
        "fork" => Ok(CloneMode::Fork),
        "thread" => Ok(CloneMode::Thread),
        _ => Err((format!("'{value}' is none of fork, thread"), nearest(value, ["fork", "thread"]).map(str::to_owned))),
    }
}

impl WorkType {
    /// The text that `parse_work` reads: `spin`, `bursty(burst=5ms,sleep=10ms)`. Defaults are left out.
    pub fn to_text(&self) -> String {
        if matches!(self, Self::Sequence { .. }) {
            return format!("{}({})", self.cli_name(), self.parameters_text());
        }
        let (mut own, mut default) = (self.clone(), self.info().default.clone());
        let usual: Vec<String> = default.parameters().iter().map(|(_, param)| param.text()).collect();
        let pairs = own.parameters().into_iter().zip(usual).filter(|((_, mine), usual)| mine.text() != *usual);
        let pairs: Vec<String> = pairs.map(|((name, param), _)| format!("{name}={}", param.text())).collect();
        match pairs.is_empty() {
            true => self.cli_name().to_owned(),
            false => format!("{}({})", self.cli_name(), pairs.join(",")),
        }
    }
}

/// The text that `parse_workspecs` reads as this one group. What is as usual is left out.
pub fn spec_text(spec: &WorkSpec) -> String {
    let groups = spec.workers / spec.work.worker_group_size().max(1);
    let mut text = format!("{}*{groups}", spec.work.to_text());
    let mut add = |key: &str, value: String| text.push_str(&format!(" {key}={value}"));
    let ns = duration;
    let counted = |count: &Option<u32>| count.map_or_else(String::new, |count| format!(":{count}"));
    match &spec.setup.policy {
        SchedPolicy::Normal => {}
        SchedPolicy::Batch => add("policy", "batch".into()),
        SchedPolicy::Idle => add("policy", "idle".into()),
        SchedPolicy::Ext => add("policy", "ext".into()),
        SchedPolicy::Fifo { priority } => add("policy", format!("fifo:{priority}")),
        SchedPolicy::RoundRobin { priority } => add("policy", format!("rr:{priority}")),
        SchedPolicy::Deadline { runtime_ns, deadline_ns, period_ns } => {
            add("policy", format!("deadline:{}:{}:{}", ns(*runtime_ns), ns(*deadline_ns), ns(*period_ns)));
        }
    }
    if spec.setup.nice != 0 {
        add("nice", spec.setup.nice.to_string());
    }
    match &spec.setup.affinity {
        AffinityIntent::Inherit => {}
        AffinityIntent::LlcAligned => add("affinity", "llc".into()),
        AffinityIntent::CrossCgroup => add("affinity", "cross".into()),
        AffinityIntent::SingleCpu => add("affinity", "single".into()),
        AffinityIntent::SmtSiblingPair => add("affinity", "smt".into()),
        AffinityIntent::Exact { cpus } => add("affinity", format!("cpus:{cpus}")),
        AffinityIntent::OneEach => add("affinity", "each".into()),
        AffinityIntent::Random { count } => add("affinity", format!("random{}", counted(count))),
        AffinityIntent::RandomSubset { from, count } => add("affinity", format!("random{}@{from}", counted(count))),
    }
    match &spec.setup.mem_policy {
        MemPolicy::Default => {}
        MemPolicy::Local => add("mem", "local".into()),
        MemPolicy::Preferred { node } => add("mem", format!("preferred:{node}")),
        MemPolicy::Bind { nodes } => add("mem", format!("bind:{nodes}")),
        MemPolicy::Interleave { nodes } => add("mem", format!("interleave:{nodes}")),
        MemPolicy::PreferredMany { nodes } => add("mem", format!("preferred-many:{nodes}")),
        MemPolicy::WeightedInterleave { nodes } => add("mem", format!("weighted:{nodes}")),
    }
    let flags: Vec<&str> =
        MpolFlags::WORDS.iter().filter(|(_, flag)| spec.setup.mpol_flags.has(*flag)).map(|(word, _)| *word).collect();
    if !flags.is_empty() {
        add("mpol", flags.join("+"));
    }
    if spec.setup.clone_mode == CloneMode::Thread {
        add("clone", "thread".into());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NS_PER_MS;

    fn one(text: &str) -> WorkSpec {
        let mut specs = parse_workspecs(text, 2).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(specs.len(), 1, "{text}");
        specs.remove(0)
    }

    #[test]
    fn text_form_of_every_type_round_trips() {
        let custom = [
            WorkType::Bursty { burst_ns: 5 * NS_PER_MS, sleep_ns: 10 * NS_PER_MS },
            WorkType::PipeIo { burst_iters: 7 },
            WorkType::Sequence {
                first: Phase::Spin { ns: 5 },
                rest: vec![Phase::Io { ns: 9 }, Phase::Yield { ns: 1 }],
            },
            WorkType::NumaWorkingSetSweep { region_kb: 4, sweep_period_ns: 1, target_nodes: vec![0, 2, 3] },
        ];
        let usual = types().map(|info| info.default.clone()).filter(|work| work.name() != "Custom");
        for work in custom.into_iter().chain(usual) {
            assert_eq!(parse_work(&work.to_text()).unwrap(), work, "{}", work.to_text());
            let spec = WorkSpec::new(work.clone(), 2 * work.worker_group_size());
            assert_eq!(one(&spec_text(&spec)), spec, "{}", spec_text(&spec));
        }
        assert_eq!(
            parse_work(" Bursty( sleep = 1ms ) ").unwrap(),
            WorkType::Bursty { burst_ns: 50 * NS_PER_MS, sleep_ns: NS_PER_MS }
        );
        assert_eq!(parse_work("spin()").unwrap(), WorkType::SpinWait);
    }

    #[test]
    fn counts_are_of_whole_groups() {
        assert_eq!(one("pipe*3").workers, 6);
        assert_eq!(one("fan-out(fan_out=8)*2").workers, 18);
        assert_eq!(one("spin").workers, 2);
        assert_eq!(one("wake-chain(depth=3)").workers, 3);
        let both = parse_workspecs("spin*2 nice=5; bursty(burst=5ms)*1 policy=batch", 1).unwrap();
        assert_eq!((both.len(), both[0].setup.nice, &both[1].setup.policy), (2, 5, &SchedPolicy::Batch));
    }

    #[test]
    fn options_round_trip() {
        for text in [
            "spin*1 policy=fifo:10",
            "spin*1 policy=rr:99 affinity=llc",
            "spin*1 policy=deadline:1ms:5ms:10ms",
            "spin*1 policy=idle nice=0 affinity=cpus:0-3,8",
            "spin*1 nice=-5 affinity=random:2@0-7",
            "spin*1 affinity=random@0-7",
            "spin*1 affinity=random",
            "spin*1 affinity=cross mem=bind:0-1 mpol=static+balancing",
            "spin*1 affinity=single mem=weighted:0",
            "smt-spin*1 affinity=smt mem=preferred:1 clone=thread",
            "spin*1 policy=ext mem=local",
        ] {
            let spec = one(text);
            assert_eq!(one(&spec_text(&spec)), spec, "{text}");
            assert_eq!(spec_text(&spec), text.replace(" nice=0", ""), "{text}");
        }
    }

    #[test]
    fn wrong_text_gives_column_and_nearest_word() {
        for (text, what, column, near) in [
            ("spni", "'spni' is no work type", 1, Some("spin")),
            ("bursty(brust=1ms)", "bursty has no parameter 'brust'", 8, Some("burst")),
            ("bursty(burst=1ms,sleep=3)", "unit is missing", 24, None),
            ("bursty(burst=0ms)", "burst must be above zero", 14, None),
            ("pipe(burst_iters=x)", "no whole number", 18, None),
            ("pipe(burst_iters=1", "')' is missing", 19, None),
            ("pipe(burst_iters)", "no KEY=VALUE", 6, None),
            ("pipe(burst_iters=1,burst_iters=2)", "twice", 20, None),
            ("spin(x=1)", "has no parameters", 6, None),
            ("spin*0", "'0' is no count of groups", 6, None),
            ("spin*2 polcy=fifo:1", "'polcy' is no option", 8, Some("policy")),
            ("spin policy=fifo", "more is needed, such as fifo:10", 13, None),
            ("spin policy=fifi:3", "'fifi' is no policy", 13, Some("fifo")),
            ("spin policy=fifo:100", "sched_policy.priority must be from 1 to 99", 1, None),
            ("spin policy=batch:3", "'batch' takes nothing", 13, None),
            ("spin nice=x", "no nice value", 11, None),
            ("spin nice=20", "nice must be from -20 to 19", 1, None),
            ("spin nice=1 nice=2", "'nice' is given twice", 13, None),
            ("spin affinity=lcl", "'lcl' is no affinity", 15, Some("llc")),
            ("spin affinity=random:0", "affinity.count must be above zero", 1, None),
            ("spin mem=bind", "such as bind:0", 10, None),
            ("spin mpol=statik", "'statik' is no flag", 11, Some("static")),
            ("spin clone=thred", "none of fork, thread", 12, Some("thread")),
            ("fork clone=thread", "clone_mode", 1, None),
            ("sequence(spin 2ms, slep 1ms)", "'slep' is no phase", 20, Some("sleep")),
            ("sequence(spin)", "is not a duration: it is empty", 14, None),
            ("sequence()", "needs a phase", 11, None),
            ("alu(width=1024)", "'1024' is none of scalar", 11, Some("128")),
            ("asym-waker(waker_class=rtt)", "is none of cfs", 24, Some("rt")),
            ("spin;", "name of a work type is missing", 6, None),
            ("wake-chain(depth=1)", "depth must be at least 2", 18, None),
            ("custom", "name", 1, None),
        ] {
            let error = parse_workspecs(text, 2).expect_err(text);
            assert!(error.what.contains(what), "{text}: {error}");
            assert_eq!((error.column, error.nearest.as_deref()), (column, near), "{text}: {error}");
        }
        assert!(parse_work("spin)").is_err() && parse_work("").is_err());
    }

    #[test]
    fn column_counts_characters() {
        assert_eq!(parse_work("bursty(burst=é)").unwrap_err().column, 14);
    }
}
