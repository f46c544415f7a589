//! The memory that a handle shares with its workers: gate and stop words, one area per group, one slot per worker.
//!
//! Owns its layout and all access to it; leaves what is measured to sampler and what it means to report.
//! Invariant: atomics only; a slot has one writer, its worker, and is complete once its state says `Done`.

use crate::proto::cpuset::CpuSet;
use crate::proto::hist::{BUCKETS, Hist, bucket};
use crate::proto::report::{Migration, RAW_CAP};
use crate::sys::mmap::Mapping;
use crate::workload::handshake::{self, Gate};
use crate::workload::rng::Rng;
use std::fmt::{self, Write};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A futex word is shared with the low half of a 64-bit word, and text is packed into words.
const _: () = assert!(cfg!(target_endian = "little"));

/// 64-bit words of a cache line of 64 bytes.
const LINE_WORDS: usize = 8;
/// 64-bit words of a page of 4096 bytes.
const PAGE_WORDS: usize = 512;
/// Header: the gate word and the time of its opening on one line, the stop word on the next.
const GATE_AT: usize = 0;
const OPENED_AT: usize = 1;
const STOP_AT: usize = LINE_WORDS;
const HEADER_WORDS: usize = 2 * LINE_WORDS;
/// A group's area is whole pairs of lines, so that neighbours' adjacent-line prefetch does not couple groups.
const GROUP_STEP: usize = 2 * LINE_WORDS;

/// Migrations kept in a slot; their count goes on beyond.
pub const MAX_MIGRATIONS: usize = 64;
/// Bytes of text a slot can hold.
pub const TEXT_BYTES: usize = 256;
/// Most kinds of sample one work type records.
pub const MAX_KINDS: usize = 3;
/// Nodes whose pages a slot tells apart; pages of later ones count as the last one's.
pub const MAX_TOLD_NODES: usize = 16;

const MIGRATIONS_AT: usize = 32;
const CPUS_AT: usize = MIGRATIONS_AT + 2 * MAX_MIGRATIONS;
const CPU_WORDS: usize = (crate::proto::cpuset::MAX_CPU as usize + 1) / 64;
const NODES_AT: usize = CPUS_AT + CPU_WORDS;
const TEXT_AT: usize = NODES_AT + MAX_TOLD_NODES;
const HISTS_AT: usize = TEXT_AT + TEXT_BYTES / 8;
/// A histogram: count, sum, minimum, maximum on one line, then 32-bit buckets.
const HIST_WORDS: usize = LINE_WORDS + BUCKETS / 2;

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum State {
    /// Forked; has not run yet as far as we know.
    Spawned = 0,
    /// Waits at the gate.
    Ready = 1,
    /// In its loop.
    Running = 2,
    /// Its slot is its report.
    Done = 3,
    /// It could not begin; the text says why.
    Failed = 4,
    /// It panicked; the text says how.
    Panicked = 5,
}

/// The single numbers of a slot, by word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Field {
    State = 0,
    Tid,
    Iterations,
    WorkUnits,
    WallNs,
    CpuNs,
    /// 1 where the three schedstat deltas are known.
    SchedKnown,
    SchedCpuNs,
    SchedDelayNs,
    SchedRuns,
    MaxRunDelayNs,
    MigrationCount,
    MaxGapNs,
    MaxGapCpu,
    MaxGapAtNs,
    /// The longest gap and run delay since the owner took them.
    PhaseGapNs,
    PhaseDelayNs,
    /// errno of a refused setting; 0: granted, or not asked for.
    AffinityErrno,
    PolicyErrno,
    NiceErrno,
    MemPolicyErrno,
    /// 1 where the pages by node are known.
    PagesKnown,
    /// How many pages the kernel has moved meanwhile, and 1 where that is known.
    PagesMoved,
    MovedKnown,
    /// errno behind a `Failed` state.
    FailErrno,
    TextLen,
    /// Its process, written by the parent just after the fork.
    Pid,
}

const _: () = assert!((Field::Pid as usize) < MIGRATIONS_AT);

