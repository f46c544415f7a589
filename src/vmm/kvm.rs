//! /dev/kvm: opening it, what it must be able to do, and the calls that need `unsafe`.
//!
//! Owns the machine (VM, memory slots, interrupt chips) and reading `kvm_run`; leaves vCPU state to vcpu and x86.
//! Invariant: guest memory outlives the VM that uses it: the machine owns both.

#![allow(unsafe_code)]

use super::exit::InternalError;
use super::x86::layout::{IDENTITY_MAP_GPA, TSS_GPA};
use crate::error::{Error, Result};
use kvm_bindings::{
    CpuId, KVM_CAP_HALT_POLL, KVM_CAP_IOEVENTFD, KVM_CAP_MAX_VCPU_ID, KVM_CAP_MAX_VCPUS, KVM_CAP_NR_VCPUS,
    KVM_CAP_X2APIC_API, KVM_CAP_X86_DISABLE_EXITS, KVM_INTERNAL_ERROR_EMULATION, KVM_PIT_SPEAKER_DUMMY,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KVMIO, kvm_cpuid_entry2, kvm_debugregs,
    kvm_enable_cap, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_config, kvm_pit_state2, kvm_regs,
    kvm_reinject_control, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::fs::File;
use std::os::fd::FromRawFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

pub use super::self_check::self_check;

/// The only API version there is (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// Most CPUID entries KVM handles (KVM_MAX_CPUID_ENTRIES, arch/x86/include/asm/kvm_host.h).
pub const CPUID_ENTRIES_MAX: usize = 256;
/// How long a halted vCPU polls before it sleeps: KVM's own default on x86.
const HALT_POLL_NS: u64 = 200_000;
/// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES (include/uapi/linux/kvm.h).
const EMULATION_FLAG_INSTRUCTION_BYTES: u64 = 1;
/// The flags word and the instruction's size and bytes: the `ndata` that tells they are there.
const EMULATION_DATA_WITH_BYTES: u32 = 3;
/// APIC ids above this need KVM's 32-bit form.
const XAPIC_ID_MAX: u32 = 254;
/// What such a VM turns on of KVM_CAP_X2APIC_API.
const WIDE_IDS: u32 = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
/// vCPUs that a KVM allows which tells no number (Documentation/virt/kvm/api.rst, 4.7).
const UNTOLD_VCPUS: u32 = 4;

/// What a VM needs of KVM, by the name the manual gives it.
const REQUIRED: [(Cap, &str); 10] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// A failed KVM call, as ours.
pub fn failed(attempt: impl std::fmt::Display, cause: kvm_ioctls::Error) -> Error {
    Error::os(attempt, std::io::Error::from_raw_os_error(cause.errno()))
}

/// Opens /dev/kvm and checks that it has what a VM needs.
pub fn open() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|cause| {
        let error = failed("open /dev/kvm", cause);
        match open_remedy(cause.errno()) {
            Some(remedy) => error.hint(remedy),
            None => error,
        }
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(Error::host(format!("/dev/kvm speaks API version {version}, not {API_VERSION}")));
    }
    match missing(|cap| kvm.check_extension(cap)) {
        names if names.is_empty() => Ok(kvm),
        names => Err(Error::host(format!("/dev/kvm lacks {names}")).hint("a newer host kernel has it")),
    }
}

/// The names of what KVM lacks; empty where it has all.
fn missing(has: impl Fn(Cap) -> bool) -> String {
    let lacked = REQUIRED.iter().filter(|(cap, _)| !has(*cap)).map(|(_, name)| *name);
    lacked.collect::<Vec<_>>().join(", ")
}

/// What one VM asks of KVM beyond `REQUIRED`.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub vcpus: u32,
    /// The highest APIC id of a vCPU, which is its number with KVM.
    pub highest_made: u32,
    /// The highest APIC id that the guest is told of.
    pub highest_told: u32,
    pub disk: bool,
}

