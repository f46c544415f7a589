//! vCPUs: making one ready for its first instruction, running it, and what each exit means.
//!
//! Owns the run loop; leaves register and CPUID values to x86, ports to the bus, words to exit.
//! Invariant: the first vCPU that ends decides how the VM ended; the others may then be anywhere.

use super::bus::{Bus, FLOATING};
use super::exit::{self, CpuState, ExitCounts, ExitKind};
use super::kvm::{self, Machine, failed};
use super::x86::cpuid::{self, CpuShape, apic_id};
use super::x86::regs;
use crate::error::{Error, Result};
use crate::proto::message::VmEnd;
use crate::proto::topology::Topology;
use kvm_bindings::{CpuId, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes at RIP that are shown: no x86 instruction is longer (Intel SDM vol. 2A, 2.3.11).
const INSTRUCTION_MAX_BYTES: usize = 15;

/// What all vCPUs of a VM share.
pub struct Shared {
    pub bus: Bus,
    pub counts: ExitCounts,
    pub memory: GuestMemoryMmap,
    end: Mutex<Option<VmEnd>>,
    ended: Condvar,
    stop: AtomicBool,
}

impl Shared {
    pub fn new(bus: Bus, memory: GuestMemoryMmap) -> Self {
        let (end, ended) = (Mutex::new(None), Condvar::new());
        Self { bus, counts: ExitCounts::default(), memory, end, ended, stop: AtomicBool::new(false) }
    }

    /// The VM has ended like this, unless it had ended before.
    pub fn end(&self, how: VmEnd) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(how);
        self.stop.store(true, Ordering::SeqCst);
        self.ended.notify_all();
    }

    /// Waits for the end, at most this long.
    pub fn wait_end(&self, limit: Duration) -> Option<VmEnd> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let (end, _) =
            self.ended.wait_timeout_while(end, limit, |end| end.is_none()).unwrap_or_else(PoisonError::into_inner);
        end.clone()
    }
}

/// What KVM offers every vCPU of a VM, asked once.
pub struct Offer {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_deadline: bool,
}

impl Offer {
    /// The CPUID entries that KVM supports.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    pub fn of(kvm: &Kvm) -> Result<Self> {
        let cpuid =
            kvm.get_supported_cpuid(kvm::CPUID_ENTRIES_MAX).map_err(|cause| failed("ask KVM for its CPUID", cause))?;
        Ok(Self { cpuid: cpuid.as_slice().to_vec(), tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) })
    }
}

/// One virtual CPU.
pub struct Vcpu {
    fd: VcpuFd,
    number: u32,
}

impl Vcpu {
    /// CPU `number` of this topology. CPU 0 will begin at `entry_gpa`, the others wait for it.
    pub fn new(machine: &Machine, offer: &Offer, topology: &Topology, number: u32, entry_gpa: u64) -> Result<Self> {
        let at = |what: &str| format!("{what} of vCPU {number}");
        let id = u64::from(apic_id(topology, number));
        let fd = machine.vm.create_vcpu(id).map_err(|cause| failed(format!("create vCPU {number}"), cause))?;
        // A KVM that cannot tell the frequency leaves the guest to measure it.
        let tsc_khz = fd.get_tsc_khz().ok().filter(|khz| *khz > 0);
        let shape = CpuShape { topology, cpu: number, tsc_khz, tsc_deadline: offer.tsc_deadline };
        let table = cpuid::for_vcpu(&offer.cpuid, &shape);
        let table = CpuId::from_entries(&table)
            .map_err(|cause| Error::internal(format!("the CPUID table is too long: {cause:?}")))?;
        fd.set_cpuid2(&table).map_err(|cause| failed(at("set the CPUID"), cause))?;
        let values = regs::msrs();
        let msrs = Msrs::from_entries(&values)
            .map_err(|cause| Error::internal(format!("the MSR table is too long: {cause:?}")))?;
        let done = fd.set_msrs(&msrs).map_err(|cause| failed(at("set the MSRs"), cause))?;
        if let Some(refused) = values.get(done) {
            return Err(Error::host(format!("KVM refuses the value of MSR {:#x} of vCPU {number}", refused.index)));
        }
        if number == 0 {
            let reset = fd.get_sregs().map_err(|cause| failed(at("read the registers"), cause))?;
            fd.set_sregs(&regs::special(reset)).map_err(|cause| failed(at("set the special registers"), cause))?;
            fd.set_regs(&regs::general(entry_gpa)).map_err(|cause| failed(at("set the registers"), cause))?;
        }
        Ok(Self { fd, number })
    }

