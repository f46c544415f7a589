//! The VM's own process: from the number of a descriptor to an exit code.
//!
//! Owns taking the configuration and telling the parent; leaves the VM to the recipe.
//! Invariant: the process never outlives its parent, and whatever happens is told before it ends.

use super::config::{VmConfig, VmEvent};
use super::kvm::Ground;
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::frame;
use crate::sys::{fd, pass, process};
use std::fs::File;
use std::io::Write;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// A configuration is a few hundred bytes and a command line.
const CONFIG_MAX_BYTES: u64 = 1 << 20;

/// Exit code after a panic: Rust's own.
#[cfg(not(test))]
const EXIT_PANIC: i32 = 101;

/// The line to the parent.
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

/// Runs the VM whose configuration comes over this socket, and returns the process's exit code.
///
/// What every VM needs of KVM is made at once, while the parent still makes the image; what failed of it is told when there
/// is a VM to be told of.
pub fn process_main(events_fd: i32) -> u8 {
    let line = match fd::adopt(events_fd).context(|| "take over the VM's line to its parent") {
        Ok(line) => UnixStream::from(line),
        // There is nobody to tell; the parent sees the code and the closed lines.
        Err(error) => return error.kind().exit_code(),
    };
    // Not under test, where another test's panic is the harness's business.
    #[cfg(not(test))]
    exit_on_panic();
    serve(line, Ground::lay())
}

fn serve(line: UnixStream, ground: Result<Ground>) -> u8 {
    let config = take_config(&line);
    let events = Arc::new(Events::new(File::from(OwnedFd::from(line))));
    let outcome = config.and_then(|config| {
        // Without one no VM was wanted after all.
        let Some(config) = config else { return Ok(None) };
        process::die_with_parent(libc::SIGKILL, config.parent_pid).context(|| "tie the VM to its parent")?;
        super::run(&config, ground?, &events).map(Some)
    });
    let (event, code) = match outcome {
        Ok(None) => return 0,
        Ok(Some(ended)) => (ended, 0),
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

/// The configuration, with the descriptors that follow it; none where the parent closed the line.
fn take_config(line: &UnixStream) -> Result<Option<VmConfig>> {
    let next = || pass::receive(line).context(|| "take over the VM's configuration");
    let Some(file) = next()? else { return Ok(None) };
    let mut config = read_config(&file)?;
    for number in config.sent() {
        let Some(file) = next()? else { return Ok(None) };
        *number = file.into_raw_fd();
    }
    Ok(Some(config))
}

fn read_config(file: &File) -> Result<VmConfig> {
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
    use std::os::fd::AsRawFd;

    fn file(content: &[u8]) -> File {
        let file = fd::memfd("test", 0).unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    /// Sends a configuration and so many of the descriptors that belong to it, whose content is their place in the order.
    fn send(near: &UnixStream, config: &[u8], files: u8) {
        pass::send(near, file(config).as_raw_fd()).unwrap();
        (0..files).for_each(|index| pass::send(near, file(&[index]).as_raw_fd()).unwrap());
    }

    #[test]
    fn config_comes_with_its_descriptors_and_is_refused_when_cut() {
        let bytes = sample().to_bytes();
        let (near, far) = UnixStream::pair().unwrap();
        send(&near, &bytes, 5);
        let mut config = take_config(&far).unwrap().unwrap();
        let of = |number: i32| {
            let mut content = [0];
            File::from(fd::adopt(number).unwrap()).read_exact_at(&mut content, 0).unwrap();
            content[0]
        };
        let (kernel, part, disk) = (&config.unpacked, &config.initramfs_shared, &config.disk);
        let optional = [part.as_ref().unwrap().fd, kernel.as_ref().unwrap().fd, disk.as_ref().unwrap().fd];
        assert_eq!([of(config.ram_fd), of(config.initramfs_fd)], [0, 1]);
        assert_eq!(optional.map(of), [2, 3, 4]);
        // All else is as it was sent.
        let mut sent = sample();
        sent.sent().into_iter().zip(config.sent()).for_each(|(before, now)| *before = *now);
        assert_eq!(config, sent);
        send(&near, &bytes[..bytes.len() - 1], 0);
        assert!(take_config(&far).unwrap_err().to_string().contains("cannot be decoded"));
        send(&near, &bytes, 4);
        drop(near);
        assert!(take_config(&far).unwrap().is_none());
        assert_eq!(process_main(987_654), 128);
    }

    #[test]
    fn process_whose_parent_wants_no_vm_ends() {
        for ground in [Err(Error::host("no KVM")), Ground::lay()] {
            let (near, far) = UnixStream::pair().unwrap();
            drop(near);
            assert_eq!(serve(far, ground), 0);
        }
    }

    #[test]
    fn failure_to_set_up_is_told_with_its_hint() {
        let ours = process::parent_id();
        for (parent_pid, expected) in [(ours, "no KVM"), (-1, "tie the VM to its parent")] {
            let (mut near, far) = UnixStream::pair().unwrap();
            send(&near, &VmConfig { parent_pid, ..sample() }.to_bytes(), 5);
            assert_eq!(serve(far, Err(Error::host("no KVM").hint("find some"))), 128);
            let mut told = Vec::new();
            near.read_to_end(&mut told).unwrap();
            let (frame, _) = frame::decode(&told).unwrap();
            let VmEvent::Failed { text, hint, .. } = VmEvent::from_bytes(&frame.payload).unwrap() else {
                panic!("no failure")
            };
            assert!(text.contains(expected), "{text}");
            assert_eq!(hint.is_some(), parent_pid == ours);
        }
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
