//! The VM's own process: from the number of a descriptor to an exit code.
//!
//! Owns reading the configuration and telling the parent; leaves the VM to the recipe.
//! Invariant: the process never outlives its parent, and whatever happens is told before it ends.

use super::config::{VmConfig, VmEvent};
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::frame;
use crate::sys::{fd, process};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// A configuration is a few hundred bytes and a command line.
const CONFIG_MAX_BYTES: u64 = 1 << 20;

/// Exit code after a panic: Rust's own.
#[cfg(not(test))]
const EXIT_PANIC: i32 = 101;

/// The pipe to the parent.
pub struct Events {
    pipe: Mutex<(File, u32)>,
}

impl Events {
    pub fn new(pipe: File) -> Self {
        Self { pipe: Mutex::new((pipe, 0)) }
    }

    /// Where the parent's commands come from.
    pub fn commands(&self) -> std::io::Result<File> {
        super::bus::lock(&self.pipe).0.try_clone()
    }

    /// Sends one event as one frame.
    pub fn send(&self, event: &VmEvent) -> Result<()> {
        let mut guard = super::bus::lock(&self.pipe);
        let (pipe, sequence) = &mut *guard;
        let bytes = frame::encode(*sequence, &event.to_bytes());
        *sequence = sequence.wrapping_add(1);
        pipe.write_all(&bytes).context(|| "tell the parent of the VM")
    }
}

/// Runs the VM whose configuration is the content of this descriptor, and returns the process's exit code.
pub fn process_main(config_fd: i32) -> u8 {
    let prepared = read_config(config_fd).and_then(|config| {
        let pipe = fd::adopt(config.events_fd).context(|| "take over the event pipe")?;
        Ok((config, Arc::new(Events::new(File::from(pipe)))))
    });
    let (config, events) = match prepared {
        Ok(both) => both,
        // Without its descriptors the process has nobody to tell; the parent sees the code and the closed pipes.
        Err(error) => return error.kind().exit_code(),
    };
    // Not under test, where another test's panic is the harness's business.
    #[cfg(not(test))]
    exit_on_panic();
    let outcome = process::die_with_parent(libc::SIGKILL, config.parent_pid)
        .context(|| "tie the VM to its parent")
        .and_then(|()| super::run(&config, &events));
    let (event, code) = match outcome {
        Ok(ended) => (ended, 0),
        Err(error) => (failure(&error), error.kind().exit_code()),
    };
    match events.send(&event) {
        Ok(()) => code,
        Err(error) => error.kind().exit_code(),
    }
}

/// A thread that panicked would leave the others in the guest for ever: the parent is to see the process end.
#[cfg(not(test))]
fn exit_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        // Standard error is what the parent keeps of this process; where it is closed, the exit code says enough.
        match writeln!(std::io::stderr(), "{info}") {
            Ok(()) | Err(_) => process::exit_now(EXIT_PANIC),
        }
    }));
}

fn failure(error: &Error) -> VmEvent {
    VmEvent::Failed {
        text: error.message().to_owned(),
        hint: error.hint_text().map(str::to_owned),
        errno: error.errno(),
    }
}

fn read_config(config_fd: i32) -> Result<VmConfig> {
    let file = File::from(fd::adopt(config_fd).context(|| "take over the VM's configuration")?);
    let bytes = file.metadata().context(|| "look at the VM's configuration")?.len();
    if bytes > CONFIG_MAX_BYTES {
        return Err(Error::internal(format!("the VM's configuration has {bytes} bytes")));
    }
    let mut content = vec![0; bytes as usize];
    file.read_exact_at(&mut content, 0).context(|| "read the VM's configuration")?;
    VmConfig::from_bytes(&content)
        .map_err(|cause| Error::internal(format!("the VM's configuration cannot be decoded: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::config::tests::sample;
    use std::io::Read;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn config_is_read_from_its_descriptor_and_refused_when_cut() {
        let bytes = sample().to_bytes();
        for (content, good) in [(&bytes[..], true), (&bytes[..bytes.len() - 1], false)] {
            let file = fd::memfd("config", 0).unwrap();
            file.write_all_at(content, 0).unwrap();
            let config = read_config(file.into_raw_fd());
            assert_eq!(config.is_ok(), good);
        }
        assert_eq!(process_main(987_654), 128);
    }

    #[test]
    fn failure_to_set_up_is_told_with_its_hint() {
        let (read, write) = fd::pipe().unwrap();
        let config_file = fd::memfd("config", 0).unwrap();
        let config = VmConfig {
            parent_pid: process::parent_id(),
            kernel_path: "/nowhere/vmlinuz".into(),
            events_fd: write.into_raw_fd(),
            ..sample()
        };
        config_file.write_all_at(&config.to_bytes(), 0).unwrap();
        let fake_parent = VmConfig { parent_pid: -1, ..config };
        config_file.write_all_at(&fake_parent.to_bytes(), 0).unwrap();
        assert_ne!(process_main(config_file.into_raw_fd()), 0);
        let mut told = Vec::new();
        File::from(read).read_to_end(&mut told).unwrap();
        let (frame, _) = frame::decode(&told).unwrap();
        let VmEvent::Failed { text, .. } = VmEvent::from_bytes(&frame.payload).unwrap() else { panic!("no failure") };
        assert!(text.contains("tie the VM to its parent"), "{text}");
    }

    #[test]
    fn events_are_counted_frames() {
        let (read, write) = fd::pipe().unwrap();
        let events = Events::new(File::from(write));
        events.send(&VmEvent::FirstInstruction { monotonic_ns: 5 }).unwrap();
        events.send(&VmEvent::FirstInstruction { monotonic_ns: 6 }).unwrap();
        assert!(read.as_raw_fd() >= 0);
        drop(events);
        let mut bytes = Vec::new();
        File::from(read).read_to_end(&mut bytes).unwrap();
        let (first, used) = frame::decode(&bytes).unwrap();
        let (second, _) = frame::decode(&bytes[used..]).unwrap();
        assert_eq!((first.sequence, second.sequence), (0, 1));
    }
}
