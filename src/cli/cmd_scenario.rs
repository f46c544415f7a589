//! `ktstr check FILE` and `ktstr show SCENARIO`, and the list of scenarios.
//!
//! Owns what is printed; leaves reading and meaning to scenario/.
//! Invariant: nothing is run; what `show` prints, `check` accepts.

use super::cmd_list::Listed;
use super::{out, scenarios};
use crate::error::Result;
use crate::proto::scenario::{HoldSpec, ScenarioSpec, Step, WHOLE};
use crate::proto::topology::Topology;
use crate::scenario::{self, Resolver, TestTopology, catalog};
use crate::units::{approx, duration};
use std::path::Path;

/// Reads a file, and prints what would be done on a machine of this shape.
pub fn cmd_check(file: &Path, topology: &Topology, duration_ns: u64) -> Result<u8> {
    let specs = scenarios::read(file)?;
    let resolver = Resolver { topo: TestTopology::from_spec(topology), workers_per_cgroup: None };
    let plans: Vec<String> = specs.iter().map(|spec| plan(spec, &resolver, topology, duration_ns)).collect();
    out::print(&out::visible_lines(&plans.join("\n")))?;
    Ok(0)
}

/// Prints scenarios as a file.
pub fn cmd_show(word: &str) -> Result<u8> {
    out::print(&scenario::print(&scenarios::find(word)?))?;
    Ok(0)
}

/// The catalogue, for `ktstr list scenarios`.
pub fn list() -> Vec<Listed> {
    let listed = |spec: ScenarioSpec| {
        let needs = [(spec.needs.cpus, "CPU"), (spec.needs.llcs, "LLC"), (spec.needs.nodes, "node")];
        let needs = needs.iter().filter(|(least, _)| *least > 1).map(|(least, what)| format!("{least} {what}s"));
        let needs: Vec<String> = needs.collect();
        let flags = if spec.required_flags.is_empty() {
            String::new()
        } else {
            format!(", flags {}", spec.required_flags.join(" "))
        };
        Listed {
            name: spec.full_name(),
            detail: format!("{}{flags}", needs.join(", ")),
            text: first_sentence(&spec.about),
        }
    };
    catalog::all_scenarios().into_iter().map(listed).collect()
}

/// `show` and `check` tell all of it.
fn first_sentence(about: &str) -> String {
    about.find(". ").map_or(about, |end| &about[..=end]).to_owned()
}

fn plan(spec: &ScenarioSpec, resolver: &Resolver, topology: &Topology, duration_ns: u64) -> String {
    let mut lines = vec![format!("scenario {}: {}", spec.full_name(), approx(spec.planned_ns(duration_ns)))];
    if !spec.about.is_empty() {
        lines.push(format!("  {}", spec.about));
    }
    if let Err(why) = resolver.check(spec) {
        lines.push(format!("  it would be skipped on {topology}: {why}"));
        return lines.join("\n") + "\n";
    }
    if !spec.backdrop.cgroups.is_empty() || !spec.backdrop.host.is_empty() {
        lines.push("  backdrop:".into());
        lines.extend(
            spec.backdrop
                .host
                .iter()
                .filter_map(|work| resolver.lone_work(work).ok())
                .map(|work| format!("    root cgroup: {}", crate::workload::spec_text(&work))),
        );
        lines.extend(cgroups(
            &Step { ops: vec![], setup: spec.backdrop.cgroups.clone(), hold: HoldSpec::FULL },
            resolver,
        ));
    }
    for (index, step) in spec.steps.iter().enumerate() {
        lines.push(format!("  step {}, {}:", index + 1, scenario::hold_text(step.hold)));
        lines.extend(step.ops.iter().map(|op| format!("    {}", scenario::op_text(op))));
        lines.extend(cgroups(step, resolver));
    }
    let parts = spec.steps.iter().filter_map(|step| match step.hold {
        HoldSpec::Frac { part } => Some(u64::from(part.millionths())),
        HoldSpec::Fixed { .. } | HoldSpec::Loop { .. } => None,
    });
    let parts: u64 = parts.sum();
    if parts > u64::from(WHOLE) {
        // A list of steps that holds longer than it is told to is no error, but seldom meant.
        let percent = parts as f64 * 100.0 / f64::from(WHOLE);
        lines.push(format!(
            "  warning: its steps take {percent} % of the duration together, which is more than all of it"
        ));
    }
    let limits: Vec<String> = spec.asserts.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !limits.is_empty() {
        lines.push(format!("  held to {}", limits.join(" ")));
    }
    if let Some(own) = spec.duration_ns {
        lines.push(format!("  lasts {}, whatever --duration says", duration(own)));
    }
    lines.join("\n") + "\n"
}

/// The cgroups of a step as they would be made.
fn cgroups(step: &Step, resolver: &Resolver) -> Vec<String> {
    let groups = step.setup.iter().filter_map(|def| resolver.groups(def).ok()).flatten();
    groups
        .map(|group| {
            let cpus = group.cpuset.as_ref().map_or_else(String::new, |cpus| format!(" on CPUs {cpus}"));
            let works: Vec<String> = group.works.iter().map(crate::workload::spec_text).collect();
            let works = if works.is_empty() { "nobody".into() } else { works.join("; ") };
            format!("    cgroup {}{cpus}: {works}", group.name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_take_more_than_the_duration_are_warned_of() {
        let told = |holds: &[&str]| {
            let steps: String =
                holds.iter().map(|hold| format!("step {hold}\n  cgroup a{}: spin\n", hold.len())).collect();
            let spec = scenario::parse(&format!("scenario s\n{steps}")).unwrap().remove(0);
            let topology = Topology::flat(2);
            let resolver = Resolver { topo: TestTopology::from_spec(&topology), workers_per_cgroup: None };
            plan(&spec, &resolver, &topology, 1)
        };
        assert!(told(&["60%", "50.5%"]).contains("warning: its steps take 110.5 % of the duration together"));
        assert!(!told(&["60%", "40.0%"]).contains("warning"));
        // A time is not a part.
        assert!(!told(&["100%", "2s"]).contains("warning"));
    }
}
