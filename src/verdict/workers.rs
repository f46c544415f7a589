//! Checks on what each worker measured: starvation, gaps, run delay, rates, refused settings.
//!
//! Owns these, and what voids times on a machine; leaves the limits to `table`, the rule to `decide`.
//! Invariant: a worker without data makes a check Inconclusive, unless another worker already fails it.

use super::check::{Check, Measure, Status};
use super::decide::{Found, decide};
use super::scene::{Named, Scene};
use super::{fairness, isolation, latency, noise, numa};
use crate::proto::limits::{Assert, CheckId};
use crate::proto::record::Record;
use crate::proto::report::WorkerReport;
use crate::units::{NS_PER_MS, NS_PER_SEC, approx};
use std::collections::BTreeMap;

/// The name of the emulating accelerator in `HostInfo::accel`.
pub const EMULATOR: &str = "qemu";
/// Why times mean nothing there.
pub const EMULATED: &str = "under software emulation, times are the emulator's";

/// What stands there where there was no VM.
pub const METAL: &str = "host";

/// Whether it ran on a machine's own kernel.
pub fn on_metal(record: &Record) -> bool {
    record.host.as_ref().is_some_and(|host| host.accel == METAL)
}

/// Whether the guest's CPUs were emulated in software.
pub fn emulated(record: &Record) -> bool {
    record.host.as_ref().is_some_and(|host| host.accel == EMULATOR)
}

/// Why times and stalls cannot be laid to the scheduler or the kernel; none where they can.
pub fn disturbed(record: &Record) -> Option<String> {
    if emulated(record) {
        return Some(EMULATED.into());
    }
    steal(record).or_else(|| noise::whole_scenario(record))
}

/// What the guest itself counted as taken from it.
fn steal(record: &Record) -> Option<String> {
    let end = record.scenario_end.as_ref()?;
    let cpus = u64::from(record.host.as_ref()?.topology.total_cpus());
    let given_ns = end.elapsed_ns.saturating_mul(cpus);
    (end.steal_ns.saturating_mul(100) > given_ns.saturating_mul(noise::TAKEN_PERCENT)).then(|| {
        // A tick of the guest also counts what was taken before the scenario, since its last one.
        let (stolen, given) = (approx(end.steal_ns.min(given_ns)), approx(given_ns));
        format!("the host took {stolen} of {given} CPU time from the guest")
    })
}

/// All checks on workers, in the order of a report.
pub fn checks(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    if let Some(why) = scene.nobody {
        let ids = CheckId::ALL.into_iter().filter(|id| *id <= CheckId::MaxCrossNodeMigration);
        let ids = ids.chain([CheckId::SettingsApplied]);
        return ids.map(|id| decide(id, limits, Found::nothing(why))).collect();
    }
    let mut list = vec![
        decide(CheckId::NotStarved, limits, not_starved(scene)),
        decide(CheckId::MaxGap, limits, scene.timing(max_gap(scene))),
        decide(CheckId::MaxRunDelay, limits, scene.timing(max_run_delay(scene))),
        decide(CheckId::MaxWaitShare, limits, scene.timing(max_wait_share(scene))),
    ];
    list.extend(fairness::spread(scene, limits));
    list.extend(isolation::checks(scene, limits));
    list.extend(fairness::throughput_cv(scene, limits));
    list.push(decide(CheckId::MinWorkRate, limits, scene.timing(rate(scene, |report| report.work_units))));
    list.push(decide(CheckId::MinIterationRate, limits, scene.timing(rate(scene, |report| report.iterations))));
    list.extend(migration_ratio(scene, limits));
    list.extend(latency::checks(scene, limits));
    list.extend(numa::checks(scene, limits));
    excuse(scene, &mut list);
    list.push(decide(CheckId::SettingsApplied, limits, settings_applied(scene)));
    list
}

/// A time that only the host's own waits explain proves nothing.
fn excuse(scene: &Scene<'_>, checks: &mut [Check]) {
    let Some(record) = scene.record else { return };
    for check in checks.iter_mut().filter(|check| check.status == Status::Fail) {
        let (Some(Measure::Ns(value)), Some(Measure::Ns(limit))) = (check.value, check.threshold) else { continue };
        if let Some(why) = noise::explains(record, value, limit) {
            check.status = Status::Inconclusive;
            check.reason = format!("void, as {why}; {}", check.reason);
        }
    }
    // A crash or a missing report is no question of time.
    let starved = checks.iter_mut().find(|check| check.name == "not_starved" && check.status == Status::Fail);
    if let (Some(check), Some(why)) = (starved, noise::explains_no_work(record)) {
        check.status = Status::Inconclusive;
        check.reason = format!("void, as {why}; {}", check.reason);
    }
}

