//! sched_ext's own lines: enabled, disabled and why, and who was stalled.
//!
//! Owns reading both dialects of the kernel; leaves what an exit means for the verdict to verdict/.
//! Invariant: a hostile task or scheduler name can spoil its own name, not the reason or the number beside it.

use super::Severity;

const PREFIX: &str = "sched_ext: ";
const SCHEDULER: &str = "BPF scheduler \"";
const FAILED_TO_RUN: &str = " failed to run for ";
/// What the tick says where the watchdog itself got no turn (kernel/sched/ext.c, `scx_tick`).
const NO_CHECK_IN: &str = "watchdog failed to check in for ";
/// What the kernel's own detectors of stalls hand to sched_ext, which calls it a runtime error (kernel/sched/ext.c,
/// `handle_lockup`, `scx_rcu_cpu_stall`). How long, where one says so, stands behind the last words: `stuck for 22s`.
const LOCKUPS: [&str; 3] = ["RCU CPU stall detected", "soft lockup - CPU", "hard lockup - CPU"];
const STUCK_FOR: &str = " stuck for ";

/// What a scheduler prints that the kernel refused because another one is loaded, of which its own log has no line: EBUSY
/// as strerror(3) has it, and our own probes' words.
const BUSY: [&str; 2] = ["Device or resource busy", "another scheduler is loaded"];
/// How that is told.
pub const BUSY_TOLD: &str = "another scheduler is loaded already (EBUSY)";

/// For how long a CPU or a pool was stuck, where a line on a lockup says so, be it sched_ext's or the kernel's own. The number
/// comes before any name that a task could have given itself.
pub fn stuck_ms(line: &str) -> Option<u64> {
    let number = line.split_once(STUCK_FOR)?.1.split_inclusive('s').next()?;
    parse_seconds(number)
}

/// Whether a scheduler says that another one is loaded.
pub fn says_busy(output: &str) -> bool {
    BUSY.iter().any(|words| output.contains(words))
}

/// Why the kernel disabled a scheduler. The numbers are those of enum scx_exit_kind (kernel/sched/ext.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    Unregistered,
    UnregisteredBpf,
    UnregisteredKernel,
    Sysrq,
    ParentExiting,
    RuntimeError,
    BpfError,
    Stall,
    /// A text this version does not know: taken for an error, so that nothing new passes unseen.
    Unknown,
}

/// One known reason.
pub struct Reason {
    pub text: &'static str,
    pub reason: ExitReason,
    /// scx_exit_kind.
    pub kind: u32,
    pub severity: Severity,
    pub meaning: &'static str,
}

const fn known(text: &'static str, reason: ExitReason, kind: u32, severity: Severity, meaning: &'static str) -> Reason {
    Reason { text, reason, kind, severity, meaning }
}

/// The reasons, as scx_exit_reason() prints them; older kernels put "Scheduler " in front.
pub const REASONS: &[Reason] = &[
    known(
        "unregistered from user space",
        ExitReason::Unregistered,
        64,
        Severity::Note,
        "its process ended or let go of it",
    ),
    known(
        "unregistered from BPF",
        ExitReason::UnregisteredBpf,
        65,
        Severity::Note,
        "it ended itself with scx_bpf_exit()",
    ),
    known(
        "unregistered from the main kernel",
        ExitReason::UnregisteredKernel,
        66,
        Severity::Note,
        "a CPU came or went",
    ),
    known("disabled by sysrq-S", ExitReason::Sysrq, 67, Severity::Note, "someone pressed SysRq-S"),
    known("parent exiting", ExitReason::ParentExiting, 68, Severity::Note, "the scheduler above it ended"),
    known("runtime error", ExitReason::RuntimeError, 1024, Severity::Fail, "the kernel caught it breaking a rule"),
    known("scx_bpf_error", ExitReason::BpfError, 1025, Severity::Fail, "it reported an error of its own"),
    known(
        "runnable task stall",
        ExitReason::Stall,
        1026,
        Severity::Fail,
        "it left a runnable task waiting until the watchdog fired",
    ),
];

