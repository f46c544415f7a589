//! The values of scenario files: counts, parts, times, cpusets, and the ops that stand on one line.
//!
//! Owns reading each from its word; leaves sections and order to `parse`.
//! Invariant: an error names the column of the word that is wrong.

use super::parse::FLAGS;
use super::words::{self, Line, Word};
use super::works;
use crate::proto::cpuset::{CpuSet, MAX_CPU};
use crate::proto::scenario::{Count, CpuMax, CpusetSpec, Fraction, HoldSpec, Needs, Op, Unit, WHOLE};
use crate::scenario::resolve::validate;
use crate::units::{NS_PER_MS, NS_PER_SEC, nearest, parse_duration};

/// What is wrong in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Another line than the one being read.
    pub line: Option<usize>,
    pub column: usize,
    pub what: String,
    pub nearest: Option<String>,
}

impl Fault {
    pub fn at(column: usize, what: impl Into<String>) -> Self {
        Self { line: None, column, what: what.into(), nearest: None }
    }
}

type Read<T> = Result<T, Fault>;

/// Every op's word.
pub const OPS: [&str; 24] = [
    "add-cgroup",
    "remove-cgroup",
    "set-cpuset",
    "clear-cpuset",
    "swap-cpusets",
    "set-weight",
    "set-max",
    "spawn",
    "stop-cgroup",
    "set-affinity",
    "spawn-host",
    "move-all",
    "freeze",
    "unfreeze",
    "run",
    "wait",
    "kill",
    "cpu-offline",
    "cpu-online",
    "detach-scheduler",
    "attach-scheduler",
    "restart-scheduler",
    "replace-scheduler",
    "snapshot",
];

/// The period of a limit that is given in percent: the kernel's own default (kernel/sched/sched.h, default_cfs_period).
const USUAL_PERIOD_NS: u64 = 100 * NS_PER_MS;
/// Limits of cpu.max (kernel/sched/core.c, min_cfs_quota_period and max_cfs_quota_period).
const LEAST_PERIOD_NS: u64 = NS_PER_MS;
const MOST_PERIOD_NS: u64 = NS_PER_SEC;
/// Limits of cpu.weight (Documentation/admin-guide/cgroup-v2.rst).
const MOST_WEIGHT: u32 = 10_000;
/// Time limit of a command that has none of its own.
const USUAL_LIMIT_NS: u64 = 30 * NS_PER_SEC;

/// `KEY=VALUE`.
pub fn pair(word: &Word) -> Read<(&str, &str)> {
    match word.text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key, value)),
        _ => Err(Fault::at(word.column, format!("'{}' is no KEY=VALUE", word.text))),
    }
}

/// The column of the value of `KEY=VALUE`; of the word itself where it is no pair.
fn value_column(word: &Word, value: &str) -> usize {
    word.column + word.text.chars().count() - value.chars().count()
}

fn bad(word: &Word, value: &str, what: impl Into<String>) -> Fault {
    Fault::at(value_column(word, value), what)
}

/// Names of scenarios and categories can be given on the command line, so they hold nothing that a pattern means.
pub fn scenario_name(word: &Word) -> Read<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    match word.text.chars().find(|c| !plain(*c)) {
        Some(c) => Err(Fault::at(
            word.column,
            format!("'{}' is no name: it holds '{c}', and may hold letters, digits, '_', '-' and '.'", word.text),
        )),
        None => Ok(()),
    }
}

/// A new cgroup's name: levels of plain words.
pub fn cgroup_name(word: &Word) -> Read<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let level = |level: &str| !level.is_empty() && level.chars().all(plain);
    match word.text.split('/').all(level) && word.text.len() <= 200 && word.text != "host" {
        true => Ok(()),
        false => Err(Fault::at(
            word.column,
            format!(
                "'{}' cannot name a cgroup: letters, digits, '_' and '-', levels divided by '/', and not 'host'",
                word.text
            ),
        )),
    }
}

pub fn flags(words: &[Word]) -> Read<()> {
    for word in words {
        if !FLAGS.contains(&word.text.as_str()) {
            let near = nearest(&word.text, FLAGS).map(str::to_owned);
            let what = format!("'{}' is no flag of a scheduler ({})", word.text, FLAGS.join(", "));
            return Err(Fault { nearest: near, ..Fault::at(word.column, what) });
        }
    }
    Ok(())
}

