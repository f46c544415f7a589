//! The BPF programs that break a rule of sched_ext on purpose, so that it can be seen that each is found and named.
//!
//! Owns the instructions; leaves the parts shared with honest programs to `programs`.
//! Invariant: a fault concerns workers of ours only (`bad-program` and `init-fail` come before any task), and comes when
//! workers have had time to start.

use super::kernel::Kernel;
use super::programs::{ARG_0, ARG_1, INSERT, SLICE_NS, insert_for, insert_global, take_task, unless_worker};
use crate::scx::asm::{Asm, Insn, Label, Reg, Reg::*, When, Width};

/// How long after the first worker was queued the fault comes: workers are then at work, and a run of the default 2 s is
/// not over yet.
pub(super) const FAULT_AFTER_NS: i32 = 1_000_000_000;
/// bpf_ktime_get_ns (enum bpf_func_id, include/uapi/linux/bpf.h).
pub(super) const KTIME_GET_NS: i32 = 5;
/// A dispatch queue that nobody has made.
const NO_SUCH_DSQ: u64 = 0x309;
/// SCX_DSQ_LOCAL_ON (enum scx_dsq_id_flags): the local queue of the CPU in the low bits.
const DSQ_LOCAL_ON: u64 = 0xc000_0000_0000_0000;
/// The exit code that `exit` gives, for the user part to read.
const EXIT_CODE: i32 = 7;
/// SCHED_EXT (include/uapi/linux/sched.h).
const SCHED_EXT: i32 = 7;
/// BPF_PROG_TYPE_STRUCT_OPS contexts are a few words: no operation has an argument there.
const FAR_BEYOND_THE_CONTEXT: i16 = 4096;

/// Goes to `early` until the fault is due. `p` is in r7; r8 is used up. The shared word is the time of the first worker.
pub(super) fn until_due(asm: &mut Asm, state_map: i32, early: Label) {
    asm.call_helper(KTIME_GET_NS).mov(R8, R0);
    asm.map_value(R1, state_map).mov_imm(R0, 0).compare_exchange(R1, R8);
    asm.jump_imm(When::Equal, R0, 0, early);
    asm.sub(R8, R0).jump_imm(When::Below, R8, FAULT_AFTER_NS, early);
}

/// Puts a text, with its final zero, on the stack so that it ends at `end`, and its address into `reg`.
fn text_on_stack(asm: &mut Asm, text: &str, end: i16, reg: Reg) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let start = end - bytes.len() as i16;
    for (index, chunk) in bytes.chunks(8).enumerate() {
        let word = chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        asm.load_imm64(reg, word).store(Width::Double, R10, start + 8 * index as i16, reg);
    }
    asm.mov(reg, R10).add_imm(reg, i32::from(start));
}

/// Calls `scx_bpf_error_bstr(text, data)` or, with a code, `scx_bpf_exit_bstr(code, text, data)`; `%d` is the worker's pid.
fn complain(asm: &mut Asm, kernel: &Kernel, text: &str, code: Option<i32>) -> Result<(), String> {
    let function = kernel.kfunc(&[if code.is_some() { "scx_bpf_exit_bstr" } else { "scx_bpf_error_bstr" }])?;
    asm.load(Width::Word, R1, R7, kernel.task_offset("pid")?).store(Width::Double, R10, -8, R1);
    let (format, data, size) = if code.is_some() { (R2, R3, R4) } else { (R1, R2, R3) };
    text_on_stack(asm, text, -8, format);
    asm.mov(data, R10).add_imm(data, -8).mov_imm(size, 8);
    if let Some(code) = code {
        asm.mov_imm(R1, code);
    }
    asm.call_kfunc(function);
    Ok(())
}

/// An enqueue that is fifo's until the fault is due, does something then, and queues the task all the same.
pub(super) fn fifo_until_due(
    kernel: &Kernel,
    state_map: i32,
    fault: impl FnOnce(&mut Asm) -> Result<(), String>,
) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    let keep = asm.label();
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, keep)?;
    until_due(&mut asm, state_map, keep);
    fault(&mut asm)?;
    asm.bind(keep);
    insert_global(&mut asm, kernel)?;
    asm.finish()
}

/// enqueue(p, flags): reports an error of its own.
pub fn enqueue_error(kernel: &Kernel, state_map: i32) -> Result<Vec<Insn>, String> {
    fifo_until_due(kernel, state_map, |asm| complain(asm, kernel, "will not queue worker %d", None))
}

/// enqueue(p, flags): asks the kernel to end the scheduler in order.
pub fn enqueue_exit(kernel: &Kernel, state_map: i32) -> Result<Vec<Insn>, String> {
    fifo_until_due(kernel, state_map, |asm| complain(asm, kernel, "had enough at worker %d", Some(EXIT_CODE)))
}

