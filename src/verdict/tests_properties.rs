//! Properties that hold for any record and any limits: no panic, nothing improved by what is worse, nothing changed by
//! storing or by order.
//!
//! Owns the random records and these properties; leaves each check's own cases to the tests named after it.
//! Invariant: seeds are fixed, so a failure here fails everywhere, and its seed is in the message.

use super::fixture::{STALL, add_log, passing, passing_with_scheduler, worker};
use super::table::{ROWS, Side, Unit, defaults};
use super::{Outcome, Verdict, advice, group_stats, judge, judge_stored};
use crate::proto::asserted::{AssertResult, AssertStats};
use crate::proto::codec::Wire;
use crate::proto::cpuset::CpuSet;
use crate::proto::frame;
use crate::proto::hist::Hist;
use crate::proto::limits::{Assert, Base, CheckId, Insist, Layers, Limit};
use crate::proto::message::{Msg, VmEnd};
use crate::proto::phase::CpuSlice;
use crate::proto::record::{Record, file_head};
use crate::proto::report::{ExitInfo, Samples, WorkerReport};
use crate::proto::runqueues::{Lasting, RunQueues};
use crate::proto::topology::Topology;
use crate::proto::work::SampleKind;
use crate::units::NS_PER_MS;

/// Records per property: some seconds in all without optimisation.
const ROUNDS: u64 = 400;
/// From here on a worker is compared with its equals.
const LONG_NS: u64 = super::workers::SHORTEST_LIFE_NS;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    /// True once in so many throws.
    fn once_in(&mut self, throws: u64) -> bool {
        self.below(throws) == 0
    }
    /// Small, large and extreme numbers.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => self.below(100),
            2 => self.below(5_000) * NS_PER_MS,
            3 => u64::MAX - self.below(3),
            _ => self.below(3_000_000_000),
        }
    }
    fn maybe(&mut self) -> Option<u64> {
        (!self.once_in(6)).then(|| self.number())
    }
}

fn hist(dice: &mut Dice, extreme: bool) -> Hist {
    let mut hist = Hist::new();
    for _ in 0..dice.below(20) {
        hist.record(if extreme { dice.number() } else { dice.below(3_000_000) });
    }
    hist
}

fn report(dice: &mut Dice, index: u32) -> WorkerReport {
    let mut report = worker(index);
    for _ in 0..dice.below(4) {
        match dice.below(15) {
            13 => report.slices = (0..dice.below(3)).map(|_| slice(dice)).collect(),
            0 => report.work_units = dice.number(),
            1 => report.iterations = dice.number(),
            2 => report.wall_time_ns = dice.number(),
            3 => report.cpu_time_ns = dice.number(),
            4 => report.schedstat_run_delay_ns = dice.maybe(),
            5 => report.max_run_delay_ns = dice.maybe(),
            6 => report.migration_count = dice.number(),
            7 => report.max_gap_ns = dice.number(),
            8 => report.samples = vec![Samples { kind: SampleKind::Wake, hist: hist(dice, true), raw_ns: Vec::new() }],
            9 => report.samples.clear(),
            10 => report.numa_pages = dice.maybe().map(|pages| vec![(0, pages), (1, 3)]),
            11 => report.vmstat_numa_pages_migrated = dice.maybe(),
            12 => report.cpus_used = CpuSet::first(dice.below(4) as u32),
            _ => {
                let exit = ExitInfo::Exited { code: dice.below(3) as i32 };
                report = WorkerReport::sentinel(index as i32, index, 0, "PipeIo", exit);
            }
        }
    }
    report
}

/// Of one CPU or two, some of them never seen.
fn slice(dice: &mut Dice) -> CpuSlice {
    let (allowed, seen) = (CpuSet::first(1 + dice.below(2) as u32), CpuSet::first(dice.below(3) as u32));
    CpuSlice { allowed, seen, judged_ns: dice.number() }
}