impl ExitReason {
    /// The table's row; none for a reason that is not known.
    pub fn row(self) -> Option<&'static Reason> {
        REASONS.iter().find(|row| row.reason == self)
    }
    pub fn severity(self) -> Severity {
        self.row().map_or(Severity::Fail, |row| row.severity)
    }
    pub fn meaning(self) -> &'static str {
        self.row().map_or("the kernel disabled it for a reason that is not known here", |row| row.meaning)
    }
    /// Whether the kernel threw the scheduler out for an error.
    pub fn is_error(self) -> bool {
        self.severity() == Severity::Fail
    }
    /// Whether something other than the scheduler ended it.
    pub fn is_environment(self) -> bool {
        matches!(self, Self::UnregisteredKernel | Self::Sysrq | Self::ParentExiting)
    }
}

/// The task that was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    pub comm: String,
    pub pid: i32,
    /// How long it waited, in milliseconds.
    pub waited_ms: u64,
}

/// One scheduler's end as the kernel told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedExit {
    pub ops: String,
    pub reason: ExitReason,
    pub reason_text: String,
    pub message: Option<String>,
    pub victim: Option<Victim>,
    /// How long the watchdog saw nothing of what it waited for, a victim, itself or a CPU, in milliseconds.
    pub stalled_ms: Option<u64>,
    pub time_us: Option<u64>,
}

impl SchedExit {
    /// `runnable task stall: kw0.0-spin[184] failed to run for 1.400s`
    pub fn describe(&self) -> String {
        match &self.message {
            Some(message) => format!("{}: {message}", self.reason_text),
            None => self.reason_text.clone(),
        }
    }

    /// Whether a detector of the kernel's that is not sched_ext's own handed it the blame. What a scheduler says of itself
    /// is no lockup, whatever it says.
    pub fn is_lockup(&self) -> bool {
        let told = self.message.as_deref().unwrap_or_default();
        self.reason == ExitReason::RuntimeError && LOCKUPS.iter().any(|words| told.starts_with(words))
    }

    /// Whether something did not run for too long, as sched_ext's watchdog or another detector found.
    pub fn is_stall(&self) -> bool {
        self.reason == ExitReason::Stall || self.is_lockup()
    }
}

/// One line of sched_ext's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Enabled {
        ops: &'a str,
        partial: bool,
    },
    /// Since 6.12: the reason stands in the line.
    Disabled {
        ops: &'a str,
        reason: &'a str,
    },
    /// Before 6.12: the reason follows in a line of its own.
    Errored {
        ops: &'a str,
    },
    /// A lockup detector hands the blame to the scheduler; the `disabled` line follows.
    Lockup {
        text: &'a str,
    },
    /// Any other text after `sched_ext: `.
    Text {
        text: &'a str,
    },
}

/// Reads one message; none where it is not sched_ext's.
pub fn parse_line(text: &str) -> Option<Line<'_>> {
    let rest = text.strip_prefix(PREFIX)?;
    let lower = rest.get(..11).map(str::to_ascii_lowercase);
    if matches!(lower.as_deref(), Some("soft lockup" | "hard lockup")) {
        return Some(Line::Lockup { text: rest });
    }
    Some(scheduler_line(rest).unwrap_or(Line::Text { text: rest }))
}

/// `BPF scheduler "NAME" ...`. The name is the scheduler's own, so the words after it are looked for from the right.
fn scheduler_line(rest: &str) -> Option<Line<'_>> {
    let named = rest.strip_prefix(SCHEDULER)?.trim_end();
    if let Some((ops, reason)) = named.rsplit_once("\" disabled (") {
        return Some(Line::Disabled { ops, reason: reason.strip_suffix(')').unwrap_or(reason) });
    }
    if let Some(ops) = named.strip_suffix("\" disabled") {
        return Some(Line::Disabled { ops, reason: "" });
    }
    if let Some((ops, _)) = named.rsplit_once("\" errored, disabling") {
        return Some(Line::Errored { ops });
    }
    if let Some(ops) = named.strip_suffix("\" enabled") {
        return Some(Line::Enabled { ops, partial: false });
    }
    named.strip_suffix("\" enabled (partial)").map(|ops| Line::Enabled { ops, partial: true })
}