pub fn needs(words: &[Word]) -> Read<Needs> {
    const KEYS: [&str; 4] = ["cpus", "llcs", "nodes", "threads"];
    let mut needs = Needs::default();
    for word in words {
        let (key, value) = pair(word)?;
        let least = number(word, value, 1, MAX_CPU + 1)?;
        match key {
            "cpus" => needs.cpus = least,
            "llcs" => needs.llcs = least,
            "nodes" => needs.nodes = least,
            "threads" => needs.threads_per_core = least,
            _ => {
                let near = nearest(key, KEYS).map(str::to_owned);
                let what = format!("'{key}' is nothing that a machine has ({})", KEYS.join(", "));
                return Err(Fault { nearest: near, ..Fault::at(word.column, what) });
            }
        }
    }
    Ok(needs)
}

fn number(word: &Word, value: &str, least: u32, most: u32) -> Read<u32> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let parsed = if digits { value.parse().ok() } else { None };
    let in_range = parsed.filter(|number| (least..=most).contains(number));
    in_range.ok_or_else(|| bad(word, value, format!("'{value}' is no whole number from {least} to {most}")))
}

fn duration(word: &Word, value: &str) -> Read<u64> {
    match parse_duration(value).map_err(|what| bad(word, value, what))? {
        0 => Err(bad(word, value, "a time of 0 is none")),
        ns => Ok(ns),
    }
}

pub fn time(word: &Word) -> Read<u64> {
    duration(word, &word.text)
}

/// `50%`, with at most four digits behind the point.
pub fn fraction(word: &Word, value: &str) -> Read<Fraction> {
    let refuse = || {
        bad(
            word,
            value,
            format!("'{value}' is no part of a whole (from 0% to 100%, at most four digits behind the point)"),
        )
    };
    let digits = value.strip_suffix('%').ok_or_else(refuse)?;
    let (whole, rest) = digits.split_once('.').unwrap_or((digits, ""));
    let numeric = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty()
        || whole.len() > 3
        || rest.len() > 4
        || !numeric(whole)
        || !numeric(rest)
        || digits.ends_with('.')
    {
        return Err(refuse());
    }
    let padded = format!("{rest:0<4}");
    let parts = whole.parse::<u32>().ok().zip(padded.parse::<u32>().ok());
    let millionths = parts.map(|(whole, rest)| whole * (WHOLE / 100) + rest);
    millionths.and_then(Fraction::new).ok_or_else(refuse)
}

/// `4`, `cpus`, `cpus*3/2`.
pub fn count(word: &Word, value: &str) -> Read<Count> {
    /// No count of anything is larger.
    const MOST: u32 = 65_536;
    const UNITS: [(&str, Unit); 5] = [
        ("cpus", Unit::Cpus),
        ("usable", Unit::Usable),
        ("llcs", Unit::Llcs),
        ("nodes", Unit::Nodes),
        ("auto", Unit::Auto),
    ];
    if value.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(Count::fixed(number(word, value, 1, MOST)?));
    }
    let (rest, by) = value.split_once('/').map_or((value, None), |(rest, by)| (rest, Some(by)));
    let (unit, times) = rest.split_once('*').map_or((rest, None), |(unit, times)| (unit, Some(times)));
    let Some((_, found)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let near = nearest(unit, UNITS.iter().map(|(name, _)| *name)).map(str::to_owned);
        let what = format!("'{value}' is no count: a number, or cpus, usable, llcs, nodes, auto, with *N and /N");
        return Err(Fault { nearest: near, ..bad(word, value, what) });
    };
    let factor = |text: Option<&str>| {
        text.map_or(Ok(1), |text| number(word, text, 1, MOST).map_err(|fault| bad(word, value, fault.what)))
    };
    Ok(Count { unit: *found, times: factor(times)?, by: factor(by)? })
}