/// enqueue(p, flags): names a queue that does not exist.
pub fn enqueue_bad_dsq(kernel: &Kernel, state_map: i32) -> Result<Vec<Insn>, String> {
    fifo_until_due(kernel, state_map, |asm| insert_for(asm, kernel, NO_SUCH_DSQ, SLICE_NS))
}

/// enqueue(p, flags): every worker goes to the CPU after its own, whether it may run there or not.
pub fn enqueue_next_cpu(kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    let (keep, within) = (asm.label(), asm.label());
    let (cpu, count, insert) =
        (kernel.kfunc(&["scx_bpf_task_cpu"])?, kernel.kfunc(&["scx_bpf_nr_cpu_ids"])?, kernel.kfunc(&INSERT)?);
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, keep)?;
    asm.mov(R1, R7).call_kfunc(cpu).mov(R8, R0).add_imm(R8, 1);
    asm.call_kfunc(count).jump_reg(When::Above, R0, R8, within).mov_imm(R8, 0).bind(within);
    asm.load_imm64(R2, DSQ_LOCAL_ON).or(R2, R8).mov(R1, R7).load_imm64(R3, SLICE_NS);
    asm.load(Width::Double, R4, R6, ARG_1).call_kfunc(insert).mov_imm(R0, 0).exit();
    asm.bind(keep);
    insert_global(&mut asm, kernel)?;
    asm.finish()
}

/// enqueue(p, flags): every worker goes to the first CPU's own queue, whoever else is idle.
pub fn enqueue_first_cpu(kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    let keep = asm.label();
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, keep)?;
    insert_for(&mut asm, kernel, DSQ_LOCAL_ON, SLICE_NS)?;
    asm.bind(keep);
    insert_global(&mut asm, kernel)?;
    asm.finish()
}

/// init(): refuses.
pub fn init_refuses(_kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    asm.mov_imm(R0, -libc::ENOMEM).exit();
    asm.finish()
}

/// init_task(p, args): refuses tasks that are at SCHED_EXT when it is loaded; the kernel lets only those be refused.
pub fn init_task_rejects(kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    let keep = asm.label();
    asm.load(Width::Double, R7, R1, ARG_0).load(Width::Double, R2, R1, ARG_1);
    // args->fork, the first member of struct scx_init_task_args.
    asm.load(Width::Byte, R3, R2, 0).jump_imm(When::NotEqual, R3, 0, keep);
    asm.load(Width::Word, R3, R7, kernel.task_offset("policy")?).jump_imm(When::NotEqual, R3, SCHED_EXT, keep);
    asm.store_imm(Width::Byte, R7, kernel.task_offset("scx.disallow")?, 1);
    asm.bind(keep).mov_imm(R0, 0).exit();
    asm.finish()
}

/// enqueue(p, flags): reads beyond its arguments, which the verifier refuses.
pub fn enqueue_out_of_bounds(_kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    asm.load(Width::Double, R0, R1, FAR_BEYOND_THE_CONTEXT).exit();
    asm.finish()
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::{INSERT, call, calls, sample};
    use super::*;

    #[test]
    fn faults_come_late_and_leave_the_task_queued() {
        for (build, function) in [(enqueue_error as fn(&Kernel, i32) -> _, 78), (enqueue_exit, 79)] {
            let code: Vec<Insn> = build(&sample(), 5).unwrap();
            let clock = code.iter().position(|insn| *insn == [0x85, 0, 0, 0, 5, 0, 0, 0]).unwrap();
            let fault = code.iter().position(|insn| *insn == call(function)).unwrap();
            assert!(clock < fault);
            assert_eq!((calls(&code, function), calls(&code, INSERT)), (1, 1));
        }
        assert_eq!(calls(&enqueue_bad_dsq(&sample(), 5).unwrap(), INSERT), 2);
        assert_eq!(calls(&enqueue_first_cpu(&sample(), 5).unwrap(), INSERT), 2);
    }

    #[test]
    fn text_lies_on_the_stack_with_its_final_zero() {
        let mut asm = Asm::new();
        text_on_stack(&mut asm, "12345678", -8, R1);
        asm.exit();
        let code = asm.finish().unwrap();
        // Nine bytes are two words: from -24 on.
        assert_eq!(code[0], [0x18, 0x01, 0, 0, b'1', b'2', b'3', b'4']);
        assert_eq!(code[2], [0x7b, 0x1a, 0xe8, 0xff, 0, 0, 0, 0]);
        assert_eq!(code[6], [0xbf, 0xa1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(code[7], [0x07, 0x01, 0, 0, 0xe8, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn rejecting_marks_the_task_and_only_outside_of_fork() {
        let code = init_task_rejects(&sample(), 0).unwrap();
        assert!(code.contains(&[0x72, 0x07, 0x84, 0x03, 1, 0, 0, 0]), "{code:?}");
        assert_eq!(code[2], [0x71, 0x23, 0, 0, 0, 0, 0, 0]);
        assert_eq!(init_refuses(&sample(), 0).unwrap()[0][4..], (-12i32).to_le_bytes());
    }
}
