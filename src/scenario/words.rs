//! The words of one line of a scenario file, each with its column.
//!
//! Owns blanks, quotes, comments and the colon that ends a line's head; leaves what words mean to `parse`.
//! Invariant: columns count characters from 1, as editors do.

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub column: usize,
    pub text: String,
}

/// A line without its comment: the words of its head, and the tail behind the colon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub head: Vec<Word>,
    /// As written, with the column of its first character; none where there is no colon.
    pub tail: Option<(usize, String)>,
}

/// What stands before a comment: `#` at the beginning or after a blank, outside of quotes. What a backslash escapes is
/// neither blank nor quote, as for `command`.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let (mut blank, mut escaped) = (true, false);
    for (at, c) in line.char_indices() {
        if std::mem::take(&mut escaped) {
            blank = false;
            continue;
        }
        match (quote, c) {
            (None | Some('"'), '\\') => escaped = true,
            (None, '#') if blank => return &line[..at],
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        blank = c.is_whitespace();
    }
    // An open quote hides nothing: the reader of the line complains about it, with the whole line at hand.
    line
}

/// Splits a line.
pub fn line(text: &str) -> Line {
    let text = without_comment(text);
    let mut line = Line::default();
    let mut word = Word { column: 0, text: String::new() };
    for (index, (at, c)) in text.char_indices().enumerate() {
        if c.is_whitespace() {
            line.take(&mut word);
            continue;
        }
        if word.text.is_empty() {
            word.column = index + 1;
        }
        let after = text[at + c.len_utf8()..].chars().next();
        if c == ':' && after.is_none_or(char::is_whitespace) {
            line.take(&mut word);
            let rest = &text[at + 1..];
            let blanks = rest.chars().take_while(|c| c.is_whitespace()).count();
            line.tail = Some((index + 2 + blanks, rest.trim().to_owned()));
            return line;
        }
        word.text.push(c);
    }
    line.take(&mut word);
    line
}

impl Line {
    fn take(&mut self, word: &mut Word) {
        if !word.text.is_empty() {
            self.head.push(std::mem::replace(word, Word { column: 0, text: String::new() }));
        }
    }
}

/// Splits a command into words as a shell does; the error names the column, from 1.
pub fn command(text: &str) -> Result<Vec<String>, (usize, String)> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<(char, usize)> = None;
    let mut chars = text.chars().enumerate();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some((open, _)), c) if c == open => quote = None,
            (Some(('\'', _)), c) => word.get_or_insert_default().push(c),
            (_, '\\') => match chars.next() {
                Some((_, escaped)) => word.get_or_insert_default().push(escaped),
                None => return Err((at + 1, "the line ends with a lone backslash".into())),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some((c, at));
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some((open, at)) = quote {
        return Err((at + 1, format!("the quote {open} is not closed")));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_columns_and_the_colon_ends_the_head() {
        let split = line("  cgroup é cpuset=llc:0:  spin*2; yield # so");
        let head: Vec<(usize, &str)> = split.head.iter().map(|word| (word.column, word.text.as_str())).collect();
        assert_eq!(head, [(3, "cgroup"), (10, "é"), (12, "cpuset=llc:0")]);
        assert_eq!(split.tail, Some((27, "spin*2; yield".into())));
        assert_eq!(line("a : b").tail, Some((5, "b".into())));
        assert_eq!(line("a:").tail, Some((3, String::new())));
        assert_eq!(line("# all"), Line::default());
        assert_eq!(line("run p: sh -c 'a # b' # c").tail.unwrap().1, "sh -c 'a # b'");
        assert_eq!(line("x#y").head[0].text, "x#y");
        assert_eq!(line(r"run p: x \'\ # y").tail.unwrap().1, r"x \'\ # y");
        assert_eq!(line(r#"run p: "a \" # b" # c"#).tail.unwrap().1, r#""a \" # b""#);
        assert_eq!(line(r"run p: '\' # c").tail.unwrap().1, r"'\'");
    }

    #[test]
    fn commands_split_as_in_a_shell() {
        assert_eq!(command(r#"sh -c 'a b' "c \" d" e\ f '' "#).unwrap(), ["sh", "-c", "a b", "c \" d", "e f", ""]);
        assert_eq!(command("a 'b").unwrap_err(), (3, "the quote ' is not closed".into()));
        assert_eq!(command("a \\").unwrap_err().0, 3);
    }
}
