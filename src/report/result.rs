//! The result as JSON, for scripts: schema `ktstr.result/1`.
//!
//! Owns the schema; leaves writing it to `json`.
//! Invariant: within one version members are only added; a number that was not measured is null; names end in the unit.
//!
//! Top level: `schema`, `outcome` (pass, skip, inconclusive, fail, error, interrupted), `exit_code`, `headline`, `reached`
//! (last stage, or null), `stopped_at` (words, or null), `advice`, `emulated`, `seed` (a string: JSON numbers lose 64-bit integers),
//! `host`, `guest`, `plan`, `scheduler`, `checks`, `groups` (sums per cgroup and work type), `workers` (one per report),
//! `kernel_log`, `timings`, `memory`, `perf` (what came of performance mode),
//! `registers` (of each vCPU of a guest that was killed),
//! `host_noise` (how long vCPUs waited for the host's CPUs), `notes`, `host_notes`, `skipped` (scenarios left out, and why);
//! of one scenario `stimuli`, `phases` and `payloads`, of several `scenarios`, with these and their own verdict in each.

use super::json::Json;
use super::noise;
use super::scenarios;
use super::timings::intervals;
use crate::klog::sched_ext::SchedExit;
use crate::klog::{Finding, signature};
use crate::proto::cpuset::CpuSet;
use crate::proto::hist::Hist;
use crate::proto::message::SchedFinal;
use crate::proto::perf::PerfItem;
use crate::proto::record::{Enabled, Record};
use crate::proto::registers::CpuDump;
use crate::proto::report::WorkerReport;
use crate::proto::seen::Seen;
use crate::proto::work::SampleKind;
use crate::verdict::table::Side;
use crate::verdict::{Check, EMULATOR, GroupStats, Measure, Verdict, advice, group_stats};

/// Name and version of the schema.
pub const SCHEMA: &str = "ktstr.result/1";

/// The percentiles told of every histogram: (member, parts of 10,000).
const PERCENTILES: [(&str, u32); 4] = [("p50_ns", 5000), ("p90_ns", 9000), ("p99_ns", 9900), ("p999_ns", 9990)];

/// The whole result.
pub fn result_json(record: &Record, verdict: &Verdict) -> String {
    let emulated = record.host.as_ref().map(|host| host.accel == EMULATOR);
    let list = |texts: &[String]| Json::array(texts);
    let mut members = vec![
        ("schema", SCHEMA.into()),
        ("outcome", verdict.outcome.word().to_lowercase().into()),
        ("exit_code", u32::from(verdict.exit_code).into()),
        ("headline", (&verdict.headline).into()),
        ("reached", verdict.reached.map(|stage| stage.name()).into()),
        ("stopped_at", verdict.stopped.into()),
        ("advice", Json::array(advice(record, verdict))),
        ("emulated", emulated.into()),
        ("seed", record.plan.as_ref().map(|plan| plan.seed.to_string()).into()),
        ("host", host(record)),
        ("guest", guest(record)),
        ("plan", plan(record)),
        ("scheduler", scheduler(record, verdict)),
        ("checks", Json::array(verdict.checks.iter().map(check))),
        ("groups", Json::array(group_stats(record).iter().map(group))),
        ("workers", Json::array(record.reports.iter().map(|(group, report)| worker(group, report)))),
        ("kernel_log", kernel_log(record, verdict)),
        ("timings", timings(record)),
        ("memory", memory(record)),
        ("perf", Json::array(record.perf.iter().map(perf))),
        ("registers", Json::array(record.registers.iter().map(registers))),
        ("host_noise", record.noise.as_ref().map(noise::json).into()),
        ("notes", list(&record.notes)),
        ("host_notes", list(&record.host_notes)),
        ("skipped", scenarios::skipped_json(record)),
    ];
    match verdict.scenarios.is_empty() {
        true => members.extend(scenarios::course_json(record)),
        false => members.push(("scenarios", scenarios::list_json(record, verdict))),
    }
    Json::object(members).pretty()
}

fn host(record: &Record) -> Json {
    let Some(host) = &record.host else { return Json::Null };
    Json::object([
        ("version", (&host.version).into()),
        ("build", (&host.build).into()),
        ("argv", Json::array(&host.argv)),
        ("accel", (&host.accel).into()),
        ("accel_reason", (&host.accel_reason).into()),
        ("kernel", (&host.kernel).into()),
        ("kernel_cmdline", (&host.kernel_cmdline).into()),
        ("topology", host.topology.to_string().into()),
        ("vcpus", host.topology.total_cpus().into()),
        ("memory_bytes", host.memory_bytes.into()),
        ("host_cpus", host.host_cpus.into()),
        ("started_unix_s", host.started_unix_s.into()),
    ])
}

