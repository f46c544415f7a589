//! Standard error while runs go on.
//!
//! Owns writing that never waits for a reader, and the line of progress; leaves standard output to the verdict.
//! Invariant: the deadlines of a run never depend on somebody watching it.

use super::out;
use crate::sys::{poll, time, tty};
use crate::units::{NS_PER_SEC, approx};
use std::io::{self, Write};
use std::os::fd::AsFd;

/// A pipe that is ready takes this much at once (pipe(7)).
const PIPE_BUF: usize = 4096;
/// The line of progress is drawn anew this often at most.
const DRAW_EVERY_NS: u64 = NS_PER_SEC / 5;
/// Back to the first column, and clear to the end of the line (ECMA-48 section 8.3.41).
const CLEAR_LINE: &str = "\r\x1b[K";

/// What is shown while runs go on.
#[derive(Debug, Default)]
pub struct Screen {
    /// Bytes that were not shown because nobody took them.
    unseen_bytes: usize,
}

impl Screen {
    /// Writes only what standard error takes at once.
    pub fn write(&mut self, bytes: &[u8]) {
        let err = io::stderr();
        for piece in bytes.chunks(PIPE_BUF) {
            let ready = poll::writable(&[err.as_fd()], 0).is_ok_and(|ready| ready == [true]);
            if !ready || err.lock().write_all(piece).is_err() {
                self.unseen_bytes += piece.len();
            }
        }
    }

    /// Says what was not shown.
    pub fn finish(&self) {
        if self.unseen_bytes > 0 {
            out::print_error(&format!(
                "ktstr: {} bytes of output were not shown: nobody took them\n",
                self.unseen_bytes
            ));
        }
    }
}

/// How far many runs have come: one line that changes on a terminal, else a line for each run that ended.
pub struct Meter {
    screen: Screen,
    terminal: bool,
    quiet: bool,
    total: usize,
    done: usize,
    failed: usize,
    started_ns: u64,
    drawn_ns: u64,
}

impl Meter {
    pub fn new(total: usize, quiet: bool) -> Self {
        let terminal = tty::is_terminal(&io::stderr());
        let started_ns = time::monotonic_ns();
        Self { screen: Screen::default(), terminal, quiet, total, done: 0, failed: 0, started_ns, drawn_ns: 0 }
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) {
        if !self.quiet {
            let clear = if self.terminal { CLEAR_LINE } else { "" };
            self.screen.write(format!("{clear}{text}\n").as_bytes());
            self.drawn_ns = 0;
        }
    }

    /// A run has ended, and this is to be said of it; on a terminal only where it is `worth` a line that stays.
    pub fn ended(&mut self, text: &str, failed: bool, worth: bool) {
        self.done += 1;
        self.failed += usize::from(failed);
        if worth || !self.terminal {
            self.say(&format!("[{:>width$}/{}] {text}", self.done, self.total, width = self.total.to_string().len()));
        }
    }

    /// Draws the line of progress.
    pub fn tick(&mut self, running: usize) {
        let now = time::monotonic_ns();
        if self.terminal && !self.quiet && now >= self.drawn_ns + DRAW_EVERY_NS {
            self.drawn_ns = now;
            let line = progress(self.done, self.total, self.failed, running, now.saturating_sub(self.started_ns));
            self.screen.write(format!("{CLEAR_LINE}{line}").as_bytes());
        }
    }

    /// Removes the line of progress.
    pub fn finish(&mut self) {
        if self.terminal && !self.quiet {
            self.screen.write(CLEAR_LINE.as_bytes());
        }
        self.screen.finish();
    }
}

/// `3/8 done, 1 failed, 2 running, 20.3 s, ETA 34 s`: what is left takes as long as what is done, in proportion.
fn progress(done: usize, total: usize, failed: usize, running: usize, elapsed_ns: u64) -> String {
    let left = total.saturating_sub(done) as u64;
    let eta = match done {
        0 => "ETA unknown".to_owned(),
        _ => format!("ETA {} s", elapsed_ns.saturating_mul(left) / done as u64 / NS_PER_SEC),
    };
    format!("{done}/{total} done, {failed} failed, {running} running, {}, {eta}", approx(elapsed_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_counts_and_the_time_left() {
        assert_eq!(progress(0, 8, 0, 2, NS_PER_SEC), "0/8 done, 0 failed, 2 running, 1.00 s, ETA unknown");
        let line = progress(2, 8, 1, 2, 10 * NS_PER_SEC);
        assert_eq!(line, "2/8 done, 1 failed, 2 running, 10.0 s, ETA 30 s");
    }
}