fn queues(dice: &mut Dice) -> RunQueues {
    let lasting = |dice: &mut Dice| dice.maybe().map(|value| Lasting { value, cpu: 1, at_ns: dice.number() });
    RunQueues {
        looks: dice.below(12) as u32,
        error: dice.once_in(4).then(|| "refused".into()),
        imbalance: lasting(dice),
        depth: lasting(dice),
        still: lasting(dice),
    }
}

/// At least two workers in each of one to three cgroups.
fn record(dice: &mut Dice) -> Record {
    let mut record = if dice.once_in(2) { passing() } else { passing_with_scheduler() };
    (record.reports, record.spawned) = (Vec::new(), Vec::new());
    for group in 0..=dice.below(3) {
        let workers = 2 + dice.below(4) as u32;
        let name = format!("g{group}");
        record.reports.extend((0..workers).map(|index| (name.clone(), report(dice, index))));
        record.spawned.push((name, workers));
    }
    for _ in 0..dice.below(3) {
        match dice.below(15) {
            13 => record.queues = Some(queues(dice)),
            0 => record.host = None,
            1 => record.hello = None,
            2 => record.scenario_end = None,
            3 => record.klog_end = None,
            4 => record.bye = false,
            5 => record.vm_end = Some(VmEnd::TimedOut),
            6 => record.vm_end = None,
            7 => add_log(&mut record, &STALL),
            8 => add_log(&mut record, &["clocksource: timekeeping watchdog: Marking clocksource 'tsc' as unstable"]),
            9 => record.channel_damage.push("CRC32".into()),
            10 => record.host.iter_mut().for_each(|host| host.accel = "qemu".into()),
            11 => record.host.iter_mut().for_each(|host| host.topology = Topology::flat(8)),
            12 => record.sched_final = None,
            _ => record.scenario_end.iter_mut().for_each(|end| end.steal_ns = dice.number()),
        }
    }
    record
}

fn limits(dice: &mut Dice) -> Assert {
    CheckId::ALL.into_iter().fold(Assert::new(), |assert, id| {
        let insist = [Insist::WhereKnown, Insist::Usual, Insist::Asked][dice.below(3) as usize];
        match dice.below(3) {
            0 => assert,
            1 => assert.with(id, Limit::Off),
            _ => assert.with(id, Limit::Set { value: dice.number(), insist }),
        }
    })
}

/// The messages whose fold is this record.
pub(super) fn messages(record: &Record) -> Vec<Msg> {
    let mut list: Vec<Msg> = Vec::new();
    list.extend(record.host.clone().map(|info| Msg::Host { info }));
    list.extend(record.plan.clone().map(|plan| Msg::Planned { plan }));
    list.extend(record.marks.iter().map(|(stage, at_ns)| Msg::Mark { stage: *stage, at_ns: *at_ns }));
    list.extend(record.hello.clone().map(|hello| Msg::Hello {
        protocol: 1,
        build: String::new(),
        kernel: hello.kernel,
        online: CpuSet::first(hello.online_cpus as u32),
        memory_kib: hello.memory_kib,
        pid1_uptime_ns: hello.pid1_uptime_ns,
        channel: hello.channel,
        missing: hello.missing,
    }));
    list.extend(record.klog.iter().cloned().map(|line| Msg::Klog {
        priority: line.priority,
        sequence: line.sequence,
        time_us: line.time_us,
        text: line.text,
    }));
    list.extend(record.sched_enabled.clone().map(|enabled| Msg::SchedEnabled {
        ops: enabled.ops,
        enable_seq: enabled.enable_seq,
        took_ns: enabled.took_ns,
        pid: enabled.pid,
        switch_all: enabled.switch_all,
    }));
    list.extend(record.scenario_started.clone().map(|name| Msg::ScenarioStart { name, uptime_ns: 1 }));
    list.extend(record.spawned.iter().cloned().map(|(group, workers)| Msg::Spawned { group, workers }));
    list.extend(record.reports.iter().cloned().map(|(group, report)| Msg::Report { group, report }));
    list.extend(record.queues.clone().map(|seen| Msg::Queues { seen }));
    list.extend(record.asserted.clone().map(|result| Msg::Asserted { result }));
    list.extend(record.scenario_end.clone().map(|end| Msg::ScenarioEnd {
        uptime_ns: end.uptime_ns,
        elapsed_ns: end.elapsed_ns,
        early: end.early,
        steal_ns: end.steal_ns,
    }));
    list.extend(record.sched_final.clone().map(|last| Msg::SchedStopped { last }));
    list.extend(record.klog_end.map(|(records, lost)| Msg::KlogEnd { records, lost }));
    list.extend(record.bye.then_some(Msg::Bye { uptime_ns: 2 }));
    list.extend(record.channel_damage.iter().cloned().map(|text| Msg::ChannelDamage { text }));
    list.extend(record.vm_end.clone().map(|end| Msg::VmEnded { end }));
    list.extend(record.stats.clone().map(|stats| Msg::Stats { stats }));
    list
}

