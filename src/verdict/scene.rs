//! What the checks on workers look at: reports, what is known of their groups, and what voids their numbers.
//!
//! Owns this picture and making it from a record or from plain reports; leaves comparing to the checks.
//! Invariant: the same checks see the same picture in the guest and on the host.

use super::check::Measure;
use super::decide::Found;
use super::own;
use super::stats::equals;
use super::workers::{disturbed, emulated, missing_reports, who};
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::Plan;
use crate::proto::record::Record;
use crate::proto::report::WorkerReport;
use crate::proto::scenario::{CgroupDef, CpusetSpec, Op};
use crate::proto::topology::Topology;

/// A report with its cgroup's name.
pub type Named = (String, WorkerReport);

/// The picture.
#[derive(Clone, Debug, Default)]
pub struct Scene<'a> {
    /// Where it was made of one.
    pub record: Option<&'a Record>,
    pub reports: &'a [Named],
    /// Why there are no reports.
    pub no_reports: Option<&'static str>,
    /// Why nobody had to report.
    pub nobody: Option<&'static str>,
    /// Groups whose workers did not all report, in words.
    pub missing: Vec<String>,
    /// Why no time means anything on this machine.
    pub void: Option<String>,
    /// Why shares of CPU mean nothing on it.
    pub no_shares: Option<String>,
    /// Why a time beyond its limit proves nothing in this run.
    pub shaken: Option<String>,
    /// Cgroups that have CPUs of their own.
    pub cpusets: Vec<(String, CpuSet)>,
    pub topology: Option<Topology>,
}

impl<'a> Scene<'a> {
    /// Everything the record knows. `clock_noise`: what disturbed the guest's clocks.
    pub fn of_record(record: &'a Record, clock_noise: Option<&str>) -> Self {
        let void = disturbed(record).filter(|_| emulated(record));
        let stolen = disturbed(record).filter(|_| !emulated(record));
        let noise = clock_noise.map(|noise| format!("the guest's clocks were disturbed ({noise})"));
        Self {
            record: Some(record),
            reports: &record.reports,
            no_reports: match (record.reports.is_empty(), record.scenario_started.is_some()) {
                (false, _) => None,
                (true, true) => Some("no worker reported"),
                (true, false) => Some("the scenario did not start"),
            },
            nobody: (record.reports.is_empty() && record.spawned.is_empty() && own::is_code(record))
                .then_some("the scenario's code had no workers"),
            missing: missing_reports(record),
            no_shares: void.clone().or_else(|| shared_cpus(record)),
            void,
            shaken: stolen.or(noise),
            cpusets: record.plan.as_ref().map(cpusets).unwrap_or_default(),
            topology: record.plan.as_ref().map(|plan| plan.topology.clone()),
        }
    }

    /// Plain reports. `void`: why times mean nothing on this machine.
    pub fn of_reports(reports: &'a [Named], cpusets: &[(String, CpuSet)], void: Option<&str>) -> Self {
        let void = void.map(str::to_owned);
        let no_reports = reports.is_empty().then_some("no worker reported");
        Self { reports, no_reports, no_shares: void.clone(), void, cpusets: cpusets.to_vec(), ..Self::default() }
    }

    /// The cgroups' names, in order of first appearance.
    pub fn groups(&self) -> Vec<String> {
        group_names(self.reports)
    }

    pub fn of_group<'b>(&'b self, group: &'b str) -> impl DoubleEndedIterator<Item = &'a Named> + 'b {
        self.reports.iter().filter(move |(name, _)| name == group)
    }

    /// Sets of equal workers of one cgroup with more than one member.
    pub fn equals_of(&self, group: &str) -> Vec<(&'a str, Vec<&'a WorkerReport>)> {
        equals(self.of_group(group)).into_iter().filter(|(_, set)| set.len() > 1).collect()
    }

    /// Marks what was found as a time: void or shaken where times are.
    pub fn timing(&self, found: Found) -> Found {
        Found { void: self.void.clone(), shaken: self.shaken.clone(), ..found }
    }

    /// The same for shares of CPU.
    pub fn share(&self, found: Found) -> Found {
        Found { void: self.no_shares.clone(), shaken: self.shaken.clone(), ..found }
    }

    /// The worst number of any worker. `measure` gives a number and where it was seen; none: it was not measured.
    pub fn worst(
        &self,
        worse: fn(Measure, Measure) -> bool,
        measure: impl Fn(&WorkerReport) -> Option<(Measure, String)>,
    ) -> Found {
        self.worst_of(|_| true, worse, measure)
    }

    /// The same among some of them.
    pub fn worst_of(
        &self,
        counts: fn(&WorkerReport) -> bool,
        worse: fn(Measure, Measure) -> bool,
        measure: impl Fn(&WorkerReport) -> Option<(Measure, String)>,
    ) -> Found {
        let mut found = Found { missing: self.no_reports.map(str::to_owned), ..Found::default() };
        for (group, report) in self.reports.iter().filter(|(_, report)| counts(report)) {
            let Some((value, place)) = measure(report) else {
                let why = || format!("not measured for {}", who(group, report));
                found.missing.get_or_insert_with(why);
                continue;
            };
            // The first of equals stays, so that the text does not depend on what came later.
            if found.value.is_none_or(|worst| worse(value, worst)) {
                found.value = Some(value);
                found.group = Some(group.clone());
                found.reason = format!("{}{place}", who(group, report));
            }
        }
        found
    }
}

/// The cpusets that cgroups have from their making to their end.
fn cpusets(plan: &Plan) -> Vec<(String, CpuSet)> {
    let changes = |op: &Op| matches!(op, Op::SetCpuset { .. } | Op::ClearCpuset { .. } | Op::SwapCpusets { .. });
    let lasting = plan.scenarios.iter().filter(|scenario| !scenario.ops().any(changes));
    let exact = |def: &CgroupDef| match &def.cpuset {
        Some(CpusetSpec::Exact { cpus }) => Some((def.name.clone(), cpus.clone())),
        _ => None,
    };
    lasting.flat_map(|scenario| scenario.cgroup_defs().filter_map(exact)).collect()
}

fn group_names(reports: &[Named]) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for (group, _) in reports {
        if !groups.contains(group) {
            groups.push(group.clone());
        }
    }
    groups
}

/// Why shares of CPU are the host's doing.
fn shared_cpus(record: &Record) -> Option<String> {
    let host = record.host.as_ref()?;
    let vcpus = host.topology.total_cpus();
    (vcpus > host.host_cpus).then(|| {
        let (cpus, many) = (host.host_cpus, if host.host_cpus == 1 { "" } else { "s" });
        format!("{vcpus} vCPUs share {cpus} host CPU{many}, so the host decides who runs")
    })
}
