//! The BPF programs that lose tasks of one kind, each as a real scheduler might: its bug is in one path only.
//!
//! Owns whom each of them loses; leaves the parts shared by all programs to `programs`, when faults are due to `faulty`.
//! Invariant: only workers of ours are lost, and all tasks of other kinds are scheduled as `fifo` does.

use super::faulty::{FAULT_AFTER_NS, KTIME_GET_NS, until_due};
use super::kernel::Kernel;
use super::programs::{ARG_1, insert_global, take_task, unless_worker};
use crate::scx::asm::{Asm, Insn, Label, Reg::*, When, Width};

type Built = Result<Vec<Insn>, String>;

/// SCHED_BATCH and SCHED_IDLE (include/uapi/linux/sched.h).
const BATCH: i32 = 3;
const IDLE: i32 = 5;
/// SCX_ENQ_WAKEUP (enum scx_enq_flags): the task becomes runnable.
const ENQ_WAKEUP: i32 = 1;
/// How many workers `drop-crowd` has room for: more than two cgroups of two, fewer than any crowd of the catalogue.
const ROOM: i32 = 6;
/// What a task that is to be lost (for `drop-crowd`: its number) has in `scx.dsq_vtime`, which a scheduler without a priority queue leaves alone.
const MARK: i32 = 0x6b74;
const MARKED: &str = "scx.dsq_vtime";

/// An enqueue that is fifo's, but loses the workers for which `whom` comes to `lose`; what comes to its end is kept.
fn enqueue_all_but(kernel: &Kernel, whom: impl FnOnce(&mut Asm, Label, Label) -> Result<(), String>) -> Built {
    let mut asm = Asm::new();
    let (keep, lose) = (asm.label(), asm.label());
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, keep)?;
    whom(&mut asm, keep, lose)?;
    asm.bind(keep);
    insert_global(&mut asm, kernel)?;
    asm.bind(lose).mov_imm(R0, 0).exit();
    asm.finish()
}

/// enqueue(p, flags): loses whoever may not run on every CPU, once all are at work: one that is lost while it is being made
/// may hold a lock of the cgroups, and PID 1 would wait for it.
pub fn enqueue_unmasked(kernel: &Kernel, state_map: i32) -> Built {
    let (allowed, count) = (kernel.task_offset("nr_cpus_allowed")?, kernel.kfunc(&["scx_bpf_nr_cpu_ids"])?);
    enqueue_all_but(kernel, |asm, keep, lose| {
        until_due(asm, state_map, keep);
        asm.call_kfunc(count).load(Width::Word, R8, R7, allowed).jump_reg(When::Above, R0, R8, lose);
        Ok(())
    })
}

/// enqueue(p, flags): loses batch and idle tasks, once all are at work.
pub fn enqueue_foreground(kernel: &Kernel, state_map: i32) -> Built {
    let policy = kernel.task_offset("policy")?;
    enqueue_all_but(kernel, |asm, keep, lose| {
        until_due(asm, state_map, keep);
        asm.load(Width::Word, R8, R7, policy);
        asm.jump_imm(When::Equal, R8, BATCH, lose).jump_imm(When::Equal, R8, IDLE, lose);
        Ok(())
    })
}

/// enqueue(p, flags): has room for the workers that come first; each keeps its number. One that is too many is lost when it
/// is 1 s old: while it is being made it may hold what the kernel needs (an RCU grace period, a lock of the cgroups).
pub fn enqueue_first_few(kernel: &Kernel, state_map: i32) -> Built {
    let (number, started) = (kernel.task_offset(MARKED)?, kernel.task_offset("start_time")?);
    enqueue_all_but(kernel, |asm, keep, lose| {
        let known = asm.label();
        asm.load(Width::Double, R8, R7, number).jump_imm(When::NotEqual, R8, 0, known);
        asm.map_value(R1, state_map).mov_imm(R8, 1).fetch_add(R1, R8).add_imm(R8, 1);
        asm.store(Width::Double, R7, number, R8);
        asm.bind(known).jump_imm(When::Below, R8, ROOM + 1, keep);
        asm.call_helper(KTIME_GET_NS).load(Width::Double, R1, R7, started).sub(R0, R1);
        asm.jump_imm(When::Above, R0, FAULT_AFTER_NS, lose);
        Ok(())
    })
}

/// enqueue(p, flags): loses workers that were forked later than the others.
pub fn enqueue_early(kernel: &Kernel, state_map: i32) -> Built {
    let started = kernel.task_offset("start_time")?;
    enqueue_all_but(kernel, |asm, keep, lose| {
        asm.load(Width::Double, R8, R7, started).map_value(R1, state_map).mov_imm(R0, 0).compare_exchange(R1, R8);
        asm.jump_imm(When::Equal, R0, 0, keep).add_imm(R0, FAULT_AFTER_NS).jump_reg(When::Above, R8, R0, lose);
        Ok(())
    })
}

