//! The run directories that are kept: what is there, how large it is, and the removal of the oldest.
//!
//! Owns reading and removing them; leaves showing them to cli/.
//! Invariant: only directories that a run named, and whose process is gone, are ever removed.

use super::rundir::{RECORD, VERDICT};
use super::suite::SUITE_JSON;
use crate::error::{Context, Result};
use crate::sys::time;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// No run is older, in seconds since 1970 (here 2017); a date is no such number.
const FIRST_S: u64 = 1_500_000_000;
/// The outcome and the headline stand among the first members of a result.
const HEAD_BYTES: u64 = 8 * 1024;

/// One kept directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub path: PathBuf,
    /// Seconds since it was begun.
    pub age_s: u64,
    pub bytes: u64,
    /// Runs in it.
    pub runs: u64,
    /// As in its result; none where it has none, because it was killed or still goes on.
    pub outcome: Option<String>,
    pub headline: String,
    /// Its process still runs.
    pub busy: bool,
}

/// All that are kept under `parent`, the newest first.
pub fn list(parent: &Path) -> Result<Vec<Kept>> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(|| format!("read {}", parent.display()))?,
    };
    let now_s = time::unix_s();
    let mut kept = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("read {}", parent.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((begun_s, pid)) = name_parts(&name) else { continue };
        // What only has such a name is not ours.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let (bytes, runs) = match measure(&path) {
            // A run that passes takes its directory with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            measured => measured.context(|| format!("measure {}", path.display()))?,
        };
        let head = [VERDICT, SUITE_JSON].iter().find_map(|file| head_of(&path.join(file)).ok());
        let member = |name: &str| head.as_deref().and_then(|head| text_member(head, name));
        let busy = Path::new(&format!("/proc/{pid}")).exists();
        let (outcome, headline) = (member("outcome"), member("headline").unwrap_or_default());
        kept.push(Kept { path, age_s: now_s.saturating_sub(begun_s), bytes, runs, outcome, headline, busy });
    }
    kept.sort_by(|a, b| (a.age_s, &b.path).cmp(&(b.age_s, &a.path)));
    Ok(kept)
}

/// Those that have to go so that what is left has at most `most_bytes`: the oldest, and none that still goes on.
pub fn excess(kept: &[Kept], most_bytes: u64) -> Vec<&Kept> {
    let mut sum = 0u64;
    let (mut gone, mut full) = (Vec::new(), false);
    for one in kept {
        full |= sum.saturating_add(one.bytes) > most_bytes;
        if full && !one.busy {
            gone.push(one);
        } else {
            sum = sum.saturating_add(one.bytes);
        }
    }
    gone
}

/// Removes one.
pub fn remove(one: &Kept) -> Result<()> {
    fs::remove_dir_all(&one.path).context(|| format!("remove {}", one.path.display()))
}

/// `SECONDS-PID-ATTEMPT`, as runs name their directories.
fn name_parts(name: &str) -> Option<(u64, u32)> {
    let mut parts = name.split('-');
    let parsed = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?.parse::<u32>().ok()?;
    (parts.next().is_none() && parsed.0 >= FIRST_S).then_some(parsed)
}

/// Bytes on disk, and records, of a directory and those in it.
fn measure(path: &Path) -> io::Result<(u64, u64)> {
    let (mut bytes, mut records) = (0, 0);
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            let (inner_bytes, inner_records) = measure(&entry.path())?;
            bytes += inner_bytes;
            records += inner_records;
        } else {
            // st_blocks counts units of 512 bytes (stat(2)).
            bytes += meta.blocks() * 512;
            records += u64::from(entry.file_name() == RECORD);
        }
    }
    Ok((bytes, records))
}

fn head_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(HEAD_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A text member of a result as our own writer lays it out, one to a line.
fn text_member(json: &str, name: &str) -> Option<String> {
    let start = format!("  \"{name}\": \"");
    let line = json.lines().find_map(|line| line.strip_prefix(start.as_str()))?;
    let text = line.strip_suffix("\",").or_else(|| line.strip_suffix('"'))?;
    Some(text.replace("\\\"", "\"").replace("\\\\", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, bytes: u64, busy: bool) -> Kept {
        let path = PathBuf::from(name);
        Kept { path, age_s: 0, bytes, runs: 1, outcome: None, headline: String::new(), busy }
    }

    #[test]
    fn names_of_runs_and_nothing_else_are_understood() {
        assert_eq!(name_parts("1795227734-164-0"), Some((1_795_227_734, 164)));
        for name in ["precious", "1-2", "1795227734-2-3-4", "a-2-3", "2026-11-22", ""] {
            assert_eq!(name_parts(name), None, "{name}");
        }
    }

    #[test]
    fn oldest_go_first_and_a_run_that_goes_on_stays() {
        let all = [kept("new", 40, false), kept("busy", 100, true), kept("old", 30, false), kept("older", 10, false)];
        let gone = |most| excess(&all, most).iter().map(|one| one.path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(gone(1000), Vec::<String>::new());
        assert_eq!(gone(150), ["old", "older"]);
        assert_eq!(gone(0), ["new", "old", "older"]);
    }

    #[test]
    fn directories_are_listed_with_their_outcome() {
        let parent = std::env::temp_dir().join(format!("ktstr-kept-{}", std::process::id()));
        // A process id that no Linux gives out: above PID_MAX_LIMIT (include/linux/threads.h).
        let run = parent.join("1600000000-4194305-0");
        fs::create_dir_all(run.join("0001")).unwrap();
        fs::create_dir_all(parent.join("precious")).unwrap();
        fs::write(run.join("0001/record"), [1; 5000]).unwrap();
        fs::write(run.join(SUITE_JSON), "{\n  \"outcome\": \"fail\",\n  \"headline\": \"it \\\"broke\\\"\"\n}\n")
            .unwrap();
        // Neither a file nor a link is a directory.
        fs::write(parent.join("1600000001-4194305-0"), "").unwrap();
        std::os::unix::fs::symlink(&run, parent.join("1600000002-4194305-0")).unwrap();
        let all = list(&parent).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!((all[0].outcome.as_deref(), all[0].headline.as_str()), (Some("fail"), "it \"broke\""));
        assert!(all[0].bytes >= 5000 && all[0].runs == 1 && !all[0].busy && all[0].age_s > 1000, "{all:?}");
        remove(&all[0]).unwrap();
        assert!(!run.exists() && parent.join("precious").exists());
        fs::remove_dir_all(&parent).unwrap();
        assert_eq!(list(&parent).unwrap(), []);
    }
}