/// The record as it is stored.
pub(crate) fn file(record: &Record) -> Vec<u8> {
    let mut bytes = file_head();
    for (sequence, message) in messages(record).iter().enumerate() {
        bytes.extend(frame::encode(sequence as u32, &message.to_bytes()));
    }
    bytes
}

/// What must not depend on the order of reports: outcome, and each check's name, group, status and number.
fn essence(verdict: &Verdict) -> (Outcome, Vec<String>) {
    let line = |check: &super::Check| format!("{} {:?} {:?} {:?}", check.name, check.group, check.status, check.value);
    let mut lines: Vec<String> = verdict.checks.iter().map(line).collect();
    lines.sort();
    (verdict.outcome, lines)
}

#[test]
fn any_record_under_any_limits_is_judged_whole() {
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed);
        let (record, limits) = (record(&mut dice), limits(&mut dice));
        let verdict = judge(&record, &limits);
        assert_eq!(verdict.exit_code, verdict.outcome.exit_code(), "seed {seed}");
        assert!(!verdict.headline.is_empty(), "seed {seed}");
        let at_ease = matches!(verdict.outcome, Outcome::Pass | Outcome::Interrupted);
        assert_eq!(advice(&record, &verdict).is_empty(), at_ease, "seed {seed}: {}", verdict.headline);
        for row in ROWS.iter().filter(|row| row.id != CheckId::BootFailure) {
            assert!(verdict.checks.iter().any(|check| check.name == row.name), "seed {seed}: no {}", row.name);
        }
        let worst = verdict.checks.iter().map(|check| check.status.outcome()).max().unwrap();
        // A kernel that cannot be judged is a skip whatever the checks say; nothing else lifts a bad check.
        assert!(verdict.outcome >= worst || verdict.outcome == Outcome::Skip, "seed {seed}: {}", verdict.headline);
    }
}

#[test]
fn stored_record_is_judged_as_the_live_one_was() {
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed ^ 0x0057_02ed);
        let mut live = record(&mut dice);
        let base = [Base::Default, Base::Strict, Base::None][dice.below(3) as usize];
        let layers =
            Layers { base, scheduler: limits(&mut dice), scenario: limits(&mut dice), command_line: limits(&mut dice) };
        live.plan.as_mut().unwrap().limits = layers;
        let bytes = file(&live);
        let (stored, complete) = Record::from_file_bytes(&bytes).unwrap();
        assert!(complete);
        assert_eq!(stored, live, "seed {seed}");
        assert_eq!(judge_stored(&stored), judge_stored(&live), "seed {seed}");
        // A cut file is read up to the cut, and judged without a panic.
        let head = file_head().len();
        let cut = head + dice.below((bytes.len() - head) as u64) as usize;
        let (part, _) = Record::from_file_bytes(&bytes[..cut]).unwrap();
        assert_eq!(judge_stored(&part), judge_stored(&part), "seed {seed}");
    }
}

