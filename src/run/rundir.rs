//! The directory of one run: record, console and VMM output, written as they come.
//!
//! Owns the directory's life: made at the start, kept or removed at the end; leaves what is in the record to proto/record.
//! Invariant: a run that is killed leaves a record that can be read up to the kill; a full disk is told once and never stops a run.

use crate::error::{Context, Error, Kind, Result};
use crate::proto::codec::Wire;
use crate::proto::frame;
use crate::proto::message::Msg;
use crate::proto::record::{Record, file_head};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Console bytes kept in console.log.
const CONSOLE_FILE_CAP_BYTES: usize = 16 << 20;
/// Bytes kept in vmm.log: a VMM says a few lines, and an emulator that complains about each access would say gigabytes.
const VMM_LOG_CAP_BYTES: usize = 1 << 20;
/// Bytes kept in scheduler.log: the largest log that the kernel's verifier writes (UINT_MAX >> 8, kernel/bpf/log.c).
const SCHED_LOG_CAP_BYTES: usize = 16 << 20;
/// Console kept in the record: the beginning, and the end. Together below the record's own cap.
const CONSOLE_HEAD_BYTES: usize = 64 << 10;
const CONSOLE_TAIL_BYTES: usize = 128 << 10;
/// An honest guest sends some hundred KiB; this much is the log of a kernel that never stops complaining.
const GUEST_CAP_BYTES: usize = 64 << 20;

/// What a record can come to with all that both sides may say, and more.
const RECORD_MOST_BYTES: u64 = 1 << 30;

/// What a message costs of that beyond its bytes: tiny ones become much larger where they are kept.
const GUEST_MESSAGE_BYTES: usize = 512;

/// The files of a run.
pub const RECORD: &str = "record";
pub const CONSOLE: &str = "console.log";
pub const VMM_LOG: &str = "vmm.log";
pub const VERDICT: &str = "verdict.json";
pub const SUMMARY: &str = "summary.txt";
/// Where the vCPUs stood when the VM was killed.
pub const REGISTERS: &str = "registers.txt";
pub const SCHED_LOG: &str = "scheduler.log";
pub const SCHED_DUMP: &str = "sched_ext_dump.txt";
/// Those that tell what happened; a verdict can be made again.
pub const EVIDENCE: [&str; 6] = [RECORD, CONSOLE, VMM_LOG, REGISTERS, SCHED_LOG, SCHED_DUMP];
const OUR_FILES: [&str; 8] = [RECORD, CONSOLE, VMM_LOG, VERDICT, SUMMARY, REGISTERS, SCHED_LOG, SCHED_DUMP];

/// Where a run's directory is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This one. It may hold an earlier run of ours, which is overwritten, and nothing else.
    Named(PathBuf),
    /// A fresh one under this.
    FreshIn(PathBuf),
}

pub(super) fn with_hint(error: Error) -> Error {
    error.with_kind(Kind::Usage).hint("name a writable directory with --run-dir")
}

fn take_named(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).context(|| format!("make the run directory {}", path.display())).map_err(with_hint)?;
    let entries = fs::read_dir(path).context(|| format!("read the run directory {}", path.display()))?;
    let entries =
        entries.collect::<io::Result<Vec<_>>>().context(|| format!("read the run directory {}", path.display()))?;
    // Nothing is removed before all of it is known to be ours.
    for entry in &entries {
        if !OUR_FILES.iter().any(|name| entry.file_name() == *name) {
            let (dir, other) = (path.display(), entry.file_name());
            return Err(Error::usage(format!("the run directory {dir} holds {other:?}, which is no file of a run"))
                .hint("name a new or empty directory"));
        }
    }
    for entry in &entries {
        fs::remove_file(entry.path())
            .context(|| format!("remove {} of an earlier run", entry.path().display()))
            .map_err(with_hint)?;
    }
    Ok(path.to_owned())
}

