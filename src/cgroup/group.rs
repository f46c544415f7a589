//! Cgroups that belong together and go together.
//!
//! Owns the list of what was made; leaves making and removing one to the siblings.
//! Invariant: what was added is removed at the latest on drop, or stands in the record with its reason.

use super::remove::{Removal, begin_remove};
use super::{CgroupManager, knobs};
use crate::error::Result;
use crate::proto::cpuset::CpuSet;
use crate::sys::time;
use crate::units::NS_PER_MS;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Pause between two looks at removals that are under way.
const POLL_NS: u64 = 5 * NS_PER_MS;

/// What could not be removed, in words; outlives the group it is about.
pub type RemovalRecord = Arc<Mutex<Vec<String>>>;

/// Cgroups of one subtree, removed when this is dropped.
#[derive(Debug)]
pub struct CgroupGroup {
    manager: CgroupManager,
    /// In the order they were made.
    members: Vec<(String, PathBuf)>,
    record: RemovalRecord,
}

impl CgroupGroup {
    pub fn new(manager: CgroupManager) -> Self {
        Self { manager, members: Vec::new(), record: RemovalRecord::default() }
    }

    /// Makes a cgroup restricted to these CPUs.
    pub fn add_cgroup(&mut self, name: &str, cpuset: &CpuSet) -> Result<PathBuf> {
        let dir = self.add_cgroup_no_cpuset(name)?;
        knobs::set_cpuset(&dir, cpuset)?;
        Ok(dir)
    }

    /// Makes a cgroup with its parent's CPUs.
    pub fn add_cgroup_no_cpuset(&mut self, name: &str) -> Result<PathBuf> {
        let dir = self.manager.create_cgroup(name)?;
        if !self.members.iter().any(|(known, _)| known == name) {
            self.members.push((name.to_owned(), dir.clone()));
        }
        Ok(dir)
    }

    pub fn names(&self) -> Vec<&str> {
        self.members.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Removes one member, or one that is there without having been added: a level above a member.
    pub fn remove(&mut self, name: &str, idle: &mut dyn FnMut()) -> Result<()> {
        let dir = self.manager.dir_of(name)?;
        super::remove_cgroup(&dir, self.manager.root_path(), idle)?;
        self.members.retain(|(known, _)| known != name);
        Ok(())
    }

    /// Where the drop writes down what it could not remove.
    pub fn record(&self) -> RemovalRecord {
        Arc::clone(&self.record)
    }

    /// Removes all members, the youngest first, all under one deadline. Returns what could not be removed.
    pub fn remove_all(&mut self, idle: &mut dyn FnMut()) -> Vec<String> {
        let mut notes = Vec::new();
        let mut under_way: Vec<Removal> = Vec::new();
        for (_, dir) in std::mem::take(&mut self.members).iter().rev() {
            match begin_remove(dir, self.manager.root_path()) {
                Ok(removal) => under_way.push(removal),
                Err(error) => notes.push(error.to_string()),
            }
        }
        loop {
            under_way.retain_mut(|removal| match removal.poll() {
                Ok(gone) => !gone,
                Err(error) => {
                    notes.push(error.to_string());
                    false
                }
            });
            if under_way.is_empty() {
                break;
            }
            idle();
            if time::sleep_ns(POLL_NS).is_err() {
                // Interrupted: the next look comes earlier.
                continue;
            }
        }
        self.record.lock().unwrap_or_else(PoisonError::into_inner).extend(notes.iter().cloned());
        notes
    }
}

impl Drop for CgroupGroup {
    fn drop(&mut self) {
        self.remove_all(&mut || {});
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FakeMount, real_mount};
    use super::*;

    #[test]
    fn members_are_removed_with_the_group() {
        let Some(mount) = real_mount() else { return };
        let subtree = format!("ktstr-group-{}", std::process::id());
        let manager = CgroupManager::new(&mount, &subtree).unwrap();
        let mut group = CgroupGroup::new(manager.clone());
        let a = group.add_cgroup_no_cpuset("a").unwrap();
        group.add_cgroup_no_cpuset("a").unwrap();
        let b = group.add_cgroup_no_cpuset("b").unwrap();
        assert_eq!(group.names(), ["a", "b"]);
        let record = group.record();
        assert!(a.is_dir() && b.is_dir());
        drop(group);
        assert!(!a.exists() && !b.exists());
        assert!(record.lock().unwrap().is_empty());
        assert!(manager.cleanup_all(&mut || {}).is_empty());
    }

    #[test]
    fn what_cannot_be_removed_is_recorded() {
        let fake = FakeMount::new("");
        let mut group = CgroupGroup::new(CgroupManager::new(&fake.0, "t").unwrap());
        group.add_cgroup_no_cpuset("kept").unwrap();
        // A directory of plain files is not empty for rmdir.
        fake.file("t/kept/file", "");
        let record = group.record();
        drop(group);
        let text = record.lock().unwrap().join("\n");
        assert!(text.contains("cannot remove the cgroup") && text.contains("kept"), "{text}");
    }

    #[test]
    fn cpuset_of_a_member_is_written() {
        let fake = FakeMount::new("cpuset\n");
        let mut group = CgroupGroup::new(CgroupManager::new(&fake.0, "t").unwrap());
        let error = group.add_cgroup("x", &CpuSet::first(2)).unwrap_err().to_string();
        assert!(error.contains("cannot write '0-1' to") && error.contains("x/cpuset.cpus"), "{error}");
        let file = fake.file("t/x/cpuset.cpus", "");
        group.add_cgroup("x", &CpuSet::first(2)).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "0-1");
        std::fs::remove_file(file).unwrap();
    }
}
