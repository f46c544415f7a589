//! The value of `--disk`: a size or a file, and options behind commas.
//!
//! Owns its grammar; leaves opening it to run/disk.
//! Invariant: does no I/O; a name with commas stays whole unless its end is an option.

use crate::error::{Error, Result};
use crate::run::disk::{DiskSource, DiskSpec};
use crate::units;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// `64M`, `disk.img`, each with any of `,ro` `,scratch` `,rate=10M` (bytes per second) `,iops=100` behind it.
pub fn parse(value: &OsStr) -> Result<DiskSpec> {
    let refuse = |why: String| Error::usage(format!("--disk: {why}"));
    let mut spec = DiskSpec {
        source: DiskSource::Memory { bytes: 0 },
        read_only: false,
        scratch: false,
        bytes_per_s: 0,
        requests_per_s: 0,
    };
    let mut rest = value;
    while let Some((before, option)) = last_option(rest) {
        match option.split_once('=') {
            None if option == "ro" => spec.read_only = true,
            None => spec.scratch = true,
            Some(("rate", text)) => match units::parse_size(text, false).map_err(refuse)? {
                0 => return Err(refuse("a rate of 0 would never move a byte".into())),
                rate => spec.bytes_per_s = rate,
            },
            Some((_, text)) => match text.parse() {
                Ok(count) if count > 0 => spec.requests_per_s = count,
                _ => return Err(refuse(format!("iops: '{text}' is not a whole number from 1 on"))),
            },
        }
        rest = before;
    }
    if rest.is_empty() {
        return Err(refuse("a size such as 64M, or a file, is missing".into()));
    }
    if spec.read_only && spec.scratch {
        return Err(refuse("ro and scratch contradict each other".into()));
    }
    spec.source = match rest.to_str().map(|text| units::parse_size(text, true)) {
        Some(Ok(0)) => return Err(refuse("a disk of no size".into())),
        Some(Ok(_)) if spec.read_only => return Err(refuse("a disk in memory that is read-only holds nothing".into())),
        Some(Ok(bytes)) => DiskSource::Memory { bytes },
        _ => DiskSource::File(rest.into()),
    };
    Ok(spec)
}

/// What stands before the last comma, and the option behind it, where it is one.
fn last_option(value: &OsStr) -> Option<(&OsStr, &str)> {
    let bytes = value.as_bytes();
    let comma = bytes.iter().rposition(|byte| *byte == b',')?;
    let option = std::str::from_utf8(&bytes[comma + 1..]).ok()?;
    let known = ["ro", "scratch"].contains(&option) || option.starts_with("rate=") || option.starts_with("iops=");
    known.then(|| (OsStr::from_bytes(&bytes[..comma]), option))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> DiskSpec {
        parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn sizes_are_memory_and_all_else_is_a_file() {
        assert_eq!(parsed("64M").source, DiskSource::Memory { bytes: 64 << 20 });
        assert_eq!(parsed("64").source, DiskSource::Memory { bytes: 64 << 20 });
        for file in ["disk.img", "./64M", "a,b", "x,ro,y", "64M,iosp=3"] {
            assert_eq!(parsed(file).source, DiskSource::File(file.into()));
        }
    }

    #[test]
    fn options_come_in_any_order() {
        let spec = parsed("d.img,iops=100,ro,rate=10M");
        assert_eq!(spec.source, DiskSource::File("d.img".into()));
        assert_eq!((spec.read_only, spec.bytes_per_s, spec.requests_per_s), (true, 10 << 20, 100));
        assert_eq!(parsed("64M,rate=4096").bytes_per_s, 4096);
        let scratch = ["64M", "d.img,scratch", "d.img", "d.img,ro"].map(|text| parsed(text).is_scratch());
        assert_eq!(scratch, [true, true, false, false]);
    }

    #[test]
    fn values_that_make_no_disk_are_refused() {
        for (text, why) in [
            ("", "is missing"),
            (",ro", "is missing"),
            ("0", "no size"),
            ("64M,ro", "holds nothing"),
            ("f,ro,scratch", "contradict"),
            ("64M,iops=0", "from 1 on"),
            ("64M,iops=-1", "from 1 on"),
            ("64M,rate=0", "never move"),
            ("64M,rate=fast", "'fast' is not a size"),
        ] {
            let error = parse(OsStr::new(text)).unwrap_err().to_string();
            assert!(error.contains("--disk") && error.contains(why), "{text}: {error}");
        }
    }
}
