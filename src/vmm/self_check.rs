//! Whether this KVM can run an ordinary kernel: a throwaway VM of a few instructions that an ordinary kernel needs.
//!
//! Owns the little guest and the judgement; leaves what to do instead to run/.
//! Invariant: it ends within its deadline whatever KVM does, and a failure names the instruction.

use super::exit::{CpuState, InternalError, NO_HARDWARE_VIRTUALIZATION};
use super::kvm::{self, CPUID_ENTRIES_MAX, Machine, failed};
use super::vcpu;
use super::x86::layout::{GDT_GPA, PAGE_TABLES_GPA};
use super::x86::regs::{self, BOOT_CS, CR4_OSFXSR, CR4_OSXSAVE};
use crate::error::{Error, Result};
use crate::sys::{process, signal};
use kvm_bindings::{CpuId, kvm_dtable};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The little guest ends, one way or the other, within milliseconds; on a loaded host that is itself emulated it was
/// seen to take two thirds of a second. The deadline is for a KVM that hangs.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long a vCPU that is woken may take to leave KVM.
const STOP_DEADLINE: Duration = Duration::from_millis(100);
const WAKE_INTERVAL: Duration = Duration::from_millis(2);

/// The guest's memory and where its parts lie, clear of the boot tables.
const MEMORY_BYTES: usize = 0x2_0000;
const CODE_GPA: u64 = 0x1_0000;
const IDT_GPA: u64 = 0x1_1000;
const HANDLER_GPA: u64 = 0x1_1800;
const DATA_GPA: u32 = 0x1_2000;
/// The breakpoint exception's vector, and an interrupt gate (Intel SDM vol. 3, 7.14.1).
const BREAKPOINT_VECTOR: u64 = 3;
const GATE_PRESENT_INTERRUPT: u64 = 0x8E;
const GATE_BYTES: u64 = 16;
/// The last step writes this value to this port.
const DONE_PORT: u16 = 0xF4;
const DONE_VALUE: u8 = 0x4B;

/// One step: what it is, its machine code, and the CPUID bit without which it is left out (leaf, register, bit).
struct Step {
    name: &'static str,
    code: &'static [u8],
    needs: Option<(u32, Register, u32)>,
}

#[derive(Clone, Copy)]
enum Register {
    Ebx,
    Ecx,
}

const fn always(name: &'static str, code: &'static [u8]) -> Step {
    Step { name, code, needs: None }
}
const XSAVE: Option<(u32, Register, u32)> = Some((1, Register::Ecx, 26));
const CX16: Option<(u32, Register, u32)> = Some((1, Register::Ecx, 13));
const BMI2: Option<(u32, Register, u32)> = Some((7, Register::Ebx, 8));

/// mov edi, DATA_GPA
const POINT_TO_DATA: [u8; 5] = {
    let [a, b, c, d] = DATA_GPA.to_le_bytes();
    [0xBF, a, b, c, d]
};

/// What the guest does, in order. Every kernel for x86_64 does the like of each within its first milliseconds.
const STEPS: [Step; 9] = [
    always("mov to a register", &POINT_TO_DATA),
    always("int3 and iret", &[0xCC]),
    always("movups", &[0x0F, 0x10, 0x07]),
    // xor eax, eax; xor edx, edx; xor ebx, ebx; xor ecx, ecx; lock cmpxchg16b [rdi]
    Step {
        name: "cmpxchg16b",
        code: &[0x31, 0xC0, 0x31, 0xD2, 0x31, 0xDB, 0x31, 0xC9, 0xF0, 0x48, 0x0F, 0xC7, 0x0F],
        needs: CX16,
    },
    // mov eax, 3 (x87 and SSE); xor edx, edx; xor ecx, ecx; xsetbv
    Step {
        name: "xsetbv",
        code: &[0xB8, 0x03, 0x00, 0x00, 0x00, 0x31, 0xD2, 0x31, 0xC9, 0x0F, 0x01, 0xD1],
        needs: XSAVE,
    },
    Step { name: "xsave", code: &[0x48, 0x0F, 0xAE, 0x27], needs: XSAVE },
    Step { name: "xrstor", code: &[0x48, 0x0F, 0xAE, 0x2F], needs: XSAVE },
    // rorx rax, rax, 1
    Step { name: "rorx (BMI2)", code: &[0xC4, 0xE3, 0xFB, 0xF0, 0xC0, 0x01], needs: BMI2 },
    // mov al, DONE_VALUE; out DONE_PORT, al; hlt
    always("out to a port", &[0xB0, DONE_VALUE, 0xE6, DONE_PORT as u8, 0xF4]),
];