    /// Runs until the VM ends.
    pub fn run(mut self, shared: &Shared) {
        while !shared.stop.load(Ordering::Relaxed) {
            if let Some(end) = self.step(shared) {
                shared.end(end);
            }
        }
    }

    /// Enters the guest once.
    fn step(&mut self, shared: &Shared) -> Option<VmEnd> {
        let (kind, end) = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                shared.bus.read(port, data);
                (ExitKind::IoIn, None)
            }
            Ok(VcpuExit::IoOut(port, data)) => (ExitKind::IoOut, shared.bus.write(port, data)),
            Ok(VcpuExit::MmioRead(_, data)) => {
                data.fill(FLOATING);
                (ExitKind::MmioRead, None)
            }
            Ok(VcpuExit::MmioWrite(..)) => (ExitKind::MmioWrite, None),
            Ok(VcpuExit::Hlt) => (ExitKind::Halt, None),
            Ok(VcpuExit::Shutdown) => (ExitKind::Shutdown, Some(VmEnd::TripleFault)),
            Ok(VcpuExit::SystemEvent(event, _)) => (ExitKind::SystemEvent, Some(system_event(event))),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let text = exit::fail_entry_text(reason, cpu, &self.state(&shared.memory));
                (ExitKind::FailEntry, Some(VmEnd::MachineError { text }))
            }
            Ok(VcpuExit::InternalError) => {
                let error = kvm::internal_error(&mut self.fd);
                let text = exit::internal_error_text(&error, &self.state(&shared.memory), host_virtualizes());
                (ExitKind::InternalError, Some(VmEnd::MachineError { text }))
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => (ExitKind::Interrupted, None),
            Ok(other) => {
                let text = format!("KVM left vCPU {} with an exit nobody asked for: {other:?}", self.number);
                (ExitKind::Other, Some(VmEnd::MachineError { text }))
            }
            // EAGAIN: a vCPU that waited for its start was woken, and is to be run again.
            Err(cause) if matches!(cause.errno(), libc::EINTR | libc::EAGAIN) => (ExitKind::Interrupted, None),
            Err(cause) => {
                let text = failed(format!("run vCPU {}", self.number), cause).to_string();
                (ExitKind::Other, Some(VmEnd::MachineError { text }))
            }
        };
        shared.counts.add(kind);
        end
    }

    /// Where the vCPU stands, as far as KVM tells.
    fn state(&self, memory: &GuestMemoryMmap) -> CpuState {
        cpu_state(&self.fd, memory)
    }
}

/// Where a vCPU stands, with the code there as far as it can be read.
pub fn cpu_state(fd: &VcpuFd, memory: &GuestMemoryMmap) -> CpuState {
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else { return CpuState::default() };
    let mut code = vec![0; INSTRUCTION_MAX_BYTES];
    let address = fd.translate_gva(regs.rip).ok().filter(|place| place.valid == 1).map(|place| place.physical_address);
    let readable = address.is_some_and(|gpa| memory.read_slice(&mut code, GuestAddress(gpa)).is_ok());
    CpuState {
        rip: regs.rip,
        rsp: regs.rsp,
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        cs_long: sregs.cs.l == 1,
        cs_32: sregs.cs.db == 1,
        code: if readable { code } else { Vec::new() },
    }
}

fn system_event(event: u32) -> VmEnd {
    match event {
        KVM_SYSTEM_EVENT_SHUTDOWN => VmEnd::Poweroff,
        KVM_SYSTEM_EVENT_RESET => VmEnd::Reset,
        other => VmEnd::MachineError { text: format!("KVM reports system event {other}, which is no end of a PC") },
    }
}

/// Whether the host's CPU shows VMX or SVM.
pub fn host_virtualizes() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::bus::tests::bus;

    #[test]
    fn first_end_stands_and_wakes_the_waiter() {
        let (bus, _outputs) = bus();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let shared = Shared::new(bus, memory);
        assert_eq!(shared.wait_end(Duration::from_millis(1)), None);
        std::thread::scope(|scope| {
            scope.spawn(|| shared.end(VmEnd::Reset));
            assert_eq!(shared.wait_end(Duration::from_secs(10)), Some(VmEnd::Reset));
        });
        shared.end(VmEnd::TripleFault);
        assert_eq!(shared.wait_end(Duration::ZERO), Some(VmEnd::Reset));
    }

    #[test]
    fn system_events_are_told_apart() {
        assert_eq!(system_event(1), VmEnd::Poweroff);
        assert_eq!(system_event(2), VmEnd::Reset);
        assert!(matches!(system_event(3), VmEnd::MachineError { .. }));
    }
}
