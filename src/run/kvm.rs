//! Our own VMM as the machine: this binary again, in the role that runs exactly one VM.
//!
//! Owns handing over the configuration, and its events; leaves the VM to vmm/.
//! Invariant: configuration and descriptors reach the process by inheritance only; nothing is on disk.

use super::machine::{FarLines, MachineEvent, MachineSpec};
use super::unpacked::CONTENT_AT;
use crate::channel::DOORBELL_PORT;
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::frame::{self, FrameError};
use crate::sys::spawn::{Spawn, number};
use crate::sys::{fd, process};
use crate::vmm::config::{DiskConfig, SharedPart, UnpackedKernel, VmConfig, VmEvent};
use std::io::Write;
use std::os::fd::AsFd;

/// The hidden command that runs one VM.
pub const VM_COMMAND: &str = "__vm";

/// Starts the process; returns its id.
pub fn start(spec: &MachineSpec<'_>, far: &FarLines) -> Result<i32> {
    let config = VmConfig {
        parent_pid: process::id(),
        topology: spec.topology.clone(),
        numa: spec.numa.clone(),
        memory_bytes: spec.memory_bytes,
        kernel_path: spec.kernel.display().to_string(),
        unpacked: spec.unpacked.map(|kernel| UnpackedKernel {
            fd: number(&kernel.file),
            offset: CONTENT_AT,
            start_gpa: kernel.start_gpa,
            bytes: kernel.bytes,
            entry_gpa: kernel.entry_gpa,
            read_only_gpa: kernel.read_only.0,
            read_only_end: kernel.read_only.1,
        }),
        cmdline: spec.cmdline.to_owned(),
        reserved: Some(spec.ring),
        ram_fd: number(spec.ram),
        initramfs_fd: number(spec.initramfs),
        initramfs_bytes: spec.initramfs_bytes,
        initramfs_gpa: spec.initramfs_gpa,
        initramfs_shared: spec.shared.map(|(file, bytes)| SharedPart { fd: number(file), bytes }),
        console_fd: number(&far.console),
        com2_fd: number(&far.com2),
        doorbell_fd: number(&far.doorbell),
        doorbell_port: DOORBELL_PORT,
        disk: spec.disk.map(|disk| DiskConfig {
            fd: number(&disk.file),
            bytes: disk.bytes,
            read_only: disk.spec.read_only,
            bytes_per_s: disk.spec.bytes_per_s,
            requests_per_s: disk.spec.requests_per_s,
        }),
        perf: spec.perf.cloned(),
        events_fd: number(&far.events),
    };
    let mut handed = fd::memfd("ktstr-vm-config", 0).context(|| "make a memory file for the VM's configuration")?;
    handed.write_all(&config.to_bytes()).context(|| "write the VM's configuration")?;
    let argv = ["/proc/self/exe".to_owned(), VM_COMMAND.to_owned(), number(&handed).to_string()];
    let mut keep = vec![
        number(&handed),
        config.ram_fd,
        config.initramfs_fd,
        config.console_fd,
        config.com2_fd,
        config.doorbell_fd,
        config.events_fd,
    ];
    keep.extend(config.disk.as_ref().map(|disk| disk.fd));
    keep.extend(config.initramfs_shared.as_ref().map(|part| part.fd));
    keep.extend(config.unpacked.as_ref().map(|kernel| kernel.fd));
    let stdio = [None, Some(far.log.as_fd()), Some(far.log.as_fd())];
    Spawn { argv: &argv, environment: &[], stdio, keep: &keep, die_with_parent: true }
        .start()
        .context(|| "start the VM's process")
}

/// Reads the frames that the VM's process writes.
#[derive(Debug, Default)]
pub struct Events {
    partial: Vec<u8>,
}

impl Events {
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<MachineEvent>> {
        self.partial.extend_from_slice(bytes);
        let mut events = Vec::new();
        loop {
            let (frame, used) = match frame::decode(&self.partial) {
                Ok(decoded) => decoded,
                Err(FrameError::Incomplete) => return Ok(events),
                Err(FrameError::Corrupt(what)) => {
                    return Err(Error::internal(format!("the VM's process writes nonsense: {what}")));
                }
            };
            self.partial.drain(..used);
            let event = VmEvent::from_bytes(&frame.payload)
                .map_err(|error| Error::internal(format!("the VM's process writes nonsense: {error}")))?;
            events.push(match event {
                VmEvent::FirstInstruction { monotonic_ns } => MachineEvent::FirstInstruction { monotonic_ns },
                VmEvent::Ended { end, exits } => MachineEvent::Ended { end, exits },
                VmEvent::Perf { items } => MachineEvent::Perf { items },
                VmEvent::Registers { cpus } => MachineEvent::Registers { cpus },
                VmEvent::Failed { text, hint, .. } => {
                    let error = Error::host(text);
                    return Err(match hint {
                        Some(hint) => error.hint(hint),
                        None => error,
                    });
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::message::VmEnd;

    #[test]
    fn events_survive_any_cut_of_the_stream() {
        let ended = VmEvent::Ended { end: VmEnd::Reset, exits: vec![("io".into(), 3)] };
        let mut bytes = frame::encode(0, &VmEvent::FirstInstruction { monotonic_ns: 5 }.to_bytes());
        bytes.extend(frame::encode(1, &ended.to_bytes()));
        for cut in 0..bytes.len() {
            let mut events = Events::default();
            let mut seen = events.feed(&bytes[..cut]).unwrap();
            seen.extend(events.feed(&bytes[cut..]).unwrap());
            assert_eq!(seen.len(), 2, "cut at {cut}");
        }
    }

    #[test]
    fn failed_set_up_becomes_the_run_error_with_its_hint() {
        let failed = VmEvent::Failed { text: "cannot create a VM".into(), hint: Some("do this".into()), errno: None };
        let error = Events::default().feed(&frame::encode(0, &failed.to_bytes())).unwrap_err();
        assert_eq!(error.to_string(), "cannot create a VM (do this)");
    }
}
