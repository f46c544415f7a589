//! vCPUs: their state at the start, and the loop that runs one until the VM ends.
//!
//! Owns the loop and what each exit leads to; leaves devices to the bus and words to exit.
//! Invariant: the first end wins and stops every vCPU; no exit is taken silently.

use super::bus::{Bus, lock};
use super::dump::Dumps;
use super::exit::{CpuState, ExitCounts, ExitKind, fail_entry_text, internal_error_text};
use super::kvm::{self, Machine, failed};
use super::perf;
use super::self_check::host_virtualizes;
use super::stats;
use super::x86::apic::{ApicIds, XAPIC_ID_MAX};
use super::x86::cpuid::{self, CpuShape};
use super::x86::{layout, regs};
use crate::error::{Error, Result};
use crate::proto::message::VmEnd;
use crate::proto::topology::Topology;
use kvm_bindings::{CpuId, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

/// What the vCPUs of a VM share.
pub struct Shared {
    pub machine: Machine,
    pub bus: Bus,
    pub counts: ExitCounts,
    /// An eventfd: written when the VM has ended.
    pub wake: Arc<File>,
    pub stop: AtomicBool,
    pub end: Mutex<Option<VmEnd>>,
    pub vcpus: u32,
    /// vCPU threads that have not returned.
    pub running: AtomicU32,
    pub dumps: Dumps,
}

impl Shared {
    pub fn new(machine: Machine, bus: Bus, wake: Arc<File>, vcpus: u32) -> Self {
        let (counts, stop) = (ExitCounts::default(), AtomicBool::new(false));
        let (end, running, dumps) = (Mutex::new(None), AtomicU32::new(0), Dumps::default());
        Self { machine, bus, counts, wake, stop, end, vcpus, running, dumps }
    }

    /// Ends the VM; only the first end counts.
    pub fn finish(&self, end: VmEnd) {
        lock(&self.end).get_or_insert(end);
        self.stop.store(true, Ordering::SeqCst);
        // An eventfd write fails only where its counter is full, and then the reader is awake already.
        drop(self.wake.as_ref().write_all(&1u64.to_ne_bytes()));
    }
}

/// What all vCPUs are made of.
pub struct Recipe<'a> {
    pub topology: &'a Topology,
    pub apic: &'a ApicIds,
    /// KVM_GET_SUPPORTED_CPUID.
    pub supported: &'a [kvm_cpuid_entry2],
    pub tsc_deadline: bool,
    pub entry_gpa: u64,
    /// Tell the guest that its vCPUs have CPUs of their own.
    pub realtime_hint: bool,
}

impl Recipe<'_> {
    /// Makes the vCPU of a CPU. CPU 0 stands at the kernel's entry; the others wait for the kernel to start them.
    pub fn create(&self, machine: &Machine, cpu: u32) -> Result<VcpuFd> {
        let id = self.apic.id(cpu);
        let vcpu = machine.vm.create_vcpu(u64::from(id)).map_err(|cause| failed(format!("create vCPU {id}"), cause))?;
        let call = |attempt: &str| {
            let attempt = format!("{attempt} of vCPU {cpu}");
            move |cause| failed(attempt, cause)
        };
        // KVM says 0 or fails where it does not know the frequency; then the guest measures it.
        let tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0);
        let shape =
            CpuShape { topology: self.topology, apic: self.apic, cpu, tsc_khz, tsc_deadline: self.tsc_deadline };
        let mut entries = cpuid::for_vcpu(self.supported, &shape);
        if self.realtime_hint {
            perf::hint_realtime(&mut entries);
        }
        let table = CpuId::from_entries(&entries)
            .map_err(|cause| Error::internal(format!("cannot build the CPUID table of vCPU {cpu}: {cause:?}")))?;
        vcpu.set_cpuid2(&table).map_err(call("set the CPUID table"))?;
        let msrs = regs::msrs();
        let list = Msrs::from_entries(&msrs)
            .map_err(|cause| Error::internal(format!("cannot build the MSR list of vCPU {cpu}: {cause:?}")))?;
        let done = vcpu.set_msrs(&list).map_err(call("set the MSRs"))?;
        if let Some(refused) = msrs.get(done) {
            return Err(Error::host(format!("KVM refuses to set MSR {:#x} of vCPU {cpu}", refused.index)));
        }
        // Firmware has to do it where ids are wide: a kernel that finds 8-bit APICs ignores the others.
        let wide = self.apic.highest() > XAPIC_ID_MAX;
        if cpu == 0 || wide {
            let mut sregs = vcpu.get_sregs().map_err(call("read the special registers"))?;
            if cpu == 0 {
                sregs = regs::special(sregs);
            }
            if wide {
                sregs.apic_base |= regs::APIC_BASE_X2APIC;
            }
            vcpu.set_sregs(&sregs).map_err(call("set the special registers"))?;
        }
        if cpu == 0 {
            vcpu.set_regs(&regs::general(self.entry_gpa)).map_err(call("set the registers"))?;
        }
        Ok(vcpu)
    }
}

