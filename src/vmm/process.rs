//! The process that is one VM: the boot recipe, in order, and the end.
//!
//! Owns the order and the threads; leaves each step to its module.
//! Invariant: whatever happens, the parent gets exactly one last event, and the process ends.

use super::bus::{Bus, lock};
use super::config::{VmConfig, VmEvent};
use super::dev::doorbell::Doorbell;
use super::dev::serial::{COM1, COM2, SerialPort};
use super::kernel::KernelImage;
use super::kvm::{self, Machine, failed};
use super::memory;
use super::vcpu::{Offer, Shared, Vcpu};
use super::x86::{boot, cpuid};
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::frame;
use crate::proto::message::VmEnd;
use crate::sys::{fd, poll, process, sched, time};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long part of a line may stay in a serial port before it is sent on.
const FLUSH_EVERY_MS: u64 = 50;
/// The end is waited for in pieces of this length, only because a wait has to have one.
const WAIT_PIECE: Duration = Duration::from_secs(3600);

/// Exit code after a panic, as Rust's own.
const EXIT_PANIC: i32 = 101;

/// Writes events as frames.
struct Events {
    to: File,
    sequence: u32,
}

impl Events {
    fn send(&mut self, event: &VmEvent) -> Result<()> {
        let bytes = frame::encode(self.sequence, &event.to_bytes());
        self.sequence += 1;
        self.to.write_all(&bytes).context(|| "tell the parent of an event")
    }
}

/// Runs the VM whose configuration is in this descriptor. Returns the exit code.
pub fn process_main(config_fd: i32) -> u8 {
    // A thread that panicked would leave the others in the guest for ever: the parent is to see the process end.
    std::panic::set_hook(Box::new(|info| {
        let text = format!("ktstr: the VM's process panicked: {info}\n");
        drop(std::io::stderr().write_all(text.as_bytes()));
        process::exit_now(EXIT_PANIC)
    }));
    let config = match read_config(config_fd) {
        Ok(config) => config,
        Err(error) => return report(&error),
    };
    let mut events = match fd::adopt(config.events_fd) {
        Ok(events) => Events { to: File::from(events), sequence: 0 },
        Err(error) => return report(&Error::os("take the descriptor for events", error)),
    };
    let last = match run(&config, &mut events) {
        Ok((end, exits)) => VmEvent::Ended { end, exits },
        Err(error) => VmEvent::Failed {
            text: error.message().to_owned(),
            hint: error.hint_text().map(str::to_owned),
            errno: error.errno(),
        },
    };
    let code = u8::from(matches!(last, VmEvent::Failed { .. }));
    match events.send(&last) {
        // vCPU threads may still be in the guest: the process ends without waiting for them.
        Ok(()) => process::exit_now(i32::from(code)),
        Err(error) => report(&error),
    }
}

/// Without a channel for events there is standard error, which the parent keeps.
fn report(error: &Error) -> u8 {
    let written = writeln!(std::io::stderr(), "ktstr: the VM's process: {error}");
    if written.is_ok() { 1 } else { 2 }
}

fn read_config(config_fd: i32) -> Result<VmConfig> {
    let mut file =
        File::from(fd::adopt(config_fd).context(|| format!("take descriptor {config_fd}, the VM's configuration"))?);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context(|| "read the VM's configuration")?;
    VmConfig::from_bytes(&bytes)
        .map_err(|error| Error::internal(format!("the VM's configuration cannot be decoded: {error}")))
}

