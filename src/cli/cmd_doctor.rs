//! `ktstr doctor`: prints the facts about this host.
//!
//! Owns layout and exit code; leaves finding out to `run::probe`.
//! Invariant: exit code 0 means that a run is possible here, 128 that it is not.

use super::{help, out};
use crate::error::{Kind, Result};
use crate::run::probe::{self, Fact, State};

/// Looks, prints, and gives the exit code. `kvm_check` runs a throwaway VM.
pub fn cmd_doctor(json: bool, kvm_check: &dyn Fn() -> Result<()>) -> Result<u8> {
    let facts = probe::host_facts(kvm_check);
    out::print(&if json { json_text(&facts) } else { text(&facts) })?;
    Ok(exit_code(&facts))
}

fn exit_code(facts: &[Fact]) -> u8 {
    if probe::runs_with(facts).is_ok() { 0 } else { Kind::Host.exit_code() }
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warn => "warn",
        State::Missing => "missing",
    }
}

fn text(facts: &[Fact]) -> String {
    /// Column of the name: behind the longest state and a gap.
    const NAME: usize = 9;
    /// Column of the text: behind the longest name and a gap.
    const TEXT: usize = 25;
    let mut text = String::new();
    for fact in facts {
        let head = format!("{:NAME$}{}", word(fact.state), fact.name);
        text.push_str(&format!("{head:TEXT$}{}\n", help::wrap(&fact.text, TEXT, TEXT)));
        if let (Some(remedy), true) = (&fact.remedy, fact.state != State::Ok) {
            text.push_str(&format!("{:TEXT$}{}\n", "", help::wrap(&format!("-> {remedy}"), TEXT, TEXT + 3)));
        }
    }
    text.push_str(&match probe::runs_with(facts) {
        Ok(with) => format!("A run is possible here, with {with}.\n"),
        Err(why) => format!("A run is not possible here: {why}.\n"),
    });
    text
}

fn json_text(facts: &[Fact]) -> String {
    let facts_json: Vec<String> = facts
        .iter()
        .map(|fact| {
            let remedy = fact.remedy.as_deref().map_or("null".into(), quoted);
            let (name, state, text) = (quoted(fact.name), quoted(word(fact.state)), quoted(&fact.text));
            format!("    {{\"name\": {name}, \"state\": {state}, \"text\": {text}, \"remedy\": {remedy}}}")
        })
        .collect();
    let (possible, with) = match probe::runs_with(facts) {
        Ok(with) => (true, quoted(with)),
        Err(_) => (false, "null".into()),
    };
    let facts_json = facts_json.join(",\n");
    format!("{{\n  \"run_possible\": {possible},\n  \"runs_with\": {with},\n  \"facts\": [\n{facts_json}\n  ]\n}}\n")
}

/// A JSON string (RFC 8259, section 7).
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(name: &'static str, state: State, remedy: Option<&str>) -> Fact {
        Fact { name, state, text: "a \"text\"".into(), remedy: remedy.map(Into::into) }
    }

    #[test]
    fn each_fact_has_its_line_and_its_remedy_below() {
        let shown = text(&[fact("kvm", State::Warn, Some("load it")), fact("qemu", State::Ok, Some("unseen"))]);
        assert_eq!(
            shown,
            "warn     kvm             a \"text\"\n                         -> load it\n\
             ok       qemu            a \"text\"\nA run is possible here, with QEMU's emulation.\n"
        );
        assert!(text(&[]).ends_with("A run is not possible here: neither KVM nor qemu-system-x86_64 can be used.\n"));
    }

    #[test]
    fn json_escapes_and_says_whether_a_run_is_possible() {
        let shown = json_text(&[fact("kvm", State::Missing, None)]);
        assert!(
            shown.contains(r#"{"name": "kvm", "state": "missing", "text": "a \"text\"", "remedy": null}"#),
            "{shown}"
        );
        assert!(shown.contains("\"run_possible\": false"));
        assert_eq!(quoted("a\\\n\u{1}"), r#""a\\\n\u0001""#);
    }

    #[test]
    fn long_texts_stay_within_80_columns() {
        let mut long = fact("virtualization", State::Missing, Some(&"remedy ".repeat(30)));
        long.text = "text ".repeat(40);
        assert!(text(&[long]).lines().all(|line| line.len() <= help::WIDTH));
    }

    #[test]
    fn exit_code_follows_from_the_facts() {
        assert_eq!(exit_code(&[fact("kvm", State::Ok, None)]), 0);
        assert_eq!(exit_code(&[fact("kvm", State::Warn, None)]), 128);
    }
}
