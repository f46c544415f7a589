//! The directory of one run: record, console and VMM output, written as they come.
//!
//! Owns the directory's life: made at the start, kept or removed at the end; leaves what is in the record to proto/record.
//! Invariant: a run that is killed leaves a record that can be read up to the kill; a full disk is told once and never stops a run.

use crate::error::{Context, Error, Kind, Result};
use crate::proto::codec::Wire;
use crate::proto::frame;
use crate::proto::message::Msg;
use crate::proto::record::{FILE_MAGIC, Record};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Console bytes kept in console.log.
const CONSOLE_FILE_CAP_BYTES: usize = 16 << 20;

/// The files of a run.
pub const RECORD: &str = "record";
pub const CONSOLE: &str = "console.log";
pub const VMM_LOG: &str = "vmm.log";
pub const VERDICT: &str = "verdict.json";
pub const SUMMARY: &str = "summary.txt";
const OUR_FILES: [&str; 5] = [RECORD, CONSOLE, VMM_LOG, VERDICT, SUMMARY];

/// Where a run's directory is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This one. It may hold an earlier run of ours, which is overwritten, and nothing else.
    Named(PathBuf),
    /// A fresh one under this.
    FreshIn(PathBuf),
}

fn with_hint(error: Error) -> Error {
    error.with_kind(Kind::Usage).hint("name a writable directory with --run-dir")
}

fn take_named(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).context(|| format!("make the run directory {}", path.display())).map_err(with_hint)?;
    let entries = fs::read_dir(path).context(|| format!("read the run directory {}", path.display()))?;
    for entry in entries {
        let entry = entry.context(|| format!("read the run directory {}", path.display()))?;
        if !OUR_FILES.iter().any(|name| entry.file_name() == *name) {
            let (dir, other) = (path.display(), entry.file_name());
            return Err(Error::usage(format!("the run directory {dir} holds {other:?}, which is no file of a run"))
                .hint("name a new or empty directory"));
        }
        fs::remove_file(entry.path())
            .context(|| format!("remove {} of an earlier run", entry.path().display()))
            .map_err(with_hint)?;
    }
    Ok(path.to_owned())
}

fn make_fresh(parent: &Path) -> Result<PathBuf> {
    fs::create_dir_all(parent)
        .context(|| format!("make {}, where runs are kept", parent.display()))
        .map_err(with_hint)?;
    let stamp = crate::sys::time::unix_s();
    (0..1000)
        .map(|attempt| parent.join(format!("{stamp}-{}-{attempt}", crate::sys::process::id())))
        .find_map(|path| match fs::create_dir(&path) {
            Ok(()) => Some(Ok(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => Some(Err(error)),
        })
        .unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::AlreadyExists)))
        .context(|| format!("make a run directory under {}", parent.display()))
        .map_err(with_hint)
}

/// The open directory, and the record as it grows.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    record_file: File,
    console_file: File,
    console_bytes: usize,
    sequence: u32,
    record: Record,
    failed: Option<String>,
}

impl RunDir {
    /// Makes the directory: `named` itself, or a fresh one in the place where runs are kept.
    pub fn create(place: &Place) -> Result<Self> {
        let path = match place {
            Place::Named(path) => take_named(path)?,
            Place::FreshIn(parent) => make_fresh(parent)?,
        };
        let open = |name: &str| {
            let file = path.join(name);
            File::create(&file).context(|| format!("create {}", file.display())).map_err(with_hint)
        };
        let mut record_file = open(RECORD)?;
        record_file.write_all(FILE_MAGIC).context(|| format!("write {}/{RECORD}", path.display()))?;
        let console_file = open(CONSOLE)?;
        let record = Record::default();
        Ok(Self { path, record_file, console_file, console_bytes: 0, sequence: 0, record, failed: None })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    /// What is known of the run so far.
    pub fn record(&self) -> &Record {
        &self.record
    }
    /// A file of this directory for a child process to write to.
    pub fn file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        File::create(&path).context(|| format!("create {}", path.display()))
    }

