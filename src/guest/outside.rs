//! What of PID 1 talks to the outside: channel and kernel log.
//!
//! Owns sending, obeying commands, and forwarding the log; leaves what is said when to the agent.
//! Invariant: it goes on while a scheduler or a scenario is being waited for; what cannot be sent is remembered.

use super::kmsg::Kmsg;
use super::power;
use crate::channel::guest::GuestSession;
use crate::error::Error;
use crate::proto::message::Msg;
use crate::sys::time;
use crate::units::NS_PER_MS;

/// A log that is still growing after this long has no end.
const LOG_END_NS: u64 = 2_000 * NS_PER_MS;
/// One message of a scheduler's output: far below the largest frame.
const OUTPUT_PIECE_BYTES: usize = 32 * 1024;

/// Channel and kernel log.
pub(super) struct Outside {
    pub session: GuestSession,
    pub kmsg: Option<Kmsg>,
    pub stop_asked: bool,
    /// Messages that could not be sent; the host sees the gap, this is for the console.
    pub unsent: Option<Error>,
}

impl Outside {
    pub fn say(&mut self, message: Msg) {
        if let Err(error) = self.session.send(&message) {
            self.unsent.get_or_insert(error);
        }
    }

    /// Sends on what the kernel has logged, and looks for commands.
    pub fn look(&mut self) {
        let fresh = self.kmsg.as_mut().map(Kmsg::take).unwrap_or_default();
        fresh.into_iter().for_each(|message| self.say(message));
        match self.session.receive() {
            Ok(commands) => commands.into_iter().for_each(|command| self.obey(command)),
            Err(error) => {
                self.unsent.get_or_insert(error);
            }
        }
    }

    /// Sends on the log until it is quiet, within a limit. Returns its totals and whether its end was reached.
    pub fn rest_of_the_log(&mut self) -> Option<(u64, u64, bool)> {
        let deadline = time::monotonic_ns() + LOG_END_NS;
        loop {
            let before = self.kmsg.as_ref()?.totals().0;
            self.look();
            let kmsg = self.kmsg.as_ref()?;
            let (records, lost) = kmsg.totals();
            let quiet = records == before;
            if quiet || time::monotonic_ns() > deadline {
                return Some((records, lost, quiet && !kmsg.is_broken()));
            }
        }
    }

    fn obey(&mut self, command: Msg) {
        match command {
            Msg::Stop => self.stop_asked = true,
            Msg::Abort => power::restart(),
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
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let mut end = rest.len().min(OUTPUT_PIECE_BYTES);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            self.say(Msg::SchedOutput { text: rest[..end].to_owned() });
            rest = &rest[end..];
        }
    }
}
