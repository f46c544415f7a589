//! What the dynamic loader will read of an ELF file: interpreter, needed libraries, search paths.
//!
//! Owns parsing one file; leaves finding the libraries to closure.rs.
//! Invariant: every offset and length of the file is checked, so a hostile file is an error and nothing worse; only the
//! headers are read, never the whole file.
//!
//! Source for the layout: System V ABI, "gABI" chapters 4 and 5; numbers from include/uapi/linux/elf.h.

use std::io;

const MAGIC: &[u8; 4] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EHDR_BYTES: usize = 64;
const PHDR_BYTES: usize = 56;
const DYN_BYTES: usize = 16;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// e_machine of the machine ktstr itself is built for: the guest runs no other.
#[cfg(target_arch = "x86_64")]
const OWN_MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const OWN_MACHINE: u16 = 183;

/// Names of the machines a user may have built for by mistake.
const MACHINES: [(u16, &str); 6] =
    [(3, "i386"), (40, "arm"), (62, "x86_64"), (183, "aarch64"), (243, "riscv"), (22, "s390")];

/// Program headers, dynamic section and string table beyond these sizes are no sane program's.
const MAX_PHDRS: usize = 512;
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;
const MAX_STRINGS_BYTES: u64 = 64 << 20;
/// PATH_MAX (include/uapi/linux/limits.h).
const MAX_INTERP_BYTES: u64 = 4096;

/// Reads `count` bytes at an offset; fewer than asked is an error.
pub type ReadAt<'a> = &'a dyn Fn(u64, usize) -> io::Result<Vec<u8>>;

/// Reads bytes inside the file; names what they are where they lie beyond its end.
type Fetch<'a> = &'a dyn Fn(u64, u64, &str) -> Result<Vec<u8>, String>;

/// What the loader reads of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elf {
    /// PT_INTERP: the loader. None in a static program and in a library.
    pub interpreter: Option<String>,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// DT_RPATH, split at colons; empty where DT_RUNPATH is there, which replaces it.
    pub rpath: Vec<String>,
    /// DT_RUNPATH, split at colons.
    pub runpath: Vec<String>,
    /// It has an entry point: a program, not only a library.
    pub runnable: bool,
}

/// Whether a file of these first bytes is meant to be ELF.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Parses a file of `file_bytes` bytes. The error completes the sentence "FILE ...".
pub fn parse(read: ReadAt<'_>, file_bytes: u64) -> Result<Elf, String> {
    let truncated = |what: &str| format!("is truncated: its {what} lies beyond its end at {file_bytes} bytes");
    let fetch = |offset: u64, count: u64, what: &str| -> Result<Vec<u8>, String> {
        if offset.checked_add(count).is_none_or(|end| end > file_bytes) {
            return Err(truncated(what));
        }
        read(offset, count as usize).map_err(|cause| format!("cannot be read: {cause}"))
    };

    let header = fetch(0, EHDR_BYTES as u64, "ELF header")?;
    if !is_elf(&header) {
        return Err("is not an ELF file".into());
    }
    let machine = u16_at(&header, 18);
    let named = MACHINES.iter().find(|(number, _)| *number == machine).map_or("unknown", |(_, name)| name);
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN || machine != OWN_MACHINE {
        let bits = if header[4] == CLASS_64 { 64 } else { 32 };
        let own = std::env::consts::ARCH;
        return Err(format!(
            "is built for another machine: {bits}-bit {named} (machine {machine}), the guest is {own}"
        ));
    }
    let kind = u16_at(&header, 16);
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(format!("is neither program nor shared library (ELF type {kind}, such as an object or core file)"));
    }
    let count = u16_at(&header, 56) as usize;
    if u16_at(&header, 54) as usize != PHDR_BYTES || count == 0 || count > MAX_PHDRS {
        return Err("has no usable program headers".into());
    }
    let headers = fetch(u64_at(&header, 32), (count * PHDR_BYTES) as u64, "program header table")?;
    let segments: Vec<Segment> = headers.chunks_exact(PHDR_BYTES).map(Segment::read).collect();

    let mut elf = Elf { runnable: u64_at(&header, 24) != 0, ..Elf::default() };
    for segment in &segments {
        if segment.kind == PT_LOAD && segment.offset.checked_add(segment.bytes).is_none_or(|end| end > file_bytes) {
            return Err(truncated("program data"));
        }
    }
    if let Some(interp) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
        if interp.bytes > MAX_INTERP_BYTES {
            return Err("names an interpreter longer than a path can be".into());
        }
        let path = fetch(interp.offset, interp.bytes, "interpreter name")?;
        elf.interpreter = Some(string_at(&path, 0).ok_or("names an interpreter that is no path")?);
    }
    if let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) {
        if dynamic.bytes > MAX_DYNAMIC_BYTES {
            return Err("has an implausibly large dynamic section".into());
        }
        let table = fetch(dynamic.offset, dynamic.bytes, "dynamic section")?;
        let tags: Vec<(u64, u64)> = table
            .chunks_exact(DYN_BYTES)
            .map(|entry| (u64_at(entry, 0), u64_at(entry, 8)))
            .take_while(|(tag, _)| *tag != 0)
            .collect();
        read_dynamic(&mut elf, &tags, &segments, &fetch)?;
    }
    Ok(elf)
}

