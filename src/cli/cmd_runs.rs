//! `ktstr runs`: the kept run directories, and the removal of the oldest.
//!
//! Owns the layout; leaves reading and removing to run/kept.
//! Invariant: without --prune nothing is removed.

use super::cmd_run;
use super::out;
use crate::error::Result;
use crate::report::table_of;
use crate::run::kept::{self, Kept};
use crate::run::rundir::Place;
use crate::units::size;

/// Lists, and with a limit removes.
pub fn cmd_runs(prune_to_bytes: Option<u64>) -> Result<()> {
    let Place::FreshIn(parent) = cmd_run::place(None) else { return Ok(()) };
    let all = kept::list(&parent)?;
    let gone = prune_to_bytes.map(|most| kept::excess(&all, most)).unwrap_or_default();
    for one in &gone {
        kept::remove(one)?;
    }
    let left: Vec<&Kept> = all.iter().filter(|one| !gone.contains(one)).collect();
    let bytes = |list: &[&Kept]| size(list.iter().map(|one| one.bytes).sum());
    let mut text = table(&left);
    text.push_str(&format!(
        "{} kept in {}: {}\n",
        left.len(),
        out::visible(&parent.display().to_string()),
        bytes(&left)
    ));
    if prune_to_bytes.is_some() {
        text.push_str(&format!("{} removed: {}\n", gone.len(), bytes(&gone)));
    }
    out::print(&text)
}

fn table(list: &[&Kept]) -> String {
    let row = |one: &&Kept| {
        let name = one.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let outcome = match (&one.outcome, one.busy) {
            (Some(outcome), _) => outcome.clone(),
            (None, true) => "running".into(),
            (None, false) => "cut".into(),
        };
        vec![name, age(one.age_s), one.runs.to_string(), size(one.bytes), outcome, one.headline.clone()]
    };
    table_of(&["run", "age", "runs", "size", "outcome", ""], list.iter().map(row).collect())
}

/// `40 s`, `12 min`, `3 h`, `5 d`.
fn age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3_600, "h"), (60, "min")];
    let unit = UNITS.iter().find(|(scale, _)| seconds >= 2 * scale);
    unit.map_or_else(|| format!("{seconds} s"), |(scale, name)| format!("{} {name}", seconds / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_came_out_and_how_old_it_is() {
        let one = Kept {
            path: "/x/1-2-0".into(),
            age_s: 7300,
            bytes: 3 << 20,
            runs: 1,
            outcome: Some("fail".into()),
            headline: "it broke".into(),
            busy: false,
        };
        let cut = Kept { outcome: None, age_s: 5, ..one.clone() };
        let text = table(&[&one, &cut]);
        assert!(text.contains("1-2-0  2 h") && text.contains("fail     it broke"), "{text}");
        assert!(text.lines().last().is_some_and(|line| line.contains("5 s") && line.contains("cut")), "{text}");
    }
}