fn guest(record: &Record) -> Json {
    let Some(hello) = &record.hello else { return Json::Null };
    Json::object([
        ("kernel_release", (&hello.kernel).into()),
        ("online_cpus", (hello.online_cpus as u64).into()),
        ("memory_kib", hello.memory_kib.into()),
        ("pid1_uptime_ns", hello.pid1_uptime_ns.into()),
        ("channel", (&hello.channel).into()),
        ("machine", record.seen.as_ref().map(machine).into()),
        ("missing", Json::array(&hello.missing)),
    ])
}

/// The machine as the guest's kernel shows it.
fn machine(seen: &Seen) -> Json {
    let sets = |sets: &[CpuSet]| Json::array(sets.iter().map(ToString::to_string));
    let nodes = seen.nodes.iter().map(|node| {
        Json::object([
            ("node", node.node.into()),
            ("cpus", node.cpus.to_string().into()),
            ("memory_bytes", node.memory_bytes.into()),
            ("distances", Json::array(node.distances.iter().copied())),
        ])
    });
    Json::object([
        ("shape", seen.shape().into()),
        ("online", seen.online.to_string().into()),
        ("possible", seen.possible.to_string().into()),
        ("cores", sets(&seen.cores)),
        ("llcs", sets(&seen.llcs)),
        ("cacheless", seen.cacheless.to_string().into()),
        ("packages", sets(&seen.packages)),
        ("dies", sets(&seen.dies)),
        ("nodes", Json::array(nodes)),
    ])
}

fn plan(record: &Record) -> Json {
    let Some(plan) = &record.plan else { return Json::Null };
    let groups = record
        .owed()
        .into_iter()
        .map(|(group, workers)| Json::object([("group", group.into()), ("workers", workers.into())]));
    Json::object([
        ("duration_ns", plan.duration_ns.into()),
        ("settle_ns", plan.settle_ns.into()),
        ("scenarios", Json::array(plan.scenarios.iter().map(|scenario| scenario.full_name()))),
        ("groups", Json::array(groups)),
        ("modules", Json::array(&plan.modules)),
        ("disk_bytes", plan.disk_bytes.into()),
    ])
}

fn scheduler(record: &Record, verdict: &Verdict) -> Json {
    let Some(spec) = record.plan.as_ref().and_then(|plan| plan.sched.as_ref()) else { return Json::Null };
    let enabled = record.sched_enabled.as_ref();
    let last = record.sched_final.as_ref();
    // Of an instance that did not tell, the sum is not known.
    let rejected = record
        .sched_ends()
        .map(|last| last?.nr_rejected)
        .try_fold(0_u64, |sum, count| Some(sum.saturating_add(count?)));
    let earlier = record.earlier.iter().map(|one| instance(&one.enabled, one.last.as_ref()));
    let instances = earlier.chain(enabled.map(|enabled| instance(enabled, last)));
    Json::object([
        ("name", (&spec.name).into()),
        ("argv", Json::array(&spec.argv)),
        ("ops", enabled.map(|enabled| &enabled.ops).into()),
        ("enable_seq", enabled.map(|enabled| enabled.enable_seq).into()),
        ("enable_took_ns", enabled.map(|enabled| enabled.took_ns).into()),
        ("end", last.and_then(|last| last.end).map(|end| end.describe()).into()),
        ("nr_rejected", rejected.into()),
        ("events", total_events(record)),
        ("instances", Json::array(instances)),
        ("died_after_ns", record.sched_died.as_ref().map(|died| died.after_ns).into()),
        ("exits", Json::array(verdict.sched_exits.iter().map(sched_exit))),
        ("output", (&record.sched_output).into()),
        ("dump", (&record.sched_dump).into()),
    ])
}

/// How the counters grew, in all instances together.
fn total_events(record: &Record) -> Json {
    let mut sums: Vec<(&str, i64)> = Vec::new();
    for (name, delta) in record.sched_ends().flatten().flat_map(|last| &last.events) {
        match sums.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum = sum.saturating_add(*delta),
            None => sums.push((name, *delta)),
        }
    }
    match record.sched_ends().flatten().next() {
        Some(_) => Json::object(sums.into_iter().map(|(name, sum)| (name, sum.into()))),
        None => Json::Null,
    }
}

/// How the counters grew.
fn events(last: Option<&SchedFinal>) -> Json {
    last.map_or(Json::Null, |last| Json::object(last.events.iter().map(|(name, delta)| (name, (*delta).into()))))
}

