//! The virtual machine monitor: one VM in one process, on /dev/kvm.
//!
//! Owns guest memory, boot, devices, vCPUs and their end; knows no plan and no scenario. This file is the recipe.
//! Invariant: all guest RAM is one memory file, and every device keeps its state in plain data.

mod bus;
pub mod config;
mod dev;
mod dump;
mod exit;
pub mod kernel;
pub mod kvm;
mod life;
mod memory;
mod self_check;
mod vcpu;
pub mod x86;

pub use life::process_main;

use crate::error::{Context, Error, Result};
use crate::proto::message::VmEnd;
use crate::proto::registers::CpuDump;
use crate::sys::{self, fd, poll, process, signal, time};
use bus::{Bus, lock};
use config::{COMMAND_DUMP, DiskConfig, VmConfig, VmEvent};
use dev::doorbell::Doorbell;
use dev::power::Power;
use dev::serial::{COM1, COM2, SerialPort};
use dev::virtio::block::{Block, Limits, Turn};
use dev::virtio::disk::Disk;
use dev::virtio::mmio::QUEUE_NOTIFY;
use kernel::KernelImage;
use kvm::{CPUID_ENTRIES_MAX, Machine, failed};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VcpuFd};
use life::Events;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vcpu::{Recipe, Shared};
use x86::layout::{DISK_GPA, DISK_IRQ};

/// An unfinished console line is sent after this time at the latest.
const CONSOLE_FLUSH_MS: u64 = 100;
/// The vCPUs are given this long to leave KVM; the process ends anyway.
const STOP_DEADLINE: Duration = Duration::from_millis(200);
/// The vCPUs are given this long to tell their registers; the parent waits for longer than that.
const DUMP_DEADLINE: Duration = Duration::from_millis(500);
const WAKE_INTERVAL: Duration = Duration::from_millis(1);
/// A vCPU thread calls little, and there may be thousands.
const VCPU_STACK_BYTES: usize = 128 * 1024;
/// The longest sleep of a throttled disk, so that it sees the end of the VM and a reset of the device soon.
const DISK_NAP_NS: u64 = 20_000_000;
/// More than the input buffer of a serial port holds.
const COM2_CHUNK_BYTES: usize = 256;

/// Runs one VM from its configuration to its end.
fn run(config: &VmConfig, events: &Arc<Events>) -> Result<VmEvent> {
    let (image, mut kernel) = KernelImage::open_file(Path::new(&config.kernel_path))?;
    image.check_cmdline(&config.cmdline)?;
    let kvm = kvm::open()?;
    let memory = memory::map_ram(adopt(config.ram_fd, "the memory file")?.into(), config.memory_bytes)?;
    x86::boot::load(&memory, config, &image, &mut kernel)?;
    if config.initramfs_bytes > 0 {
        let initramfs = File::from(adopt(config.initramfs_fd, "the initramfs")?);
        memory::overlay(&memory, config.initramfs_gpa, &initramfs, config.initramfs_bytes)?;
    }
    let vcpus = config.topology.total_cpus();
    let machine = Machine::new(&kvm, memory)?;
    machine.add_chips()?;
    machine.set_halt_poll(vcpus, sys::sched::online_cpus())?;
    machine.allow_wide_apic_ids(x86::cpuid::apic_id(&config.topology, vcpus.saturating_sub(1)))?;
    let wake = Arc::new(File::from(fd::eventfd().context(|| "make the VM's wake-up event")?));
    let (bus, com2_input) = devices(config, &machine, &wake)?;
    let supported =
        kvm.get_supported_cpuid(CPUID_ENTRIES_MAX).map_err(|cause| failed("read KVM's CPUID table", cause))?;
    let recipe = Recipe {
        topology: &config.topology,
        supported: supported.as_slice(),
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        entry_gpa: image.entry_gpa,
    };
    let made = (0..vcpus).map(|cpu| recipe.create(&machine, cpu)).collect::<Result<Vec<_>>>()?;
    let shared = Arc::new(Shared::new(machine, bus, wake, vcpus));
    start_disk(&shared)?;
    let mut threads = start_vcpus(&shared, made, events)?;
    supervise(&shared, com2_input, &mut threads, events)?;
    stop_vcpus(&shared, &mut threads);
    Ok(ended(&shared))
}

fn adopt(number: i32, what: &str) -> Result<OwnedFd> {
    fd::adopt(number).context(|| format!("take over {what}"))
}