/// The whole shared mapping.
#[derive(Debug)]
pub struct Shared {
    map: Mapping,
    /// Where each group's area begins, and after the last one where they end.
    groups_at: Vec<usize>,
    workers: usize,
    slots_at: usize,
    slot_words: usize,
    /// Room for raw samples behind the slots: none, or so many words a worker.
    raw_words: usize,
}

impl Shared {
    /// The same as `with_raw` without raw samples.
    #[cfg(test)]
    pub fn new(workers: usize, groups: &[usize], kinds: usize) -> io::Result<Self> {
        Self::with_raw(workers, groups, kinds, false)
    }

    /// Memory for so many workers, each with room for `kinds` histograms, and for groups of so many words each; where asked for
    /// with room for raw samples, of which only what is touched takes memory.
    pub fn with_raw(workers: usize, groups: &[usize], kinds: usize, raw: bool) -> io::Result<Self> {
        let mut groups_at = Vec::with_capacity(groups.len() + 1);
        groups_at.push(HEADER_WORDS);
        for words in groups {
            groups_at.push(groups_at[groups_at.len() - 1] + words.next_multiple_of(GROUP_STEP));
        }
        let slots_at = groups_at[groups.len()].next_multiple_of(PAGE_WORDS);
        let slot_words = (HISTS_AT + kinds.min(MAX_KINDS) * HIST_WORDS).next_multiple_of(PAGE_WORDS);
        let raw_words = if raw { (kinds.min(MAX_KINDS) * RAW_CAP).next_multiple_of(PAGE_WORDS) } else { 0 };
        let map = Mapping::shared_anonymous((slots_at + workers * (slot_words + raw_words)) * 8)?;
        Ok(Self { map, groups_at, workers, slots_at, slot_words, raw_words })
    }
    fn half(&self, word: usize) -> &AtomicU32 {
        &self.map.halves()[word * 2]
    }
    /// The words that start and stop all workers.
    pub fn gate(&self) -> Gate<'_> {
        Gate { word: self.half(GATE_AT), opened_ns: &self.map.words()[OPENED_AT], stop: self.half(STOP_AT) }
    }
    pub fn stopped(&self) -> bool {
        self.gate().stopped()
    }
    pub fn workers(&self) -> usize {
        self.workers
    }
    /// The words that the members of one group share.
    pub fn group(&self, index: usize) -> Group<'_> {
        let groups = self.groups_at.len() - 1;
        assert!(index < groups, "group {index} of {groups}");
        let (at, end) = (self.groups_at[index], self.groups_at[index + 1]);
        Group { words: &self.map.words()[at..end], halves: &self.map.halves()[at * 2..end * 2] }
    }
    /// One worker's slot.
    pub fn slot(&self, index: usize) -> Slot<'_> {
        assert!(index < self.workers, "slot {index} of {}", self.workers);
        let at = self.slots_at + index * self.slot_words;
        let end = at + self.slot_words;
        let raw_at = self.slots_at + self.workers * self.slot_words + index * self.raw_words;
        let raw = &self.map.words()[raw_at..raw_at + self.raw_words];
        Slot { words: &self.map.words()[at..end], halves: &self.map.halves()[at * 2..end * 2], raw }
    }
}

/// The words that the members of one group share.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    words: &'a [AtomicU64],
    halves: &'a [AtomicU32],
}

impl<'a> Group<'a> {
    /// All of it, for a work type with a layout of its own.
    pub fn words(&self) -> &'a [AtomicU64] {
        self.words
    }
    /// The same as 32-bit words, for futexes.
    pub fn halves(&self) -> &'a [AtomicU32] {
        self.halves
    }
    /// The futex word of the group: whose turn it is, a generation, or a lock.
    pub fn turn(&self) -> &'a AtomicU32 {
        &self.halves[0]
    }
    /// One of the group's time stamps, on the second line; the work type says which is which.
    pub fn stamp(&self, index: usize) -> &'a AtomicU64 {
        &self.words[LINE_WORDS + index]
    }
}