pub(super) fn make_fresh(parent: &Path) -> Result<PathBuf> {
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

/// A file that keeps the beginning of what it is given, and says where it was cut.
#[derive(Debug)]
struct Capped {
    name: &'static str,
    file: File,
    cap: usize,
    /// Bytes given so far, kept or not.
    seen: usize,
}

impl Capped {
    fn new(name: &'static str, file: File, cap: usize) -> Self {
        Self { name, file, cap, seen: 0 }
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.cap.saturating_sub(self.seen);
        let is_cut_here = self.seen <= self.cap && bytes.len() > room;
        self.seen = self.seen.saturating_add(bytes.len());
        self.file.write_all(&bytes[..bytes.len().min(room)])?;
        if is_cut_here {
            writeln!(self.file, "\n[cut here: {} keeps {} bytes]", self.name, self.cap)?;
        }
        Ok(())
    }
}

/// The open directory, and the record as it grows.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Ours to remove as a whole; a directory that the user named is only emptied.
    made: bool,
    record_file: File,
    console_file: Capped,
    vmm_file: Capped,
    /// Made when the scheduler under test first says something.
    sched_file: Option<Capped>,
    /// What the record does not hold yet of a console beyond `CONSOLE_HEAD_BYTES`: its end.
    console_tail: Vec<u8>,
    /// Bytes of messages that the guest has sent.
    guest_bytes: usize,
    sequence: u32,
    record: Record,
    failed: Option<String>,
    /// The record on disk has ended, perhaps within a message.
    record_failed: bool,
}

impl RunDir {
    /// Makes the directory: `named` itself, or a fresh one in the place where runs are kept.
    pub fn create(place: &Place) -> Result<Self> {
        let path = match place {
            Place::Named(path) => take_named(path)?,
            Place::FreshIn(parent) => make_fresh(parent)?,
        };
        let made = *place != Place::Named(path.clone());
        match Self::open(&path, made) {
            Ok(run) => Ok(run),
            Err(error) => {
                clear(&path, made)?;
                Err(error)
            }
        }
    }

