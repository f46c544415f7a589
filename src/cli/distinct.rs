//! No result is written over a file that is read, and no two results go into one file.
//!
//! Owns comparing the files that a command line names; leaves opening them to the commands.
//! Invariant: what a command reads is as it was when the command has ended.

use super::args::{Command, Distance, GuestArgs, ImageAction, JsonTarget, RunArgs, SchedChoice};
use crate::error::{Error, Result};
use crate::run::disk::DiskSource;
use crate::run::rundir::EVIDENCE;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file, and how the command line names it.
struct Named {
    flag: &'static str,
    path: PathBuf,
}

/// What a command reads and writes.
#[derive(Default)]
struct Files {
    read: Vec<Named>,
    /// Directories of which all is read.
    whole: Vec<Named>,
    /// Directories that the run fills itself.
    filled: Vec<Named>,
    written: Vec<Named>,
}

/// Two paths are of one file where these are equal.
#[derive(PartialEq, Eq)]
enum Identity {
    /// Device and inode of a regular file.
    There(u64, u64),
    /// The place of a file that is not there yet.
    ToCome(PathBuf),
}

const OWN_PLACE: &str = "a result needs a file of its own";

/// Refuses a command whose results would fall on its input, or on each other.
pub fn check(command: &Command) -> Result<()> {
    let files = Files::of(command);
    let refuse = |result: &Named, how: &str, other: &Named, end: &str| {
        let (path, others) = (result.path.display(), other.path.display());
        Err(Error::usage(format!("{} {path} {how} {} {others}{end}", result.flag, other.flag)).hint(OWN_PLACE))
    };
    for (at, result) in files.written.iter().enumerate() {
        let Some(own) = identity(&result.path) else { continue };
        // A result that is new was no input.
        let whole = files.whole.iter().filter(|_| matches!(own, Identity::There(..)));
        if let Some(directory) = whole.chain(&files.filled).find(|one| own.is_below(&result.path, &one.path)) {
            return refuse(result, "lies within", directory, "");
        }
        let mut others = files.written[..at].iter().chain(&files.read);
        if let Some(other) = others.find(|other| identity(&other.path).as_ref() == Some(&own)) {
            return refuse(result, "is the file of", other, " too");
        }
    }
    Ok(())
}

/// None for what is no regular file: a terminal or /dev/null takes all that comes.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(data) if data.is_file() => Some(Identity::There(data.dev(), data.ino())),
        Ok(_) => None,
        Err(_) => place(path).map(Identity::ToCome),
    }
}

/// Where a file that is not there would be made: a link is followed, which leads nowhere yet.
fn place(path: &Path) -> Option<PathBuf> {
    let within = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut target = path.to_owned();
    // As many as the kernel follows (MAXSYMLINKS, include/linux/namei.h).
    for _ in 0..40 {
        let Ok(next) = fs::read_link(&target) else { break };
        target = within(&target).join(next);
    }
    Some(within(&target).canonicalize().ok()?.join(target.file_name()?))
}

impl Identity {
    /// Whether the file at `path` is, or will be, in a directory or in one of those under it.
    fn is_below(&self, path: &Path, directory: &Path) -> bool {
        let place = match self {
            Self::There(..) => path.canonicalize().ok(),
            Self::ToCome(place) => Some(place.clone()),
        };
        place.zip(directory.canonicalize().ok()).is_some_and(|(place, directory)| place.starts_with(directory))
    }
}

fn directory(flag: &'static str, path: Option<&Path>) -> Option<Named> {
    path.filter(|path| path.is_dir()).map(|path| Named { flag, path: path.to_owned() })
}

impl Files {
    fn of(command: &Command) -> Self {
        let mut files = Self::default();
        match command {
            Command::Run(args) => {
                files.run(args);
                files.target("--json", args.json.as_ref());
            }
            Command::Suite(args) | Command::BisectCheck(args) => {
                args.rows.iter().for_each(|row| files.run(&row.run));
                files.fills("--run-dir", args.run_dir.as_deref());
                files.target("--json", args.json.as_ref());
                files.target("--ktap", args.ktap.as_ref());
                files.writes("--junit", args.junit.as_deref());
            }
            Command::Image(args) => {
                files.guest(&args.guest);
                files.reads("--kernel", args.kernel.as_deref());
                if let ImageAction::Write { output, .. } = &args.action {
                    files.writes("--output", Some(output));
                }
            }
            Command::Judge(args) => {
                files.reads("the record", Some(&args.run));
                EVIDENCE.iter().for_each(|name| files.reads("the run's", Some(&args.run.join(name))));
                files.target("--json", args.json.as_ref());
            }
            Command::Selftest(args) => {
                files.reads("--kernel", Some(&args.kernel));
                files.target("--json", args.json.as_ref());
            }
            _ => {}
        }
        files
    }

    fn run(&mut self, args: &RunArgs) {
        self.reads("--kernel", Some(&args.kernel));
        self.guest(&args.guest);
        if let Some(Distance::Matrix(path)) = &args.distance {
            self.reads("--distance", Some(path));
        }
        self.fills("--run-dir", args.run_dir.as_deref());
    }

