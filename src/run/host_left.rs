//! Cgroups that runs on this machine left because they were killed.
//!
//! Owns finding and removing them; leaves those of runs that still go on, and those of anybody else, alone.
//! Invariant: a cgroup is removed only where the process is gone that its name names, and only while nobody is in it.

use crate::error::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Removes what is left below `root` under names of `prefix` and the number of a process that is gone. Returns what could
/// not be removed, and why.
pub fn remove(root: &Path, prefix: &str, lives: impl Fn(i32) -> bool) -> Vec<String> {
    let named = |dir: &PathBuf| {
        let name = dir.file_name()?.to_str()?;
        name.strip_prefix(prefix)?.parse::<i32>().ok()
    };
    let left = children(root).into_iter().filter(|dir| named(dir).is_some_and(|pid| !lives(pid)));
    left.filter_map(|dir| remove_tree(&dir).err()).map(|error| error.to_string()).collect()
}

/// The kernel refuses to remove one that has processes.
fn remove_tree(dir: &Path) -> Result<()> {
    children(dir).iter().try_for_each(|child| remove_tree(child))?;
    fs::remove_dir(dir).context(|| format!("remove the cgroup {} of a run that is gone", dir.display()))
}

/// A directory that cannot be read, as one that went meanwhile, has none.
fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_runs_left_is_removed() {
        let root = std::env::temp_dir().join(format!("ktstr-left-{}", std::process::id()));
        for dir in ["ktstr-host-7/g0/deep", "ktstr-host-8/g0", "ktstr-host-x", "other-7", "ktstr-host-9"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        // A file stands for a process in it: neither lets a directory go.
        fs::write(root.join("ktstr-host-9/busy"), "").unwrap();
        let told = remove(&root, "ktstr-host-", |pid| pid == 8);
        let left: Vec<bool> = ["ktstr-host-7", "ktstr-host-8/g0", "ktstr-host-x", "other-7", "ktstr-host-9"]
            .map(|dir| root.join(dir).exists())
            .to_vec();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(left, [false, true, true, true, true]);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("ktstr-host-9 of a run that is gone"), "{told:?}");
    }
}
