//! Scenarios as text: the form that scenario files have, and the words of each part of it.
//!
//! Owns printing; leaves reading to `parse`.
//! Invariant: what is printed here is read back as the same scenario.

use super::works;
use crate::proto::scenario::{
    CgroupDef, Count, CpuMax, CpusetSpec, DefWork, Fraction, HoldSpec, Needs, Op, ScenarioSpec, Unit,
};
use crate::units::duration;

/// The whole scenario as a file.
pub fn file(spec: &ScenarioSpec) -> String {
    let mut lines = vec![format!("scenario {}", spec.name)];
    let mut property = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name} {value}"));
        }
    };
    property("category", spec.category.clone());
    property("about", spec.about.clone());
    property("checks", spec.checks.join(" "));
    property("needs", needs(&spec.needs));
    property("flags", spec.required_flags.join(" "));
    property("not-flags", spec.excluded_flags.join(" "));
    property("cpu-controller", if spec.no_cpu_controller { "off".into() } else { String::new() });
    property("duration", spec.duration_ns.map(duration).unwrap_or_default());
    for (name, value) in &spec.asserts {
        property("assert", format!("{name}={value}"));
    }
    if !(spec.backdrop.cgroups.is_empty() && spec.backdrop.host.is_empty()) {
        lines.push("backdrop".into());
        lines.extend(spec.backdrop.cgroups.iter().map(|def| format!("  {}", cgroup(def))));
        lines.extend(spec.backdrop.host.iter().map(|work| format!("  host{}", load(std::slice::from_ref(work)))));
    }
    for step in &spec.steps {
        lines.push(format!("step {}", hold(step.hold)));
        lines.extend(step.ops.iter().map(|step| format!("  {}", op(step))));
        lines.extend(step.setup.iter().map(|def| format!("  {}", cgroup(def))));
    }
    lines.join("\n") + "\n"
}

fn needs(needs: &Needs) -> String {
    let pairs =
        [("cpus", needs.cpus), ("llcs", needs.llcs), ("nodes", needs.nodes), ("threads", needs.threads_per_core)];
    pairs
        .iter()
        .filter(|(_, least)| *least > 1)
        .map(|(name, least)| format!("{name}={least}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// `50%`, `33.3333%`.
pub fn fraction(part: Fraction) -> String {
    let (whole, rest) = (part.millionths() / 10_000, part.millionths() % 10_000);
    match rest {
        0 => format!("{whole}%"),
        rest => format!("{whole}.{}%", format!("{rest:04}").trim_end_matches('0')),
    }
}

/// `4`, `cpus`, `cpus*3/2`, `auto`.
pub fn count(count: Count) -> String {
    let unit = match count.unit {
        Unit::One => return count.times.to_string(),
        Unit::Cpus => "cpus",
        Unit::Usable => "usable",
        Unit::Llcs => "llcs",
        Unit::Nodes => "nodes",
        Unit::Auto => "auto",
    };
    let times = if count.times == 1 { String::new() } else { format!("*{}", count.times) };
    let by = if count.by == 1 { String::new() } else { format!("/{}", count.by) };
    format!("{unit}{times}{by}")
}

pub fn cpuset(spec: &CpusetSpec) -> String {
    match spec {
        CpusetSpec::Usable => "usable".into(),
        CpusetSpec::Llc { index } => format!("llc:{index}"),
        CpusetSpec::Numa { index } => format!("node:{index}"),
        CpusetSpec::Range { start, end } => format!("range:{}..{}", fraction(*start), fraction(*end)),
        CpusetSpec::Disjoint { index, of } => format!("part:{index}/{of}"),
        CpusetSpec::Overlap { index, of, share } => format!("overlap:{index}/{of}:{}", fraction(*share)),
        CpusetSpec::Exact { cpus } => format!("cpus:{cpus}"),
        CpusetSpec::Each => "each".into(),
    }
}

fn max(max: CpuMax) -> String {
    format!("{}/{}", duration(max.quota_ns), duration(max.period_ns))
}

/// ` workers=cpus: spin; yield*2`, or nothing where there is no work.
fn load(works: &[DefWork]) -> String {
    if works.is_empty() {
        return String::new();
    }
    // Numbers that grow with the machine stand before the colon, once for all.
    let grown = works.iter().map(|work| work.workers).find(|count| count.unit != Unit::One && *count != Count::AUTO);
    let workers = grown.map_or_else(String::new, |grown| format!(" workers={}", count(grown)));
    let works: Vec<String> = works.iter().map(works::text).collect();
    format!("{workers}: {}", works.join("; "))
}

/// What the definition says of all its workers is told of each work: the text has no other place for it.
fn cgroup(def: &CgroupDef) -> String {
    let mut text = format!("cgroup {}", def.name);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!(" {name}={value}"));
        }
    };
    add("copies", (def.copies != Count::fixed(1)).then(|| count(def.copies)));
    add("cpuset", def.cpuset.as_ref().map(cpuset));
    add("weight", def.weight.map(|weight| weight.to_string()));
    add("max", def.max.map(max));
    if def.swappable {
        text.push_str(" swappable");
    }
    let works: Vec<DefWork> =
        def.works.iter().map(|work| DefWork { setup: def.setup_of(work), ..work.clone() }).collect();
    text + &load(&works)
}

