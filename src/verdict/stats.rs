//! The numbers of each group of equal workers, added up from their reports.
//!
//! Owns the sums, shares and merged histograms; leaves judging to the checks, layout to report/.
//! Invariant: a number that some worker could not measure is none for the whole group, never a partial sum.

use crate::proto::hist::Hist;
use crate::proto::record::Record;
use crate::proto::report::WorkerReport;
use crate::proto::work::SampleKind;
use crate::units::NS_PER_SEC;

/// What one kind of worker in one cgroup did.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupStats {
    pub group: String,
    pub group_idx: u32,
    pub work_type: String,
    pub workers: u64,
    /// Workers that reported for themselves.
    pub completed: u64,
    pub work_units: u64,
    pub iterations: u64,
    pub wall_time_ns: u64,
    pub cpu_time_ns: u64,
    /// The workers' CPU time by the longest worker's wall time: 200 is two whole CPUs.
    pub cpu_percent: f64,
    pub units_per_s: f64,
    pub iterations_per_s: f64,
    pub run_delay_ns: Option<u64>,
    pub max_run_delay_ns: Option<u64>,
    /// None where no worker made progress.
    pub max_gap_ns: Option<u64>,
    pub migrations: u64,
    pub samples: Vec<(SampleKind, Hist)>,
}

impl GroupStats {
    pub fn hist(&self, kind: SampleKind) -> Option<&Hist> {
        self.samples.iter().find(|(known, _)| *known == kind).map(|(_, hist)| hist)
    }
}

/// The reports by cgroup, position in it and work type, in order of first appearance.
pub fn equals<'a>(
    reports: impl IntoIterator<Item = &'a (String, WorkerReport)>,
) -> Vec<(&'a str, Vec<&'a WorkerReport>)> {
    let mut sets: Vec<(&str, Vec<&WorkerReport>)> = Vec::new();
    for (group, report) in reports {
        let same = |first: &WorkerReport| {
            first.group_idx == report.group_idx && first.work_type == report.work_type && first.role == report.role
        };
        match sets.iter_mut().find(|(name, members)| *name == group && members.first().is_some_and(|m| same(m))) {
            Some((_, members)) => members.push(report),
            None => sets.push((group, vec![report])),
        }
    }
    sets
}

/// The table of groups. Roles of one work type are shown together.
pub fn group_stats(record: &Record) -> Vec<GroupStats> {
    let mut rows: Vec<GroupStats> = Vec::new();
    for (group, members) in equals(&record.reports) {
        let part = sum(group, &members);
        let same = |row: &GroupStats| {
            row.group == part.group && row.group_idx == part.group_idx && row.work_type == part.work_type
        };
        match rows.iter_mut().find(|row| same(row)) {
            Some(row) => row.add(&part),
            None => rows.push(part),
        }
    }
    rows
}

fn sum(group: &str, members: &[&WorkerReport]) -> GroupStats {
    let first = members.first();
    let mut row = GroupStats {
        group: group.to_owned(),
        group_idx: first.map_or(0, |report| report.group_idx),
        work_type: first.map(|report| report.work_type.clone()).unwrap_or_default(),
        workers: 0,
        completed: 0,
        work_units: 0,
        iterations: 0,
        wall_time_ns: 0,
        cpu_time_ns: 0,
        cpu_percent: 0.0,
        units_per_s: 0.0,
        iterations_per_s: 0.0,
        run_delay_ns: Some(0),
        max_run_delay_ns: Some(0),
        max_gap_ns: None,
        migrations: 0,
        samples: Vec::new(),
    };
    for report in members {
        row.add(&one(group, report));
    }
    row
}

fn one(group: &str, report: &WorkerReport) -> GroupStats {
    GroupStats {
        group: group.to_owned(),
        group_idx: report.group_idx,
        work_type: report.work_type.clone(),
        workers: 1,
        completed: u64::from(report.completed),
        work_units: report.work_units,
        iterations: report.iterations,
        wall_time_ns: report.wall_time_ns,
        cpu_time_ns: report.cpu_time_ns,
        cpu_percent: percent(report.cpu_time_ns, report.wall_time_ns),
        units_per_s: rate(report.work_units, report.wall_time_ns),
        iterations_per_s: rate(report.iterations, report.wall_time_ns),
        run_delay_ns: report.schedstat_run_delay_ns,
        max_run_delay_ns: report.max_run_delay_ns,
        max_gap_ns: report.known_gap_ns(),
        migrations: report.migration_count,
        samples: report.samples.iter().map(|samples| (samples.kind, samples.hist.clone())).collect(),
    }
}

impl GroupStats {
    fn add(&mut self, other: &Self) {
        self.workers += other.workers;
        self.completed += other.completed;
        self.work_units = self.work_units.saturating_add(other.work_units);
        self.iterations = self.iterations.saturating_add(other.iterations);
        self.wall_time_ns = self.wall_time_ns.max(other.wall_time_ns);
        self.cpu_time_ns = self.cpu_time_ns.saturating_add(other.cpu_time_ns);
        // Over the longest worker's time: summing each worker's own ratio would count time twice where one began late.
        self.cpu_percent = percent(self.cpu_time_ns, self.wall_time_ns);
        self.units_per_s = rate(self.work_units, self.wall_time_ns);
        self.iterations_per_s = rate(self.iterations, self.wall_time_ns);
        self.run_delay_ns = both(self.run_delay_ns, other.run_delay_ns, u64::saturating_add);
        self.max_run_delay_ns = both(self.max_run_delay_ns, other.max_run_delay_ns, u64::max);
        self.max_gap_ns = self.max_gap_ns.max(other.max_gap_ns);
        self.migrations = self.migrations.saturating_add(other.migrations);
        for (kind, hist) in &other.samples {
            match self.samples.iter_mut().find(|(known, _)| known == kind) {
                Some((_, whole)) => whole.merge(hist),
                None => self.samples.push((*kind, hist.clone())),
            }
        }
    }
}

fn both(a: Option<u64>, b: Option<u64>, join: fn(u64, u64) -> u64) -> Option<u64> {
    Some(join(a?, b?))
}

/// One worker's share of a CPU; none where it has no measured time.
pub fn cpu_percent(report: &WorkerReport) -> Option<f64> {
    (report.wall_time_ns > 0).then(|| percent(report.cpu_time_ns, report.wall_time_ns))
}

fn percent(cpu_ns: u64, wall_ns: u64) -> f64 {
    if wall_ns == 0 { 0.0 } else { cpu_ns as f64 * 100.0 / wall_ns as f64 }
}

fn rate(count: u64, wall_ns: u64) -> f64 {
    if wall_ns == 0 { 0.0 } else { count as f64 * NS_PER_SEC as f64 / wall_ns as f64 }
}
