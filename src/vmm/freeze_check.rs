//! Whether a VM can be frozen, and go on elsewhere: a guest of a timer, a handler and a serial port is stopped, its VM
//! destroyed, and another built from the saved state and the same memory. A request to its disk waits meanwhile.
//!
//! Owns the guest and the judgement; leaves the state to snapshot, the disk to freeze_disk. Run by a hidden command, for tests.
//! Invariant: nothing of the first VM but its state, as bytes, its memory file and its disk's reaches the second.

use super::dev::power::Power;
use super::dev::serial::{COM1, COM2, PortMap, SerialPort};
use super::dev::virtio::block::Block;
use super::freeze_disk;
use super::kvm::{self, CPUID_ENTRIES_MAX, Machine, failed};
use super::memory;
use super::snapshot::{self, VmState};
use super::x86::layout::{GDT_GPA, PAGE_TABLES_GPA};
use super::x86::regs::{self, BOOT_CS, CR4_OSFXSR};
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::sys::{fd, process, signal, time};
use kvm_bindings::kvm_dtable;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY_BYTES: u64 = 2 << 20;
const CODE_GPA: u64 = 0x1_0000;
const HANDLER_GPA: u64 = 0x1_1000;
const IDT_GPA: u64 = 0x1_2000;
/// Ticks counted by the guest; then what its handler stores of XMM0, and what it was loaded with.
const COUNTER_GPA: u64 = 0x1_3000;
const STORED_GPA: u64 = 0x1_3010;
const PATTERN_GPA: u64 = 0x1_3020;
const PATTERN: u64 = 0x5EED_CAFE_0B57_AC1E;
/// The guest puts it into COM1's scratch register once; each tick sends what is there.
const SCRATCH: u8 = b'f';
/// The first vector of the interrupt controller, as the guest programs it.
const TIMER_VECTOR: u64 = 0x20;
const GATE_BYTES: u64 = 16;
const GATE_PRESENT_INTERRUPT: u64 = 0x8E;
/// Ticks before the freeze, and as many after it.
const TICKS: usize = 20;
/// The guest ticks a hundred times a second; the deadline is for a guest that does not.
const DEADLINE: Duration = Duration::from_secs(20);

/// Programs the interrupt controllers (vectors from 0x20, only the timer let through), the timer (channel 0, rate
/// generator, 11,932 of 1.193182 MHz: 100 a second) and COM1's scratch register; loads XMM0; then halts for ever.
const CODE: [u8; 63] = [
    0xB0, 0x11, 0xE6, 0x20, 0xB0, 0x20, 0xE6, 0x21, 0xB0, 0x04, 0xE6, 0x21, 0xB0, 0x01, 0xE6,
    0x21, // 8259: ICW1 to ICW4
    0xB0, 0xFE, 0xE6, 0x21, // mask all but line 0
    0xB0, 0x34, 0xE6, 0x43, 0xB0, 0x9C, 0xE6, 0x40, 0xB0, 0x2E, 0xE6, 0x40, // 8254: mode 2, 0x2E9C
    0x66, 0xBA, 0xFF, 0x03, 0xB0, SCRATCH, 0xEE, // mov dx, 0x3FF; mov al, SCRATCH; out dx, al
    0xBF, 0x20, 0x30, 0x01, 0x00, 0x0F, 0x10, 0x07, // mov edi, PATTERN_GPA; movups xmm0, [rdi]
    0xBB, 0x00, 0x30, 0x01, 0x00, // mov ebx, COUNTER_GPA
    0xBF, 0x10, 0x30, 0x01, 0x00, // mov edi, STORED_GPA
    0xFB, // sti
    0xF4, // hlt
    0xEB, 0xFD, // jmp to the hlt
    0x90, 0x90,
];
/// Counts, stores XMM0, sends the scratch register's content, ends the interrupt. RBX and RDI are the main program's.
const HANDLER: [u8; 26] = [
    0x48, 0xFF, 0x03, // inc qword [rbx]
    0x0F, 0x11, 0x07, // movups [rdi], xmm0
    0x66, 0xBA, 0xFF, 0x03, 0xEC, // mov dx, 0x3FF; in al, dx
    0x66, 0xBA, 0xF8, 0x03, 0xEE, // mov dx, 0x3F8; out dx, al
    0xB0, 0x20, 0xE6, 0x20, // mov al, 0x20; out 0x20, al
    0x48, 0xCF, // iretq
    0x90, 0x90, 0x90, 0x90,
];

