//! Words and numbers as the reports show them.
//!
//! Owns shortening, cleaning and number forms; leaves columns to `table`.
//! Invariant: nothing the guest said reaches a terminal with its control characters.

use crate::klog::one_line;

/// Marks a text that was shortened.
const CUT: &str = "..";

/// At most `width` characters on one line, with the cut marked.
pub fn fit(text: &str, width: usize) -> String {
    let clean = one_line(text);
    if clean.chars().count() <= width {
        return clean;
    }
    let kept: String = clean.chars().take(width.saturating_sub(CUT.len())).collect();
    format!("{kept}{CUT}")
}

/// The words on as many lines of `width` characters as they need; those after the first are indented.
pub fn folded(text: &str, width: usize, indent: usize) -> Vec<String> {
    let clean = one_line(text);
    let mut lines = vec![String::new()];
    for word in clean.split(' ') {
        let last = lines.len() - 1;
        let (used, more) = (lines[last].chars().count(), word.chars().count());
        if used > indent && used + 1 + more > width {
            lines.push(format!("{}{word}", " ".repeat(indent)));
        } else {
            let space = if lines[last].is_empty() { "" } else { " " };
            lines[last].push_str(&format!("{space}{word}"));
        }
    }
    lines
}

/// The last `count` lines that say something, cleaned and shortened.
pub fn tail(text: &str, count: usize, width: usize) -> Vec<String> {
    let mut lines: Vec<String> =
        text.lines().rev().filter(|line| !line.trim().is_empty()).take(count).map(|line| fit(line, width)).collect();
    lines.reverse();
    lines
}

/// A count in three significant digits: `812`, `1.23k`, `45.6M`.
pub fn short_count(value: f64) -> String {
    const STEPS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let Some((scale, letter)) = STEPS.iter().find(|(scale, _)| value >= scale * 0.9995) else {
        return format!("{value:.0}");
    };
    let scaled = value / scale;
    let digits = if scaled < 9.995 {
        2
    } else if scaled < 99.95 {
        1
    } else {
        0
    };
    format!("{scaled:.digits$}{letter}")
}

/// `1 worker`, `4 workers`.
pub fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_cleaned_and_cut() {
        assert_eq!(fit("a\x1b[2Jb", 40), "a\\u{1b}[2Jb");
        assert_eq!(fit("abcdefgh", 5), "abc..");
        assert_eq!(fit("äöüäöü", 4), "äö..");
        assert_eq!(tail("a\n\nb\nc\n", 2, 10), ["b", "c"]);
    }

    #[test]
    fn words_are_folded_and_none_is_lost() {
        assert_eq!(folded("try: one", 20, 5), ["try: one"]);
        let lines = folded("try: one two three four five", 14, 5);
        assert_eq!(lines, ["try: one two", "     three", "     four five"]);
        // A word that is longer than a line is not cut.
        assert_eq!(folded("try: /a/very/long/path x", 10, 5), ["try: /a/very/long/path", "     x"]);
    }

    #[test]
    fn counts_keep_three_digits() {
        for (value, text) in [(0.0, "0"), (999.0, "999"), (1000.0, "1.00k"), (12_345.0, "12.3k"), (4.56e8, "456M")] {
            assert_eq!(short_count(value), text);
        }
        assert_eq!(counted(1, "worker"), "1 worker");
        assert_eq!(counted(2, "worker"), "2 workers");
    }
}