/// The reason behind a text of either dialect.
pub fn parse_reason(text: &str) -> ExitReason {
    let text = text.trim();
    let text = text.strip_prefix("Scheduler ").unwrap_or(text);
    REASONS.iter().find(|row| row.text == text).map_or(ExitReason::Unknown, |row| row.reason)
}

/// `COMM[PID] failed to run for 4.292s`, where COMM may hold anything, brackets and newlines included.
pub fn parse_victim(message: &str) -> Option<Victim> {
    let (who, waited) = message.rsplit_once(FAILED_TO_RUN)?;
    let (comm, pid) = who.strip_suffix(']')?.rsplit_once('[')?;
    let pid = pid.parse().ok().filter(|_| is_digits(pid))?;
    Some(Victim { comm: comm.to_owned(), pid, waited_ms: parse_seconds(waited)? })
}

/// `4.292s` in milliseconds. Three digits in every known kernel; a longer or shorter fraction is brought to milliseconds.
fn parse_seconds(text: &str) -> Option<u64> {
    let number = text.trim_end().strip_suffix('s')?;
    let (seconds, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let seconds: u64 = seconds.parse().ok().filter(|_| is_digits(seconds) && is_digits(fraction))?;
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    seconds.checked_mul(1000)?.checked_add(millis.parse().ok()?)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What a line did to the list of exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// A new exit, at this index.
    New(usize),
    /// The exit at this index has its message now, or more of it.
    Changed(usize),
    /// Sched_ext's, but no exit.
    State,
    /// Not sched_ext's.
    Foreign,
}

/// Folds lines into exits.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    pub list: Vec<SchedExit>,
    /// The last line may be continued: the exit's message was cut by a newline in a task's name.
    open: bool,
}

impl Exits {
    /// Takes one message, its decoration stripped.
    pub fn feed(&mut self, time_us: Option<u64>, text: &str) -> Fed {
        let Some(line) = parse_line(text) else { return self.continue_message(text) };
        self.open = false;
        match line {
            Line::Disabled { ops, reason } => self.push(ops, reason, time_us),
            Line::Errored { ops } => self.push(ops, "", time_us),
            Line::Text { text } => self.message(text),
            Line::Lockup { .. } | Line::Enabled { .. } => Fed::State,
        }
    }

    fn push(&mut self, ops: &str, reason_text: &str, time_us: Option<u64>) -> Fed {
        self.list.push(SchedExit {
            ops: ops.to_owned(),
            reason: parse_reason(reason_text),
            reason_text: if reason_text.is_empty() { "errored".into() } else { reason_text.to_owned() },
            message: None,
            victim: None,
            stalled_ms: None,
            time_us,
        });
        self.open = true;
        Fed::New(self.list.len() - 1)
    }

    /// The second line: `OPS: MESSAGE`, or before 6.12 `REASON (MESSAGE)`.
    fn message(&mut self, text: &str) -> Fed {
        let index = self.list.len();
        let Some(exit) = self.list.last_mut().filter(|exit| exit.message.is_none()) else { return Fed::State };
        if let Some(message) = text.strip_prefix(&exit.ops).and_then(|rest| rest.strip_prefix(": ")) {
            exit.take_message(message);
        } else if exit.reason == ExitReason::Unknown {
            let (reason, message) = text.split_once(" (").unwrap_or((text, ""));
            exit.reason = parse_reason(reason);
            exit.reason_text = reason.to_owned();
            let message = message.trim_end();
            exit.take_message(message.strip_suffix(')').unwrap_or(message));
        } else {
            return Fed::State;
        }
        self.open = exit.victim.is_none();
        Fed::Changed(index - 1)
    }

