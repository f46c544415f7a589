//! The throwaway VM: a few instructions that tell a KVM that can run a kernel from one that cannot.
//!
//! Owns the instructions and their judging; leaves words about exits to exit.
//! Invariant: it ends within its limit, and leaves neither thread nor memory.

use super::exit::{self, NO_HARDWARE_VIRTUALIZATION};
use super::kvm::{self, Machine, failed};
use super::vcpu::{Offer, cpu_state, host_virtualizes};
use super::x86::cpuid::{self, CpuShape};
use super::x86::layout::{GDT_GPA, IDT_GPA, PAGE_TABLES_GPA};
use super::x86::regs;
use crate::error::{Context, Error, Result};
use crate::proto::topology::Topology;
use crate::sys::fd;
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// A few instructions take microseconds; a KVM that needs longer than this cannot run a kernel in any useful time.
const LIMIT: Duration = Duration::from_millis(1500);
/// Between two knocks at a vCPU that does not come back.
const KNOCK_EVERY: Duration = Duration::from_millis(10);
const MEMORY_BYTES: u64 = 2 << 20;
/// Free memory above the tables that regs places.
const CODE_GPA: u64 = 0x10_0000;
const DATA_GPA: u64 = 0x10_1000;
const DATA: [u8; 4] = (DATA_GPA as u32).to_le_bytes();
/// The port the code writes to when all went well: the one for diagnostics (POST codes).
const DONE_PORT: u16 = 0x80;
const DONE: u8 = 0x5A;
/// What an x86_64 kernel uses in its first milliseconds, and every CPU that KVM's hardware support runs on has:
/// each instruction with its bytes (Intel SDM vol. 2).
const STEPS: [(&str, &[u8]); 4] = [
    // mov $DATA_GPA, %edi
    ("mov", &[0xBF, DATA[0], DATA[1], DATA[2], DATA[3]]),
    ("cmpxchg16b", &[0xF0, 0x48, 0x0F, 0xC7, 0x0F]),
    ("fxsave", &[0x0F, 0xAE, 0x47, 0x40]),
    // mov $DONE, %al; out %al, $DONE_PORT
    ("out", &[0xB0, DONE, 0xE6, DONE_PORT as u8]),
];

extern "C" fn interrupt_only(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Whether this host's KVM can run an ordinary kernel; the error says what failed and what helps.
pub fn self_check() -> Result<()> {
    let (machine, vcpu) = prepare()?;
    register_signal_handler(SIGRTMIN(), interrupt_only)
        .map_err(|cause| Error::os("install a signal handler", std::io::Error::from_raw_os_error(cause.errno())))?;
    let (done, result) = mpsc::channel();
    let memory = machine.memory.clone();
    let thread = std::thread::Builder::new()
        .name("kvm-check".into())
        .spawn(move || {
            // The receiver waits for exactly this message.
            drop(done.send(run(vcpu, &memory)));
        })
        .context(|| "start a thread for a throwaway VM")?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match result.recv_timeout(KNOCK_EVERY) {
            Ok(verdict) => {
                thread.join().map_err(|_| Error::internal("the throwaway VM's thread panicked"))?;
                return verdict;
            }
            Err(_) if Instant::now() > deadline => {
                // The signal makes KVM_RUN return, and `run` takes that for the end.
                thread.kill(SIGRTMIN()).map_err(|cause| {
                    Error::os("stop a throwaway VM", std::io::Error::from_raw_os_error(cause.errno()))
                })?;
            }
            Err(_) => {}
        }
    }
}

