//! Folds a text whose lines repeat, as the log of the BPF verifier does when it goes round a loop.
//!
//! Owns what counts as a repetition; leaves what is shown of the result to the callers.
//! Invariant: nothing is left out without a line that says how much; a text without repetitions comes out as it went in.

/// The longest block that is looked for: the body of a loop in a verifier's log; a longer one is shown as it is.
const LONGEST: usize = 64;
/// Leaving out less than this saves the reader nothing.
const LEAST_SAVED: usize = 3;

/// The lines, with what repeats shown once.
pub fn fold(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let keys: Vec<&str> = lines.iter().map(|line| key(line)).collect();
    let mut folded = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let (period, times) = repetition(&keys[at..]);
        let saved = period * times;
        if saved < LEAST_SAVED {
            folded.push(lines[at].to_owned());
            at += 1;
            continue;
        }
        folded.extend(lines[at..at + period].iter().map(|line| (*line).to_owned()));
        let (what, again) = (if period == 1 { "line" } else { "lines" }, if times == 1 { "time" } else { "times" });
        folded.push(format!("  ... the last {period} {what} {times} more {again}, but for their values"));
        at += period + saved;
    }
    folded
}

/// What a line is apart from the values that change from round to round. In a verifier's log (`5: (07) r2 += 1 ; R2=9`,
/// `5: R1=ctx() R2=9`, `from 6 to 5: R1=ctx()`) that is the instruction's number, and whether its text follows or a state;
/// any other line is all of itself.
fn key(line: &str) -> &str {
    let at = line.strip_prefix("from ").unwrap_or(line);
    match line.find(": ") {
        Some(colon) if at.starts_with(|c: char| c.is_ascii_digit()) => line.get(..colon + 3).unwrap_or(line),
        _ => line,
    }
}

/// The block at the beginning that repeats so that most is saved: its length, and how often it comes again.
fn repetition(keys: &[&str]) -> (usize, usize) {
    let mut best = (1, 0);
    for period in 1..=LONGEST.min(keys.len() / 2) {
        let block = &keys[..period];
        let times = keys[period..].chunks_exact(period).take_while(|chunk| *chunk == block).count();
        if times * period > best.0 * best.1 {
            best = (period, times);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_repetition_is_not_touched() {
        let text = "0: R1=ctx() R10=fp0\n0: (79) r0 = *(u64 *)(r1 +4096)\ninvalid bpf_context access off=4096 size=8\n\
                    processed 1 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(fold(text), text.lines().collect::<Vec<_>>());
        // Two equal lines are not worth a remark.
        assert_eq!(fold("a\na\nb\n"), ["a", "a", "b"]);
        assert_eq!(fold("\n \n"), Vec::<String>::new());
    }

    #[test]
    fn loop_of_the_verifier_is_shown_once_whatever_its_registers_hold() {
        let round = |n: usize| {
            format!(
                "5: (07) r2 += 1                       ; R2_w={n}\n6: (a5) if r2 < 0x7fff goto pc-2       ; R2_w={n}\n\
                 from 6 to 5: R1=ctx() R2_w={n} R10=fp0\n"
            )
        };
        let body: String = (0..9000).map(round).collect();
        let text = format!("func#0 @0\n{body}BPF program is too large. Processed 1000001 insn\n");
        let folded = fold(&text);
        assert_eq!(folded.len(), 6, "{folded:#?}");
        assert_eq!(folded[4], "  ... the last 3 lines 8999 more times, but for their values");
        assert_eq!(folded[5], "BPF program is too large. Processed 1000001 insn");
    }

    #[test]
    fn different_instructions_are_never_one() {
        let text: String = (0..40).map(|n| format!("{n}: (bf) r1 = r{}\n", n % 10)).collect();
        assert_eq!(fold(&text).len(), 40);
        let same = "libbpf: failed\n".repeat(50);
        assert_eq!(fold(&same), ["libbpf: failed", "  ... the last 1 line 49 more times, but for their values"]);
    }

    #[test]
    fn any_text_keeps_its_last_line() {
        for count in 1..60 {
            let text: String = (0..count).map(|n| format!("x {}\n", n % 7)).collect();
            let folded = fold(&format!("{text}the end"));
            assert_eq!(folded.last().map(String::as_str), Some("the end"), "{count}");
        }
    }
}
