//! Kernels as they lie in memory: unpacked once, kept by content, and mapped by every VM that boots them.
//!
//! Owns unpacking and the form of its files; leaves the cache to cache, reading kernels to vmm/kernel, mapping to vmm/memory.
//! Invariant: a file's name is the packed content that it was made from: a rebuilt kernel is another, even one that is
//! rebuilt while it is read.
//!
//! A kernel is unpacked when it is seen for the second time: once costs more than it saves, and a kernel of a bisection is
//! seen once.

use super::cache;
use crate::error::{Context, Error, Result};
use crate::units::MIB;
use crate::vmm::kernel::{KernelImage, KernelKind, Segment};
use crate::vmm::x86::layout::{EXTENDED_RAM_START, MMIO_HOLE_START};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// First bytes of such a file; its first page is for it and `NUMBERS` numbers.
pub(super) const MAGIC: &[u8; 8] = b"KTSTRK02";
const NUMBERS: usize = 5;
/// Where the kernel begins in it: a page, so that it can be mapped.
pub const CONTENT_AT: u64 = 4096;
/// Kernels kept; the least recently used goes first. One takes about 60 MiB.
const KEPT: usize = 6;
const SUFFIX: &str = "kernel";
const SEEN: &str = "seen";
/// No kernel unpacks to more.
const UNPACKED_MOST_BYTES: u64 = 1024 * MIB;
/// payload_offset and payload_length of a bzImage (Documentation/arch/x86/boot.rst).
const PAYLOAD: (usize, usize) = (0x248, 0x24C);
const SETUP_SECTORS: usize = 0x1F1;
const SECTOR_BYTES: usize = 512;
/// The payload ends with its unpacked size (scripts/Makefile.lib, size_append), except gzip's, whose own end that is.
const SIZE_BYTES: usize = 4;

/// How payloads begin, and who unpacks them (lib/decompress.c).
const PACKERS: [(&[u8], &[&str]); 7] = [
    (b"\x28\xB5\x2F\xFD", &["zstd", "-dc"]),
    (b"\xFD7zXZ", &["xz", "-dc"]),
    (b"\x1F\x8B", &["gzip", "-dc"]),
    (b"\x02\x21\x4C\x18", &["lz4", "-dc"]),
    (b"BZh", &["bzip2", "-dc"]),
    (b"\x89LZO", &["lzop", "-dc"]),
    (b"\x5D\0\0", &["xz", "--format=lzma", "-dc"]),
];

/// A kernel in memory form.
#[derive(Debug)]
pub struct Unpacked {
    pub file: File,
    pub start_gpa: u64,
    pub bytes: u64,
    pub entry_gpa: u64,
    /// What the kernel only reads, from the first address to the one behind it; within it, and empty where that is not known.
    pub read_only: (u64, u64),
}

/// The kernel in memory form, where the cache has it or it is worth making; an error only says why there is none.
pub fn find(cache: &Path, kernel: &KernelImage) -> Result<Option<Unpacked>> {
    let what = || format!("read kernel {}", kernel.path.display());
    // What is unpacked is read from this very file, and must have the name that it has now.
    let mut source = File::open(&kernel.path).context(what)?;
    let name = cache::name_of(&source).context(what)?;
    let path = cache.join(format!("{name}.{SUFFIX}"));
    if let Some(found) = open(&path)? {
        return Ok(Some(found));
    }
    let seen = cache.join(format!("{name}.{SEEN}"));
    if !seen.exists() {
        fs::create_dir_all(cache).context(|| format!("make {}", cache.display()))?;
        File::create(&seen).context(|| format!("create {}", seen.display()))?;
        return Ok(None);
    }
    if let Err(error) = make(kernel, (&mut source, &name), &path) {
        // Told once for each kernel: without the program that unpacks it, it boots all the same.
        let told = fs::metadata(&seen).is_ok_and(|data| data.len() > 0);
        let noted = fs::write(&seen, error.to_string());
        return if told && noted.is_ok() { Ok(None) } else { Err(error) };
    }
    cache::evict(cache, SUFFIX, KEPT)?;
    open(&path)
}

