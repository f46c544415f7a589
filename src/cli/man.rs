//! The man page ktstr(1), as roff, from the same table and prose as help.
//!
//! Owns roff's escapes and macros; leaves names and sentences to `flags` and `topics`.
//! Invariant: text from a table can never be taken for a roff request.

use super::flags::{self, Cmd, GROUPS};
use super::help;
use super::topics::{EXAMPLES, EXIT_CODES, FILES, TOPICS, WHAT};

/// The whole page.
pub fn page() -> String {
    let mut page = String::from(".TH KTSTR 1 \"\" \"ktstr ");
    page.push_str(env!("CARGO_PKG_VERSION"));
    page.push_str("\" \"User Commands\"\n");
    page.push_str(".SH NAME\nktstr \\- test harness for Linux process schedulers\n.SH SYNOPSIS\n.nf\n");
    for spec in flags::shown_commands() {
        line(&mut page, &help::usage(spec));
    }
    page.push_str(".fi\n.SH DESCRIPTION\n");
    line(&mut page, WHAT);
    page.push_str(".SH COMMANDS\n");
    for spec in flags::shown_commands() {
        item(&mut page, spec.name, if spec.about.is_empty() { spec.help } else { spec.about });
    }
    page.push_str(".SH OPTIONS\n");
    for (group, heading) in GROUPS {
        let mut flags = flags::shown_flags(Cmd::Run).filter(|flag| flag.group == *group).peekable();
        if flags.peek().is_some() {
            page.push_str(&format!(".SS {}\n", escape(heading)));
        }
        for flag in flags {
            let short = flag.short.map(|letter| format!("-{letter}, ")).unwrap_or_default();
            item(&mut page, &format!("{short}{}", flag.usage()), &flag.help_with_default());
        }
    }
    for spec in flags::shown_commands().filter(|spec| spec.cmd != Cmd::Run) {
        let own =
            || flags::shown_flags(spec.cmd).filter(|flag| flag.commands.len() == 1 && flag.commands[0] == spec.cmd);
        if own().next().is_some() {
            page.push_str(&format!(".SS Options of ktstr {}\n", escape(spec.name)));
        }
        for flag in own() {
            item(&mut page, &flag.usage(), &flag.help_with_default());
        }
    }
    page.push_str(".SH EXIT STATUS\n");
    for (code, meaning) in EXIT_CODES {
        item(&mut page, &code.to_string(), meaning);
    }
    page.push_str(".SH FILES\n");
    for (place, what) in FILES {
        item(&mut page, place, what);
    }
    page.push_str(".SH EXAMPLES\n");
    for (what, command) in EXAMPLES {
        page.push_str(".PP\n");
        line(&mut page, &format!("{what}:"));
        literal(&mut page, command);
    }
    page.push_str(".SH NOTES\n");
    for topic in TOPICS {
        page.push_str(&format!(".SS {}\n", escape(topic.name)));
        literal(&mut page, &help::topic(topic.name));
    }
    page
}

/// A tagged paragraph.
fn item(page: &mut String, head: &str, text: &str) {
    page.push_str(".TP\n.B ");
    page.push_str(&escape(head));
    page.push('\n');
    line(page, text);
}

/// One line of running text.
fn line(page: &mut String, text: &str) {
    page.push_str(&escape(text));
    page.push('\n');
}

/// Lines as they stand.
fn literal(page: &mut String, text: &str) {
    page.push_str(".PP\n.nf\n.RS\n");
    text.lines().for_each(|one| line(page, one));
    page.push_str(".RE\n.fi\n");
}

/// Hyphens that can be copied, backslashes that show, and no leading control character (groff_char(7), groff(7)).
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape(".so /etc"), "\\&.so /etc");
        assert_eq!(escape("'x"), "\\&'x");
        assert_eq!(escape("--a \\n"), "\\-\\-a \\en");
    }

    #[test]
    fn page_has_every_flag_of_every_command() {
        let page = page();
        for flag in flags::all().filter(|flag| !flag.hidden) {
            assert!(page.contains(&escape(&flag.usage())), "{}", flag.usage());
        }
        assert!(!page.contains("__vm"));
    }

    #[test]
    fn every_request_is_one_we_mean() {
        const OURS: [&str; 10] = [".TH", ".SH", ".SS", ".PP", ".TP", ".B", ".nf", ".fi", ".RS", ".RE"];
        for line in page().lines().filter(|line| line.starts_with(['.', '\''])) {
            let request = line.split(' ').next().unwrap();
            assert!(OURS.contains(&request), "{line}");
        }
    }
}
