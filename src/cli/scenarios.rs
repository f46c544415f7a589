//! From `--scenario` to the scenarios of a plan: the catalogue's by name or pattern, the user's own from files.
//!
//! Owns finding, skipping with a reason, and what a run brings along for them; leaves their form to scenario/.
//! Invariant: a word that stands for nothing is an error, and what is left out is told with its reason.

use super::args::GuestArgs;
use crate::error::{Context, Error, Result};
use crate::proto::scenario::{Count, DefWork, Op, ScenarioSpec};
use crate::scenario::{self, FLAGS, Resolver, TestTopology, catalog};
use crate::units::nearest;
use crate::verdict::table::of_pairs;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Scenarios that run, and those that do not: name and reason.
#[derive(Debug, Default)]
pub struct Chosen {
    pub run: Vec<ScenarioSpec>,
    pub skipped: Vec<(String, String)>,
}

/// The scenarios of a word: of the catalogue, or of a file.
pub fn find(word: &str) -> Result<Vec<ScenarioSpec>> {
    let found = catalog::find(word);
    if !found.is_empty() {
        return Ok(found);
    }
    let path = Path::new(word);
    if path.is_file() {
        return read(path);
    }
    let error = Error::usage(format!("there is no scenario '{word}', neither in the catalogue nor as a file"));
    let all = catalog::all_scenarios();
    let full: Vec<String> = all.iter().map(ScenarioSpec::full_name).collect();
    let names = all.iter().flat_map(|spec| [spec.name.as_str(), spec.category.as_str()]);
    Err(match nearest(word, names.chain(full.iter().map(String::as_str))) {
        Some(near) => error.hint(format!("did you mean '{near}'?")),
        None => error.hint("'ktstr list scenarios' lists the catalogue"),
    })
}

/// No file of scenarios is longer: the whole catalogue is a tenth of it.
const FILE_MOST_BYTES: u64 = 1 << 20;

/// The scenarios of a file. An error names file and line.
pub fn read(path: &Path) -> Result<Vec<ScenarioSpec>> {
    let name = path.display();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MOST_BYTES + 1).read_to_end(&mut bytes));
    read.context(|| format!("read the scenario file {name}"))
        .map_err(|error| error.with_kind(crate::error::Kind::Usage))?;
    if bytes.len() as u64 > FILE_MOST_BYTES {
        return Err(Error::usage(format!("{name} is larger than any file of scenarios")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::usage(format!("{name}: line {line} is not UTF-8"))
    })?;
    // Some editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let specs = scenario::parse(text).map_err(|error| Error::usage(format!("{name}: {error}")))?;
    for spec in &specs {
        of_pairs(&spec.asserts)
            .map_err(|why| Error::usage(format!("{name}: scenario {}: assert: {why}", spec.name)))?;
    }
    Ok(specs)
}

/// What a command line asks for. One scenario that does not fit is an error; of several, those that do not fit are skipped.
pub fn choose(args: &GuestArgs) -> Result<Chosen> {
    let mut wanted: Vec<ScenarioSpec> = Vec::new();
    for word in &args.scenarios {
        for spec in find(word)? {
            if !wanted.iter().any(|known| known.full_name() == spec.full_name()) {
                wanted.push(spec);
            }
        }
    }
    let resolver = Resolver { topo: TestTopology::from_spec(&args.topology), workers_per_cgroup: args.workers };
    let mut chosen = Chosen::default();
    for mut spec in wanted {
        if let Some(work) = &args.work_override {
            replace_work(&mut spec, &resolver, work);
        }
        let why = unclaimed(&spec, args.sched_flags.as_deref()).or_else(|| resolver.check(&spec).err());
        match why {
            None => chosen.run.push(spec),
            Some(why) => chosen.skipped.push((spec.full_name(), why)),
        }
    }
    if chosen.run.is_empty()
        && let Some((name, why)) = chosen.skipped.first()
    {
        let more = chosen.skipped.len() - 1;
        let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        return Err(Error::cannot_judge(format!("no scenario can run here: {name}: {why}{more}"))
            .hint("--topo gives the guest another shape"));
    }
    Ok(chosen)
}

