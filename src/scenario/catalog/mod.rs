//! The catalogue: scenarios that are always at hand, written as scenario files, one a category.
//!
//! Owns the list of files and finding by name or pattern; leaves their form to `parse`.
//! Invariant: every entry says what it is about, and prints as a file that reads back as the same.

use super::parse::parse;
use crate::proto::scenario::ScenarioSpec;

/// The files by category, in the order in which they are listed.
const FILES: [(&str, &str); 11] = [
    ("basic", include_str!("basic.scn")),
    ("cpuset", include_str!("cpuset.scn")),
    ("stress", include_str!("stress.scn")),
    ("affinity", include_str!("affinity.scn")),
    ("sched_class", include_str!("sched_class.scn")),
    ("advanced", include_str!("advanced.scn")),
    ("stall", include_str!("stall.scn")),
    ("dynamic", include_str!("dynamic.scn")),
    ("nested", include_str!("nested.scn")),
    ("interaction", include_str!("interaction.scn")),
    ("performance", include_str!("performance.scn")),
];

/// Every scenario of the catalogue.
pub fn all_scenarios() -> Vec<ScenarioSpec> {
    // A test reads every file, so none is empty here.
    FILES.iter().flat_map(|(_, text)| parse(text).unwrap_or_default()).collect()
}

