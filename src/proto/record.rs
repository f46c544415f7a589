//! The record of one run: every message, folded into one picture that a verdict can be given on.
//!
//! Owns the folding and the stored file's form; leaves reading and writing files to run/rundir, judging to verdict/.
//! Invariant: the record is exactly the fold of its messages, so a stored one gives the same picture again.

use super::asserted::AssertResult;
use super::codec::{Reader, Wire};
use super::frame::{self, FrameError};
use super::message::{HostInfo, Msg, ProcessEnd, SchedFailure, SchedFinal, Stage, VmEnd, VmStats};
use super::noise::HostNoise;
use super::part::Part;
use super::perf::PerfItem;
use super::phase::{PayloadReport, PhaseReport, Stimulus};
use super::plan::{BUILD, PROTOCOL, Plan};
use super::registers::CpuDump;
use super::report::WorkerReport;
use super::runqueues::RunQueues;
use super::seen::Seen;

/// First bytes of a stored record; the digits count the forms of what `file_head` gives.
const FILE_MAGIC: &[u8; 8] = b"KTSTRR02";
/// The same without the digits.
const ANY_MAGIC: &[u8] = b"KTSTRR";
/// Console text kept in the record; the file console.log has its own, larger cap.
pub const CONSOLE_CAP_BYTES: usize = 256 * 1024;
/// Kernel log records kept; later ones are counted.
pub const KLOG_CAP: usize = 20_000;

/// One record of the guest's kernel log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KlogLine {
    /// Syslog priority: facility * 8 + level.
    pub priority: u32,
    pub sequence: u64,
    pub time_us: u64,
    pub text: String,
}

/// The guest's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub kernel: String,
    pub online_cpus: usize,
    pub memory_kib: u64,
    pub pid1_uptime_ns: u64,
    pub channel: String,
    pub missing: Vec<String>,
}

/// The scheduler was seen enabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enabled {
    pub ops: String,
    pub enable_seq: u64,
    pub took_ns: u64,
    pub pid: i32,
    pub switch_all: Option<bool>,
}

/// An instance of the scheduler, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub enabled: Enabled,
    /// None: its end was not seen.
    pub last: Option<SchedFinal>,
}

/// The scheduler went away during the scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Died {
    pub after_ns: u64,
    pub end: Option<ProcessEnd>,
    pub state: String,
    /// How it was lost, in words.
    pub text: String,
}

/// The scenario's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioEnd {
    pub elapsed_ns: u64,
    pub early: Option<String>,
    pub steal_ns: u64,
    /// Guest uptime at the end.
    pub uptime_ns: u64,
}

/// A thing the guest could not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestError {
    pub stage: String,
    pub text: String,
    pub cannot_judge: bool,
}

/// Everything known about one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub host: Option<HostInfo>,
    pub plan: Option<Plan>,
    pub marks: Vec<(Stage, u64)>,
    pub hello: Option<Hello>,
    /// The machine as the guest's kernel shows it.
    pub seen: Option<Seen>,
    pub klog: Vec<KlogLine>,
    /// Kernel log records beyond `KLOG_CAP`.
    pub klog_cut: u64,
    /// (forwarded, overwritten before they were read); none: the log was not read to its end.
    pub klog_end: Option<(u64, u64)>,
    pub sched_output: String,
    /// What the kernel told of the scheduler's state, on request or when it ended it.
    pub sched_dump: String,
    pub sched_enabled: Option<Enabled>,
    pub sched_failed: Option<(SchedFailure, String)>,
    pub sched_died: Option<Died>,
    pub sched_final: Option<SchedFinal>,
    pub scenario_started: Option<String>,
    /// The guest's uptime then.
    pub scenario_uptime_ns: Option<u64>,
    /// (cgroup, workers that were forked into it), in order; a cgroup may stand here more than once.
    pub spawned: Vec<(String, u32)>,
    pub reports: Vec<(String, WorkerReport)>,
    pub scenario_end: Option<ScenarioEnd>,
    /// What a scenario that is code said of its run.
    pub asserted: Option<AssertResult>,
    /// What the monitor of the run queues saw; none: it did not run.
    pub queues: Option<RunQueues>,
    pub guest_errors: Vec<GuestError>,
    pub crash: Option<String>,
    pub notes: Vec<String>,
    pub host_notes: Vec<String>,
    pub channel_damage: Vec<String>,
    pub console: String,
    pub vm_end: Option<VmEnd>,
    pub stats: Option<VmStats>,
    pub noise: Option<HostNoise>,
    /// Performance mode; empty where it was not asked for.
    pub perf: Vec<PerfItem>,
    /// Where the vCPUs stood when the VM was killed; empty where it was not.
    pub registers: Vec<CpuDump>,
    pub bye: bool,
    pub stimuli: Vec<Stimulus>,
    pub phases: Vec<PhaseReport>,
    pub payloads: Vec<PayloadReport>,
    /// Calls that the kernel did not return from.
    pub hangs: Vec<String>,
    /// Instances of the scheduler before the one that was enabled last: the scenario itself ended them.
    pub earlier: Vec<Instance>,
    /// Where there are several scenarios: the picture of each.
    pub parts: Vec<Part>,
    /// Where there are several: what belongs to none of them, such as the log of the boot. It has no parts itself.
    pub outside: Option<Box<Record>>,
}