/// What one VM needs besides its memory.
struct Guest {
    machine: Machine,
    vcpu: VcpuFd,
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
    first.run(TICKS)?;
    let counted = first.word(COUNTER_GPA)?;
    let bytes = first.save(&kvm)?.to_bytes();
    // The first VM is gone before the second is made.
    drop(first);
    let state = VmState::from_bytes(&bytes).map_err(|cause| Error::internal(format!("the saved state: {cause}")))?;
    let mut second = Guest::new(&kvm, &ram, &disk)?;
    second.restore(&state)?;
    freeze_disk::finish(&second.disk, &second.machine.memory)?;
    second.set_word(STORED_GPA, 0)?;
    second.run(TICKS)?;
    let (now, stored) = (second.word(COUNTER_GPA)?, second.word(STORED_GPA)?);
    let ticks = TICKS as u64;
    // A tick that was pending at the freeze may come on top of those that were sent.
    if !(counted + ticks - 1..=counted + ticks + 2).contains(&now) {
        return Err(Error::host(format!("the guest had counted {counted} ticks, and {now} after {ticks} more")));
    }
    if stored != PATTERN {
        return Err(Error::host(format!("the guest's XMM0 held {stored:#x} after the freeze, not {PATTERN:#x}")));
    }
    Ok(format!(
        "frozen at tick {counted}, went on in another VM to tick {now}, with the disk's request; {} bytes of state",
        bytes.len()
    ))
}

impl Guest {
    fn new(kvm: &Kvm, ram: &File, disk: &File) -> Result<Self> {
        let file = ram.try_clone().context(|| "share the memory of the freeze check")?;
        let memory: GuestMemoryMmap = memory::map_ram(file, MEMORY_BYTES)?;
        let machine = Machine::new(kvm, memory)?;
        machine.add_chips()?;
        let vcpu = machine.vm.create_vcpu(0).map_err(|cause| failed("create a vCPU", cause))?;
        let (output, end) = fd::pipe().context(|| "make a console")?;
        let other = end.try_clone().context(|| "duplicate a console")?;
        fd::set_nonblocking(&output).context(|| "make a console non-blocking")?;
        let (com1, com2) = (SerialPort::new(end, None)?, SerialPort::new(other, None)?);
        let disk = freeze_disk::device(disk)?;
        Ok(Self { machine, vcpu, com1, com2, power: Power::default(), disk, _output: output })
    }

    /// The guest's program, tables and registers.
    fn prepare(&self, kvm: &Kvm) -> Result<()> {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let gate = (HANDLER_GPA & 0xFFFF)
            | u64::from(BOOT_CS) << 16
            | GATE_PRESENT_INTERRUPT << 40
            | (HANDLER_GPA >> 16 & 0xFFFF) << 48;
        for (gpa, bytes) in [
            (GDT_GPA, words(&regs::gdt())),
            (PAGE_TABLES_GPA, words(&regs::page_tables())),
            (CODE_GPA, CODE.to_vec()),
            (HANDLER_GPA, HANDLER.to_vec()),
            (IDT_GPA + TIMER_VECTOR * GATE_BYTES, words(&[gate, 0])),
            (PATTERN_GPA, words(&[PATTERN, 0])),
        ] {
            let written = self.machine.memory.write_slice(&bytes, GuestAddress(gpa));
            written.map_err(|cause| Error::internal(format!("cannot write guest memory at {gpa:#x}: {cause}")))?;
        }
        let supported =
            kvm.get_supported_cpuid(CPUID_ENTRIES_MAX).map_err(|cause| failed("read KVM's CPUID table", cause))?;
        let call = |attempt: &'static str| move |cause| failed(attempt, cause);
        self.vcpu.set_cpuid2(&supported).map_err(call("set the CPUID table"))?;
        let mut special = regs::special(self.vcpu.get_sregs().map_err(call("read the special registers"))?);
        special.cr4 |= CR4_OSFXSR;
        let limit = ((TIMER_VECTOR + 1) * GATE_BYTES - 1) as u16;
        special.idt = kvm_dtable { base: IDT_GPA, limit, ..Default::default() };
        self.vcpu.set_sregs(&special).map_err(call("set the special registers"))?;
        self.vcpu.set_regs(&regs::general(CODE_GPA)).map_err(call("set the registers"))
    }