/// What one KVM_RUN led to.
enum Step {
    Continue,
    End(VmEnd),
    InternalError,
    FailEntry(u64, u32),
}

/// Runs the vCPU of one CPU until the VM ends.
pub fn run(shared: &Shared, cpu: u32, mut vcpu: VcpuFd) {
    let statistics = kvm::statistics(&vcpu);
    while !shared.stop.load(Ordering::SeqCst) {
        shared.dumps.offer(cpu, &shared.machine, &vcpu);
        match step(shared, &mut vcpu) {
            Step::Continue => {}
            Step::End(end) => shared.finish(end),
            Step::InternalError => {
                let error = kvm::internal_error(&mut vcpu);
                let text = internal_error_text(&error, &state(&shared.machine, &vcpu), host_virtualizes());
                shared.finish(VmEnd::MachineError { text });
            }
            Step::FailEntry(reason, host_cpu) => {
                let text = fail_entry_text(reason, host_cpu, &state(&shared.machine, &vcpu));
                shared.finish(VmEnd::MachineError { text });
            }
        }
    }
    shared.counts.add_kvm(statistics.as_ref().map(stats::read).unwrap_or_default());
}

fn step(shared: &Shared, vcpu: &mut VcpuFd) -> Step {
    let broken = |text: String| Step::End(VmEnd::MachineError { text });
    let (kind, next) = match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => {
            (ExitKind::IoOut, shared.bus.write(port, data).map_or(Step::Continue, Step::End))
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            shared.bus.read(port, data);
            (ExitKind::IoIn, Step::Continue)
        }
        Ok(VcpuExit::MmioRead(gpa, data)) => {
            shared.bus.read_memory(gpa, data);
            (ExitKind::MmioRead, Step::Continue)
        }
        Ok(VcpuExit::MmioWrite(gpa, data)) => {
            shared.bus.write_memory(gpa, data, &shared.machine.memory);
            (ExitKind::MmioWrite, Step::Continue)
        }
        Ok(VcpuExit::Shutdown) => (ExitKind::Shutdown, Step::End(VmEnd::TripleFault)),
        // With KVM's own APIC a halted vCPU stays in KVM; here it would halt for good.
        Ok(VcpuExit::Hlt) => (ExitKind::Halt, broken("a vCPU halted outside KVM's interrupt controller".into())),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => (ExitKind::SystemEvent, Step::End(VmEnd::Poweroff)),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => (ExitKind::SystemEvent, Step::End(VmEnd::Reset)),
        Ok(VcpuExit::SystemEvent(event, _)) => (ExitKind::SystemEvent, broken(format!("KVM system event {event}"))),
        Ok(VcpuExit::InternalError) => (ExitKind::InternalError, Step::InternalError),
        Ok(VcpuExit::FailEntry(reason, host_cpu)) => (ExitKind::FailEntry, Step::FailEntry(reason, host_cpu)),
        Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
            (ExitKind::Other, broken(format!("KVM cannot reach guest memory at {gpa:#x}, {size} bytes")))
        }
        Ok(VcpuExit::Intr) => (ExitKind::Interrupted, Step::Continue),
        Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::TprAccess) => (ExitKind::Other, Step::Continue),
        Ok(other) => (ExitKind::Other, broken(format!("KVM exit that this VMM does not know: {other:?}"))),
        Err(cause) => match cause.errno() {
            libc::EINTR | libc::EAGAIN => (ExitKind::Interrupted, Step::Continue),
            libc::EFAULT => (
                ExitKind::Other,
                broken(
                    "KVM cannot reach guest memory: the host is out of memory, or the memory file was cut (errno 14)"
                        .into(),
                ),
            ),
            _ => (ExitKind::Other, broken(failed("run a vCPU", cause).to_string())),
        },
    };
    shared.counts.add(kind);
    next
}

/// Longest x86 instruction (Intel SDM vol. 2A, 2.3.11).
const INSTRUCTION_MAX_BYTES: u64 = 15;

