//! Takes the dump of a scheduler's state, which the kernel gives to its tracepoint sched_ext:sched_ext_dump.
//!
//! Owns switching the tracepoint on and reading what comes of it, without waiting; leaves showing it to the host.
//! Invariant: what it costs is bounded: a small trace buffer, and so much text in all.

use crate::error::{Context, Result};
use crate::sys::fd;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

const TRACING: &str = "/sys/kernel/tracing";
const EVENT: &str = "events/sched_ext/sched_ext_dump/enable";
/// KiB for each CPU: a dump is some KiB for each CPU and task, and is read as it comes.
const BUFFER_KIB: &str = "256";
/// Stands before the text in a line of trace_pipe.
const MARK: &str = "sched_ext_dump: ";
/// A dump names every runnable task; what a flood of them adds says nothing new.
const MOST_BYTES: usize = 256 << 10;
/// One read.
const READ_BYTES: usize = 16 << 10;
/// Reads of one call, so that a flood cannot hold its caller.
const READS_AT_ONCE: usize = 16;

/// The tracepoint, switched on.
#[derive(Debug)]
pub struct Dump {
    pipe: File,
    /// The beginning of a line whose end has not come.
    partial: String,
    taken_bytes: usize,
}

impl Dump {
    pub fn open() -> Result<Self> {
        for (file, value) in [("buffer_size_kb", BUFFER_KIB), (EVENT, "1")] {
            fs::write(format!("{TRACING}/{file}"), value).context(|| format!("write {value} to {TRACING}/{file}"))?;
        }
        let path = format!("{TRACING}/trace_pipe");
        let pipe = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        Ok(Self { pipe: pipe.context(|| format!("open {path}"))?, partial: String::new(), taken_bytes: 0 })
    }

    /// Whole lines that have come, without what the tracer puts in front; empty where none.
    pub fn take(&mut self) -> String {
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS_AT_ONCE {
            match fd::read_available(self.pipe.as_fd(), &mut buffer) {
                Ok(Some(count)) if count > 0 => self.partial.push_str(&String::from_utf8_lossy(&buffer[..count])),
                // An error would only repeat; without the dump the run is judged as ever.
                _ => break,
            }
        }
        let whole = self.partial.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.partial.drain(..whole).collect();
        let text = texts(&lines);
        let room = MOST_BYTES.saturating_sub(self.taken_bytes);
        // What is beyond was told to be missing when the cap was met.
        let met = self.taken_bytes > MOST_BYTES;
        self.taken_bytes = self.taken_bytes.saturating_add(text.len());
        if met { String::new() } else { capped(text, room) }
    }
}

/// The whole lines that there is room for; says so where that is not all.
fn capped(text: String, room: usize) -> String {
    if text.len() <= room {
        return text;
    }
    // A newline is one byte, so what is before it ends on a character.
    let whole = text.as_bytes()[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    format!("{}[ktstr: the dump is cut here, at {} KiB]\n", &text[..whole], MOST_BYTES >> 10)
}

/// `  comm-12 [000] ..... 3.0: sched_ext_dump: TEXT`; a text that is empty separates parts.
fn texts(lines: &str) -> String {
    let text = |line: &str| line.split_once(MARK).map(|(_, text)| text.to_owned());
    let mut out = String::new();
    for line in lines.lines() {
        // `sched_ext_dump:` without a text has lost its last blank.
        let told = text(line).or_else(|| line.ends_with(MARK.trim_end()).then(String::new));
        if let Some(told) = told {
            out.push_str(told.trim_end());
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_beyond_the_cap_is_cut_on_a_line_and_says_so() {
        let text = || "é 1\né 2\né 3\n".to_owned();
        assert_eq!(capped(text(), 15), text());
        assert_eq!(capped(text(), 14), "é 1\né 2\n[ktstr: the dump is cut here, at 256 KiB]\n");
        assert_eq!(capped(text(), 6), "é 1\n[ktstr: the dump is cut here, at 256 KiB]\n");
        assert_eq!(capped(text(), 0), "[ktstr: the dump is cut here, at 256 KiB]\n");
    }

    #[test]
    fn text_is_taken_out_of_the_tracer_s_line() {
        let lines = "   ktstr-pid1-1  [000] d..1.     3.1: sched_ext_dump: CPU 0   : nr_run=2\n\
                     CPU:0 [LOST 3 EVENTS]\n x-2 [001] d.... 3.2: sched_ext_dump:\n x-2 [001] d.... 3.2: sched_ext_dump:   R kw0[5]\n";
        assert_eq!(texts(lines), "CPU 0   : nr_run=2\n\n  R kw0[5]\n");
    }
}
