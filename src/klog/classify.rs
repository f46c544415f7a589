//! From lines to findings: what belongs together becomes one, with its first meaningful line as the title.
//!
//! Owns grouping and the choice between kernel log and console; leaves patterns to `table`.
//! Invariant: lines printed by user programs are never judged.

use super::line::{body, console_line, has_time, is_blank, one_line, strip_caller};
use super::sched_ext::{self, Exits, Fed, SchedExit};
use super::table::{Pattern, contains, lookup};
use super::{Class, Finding, Severity, Source};
use crate::proto::record::KlogLine;

/// Findings kept of each severity, so that notes never crowd out what fails a run.
const FINDINGS_CAP: usize = 200;
/// Lines kept with one finding: an oops with its registers and trace takes about 50.
const BLOCK_LINES: usize = 60;
/// A block ends where the kernel was silent this long: its lines come within milliseconds, even over a slow console.
const BLOCK_PAUSE_US: u64 = 2_000_000;
/// Facility 0 is the kernel's own; /dev/kmsg gives every user's line another one (devkmsg_write, kernel/printk/printk.c).
const FACILITY_SHIFT: u32 = 3;
/// Syslog level 3, KERN_ERR.
const LEVEL_ERR: u32 = 3;

/// Times that a console is believed to begin anew with the log: a kernel has few consoles, and each look goes through all
/// of the log.
const REPLAYS_MOST: u32 = 4;

/// The kernel's first line.
const BANNER: &str = "Linux version ";

/// What the kernel log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelLog {
    pub findings: Vec<Finding>,
    /// Every scheduler that the kernel disabled, in order.
    pub exits: Vec<SchedExit>,
    /// Lines of level error or worse that no pattern knows; counted, not judged.
    pub unknown_errors: u64,
    /// Findings beyond the cap that might have failed the run.
    pub findings_cut: u64,
    /// Whether the kernel printed anything at all.
    pub spoke: bool,
}

impl KernelLog {
    /// What is allowed becomes a note. `*` in a pattern stands for any text; a pattern may begin and end anywhere in the
    /// title or a line of the finding.
    pub fn allow(&mut self, patterns: &[String]) {
        for finding in &mut self.findings {
            let named = |pattern: &String| {
                std::iter::once(&finding.title).chain(&finding.lines).any(|text| contains(text, pattern))
            };
            if finding.severity == Severity::Fail && patterns.iter().any(named) {
                (finding.severity, finding.meaning) = (Severity::Note, ALLOWED);
            }
        }
    }
}

/// Why a finding does not count.
const ALLOWED: &str = "allowed by --allow-log";

/// Judges the kernel's lines: those it logged, and of the console those that came after them.
pub fn classify(klog: &[KlogLine], console: &str) -> KernelLog {
    classify_after(klog, console, klog.last().map(|line| line.time_us))
}

/// The same of a part of the log, where the last record of the whole is of this time.
pub fn classify_after(klog: &[KlogLine], console: &str, last_us: Option<u64>) -> KernelLog {
    let mut grouper = Grouper::default();
    for (index, line) in klog.iter().enumerate() {
        if line.priority >> FACILITY_SHIFT == 0 {
            let text = without_dictionary(&line.text);
            grouper.feed(Source::Klog(index), Some(line.time_us), &text, line.priority);
        }
    }
    // The console has the same stamps as the log: what it has beyond the last record was never forwarded.
    let stamped = console.lines().any(has_time);
    grouper.open = None;
    let mut latest_us = None;
    let (mut replays, mut restarted) = (0, false);
    for (index, raw) in console.lines().enumerate() {
        let (time_us, text) = console_line(raw);
        // A kernel that starts again counts from 0 again, so nothing of it is later than the log.
        let again = time_us.is_some() && time_us < latest_us && body(text).starts_with(BANNER);
        if again {
            restarted = restarted || replays == REPLAYS_MOST || !is_replay(console.lines().skip(index + 1), klog);
            if restarted {
                grouper.restarted(Source::Console(index), time_us, body(text));
                continue;
            }
            replays += 1;
        }
        latest_us = latest_us.max(time_us);
        let later = match (time_us, last_us) {
            (Some(time_us), Some(last_us)) => time_us > last_us,
            (Some(_), None) => true,
            // Without stamps, kernel and user text look alike: take it only where there is nothing better.
            (None, _) => !stamped && last_us.is_none(),
        };
        if later && !is_blank(raw) {
            // Level 4: the console does not say, and unknown lines of it are not counted as errors.
            grouper.feed(Source::Console(index), time_us, text, LEVEL_ERR + 1);
        }
    }
    grouper.finish()
}