impl Record {
    /// Adds one message to the picture.
    pub fn apply(&mut self, message: Msg) {
        self.apply_to_parts(&message);
        self.fold(message);
    }

    pub(super) fn fold(&mut self, message: Msg) {
        match message {
            Msg::Hello { kernel, online, memory_kib, pid1_uptime_ns, channel, missing, .. } => {
                let online_cpus = online.len();
                self.hello = Some(Hello { kernel, online_cpus, memory_kib, pid1_uptime_ns, channel, missing });
            }
            Msg::Machine { seen } => self.seen = Some(seen),
            Msg::Note { text } => self.notes.push(text),
            Msg::Klog { priority, sequence, time_us, text } if self.klog.len() < KLOG_CAP => {
                self.klog.push(KlogLine { priority, sequence, time_us, text });
            }
            Msg::Klog { .. } => self.klog_cut += 1,
            Msg::SchedOutput { text } => push_tail(&mut self.sched_output, &text),
            Msg::SchedEnabled { ops, enable_seq, took_ns, pid, switch_all } => {
                let last = self.sched_final.take();
                let enabled = Enabled { ops, enable_seq, took_ns, pid, switch_all };
                if let Some(enabled) = self.sched_enabled.replace(enabled) {
                    self.earlier.push(Instance { enabled, last });
                }
            }
            Msg::SchedFailed { why, text } => self.sched_failed = Some((why, text)),
            Msg::SchedDied { after_ns, end, state, text } => {
                self.sched_died = Some(Died { after_ns, end, state, text });
            }
            Msg::SchedDump { text } => push_tail(&mut self.sched_dump, &text),
            Msg::SchedStopped { last } | Msg::SchedDetached { last } => self.sched_final = Some(last),
            Msg::ScenarioStart { name, uptime_ns } => {
                (self.scenario_started, self.scenario_uptime_ns) = (Some(name), Some(uptime_ns));
            }
            Msg::Queues { seen } => self.queues = Some(seen),
            Msg::Asserted { result } => self.asserted = Some(result),
            Msg::Spawned { group, workers } => self.spawned.push((group, workers)),
            Msg::Report { group, report } => self.reports.push((group, report)),
            Msg::Raw { group, worker_idx, kind, raw_ns } => {
                let of =
                    |(name, report): &&mut (String, WorkerReport)| *name == group && report.worker_idx == worker_idx;
                if let Some((_, report)) = self.reports.iter_mut().rev().find(of) {
                    report.add_raw(kind, &raw_ns);
                }
            }
            Msg::ScenarioEnd { elapsed_ns, early, steal_ns, uptime_ns } => {
                self.scenario_end = Some(ScenarioEnd { elapsed_ns, early, steal_ns, uptime_ns });
            }
            Msg::GuestError { stage, text, cannot_judge } => {
                self.guest_errors.push(GuestError { stage, text, cannot_judge });
            }
            Msg::Crash { text } => self.crash = Some(text),
            Msg::KlogEnd { records, lost } => self.klog_end = Some((records, lost)),
            Msg::Bye { .. } => self.bye = true,
            Msg::Host { info } => self.host = Some(info),
            Msg::Planned { plan } => self.plan = Some(plan),
            // Of several scenarios each has marks of its own; in the run the first stands.
            Msg::Mark { stage, at_ns } if self.mark(stage).is_none() => self.marks.push((stage, at_ns)),
            Msg::Mark { .. } => {}
            Msg::Console { text } => push_capped(&mut self.console, &text),
            Msg::VmEnded { end } => self.vm_end = Some(end),
            Msg::Stats { stats } => self.stats = Some(stats),
            Msg::Perf { items } => self.perf = items,
            Msg::Registers { cpus } => self.registers = cpus,
            Msg::Noise { noise } => self.noise = Some(noise),
            Msg::ChannelDamage { text } => self.channel_damage.push(text),
            Msg::HostNote { text } => self.host_notes.push(text),
            Msg::Step { stimulus } => self.stimuli.push(stimulus),
            Msg::Phase { phase } => self.phases.push(phase),
            Msg::Payload { report } => self.payloads.push(report),
            Msg::KernelHang { text } => self.hangs.push(text),
            // The parts' borders are for the parts; commands are never stored.
            Msg::ScenarioBegin { .. } | Msg::ScenarioOver { .. } | Msg::Stop | Msg::Dump => {}
        }
    }

