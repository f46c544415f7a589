//! Standard output and standard error of the commands.
//!
//! Owns writing text there and the form of an error message; leaves the text to the commands.
//! Invariant: a reader that closed the pipe has seen enough, which is no error.

use super::help;
use crate::error::{Context, Error, Result};
use std::io::{self, ErrorKind, Write};

/// What an error begins with.
pub const ERROR_HEAD: &str = "ktstr: error: ";

/// Writes text to standard output.
pub fn print(text: &str) -> Result<()> {
    write_all(&mut io::stdout().lock(), text).context(|| "write to standard output")
}

/// Writes text to standard error. Where that fails the exit code must do.
pub fn print_error(text: &str) {
    drop(write_all(&mut io::stderr().lock(), text));
}

/// A line about what was noticed, on standard error, whatever names are in it.
pub fn note(text: &str) {
    print_error(&format!("ktstr: {}\n", visible(text)));
}

/// Shows an error on standard error. Where even that fails the exit code must do.
pub fn show_error(error: &Error) {
    print_error(&error_text(error));
}

/// `ktstr: error: message`, and the hint on a line of its own.
pub fn error_text(error: &Error) -> String {
    const HINT: &str = "  hint: ";
    let mut text = format!("{ERROR_HEAD}{}\n", help::wrap(&visible_lines(error.message()), ERROR_HEAD.len(), 2));
    if let Some(hint) = error.hint_text() {
        text.push_str(&format!("{HINT}{}\n", help::wrap(&visible_lines(hint), HINT.len(), HINT.len())));
    }
    text
}

/// Control characters written out: a file's name may hold any, and a terminal would obey them.
pub fn visible(text: &str) -> String {
    visible_lines(text).replace('\n', "\\n")
}

/// The same, of text of several lines.
pub fn visible_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() && c != '\n' => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

fn write_all(to: &mut impl Write, text: &str) -> io::Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refuses(ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn closed_pipe_is_no_error_but_a_full_disk_is() {
        assert!(write_all(&mut Refuses(ErrorKind::BrokenPipe), "x").is_ok());
        assert!(write_all(&mut Refuses(ErrorKind::StorageFull), "x").is_err());
    }

    #[test]
    fn name_of_a_file_is_no_command_to_the_terminal() {
        let text = error_text(&Error::usage("cannot open /tmp/\u{1b}[31mred").hint("a\u{9b}2Jb\rc"));
        assert_eq!(visible("a\nb"), "a\\nb");
        assert_eq!(text, "ktstr: error: cannot open /tmp/\\u{1b}[31mred\n  hint: a\\u{9b}2Jb\\rc\n");
    }

    #[test]
    fn error_is_one_paragraph_with_its_hint() {
        let error = Error::usage("unknown flag '--kernl'").hint("did you mean --kernel?");
        assert_eq!(error_text(&error), "ktstr: error: unknown flag '--kernl'\n  hint: did you mean --kernel?\n");
        let long = error_text(&Error::host("word ".repeat(40)));
        assert!(long.lines().count() > 2 && long.lines().all(|line| line.len() <= help::WIDTH));
    }
}
