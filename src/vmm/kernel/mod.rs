//! The kernel under test as a file: which kind it is, and how much guest memory it takes.
//!
//! Owns recognising and checking a bzImage or an ELF vmlinux for x86_64; leaves loading it to x86/boot.
//! Invariant: file contents are hostile: every number taken from them is checked against the file and the address map.

mod foreign;

use super::x86::layout::{CMDLINE_AREA_BYTES, EXTENDED_RAM_START, HUGE_PAGE_BYTES, MMIO_HOLE_START};
use crate::error::{Context, Error, Result};
use crate::units;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The two forms of an x86_64 kernel that can be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    BzImage,
    Vmlinux,
}

/// A kernel file that passed its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage {
    pub path: PathBuf,
    pub kind: KernelKind,
    /// Guest-physical memory the kernel needs before it can look after itself: start and end.
    pub start_gpa: u64,
    pub end_gpa: u64,
    /// The 64-bit entry point.
    pub entry_gpa: u64,
    /// An initramfs has to end at or below this.
    pub initramfs_end_max: u64,
    /// Longest command line this kernel reads, without its final zero.
    pub cmdline_max_bytes: u64,
}

/// A stretch of an ELF kernel: where in the file, and where in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub gpa: u64,
    pub bytes: u64,
}

/// Offset and size of the part of a bzImage that holds its setup header (Documentation/arch/x86/boot.rst).
const SETUP_HEADER_END: usize = 0x270;
const BOOT_FLAG: (usize, u16) = (0x1FE, 0xAA55);
const SETUP_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// Boot protocol 2.12 brought `xloadflags`, without which the 64-bit entry is not known (Linux 3.8).
const PROTOCOL_MIN: u16 = 0x020C;
/// xloadflags bit 0: the image has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point lies this far into the protected-mode part.
const STARTUP_64_OFFSET: u64 = 0x200;
const SECTOR_BYTES: u64 = 512;
/// A `setup_sects` of 0 means this.
const DEFAULT_SETUP_SECTORS: u8 = 4;
/// `syssize` counts paragraphs of this size, rounded up.
const PARAGRAPH_BYTES: u64 = 16;

/// ELF64 sizes and numbers (System V ABI, include/uapi/linux/elf.h).
const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const SECTION_HEADER_BYTES: usize = 64;
const PROGRAM_HEADERS_MAX: u16 = 128;
const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
const ELF_X86_64: u16 = 62;
const ELF_TYPE_RELOCATABLE: u16 = 1;
const ELF_TYPE_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
/// Kernel text is linked in the top half of the address space (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_HALF: u64 = 0xFFFF_8000_0000_0000;
/// A kernel without a setup header: the limits every kernel since 2.6.26 has (INITRD_ADDR_MAX, COMMAND_LINE_SIZE).
const VMLINUX_INITRAMFS_END: u64 = 0x8000_0000;
const VMLINUX_CMDLINE_MAX: u64 = 2047;