    fn open(path: &Path, made: bool) -> Result<Self> {
        let create = |name: &str| {
            let file = path.join(name);
            File::create(&file).context(|| format!("create {}", file.display())).map_err(with_hint)
        };
        let mut record_file = create(RECORD)?;
        let begun = record_file.write_all(&file_head()).context(|| format!("write {}/{RECORD}", path.display()));
        begun.map_err(with_hint)?;
        Ok(Self {
            path: path.to_owned(),
            made,
            record_file,
            console_file: Capped::new(CONSOLE, create(CONSOLE)?, CONSOLE_FILE_CAP_BYTES),
            vmm_file: Capped::new(VMM_LOG, create(VMM_LOG)?, VMM_LOG_CAP_BYTES),
            sched_file: None,
            console_tail: Vec::new(),
            guest_bytes: 0,
            sequence: 0,
            record: Record::default(),
            failed: None,
            record_failed: false,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    /// What is known of the run so far.
    pub fn record(&self) -> &Record {
        &self.record
    }
    /// Adds a message of the guest's; false where it has said more than any honest guest would.
    pub fn add_from_guest(&mut self, message: Msg) -> bool {
        if self.guest_bytes > GUEST_CAP_BYTES {
            return false;
        }
        self.guest_bytes = self.guest_bytes.saturating_add(message.to_bytes().len() + GUEST_MESSAGE_BYTES);
        self.add(message);
        true
    }

    /// Adds a message to the record, in memory and on disk.
    pub fn add(&mut self, message: Msg) {
        // Behind half a frame nothing could be read again, so a record that failed once ends there.
        if !self.record_failed {
            let bytes = frame::encode(self.sequence, &message.to_bytes());
            self.sequence = self.sequence.wrapping_add(1);
            let written = self.record_file.write_all(&bytes);
            self.record_failed = written.is_err();
            self.note_failure(RECORD, written);
        }
        if let Msg::SchedOutput { text } = &message {
            let written = self.add_sched_output(text);
            self.note_failure(SCHED_LOG, written);
        }
        self.record.apply(message);
    }

    /// Adds console bytes as they came.
    pub fn add_console(&mut self, bytes: &[u8]) {
        let before = self.console_file.seen;
        let written = self.console_file.add(bytes);
        self.note_failure(CONSOLE, written);
        // The record keeps the beginning as it comes, and the end, where a panic stands, when the VM has ended.
        let head = CONSOLE_HEAD_BYTES.saturating_sub(before).min(bytes.len());
        if head > 0 {
            self.add(Msg::Console { text: String::from_utf8_lossy(&bytes[..head]).into_owned() });
        }
        self.console_tail.extend_from_slice(&bytes[head..]);
        let excess = self.console_tail.len().saturating_sub(CONSOLE_TAIL_BYTES);
        self.console_tail.drain(..excess);
    }

    /// All of it, while the record keeps the end.
    fn add_sched_output(&mut self, text: &str) -> io::Result<()> {
        let file = match &mut self.sched_file {
            Some(file) => file,
            none => {
                let file = File::create(self.path.join(SCHED_LOG))?;
                none.insert(Capped::new(SCHED_LOG, file, SCHED_LOG_CAP_BYTES))
            }
        };
        file.add(text.as_bytes())
    }

    /// Adds what the VM's process printed itself.
    pub fn add_vmm_log(&mut self, bytes: &[u8]) {
        let written = self.vmm_file.add(bytes);
        self.note_failure(VMM_LOG, written);
    }

    /// The console has ended: its end goes into the record.
    pub fn end_console(&mut self) {
        let tail = std::mem::take(&mut self.console_tail);
        if !tail.is_empty() {
            let text = format!("\n[here the record left out what console.log has]\n{}", String::from_utf8_lossy(&tail));
            self.add(Msg::Console { text });
        }
    }

    fn note_failure(&mut self, name: &str, written: io::Result<()>) {
        if let (Err(error), None) = (written, &self.failed) {
            let text = format!("the stored run is incomplete: cannot write {}/{name}: {error}", self.path.display());
            self.record.host_notes.push(text.clone());
            self.failed = Some(text);
        }
    }

    /// Writes a finished file, such as the verdict.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, content).context(|| format!("write {}", path.display()))
    }

    /// Removes what this run has written, and the directory where it was made for it.
    pub fn remove(self) -> Result<()> {
        clear(&self.path, self.made)
    }
}

fn clear(path: &Path, made: bool) -> Result<()> {
    if made {
        return fs::remove_dir_all(path).context(|| format!("remove {}", path.display()));
    }
    for name in OUR_FILES {
        match fs::remove_file(path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.context(|| format!("remove {}/{name}", path.display()))?,
        }
    }
    Ok(())
}

/// Removes a named run directory and what a run has written there; whatever else it holds stays, and is an error.
pub(super) fn remove_run(path: &Path) -> Result<()> {
    clear(path, false)?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", path.display())),
    }
}

/// Reads the record of a stored run, given its directory or the record itself.
pub fn load(path: &Path) -> Result<(Record, bool)> {
    let file = if path.is_dir() { path.join(RECORD) } else { path.to_owned() };
    let mut bytes = Vec::new();
    let read = File::open(&file).and_then(|file| file.take(RECORD_MOST_BYTES + 1).read_to_end(&mut bytes));
    read.context(|| format!("read {}", file.display()))?;
    if bytes.len() as u64 > RECORD_MOST_BYTES {
        return Err(Error::usage(format!("{} is larger than any record of a run", file.display())));
    }
    Record::from_file_bytes(&bytes)
        .map_err(|why| Error::usage(format!("{} is no usable record: {why}", file.display())))
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
    fn record_that_could_not_be_written_once_ends_there_and_can_be_read() {
        let parent = parent("full");
        let mut run = fresh(&parent).unwrap();
        let note = |text: &str| Msg::Note { text: text.into() };
        run.add(note("before"));
        // A disk that is full in the middle of a message, and has room again for the next.
        let half = frame::encode(1, &note("torn").to_bytes());
        run.record_file.write_all(&half[..half.len() - 3]).unwrap();
        let read_only = File::open(run.path().join(RECORD)).unwrap();
        let real = std::mem::replace(&mut run.record_file, read_only);
        run.add(note("torn"));
        run.record_file = real;
        run.add(note("after"));
        assert_eq!(run.record().notes, ["before", "torn", "after"]);
        assert!(run.record().host_notes[0].contains("the stored run is incomplete"));
        let (stored, complete) = load(run.path()).unwrap();
        assert_eq!((stored.notes, complete), (vec!["before".to_owned()], false));
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn console_flood_is_capped_on_disk_and_in_the_record() {
        let parent = parent("flood");
        let mut run = fresh(&parent).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        (0..20).for_each(|_| run.add_console(&chunk));
        assert!(fs::metadata(run.path().join("console.log")).unwrap().len() < CONSOLE_FILE_CAP_BYTES as u64 + 100);
        run.add_console(b"Kernel panic - not syncing: the end\n");
        run.end_console();
        assert!(run.record().console.ends_with("the end\n"));
        assert!(fs::metadata(run.path().join("record")).unwrap().len() < 3 << 20);
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn all_that_a_scheduler_says_is_kept_while_the_record_keeps_the_end() {
        let parent = parent("sched");
        let mut run = fresh(&parent).unwrap();
        assert!(!run.path().join(SCHED_LOG).exists());
        for line in 0..60_000 {
            run.add(Msg::SchedOutput { text: format!("{line}: (bf) r1 = r2\n") });
        }
        let log = fs::read_to_string(run.path().join(SCHED_LOG)).unwrap();
        assert_eq!(log.lines().count(), 60_000);
        assert!(run.record().sched_output.lines().count() < 60_000);
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn files_say_where_they_were_cut() {
        let parent = parent("cut");
        let mut run = fresh(&parent).unwrap();
        let chunk = vec![b'y'; VMM_LOG_CAP_BYTES / 4];
        // Exactly full is not cut; the next byte is, once.
        (0..4).for_each(|_| run.add_vmm_log(&chunk));
        let log = || fs::read_to_string(run.path().join(VMM_LOG)).unwrap();
        assert_eq!(log().len(), VMM_LOG_CAP_BYTES);
        let mut run = fresh(&parent).unwrap();
        (0..9).for_each(|_| run.add_vmm_log(&chunk));
        let log = fs::read_to_string(run.path().join(VMM_LOG)).unwrap();
        assert!(log.ends_with("yy\n[cut here: vmm.log keeps 1048576 bytes]\n"), "{}", &log[VMM_LOG_CAP_BYTES - 9..]);
        assert_eq!(log.matches("cut here").count(), 1);
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn guest_that_never_stops_talking_is_cut() {
        let parent = parent("talk");
        let mut run = fresh(&parent).unwrap();
        let note = || Msg::Note { text: "x".repeat(200_000) };
        let taken = (0..1000).take_while(|_| run.add_from_guest(note())).count();
        assert!(taken < 400, "{taken}");
        let mut run = fresh(&parent).unwrap();
        let tiny = || Msg::Spawned { group: String::new(), workers: 1 };
        let taken = (0..10_000_000).take_while(|_| run.add_from_guest(tiny())).count();
        // A kernel's whole log fits.
        assert!((100_000..140_000).contains(&taken), "{taken}");
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn named_directory_is_only_emptied() {
        let parent = parent("emptied");
        RunDir::create(&Place::Named(parent.clone())).unwrap().remove().unwrap();
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
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
        assert!(parent.join("precious").exists() && parent.join(RECORD).exists(), "a refusal removes nothing");
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
