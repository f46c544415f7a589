//! Our own VMM as the machine: this binary again, in the role that runs exactly one VM.
//!
//! Owns handing over the configuration, and its events; leaves the VM to vmm/.
//! Invariant: the process inherits its lines and is sent its configuration and files over one of them; nothing is on disk.

use super::machine::{FarLines, MachineEvent, MachineSpec};
use super::unpacked::CONTENT_AT;
use crate::channel::DOORBELL_PORT;
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::frame::{self, FrameError};
use crate::sys::spawn::{Spawn, number};
use crate::sys::{fd, pass, process};
use crate::vmm::config::{DiskConfig, SharedPart, UnpackedKernel, VmConfig, VmEvent};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The hidden command that runs one VM.
pub const VM_COMMAND: &str = "__vm";

/// The VM's ends of the lines that its process inherited, by their numbers there.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    console: i32,
    com2: i32,
    doorbell: i32,
}

/// Starts the process, which makes what every VM needs of KVM and waits for its configuration; returns its id.
pub fn start(far: &FarLines) -> Result<(i32, Inherited)> {
    let inherited =
        Inherited { console: number(&far.console), com2: number(&far.com2), doorbell: number(&far.doorbell) };
    let events = number(&far.events);
    let argv = ["/proc/self/exe".to_owned(), VM_COMMAND.to_owned(), events.to_string()];
    let keep = [inherited.console, inherited.com2, inherited.doorbell, events];
    let stdio = [None, Some(far.log.as_fd()), Some(far.log.as_fd())];
    let pid = Spawn { argv: &argv, environment: &[], stdio, keep: &keep, die_with_parent: true }
        .start()
        .context(|| "start the VM's process")?;
    Ok((pid, inherited))
}

/// Tells the process what VM it is to run.
pub fn configure(spec: &MachineSpec<'_>, inherited: Inherited, line: &OwnedFd) -> Result<()> {
    let mut config = VmConfig {
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
        console_fd: inherited.console,
        com2_fd: inherited.com2,
        doorbell_fd: inherited.doorbell,
        doorbell_port: DOORBELL_PORT,
        disk: spec.disk.map(|disk| DiskConfig {
            fd: number(&disk.file),
            bytes: disk.bytes,
            read_only: disk.spec.read_only,
            bytes_per_s: disk.spec.bytes_per_s,
            requests_per_s: disk.spec.requests_per_s,
        }),
        perf: spec.perf.cloned(),
    };
    let mut handed = fd::memfd("ktstr-vm-config", 0).context(|| "make a memory file for the VM's configuration")?;
    handed.write_all(&config.to_bytes()).context(|| "write the VM's configuration")?;
    let line = line.try_clone().map(UnixStream::from).context(|| "duplicate the line to the VM")?;
    let mut sent = vec![number(&handed)];
    sent.extend(config.sent().into_iter().map(|fd| *fd));
    let told = sent.into_iter().try_for_each(|fd| pass::send(&line, fd));
    unless_gone(told).context(|| "send the VM's process its configuration")
}

/// A process that is gone has said why on its lines, and how it ended is seen there, too.
fn unless_gone(told: io::Result<()>) -> io::Result<()> {
    match told {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        other => other,
    }
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
    use std::os::fd::AsRawFd;

    #[test]
    fn process_that_is_gone_is_left_to_its_lines() {
        for unread in [false, true] {
            let (near, far) = UnixStream::pair().unwrap();
            // What is closed with something unread resets the connection.
            if unread {
                pass::send(&near, near.as_raw_fd()).unwrap();
            }
            drop(far);
            unless_gone(pass::send(&near, near.as_raw_fd())).unwrap();
            assert_eq!(unless_gone(pass::send(&near, -1)).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }

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
