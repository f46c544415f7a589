//! The virtual machine monitor: one VM in one process, on /dev/kvm.
//!
//! Owns guest memory, boot, devices, vCPUs and their end; knows no plan and no scenario. This file is the recipe.
//! Invariant: guest RAM is this process's own, with the ring as a window of the shared memory file (of huge pages, all RAM is
//! that file); every device keeps its state in plain data.

mod bus;
pub mod config;
mod dev;
mod dump;
mod exit;
mod freeze_check;
mod freeze_disk;
mod freeze_guest;
mod freeze_kept;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod kernel;
pub mod kvm;
mod life;
mod load;
mod memory;
mod perf;
mod self_check;
mod snapshot;
mod stats;
mod threads;
mod vcpu;
pub mod x86;

pub use freeze_check::freeze_check;
pub use life::process_main;

use crate::error::{Context, Result};
use crate::proto::message::VmEnd;
use crate::sys::{self, fd, poll, time};
use bus::{Bus, lock};
use config::{COMMAND_DUMP, DiskConfig, VmConfig, VmEvent};
use dev::doorbell::Doorbell;
use dev::power::Power;
use dev::serial::{COM1, COM2, SerialPort};
use dev::virtio::block::{Block, Limits, Turn};
use dev::virtio::disk::Disk;
use dev::virtio::mmio::QUEUE_NOTIFY;
use kvm::{Ground, Machine, failed};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch};
use life::Events;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use threads::Threads;
use vcpu::{Recipe, Shared};
use vm_memory::GuestMemoryMmap;
use x86::apic::ApicIds;
use x86::layout::{DISK_GPA, DISK_IRQ};

/// An unfinished console line is sent after this time at the latest.
const CONSOLE_FLUSH_MS: u64 = 100;
/// The longest sleep of a throttled disk, so that it sees the end of the VM and a reset of the device soon.
const DISK_NAP_NS: u64 = 20_000_000;
/// More than the input buffer of a serial port holds.
const COM2_CHUNK_BYTES: usize = 256;

/// Runs one VM from its configuration to its end.
fn run(config: &VmConfig, ground: Ground, events: &Arc<Events>) -> Result<VmEvent> {
    let Ground { kvm, supported, vm } = ground;
    let apic = ApicIds::new(&config.topology, x86::cpuid::llc_rule(supported.as_slice()));
    let vcpus = config.topology.total_cpus();
    let asked = kvm::Asked {
        vcpus,
        highest_made: (0..vcpus).map(|cpu| apic.id(cpu)).max().unwrap_or(0),
        highest_told: apic.highest(),
        disk: config.disk.is_some(),
    };
    kvm::check_allows(asked, |cap| kvm.check_extension_raw(cap.into()))?;
    let memory = map_memory(config)?;
    let mut perf_items = config.perf.iter().flat_map(|perf| perf::prepare_memory(&memory, perf)).collect::<Vec<_>>();
    let entry_gpa = load::kernel(&memory, config, &apic)?;
    load::initramfs(&memory, config)?;
    // A mapping that was laid over RAM has no policy yet.
    perf_items.extend(config.perf.as_ref().map(|perf| perf::bind_memory(&memory, perf)));
    let machine = Machine::over(vm, memory)?;
    perf_items.extend(config.perf.iter().flat_map(|perf| perf::disable_exits(&machine, perf)));
    machine.set_halt_poll(vcpus, sys::sched::usable_cpus())?;
    machine.allow_wide_apic_ids(apic.highest())?;
    let wake = Arc::new(File::from(fd::eventfd().context(|| "make the VM's wake-up event")?));
    let (bus, com2_input) = devices(config, &machine, &wake)?;
    let recipe = Recipe {
        topology: &config.topology,
        apic: &apic,
        supported: supported.as_slice(),
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        entry_gpa,
        realtime_hint: config.perf.as_ref().is_some_and(|perf| !perf.pins.is_empty()),
    };
    let made = (0..vcpus).map(|cpu| recipe.create(&machine, cpu)).collect::<Result<Vec<_>>>()?;
    let shared = Arc::new(Shared::new(machine, bus, wake, vcpus));
    start_disk(&shared)?;
    let mut threads = Threads::start(&shared, made, events, config.perf.as_ref())?;
    load::start_populating(&shared.machine.memory, config);
    shared.machine.drop_late_ticks()?;
    if let Some(perf) = &config.perf {
        perf_items.extend(recipe.realtime_hint.then(|| perf::hint_item(perf::has_leaf(recipe.supported))));
        perf_items.extend(perf::thread_items(perf, &threads.setups(vcpus)));
        perf_items.extend(perf::keep_off(perf));
        events.send(&VmEvent::Perf { items: perf_items })?;
    }
    supervise(&shared, com2_input, &mut threads, events)?;
    threads.stop(&shared);
    if config.perf.is_some() {
        events.send(&VmEvent::Perf { items: vec![perf::huge_pages()] })?;
    }
    Ok(ended(&shared))
}

/// Guest RAM: of the reserved huge pages that the memory file is of, or else of this process.
fn map_memory(config: &VmConfig) -> Result<GuestMemoryMmap> {
    let file = File::from(adopt(config.ram_fd, "the memory file")?);
    match load::has_reserved_pages(config) {
        true => memory::map_ram(file, config.memory_bytes),
        false => memory::map_own_ram(&file, config.memory_bytes, config.reserved.unwrap_or_default()),
    }
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
        .stack_size(threads::STACK_BYTES)
        .spawn(body)
        .context(|| "start the disk's thread")?;
    Ok(())
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
                    events.send(&VmEvent::Registers { cpus: threads.dump_registers(shared) })?;
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
