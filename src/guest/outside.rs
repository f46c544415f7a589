//! What of PID 1 talks to the outside: channel and kernel log.
//!
//! Owns sending, obeying commands, and forwarding the log; leaves what is said when to the agent.
//! Invariant: it goes on while a scheduler or a scenario is being waited for; what cannot be sent is remembered.

use super::dump::Dump;
use super::kmsg::Kmsg;
use crate::channel::guest::GuestSession;
use crate::error::Error;
use crate::klog;
use crate::proto::message::{Msg, SchedFailure};
use crate::sys::time;
use crate::units::NS_PER_MS;

/// A log that is still growing after this long has no end.
const LOG_END_NS: u64 = 2_000 * NS_PER_MS;
/// Between two signs of life: the host waits for many of them before it gives up.
const SIGN_EVERY_NS: u64 = 500 * NS_PER_MS;
/// A look takes 2000 records at most; no kernel's buffer holds more than so many times that when PID 1 begins.
const LOOKS_MOST: u32 = 64;
/// A log is at its end where so many looks in a row, this far apart, find nothing new: a kernel that prints for ever pauses
/// between two lines, too.
const QUIET_LOOKS: u32 = 4;
const QUIET_PAUSE_NS: u64 = 5 * NS_PER_MS;
/// One message of a scheduler's output: far below the largest frame.
const OUTPUT_PIECE_BYTES: usize = 32 * 1024;

/// Channel and kernel log.
pub(super) struct Outside {
    pub session: GuestSession,
    pub kmsg: Option<Kmsg>,
    /// Where a scheduler is under test.
    pub dump: Option<Dump>,
    pub stop_asked: bool,
    /// When the host is to be given a sign of life again.
    pub sign_ns: u64,
    /// Whether a stall that the kernel reports settles the verdict.
    pub stall_settles: bool,
    /// What it said of a stall that does: waiting shows nothing more.
    pub stall: Option<String>,
    /// Messages that could not be sent; the host sees the gap, this is for the console.
    pub unsent: Option<Error>,
}

impl Outside {
    pub fn new(session: GuestSession) -> Self {
        let (kmsg, dump, stall, unsent) = (None, None, None, None);
        Self { session, kmsg, dump, stop_asked: false, sign_ns: 0, stall_settles: false, stall, unsent }
    }

    pub fn say(&mut self, message: Msg) {
        if let Err(error) = self.session.send(&message) {
            self.unsent.get_or_insert(error);
        }
    }

    /// Sends on what the kernel has logged, and looks for commands.
    pub fn look(&mut self) {
        let now = time::monotonic_ns();
        if now >= self.sign_ns {
            self.session.sign_of_life();
            self.sign_ns = now + SIGN_EVERY_NS;
        }
        let fresh = self.kmsg.as_mut().map(Kmsg::take).unwrap_or_default();
        for message in fresh {
            if let (Msg::Klog { priority, text, .. }, true, None) = (&message, self.stall_settles, &self.stall) {
                self.stall = klog::stall(*priority, text);
            }
            self.say(message);
        }
        let dumped = self.dump.as_mut().map(Dump::take).unwrap_or_default();
        pieces(&dumped).for_each(|text| self.say(Msg::SchedDump { text }));
        match self.session.receive() {
            Ok(commands) => commands.into_iter().for_each(|command| self.obey(command)),
            Err(error) => {
                self.unsent.get_or_insert(error);
            }
        }
    }

    /// Looks until there is nothing new, as often as the longest log needs.
    pub fn look_at_all(&mut self) {
        for _ in 0..LOOKS_MOST {
            let before = self.kmsg.as_ref().map(Kmsg::totals);
            self.look();
            if self.kmsg.as_ref().map(Kmsg::totals) == before {
                return;
            }
        }
    }