/// Whether the console begins anew with what the log has already: a console that is registered late is given all of it
/// (register_console, kernel/printk/printk.c). The stamps of a second start differ, once they count.
fn is_replay<'a>(lines: impl Iterator<Item = &'a str>, klog: &[KlogLine]) -> bool {
    /// So many lines of two starts are never of the same microseconds.
    const ENOUGH: usize = 20;
    let counted = lines.filter_map(|raw| match console_line(raw) {
        (Some(time_us), text) if time_us > 0 => Some((time_us, text)),
        _ => None,
    });
    // Who printed a line stands before its text on the console, and elsewhere in the log.
    let known = |(time_us, text): (u64, &str)| {
        klog.iter().any(|line| line.time_us == time_us && line.text.contains(strip_caller(text).trim()))
    };
    let mut counted = counted.take(ENOUGH).peekable();
    counted.peek().is_some() && counted.all(known)
}

/// What a record says of a stall that fails a run, where it does.
pub fn stall(priority: u32, text: &str) -> Option<String> {
    let title = body(text).lines().next().unwrap_or("");
    let meaning = match lockup(title) {
        Some((_, meaning)) => meaning,
        None => lookup(title).filter(|row| row.class.is_stall() && row.severity == Severity::Fail)?.meaning,
    };
    (priority >> FACILITY_SHIFT == 0).then(|| format!("{meaning}: {}", one_line(title)))
}

/// What a detector of lockups found that hands the blame to a scheduler, instead of a report of its own.
fn lockup(message: &str) -> Option<(Class, &'static str)> {
    match sched_ext::parse_line(message)? {
        sched_ext::Line::Lockup { text } if text.starts_with(['H', 'h']) => {
            Some((Class::HardLockup, "a CPU took no interrupts"))
        }
        sched_ext::Line::Lockup { .. } => Some((Class::SoftLockup, "a CPU stayed in the kernel without scheduling")),
        _ => None,
    }
}

/// A record's text without the device dictionary that /dev/kmsg appends (` SUBSYSTEM=...`, ` DEVICE=...`).
fn without_dictionary(text: &str) -> String {
    let kept: Vec<&str> =
        text.lines().filter(|line| !line.starts_with(" SUBSYSTEM=") && !line.starts_with(" DEVICE=")).collect();
    kept.join("\n")
}

/// A block whose lines are still coming.
#[derive(Clone, Debug)]
struct Block {
    finding: usize,
    /// Whether crash lines belong to it until its end mark.
    absorbs: bool,
    last_us: Option<u64>,
}

#[derive(Default)]
struct Grouper {
    log: KernelLog,
    exits: Exits,
    open: Option<Block>,
    /// After `[ cut here ]`: the text before the line that says what it is.
    cut: Option<Option<String>>,
    banners: u32,
    /// For each exit, its finding.
    exit_findings: Vec<Option<usize>>,
    /// A lockup for which a scheduler is being disabled: where the log ends before it is, nothing else tells of it.
    lockup: Option<Finding>,
}

