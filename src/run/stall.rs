//! Ends a run whose verdict the kernel's report of a stall has settled, where the guest does not end by itself.
//!
//! Owns the time that the guest then has, and hearing such a report from the channel and from the console; leaves whether
//! one settles the verdict to verdict/, and ending the VM to watch.rs.
//! Invariant: a run of which anything is still to be judged is never cut: with a scenario to come, or without a PID 1.

use crate::klog;
use crate::proto::message::{Msg, VmEnd};
use crate::proto::plan::Plan;
use crate::units::{self, NS_PER_MS, NS_PER_US};
use crate::verdict;

/// From the report to the end of a guest that has not ended by then, whatever it waits for: a stall is told within a second
/// of the kernel's line, and of that second this leaves a quarter for the line's way here and for the VM's end.
const TO_REPORT_NS: u64 = 750 * NS_PER_MS;
/// A sign of life that comes so soon after a line may have been given before it; the next is due within half a second.
const SIGN_LATE_NS: u64 = 100 * NS_PER_MS;
/// A longer line of the console is none of the kernel's (PRINTK_MESSAGE_MAX is 2048, kernel/printk/internal.h).
const LINE_BYTES: usize = 4096;

/// What was heard of a stall that settles the verdict.
#[derive(Debug)]
pub struct Stall {
    settles: bool,
    scenarios: usize,
    /// No other scenario can follow the one that runs.
    is_last: bool,
    /// The guest's uptime when PID 1 began, where it has: until then, a run is about whether it ever will.
    pid1_us: Option<u64>,
    /// A scenario's workers have been started, so that the scheduler that it began with was there.
    begun: bool,
    /// The kernel's time of the last line that PID 1 forwarded: what the console has beyond it, PID 1 could not.
    forwarded_us: Option<u64>,
    /// The console's last line, which is still to be completed.
    line: Vec<u8>,
    /// What the console told, and when by the kernel's clock and by ours: it counts as long as PID 1 does not forward that line
    /// or a later one, which shows who wrote it, and gives no other sign of life.
    unforwarded: Option<(String, u64, u64)>,
    /// What was told first, and when it came here.
    seen: Option<(String, u64)>,
}

impl Stall {
    pub fn new(plan: &Plan, emulated: bool) -> Self {
        let scenarios = plan.scenarios.len();
        Self {
            settles: verdict::stall_settles(plan, emulated),
            scenarios,
            is_last: scenarios <= 1,
            pid1_us: None,
            begun: false,
            forwarded_us: None,
            line: Vec::new(),
            unforwarded: None,
            seen: None,
        }
    }

    /// Takes a message of the guest's.
    pub fn heard(&mut self, message: &Msg, now_ns: u64) {
        match message {
            Msg::Hello { pid1_uptime_ns, .. } => self.pid1_us = Some(*pid1_uptime_ns / NS_PER_US),
            Msg::Klog { priority, time_us, text, .. } => {
                self.forwarded_us = self.forwarded_us.max(Some(*time_us));
                self.unforwarded.take_if(|(_, line_us, _)| *line_us <= *time_us);
                // What the kernel said while it booted is judged in the end, as is whether it can be judged at all.
                if Some(*time_us) >= self.pid1_us && self.pid1_us.is_some() {
                    self.note(klog::stall(*priority, text), now_ns);
                }
            }
            // What was told before is of the scenario before.
            Msg::ScenarioBegin { index } => {
                self.is_last = *index as usize + 1 >= self.scenarios;
                (self.seen, self.unforwarded, self.begun) = (None, None, false);
            }
            Msg::ScenarioStart { .. } => self.begun = true,
            // Without the scheduler that it is to begin with no scenario can follow.
            Msg::SchedFailed { .. } if !self.is_last && !self.begun => {
                self.is_last = true;
                self.seen.iter_mut().for_each(|(_, seen_ns)| *seen_ns = now_ns);
                self.unforwarded.iter_mut().for_each(|(_, _, seen_ns)| *seen_ns = now_ns);
            }
            _ => {}
        }
    }

    /// PID 1 lives, so that it is for PID 1 to forward the line.
    pub fn alive(&mut self, now_ns: u64) {
        self.unforwarded.take_if(|(_, _, seen_ns)| now_ns.saturating_sub(*seen_ns) >= SIGN_LATE_NS);
    }