/// `50%`, `2s`, `loop 100ms`.
pub fn hold(hold: HoldSpec) -> String {
    match hold {
        HoldSpec::Frac { part } => fraction(part),
        HoldSpec::Fixed { ns } => duration(ns),
        HoldSpec::Loop { interval_ns } => format!("loop {}", duration(interval_ns)),
    }
}

/// One op as its line.
pub fn op(op: &Op) -> String {
    match op {
        Op::AddCgroup { name } => format!("add-cgroup {name}"),
        Op::RemoveCgroup { name } => format!("remove-cgroup {name}"),
        Op::SetCpuset { name, cpuset: spec } => format!("set-cpuset {name} {}", cpuset(spec)),
        Op::ClearCpuset { name } => format!("clear-cpuset {name}"),
        Op::SwapCpusets { a, b } => format!("swap-cpusets {a} {b}"),
        Op::SetWeight { name, weight } => format!("set-weight {name} {weight}"),
        Op::SetMax { name, max: limit } => format!("set-max {name} {}", limit.map_or_else(|| "none".into(), max)),
        Op::Spawn { name, work } => format!("spawn {name}{}", load(std::slice::from_ref(work))),
        Op::StopCgroup { name } => format!("stop-cgroup {name}"),
        Op::SetAffinity { name, affinity } => format!("set-affinity {name} {}", works::affinity_text(affinity)),
        Op::SpawnHost { work } => format!("spawn-host{}", load(std::slice::from_ref(work))),
        Op::MoveAllTasks { from, to } => format!("move-all {from} {to}"),
        Op::FreezeCgroup { name } => format!("freeze {name}"),
        Op::UnfreezeCgroup { name } => format!("unfreeze {name}"),
        Op::RunPayload { name, argv, limit_ns, cgroup } => {
            let cgroup = cgroup.as_ref().map_or_else(String::new, |cgroup| format!(" cgroup={cgroup}"));
            let argv: Vec<String> = argv.iter().map(|word| quoted(word)).collect();
            format!("run {name} limit={}{cgroup}: {}", duration(*limit_ns), argv.join(" "))
        }
        Op::WaitPayload { name } => format!("wait {name}"),
        Op::KillPayload { name } => format!("kill {name}"),
        Op::CpuOffline { cpu } => format!("cpu-offline {cpu}"),
        Op::CpuOnline { cpu } => format!("cpu-online {cpu}"),
        Op::DetachScheduler => "detach-scheduler".into(),
        Op::AttachScheduler => "attach-scheduler".into(),
        Op::RestartScheduler => "restart-scheduler".into(),
        Op::ReplaceScheduler { name } => format!("replace-scheduler {name}"),
        Op::Snapshot => "snapshot".into(),
    }
}

/// A word of a command line, in quotes where a shell would need them.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