/// Opens a file of the cache; none where it is not there, or is not whole.
pub(super) fn open(path: &Path) -> Result<Option<Unpacked>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("open {}", path.display()))?,
    };
    let mut header = [0; 8 + 8 * NUMBERS];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.context(|| format!("read {}", path.display()))?,
    }
    let number = |which: usize| u64::from_le_bytes(std::array::from_fn(|index| header[8 + 8 * which + index]));
    let [start_gpa, bytes, entry_gpa, read_only_gpa, read_only_end]: [u64; NUMBERS] = std::array::from_fn(number);
    let length = file.metadata().context(|| format!("look at {}", path.display()))?.len();
    // Whatever has come over the file, pages of it belong where a kernel may be, and what is only read is among them.
    let parts = [start_gpa, bytes, read_only_gpa, read_only_end];
    let fits = start_gpa.checked_add(bytes).is_some_and(|end| {
        let order = [EXTENDED_RAM_START, start_gpa, read_only_gpa, read_only_end, end, MMIO_HOLE_START];
        order.is_sorted() && (start_gpa..end).contains(&entry_gpa)
    });
    let fits = fits && parts.iter().all(|number| number % CONTENT_AT == 0);
    if !header.starts_with(MAGIC) || bytes.checked_add(CONTENT_AT) != Some(length) || !fits {
        return Ok(None);
    }
    // Used now: the cache forgets the others first. Not being allowed to say so is no reason to stop.
    drop(file.set_modified(SystemTime::now()));
    Ok(Some(Unpacked { file, start_gpa, bytes, entry_gpa, read_only: (read_only_gpa, read_only_end) }))
}

fn make(kernel: &KernelImage, (source, name): (&mut File, &str), path: &Path) -> Result<()> {
    let mut packed = Vec::new();
    let read = source.rewind().and_then(|()| source.read_to_end(&mut packed));
    let now = read.and_then(|_| cache::name_of(&packed[..]));
    if now.context(|| format!("read kernel {}", kernel.path.display()))? != name {
        return Err(Error::host(format!("kernel {} was written while it was read", kernel.path.display())));
    }
    let elf = match kernel.kind {
        KernelKind::Vmlinux => packed,
        KernelKind::BzImage => unpack(&packed, UNPACKED_MOST_BYTES)?,
    };
    let segments = KernelImage::segments(&elf)?;
    // Memory is empty without being told so.
    let filled = |segment: &Segment| {
        let content = &elf[segment.offset as usize..(segment.offset + segment.bytes) as usize];
        content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
    };
    let end = |segment: &Segment| segment.gpa + filled(segment);
    let (Some(start_gpa), Some(end_gpa)) =
        (segments.iter().map(|segment| segment.gpa).min(), segments.iter().map(end).max())
    else {
        return Err(Error::usage("the kernel has nothing to load"));
    };
    let bytes = end_gpa.saturating_sub(start_gpa).next_multiple_of(CONTENT_AT);
    if bytes == 0 || start_gpa % CONTENT_AT != 0 || start_gpa < kernel.start_gpa || end_gpa > kernel.end_gpa {
        return Err(Error::usage(format!(
            "what is in the kernel goes to {start_gpa:#x} to {end_gpa:#x}, not to {:#x} to {:#x} as its image says",
            kernel.start_gpa, kernel.end_gpa
        )));
    }
    let read_only = KernelImage::read_only(&elf, &segments).filter(|part| part.1 <= start_gpa + bytes);
    let read_only = read_only.unwrap_or((start_gpa, start_gpa));
    if path.exists() && open(path)?.is_none() {
        // It was cut by something else than ktstr.
        match fs::remove_file(path) {
            // Another run has seen it, too.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.context(|| format!("remove {}", path.display()))?,
        }
    }
    let written = cache::publish(path, |file| {
        file.write_all(MAGIC)?;
        let numbers: [u64; NUMBERS] = [start_gpa, bytes, KernelImage::elf_entry(&elf), read_only.0, read_only.1];
        for number in numbers {
            file.write_all(&number.to_le_bytes())?;
        }
        file.set_len(CONTENT_AT + bytes)?;
        for segment in &segments {
            let content = &elf[segment.offset as usize..(segment.offset + filled(segment)) as usize];
            file.write_all_at(content, CONTENT_AT + segment.gpa - start_gpa)?;
        }
        // A crash of the host must not leave a name without its content.
        file.sync_data()
    });
    written.context(|| format!("write {}", path.display()))
}

/// The ELF kernel inside a bzImage, unpacked by the program that made it; one that is longer than this is refused.
pub(super) fn unpack(image: &[u8], most_bytes: u64) -> Result<Vec<u8>> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let sectors = image.get(SETUP_SECTORS).map_or(0, |count| usize::from(if *count == 0 { 4 } else { *count }));
    let payload = || {
        let start = (sectors + 1) * SECTOR_BYTES + number(PAYLOAD.0)?;
        image.get(start..start.checked_add(number(PAYLOAD.1)?)?)
    };
    let payload = payload().ok_or_else(|| Error::usage("the bzImage does not tell its payload"))?;
    let (_, words) = PACKERS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .ok_or_else(|| Error::usage("the kernel is packed in a way that is not known"))?;
    let own_size = words[0] == "gzip";
    let packed = &payload[..payload.len().saturating_sub(if own_size { 0 } else { SIZE_BYTES })];
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context(|| format!("start {}", words[0]))?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut unpacked = Vec::new();
    let read = std::thread::scope(|scope| {
        // A program that stops reading has said so by its exit code.
        scope.spawn(move || input.map(|mut input| input.write_all(packed)));
        output.map(|output| output.take(most_bytes + 1).read_to_end(&mut unpacked))
    });
    let status = child.wait().context(|| format!("wait for {}", words[0]))?;
    match read {
        Some(Ok(_)) if unpacked.len() as u64 > most_bytes => {
            Err(Error::host(format!("the kernel is larger than {} unpacked", crate::units::size(most_bytes))))
        }
        Some(Ok(_)) if status.success() => Ok(unpacked),
        _ => Err(Error::host(format!("{} cannot unpack the kernel ({status})", words[0]))),
    }
}

