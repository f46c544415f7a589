//! The cpio "newc" format, as the kernel's initramfs unpacker reads it: a writer and a strict reader.
//!
//! Owns the bytes of an archive; leaves what goes into one, and the file system, to the callers. Shared with build.rs, so
//! it needs nothing but std.
//! Invariant: the same calls give the same bytes, and no input makes the reader panic or look outside it.
//!
//! Source for the layout: Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c.

use std::fmt;
use std::io::{self, BufReader, Read, Write};

/// "070701": newc without checksums.
const MAGIC: &[u8; 6] = b"070701";
/// "070702": newc with a checksum per file; the kernel reads it too.
const MAGIC_CRC: &[u8; 6] = b"070702";
/// Magic and thirteen fields of eight hexadecimal digits.
const HEADER_BYTES: usize = 6 + 13 * 8;
/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Names longer than this are skipped by the kernel (PATH_MAX, include/uapi/linux/limits.h).
const NAME_MAX_BYTES: usize = 4096;
/// Headers and contents start at multiples of this.
const ALIGN: u64 = 4;
/// Archives are padded to this, as `cpio -o` does; the kernel skips zeros between archives.
const ARCHIVE_ALIGN: u64 = 512;
/// What is copied at once: few calls for a large file.
const COPY_BYTES: usize = 128 * 1024;

/// The file type bits of a mode (include/uapi/linux/stat.h).
pub const TYPE_MASK: u32 = 0o170000;
pub const TYPE_DIR: u32 = 0o040000;
pub const TYPE_FILE: u32 = 0o100000;
pub const TYPE_LINK: u32 = 0o120000;
pub const TYPE_CHAR: u32 = 0o020000;

/// Writes one archive. Times are zero, owner is root, inode numbers count up: nothing of the host gets in.
pub struct Writer<W> {
    out: W,
    offset: u64,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive at the present position of `out`, which must be a multiple of 512 in its file.
    pub fn new(out: W) -> Self {
        Self { out, offset: 0, inode: 0 }
    }

    pub fn dir(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        self.header(path, TYPE_DIR | permissions, 0, (0, 0))
    }

    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.file_from(path, permissions, content.len() as u64, &mut &*content)
    }

    /// A file of exactly `bytes` bytes read from `source`; a source that ends early is an error.
    pub fn file_from<R: Read>(&mut self, path: &str, permissions: u32, bytes: u64, source: &mut R) -> io::Result<()> {
        self.header(path, TYPE_FILE | permissions, bytes, (0, 0))?;
        // No file by its type: between two files std leaves copying to the kernel (copy_file_range(2), sendfile(2)), and
        // takes a signal that arrives meanwhile for a failure (EINTR).
        let source: &mut dyn Read = source;
        let copied = io::copy(&mut BufReader::with_capacity(COPY_BYTES, source.take(bytes)), &mut self.out)?;
        self.offset += copied;
        if copied != bytes {
            let what = format!("{path} became shorter while it was read: {copied} of {bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.pad(ALIGN)
    }

    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.header(path, TYPE_LINK | 0o777, target.len() as u64, (0, 0))?;
        self.bytes(target.as_bytes())?;
        self.pad(ALIGN)
    }

    /// A character device.
    pub fn char_device(&mut self, path: &str, permissions: u32, device: (u32, u32)) -> io::Result<()> {
        self.header(path, TYPE_CHAR | permissions, 0, device)
    }

    /// Ends the archive; gives back the output and the number of bytes written.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.inode = 0;
        self.raw_header(TRAILER, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, TRAILER.len() as u32 + 1, 0])?;
        self.pad(ARCHIVE_ALIGN)?;
        Ok((self.out, self.offset))
    }

    fn header(&mut self, path: &str, mode: u32, bytes: u64, device: (u32, u32)) -> io::Result<()> {
        let invalid = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?}: {why}")));
        let name = path.strip_prefix('/').unwrap_or(path);
        if name.is_empty() || name.contains('\0') || name == TRAILER {
            return invalid("not a name for an archive entry");
        }
        if name.len() + 1 > NAME_MAX_BYTES {
            return invalid("the name is longer than the kernel unpacks");
        }
        let Ok(size) = u32::try_from(bytes) else {
            return invalid("the file is larger than the 4 GiB a newc archive can hold");
        };
        self.inode += 1;
        // Directories count themselves twice, by custom; anything else must be 1, or the kernel looks for a hard link.
        let links = if mode & TYPE_MASK == TYPE_DIR { 2 } else { 1 };
        let (major, minor) = device;
        let name_bytes = name.len() as u32 + 1;
        self.raw_header(name, [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_bytes, 0])
    }

    fn raw_header(&mut self, name: &str, fields: [u32; 13]) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER_BYTES + name.len() + 1 + ALIGN as usize);
        header.extend_from_slice(MAGIC);
        for field in fields {
            header.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        self.bytes(&header)?;
        self.pad(ALIGN)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, align: u64) -> io::Result<()> {
        const ZEROS: [u8; ARCHIVE_ALIGN as usize] = [0; ARCHIVE_ALIGN as usize];
        let missing = self.offset.next_multiple_of(align) - self.offset;
        self.bytes(&ZEROS[..missing as usize])
    }
}

