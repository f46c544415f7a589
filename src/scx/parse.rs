//! What the kernel's log says about the scheduler: enabled, disabled and why, and who was stalled.
//!
//! Owns the texts of kernel/sched/ext.c in both their dialects; leaves every other line of the log to klog/.
//! Invariant: pure; a log line is hostile input (a task's name may hold brackets, newlines, even such a line).

/// Every line of sched_ext begins so.
const PREFIX: &str = "sched_ext: ";
/// Records after a disable line among which its message is looked for: other CPUs write between them.
const MESSAGE_WITHIN: usize = 8;
/// Records a message may be torn into by a task's name with newlines.
const TORN_INTO: usize = 4;
/// Between a task and its seconds in the message of a stall.
const FAILED_TO_RUN: &str = " failed to run for ";

/// What an end means for the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Somebody asked for it: the program, or its BPF side.
    Clean,
    /// Something outside the scheduler ended it.
    Environment,
    /// The kernel threw it out.
    Eject,
}

/// enum scx_exit_kind (kernel/sched/ext_internal.h), by what the log calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    Unreg,
    UnregBpf,
    UnregKernel,
    Sysrq,
    Parent,
    Error,
    ErrorBpf,
    ErrorStall,
    /// A reason this version of ktstr does not know.
    Unknown,
}

/// The log's words, the kind and its number in the kernel, and what it means.
const EXITS: [(&str, ExitKind, u32, Meaning); 8] = [
    ("unregistered from user space", ExitKind::Unreg, 64, Meaning::Clean),
    ("unregistered from BPF", ExitKind::UnregBpf, 65, Meaning::Clean),
    ("unregistered from the main kernel", ExitKind::UnregKernel, 66, Meaning::Environment),
    ("disabled by sysrq-S", ExitKind::Sysrq, 67, Meaning::Environment),
    ("parent exiting", ExitKind::Parent, 68, Meaning::Environment),
    ("runtime error", ExitKind::Error, 1024, Meaning::Eject),
    ("scx_bpf_error", ExitKind::ErrorBpf, 1025, Meaning::Eject),
    ("runnable task stall", ExitKind::ErrorStall, 1026, Meaning::Eject),
];

impl ExitKind {
    /// Its number in the kernel.
    pub fn number(self) -> Option<u32> {
        EXITS.iter().find(|(_, kind, _, _)| *kind == self).map(|(_, _, number, _)| *number)
    }
    /// What it means for the subject. An unknown reason is taken for an eject: nothing is silently clean.
    pub fn meaning(self) -> Meaning {
        EXITS.iter().find(|(_, kind, _, _)| *kind == self).map_or(Meaning::Eject, |(_, _, _, meaning)| *meaning)
    }
}

/// The task that a stall names.
#[derive(Clone, Debug, PartialEq)]
pub struct Victim {
    pub comm: String,
    pub pid: i32,
    /// How long it had been runnable.
    pub seconds: f64,
}

/// One end of a scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Disable {
    /// Name of the operations; empty where this dialect does not tell.
    pub ops: String,
    /// The kernel's words for the reason.
    pub reason: String,
    pub kind: ExitKind,
    pub meaning: Meaning,
    /// What the kernel says beyond the reason.
    pub message: Option<String>,
    /// Who was not run, where the message names a task.
    pub victim: Option<Victim>,
    /// Index of the disable line among the records.
    pub record: usize,
}

impl Disable {
    /// One line for a person: `runnable task stall: kw0.0-spin[184] failed to run for 4.292s`.
    pub fn describe(&self) -> String {
        match &self.message {
            Some(message) => format!("{}: {}", self.reason, message.escape_debug()),
            None => self.reason.clone(),
        }
    }
}

/// What one record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Enabled { ops: String, partial: bool, record: usize },
    Disabled(Disable),
}

/// Finds every enable and disable in the records of a kernel log, in order. A record is text without its time stamp.
pub fn events<'a>(records: impl IntoIterator<Item = &'a str>) -> Vec<Event> {
    let records: Vec<&str> = records.into_iter().collect();
    let mut found = Vec::new();
    for (index, record) in records.iter().enumerate() {
        // Of a record with several lines only the first can be the kernel's own words: the rest may be a task's name.
        let line = record.lines().next().unwrap_or_default();
        let Some(text) = line.strip_prefix(PREFIX) else { continue };
        let Some((ops, rest)) = quoted_name(text) else { continue };
        match rest.trim_end() {
            "enabled" => found.push(Event::Enabled { ops, partial: false, record: index }),
            "enabled (partial)" => found.push(Event::Enabled { ops, partial: true, record: index }),
            "errored, disabling" => found.extend(old_error(ops, index, &records).map(Event::Disabled)),
            rest => {
                let reason = rest.strip_prefix("disabled (").and_then(|rest| rest.strip_suffix(')'));
                if let Some(reason) = reason {
                    let message = message_after(&ops, index, &records);
                    found.push(Event::Disabled(disable(ops, reason, message, index)));
                }
            }
        }
    }
    found
}