/// One of those that a scenario started and ended.
fn instance(enabled: &Enabled, last: Option<&SchedFinal>) -> Json {
    Json::object([
        ("ops", (&enabled.ops).into()),
        ("enable_seq", enabled.enable_seq.into()),
        ("end", last.and_then(|last| last.end).map(|end| end.describe()).into()),
        ("disabled", last.map(|last| last.disabled).into()),
        ("killed", last.map(|last| last.killed).into()),
        ("nr_rejected", last.and_then(|last| last.nr_rejected).into()),
        ("events", events(last)),
    ])
}

fn sched_exit(exit: &SchedExit) -> Json {
    let victim = exit.victim.as_ref().map(|victim| {
        Json::object([
            ("comm", (&victim.comm).into()),
            ("pid", victim.pid.into()),
            ("waited_ms", victim.waited_ms.into()),
        ])
    });
    Json::object([
        ("ops", (&exit.ops).into()),
        ("reason", (&exit.reason_text).into()),
        ("exit_kind", exit.reason.row().map(|row| row.kind).into()),
        ("message", exit.message.as_ref().into()),
        ("victim", victim.into()),
        ("stalled_ms", exit.stalled_ms.into()),
        ("time_us", exit.time_us.into()),
    ])
}

/// `value_ns`, `threshold_percent`: the unit stands in the name.
fn measure(role: &str, measure: Option<Measure>) -> Option<(String, Json)> {
    let measure = measure?;
    let number = match measure {
        Measure::Ns(value) | Measure::Count(value) => value.into(),
        Measure::Percent(value) | Measure::Ratio(value) | Measure::PerSecond(value) => value.into(),
    };
    Some((format!("{role}_{}", measure.suffix()), number))
}

pub(super) fn check(check: &Check) -> Json {
    let mut members = vec![
        ("name".to_owned(), check.name.into()),
        ("group".to_owned(), check.group.as_ref().into()),
        ("status".to_owned(), check.status.name().into()),
    ];
    members.extend(measure("value", check.value));
    members.extend(measure("threshold", check.threshold));
    if check.threshold.is_some() {
        let side = if check.side == Side::AtMost { "at-most" } else { "at-least" };
        members.push(("threshold_is".to_owned(), side.into()));
    }
    members.push(("reason".to_owned(), (&check.reason).into()));
    Json::Object(members)
}

pub(super) fn samples<'a>(samples: impl IntoIterator<Item = (SampleKind, &'a Hist)>) -> Json {
    Json::object(samples.into_iter().map(|(kind, hist)| {
        let mut members = vec![("count", hist.count().into())];
        members.extend(PERCENTILES.map(|(name, part)| (name, hist.percentile_ns(part).into())));
        members.push(("min_ns", hist.min_ns().into()));
        members.push(("mean_ns", hist.mean_ns().into()));
        members.push(("max_ns", hist.max_ns().into()));
        (kind.name(), Json::object(members))
    }))
}

pub(super) fn group(stats: &GroupStats) -> Json {
    Json::object([
        ("group", (&stats.group).into()),
        ("group_idx", stats.group_idx.into()),
        ("work_type", (&stats.work_type).into()),
        ("workers", stats.workers.into()),
        ("completed", stats.completed.into()),
        ("work_units", stats.work_units.into()),
        ("work_units_per_s", stats.units_per_s.into()),
        ("iterations", stats.iterations.into()),
        ("iterations_per_s", stats.iterations_per_s.into()),
        ("wall_time_ns", stats.wall_time_ns.into()),
        ("cpu_time_ns", stats.cpu_time_ns.into()),
        ("cpu_percent", stats.cpu_percent.into()),
        ("run_delay_ns", stats.run_delay_ns.into()),
        ("max_run_delay_ns", stats.max_run_delay_ns.into()),
        ("max_gap_ns", stats.max_gap_ns.into()),
        ("migrations", stats.migrations.into()),
        ("latency", samples(stats.samples.iter().map(|(kind, hist)| (*kind, hist)))),
    ])
}

