//! `ktstr list works|schedulers|topologies|scenarios|log-patterns`.
//!
//! Owns the layout; leaves the lists to workload/ and scx/, which pass them in, and to klog/.
//! Invariant: the first word of each line is what the command line takes; of a pattern, what it means for the verdict.

use super::args::ListWhat;
use super::{cmd_scenario, help, out};
use crate::error::Result;
use crate::klog::{Class, PATTERNS, Severity, sched_ext};

/// One thing that can be named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name to type.
    pub name: String,
    /// Its other names and parameters; may be empty.
    pub detail: String,
    /// What it is, in a sentence.
    pub text: String,
}

/// Prints one of the lists.
pub fn cmd_list(what: ListWhat, works: &[Listed], schedulers: &[Listed], topologies: &[Listed]) -> Result<()> {
    out::print(&render(match what {
        ListWhat::Works => works,
        ListWhat::Schedulers => schedulers,
        ListWhat::Topologies => topologies,
        ListWhat::Scenarios => return out::print(&one_line_each(&cmd_scenario::list())),
        ListWhat::LogPatterns => return out::print(&render(&log_patterns())),
    }))
}

/// What is looked for in the kernel's log, in the order in which it is: the first that fits a line counts.
fn log_patterns() -> Vec<Listed> {
    let listed = |severity: Severity, class: Class, text: String, meaning: &str| {
        let detail = format!("'{text}'");
        Listed { name: format!("{:12}  {}", severity.name(), class.name()), detail, text: meaning.into() }
    };
    let reasons = sched_ext::REASONS.iter().map(|reason| {
        let text = format!("sched_ext: BPF scheduler * disabled ({})", reason.text);
        listed(reason.severity, Class::SchedExtExit, text, reason.meaning)
    });
    let patterns = PATTERNS.iter().map(|row| listed(row.severity, row.class, row.text.into(), row.meaning));
    reasons.chain(patterns).collect()
}

/// Blanks between the columns.
const GAP: usize = 2;

fn widest(entries: &[Listed]) -> usize {
    entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0) + GAP
}

/// For a list that people search: however wide it becomes.
fn one_line_each(entries: &[Listed]) -> String {
    let widest = widest(entries);
    entries.iter().map(|Listed { name, detail, text }| format!("{name:widest$}{detail}: {text}\n")).collect()
}

fn render(entries: &[Listed]) -> String {
    let widest = widest(entries);
    let mut text = String::new();
    for Listed { name, detail, text: about } in entries {
        let about = if detail.is_empty() { about.clone() } else { format!("{detail}: {about}") };
        text.push_str(&format!("{name:widest$}{}\n", help::wrap(&about, widest, widest)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_listed_with_what_it_means() {
        let text = render(&log_patterns());
        assert!(text.lines().count() > PATTERNS.len());
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for row in PATTERNS {
            assert!(row.severity.name().len() <= 12 && !row.meaning.is_empty());
        }
        for words in [
            "fail oops ",
            "ignore other ",
            "'Kernel panic - not syncing: ",
            "'*[*]: segfault at '",
            "runnable task stall",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }

    #[test]
    fn scenarios_have_a_line_each_with_their_needs_and_one_sentence() {
        let text = one_line_each(&cmd_scenario::list());
        assert_eq!(text.lines().count(), 73);
        let wanted = "performance/fanout_wake";
        let line = text.lines().find(|line| line.starts_with(wanted)).unwrap();
        assert_eq!(
            line[wanted.len()..].trim_start(),
            "2 CPUs: One task wakes four at once, in several groups, beside load."
        );
        assert!(text.lines().all(|line| line.ends_with(['.', '?'])), "{text}");
    }

    #[test]
    fn names_come_first_and_texts_line_up() {
        let entry = |name: &str, detail: &str, text: &str| Listed {
            name: name.into(),
            detail: detail.into(),
            text: text.into(),
        };
        let text = render(&[entry("spin", "", "spins"), entry("ping-pong", "FutexPingPong", &"long ".repeat(30))]);
        assert!(text.starts_with("spin       spins\nping-pong  FutexPingPong: long"), "{text}");
        assert!(text.lines().all(|line| line.len() <= help::WIDTH));
        assert!(text.lines().skip(2).all(|line| line.starts_with("           long")));
    }
}
