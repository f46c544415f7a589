//! A file that the user named for a result.
//!
//! Owns creating, writing and taking it back; leaves what is in it to the commands.
//! Invariant: unless it was killed at once, a file that is there in the end has the whole result in it; only a file of its
//! own is ever taken back, never a device, a pipe or a link, nor what stands in its place meanwhile.

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
    whole: bool,
}

impl ResultFile {
    pub fn create(path: &Path) -> Result<Self> {
        let created = File::create(path).context(|| format!("create {}", path.display()));
        let file = created.map_err(|error| error.with_kind(Kind::Usage))?;
        Ok(Self { path: path.to_owned(), file, whole: false })
    }

    /// Writes all of it.
    pub fn write(&mut self, mut content: impl Read) -> Result<()> {
        // No file by its type, whose copying by the kernel a signal would end.
        let content: &mut dyn Read = &mut content;
        let written = io::copy(content, &mut self.file);
        self.whole = written.is_ok();
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
        if self.whole || named != (true, dev, ino) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path).context(|| format!("remove {}", self.path.display())) {
            out::print_error(&format!("ktstr: warning: half a result is left: {error}\n"));
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
