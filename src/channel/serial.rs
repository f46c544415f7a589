//! The text form of the channel on COM2: lines of frames between two marks.
//!
//! Owns splitting a byte stream into lines and frames; leaves what they say to the sessions.
//! Invariant: a line is bounded, so a flood without line ends costs no memory.

use crate::proto::frame::{self, Frame, FrameError, HEADER_BYTES, MAX_PAYLOAD_BYTES, TEXT_END, TEXT_EXIT, TEXT_START};

/// No line of ours is longer: prefix, and two digits for each byte of the largest frame.
const MAX_LINE_BYTES: usize = 16 + 2 * (HEADER_BYTES + MAX_PAYLOAD_BYTES);

/// What a line turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Start,
    Frame(Frame),
    Damaged(String),
    End,
    /// The guest's own exit code.
    Exit(i32),
}

/// Makes lines of bytes.
#[derive(Debug, Default)]
pub struct LineDecoder {
    partial: Vec<u8>,
    overlong: bool,
}

impl LineDecoder {
    /// Takes bytes as they came; returns the lines they completed that are ours.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE_BYTES.saturating_sub(self.partial.len());
            self.overlong |= piece.len() > room;
            self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&self.partial).into_owned();
                match std::mem::take(&mut self.overlong) {
                    true => lines.push(Line::Damaged(format!("a line longer than {MAX_LINE_BYTES} bytes"))),
                    false => lines.extend(classify(line.trim_end())),
                }
                self.partial.clear();
            }
        }
        lines
    }
}

fn classify(line: &str) -> Option<Line> {
    if line == TEXT_START {
        return Some(Line::Start);
    }
    if line == TEXT_END {
        return Some(Line::End);
    }
    if let Some(code) = line.strip_prefix(TEXT_EXIT) {
        return Some(code.parse().map_or_else(|_| Line::Damaged(format!("exit code '{code}'")), Line::Exit));
    }
    match frame::from_text(line)? {
        Ok(frame) => Some(Line::Frame(frame)),
        Err(FrameError::Corrupt(what)) => Some(Line::Damaged(what)),
        Err(FrameError::Incomplete) => Some(Line::Damaged("a frame cut short".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_cut_anywhere_gives_the_same_lines() {
        let text = format!("noise\n{TEXT_START}\n{}\r\n{TEXT_END}\n{TEXT_EXIT}3\n", frame::to_text(0, b"abc"));
        let whole = LineDecoder::default().feed(text.as_bytes());
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[1], Line::Frame(Frame { sequence: 0, payload: b"abc".to_vec() }));
        assert_eq!(whole[3], Line::Exit(3));
        for cut in 0..text.len() {
            let mut decoder = LineDecoder::default();
            let mut lines = decoder.feed(&text.as_bytes()[..cut]);
            lines.extend(decoder.feed(&text.as_bytes()[cut..]));
            assert_eq!(lines, whole, "cut at {cut}");
        }
    }

    #[test]
    fn flood_without_line_end_is_bounded_and_reported() {
        let mut decoder = LineDecoder::default();
        for _ in 0..20 {
            assert!(decoder.feed(&vec![b'x'; 100_000]).is_empty());
        }
        assert!(decoder.partial.len() <= MAX_LINE_BYTES);
        assert!(matches!(decoder.feed(b"\n")[..], [Line::Damaged(_)]));
    }

    #[test]
    fn damaged_frame_is_told() {
        let mut text = frame::to_text(0, b"abc");
        text.replace_range(10..11, "f");
        assert!(matches!(LineDecoder::default().feed(format!("{text}\n").as_bytes())[..], [Line::Damaged(_)]));
    }
}