    /// Adds a message to the record, in memory and on disk.
    pub fn add(&mut self, message: Msg) {
        let bytes = frame::encode(self.sequence, &message.to_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        let written = self.record_file.write_all(&bytes);
        self.note_failure(RECORD, written);
        self.record.apply(message);
    }

    /// Adds console bytes as they came.
    pub fn add_console(&mut self, bytes: &[u8]) {
        let room = CONSOLE_FILE_CAP_BYTES.saturating_sub(self.console_bytes);
        let kept = &bytes[..bytes.len().min(room)];
        let mut written = self.console_file.write_all(kept);
        if kept.len() < bytes.len() && room > 0 {
            let cut = format!("\n[cut here: console.log keeps {CONSOLE_FILE_CAP_BYTES} bytes]\n");
            written = written.and_then(|()| self.console_file.write_all(cut.as_bytes()));
        }
        self.console_bytes = self.console_bytes.saturating_add(bytes.len());
        self.note_failure(CONSOLE, written);
        // The record's own cap is smaller; beyond it a frame would only fill the disk.
        if self.console_bytes - bytes.len() < crate::proto::record::CONSOLE_CAP_BYTES {
            self.add(Msg::Console { text: String::from_utf8_lossy(bytes).into_owned() });
        }
    }

    fn note_failure(&mut self, name: &str, written: io::Result<()>) {
        if let (Err(error), None) = (written, &self.failed) {
            let text = format!("cannot write {}/{name}: {error}; the stored run is incomplete", self.path.display());
            self.record.host_notes.push(text.clone());
            self.failed = Some(text);
        }
    }

    /// Writes a finished file, such as the verdict.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, content).context(|| format!("write {}", path.display()))
    }

    /// Removes the directory with all that is in it.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.path).context(|| format!("remove {}", self.path.display()))
    }
}

/// Reads the record of a stored run, given its directory or the record itself.
pub fn load(path: &Path) -> Result<(Record, bool)> {
    let file = if path.is_dir() { path.join(RECORD) } else { path.to_owned() };
    let bytes = fs::read(&file).context(|| format!("read {}", file.display()))?;
    Record::from_file_bytes(&bytes)
        .map_err(|error| Error::usage(format!("{} is no usable record: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ktstr-rundir-{name}-{}", std::process::id()))
    }
    fn fresh(parent: &Path) -> Result<RunDir> {
        RunDir::create(&Place::FreshIn(parent.to_owned()))
    }

    #[test]
    fn record_on_disk_is_the_record_in_memory() {
        let parent = parent("same");
        let mut run = fresh(&parent).unwrap();
        run.add(Msg::Note { text: "one".into() });
        run.add_console(b"Linux version\n");
        assert_eq!(load(run.path()).unwrap(), (run.record().clone(), true));
        assert_eq!(fs::read(run.path().join("console.log")).unwrap(), b"Linux version\n");
        let path = run.path().to_owned();
        run.remove().unwrap();
        assert!(!path.exists());
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn console_flood_is_capped_on_disk_and_in_the_record() {
        let parent = parent("flood");
        let mut run = fresh(&parent).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        (0..20).for_each(|_| run.add_console(&chunk));
        assert!(fs::metadata(run.path().join("console.log")).unwrap().len() < CONSOLE_FILE_CAP_BYTES as u64 + 100);
        assert!(fs::metadata(run.path().join("record")).unwrap().len() < 3 << 20);
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn unwritable_parent_is_an_error_with_a_hint() {
        let error = fresh(Path::new("/proc/nowhere")).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere"), "{error}");
        assert!(load(Path::new("/etc/passwd")).unwrap_err().to_string().contains("no usable record"));
    }

    #[test]
    fn named_directory_takes_an_earlier_run_but_nothing_else() {
        let parent = parent("named");
        let named = || RunDir::create(&Place::Named(parent.clone()));
        named().unwrap().add_console(b"old");
        assert_eq!(fs::read(named().unwrap().path().join(CONSOLE)).unwrap(), b"");
        fs::write(parent.join("precious"), "x").unwrap();
        assert!(named().unwrap_err().to_string().contains("precious"));
        assert!(parent.join("precious").exists());
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn two_runs_never_share_a_directory() {
        let parent = parent("two");
        let (a, b) = (fresh(&parent).unwrap(), fresh(&parent).unwrap());
        assert_ne!(a.path(), b.path());
        fs::remove_dir_all(parent).unwrap();
    }
}
