//! Stops the scheduler under test, and notes what it was just before.
//!
//! Owns the order: look, ask, wait, kill; leaves judging the result to verdict/.
//! Invariant: returns within the stop timeout and the grace after SIGKILL, whatever the scheduler does.

use super::start::Scheduler;
use super::state::Snapshot;
use crate::proto::message::SchedFinal;
use crate::sys::{process, time};
use crate::units::{NS_PER_MS, NS_PER_SEC};

/// Between two looks, and so the longest time between two calls of `idle`.
const LOOK_EVERY_NS: u64 = 5 * NS_PER_MS;
/// How long the kernel may take to unload the scheduler and end the process after SIGKILL: a synchronisation of all CPUs
/// (RCU) that has to happen while tasks return to the fair class.
const KILL_GRACE_NS: u64 = 10 * NS_PER_SEC;

impl Scheduler {
    /// Asks it to end (SIGINT to its group), waits, and kills the group at the deadline.
    /// `idle` is called between looks, with what the scheduler printed meanwhile (often nothing).
    pub fn stop(&mut self, idle: &mut dyn FnMut(String)) -> SchedFinal {
        self.reap();
        let last = Snapshot::read(&self.dir);
        let counted = if last.events.is_empty() { self.last_alive.take() } else { None };
        let first = self.enabled.take().map(|(_, first)| first).unwrap_or_default();
        // Nobody to signal (ESRCH) is what is wanted: the wait finds out.
        signal_group(self.pid, libc::SIGINT);
        let mut disabled = self.wait_settled(self.spec.stop_timeout_ns, idle);
        let mut killed = false;
        if !(self.gone && disabled) {
            killed = signal_group(self.pid, libc::SIGKILL);
            // With nobody left to unload it, waiting longer changes nothing.
            if killed {
                disabled = self.wait_settled(KILL_GRACE_NS, idle);
            }
        }
        SchedFinal {
            events: counted.as_ref().unwrap_or(&last).events_since(&first),
            state: last.state,
            ops: last.ops,
            // Read now, so that an instance that came while it was asked to end is seen, too.
            enable_seq: Snapshot::read(&self.dir).enable_seq.or(last.enable_seq),
            nr_rejected: last.nr_rejected,
            end: self.end,
            disabled,
            killed,
        }
    }

    /// Waits until the process is gone and the state `disabled`. Returns whether it is `disabled`.
    fn wait_settled(&mut self, limit_ns: u64, idle: &mut dyn FnMut(String)) -> bool {
        let deadline = time::monotonic_ns().saturating_add(limit_ns);
        loop {
            self.reap();
            idle(self.take_output());
            let disabled = Snapshot::is_disabled(&self.dir);
            if (self.gone && disabled) || time::monotonic_ns() >= deadline {
                return disabled;
            }
            if time::sleep_ns(LOOK_EVERY_NS).is_err() {
                // A signal came (EINTR): look at once.
                continue;
            }
        }
    }
}

/// Whether there was somebody to signal.
fn signal_group(leader: i32, signal: i32) -> bool {
    process::kill(-leader, signal).is_ok()
}
