//! The registers of every vCPU on request: for a guest that hangs.
//!
//! Owns asking the vCPU threads and collecting; leaves waking them to the recipe and the values' text to proto/registers.
//! Invariant: asking changes nothing in the guest, and a vCPU that does not answer is told as such.

use super::bus::lock;
use super::exit::CpuState;
use super::kvm::Machine;
use super::vcpu;
use super::x86::layout::PAGE_BYTES;
use crate::proto::registers::CpuDump;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
};
use kvm_ioctls::VcpuFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{Bytes, GuestAddress};

/// Words of the stack that are kept: some calls deep, and little to read.
const STACK_WORDS: usize = 64;
const WORD_BYTES: u64 = 8;

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
        stack: stack(machine, vcpu, special.ss.base.wrapping_mul(u64::from(!state.is_64_bit())).wrapping_add(r.rsp)),
        code: state.code,
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
fn stack(machine: &Machine, vcpu: &VcpuFd, from: u64) -> Vec<u64> {
    let mut words = Vec::new();
    let mut at = from & !(WORD_BYTES - 1);
    while words.len() < STACK_WORDS {
        let Ok(found) = vcpu.translate_gva(at) else { break };
        if found.valid != 1 {
            break;
        }
        let left_in_page = ((PAGE_BYTES - at % PAGE_BYTES) / WORD_BYTES) as usize;
        let count = left_in_page.min(STACK_WORDS - words.len());
        for index in 0..count as u64 {
            let Ok(word) = machine.memory.read_obj::<u64>(GuestAddress(found.physical_address + index * WORD_BYTES))
            else {
                return words;
            };
            words.push(word);
        }
        at = at.wrapping_add(count as u64 * WORD_BYTES);
    }
    words
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
