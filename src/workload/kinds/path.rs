//! A path that is put together without allocating, for a forked child.
//!
//! Owns the buffer; leaves what is at the path to the callers.
//! Invariant: always ends in a zero byte; what does not fit is an error, never cut.

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::io;

/// Longer than any path the engine makes: a mount, three directories, a name.
const PATH_BYTES: usize = 512;

pub struct Path {
    bytes: [u8; PATH_BYTES],
    len: usize,
}

impl Path {
    pub fn format(text: fmt::Arguments<'_>) -> io::Result<Self> {
        let mut path = Self { bytes: [0; PATH_BYTES], len: 0 };
        path.write_fmt(text).map_err(|_| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?;
        Ok(path)
    }
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        // One byte stays zero.
        if end >= PATH_BYTES || text.contains('\0') {
            return Err(fmt::Error);
        }
        self.bytes[self.len..end].copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_put_together_and_never_cut() {
        let path = Path::format(format_args!("/a/{}-{}", 7, "b")).unwrap();
        assert_eq!(path.as_c_str(), c"/a/7-b");
        assert!(Path::format(format_args!("{}", "x".repeat(PATH_BYTES))).is_err());
        assert!(Path::format(format_args!("a\0b")).is_err());
    }
}
