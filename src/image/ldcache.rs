//! `/etc/ld.so.cache`: the loader's list of libraries, read from the host and written for the guest.
//!
//! Owns the file's format (glibc-ld.so.cache1.1); leaves which library is wanted to search.rs and closure.rs.
//! Invariant: no input makes the reader look outside it; what is written, glibc's loader finds by binary search.
//!
//! Source for the layout: glibc, sysdeps/generic/dl-cache.h and ldconfig.h.

use std::cmp::Ordering;

const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
/// An old-format list may stand in front, for ancient loaders: this magic, a count, and entries of twelve bytes.
const OLD_MAGIC: &[u8; 11] = b"ld.so-1.7.0";
const OLD_HEADER_BYTES: usize = 16;
const OLD_ENTRY_BYTES: usize = 12;
const OLD_ALIGN: usize = 8;
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;
/// cache_file_new_flags_endian_little: the byte after the two counts.
const LITTLE_ENDIAN: u8 = 2;
/// FLAG_ELF_LIBC6 with FLAG_X8664_LIB64 or FLAG_AARCH64_LIB64: the libraries our guest's programs can load.
#[cfg(target_arch = "x86_64")]
const OWN_FLAGS: u32 = 0x0303;
#[cfg(target_arch = "aarch64")]
const OWN_FLAGS: u32 = 0x0a03;

/// The (soname, path) pairs for this machine, in the file's order; variants for newer CPUs are left out, because the
/// guest's CPU may lack what they need. None where the bytes are no such cache.
pub fn read(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let cache = if bytes.starts_with(OLD_MAGIC) {
        let count = u32_at(bytes, OLD_HEADER_BYTES - 4)? as usize;
        let end = count.checked_mul(OLD_ENTRY_BYTES)?.checked_add(OLD_HEADER_BYTES)?;
        bytes.get(end.checked_next_multiple_of(OLD_ALIGN)?..)?
    } else {
        bytes
    };
    if !cache.starts_with(MAGIC) {
        return None;
    }
    let count = u32_at(cache, MAGIC.len())? as usize;
    let end = count.checked_mul(ENTRY_BYTES)?.checked_add(HEADER_BYTES)?;
    let entries = cache.get(HEADER_BYTES..end)?;
    let mut libraries = Vec::new();
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        let hwcap_is_none = entry[16..].iter().all(|byte| *byte == 0);
        if u32_at(entry, 0)? == OWN_FLAGS && hwcap_is_none {
            libraries.push((text_at(cache, u32_at(entry, 4)?)?, text_at(cache, u32_at(entry, 8)?)?));
        }
    }
    Some(libraries)
}

/// A cache that holds exactly these (soname, path) pairs.
pub fn write(libraries: &[(String, String)]) -> Vec<u8> {
    let mut sorted: Vec<&(String, String)> = libraries.iter().collect();
    // The loader's search wants the greatest name first.
    sorted.sort_by(|a, b| compare(&b.0, &a.0).then_with(|| b.cmp(a)));
    let mut strings = Vec::new();
    let mut entries = Vec::new();
    let strings_at = HEADER_BYTES + sorted.len() * ENTRY_BYTES;
    let mut intern = |text: &str| {
        let at = (strings_at + strings.len()) as u32;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    for (soname, path) in sorted {
        // Kind, soname, path, least OS version, and two words of CPU capabilities.
        for word in [OWN_FLAGS, intern(soname), intern(path), 0, 0, 0] {
            entries.extend_from_slice(&word.to_le_bytes());
        }
    }
    let mut cache = MAGIC.to_vec();
    cache.extend_from_slice(&(libraries.len() as u32).to_le_bytes());
    cache.extend_from_slice(&(strings.len() as u32).to_le_bytes());
    cache.push(LITTLE_ENDIAN);
    cache.resize(HEADER_BYTES, 0);
    cache.extend_from_slice(&entries);
    cache.extend_from_slice(&strings);
    cache
}

/// The order of names in the cache: runs of digits count as numbers, and a digit comes after any other character.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let order = match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => number(&mut a).cmp(&number(&mut b)),
            (Some(x), Some(y)) => {
                (a, b) = (&a[1..], &b[1..]);
                (x.is_ascii_digit(), x).cmp(&(y.is_ascii_digit(), y))
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes the leading digits; their value wraps, as the loader's does.
fn number(text: &mut &[u8]) -> i32 {
    let mut value = 0i32;
    while let Some(digit) = text.first().filter(|byte| byte.is_ascii_digit()) {
        value = value.wrapping_mul(10).wrapping_add(i32::from(digit - b'0'));
        *text = &text[1..];
    }
    value
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn text_at(bytes: &[u8], at: u32) -> Option<String> {
    let rest = bytes.get(at as usize..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|name| (name.to_string(), format!("/lib/{name}"))).collect()
    }

    #[test]
    fn what_is_written_reads_back_in_the_loaders_order() {
        let cache = write(&pairs(&["libc.so.6", "libelf.so.1", "libbpf.so.10", "libbpf.so.9"]));
        let names: Vec<String> = read(&cache).unwrap().into_iter().map(|(soname, _)| soname).collect();
        assert_eq!(names, ["libelf.so.1", "libc.so.6", "libbpf.so.10", "libbpf.so.9"]);
    }

    #[test]
    fn digits_sort_after_letters_and_by_value() {
        assert_eq!(compare("liba2", "liba10"), Ordering::Less);
        assert_eq!(compare("lib9", "libz"), Ordering::Greater);
        assert_eq!(compare("lib", "liba"), Ordering::Less);
        assert_eq!(compare("lib007", "lib7"), Ordering::Equal);
    }

    #[test]
    fn old_format_in_front_is_passed_over() {
        let mut bytes = OLD_MAGIC.to_vec();
        bytes.push(0);
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.resize(32, 0xaa);
        bytes.extend_from_slice(&write(&pairs(&["libc.so.6"])));
        assert_eq!(read(&bytes).unwrap(), pairs(&["libc.so.6"]));
    }

    #[test]
    fn other_machines_and_newer_cpus_are_left_out() {
        let mut cache = write(&pairs(&["liba.so", "libb.so"]));
        cache[HEADER_BYTES] = 0x03;
        cache[HEADER_BYTES + 1] = 0x08;
        cache[HEADER_BYTES + ENTRY_BYTES + 23] = 0x40;
        assert_eq!(read(&cache).unwrap(), []);
    }

    #[test]
    fn cuts_and_changes_are_read_without_panic() {
        let cache = write(&pairs(&["libc.so.6", "libm.so.6"]));
        for cut in 0..cache.len() {
            assert_eq!(read(&cache[..cut]), None, "cut at {cut}");
        }
        for at in 0..cache.len() {
            let mut changed = cache.clone();
            changed[at] ^= 0xff;
            let names = read(&changed).unwrap_or_default();
            assert!(names.len() <= 2);
        }
    }
}
