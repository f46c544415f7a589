//! A file that the user named for a result.
//!
//! Owns creating, writing and taking it back; leaves what is in it to the commands.
//! Invariant: what was there before stays until there is a result; unless it was killed at once, a file that is there in the end has the whole result in it; only a file of its
//! own is ever taken back, never a device, a pipe or a link, nor what stands in its place meanwhile.

use super::args::JsonTarget;
use super::out;
use crate::error::{Context, Kind, Result};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Created before anything is done for the result, so that what cannot be created is found out in time.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    file: File,
    state: State,
}

/// What would be lost, were the file removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What was there before, as it was.
    Before,
    /// Nothing, or a part of the result.
    Unfinished,
    Whole,
}

impl ResultFile {
    /// The file of a result, where it goes to one.
    pub fn of(target: Option<&JsonTarget>) -> Result<Option<Self>> {
        match target {
            Some(JsonTarget::File(path)) => Self::create(path).map(Some),
            Some(JsonTarget::Stdout) | None => Ok(None),
        }
    }

    pub fn create(path: &Path) -> Result<Self> {
        let (opened, state) = match File::create_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (File::options().write(true).create(true).truncate(false).open(path), State::Before)
            }
            created => (created, State::Unfinished),
        };
        let file =
            opened.context(|| format!("create {}", path.display())).map_err(|error| error.with_kind(Kind::Usage))?;
        Ok(Self { path: path.to_owned(), file, state })
    }

    /// Writes all of it, in the place of what was there.
    pub fn write(&mut self, mut content: impl Read) -> Result<()> {
        self.state = State::Unfinished;
        // No file by its type, whose copying by the kernel a signal would end.
        let content: &mut dyn Read = &mut content;
        let is_file = self.file.metadata().is_ok_and(|data| data.is_file());
        let cleared = if is_file { self.file.set_len(0) } else { Ok(()) };
        let written = cleared.and_then(|()| io::copy(content, &mut self.file));
        if written.is_ok() {
            self.state = State::Whole;
        }
        written
            .map(drop)
            .context(|| format!("write {}", self.path.display()))
            .map_err(|error| error.hint("make room there, or name another place"))
    }
}

impl Drop for ResultFile {
    /// Half a result is worse than none.
    fn drop(&mut self) {
        // What another run has put in its place meanwhile is not ours.
        let own = self.file.metadata().map(|data| (data.dev(), data.ino()));
        let named = fs::symlink_metadata(&self.path).map(|data| (data.is_file(), data.dev(), data.ino()));
        let (Ok((dev, ino)), Ok(named)) = (own, named) else { return };
        if self.state != State::Unfinished || named != (true, dev, ino) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path).context(|| format!("remove {}", self.path.display())) {
            out::note(&format!("warning: half a result is left: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn file_without_its_whole_result_goes_and_nothing_else_does() {
        let directory = std::env::temp_dir().join(format!("ktstr-result-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (file, link) = (directory.join("file"), directory.join("link"));
        ResultFile::create(&file).unwrap().write(&b"all"[..]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"all");
        // What no result was written into is as it was.
        drop(ResultFile::create(&file).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"all");
        ResultFile::create(&file).unwrap().write(&b"a"[..]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"a");
        fs::remove_file(&file).unwrap();
        drop(ResultFile::create(&file).unwrap());
        assert!(!file.exists());
        let first = ResultFile::create(&file).unwrap();
        fs::remove_file(&file).unwrap();
        ResultFile::create(&file).unwrap().write(&b"another"[..]).unwrap();
        drop(first);
        assert_eq!(fs::read(&file).unwrap(), b"another");
        // The link stays, as /dev/stdout does.
        symlink("/dev/full", &link).unwrap();
        let refused = ResultFile::create(&link).unwrap().write(&b"all"[..]).unwrap_err();
        assert_eq!(refused.errno(), Some(libc::ENOSPC));
        assert!(refused.to_string().contains(&link.display().to_string()), "{refused}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(ResultFile::create(&directory).unwrap_err().kind(), Kind::Usage);
        fs::remove_dir_all(directory).unwrap();
    }
}
