//! Reads the kernel's log from its first record, without ever waiting.
//!
//! Owns /dev/kmsg and its record form; leaves what a record means to klog/.
//! Invariant: a record that was overwritten before it was read is counted.

use crate::error::{Context, Result};
use crate::proto::message::Msg;
use crate::sys::fd;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The kernel refuses a buffer smaller than a record; CONSOLE_EXT_LOG_MAX is 8192 (kernel/printk/internal.h).
const BUFFER_BYTES: usize = 16 * 1024;
/// Records taken in one go, so that a kernel that prints for ever cannot keep PID 1 here.
const MOST_PER_TURN: usize = 2000;

/// The open log.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    buffer: Vec<u8>,
    next_sequence: u64,
    records: u64,
    lost: u64,
    /// Reading failed for good.
    broken: bool,
}

impl Kmsg {
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context(|| "open /dev/kmsg (kernel option CONFIG_PRINTK may be missing)")?;
        Ok(Self { file, buffer: vec![0; BUFFER_BYTES], next_sequence: 0, records: 0, lost: 0, broken: false })
    }

    /// Over a file in the place of the log.
    #[cfg(test)]
    pub fn of(path: &std::path::Path) -> Self {
        let (file, buffer) = (File::open(path).unwrap(), vec![0; BUFFER_BYTES]);
        Self { file, buffer, next_sequence: 0, records: 0, lost: 0, broken: false }
    }

    /// Becomes readable when there is a new record.
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
    /// Records taken so far, and records that were overwritten before they could be.
    pub fn totals(&self) -> (u64, u64) {
        (self.records, self.lost)
    }

    /// Whether it could not be read on, so that its end is not known.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Takes what is there now.
    pub fn take(&mut self) -> Vec<Msg> {
        let mut taken = Vec::new();
        while taken.len() < MOST_PER_TURN {
            match fd::read_available(self.file.as_fd(), &mut self.buffer) {
                Ok(Some(0)) | Ok(None) => break,
                Ok(Some(count)) => {
                    if let Some(message) = parse(&self.buffer[..count]) {
                        if let Msg::Klog { sequence, .. } = message {
                            self.lost += sequence.saturating_sub(self.next_sequence);
                            self.next_sequence = sequence + 1;
                            self.records += 1;
                        }
                        taken.push(message);
                    }
                }
                // EPIPE: the next record was overwritten; the following read goes on with the oldest one left.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
        taken
    }
}

/// `priority,sequence,microseconds,flags[,...];text` and continuation lines that begin with a space
/// (Documentation/ABI/testing/dev-kmsg).
fn parse(record: &[u8]) -> Option<Msg> {
    let text = String::from_utf8_lossy(record);
    let (prefix, rest) = text.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let time_us = fields.next()?.parse().ok()?;
    // Continuation lines are the device's dictionary (SUBSYSTEM=, DEVICE=), no part of the message.
    let message = rest.lines().next().unwrap_or_default();
    Some(Msg::Klog { priority, sequence, time_us, text: unescape(message) })
}

/// The kernel writes unprintable bytes and the backslash as `\xNN`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = text_escape(rest);
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn text_escape(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.get(..4)?.strip_prefix(b"\\x")?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_without_its_dictionary() {
        let record = b"6,339,5140900,-,caller=T1;NET: Registered\\x0aPF_INET\n SUBSYSTEM=net\n DEVICE=n1\n";
        let expected =
            Msg::Klog { priority: 6, sequence: 339, time_us: 5_140_900, text: "NET: Registered\nPF_INET".into() };
        assert_eq!(parse(record), Some(expected));
    }

    #[test]
    fn odd_records_do_not_panic() {
        for record in [b"".as_slice(), b";", b"x,1,2;a", b"1;a", b"6,1,2,-;\\x", b"6,1,2,-;\xff\\xzz"] {
            parse(record);
        }
        assert_eq!(unescape("a\\x5cb\\x4"), "a\\b\\x4");
    }

    #[test]
    fn sequence_gap_counts_as_lost() {
        let path = std::env::temp_dir().join(format!("ktstr-kmsg-{}", std::process::id()));
        std::fs::write(&path, "6,3,1,-;late start\n").unwrap();
        let mut kmsg = Kmsg {
            file: File::open(&path).unwrap(),
            buffer: vec![0; 64],
            next_sequence: 0,
            records: 0,
            lost: 0,
            broken: false,
        };
        assert_eq!(kmsg.take().len(), 1);
        assert_eq!(kmsg.totals(), (1, 3));
        std::fs::remove_file(path).unwrap();
    }
}
