//! One Rust file, prepared for rules: without comments and strings, and without tests.
//!
//! Owns the little lexing that this needs; leaves judging to the rules.
//! Invariant: every form of the text has the same lines at the same numbers.

/// One file and its forms.
#[derive(Clone, Debug)]
pub struct Source {
    /// Relative to the root, such as `src/run/probe.rs`.
    pub path: String,
    pub raw: String,
    /// Comments, and the insides of strings and characters, are blanks.
    pub code: String,
    /// The same without items under `#[cfg(test)]`; empty where the whole file is one.
    pub live: String,
}

impl Source {
    pub fn new(path: &str, raw: &str) -> Self {
        let code = scrub(raw);
        let live = without_tests(&code);
        Self { path: path.into(), raw: raw.into(), code, live }
    }
    pub fn lines(&self) -> usize {
        self.raw.lines().count()
    }
    /// `src/run/probe.rs` is in `run`; files directly under src/ are modules of their own name.
    pub fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }
    pub fn is_in(&self, place: &str) -> bool {
        self.path.starts_with(place)
    }
    /// Each line of the live code that contains `needle`, as `path:line: text`.
    pub fn live_hits(&self, needle: &str) -> Vec<String> {
        let lines = self.live.lines().zip(self.raw.lines()).enumerate();
        lines.filter(|(_, (live, _))| contains(live, needle)).map(|(at, (_, raw))| self.at(at, raw)).collect()
    }
    /// One violation.
    pub fn at(&self, index: usize, what: &str) -> String {
        format!("{}:{}: {}", self.path, index + 1, what.trim())
    }
}

/// Whether `needle` stands in `line` and is not the end of a longer name.
fn contains(line: &str, needle: &str) -> bool {
    let word = needle.starts_with(is_word);
    line.match_indices(needle).any(|(at, _)| !word || !line[..at].ends_with(is_word))
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Blanks comments and the insides of literals.
fn scrub(raw: &str) -> String {
    let chars: Vec<char> = raw.chars().collect();
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        let comment = chars[at] == '/';
        for (index, c) in chars[at..end].iter().enumerate() {
            let edge = !comment && (index == 0 || at + index + 1 == end);
            out.push(if *c == '\n' || edge { *c } else { ' ' });
        }
        at = end;
    }
    out
}

/// Where the comment or literal that begins here ends; `at` where none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let is = |index: usize, c: char| chars.get(index) == Some(&c);
    let find = |from: usize, wanted: &[char]| {
        (from..chars.len()).find(|index| chars[*index..].starts_with(wanted)).map_or(chars.len(), |i| i + wanted.len())
    };
    let starts_word = at == 0 || !is_word(chars[at - 1]);
    match chars[at] {
        '/' if is(at + 1, '/') => (at..chars.len()).find(|index| chars[*index] == '\n').unwrap_or(chars.len()),
        '/' if is(at + 1, '*') => block_comment_end(chars, at),
        '"' => escaped_end(chars, at + 1, '"'),
        '\'' if is(at + 1, '\\') || is(at + 2, '\'') => escaped_end(chars, at + 1, '\''),
        'b' | 'c' if starts_word && is(at + 1, '"') => escaped_end(chars, at + 2, '"'),
        'b' if starts_word && is(at + 1, '\'') => escaped_end(chars, at + 2, '\''),
        'r' | 'b' | 'c' if starts_word => {
            let prefix = if chars[at] == 'r' { 1 } else { 2 };
            let hashes = chars[(at + prefix).min(chars.len())..].iter().take_while(|c| **c == '#').count();
            let raw = chars[at] == 'r' || is(at + 1, 'r');
            if !raw || !is(at + prefix + hashes, '"') {
                return at;
            }
            let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            find(at + prefix + hashes + 1, &closing)
        }
        _ => at,
    }
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut index) = (0, at);
    while index < chars.len() {
        if chars[index..].starts_with(&['/', '*']) {
            (depth, index) = (depth + 1, index + 2);
        } else if chars[index..].starts_with(&['*', '/']) {
            (depth, index) = (depth - 1, index + 2);
            if depth == 0 {
                return index;
            }
        } else {
            index += 1;
        }
    }
    chars.len()
}

fn escaped_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut index = from;
    while index < chars.len() {
        match chars[index] {
            '\\' => index += 2,
            c if c == quote => return index + 1,
            _ => index += 1,
        }
    }
    chars.len()
}

/// Whether this line holds an attribute that keeps the next item to tests.
fn is_test_attribute(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#[cfg(") && contains(line, "test") && !line.contains("not(")
}