/// `worker 3 of g0, tid 124`.
pub fn who(group: &str, report: &WorkerReport) -> String {
    format!("worker {} of {group}, tid {}", report.worker_idx, report.tid)
}

/// Five of sched_ext's default time slices (SCX_SLICE_DFL, 20 ms; include/linux/sched/ext.h): who was there for less, as the
/// last of a churn is when its scenario ends, may rightly have had no turn.
pub(super) const SHORTEST_LIFE_NS: u64 = 100 * NS_PER_MS;

/// Time of brief workers without a turn that is told although others of their kind, there for longer, worked.
const CREWS_LIFE_NS: u64 = 10 * SHORTEST_LIFE_NS;

/// Whether it was there for so short that it may rightly have had no turn.
pub(super) fn is_brief(report: &WorkerReport) -> bool {
    report.completed && report.wall_time_ns < SHORTEST_LIFE_NS
}

/// The workers of one cgroup and work type.
#[derive(Default)]
struct Brief {
    /// The brief ones.
    workers: u64,
    /// Whether one of them worked, and whether one that was there for longer did.
    worked: bool,
    worked_long: bool,
    /// How long the brief ones were there, by crew and worker.
    lives: BTreeMap<(u32, u32), u64>,
}

impl Brief {
    /// Crews that were there one after the other add up, the workers of one crew do not.
    fn lived_ns(&self) -> u64 {
        let mut crews: BTreeMap<u32, u64> = BTreeMap::new();
        for ((crew, _), ns) in &self.lives {
            crews.entry(*crew).and_modify(|longest| *longest = (*longest).max(*ns)).or_insert(*ns);
        }
        crews.into_values().sum()
    }
}

/// Of the cgroups and work types whose brief workers all did no work, the one with the longest time: cgroup, workers, time. That is no proof of starvation: where the queue is longer than each life, all had no turn.
fn idle_crews<'a>(scene: &Scene<'a>) -> Option<(&'a str, u64, u64)> {
    let mut sets: BTreeMap<(&str, &str), Brief> = BTreeMap::new();
    for (group, report) in scene.reports {
        let brief = sets.entry((group, &report.work_type)).or_default();
        if !is_brief(report) {
            brief.worked_long |= report.work_units > 0;
            continue;
        }
        brief.worked |= report.work_units > 0;
        brief.workers += 1;
        *brief.lives.entry((report.group_idx, report.worker_idx)).or_default() += report.wall_time_ns;
    }
    let idle = sets.into_iter().filter(|(_, brief)| match (brief.worked, brief.worked_long) {
        (true, _) => false,
        // Those that came last may all have come too late for a turn; many in turn did not.
        (false, true) => brief.lived_ns() >= CREWS_LIFE_NS,
        (false, false) => true,
    });
    idle.map(|((group, _), brief)| (group, brief.workers, brief.lived_ns())).max_by_key(|(.., ns)| *ns)
}

/// Rates and shares of who came just before the stop, and had no turn until then, tell of the stop alone.
fn had_a_turn(report: &WorkerReport) -> bool {
    !is_brief(report) || report.work_units > 0
}

fn is_starved(report: &WorkerReport) -> bool {
    let long = report.setup_error.is_some() || report.wall_time_ns >= SHORTEST_LIFE_NS;
    !report.completed || (report.work_units == 0 && long)
}

fn not_starved(scene: &Scene<'_>) -> Found {
    let starved: Vec<&Named> = scene.reports.iter().filter(|(_, report)| is_starved(report)).collect();
    let measured = Measure::Count(starved.len() as u64);
    let Some((group, report)) = starved.first() else {
        let brief = approx(SHORTEST_LIFE_NS);
        let crews = idle_crews(scene).filter(|(.., ns)| *ns >= SHORTEST_LIFE_NS).map(|(group, workers, ns)| {
            let lived = approx(ns);
            format!("none of {workers} workers of {group} worked, each there for less than {brief}, {lived} in all")
        });
        let all = scene.reports.len();
        let worked = scene.reports.iter().filter(|(_, report)| report.work_units > 0).count();
        let none = || (all > 0 && worked == 0).then(|| format!("no worker worked, nor was there for {brief}"));
        let missing = scene.no_reports.map(str::to_owned).or_else(|| scene.missing.first().cloned()).or_else(none);
        let missing = missing.or(crews);
        let value = scene.no_reports.is_none().then_some(measured);
        let reason = match all - worked {
            0 => format!("all {all} workers worked"),
            idle => format!("{worked} of {all} workers worked, and {idle} were not there for {brief}"),
        };
        return Found { value, missing, reason, ..Found::default() };
    };
    let what = match (&report.exit_info, &report.setup_error) {
        (Some(exit), _) => exit.describe(),
        (None, Some(error)) => format!("could not be set up: {error}"),
        (None, None) if report.completed => "did no work".into(),
        (None, None) => "gave no report".into(),
    };
    let more = match starved.len() {
        1 => String::new(),
        count => format!(", and {} more", count - 1),
    };
    Found::new(measured, format!("{} ({}) {what}{more}", who(group, report), report.work_type)).of(group)
}

