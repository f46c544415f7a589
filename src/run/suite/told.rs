//! What the process of one run tells the process that started it.
//!
//! Owns the value and its way through an inherited memory file; leaves what is in it to cli/.
//! Invariant: a process that died before it told anything is told apart from one that told.

use crate::error::{self, Context, Error};
use crate::proto::codec::Wire;
use crate::sys::fd;
use crate::verdict::Outcome;
use crate::wire_struct;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

wire_struct! {
    /// One run, as its own process judged it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Told {
        /// `Outcome::word`.
        pub outcome: String,
        pub exit_code: u8,
        pub headline: String,
        /// The run directory, where it was kept.
        pub directory: Option<String>,
        /// Zero where no plan was made.
        pub seed: u64,
        /// The whole summary, without colour.
        pub summary: String,
        /// The whole result.
        pub json: String,
    }
}

impl Told {
    pub fn outcome(&self) -> Outcome {
        let known = Outcome::ALL.into_iter().find(|outcome| outcome.word() == self.outcome);
        known.unwrap_or(Outcome::Error)
    }

    /// Writes it to the descriptor that this process was started with.
    pub fn tell(&self, number: i32) -> error::Result<()> {
        let mut file = File::from(fd::adopt(number).context(|| format!("take descriptor {number}"))?);
        file.write_all(&self.to_bytes()).context(|| "hand over the result")
    }

    /// Reads what a process has written; none where it wrote nothing.
    pub fn read(file: &mut File) -> error::Result<Option<Self>> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_end(&mut bytes))
            .context(|| "read the result of a run")?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let told = Self::from_bytes(&bytes);
        told.map(Some).map_err(|error| Error::internal(format!("the process of a run tells nonsense: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn told_arrives_and_silence_is_none() {
        let told = Told {
            outcome: "FAIL".into(),
            exit_code: 1,
            headline: "h".into(),
            directory: None,
            seed: 7,
            summary: "s\n".into(),
            json: "{}\n".into(),
        };
        let mut file = fd::memfd("told", 0).unwrap();
        assert_eq!(Told::read(&mut file).unwrap(), None);
        told.tell(file.try_clone().unwrap().into_raw_fd()).unwrap();
        assert_eq!(Told::read(&mut file).unwrap(), Some(told.clone()));
        assert_eq!(told.outcome(), Outcome::Fail);
        assert!(file.as_raw_fd() > 2);
        file.set_len(3).unwrap();
        assert!(Told::read(&mut file).is_err());
    }
}
