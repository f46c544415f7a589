//! Names for addresses of the guest's kernel: from a vmlinux with symbols, or a System.map, beside the kernel.
//!
//! Owns finding and reading them; leaves which addresses to ask about to watch.rs.
//! Invariant: files are hostile: what does not fit together gives no names, never a wrong place in memory; and where no
//! symbols are at hand, none are invented.

use crate::proto::registers::CpuDump;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Kernel text lies in the top two GiB (Documentation/arch/x86/x86_64/mm.rst).
const TEXT_START: u64 = 0xFFFF_FFFF_8000_0000;
/// No function is longer; beyond it an address belongs to something else.
const FUNCTION_MOST_BYTES: u64 = 1 << 20;
/// Larger tables are no kernel's: its symbols take about 10 MiB.
const TABLE_MOST_BYTES: u64 = 256 << 20;
/// Return addresses shown of one stack.
const TRACE_MOST: usize = 24;
/// ELF64: sizes, section types and symbol types (System V ABI).
const SECTION_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const SECTION_SYMTAB: u32 = 2;
const TYPE_FUNCTION: u8 = 2;
const TYPE_NONE: u8 = 0;

/// The functions of a kernel, by address.
#[derive(Debug)]
pub struct Symbols {
    pub source: PathBuf,
    sorted: Vec<(u64, String)>,
}

impl Symbols {
    /// Looks in the kernel itself, beside it, and where a kernel tree has them.
    pub fn near(kernel: &Path, release: Option<&str>) -> Option<Self> {
        let directory = kernel.parent().unwrap_or(Path::new("."));
        let mut places = vec![kernel.to_owned()];
        // A bzImage lies three directories below the top of its tree: arch/x86/boot.
        for top in [directory.to_owned(), directory.join("../../..")] {
            places.push(top.join("vmlinux"));
            places.push(top.join("System.map"));
        }
        places.extend(release.map(|release| directory.join(format!("System.map-{release}"))));
        places.into_iter().find_map(|source| {
            let mut sorted = read_elf(&source).or_else(|| read_map(&source))?;
            sorted.retain(|(address, _)| *address >= TEXT_START);
            sorted.sort();
            (!sorted.is_empty()).then_some(Self { source, sorted })
        })
    }

    /// `function+0x12`.
    pub fn name(&self, address: u64) -> Option<String> {
        let after = self.sorted.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.sorted.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (offset < FUNCTION_MOST_BYTES).then(|| format!("{name}+{offset:#x}"))
    }

    /// Names where a vCPU stands, and what of its stack looks like return addresses.
    pub fn annotate(&self, dump: &mut CpuDump) {
        dump.symbol = self.name(dump.rip).unwrap_or_default();
        dump.trace = dump.stack.iter().filter_map(|word| self.name(*word)).take(TRACE_MOST).collect();
    }
}

/// `ffffffff81000000 T _text`, one a line.
fn read_map(path: &Path) -> Option<Vec<(u64, String)>> {
    if fs::metadata(path).ok()?.len() > TABLE_MOST_BYTES {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let text = matches!(kind, "t" | "T" | "w" | "W");
        Some((u64::from_str_radix(address, 16).ok().filter(|_| text)?, name.to_owned()))
    };
    Some(text.lines().filter_map(entry).collect())
}

