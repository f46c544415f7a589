//! A small JSON writer.
//!
//! Owns values, escaping and layout (RFC 8259); leaves the schema to `result`.
//! Invariant: what is written is valid JSON in ASCII-safe UTF-8, whatever the strings hold.

/// A JSON value. Keys keep their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Uint(u64),
    Int(i64),
    /// Not a number and infinity have no form in JSON: they are written as null.
    Float(f64),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// Text that this writer has made before; it goes in as it is, moved to the right.
    Raw(String),
}

impl Json {
    pub fn object<K: Into<String>>(members: impl IntoIterator<Item = (K, Json)>) -> Self {
        Self::Object(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
    pub fn array<V: Into<Json>>(items: impl IntoIterator<Item = V>) -> Self {
        Self::Array(items.into_iter().map(Into::into).collect())
    }

    /// The text, indented by two spaces, with a newline at the end.
    pub fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out.push('\n');
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Uint(value) => out.push_str(&value.to_string()),
            Self::Int(value) => out.push_str(&value.to_string()),
            Self::Float(value) if value.is_finite() => out.push_str(&value.to_string()),
            Self::Float(_) => out.push_str("null"),
            Self::Text(text) => escape(text, out),
            // No string of ours holds a raw newline, so every line may be moved.
            Self::Raw(text) => {
                for (at, line) in text.lines().enumerate() {
                    if at > 0 {
                        out.push('\n');
                        indent(out, depth);
                    }
                    out.push_str(line);
                }
            }
            Self::Array(items) => {
                Self::write_list(out, depth, ('[', ']'), items, |item, out| item.write(out, depth + 1))
            }
            Self::Object(members) => Self::write_list(out, depth, ('{', '}'), members, |(key, value), out| {
                escape(key, out);
                out.push_str(": ");
                value.write(out, depth + 1);
            }),
        }
    }

    fn write_list<T>(
        out: &mut String,
        depth: usize,
        (open, close): (char, char),
        items: &[T],
        write: impl Fn(&T, &mut String),
    ) {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            out.push_str(if index == 0 { "\n" } else { ",\n" });
            indent(out, depth + 1);
            write(item, out);
        }
        if !items.is_empty() {
            out.push('\n');
            indent(out, depth);
        }
        out.push(close);
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// A string in quotes. RFC 8259 section 7: the quote, the backslash and everything below U+0020 must be escaped; U+007F to
/// U+009F and the line separators are escaped too, so that the text can be shown on a terminal and read by JavaScript.
fn escape(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<&String> for Json {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}
impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<u64> for Json {
    fn from(value: u64) -> Self {
        Self::Uint(value)
    }
}
impl From<u32> for Json {
    fn from(value: u32) -> Self {
        Self::Uint(u64::from(value))
    }
}
impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}
impl From<i32> for Json {
    fn from(value: i32) -> Self {
        Self::Int(i64::from(value))
    }
}
impl From<f64> for Json {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}
impl<V: Into<Json>> From<Option<V>> for Json {
    fn from(value: Option<V>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped() {
        let text = Json::from("a\"b\\c\nd\u{1}\u{7f}\u{9b}\u{2028}é😀/").pretty();
        assert_eq!(text, "\"a\\\"b\\\\c\\nd\\u0001\\u007f\\u009b\\u2028é😀/\"\n");
    }

    #[test]
    fn numbers_are_json_numbers() {
        let list = Json::Array(vec![
            u64::MAX.into(),
            i64::MIN.into(),
            0.1.into(),
            f64::NAN.into(),
            f64::INFINITY.into(),
            1e300.into(),
            2.0.into(),
        ]);
        let text = list.pretty();
        let want = format!(
            "[\n  18446744073709551615,\n  -9223372036854775808,\n  0.1,\n  null,\n  null,\n  1{},\n  2\n]\n",
            "0".repeat(300)
        );
        assert_eq!(text, want);
    }

    #[test]
    fn nesting_is_indented_and_empty_lists_are_short() {
        let value = Json::object([("a", Json::array(["x"])), ("b", Json::Object(vec![])), ("c", Json::Array(vec![]))]);
        assert_eq!(value.pretty(), "{\n  \"a\": [\n    \"x\"\n  ],\n  \"b\": {},\n  \"c\": []\n}\n");
    }
}
