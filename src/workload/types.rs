//! The work types as people meet them: names, defaults, what each does and what its samples mean, and their text form.
//!
//! Owns names, parsing and description; leaves the values to proto/work and the doing to kinds/.
//! Invariant: `parse_work(work.to_text())` gives `work` back, and what is parsed has passed `check`.

use super::config::ConfigError;
use crate::proto::work::{SampleKind, WorkType};
use crate::units::{NS_PER_MS, duration, nearest, parse_duration};
use std::fmt;

/// Everything about a type that does not depend on its parameters.
#[derive(Debug)]
pub struct TypeInfo {
    /// PascalCase, as in reports.
    pub name: &'static str,
    /// The short name of the command line.
    pub cli_name: &'static str,
    /// Workers that depend on one another; the number of workers is a multiple of it.
    pub group_size: u32,
    /// What its latency samples measure.
    pub sample_kinds: &'static [SampleKind],
    /// One line.
    pub description: &'static str,
    /// What it makes the scheduler do, what its samples mean, what they do not.
    pub method: &'static str,
    /// The type with its default parameters.
    pub default: WorkType,
}

/// Every work type, in the order they are listed to people.
pub const TYPES: [TypeInfo; 5] = [
    TypeInfo {
        name: "SpinWait",
        cli_name: "spin",
        group_size: 1,
        sample_kinds: &[],
        description: "spins without ever blocking: pure demand for CPU time",
        method: "Each worker is always runnable and leaves the CPU only when the scheduler takes it away, so time \
                 slices, preemption, load balancing and fairness are all that decides its share. It takes no latency \
                 samples: its run delay and its longest gap say how long it was kept waiting. It says nothing about \
                 wake-ups, because there are none.",
        default: WorkType::SpinWait,
    },
    TypeInfo {
        name: "YieldHeavy",
        cli_name: "yield",
        group_size: 1,
        sample_kinds: &[SampleKind::Yield],
        description: "yields after every unit of work: the enqueue and pick-next paths at full rate",
        method: "Each worker calls sched_yield after one unit, so the scheduler is asked for a new decision as often \
                 as the system call allows. A `yield` sample is the time spent in one such call: the decision itself \
                 where nobody else wants the CPU, the others' turns where somebody does. It is no wake-up latency: \
                 the worker stays runnable all the time, and a long stay counts as a gap.",
        default: WorkType::YieldHeavy,
    },
    TypeInfo {
        name: "Bursty",
        cli_name: "bursty",
        group_size: 1,
        sample_kinds: &[SampleKind::Timer],
        description: "spins for a burst, then sleeps: load that comes and goes",
        method: "Each worker spins for `burst` and sleeps for `sleep`, so CPUs turn idle and busy again and the \
                 scheduler places a waking task every period. A `timer` sample is the oversleep: elapsed minus requested \
                 time, which holds the timer's slack (50 us by default), the interrupt, the wake-up and the wait for a \
                 CPU together. It does not separate them; the run delay shows the last part alone.",
        default: WorkType::Bursty { burst_ns: 50 * NS_PER_MS, sleep_ns: 100 * NS_PER_MS },
    },
    TypeInfo {
        name: "PipeIo",
        cli_name: "pipe",
        group_size: 2,
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "pairs that spin, then exchange a byte over pipes: wake-ups through a file",
        method: "Two workers spin, write one byte to each other and wait for the other's byte, so whoever is ahead \
                 sleeps until its partner wakes it from inside write(2), which the kernel marks as a synchronous wake-up. A \
                 `wake` sample runs from the partner's time stamp just before that write to the first instruction after \
                 poll(2) returned; it holds the write, the scheduler's choice of CPU and the wait for it. A `block` \
                 sample is the whole wait, the partner's spinning included. A byte that was there already gives no sample.",
        default: WorkType::PipeIo { burst_iters: 1024 },
    },
    TypeInfo {
        name: "FutexPingPong",
        cli_name: "ping-pong",
        group_size: 2,
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "pairs that hand a futex word to and fro: one of the two always sleeps",
        method: "Two workers take turns: the one whose turn it is spins, hands the word over, wakes its partner and \
                 waits for its next turn. So exactly one of the pair wants a CPU, and every turn is a sleep and a wake-up. A \
                 `wake` sample runs from the waker's time stamp just before FUTEX_WAKE to the wakee's first instruction \
                 after its wait; `block` is the whole wait, the partner's turn included. The throughput of a pair is \
                 bounded by the wake-up path, not by the CPU.",
        default: WorkType::FutexPingPong { spin_iters: 1024 },
    },
];

