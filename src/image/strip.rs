//! An ELF program without what only debuggers read.
//!
//! Owns cutting off what lies behind the segments that are loaded; leaves reading ELF to elf.rs.
//! Invariant: every byte that the kernel or the dynamic linker maps stays where it was.

/// Offsets in the header of a 64-bit ELF file (elf(5)).
const PHOFF: usize = 0x20;
const SHOFF: usize = 0x28;
const PHENTSIZE: usize = 0x36;
const PHNUM: usize = 0x38;
const SHNUM: usize = 0x3c;
const SHSTRNDX: usize = 0x3e;
/// The program headers of all but odd programs lie in this much of its beginning.
pub const HEAD_BYTES: usize = 4096;
/// Offsets in a program header.
const P_OFFSET: usize = 0x08;
const P_FILESZ: usize = 0x20;

/// Where the last segment of a program ends, by its first bytes; none where they do not tell.
pub fn loaded_end(bytes: &[u8]) -> Option<usize> {
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let (table, size, count) = (usize::try_from(u64_at(PHOFF)?).ok()?, u16_at(PHENTSIZE)?, u16_at(PHNUM)?);
    let mut end = table.checked_add(usize::from(size) * usize::from(count))?;
    for index in 0..usize::from(count) {
        let header = table.checked_add(index * usize::from(size))?;
        let (offset, length) = (u64_at(header.checked_add(P_OFFSET)?)?, u64_at(header.checked_add(P_FILESZ)?)?);
        end = end.max(usize::try_from(offset.checked_add(length)?).ok()?);
    }
    Some(end)
}

/// The program cut behind its last segment, with no section named any more; none where that is not possible.
pub fn loaded_part(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut kept = bytes.get(..loaded_end(bytes)?)?.to_vec();
    kept.get_mut(SHOFF..SHOFF + 8)?.fill(0);
    kept.get_mut(SHNUM..SHNUM + 2)?.fill(0);
    kept.get_mut(SHSTRNDX..SHSTRNDX + 2)?.fill(0);
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::super::elf::fixture;
    use super::*;

    /// Of a 64-bit ELF file.
    const HEADER_BYTES: usize = 64;

    #[test]
    fn what_lies_behind_the_segments_goes_and_the_rest_stays() {
        let program = fixture::build(&fixture::program(&["libc.so.6"]));
        let mut long = program.clone();
        long.extend([7; 10_000]);
        let kept = loaded_part(&long).unwrap();
        assert!(kept.len() <= program.len());
        assert_eq!(kept[HEADER_BYTES..], program[HEADER_BYTES..kept.len()]);
        assert_eq!(loaded_end(&long[..long.len().min(HEAD_BYTES)]), Some(kept.len()));
    }

    #[test]
    fn this_very_test_program_still_runs_when_cut() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let kept = loaded_part(&bytes).unwrap();
        assert!(kept.len() < bytes.len());
        let path = std::env::temp_dir().join(format!("ktstr-strip-{}", std::process::id()));
        std::fs::write(&path, kept).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let out = std::process::Command::new(&path).arg("--list").output().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(String::from_utf8_lossy(&out.stdout).contains("this_very_test_program_still_runs_when_cut"));
    }

    #[test]
    fn nonsense_is_left_alone() {
        assert_eq!(loaded_part(b""), None);
        assert_eq!(loaded_part(&[0xff; 100]), None);
    }
}
