//! Whether a VM can be frozen, and go on elsewhere: a guest of two vCPUs, each with a timer and a handler, and of a serial
//! port is stopped, its VM destroyed, and another built from the saved state and the same memory. A request to its disk
//! waits meanwhile.
//!
//! Owns the two VMs and the judgement; leaves the guest's code to freeze_guest, the state to snapshot, the disk to
//! freeze_disk, what the guest does not use to freeze_kept. Run by a hidden command, for tests.
//! Invariant: nothing of the first VM but its state, as bytes, its memory file and its disk's reaches the second.

use super::dev::power::Power;
use super::dev::serial::{COM1, COM2, PortMap, SerialPort};
use super::dev::virtio::block::Block;
use super::freeze_disk;
use super::freeze_guest::{
    self, CALLS_GPA, COUNTER_GPA, IDT_GPA, IDT_LIMIT, MEMORY_BYTES, PATTERN, SCRATCH, SECOND_COUNTER_GPA,
    SECOND_PATTERN, SECOND_STORED_GPA, STORED_GPA,
};
use super::freeze_kept::{self, Kept};
use super::kvm::{self, CPUID_ENTRIES_MAX, Machine, failed};
use super::memory;
use super::snapshot::{self, VmState};
use super::x86::regs::{self, APIC_BASE_X2APIC, CR4_OSFXSR};
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::sys::{fd, process, signal, time};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_dtable, kvm_mp_state, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Ticks of each vCPU before the freeze, and as many after it.
const TICKS: u64 = 20;
/// Each vCPU ticks a hundred times a second; the deadline is for a guest that does not.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between signals to vCPUs that are to stand still.
const WAKE_INTERVAL: Duration = Duration::from_millis(1);

/// What one VM needs besides its memory.
struct Guest {
    machine: Machine,
    vcpus: [VcpuFd; 2],
    com1: SerialPort,
    com2: SerialPort,
    power: Power,
    disk: Block,
    /// Keeps the console open; nobody reads it.
    _output: OwnedFd,
}

/// Freezes, rebuilds, resumes; says what it saw.
pub fn freeze_check() -> Result<String> {
    let kvm = kvm::open()?;
    let ram = fd::memfd("ktstr-guest-ram", MEMORY_BYTES).context(|| "reserve the memory of the freeze check")?;
    let disk = freeze_disk::file()?;
    let mut first = Guest::new(&kvm, &ram, &disk)?;
    first.prepare(&kvm)?;
    freeze_disk::offer(&first.disk, &first.machine.memory)?;
    first.run()?;
    let counted = first.counters()?;
    let saved = first.save(&kvm)?;
    let (bytes, saved) = (saved.to_bytes(), Kept::saved(&saved));
    // The first VM is gone before the second is made.
    drop(first);
    let state = VmState::from_bytes(&bytes).map_err(|cause| Error::internal(format!("the saved state: {cause}")))?;
    let mut second = Guest::new(&kvm, &ram, &disk)?;
    let fresh = second.kept()?;
    second.restore(&state)?;
    saved.is_given_back(&fresh, &second.kept()?)?;
    freeze_disk::finish(&second.disk, &second.machine.memory)?;
    let memory = &second.machine.memory;
    [STORED_GPA, SECOND_STORED_GPA].iter().try_for_each(|gpa| set_word(memory, *gpa, 0))?;
    let sent = second.run()?;
    let now = second.counters()?;
    // A tick that was pending at the freeze may come on top of those that were sent.
    let expected = counted.ticks + sent;
    if !(expected - 1..=expected + 2).contains(&now.ticks) {
        let text = format!("the guest had counted {} ticks, and {} after {sent} more", counted.ticks, now.ticks);
        return Err(Error::host(text));
    }
    for (cpu, gpa, pattern) in [(0, STORED_GPA, PATTERN), (1, SECOND_STORED_GPA, SECOND_PATTERN)] {
        let stored = word(&second.machine.memory, gpa)?;
        if stored != pattern {
            let text = format!("XMM0 of vCPU {cpu} held {stored:#x} after the freeze, not {pattern:#x}");
            return Err(Error::host(text));
        }
    }
    Ok(format!(
        "frozen at ticks {} and {}, went on in another VM to ticks {} and {}, {} calls from one vCPU to the other, with \
         the disk's request; {} bytes of state",
        counted.ticks,
        counted.second_ticks,
        now.ticks,
        now.second_ticks,
        now.calls - counted.calls,
        bytes.len()
    ))
}

/// What the guest has counted.
#[derive(Clone, Copy, Debug)]
struct Counters {
    ticks: u64,
    second_ticks: u64,
    /// Interrupts that the second vCPU sent and the first took.
    calls: u64,
}

