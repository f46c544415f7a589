//! Changes the settings of a scenario's cgroups behind its back, to see that this is noticed.
//!
//! Owns whom it changes and how; leaves when to `provoke`.
//! Invariant: a cgroup whose cpuset nobody sets is left alone, and each value that was set is turned over once.

use crate::error::{Context, Result};
use crate::proto::cpuset::CpuSet;
use crate::sys::{sched, time};
use crate::units::NS_PER_MS;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Between two looks: far below the grace that a new cpuset has.
const LOOK_NS: u64 = 5 * NS_PER_MS;
const CPUS: &str = "cpuset.cpus";

/// Gives each cgroup below `root` all CPUs but those of its cpuset, for ever.
pub fn flip_cpusets(root: &Path) -> Result<()> {
    let mut ours = BTreeMap::new();
    loop {
        flip_below(root, &CpuSet::first(sched::online_cpus()), &mut ours);
        time::sleep_ns(LOOK_NS).context(|| "sleep")?;
    }
}

/// One look. `ours`: what this wrote where. A cgroup may go at any moment, which is no error.
fn flip_below(dir: &Path, online: &CpuSet, ours: &mut BTreeMap<PathBuf, CpuSet>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        let set = fs::read_to_string(path.join(CPUS)).ok().and_then(|text| text.parse::<CpuSet>().ok());
        let set = set.filter(|set| !set.is_empty() && ours.get(&path) != Some(set));
        if let Some(set) = set {
            let other = online.difference(&set);
            if !other.is_empty() && fs::write(path.join(CPUS), other.to_string()).is_ok() {
                ours.insert(path.clone(), other);
            }
        }
        flip_below(&path, online, ours);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_turned_over_once_and_the_rest_left_alone() {
        let root = std::env::temp_dir().join(format!("ktstr-sabotage-{}", std::process::id()));
        let file = |name: &str| root.join(name).join(CPUS);
        for (name, text) in [("a", "0-1\n"), ("a/b", "3\n"), ("free", "\n")] {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(file(name), text).unwrap();
        }
        let read = |name: &str| fs::read_to_string(file(name)).unwrap().trim().to_owned();
        let mut ours = BTreeMap::new();
        for _ in 0..2 {
            flip_below(&root, &CpuSet::first(4), &mut ours);
            assert_eq!((read("a"), read("a/b"), read("free")), ("2-3".into(), "0-2".into(), String::new()));
        }
        // The scenario sets another one.
        fs::write(file("a"), "0\n").unwrap();
        flip_below(&root, &CpuSet::first(4), &mut ours);
        assert_eq!(read("a"), "1-3");
        fs::remove_dir_all(&root).unwrap();
    }
}