/// The names of all types, as in reports.
pub const ALL_NAMES: [&str; TYPES.len()] = {
    let mut names = [""; TYPES.len()];
    let mut i = 0;
    while i < TYPES.len() {
        names[i] = TYPES[i].name;
        i += 1;
    }
    names
};

/// `FutexPingPong` as `futex-ping-pong`.
fn kebab(pascal: &str) -> String {
    let mut text = String::new();
    for letter in pascal.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

fn find(name: &str) -> Option<&'static TypeInfo> {
    TYPES.iter().find(|info| info.name == name || info.cli_name == name || kebab(info.name) == name)
}

/// The valid name nearest to a wrong one, in the form the command line shows.
pub fn suggest(word: &str) -> Option<&'static str> {
    let short = nearest(word, TYPES.iter().map(|info| info.cli_name));
    short.or_else(|| {
        let long: Vec<String> = TYPES.iter().map(|info| kebab(info.name)).collect();
        let hit = nearest(&kebab(word), long.iter().map(String::as_str))?;
        find(hit).map(|info| info.cli_name)
    })
}

/// How a parameter is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Duration,
    Count,
}

impl WorkType {
    /// What does not depend on the parameters.
    pub fn info(&self) -> &'static TypeInfo {
        match self {
            Self::SpinWait => &TYPES[0],
            Self::YieldHeavy => &TYPES[1],
            Self::Bursty { .. } => &TYPES[2],
            Self::PipeIo { .. } => &TYPES[3],
            Self::FutexPingPong { .. } => &TYPES[4],
        }
    }
    pub fn name(&self) -> &'static str {
        self.info().name
    }
    pub fn cli_name(&self) -> &'static str {
        self.info().cli_name
    }
    pub fn worker_group_size(&self) -> u32 {
        self.info().group_size
    }
    pub fn sample_kinds(&self) -> &'static [SampleKind] {
        self.info().sample_kinds
    }
    pub fn description(&self) -> &'static str {
        self.info().description
    }
    pub fn method(&self) -> &'static str {
        self.info().method
    }
    /// The type of this name (`SpinWait`, `spin-wait` or `spin`), with its default parameters.
    pub fn from_name(name: &str) -> Option<Self> {
        find(name).map(|info| info.default.clone())
    }

    /// The parameters: name, form, value.
    fn parameters(&mut self) -> Vec<(&'static str, Form, &mut u64)> {
        match self {
            Self::SpinWait | Self::YieldHeavy => vec![],
            Self::Bursty { burst_ns, sleep_ns } => {
                vec![("burst", Form::Duration, burst_ns), ("sleep", Form::Duration, sleep_ns)]
            }
            Self::PipeIo { burst_iters } => vec![("burst_iters", Form::Count, burst_iters)],
            Self::FutexPingPong { spin_iters } => vec![("spin_iters", Form::Count, spin_iters)],
        }
    }

    /// The text that `parse_work` reads: `spin`, `bursty(burst=5ms,sleep=10ms)`. Defaults are left out.
    pub fn to_text(&self) -> String {
        let (mut own, mut default) = (self.clone(), self.info().default.clone());
        let pairs: Vec<String> = own
            .parameters()
            .into_iter()
            .zip(default.parameters())
            .filter(|(mine, usual)| mine.2 != usual.2)
            .map(|((name, form, value), _)| match form {
                Form::Duration => format!("{name}={}", duration(*value)),
                Form::Count => format!("{name}={value}"),
            })
            .collect();
        match pairs.is_empty() {
            true => self.cli_name().to_owned(),
            false => format!("{}({})", self.cli_name(), pairs.join(",")),
        }
    }
}

/// Why a text names no work type.
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