#[test]
fn order_of_reports_changes_nothing() {
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed ^ 0x0bdeb);
        let (record, limits) = (record(&mut dice), limits(&mut dice));
        let mut mixed = record.clone();
        for index in (1..mixed.reports.len()).rev() {
            mixed.reports.swap(index, dice.below(index as u64 + 1) as usize);
        }
        // Of several that starve, or that are worst alike, the first is named; the group of one that is not per group varies.
        let (mut a, mut b) = (judge(&record, &limits), judge(&mixed, &limits));
        for check in a.checks.iter_mut().chain(&mut b.checks) {
            let one_for_all = ["not_starved", "max_gap", "max_run_delay", "max_wait_share", "min_work_rate"];
            let others = ["min_iteration_rate", "min_page_locality", "settings_applied"];
            if one_for_all.contains(&check.name) || others.contains(&check.name) {
                check.group = None;
            }
        }
        assert_eq!(essence(&a).0, essence(&b).0, "seed {seed}");
        assert_eq!(essence(&a).1.len(), essence(&b).1.len(), "seed {seed}");
        let sums = |record: &Record| {
            let mut rows: Vec<String> = group_stats(record)
                .iter()
                .map(|row| {
                    format!(
                        "{} {} {} {:?} {:?}",
                        row.group, row.workers, row.work_units, row.max_run_delay_ns, row.max_gap_ns
                    )
                })
                .collect();
            rows.sort();
            rows
        };
        assert_eq!(sums(&record), sums(&mixed), "seed {seed}");
        let names = |verdict: &Verdict| {
            let mut list: Vec<_> =
                verdict.checks.iter().map(|check| (check.name, check.group.clone(), check.status.name())).collect();
            list.sort();
            list
        };
        assert_eq!(names(&a), names(&b), "seed {seed}");
    }
}

/// A worker that did worse than `other` in everything that a monotone check looks at.
fn worse(dice: &mut Dice, other: &WorkerReport) -> WorkerReport {
    let mut worse = other.clone();
    worse.work_units = other.work_units / 2;
    worse.iterations = other.iterations / 2;
    worse.max_gap_ns = other.max_gap_ns.saturating_add(dice.number());
    let later = |ns: Option<u64>, dice: &mut Dice| ns.map(|ns| ns.saturating_add(dice.number()));
    worse.max_run_delay_ns = later(other.max_run_delay_ns, dice);
    worse.schedstat_run_delay_ns = later(other.schedstat_run_delay_ns, dice);
    worse.migration_count = u64::MAX;
    if dice.once_in(3) {
        worse.completed = false;
    }
    worse
}

#[test]
fn one_worse_worker_more_never_improves_a_verdict() {
    // What compares workers with each other, or divides by sums over all of them, may look better with one more.
    let relative = [CheckId::ThroughputCv, CheckId::WakeCv, CheckId::MaxCrossNodeMigration];
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed ^ 0xbad);
        let mut record = record(&mut dice);
        // Beside one that was hardly there, one more makes two that can be compared.
        for (_, report) in record.reports.iter_mut().filter(|(_, report)| (1..LONG_NS).contains(&report.wall_time_ns)) {
            report.wall_time_ns = LONG_NS;
        }
        let limits = relative.into_iter().fold(limits(&mut dice), |limits, id| limits.with(id, Limit::Off));
        let before = judge(&record, &limits);
        let (group, other) = record.reports[dice.below(record.reports.len() as u64) as usize].clone();
        record.reports.push((group.clone(), worse(&mut dice, &other)));
        record.spawned.push((group, 1));
        let after = judge(&record, &limits);
        assert!(after.outcome >= before.outcome, "seed {seed}: {} became {}", before.headline, after.headline);
    }
}

