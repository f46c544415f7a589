//! The wire codec: little-endian, length-prefixed, one field list per type.
//!
//! Owns `Wire`, `Reader` and the macros that give a struct or an enum its one field list; leaves framing to `frame`.
//! Invariant: decoding never panics and never allocates more than the input's own length allows.

use std::fmt;

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What was wrong.
    pub what: String,
    /// Byte offset in the input at which it was found.
    pub at: usize,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for DecodeError {}

/// A value that crosses the border between host and guest, or is stored.
pub trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The value's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }
    /// The value of exactly these bytes; left-over bytes are an error.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let value = Self::get(&mut input)?;
        if input.left() > 0 {
            return Err(input.error(format!("{} bytes too many", input.left())));
        }
        Ok(value)
    }
}

/// Takes bytes from the front of a slice, checked.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        if count > self.left() {
            return Err(self.error(format!("{count} bytes wanted, {} left", self.left())));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }
    pub fn error(&self, what: impl Into<String>) -> DecodeError {
        DecodeError { what: what.into(), at: self.at }
    }
    /// A count of items that follow; each takes at least one byte, so a larger count is refused before any allocation.
    fn count(&mut self) -> Result<usize, DecodeError> {
        let count = u32::get(self)? as usize;
        if count > self.left() {
            return Err(self.error(format!("{count} items announced, {} bytes left", self.left())));
        }
        Ok(count)
    }
}

macro_rules! wire_number {
    ($($kind:ty),*) => {$(
        impl Wire for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let mut raw = [0; size_of::<$kind>()];
                raw.copy_from_slice(input.take(size_of::<$kind>())?);
                Ok(<$kind>::from_le_bytes(raw))
            }
        }
    )*};
}
wire_number!(u8, u16, u32, u64, i32, i64, f64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::get(input)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(input.error(format!("{other} is no boolean"))),
        }
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = input.count()?;
        let bytes = input.take(count)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| input.error("text is not UTF-8"))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::get(input)? { Some(T::get(input)?) } else { None })
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = input.count()?;
        (0..count).map(|_| T::get(input)).collect()
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::get(input)?, B::get(input)?))
    }
}

/// Declares a struct together with its wire form: the fields in order.
#[macro_export]
#[doc(hidden)]
macro_rules! wire_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $fvis:vis $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$fmeta])* $fvis $field: $kind),* }
        impl $crate::proto::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::proto::codec::Wire::put(&self.$field, out);)*
            }
            fn get(input: &mut $crate::proto::codec::Reader<'_>) -> std::result::Result<Self, $crate::proto::codec::DecodeError> {
                Ok(Self { $($field: $crate::proto::codec::Wire::get(input)?),* })
            }
        }
    };
}

/// Declares an enum together with its wire form: a tag byte, then the variant's fields in order.
#[macro_export]
#[doc(hidden)]
macro_rules! wire_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$vmeta:meta])* $variant:ident = $tag:literal $({ $($(#[$fmeta:meta])* $field:ident: $kind:ty),* $(,)? })?),* $(,)?
    }) => {
        $(#[$meta])*
        $vis enum $name { $($(#[$vmeta])* $variant $({ $($(#[$fmeta])* $field: $kind),* })?),* }
        impl $crate::proto::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        let tag: u8 = $tag;
                        out.push(tag);
                        $($($crate::proto::codec::Wire::put($field, out);)*)?
                    })*
                }
            }
            fn get(input: &mut $crate::proto::codec::Reader<'_>) -> std::result::Result<Self, $crate::proto::codec::DecodeError> {
                let tag = <u8 as $crate::proto::codec::Wire>::get(input)?;
                match tag {
                    $($tag => Ok(Self::$variant $({ $($field: $crate::proto::codec::Wire::get(input)?),* })?),)*
                    other => Err(input.error(format!("{other} is no kind of {}", stringify!($name)))),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    wire_struct! {
        #[derive(Clone, Debug, PartialEq)]
        struct Sample { id: u32, name: String, parts: Vec<u16>, extra: Option<Shape> }
    }
    wire_enum! {
        #[derive(Clone, Debug, PartialEq)]
        enum Shape { Dot = 0, Line = 1 { length: u64, bold: bool } }
    }

    fn sample() -> Sample {
        Sample { id: 7, name: "ab".into(), parts: vec![1, 2], extra: Some(Shape::Line { length: 3, bold: true }) }
    }

    #[test]
    fn round_trip_and_golden_bytes() {
        let bytes = sample().to_bytes();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!("07000000", "02000000", "6162", "02000000", "01000200", "01", "01", "0300000000000000", "01")
        );
        assert_eq!(Sample::from_bytes(&bytes).unwrap(), sample());
        assert_eq!(Shape::from_bytes(&Shape::Dot.to_bytes()).unwrap(), Shape::Dot);
    }

    #[test]
    fn cut_at_every_byte_is_an_error() {
        let bytes = sample().to_bytes();
        for cut in 0..bytes.len() {
            assert!(Sample::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Sample::from_bytes(&longer).unwrap_err().what.contains("too many"));
    }

    #[test]
    fn hostile_count_allocates_nothing() {
        let bytes = u32::MAX.to_bytes();
        assert!(Vec::<u64>::from_bytes(&bytes).unwrap_err().what.contains("announced"));
        assert!(String::from_bytes(&bytes).is_err());
        assert!(Shape::from_bytes(&[9]).unwrap_err().what.contains("no kind of Shape"));
        assert!(bool::from_bytes(&[2]).is_err());
    }
}
