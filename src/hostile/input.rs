//! Bytes as a sequence of choices.
//!
//! Owns taking numbers and pieces from the front; leaves their meaning to the targets.
//! Invariant: what is missing reads as zero or as nothing, so that every input is a whole one.

/// What is left of an input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The next byte; none at the end, which ends a target's loop.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
    fn number<const N: usize>(&mut self) -> [u8; N] {
        let mut raw = [0; N];
        let taken = self.take(N);
        raw[..taken.len()].copy_from_slice(taken);
        raw
    }
    pub fn word8(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }
    pub fn word16(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }
    pub fn word32(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }
    pub fn word64(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }
    /// A piece whose length stands before it: a byte, or 255 and two bytes.
    pub fn some(&mut self) -> &'a [u8] {
        let length = match self.word8() {
            u8::MAX => usize::from(self.word16()),
            short => usize::from(short),
        };
        self.take(length)
    }
    /// A piece as `some` takes it.
    pub fn pack(bytes: &[u8]) -> Vec<u8> {
        let length = bytes.len().min(usize::from(u16::MAX)) as u16;
        let mut packed = match u8::try_from(length) {
            Ok(short) if short < u8::MAX => vec![short],
            _ => [&[u8::MAX][..], &length.to_le_bytes()].concat(),
        };
        packed.extend_from_slice(&bytes[..usize::from(length)]);
        packed
    }
}