pub(super) fn worker(group: &str, report: &WorkerReport) -> Json {
    let refusals = report.refusals();
    Json::object([
        ("group", group.into()),
        ("group_idx", report.group_idx.into()),
        ("worker_idx", report.worker_idx.into()),
        ("tid", report.tid.into()),
        ("work_type", (&report.work_type).into()),
        ("role", (&report.role).into()),
        ("completed", report.completed.into()),
        ("exit_info", report.exit_info.as_ref().map(|exit| exit.describe()).into()),
        ("work_units", report.work_units.into()),
        ("iterations", report.iterations.into()),
        ("wall_time_ns", report.wall_time_ns.into()),
        ("cpu_time_ns", report.cpu_time_ns.into()),
        ("off_cpu_ns", report.off_cpu_ns.into()),
        ("run_delay_ns", report.schedstat_run_delay_ns.into()),
        ("run_count", report.schedstat_run_count.into()),
        ("schedstat_cpu_time_ns", report.schedstat_cpu_time_ns.into()),
        ("max_run_delay_ns", report.max_run_delay_ns.into()),
        ("max_gap_ns", report.known_gap_ns().into()),
        ("max_gap_cpu", report.max_gap_cpu.into()),
        ("max_gap_at_ns", report.max_gap_at_ns.into()),
        ("migrations", report.migration_count.into()),
        ("migration_list", migrations(report)),
        ("cpus_used", report.cpus_used.to_string().into()),
        ("latency", samples(report.samples.iter().map(|samples| (samples.kind, &samples.hist)))),
        ("raw_ns", raw(report)),
        ("numa_pages", numa_pages(report)),
        ("numa_pages_migrated", report.vmstat_numa_pages_migrated.into()),
        ("refusals", Json::array(&refusals)),
        ("notice", report.notice.clone().into()),
    ])
}

/// The first changes of CPU; the worker keeps no more than its slot has room for.
fn migrations(report: &WorkerReport) -> Json {
    Json::array(report.migrations.iter().map(|one| {
        Json::object([("at_ns", one.at_ns.into()), ("from_cpu", one.from_cpu.into()), ("to_cpu", one.to_cpu.into())])
    }))
}

/// The samples as they are, by kind; null where they were not asked for.
fn raw(report: &WorkerReport) -> Json {
    let kept: Vec<_> = report.samples.iter().filter(|samples| !samples.raw_ns.is_empty()).collect();
    match kept.is_empty() {
        true => Json::Null,
        false => {
            Json::object(kept.iter().map(|samples| (samples.kind.name(), Json::array(samples.raw_ns.iter().copied()))))
        }
    }
}

/// Pages by node; null where nobody looked.
fn numa_pages(report: &WorkerReport) -> Json {
    report
        .numa_pages
        .as_ref()
        .map_or(Json::Null, |pages| Json::object(pages.iter().map(|(node, count)| (node.to_string(), (*count).into()))))
}

fn kernel_log(record: &Record, verdict: &Verdict) -> Json {
    Json::object([
        ("records", (record.klog.len() as u64).into()),
        ("complete", record.klog_end.is_some().into()),
        ("lost", record.klog_end.map(|(_, lost)| lost).into()),
        ("cut", record.klog_cut.into()),
        ("unknown_errors", verdict.unknown_kernel_errors.into()),
        ("findings", Json::array(verdict.findings.iter().map(finding))),
    ])
}

fn finding(finding: &Finding) -> Json {
    Json::object([
        ("class", finding.class.name().into()),
        ("severity", finding.severity.name().into()),
        ("title", (&finding.title).into()),
        ("signature", signature(finding).into()),
        ("meaning", finding.meaning.into()),
        ("time_us", finding.time_us.into()),
        ("repeats", finding.repeats.into()),
        ("lines", Json::array(&finding.lines)),
    ])
}

fn timings(record: &Record) -> Json {
    Json::array(intervals(record).iter().map(|interval| {
        Json::object([
            ("stage", interval.stage.name().into()),
            ("at_ns", interval.at_ns.into()),
            ("since", interval.since.map(|stage| stage.name()).into()),
            ("since_ns", interval.since_ns.into()),
        ])
    }))
}

fn perf(item: &PerfItem) -> Json {
    Json::object([
        ("name", (&item.name).into()),
        ("in_effect", item.in_effect.into()),
        ("detail", (&item.detail).into()),
    ])
}

/// Addresses as text: JSON numbers lose 64-bit integers.
fn registers(dump: &CpuDump) -> Json {
    Json::object([
        ("cpu", dump.cpu.into()),
        ("rip", format!("{:#x}", dump.rip).into()),
        ("rsp", format!("{:#x}", dump.rsp).into()),
        ("cr2", format!("{:#x}", dump.cr2).into()),
        ("cr3", format!("{:#x}", dump.cr3).into()),
        ("rflags", format!("{:#x}", dump.rflags).into()),
        ("mode", (&dump.mode).into()),
        ("activity", (&dump.activity).into()),
        ("symbol", Some(&dump.symbol).filter(|symbol| !symbol.is_empty()).into()),
        ("code", dump.code.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ").into()),
        ("trace", Json::array(&dump.trace)),
        ("missing", dump.missing.as_ref().into()),
    ])
}

fn memory(record: &Record) -> Json {
    let Some(stats) = &record.stats else { return Json::Null };
    Json::object([
        ("vm_own_kib", stats.own_kib.into()),
        ("guest_touched_kib", stats.guest_kib.into()),
        ("exits", Json::object(stats.exits.iter().map(|(kind, count)| (kind, (*count).into())))),
    ])
}