/// One entry of an archive, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// As written in the archive: without a leading slash in those we write.
    pub name: &'a str,
    pub mode: u32,
    pub device: (u32, u32),
    /// The content of a file, the target of a link.
    pub content: &'a [u8],
}

/// What is wrong with an archive, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub offset: usize,
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.what)
    }
}

/// Reads any number of concatenated archives, entry by entry; trailers and padding are passed over.
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// An archive has begun and its trailer has not come yet.
    inside: bool,
    failed: bool,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0, inside: false, failed: false }
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, Malformed> {
        Err(Malformed { offset: self.offset, what })
    }

    /// The next `count` bytes, without moving on.
    fn slice(&self, from: usize, count: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        match from.checked_add(count).and_then(|end| self.bytes.get(from..end)) {
            Some(slice) => Ok(slice),
            None => self.fail(what),
        }
    }

    fn step(&mut self) -> Result<Option<Entry<'a>>, Malformed> {
        loop {
            if !self.inside {
                let rest = &self.bytes[self.offset..];
                self.offset += rest.iter().take_while(|byte| **byte == 0).count();
            }
            if self.offset == self.bytes.len() {
                return if self.inside { self.fail("the archive ends without a trailer") } else { Ok(None) };
            }
            let entry = self.entry()?;
            self.inside = entry.name != TRAILER;
            if self.inside {
                return Ok(Some(entry));
            }
        }
    }

    fn entry(&mut self) -> Result<Entry<'a>, Malformed> {
        if self.offset % ALIGN as usize != 0 {
            return self.fail("a header does not start at a multiple of 4");
        }
        let header = self.slice(self.offset, HEADER_BYTES, "a header is cut off")?;
        let (magic, digits) = header.split_at(MAGIC.len());
        if magic != MAGIC && magic != MAGIC_CRC {
            return self.fail("no newc header here (a compressed archive must be unpacked first)");
        }
        let mut fields = [0u32; 13];
        for (field, text) in fields.iter_mut().zip(digits.chunks_exact(8)) {
            *field = match hex(text) {
                Some(value) => value,
                None => return self.fail("a header field is not hexadecimal"),
            };
        }
        let [_, mode, _, _, _, _, size, _, _, major, minor, name_bytes, _] = fields;
        let (size, name_bytes) = (size as usize, name_bytes as usize);
        if name_bytes == 0 || name_bytes > NAME_MAX_BYTES {
            return self.fail("a name is empty or longer than 4096 bytes");
        }
        let name_at = self.offset + HEADER_BYTES;
        let name = self.slice(name_at, name_bytes, "a name is cut off")?;
        let Some((0, name)) = name.split_last().map(|(last, name)| (*last, name)) else {
            return self.fail("a name does not end in NUL");
        };
        let name = match std::str::from_utf8(name) {
            Ok(name) if !name.is_empty() && !name.contains('\0') => name,
            _ => return self.fail("a name is empty, holds a NUL or is not UTF-8"),
        };
        // Padding that nothing follows may be missing.
        let padded = |end: usize| end.next_multiple_of(ALIGN as usize).min(self.bytes.len());
        let content_at = padded(name_at + name_bytes);
        let content = self.slice(content_at, size, "a content is cut off")?;
        self.offset = padded(content_at + size);
        Ok(Entry { name, mode, device: (major, minor), content })
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}