/// The program for a CPU with these features, and where each step begins.
fn program(cpuid: &CpuId) -> (Vec<u8>, Vec<(u64, &'static str)>) {
    let has = |(leaf, register, bit): (u32, Register, u32)| {
        cpuid.as_slice().iter().any(|entry| {
            let value = match register {
                Register::Ebx => entry.ebx,
                Register::Ecx => entry.ecx,
            };
            entry.function == leaf && entry.index == 0 && value >> bit & 1 == 1
        })
    };
    let (mut code, mut starts) = (Vec::new(), Vec::new());
    for step in STEPS.iter().filter(|step| step.needs.is_none_or(has)) {
        starts.push((CODE_GPA + code.len() as u64, step.name));
        code.extend_from_slice(step.code);
    }
    (code, starts)
}

/// The step that an address belongs to.
fn step_at(starts: &[(u64, &'static str)], rip: u64) -> &'static str {
    match starts.iter().rev().find(|(start, _)| *start <= rip) {
        Some((_, name)) if rip < HANDLER_GPA => name,
        Some(_) => "int3 and iret",
        None => "an address outside the program",
    }
}

/// How the little guest ended.
#[derive(Debug)]
enum Outcome {
    Done,
    Internal(InternalError, CpuState),
    Other(String, CpuState),
}

/// Checks that KVM is there, may be used, and can run an ordinary kernel.
pub fn self_check() -> Result<()> {
    let kvm = kvm::open()?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])
        .map_err(|cause| Error::host(format!("cannot map the memory of KVM's test VM: {cause}")))?;
    let machine = Machine::new(&kvm, memory)?;
    let supported =
        kvm.get_supported_cpuid(CPUID_ENTRIES_MAX).map_err(|cause| failed("read KVM's CPUID table", cause))?;
    let (code, starts) = program(&supported);
    let vcpu = prepare(&machine, &supported, &code)?;

    let (sender, receiver) = mpsc::channel();
    let (tid_sender, tid) = mpsc::channel();
    let body = move || {
        let allowed = signal::allow_wakeups();
        let (machine, mut vcpu) = (machine, vcpu);
        // A receiver that is gone has stopped waiting; there is nobody left to tell.
        let told = tid_sender.send((process::thread_id(), allowed)).is_ok();
        if told {
            drop(sender.send(run(&machine, &mut vcpu)));
        }
    };
    std::thread::Builder::new()
        .name("kvm-check".into())
        .spawn(body)
        .map_err(|cause| Error::os("start the thread of KVM's test VM", cause))?;
    match wait(&receiver, &tid)? {
        Some(outcome) => judge(outcome, &starts, host_virtualizes()),
        None => Err(unusable(format!("its test VM of {} instructions did not end within {DEADLINE:?}", code.len()))),
    }
}

/// Waits for the outcome; wakes the vCPU at the deadline so that its thread ends too.
fn wait(receiver: &Receiver<Outcome>, tid: &Receiver<(i32, std::io::Result<()>)>) -> Result<Option<Outcome>> {
    let thread = tid.recv_timeout(DEADLINE);
    let Ok((tid, allowed)) = thread else {
        return Err(Error::internal("the thread of KVM's test VM did not start"));
    };
    allowed.map_err(|cause| Error::os("prepare the thread of KVM's test VM", cause))?;
    if let Ok(outcome) = receiver.recv_timeout(DEADLINE) {
        return Ok(Some(outcome));
    }
    let end = Instant::now() + STOP_DEADLINE;
    while Instant::now() < end {
        // The thread may be gone already, which is what is wanted.
        if signal::wake_thread(tid).is_err() || receiver.recv_timeout(WAKE_INTERVAL).is_ok() {
            break;
        }
    }
    Ok(None)
}

fn prepare(machine: &Machine, supported: &CpuId, code: &[u8]) -> Result<VcpuFd> {
    let xsave = program(supported).1.iter().any(|(_, name)| *name == "xsave");
    let vcpu = machine.vm.create_vcpu(0).map_err(|cause| failed("create the vCPU of KVM's test VM", cause))?;
    let write = |gpa: u64, bytes: &[u8]| {
        machine
            .memory
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(|cause| Error::internal(format!("cannot write the memory of KVM's test VM at {gpa:#x}: {cause}")))
    };
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    write(GDT_GPA, &words(&regs::gdt()))?;
    write(PAGE_TABLES_GPA, &words(&regs::page_tables()))?;
    write(CODE_GPA, code)?;
    write(HANDLER_GPA, &[0x48, 0xCF])?; // iretq
    let gate = (HANDLER_GPA & 0xFFFF)
        | u64::from(BOOT_CS) << 16
        | GATE_PRESENT_INTERRUPT << 40
        | (HANDLER_GPA >> 16 & 0xFFFF) << 48;
    write(IDT_GPA + BREAKPOINT_VECTOR * GATE_BYTES, &words(&[gate, 0]))?;
    let call = |attempt: &'static str| move |cause| failed(format!("{attempt} of KVM's test VM"), cause);
    vcpu.set_cpuid2(supported).map_err(call("set the CPUID table"))?;
    let mut sregs = regs::special(vcpu.get_sregs().map_err(call("read the registers"))?);
    sregs.cr4 |= CR4_OSFXSR | if xsave { CR4_OSXSAVE } else { 0 };
    let limit = ((BREAKPOINT_VECTOR + 1) * GATE_BYTES - 1) as u16;
    sregs.idt = kvm_dtable { base: IDT_GPA, limit, ..Default::default() };
    vcpu.set_sregs(&sregs).map_err(call("set the special registers"))?;
    vcpu.set_regs(&regs::general(CODE_GPA)).map_err(call("set the registers"))?;
    Ok(vcpu)
}

fn run(machine: &Machine, vcpu: &mut VcpuFd) -> Outcome {
    let text = match vcpu.run() {
        Ok(VcpuExit::IoOut(DONE_PORT, [DONE_VALUE])) => return Outcome::Done,
        Ok(VcpuExit::InternalError) => {
            let error = kvm::internal_error(vcpu);
            return Outcome::Internal(error, vcpu::state(machine, vcpu));
        }
        Ok(VcpuExit::Shutdown) => "a triple fault".to_owned(),
        Ok(exit) => format!("KVM exit {exit:?}"),
        Err(cause) => failed("run the vCPU", cause).to_string(),
    };
    Outcome::Other(text, vcpu::state(machine, vcpu))
}

fn judge(outcome: Outcome, starts: &[(u64, &'static str)], host_virtualizes: bool) -> Result<()> {
    let cause = if host_virtualizes { "a fault of the host's KVM" } else { NO_HARDWARE_VIRTUALIZATION };
    let (how, state) = match outcome {
        Outcome::Done => return Ok(()),
        Outcome::Internal(error, state) => (format!("KVM internal error, suberror {}", error.suberror), state),
        Outcome::Other(text, state) => (text, state),
    };
    let step = step_at(starts, state.rip);
    Err(unusable(format!("its test VM stopped at '{step}' with {how}; likely cause: {cause}")))
}

fn unusable(why: String) -> Error {
    Error::host(format!("/dev/kvm opens, but cannot run an ordinary kernel: {why}"))
        .hint("use --accel qemu here, or a host with VMX or SVM (nested virtualization allowed)")
}

/// Whether the host's CPU shows VMX or SVM. Words for a failure only: what KVM can do is tried, not read here.
pub fn host_virtualizes() -> bool {
    let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") else { return true };
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    fn cpuid(ecx: u32, ebx: u32) -> CpuId {
        let leaf = |function, ebx, ecx| kvm_cpuid_entry2 { function, ebx, ecx, ..Default::default() };
        CpuId::from_entries(&[leaf(1, 0, ecx), leaf(7, ebx, 0)]).unwrap()
    }

    #[test]
    fn program_leaves_out_what_the_cpu_lacks() {
        let (all, starts) = program(&cpuid(1 << 26 | 1 << 13, 1 << 8));
        assert_eq!(starts.len(), STEPS.len());
        let (least, few) = program(&cpuid(0, 0));
        assert!(least.len() < all.len() && few.len() == 4);
        assert!(CODE_GPA + (all.len() as u64) < IDT_GPA);
    }

    #[test]
    fn failing_address_names_its_step() {
        let (_, starts) = program(&cpuid(1 << 26 | 1 << 13, 1 << 8));
        assert_eq!(step_at(&starts, CODE_GPA + 5), "int3 and iret");
        assert_eq!(step_at(&starts, CODE_GPA + 9 + 8), "cmpxchg16b");
        assert_eq!(step_at(&starts, HANDLER_GPA), "int3 and iret");
        assert_eq!(step_at(&starts, 0), "an address outside the program");
    }

    #[test]
    fn interpreting_kvm_is_named_as_such() {
        let (_, starts) = program(&cpuid(1 << 13, 0));
        let state = CpuState { rip: CODE_GPA + 9 + 8, code: vec![0xF0, 0x48, 0x0F, 0xC7, 0x0F], ..CpuState::default() };
        let outcome = Outcome::Internal(InternalError { suberror: 1, ..Default::default() }, state.clone());
        let text = judge(outcome, &starts, false).unwrap_err().to_string();
        assert!(text.contains("'cmpxchg16b'") && text.contains(NO_HARDWARE_VIRTUALIZATION), "{text}");
        let text = judge(Outcome::Other("a triple fault".into(), state), &starts, true).unwrap_err().to_string();
        assert!(text.contains("a triple fault") && !text.contains("without hardware"), "{text}");
        assert!(judge(Outcome::Done, &starts, false).is_ok());
    }
}