/// The devices on their bus, their interrupts with KVM, and the end of COM2 that input comes from.
fn devices(config: &VmConfig, machine: &Machine, wake: &Arc<File>) -> Result<(Bus, OwnedFd)> {
    let com2_input = adopt(config.com2_fd, "the socket of COM2")?;
    let com2_output = com2_input.try_clone().context(|| "duplicate the socket of COM2")?;
    let com1 = SerialPort::new(adopt(config.console_fd, "the console pipe")?, None)?;
    let com2 = SerialPort::new(com2_output, Some(wake.clone()))?;
    for (port, map) in [(&com1, COM1), (&com2, COM2)] {
        let registered = machine.vm.register_irqfd(port.irq(), map.irq);
        registered.map_err(|cause| failed(format!("connect interrupt {}", map.irq), cause))?;
    }
    let bus = Bus {
        com1: Mutex::new(com1),
        com2: Mutex::new(com2),
        power: Power::default(),
        doorbell: Doorbell::new(adopt(config.doorbell_fd, "the doorbell pipe")?)?,
        doorbell_port: config.doorbell_port,
        disk: config.disk.as_ref().map(|disk| connect_disk(disk, machine)).transpose()?,
        lost_bytes: AtomicU64::new(0),
    };
    Ok((bus, com2_input))
}

/// The disk, with its interrupt and its notification in KVM.
fn connect_disk(config: &DiskConfig, machine: &Machine) -> Result<Block> {
    let file = File::from(adopt(config.fd, "the disk")?);
    let limits = Limits { bytes_per_s: config.bytes_per_s, requests_per_s: config.requests_per_s };
    let block = Block::new(Disk::new(file, config.bytes, config.read_only)?, limits)?;
    let irq = machine.vm.register_irqfd(block.irq(), DISK_IRQ);
    irq.map_err(|cause| failed("connect the disk's interrupt", cause))?;
    let notify = IoEventAddress::Mmio(DISK_GPA + QUEUE_NOTIFY);
    machine
        .vm
        .register_ioevent(block.kick(), &notify, NoDatamatch)
        .map_err(|cause| failed("connect the disk's notification", cause))?;
    Ok(block)
}

/// Starts the thread that does the disk's work, where there is one. It is not joined: it ends with the process.
fn start_disk(shared: &Arc<Shared>) -> Result<()> {
    if shared.bus.disk.is_none() {
        return Ok(());
    }
    let shared = shared.clone();
    let body = move || {
        let Some(disk) = &shared.bus.disk else { return };
        while !shared.stop.load(Ordering::SeqCst) {
            match disk.serve(&shared.machine.memory, time::monotonic_ns()) {
                Turn::Served => {}
                Turn::Wait { ns } => {
                    let ns = ns.min(DISK_NAP_NS);
                    std::thread::sleep(Duration::from_nanos(ns));
                    disk.note_throttled(ns);
                }
                // Blocks until the driver notifies; only a signal ends it otherwise, and then the ring is looked at.
                Turn::Idle => drop(disk.kick().read()),
            }
        }
    };
    std::thread::Builder::new()
        .name("disk".into())
        .stack_size(VCPU_STACK_BYTES)
        .spawn(body)
        .context(|| "start the disk's thread")?;
    Ok(())
}