/// Exactly eight hexadecimal digits; `from_str_radix` alone would take a sign too.
fn hex(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0u32, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.dir("/dev", 0o755).unwrap();
        writer.char_device("/dev/console", 0o600, (5, 1)).unwrap();
        writer.file("/etc", 0o644, b"hello").unwrap();
        writer.link("/lib64", "lib").unwrap();
        let (bytes, count) = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, count);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<Entry<'_>>, Malformed> {
        Reader::new(bytes).collect()
    }

    #[test]
    fn what_is_written_reads_back() {
        let bytes = sample();
        assert_eq!(bytes.len() % 512, 0);
        let entries = read(&bytes).unwrap();
        let console = Entry { name: "dev/console", mode: TYPE_CHAR | 0o600, device: (5, 1), content: b"" };
        assert_eq!(entries.len(), 4);
        assert_eq!(entries[1], console);
        assert_eq!(entries[2].content, b"hello");
        assert_eq!((entries[3].mode & TYPE_MASK, entries[3].content), (TYPE_LINK, &b"lib"[..]));
    }

    #[test]
    fn first_header_has_the_documented_bytes() {
        let header = "070701000000010000 41ed000000000000000000000002000000000000000000000000000000000000000000000000\
                      0000000400000000dev\0"
            .replace(' ', "");
        assert_eq!(&sample()[..header.len()], header.as_bytes());
    }

    #[test]
    fn two_archives_read_as_one() {
        let bytes = [sample(), vec![0; 1024], sample()].concat();
        assert_eq!(read(&bytes).unwrap().len(), 8);
    }

    #[test]
    fn every_cut_is_an_error_or_ends_in_the_padding() {
        let bytes = sample();
        let trailer_end = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count() + 1;
        for cut in 1..bytes.len() {
            assert_eq!(read(&bytes[..cut]).is_ok(), cut >= trailer_end, "cut at {cut}");
        }
        assert_eq!(read(&[]).unwrap(), []);
    }

    #[test]
    fn every_changed_byte_is_read_without_panic() {
        let bytes = sample();
        for at in 0..bytes.len() {
            for value in [0, b'0', b'f', b'+', 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                for entry in Reader::new(&changed).flatten() {
                    assert!(entry.content.len() <= changed.len());
                }
            }
        }
    }

    #[test]
    fn signs_and_foreign_magics_are_refused() {
        let mut bytes = sample();
        bytes[6] = b'+';
        assert_eq!(read(&bytes).unwrap_err().what, "a header field is not hexadecimal");
        let gzip = [0x1f, 0x8b, 8, 0].repeat(64);
        assert!(read(&gzip).unwrap_err().what.contains("compressed"));
    }

    #[test]
    fn names_the_kernel_would_not_unpack_are_refused() {
        let mut writer = Writer::new(Vec::new());
        for name in ["", "/", "a\0b", "TRAILER!!!", &"x".repeat(4096)] {
            assert!(writer.dir(name, 0o755).is_err(), "{name:?}");
        }
        assert!(writer.dir(&"x".repeat(4095), 0o755).is_ok());
    }

    #[test]
    fn source_that_ends_early_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        let error = writer.file_from("/a", 0o644, 10, &mut &b"short"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