    /// Workers owed by each cgroup, in the order of their first spawn.
    pub fn owed(&self) -> Vec<(&str, u64)> {
        let mut owed: Vec<(&str, u64)> = Vec::new();
        for (group, workers) in &self.spawned {
            match owed.iter_mut().find(|(known, _)| known == group) {
                Some((_, count)) => *count += u64::from(*workers),
                None => owed.push((group, u64::from(*workers))),
            }
        }
        owed
    }

    /// How each instance of the scheduler ended, in order; none: that was not seen.
    pub fn sched_ends(&self) -> impl Iterator<Item = Option<&SchedFinal>> {
        self.earlier.iter().map(|one| one.last.as_ref()).chain([self.sched_final.as_ref()])
    }

    /// The time of a stage, nanoseconds after `Exec`.
    pub fn mark(&self, stage: Stage) -> Option<u64> {
        self.marks.iter().find(|(known, _)| *known == stage).map(|(_, at_ns)| *at_ns)
    }

    /// Reads a stored record. A file cut short (a killed run) gives what it holds, with `false`; so does one that is
    /// damaged behind its first message, with a note. One that a build of another protocol wrote is refused.
    pub fn from_file_bytes(bytes: &[u8]) -> Result<(Self, bool), String> {
        let mut record = Self::default();
        let (build, mut rest) = match after_head(bytes)? {
            Some(told) => told,
            None => return Ok((record, false)),
        };
        let whose =
            if build == BUILD { String::new() } else { format!(" (written by build {build}, this is {BUILD})") };
        let head_bytes = bytes.len() - rest.len();
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            match frame::decode(rest) {
                Ok((frame, used)) => {
                    let message = Msg::from_bytes(&frame.payload);
                    record.apply(message.map_err(|inner| format!("{} at byte {}{whose}", inner.what, at + inner.at))?);
                    rest = &rest[used..];
                }
                Err(FrameError::Incomplete) => return Ok((record, false)),
                Err(FrameError::Corrupt(what)) if at == head_bytes => return Err(format!("{what} at byte {at}")),
                Err(FrameError::Corrupt(what)) => {
                    let lost = rest.len();
                    let text =
                        format!("the stored record is damaged at byte {at} ({what}): its last {lost} bytes are lost");
                    record.host_notes.push(text);
                    return Ok((record, false));
                }
            }
        }
        Ok((record, true))
    }
}

/// What a stored record begins with: who reads it knows at once whether it can, and otherwise which build could.
pub fn file_head() -> Vec<u8> {
    head(PROTOCOL, BUILD)
}