/// The ends only.
pub fn disables<'a>(records: impl IntoIterator<Item = &'a str>) -> Vec<Disable> {
    let ends = events(records).into_iter().filter_map(|event| match event {
        Event::Disabled(disable) => Some(disable),
        Event::Enabled { .. } => None,
    });
    ends.collect()
}

/// `BPF scheduler "NAME" REST`. The kernel lets only letters, digits, `_` and `.` into a name, so a quote ends it.
fn quoted_name(text: &str) -> Option<(String, &str)> {
    let (name, rest) = text.strip_prefix("BPF scheduler \"")?.split_once("\" ")?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    if name.bytes().all(legal) { Some((name.to_string(), rest)) } else { None }
}

fn disable(ops: String, reason: &str, message: Option<String>, record: usize) -> Disable {
    // Before 6.12 the reasons began with "Scheduler ".
    let reason = reason.strip_prefix("Scheduler ").unwrap_or(reason);
    let kind = EXITS.iter().find(|(words, ..)| *words == reason).map_or(ExitKind::Unknown, |(_, kind, ..)| *kind);
    let victim = message.as_deref().and_then(victim);
    Disable { ops, reason: reason.to_string(), kind, meaning: kind.meaning(), message, victim, record }
}

/// The older dialect: `sched_ext: REASON (MESSAGE)` follows, without the name.
fn old_error(ops: String, index: usize, records: &[&str]) -> Option<Disable> {
    let following = records.iter().skip(index + 1).take(MESSAGE_WITHIN);
    let told = following.filter_map(|record| record.strip_prefix(PREFIX)).find_map(|text| {
        let exit =
            EXITS.iter().find(|(words, ..)| text.strip_prefix("Scheduler ").unwrap_or(text).starts_with(words))?;
        Some((exit.0, text))
    });
    let Some((reason, text)) = told else {
        return Some(disable(ops, "errored", None, index));
    };
    let message = text.split_once(" (").map(|(_, message)| message.trim_end());
    let message = message.map(|message| message.strip_suffix(')').unwrap_or(message).to_string());
    Some(disable(ops, reason, message, index))
}

/// The newer dialect: `sched_ext: NAME: MESSAGE` follows where there is a message.
fn message_after(ops: &str, index: usize, records: &[&str]) -> Option<String> {
    let start = format!("{PREFIX}{ops}: ");
    let window = records.len().min(index + 1 + MESSAGE_WITHIN);
    for at in index + 1..window {
        let record = records[at];
        // The next scheduler's life begins: what follows is about that one.
        if record.strip_prefix(PREFIX).and_then(quoted_name).is_some() {
            return None;
        }
        let Some(first) = record.strip_prefix(&start) else { continue };
        return Some(joined(first, &records[at + 1..]));
    }
    None
}

/// A message whose task name has newlines goes on in the following records (a console tears it there).
fn joined(first: &str, following: &[&str]) -> String {
    let message = first.trim_end().to_string();
    if message.contains(FAILED_TO_RUN) {
        return message;
    }
    let mut whole = message.clone();
    for record in following.iter().take(TORN_INTO).take_while(|record| !record.starts_with(PREFIX)) {
        whole.push('\n');
        whole.push_str(record.trim_end());
        if record.contains(FAILED_TO_RUN) {
            return whole;
        }
    }
    message
}

