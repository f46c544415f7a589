//! Why a program could not be executed, in words a person can act on.
//!
//! Owns telling apart a missing file, a missing interpreter, a wrong format, a missing library; leaves starting to `start`.
//! Invariant: reads the first bytes of the program only, and trusts nothing in them.

use std::fs::File;
use std::io::Read;

/// As much as the kernel reads to find out what a program is is 256 bytes (BINPRM_BUF_SIZE); an ELF header's program
/// headers and interpreter follow close behind.
const HEAD_BYTES: u64 = 64 << 10;
/// e_machine of this architecture (include/uapi/linux/elf-em.h).
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
/// PT_INTERP (include/uapi/linux/elf.h).
const PT_INTERP: u32 = 3;

/// What the first bytes say.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    Script { interpreter: String },
    Elf { machine: u16, interpreter: Option<String> },
    Unknown,
}

/// Explains a failed exec of `path`.
pub fn explain(path: &str, errno: i32) -> String {
    let system = std::io::Error::from_raw_os_error(errno).to_string();
    let system = system.split(" (os error").next().unwrap_or_default().to_lowercase();
    let because = |why: String| format!("cannot execute the scheduler {path}: {why} (errno {errno})");
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    if let Err(cause) = read {
        return match cause.kind() {
            std::io::ErrorKind::NotFound => because("there is no such file in the guest".into()),
            _ => because(system),
        };
    }
    match (errno, identify(&head)) {
        (libc::ENOENT, Program::Script { interpreter }) => {
            because(format!("it is a script, and its interpreter '{interpreter}' is not in the guest"))
        }
        (libc::ENOENT, Program::Elf { interpreter: Some(interpreter), .. }) => {
            because(format!("its interpreter '{interpreter}' is not in the guest"))
        }
        (libc::EACCES, Program::Script { interpreter }) => {
            because(format!("it, or its interpreter '{interpreter}', is not executable"))
        }
        (libc::EACCES, _) => because("it is not executable".into()),
        (libc::ENOEXEC, Program::Elf { machine, .. }) if machine != MACHINE => {
            because(format!("it is built for another machine (ELF machine {machine}, not {MACHINE})"))
        }
        (libc::ENOEXEC, Program::Unknown) if head.is_empty() => because("it is empty".into()),
        (libc::ENOEXEC, Program::Unknown) => because("it is neither an ELF program nor a script".into()),
        _ => because(system),
    }
}

fn identify(head: &[u8]) -> Program {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        return Program::Script { interpreter: line.split_whitespace().next().unwrap_or_default().to_string() };
    }
    if !head.starts_with(b"\x7fELF") {
        return Program::Unknown;
    }
    // Offsets in Elf64_Ehdr: e_machine.
    match field(head, 18, 2) {
        Some(machine) => Program::Elf { machine: machine as u16, interpreter: elf_interpreter(head) },
        None => Program::Unknown,
    }
}

/// A little-endian number of up to 8 bytes.
fn field(bytes: &[u8], at: u64, length: u64) -> Option<u64> {
    let part = part(bytes, at, length)?;
    Some(part.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn part(bytes: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let end = at.checked_add(length)?;
    bytes.get(usize::try_from(at).ok()?..usize::try_from(end).ok()?)
}

fn elf_interpreter(head: &[u8]) -> Option<String> {
    // Elf64_Ehdr: e_phoff at 32, e_phentsize at 54, e_phnum at 56. Elf64_Phdr: p_type at 0, p_offset at 8, p_filesz at 32.
    let (table, size, count) = (field(head, 32, 8)?, field(head, 54, 2)?, field(head, 56, 2)?);
    let entries = (0..count).map_while(|index| table.checked_add(index * size));
    let interpreter = entries.into_iter().find(|at| field(head, *at, 4) == Some(u64::from(PT_INTERP)))?;
    let path = part(head, field(head, interpreter.checked_add(8)?, 8)?, field(head, interpreter.checked_add(32)?, 8)?)?;
    let path = path.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(path).into_owned())
}

/// The library that a dynamic linker said it could not find: glibc's and musl's words for it.
pub fn missing_library(output: &str) -> Option<&str> {
    const GLIBC: &str = "error while loading shared libraries: ";
    const MUSL: &str = "Error loading shared library ";
    output.lines().find_map(|line| {
        let (_, rest) = line.split_once(GLIBC).or_else(|| line.split_once(MUSL))?;
        rest.split(':').next().filter(|library| !library.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn with_file(name: &str, content: &[u8], check: impl FnOnce(&str)) {
        let path = std::env::temp_dir().join(format!("ktstr-exec-{name}-{}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        check(path.to_str().unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    /// An ELF header with one program header that names an interpreter.
    fn elf(machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = PT_INTERP as u8;
        bytes[64 + 8] = 120;
        bytes[64 + 32] = 9;
        bytes.extend_from_slice(b"/lib/ld.x");
        bytes
    }

    #[test]
    fn missing_file_and_missing_interpreters_are_told_apart() {
        assert!(explain("/nowhere/x", libc::ENOENT).contains("no such file in the guest"));
        with_file("script", b"#! /opt/none -x\necho\n", |path| {
            assert!(explain(path, libc::ENOENT).contains("script, and its interpreter '/opt/none'"));
            assert!(explain(path, libc::EACCES).contains("'/opt/none', is not executable"));
        });
        with_file("elf", &elf(MACHINE), |path| {
            assert!(explain(path, libc::ENOENT).contains("its interpreter '/lib/ld.x' is not in"));
            assert!(explain(path, libc::EACCES).contains("it is not executable (errno 13)"));
        });
    }

    #[test]
    fn wrong_formats_are_told_apart() {
        with_file("machine", &elf(8), |path| assert!(explain(path, libc::ENOEXEC).contains("ELF machine 8")));
        with_file("text", b"hello", |path| assert!(explain(path, libc::ENOEXEC).contains("neither an ELF")));
        with_file("empty", b"", |path| assert!(explain(path, libc::ENOEXEC).contains("it is empty")));
        with_file("other", b"", |path| {
            // The words are the C library's own.
            assert!(explain(path, libc::ENOMEM).contains("memory (errno 12)"))
        });
    }

    #[test]
    fn damaged_elf_never_panics() {
        let whole = elf(MACHINE);
        for cut in 0..whole.len() {
            identify(&whole[..cut]);
        }
        for at in 4..whole.len() {
            let mut altered = whole.clone();
            altered[at] = 0xff;
            identify(&altered);
        }
    }

    #[test]
    fn missing_library_is_named_in_both_dialects() {
        let glibc = "scx_cosmos: error while loading shared libraries: libelf.so.1: cannot open shared object file";
        assert_eq!(missing_library(glibc), Some("libelf.so.1"));
        let musl = "Error loading shared library libz.so.1: No such file or directory (needed by ./x)";
        assert_eq!(missing_library(musl), Some("libz.so.1"));
        assert_eq!(missing_library("loading libraries went well"), None);
    }
}
