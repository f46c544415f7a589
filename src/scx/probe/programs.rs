//! The BPF programs of the probe schedulers that keep the kernel's rules, and the parts that all programs share.
//!
//! Owns the instructions; leaves programs that break rules to `faulty`, which probe has which program to `table`, and
//! loading to `load`.
//! Invariant: a program follows the calling convention of its operation: r1 is the context, an array of 64-bit arguments.

use super::kernel::Kernel;
use crate::scx::asm::{Asm, Insn, Label, Reg::*, When, Width};

/// SCX_DSQ_FLAG_BUILTIN | 1: the global dispatch queue (include/linux/sched/ext.h, enum scx_dsq_id_flags).
pub(super) const DSQ_GLOBAL: u64 = 1 << 63 | 1;
/// SCX_SLICE_DFL, in nanoseconds (include/linux/sched/ext.h): the slice the kernel itself gives.
pub(super) const SLICE_NS: u64 = 20_000_000;
/// The function that puts a task on a dispatch queue: its names since 6.13, since 6.19, and in 6.12.
/// All three take task, queue, slice and flags.
pub(super) const INSERT: [&str; 3] = ["scx_bpf_dsq_insert", "scx_bpf_dsq_insert___v2", "scx_bpf_dispatch"];

/// Offsets of arguments in the context.
pub(super) const ARG_0: i16 = 0;
pub(super) const ARG_1: i16 = 8;

/// A program, as far as it depends on the kernel and on the word that probe and program share.
pub type Build = fn(&Kernel, state_map: i32) -> Result<Vec<Insn>, String>;

/// `p` is in r7 and the context in r6: puts the task on the global queue, and returns.
pub(super) fn insert_global(asm: &mut Asm, kernel: &Kernel) -> Result<(), String> {
    insert_for(asm, kernel, DSQ_GLOBAL, SLICE_NS)
}

/// The same for any queue and slice.
pub(super) fn insert_for(asm: &mut Asm, kernel: &Kernel, queue: u64, slice_ns: u64) -> Result<(), String> {
    let insert = kernel.kfunc(&INSERT)?;
    asm.mov(R1, R7).load_imm64(R2, queue).load_imm64(R3, slice_ns).load(Width::Double, R4, R6, ARG_1);
    asm.call_kfunc(insert).mov_imm(R0, 0).exit();
    Ok(())
}

/// Keeps context and task where calls leave them alone.
pub(super) fn take_task(asm: &mut Asm) {
    asm.mov(R6, R1).load(Width::Double, R7, R6, ARG_0);
}

/// enqueue(p, flags): every task goes to the global queue, in order of arrival.
pub fn enqueue_fifo(kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    take_task(&mut asm);
    insert_global(&mut asm, kernel)?;
    asm.finish()
}

/// select_cpu(p, prev_cpu, flags): the task stays where it was, and is not dispatched here, so that enqueue sees it.
pub fn select_previous_cpu(_kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    asm.load(Width::Double, R0, R1, ARG_1).exit();
    asm.finish()
}

/// Goes to `other` unless the task in r7 is a worker of ours: `kw` and a digit (a bare `kw` would also match kworker).
pub(super) fn unless_worker(asm: &mut Asm, kernel: &Kernel, other: Label) -> Result<(), String> {
    let comm = kernel.task_offset("comm")?;
    asm.load(Width::Byte, R1, R7, comm).jump_imm(When::NotEqual, R1, i32::from(b'k'), other);
    asm.load(Width::Byte, R1, R7, comm + 1).jump_imm(When::NotEqual, R1, i32::from(b'w'), other);
    asm.load(Width::Byte, R1, R7, comm + 2).jump_imm(When::Below, R1, i32::from(b'0'), other);
    asm.jump_imm(When::Above, R1, i32::from(b'9'), other);
    Ok(())
}

