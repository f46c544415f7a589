//! What a test binary prints, in the form of Rust's own test harness.
//!
//! Owns the words and their order; leaves when to print to `suite`.
//! Invariant: the last line of a run says `test result:`, and a list says one case a line.

use super::Case;
use super::args::Format;
use std::time::Duration;

/// How a case came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Ok,
    Failed,
    /// Passed over, or skipped by the run itself.
    Ignored,
}

/// One case's end.
#[derive(Clone, Debug)]
pub struct Ended {
    pub name: &'static str,
    pub came: Came,
    /// Why it was ignored; empty where nothing is to be said.
    pub why: String,
    pub output: String,
}

/// The list of cases.
pub fn list(cases: &[&Case], format: Format) -> String {
    let mut text: String = cases.iter().map(|case| format!("{}: test\n", case.coded.name)).collect();
    if format == Format::Pretty {
        let many = if cases.len() == 1 { "" } else { "s" };
        text.push_str(&format!("\n{} test{many}, 0 benchmarks\n", cases.len()));
    }
    text
}

pub fn head(count: usize) -> String {
    format!("\nrunning {count} test{}\n", if count == 1 { "" } else { "s" })
}

/// `test NAME ... ok`.
pub fn line(ended: &Ended) -> String {
    let word = match ended.came {
        Came::Ok => "ok".into(),
        Came::Failed => "FAILED".into(),
        Came::Ignored if ended.why.is_empty() => "ignored".into(),
        Came::Ignored => format!("ignored, {}", ended.why),
    };
    format!("test {} ... {word}\n", ended.name)
}

/// What follows the lines: the output of cases, the names of the failed ones, the result.
pub fn tail(ended: &[Ended], left_out: usize, took: Duration, show_all: bool) -> String {
    let of = |came: Came| ended.iter().filter(move |case| case.came == came);
    let mut text = String::new();
    let outputs = |text: &mut String, title: &str, came: Came| {
        if of(came).next().is_some() {
            text.push_str(&format!("\n{title}:\n"));
            for case in of(came).filter(|case| !case.output.is_empty()) {
                text.push_str(&format!("\n---- {} stdout ----\n{}\n", case.name, case.output.trim_end()));
            }
            text.push_str(&format!("\n\n{title}:\n"));
            of(came).for_each(|case| text.push_str(&format!("    {}\n", case.name)));
        }
    };
    if show_all {
        outputs(&mut text, "successes", Came::Ok);
    }
    outputs(&mut text, "failures", Came::Failed);
    let (passed, failed, ignored) = (of(Came::Ok).count(), of(Came::Failed).count(), of(Came::Ignored).count());
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let seconds = took.as_secs_f64();
    text.push_str(&format!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {left_out} filtered out; \
         finished in {seconds:.2}s\n\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::asserted::AssertResult;

    fn ended(name: &'static str, came: Came, why: &str, output: &str) -> Ended {
        Ended { name, came, why: why.into(), output: output.into() }
    }

    #[test]
    fn list_is_one_case_a_line_and_terse_nothing_else() {
        let (a, b) = (Case::new("a", |_| Ok(AssertResult::pass())), Case::new("b", |_| Ok(AssertResult::pass())));
        assert_eq!(list(&[&a, &b], Format::Terse), "a: test\nb: test\n");
        assert_eq!(list(&[&a], Format::Pretty), "a: test\n\n1 test, 0 benchmarks\n");
        assert_eq!(list(&[], Format::Terse), "");
    }

    #[test]
    fn run_ends_in_failures_and_the_result_line() {
        let all = [
            ended("a", Came::Ok, "", "PASS\n"),
            ended("b", Came::Failed, "", "FAIL: x\n"),
            ended("c", Came::Ignored, "no sched_ext", ""),
        ];
        let lines: String = all.iter().map(line).collect();
        assert_eq!(lines, "test a ... ok\ntest b ... FAILED\ntest c ... ignored, no sched_ext\n");
        let text = tail(&all, 2, Duration::from_millis(1500), false);
        assert!(text.starts_with("\nfailures:\n\n---- b stdout ----\nFAIL: x\n\n\nfailures:\n    b\n"), "{text}");
        let result =
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 1.50s";
        assert_eq!(text.trim_end().lines().last(), Some(result));
        assert!(!text.contains("PASS") && tail(&all, 0, Duration::ZERO, true).contains("successes:"));
        assert!(tail(&all[..1], 0, Duration::ZERO, false).starts_with("\ntest result: ok. 1 passed"));
    }
}