    /// The rest of a message that a newline in a task's name broke in two.
    fn continue_message(&mut self, text: &str) -> Fed {
        let index = self.list.len();
        let broken = self.open && text.contains(FAILED_TO_RUN);
        let Some(exit) = self.list.last_mut().filter(|exit| broken && exit.reason == ExitReason::Stall) else {
            return Fed::Foreign;
        };
        let Some(begun) = exit.message.take() else { return Fed::Foreign };
        exit.take_message(&format!("{begun}\n{}", text.trim_end().trim_end_matches(')')));
        self.open = false;
        Fed::Changed(index - 1)
    }
}

impl SchedExit {
    fn take_message(&mut self, message: &str) {
        let message = message.trim_end();
        self.victim = parse_victim(message);
        let unchecked = || parse_seconds(message.strip_prefix(NO_CHECK_IN)?);
        self.stalled_ms = self.victim.as_ref().map(|victim| victim.waited_ms).or_else(unchecked);
        self.message = Some(message.to_owned()).filter(|text| !text.is_empty());
        if self.is_lockup() {
            self.stalled_ms = stuck_ms(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(lines: &[&str]) -> Vec<SchedExit> {
        let mut exits = Exits::default();
        for line in lines {
            exits.feed(Some(7), line);
        }
        exits.list
    }

    #[test]
    fn stall_of_today_names_reason_and_victim() {
        let list = exits(&[
            "sched_ext: BPF scheduler \"raw_drop\" enabled",
            "sched_ext: BPF scheduler \"raw_drop\" disabled (runnable task stall)",
            "sched_ext: raw_drop: victim[184] failed to run for 4.292s",
            "   __scx_exit+0x4f/0x70",
        ]);
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].reason, ExitReason::Stall);
        assert_eq!(list[0].victim, Some(Victim { comm: "victim".into(), pid: 184, waited_ms: 4292 }));
        assert_eq!(list[0].stalled_ms, Some(4292));
        assert_eq!(list[0].describe(), "runnable task stall: victim[184] failed to run for 4.292s");
    }

    #[test]
    fn stall_before_6_12_names_reason_and_victim() {
        let list = exits(&[
            "sched_ext: BPF scheduler \"simple\" errored, disabling",
            "sched_ext: runnable task stall (a (b)[9] failed to run for 30.001s)",
        ]);
        assert_eq!(list[0].reason, ExitReason::Stall);
        assert_eq!(list[0].victim, Some(Victim { comm: "a (b)".into(), pid: 9, waited_ms: 30_001 }));
    }

    #[test]
    fn watchdog_without_a_turn_tells_how_long_and_no_victim() {
        let list = exits(&[
            "sched_ext: BPF scheduler \"x\" disabled (runnable task stall)",
            "sched_ext: x: watchdog failed to check in for 1.084s",
        ]);
        assert_eq!((list[0].reason, &list[0].victim, list[0].stalled_ms), (ExitReason::Stall, &None, Some(1084)));
    }

    #[test]
    fn lockup_that_sched_ext_calls_a_runtime_error_is_a_stall() {
        let of = |reason: &str, message: &str| {
            let told = format!("sched_ext: x: {message}");
            exits(&[&format!("sched_ext: BPF scheduler \"x\" disabled ({reason})"), &told]).remove(0)
        };
        for (message, stalled_ms) in [
            ("RCU CPU stall detected!", None),
            ("soft lockup - CPU 0 stuck for 2s", Some(2000)),
            ("soft lockup - CPU#1 stuck for 22s", Some(22_000)),
            ("soft lockup - CPU#1 stuck for 9s! [ops:1]", Some(9_000)),
            ("soft lockup - CPU#1 stuck for 22s! [a stuck for 1s:103]", Some(22_000)),
            ("hard lockup - CPU 3", None),
        ] {
            let exit = of("runtime error", message);
            assert_eq!((exit.is_stall(), exit.is_lockup(), exit.stalled_ms), (true, true, stalled_ms), "{message}");
        }
        assert!(!of("runtime error", "ops.init() failed (-12)").is_stall());
        let own = of("scx_bpf_error", "soft lockup - CPU 0 stuck for 2s");
        assert!(!own.is_stall() && own.stalled_ms.is_none(), "its own words excuse no scheduler");
        let watchdog = of("runnable task stall", "watchdog failed to check in for 1.084s");
        assert!(watchdog.is_stall() && !watchdog.is_lockup());
    }

    #[test]
    fn every_reason_is_told_apart_in_both_spellings() {
        for row in REASONS {
            for text in [row.text.to_owned(), format!("Scheduler {}", row.text)] {
                let list = exits(&[&format!("sched_ext: BPF scheduler \"x\" disabled ({text})")]);
                assert_eq!(list[0].reason, row.reason, "{text}");
                assert_eq!(list[0].reason.is_error(), row.kind >= 1024, "{text}");
            }
        }
        let list = exits(&["sched_ext: BPF scheduler \"x\" disabled (something new)"]);
        assert_eq!(list[0].reason, ExitReason::Unknown);
        assert!(list[0].reason.is_error());
    }

    #[test]
    fn hostile_names_spoil_only_themselves() {
        let victim = |comm: &str| {
            let list = exits(&[
                "sched_ext: BPF scheduler \"x\" disabled (runnable task stall)",
                &format!("sched_ext: x: {comm}[71729] failed to run for 1.400s"),
            ]);
            list[0].victim.clone()
        };
        for comm in ["Vulkan Submissi", "a]b[1", "[12]", "a\nb", " failed to run", "é", ""] {
            assert_eq!(victim(comm), Some(Victim { comm: comm.into(), pid: 71729, waited_ms: 1400 }), "{comm:?}");
        }
        let list = exits(&["sched_ext: BPF scheduler \"a\" enabled\" disabled (scx_bpf_error)"]);
        assert_eq!((list[0].ops.as_str(), list[0].reason), ("a\" enabled", ExitReason::BpfError));
    }

    #[test]
    fn newline_that_split_the_line_is_mended() {
        let list = exits(&[
            "sched_ext: BPF scheduler \"x\" disabled (runnable task stall)",
            "sched_ext: x: two",
            "lines[5] failed to run for 2.000s",
            "other[6] failed to run for 9.000s",
        ]);
        assert_eq!(list[0].victim, Some(Victim { comm: "two\nlines".into(), pid: 5, waited_ms: 2000 }));
    }

    #[test]
    fn malformed_victims_are_no_victims() {
        for text in [
            "x[1] failed to run for s",
            "x[] failed to run for 1.0s",
            "x failed to run for 1.0s",
            "x[1] failed to run for 1.0",
            "x[99999999999] failed to run for 1.0s",
            "x[1] failed to run for 99999999999999999999.0s",
            "x[-1] failed to run for 1.0s",
        ] {
            assert_eq!(parse_victim(text), None, "{text}");
        }
    }

    #[test]
    fn other_lines_are_state_or_foreign() {
        let mut list = Exits::default();
        assert_eq!(list.feed(None, "sched_ext: BPF scheduler \"m\" enabled (partial)"), Fed::State);
        assert_eq!(list.feed(None, "sched_ext: Soft lockup - CPU1 stuck for 9s, disabling \"m\""), Fed::State);
        assert_eq!(list.feed(None, "hello sched_ext: BPF scheduler \"m\" disabled (x)"), Fed::Foreign);
        assert!(list.list.is_empty());
    }

    #[test]
    fn message_of_another_scheduler_is_not_taken() {
        let list = exits(&[
            "sched_ext: BPF scheduler \"a\" disabled (runtime error)",
            "sched_ext: b: ops.init() failed (-12)",
            "sched_ext: a: ops.init() failed (-12)",
        ]);
        assert_eq!(list[0].message.as_deref(), Some("ops.init() failed (-12)"));
    }
}