pub fn cpuset(word: &Word, value: &str) -> Read<CpusetSpec> {
    const FORMS: &str = "usable, each, llc:N, node:N, range:A%..B%, part:N/OF, overlap:N/OF:SHARE%, cpus:LIST";
    const NAMES: [&str; 8] = ["usable", "each", "llc", "node", "range", "part", "overlap", "cpus"];
    let (name, rest) = value.split_once(':').map_or((value, None), |(name, rest)| (name, Some(rest)));
    let index = |text: &str| number(word, text, 0, MAX_CPU).map_err(|fault| bad(word, value, fault.what));
    let of = |text: &str| match text.split_once('/') {
        Some((part, of)) => Ok((index(part)?, index(of)?)),
        None => Err(bad(word, value, format!("'{text}' is no N/OF, such as 0/2"))),
    };
    let share = |text: &str| fraction(word, text).map_err(|fault| bad(word, value, fault.what));
    let spec = match (name, rest) {
        ("usable", None) => CpusetSpec::Usable,
        ("each", None) => CpusetSpec::Each,
        ("llc", Some(rest)) => CpusetSpec::Llc { index: index(rest)? },
        ("node", Some(rest)) => CpusetSpec::Numa { index: index(rest)? },
        ("range", Some(rest)) => match rest.split_once("..") {
            Some((start, end)) => CpusetSpec::Range { start: share(start)?, end: share(end)? },
            None => return Err(bad(word, value, format!("'{rest}' is no range, such as 0%..50%"))),
        },
        ("part", Some(rest)) => {
            let (index, of) = of(rest)?;
            CpusetSpec::Disjoint { index, of }
        }
        ("overlap", Some(rest)) => match rest.split_once(':') {
            Some((part, part_share)) => {
                let ((index, of), share) = (of(part)?, share(part_share)?);
                CpusetSpec::Overlap { index, of, share }
            }
            None => return Err(bad(word, value, format!("'{rest}' is no N/OF:SHARE%, such as 0/3:50%"))),
        },
        ("cpus", Some(rest)) => {
            CpusetSpec::Exact { cpus: rest.parse::<CpuSet>().map_err(|what| bad(word, value, what))? }
        }
        _ => {
            let near = nearest(name, NAMES).map(str::to_owned);
            return Err(Fault { nearest: near, ..bad(word, value, format!("'{value}' is no cpuset ({FORMS})")) });
        }
    };
    validate(&spec).map_err(|why| bad(word, value, why))?;
    Ok(spec)
}

pub fn weight(word: &Word, value: &str) -> Read<u32> {
    number(word, value, 1, MOST_WEIGHT)
}

/// `20ms/100ms`, or `20%` of the usual period.
pub fn max(word: &Word, value: &str) -> Read<CpuMax> {
    let max = match value.split_once('/') {
        Some((quota, period)) => {
            let time = |text: &str| parse_duration(text).map_err(|what| bad(word, value, what));
            CpuMax { quota_ns: time(quota)?, period_ns: time(period)? }
        }
        None => CpuMax { quota_ns: fraction(word, value)?.of(USUAL_PERIOD_NS), period_ns: USUAL_PERIOD_NS },
    };
    if !(LEAST_PERIOD_NS..=MOST_PERIOD_NS).contains(&max.period_ns) {
        return Err(bad(word, value, "the period must be from 1ms to 1s"));
    }
    if max.quota_ns < LEAST_PERIOD_NS {
        return Err(bad(word, value, "the quota must be at least 1ms"));
    }
    Ok(max)
}

/// What stands behind `step`.
pub fn hold(words: &[Word], column: usize) -> Read<HoldSpec> {
    let refuse =
        |at: usize| Err(Fault::at(at, "a step lasts a part (50%), a time (2s), or repeats its ops ('loop 100ms')"));
    match words {
        [] => Ok(HoldSpec::FULL),
        [part] if part.text.ends_with('%') => Ok(HoldSpec::Frac { part: fraction(part, &part.text)? }),
        [word] if word.text == "loop" => refuse(word.column),
        [word] => Ok(HoldSpec::Fixed { ns: time(word)? }),
        [word, interval] if word.text == "loop" => Ok(HoldSpec::Loop { interval_ns: time(interval)? }),
        _ => refuse(words.get(1).map_or(column, |word| word.column)),
    }
}

/// The argument at a place of a line.
pub fn argument<'a>(line: &'a Line, index: usize, what: &str) -> Read<&'a Word> {
    let first = &line.head[0];
    line.head.get(index).ok_or_else(|| Fault::at(first.column, format!("'{}' needs {what}", first.text)))
}

