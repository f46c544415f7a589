//! Where a worker's memory lies: pages by node, and pages that the kernel moved.
//!
//! Owns reading numa_maps and vmstat; leaves when to the sampler's owner.
//! Invariant: nothing here allocates; a file that is not there is "not known", never zero.

use super::slot::MAX_TOLD_NODES;
use crate::sys::fd;
use std::ffi::CStr;
use std::os::fd::AsFd;

/// One read.
const CHUNK_BYTES: usize = 4096;

/// Feeds a file to `take`, a byte at a time. False: it could not be read.
fn each_byte(path: &CStr, mut take: impl FnMut(u8)) -> bool {
    let Ok(file) = fd::open_read(path) else { return false };
    let mut buffer = [0; CHUNK_BYTES];
    loop {
        match fd::read_available(file.as_fd(), &mut buffer) {
            Ok(Some(0)) => return true,
            Ok(Some(count)) => buffer[..count].iter().for_each(|byte| take(*byte)),
            Ok(None) => {}
            Err(_) => return false,
        }
    }
}

/// Adds up the `N<node>=<pages>` words of a numa_maps file (kernel: Documentation/filesystems/proc.rst).
#[derive(Default)]
struct Adder {
    pages: [u64; MAX_TOLD_NODES],
    word: Word,
}

#[derive(Clone, Copy, Default)]
enum Word {
    #[default]
    Begin,
    Node(Option<usize>),
    Pages(usize, u64),
    Other,
}

impl Adder {
    fn take(&mut self, byte: u8) {
        self.word = match (self.word, byte) {
            (word, b' ' | b'\n') => {
                if let Word::Pages(node, count) = word {
                    self.pages[node.min(MAX_TOLD_NODES - 1)] += count;
                }
                Word::Begin
            }
            (Word::Begin, b'N') => Word::Node(None),
            (Word::Node(node), digit @ b'0'..=b'9') => {
                Word::Node(Some(node.unwrap_or(0).saturating_mul(10).saturating_add(usize::from(digit - b'0'))))
            }
            (Word::Node(Some(node)), b'=') => Word::Pages(node, 0),
            (Word::Pages(node, count), digit @ b'0'..=b'9') => {
                Word::Pages(node, count.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
            }
            _ => Word::Other,
        };
    }
}

/// The calling process's pages by node.
pub fn by_node() -> Option<[u64; MAX_TOLD_NODES]> {
    let mut adder = Adder::default();
    each_byte(c"/proc/self/numa_maps", |byte| adder.take(byte)).then_some(adder.pages)
}

/// Pages that the whole system has moved between nodes.
pub fn migrated() -> Option<u64> {
    const NAME: &[u8] = b"numa_pages_migrated ";
    let (mut matched, mut value, mut found) = (0, 0u64, false);
    let read = each_byte(c"/proc/vmstat", |byte| match byte {
        b'\n' => matched = 0,
        digit @ b'0'..=b'9' if matched == NAME.len() => {
            found = true;
            value = value.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
        }
        byte if matched < NAME.len() && NAME[matched] == byte => matched += 1,
        // No match in this line any more.
        _ => matched = usize::MAX,
    });
    (read && found).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_nodes_are_added_and_others_are_not() {
        let mut adder = Adder::default();
        let text = b"7f00 default file=/N1=9 mapped=3 N0=2 N1=10 kernelpagesize_kB=4\n7f01 bind:0 anon=5 N0=5\nN99=1\n";
        text.iter().for_each(|byte| adder.take(*byte));
        assert_eq!((adder.pages[0], adder.pages[1], adder.pages[MAX_TOLD_NODES - 1]), (7, 10, 1));
    }

    #[test]
    fn this_process_has_pages_where_the_kernel_tells() {
        let told = std::fs::read_to_string("/proc/self/numa_maps").is_ok();
        assert_eq!(by_node().map(|pages| pages.iter().sum::<u64>() > 0), told.then_some(true));
        let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap();
        let line = vmstat.lines().find_map(|line| line.strip_prefix("numa_pages_migrated "));
        assert_eq!(migrated().is_some(), line.is_some());
    }
}