/// Blanks every item under `#[cfg(test)]`, up to its `;` or its closing brace.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while !rest.is_empty() {
        let line_end = rest.find('\n').map_or(rest.len(), |end| end + 1);
        if !is_test_attribute(&rest[..line_end]) {
            out.push_str(&rest[..line_end]);
            rest = &rest[line_end..];
            continue;
        }
        let end = item_end(rest);
        out.extend(rest[..end].chars().map(|c| if c == '\n' { c } else { ' ' }));
        rest = &rest[end..];
    }
    out
}

/// Length of the item that begins with an attribute.
fn item_end(item: &str) -> usize {
    let (mut braces, mut others) = (0, 0);
    for (at, c) in item.char_indices() {
        match c {
            '{' => braces += 1,
            '}' => braces -= 1,
            '(' | '[' => others += 1,
            ')' | ']' => others -= 1,
            _ => {}
        }
        if braces == 0 && others == 0 && matches!(c, ';' | '}') {
            return at + 1;
        }
    }
    item.len()
}

/// Empties the live code of files that a `#[cfg(test)] mod name;` takes in.
pub fn mark_test_files(mut sources: Vec<Source>) -> Vec<Source> {
    let mut test_paths = Vec::new();
    for source in &sources {
        let stem = source.path.trim_end_matches(".rs");
        let directory = match stem.rsplit_once('/') {
            Some((parent, "mod" | "lib" | "main")) => parent,
            _ => stem,
        };
        let lines: Vec<&str> = source.code.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| is_test_attribute(pair[0])) {
            if let Some(name) = pair[1].strip_suffix(';').and_then(|line| line.split("mod ").nth(1)) {
                test_paths.push(format!("{directory}/{name}.rs"));
                test_paths.push(format!("{directory}/{name}/"));
            }
        }
    }
    for source in &mut sources {
        if test_paths.iter().any(|path| source.path == *path || (path.ends_with('/') && source.is_in(path))) {
            source.live = source.live.chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_blanked_and_code_stays() {
        for (raw, scrubbed) in [
            ("a(\"b.unwrap()\"); // c", "a(\"          \");     "),
            ("/* d /* e */ f */ g", "                  g"),
            ("('h', '\\'', b'\"')", "(' ', '  ', b  ')"),
            ("r#\"i\"j\"# k", "r      # k"),
            ("&'life str, 'a'", "&'life str, ' '"),
            ("\"one\ntwo\"", "\"   \n   \""),
        ] {
            assert_eq!(scrub(raw), scrubbed, "{raw}");
        }
        assert_eq!(scrub("let brief = r; br(x)"), "let brief = r; br(x)");
        assert_eq!(scrub("x(b\"yy\", br\"zz\")"), "x(b   \", b    \")");
    }

    #[test]
    fn test_items_are_blanked_and_later_code_stays() {
        let source = Source::new("src/a.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { c() }\n}\nfn d() {}\n");
        assert!(source.live.contains("fn a") && source.live.contains("fn d"));
        assert!(!source.live.contains("fn b") && source.code.contains("fn b"));
        assert_eq!(source.live.lines().count(), 6);
        let source = Source::new("src/a.rs", "#[cfg(test)]\nuse x::{y, z};\nfn a([u8; 2]) {}\n");
        assert!(source.live.contains("fn a") && !source.live.contains("use x"));
        assert!(Source::new("src/a.rs", "#[cfg(not(test))]\nfn a() {}\n").live.contains("fn a"));
    }

    #[test]
    fn files_that_only_tests_take_in_are_marked() {
        let sources = mark_test_files(vec![
            Source::new("src/v/mod.rs", "pub mod real;\n#[cfg(test)]\nmod checks;\n"),
            Source::new("src/v/checks.rs", "fn a() {}\n"),
            Source::new("src/v/real.rs", "#[cfg(test)]\nmod inner;\nfn a() {}\n"),
            Source::new("src/v/real/inner.rs", "fn a() {}\n"),
        ]);
        let live: Vec<bool> = sources.iter().map(|source| source.live.contains("fn a")).collect();
        assert_eq!(live, [false, false, true, false]);
    }

    #[test]
    fn hits_are_whole_words() {
        let source = Source::new("src/a.rs", "eprintln!(1);\nprintln!(2);\n");
        assert_eq!(source.live_hits("println!"), ["src/a.rs:2: println!(2);"]);
        assert_eq!(source.module(), "a");
        assert_eq!(Source::new("src/run/x/y.rs", "").module(), "run");
    }
}
