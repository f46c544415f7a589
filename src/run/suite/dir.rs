//! The directory of many runs: one numbered directory for each run that is kept, and what was made of all.
//!
//! Owns its life; leaves what a run's own directory holds to rundir.
//! Invariant: nothing is removed that ktstr did not make.

use crate::error::{Context, Error, Result};
use crate::run::rundir::{self, Place};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The result of all runs.
pub const SUITE_JSON: &str = "suite.json";
/// What was shown of them.
pub const SUITE_SUMMARY: &str = "summary.txt";

/// An open directory of many runs.
#[derive(Debug)]
pub struct SuiteDir {
    path: PathBuf,
    made: bool,
}

impl SuiteDir {
    pub fn create(place: &Place) -> Result<Self> {
        match place {
            Place::FreshIn(parent) => Ok(Self { path: rundir::make_fresh(parent)?, made: true }),
            Place::Named(path) => {
                take(path)?;
                Ok(Self { path: path.clone(), made: false })
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run of this number goes.
    pub fn run(&self, number: usize) -> PathBuf {
        self.path.join(format!("{number:04}"))
    }

    /// Removes what a run has left that is not kept.
    pub fn drop_run(&self, number: usize) -> Result<()> {
        rundir::remove_run(&self.run(number))
    }

    /// Writes a file beside the runs.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, content).context(|| format!("write {}", path.display()))
    }

    /// Removes the directory, whose runs are all dropped.
    pub fn remove(self) -> Result<()> {
        match fs::remove_dir(&self.path) {
            Err(error) if !self.made && error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("remove {}", self.path.display())),
        }
    }
}

/// Makes a named directory ready: new, empty, or one of ours.
fn take(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .context(|| format!("make the run directory {}", path.display()))
        .map_err(rundir::with_hint)?;
    let read = || format!("read the run directory {}", path.display());
    let entries = fs::read_dir(path).context(read)?.collect::<io::Result<Vec<_>>>().context(read)?;
    let is_run = |name: &str| name.len() >= 4 && name.bytes().all(|byte| byte.is_ascii_digit());
    let mut ours = Vec::new();
    for entry in &entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        match (is_run(&name), [SUITE_JSON, SUITE_SUMMARY].contains(&name.as_str())) {
            (false, false) => {
                return Err(Error::usage(format!(
                    "the run directory {} holds '{name}', which is no file of many runs",
                    path.display()
                ))
                .hint("name a new or empty directory"));
            }
            (is_run, _) => ours.push((entry.path(), is_run)),
        }
    }
    for (path, is_run) in ours {
        if is_run {
            rundir::remove_run(&path)?;
        } else {
            fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::rundir::RunDir;

    #[test]
    fn directory_goes_when_nothing_is_kept_and_an_old_one_is_taken_over() {
        let parent = std::env::temp_dir().join(format!("ktstr-suitedir-{}", std::process::id()));
        let fresh = SuiteDir::create(&Place::FreshIn(parent.clone())).unwrap();
        RunDir::create(&Place::Named(fresh.run(1))).unwrap();
        fresh.drop_run(1).unwrap();
        fresh.drop_run(2).unwrap();
        fresh.remove().unwrap();
        let named = || SuiteDir::create(&Place::Named(parent.clone()));
        let first = named().unwrap();
        RunDir::create(&Place::Named(first.run(1))).unwrap();
        first.write(SUITE_JSON, "{}").unwrap();
        assert_eq!(fs::read_dir(named().unwrap().path()).unwrap().count(), 0, "an earlier one of ours is emptied");
        RunDir::create(&Place::Named(first.run(1))).unwrap();
        fs::write(first.run(1).join("precious"), "x").unwrap();
        assert!(named().unwrap_err().to_string().contains("0001"), "a foreign file is not removed");
        assert!(first.run(1).join("precious").exists());
        fs::write(parent.join("mine"), "x").unwrap();
        assert!(named().unwrap_err().to_string().contains("'mine'"));
        fs::remove_dir_all(parent).unwrap();
    }
}