/// What `linux_banner` begins with (init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";
/// No release string is longer: __NEW_UTS_LEN.
const RELEASE_MAX_BYTES: usize = 64;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl KernelImage {
    /// Opens and checks a kernel file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_file(path).map(|(image, _)| image)
    }

    /// The same, with the open file, so that what is loaded is what was checked.
    pub fn open_file(path: &Path) -> Result<(Self, File)> {
        let name = path.display();
        let usage = |error: Error| error.with_kind(crate::error::Kind::Usage);
        // Looked at before it is opened: opening a FIFO would wait for its writer.
        let meta = std::fs::metadata(path).context(|| format!("open kernel {name}")).map_err(usage)?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "a directory" } else { "no regular file" };
            return Err(Error::usage(format!("kernel {name} is {what}")).hint(foreign::GIVE_KERNEL));
        }
        if meta.len() == 0 {
            return Err(Error::usage(format!("kernel {name} is empty")).hint(foreign::GIVE_KERNEL));
        }
        let mut file = File::open(path).context(|| format!("open kernel {name}")).map_err(usage)?;
        let mut head = Vec::new();
        let wanted = SETUP_HEADER_END.max(foreign::HEAD_BYTES) as u64;
        file.by_ref().take(wanted).read_to_end(&mut head).context(|| format!("read kernel {name}")).map_err(usage)?;
        let image = Self::recognise(path, &head, meta.len(), &file)?;
        Ok((image, file))
    }

    fn recognise(path: &Path, head: &[u8], file_bytes: u64, file: &File) -> Result<Self> {
        let checked = if u16_at(head, BOOT_FLAG.0) == BOOT_FLAG.1
            && head.get(SETUP_MAGIC.0..).is_some_and(|rest| rest.starts_with(SETUP_MAGIC.1))
        {
            Self::check_bzimage(path, head, file_bytes)
        } else if head.starts_with(b"\x7fELF") {
            Self::check_elf(path, head, file_bytes, file)
        } else {
            let (what, hint) = foreign::describe(&head[..head.len().min(foreign::HEAD_BYTES)]);
            Err(Error::usage(format!("it is {what}")).hint(hint))
        };
        checked.map_err(|error| error.while_doing(format!("kernel {} cannot be booted", path.display())))
    }

    fn check_bzimage(path: &Path, head: &[u8], file_bytes: u64) -> Result<Self> {
        if head.len() < SETUP_HEADER_END {
            return Err(truncated("bzImage", SETUP_HEADER_END as u64, head.len() as u64));
        }
        let (protocol, load_flags, xload_flags) = (u16_at(head, 0x206), head[0x211], u16_at(head, 0x236));
        if protocol < PROTOCOL_MIN || load_flags & 1 == 0 {
            return Err(Error::usage(format!(
                "its boot protocol {}.{:02} is older than 2.12 (Linux 3.8), or it is no bzImage but a zImage",
                protocol >> 8,
                protocol & 0xff
            )));
        }
        if xload_flags & XLF_KERNEL_64 == 0 {
            return Err(Error::usage("it is a 32-bit x86 bzImage (i386), without the 64-bit entry point")
                .hint(foreign::GIVE_KERNEL));
        }
        let sectors = if head[0x1F1] == 0 { DEFAULT_SETUP_SECTORS } else { head[0x1F1] };
        let setup_bytes = (u64::from(sectors) + 1) * SECTOR_BYTES;
        let body_bytes = u64::from(u32_at(head, 0x1F4)) * PARAGRAPH_BYTES;
        if setup_bytes + body_bytes >= file_bytes + PARAGRAPH_BYTES || body_bytes == 0 {
            return Err(truncated("bzImage", setup_bytes + body_bytes, file_bytes));
        }
        let start_gpa = u64_at(head, 0x258);
        let span = u64::from(u32_at(head, 0x260)).max(file_bytes - setup_bytes);
        Ok(Self {
            path: path.into(),
            kind: KernelKind::BzImage,
            start_gpa,
            end_gpa: checked_end(start_gpa, span)?,
            entry_gpa: start_gpa + STARTUP_64_OFFSET,
            initramfs_end_max: u64::from(u32_at(head, 0x22C)) + 1,
            cmdline_max_bytes: u64::from(u32_at(head, 0x238)).min(CMDLINE_AREA_BYTES - 1),
        })
    }

    fn check_elf(path: &Path, head: &[u8], file_bytes: u64, file: &File) -> Result<Self> {
        if head.len() < ELF_HEADER_BYTES {
            return Err(truncated("ELF file", ELF_HEADER_BYTES as u64, file_bytes));
        }
        let (class, endian, kind, machine) = (head[4], head[5], u16_at(head, 16), u16_at(head, 18));
        if class != ELF_CLASS_64 || endian != ELF_LITTLE_ENDIAN || machine != ELF_X86_64 {
            let machine = if endian == ELF_LITTLE_ENDIAN { machine } else { machine.swap_bytes() };
            let bits = if class == ELF_CLASS_64 { 64 } else { 32 };
            let name = foreign::machine(machine);
            return Err(Error::usage(format!("it is a {bits}-bit ELF file for {name}, not for x86_64")));
        }
        let no_kernel =
            |what: &str| Err(Error::usage(format!("it is an x86_64 ELF file, but {what}")).hint(foreign::GIVE_KERNEL));
        match kind {
            ELF_TYPE_RELOCATABLE => return no_kernel("an object file or a kernel module"),
            ELF_TYPE_CORE => return no_kernel("a core dump"),
            _ => {}
        }
        let (entry_gpa, table, count) = (u64_at(head, 24), u64_at(head, 32), u16_at(head, 56));
        if u64::from(u16_at(head, 54)) != PROGRAM_HEADER_BYTES || !(1..=PROGRAM_HEADERS_MAX).contains(&count) {
            return no_kernel("its program headers are none of a kernel");
        }
        let table_bytes = u64::from(count) * PROGRAM_HEADER_BYTES;
        let table_end =
            table.checked_add(table_bytes).filter(|end| *end <= file_bytes && table >= ELF_HEADER_BYTES as u64);
        if table_end.is_none() {
            return Err(truncated("vmlinux", table.saturating_add(table_bytes), file_bytes));
        }
        let mut headers = vec![0u8; table_bytes as usize];
        file.read_exact_at(&mut headers, table)
            .context(|| format!("read the program headers of {}", path.display()))?;
        let (mut start_gpa, mut end_gpa) = (u64::MAX, 0);
        let loaded =
            || headers.chunks_exact(PROGRAM_HEADER_BYTES as usize).filter(|header| u32_at(header, 0) == PT_LOAD);
        // Not every part: the per-CPU data of kernels before 6.15 is linked to address 0.
        if loaded().next().is_some() && loaded().all(|header| u64_at(header, 16) < KERNEL_HALF) {
            return no_kernel("an ordinary program: it is not linked to a kernel's addresses");
        }
        for header in loaded() {
            let (offset, physical) = (u64_at(header, 8), u64_at(header, 24));
            let (bytes_in_file, bytes_in_memory) = (u64_at(header, 32), u64_at(header, 40));
            let end = offset.saturating_add(bytes_in_file);
            if end > file_bytes {
                return Err(truncated("vmlinux", end, file_bytes));
            }
            end_gpa = end_gpa.max(checked_end(physical, bytes_in_memory.max(bytes_in_file))?);
            start_gpa = start_gpa.min(physical);
        }
        if end_gpa == 0 {
            return no_kernel("it has nothing to load");
        }
        if !(start_gpa..end_gpa).contains(&entry_gpa) {
            return no_kernel(&format!("its entry point {entry_gpa:#x} lies outside what it loads"));
        }
        Ok(Self {
            path: path.into(),
            kind: KernelKind::Vmlinux,
            start_gpa,
            end_gpa,
            entry_gpa,
            initramfs_end_max: VMLINUX_INITRAMFS_END,
            cmdline_max_bytes: VMLINUX_CMDLINE_MAX,
        })
    }

    /// What an ELF kernel has to load, without what is empty. The file passed `open`, or comes from inside of one that did.
    pub fn segments(elf: &[u8]) -> Result<Vec<Segment>> {
        let head = &elf[..elf.len().min(SETUP_HEADER_END)];
        if !head.starts_with(b"\x7fELF") || head.len() < ELF_HEADER_BYTES {
            return Err(Error::usage("what is inside of the kernel is no ELF file"));
        }
        let (table, count) = (u64_at(head, 32) as usize, usize::from(u16_at(head, 56)));
        let end = count.checked_mul(PROGRAM_HEADER_BYTES as usize).and_then(|bytes| table.checked_add(bytes));
        let headers = end.and_then(|end| elf.get(table..end));
        let headers = headers.ok_or_else(|| truncated("vmlinux", table as u64, elf.len() as u64))?;
        let loaded = headers.chunks_exact(PROGRAM_HEADER_BYTES as usize).filter(|header| u32_at(header, 0) == PT_LOAD);
        let mut segments = Vec::new();
        for header in loaded {
            let segment = Segment { offset: u64_at(header, 8), gpa: u64_at(header, 24), bytes: u64_at(header, 32) };
            if segment.bytes == 0 {
                continue;
            }
            checked_end(segment.gpa, segment.bytes)?;
            let end = segment.offset.saturating_add(segment.bytes);
            if end > elf.len() as u64 {
                return Err(truncated("vmlinux", end, elf.len() as u64));
            }
            segments.push(segment);
        }
        Ok(segments)
    }

    /// The part that such a kernel only reads, from the first address to the one behind it, in whole huge pages: from
    /// `.rodata` to `.data`, which x86 aligns to them (X86_ALIGN_RODATA_BEGIN, arch/x86/kernel/vmlinux.lds.S). None where
    /// its sections do not tell.
    pub fn read_only(elf: &[u8], segments: &[Segment]) -> Option<(u64, u64)> {
        let table = usize::try_from(u64_at(elf, 40)).ok()?;
        let (size, count, names) =
            (usize::from(u16_at(elf, 58)), usize::from(u16_at(elf, 60)), usize::from(u16_at(elf, 62)));
        let section = |index: usize| {
            let at = table.checked_add(index.checked_mul(size)?)?;
            elf.get(at..at.checked_add(SECTION_HEADER_BYTES)?)
        };
        let offset = |header: &[u8]| u64_at(header, 24);
        let names = usize::try_from(offset(section(names)?)).ok()?;
        let named = |wanted: &[u8]| {
            (0..count).filter_map(section).find(|header| {
                let name = names.checked_add(u32_at(header, 0) as usize).and_then(|at| elf.get(at..));
                name.is_some_and(|name| name.starts_with(wanted))
            })
        };
        let gpa = |offset: u64| {
            let inside = |segment: &&Segment| (segment.offset..segment.offset + segment.bytes).contains(&offset);
            segments.iter().find(inside).map(|segment| segment.gpa + offset - segment.offset)
        };
        let (start, end) = (gpa(offset(named(b".rodata\0")?))?, gpa(offset(named(b".data\0")?))?);
        let whole = (start.next_multiple_of(HUGE_PAGE_BYTES), end / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES);
        (whole.0 < whole.1).then_some(whole)
    }

    /// The entry point of such a file.
    pub fn elf_entry(elf: &[u8]) -> u64 {
        u64_at(elf, 24)
    }

    /// The release, such as `6.12.0-amd64`, where the file tells it. A vmlinux is searched for it, which takes a while.
    pub fn release(&self) -> Result<Option<String>> {
        let context = || format!("read kernel {}", self.path.display());
        let mut file = File::open(&self.path).context(context)?;
        match self.kind {
            KernelKind::BzImage => {
                // kernel_version: an offset from the second sector's start; 0 where there is none.
                let mut pointer = [0; 2];
                file.read_exact_at(&mut pointer, 0x20E).context(context)?;
                let offset = u16::from_le_bytes(pointer);
                if offset == 0 {
                    return Ok(None);
                }
                let mut text = [0; RELEASE_MAX_BYTES];
                let count = file.read_at(&mut text, u64::from(offset) + SECTOR_BYTES).context(context)?;
                Ok(first_word(&text[..count]))
            }
            KernelKind::Vmlinux => {
                const WINDOW_BYTES: usize = 1 << 20;
                let mut window = Vec::with_capacity(WINDOW_BYTES);
                loop {
                    let wanted = (WINDOW_BYTES - window.len()) as u64;
                    let count = file.by_ref().take(wanted).read_to_end(&mut window).context(context)?;
                    // The format string `Linux version %s` of other files is no release: a release begins with a digit.
                    let found = positions(&window, BANNER)
                        .filter_map(|at| first_word(&window[at + BANNER.len()..]))
                        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
                    if found.is_some() || count == 0 {
                        return Ok(found);
                    }
                    window.drain(..window.len().saturating_sub(BANNER.len() + RELEASE_MAX_BYTES));
                }
            }
        }
    }

    /// Refuses a command line that the kernel would cut.
    pub fn check_cmdline(&self, cmdline: &str) -> Result<()> {
        if cmdline.len() as u64 > self.cmdline_max_bytes {
            return Err(Error::usage(format!(
                "the kernel command line has {} bytes, and kernel {} reads {}",
                cmdline.len(),
                self.path.display(),
                self.cmdline_max_bytes
            )));
        }
        if cmdline.contains('\0') {
            return Err(Error::usage("the kernel command line contains a zero byte"));
        }
        Ok(())
    }
}

