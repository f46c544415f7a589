//! The state of a VM as plain data: what KVM keeps of vCPUs, interrupt chips, timer and clock, and the devices' registers.
//!
//! Owns taking it from a VM that stands still and giving it to a fresh one; leaves guest memory, which is a file, and
//! stopping the vCPUs to the caller.
//! Invariant: state is bytes: it outlives the VM it was taken from, and needs nothing else of it.
//!
//! The order of giving it back matters: CPUID before MSRs, the APIC's base before the APIC, the deadline MSR after both, and
//! pending events last, because each call checks itself against what is there already (Documentation/virt/kvm/api.rst).
//!
//! Not covered yet: XSAVE areas beyond 4 KiB, which only guests with AMX use.

use super::dev::serial::PortState;
use super::dev::virtio::block::DiskState;
use super::kvm::{CPUID_ENTRIES_MAX, Machine, bytes_of, failed, value_of};
use crate::error::{Error, Result};
use crate::wire_struct;
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data, kvm_cpuid_entry2,
    kvm_irqchip, kvm_msr_entry,
};
use kvm_ioctls::{Kvm, VcpuFd};

/// Chips of KVM's own, in the order they are kept.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
/// MSRs of one call (KVM_MAX_MSR_ENTRIES is 256, arch/x86/kvm/x86.c).
const MSRS_A_CALL: usize = 128;

wire_struct! {
    /// One vCPU. The structures are KVM's own, byte by byte.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct VcpuState {
        pub cpuid: Vec<Vec<u8>>,
        pub activity: Vec<u8>,
        pub general: Vec<u8>,
        pub special: Vec<u8>,
        pub extended: Vec<u8>,
        pub extended_control: Vec<u8>,
        pub debug: Vec<u8>,
        pub local_apic: Vec<u8>,
        /// Number and value, as far as KVM lets them be read.
        pub msrs: Vec<(u32, u64)>,
        pub events: Vec<u8>,
    }
}

wire_struct! {
    /// A whole VM but its memory.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct VmState {
        pub vcpus: Vec<VcpuState>,
        pub chips: Vec<Vec<u8>>,
        pub timer: Vec<u8>,
        pub clock_ns: u64,
        pub com1: PortState,
        pub com2: PortState,
        pub power: Vec<u8>,
        /// None: the VM has no disk.
        pub disk: Option<DiskState>,
    }
}

/// The state of a vCPU that is not in the guest.
pub fn save_vcpu(kvm: &Kvm, vcpu: &VcpuFd) -> Result<VcpuState> {
    let cpuid = vcpu.get_cpuid2(CPUID_ENTRIES_MAX).map_err(|cause| failed("read a vCPU's CPUID table", cause))?;
    Ok(VcpuState {
        cpuid: cpuid.as_slice().iter().map(bytes_of).collect(),
        activity: bytes_of(&vcpu.get_mp_state().map_err(|cause| failed("read a vCPU's activity", cause))?),
        general: bytes_of(&vcpu.get_regs().map_err(|cause| failed("read a vCPU's registers", cause))?),
        special: bytes_of(&vcpu.get_sregs().map_err(|cause| failed("read a vCPU's special registers", cause))?),
        extended: bytes_of(&vcpu.get_xsave().map_err(|cause| failed("read a vCPU's XSAVE area", cause))?),
        extended_control: bytes_of(&vcpu.get_xcrs().map_err(|cause| failed("read a vCPU's XCRs", cause))?),
        debug: bytes_of(&vcpu.get_debug_regs().map_err(|cause| failed("read a vCPU's debug registers", cause))?),
        local_apic: bytes_of(&vcpu.get_lapic().map_err(|cause| failed("read a vCPU's local APIC", cause))?),
        msrs: save_msrs(kvm, vcpu)?,
        events: bytes_of(&vcpu.get_vcpu_events().map_err(|cause| failed("read a vCPU's events", cause))?),
    })
}