/// enqueue(p, flags): loses workers that wake up.
pub fn enqueue_awake(kernel: &Kernel, state_map: i32) -> Built {
    enqueue_all_but(kernel, |asm, keep, lose| {
        until_due(asm, state_map, keep);
        asm.load(Width::Double, R8, R6, ARG_1).and_imm(R8, ENQ_WAKEUP).jump_imm(When::NotEqual, R8, 0, lose);
        Ok(())
    })
}

/// enqueue(p, flags): loses workers that another program has marked.
pub fn enqueue_unmarked(kernel: &Kernel, _state_map: i32) -> Built {
    let mark = kernel.task_offset(MARKED)?;
    enqueue_all_but(kernel, |asm, _, lose| {
        asm.load(Width::Double, R8, R7, mark).jump_imm(When::Equal, R8, MARK, lose);
        Ok(())
    })
}

/// yield(from, to), set_cpumask(p, mask), cgroup_move(p, from, to): marks the worker it is about.
pub fn mark(kernel: &Kernel, state_map: i32) -> Built {
    mark_where(kernel, state_map, |_, _| Ok(()))
}

/// stopping(p, runnable): marks a worker that has to leave the CPU with a part of its slice unused.
pub fn mark_preempted(kernel: &Kernel, state_map: i32) -> Built {
    let slice = kernel.task_offset("scx.slice")?;
    mark_where(kernel, state_map, |asm, out| {
        // A bool is the lowest bit of its argument; what stands above it means nothing.
        asm.load(Width::Double, R8, R6, ARG_1).and_imm(R8, 1).jump_imm(When::Equal, R8, 0, out);
        asm.load(Width::Double, R8, R7, slice).jump_imm(When::Equal, R8, 0, out);
        Ok(())
    })
}

fn mark_where(kernel: &Kernel, state_map: i32, whom: impl FnOnce(&mut Asm, Label) -> Result<(), String>) -> Built {
    let mark = kernel.task_offset(MARKED)?;
    let mut asm = Asm::new();
    let out = asm.label();
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, out)?;
    until_due(&mut asm, state_map, out);
    whom(&mut asm, out)?;
    asm.mov_imm(R1, MARK).store(Width::Double, R7, mark, R1);
    asm.bind(out).mov_imm(R0, 0).exit();
    asm.finish()
}

/// exit_task(p, args): the pid of the first worker that ended goes into the shared word.
pub fn note_end(kernel: &Kernel, state_map: i32) -> Built {
    let pid = kernel.task_offset("pid")?;
    let mut asm = Asm::new();
    let out = asm.label();
    take_task(&mut asm);
    unless_worker(&mut asm, kernel, out)?;
    asm.load(Width::Word, R2, R7, pid).map_value(R1, state_map).mov_imm(R0, 0).compare_exchange(R1, R2);
    asm.bind(out).mov_imm(R0, 0).exit();
    asm.finish()
}

/// enqueue(p, flags): loses every worker once one has ended.
pub fn enqueue_until_an_end(kernel: &Kernel, state_map: i32) -> Built {
    enqueue_all_but(kernel, |asm, _, lose| {
        asm.map_value(R1, state_map).load(Width::Double, R8, R1, 0).jump_imm(When::NotEqual, R8, 0, lose);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::{EXIT, INSERT, calls, sample};
    use super::*;

    #[test]
    fn each_inserts_at_one_place_and_has_one_way_past_it() {
        let builds: [fn(&Kernel, i32) -> Built; 7] = [
            enqueue_unmasked,
            enqueue_foreground,
            enqueue_first_few,
            enqueue_early,
            enqueue_awake,
            enqueue_unmarked,
            enqueue_until_an_end,
        ];
        for (index, build) in builds.into_iter().enumerate() {
            let code = build(&sample(), 5).unwrap();
            assert_eq!(calls(&code, INSERT), 1, "{index}");
            assert_eq!(code.iter().filter(|insn| **insn == EXIT).count(), 2, "{index}");
        }
    }

    #[test]
    fn markers_write_the_mark_where_enqueue_reads_it() {
        for build in [mark, mark_preempted] {
            let code = build(&sample(), 5).unwrap();
            // *(u64 *)(r7 + 908) = r1, which is the mark.
            assert!(code.contains(&[0x7b, 0x17, 0x8c, 0x03, 0, 0, 0, 0]), "{code:?}");
            assert!(code.contains(&[0xb7, 0x01, 0, 0, 0x74, 0x6b, 0, 0]), "{code:?}");
        }
        let code = enqueue_unmarked(&sample(), 5).unwrap();
        assert!(code.contains(&[0x79, 0x78, 0x8c, 0x03, 0, 0, 0, 0]), "{code:?}");
    }

    #[test]
    fn kernel_without_the_member_is_told() {
        let mut kernel = sample();
        kernel.forget("start_time");
        assert!(enqueue_early(&kernel, 5).unwrap_err().contains("start_time"));
    }
}
