//! Watches the scheduler under test while the scenario runs.
//!
//! Owns deciding whether it is still the same instance; leaves judging to verdict/.
//! Invariant: a look reads a few small files and never waits.

use super::start::Scheduler;
use super::state::{DISABLED, ENABLED, Snapshot};
use crate::proto::message::ProcessEnd;
use crate::sys::time;

/// How the scheduler was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Since it was enabled.
    pub after_ns: u64,
    /// How its process ended; none where it still runs, or nobody knows.
    pub end: Option<ProcessEnd>,
    /// The state word now.
    pub state: String,
    /// One sentence.
    pub text: String,
}

impl Lost {
    /// Whether the kernel is done: nothing is loaded, or something else is.
    pub fn is_settled(&self) -> bool {
        [ENABLED, DISABLED, ""].contains(&self.state.as_str())
    }
}

impl Scheduler {
    /// What the kernel says now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::read(&self.dir)
    }

    /// Whether it is still the instance that was enabled. `Some` where it is not; to be asked every 500 ms or more often.
    pub fn check(&mut self) -> Option<Lost> {
        self.reap();
        let (enabled_ns, first) = self.enabled.as_ref()?;
        let now = Snapshot::read(&self.dir);
        let change = difference(first, &now)
            .or_else(|| self.gone.then(|| format!("its process ended ({})", describe_end(self.end))));
        let Some(change) = change else {
            self.last_alive = Some(now);
            return None;
        };
        Some(Lost {
            after_ns: time::monotonic_ns().saturating_sub(*enabled_ns),
            end: self.end,
            text: change,
            state: now.state,
        })
    }
}

pub(super) fn describe_end(end: Option<ProcessEnd>) -> String {
    end.map_or("status unknown".into(), ProcessEnd::describe)
}

/// How `now` is not the instance of `first`, in words.
fn difference(first: &Snapshot, now: &Snapshot) -> Option<String> {
    if now.state != ENABLED {
        let state = if now.state.is_empty() { "absent" } else { &now.state };
        return Some(format!("the kernel's state is {state}"));
    }
    if now.enable_seq != first.enable_seq {
        let number = |seq: Option<u64>| seq.map_or("unknown".into(), |seq| seq.to_string());
        return Some(format!(
            "it was replaced (enable_seq {} became {})",
            number(first.enable_seq),
            number(now.enable_seq)
        ));
    }
    // The name vanishes a moment before the state changes: an absent one alone is not yet a loss.
    match (&first.ops, &now.ops) {
        (Some(before), Some(after)) if before != after => Some(format!("'{after}' is loaded in place of '{before}'")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(state: &str, ops: Option<&str>, seq: u64) -> Snapshot {
        Snapshot { state: state.into(), ops: ops.map(str::to_string), enable_seq: Some(seq), ..Snapshot::default() }
    }

    #[test]
    fn the_same_instance_is_not_lost() {
        let first = snapshot("enabled", Some("x"), 1);
        assert_eq!(difference(&first, &first), None);
        assert_eq!(difference(&first, &snapshot("enabled", None, 1)), None);
    }

    #[test]
    fn every_way_to_be_another_is_told() {
        let first = snapshot("enabled", Some("x"), 1);
        let words = |now| difference(&first, &now).unwrap();
        assert_eq!(words(snapshot("disabled", None, 1)), "the kernel's state is disabled");
        assert_eq!(words(snapshot("", None, 1)), "the kernel's state is absent");
        assert_eq!(words(snapshot("enabled", Some("x"), 2)), "it was replaced (enable_seq 1 became 2)");
        assert_eq!(words(snapshot("enabled", Some("y"), 1)), "'y' is loaded in place of 'x'");
    }
}
