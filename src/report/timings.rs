//! The time of each stage of one run, and the memory it took.
//!
//! Owns the differences between marks and their layout; leaves taking the marks to run/.
//! Invariant: a stage that was not reached is left out, never shown as 0.

use super::noise;
use super::table::{Align, layout};
use crate::proto::message::Stage;
use crate::proto::record::Record;
use crate::units::{approx, size};

/// Bytes in one KiB.
const KIB: u64 = 1024;
/// Kinds of exit shown; the record holds all.
const EXITS_SHOWN: usize = 6;
/// Begins the names of KVM's own counts (vmm/exit).
const KVM_COUNT: &str = "kvm:";

/// One mark, with the time since the mark before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub stage: Stage,
    pub at_ns: u64,
    /// Since the stage before; none for the first.
    pub since_ns: Option<u64>,
    pub since: Option<Stage>,
}

/// The marks of a record in the order of their times.
pub fn intervals(record: &Record) -> Vec<Interval> {
    let mut marks = record.marks.clone();
    marks.sort_by_key(|(stage, at_ns)| (*at_ns, *stage));
    marks.dedup_by_key(|(stage, _)| *stage);
    let before = std::iter::once(None).chain(marks.iter().copied().map(Some));
    marks
        .iter()
        .zip(before)
        .map(|(&(stage, at_ns), before)| Interval {
            stage,
            at_ns,
            since_ns: before.map(|(_, then)| at_ns - then),
            since: before.map(|(stage, _)| stage),
        })
        .collect()
}

/// The table of `--timings`.
pub fn timings(record: &Record) -> String {
    let list = intervals(record);
    if list.is_empty() {
        return String::from("timings: no stage was reached\n");
    }
    let mut rows = vec![["stage", "took", "since exec"].map(String::from).to_vec()];
    rows.extend(list.iter().map(|interval| {
        let took = interval.since_ns.map_or_else(|| "-".to_owned(), approx);
        vec![interval.stage.name().to_owned(), took, approx(interval.at_ns)]
    }));
    let mut text = layout(&[Align::Left, Align::Right, Align::Right], &rows).join("\n");
    text.push('\n');
    if let Some(stats) = &record.stats {
        let (own, guest) = (size(stats.own_kib * KIB), size(stats.guest_kib * KIB));
        text.push_str(&format!("VM process: {own} of its own at its peak, {guest} of guest memory touched\n"));
        let mut exits = stats.exits.clone();
        exits.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let (kvm, own): (Vec<_>, Vec<_>) = exits.iter().partition(|(kind, _)| kind.starts_with(KVM_COUNT));
        for (title, list) in [("exits to user space", own), ("counted by KVM", kvm)] {
            let name = |kind: &str| kind.strip_prefix(KVM_COUNT).unwrap_or(kind).to_owned();
            let shown: Vec<String> =
                list.iter().take(EXITS_SHOWN).map(|(kind, count)| format!("{} {count}", name(kind))).collect();
            if !shown.is_empty() {
                text.push_str(&format!("{title}: {}\n", shown.join(", ")));
            }
        }
    }
    text.extend(noise::line(record).map(|line| format!("{line}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::message::VmStats;

    #[test]
    fn table_shows_differences_memory_and_exits() {
        let record = Record {
            marks: vec![(Stage::Exec, 0), (Stage::Pid1, 900_000_000), (Stage::ImageReady, 40_000_000)],
            stats: Some(VmStats {
                own_kib: 4096,
                guest_kib: 90 * 1024,
                exits: vec![("io".into(), 7), ("hlt".into(), 9), ("kvm:exits".into(), 800)],
            }),
            ..Record::default()
        };
        let want = "stage          took  since exec\n\
                    exec              -        0 ns\n\
                    image-ready  40.0 ms     40.0 ms\n\
                    pid1          860 ms      900 ms\n\
                    VM process: 4 MiB of its own at its peak, 90 MiB of guest memory touched\n\
                    exits to user space: hlt 9, io 7\ncounted by KVM: exits 800\n";
        let squeeze = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        assert_eq!(squeeze(&timings(&record)), squeeze(want));
        assert!(timings(&record).lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn no_marks_say_so() {
        assert_eq!(timings(&Record::default()), "timings: no stage was reached\n");
    }
}
