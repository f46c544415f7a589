//! Splits one text into words as a shell does: blanks, quotes, backslash; no expansion of any kind.
//!
//! Owns the grammar; leaves what the words are to the caller.
//! Invariant: a text that a shell would not take as whole words is refused, never mended.

/// Splits `text` into words.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default(), text)?,
            '\\' => {
                let escaped = chars.next().ok_or_else(|| format!("'{text}' ends with a lone backslash"))?;
                word.get_or_insert_default().push(escaped);
            }
            plain => word.get_or_insert_default().push(plain),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Reads up to the closing quote. In double quotes a backslash keeps its meaning before `"` and `\` only.
fn quoted(quote: char, chars: &mut std::str::Chars<'_>, word: &mut String, text: &str) -> Result<(), String> {
    let unclosed = || format!("'{text}' has an unclosed {quote}");
    loop {
        match chars.next().ok_or_else(unclosed)? {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next().ok_or_else(unclosed)? {
                c @ ('"' | '\\') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_split_at_blanks_and_keep_quotes_together() {
        assert_eq!(words("").unwrap(), Vec::<String>::new());
        assert_eq!(words("  -a \t 5\n").unwrap(), ["-a", "5"]);
        assert_eq!(words("--name 'two words' x").unwrap(), ["--name", "two words", "x"]);
        assert_eq!(words(r#"--json="{\"a\": 1}" ''"#).unwrap(), [r#"--json={"a": 1}"#, ""]);
        assert_eq!(words(r#"a\ b 'c\d' "e\f""#).unwrap(), ["a b", r"c\d", r"e\f"]);
        assert_eq!(words("$HOME *").unwrap(), ["$HOME", "*"]);
    }

    #[test]
    fn open_ends_are_refused() {
        assert!(words("a 'b").unwrap_err().contains("unclosed '"));
        assert!(words("a \"b\\\"").unwrap_err().contains("unclosed \""));
        assert!(words("a \\").unwrap_err().contains("lone backslash"));
    }
}