/// Refuses what KVM would refuse in the middle of making it; `number` is KVM_CHECK_EXTENSION.
pub fn check_allows(asked: Asked, number: impl Fn(u32) -> i32) -> Result<()> {
    let told = |cap: u32| u32::try_from(number(cap)).ok().filter(|number| *number > 0);
    // What an older KVM does not tell follows from what it does (Documentation/virt/kvm/api.rst, 4.7).
    let allowed = told(KVM_CAP_MAX_VCPUS).or_else(|| told(KVM_CAP_NR_VCPUS)).unwrap_or(UNTOLD_VCPUS);
    if asked.vcpus > allowed {
        let text = format!("/dev/kvm allows {allowed} vCPUs (KVM_CAP_MAX_VCPUS), and {} are asked for", asked.vcpus);
        return Err(Error::host(text).hint("give a smaller --topo"));
    }
    let ids = told(KVM_CAP_MAX_VCPU_ID).unwrap_or(allowed);
    if asked.highest_made >= ids {
        let (last, asked) = (ids - 1, asked.highest_made);
        let text = format!("/dev/kvm allows APIC ids up to {last} (KVM_CAP_MAX_VCPU_ID), and {asked} is asked for");
        return Err(Error::host(text)
            .hint("give a smaller --topo, or counts that are powers of two, which leave no gaps between ids"));
    }
    let wide = told(KVM_CAP_X2APIC_API).unwrap_or(0);
    if asked.highest_told > XAPIC_ID_MAX && wide & WIDE_IDS != WIDE_IDS {
        let asked = asked.highest_told;
        let text = format!(
            "/dev/kvm lacks KVM_CAP_X2APIC_API, so that it allows APIC ids up to {XAPIC_ID_MAX}, and {asked} is asked for"
        );
        return Err(Error::host(text).hint("give a smaller --topo; a newer host kernel has it"));
    }
    if asked.disk && told(KVM_CAP_IOEVENTFD).is_none() {
        let text = "/dev/kvm lacks KVM_CAP_IOEVENTFD, which the disk asked for needs";
        return Err(Error::host(text).hint("leave out --disk; a newer host kernel has it"));
    }
    Ok(())
}

/// What helps where /dev/kvm cannot be opened.
fn open_remedy(errno: i32) -> Option<&'static str> {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Some(
            "modprobe kvm_intel or kvm_amd; in a virtual machine, its host has to allow nested virtualization; \
             in a container, pass /dev/kvm in",
        ),
        libc::EACCES | libc::EPERM => {
            Some("add your user to the group that owns it: usermod -aG kvm USER, then log in again")
        }
        libc::EBUSY => Some("another hypervisor, such as VirtualBox, holds the CPU's virtualization: stop it"),
        _ => None,
    }
}

fn halt_poll_ns(vcpus: u32, usable_cpus: u32) -> u64 {
    if vcpus > usable_cpus { 0 } else { HALT_POLL_NS }
}

/// A VM and the memory it uses.
pub struct Machine {
    pub vm: VmFd,
    pub memory: GuestMemoryMmap,
}

/// What of a VM can be made before it is known what it is to be.
#[derive(Debug)]
pub struct Ground {
    pub kvm: Kvm,
    pub supported: CpuId,
    /// With its chips, without memory and vCPUs.
    pub vm: VmFd,
}

impl Ground {
    pub fn lay() -> Result<Self> {
        let kvm = open()?;
        let supported =
            kvm.get_supported_cpuid(CPUID_ENTRIES_MAX).map_err(|cause| failed("read KVM's CPUID table", cause))?;
        let vm = create_vm(&kvm)?;
        add_chips(&vm)?;
        Ok(Self { kvm, supported, vm })
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    loop {
        match kvm.create_vm() {
            Err(cause) if cause.errno() == libc::EINTR => {}
            Err(cause) => {
                let error = failed("create a VM", cause);
                return Err(match open_remedy(cause.errno()) {
                    Some(remedy) => error.hint(remedy),
                    None => error,
                });
            }
            Ok(vm) => return Ok(vm),
        }
    }
}

/// Interrupt chips, timer and the pages KVM keeps for itself; before any vCPU.
fn add_chips(vm: &VmFd) -> Result<()> {
    let identity = vm.set_identity_map_address(IDENTITY_MAP_GPA);
    identity.map_err(|cause| failed("place KVM's identity map", cause))?;
    vm.set_tss_address(TSS_GPA as usize).map_err(|cause| failed("place KVM's TSS", cause))?;
    vm.create_irq_chip().map_err(|cause| failed("create the interrupt chips", cause))?;
    // The dummy speaker port is where Linux reads the timer's output from while it calibrates.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(|cause| failed("create the timer chip", cause))
}

impl Machine {
    /// An empty VM over this memory.
    pub fn new(kvm: &Kvm, memory: GuestMemoryMmap) -> Result<Self> {
        Self::over(create_vm(kvm)?, memory)
    }

