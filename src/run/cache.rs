//! Files that VMs map, kept between runs below the user's cache: named by their content, whole or not there, and few.
//!
//! Owns names, publishing and tidying; leaves what is in them to unpacked and shared.
//! Invariant: a file has its name only when it is complete, and never changes after that.

use crate::error::{Context, Result};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// Below the user's cache; by this the mappings of its files are known.
pub const DIRECTORY: &str = "ktstr/unpacked";
/// How the name of a file that is being written ends, before numbers.
const PART: &str = "part";
/// A file that is still being written after this long has lost its writer.
const PART_ABANDONED: Duration = Duration::from_secs(3600);

/// Length and a hash of all that is read: it tells contents apart, and is no defence against anybody.
///
/// CRCs of small blocks, mixed: a CPU takes them many times as fast as anything that goes word by word, and kernels differ
/// in more than one block.
pub fn name_of(mut source: impl Read) -> io::Result<String> {
    /// Odd and without a pattern: 2^64 divided by the golden ratio.
    const MIX: u64 = 0x9E37_79B9_7F4A_7C15;
    const BLOCK_BYTES: usize = 4096;
    /// Read, and not mapped: a file that is cut while it is mapped ends its reader.
    const PIECE_BYTES: usize = 64 * BLOCK_BYTES;
    let (mut length, mut hash) = (0, 0u64);
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    while source.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)? > 0 {
        let sums = piece.chunks(BLOCK_BYTES).map(crc32fast::hash);
        hash = sums.fold(hash, |hash, sum| (hash ^ u64::from(sum)).wrapping_mul(MIX).rotate_left(29));
        length += piece.len();
        piece.clear();
    }
    Ok(format!("{length:x}-{hash:016x}"))
}

/// Has a file written, and gives it its name. Where somebody else was first, theirs stands, so that all map the same one:
/// what is there and is not whole is for the caller to remove before.
pub fn publish(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    static PARTS: AtomicU32 = AtomicU32::new(0);
    // In another PID namespace somebody may have our number: what is theirs is never opened.
    let (part, file) = loop {
        let number = PARTS.fetch_add(1, Ordering::Relaxed);
        let part = path.with_extension(format!("{PART}{}-{number}", std::process::id()));
        match File::create_new(&part) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => break (part, made),
        }
    };
    // Not every file system knows links; a rename may put ours in the place of another's, which is as good.
    let named = || match fs::hard_link(&part, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => fs::rename(&part, path),
        _ => Ok(()),
    };
    let done = file.and_then(|mut file| write(&mut file)).and_then(|()| named());
    let removed = if part.exists() { fs::remove_file(&part) } else { Ok(()) };
    done.and(removed)
}

/// Removes of the files with this ending what was not used for longest, and what never came to have a name.
pub fn evict(cache: &Path, suffix: &str, kept: usize) -> Result<()> {
    let what = || format!("tidy {}", cache.display());
    let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
    let mut gone = Vec::new();
    for entry in fs::read_dir(cache).context(what)?.flatten() {
        // Another run may be tidying too: what is gone is what is wanted.
        let (path, Ok(data)) = (entry.path(), entry.metadata()) else { continue };
        let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        match path.extension().and_then(|end| end.to_str()) {
            Some(end) if end == suffix => files.push((modified, path)),
            Some(end) if end.starts_with(PART) && modified.elapsed().is_ok_and(|age| age > PART_ABANDONED) => {
                gone.push(path);
            }
            _ => {}
        }
    }
    files.sort();
    let excess = files.len().saturating_sub(kept);
    gone.extend(files.into_iter().take(excess).map(|(_, path)| path));
    for path in gone {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context(what),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ktstr-cache-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn name_is_of_every_byte_and_the_length() {
        let name = |bytes: &[u8]| name_of(bytes).unwrap();
        let long = vec![7; 300_000];
        assert_eq!(name(&long), name(&long));
        for at in [0, 4095, 4096, 262_143, 262_144, 299_999] {
            let mut other = long.clone();
            other[at] = 8;
            assert_ne!(name(&long), name(&other), "byte {at}");
        }
        assert_ne!(name(&long), name(&long[1..]));
        assert!(name(b"").starts_with("0-"));
    }

    #[test]
    fn first_of_two_writers_gives_the_file_and_no_part_stays() {
        let directory = scratch("publish");
        let path = directory.join("1-2.kind");
        publish(&path, |file| file.write_all(b"first")).unwrap();
        publish(&path, |file| file.write_all(b"other")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        let theirs = |number: u32| directory.join(format!("5-6.{PART}{}-{number}", std::process::id()));
        (0..20).for_each(|number| fs::write(theirs(number), "theirs").unwrap());
        publish(&directory.join("5-6.kind"), |file| file.write_all(b"ours")).unwrap();
        (0..20).for_each(|number| assert_eq!(fs::read(theirs(number)).unwrap(), b"theirs"));
        (0..20).for_each(|number| fs::remove_file(theirs(number)).unwrap());
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(publish(&directory.join("3-4.kind"), |_| Err(full())).is_err());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        assert!(publish(&directory.join("no/such/x"), |_| Ok(())).is_err());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn least_recently_used_file_goes_first_and_abandoned_parts_go_too() {
        const KEPT: usize = 3;
        let directory = scratch("evict");
        let make = |name: &str, age_s: u64| {
            let file = File::create(directory.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        };
        (0..KEPT as u64 + 2).for_each(|index| make(&format!("{index}.kind"), index));
        for (name, age_s) in [("a.other", 9_000), ("b.part1-0", 9_000), ("c.part2-0", 0)] {
            make(name, age_s);
        }
        evict(&directory, "kind", KEPT).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["0.kind", "1.kind", "2.kind", "a.other", "c.part2-0"]);
        fs::remove_dir_all(directory).unwrap();
    }
}
