//! Which machine runs the guest: our VMM on KVM, or QEMU's emulation.
//!
//! Owns the choice and its reason; leaves running to machine.rs.
//! Invariant: the choice is made before the run, from a try, and always told.

use super::probe;
use crate::error::{Error, Result};
use std::path::PathBuf;

/// The emulator's program name.
pub const QEMU: &str = "qemu-system-x86_64";

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelChoice {
    Auto,
    Kvm,
    Qemu,
}

/// What a run uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelKind {
    Kvm,
    Qemu,
}

impl AccelKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// The choice, why, and the emulator's path where it is the one.
#[derive(Clone, Debug)]
pub struct Accel {
    pub kind: AccelKind,
    pub reason: String,
    pub qemu: Option<PathBuf>,
}

impl Accel {
    /// The emulator's version, as it tells it.
    pub fn qemu_version(&self) -> Result<String> {
        let program = self.qemu.as_deref().unwrap_or(std::path::Path::new(QEMU));
        probe::qemu_version(program)
            .map_err(|why| Error::host(format!("ask {} for its version: {why}", program.display())))
    }
}

/// Chooses. `check_kvm` tries a throwaway VM.
pub fn choose(choice: AccelChoice, check_kvm: impl FnOnce() -> Result<()>) -> Result<Accel> {
    let kvm = || Accel { kind: AccelKind::Kvm, reason: "KVM works".into(), qemu: None };
    match choice {
        AccelChoice::Kvm => check_kvm().map(|()| kvm()).map_err(|error| error.while_doing("--accel kvm")),
        AccelChoice::Qemu => {
            let path = find_qemu().ok_or_else(|| no_qemu("--accel qemu"))?;
            Ok(Accel { kind: AccelKind::Qemu, reason: "asked for".into(), qemu: Some(path) })
        }
        AccelChoice::Auto => match (check_kvm(), find_qemu()) {
            (Ok(()), _) => Ok(kvm()),
            (Err(error), Some(path)) => {
                Ok(Accel { kind: AccelKind::Qemu, reason: error.message().to_owned(), qemu: Some(path) })
            }
            (Err(error), None) => {
                let remedy = error.hint_text().map(|hint| format!("{hint}; or ")).unwrap_or_default();
                Err(Error::host(format!("no way to run a VM: {}, and {QEMU} is not in PATH", error.message()))
                    .hint(format!("{remedy}install {QEMU} (Debian: apt install qemu-system-x86)")))
            }
        },
    }
}

fn no_qemu(asked: &str) -> Error {
    Error::host(format!("{asked}: {QEMU} is not in PATH")).hint("Debian: apt install qemu-system-x86")
}

/// The emulator in PATH.
pub fn find_qemu() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    probe::find_program(QEMU, std::env::split_paths(&path), &probe::is_executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Result<()> {
        Err(Error::host("KVM is broken").hint("mend it"))
    }

    #[test]
    fn working_kvm_is_taken() {
        assert_eq!(choose(AccelChoice::Auto, || Ok(())).unwrap().kind, AccelKind::Kvm);
    }

    #[test]
    fn forced_kvm_that_fails_is_an_error_with_its_cause() {
        let error = choose(AccelChoice::Kvm, broken).unwrap_err();
        assert_eq!(error.to_string(), "--accel kvm: KVM is broken (mend it)");
        assert_eq!(error.kind().exit_code(), 128);
    }

    #[test]
    fn auto_tells_why_not_kvm() {
        match choose(AccelChoice::Auto, broken) {
            Ok(accel) => assert_eq!((accel.kind, accel.reason.as_str()), (AccelKind::Qemu, "KVM is broken")),
            Err(error) => assert!(error.to_string().contains("mend it; or install"), "{error}"),
        }
    }
}