    fn guest(&mut self, args: &GuestArgs) {
        if let Some(SchedChoice::External(path)) = &args.sched {
            self.reads("--sched", Some(path));
        }
        self.reads("--kernel-config", args.kernel_config.as_deref());
        for include in &args.include {
            self.reads("--include", Some(&include.host));
            self.whole.extend(directory("--include", Some(&include.host)));
        }
        args.scenarios.iter().for_each(|word| self.reads("--scenario", Some(Path::new(word))));
        self.whole.extend(directory("--modules", args.modules.as_deref()));
        if let Some(DiskSource::File(path)) = args.disk.as_ref().map(|disk| &disk.source) {
            self.reads("--disk", Some(path));
        }
    }

    /// A file that is not there is none: a word may be the name of something else.
    fn reads(&mut self, flag: &'static str, path: Option<&Path>) {
        self.read.extend(path.filter(|path| path.is_file()).map(|path| Named { flag, path: path.to_owned() }));
    }

    fn fills(&mut self, flag: &'static str, path: Option<&Path>) {
        self.filled.extend(directory(flag, path));
    }

    fn writes(&mut self, flag: &'static str, path: Option<&Path>) {
        self.written.extend(path.map(|path| Named { flag, path: path.to_owned() }));
    }

    fn target(&mut self, flag: &'static str, target: Option<&JsonTarget>) {
        if let Some(JsonTarget::File(path)) = target {
            self.writes(flag, Some(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn results_need_files_of_their_own() {
        let dir = std::env::temp_dir().join(format!("ktstr-distinct-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for name in ["kernel", "sched", "config", "scenario", "matrix", "disk", "record", "console.log", "old"] {
            fs::write(dir.join(name), "").unwrap();
        }
        symlink("kernel", dir.join("link")).unwrap();
        fs::hard_link(dir.join("sched"), dir.join("hard")).unwrap();
        symlink("new", dir.join("dangling")).unwrap();
        fs::create_dir_all(dir.join("tree/sub")).unwrap();
        fs::write(dir.join("tree/there"), "").unwrap();
        fs::write(dir.join("tree/sub/there"), "").unwrap();
        symlink("dangling", dir.join("twice")).unwrap();
        symlink("round", dir.join("round")).unwrap();
        symlink("tree/sub", dir.join("down")).unwrap();
        let base = "--kernel @kernel --sched @sched --kernel-config @config --include @old:/x --scenario @scenario \
                    --distance @matrix --disk @disk,scratch";
        let checked = |words: &str| {
            let words = words.replace('@', &format!("{}/", dir.display()));
            check(&parse(words.split_whitespace().map(Into::into)).unwrap()).map_err(|error| error.to_string())
        };
        for (words, flag) in [
            (format!("{base} --json @kernel"), "--kernel"),
            (format!("{base} --json @link"), "--kernel"),
            (format!("{base} --json @hard"), "--sched"),
            (format!("{base} --json @config"), "--kernel-config"),
            (format!("{base} --json @scenario"), "--scenario"),
            (format!("{base} --json @matrix"), "--distance"),
            (format!("{base} --json @disk"), "--disk"),
            (format!("{base} --json @old"), "--include"),
            ("--kernel @kernel --junit @new --ktap @new".into(), "--ktap"),
            ("--kernel @kernel --junit @new --json @./new".into(), "--json"),
            ("--matrix kernel=@kernel,@old --json @old".into(), "--kernel"),
            ("image --sched @sched --output @sched".into(), "--sched"),
            ("image --kernel @kernel --output @kernel".into(), "--kernel"),
            ("judge @record --json @record".into(), "the record"),
            ("judge @ --json @record".into(), "the run's"),
            ("judge @ --json @console.log".into(), "the run's"),
            ("--kernel @kernel --disk 64M --modules @tree --json @down/there".into(), "--modules"),
            ("selftest --kernel @kernel --json @kernel".into(), "--kernel"),
            ("--kernel @kernel --junit @dangling --ktap @new".into(), "--ktap"),
            ("--kernel @kernel --junit @twice --ktap @new".into(), "--ktap"),
            ("--kernel @kernel --json @tree/there --include @tree:/x".into(), "--include"),
            ("image --include @tree:/x --output @down/there".into(), "--include"),
            ("--kernel @kernel --json @down/new --run-dir @tree/sub".into(), "--run-dir"),
            ("--kernel @kernel --matrix topo=1,2 --json @tree/new --run-dir @tree".into(), "--run-dir"),
        ] {
            let why = checked(&words).expect_err(&words);
            assert!(why.contains("(a result needs a file of its own)") && why.contains(flag), "{words}: {why}");
        }
        for words in [
            format!("{base} --json @new"),
            format!("{base} --json /dev/null"),
            "--kernel @kernel --junit /dev/null --ktap /dev/null --json -".into(),
            "--kernel @kernel --junit @new --ktap @newer".into(),
            "--kernel @none --json @none".into(),
            "--kernel @kernel --json @tree/sub/new --include @tree:/x --modules @tree --disk 64M".into(),
            "--kernel @kernel --json @round".into(),
            "judge @record --json @old".into(),
            "--kernel @kernel --json @tree/new --run-dir @tree/sub --include @tree/sub:/x".into(),
        ] {
            assert_eq!(checked(&words), Ok(()), "{words}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