    /// Runs until the guest has sent this many bytes; every one has to be what the scratch register holds.
    fn run(&mut self, bytes: usize) -> Result<()> {
        signal::allow_wakeups().context(|| "prepare the thread of the freeze check")?;
        let (late, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (tid, told, ended) = (process::thread_id(), late.clone(), done.clone());
        let watchdog = std::thread::spawn(move || {
            std::thread::park_timeout(DEADLINE);
            told.store(true, Ordering::SeqCst);
            // Repeated, as a signal that comes just before KVM_RUN is lost.
            while !ended.load(Ordering::SeqCst) && signal::wake_thread(tid).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let outcome = self.run_until(bytes, &late);
        done.store(true, Ordering::SeqCst);
        watchdog.thread().unpark();
        let joined = watchdog.join().map_err(|_| Error::internal("the watchdog of the freeze check panicked"));
        outcome.and(joined)
    }

    fn run_until(&mut self, bytes: usize, late: &AtomicBool) -> Result<()> {
        let register = |map: PortMap, port: u16| map.register(port);
        let mut sent = 0;
        while sent < bytes {
            if late.load(Ordering::SeqCst) {
                return Err(Error::host(format!("the guest sent {sent} of {bytes} ticks within {DEADLINE:?}")));
            }
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    if let (Some(register), Some(value)) = (register(COM1, port), data.first()) {
                        self.com1.write(register, *value);
                        if register == 0 {
                            sent += 1;
                            if *value != SCRATCH {
                                return Err(Error::host(format!("tick {sent} sent {value:#x}: COM1 lost its state")));
                            }
                        }
                    } else if let (Some(register), Some(value)) = (register(COM2, port), data.first()) {
                        self.com2.write(register, *value);
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    let value = register(COM1, port).map_or(super::bus::FLOATING, |register| self.com1.read(register));
                    data.fill(value);
                }
                Ok(VcpuExit::Intr) => {}
                Ok(other) => return Err(Error::host(format!("the guest ended with {other:?}"))),
                Err(cause) if matches!(cause.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(cause) => return Err(failed("run the vCPU", cause)),
            }
        }
        Ok(())
    }

    fn save(&mut self, kvm: &Kvm) -> Result<VmState> {
        // The last output is finished by one more entry that does not run the guest (api.rst, 5: immediate_exit).
        self.vcpu.set_kvm_immediate_exit(1);
        let left = self.vcpu.run().map(|exit| format!("{exit:?}"));
        self.vcpu.set_kvm_immediate_exit(0);
        if let Ok(exit) = left {
            return Err(Error::host(format!("the vCPU did not stand still: {exit}")));
        }
        let (chips, timer, clock_ns) = snapshot::save_chips(&self.machine)?;
        Ok(VmState {
            vcpus: vec![snapshot::save_vcpu(kvm, &self.vcpu)?],
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
        snapshot::restore_vcpu(&self.vcpu, &state.vcpus[0])?;
        self.com1.restore(&state.com1)?;
        self.com2.restore(&state.com2)?;
        self.power = Power::restored(&state.power);
        if let Some(disk) = &state.disk {
            self.disk.restore(disk, time::monotonic_ns());
        }
        Ok(())
    }

    fn word(&self, gpa: u64) -> Result<u64> {
        let read = self.machine.memory.read_obj(GuestAddress(gpa));
        read.map_err(|cause| Error::internal(format!("cannot read guest memory at {gpa:#x}: {cause}")))
    }

    fn set_word(&self, gpa: u64, value: u64) -> Result<()> {
        let written = self.machine.memory.write_obj(value, GuestAddress(gpa));
        written.map_err(|cause| Error::internal(format!("cannot write guest memory at {gpa:#x}: {cause}")))
    }
}
