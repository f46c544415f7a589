//! Checks on what the workers measured: starvation, gaps, run delay, fairness, refused settings.
//!
//! Owns these comparisons; leaves adding up to `stats`.
//! Invariant: a worker without data makes a check Inconclusive, unless another worker already fails it.

use super::assert::Thresholds;
use super::check::{Check, Measure, Status};
use super::noise;
use super::stats::{cpu_percent, equals};
use crate::proto::record::Record;
use crate::proto::report::WorkerReport;
use crate::units::approx;

/// The name of the emulating accelerator in `HostInfo::accel`.
pub const EMULATOR: &str = "qemu";
const OFF: &str = "switched off";

type Reports = [(String, WorkerReport)];

/// Whether the guest's CPUs were emulated in software.
pub fn emulated(record: &Record) -> bool {
    record.host.as_ref().is_some_and(|host| host.accel == EMULATOR)
}

/// Why times and stalls cannot be laid to the scheduler or the kernel; none where they can.
pub fn disturbed(record: &Record) -> Option<String> {
    if emulated(record) {
        return Some("under software emulation, times are the emulator's".into());
    }
    steal(record).or_else(|| noise::whole_scenario(record))
}

/// What the guest itself counted as taken from it.
fn steal(record: &Record) -> Option<String> {
    let end = record.scenario_end.as_ref()?;
    let cpus = u64::from(record.host.as_ref()?.topology.total_cpus());
    let given_ns = end.elapsed_ns.saturating_mul(cpus);
    (end.steal_ns.saturating_mul(100) > given_ns.saturating_mul(noise::TAKEN_PERCENT)).then(|| {
        let (stolen, given) = (approx(end.steal_ns), approx(given_ns));
        format!("the host took {stolen} of {given} CPU time from the guest")
    })
}

/// All checks of this file, in the order of a report.
pub fn checks(record: &Record, thresholds: &Thresholds, clock_noise: Option<&str>) -> Vec<Check> {
    let timing = Timing::of(record);
    let mut list = vec![
        not_starved(record, thresholds),
        timing.worst(record, "max_gap", thresholds.max_gap_ns, |report| {
            report.completed.then_some((report.max_gap_ns, at_place(report)))
        }),
        timing.worst(record, "max_run_delay", thresholds.max_run_delay_ns, |report| {
            report.max_run_delay_ns.filter(|_| report.completed).map(|ns| (ns, String::new()))
        }),
    ];
    list.extend(spread(record, thresholds, &timing));
    let stolen = disturbed(record).filter(|_| !emulated(record));
    let clocks = clock_noise.map(|noise| format!("the guest's clocks were disturbed ({noise})"));
    let always = stolen.or(clocks);
    for check in list.iter_mut().skip(1).filter(|check| check.status == Status::Fail) {
        let waited = || match (check.value, check.threshold) {
            (Some(Measure::Ns(value)), Some(Measure::Ns(limit))) => noise::explains(record, value, limit),
            _ => None,
        };
        if let Some(why) = always.clone().or_else(waited) {
            check.status = Status::Inconclusive;
            check.reason = format!("void, as {why}; {}", check.reason);
        }
    }
    list.push(settings_applied(record));
    list
}

fn at_place(report: &WorkerReport) -> String {
    if report.max_gap_ns == 0 {
        return String::new();
    }
    format!(" at {} on CPU {}", approx(report.max_gap_at_ns), report.max_gap_cpu)
}

/// `worker 3 of g0, tid 124`.
fn who(group: &str, report: &WorkerReport) -> String {
    format!("worker {} of {group}, tid {}", report.worker_idx, report.tid)
}

/// Why there are no reports to look at.
fn no_reports(record: &Record) -> Option<&'static str> {
    match (record.reports.is_empty(), record.scenario_started.is_some()) {
        (false, _) => None,
        (true, true) => Some("no worker reported"),
        (true, false) => Some("the scenario did not start"),
    }
}