/// enqueue(p, flags): the first worker to come here is never queued; its pid is kept in the shared word.
pub fn enqueue_all_but_one(kernel: &Kernel, state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    let (keep, lose) = (asm.label(), asm.label());
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, keep)?;
    asm.load(Width::Word, R2, R7, kernel.task_offset("pid")?);
    // The word is the victim's pid, or 0 while there is none: two CPUs may come here at once.
    asm.map_value(R1, state_map).mov_imm(R0, 0).compare_exchange(R1, R2);
    asm.jump_imm(When::Equal, R0, 0, lose).jump_reg(When::Equal, R0, R2, lose);
    asm.bind(keep);
    insert_global(&mut asm, kernel)?;
    asm.bind(lose).mov_imm(R0, 0).exit();
    asm.finish()
}

/// The slice that `slow` gives: whoever wakes up waits for so long behind each task before it.
const LONG_SLICE_NS: u64 = 500_000_000;
/// The slice of the workers that `unfair` does not favour: a twentieth of the others'.
const SHORT_SLICE_NS: u64 = SLICE_NS / 20;

/// enqueue(p, flags): the global queue, and a slice so long that everybody else waits.
pub fn enqueue_slow(kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    take_task(&mut asm);
    insert_for(&mut asm, kernel, DSQ_GLOBAL, LONG_SLICE_NS)?;
    asm.finish()
}

/// enqueue(p, flags): the global queue; workers with an odd pid get a twentieth of the slice.
pub fn enqueue_unfair(kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    let (whole, odd) = (asm.label(), asm.label());
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, whole)?;
    asm.load(Width::Word, R1, R7, kernel.task_offset("pid")?).and_imm(R1, 1).jump_imm(When::NotEqual, R1, 0, odd);
    asm.bind(whole);
    insert_global(&mut asm, kernel)?;
    asm.bind(odd);
    insert_for(&mut asm, kernel, DSQ_GLOBAL, SHORT_SLICE_NS)?;
    asm.finish()
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::{EXIT, INSERT, call, calls, sample};
    use super::*;

    #[test]
    fn fifo_inserts_once_and_returns() {
        let code = enqueue_fifo(&sample(), 5).unwrap();
        assert_eq!(calls(&code, INSERT), 1);
        assert_eq!(*code.last().unwrap(), EXIT);
    }

    #[test]
    fn drop_reads_the_name_before_it_loses_the_task() {
        let code = enqueue_all_but_one(&sample(), 5).unwrap();
        let call = code.iter().position(|insn| *insn == call(INSERT)).unwrap();
        // r1 = *(u8 *)(r7 + comm), comm at 3344; then "if r1 != 'k'" lands on the insert sequence (r1 = r7).
        assert_eq!(code[2], [0x71, 0x71, 0x10, 0x0d, 0, 0, 0, 0]);
        let to = 3 + 1 + code[3][2] as usize;
        assert_eq!(code[to], [0xbf, 0x71, 0, 0, 0, 0, 0, 0]);
        assert!(to < call);
        // The map's descriptor is in the code.
        assert!(code.contains(&[0x18, 0x21, 0, 0, 5, 0, 0, 0]));
        assert_eq!(*code.last().unwrap(), EXIT);
    }

    #[test]
    fn unfair_and_slow_differ_from_fifo_in_the_slice_alone() {
        let slices = |code: &[Insn]| {
            let slice = |insn: &Insn| i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]);
            code.iter().filter(|insn| insn[..2] == [0x18, 0x03]).map(slice).collect::<Vec<_>>()
        };
        assert_eq!(slices(&enqueue_fifo(&sample(), 5).unwrap()), [20_000_000]);
        assert_eq!(slices(&enqueue_slow(&sample(), 5).unwrap()), [500_000_000]);
        assert_eq!(slices(&enqueue_unfair(&sample(), 5).unwrap()), [20_000_000, 1_000_000]);
    }

    #[test]
    fn select_returns_its_second_argument() {
        assert_eq!(select_previous_cpu(&sample(), 0).unwrap(), [[0x79, 0x10, 8, 0, 0, 0, 0, 0], EXIT]);
    }
}