/// Under the limits of a run of which nobody said a word, spread among them, and with workers that were hardly there.
#[test]
fn one_worse_worker_more_never_improves_a_verdict_under_the_defaults_beside_brief_ones() {
    let mut brief_alone = 0;
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed ^ 0x0b41ef);
        let mut record = record(&mut dice);
        for (_, report) in &mut record.reports {
            if dice.once_in(2) {
                report.wall_time_ns = 1 + dice.below(LONG_NS - 1);
                report.cpu_time_ns = dice.below(report.wall_time_ns);
                report.work_units = dice.below(2);
            }
        }
        let before = judge(&record, &defaults());
        let (group, other) = record.reports[dice.below(record.reports.len() as u64) as usize].clone();
        brief_alone += u32::from(other.wall_time_ns < LONG_NS && before.outcome < Outcome::Fail);
        record.reports.push((group.clone(), worse(&mut dice, &other)));
        record.spawned.push((group, 1));
        let after = judge(&record, &defaults());
        assert!(after.outcome >= before.outcome, "seed {seed}: {} became {}", before.headline, after.headline);
    }
    assert!(brief_alone > 20, "{brief_alone} records with a brief worker more that could have become worse");
}

#[test]
fn tighter_limit_never_improves_a_verdict() {
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed ^ 0x0071_9477);
        let (record, loose) = (record(&mut dice), limits(&mut dice));
        let tight = ROWS.iter().fold(loose, |tight, row| match tight.limit(row.id) {
            Limit::Set { value, insist } if row.unit != Unit::Switch => {
                let value = if row.side == Side::AtMost { value / 2 } else { value.saturating_mul(2) };
                tight.with(row.id, Limit::Set { value, insist })
            }
            _ => tight,
        });
        let (before, after) = (judge(&record, &loose), judge(&record, &tight));
        assert!(after.outcome >= before.outcome, "seed {seed}: {} became {}", before.headline, after.headline);
    }
}

#[test]
fn layers_merge_in_any_grouping() {
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed);
        let (a, b, c) = (limits(&mut dice), limits(&mut dice), limits(&mut dice));
        assert_eq!(a.merge(&b).merge(&c), a.merge(&b.merge(&c)), "seed {seed}");
        assert_eq!(a.merge(&a), a);
        assert_eq!(a.merge(&b).merge(&b), a.merge(&b));
        assert_eq!(Assert::from_bytes(&a.to_bytes()).unwrap(), a);
    }
}

fn result(dice: &mut Dice) -> AssertResult {
    let mut result =
        [AssertResult::pass(), AssertResult::fail("f"), AssertResult::skip("s"), AssertResult::undecided("u")]
            [dice.below(4) as usize]
            .clone();
    result.stats = AssertStats {
        workers: dice.number(),
        work_units: dice.number(),
        iterations: dice.number(),
        migrations: dice.number(),
        max_gap_ns: dice.maybe(),
        max_run_delay_ns: dice.maybe(),
        spread_milli: dice.maybe(),
        wake_p99_ns: dice.maybe(),
    };
    result
}

/// Everything but the order in which details were added.
fn sorted(mut result: AssertResult) -> AssertResult {
    result.details.sort();
    result.undecided.sort();
    result
}

#[test]
fn results_and_histograms_merge_in_any_order_and_grouping() {
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed);
        let (a, b, c) = (result(&mut dice), result(&mut dice), result(&mut dice));
        let left = a.clone().merge(b.clone()).merge(c.clone());
        assert_eq!(left, a.clone().merge(b.clone().merge(c.clone())), "seed {seed}");
        assert_eq!(sorted(a.clone().merge(b.clone())), sorted(b.clone().merge(a.clone())), "seed {seed}");
        let merged = a.clone().merge(b.clone());
        assert!(merged.passed <= a.passed && merged.stats.max_gap_ns >= a.stats.max_gap_ns, "seed {seed}");
        let (x, y, z) = (hist(&mut dice, true), hist(&mut dice, true), hist(&mut dice, true));
        let join = |list: &[&Hist]| {
            list.iter().fold(Hist::new(), |mut sum, hist| {
                sum.merge(hist);
                sum
            })
        };
        assert_eq!(join(&[&x, &y, &z]), join(&[&z, &join(&[&y, &x])]), "seed {seed}");
    }
}
