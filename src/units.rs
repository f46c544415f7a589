//! Durations and sizes as people write them: `500us`, `1m30s`, `256M`, `4GiB`.
//!
//! Owns parsing and printing of quantities with a unit; leaves ranges and meaning to the caller.
//! Invariant: what is printed by `duration` parses back to the same value.

/// Nanoseconds in one second.
pub const NS_PER_SEC: u64 = 1_000_000_000;
/// Nanoseconds in one millisecond.
pub const NS_PER_MS: u64 = 1_000_000;
/// Nanoseconds in one microsecond.
pub const NS_PER_US: u64 = 1_000;
/// Bytes in one mebibyte.
pub const MIB: u64 = 1 << 20;

/// Duration units, largest first: (suffix, nanoseconds).
const DURATION_UNITS: [(&str, u64); 6] = [
    ("h", 3600 * NS_PER_SEC),
    ("m", 60 * NS_PER_SEC),
    ("s", NS_PER_SEC),
    ("ms", NS_PER_MS),
    ("us", NS_PER_US),
    ("ns", 1),
];

/// Parses `500us`, `1.5s`, `1m30s` into nanoseconds. A bare number is refused: it has no unit.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let bad = |why: &str| format!("'{text}' is not a duration: {why} (such as 500us, 10ms, 2s, 1m30s)");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(bad("it is empty"));
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| bad("the unit is missing"))?;
        let number = &rest[..digits];
        let letters = &rest[digits..];
        let end = letters.find(|c: char| c.is_ascii_digit()).unwrap_or(letters.len());
        let unit = &letters[..end];
        let scale = DURATION_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ns)| *ns);
        let scale = scale.ok_or_else(|| bad(&format!("'{unit}' is no unit of time")))?;
        let value: f64 = number.parse().map_err(|_| bad(&format!("'{number}' is no number")))?;
        let ns = value * scale as f64;
        if ns > i64::MAX as f64 {
            return Err(bad("it is too long"));
        }
        total = total.checked_add(ns.round() as u64).ok_or_else(|| bad("it is too long"))?;
        rest = &letters[end..];
    }
    Ok(total)
}

/// Prints a duration exactly, in the fewest units: `1m30s`, `500us`, `0s`.
pub fn duration(ns: u64) -> String {
    if ns == 0 {
        return "0s".into();
    }
    let mut rest = ns;
    let mut text = String::new();
    for (unit, scale) in DURATION_UNITS {
        let count = rest / scale;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
            rest %= scale;
        }
    }
    text
}

/// Prints a measured time with three significant digits: `1.42 s`, `17.3 ms`, `830 ns`.
pub fn approx(ns: u64) -> String {
    let (value, unit) = match ns {
        0..NS_PER_US => return format!("{ns} ns"),
        NS_PER_US..NS_PER_MS => (ns as f64 / NS_PER_US as f64, "us"),
        NS_PER_MS..NS_PER_SEC => (ns as f64 / NS_PER_MS as f64, "ms"),
        _ => (ns as f64 / NS_PER_SEC as f64, "s"),
    };
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

/// Parses `256M`, `4GiB`, `512MiB`, `4096K` into bytes. A bare number is taken as MiB where `bare_mib` says so.
pub fn parse_size(text: &str, bare_mib: bool) -> Result<u64, String> {
    let bad = |why: &str| format!("'{text}' is not a size: {why} (such as 256M, 4GiB)");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let value: u64 = number.parse().map_err(|_| bad("it does not begin with a number"))?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" if bare_mib => 20,
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => return Err(bad(&format!("'{other}' is no unit of size"))),
    };
    value.checked_mul(1 << shift).ok_or_else(|| bad("it is too large"))
}

/// Prints a size in binary units: `256 MiB`, `4 GiB`, `812 KiB`.
pub fn size(bytes: u64) -> String {
    let (value, unit) = match bytes {
        0..1024 => return format!("{bytes} B"),
        1024..MIB => (bytes as f64 / 1024.0, "KiB"),
        MIB..0x4000_0000 => (bytes as f64 / MIB as f64, "MiB"),
        _ => (bytes as f64 / (1u64 << 30) as f64, "GiB"),
    };
    if value.fract() == 0.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// The word of `known` nearest to `word`, where one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    let length = lower.chars().count();
    let limit = (length / 3).max(1) + 1;
    // A distance is never below the difference of the lengths: a long text is not compared letter by letter.
    let near = |candidate: &&str| candidate.starts_with(&lower) || candidate.chars().count().abs_diff(length) <= limit;
    known
        .into_iter()
        .filter(near)
        .map(|candidate| (edit_distance(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= limit || (lower.len() > 2 && candidate.starts_with(&lower)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse_and_print_back() {
        for text in ["500us", "1ms", "2s", "1m30s", "1h", "1s500ms", "7ns"] {
            assert_eq!(duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("1.5s").unwrap(), 1_500_000_000);
        assert_eq!(parse_duration("0s").unwrap(), 0);
    }

    #[test]
    fn wrong_durations_say_why() {
        assert!(parse_duration("2").unwrap_err().contains("unit is missing"));
        assert!(parse_duration("2x").unwrap_err().contains("'x' is no unit"));
        assert!(parse_duration("").unwrap_err().contains("empty"));
        assert!(parse_duration("99999999999h").unwrap_err().contains("too long"));
        assert!(parse_duration("-1s").is_err());
        assert!(parse_duration("1.2.3s").is_err());
    }

    #[test]
    fn sizes_parse() {
        assert_eq!(parse_size("256M", true).unwrap(), 256 << 20);
        assert_eq!(parse_size("256", true).unwrap(), 256 << 20);
        assert_eq!(parse_size("4GiB", true).unwrap(), 4 << 30);
        assert!(parse_size("4X", true).unwrap_err().contains("no unit of size"));
        assert!(parse_size("M", true).is_err());
        assert!(parse_size("99999999999T", true).unwrap_err().contains("too large"));
        assert_eq!(size(256 << 20), "256 MiB");
        assert_eq!(size(1536 << 20), "1.5 GiB");
    }

    #[test]
    fn approx_keeps_three_digits() {
        assert_eq!(approx(1_420_000_000), "1.42 s");
        assert_eq!(approx(17_300_000), "17.3 ms");
        assert_eq!(approx(830), "830 ns");
        assert_eq!(approx(9_996_000), "10.0 ms");
    }

    #[test]
    fn nearest_finds_the_typo_and_refuses_the_far() {
        assert_eq!(nearest("--kernl", ["--kernel", "--sched"]), Some("--kernel"));
        assert_eq!(nearest("spni", ["spin", "yield", "bursty"]), Some("spin"));
        assert_eq!(nearest("zzzzzz", ["spin", "yield"]), None);
        assert_eq!(nearest("cgr", ["cgroup-churn", "spin"]), Some("cgroup-churn"));
    }

    #[test]
    fn nearest_of_a_very_long_word_takes_no_time() {
        // Letter by letter this would be 4 * 10^10 steps: hours, where no test is timed.
        let (word, long) = ("x".repeat(200_000), "y".repeat(10));
        assert_eq!(nearest(&word, std::iter::repeat_n(long.as_str(), 20_000)), None);
    }
}
