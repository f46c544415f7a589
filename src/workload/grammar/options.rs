//! The values of a work's options: policy, affinity, memory policy and its flags, processes or threads.
//!
//! Owns reading each of them; leaves their place in the text to the grammar, and their rules to config.
//! Invariant: a word that is not known is told with all that are, and the nearest.

use crate::proto::cpuset::CpuSet;
use crate::proto::plan::{CloneMode, MemPolicy, MpolFlags, SchedPolicy};
use crate::proto::scenario::AffinityIntent;
use crate::units::{nearest, parse_duration};

/// A value, or why the text is none, with the nearest valid word.
pub type Value<T> = Result<T, (String, Option<String>)>;

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

pub fn policy(value: &str) -> Value<SchedPolicy> {
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

pub fn affinity(value: &str) -> Value<AffinityIntent> {
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

pub fn mem_policy(value: &str) -> Value<MemPolicy> {
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

pub fn mpol_flags(value: &str) -> Value<MpolFlags> {
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

pub fn clone_mode(value: &str) -> Value<CloneMode> {
    match value {
        "fork" => Ok(CloneMode::Fork),
        "thread" => Ok(CloneMode::Thread),
        _ => Err((format!("'{value}' is none of fork, thread"), nearest(value, ["fork", "thread"]).map(str::to_owned))),
    }
}