/// The symbol table of an ELF file.
fn read_elf(path: &Path) -> Option<Vec<(u64, String)>> {
    let file = File::open(path).ok()?;
    let length = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
    let read = |offset: u64, bytes: u64| {
        let fits = bytes <= TABLE_MOST_BYTES && offset.checked_add(bytes)? <= length;
        let mut buffer = vec![0; if fits { bytes as usize } else { return None }];
        file.read_exact_at(&mut buffer, offset).ok()?;
        Some(buffer)
    };
    let header = read(0, SECTION_HEADER_BYTES as u64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let count = u64::from(u16_at(&header, 60));
    let sections = read(u64_at(&header, 40), count * SECTION_HEADER_BYTES as u64)?;
    let mut sections = sections.chunks_exact(SECTION_HEADER_BYTES);
    let table = sections.clone().find(|section| u32_at(section, 4) == SECTION_SYMTAB)?;
    let names = sections.nth(u32_at(table, 40) as usize)?;
    let contents = |section: &[u8]| read(u64_at(section, 24), u64_at(section, 32));
    let (symbols, names) = (contents(table)?, contents(names)?);
    let entry = |symbol: &[u8]| {
        let function = matches!(symbol[4] & 0xF, TYPE_FUNCTION | TYPE_NONE);
        let name = names.get(u32_at(symbol, 0) as usize..)?.split(|byte| *byte == 0).next()?;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty() && function)?;
        Some((u64_at(symbol, 8), name.to_owned()))
    };
    Some(symbols.chunks_exact(SYMBOL_BYTES).filter_map(entry).collect())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ktstr-symbols-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    const MAP: &str = "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n\
                       ffffffff81000100 t halt_loop\nffffffff82000000 D data\n";

    #[test]
    fn map_beside_the_kernel_names_addresses() {
        let directory = scratch("map");
        fs::write(directory.join("bzImage"), b"no ELF").unwrap();
        assert!(Symbols::near(&directory.join("bzImage"), None).is_none());
        fs::write(directory.join("System.map-7.2"), MAP).unwrap();
        assert!(Symbols::near(&directory.join("bzImage"), Some("7.1")).is_none());
        let symbols = Symbols::near(&directory.join("bzImage"), Some("7.2")).unwrap();
        assert_eq!(symbols.name(0xFFFF_FFFF_8100_0105).as_deref(), Some("halt_loop+0x5"));
        assert_eq!(symbols.name(0xFFFF_FFFF_8100_0000).as_deref(), Some("_text+0x0"));
        assert_eq!((symbols.name(0x40_0078), symbols.name(0xFFFF_FFFF_8300_0000)), (None, None));
        let mut dump = CpuDump {
            rip: 0xFFFF_FFFF_8100_0101,
            stack: vec![1, 0xFFFF_FFFF_8100_0002, 0xFFFF_8880_0000_0000],
            ..CpuDump::default()
        };
        symbols.annotate(&mut dump);
        assert_eq!((dump.symbol.as_str(), dump.trace.as_slice()), ("halt_loop+0x1", &["_text+0x2".to_owned()][..]));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn placeholder_of_a_distribution_names_nothing() {
        let directory = scratch("stub");
        let stub = "ffffffffffffffff B The real System.map is in the linux-image-7-dbg package\n";
        fs::write(directory.join("System.map"), stub).unwrap();
        assert!(Symbols::near(&directory.join("vmlinuz"), None).is_none());
        fs::remove_dir_all(directory).unwrap();
    }

    /// An ELF file of three sections: none, symbols, names.
    fn elf() -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[40..48].copy_from_slice(&64u64.to_le_bytes());
        file[60..62].copy_from_slice(&3u16.to_le_bytes());
        let section = |kind: u32, offset: u64, bytes: u64, link: u32| {
            let mut header = vec![0; 64];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&offset.to_le_bytes());
            header[32..40].copy_from_slice(&bytes.to_le_bytes());
            header[40..44].copy_from_slice(&link.to_le_bytes());
            header
        };
        file.extend(section(0, 0, 0, 0));
        file.extend(section(SECTION_SYMTAB, 256, 24, 2));
        file.extend(section(3, 280, 6, 0));
        let mut symbol = vec![0; 24];
        symbol[0] = 1;
        symbol[4] = TYPE_FUNCTION;
        symbol[8..16].copy_from_slice(&0xFFFF_FFFF_8100_0000u64.to_le_bytes());
        file.extend(symbol);
        file.extend(b"\0start");
        file
    }

    #[test]
    fn symbol_table_of_a_vmlinux_is_read_and_no_cut_of_it_panics() {
        let directory = scratch("elf");
        let path = directory.join("vmlinux");
        fs::write(&path, elf()).unwrap();
        let symbols = Symbols::near(&path, None).unwrap();
        assert_eq!(symbols.name(0xFFFF_FFFF_8100_0003).as_deref(), Some("start+0x3"));
        for cut in 0..elf().len() {
            fs::write(&path, &elf()[..cut]).unwrap();
            let found = Symbols::near(&path, None);
            assert!(found.is_none() || cut > 280, "cut at {cut}");
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