/// `COMM[PID] failed to run for N.NNNs`, read from its end: the name may hold anything.
fn victim(message: &str) -> Option<Victim> {
    let (task, time) = message.rsplit_once(FAILED_TO_RUN)?;
    let seconds: f64 = time.trim_end().strip_suffix('s')?.parse().ok()?;
    let (comm, pid) = task.strip_suffix(']')?.rsplit_once('[')?;
    let pid: i32 = pid.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then(|| Victim { comm: comm.to_string(), pid, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(records: &[&str]) -> Disable {
        let mut found = disables(records.iter().copied());
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn stall_names_its_victim() {
        let end = only(&[
            "sched_ext: BPF scheduler \"ktstr_drop\" enabled",
            "sched_ext: BPF scheduler \"ktstr_drop\" disabled (runnable task stall)",
            "sched_ext: ktstr_drop: kw0.0-spin[440] failed to run for 1.496s",
            "   __scx_exit+0x4f/0x70",
        ]);
        assert_eq!((end.ops.as_str(), end.record), ("ktstr_drop", 1));
        assert_eq!((end.kind, end.meaning, end.kind.number()), (ExitKind::ErrorStall, Meaning::Eject, Some(1026)));
        assert_eq!(end.victim, Some(Victim { comm: "kw0.0-spin".into(), pid: 440, seconds: 1.496 }));
        assert_eq!(end.describe(), "runnable task stall: kw0.0-spin[440] failed to run for 1.496s");
    }

    #[test]
    fn every_reason_has_its_kind_and_meaning() {
        for (reason, kind, number, meaning) in EXITS {
            for front in ["", "Scheduler "] {
                let end = only(&[&format!("sched_ext: BPF scheduler \"a_1.2\" disabled ({front}{reason})")]);
                assert_eq!((end.kind, end.meaning, end.reason.as_str()), (kind, meaning, reason));
                assert_eq!((end.kind.number(), end.message), (Some(number), None));
            }
        }
        let end = only(&["sched_ext: BPF scheduler \"a\" disabled (eaten by wolves)"]);
        assert_eq!((end.kind, end.meaning, end.kind.number()), (ExitKind::Unknown, Meaning::Eject, None));
    }

    #[test]
    fn messages_of_other_kinds_are_kept() {
        let end = only(&[
            "sched_ext: BPF scheduler \"mini_initfail\" disabled (runtime error)",
            "usb 1-1: something between",
            "sched_ext: mini_initfail: ops.init() failed (-12)",
        ]);
        assert_eq!((end.message.as_deref(), end.victim), (Some("ops.init() failed (-12)"), None));
        let end = only(&[
            "sched_ext: BPF scheduler \"mini_error\" disabled (scx_bpf_error)",
            "sched_ext: mini_error: mini_error: refused pid 267",
        ]);
        assert_eq!(end.message.as_deref(), Some("mini_error: refused pid 267"));
    }

    #[test]
    fn enables_are_found_with_their_mode() {
        let found =
            events(["sched_ext: BPF scheduler \"p\" enabled (partial)", "x", "sched_ext: BPF scheduler \"q\" enabled"]);
        assert_eq!(found[0], Event::Enabled { ops: "p".into(), partial: true, record: 0 });
        assert_eq!(found[1], Event::Enabled { ops: "q".into(), partial: false, record: 2 });
    }

    #[test]
    fn message_of_a_later_scheduler_is_not_taken() {
        let found = disables([
            "sched_ext: BPF scheduler \"a\" disabled (unregistered from user space)",
            "sched_ext: BPF scheduler \"a\" enabled",
            "sched_ext: BPF scheduler \"a\" disabled (runtime error)",
            "sched_ext: a: second",
        ]);
        assert_eq!(found[0].message, None);
        assert_eq!(found[1].message.as_deref(), Some("second"));
    }

    #[test]
    fn older_dialect_is_read() {
        let end = only(&[
            "sched_ext: BPF scheduler \"old\" errored, disabling",
            "sched_ext: runnable task stall (Vulkan Submissi[71729] failed to run for 30.250s)",
        ]);
        assert_eq!((end.ops.as_str(), end.kind), ("old", ExitKind::ErrorStall));
        assert_eq!(end.victim, Some(Victim { comm: "Vulkan Submissi".into(), pid: 71729, seconds: 30.25 }));
        assert_eq!(only(&["sched_ext: BPF scheduler \"old\" errored, disabling"]).meaning, Meaning::Eject);
    }

    #[test]
    fn hostile_names_are_only_names() {
        let disabled = "sched_ext: BPF scheduler \"x\" disabled (runnable task stall)";
        for comm in ["a b[1] failed", "]]][[", "[7]", "", "x\ny", "e failed to run", "\u{fffd}\u{1f980}"] {
            let end = only(&[disabled, &format!("sched_ext: x: {comm}[9] failed to run for 2.000s")]);
            assert_eq!(end.victim, Some(Victim { comm: comm.into(), pid: 9, seconds: 2.0 }), "{comm:?}");
            assert!(!end.describe().contains('\n'));
        }
        // The console tears a name with a newline into two lines.
        let end = only(&[disabled, "sched_ext: x: one", "two[9] failed to run for 2.000s"]);
        assert_eq!(end.victim.map(|victim| victim.comm), Some("one\ntwo".into()));
        let end = only(&[disabled, "sched_ext: x: [1", "", "][9] failed to run for 2.000s"]);
        assert_eq!(end.victim.map(|victim| victim.comm), Some("[1\n\n]".into()));
        let end = only(&[
            disabled,
            "sched_ext: x: one",
            "   __scx_exit+0x4f/0x70",
            "sched_ext: y",
            "[9] failed to run for 2.000s",
        ]);
        assert_eq!(end.message.as_deref(), Some("one"));
        // A name that is such a line itself is not one.
        let forged = format!("sched_ext: x: a\n{disabled}[9] failed to run for 2.000s");
        assert_eq!(disables([disabled, forged.as_str()]).len(), 1);
    }

    #[test]
    fn nonsense_is_not_an_event() {
        for record in [
            "",
            "sched_ext: ",
            "sched_ext: BPF scheduler \"",
            "sched_ext: BPF scheduler \"a\"",
            "sched_ext: BPF scheduler \"a b\" enabled",
            "sched_ext: BPF scheduler \"a\" disabled (",
            "sched_ext: BPF scheduler \"a\" disabled",
            "xsched_ext: BPF scheduler \"a\" enabled",
        ] {
            assert_eq!(events([record]), [], "{record}");
        }
        for message in [
            "a[9] failed to run for s",
            "a[9] failed to run for NaNs",
            "a[x] failed to run for 1s",
            "a failed to run for 1s",
        ] {
            assert_eq!(victim(message), None, "{message}");
        }
    }
}