/// Reads `spin` or `bursty(burst=5ms, sleep=10ms)`.
pub fn parse_work(text: &str) -> Result<WorkType, WorkParseError> {
    let error = |at: usize, what: String, nearest: Option<String>| WorkParseError {
        column: text[..at].chars().count() + 1,
        what,
        nearest,
    };
    let (name, inner) = match text.find('(') {
        None => (text, None),
        Some(open) => match text.trim_end().strip_suffix(')') {
            Some(closed) => (&text[..open], Some((open + 1, &closed[open + 1..]))),
            None => return Err(error(text.len(), "')' is missing".into(), None)),
        },
    };
    let name_at = name.len() - name.trim_start().len();
    let name = name.trim();
    let mut work = WorkType::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = TYPES.iter().map(|info| info.cli_name).collect();
        let what = format!("'{name}' is no work type ({})", known.join(", "));
        error(name_at, what, suggest(name).map(str::to_owned))
    })?;
    let mut seen: Vec<&str> = Vec::new();
    let (mut at, parts) = inner.map_or((0, ""), |(at, parts)| (at, parts));
    for part in parts.split(',').filter(|_| !parts.trim().is_empty()) {
        let word_at = at + part.len() - part.trim_start().len();
        let Some((key, value)) = part.split_once('=') else {
            return Err(error(word_at, format!("'{}' is no KEY=VALUE", part.trim()), None));
        };
        let value_at = at + key.len() + 1 + value.len() - value.trim_start().len();
        let (key, value) = (key.trim(), value.trim());
        if seen.contains(&key) {
            return Err(error(word_at, format!("'{key}' is given twice"), None));
        }
        seen.push(key);
        let type_name = work.cli_name();
        let mut parameters = work.parameters();
        let Some(index) = parameters.iter().position(|(name, ..)| *name == key) else {
            let near = nearest(key, parameters.iter().map(|(name, ..)| *name)).map(str::to_owned);
            let what = match parameters.is_empty() {
                true => format!("{type_name} has no parameters, so no '{key}'"),
                false => format!("{type_name} has no parameter '{key}'"),
            };
            return Err(error(word_at, what, near));
        };
        let (_, form, place) = &mut parameters[index];
        **place = match form {
            Form::Duration => parse_duration(value).map_err(|what| error(value_at, what, None))?,
            Form::Count => value.parse().map_err(|_| error(value_at, format!("'{value}' is no whole number"), None))?,
        };
        work.check().map_err(|ConfigError { field, rule }| error(value_at, format!("{field} {rule}"), None))?;
        at += part.len() + 1;
    }
    Ok(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_three_names() {
        for info in &TYPES {
            for name in [info.name.to_owned(), info.cli_name.to_owned(), kebab(info.name)] {
                assert_eq!(WorkType::from_name(&name).unwrap(), info.default, "{name}");
            }
            assert_eq!(info.default.info().name, info.name);
            assert!(info.method.len() > 200 && !info.description.is_empty());
        }
        assert_eq!(ALL_NAMES, ["SpinWait", "YieldHeavy", "Bursty", "PipeIo", "FutexPingPong"]);
        assert_eq!(kebab("FutexPingPong"), "futex-ping-pong");
        assert_eq!(WorkType::from_name("Spin"), None);
    }

    #[test]
    fn typo_gets_the_nearest_name() {
        assert_eq!(suggest("spni"), Some("spin"));
        assert_eq!(suggest("SpinWiat"), Some("spin"));
        assert_eq!(suggest("FutexPingPing"), Some("ping-pong"));
        assert_eq!(suggest("qqqqqqqqq"), None);
    }

    #[test]
    fn text_form_round_trips() {
        let custom = [
            WorkType::Bursty { burst_ns: 5 * NS_PER_MS, sleep_ns: 10 * NS_PER_MS },
            WorkType::PipeIo { burst_iters: 7 },
            WorkType::FutexPingPong { spin_iters: 1 },
        ];
        for work in custom.into_iter().chain(TYPES.iter().map(|info| info.default.clone())) {
            assert_eq!(parse_work(&work.to_text()).unwrap(), work, "{}", work.to_text());
        }
        assert_eq!(
            parse_work(" Bursty( sleep = 1ms ) ").unwrap(),
            WorkType::Bursty { burst_ns: 50 * NS_PER_MS, sleep_ns: NS_PER_MS }
        );
        assert_eq!(parse_work("spin()").unwrap(), WorkType::SpinWait);
    }

    #[test]
    fn wrong_text_gives_column_and_nearest_word() {
        let message = |text: &str| parse_work(text).unwrap_err().to_string();
        assert!(message("spni").contains("'spni' is no work type"), "{}", message("spni"));
        assert!(message("spni").ends_with("at column 1 (did you mean 'spin'?)"));
        assert!(message("bursty(brust=1ms)").ends_with("at column 8 (did you mean 'burst'?)"));
        assert!(message("bursty(burst=1ms,sleep=3)").contains("unit is missing"));
        assert_eq!(parse_work("bursty(burst=1ms,sleep=3)").unwrap_err().column, 24);
        assert!(message("bursty(burst=0ms)").contains("must be above zero"));
        assert!(message("pipe(burst_iters=x)").contains("no whole number"));
        assert!(message("pipe(burst_iters=1").contains("')' is missing"));
        assert!(message("pipe(burst_iters)").contains("no KEY=VALUE"));
        assert!(message("pipe(burst_iters=1,burst_iters=2)").contains("twice"));
        assert!(message("spin(x=1)").contains("no parameters"));
        assert!(message("").contains("is no work type"));
    }
}
