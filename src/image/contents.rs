//! What one run adds to the base archive, by guest path, and the writing of both.
//!
//! Owns the order of entries, their directories, and conflicts between them; leaves what to add to assemble.rs.
//! Invariant: every parent directory exists before its children, no path is written twice, and the end marker is the last
//! entry, so that PID 1 can tell a whole image from one the kernel could not unpack. The plan is on pages of its own: what
//! stands before it is equal for runs of the same files.

use super::assemble::{Entry, PLAN, list, purpose};
use super::cpio;
use crate::error::{Context, Error, Kind, Result};
use crate::sys;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The archive build.rs made from guest/.
pub const BASE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/base.cpio"));
/// What can be mapped apart begins on a page.
const PAGE_BYTES: u64 = 4096;
/// There exactly when the kernel has unpacked the whole image.
pub const END: &str = "/ktstr/end";

#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    Host(PathBuf),
    Bytes(Vec<u8>),
    Link(String),
    Dir,
}

#[derive(Debug)]
pub struct Item {
    permissions: u32,
    source: Source,
    why: String,
}

/// What this run's archive will hold, by path; the order of paths puts parents first.
#[derive(Debug, Default)]
pub struct Contents(BTreeMap<String, Item>);

impl Contents {
    pub fn holds(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    pub fn add_file(&mut self, path: &str, host: &Path, permissions: u32, why: &str) -> Result<()> {
        self.add(path, permissions, Source::Host(host.to_path_buf()), why)
    }

    pub fn add_dir(&mut self, path: &str) -> Result<()> {
        match self.0.get(path) {
            Some(item) if item.source == Source::Dir => Ok(()),
            _ => self.add(path, 0o755, Source::Dir, "included"),
        }
    }

    pub fn add(&mut self, path: &str, permissions: u32, source: Source, why: &str) -> Result<()> {
        let item = Item { permissions, source, why: why.to_string() };
        match self.0.insert(path.to_string(), item) {
            None => Ok(()),
            Some(before) => Err(Error::usage(format!("two files for {path} in the guest: {} and {why}", before.why))),
        }
    }

    /// Adds the directories that the base archive lacks; a file in the place of a directory, or the reverse, is an error.
    fn complete(&mut self, base: &BTreeMap<String, u32>) -> Result<()> {
        let is_dir = |path: &str| base.get(path).map(|mode| mode & cpio::TYPE_MASK == cpio::TYPE_DIR);
        let paths: Vec<String> = self.0.keys().cloned().collect();
        for path in &paths {
            if is_dir(path).is_some_and(|dir| dir != (self.0[path].source == Source::Dir)) {
                return Err(Error::usage(format!("{path} in the guest cannot be both a directory and something else")));
            }
            for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
                let parent = &path[..at];
                match (self.0.get(parent).map(|item| &item.source), is_dir(parent)) {
                    (Some(Source::Dir), _) | (None, Some(true)) => {}
                    (None, None) => {
                        let item = Item { permissions: 0o755, source: Source::Dir, why: String::new() };
                        self.0.insert(parent.to_string(), item);
                    }
                    _ => {
                        let message = format!("{path} in the guest lies under {parent}, which is no directory");
                        return Err(Error::usage(message));
                    }
                }
            }
        }
        Ok(())
    }
}

/// An image as written.
pub struct Written {
    /// A memory file, at its beginning.
    pub file: File,
    pub bytes: u64,
    /// What stands before the plan, in whole pages.
    pub shared_bytes: u64,
    /// What is not of the base archive.
    pub entries: Vec<Entry>,
}

/// Writes the base archive, that of the files, and that of the plan.
pub fn write(contents: &mut Contents) -> Result<Written> {
    let writing = || "write the guest image".to_string();
    let base: BTreeMap<String, u32> = list(BASE)?.into_iter().map(|entry| (entry.path, entry.mode)).collect();
    contents.complete(&base)?;
    let mut file = sys::fd::memfd("ktstr-initramfs", 0).context(writing)?;
    file.write_all(BASE).context(writing)?;
    let mut writer = cpio::Writer::new(file);
    let mut entries = Vec::new();
    let mut told = |path: &str, bytes: u64, mode: u32, why: &str| {
        entries.push(Entry { path: path.to_string(), bytes, mode, why: why.to_string() });
    };

    let plan = contents.0.remove(PLAN);
    for (path, item) in &contents.0 {
        let (permissions, why) = (item.permissions, &item.why);
        match &item.source {
            Source::Host(host) => {
                let bytes = write_file(&mut writer, path, permissions, host)?;
                told(path, bytes, cpio::TYPE_FILE | permissions, why);
            }
            Source::Bytes(content) => {
                writer.file(path, permissions, content).context(writing)?;
                told(path, content.len() as u64, cpio::TYPE_FILE | permissions, why);
            }
            Source::Link(target) => {
                writer.link(path, target).context(writing)?;
                told(path, target.len() as u64, cpio::TYPE_LINK | permissions, why);
            }
            // A directory of the base keeps its mode.
            Source::Dir if base.contains_key(path) => {}
            Source::Dir => {
                writer.dir(path, permissions).context(writing)?;
                told(path, 0, cpio::TYPE_DIR | permissions, why);
            }
        }
    }
    let (mut file, bytes) = writer.finish().context(writing)?;
    let shared_bytes = (BASE.len() as u64 + bytes).next_multiple_of(PAGE_BYTES);
    // Zeros between archives are passed over.
    file.seek(SeekFrom::Start(shared_bytes)).context(writing)?;
    let mut writer = cpio::Writer::new(file);
    if let Some(Item { permissions, source: Source::Bytes(content), why }) = plan {
        writer.file(PLAN, permissions, &content).context(writing)?;
        told(PLAN, content.len() as u64, cpio::TYPE_FILE | permissions, &why);
    }
    let end = format!("{}\n", env!("KTSTR_BUILD"));
    writer.file(END, 0o444, end.as_bytes()).context(writing)?;
    told(END, end.len() as u64, cpio::TYPE_FILE | 0o444, purpose(END));
    let (mut file, bytes) = writer.finish().context(writing)?;
    file.rewind().context(writing)?;
    Ok(Written { file, bytes: shared_bytes + bytes, shared_bytes, entries })
}

/// Copies one host file in; std hands this to the kernel where it can.
fn write_file(writer: &mut cpio::Writer<File>, path: &str, permissions: u32, host: &Path) -> Result<u64> {
    let packing = || format!("pack {} into the guest image", host.display());
    let mut source = sys::fd::open_at_once(host).context(packing).map_err(|error| error.with_kind(Kind::Usage))?;
    let meta = source.metadata().context(packing)?;
    if !meta.is_file() {
        return Err(Error::usage(format!("cannot pack {} into the guest image: not a regular file", host.display())));
    }
    // It says that it is empty, and reading it may wait, or take what is there from others.
    if meta.len() == 0 && sys::fd::is_made_by_kernel(&source).context(packing)? {
        let what = format!("cannot pack {} into the guest image: its length is not known beforehand", host.display());
        return Err(Error::usage(what).hint("copy it into a file, and pack that"));
    }
    writer.file_from(path, permissions, meta.len(), &mut source).context(packing)?;
    Ok(meta.len())
}
