//! Loads a probe scheduler into the kernel by raw bpf(2).
//!
//! Owns the order of the calls and what each refusal means; leaves the programs to `programs`.
//! Invariant: where loading fails nothing stays in the kernel, and dropping a `Loaded` unloads it.

use super::hang;
use super::kernel::Kernel;
use super::{Probe, ops_name};
use crate::error::{Context, Error};
use crate::scx::btf::{Btf, one_int};
use crate::sys::bpf;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// The functions a scheduler calls may be called by programs under the GPL only, so a program says that it is.
const LICENSE: &std::ffi::CStr = c"GPL";

/// Why a probe could not be loaded.
#[derive(Debug)]
pub enum Refusal {
    /// The kernel has no sched_ext, no BTF, or not the member or function that this probe needs.
    Unsupported(String),
    /// The verifier refused a program.
    Rejected { operation: &'static str, cause: io::Error, log: String },
    /// Another scheduler is loaded.
    Busy,
    /// Something else failed.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        // bpf(2) itself is an option of the kernel.
        match error.errno() {
            Some(libc::ENOSYS) => Self::Unsupported(format!("{error}; the kernel needs CONFIG_BPF_SYSCALL=y")),
            _ => Self::Failed(error),
        }
    }
}

/// A probe scheduler in the kernel.
#[derive(Debug)]
pub struct Loaded {
    state: OwnedFd,
    /// Closing it unloads the scheduler. The kernel keeps map and programs alive for it.
    _link: OwnedFd,
}

impl Loaded {
    /// The word that the probe's programs share with us.
    pub fn state(&self) -> io::Result<u64> {
        bpf::state(self.state.as_fd())
    }
}

/// The bytes of the kernel's BTF.
fn read_btf(path: &Path) -> Result<Vec<u8>, Refusal> {
    std::fs::read(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => {
            Refusal::Unsupported(format!("there is no {}; the kernel needs CONFIG_DEBUG_INFO_BTF=y", path.display()))
        }
        _ => Refusal::Failed(Error::os(format!("read {}", path.display()), cause)),
    })
}

/// A program that keeps the CPU it is run on from everything for a while (`hang::stops_cpu`).
pub fn cpu_stopper(btf_path: &Path) -> Result<OwnedFd, Refusal> {
    let bytes = read_btf(btf_path)?;
    let code =
        Btf::parse(&bytes).and_then(|btf| hang::stops_cpu(&Kernel::read(&btf)?)).map_err(Refusal::Unsupported)?;
    let wanted = bpf::Program { name: "ktstr_stop", license: LICENSE, code: &code, sleepable: true, place: None };
    let refused =
        |refused: bpf::Refused| Refusal::Rejected { operation: "run", cause: refused.cause, log: refused.log };
    bpf::load(&wanted).map_err(refused)
}

/// Loads and attaches, with this stall timeout. The kernel has then tried to enable the scheduler; its state says whether that went well.
pub fn load(probe: &Probe, timeout_ms: Option<u32>, btf_path: &Path) -> Result<Loaded, Refusal> {
    let bytes = read_btf(btf_path)?;
    let unreadable = |damage| Refusal::Unsupported(format!("cannot read {}: {damage}", btf_path.display()));
    let btf = Btf::parse(&bytes).map_err(unreadable)?;
    let kernel = Kernel::read(&btf)
        .map_err(|lack| Refusal::Unsupported(format!("{lack}; the kernel needs CONFIG_SCHED_CLASS_EXT=y")))?;
    let lacks = |lack| Refusal::Unsupported(format!("this kernel cannot run the probe '{}': {lack}", probe.name));

    let state = bpf::state_map("ktstr_state").context(|| "create a BPF array map")?;
    let mut programs = BTreeMap::new();
    for program in probe.programs {
        let member = kernel.slot(program.operation).map_err(lacks)?.index;
        let code = (program.build)(&kernel, state.as_raw_fd()).map_err(lacks)?;
        let wanted = bpf::Program {
            name: program.operation,
            license: LICENSE,
            code: &code,
            sleepable: program.sleepable,
            place: Some((kernel.ops_id, member)),
        };
        let loaded = bpf::load(&wanted).map_err(|refused| Refusal::Rejected {
            operation: program.operation,
            cause: refused.cause,
            log: refused.log,
        })?;
        programs.insert(program.operation, loaded);
    }

    let value = table(probe, timeout_ms, &kernel, &programs).map_err(lacks)?;
    let some_btf = bpf::load_btf(&one_int()).context(|| "load BTF")?;
    let map = bpf::struct_ops_map("ktstr_ops", some_btf.as_fd(), kernel.value_id, kernel.value_bytes)
        .context(|| "create the struct_ops map of sched_ext_ops")?;
    bpf::set_struct_ops(map.as_fd(), &value).context(|| format!("register the operations of '{}'", probe.name))?;
    match bpf::link_struct_ops(map.as_fd()) {
        Ok(link) => Ok(Loaded { state, _link: link }),
        Err(cause) if cause.raw_os_error() == Some(libc::EBUSY) => Err(Refusal::Busy),
        Err(cause) => Err(Error::os(format!("attach the scheduler '{}'", probe.name), cause).into()),
    }
}