/// Magic, protocol, build, and CRC32 of all that.
fn head(protocol: u32, build: &str) -> Vec<u8> {
    let mut bytes = FILE_MAGIC.to_vec();
    protocol.put(&mut bytes);
    build.to_owned().put(&mut bytes);
    crc32fast::hash(&bytes).put(&mut bytes);
    bytes
}

/// Who wrote it, and what follows the head; none where the file ends within it.
fn after_head(bytes: &[u8]) -> Result<Option<(String, &[u8])>, String> {
    let Some(rest) = bytes.strip_prefix(FILE_MAGIC.as_slice()) else {
        return match () {
            () if bytes.is_empty() => Err("it is empty".into()),
            () if bytes.len() >= FILE_MAGIC.len() && bytes.starts_with(ANY_MAGIC) => {
                Err(format!("it has another form: another build wrote it, and this is {BUILD}"))
            }
            () => Err("this is no record of ktstr".into()),
        };
    };
    let mut input = Reader::new(rest);
    let read = (u32::get(&mut input), String::get(&mut input));
    let told = bytes.len() - input.left();
    let (Ok(protocol), Ok(build), Ok(sum)) = (read.0, read.1, u32::get(&mut input)) else {
        return if file_head().starts_with(bytes) { Ok(None) } else { Err("its head is cut or damaged".into()) };
    };
    if crc32fast::hash(&bytes[..told]) != sum {
        return Err("its head is damaged".into());
    }
    if protocol != PROTOCOL {
        return Err(format!(
            "build {build} wrote it with protocol {protocol}, and this is build {BUILD} with protocol {PROTOCOL}"
        ));
    }
    Ok(Some((build, &rest[rest.len() - input.left()..])))
}

/// Begins a text that lost its beginning.
const CUT_BEFORE: &str = "[cut here: the record keeps the end]\n";

/// Appends text and keeps the end, on a character border: a verifier's log ends with its reason.
fn push_tail(whole: &mut String, text: &str) {
    whole.push_str(text);
    if whole.len() > CONSOLE_CAP_BYTES {
        let mut from = whole.len() - CONSOLE_CAP_BYTES / 2;
        while !whole.is_char_boundary(from) {
            from += 1;
        }
        whole.replace_range(..from, CUT_BEFORE);
    }
}

/// Ends a text that reached its cap.
const CUT: &str = "\n[cut here: the record keeps no more]\n";

