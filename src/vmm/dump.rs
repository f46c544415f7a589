//! The registers of every vCPU on request: for a guest that hangs.
//!
//! Owns asking the vCPU threads and collecting; leaves waking them to the recipe and the values' text to proto/registers.
//! Invariant: asking changes nothing in the guest, and a vCPU that does not answer is told as such.

use super::bus::lock;
use super::exit::CpuState;
use super::kvm::Machine;
use super::vcpu;
use super::x86::paging;
use super::x86::regs::{CR0_PG, EFER_LMA};
use crate::proto::registers::CpuDump;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{Bytes, GuestAddress};

/// Words of the stack that are kept: some calls deep, and little to read.
const STACK_WORDS: u64 = 64;
const WORD_BYTES: u64 = 8;
/// Longest x86 instruction (Intel SDM vol. 2A, 2.3.11).
const INSTRUCTION_MAX_BYTES: u64 = 15;

/// Asked for and given so far.
#[derive(Default)]
pub struct Dumps {
    wanted: AtomicBool,
    given: Mutex<Vec<CpuDump>>,
}

impl Dumps {
    /// From now on each vCPU that leaves the guest gives its registers, once.
    pub fn ask(&self) {
        lock(&self.given).clear();
        self.wanted.store(true, Ordering::SeqCst);
    }

    pub fn count(&self) -> usize {
        lock(&self.given).len()
    }

    /// A vCPU's turn: gives its registers where they are wanted and not given yet.
    pub fn offer(&self, cpu: u32, machine: &Machine, vcpu: &VcpuFd) {
        if !self.wanted.load(Ordering::SeqCst) || lock(&self.given).iter().any(|dump| dump.cpu == cpu) {
            return;
        }
        let dump = read(cpu, machine, vcpu);
        lock(&self.given).push(dump);
    }

    /// Those of all vCPUs, in order; who did not answer is named.
    pub fn take(&self, vcpus: u32) -> Vec<CpuDump> {
        self.wanted.store(false, Ordering::SeqCst);
        let given = std::mem::take(&mut *lock(&self.given));
        let of = |cpu: u32| given.iter().find(|dump| dump.cpu == cpu).cloned();
        let silent = |cpu| CpuDump::missing(cpu, "its thread did not come out of KVM");
        (0..vcpus).map(|cpu| of(cpu).unwrap_or_else(|| silent(cpu))).collect()
    }
}

fn read(cpu: u32, machine: &Machine, vcpu: &VcpuFd) -> CpuDump {
    let state: CpuState = vcpu::state(machine, vcpu);
    let (Ok(general), Ok(special)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return CpuDump::missing(cpu, "KVM does not tell its registers");
    };
    let r = &general;
    CpuDump {
        cpu,
        rip: r.rip,
        rsp: r.rsp,
        rflags: r.rflags,
        cr0: special.cr0,
        cr2: special.cr2,
        cr3: special.cr3,
        cr4: special.cr4,
        efer: special.efer,
        cs: u32::from(special.cs.selector),
        general: vec![
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
        ],
        mode: state.mode().into(),
        activity: vcpu.get_mp_state().map(|mp| activity(mp.mp_state).to_owned()).unwrap_or_default(),
        stack: stack(machine, &special, if state.is_64_bit() { r.rsp } else { special.ss.base.wrapping_add(r.rsp) }),
        code: code(machine, &special, if state.is_64_bit() { r.rip } else { special.cs.base.wrapping_add(r.rip) }),
        ..CpuDump::default()
    }
}

/// Documentation/virt/kvm/api.rst, 4.38.
fn activity(mp_state: u32) -> &'static str {
    match mp_state {
        KVM_MP_STATE_RUNNABLE => "running",
        KVM_MP_STATE_HALTED => "halted",
        KVM_MP_STATE_UNINITIALIZED => "not started by the kernel",
        KVM_MP_STATE_INIT_RECEIVED => "waiting for its start-up interrupt",
        _ => "in an unknown state",
    }
}

/// Words from this linear address up, as far as they are mapped.
fn stack(machine: &Machine, special: &kvm_sregs, from: u64) -> Vec<u64> {
    let at = |index: u64| (from & !(WORD_BYTES - 1)).wrapping_add(index * WORD_BYTES);
    let word = |index| machine.memory.read_obj::<u64>(GuestAddress(physical(machine, special, at(index))?)).ok();
    (0..STACK_WORDS).map_while(word).collect()
}

/// The bytes of the instruction at this linear address, as far as they are mapped.
fn code(machine: &Machine, special: &kvm_sregs, from: u64) -> Vec<u8> {
    let at = |index| physical(machine, special, from.wrapping_add(index));
    (0..INSTRUCTION_MAX_BYTES).map_while(|index| machine.memory.read_obj(GuestAddress(at(index)?)).ok()).collect()
}

/// A linear address of a vCPU in long mode, or of one without paging, as a guest-physical one.
fn physical(machine: &Machine, special: &kvm_sregs, linear: u64) -> Option<u64> {
    let read = |gpa: u64| machine.memory.read_obj::<u64>(GuestAddress(gpa)).ok();
    match (special.cr0 & CR0_PG != 0, special.efer & EFER_LMA != 0) {
        (false, _) => Some(linear),
        (true, true) => paging::translate(read, special.cr3, special.cr4, linear),
        // The tables of 32-bit guests are no kernel's that is booted here.
        (true, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_vcpus_are_named_and_the_rest_is_in_order() {
        let dumps = Dumps::default();
        dumps.ask();
        for cpu in [2, 0] {
            lock(&dumps.given).push(CpuDump { cpu, rip: 7, ..CpuDump::default() });
        }
        assert_eq!(dumps.count(), 2);
        let taken = dumps.take(3);
        assert_eq!(taken.iter().map(|dump| dump.cpu).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(taken[1].headline().contains("did not come out of KVM"));
        assert_eq!((taken[0].missing.is_none(), dumps.count()), (true, 0));
    }
}