/// The ops whose arguments are words.
pub fn op(line: &Line) -> Read<Op> {
    let first = line.head[0].text.as_str();
    let group = |index: usize| argument(line, index, "a cgroup").map(|word| word.text.clone());
    let (op, used) = match first {
        "add-cgroup" => {
            let name = argument(line, 1, "a cgroup")?;
            cgroup_name(name)?;
            (Op::AddCgroup { name: name.text.clone() }, 2)
        }
        "remove-cgroup" => (Op::RemoveCgroup { name: group(1)? }, 2),
        "set-cpuset" => {
            let word = argument(line, 2, "a cgroup and a cpuset")?;
            (Op::SetCpuset { name: group(1)?, cpuset: cpuset(word, &word.text)? }, 3)
        }
        "clear-cpuset" => (Op::ClearCpuset { name: group(1)? }, 2),
        "swap-cpusets" => (Op::SwapCpusets { a: group(1)?, b: argument(line, 2, "two cgroups")?.text.clone() }, 3),
        "set-weight" => {
            let word = argument(line, 2, "a cgroup and a weight")?;
            (Op::SetWeight { name: group(1)?, weight: weight(word, &word.text)? }, 3)
        }
        "set-max" => {
            let word = argument(line, 2, "a cgroup and a limit (20ms/100ms, 20%, none)")?;
            let limit = if word.text == "none" { None } else { Some(max(word, &word.text)?) };
            (Op::SetMax { name: group(1)?, max: limit }, 3)
        }
        "stop-cgroup" => (Op::StopCgroup { name: group(1)? }, 2),
        "set-affinity" => {
            let word = argument(line, 2, "a cgroup and an affinity")?;
            let affinity = works::parse_affinity(&word.text)
                .map_err(|(what, near)| Fault { nearest: near, ..Fault::at(word.column, what) })?;
            (Op::SetAffinity { name: group(1)?, affinity }, 3)
        }
        "move-all" => (Op::MoveAllTasks { from: group(1)?, to: argument(line, 2, "two cgroups")?.text.clone() }, 3),
        "freeze" => (Op::FreezeCgroup { name: group(1)? }, 2),
        "unfreeze" => (Op::UnfreezeCgroup { name: group(1)? }, 2),
        "run" => return run(line),
        "wait" => (Op::WaitPayload { name: argument(line, 1, "the name of a command")?.text.clone() }, 2),
        "kill" => (Op::KillPayload { name: argument(line, 1, "the name of a command")?.text.clone() }, 2),
        "cpu-offline" | "cpu-online" => {
            let word = argument(line, 1, "a CPU number")?;
            let cpu = number(word, &word.text, 0, MAX_CPU)?;
            (if first == "cpu-offline" { Op::CpuOffline { cpu } } else { Op::CpuOnline { cpu } }, 2)
        }
        "detach-scheduler" => (Op::DetachScheduler, 1),
        "attach-scheduler" => (Op::AttachScheduler, 1),
        "restart-scheduler" => (Op::RestartScheduler, 1),
        "replace-scheduler" => {
            (Op::ReplaceScheduler { name: argument(line, 1, "a scheduler (PATH or builtin:NAME)")?.text.clone() }, 2)
        }
        _ => (Op::Snapshot, 1),
    };
    if let Some(word) = line.head.get(used) {
        return Err(Fault::at(word.column, format!("'{}' is left over", word.text)));
    }
    match &line.tail {
        Some((column, _)) => {
            Err(Fault::at(column.saturating_sub(1), format!("'{first}' takes nothing behind a colon")))
        }
        None => Ok(op),
    }
}

/// `run NAME [limit=TIME] [cgroup=NAME]: COMMAND ARGUMENTS`.
fn run(line: &Line) -> Read<Op> {
    let name = argument(line, 1, "a name and a command: 'run NAME: COMMAND'")?;
    scenario_name(name)?;
    let (mut limit_ns, mut cgroup) = (USUAL_LIMIT_NS, None);
    for word in &line.head[2..] {
        match pair(word)? {
            ("limit", value) => limit_ns = duration(word, value)?,
            ("cgroup", value) => cgroup = Some(value.to_owned()),
            (key, _) => {
                let near = nearest(key, ["limit", "cgroup"]).map(str::to_owned);
                let what = format!("'{key}' is no setting of a command (limit, cgroup)");
                return Err(Fault { nearest: near, ..Fault::at(word.column, what) });
            }
        }
    }
    let Some((column, text)) = &line.tail else {
        return Err(Fault::at(name.column, "the command is missing: it stands behind a colon, 'run NAME: COMMAND'"));
    };
    let argv = words::command(text).map_err(|(at, what)| Fault::at(column + at - 1, what))?;
    match argv.first() {
        Some(program) if program.starts_with('/') => {}
        Some(program) => {
            return Err(Fault::at(*column, format!("'{program}' is no absolute path, and a guest has no other")));
        }
        None => return Err(Fault::at(*column, "the command is missing")),
    }
    Ok(Op::RunPayload { name: name.text.clone(), argv, limit_ns, cgroup })
}