/// Whether a pattern (`*` for any text, `?` for any character) fits a name.
pub fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Where the last star stood, and how far it reached: a mismatch makes it reach one further.
    let (mut at, mut read, mut star) = (0, 0, None);
    while read < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(c) if *c == '?' || *c == name[read] => (at, read) = (at + 1, read + 1),
            _ => match star {
                Some((place, reached)) => {
                    star = Some((place, reached + 1));
                    (at, read) = (place + 1, reached + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// The scenarios that a name, `category/name`, a category or a pattern stands for; empty where there is none.
pub fn find(wanted: &str) -> Vec<ScenarioSpec> {
    let named =
        |spec: &ScenarioSpec| fits(wanted, &spec.full_name()) || fits(wanted, &spec.name) || spec.category == wanted;
    all_scenarios().into_iter().filter(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;
    use crate::proto::hist::Hist;
    use crate::proto::limits::Layers;
    use crate::proto::report::{Samples, WorkerReport};
    use crate::proto::work::SampleKind;
    use crate::scenario::{Resolver, TestTopology, print};
    use crate::units::{NS_PER_MS, NS_PER_US};
    use crate::verdict::{Outcome, Status, fixture, judge_stored, table};

    #[test]
    fn catalogue_has_all_73_and_each_explains_itself() {
        for (category, text) in FILES {
            let specs = parse(text).unwrap_or_else(|error| panic!("{category}: {error}"));
            assert!(specs.iter().all(|spec| spec.category == category), "{category}");
        }
        let counts = FILES.map(|(category, _)| find(category).len());
        assert_eq!(counts, [3, 6, 10, 6, 6, 20, 2, 3, 4, 9, 4]);
        let all = all_scenarios();
        assert_eq!(all.len(), 73);
        for (index, spec) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| other.name != spec.name), "{}", spec.name);
            assert!(spec.about.len() > 60 && spec.about.ends_with(['.', '?']), "{}: {}", spec.name, spec.about);
            assert!(!spec.checks.is_empty(), "{}", spec.name);
        }
    }

    #[test]
    fn every_entry_prints_as_a_file_that_reads_back_as_the_same() {
        for spec in all_scenarios() {
            let text = print(std::slice::from_ref(&spec));
            let again = parse(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
            assert_eq!(again, std::slice::from_ref(&spec), "{text}");
            assert_eq!(ScenarioSpec::from_bytes(&spec.to_bytes()).unwrap(), spec);
        }
    }

    #[test]
    fn every_entry_fits_the_machine_it_asks_for_and_is_refused_by_a_smaller_one() {
        for spec in all_scenarios() {
            let needs = spec.needs;
            let cores = needs.cpus.div_ceil(needs.llcs * needs.threads_per_core).max(1);
            let topo = TestTopology::synthetic(needs.nodes, needs.llcs, cores, needs.threads_per_core);
            let resolver = Resolver { topo, workers_per_cgroup: None };
            resolver.check(&spec).unwrap_or_else(|why| panic!("{}: {why}", spec.name));
            for op in spec.ops() {
                if let crate::proto::scenario::Op::SetCpuset { cpuset, .. } = op {
                    resolver.cpuset(cpuset, (0, 1)).unwrap_or_else(|why| panic!("{}: {why}", spec.name));
                }
            }
            let tiny = Resolver { topo: TestTopology::synthetic(1, 1, 1, 1), workers_per_cgroup: None };
            assert!(tiny.check(&spec).is_err(), "{}", spec.name);
        }
    }

    #[test]
    fn checks_that_entries_name_exist_and_are_on() {
        for spec in all_scenarios() {
            let scenario = table::of_pairs(&spec.asserts).unwrap_or_else(|why| panic!("{}: {why}", spec.name));
            let limits = table::in_force(&Layers { scenario, ..Layers::default() });
            for check in &spec.checks {
                let row = table::ROWS.iter().find(|row| row.name == check);
                let row = row.unwrap_or_else(|| panic!("{}: {check}", spec.name));
                assert!(table::is_on(&limits, row.id), "{}: {check} is off", spec.name);
            }
        }
    }

    /// A run of an entry on two CPUs, with reports of workers of one of its cgroups: they alone are changed.
    fn failed_checks(name: &str, group: &str, workers: u32, change: impl Fn(u32, &mut WorkerReport)) -> Vec<String> {
        let spec = find(name).remove(0);
        let mut record = fixture::passing();
        record.plan.as_mut().expect("a plan").scenarios = vec![spec];
        record.spawned = vec![(group.into(), workers)];
        record.reports = (0..workers).map(|index| (group.into(), fixture::worker(index))).collect();
        record.reports.iter_mut().zip(0..).for_each(|((_, report), index)| change(index, report));
        let verdict = judge_stored(&record);
        let failed = verdict.checks.iter().filter(|check| check.status == Status::Fail);
        let failed: Vec<String> = failed.map(|check| check.name.to_owned()).collect();
        assert_eq!(verdict.outcome == Outcome::Fail, !failed.is_empty(), "{}", verdict.headline);
        failed
    }

    #[test]
    fn crowd_of_which_most_hardly_work_fails_throughput_cv_alone() {
        // What they did, and not the CPU they had: their caches are to blame.
        let failed = |units: u64| {
            failed_checks("cache_pressure_imbalance", "crowded", 5, move |index, report| {
                report.work_type = "CachePressure".into();
                report.work_units = if index == 0 { report.work_units } else { units };
            })
        };
        assert_eq!(failed(1), ["throughput_cv"]);
        assert_eq!(failed(1_000_000), Vec::<String>::new());
    }

    #[test]
    fn fans_of_late_or_uneven_wakes_fail_in_wake_p99_or_wake_cv_alone() {
        let failed = |usual_ns: u64, late: u64, late_ns: u64| {
            failed_checks("fanout_wake", "fans", 5, move |_, report| {
                let mut hist = Hist::new();
                (0..20_000).for_each(|_| hist.record(usual_ns));
                (0..late).for_each(|_| hist.record(late_ns));
                report.work_type = "FutexFanOut".into();
                report.samples = vec![Samples { kind: SampleKind::Wake, hist, raw_ns: Vec::new() }];
            })
        };
        assert_eq!(failed(10 * NS_PER_US, 0, 0), Vec::<String>::new());
        // One in a thousand waits for a slice of 5 ms behind a few others: any scheduler's.
        assert_eq!(failed(10 * NS_PER_US, 20, 20 * NS_PER_MS), Vec::<String>::new());
        assert_eq!(failed(10 * NS_PER_US, 1, 1900 * NS_PER_MS), ["wake_cv"]);
        assert_eq!(failed(10 * NS_PER_US, 400, 1200 * NS_PER_MS), ["wake_p99"]);
    }

    #[test]
    fn patterns_fit_names() {
        assert_eq!(find("cgroup_steady").len(), 1);
        assert_eq!(find("basic/cgroup_steady").len(), 1);
        assert_eq!(find("cpuset/*").len(), 6);
        assert_eq!(find("*midrun").len(), 4);
        assert!(find("nothing").is_empty());
        for (pattern, name, fit) in
            [("*", "", true), ("a*b*c", "a--b-bc", true), ("a?", "a", false), ("*a", "ab", false), ("a**", "a", true)]
        {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }
}