fn not_starved(record: &Record, thresholds: &Thresholds) -> Check {
    const NAME: &str = "not_starved";
    if !thresholds.not_starved {
        return Check::new(NAME, Status::NotApplied, OFF);
    }
    let starved: Vec<&(String, WorkerReport)> =
        record.reports.iter().filter(|(_, report)| !report.completed || report.work_units == 0).collect();
    let measured = Measure::Count(starved.len() as u64);
    let Some((group, report)) = starved.first() else {
        let done = |reason: &str, status| Check::new(NAME, status, reason).value(measured);
        return match no_reports(record) {
            Some(why) => Check::new(NAME, Status::Inconclusive, why),
            None => match missing_reports(record).first() {
                Some(missing) => done(missing, Status::Inconclusive),
                None => done(&format!("all {} workers worked", record.reports.len()), Status::Pass),
            },
        };
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
    let reason = format!("{} ({}) {what}{more}", who(group, report), report.work_type);
    Check::new(NAME, Status::Fail, reason).group(group).value(measured)
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

/// Which timing checks mean anything on this host.
struct Timing {
    /// Why no timing check does.
    none: Option<String>,
    /// Why fairness does not.
    no_spread: Option<String>,
}

impl Timing {
    fn of(record: &Record) -> Self {
        let Some(host) = &record.host else { return Self { none: None, no_spread: None } };
        if emulated(record) {
            let why = disturbed(record);
            return Self { none: why.clone(), no_spread: why };
        }
        let vcpus = host.topology.total_cpus();
        let no_spread = (vcpus > host.host_cpus).then(|| {
            let (cpus, many) = (host.host_cpus, if host.host_cpus == 1 { "" } else { "s" });
            format!("{vcpus} vCPUs share {cpus} host CPU{many}, so the host decides who runs")
        });
        Self { none: None, no_spread }
    }

    /// A check of the largest time that any worker measured.
    fn worst(
        &self,
        record: &Record,
        name: &'static str,
        threshold: Option<u64>,
        measure: impl Fn(&WorkerReport) -> Option<(u64, String)>,
    ) -> Check {
        let measured = record.reports.iter().filter_map(|(group, report)| Some((measure(report)?, group, report)));
        // The first of equals, so that the text does not depend on what came later.
        let worst = measured.rev().max_by_key(|((ns, _), _, _)| *ns);
        let without = record.reports.iter().find(|(_, report)| measure(report).is_none());
        let mut check = Check::new(name, Status::Pass, "");
        if let Some(((ns, place), group, report)) = &worst {
            check = check.value(Measure::Ns(*ns)).group(group);
            check.reason = format!("{}{place}", who(group, report));
        }
        let Some(threshold) = threshold else { return with(check, Status::NotApplied, OFF) };
        check = check.threshold(Measure::Ns(threshold));
        if let Some(why) = &self.none {
            return with(check, Status::NotApplied, why);
        }
        if worst.is_some_and(|((ns, _), _, _)| ns > threshold) {
            check.status = Status::Fail;
            return check;
        }
        match (no_reports(record), without) {
            (Some(why), _) => with(check, Status::Inconclusive, why),
            (None, Some((group, report))) => {
                let why = format!("not measured for {}", who(group, report));
                with(check, Status::Inconclusive, &why)
            }
            (None, None) => check,
        }
    }
}

fn with(mut check: Check, status: Status, reason: &str) -> Check {
    check.status = status;
    check.reason = reason.to_owned();
    check
}

/// One check per cgroup: the widest difference of CPU share among workers that are equal in all that was asked for.
fn spread(record: &Record, thresholds: &Thresholds, timing: &Timing) -> Vec<Check> {
    const NAME: &str = "spread";
    if let Some(why) = no_reports(record) {
        let status = if thresholds.spread_percent.is_some() { Status::Inconclusive } else { Status::NotApplied };
        return vec![Check::new(NAME, status, if thresholds.spread_percent.is_some() { why } else { OFF })];
    }
    let mut groups: Vec<&str> = Vec::new();
    for (group, _) in &record.reports {
        if !groups.contains(&group.as_str()) {
            groups.push(group);
        }
    }
    groups.into_iter().map(|group| group_spread(&record.reports, group, thresholds, timing)).collect()
}

fn group_spread(reports: &Reports, group: &str, thresholds: &Thresholds, timing: &Timing) -> Check {
    let members = reports.iter().filter(|(name, _)| name == group);
    let sets: Vec<_> = equals(members).into_iter().filter(|(_, set)| set.len() > 1).collect();
    let widest = sets.iter().filter_map(|(_, set)| widest(group, set)).max_by(|a, b| a.0.total_cmp(&b.0));
    let mut check = Check::new("spread", Status::Pass, "").group(group);
    if let Some((points, reason)) = &widest {
        check = check.value(Measure::Percent(*points));
        check.reason = reason.clone();
    }
    let Some(threshold) = thresholds.spread_percent else { return with(check, Status::NotApplied, OFF) };
    check = check.threshold(Measure::Percent(threshold));
    if let Some(why) = &timing.no_spread {
        return with(check, Status::NotApplied, why);
    }
    if sets.is_empty() {
        return with(check, Status::NotApplied, "no two equal workers to compare");
    }
    if widest.as_ref().is_some_and(|(points, _)| *points > threshold) {
        check.status = Status::Fail;
        return check;
    }
    let silent = sets.iter().flat_map(|(_, set)| set).find(|report| share(report).is_none());
    match silent {
        Some(report) => {
            let why = format!("no CPU time from {}", who(group, report));
            with(check, Status::Inconclusive, &why)
        }
        None => check,
    }
}

fn share(report: &WorkerReport) -> Option<f64> {
    cpu_percent(report).filter(|_| report.completed)
}

/// The difference between the largest and the smallest share, and whose they are.
fn widest(group: &str, set: &[&WorkerReport]) -> Option<(f64, String)> {
    let shares = || set.iter().filter_map(|report| Some((share(report)?, *report)));
    let (low, poor) = shares().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let (high, rich) = shares().max_by(|a, b| a.0.total_cmp(&b.0))?;
    let reason = format!("{low:.1} % (tid {}) to {high:.1} % (tid {}) in {group}", poor.tid, rich.tid);
    Some((high - low, reason))
}

fn settings_applied(record: &Record) -> Check {
    const NAME: &str = "settings_applied";
    let refused = |(group, report): &(String, WorkerReport)| {
        report.refusals().first().map(|text| (group.clone(), format!("{}: {text}", who(group, report))))
    };
    let list: Vec<(String, String)> = record.reports.iter().filter_map(refused).collect();
    let measured = Measure::Count(list.len() as u64);
    match (list.first(), no_reports(record)) {
        (Some((group, text)), _) => Check::new(NAME, Status::Fail, text.clone()).group(group).value(measured),
        (None, Some(why)) => Check::new(NAME, Status::Inconclusive, why),
        (None, None) => Check::new(NAME, Status::Pass, "nothing was refused").value(measured),
    }
}