impl Grouper {
    fn feed(&mut self, source: Source, time_us: Option<u64>, text: &str, priority: u32) {
        self.log.spoke = true;
        let message = body(text);
        let first = message.lines().next().unwrap_or("");
        self.expire(time_us);
        if self.feed_sched_ext(source, time_us, message) {
            return;
        }
        if first.starts_with("------------[ cut here ]") {
            self.open = None;
            self.cut = Some(None);
            return;
        }
        if first.starts_with("---[ end trace") {
            self.end_block(source, time_us);
            return;
        }
        if first.starts_with(BANNER) {
            self.banner(source, time_us, first);
            return;
        }
        match lookup(first) {
            Some(pattern) => self.matched(pattern, source, time_us, first),
            None => self.unmatched(time_us, text, priority),
        }
    }

    /// Whether the line was sched_ext's own.
    fn feed_sched_ext(&mut self, source: Source, time_us: Option<u64>, message: &str) -> bool {
        match self.exits.feed(time_us, message) {
            Fed::Foreign => return false,
            Fed::State => {
                if let (Some((class, meaning)), None) = (lockup(message), &self.lockup) {
                    self.lockup = Some(new_finding((class, Severity::Fail, meaning), source, time_us, message));
                }
            }
            Fed::New(index) => {
                self.lockup = None;
                let exit = &self.exits.list[index];
                let (severity, meaning) = (exit.reason.severity(), exit.reason.meaning());
                let finding = Finding {
                    class: Class::SchedExtExit,
                    severity,
                    title: exit_title(exit),
                    meaning,
                    time_us,
                    source,
                    lines: vec![one_line(message)],
                    repeats: 1,
                };
                let at = self.push(finding);
                self.exit_findings.push(at);
                // An error brings a backtrace; what follows a clean stop is not part of it.
                let error = severity == Severity::Fail;
                self.open = at.filter(|_| error).map(|finding| Block { finding, absorbs: false, last_us: time_us });
            }
            Fed::Changed(index) => {
                let exit = &self.exits.list[index];
                let (title, severity, meaning) = (exit_title(exit), exit.reason.severity(), exit.reason.meaning());
                match self.exit_findings[index] {
                    Some(at) => {
                        let finding = &mut self.log.findings[at];
                        (finding.title, finding.severity, finding.meaning) = (title, severity, meaning);
                        finding.lines.push(one_line(message));
                    }
                    // A note that found no room may have become a failure.
                    None => {
                        let fresh = new_finding((Class::SchedExtExit, severity, meaning), source, time_us, &title);
                        self.exit_findings[index] = self.push(fresh);
                    }
                }
            }
        }
        true
    }

    fn restarted(&mut self, source: Source, time_us: Option<u64>, first: &str) {
        let meaning = "the kernel started a second time";
        self.push(new_finding((Class::Reboot, Severity::Fail, meaning), source, time_us, first));
    }

    fn banner(&mut self, source: Source, time_us: Option<u64>, first: &str) {
        self.banners += 1;
        if self.banners > 1 {
            self.restarted(source, time_us, first);
        }
    }

    fn matched(&mut self, pattern: &Pattern, source: Source, time_us: Option<u64>, first: &str) {
        match pattern.severity {
            Severity::Ignore => return,
            Severity::Note | Severity::HostNoise => {
                self.push(new_finding((pattern.class, pattern.severity, pattern.meaning), source, time_us, first));
                return;
            }
            Severity::Fail | Severity::Harness | Severity::CannotJudge => {}
        }
        if self.absorb(pattern.class, time_us, first) {
            return;
        }
        let cut = self.cut.take();
        let mut finding = new_finding((pattern.class, pattern.severity, pattern.meaning), source, time_us, first);
        if let Some(Some(text)) = &cut {
            finding.title = format!("{} ({})", finding.title, one_line(text));
        }
        let absorbs =
            cut.is_some() || matches!(pattern.class, Class::Bug | Class::Oops | Class::Sanitizer | Class::RcuStall);
        let at = self.push(finding);
        self.open = at.map(|finding| Block { finding, absorbs, last_us: time_us });
    }