/// The recipe.
fn run(config: &VmConfig, events: &mut Events) -> Result<(VmEnd, Vec<(String, u64)>)> {
    process::die_with_parent(libc::SIGKILL, config.parent_pid).context(|| "bind this process to its parent")?;
    let take = |number: i32, what: &str| fd::adopt(number).context(|| format!("take descriptor {number}, {what}"));
    let vcpus = config.topology.total_cpus();

    let (image, mut kernel_file) = KernelImage::open_file(Path::new(&config.kernel_path))?;
    image.check_cmdline(&config.cmdline)?;
    let kvm = kvm::open()?;
    let ram = memory::map_ram(File::from(take(config.ram_fd, "the guest's memory")?), config.memory_bytes)?;
    boot::load(&ram, config, &image, &mut kernel_file)?;
    let initramfs = File::from(take(config.initramfs_fd, "the initramfs")?);
    // Before KVM knows the memory, so that it never sees the pages that lay there.
    memory::overlay(&ram, config.initramfs_gpa, &initramfs, config.initramfs_bytes)?;

    let machine = Machine::new(&kvm, ram)?;
    machine.add_chips()?;
    machine.set_halt_poll(vcpus, sched::online_cpus())?;
    machine.allow_wide_apic_ids(cpuid::apic_id(&config.topology, vcpus - 1))?;
    let com2 = take(config.com2_fd, "COM2")?;
    let wake = Arc::new(File::from(fd::eventfd().context(|| "make COM2's wake event")?));
    let bus = make_bus(config, &machine, &com2, &wake)?;
    let offer = Offer::of(&kvm)?;
    let cpus = (0..vcpus)
        .map(|number| Vcpu::new(&machine, &offer, &config.topology, number, image.entry_gpa))
        .collect::<Result<Vec<_>>>()?;

    let shared = Arc::new(Shared::new(bus, machine.memory.clone()));
    let feeder = shared.clone();
    spawn("serial", move || feed(&feeder, com2, &wake))?;
    for (number, cpu) in cpus.into_iter().enumerate().rev() {
        let shared = shared.clone();
        if number == 0 {
            events.send(&VmEvent::FirstInstruction { monotonic_ns: time::monotonic_ns() })?;
        }
        spawn(&format!("vcpu{number}"), move || cpu.run(&shared))?;
    }
    let end = loop {
        if let Some(end) = shared.wait_end(WAIT_PIECE) {
            break end;
        }
    };
    flush(&shared.bus);
    Ok((end, shared.counts.list()))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(body);
    thread.map(drop).context(|| format!("start the thread {name}"))
}

fn make_bus(config: &VmConfig, machine: &Machine, com2: &OwnedFd, wake: &Arc<File>) -> Result<Bus> {
    let take = |number: i32, what: &str| fd::adopt(number).context(|| format!("take descriptor {number}, {what}"));
    let console = SerialPort::new(take(config.console_fd, "the console")?, None)?;
    let com2_out = com2.try_clone().context(|| "share COM2")?;
    let channel = SerialPort::new(com2_out, Some(wake.clone()))?;
    for (port, map) in [(&console, COM1), (&channel, COM2)] {
        let registered = machine.vm.register_irqfd(port.irq(), map.irq);
        registered.map_err(|cause| failed(format!("connect the serial port's interrupt {}", map.irq), cause))?;
    }
    Ok(Bus {
        com1: Mutex::new(console),
        com2: Mutex::new(channel),
        doorbell: Doorbell::new(take(config.doorbell_fd, "the doorbell")?)?,
        doorbell_port: config.doorbell_port,
        lost_bytes: AtomicU64::new(0),
    })
}

/// Gives COM2 its input, and sends on what lingers in the serial ports. Lives as long as the process.
fn feed(shared: &Shared, com2: OwnedFd, wake: &File) {
    let mut pending: Vec<u8> = Vec::new();
    let mut open = true;
    loop {
        let mut fds = vec![wake.as_fd()];
        if open && pending.is_empty() {
            fds.push(com2.as_fd());
        }
        // Only a fault of this process makes poll fail; then the flushing below is all that is left to do.
        let ready = poll::readable(&fds, FLUSH_EVERY_MS).unwrap_or_default();
        if ready.first() == Some(&true) {
            let mut count = [0; 8];
            drop(fd::read_available(wake.as_fd(), &mut count));
        }
        if ready.get(1) == Some(&true) {
            let mut buffer = [0; 256];
            match fd::read_available(com2.as_fd(), &mut buffer) {
                Ok(Some(count)) if count > 0 => pending.extend_from_slice(&buffer[..count]),
                Ok(None) => {}
                // The parent closed its end, or broke: there will be no more input.
                Ok(Some(_)) | Err(_) => open = false,
            }
        }
        if !pending.is_empty() {
            let mut port = lock(&shared.bus.com2);
            let room = port.room().min(pending.len());
            let taken = port.feed(&pending[..room]);
            pending.drain(..taken);
        }
        flush(&shared.bus);
    }
}

fn flush(bus: &Bus) {
    for port in [&bus.com1, &bus.com2] {
        if !lock(port).flush() {
            bus.lost_bytes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_configuration_ends_the_process_with_a_code() {
        assert!(read_config(987_654).unwrap_err().message().contains("descriptor 987654"));
        let mut file = fd::memfd("config", 0).unwrap();
        file.write_all(b"nonsense").unwrap();
        assert!(read_config(std::os::fd::IntoRawFd::into_raw_fd(file)).unwrap_err().message().contains("decoded"));
    }
}