impl Counters {
    fn read(memory: &GuestMemoryMmap) -> Result<Self> {
        Ok(Self {
            ticks: word(memory, COUNTER_GPA)?,
            second_ticks: word(memory, SECOND_COUNTER_GPA)?,
            calls: word(memory, CALLS_GPA)?,
        })
    }
}

impl Guest {
    fn new(kvm: &Kvm, ram: &File, disk: &File) -> Result<Self> {
        let file = ram.try_clone().context(|| "share the memory of the freeze check")?;
        let memory: GuestMemoryMmap = memory::map_ram(file, MEMORY_BYTES)?;
        let machine = Machine::new(kvm, memory)?;
        machine.add_chips()?;
        let vcpu = |id| machine.vm.create_vcpu(id).map_err(|cause| failed("create a vCPU", cause));
        let vcpus = [vcpu(0)?, vcpu(1)?];
        let (output, end) = fd::pipe().context(|| "make a console")?;
        let other = end.try_clone().context(|| "duplicate a console")?;
        fd::set_nonblocking(&output).context(|| "make a console non-blocking")?;
        let (com1, com2) = (SerialPort::new(end, None)?, SerialPort::new(other, None)?);
        let disk = freeze_disk::device(disk)?;
        Ok(Self { machine, vcpus, com1, com2, power: Power::default(), disk, _output: output })
    }

    /// The guest's programs, tables and registers. The second vCPU begins beside the first, not woken by it.
    fn prepare(&mut self, kvm: &Kvm) -> Result<()> {
        for (gpa, bytes) in freeze_guest::content() {
            let written = self.machine.memory.write_slice(&bytes, GuestAddress(gpa));
            written.map_err(|cause| Error::internal(format!("cannot write guest memory at {gpa:#x}: {cause}")))?;
        }
        let supported =
            kvm.get_supported_cpuid(CPUID_ENTRIES_MAX).map_err(|cause| failed("read KVM's CPUID table", cause))?;
        let call = |attempt: &'static str| move |cause| failed(attempt, cause);
        for (vcpu, (entry_gpa, stack_gpa)) in self.vcpus.iter().zip(freeze_guest::ENTRIES) {
            vcpu.set_cpuid2(&supported).map_err(call("set the CPUID table"))?;
            let mut special = regs::special(vcpu.get_sregs().map_err(call("read the special registers"))?);
            special.cr4 |= CR4_OSFXSR;
            special.apic_base |= APIC_BASE_X2APIC;
            special.idt = kvm_dtable { base: IDT_GPA, limit: IDT_LIMIT, ..Default::default() };
            vcpu.set_sregs(&special).map_err(call("set the special registers"))?;
            let general = kvm_regs { rsp: stack_gpa, ..regs::general(entry_gpa) };
            vcpu.set_regs(&general).map_err(call("set the registers"))?;
            let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            vcpu.set_mp_state(runnable).map_err(call("set a vCPU's activity"))?;
        }
        freeze_kept::mark(&self.machine, &mut self.com2, &self.power)
    }

    /// Runs both vCPUs until each has ticked, and the second has called the first; how many bytes the first has sent. Every
    /// one has to be what the scratch register holds. Afterwards both stand still.
    fn run(&mut self) -> Result<u64> {
        signal::allow_wakeups().context(|| "prepare the thread of the freeze check")?;
        let then = self.counters()?;
        let wanted = Counters { ticks: then.ticks, second_ticks: then.second_ticks + TICKS, calls: then.calls + TICKS };
        let Self { machine, vcpus: [first, second], com1, com2, .. } = self;
        let (halt, done) = (AtomicBool::new(false), [const { AtomicBool::new(false) }; 2]);
        let tids = [AtomicI32::new(process::thread_id()), AtomicI32::new(0)];
        std::thread::scope(|scope| {
            let (halt, done, tids) = (&halt, &done, &tids);
            let watchdog = scope.spawn(move || {
                std::thread::park_timeout(DEADLINE);
                halt.store(true, Ordering::SeqCst);
                // Repeated, as a signal that comes just before KVM_RUN is lost.
                while done.iter().any(|done| !done.load(Ordering::SeqCst)) {
                    for (tid, done) in tids.iter().zip(done) {
                        let tid = tid.load(Ordering::SeqCst);
                        // A thread that ends just now has no use for it.
                        if tid != 0 && !done.load(Ordering::SeqCst) && signal::wake_thread(tid).is_err() {
                            break;
                        }
                    }
                    std::thread::sleep(WAKE_INTERVAL);
                }
            });
            let second = scope.spawn(move || {
                tids[1].store(process::thread_id(), Ordering::SeqCst);
                let outcome = run_second(second, halt);
                done[1].store(true, Ordering::SeqCst);
                outcome
            });
            let outcome = run_first(first, (com1, com2), &machine.memory, halt, wanted);
            done[0].store(true, Ordering::SeqCst);
            watchdog.thread().unpark();
            let panicked = |_| Error::internal("a thread of the freeze check panicked");
            // What stopped the second is why the first waited in vain.
            second.join().map_err(panicked)??;
            watchdog.join().map_err(panicked)?;
            outcome
        })
    }

