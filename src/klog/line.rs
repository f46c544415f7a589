//! One line of kernel text: its time stamp, its decoration, and the message proper.
//!
//! Owns stripping what stands in front of a message; leaves what the message means to `table`.
//! Invariant: only text that the kernel itself puts in front is stripped, so a match stays anchored.

use crate::units::{NS_PER_SEC, NS_PER_US};

/// Microseconds in one second.
const US_PER_SEC: u64 = NS_PER_SEC / NS_PER_US;
/// Digits after the point of a printk time stamp (print_time, kernel/printk/printk.c).
const TIME_DIGITS: usize = 6;

/// What subsystems put in front of the messages judged here (their `pr_fmt`).
const SUBSYSTEMS: [&str; 4] = ["rcu: ", "watchdog: ", "NMI watchdog: ", "workqueue: "];

/// ED with parameter 2 (ECMA-48 section 8.3.39).
const CLEAR_SCREEN: &str = "\x1b[2J";
/// RIS (ECMA-48 section 8.3.105), with which SeaBIOS begins that.
const RESET_SCREEN: &str = "\x1bc";

/// What SeaBIOS says on a serial console (src/bootsplash.c, src/boot.c).
const FIRMWARE: [&str; 2] = ["SeaBIOS (version ", "Booting from ROM"];

/// Splits a console line into its kernel time and the text after it. A line without a time is returned whole.
pub fn console_line(raw: &str) -> (Option<u64>, &str) {
    let line = raw.trim_end_matches(['\r', '\n']);
    // What firmware printed last stands before the kernel's first line, and ends with clearing the screen.
    let resets = line.contains(RESET_SCREEN);
    let shown = |kernel: &&str| resets && kernel.is_empty() || split_time(kernel).is_some();
    let behind = line.rsplit_once(CLEAR_SCREEN).map(|(_, kernel)| kernel).filter(shown);
    let line = behind.unwrap_or(line);
    let unleveled = strip_level(line);
    match split_time(unleveled) {
        Some((time_us, rest)) => (Some(time_us), rest),
        None => (None, line),
    }
}

/// Whether a console shows nothing but what firmware prints, and does to a screen.
pub fn is_blank(console: &str) -> bool {
    let of_firmware = |text: &str| FIRMWARE.iter().any(|words| text.contains(words));
    console.lines().map(|line| console_line(line).1.trim()).all(|text| text.is_empty() || of_firmware(text))
}

/// Whether a console line begins with the kernel's time stamp.
pub fn has_time(raw: &str) -> bool {
    console_line(raw).0.is_some()
}

/// The message without the caller's id, lockdep's brackets and the subsystem's name.
pub fn body(text: &str) -> &str {
    let text = strip_caller(text);
    let text = strip_bracket(text);
    SUBSYSTEMS.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text)
}

/// `<4>` as raw printk text carries it.
fn strip_level(line: &str) -> &str {
    let Some(rest) = line.strip_prefix('<') else { return line };
    match rest.split_once('>') {
        Some((level, rest)) if is_number(level) && level.len() <= 3 => rest,
        _ => line,
    }
}

/// `[    1.234567] rest`, also with a caller's id following at once.
fn split_time(line: &str) -> Option<(u64, &str)> {
    let (stamp, rest) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = stamp.trim_start().split_once('.')?;
    if !is_number(seconds) || !is_number(micros) || micros.len() != TIME_DIGITS {
        return None;
    }
    let seconds: u64 = seconds.parse().ok()?;
    let micros: u64 = micros.parse().ok()?;
    let time_us = seconds.checked_mul(US_PER_SEC)?.checked_add(micros)?;
    Some((time_us, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// `[   T12] ` or `[    C1] ` (CONFIG_PRINTK_CALLER).
pub fn strip_caller(text: &str) -> &str {
    let Some((id, rest)) = text.strip_prefix('[').and_then(|inner| inner.split_once(']')) else { return text };
    let id = id.trim_start();
    let number = id.strip_prefix('T').or_else(|| id.strip_prefix('C'));
    match number {
        Some(number) if is_number(number) => rest.strip_prefix(' ').unwrap_or(rest),
        _ => text,
    }
}

/// Lockdep's `[ BUG: Invalid wait context ]` and the older `[ INFO: ... ]`.
fn strip_bracket(text: &str) -> &str {
    match text.strip_prefix("[ ") {
        Some(rest) if ["BUG: ", "INFO: ", "WARNING: "].iter().any(|word| rest.starts_with(word)) => rest,
        _ => text,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Text on one line, with control characters written out: what hostile text may be shown as.
pub fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\t' => shown.push(' '),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_stamps_are_read_and_stripped() {
        assert_eq!(console_line("[    1.234567] hello\r"), (Some(1_234_567), "hello"));
        assert_eq!(console_line("<4>[   12.000001] hi"), (Some(12_000_001), "hi"));
        assert_eq!(console_line("[    1.000000][   T12] hi"), (Some(1_000_000), "[   T12] hi"));
        assert_eq!(console_line("plain"), (None, "plain"));
        assert_eq!(
            console_line("Booting from ROM..\x1bc\x1b[2J[    2.330523] sysrq: x"),
            (Some(2_330_523), "sysrq: x")
        );
        for odd in ["[1.2] x", "[x.123456] y", "[", "[]", "[1.123456", "<9999>x", "[99999999999999999999.123456] x"] {
            assert_eq!(console_line(odd), (None, odd));
        }
    }

    #[test]
    fn firmware_that_clears_the_screen_says_nothing() {
        assert_eq!(console_line("\x1bc\x1b[?7l\x1b[2J\r"), (None, ""));
        assert!(is_blank("\x1bc\x1b[?7l\x1b[2J\r\n\n") && is_blank(""));
        assert!(
            is_blank("Booting from ROM..\x1bc\x1b[?7l\x1b[2J")
                && is_blank("\x1b[2J\x1b[0mSeaBIOS (version 1)\r\nBooting from ROM...\r\n")
        );
        assert!(!is_blank("\x1b[2J\nDecompressing Linux") && !is_blank("\x1b[2JDecompressing"));
    }

    #[test]
    fn body_strips_only_what_the_kernel_puts_in_front() {
        assert_eq!(body("[   T12] rcu: INFO: x"), "INFO: x");
        assert_eq!(body("[    C1] x"), "x");
        assert_eq!(body("[ BUG: Invalid wait context ]"), "BUG: Invalid wait context ]");
        assert_eq!(body("watchdog: BUG: soft"), "BUG: soft");
        assert_eq!(body("ODEBUG: x"), "ODEBUG: x");
        assert_eq!(body("[ hi ] BUG: x"), "[ hi ] BUG: x");
        assert_eq!(body("user: BUG: x"), "user: BUG: x");
    }

    #[test]
    fn one_line_shows_control_characters() {
        assert_eq!(one_line("a\nb\x1b[31mc\t d \n"), "a\\nb\\u{1b}[31mc  d");
    }
}