fn read_dynamic(elf: &mut Elf, tags: &[(u64, u64)], segments: &[Segment], fetch: Fetch<'_>) -> Result<(), String> {
    let value = |wanted: u64| tags.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
    let (Some(address), Some(bytes)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
        return Ok(());
    };
    if bytes > MAX_STRINGS_BYTES {
        return Err("has an implausibly large string table".into());
    }
    let offset = segments.iter().find_map(|segment| segment.file_offset(address));
    let offset = offset.ok_or("has a dynamic string table outside its loaded data")?;
    let strings = fetch(offset, bytes, "dynamic string table")?;
    let text = |at: u64| {
        let text = usize::try_from(at).ok().and_then(|at| string_at(&strings, at));
        text.ok_or_else(|| "has a dynamic section that points outside its string table".to_string())
    };
    let list = |text: String| text.split(':').filter(|dir| !dir.is_empty()).map(str::to_string).collect::<Vec<_>>();
    for (tag, value) in tags {
        match *tag {
            DT_NEEDED => elf.needed.push(text(*value)?),
            DT_RPATH => elf.rpath = list(text(*value)?),
            DT_RUNPATH => elf.runpath = list(text(*value)?),
            _ => {}
        }
    }
    if !elf.runpath.is_empty() {
        elf.rpath.clear();
    }
    Ok(())
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    bytes: u64,
}

impl Segment {
    /// From one program header, which the caller cut to its size.
    fn read(header: &[u8]) -> Self {
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        Self { kind, offset: u64_at(header, 8), address: u64_at(header, 16), bytes: u64_at(header, 32) }
    }

    fn file_offset(&self, address: u64) -> Option<u64> {
        let within = address.checked_sub(self.address)?;
        (self.kind == PT_LOAD && within < self.bytes).then(|| self.offset.checked_add(within))?
    }
}

/// Little-endian numbers inside a slice whose length the caller has checked.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The non-empty UTF-8 string that ends in NUL.
fn string_at(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&rest[..end]).ok()?;
    (!text.is_empty()).then(|| text.to_string())
}

/// Small but valid ELF files for the tests of this module and of closure.rs.
#[cfg(any(test, fuzzing))]
pub mod fixture {
    use super::*;

    /// Where the content begins: header and three program headers.
    const DATA: usize = EHDR_BYTES + 3 * PHDR_BYTES;
    /// Addresses are file offsets plus this, so that the two cannot be mixed up unnoticed.
    const BASE: u64 = 0x40_0000;

