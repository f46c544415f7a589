//! What guest images of the same files have in common, as a file that their VMs map: a run's own is only its plan.
//!
//! Owns finding and keeping it; leaves making images to image/ and the cache to cache.
//! Invariant: what is mapped has been read and is, byte for byte, what this run made: nothing in the cache is believed.

use super::cache;
use crate::error::{Context, Result};
use crate::image::Image;
use crate::sys::mmap::Mapping;
use crate::units::MIB;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::SystemTime;

const SUFFIX: &str = "image";
/// Images kept, one for each scheduler of a matrix; the least recently used goes first.
const KEPT: usize = 24;
/// A larger one is mostly data that a user includes, and not worth a second copy on disk.
const MOST_BYTES: u64 = 32 * MIB;
/// An image that its VMs share stays in their memory, as a kernel that gives it back writes all over it first: no more of
/// a guest's memory than this part.
const PART_OF_MEMORY: u64 = 8;

/// The file whose first `Image::shared_bytes` bytes are those of the image; none where it is not worth having.
pub fn find(cache: &Path, image: &Image) -> Result<Option<File>> {
    if !(1..=MOST_BYTES).contains(&image.shared_bytes) {
        return Ok(None);
    }
    let common = Mapping::read_only(&image.file, image.shared_bytes as usize).context(|| "map the guest image")?;
    let name = cache::name_of(common.bytes()).context(|| "read the guest image")?;
    let path = cache.join(format!("{name}.{SUFFIX}"));
    if let Some(found) = open(&path, common.bytes())? {
        return Ok(Some(found));
    }
    fs::create_dir_all(cache).context(|| format!("make {}", cache.display()))?;
    if path.exists() && open(&path, common.bytes())?.is_none() {
        fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
    }
    let written = cache::publish(&path, |file| file.write_all(common.bytes()));
    written.context(|| format!("write {}", path.display()))?;
    cache::evict(cache, SUFFIX, KEPT)?;
    open(&path, common.bytes())
}

/// Whether a guest of this memory can do without the memory of such an image.
pub fn fits(image: &Image, memory_bytes: u64) -> bool {
    image.bytes <= memory_bytes / PART_OF_MEMORY
}

/// The file, where it is there and has this content.
fn open(path: &Path, content: &[u8]) -> Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("open {}", path.display()))?,
    };
    if file.metadata().context(|| format!("look at {}", path.display()))?.len() != content.len() as u64 {
        return Ok(None);
    }
    if !holds(&file, content).context(|| format!("read {}", path.display()))? {
        return Ok(None);
    }
    // Used now: the cache forgets the others first. Not being allowed to say so is no reason to stop.
    drop(file.set_modified(SystemTime::now()));
    Ok(Some(file))
}

/// Whether a file is, from its beginning to its end, this content. It is read, and not mapped: a file that is cut while it
/// is mapped ends its reader.
fn holds(mut file: &File, content: &[u8]) -> io::Result<bool> {
    const PIECE_BYTES: usize = 64 << 10;
    let mut piece = vec![0; PIECE_BYTES];
    for part in content.chunks(PIECE_BYTES) {
        let there = &mut piece[..part.len()];
        match file.read_exact(there) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        if !same(there, part) {
            return Ok(false);
        }
    }
    Ok(file.read(&mut piece[..1])? == 0)
}

/// Whether two pieces of the same length are equal, word by word: musl's memcmp goes byte by byte, and took longer for an
/// image than anything else of a start.
fn same(one: &[u8], other: &[u8]) -> bool {
    const WORD: usize = size_of::<u128>();
    let (ones, others) = (one.chunks_exact(WORD), other.chunks_exact(WORD));
    let word = |bytes: &[u8]| <[u8; WORD]>::try_from(bytes).map_or(0, u128::from_ne_bytes);
    ones.remainder() == others.remainder() && ones.zip(others).all(|(one, other)| word(one) == word(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ktstr-shared-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// An image of which all but the last page is common.
    fn image(common: u8, own: u8) -> Image {
        let file = fd::memfd("image", 0).unwrap();
        file.write_all_at(&[common; 8192], 0).unwrap();
        file.write_all_at(&[own; 4096], 8192).unwrap();
        Image { file, bytes: 12_288, shared_bytes: 8192, entries: vec![], sched_guest_path: None, notes: vec![] }
    }

    #[test]
    fn runs_at_once_with_the_same_files_map_the_same_file() {
        let cache = scratch("at-once").join("cache");
        let one = |common: u8, own: u8| {
            let file = find(&cache, &image(common, own)).unwrap().unwrap();
            let mut content = vec![0; 8192];
            file.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(content, [common; 8192]);
            file.metadata().unwrap().ino()
        };
        let inodes: Vec<u64> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..8u8).map(|index| scope.spawn(move || one(index % 2, index))).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        assert!(inodes.iter().zip(&inodes[2..]).all(|(a, b)| a == b) && inodes[0] != inodes[1], "{inodes:?}");
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2, "a plan does not make another file");
        fs::remove_dir_all(cache.parent().unwrap()).unwrap();
    }

    #[test]
    fn file_that_was_changed_or_cut_is_never_mapped() {
        let cache = scratch("changed");
        assert!(find(&cache, &image(1, 1)).unwrap().is_some());
        let path = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        for spoil in [&|file: &File| file.write_all_at(b"x", 5000).unwrap(), &|file: &File| file.set_len(100).unwrap()]
            as [&dyn Fn(&File); 2]
        {
            spoil(&File::options().write(true).open(&path).unwrap());
            let made = find(&cache, &image(1, 1)).unwrap().unwrap();
            let mut content = vec![0; 8192];
            made.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(content, [1; 8192]);
        }
        fs::remove_dir_all(cache).unwrap();
    }

    #[test]
    fn file_holds_exactly_its_content_and_no_byte_more_less_or_else() {
        let dir = scratch("holds");
        let path = dir.join("file");
        // Over more than one piece, and no multiple of a word.
        let content: Vec<u8> = (0..150_003u32).map(|index| (index % 251) as u8).collect();
        let is_there = |there: &[u8]| {
            fs::write(&path, there).unwrap();
            holds(&File::open(&path).unwrap(), &content).unwrap()
        };
        assert!(is_there(&content));
        for at in [0, 15, 16, 65_535, 65_536, 131_072, 149_999, 150_002] {
            let mut other = content.clone();
            other[at] ^= 0x10;
            assert!(!is_there(&other), "byte {at}");
        }
        assert!(!is_there(&content[..150_002]) && !is_there(&[&content[..], b"x"].concat()) && !is_there(&[]));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn cache_that_cannot_be_written_is_an_error_and_a_large_image_is_left_out() {
        let file = scratch("unwritable").join("file");
        fs::write(&file, "").unwrap();
        assert!(find(&file.join("cache"), &image(1, 1)).is_err());
        let large = Image { shared_bytes: MOST_BYTES + 4096, ..image(1, 1) };
        assert!(find(file.parent().unwrap(), &large).unwrap().is_none());
        assert!(fits(&image(1, 1), 98_304) && !fits(&image(1, 1), 98_303));
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
    }
}