fn truncated(what: &str, wanted: u64, found: u64) -> Error {
    Error::usage(format!(
        "it is a truncated {what}: {wanted} bytes are announced, {found} are there ({})",
        units::size(found)
    ))
    .hint("copy or build it again")
}

/// The end of `[start, start + bytes)`, where that is RAM a kernel may be loaded to.
fn checked_end(start: u64, bytes: u64) -> Result<u64> {
    let end =
        start.checked_add(bytes).filter(|end| start >= EXTENDED_RAM_START && *end <= MMIO_HOLE_START && bytes > 0);
    end.ok_or_else(|| {
        Error::usage(format!("it wants {bytes:#x} bytes at address {start:#x}, outside 1 MiB to 3 GiB"))
            .hint("the file is damaged, or no kernel")
    })
}

fn first_word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|b| !b.is_ascii_graphic())?;
    let word = std::str::from_utf8(&bytes[..end.min(RELEASE_MAX_BYTES)]).ok()?;
    (!word.is_empty()).then(|| word.to_owned())
}

fn positions<'a>(haystack: &'a [u8], needle: &'static [u8]) -> impl Iterator<Item = usize> + 'a {
    haystack.windows(needle.len()).enumerate().filter(move |(_, window)| *window == needle).map(|(at, _)| at)
}

#[cfg(test)]
mod tests;