/// Where a vCPU stands; what cannot be read is left at zero.
pub fn state(machine: &Machine, vcpu: &VcpuFd) -> CpuState {
    let mut state = CpuState::default();
    if let Ok(general) = vcpu.get_regs() {
        (state.rip, state.rsp) = (general.rip, general.rsp);
    }
    if let Ok(special) = vcpu.get_sregs() {
        (state.cr0, state.cr3, state.cr4, state.efer) = (special.cr0, special.cr3, special.cr4, special.efer);
        (state.cs_long, state.cs_32) = (special.cs.l == 1, special.cs.db == 1);
        let linear = if state.cs_long { state.rip } else { special.cs.base.wrapping_add(state.rip) };
        let left_in_page = layout::PAGE_BYTES - linear % layout::PAGE_BYTES;
        let mut code = vec![0; INSTRUCTION_MAX_BYTES.min(left_in_page) as usize];
        if let Ok(found) = vcpu.translate_gva(linear)
            && found.valid == 1
            && machine.memory.read_slice(&mut code, GuestAddress(found.physical_address)).is_ok()
        {
            state.code = code;
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::{KVM_CAP_X2APIC_API, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED};
    use kvm_ioctls::Cap;
    use vm_memory::GuestMemoryMmap;

    /// The local APIC's ID register; in KVM's 32-bit form it holds the whole id (Documentation/virt/kvm/api.rst, 4.57).
    const LAPIC_ID: usize = 0x20;

    /// KVM itself is asked, and no vCPU runs: that a table is right does not say that KVM took it for this vCPU.
    #[test]
    fn vcpus_above_the_ids_of_8_bits_have_their_own() {
        let not_run = |why: &str| eprintln!("not run: vCPUs with wide APIC ids: {why}");
        let Ok(kvm) = kvm::open() else { return not_run("there is no KVM here") };
        let topology: Topology = "2n10l15c2t".parse().unwrap();
        let supported = kvm.get_supported_cpuid(kvm::CPUID_ENTRIES_MAX).unwrap();
        let apic = ApicIds::new(&topology, cpuid::llc_rule(supported.as_slice()));
        let most_ids = kvm.check_extension_int(Cap::MaxVcpuId);
        let most_vcpus = kvm.check_extension_int(Cap::MaxVcpus);
        if i64::from(most_ids) <= i64::from(apic.highest()) || most_vcpus < 300 {
            return not_run(&format!("KVM has room for {most_vcpus} vCPUs with ids below {most_ids}"));
        }
        if kvm.check_extension_raw(u64::from(KVM_CAP_X2APIC_API)) <= 0 {
            return not_run("KVM has no 32-bit form of APIC ids");
        }
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let machine = Machine::new(&kvm, memory).unwrap();
        machine.add_chips().unwrap();
        machine.allow_wide_apic_ids(apic.highest()).unwrap();
        let recipe = Recipe {
            topology: &topology,
            apic: &apic,
            supported: supported.as_slice(),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            entry_gpa: layout::PAGE_BYTES,
            realtime_hint: false,
        };
        assert_eq!(topology.total_cpus(), 300);
        let vcpus: Vec<VcpuFd> = (0..300).map(|cpu| recipe.create(&machine, cpu).unwrap()).collect();
        // Node 1, LLC 4 in it, core 14, thread 1, each in bits of its own.
        assert_eq!(apic.id(299), 1 << 8 | 4 << 5 | 14 << 1 | 1);
        for (cpu, vcpu) in (0u32..).zip(&vcpus) {
            let id = apic.id(cpu);
            let table = vcpu.get_cpuid2(kvm::CPUID_ENTRIES_MAX).unwrap();
            let leaves = table.as_slice().iter().filter(|entry| [0xB, 0x1F].contains(&entry.function));
            let ids: Vec<u32> = leaves.map(|entry| entry.edx).collect();
            assert!(ids.len() >= 3 && ids.iter().all(|told| *told == id), "CPU {cpu} is told {ids:?}, not {id}");
            let lapic = vcpu.get_lapic().unwrap();
            let bytes = [0, 1, 2, 3].map(|byte| lapic.regs[LAPIC_ID + byte] as u8);
            assert_eq!(u32::from_le_bytes(bytes), id, "the local APIC of CPU {cpu}");
            let mode = vcpu.get_sregs().unwrap().apic_base & regs::APIC_BASE_X2APIC;
            assert_ne!(mode, 0, "CPU {cpu} has an 8-bit APIC");
            let state = if cpu == 0 { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
            assert_eq!(vcpu.get_mp_state().unwrap().mp_state, state, "CPU {cpu}");
        }
    }
}
