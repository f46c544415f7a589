//! The BPF programs that keep a CPU from everything else, so that the kernel's own detectors speak.
//!
//! Owns the loop and how long it lasts; leaves the parts shared with honest programs to `programs`.
//! Invariant: each loop ends by the clock, so that a kernel which only complains can go on, and the run with it.

use super::faulty::{KTIME_GET_NS, fifo_until_due};
use super::kernel::Kernel;
use crate::scx::asm::{Asm, Insn, Reg::*, When};

/// Longer than the detectors need that a fault's row sets to 1 to 3 s; a soft lockup takes twice its threshold.
const SPIN_NS: u64 = 9_000_000_000;
/// BPF_MAX_LOOPS (include/linux/bpf_verifier.h): the most rounds that the kernel's number iterator makes.
const ROUNDS_MOST: i32 = 8 << 20;
/// Rounds between two looks at the clock: so many that `ROUNDS_MOST` looks last for longer than SPIN_NS on any machine.
const ROUNDS_PER_LOOK: i32 = 4096;
/// Longer than a clock may stand (`clock_stall`), shorter than a worker may (`max_gap`) and than the kernel's own detectors bear.
const STOP_NS: u64 = 1_500_000_000;
/// Where the two iterators lie on the stack; a `struct bpf_iter_num` has 8 bytes.
const OUTER: i32 = -16;
const INNER: i32 = -24;
/// What interrupts were before they were switched off.
const FLAGS: i32 = -32;

/// Counts until the clock has gone on by so much. Uses up r8 and r9.
fn spin(asm: &mut Asm, kernel: &Kernel, for_ns: u64) -> Result<(), String> {
    let (new, next, destroy) = (
        kernel.kfunc(&["bpf_iter_num_new"])?,
        kernel.kfunc(&["bpf_iter_num_next"])?,
        kernel.kfunc(&["bpf_iter_num_destroy"])?,
    );
    let (look, count, counted, over) = (asm.label(), asm.label(), asm.label(), asm.label());
    asm.call_helper(KTIME_GET_NS).mov(R8, R0).load_imm64(R9, for_ns);
    asm.mov(R1, R10).add_imm(R1, OUTER).mov_imm(R2, 0).mov_imm(R3, ROUNDS_MOST).call_kfunc(new);
    asm.bind(look).mov(R1, R10).add_imm(R1, OUTER).call_kfunc(next).jump_imm(When::Equal, R0, 0, over);
    asm.mov(R1, R10).add_imm(R1, INNER).mov_imm(R2, 0).mov_imm(R3, ROUNDS_PER_LOOK).call_kfunc(new);
    asm.bind(count).mov(R1, R10).add_imm(R1, INNER).call_kfunc(next);
    asm.jump_imm(When::Equal, R0, 0, counted).jump(count);
    asm.bind(counted).mov(R1, R10).add_imm(R1, INNER).call_kfunc(destroy);
    asm.call_helper(KTIME_GET_NS).sub(R0, R8).jump_reg(When::Below, R0, R9, look);
    asm.bind(over).mov(R1, R10).add_imm(R1, OUTER).call_kfunc(destroy);
    Ok(())
}

/// init(): lets nothing else run on its CPU, with interrupts on, and then agrees.
pub fn init_spins(kernel: &Kernel, _state_map: i32) -> Result<Vec<Insn>, String> {
    let (off, on) = (kernel.kfunc(&["bpf_preempt_disable"])?, kernel.kfunc(&["bpf_preempt_enable"])?);
    let mut asm = Asm::new();
    asm.call_kfunc(off);
    spin(&mut asm, kernel, SPIN_NS)?;
    asm.call_kfunc(on).mov_imm(R0, 0).exit();
    asm.finish()
}

/// enqueue(p, flags): does not return for a long time, with the runqueue's lock held and interrupts off.
pub fn enqueue_spins(kernel: &Kernel, state_map: i32) -> Result<Vec<Insn>, String> {
    fifo_until_due(kernel, state_map, |asm| spin(asm, kernel, SPIN_NS))
}

/// Not a scheduler's: keeps the CPU that it is run on from everything, interrupts too, with no lock held.
pub fn stops_cpu(kernel: &Kernel) -> Result<Vec<Insn>, String> {
    let (save, restore) = (kernel.kfunc(&["bpf_local_irq_save"])?, kernel.kfunc(&["bpf_local_irq_restore"])?);
    let mut asm = Asm::new();
    asm.mov(R1, R10).add_imm(R1, FLAGS).call_kfunc(save);
    spin(&mut asm, kernel, STOP_NS)?;
    asm.mov(R1, R10).add_imm(R1, FLAGS).call_kfunc(restore).mov_imm(R0, 0).exit();
    asm.finish()
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::{call, calls, sample};
    use super::*;

    #[test]
    fn every_iterator_is_made_once_and_destroyed_once() {
        for build in [init_spins as fn(&Kernel, i32) -> _, enqueue_spins] {
            let code: Vec<Insn> = build(&sample(), 5).unwrap();
            assert_eq!((calls(&code, 82), calls(&code, 83), calls(&code, 84)), (2, 2, 2));
        }
    }

    #[test]
    fn interrupts_are_off_around_the_loop_and_no_lock_is_asked_for() {
        let code = stops_cpu(&sample()).unwrap();
        assert_eq!((code[2], code[code.len() - 3]), (call(87), call(88)));
        assert_eq!((calls(&code, 87), calls(&code, 88), calls(&code, 82), calls(&code, 84)), (1, 1, 2, 2));
    }

    #[test]
    fn preemption_is_off_before_the_loop_and_on_after_it() {
        let code = init_spins(&sample(), 0).unwrap();
        assert_eq!(code[0], call(85));
        assert_eq!(code[code.len() - 3], call(86));
        assert_eq!((calls(&code, 85), calls(&code, 86)), (1, 1));
    }
}