/// A VM whose one vCPU stands at the first of the steps, in 64-bit mode with paging.
fn prepare() -> Result<(Machine, VcpuFd)> {
    let kvm = kvm::open()?;
    let file = fd::memfd("ktstr-kvm-check", MEMORY_BYTES).context(|| "make memory for a throwaway VM")?;
    let memory = super::memory::map_ram(file, MEMORY_BYTES)?;
    let write = |bytes: &[u8], gpa: u64| {
        let put = memory.write_slice(bytes, GuestAddress(gpa));
        put.map_err(|cause| Error::internal(format!("cannot write the throwaway VM's memory: {cause}")))
    };
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    write(&words(&regs::page_tables()), PAGE_TABLES_GPA)?;
    write(&words(&regs::gdt()), GDT_GPA)?;
    write(&[0; 8], IDT_GPA)?;
    write(&STEPS.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect::<Vec<u8>>(), CODE_GPA)?;
    let machine = Machine::new(&kvm, memory)?;
    machine.add_chips()?;
    let vcpu = machine.vm.create_vcpu(0).map_err(|cause| failed("create a vCPU", cause))?;
    let topology = Topology::flat(1);
    let shape = CpuShape { topology: &topology, cpu: 0, tsc_khz: None, tsc_deadline: false };
    let table = cpuid::for_vcpu(Offer::of(&kvm)?.cpuid(), &shape);
    let table = CpuId::from_entries(&table)
        .map_err(|cause| Error::internal(format!("the CPUID table is too long: {cause:?}")))?;
    vcpu.set_cpuid2(&table).map_err(|cause| failed("set the CPUID of a vCPU", cause))?;
    let reset = vcpu.get_sregs().map_err(|cause| failed("read the registers of a vCPU", cause))?;
    let mut special = regs::special(reset);
    special.cr4 |= regs::CR4_OSFXSR;
    vcpu.set_sregs(&special).map_err(|cause| failed("set the special registers of a vCPU", cause))?;
    vcpu.set_regs(&regs::general(CODE_GPA)).map_err(|cause| failed("set the registers of a vCPU", cause))?;
    Ok((machine, vcpu))
}

/// Runs the steps.
fn run(mut vcpu: VcpuFd, memory: &GuestMemoryMmap) -> Result<()> {
    let what = match vcpu.run() {
        Ok(VcpuExit::IoOut(DONE_PORT, [DONE])) => return Ok(()),
        Ok(VcpuExit::InternalError) => {
            let error = kvm::internal_error(&mut vcpu);
            return Err(refusal(&error, &cpu_state(&vcpu, memory)));
        }
        Ok(VcpuExit::FailEntry(reason, cpu)) => exit::fail_entry_text(reason, cpu, &cpu_state(&vcpu, memory)),
        Ok(other) => format!("it left with {other:?}"),
        Err(cause) if cause.errno() == libc::EINTR => {
            format!("it did not finish {} instructions within {} ms", STEPS.len(), LIMIT.as_millis())
        }
        Err(cause) => failed("run it", cause).to_string(),
    };
    Err(Error::host(format!("KVM on this host cannot run a kernel: in a throwaway VM, {what}")).hint(REMEDY))
}

const REMEDY: &str = "use a host with VMX or SVM; in a virtual machine, its host has to allow nested virtualization";

fn refusal(error: &exit::InternalError, state: &exit::CpuState) -> Error {
    let bytes = if error.instruction.is_empty() { &state.code } else { &error.instruction };
    let instruction = exit::instruction_name(bytes, true).unwrap_or("an unknown instruction");
    let because = if host_virtualizes() { String::new() } else { format!("; {NO_HARDWARE_VIRTUALIZATION}") };
    Error::host(format!(
        "KVM on this host cannot run a kernel: a throwaway VM stopped at {instruction} (KVM internal error, suberror {}){because}",
        error.suberror
    ))
    .hint(REMEDY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_instructions_they_are_named_after() {
        let (name, bytes) = STEPS[1];
        assert_eq!(exit::instruction_name(bytes, true), Some(name));
        assert_eq!(exit::instruction_name(STEPS[2].1, true), Some("fxsave"));
        assert!(PAGE_TABLES_GPA + regs::page_tables().len() as u64 * 8 <= CODE_GPA);
    }

    #[test]
    fn refusal_names_instruction_and_suberror() {
        let error = exit::InternalError { suberror: 1, instruction: STEPS[1].1.to_vec(), ..Default::default() };
        let text = refusal(&error, &exit::CpuState::default()).to_string();
        assert!(text.contains("cmpxchg16b") && text.contains("suberror 1") && text.contains("nested"), "{text}");
    }

    #[test]
    fn check_ends_in_time_whatever_this_host_is() {
        let started = Instant::now();
        if let Err(error) = self_check() {
            assert!(error.message().contains("KVM") || error.message().contains("/dev/kvm"), "{error}");
        }
        assert!(started.elapsed() < LIMIT * 4);
    }
}