    /// Takes what came from the console: PID 1 may itself be what is kept from its CPU.
    pub fn console(&mut self, bytes: &[u8], now_ns: u64) {
        if !self.settles {
            return;
        }
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let text = String::from_utf8_lossy(&line);
                let (time_us, text) = klog::console_line(&text);
                // As the verdict reads it: a line without the kernel's stamp may be anybody's.
                let beyond = time_us.filter(|_| self.pid1_us.is_some() && self.unforwarded.is_none());
                let beyond = beyond.filter(|_| time_us > self.forwarded_us && time_us >= self.pid1_us);
                let told = beyond.and_then(|time_us| Some((klog::stall(0, text)?, time_us, now_ns)));
                self.unforwarded = self.unforwarded.take().or(told);
            }
            self.line.truncate(LINE_BYTES);
        }
    }

    fn note(&mut self, told: Option<String>, now_ns: u64) {
        if let (true, Some(text), None) = (self.settles, told, &self.seen) {
            self.seen = Some((text, now_ns));
        }
    }

    /// The end of a guest that had its time.
    pub fn end(&self, now_ns: u64) -> Option<VmEnd> {
        let unforwarded = || self.unforwarded.as_ref().map(|(text, _, seen_ns)| (text, seen_ns));
        let seen = self.seen.as_ref().map(|(text, seen_ns)| (text, seen_ns)).or_else(unforwarded);
        let (text, seen_ns) = seen.filter(|_| self.is_last)?;
        (now_ns.saturating_sub(*seen_ns) >= TO_REPORT_NS).then(|| {
            let after = units::duration(TO_REPORT_NS);
            VmEnd::Cut {
                reason: format!("the kernel reported a stall, and the guest had not ended {after} later: {text}"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::fixture::passing;

    const SOFT: &str = "watchdog: BUG: soft lockup - CPU#0 stuck for 4s! [scx_enable_help:103]";
    const TAKEN_UP: &str = "sched_ext: Soft lockup - CPU 0 stuck for 1s, disabling BPF scheduler";
    const AT: u64 = 5_000 * NS_PER_MS;

    fn hello() -> Msg {
        Msg::Hello {
            protocol: 0,
            build: String::new(),
            kernel: String::new(),
            online: Default::default(),
            memory_kib: 0,
            pid1_uptime_ns: 0,
            channel: String::new(),
            missing: Vec::new(),
        }
    }

    fn line(priority: u32, text: &str) -> Msg {
        Msg::Klog { priority, sequence: 1, time_us: 7_000_000, text: text.into() }
    }

    fn single() -> Stall {
        let mut stall = Stall::new(&passing().plan.unwrap(), false);
        stall.heard(&hello(), 0);
        stall
    }

    /// Whether it is cut in time, and not before the guest had a moment.
    fn cuts(stall: &Stall) -> bool {
        assert_eq!(stall.end(AT + TO_REPORT_NS - 1), None);
        let end = stall.end(AT + TO_REPORT_NS);
        assert!(end.iter().all(|end| matches!(end, VmEnd::Cut { reason } if reason.contains("750ms later: a CPU"))));
        end.is_some()
    }

    #[test]
    fn guest_has_a_moment_after_a_stall_in_any_phase() {
        for text in [SOFT, TAKEN_UP, "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"] {
            let mut stall = single();
            assert!(!cuts(&stall));
            stall.heard(&line(3, text), AT);
            stall.heard(&line(3, SOFT), AT + NS_PER_MS);
            assert!(cuts(&stall), "{text}");
        }
        let mut user = single();
        user.heard(&line(11, SOFT), AT);
        user.heard(&line(6, "x: BUG: soft lockup - CPU#0 stuck for 4s!"), AT);
        assert!(!cuts(&user));
    }

    #[test]
    fn stall_of_the_boot_ends_nothing() {
        let mut stall = Stall::new(&passing().plan.unwrap(), false);
        let mut hello = hello();
        if let Msg::Hello { pid1_uptime_ns, .. } = &mut hello {
            *pid1_uptime_ns = 7_000_001 * NS_PER_US;
        }
        stall.heard(&hello, 0);
        stall.heard(&line(0, SOFT), AT);
        stall.console(format!("[    7.000000] {SOFT}\n").as_bytes(), AT);
        assert!(!cuts(&stall));
        stall.console(format!("[    7.000001] {SOFT}\n").as_bytes(), AT);
        assert!(cuts(&stall));
    }

    #[test]
    fn stall_that_settles_nothing_ends_nothing() {
        let plan = passing().plan.unwrap();
        let mut allowing = plan.clone();
        allowing.guards.allow_log = vec!["soft lockup".into()];
        for mut stall in [Stall::new(&plan, true), Stall::new(&allowing, false)] {
            stall.heard(&hello(), 0);
            stall.heard(&line(0, SOFT), AT);
            stall.console(format!("[    8.000000] {SOFT}\n").as_bytes(), AT);
            assert!(!cuts(&stall));
        }
    }

    #[test]
    fn console_tells_what_pid_1_cannot() {
        let whole = format!("junk\n[    8.000000] {SOFT}\r\n");
        let mut stall = single();
        stall.heard(&line(6, "x"), 0);
        let (first, second) = whole.split_at(whole.len() - 9);
        stall.console(first.as_bytes(), AT - 1);
        assert!(!cuts(&stall));
        stall.console(second.as_bytes(), AT);
        assert!(cuts(&stall));
        // What was forwarded, what has no stamp, and what a kernel says that has no PID 1 yet.
        for text in [format!("[    7.000000] {SOFT}\n"), format!("{SOFT}\n"), format!("[    8.000000] x\n{SOFT}\n")] {
            let mut other = single();
            other.heard(&line(6, "x"), 0);
            other.console(text.as_bytes(), AT);
            assert!(!cuts(&other), "{text}");
        }
        // A program may write into the kernel's log: the console does not show that it did.
        let mut lie = single();
        lie.console(format!("[    7.000000] {SOFT}\n").as_bytes(), AT);
        lie.heard(&line(8, SOFT), AT + 1);
        assert!(!cuts(&lie));
        let mut true_word = single();
        true_word.console(format!("[    7.000000] {SOFT}\n").as_bytes(), AT - 1);
        true_word.heard(&line(0, SOFT), AT);
        assert!(cuts(&true_word));
        // Where PID 1 goes on, the line is for it to forward; one sign may have been under way.
        for (later_ns, is_cut) in [(SIGN_LATE_NS - 1, true), (SIGN_LATE_NS, false)] {
            let mut living = single();
            living.console(whole.as_bytes(), AT);
            living.alive(AT + later_ns);
            assert_eq!(cuts(&living), is_cut);
        }
        let mut booting = Stall::new(&passing().plan.unwrap(), false);
        booting.console(whole.as_bytes(), AT);
        assert!(!cuts(&booting));
        let mut endless = single();
        endless.console(&[b'x'; 3 * LINE_BYTES], AT);
        assert_eq!(endless.line.len(), LINE_BYTES);
    }

    #[test]
    fn scenario_that_is_to_follow_is_not_cut_off() {
        let mut plan = passing().plan.unwrap();
        plan.scenarios.push(plan.scenarios[0].clone());
        let mut stall = Stall::new(&plan, false);
        stall.heard(&hello(), 0);
        stall.heard(&Msg::ScenarioBegin { index: 0 }, 0);
        stall.heard(&line(3, SOFT), AT - NS_PER_MS);
        assert!(!cuts(&stall));
        let mut failed = Stall { seen: stall.seen.clone(), ..Stall::new(&plan, false) };
        failed.heard(
            &Msg::SchedFailed { why: crate::proto::message::SchedFailure::ExitedEarly, text: String::new() },
            AT,
        );
        assert!(cuts(&failed));
        // One that a scenario exchanges is that scenario's own.
        let mut exchanged = Stall { seen: stall.seen.clone(), begun: true, ..Stall::new(&plan, false) };
        exchanged.heard(
            &Msg::SchedFailed { why: crate::proto::message::SchedFailure::KernelStalled, text: String::new() },
            AT,
        );
        assert!(!cuts(&exchanged));
        stall.heard(&Msg::ScenarioBegin { index: 1 }, AT);
        assert!(!cuts(&stall));
        stall.heard(&line(3, SOFT), AT);
        assert!(cuts(&stall));
    }
}
