//! The reports of many runs, from made-up ends.
//!
//! Owns those tests; leaves the rule's own to verdict/many.
//! Invariant: every outcome has its place in every form.

use super::suite::{Suite, SuiteCell, SuiteRun, suite_line, suite_summary};
use super::{Style, ends, junit, ktap, suite_json};
use crate::run::suite::{CellEnd, Told};
use crate::verdict::Outcome;
use crate::verdict::many::Rule;

fn end(outcome: Outcome, headline: &str) -> CellEnd {
    let told = Told {
        outcome: outcome.word().into(),
        exit_code: outcome.exit_code(),
        headline: headline.into(),
        directory: (outcome != Outcome::Pass).then(|| "/runs/0001".into()),
        seed: u64::MAX,
        summary: "what ran\n\nFAIL: <why>\n".into(),
        json: "{\n  \"schema\": \"ktstr.result/1\"\n}\n".into(),
    };
    CellEnd {
        index: 0,
        outcome,
        exit_code: outcome.exit_code(),
        headline: headline.into(),
        took_ns: 2_000_000_000,
        told: (outcome != Outcome::Error).then_some(told),
        said: "said\n".into(),
        stopped: outcome == Outcome::Interrupted,
    }
}

fn suite(cells: &[(&str, &[Outcome])]) -> Suite {
    let cell = |(name, outcomes): &(&str, &[Outcome])| SuiteCell {
        name: format!("topo={name}"),
        values: vec![(*name).to_owned()],
        words: vec!["--kernel=K".into(), format!("--topo={name}")],
        runs: outcomes
            .iter()
            .enumerate()
            .map(|(at, outcome)| SuiteRun { number: at as u32 + 1, end: end(*outcome, "the reason") })
            .collect(),
    };
    Suite {
        axes: vec!["topo"],
        cells: cells.iter().map(cell).collect(),
        repeat: cells.iter().map(|(_, outcomes)| outcomes.len()).max().unwrap_or(1) as u32,
        rule: Rule::default(),
        interrupted: false,
        took_ns: 7_000_000_000,
        most_at_once: 2,
        flake_rate: None,
        steps: 10,
    }
}

use Outcome::*;

#[test]
fn table_names_each_cell_and_the_last_line_is_the_verdict() {
    let text = suite_summary(&suite(&[("1", &[Pass]), ("2", &[Fail]), ("4", &[Skip])]), Style::default());
    let lines: Vec<&str> = text.lines().collect();
    assert!(text.contains("first failure: topo=2, run 1\n  what ran\n\n  FAIL: <why>\n"), "{text}");
    assert!(lines.contains(&"topo    time  verdict"), "{text}");
    assert!(lines.contains(&"2     2.00 s  FAIL     the reason"), "{text}");
    assert!(text.contains("topo=4 run 1: /runs/0001"), "{text}");
    assert_eq!(lines.last(), Some(&"FAIL: of 3 runs, 1 passed, 1 failed, 1 skipped; topo=2: the reason"));
    assert!(!text.contains("flake"));
}

#[test]
fn colour_paints_the_verdicts_only() {
    let text = suite_summary(&suite(&[("1", &[Pass]), ("2", &[Fail])]), Style { color: true });
    assert_eq!(text.matches("\x1b[32mPASS\x1b[0m").count(), 1, "{text:?}");
    assert_eq!(text.matches("\x1b[1;31mFAIL\x1b[0m").count(), 2, "{text:?}");
}