#[cfg(test)]
#[path = "../../tests/fixtures/vmlinux.rs"]
mod fixture;

#[cfg(test)]
mod tests {
    use super::fixture::vmlinux;
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ktstr-unpacked-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn content(found: &Unpacked) -> Vec<u8> {
        let mut content = vec![0; found.bytes as usize];
        found.file.read_exact_at(&mut content, CONTENT_AT).unwrap();
        content
    }

    fn place(cache: &Path, kernel: &Path) -> PathBuf {
        cache.join(format!("{}.{SUFFIX}", cache::name_of(File::open(kernel).unwrap()).unwrap()))
    }

    #[test]
    fn kernel_that_is_rebuilt_while_it_is_read_is_never_kept_under_the_old_name() {
        let directory = scratch("rebuilt");
        let (kernel, cache) = (directory.join("vmlinux"), directory.join("cache"));
        fs::write(&kernel, vmlinux(b"old build")).unwrap();
        let image = KernelImage::open(&kernel).unwrap();
        let old = place(&cache, &kernel);
        let name = old.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut source = File::open(&kernel).unwrap();
        fs::create_dir(&cache).unwrap();
        fs::write(&kernel, vmlinux(b"new build")).unwrap();
        let refused = make(&image, (&mut source, &name), &old).unwrap_err();
        assert!(refused.to_string().contains("was written while it was read"), "{refused}");
        assert!(!old.exists());
        // A file that a build puts in the place of the old one leaves what is read as it was.
        let mut source = File::open(&kernel).unwrap();
        let new = place(&cache, &kernel);
        let name = new.file_stem().unwrap().to_str().unwrap().to_owned();
        fs::write(directory.join("next"), vmlinux(b"next one!")).unwrap();
        fs::rename(directory.join("next"), &kernel).unwrap();
        make(&image, (&mut source, &name), &new).unwrap();
        assert!(content(&open(&new).unwrap().unwrap()).starts_with(b"new build"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn runs_that_look_at_once_all_get_their_own_kernel_whole() {
        let directory = scratch("at-once");
        let cache = directory.join("cache");
        let kernels: Vec<(PathBuf, Vec<u8>)> = (0..2u8)
            .map(|index| {
                let (path, inside) = (directory.join(format!("vmlinux{index}")), vec![b'a' + index; 200_000]);
                fs::write(&path, vmlinux(&inside)).unwrap();
                (path, inside)
            })
            .collect();
        std::thread::scope(|scope| {
            for index in 0..8 {
                let (cache, (path, inside)) = (&cache, &kernels[index % 2]);
                scope.spawn(move || {
                    let image = KernelImage::open(path).unwrap();
                    for _ in 0..5 {
                        // None where it is new to the cache.
                        if let Some(found) = find(cache, &image).unwrap() {
                            assert!(content(&found).starts_with(inside), "kernel {index}");
                        }
                    }
                    assert!(find(cache, &image).unwrap().is_some(), "kernel {index}");
                });
            }
        });
        let parts = fs::read_dir(&cache)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end != SUFFIX && end != SEEN));
        assert_eq!(parts.count(), 0);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn kernel_is_kept_from_the_second_time_on_and_a_rebuilt_one_is_another() {
        let directory = scratch("second");
        let (kernel, cache) = (directory.join("vmlinux"), directory.join("cache"));
        fs::write(&kernel, vmlinux(b"first build")).unwrap();
        let image = KernelImage::open(&kernel).unwrap();
        assert!(find(&cache, &image).unwrap().is_none(), "once is not worth it");
        let found = find(&cache, &image).unwrap().unwrap();
        assert_eq!((found.start_gpa, found.bytes, found.entry_gpa), (0x100_0000, 4096, 0x100_0000));
        assert!(content(&found).starts_with(b"first build\0"));
        fs::write(&kernel, vmlinux(b"other build")).unwrap();
        assert!(find(&cache, &KernelImage::open(&kernel).unwrap()).unwrap().is_none());
        let other = find(&cache, &KernelImage::open(&kernel).unwrap()).unwrap().unwrap();
        assert!(content(&other).starts_with(b"other build\0"));
        fs::remove_dir_all(directory).unwrap();
    }

    /// A bzImage as short as it may be, whose payload lies first behind its setup (Documentation/arch/x86/boot.rst).
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 2 * SECTOR_BYTES];
        file[SETUP_SECTORS] = 1;
        for (at, number) in
            [(0x1F4, payload.len().div_ceil(16) as u32), (0x238, 2047), (PAYLOAD.1, payload.len() as u32)]
        {
            file[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        file[0x1FE..0x208].copy_from_slice(b"\x55\xAA\0\0HdrS\x0F\x02");
        // Loaded high, relocatable without bounds to speak of, with the 64-bit entry; preferred address and size.
        file[0x211] = 1;
        file[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
        file[0x236] = 1;
        file[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        file[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
        file.extend(payload);
        file.resize(file.len().next_multiple_of(16), 0);
        file
    }

    #[test]
    fn packed_kernel_is_kept_as_what_is_in_it() {
        let directory = scratch("packed");
        let (elf, kernel, cache) = (directory.join("vmlinux"), directory.join("vmlinuz"), directory.join("cache"));
        fs::write(&elf, vmlinux(b"what was packed")).unwrap();
        let packed = Command::new("gzip").arg("-c").arg(&elf).output().expect("run gzip");
        assert!(packed.status.success());
        fs::write(&kernel, bzimage(&packed.stdout)).unwrap();
        let image = KernelImage::open(&kernel).unwrap();
        assert_eq!(image.kind, KernelKind::BzImage);
        assert!(find(&cache, &image).unwrap().is_none());
        let found = find(&cache, &image).unwrap().unwrap();
        assert_eq!((found.start_gpa, found.bytes, found.entry_gpa), (0x100_0000, 4096, 0x100_0000));
        assert!(content(&found).starts_with(b"what was packed\0"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn file_that_is_not_whole_is_made_again() {
        let directory = scratch("cut");
        let (kernel, cache) = (directory.join("vmlinux"), directory.join("cache"));
        fs::write(&kernel, vmlinux(b"build")).unwrap();
        let image = KernelImage::open(&kernel).unwrap();
        find(&cache, &image).unwrap();
        find(&cache, &image).unwrap();
        let path = place(&cache, &kernel);
        let file = File::options().write(true).open(&path).unwrap();
        let spoil: [&dyn Fn(); 6] = [
            &|| file.set_len(5000).unwrap(),
            // The first form of such files, and every number in turn.
            &|| file.write_all_at(b"KTSTRK01", 0).unwrap(),
            &|| file.write_all_at(&(u64::MAX << 13).to_le_bytes(), 8).unwrap(),
            &|| file.write_all_at(&0u64.to_le_bytes(), 24).unwrap(),
            &|| file.write_all_at(&0x100_0001u64.to_le_bytes(), 32).unwrap(),
            &|| file.write_all_at(&u64::MAX.to_le_bytes(), 40).unwrap(),
        ];
        for spoil in spoil {
            let whole = fs::read(&path).unwrap();
            assert!(open(&path).unwrap().is_some());
            spoil();
            assert!(open(&path).unwrap().is_none());
            file.set_len(whole.len() as u64).unwrap();
            file.write_all_at(&whole, 0).unwrap();
        }
        file.set_len(5000).unwrap();
        assert!(content(&find(&cache, &image).unwrap().unwrap()).starts_with(b"build"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn why_a_kernel_stays_packed_is_told_once() {
        let directory = scratch("told");
        let (kernel, cache) = (directory.join("vmlinux"), directory.join("cache"));
        fs::write(&kernel, vmlinux(b"build")).unwrap();
        let image = KernelImage::open(&kernel).unwrap();
        assert!(find(&cache, &image).unwrap().is_none());
        // What is in the place of the finished file cannot be replaced by it.
        fs::create_dir(place(&cache, &kernel)).unwrap();
        assert!(find(&cache, &image).is_err());
        let packed = KernelImage { kind: KernelKind::BzImage, ..image };
        fs::remove_dir(place(&cache, &kernel)).unwrap();
        assert!(find(&cache, &packed).unwrap_err().to_string().contains("not known"));
        assert!(find(&cache, &packed).unwrap().is_none());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn payload_that_nobody_unpacks_is_an_error() {
        let mut image = vec![0; 4096];
        image[SETUP_SECTORS] = 1;
        image[PAYLOAD.1] = 64;
        assert!(unpack(&image, 1 << 20).unwrap_err().to_string().contains("not known"));
        assert!(unpack(b"short", 1 << 20).is_err());
    }
}
