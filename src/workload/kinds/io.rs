//! Types that wait for storage: IoSyncWrite, IoRandRead, IoConvoy.
//!
//! Owns the backing and the loops; leaves the choice of a disk to the configuration: a disk that nobody named is never written.
//! Invariant: a worker writes only into its own stripe; a temporary file has no name once it is open.

use super::Task;
use super::path::Path;
use crate::sys::mmap::Mapping;
use crate::sys::{fd, process, time};
use std::io;
use std::os::fd::OwnedFd;

/// Place of the one sample kind of each type here.
const ONLY: usize = 0;
/// Blocks of 4096 bytes: the page size, which O_DIRECT takes on every file system and device.
const BLOCK_BYTES: u64 = 4096;
/// Workers write into one of so many stripes, by thread id.
const STRIPES: u64 = 64;
/// Size of a temporary file.
const FILE_BYTES: u64 = 16 << 20;
/// Writes of IoSyncWrite between two syncs, and iterations of IoConvoy.
const PER_SYNC: u64 = 16;

/// Where a worker reads and writes.
pub struct Backing {
    file: OwnedFd,
    buffer: Mapping,
    bytes: u64,
    stripe_at: u64,
    stripe_bytes: u64,
    next: u64,
}

impl Backing {
    /// The disk, or a temporary file; `flags` as O_SYNC or O_DIRECT. Ends the worker where neither can be had.
    pub fn open(task: &mut Task<'_>, flags: i32) -> Self {
        let opened = match &task.birth.means.disk {
            Some(disk) => Self::open_disk(disk, flags).map(|(file, bytes)| (file, bytes, "the disk", true)),
            None => Self::open_file(&task.birth.means.temporary, flags)
                .map(|(file, kept)| (file, FILE_BYTES, "a temporary file", kept)),
        };
        let (file, bytes, what, direct) = match opened {
            Ok(opened) => opened,
            Err(error) => task.fail("open its backing file or disk", &error),
        };
        let cached = if direct { "" } else { ", through the page cache: its file system has no O_DIRECT" };
        task.notice(format_args!("i/o on {what}{cached}"));
        let buffer = match Mapping::private_anonymous(BLOCK_BYTES as usize) {
            Ok(buffer) => buffer,
            Err(error) => task.fail("map its buffer", &error),
        };
        let stripe_bytes = (bytes / STRIPES / BLOCK_BYTES).max(1) * BLOCK_BYTES;
        let stripe = process::thread_id() as u64 % STRIPES;
        let stripe_at = (stripe * stripe_bytes).min(bytes.saturating_sub(stripe_bytes));
        // What was set up is no gap.
        task.sampler.resume_at(time::monotonic_ns());
        Self { file, buffer, bytes, stripe_at, stripe_bytes, next: 0 }
    }

    fn open_disk(disk: &std::ffi::CStr, flags: i32) -> io::Result<(OwnedFd, u64)> {
        let file = fd::open_with(disk, libc::O_RDWR | flags)?;
        let bytes = fd::device_bytes(&file)?;
        if bytes < BLOCK_BYTES {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok((file, bytes))
    }

    /// Also whether it has the flags asked for: a file system without O_DIRECT answers EINVAL.
    fn open_file(directory: &str, flags: i32) -> io::Result<(OwnedFd, bool)> {
        let tid = process::thread_id();
        let path = Path::format(format_args!("{directory}/ktstr-io-{tid}-{}", time::monotonic_ns()))?;
        let create = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        // The content is written without flags first: a hole would be read without any device.
        let plain = fd::open_with(path.as_c_str(), create)?;
        let again = match fd::open_with(path.as_c_str(), libc::O_RDWR | flags) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                fd::open_with(path.as_c_str(), libc::O_RDWR).map(|file| (file, false))
            }
            other => other.map(|file| (file, true)),
        };
        fd::unlink(path.as_c_str())?;
        fd::truncate(&plain, FILE_BYTES)?;
        if flags & libc::O_DIRECT != 0 && !fd::in_memory(&plain)? {
            let buffer = Mapping::private_anonymous(BLOCK_BYTES as usize)?;
            for at in (0..FILE_BYTES).step_by(BLOCK_BYTES as usize) {
                buffer.write_to(&plain, BLOCK_BYTES as usize, at)?;
            }
            fd::data_sync(&plain)?;
        }
        again
    }

    /// Writes the next block of the own stripe.
    pub fn write_next(&mut self) -> io::Result<()> {
        let at = self.stripe_at + self.next;
        self.next = (self.next + BLOCK_BYTES) % self.stripe_bytes;
        self.whole(self.buffer.write_to(&self.file, BLOCK_BYTES as usize, at)?)
    }

    /// Reads block `draw` of all, modulo their number.
    fn read_block(&self, draw: u64) -> io::Result<()> {
        let at = draw % (self.bytes / BLOCK_BYTES) * BLOCK_BYTES;
        self.whole(self.buffer.read_from(&self.file, BLOCK_BYTES as usize, at)?)
    }

    fn whole(&self, bytes: usize) -> io::Result<()> {
        if bytes as u64 == BLOCK_BYTES { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
    }

    fn sync(&self) -> io::Result<()> {
        fd::data_sync(&self.file)
    }
}

/// Does one iteration's I/O and samples its time; an interruption is the stop.
fn timed(task: &mut Task<'_>, blocks: u64, work: impl FnOnce() -> io::Result<()>) {
    let before = task.sampler.tick();
    match work() {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
        Err(error) => task.fail("read or write its backing", &error),
        Ok(()) => {}
    }
    let after = time::monotonic_ns();
    task.sampler.resume_at(after);
    task.sampler.record(ONLY, after.saturating_sub(before));
    task.units += blocks;
    task.iteration_done();
}

pub fn sync_write(task: &mut Task<'_>) {
    let mut backing = Backing::open(task, libc::O_SYNC);
    while !task.stopped() {
        timed(task, PER_SYNC, || {
            for _ in 0..PER_SYNC {
                backing.write_next()?;
            }
            backing.sync()
        });
    }
}

pub fn random_read(task: &mut Task<'_>) {
    let backing = Backing::open(task, libc::O_DIRECT);
    while !task.stopped() {
        let draw = task.rng.draw();
        timed(task, 1, || backing.read_block(draw));
    }
}

pub fn convoy(task: &mut Task<'_>) {
    let mut backing = Backing::open(task, libc::O_DIRECT);
    while !task.stopped() {
        let (draw, sync) = (task.rng.draw(), task.iterations % PER_SYNC == PER_SYNC - 1);
        timed(task, 2, || {
            backing.write_next()?;
            backing.read_block(draw)?;
            if sync { backing.sync() } else { Ok(()) }
        });
    }
}