    pub fn build(elf: &Elf) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut tags = Vec::new();
        let mut add = |tag: u64, text: &str| {
            tags.push((tag, strings.len() as u64));
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
        };
        elf.needed.iter().for_each(|name| add(DT_NEEDED, name));
        if !elf.rpath.is_empty() {
            add(DT_RPATH, &elf.rpath.join(":"));
        }
        if !elf.runpath.is_empty() {
            add(DT_RUNPATH, &elf.runpath.join(":"));
        }
        let strings_at = DATA as u64;
        tags.push((DT_STRTAB, BASE + strings_at));
        tags.push((DT_STRSZ, strings.len() as u64));
        tags.push((0, 0));
        let dynamic_at = strings_at + strings.len() as u64;
        let dynamic: Vec<u8> =
            tags.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()]).flatten().collect();
        let interp_at = dynamic_at + dynamic.len() as u64;
        let interp = elf.interpreter.as_ref().map(|path| format!("{path}\0")).unwrap_or_default();
        let end = interp_at + interp.len() as u64;

        let mut file = vec![0; EHDR_BYTES];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', CLASS_64, LITTLE_ENDIAN]);
        file[16..18].copy_from_slice(&ET_DYN.to_le_bytes());
        file[18..20].copy_from_slice(&OWN_MACHINE.to_le_bytes());
        file[24..32].copy_from_slice(&u64::from(elf.runnable).to_le_bytes());
        file[32..40].copy_from_slice(&(EHDR_BYTES as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(PHDR_BYTES as u16).to_le_bytes());
        file[56..58].copy_from_slice(&3u16.to_le_bytes());
        let interp_kind = if interp.is_empty() { 0 } else { PT_INTERP };
        let segments = [
            (PT_LOAD, 0, end),
            (PT_DYNAMIC, dynamic_at, dynamic.len() as u64),
            (interp_kind, interp_at, interp.len() as u64),
        ];
        for (kind, offset, bytes) in segments {
            file.extend_from_slice(&kind.to_le_bytes());
            file.extend_from_slice(&[0; 4]);
            for word in [offset, BASE + offset, BASE + offset, bytes, bytes, 8] {
                file.extend_from_slice(&word.to_le_bytes());
            }
        }
        file.extend_from_slice(&strings);
        file.extend_from_slice(&dynamic);
        file.extend_from_slice(interp.as_bytes());
        file
    }

    pub fn program(needed: &[&str]) -> Elf {
        let needed = needed.iter().map(|name| name.to_string()).collect();
        Elf { interpreter: Some("/lib64/ld.so".into()), needed, runnable: true, ..Elf::default() }
    }

    pub fn library(needed: &[&str]) -> Elf {
        Elf { interpreter: None, runnable: false, ..program(needed) }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{build, program};
    use super::*;

    fn parse_bytes(bytes: &[u8]) -> Result<Elf, String> {
        let read = |offset: u64, count: usize| Ok(bytes[offset as usize..offset as usize + count].to_vec());
        parse(&read, bytes.len() as u64)
    }

    #[test]
    fn built_file_parses_to_what_it_was_built_from() {
        let elf = Elf { rpath: vec!["$ORIGIN/../lib".into(), "/opt".into()], ..program(&["libbpf.so.1", "libc.so.6"]) };
        assert_eq!(parse_bytes(&build(&elf)).unwrap(), elf);
        let runpath = Elf { runpath: vec!["/a".into()], rpath: vec!["/b".into()], ..program(&[]) };
        assert!(parse_bytes(&build(&runpath)).unwrap().rpath.is_empty());
    }

    #[test]
    fn every_cut_is_an_error() {
        let file = build(&program(&["libc.so.6"]));
        for cut in 0..file.len() {
            assert!(parse_bytes(&file[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn every_changed_byte_is_parsed_without_panic() {
        let file = build(&program(&["libc.so.6"]));
        let mut errors = 0;
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = file.clone();
                changed[at] = value;
                errors += u32::from(parse_bytes(&changed).is_err());
            }
        }
        assert!(errors > 100, "only {errors} changes were noticed");
    }

    #[test]
    fn other_machines_and_objects_are_named() {
        let mut file = build(&program(&[]));
        file[18] = 183;
        file[4] = 1;
        assert!(parse_bytes(&file).unwrap_err().contains("32-bit aarch64"));
        let mut file = build(&program(&[]));
        file[16] = 1;
        assert!(parse_bytes(&file).unwrap_err().contains("ELF type 1"));
    }

    #[test]
    fn the_running_test_binary_has_an_interpreter_or_is_static() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let elf = parse_bytes(&bytes).unwrap();
        assert!(elf.runnable);
        assert_eq!(elf.interpreter.is_some(), !elf.needed.is_empty());
    }
}
