//! Cgroup v2: directories, knobs, statistics.
//!
//! Owns every file of a cgroup; each function takes its directory; leaves which groups exist to scenario/.
//! Invariant: a refused write is an error that names file, data and errno.

pub mod file;
mod group;
pub mod guard;
mod knobs;
mod remove;
mod stat;

pub use group::{CgroupGroup, RemovalRecord};
pub use knobs::*;
pub use remove::{Removal, begin_remove, drain_tasks, remove_cgroup};
pub use stat::{CgroupStat, is_frozen, stat};

use crate::error::{Context, Error, Result};
use std::path::{Component, Path, PathBuf};

/// A subtree under a cgroup2 mount.
#[derive(Clone, Debug)]
pub struct CgroupManager {
    root: PathBuf,
    parent: PathBuf,
}

/// Controllers and the kernel option each needs.
const CONTROLLER_OPTIONS: [(&str, &str); 6] = [
    ("cpuset", "CONFIG_CPUSETS"),
    ("cpu", "CONFIG_CGROUP_SCHED and CONFIG_FAIR_GROUP_SCHED or CONFIG_EXT_GROUP_SCHED"),
    ("memory", "CONFIG_MEMCG"),
    ("io", "CONFIG_BLK_CGROUP"),
    ("pids", "CONFIG_CGROUP_PIDS"),
    ("hugetlb", "CONFIG_CGROUP_HUGETLB"),
];

fn option_of(controller: &str) -> &'static str {
    CONTROLLER_OPTIONS.iter().find(|(name, _)| *name == controller).map_or("CONFIG_CGROUPS", |(_, option)| option)
}

impl CgroupManager {
    /// A subtree `subtree` (made where it is missing) of the cgroup2 mount at `root`.
    pub fn new(root: &Path, subtree: &str) -> Result<Self> {
        if !root.join(file::CONTROLLERS).is_file() {
            let text = format!("cannot use {} for cgroups: it is no mounted cgroup2", root.display());
            return Err(Error::cannot_judge(text).hint("the kernel needs CONFIG_CGROUPS, and cgroup2 mounted there"));
        }
        let manager = Self { root: root.to_owned(), parent: root.join(checked(subtree)?) };
        make_dirs(&manager.root, Path::new(subtree))?;
        Ok(manager)
    }

    /// The subtree's own directory.
    pub fn parent_path(&self) -> &Path {
        &self.parent
    }
    /// The root cgroup.
    pub fn root_path(&self) -> &Path {
        &self.root
    }

    /// Whether this kernel offers the controller at the root.
    pub fn has_controller(&self, controller: &str) -> Result<bool> {
        Ok(file::read(&self.root, file::CONTROLLERS)?.split_whitespace().any(|word| word == controller))
    }

    /// Enables controllers for the children of the subtree, from the root down.
    pub fn setup(&self, controllers: &[&str]) -> Result<()> {
        for controller in controllers {
            if !self.has_controller(controller)? {
                let text = format!("cannot use the cgroup controller '{controller}': this kernel does not offer it");
                let hint =
                    format!("it needs {}, and the controller must not be in use by cgroup v1", option_of(controller));
                return Err(Error::cannot_judge(text).hint(hint));
            }
            for dir in self.levels(&self.parent) {
                file::write(&dir, file::SUBTREE_CONTROL, &format!("+{controller}"))?;
            }
        }
        Ok(())
    }

    /// The directories from the root to `dir`, both included.
    fn levels(&self, dir: &Path) -> Vec<PathBuf> {
        let mut levels: Vec<PathBuf> =
            dir.ancestors().take_while(|a| a.starts_with(&self.root)).map(Path::to_owned).collect();
        levels.reverse();
        levels
    }

    /// Makes a cgroup (again: changes nothing). In a nested name the levels above get the controllers of the subtree.
    pub fn create_cgroup(&self, name: &str) -> Result<PathBuf> {
        let relative = checked(name)?;
        make_dirs(&self.parent, relative)?;
        let dir = self.parent.join(relative);
        if relative.components().count() > 1 {
            let enabled = file::read(&self.parent, file::SUBTREE_CONTROL)?;
            let enable: Vec<String> = enabled.split_whitespace().map(|word| format!("+{word}")).collect();
            let inner = self.levels(&dir).into_iter().filter(|level| level.starts_with(&self.parent));
            for level in inner.filter(|level| *level != self.parent && *level != dir && !enable.is_empty()) {
                file::write(&level, file::SUBTREE_CONTROL, &enable.join(" "))?;
            }
        }
        Ok(dir)
    }

    /// The directory of a cgroup that exists.
    pub fn dir_of(&self, name: &str) -> Result<PathBuf> {
        let dir = self.parent.join(checked(name)?);
        match dir.is_dir() {
            true => Ok(dir),
            false => Err(Error::internal(format!("cannot use cgroup '{name}': {} does not exist", dir.display()))),
        }
    }

    /// Stops and removes a cgroup; a name that was never made is an error.
    pub fn remove_cgroup(&self, name: &str, idle: &mut dyn FnMut()) -> Result<()> {
        remove_cgroup(&self.dir_of(name)?, &self.root, idle)
    }

