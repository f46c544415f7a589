//! The one error type of the crate: what was tried, on what, why it failed, and what to do about it.
//!
//! Owns the kinds of error and the exit code each stands for; leaves wording to the place that fails.
//! Invariant: a message is lower case, without a full stop, and names the object it is about.

use std::fmt;
use std::io;

/// What an error means for the person who ran ktstr; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line, or a file named on it, is wrong.
    Usage,
    /// This host cannot do what was asked: no KVM, no memory, no permission.
    Host,
    /// The subject cannot be judged here: the kernel lacks what the run needs.
    CannotJudge,
    /// The user asked us to stop.
    Interrupted,
    /// A fault of ktstr itself.
    Internal,
}

impl Kind {
    /// The process exit code for an error of this kind (`git bisect run` takes 125 as skip and stops above 127).
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::CannotJudge => 125,
            Kind::Interrupted => 130,
            Kind::Usage | Kind::Host | Kind::Internal => 128,
        }
    }
}

/// An error with its context: attempt, object, cause, and a hint where one is known.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    errno: Option<i32>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, errno: None }
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(Kind::Host, message)
    }
    pub fn cannot_judge(message: impl Into<String>) -> Self {
        Self::new(Kind::CannotJudge, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// An operating system error: `cannot {attempt}: {errno text}`.
    pub fn os(attempt: impl fmt::Display, cause: io::Error) -> Self {
        Self {
            kind: Kind::Host,
            message: format!("cannot {attempt}: {}", errno_text(&cause)),
            hint: None,
            errno: cause.raw_os_error(),
        }
    }

    /// Adds what the reader can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// The same error, meaning something else for the exit code.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }
    /// The same error, with what was being done when it happened in front.
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
    pub fn message(&self) -> &str {
        &self.message
    }
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
    /// The errno behind it, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The system's text for an error, lower case, with its number: `no such file or directory (errno 2)`.
fn errno_text(cause: &io::Error) -> String {
    let Some(errno) = cause.raw_os_error() else { return cause.to_string() };
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text).to_lowercase();
    format!("{text} (errno {errno})")
}

/// Turns an `io::Result` into ours, with the attempt in words.
pub trait Context<T> {
    /// `attempt` completes the sentence "cannot ...".
    fn context<D: fmt::Display>(self, attempt: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<D: fmt::Display>(self, attempt: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|cause| Error::os(attempt(), cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_error_names_attempt_and_errno() {
        let error = Error::os("open /nowhere", io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "cannot open /nowhere: no such file or directory (errno 2)");
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert_eq!(error.kind().exit_code(), 128);
    }

    #[test]
    fn hint_follows_in_brackets() {
        assert_eq!(
            Error::usage("no kernel given").hint("--kernel FILE").to_string(),
            "no kernel given (--kernel FILE)"
        );
    }

    #[test]
    fn exit_codes_are_safe_for_bisect() {
        assert_eq!(Kind::CannotJudge.exit_code(), 125);
        assert_eq!(Kind::Interrupted.exit_code(), 130);
        assert!(Kind::Internal.exit_code() > 127);
    }
}