#[test]
fn repeated_runs_tell_the_flake_rate_with_its_interval_and_the_luck_of_a_pass() {
    let mut flaky = suite(&[("1", &[Pass, Fail, Pass, Pass, Pass])]);
    let text = suite_summary(&flaky, Style::default());
    let line = "flake rate of topo=1: 1 of 5 failed, 20.0 % (95 % Clopper-Pearson interval 0.5 to 71.6 %)";
    assert!(text.contains(line), "{text}");
    assert!(!text.contains("false good"), "a failure is no good at all: {text}");
    flaky.rule.pass_ratio = 0.8;
    assert_eq!(flaky.outcome(), Pass);
    let sure = suite(&[("1", &[Pass; 5])]);
    assert!(
        suite_summary(&sure, Style::default()).contains("a fault in 45.1 % of runs or more would have shown with 95 %")
    );
    let known = Suite { flake_rate: Some(0.3), ..sure };
    let text = suite_summary(&known, Style::default());
    assert!(text.contains("what fails in 30.0 % of its runs passes this with a chance of 16.8 %"), "{text}");
    assert!(text.contains("one such step or more in 10: 84.1 %"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&suite_json(&known)).unwrap();
    let flake = &json["cells"][0]["flake"];
    assert!((flake["false_good_per_step"].as_f64().unwrap() - 0.16807).abs() < 1e-6, "{flake}");
    assert!(flake["high"].as_f64().unwrap() > 0.52 && flake["rate"] == 0.0, "{flake}");
}

#[test]
fn stopped_runs_count_nowhere() {
    let mut suite = suite(&[("1", &[Fail, Interrupted]), ("2", &[])]);
    suite.repeat = 2;
    assert_eq!((suite.outcome(), suite.counts().done()), (Fail, 1));
    let text = suite_summary(&suite, Style::default());
    assert!(text.contains("not run"), "{text}");
    assert!(text.ends_with("FAIL: of 1 run, 1 failed; 3 of 4 not done; topo=1: the reason\n"), "{text}");
    suite.interrupted = true;
    assert!(suite_line(&suite, Style::default()).starts_with("INTERRUPTED: "));
}

#[test]
fn json_holds_every_run_with_its_own_result() {
    let json: serde_json::Value =
        serde_json::from_str(&suite_json(&suite(&[("1", &[Pass]), ("2", &[Error])]))).unwrap();
    assert_eq!(json["schema"], "ktstr.suite/1");
    assert_eq!((json["outcome"].as_str(), json["exit_code"].as_u64()), (Some("error"), Some(128)));
    assert_eq!(json["cells"][0]["runs"][0]["result"]["schema"], "ktstr.result/1");
    assert_eq!(json["cells"][0]["runs"][0]["seed"], u64::MAX.to_string());
    assert_eq!(json["cells"][1]["values"]["topo"], "2");
    assert!(json["cells"][1]["runs"][0]["result"].is_null());
    assert_eq!(json["cells"][1]["runs"][0]["said"], "said\n");
    assert_eq!(json["counts"]["error"], 1);
}

#[test]
fn junit_and_ktap_give_each_outcome_its_word() {
    let suite = suite(&[("1", &[Pass]), ("2", &[Fail]), ("3", &[Skip]), ("4", &[Inconclusive]), ("5", &[Error])]);
    let xml = junit(&suite);
    assert!(xml.contains("tests=\"5\" failures=\"1\" errors=\"1\" skipped=\"2\" time=\"7.000\""), "{xml}");
    assert!(xml.contains("<testcase classname=\"ktstr\" name=\"topo=1\" time=\"2.000\"/>"), "{xml}");
    assert!(xml.contains("<failure message=\"the reason\">what ran\n\nFAIL: &lt;why&gt;\n</failure>"), "{xml}");
    assert!(xml.contains("<skipped message=\"inconclusive: the reason\"/>"), "{xml}");
    assert!(xml.contains("<error message=\"the reason\">said\n</error>"), "{xml}");
    let ktap = ktap(&suite);
    let lines: Vec<&str> = ktap.lines().collect();
    assert_eq!(lines[..4], ["KTAP version 1", "1..5", "ok 1 topo=1", "# the reason"]);
    assert_eq!(lines[4..6], ["not ok 2 topo=2", "ok 3 topo=3 # SKIP skip: the reason"]);
    assert_eq!(lines[7], "not ok 5 topo=5 # ERROR the reason");
}

#[test]
fn ends_are_proven_only_where_good_passes_and_bad_fails() {
    for (good, bad, code, words) in [
        (Pass, Fail, 0, "PROVEN: both ends"),
        (Fail, Pass, 1, "look exchanged"),
        (Fail, Fail, 1, "GOOD fails too"),
        (Pass, Pass, 1, "BAD passes: the fault does not show"),
        (Skip, Fail, 125, "GOOD cannot be judged; git bisect would skip it"),
        (Pass, Inconclusive, 125, "BAD cannot be judged"),
        (Pass, Error, 128, "could not do a run"),
    ] {
        let found = ends(&suite(&[("1", &[good; 3]), ("2", &[bad; 3])]));
        assert_eq!(found.exit_code, code, "{good:?} {bad:?}: {}", found.text);
        assert!(found.text.contains(words), "{good:?} {bad:?}: {}", found.text);
        assert_eq!(found.text.contains("--repeat"), code == 0 || words.starts_with("BAD passes"), "{}", found.text);
    }
    let interrupted = Suite { interrupted: true, ..suite(&[("1", &[Pass]), ("2", &[Fail])]) };
    assert_eq!(ends(&interrupted).exit_code, 130);
}

#[test]
fn advice_follows_the_rate_of_the_bad_end() {
    // 1 of 3 fails: at a third, 0.667^n over 10 steps is below 1 % from n = 18 on.
    let found = ends(&Suite { repeat: 3, ..suite(&[("1", &[Pass; 3]), ("2", &[Fail, Pass, Pass])]) });
    assert!(
        found.text.contains("BAD fails in 33.3 % of its runs (95 % Clopper-Pearson interval 0.8 to 90.6 %)"),
        "{}",
        found.text
    );
    assert!(
        found.text.contains("each step needs --repeat 18 at that rate, and --repeat more than 200 at the low"),
        "{}",
        found.text
    );
    let always = ends(&suite(&[("1", &[Pass; 3]), ("2", &[Fail; 3])]));
    assert!(
        always.text.contains("each step needs --repeat 1 at that rate, and --repeat 20 at the low"),
        "{}",
        always.text
    );
}