/// Makes a fresh vCPU the saved one.
pub fn restore_vcpu(vcpu: &VcpuFd, state: &VcpuState) -> Result<()> {
    let entries = state.cpuid.iter().map(|bytes| value_of(bytes)).collect::<Result<Vec<kvm_cpuid_entry2>>>()?;
    let cpuid = CpuId::from_entries(&entries).map_err(|cause| Error::internal(format!("a CPUID table: {cause:?}")))?;
    vcpu.set_cpuid2(&cpuid).map_err(|cause| failed("set a vCPU's CPUID table", cause))?;
    vcpu.set_mp_state(value_of(&state.activity)?).map_err(|cause| failed("set a vCPU's activity", cause))?;
    vcpu.set_regs(&value_of(&state.general)?).map_err(|cause| failed("set a vCPU's registers", cause))?;
    vcpu.set_sregs(&value_of(&state.special)?).map_err(|cause| failed("set a vCPU's special registers", cause))?;
    super::kvm::set_xsave(vcpu, &value_of(&state.extended)?)?;
    vcpu.set_xcrs(&value_of(&state.extended_control)?).map_err(|cause| failed("set a vCPU's XCRs", cause))?;
    vcpu.set_debug_regs(&value_of(&state.debug)?).map_err(|cause| failed("set a vCPU's debug registers", cause))?;
    vcpu.set_lapic(&value_of(&state.local_apic)?).map_err(|cause| failed("set a vCPU's local APIC", cause))?;
    restore_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&value_of(&state.events)?).map_err(|cause| failed("set a vCPU's events", cause))
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|cause| Error::internal(format!("a list of MSRs: {cause:?}")))
}

/// Every MSR that KVM says has to be kept, and lets be read.
fn save_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>> {
    let list = kvm.get_msr_index_list().map_err(|cause| failed("read KVM's list of MSRs", cause))?;
    let entries: Vec<kvm_msr_entry> =
        list.as_slice().iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let (mut read, mut at) = (Vec::new(), 0);
    while at < entries.len() {
        let part = &entries[at..entries.len().min(at + MSRS_A_CALL)];
        let mut msrs = msr_list(part)?;
        let count = vcpu.get_msrs(&mut msrs).map_err(|cause| failed("read a vCPU's MSRs", cause))?;
        read.extend(msrs.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
        // It stops at one that this vCPU does not have.
        at += if count == part.len() { count } else { count + 1 };
    }
    Ok(read)
}

/// Sets MSRs; one that cannot be set must have its value already.
fn restore_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<()> {
    let entries: Vec<kvm_msr_entry> =
        msrs.iter().map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() }).collect();
    let mut at = 0;
    while at < entries.len() {
        let part = &entries[at..entries.len().min(at + MSRS_A_CALL)];
        let count = vcpu.set_msrs(&msr_list(part)?).map_err(|cause| failed("set a vCPU's MSRs", cause))?;
        at += count;
        let Some(refused) = part.get(count) else { continue };
        let mut now = msr_list(&[kvm_msr_entry { index: refused.index, ..Default::default() }])?;
        let read = vcpu.get_msrs(&mut now).map_err(|cause| failed("read an MSR back", cause))?;
        if read != 1 || now.as_slice()[0].data != refused.data {
            return Err(Error::host(format!("KVM refuses to set MSR {:#x} to {:#x}", refused.index, refused.data)));
        }
        at += 1;
    }
    Ok(())
}

/// Chips, timer and clock of a VM whose vCPUs stand still: (chips, timer, clock).
pub fn save_chips(machine: &Machine) -> Result<(Vec<Vec<u8>>, Vec<u8>, u64)> {
    let mut chips = Vec::new();
    for chip_id in CHIPS {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        machine.vm.get_irqchip(&mut chip).map_err(|cause| failed("read an interrupt chip", cause))?;
        chips.push(bytes_of(&chip));
    }
    let timer = machine.vm.get_pit2().map_err(|cause| failed("read the timer chip", cause))?;
    let clock = machine.vm.get_clock().map_err(|cause| failed("read the VM's clock", cause))?;
    Ok((chips, bytes_of(&timer), clock.clock))
}

/// Gives them to a fresh VM that has its chips and its vCPUs.
pub fn restore_chips(machine: &Machine, state: &VmState) -> Result<()> {
    // Without the flags, which tell how it was read: the guest's time goes on from where it stood.
    let clock = kvm_clock_data { clock: state.clock_ns, ..Default::default() };
    machine.vm.set_clock(&clock).map_err(|cause| failed("set the VM's clock", cause))?;
    for chip in &state.chips {
        machine.vm.set_irqchip(&value_of(chip)?).map_err(|cause| failed("set an interrupt chip", cause))?;
    }
    machine.vm.set_pit2(&value_of(&state.timer)?).map_err(|cause| failed("set the timer chip", cause))
}