/// The value of the struct_ops map: programs by descriptor, numbers and the name, each where this kernel has it.
fn table(
    probe: &Probe,
    timeout_ms: Option<u32>,
    kernel: &Kernel,
    programs: &BTreeMap<&str, OwnedFd>,
) -> Result<Vec<u8>, String> {
    let mut value = vec![0u8; kernel.value_bytes as usize];
    let mut put = |member: &str, bytes: &[u8]| -> Result<(), String> {
        let slot = kernel.slot(member)?;
        // Numbers are little-endian: the low bytes come first, and the rest of the slot stays 0.
        let length = bytes.len().min(slot.size_bytes);
        if bytes[length..].iter().any(|byte| *byte != 0) {
            return Err(format!("the value of member {member} does not fit into {} bytes", slot.size_bytes));
        }
        value[slot.offset_bytes..slot.offset_bytes + length].copy_from_slice(&bytes[..length]);
        Ok(())
    };
    for (operation, program) in programs {
        put(operation, &(program.as_raw_fd() as u64).to_le_bytes())?;
    }
    if let Some(timeout_ms) = timeout_ms {
        put("timeout_ms", &timeout_ms.to_le_bytes())?;
    }
    if probe.flags != 0 {
        put("flags", &probe.flags.to_le_bytes())?;
    }
    // With its final zero, which must fit too.
    put("name", &[ops_name(probe.name).as_bytes(), b"\0\0"].concat()[..]).map(|()| value)
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::sample;
    use super::super::{PROBES, find};
    use super::*;

    #[test]
    fn table_has_name_timeout_and_descriptors_where_the_kernel_wants_them() {
        let file = crate::sys::fd::memfd("test", 0).unwrap();
        let number = file.as_raw_fd();
        let programs = [("enqueue", OwnedFd::from(file))].into();
        let value = table(find("drop").unwrap(), Some(1000), &sample(), &programs).unwrap();
        assert_eq!(value.len(), 128);
        assert_eq!(value[72..80], (number as u64).to_le_bytes());
        assert_eq!(value[88..92], 1000u32.to_le_bytes());
        assert_eq!(&value[92..103], b"ktstr_drop\0");
    }

    #[test]
    fn missing_btf_names_the_kernel_option() {
        let Err(Refusal::Unsupported(text)) = load(&PROBES[0], None, Path::new("/nowhere/vmlinux")) else {
            panic!("not refused")
        };
        assert!(text.contains("CONFIG_DEBUG_INFO_BTF=y"), "{text}");
    }

    #[test]
    fn btf_without_sched_ext_names_the_kernel_option() {
        let path = std::env::temp_dir().join(format!("ktstr-btf-{}", std::process::id()));
        std::fs::write(&path, one_int()).unwrap();
        let refusal = load(&PROBES[0], None, &path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        let Refusal::Unsupported(text) = refusal else { panic!("{refusal:?}") };
        assert!(text.contains("CONFIG_SCHED_CLASS_EXT=y"), "{text}");
    }
}