/// The groups whose workers did not all report.
pub fn missing_reports(record: &Record) -> Vec<String> {
    let mut missing = Vec::new();
    for (group, owed) in record.owed() {
        let told = record.reports.iter().filter(|(name, _)| name == group).count() as u64;
        if told != owed {
            missing.push(format!("{told} of {owed} workers of {group} reported"));
        }
    }
    missing
}

fn more(a: Measure, b: Measure) -> bool {
    a.number() > b.number()
}

fn less(a: Measure, b: Measure) -> bool {
    a.number() < b.number()
}

fn max_gap(scene: &Scene<'_>) -> Found {
    let place = |report: &WorkerReport| match report.max_gap_ns {
        0 => String::new(),
        _ => format!(" at {} on CPU {}", approx(report.max_gap_at_ns), report.max_gap_cpu),
    };
    scene.worst_of(had_a_turn, more, |report| {
        report.known_gap_ns().filter(|_| report.completed).map(|ns| (Measure::Ns(ns), place(report)))
    })
}

fn max_run_delay(scene: &Scene<'_>) -> Found {
    scene.worst(more, |report| {
        report.max_run_delay_ns.filter(|_| report.completed).map(|ns| (Measure::Ns(ns), String::new()))
    })
}

fn max_wait_share(scene: &Scene<'_>) -> Found {
    scene.worst_of(had_a_turn, more, |report| {
        let waited_ns = report.schedstat_run_delay_ns.filter(|_| report.completed && report.wall_time_ns > 0)?;
        // Who had no turn before the stop waited longer than it was there.
        let waited_ns = waited_ns.min(report.wall_time_ns);
        let share = waited_ns as f64 * 100.0 / report.wall_time_ns as f64;
        let text = format!(", {} of {}", approx(waited_ns), approx(report.wall_time_ns));
        Some((Measure::Percent(share), text))
    })
}

fn rate(scene: &Scene<'_>, count: fn(&WorkerReport) -> u64) -> Found {
    scene.worst_of(had_a_turn, less, |report| {
        let rate = (report.completed && report.wall_time_ns > 0)
            .then(|| count(report) as f64 * NS_PER_SEC as f64 / report.wall_time_ns as f64)?;
        Some((Measure::PerSecond(rate), format!(", {} in {}", count(report), approx(report.wall_time_ns))))
    })
}

/// One check per cgroup: how often its workers changed CPU for each of their iterations.
fn migration_ratio(scene: &Scene<'_>, limits: &Assert) -> Vec<Check> {
    const ID: CheckId = CheckId::MaxMigrationRatio;
    if let Some(why) = scene.no_reports {
        return vec![decide(ID, limits, Found::missing(why))];
    }
    let of_group = |group: &String| {
        let sum = |count: fn(&WorkerReport) -> u64| {
            scene.of_group(group).map(|(_, report)| count(report)).fold(0, u64::saturating_add)
        };
        let silent = scene.of_group(group).find(|(_, report)| !report.completed);
        let (moved, done) = (sum(|report| report.migration_count), sum(|report| report.iterations));
        let found = Found {
            value: (done > 0).then(|| Measure::Ratio(moved as f64 / done as f64)),
            reason: format!("{moved} migrations in {done} iterations of {group}"),
            missing: match silent {
                Some((_, report)) => Some(format!("no report from {}", who(group, report))),
                None => (done == 0).then(|| format!("{group} did no iteration")),
            },
            ..Found::default()
        };
        decide(ID, limits, found.of(group))
    };
    scene.groups().iter().map(of_group).collect()
}

fn settings_applied(scene: &Scene<'_>) -> Found {
    let refused = |(group, report): &Named| {
        report.refusals().first().map(|text| (group.clone(), format!("{}: {text}", who(group, report))))
    };
    let list: Vec<(String, String)> = scene.reports.iter().filter_map(refused).collect();
    let measured = Measure::Count(list.len() as u64);
    match (list.first(), scene.no_reports) {
        (Some((group, text)), _) => Found::new(measured, text.clone()).of(group),
        (None, Some(why)) => Found::missing(why),
        (None, None) => Found::new(measured, "nothing was refused"),
    }
}