    /// Removes the subtree itself and everything below; what could not be removed is in the list.
    pub fn cleanup_all(&self, idle: &mut dyn FnMut()) -> Vec<String> {
        let mut dirs = Vec::new();
        let mut notes = Vec::new();
        collect_dirs(&self.parent, &mut dirs, &mut notes);
        for dir in dirs {
            if let Err(error) = remove_cgroup(&dir, &self.root, idle) {
                notes.push(error.to_string());
            }
        }
        notes
    }
}

/// A directory and those below it, the deepest first.
fn collect_dirs(dir: &Path, dirs: &mut Vec<PathBuf>, notes: &mut Vec<String>) {
    match std::fs::read_dir(dir).context(|| format!("list {}", dir.display())) {
        Ok(entries) => {
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                collect_dirs(&entry.path(), dirs, notes);
            }
            dirs.push(dir.to_owned());
        }
        Err(error) => notes.push(error.to_string()),
    }
}

/// A relative name that stays inside its parent.
fn checked(name: &str) -> Result<&Path> {
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    match plain && !name.is_empty() && !name.contains('\n') {
        true => Ok(path),
        false => Err(Error::usage(format!("cannot name a cgroup '{name}'")).hint("a relative path without '..'")),
    }
}

fn make_dirs(base: &Path, relative: &Path) -> Result<()> {
    let mut dir = base.to_owned();
    for part in relative.components() {
        dir.push(part);
        match file::make_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.context(|| format!("make the cgroup {}", dir.display()))?,
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::Kind;
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory of plain files that looks like a cgroup2 mount, removed when dropped.
    pub(crate) struct FakeMount(pub PathBuf);

    impl FakeMount {
        pub(crate) fn new(controllers: &str) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let dir = std::env::temp_dir().join(format!("ktstr-cgroup-{}-{next}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(file::CONTROLLERS), controllers).unwrap();
            Self(dir)
        }
        pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for FakeMount {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// A writable cgroup2 mount of this machine, where there is one.
    pub(crate) fn real_mount() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut found = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (_, target, kind) = (words.next()?, words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        });
        let probe = format!("ktstr-probe-{}", std::process::id());
        let usable =
            found.find(|dir| fs::create_dir(dir.join(&probe)).and_then(|()| fs::remove_dir(dir.join(&probe))).is_ok());
        if usable.is_none() {
            crate::not_run::not_run("no writable cgroup2 mount on this machine");
        }
        usable
    }

    #[test]
    fn setup_enables_from_the_root_down() {
        let fake = FakeMount::new("cpuset cpu memory\n");
        let root = fake.file("cgroup.subtree_control", "");
        let inner = fake.file("a/b/cgroup.subtree_control", "");
        let middle = fake.file("a/cgroup.subtree_control", "");
        CgroupManager::new(&fake.0, "a/b").unwrap().setup(&["cpuset"]).unwrap();
        for file in [root, middle, inner] {
            assert_eq!(fs::read_to_string(file).unwrap(), "+cpuset");
        }
    }

    #[test]
    fn missing_controller_or_mount_names_the_kernel_option() {
        let fake = FakeMount::new("cpu\n");
        let error = CgroupManager::new(&fake.0, "t").unwrap().setup(&["cpuset"]).unwrap_err();
        assert!(error.to_string().contains("CONFIG_CPUSETS"), "{error}");
        assert_eq!(error.kind(), Kind::CannotJudge);
        let error = CgroupManager::new(Path::new("/proc"), "t").unwrap_err();
        assert!(error.to_string().contains("CONFIG_CGROUPS"), "{error}");
        assert_eq!(error.kind(), Kind::CannotJudge);
    }

    #[test]
    fn refused_write_names_file_data_and_errno() {
        let fake = FakeMount::new("cpuset\n");
        let error = CgroupManager::new(&fake.0, "t").unwrap().setup(&["cpuset"]).unwrap_err().to_string();
        let want = format!("cannot write '+cpuset' to {}/cgroup.subtree_control: no such file", fake.0.display());
        assert!(error.starts_with(&want), "{error}");
        assert!(error.contains("errno 2"));
    }

    #[test]
    fn names_that_leave_the_subtree_are_refused() {
        let fake = FakeMount::new("");
        let manager = CgroupManager::new(&fake.0, "t").unwrap();
        for name in ["", "/", "../x", "a/../../x", "/etc", "a\nb"] {
            assert!(manager.create_cgroup(name).is_err(), "{name:?}");
        }
        assert!(manager.create_cgroup("x").unwrap().is_dir());
        manager.create_cgroup("x").unwrap();
        let never = manager.remove_cgroup("y", &mut || {}).unwrap_err().to_string();
        assert!(never.contains("cgroup 'y'") && never.contains("does not exist"), "{never}");
        assert!(manager.dir_of("y").unwrap_err().to_string().contains("does not exist"));
    }

    #[test]
    fn nested_groups_of_a_real_mount_are_made_and_removed() {
        let Some(mount) = real_mount() else { return };
        let subtree = format!("ktstr-nested-{}", std::process::id());
        let manager = CgroupManager::new(&mount, &subtree).unwrap();
        let dir = manager.create_cgroup("a/b/c").unwrap();
        assert!(dir.join(file::PROCS).is_file());
        assert!(!stat(&dir).unwrap().populated);
        assert_eq!(manager.cleanup_all(&mut || {}), Vec::<String>::new());
        assert!(!mount.join(subtree).exists());
    }
}
