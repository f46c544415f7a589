//! The kernel's build configuration, which libbpf programs look for in the guest, and its release, which names it.
//!
//! Owns where a host keeps the two; leaves packing to assemble.rs.
//! Invariant: a configuration is found by the kernel's own name or place, never guessed from the running kernel.

use crate::error::{Context, Result};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// bzImage: "HdrS" at 0x202, and at 0x20e the version string's offset less 0x200 (Documentation/arch/x86/boot.rst).
const BOOT_MAGIC_AT: usize = 0x202;
const BOOT_MAGIC: &[u8; 4] = b"HdrS";
const VERSION_POINTER_AT: usize = 0x20e;
const VERSION_BASE: u64 = 0x200;
/// The start of every kernel's banner (init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";
/// A release is at most this long (__NEW_UTS_LEN, include/uapi/linux/utsname.h).
const RELEASE_MAX_BYTES: usize = 64;
/// An ELF kernel is searched in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// The release a kernel image names itself, such as `7.2.13-cloud-amd64`; None where it does not.
pub fn release(kernel: &Path) -> Result<Option<String>> {
    let mut file = File::open(kernel).context(|| format!("open the kernel {}", kernel.display()))?;
    let mut head = Vec::new();
    let reading = || format!("read the kernel {}", kernel.display());
    file.by_ref().take(VERSION_BASE * 2).read_to_end(&mut head).context(reading)?;
    if head.get(BOOT_MAGIC_AT..BOOT_MAGIC_AT + BOOT_MAGIC.len()) == Some(BOOT_MAGIC) {
        let pointer = u16::from_le_bytes([head[VERSION_POINTER_AT], head[VERSION_POINTER_AT + 1]]);
        let mut text = [0; RELEASE_MAX_BYTES + 1];
        let count = file.read_at(&mut text, u64::from(pointer) + VERSION_BASE).context(reading)?;
        return Ok(first_word(&text[..count]));
    }
    // The last bytes of a piece are looked at again with the next, so that a banner across the border is found.
    let overlap = BANNER.len() + RELEASE_MAX_BYTES + 1;
    let mut window = head;
    loop {
        if let Some(found) = banner(&window) {
            return Ok(Some(found));
        }
        window.drain(..window.len().saturating_sub(overlap));
        if file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut window).context(reading)? == 0 {
            return Ok(None);
        }
    }
}

/// The release in the first banner of some bytes; a format string such as "Linux version %s" is none.
fn banner(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == BANNER[0]) {
        rest = &rest[at..];
        if let Some(found) = rest.strip_prefix(BANNER).and_then(first_word) {
            return Some(found);
        }
        rest = &rest[1..];
    }
    None
}

/// A word that ends inside the bytes and begins with a digit, as releases do.
fn first_word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(RELEASE_MAX_BYTES + 1).position(|byte| *byte == b' ' || *byte == 0)?;
    let word = std::str::from_utf8(&bytes[..end]).ok()?;
    let clean = word.chars().all(|c| c.is_ascii_alphanumeric() || "+-._~".contains(c));
    (clean && word.starts_with(|c: char| c.is_ascii_digit())).then(|| word.to_string())
}

/// Where the configuration of a kernel may be, best first. `root` is "/" but for tests.
pub fn candidates(root: &Path, kernel: &Path, release: Option<&str>) -> Vec<PathBuf> {
    let real = std::fs::canonicalize(kernel).unwrap_or_else(|_| kernel.to_path_buf());
    let mut paths = Vec::new();
    for dir in [kernel.parent(), real.parent()].into_iter().flatten() {
        paths.extend(release.map(|release| dir.join(format!("config-{release}"))));
        paths.push(dir.join("config"));
        paths.push(dir.join(".config"));
        // arch/x86/boot/bzImage in a build tree: the configuration is at its top.
        paths.extend(dir.ancestors().nth(3).filter(|_| dir.ends_with("arch/x86/boot")).map(|top| top.join(".config")));
    }
    if let Some(release) = release {
        paths.push(root.join(format!("boot/config-{release}")));
        paths.push(root.join(format!("lib/modules/{release}/config")));
        paths.push(root.join(format!("usr/lib/modules/{release}/config")));
        paths.push(root.join(format!("lib/modules/{release}/build/.config")));
    }
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::super::tempdir::TempDir;
    use super::*;

    #[test]
    fn release_is_read_from_a_bzimage_header() {
        let dir = TempDir::new("kconfig-bzimage");
        let mut image = vec![0; 0x1000];
        image[BOOT_MAGIC_AT..BOOT_MAGIC_AT + 4].copy_from_slice(BOOT_MAGIC);
        image[VERSION_POINTER_AT..VERSION_POINTER_AT + 2].copy_from_slice(&0x900u16.to_le_bytes());
        image[0xb00..0xb14].copy_from_slice(b"7.2.13+deb14-x (deb)");
        let kernel = dir.write("vmlinuz", &image);
        assert_eq!(release(&kernel).unwrap().as_deref(), Some("7.2.13+deb14-x"));
        let kernel = dir.write("vmlinuz", &image[..0xb00]);
        assert_eq!(release(&kernel).unwrap(), None);
    }

    #[test]
    fn release_is_found_in_an_elf_kernel_across_pieces() {
        let dir = TempDir::new("kconfig-elf");
        let mut image = b"\x7fELF".to_vec();
        image.resize(0x3000, 0);
        image.extend_from_slice(b"Linux version %s\0");
        image.resize(0x400 + PIECE_BYTES - 20, 0);
        image.extend_from_slice(b"Linux version 6.12.1-rc1+ (user@host) ");
        let kernel = dir.write("vmlinux", &image);
        assert_eq!(release(&kernel).unwrap().as_deref(), Some("6.12.1-rc1+"));
    }

    #[test]
    fn hostile_release_is_no_release() {
        assert_eq!(first_word(b"7.2/../../etc/x "), None);
        assert_eq!(first_word(b"7.2.13"), None);
        assert_eq!(first_word(&[b'7'; 100]), None);
    }

    #[test]
    fn configuration_is_looked_for_beside_the_kernel_first() {
        let paths = candidates(Path::new("/"), Path::new("/k/vmlinuz"), Some("7.2"));
        assert_eq!(paths[..3], ["/k/config-7.2", "/k/config", "/k/.config"].map(PathBuf::from));
        assert!(paths.contains(&PathBuf::from("/boot/config-7.2")));
        let tree = candidates(Path::new("/"), Path::new("/src/arch/x86/boot/bzImage"), None);
        assert!(tree.contains(&PathBuf::from("/src/.config")));
    }
}
