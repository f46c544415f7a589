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
    /// Another instance is loaded.
    pub replaced: bool,
}

impl Lost {
    /// Whether the kernel is done: nothing is loaded, or another instance is. Where only the process is gone, the kernel is
    /// about to unload what it held.
    pub fn is_settled(&self) -> bool {
        self.replaced || [DISABLED, ""].contains(&self.state.as_str())
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
        let difference = difference(first, &now);
        let replaced = difference.is_some() && now.state == ENABLED;
        let change =
            difference.or_else(|| self.gone.then(|| format!("its process ended ({})", describe_end(self.end))));
        let Some(change) = change else {
            self.last_alive = Some(now);
            return None;
        };
        Some(Lost {
            after_ns: time::monotonic_ns().saturating_sub(*enabled_ns),
            end: self.end,
            text: change,
            state: now.state,
            replaced,
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
        let (before, after) = (number(first.enable_seq), number(now.enable_seq));
        return Some(format!("it was replaced (enable_seq {before} became {after})"));
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
    fn loss_is_settled_when_the_kernel_is_done() {
        let lost = |state: &str, replaced| {
            let (state, text) = (state.into(), String::new());
            Lost { after_ns: 0, end: None, state, text, replaced }.is_settled()
        };
        assert!(lost("disabled", false) && lost("", false) && lost("enabled", true));
        assert!(!lost("disabling", false) && !lost("enabling", false) && !lost("enabled", false));
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