/// Starts a thread for each vCPU, vCPU 0 last: the others wait within KVM until the kernel on it starts them.
/// The threads are not joined: one that hangs in the host's kernel ends with the process.
fn start_vcpus(shared: &Arc<Shared>, made: Vec<VcpuFd>, events: &Arc<Events>) -> Result<Threads> {
    let (started, names) = mpsc::channel();
    for (cpu, vcpu) in made.into_iter().enumerate().rev() {
        shared.running.fetch_add(1, Ordering::SeqCst);
        let (shared, started, events) = (shared.clone(), started.clone(), events.clone());
        let body = move || {
            let prepared = signal::allow_wakeups()
                .context(|| format!("prepare the thread of vCPU {cpu}"))
                .and_then(|()| started.send(process::thread_id()).map_err(|_| Error::internal("the VM has ended")))
                .and_then(|()| match cpu {
                    0 => events.send(&VmEvent::FirstInstruction { monotonic_ns: time::monotonic_ns() }),
                    _ => Ok(()),
                });
            match prepared {
                Ok(()) => vcpu::run(&shared, cpu as u32, vcpu),
                Err(error) => shared.finish(VmEnd::MachineError { text: error.to_string() }),
            }
            shared.running.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::Builder::new()
            .name(format!("vcpu{cpu}"))
            .stack_size(VCPU_STACK_BYTES)
            .spawn(body)
            .context(|| format!("start the thread of vCPU {cpu}"))?;
    }
    Ok(Threads { names, known: Vec::new() })
}

/// The vCPU threads, by their ids.
struct Threads {
    /// Those that have started since.
    names: Receiver<i32>,
    known: Vec<i32>,
}

impl Threads {
    /// Gets every vCPU out of KVM_RUN. A signal that comes just before KVM_RUN is lost: repeat it until it had its effect.
    fn wake(&mut self) {
        self.known.extend(self.names.try_iter());
        // A thread that is gone already is what is wanted.
        self.known.retain(|tid| signal::wake_thread(*tid).is_ok());
    }
}

/// Feeds COM2, flushes unfinished lines and obeys the parent until the VM has ended.
fn supervise(shared: &Shared, com2_input: OwnedFd, threads: &mut Threads, events: &Events) -> Result<()> {
    let commands = events.commands().context(|| "listen to the parent of the VM")?;
    let (mut open, mut obey) = (true, true);
    let mut buffer = [0; COM2_CHUNK_BYTES];
    let mut count = [0; 8];
    while !shared.stop.load(Ordering::SeqCst) {
        let room = lock(&shared.bus.com2).room().min(buffer.len());
        let listen = open && room > 0;
        // What is not listened to is replaced by the wake-up event, which is listened to anyway.
        let or_wake = |wanted: bool, other| if wanted { other } else { shared.wake.as_fd() };
        let all = [shared.wake.as_fd(), or_wake(listen, com2_input.as_fd()), or_wake(obey, commands.as_fd())];
        let ready = poll::readable(&all, CONSOLE_FLUSH_MS).context(|| "wait for the VM")?;
        if ready[0] {
            fd::read_available(shared.wake.as_fd(), &mut count).context(|| "read the VM's wake-up event")?;
        }
        if obey && ready[2] {
            match fd::read_available(commands.as_fd(), &mut buffer) {
                Ok(None) => {}
                Ok(Some(0)) | Err(_) => obey = false,
                Ok(Some(got)) if buffer[..got].contains(&COMMAND_DUMP) => {
                    events.send(&VmEvent::Registers { cpus: dump_registers(shared, threads) })?;
                }
                Ok(Some(_)) => {}
            }
        }
        if listen && ready[1] {
            match fd::read_available(com2_input.as_fd(), &mut buffer[..room]) {
                Ok(None) => {}
                // The parent has no more to say; a broken socket means the same.
                Ok(Some(0)) | Err(_) => open = false,
                Ok(Some(got)) => {
                    let taken = lock(&shared.bus.com2).feed(&buffer[..got]);
                    shared.bus.lost_bytes.fetch_add((got - taken) as u64, Ordering::Relaxed);
                }
            }
        }
        flush(shared);
    }
    Ok(())
}

/// Sends the unfinished lines of both ports.
fn flush(shared: &Shared) {
    for port in [&shared.bus.com1, &shared.bus.com2] {
        let sent = lock(port).flush();
        shared.bus.lost_bytes.fetch_add(u64::from(!sent), Ordering::Relaxed);
    }
}

/// Has every vCPU tell where it stands, within a limit; the guest goes on afterwards.
fn dump_registers(shared: &Shared, threads: &mut Threads) -> Vec<CpuDump> {
    let end = Instant::now() + DUMP_DEADLINE;
    shared.dumps.ask();
    while shared.dumps.count() < shared.vcpus as usize && Instant::now() < end {
        threads.wake();
        std::thread::sleep(WAKE_INTERVAL);
    }
    shared.dumps.take(shared.vcpus)
}

/// Gets every vCPU out of the guest, within a limit.
fn stop_vcpus(shared: &Shared, threads: &mut Threads) {
    let end = Instant::now() + STOP_DEADLINE;
    while shared.running.load(Ordering::SeqCst) > 0 && Instant::now() < end {
        threads.wake();
        std::thread::sleep(WAKE_INTERVAL);
    }
}

/// The last word: how the VM ended, and its counts.
fn ended(shared: &Shared) -> VmEvent {
    flush(shared);
    let end = lock(&shared.end).clone();
    let end = end.unwrap_or_else(|| VmEnd::MachineError { text: "the VM stopped without an end".into() });
    let mut exits = shared.counts.list();
    for (name, count) in [
        ("lost-output-bytes", shared.bus.lost_bytes.load(Ordering::Relaxed)),
        ("vcpus-not-stopped", u64::from(shared.running.load(Ordering::SeqCst))),
    ]
    .into_iter()
    .chain(shared.bus.disk.iter().flat_map(Block::counts))
    {
        if count > 0 {
            exits.push((name.into(), count));
        }
    }
    VmEvent::Ended { end, exits }
}
