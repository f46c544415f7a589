//! Help texts, laid out for a terminal from the table of `flags` and the prose of `topics`.
//!
//! Owns the layout; leaves names and sentences to those two.
//! Invariant: no line is wider than `WIDTH`.

use super::args::HelpOn;
use super::flags::{self, Cmd, CommandSpec, Flag, GROUPS, Operand};
use super::man;
use super::topics::{EXAMPLES, EXIT_CODES, FILES, TOPICS, WHAT};
use crate::proto::guards::PROVOCATIONS;
use crate::workload;

/// Columns of a terminal that nobody made wider.
pub const WIDTH: usize = 80;
/// Where the explanation of a flag begins.
const FLAG_COLUMN: usize = 30;
/// Where the explanation of a command, a topic or an exit code begins.
const WORD_COLUMN: usize = 16;
/// Where that of a fault does: their names are longer.
const FAULT_COLUMN: usize = 18;

/// The text that was asked for.
pub fn render(on: &HelpOn) -> String {
    match on {
        HelpOn::Top => top(),
        HelpOn::Command(cmd) => command(flags::spec(*cmd)),
        HelpOn::Topic(name) => topic(name),
        HelpOn::Work(name) => workload::find(name).map_or_else(String::new, work),
        HelpOn::Man => man::page(),
    }
}

fn top() -> String {
    let mut text = format!("{}\n\nUsage:\n", wrap(WHAT, 0, 0));
    text.push_str("  ktstr [run] --kernel FILE [--sched PATH] [--work NAME] [flags] [-- ARGS]\n");
    for spec in flags::shown_commands().filter(|spec| spec.cmd != Cmd::Run) {
        text.push_str(&format!("  {}\n", usage(spec)));
    }
    text.push_str("\nExamples:\n");
    for (what, line) in EXAMPLES {
        text.push_str(&format!("  {what}:\n    {line}\n"));
    }
    text.push_str("\nCommands:\n");
    for spec in flags::shown_commands() {
        text.push_str(&row(spec.name, WORD_COLUMN, spec.help));
    }
    text.push_str(&flag_groups(Cmd::Run));
    text.push_str("\nExit codes:\n");
    for (code, meaning) in EXIT_CODES {
        text.push_str(&row(&code.to_string(), 8, meaning));
    }
    text.push_str("\nFiles:\n");
    for (place, what) in FILES {
        text.push_str(&row(place, FLAG_COLUMN, what));
    }
    text.push_str("\nMore, by 'ktstr help TOPIC':\n");
    for topic in TOPICS {
        text.push_str(&row(topic.name, WORD_COLUMN, topic.help));
    }
    text
}

fn command(spec: &CommandSpec) -> String {
    let mut text = format!("{}\n\nUsage:\n  {}\n", wrap(&sentence(spec.help), 0, 0), usage(spec));
    if !spec.about.is_empty() {
        text.push_str(&format!("\n{}\n", wrap(spec.about, 0, 0)));
    }
    if let Operand::Required(name, choices @ [_, ..]) = spec.operand {
        text.push_str(&format!("\n{name} is one of: {}\n", choices.join(", ")));
    }
    if spec.cmd == Cmd::Help {
        text.push_str("\nTopics:\n");
        for topic in TOPICS {
            text.push_str(&row(topic.name, WORD_COLUMN, topic.help));
        }
    }
    text.push_str(&flag_groups(spec.cmd));
    text
}

/// A topic's text; that of faults ends with all that can be brought about.
pub fn topic(name: &str) -> String {
    let mut text: String = TOPICS.iter().filter(|topic| topic.name == name).map(|topic| topic.text).collect();
    if name == "faults" {
        PROVOCATIONS.iter().for_each(|fault| text.push_str(&row(fault.name, FAULT_COLUMN, fault.about)));
    }
    text
}

/// A work type as its text form, then its method.
fn work(info: &workload::TypeInfo) -> String {
    let kinds: Vec<&str> = info.sample_kinds.iter().map(|kind| kind.name()).collect();
    let samples = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
    let parameters = info.default.parameters_text();
    let parameters = if parameters.is_empty() { "none".to_owned() } else { parameters };
    let mut text = format!("{} ({}): {}\n\n", info.cli_name, info.name, info.description);
    text = wrap(text.trim_end(), 0, 0) + "\n\n";
    for (what, value) in [("parameters", parameters.as_str()), ("group size", info.group), ("samples", &samples)] {
        text.push_str(&row(what, WORD_COLUMN, value));
    }
    text.push_str(&format!("\n{}\n", wrap(info.method, 0, 0)));
    text
}