/// Appends text up to the cap, on a character border, and says where it cut.
fn push_capped(whole: &mut String, text: &str) {
    if whole.ends_with(CUT) {
        return;
    }
    let mut room = CONSOLE_CAP_BYTES.saturating_sub(whole.len()).min(text.len());
    while !text.is_char_boundary(room) {
        room -= 1;
    }
    whole.push_str(&text[..room]);
    if room < text.len() {
        whole.push_str(CUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(messages: &[Msg]) -> Vec<u8> {
        let mut bytes = file_head();
        for (sequence, message) in messages.iter().enumerate() {
            bytes.extend(frame::encode(sequence as u32, &message.to_bytes()));
        }
        bytes
    }

    #[test]
    fn stored_record_folds_to_the_same_picture() {
        let messages = [
            Msg::Mark { stage: Stage::Exec, at_ns: 0 },
            Msg::Note { text: "n".into() },
            Msg::SchedEnabled { ops: "x".into(), enable_seq: 1, took_ns: 2, pid: 3, switch_all: Some(true) },
            Msg::Bye { uptime_ns: 9 },
        ];
        let mut folded = Record::default();
        messages.iter().cloned().for_each(|message| folded.apply(message));
        let bytes = file(&messages);
        assert_eq!(Record::from_file_bytes(&bytes).unwrap(), (folded, true));
        let (cut, complete) = Record::from_file_bytes(&bytes[..bytes.len() - 1]).unwrap();
        assert!(!complete && !cut.bye && cut.sched_enabled.is_some());
    }

    #[test]
    fn record_of_another_build_names_it_before_anything_is_read() {
        let message = frame::encode(0, &Msg::Note { text: "n".into() }.to_bytes());
        let read = |head: Vec<u8>| Record::from_file_bytes(&[head, message.clone()].concat());
        // Another build of the same protocol is read.
        assert_eq!(read(head(PROTOCOL, "abc123")).unwrap().0.notes, ["n"]);
        let other = [head(PROTOCOL, "abc123"), frame::encode(0, &[255; 9])].concat();
        let why = Record::from_file_bytes(&other).unwrap_err();
        assert!(why.contains("written by build abc123"), "{why}");
        let why = read(head(PROTOCOL - 1, "abc123")).unwrap_err();
        assert!(why.contains("build abc123 wrote it") && why.contains(BUILD), "{why}");
        let why = read(b"KTSTRR01".to_vec()).unwrap_err();
        assert!(why.contains("another build wrote it"), "{why}");
    }

    #[test]
    fn file_that_ends_within_its_head_is_cut_and_nothing_else() {
        let head = file_head();
        assert_eq!(Record::from_file_bytes(&[]).unwrap_err(), "it is empty");
        for end in 1..FILE_MAGIC.len() {
            assert_eq!(Record::from_file_bytes(&head[..end]).unwrap_err(), "this is no record of ktstr", "{end}");
        }
        for end in FILE_MAGIC.len()..=head.len() {
            let (record, complete) = Record::from_file_bytes(&head[..end]).unwrap();
            assert_eq!((record, complete), (Record::default(), end == head.len()), "{end}");
        }
    }

    #[test]
    fn foreign_and_damaged_files_are_refused() {
        assert!(Record::from_file_bytes(b"#!/bin/sh\n").is_err());
        let mut damaged = file_head();
        damaged.truncate(FILE_MAGIC.len() + 4);
        damaged.extend(u32::MAX.to_le_bytes());
        assert!(Record::from_file_bytes(&damaged).unwrap_err().contains("head is cut or damaged"));
        // Not a bit of it is taken for something else.
        for at in FILE_MAGIC.len()..file_head().len() {
            let mut damaged = file_head();
            damaged[at] ^= 4;
            assert!(Record::from_file_bytes(&damaged).unwrap_err().contains("damaged"), "{at}");
        }
        let mut bytes = file(&[Msg::Note { text: "abc".into() }]);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert!(Record::from_file_bytes(&bytes).unwrap_err().contains("CRC32"));
    }

    #[test]
    fn what_stands_before_a_damage_is_kept_and_the_loss_is_told() {
        let note = |text: &str| Msg::Note { text: text.into() };
        let mut bytes = file(&[note("one"), note("two"), note("three")]);
        let at = file(&[note("one")]).len();
        bytes[at + 5] ^= 0x40;
        let (record, complete) = Record::from_file_bytes(&bytes).unwrap();
        assert_eq!((record.notes, complete), (vec!["one".to_owned()], false));
        assert!(record.host_notes[0].contains(&format!("damaged at byte {at}")), "{:?}", record.host_notes);
        // Half a message, and a whole one behind it.
        let torn = file(&[note("one"), note("two")]);
        let bytes = [&torn[..torn.len() - 2], &frame::encode(2, &note("three").to_bytes())].concat();
        let (record, complete) = Record::from_file_bytes(&bytes).unwrap();
        assert_eq!((record.notes, complete), (vec!["one".to_owned()], false));
    }

    #[test]
    fn output_of_a_talkative_scheduler_keeps_its_end() {
        let mut record = Record::default();
        for index in 0..40 {
            record.apply(Msg::SchedOutput { text: format!("é{index}\n").repeat(4000) });
        }
        assert!(record.sched_output.len() <= CONSOLE_CAP_BYTES);
        assert!(record.sched_output.starts_with(CUT_BEFORE) && record.sched_output.ends_with("é39\n"));
    }

    #[test]
    fn console_is_capped_and_says_so() {
        let mut record = Record::default();
        for _ in 0..3 {
            record.apply(Msg::Console { text: "é".repeat(CONSOLE_CAP_BYTES / 3) });
        }
        assert!(record.console.len() < CONSOLE_CAP_BYTES + 64);
        assert!(record.console.ends_with("keeps no more]\n"));
    }
}