    /// Whether a match is only another line of the open block: `Oops:` after `BUG: unable to handle`.
    fn absorb(&mut self, class: Class, time_us: Option<u64>, first: &str) -> bool {
        let Some(block) = self.open.as_mut().filter(|block| block.absorbs && self.cut.is_none()) else { return false };
        let finding = &mut self.log.findings[block.finding];
        let part = match class {
            Class::Warning => finding.class != Class::RcuStall,
            // That RCU's own thread starves is a line of the report, and stands alone only where it is all that was heard.
            Class::RcuStall => finding.class == Class::RcuStall && !first.starts_with("INFO: "),
            Class::Bug | Class::Oops => matches!(finding.class, Class::Bug | Class::Oops),
            _ => false,
        };
        if part {
            block.last_us = time_us;
            if finding.lines.len() < BLOCK_LINES {
                finding.lines.push(one_line(first));
            }
        }
        part
    }

    fn unmatched(&mut self, time_us: Option<u64>, text: &str, priority: u32) {
        if let Some(waiting) = &mut self.cut {
            waiting.get_or_insert_with(|| body(text).to_owned());
        } else if let Some(block) = &mut self.open {
            block.last_us = time_us;
            let lines = &mut self.log.findings[block.finding].lines;
            if lines.len() < BLOCK_LINES {
                lines.push(one_line(text));
            } else {
                self.open = None;
            }
        } else if priority <= LEVEL_ERR {
            self.log.unknown_errors += 1;
        }
    }

    /// `---[ end trace`: a block whose kind no pattern knew is a warning with its first line as title.
    fn end_block(&mut self, source: Source, time_us: Option<u64>) {
        if let Some(Some(text)) = self.cut.take() {
            let meaning = "the kernel printed a trace of a kind that is not known here";
            self.push(new_finding((Class::Warning, Severity::Fail, meaning), source, time_us, &text));
        }
        self.open = None;
    }

    fn expire(&mut self, time_us: Option<u64>) {
        let paused = |last_us: Option<u64>| match (last_us, time_us) {
            (Some(last), Some(now)) => now.saturating_sub(last) > BLOCK_PAUSE_US,
            _ => false,
        };
        if self.open.as_ref().is_some_and(|block| paused(block.last_us)) {
            self.open = None;
        }
    }

    /// Adds a finding, or counts it where the same was there; its index, unless the list is full.
    fn push(&mut self, finding: Finding) -> Option<usize> {
        let same = |known: &Finding| {
            known.class == finding.class
                && known.severity == finding.severity
                && known.title == finding.title
                && known.class != Class::SchedExtExit
        };
        if let Some(at) = self.log.findings.iter().position(same) {
            self.log.findings[at].repeats += 1;
            return Some(at);
        }
        if self.log.findings.iter().filter(|known| known.severity == finding.severity).count() >= FINDINGS_CAP {
            self.log.findings_cut += u64::from(finding.severity.is_decisive());
            return None;
        }
        self.log.findings.push(finding);
        Some(self.log.findings.len() - 1)
    }

    fn finish(mut self) -> KernelLog {
        if let Some(lockup) = self.lockup.take() {
            let later = |known: &Finding| known.time_us > lockup.time_us;
            let at = self.log.findings.iter().position(later).unwrap_or(self.log.findings.len());
            self.log.findings.insert(at, lockup);
        }
        self.log.exits = self.exits.list;
        self.log
    }
}

fn new_finding(
    (class, severity, meaning): (Class, Severity, &'static str),
    source: Source,
    time_us: Option<u64>,
    text: &str,
) -> Finding {
    let title = one_line(text);
    Finding { class, severity, title: title.clone(), meaning, time_us, source, lines: vec![title], repeats: 1 }
}

fn exit_title(exit: &SchedExit) -> String {
    one_line(&format!("sched_ext disabled \"{}\": {}", exit.ops, exit.describe()))
}
