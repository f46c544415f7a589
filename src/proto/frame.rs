//! Frames: how one message is bounded and checked, in the ring, on the serial line and in a stored record.
//!
//! Owns the frame header, its check sum and the text form for a serial line; leaves the payload's meaning to `message`.
//! Invariant: a frame is accepted only if its magic, length and CRC32 agree.

use super::codec::{Reader, Wire};

/// First four bytes of every frame: "KTF1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"KTF1");
/// Header bytes: magic, sequence, length, CRC32 of sequence + length + payload.
pub const HEADER_BYTES: usize = 16;
/// No payload is larger: a report of one worker with its histograms stays far below.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;

/// One checked frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Counts up from 0 per direction; a jump means that frames were lost.
    pub sequence: u32,
    pub payload: Vec<u8>,
}

/// Why the bytes at the front are no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// More bytes are needed.
    Incomplete,
    /// The bytes cannot be a frame, whatever follows.
    Corrupt(String),
}

fn checksum(sequence: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&(payload.len() as u32).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The bytes of a frame with this payload.
pub fn encode(sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    MAGIC.put(&mut out);
    sequence.put(&mut out);
    (payload.len() as u32).put(&mut out);
    checksum(sequence, payload).put(&mut out);
    out.extend_from_slice(payload);
    out
}

/// Takes the frame at the front of `bytes`; returns it with the number of bytes it took.
pub fn decode(bytes: &[u8]) -> Result<(Frame, usize), FrameError> {
    let mut input = Reader::new(bytes);
    let mut word = || u32::get(&mut input).map_err(|_| FrameError::Incomplete);
    let (magic, sequence, length, crc) = (word()?, word()?, word()? as usize, word()?);
    if magic != MAGIC {
        return Err(FrameError::Corrupt(format!("magic {magic:#010x} instead of {MAGIC:#010x}")));
    }
    if length > MAX_PAYLOAD_BYTES {
        return Err(FrameError::Corrupt(format!("length {length} above the limit {MAX_PAYLOAD_BYTES}")));
    }
    let payload = input.take(length).map_err(|_| FrameError::Incomplete)?;
    if checksum(sequence, payload) != crc {
        return Err(FrameError::Corrupt(format!("CRC32 of frame {sequence} does not match")));
    }
    Ok((Frame { sequence, payload: payload.to_vec() }, HEADER_BYTES + length))
}

/// Opens the text form of the channel on a serial line.
pub const TEXT_START: &str = "===KTSTR_TEST_RESULT_START===";
/// Closes it.
pub const TEXT_END: &str = "===KTSTR_TEST_RESULT_END===";
/// Says the guest's own exit code after it.
pub const TEXT_EXIT: &str = "KTSTR_EXIT=";

/// Begins every frame line, so that kernel chatter between frames is told apart.
const TEXT_PREFIX: &str = "KTF1:";

/// One frame as a line of hexadecimal text, without the line end.
pub fn to_text(sequence: u32, payload: &[u8]) -> String {
    let mut line = String::with_capacity(TEXT_PREFIX.len() + 2 * (HEADER_BYTES + payload.len()));
    line.push_str(TEXT_PREFIX);
    for byte in encode(sequence, payload) {
        line.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        line.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    line
}

/// The frame of a line, `None` where the line is none of ours.
pub fn from_text(line: &str) -> Option<Result<Frame, FrameError>> {
    let hex = line.trim_end().strip_prefix(TEXT_PREFIX)?;
    let corrupt = |what: &str| Some(Err(FrameError::Corrupt(what.to_owned())));
    if hex.len() % 2 != 0 || !hex.is_ascii() {
        return corrupt("odd or non-ASCII hexadecimal text");
    }
    let mut bytes = Vec::with_capacity(hex.len() / 2);
    for pair in hex.as_bytes().chunks_exact(2) {
        let digit = |b: u8| char::from(b).to_digit(16);
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => bytes.push((high << 4 | low) as u8),
            _ => return corrupt("not hexadecimal text"),
        }
    }
    Some(match decode(&bytes) {
        Ok((frame, used)) if used == bytes.len() => Ok(frame),
        Ok(_) => Err(FrameError::Corrupt("bytes after the frame".into())),
        Err(FrameError::Incomplete) => Err(FrameError::Corrupt("line cut short".into())),
        Err(error) => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_golden_bytes() {
        let bytes = encode(5, b"hi");
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(&hex[..24], "4b5446310500000002000000");
        assert_eq!(decode(&bytes).unwrap(), (Frame { sequence: 5, payload: b"hi".to_vec() }, bytes.len()));
        let text = to_text(5, b"hi");
        assert_eq!(from_text(&text).unwrap().unwrap().payload, b"hi");
    }

    #[test]
    fn cut_at_every_byte_is_incomplete() {
        let bytes = encode(0, b"payload");
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Err(FrameError::Incomplete), "cut at {cut}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode(3, b"payload");
        for index in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[index / 8] ^= 1 << (index % 8);
            assert!(decode(&broken).is_err(), "bit {index}");
        }
    }

    #[test]
    fn lines_of_others_are_none_of_ours() {
        assert!(from_text("[    0.1] Linux version 7").is_none());
        assert!(from_text("KTF1:zz").unwrap().is_err());
        let text = to_text(1, b"abc");
        assert!(from_text(&text[..text.len() - 2]).unwrap().is_err());
    }
}