/// Why the scheduler under test is not meant for it. Without a list it claims everything.
fn unclaimed(spec: &ScenarioSpec, claimed: Option<&[String]>) -> Option<String> {
    let claimed = claimed?;
    let missing = spec.required_flags.iter().find(|flag| !claimed.contains(flag));
    let excluded = spec.excluded_flags.iter().find(|flag| claimed.contains(flag));
    missing
        .map(|flag| format!("it is for schedulers with '{flag}', which --sched-flags does not claim"))
        .or_else(|| excluded.map(|flag| format!("it is for schedulers without '{flag}', which --sched-flags claims")))
}

/// Checks a list of flags.
pub fn flags(list: &str) -> Result<Vec<String>> {
    let words: Vec<&str> = list.split(',').map(str::trim).filter(|word| !word.is_empty() && *word != "none").collect();
    for word in &words {
        if !FLAGS.contains(word) {
            let error = Error::usage(format!("--sched-flags: '{word}' is none of {}", FLAGS.join(", ")));
            return Err(match nearest(word, FLAGS) {
                Some(near) => error.hint(format!("did you mean '{near}'?")),
                None => error,
            });
        }
    }
    Ok(words.into_iter().map(str::to_owned).collect())
}

/// Puts another work in place of the works of swappable cgroups whose numbers of workers it divides.
fn replace_work(spec: &mut ScenarioSpec, resolver: &Resolver, work: &DefWork) {
    let size = work.work.worker_group_size().max(1);
    let steps = spec.steps.iter_mut().flat_map(|step| &mut step.setup);
    for def in spec.backdrop.cgroups.iter_mut().chain(steps).filter(|def| def.swappable) {
        for old in &mut def.works {
            let workers = resolver.count(old.workers);
            if workers % size == 0 {
                *old = DefWork { work: work.work.clone(), workers: Count::fixed(workers), setup: old.setup.clone() };
            }
        }
    }
}

/// Programs of the host that the scenarios start, each at the same path in the guest.
pub fn programs(scenarios: &[ScenarioSpec]) -> Vec<String> {
    let mut programs: Vec<String> = Vec::new();
    for op in scenarios.iter().flat_map(|spec| spec.ops()) {
        if let Op::RunPayload { argv, .. } = op
            && let Some(program) = argv.first()
            && !programs.contains(program)
        {
            programs.push(program.clone());
        }
    }
    programs
}

/// Schedulers that the scenarios put in the place of the one under test.
pub fn replacements(scenarios: &[ScenarioSpec]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for op in scenarios.iter().flat_map(|spec| spec.ops()) {
        if let Op::ReplaceScheduler { name } = op
            && !names.contains(name)
        {
            names.push(name.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_for_entries_patterns_and_nothing_else() {
        assert_eq!(find("cpuset/*").unwrap().len(), 6);
        let error = find("cgroup_stedy").unwrap_err();
        assert!(error.to_string().contains("there is no scenario 'cgroup_stedy'"), "{error}");
        assert_eq!(error.hint_text(), Some("did you mean 'cgroup_steady'?"));
    }

    #[test]
    fn flags_that_are_not_claimed_skip_a_scenario() {
        let spec = find("cgroup_cpuset_llc_steady").unwrap().remove(0);
        assert_eq!(unclaimed(&spec, None), None);
        assert_eq!(unclaimed(&spec, Some(&flags("llc,steal").unwrap())), None);
        assert!(unclaimed(&spec, Some(&flags("none").unwrap())).unwrap().contains("'llc'"));
        assert_eq!(flags("stel").unwrap_err().hint_text(), Some("did you mean 'steal'?"));
    }

    #[test]
    fn only_swappable_works_of_whole_groups_are_replaced() {
        let mut spec = find("cgroup_steady").unwrap().remove(0);
        let resolver = Resolver { topo: TestTopology::synthetic(1, 1, 3, 1), workers_per_cgroup: None };
        let pipe = crate::workload::parse_works("pipe").unwrap().remove(0);
        let before = spec.clone();
        replace_work(&mut spec, &resolver, &pipe);
        assert_eq!(spec, before, "3 workers are no pairs");
        let resolver = Resolver { topo: TestTopology::synthetic(1, 1, 4, 1), workers_per_cgroup: None };
        replace_work(&mut spec, &resolver, &pipe);
        assert_eq!(spec.steps[0].setup[0].works[0].work, pipe.work);
        let mut fixed = find("cgroup_oversubscribed").unwrap().remove(0);
        let before = fixed.clone();
        replace_work(&mut fixed, &resolver, &pipe);
        assert_eq!(fixed, before);
    }
}