    fn save(&mut self, kvm: &Kvm) -> Result<VmState> {
        for vcpu in &mut self.vcpus {
            // The last output is finished by one more entry that does not run the guest (api.rst, 5: immediate_exit).
            vcpu.set_kvm_immediate_exit(1);
            let left = vcpu.run().map(|exit| format!("{exit:?}"));
            vcpu.set_kvm_immediate_exit(0);
            if let Ok(exit) = left {
                return Err(Error::host(format!("the vCPU did not stand still: {exit}")));
            }
        }
        let (chips, timer, clock_ns) = snapshot::save_chips(&self.machine)?;
        Ok(VmState {
            vcpus: self.vcpus.iter().map(|vcpu| snapshot::save_vcpu(kvm, vcpu)).collect::<Result<_>>()?,
            chips,
            timer,
            clock_ns,
            com1: self.com1.state(),
            com2: self.com2.state(),
            power: self.power.state(),
            disk: Some(self.disk.save(time::monotonic_ns())),
        })
    }

    fn restore(&mut self, state: &VmState) -> Result<()> {
        snapshot::restore_chips(&self.machine, state)?;
        let both = self.vcpus.iter().zip(&state.vcpus);
        both.into_iter().try_for_each(|(vcpu, state)| snapshot::restore_vcpu(vcpu, state))?;
        self.com1.restore(&state.com1)?;
        self.com2.restore(&state.com2)?;
        self.power = Power::restored(&state.power);
        if let Some(disk) = &state.disk {
            self.disk.restore(disk, time::monotonic_ns());
        }
        Ok(())
    }

    fn kept(&mut self) -> Result<Kept> {
        Kept::of(&self.machine, &mut self.com2, &self.power)
    }

    fn counters(&self) -> Result<Counters> {
        Counters::read(&self.machine.memory)
    }
}

/// The first vCPU, until `TICKS` bytes are sent and the others' counters are where they are wanted.
fn run_first(
    vcpu: &mut VcpuFd,
    (com1, com2): (&mut SerialPort, &mut SerialPort),
    memory: &GuestMemoryMmap,
    halt: &AtomicBool,
    wanted: Counters,
) -> Result<u64> {
    let register = |map: PortMap, port: u16| map.register(port);
    let mut sent = 0;
    loop {
        let now = Counters::read(memory)?;
        if sent >= TICKS && now.second_ticks >= wanted.second_ticks && now.calls >= wanted.calls {
            return Ok(sent);
        }
        if halt.load(Ordering::SeqCst) {
            return Err(Error::host(format!("{sent} ticks sent, {now:?} counted, {wanted:?} wanted in {DEADLINE:?}")));
        }
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if let (Some(register), Some(value)) = (register(COM1, port), data.first()) {
                    com1.write(register, *value);
                    if register == 0 {
                        sent += 1;
                        if *value != SCRATCH {
                            return Err(Error::host(format!("tick {sent} sent {value:#x}: COM1 lost its state")));
                        }
                    }
                } else if let (Some(register), Some(value)) = (register(COM2, port), data.first()) {
                    com2.write(register, *value);
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let value = register(COM1, port).map_or(super::bus::FLOATING, |register| com1.read(register));
                data.fill(value);
            }
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(Error::host(format!("the guest ended with {other:?}"))),
            Err(cause) if matches!(cause.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(cause) => return Err(failed("run the vCPU", cause)),
        }
    }
}

/// The second vCPU, which needs nothing of us, until it is told to halt.
fn run_second(vcpu: &mut VcpuFd, halt: &AtomicBool) -> Result<()> {
    signal::allow_wakeups().context(|| "prepare the second thread of the freeze check")?;
    while !halt.load(Ordering::SeqCst) {
        match vcpu.run() {
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(Error::host(format!("the second vCPU ended with {other:?}"))),
            Err(cause) if matches!(cause.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(cause) => return Err(failed("run the second vCPU", cause)),
        }
    }
    Ok(())
}

fn word(memory: &GuestMemoryMmap, gpa: u64) -> Result<u64> {
    let read = memory.read_obj(GuestAddress(gpa));
    read.map_err(|cause| Error::internal(format!("cannot read guest memory at {gpa:#x}: {cause}")))
}

fn set_word(memory: &GuestMemoryMmap, gpa: u64, value: u64) -> Result<()> {
    let written = memory.write_obj(value, GuestAddress(gpa));
    written.map_err(|cause| Error::internal(format!("cannot write guest memory at {gpa:#x}: {cause}")))
}