    /// Sends on the log until it is quiet, within a limit. Returns its totals and whether its end was reached.
    pub fn rest_of_the_log(&mut self) -> Option<(u64, u64, bool)> {
        let deadline = time::monotonic_ns() + LOG_END_NS;
        let mut quiet_looks = 0;
        loop {
            let before = self.kmsg.as_ref()?.totals().0;
            self.look();
            let kmsg = self.kmsg.as_ref()?;
            let (records, lost) = kmsg.totals();
            quiet_looks = if records == before { quiet_looks + 1 } else { 0 };
            let quiet = quiet_looks == QUIET_LOOKS;
            if quiet || time::monotonic_ns() > deadline {
                return Some((records, lost, quiet && !kmsg.is_broken()));
            }
            // A signal only shortens the pause.
            drop(time::sleep_ns(QUIET_PAUSE_NS));
        }
    }

    /// Why what is under way ends before its time: the verdict is settled.
    pub fn stalled(&self) -> Option<String> {
        self.stall.as_ref().map(|text| format!("the kernel reports a stall: {text}"))
    }

    /// Why a scheduler that is not enabled yet is waited for no longer.
    pub fn given_up(&self, name: &str) -> Option<(SchedFailure, String)> {
        let of_time = || {
            let text = format!("the run's time was over before the scheduler '{name}' was enabled");
            self.stop_asked.then_some((SchedFailure::OutOfTime, text))
        };
        self.stalled().map(|text| (SchedFailure::KernelStalled, text)).or_else(of_time)
    }

    fn obey(&mut self, command: Msg) {
        match command {
            Msg::Stop => self.stop_asked = true,
            Msg::Dump => {
                // SysRq-D: the scheduler's state goes to the tracepoint sched_ext_dump.
                if let Err(error) = std::fs::write("/proc/sysrq-trigger", "D") {
                    self.say(Msg::Note { text: format!("cannot ask for a dump: {error}") });
                }
            }
            _ => {}
        }
    }

    pub fn scheduler_said(&mut self, text: String) {
        pieces(&text).for_each(|text| self.say(Msg::SchedOutput { text }));
    }
}

/// A text in parts that each fit into a message, cut on character borders.
fn pieces(text: &str) -> impl Iterator<Item = String> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = rest.len().min(OUTPUT_PIECE_BYTES);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then(|| piece.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduler_is_not_waited_for_once_a_stall_settles_the_verdict() {
        let stalled = "3,5,9,-;x\n2,6,10,-;watchdog: BUG: soft lockup - CPU#0 stuck for 4s! [scx_enable_help:103]\n";
        let file = std::env::temp_dir().join(format!("ktstr-outside-{}", std::process::id()));
        for (settles, asked, why) in [
            (true, false, Some(SchedFailure::KernelStalled)),
            (true, true, Some(SchedFailure::KernelStalled)),
            (false, true, Some(SchedFailure::OutOfTime)),
            (false, false, None),
        ] {
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let mut outside = Outside::new(GuestSession::over(std::os::fd::OwnedFd::from(near).into()));
            (outside.stall_settles, outside.stop_asked) = (settles, asked);
            // A record a read, as the kernel gives them.
            for record in stalled.lines() {
                std::fs::write(&file, record).unwrap();
                outside.kmsg = Some(Kmsg::of(&file));
                outside.look();
            }
            let given_up = outside.given_up("x");
            assert_eq!(given_up.as_ref().map(|(why, _)| *why), why);
            assert_eq!(given_up.is_some_and(|(_, text)| text.contains("soft lockup - CPU#0")), settles);
            assert!(outside.unsent.is_none());
            drop(far);
        }
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn long_text_is_cut_on_character_borders_and_none_is_lost() {
        let text = "aé".repeat(OUTPUT_PIECE_BYTES);
        let parts: Vec<String> = pieces(&text).collect();
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= OUTPUT_PIECE_BYTES));
        assert_eq!(parts.concat(), text);
        assert_eq!(pieces("").count(), 0);
    }
}
