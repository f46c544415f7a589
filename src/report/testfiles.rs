//! Many runs in the two forms that test dashboards read: JUnit XML, and KTAP.
//!
//! Owns both forms and their escapes; leaves the outcomes to verdict/.
//! Invariant: each run is one test; a run that was not judged is a skip, never a pass, and says why.

use super::suite::{Suite, SuiteRun};
use super::text::fit;
use crate::verdict::Outcome;

/// Characters of a reason on one line.
const REASON_WIDTH: usize = 200;

/// JUnit XML, in the form that Jenkins and GitLab read (testmoapp/junitxml documents it).
pub fn junit(suite: &Suite) -> String {
    let counts = suite.counts();
    let seconds = |ns: u64| format!("{:.3}", ns as f64 / 1e9);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"ktstr\" tests=\"{}\" failures=\"{}\" errors=\"{}\" \
         skipped=\"{}\" time=\"{}\">\n",
        counts.done(),
        counts.failed,
        counts.errors,
        counts.skipped + counts.inconclusive + counts.interrupted,
        seconds(suite.took_ns)
    );
    for (name, run) in tests(suite) {
        let end = &run.end;
        text.push_str(&format!(
            "  <testcase classname=\"ktstr\" name=\"{}\" time=\"{}\"",
            xml(&name),
            seconds(end.took_ns)
        ));
        let reason = xml(&end.headline);
        let body = xml(end.told.as_ref().map_or(&end.said, |told| &told.summary));
        let inner = match end.outcome {
            Outcome::Pass => String::new(),
            Outcome::Fail => format!("    <failure message=\"{reason}\">{body}</failure>\n"),
            Outcome::Error => format!("    <error message=\"{reason}\">{body}</error>\n"),
            Outcome::Skip | Outcome::Inconclusive | Outcome::Interrupted => {
                format!("    <skipped message=\"{}: {reason}\"/>\n", end.outcome.word().to_lowercase())
            }
        };
        text.push_str(&if inner.is_empty() { "/>\n".to_owned() } else { format!(">\n{inner}  </testcase>\n") });
    }
    text.push_str("</testsuite>\n");
    text
}

/// KTAP version 1 (Documentation/dev-tools/ktap.rst).
pub fn ktap(suite: &Suite) -> String {
    let tests: Vec<(String, &SuiteRun)> = tests(suite).collect();
    let mut text = format!("KTAP version 1\n1..{}\n", tests.len());
    for (number, (name, run)) in tests.iter().enumerate() {
        let end = &run.end;
        // A number sign begins the directive.
        let name = fit(name, REASON_WIDTH).replace('#', "_");
        let reason = fit(&end.headline, REASON_WIDTH);
        let word = end.outcome.word().to_lowercase();
        let line = match end.outcome {
            Outcome::Pass => format!("ok {} {name}", number + 1),
            Outcome::Fail => format!("not ok {} {name}", number + 1),
            Outcome::Error => format!("not ok {} {name} # ERROR {reason}", number + 1),
            Outcome::Skip | Outcome::Inconclusive | Outcome::Interrupted => {
                format!("ok {} {name} # SKIP {word}: {reason}", number + 1)
            }
        };
        if end.outcome == Outcome::Fail {
            text.push_str(&format!("# {reason}\n"));
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn tests(suite: &Suite) -> impl Iterator<Item = (String, &SuiteRun)> {
    suite.cells.iter().flat_map(|cell| {
        cell.counted().map(|run| match suite.repeat {
            1 => (cell.title().to_owned(), run),
            _ => (format!("{} run {}", cell.title(), run.number), run),
        })
    })
}

/// XML 1.0 section 2.2: control characters have no form at all, so they are shown as U+FFFD.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_inside_its_quotes() {
        assert_eq!(xml("a<b>&\"\x1b\n"), "a&lt;b&gt;&amp;&quot;\u{fffd}\n");
    }
}