/// `ktstr image [flags]`.
pub fn usage(spec: &CommandSpec) -> String {
    let operand = match spec.operand {
        Operand::Nothing => String::new(),
        Operand::Required(name, []) => format!(" {name}"),
        Operand::Required(_, choices) => format!(" {}", choices.join("|")),
        Operand::Optional(name) => format!(" [{name}]"),
        Operand::Two(first, second) => format!(" {first} {second}"),
    };
    let own_flags = flags::shown_flags(spec.cmd).any(|flag| !["help", "version"].contains(&flag.long));
    let passes_on = if spec.cmd == Cmd::Run { " --kernel FILE [flags] [-- ARGS]" } else { " [flags]" };
    format!("ktstr {}{operand}{}", spec.name, if own_flags { passes_on } else { "" })
}

fn flag_groups(cmd: Cmd) -> String {
    let mut text = String::new();
    for (group, heading) in GROUPS {
        let mut flags = flags::shown_flags(cmd).filter(|flag| flag.group == *group).peekable();
        if flags.peek().is_none() {
            continue;
        }
        text.push_str(&format!("\n{heading}:\n"));
        for flag in flags {
            text.push_str(&row(&flag_head(flag), FLAG_COLUMN, &flag.help_with_default()));
        }
    }
    text
}

fn flag_head(flag: &Flag) -> String {
    match flag.short {
        Some(letter) => format!("-{letter}, {}", flag.usage()),
        None => format!("    {}", flag.usage()),
    }
}

/// Two columns; where the head is too wide for its own, the text begins on the next line.
fn row(head: &str, column: usize, text: &str) -> String {
    let head = format!("  {head}");
    if head.chars().count() + 2 > column {
        return format!("{head}\n{}{}\n", " ".repeat(column), wrap(text, column, column));
    }
    format!("{head:column$}{}\n", wrap(text, column, column))
}

/// A table's line as a sentence of its own.
fn sentence(line: &str) -> String {
    let mut chars = line.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).chain(['.']).collect()).unwrap_or_default()
}

/// Breaks at blanks so that no line passes `WIDTH`; the first line already has `used` columns, later ones are indented.
pub fn wrap(text: &str, used: usize, indent: usize) -> String {
    let mut out = String::new();
    let mut column = used;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if out.is_empty() {
            column += length;
        } else if column + 1 + length <= WIDTH {
            out.push(' ');
            column += 1 + length;
        } else {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent + length;
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Vec<(String, String)> {
        let mut texts = vec![("top".to_string(), top())];
        texts.extend(flags::shown_commands().map(|spec| (spec.name.to_string(), command(spec))));
        texts.extend(TOPICS.iter().map(|entry| (entry.name.to_string(), topic(entry.name))));
        texts
    }

    #[test]
    fn every_help_text_fits_80_columns() {
        for (name, text) in everything() {
            assert!(!text.is_empty() && text.ends_with('\n'), "{name}");
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{name}: {line}");
                assert_eq!(line, line.trim_end(), "{name}: blanks at the end of a line");
            }
        }
    }

    #[test]
    fn top_has_the_main_job_first_every_flag_and_every_exit_code() {
        let text = top();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("'{part}' is not in --help"));
        assert!(at("ktstr --kernel bzImage --sched ./scx_foo") < at("git bisect run"));
        for flag in flags::shown_flags(Cmd::Run) {
            at(&flag.usage());
        }
        for (code, _) in EXIT_CODES {
            at(&format!("\n  {code} "));
        }
        for spec in flags::shown_commands() {
            at(&format!("\n  {} ", spec.name));
        }
        assert!(!text.contains("__"));
    }

    #[test]
    fn every_fault_is_listed_with_what_it_does() {
        let text = topic("faults");
        for fault in PROVOCATIONS {
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(fault.name));
            let begins = fault.about.split(' ').take(3).collect::<Vec<_>>().join(" ");
            assert!(line.is_some_and(|line| line.contains(&begins)), "{}: {text}", fault.name);
        }
    }

    #[test]
    fn command_help_has_its_own_flags_only() {
        let text = command(flags::spec(Cmd::Doctor));
        assert!(text.contains("ktstr doctor [flags]") && text.contains("--json") && !text.contains("--kernel"));
        assert!(
            command(flags::spec(Cmd::List)).contains("ktstr list works|schedulers|topologies|scenarios|log-patterns\n")
        );
    }

    #[test]
    fn wrap_keeps_words_whole_and_indents() {
        let text = wrap(&"abcd ".repeat(30), 10, 10);
        assert!(text.lines().skip(1).all(|line| line.starts_with("          abcd") && line.len() <= WIDTH));
        assert!(text.lines().next().unwrap().len() <= WIDTH - 10);
        assert_eq!(text.split_whitespace().count(), 30);
        assert_eq!(row("a-very-long-head", 8, "text"), "  a-very-long-head\n        text\n");
    }
}