    /// Gives a VM its memory.
    pub fn over(vm: VmFd, memory: GuestMemoryMmap) -> Result<Self> {
        let machine = Self { vm, memory };
        for (slot, region) in machine.memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as the machine, which owns the VM too, and slots do not overlap.
            unsafe { machine.vm.set_user_memory_region(slot) }
                .map_err(|cause| failed("give the VM its memory", cause))?;
        }
        Ok(machine)
    }

    /// Its chips; before any vCPU.
    pub fn add_chips(&self) -> Result<()> {
        add_chips(&self.vm)
    }

    /// A tick of the timer chip that finds the last one unserved is lost from now on, as on hardware, and not delivered later:
    /// no guest of ours keeps time by it. The other way KVM watches the guest's acknowledgements, and waits for an end of
    /// that (synchronize_srcu) when the VM goes; here it waits for it now, so that this is no call for before the guest runs.
    pub fn drop_late_ticks(&self) -> Result<()> {
        if !self.vm.check_extension(Cap::ReinjectControl) {
            return Ok(());
        }
        let control = kvm_reinject_control::default();
        // SAFETY: the call reads the structure, which lives longer.
        match unsafe { ioctl_with_ref(&self.vm, KVM_REINJECT_CONTROL(), &control) } {
            0 => Ok(()),
            _ => Err(Error::os("set how the timer chip ticks", std::io::Error::last_os_error())),
        }
    }

    /// Polls for a halted vCPU's next interrupt, unless vCPUs have to share CPUs: then it would poll another's away.
    pub fn set_halt_poll(&self, vcpus: u32, usable_cpus: u32) -> Result<()> {
        let poll_ns = halt_poll_ns(vcpus, usable_cpus);
        if self.vm.check_extension_raw(u64::from(KVM_CAP_HALT_POLL)) <= 0 {
            return Ok(());
        }
        self.enable(KVM_CAP_HALT_POLL, poll_ns, "set the halt polling time")
    }

    /// Lets interrupts reach APIC ids above 254, where there are any.
    pub fn allow_wide_apic_ids(&self, highest_id: u32) -> Result<()> {
        if highest_id <= XAPIC_ID_MAX {
            return Ok(());
        }
        self.enable(KVM_CAP_X2APIC_API, u64::from(WIDE_IDS), "allow APIC ids above 254")
    }

    /// The exits that KVM lets a VM do without, as bits of KVM_X86_DISABLE_EXITS_*.
    pub fn exits_that_can_be_off(&self) -> u32 {
        self.vm.check_extension_raw(u64::from(KVM_CAP_X86_DISABLE_EXITS)).max(0) as u32
    }

    /// Turns these exits off; before any vCPU.
    pub fn turn_exits_off(&self, exits: u32) -> Result<()> {
        self.enable(KVM_CAP_X86_DISABLE_EXITS, u64::from(exits), "turn exits off")
    }

    fn enable(&self, cap: u32, argument: u64, attempt: &str) -> Result<()> {
        let enable = kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..Default::default() };
        self.vm.enable_cap(&enable).map_err(|cause| failed(attempt, cause))
    }
}