/// One worker's slot.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    words: &'a [AtomicU64],
    halves: &'a [AtomicU32],
    /// `RAW_CAP` words a kind, or none.
    raw: &'a [AtomicU64],
}

impl<'a> Slot<'a> {
    pub fn get(&self, field: Field) -> u64 {
        self.words[field as usize].load(Ordering::Relaxed)
    }
    pub fn set(&self, field: Field, value: u64) {
        self.words[field as usize].store(value, Ordering::Relaxed);
    }
    /// Sets a maximum that the owner may take meanwhile.
    pub fn raise(&self, field: Field, value: u64) {
        self.words[field as usize].fetch_max(value, Ordering::Relaxed);
    }
    /// Takes a maximum: the next one begins at zero.
    pub fn take(&self, field: Field) -> u64 {
        self.words[field as usize].swap(0, Ordering::Relaxed)
    }
    /// The state; what was written before it was set is visible.
    pub fn state(&self) -> State {
        match handshake::published(&self.words[Field::State as usize]) {
            0 => State::Spawned,
            1 => State::Ready,
            2 => State::Running,
            3 => State::Done,
            4 => State::Failed,
            _ => State::Panicked,
        }
    }
    pub fn set_state(&self, state: State) {
        handshake::publish(&self.words[Field::State as usize], state as u64);
    }

    /// Counts a migration, and keeps it where there is room.
    pub fn add_migration(&self, migration: &Migration) {
        let count = self.get(Field::MigrationCount);
        if (count as usize) < MAX_MIGRATIONS {
            let at = MIGRATIONS_AT + 2 * count as usize;
            self.words[at].store(migration.at_ns, Ordering::Relaxed);
            let cpus = u64::from(migration.from_cpu) << 32 | u64::from(migration.to_cpu);
            self.words[at + 1].store(cpus, Ordering::Relaxed);
        }
        self.set(Field::MigrationCount, count + 1);
    }
    pub fn migrations(&self) -> Vec<Migration> {
        let kept = (self.get(Field::MigrationCount) as usize).min(MAX_MIGRATIONS);
        let word = |at: usize| self.words[at].load(Ordering::Relaxed);
        (0..kept)
            .map(|i| MIGRATIONS_AT + 2 * i)
            .map(|at| Migration { at_ns: word(at), from_cpu: (word(at + 1) >> 32) as u32, to_cpu: word(at + 1) as u32 })
            .collect()
    }

