//! The guest's disk on the host: a file of the user's, or memory of the run's own.
//!
//! Owns opening it and what is refused; leaves serving it to vmm/ and to QEMU.
//! Invariant: a disk that is written belongs to one run at a time.

use crate::error::{Context, Error, Result};
use crate::sys::fd;
use crate::units::size;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Unit of a disk's length.
const SECTOR_BYTES: u64 = 512;

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// Memory of the host, as the guest touches it; gone with the run.
    Memory { bytes: u64 },
    /// A raw image, or a block device.
    File(PathBuf),
}

/// A disk as asked for; a rate of 0 is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    pub source: DiskSource,
    pub read_only: bool,
    /// Work types may overwrite the user's file.
    pub scratch: bool,
    pub bytes_per_s: u64,
    pub requests_per_s: u64,
}

impl DiskSpec {
    /// Whether its content may be destroyed.
    pub fn is_scratch(&self) -> bool {
        !self.read_only && (self.scratch || matches!(self.source, DiskSource::Memory { .. }))
    }

    /// Its length, which the guest has to see.
    pub fn bytes(&self) -> Result<u64> {
        let DiskSource::File(path) = &self.source else { return self.checked_length(None) };
        let mut file = self.open_file(path)?;
        let length = file.seek(SeekFrom::End(0)).context(|| format!("measure the disk {}", path.display()))?;
        self.checked_length(Some(length))
    }

    fn checked_length(&self, of_file: Option<u64>) -> Result<u64> {
        let (bytes, what) = match (&self.source, of_file) {
            (DiskSource::Memory { bytes }, _) => (*bytes, format!("a disk of {}", size(*bytes))),
            (DiskSource::File(path), length) => (length.unwrap_or(0), format!("the disk {}", path.display())),
        };
        if bytes == 0 || bytes % SECTOR_BYTES != 0 {
            let message =
                format!("--disk: {what} has {bytes} bytes, which is no whole number of {SECTOR_BYTES}-byte sectors");
            return Err(Error::usage(message).hint("truncate --size makes a file longer"));
        }
        Ok(bytes)
    }

    /// Memory of the host that the guest can fill by writing.
    pub fn memory_bytes(&self) -> u64 {
        match self.source {
            DiskSource::Memory { bytes } => bytes,
            DiskSource::File(_) => 0,
        }
    }

    /// Opens it for a run of its own.
    pub fn open(&self) -> Result<Disk> {
        let bytes = self.bytes()?;
        let file = match &self.source {
            DiskSource::Memory { .. } => {
                fd::memfd("ktstr-disk", bytes).context(|| format!("reserve {} for the disk", size(bytes)))?
            }
            DiskSource::File(path) => {
                let file = self.open_file(path)?;
                let locked =
                    fd::try_lock(&file, !self.read_only).context(|| format!("lock the disk {}", path.display()))?;
                if !locked {
                    let message = format!("the disk {} is in use by another run", path.display());
                    return Err(Error::host(message).hint("',ro' after its name lets several runs read one"));
                }
                file
            }
        };
        Ok(Disk { file, bytes, spec: self.clone() })
    }

    fn open_file(&self, path: &Path) -> Result<File> {
        let attempt = || format!("open the disk {}", path.display());
        let file = File::options().read(true).write(!self.read_only).open(path).context(attempt).map_err(|error| {
            let hint = "--disk takes a size such as 64M, or a file; then any of ,ro ,scratch ,rate=SIZE ,iops=N";
            error.with_kind(crate::error::Kind::Usage).hint(hint)
        })?;
        let kind = file.metadata().context(attempt)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let message = format!("--disk: {} is neither a file nor a block device", path.display());
            return Err(Error::usage(message));
        }
        Ok(file)
    }
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    pub file: File,
    pub bytes: u64,
    pub spec: DiskSpec,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &Path, read_only: bool) -> DiskSpec {
        DiskSpec {
            source: DiskSource::File(path.to_owned()),
            read_only,
            scratch: false,
            bytes_per_s: 0,
            requests_per_s: 0,
        }
    }

    fn file(name: &str, bytes: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ktstr-disk-{name}-{}", std::process::id()));
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    #[test]
    fn file_is_one_run_s_while_it_is_written() {
        let path = file("lock", 4096);
        let first = of(&path, false).open().unwrap();
        assert_eq!(first.bytes, 4096);
        assert!(of(&path, false).open().unwrap_err().to_string().contains("in use by another run"));
        assert!(of(&path, true).open().is_err());
        drop(first);
        let (a, b) = (of(&path, true).open().unwrap(), of(&path, true).open().unwrap());
        assert!(of(&path, false).open().is_err());
        drop((a, b));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn odd_lengths_directories_and_missing_files_are_refused() {
        let path = file("odd", 1000);
        assert!(of(&path, false).bytes().unwrap_err().to_string().contains("no whole number of 512-byte sectors"));
        File::create(&path).unwrap();
        assert!(of(&path, false).bytes().is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(of(&path, false).open().unwrap_err().to_string().contains("--disk takes a size"));
        assert!(of(Path::new("/dev/null"), false).open().unwrap_err().to_string().contains("neither a file"));
        assert!(of(Path::new("/"), true).open().is_err());
    }

    #[test]
    fn memory_is_as_long_as_asked() {
        let spec = |bytes| DiskSpec { source: DiskSource::Memory { bytes }, ..of(Path::new(""), false) };
        assert_eq!(spec(1 << 20).open().unwrap().file.metadata().unwrap().len(), 1 << 20);
        assert_eq!((spec(1 << 20).memory_bytes(), spec(513).bytes().is_err()), (1 << 20, true));
    }
}