/// A structure of KVM's that is plain data.
///
/// # Safety
/// It has no pointer, no padding, and every bit pattern is a value.
pub unsafe trait Plain: Default {}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        // SAFETY: include/uapi/linux/kvm.h and asm/kvm.h: numbers and arrays of numbers, padding spelt out as fields.
        unsafe impl Plain for $kind {}
    )*};
}
plain!(kvm_mp_state, kvm_regs, kvm_sregs, kvm_xsave, kvm_xcrs, kvm_debugregs, kvm_lapic_state, kvm_vcpu_events);
plain!(kvm_irqchip, kvm_pit_state2, kvm_cpuid_entry2);

/// The structure as bytes.
pub fn bytes_of<T: Plain>(value: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: a `Plain` value is `size_of` initialised bytes, alive while it is borrowed.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

/// The structure of these bytes; a wrong number of them is an error.
pub fn value_of<T: Plain>(bytes: &[u8]) -> Result<T> {
    let mut value = T::default();
    if bytes.len() != size_of::<T>() {
        let (wanted, found) = (size_of::<T>(), bytes.len());
        return Err(Error::internal(format!("a saved state of {found} bytes where {wanted} belong")));
    }
    let into = std::ptr::from_mut(&mut value).cast::<u8>();
    // SAFETY: both are `size_of::<T>()` bytes, apart from each other, and any bytes are a `Plain` value.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), into, bytes.len()) };
    Ok(value)
}

/// Gives a vCPU its XSAVE area.
pub fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<()> {
    // SAFETY: without a request for dynamic features (arch_prctl) no guest's area is longer than the structure.
    unsafe { vcpu.set_xsave(area) }.map_err(|cause| failed("set a vCPU's XSAVE area", cause))
}

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
ioctl_io_nr!(KVM_REINJECT_CONTROL, KVMIO, 0x71);

/// The file of KVM's own counts of a vCPU; none where this KVM has none (before Linux 5.14).
pub fn statistics(vcpu: &VcpuFd) -> Option<File> {
    // SAFETY: the call takes no argument and gives a new descriptor.
    let number = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    // SAFETY: the descriptor was just made and is owned by nobody else.
    (number >= 0).then(|| unsafe { File::from_raw_fd(number) })
}

/// What KVM says after KVM_EXIT_INTERNAL_ERROR.
pub fn internal_error(vcpu: &mut VcpuFd) -> InternalError {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member; any bytes are valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let data = internal.data[..(internal.ndata as usize).min(internal.data.len())].to_vec();
    let mut instruction = Vec::new();
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION && internal.ndata >= EMULATION_DATA_WITH_BYTES {
        // SAFETY: as above; the suberror says that this member is the one in use.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        if failure.flags & EMULATION_FLAG_INSTRUCTION_BYTES != 0 {
            // SAFETY: the flag says that the kernel filled these fields; any bytes are valid.
            let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
            let count = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
            instruction.extend_from_slice(&bytes.insn_bytes[..count]);
        }
    }
    InternalError { suberror: internal.suberror, data, instruction }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_round_trip_through_bytes_of_their_size_only() {
        let registers = kvm_regs { rip: 7, r15: u64::MAX, ..Default::default() };
        let bytes = bytes_of(&registers);
        assert_eq!(value_of::<kvm_regs>(&bytes).unwrap(), registers);
        assert!(value_of::<kvm_regs>(&bytes[1..]).is_err());
    }

    #[test]
    fn halted_vcpu_polls_only_where_each_has_a_cpu() {
        assert_eq!([(1, 2), (2, 2), (3, 2), (1, 0)].map(|(v, h)| halt_poll_ns(v, h)), [200_000, 200_000, 0, 0]);
    }

    #[test]
    fn every_missing_capability_is_named() {
        assert_eq!(missing(|_| true), "");
        assert_eq!(missing(|cap| !matches!(cap, Cap::Irqfd | Cap::Pit2)), "KVM_CAP_PIT2, KVM_CAP_IRQFD");
        assert_eq!(missing(|_| false).matches("KVM_CAP_").count(), REQUIRED.len());
    }

    /// What is asked for, KVM's numbers, and words of the refusal; none where nothing is refused.
    type Case<'a> = (Asked, &'a [(u32, i32)], &'a [&'a str]);

    #[test]
    fn what_kvm_does_not_allow_is_named_with_what_was_asked_for() {
        let fits = Asked { vcpus: 300, highest_made: 1023, highest_told: 1023, disk: true };
        let plain = Asked { vcpus: 4, highest_made: 3, highest_told: 3, disk: false };
        // Each as the last that is allowed, and the first that is not.
        let whole =
            [(KVM_CAP_MAX_VCPUS, 300), (KVM_CAP_MAX_VCPU_ID, 1024), (KVM_CAP_X2APIC_API, 3), (KVM_CAP_IOEVENTFD, 1)];
        let less = |cap: u32, number: i32| whole.map(|(one, told)| (one, if one == cap { number } else { told }));
        let old = [(KVM_CAP_NR_VCPUS, 8)];
        let cases: [Case<'_>; 15] = [
            (fits, &whole, &[]),
            (plain, &[], &[]),
            (
                Asked { vcpus: 301, ..fits },
                &whole,
                &["KVM_CAP_MAX_VCPUS", "allows 300 ", "and 301 are", "smaller --topo"],
            ),
            (fits, &less(KVM_CAP_MAX_VCPUS, 299), &["KVM_CAP_MAX_VCPUS", "allows 299 ", "and 300 are"]),
            (
                Asked { highest_made: 1024, ..fits },
                &whole,
                &["KVM_CAP_MAX_VCPU_ID", "up to 1023 ", "and 1024 is", "smaller --topo"],
            ),
            (fits, &less(KVM_CAP_MAX_VCPU_ID, 1023), &["KVM_CAP_MAX_VCPU_ID", "up to 1022 ", "and 1023 is"]),
            (
                Asked { highest_told: 255, ..plain },
                &less(KVM_CAP_X2APIC_API, 0),
                &["KVM_CAP_X2APIC_API", "up to 254,", "and 255 is", "smaller --topo"],
            ),
            (Asked { highest_told: 255, ..plain }, &less(KVM_CAP_X2APIC_API, 1), &["KVM_CAP_X2APIC_API"]),
            (Asked { highest_told: 254, ..plain }, &less(KVM_CAP_X2APIC_API, 0), &[]),
            (Asked { disk: true, ..plain }, &less(KVM_CAP_IOEVENTFD, 0), &["KVM_CAP_IOEVENTFD", "--disk"]),
            (plain, &less(KVM_CAP_IOEVENTFD, 0), &[]),
            // What is not told follows from what is.
            (Asked { vcpus: 8, highest_made: 7, ..plain }, &old, &[]),
            (Asked { vcpus: 9, ..plain }, &old, &["allows 8 ", "and 9 are"]),
            (Asked { highest_made: 8, ..plain }, &old, &["KVM_CAP_MAX_VCPU_ID", "up to 7 ", "and 8 is"]),
            (Asked { vcpus: 5, ..plain }, &[], &["allows 4 ", "and 5 are"]),
        ];
        for (asked, told, words) in cases {
            let number = |cap: u32| told.iter().find(|(one, _)| *one == cap).map_or(0, |(_, number)| *number);
            match check_allows(asked, number) {
                Ok(()) => assert!(words.is_empty(), "{asked:?} with {told:?} is not {words:?}"),
                Err(error) => {
                    let text = error.to_string();
                    let named = !words.is_empty() && words.iter().all(|word| text.contains(word));
                    assert!(named, "{asked:?} with {told:?}: {text}");
                }
            }
        }
    }

    #[test]
    fn each_way_of_not_opening_has_its_remedy() {
        assert!(open_remedy(libc::ENOENT).unwrap().contains("modprobe"));
        assert!(open_remedy(libc::EACCES).unwrap().contains("group"));
        assert!(open_remedy(libc::EBUSY).unwrap().contains("VirtualBox"));
        assert_eq!(open_remedy(libc::EMFILE), None);
    }
}