    pub fn add_cpu(&self, cpu: u32) {
        if let Some(word) = self.words[CPUS_AT..NODES_AT].get(cpu as usize / 64) {
            // The owner takes these words away while the worker sets them.
            word.fetch_or(1 << (cpu % 64), Ordering::Relaxed);
        }
    }
    /// The CPUs seen since the last call, which are forgotten.
    pub fn take_cpus(&self) -> CpuSet {
        let words = self.words[CPUS_AT..NODES_AT].iter().map(|word| word.swap(0, Ordering::Relaxed));
        let bits = |(at, word): (usize, u64)| {
            (0..64u32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 64 + bit)
        };
        words.enumerate().filter(|(_, word)| *word != 0).flat_map(bits).collect()
    }
    pub fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        let has = |cpu: u32| self.words[CPUS_AT + cpu as usize / 64].load(Ordering::Relaxed) >> (cpu % 64) & 1 == 1;
        (0..(CPU_WORDS * 64) as u32).filter(move |cpu| has(*cpu))
    }

    pub fn set_pages(&self, node: usize, pages: u64) {
        self.words[NODES_AT + node.min(MAX_TOLD_NODES - 1)].store(pages, Ordering::Relaxed);
    }
    /// (node, pages), nodes without pages left out.
    pub fn pages(&self) -> Vec<(u32, u64)> {
        let words = self.words[NODES_AT..TEXT_AT].iter().map(|word| word.load(Ordering::Relaxed));
        words.enumerate().filter(|(_, pages)| *pages > 0).map(|(node, pages)| (node as u32, pages)).collect()
    }

    /// Stores a text without allocating; what does not fit is cut.
    pub fn set_text(&self, text: fmt::Arguments<'_>) {
        let mut buffer = TextBuffer { bytes: [0; TEXT_BYTES], len: 0 };
        // A writer that is full says so by an error; the text is then as long as it can be.
        let _full = buffer.write_fmt(text);
        for (word, bytes) in self.words[TEXT_AT..HISTS_AT].iter().zip(buffer.bytes.chunks_exact(8)) {
            let packed = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            word.store(packed, Ordering::Relaxed);
        }
        self.set(Field::TextLen, buffer.len as u64);
    }
    pub fn text(&self) -> String {
        let words = self.words[TEXT_AT..HISTS_AT].iter();
        let mut bytes: Vec<u8> = words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        bytes.truncate(self.get(Field::TextLen) as usize);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Adds one sample to the histogram at this place among the type's kinds.
    #[inline]
    pub fn record(&self, place: usize, ns: u64) {
        let at = HISTS_AT + place * HIST_WORDS;
        let [count, sum, min, max] = [0, 1, 2, 3].map(|i| &self.words[at + i]);
        let seen = count.load(Ordering::Relaxed);
        if seen == 0 || ns < min.load(Ordering::Relaxed) {
            min.store(ns, Ordering::Relaxed);
        }
        if ns > max.load(Ordering::Relaxed) {
            max.store(ns, Ordering::Relaxed);
        }
        count.store(seen + 1, Ordering::Relaxed);
        sum.store(sum.load(Ordering::Relaxed).saturating_add(ns), Ordering::Relaxed);
        let counter = &self.halves[(at + LINE_WORDS) * 2 + bucket(ns)];
        counter.store(counter.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }
    /// Keeps the sample that `record` counted last, so that each of all samples is equally likely to be among those kept
    /// (Vitter, Random Sampling with a Reservoir, 1985: Algorithm R).
    pub fn keep_raw(&self, place: usize, ns: u64, rng: &mut Rng) {
        let counted = self.words[HISTS_AT + place * HIST_WORDS].load(Ordering::Relaxed);
        let at = if counted <= RAW_CAP as u64 { counted.saturating_sub(1) } else { rng.below(counted) };
        if let Some(kept) = self.raw.get(place * RAW_CAP..(place + 1) * RAW_CAP).and_then(|raw| raw.get(at as usize)) {
            kept.store(ns, Ordering::Relaxed);
        }
    }
    pub fn keeps_raw(&self) -> bool {
        !self.raw.is_empty()
    }
    /// The samples kept as they are.
    pub fn raw(&self, place: usize) -> Vec<u64> {
        let counted = self.words[HISTS_AT + place * HIST_WORDS].load(Ordering::Relaxed);
        let kept = self.raw.iter().skip(place * RAW_CAP).take(counted.min(RAW_CAP as u64) as usize);
        kept.map(|word| word.load(Ordering::Relaxed)).collect()
    }
    pub fn hist(&self, place: usize) -> Hist {
        let at = HISTS_AT + place * HIST_WORDS;
        let word = |i: usize| self.words[at + i].load(Ordering::Relaxed);
        if word(0) == 0 {
            return Hist::new();
        }
        let from = (at + LINE_WORDS) * 2;
        let counters = self.halves[from..from + BUCKETS].iter().map(|c| u64::from(c.load(Ordering::Relaxed)));
        Hist::from_counts(counters.enumerate(), word(1), word(2), word(3))
    }
}

/// A fixed buffer that a format call fills; cut at a character's border.
struct TextBuffer {
    bytes: [u8; TEXT_BYTES],
    len: usize,
}

impl Write for TextBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT_BYTES - self.len;
        let mut fits = text.len().min(room);
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        self.bytes[self.len..self.len + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        if fits < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "looks at every word of large slots, for which Miri takes many minutes")]
    fn slots_do_not_overlap_and_stay_below_their_bound() {
        let shared = Shared::new(3, &[1, 100], MAX_KINDS).unwrap();
        assert!(shared.slot_words * 8 < 64 << 10);
        for i in 0..3 {
            shared.slot(i).record(0, 10 + i as u64);
            shared.slot(i).record(1, u64::MAX);
            shared.slot(i).set(Field::Tid, i as u64);
            shared.slot(i).set_text(format_args!("worker {i}"));
            shared.slot(i).add_cpu(8191);
            shared.slot(i).set_pages(1, 5 + i as u64);
            shared.slot(i).record(2, 77);
        }
        shared.group(1).words().iter().for_each(|word| word.store(9, Ordering::Relaxed));
        for i in 0..3 {
            let slot = shared.slot(i);
            assert_eq!(slot.hist(0).min_ns(), Some(10 + i as u64));
            assert_eq!((slot.hist(0).count(), slot.hist(1).count()), (1, 1));
            assert_eq!(slot.get(Field::Tid), i as u64);
            assert_eq!(slot.text(), format!("worker {i}"));
            assert_eq!(slot.cpus().collect::<Vec<_>>(), [8191]);
            assert_eq!(slot.pages(), [(1, 5 + i as u64)]);
            assert_eq!(slot.hist(2).max_ns(), Some(77));
            assert_eq!(slot.state(), State::Spawned);
        }
        assert_eq!(shared.group(0).turn().load(Ordering::Relaxed), 0);
        assert_eq!((shared.group(0).words().len(), shared.group(1).words().len()), (16, 112));
        assert!(!shared.stopped());
        assert!(!shared.gate().is_open());
    }

    #[test]
    fn raw_samples_are_all_of_them_and_beyond_the_cap_a_uniform_choice() {
        let shared = Shared::with_raw(2, &[], 2, true).unwrap();
        let (slot, mut rng) = (shared.slot(1), Rng::of_worker(7, 0, 1));
        let mut add = |count: std::ops::Range<u64>| {
            for ns in count {
                slot.record(1, ns);
                slot.keep_raw(1, ns, &mut rng);
            }
        };
        let some = RAW_CAP as u64 / 10;
        add(0..some);
        assert_eq!(slot.raw(1), (0..some).collect::<Vec<u64>>());
        let many = 4 * RAW_CAP as u64;
        add(some..many);
        let raw = slot.raw(1);
        assert_eq!(raw.len(), RAW_CAP);
        let distinct: std::collections::BTreeSet<u64> = raw.iter().copied().collect();
        assert_eq!(distinct.len(), RAW_CAP, "a sample is kept twice");
        // Of each tenth of the samples about a tenth is kept: 10,000, whose standard deviation is below 100.
        for tenth in 0..if cfg!(miri) { 0 } else { 10 } {
            let kept = raw.iter().filter(|ns| **ns * 10 / many == tenth).count();
            assert!((9000..11000).contains(&kept), "tenth {tenth}: {kept}");
        }
        // Neither the other kind, nor the other worker, nor who was not asked.
        assert!(slot.raw(0).is_empty() && shared.slot(0).raw(1).is_empty());
        let shared = Shared::new(1, &[], 1).unwrap();
        shared.slot(0).record(0, 5);
        shared.slot(0).keep_raw(0, 5, &mut rng);
        assert!(!shared.slot(0).keeps_raw() && shared.slot(0).raw(0).is_empty());
    }

    #[test]
    fn migrations_are_bounded_but_counted() {
        let shared = Shared::new(1, &[], 0).unwrap();
        let slot = shared.slot(0);
        for i in 0..100 {
            slot.add_migration(&Migration { at_ns: i, from_cpu: 1, to_cpu: 2 });
        }
        assert_eq!(slot.get(Field::MigrationCount), 100);
        assert_eq!(slot.migrations().len(), MAX_MIGRATIONS);
        assert_eq!(slot.migrations()[63], Migration { at_ns: 63, from_cpu: 1, to_cpu: 2 });
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let shared = Shared::new(1, &[], 0).unwrap();
        let long = format!("x{}", "é".repeat(TEXT_BYTES));
        shared.slot(0).set_text(format_args!("{long}"));
        assert_eq!(shared.slot(0).text(), long[..TEXT_BYTES - 1]);
    }
}
