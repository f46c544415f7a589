//! Scheduling of the caller and of other tasks: class, nice value, affinity, current CPU.
//!
//! Owns the calls; leaves which class to whom to the callers.
//! Invariant: a refusal is returned, never hidden.

use super::{check, check_long};
use crate::proto::cpuset::CpuSet;
use crate::proto::plan::SchedPolicy;
use std::io;

/// SCHED_EXT (include/uapi/linux/sched.h).
pub const SCHED_EXT: i32 = 7;
const SCHED_DEADLINE: i32 = 6;
/// SCHED_FLAG_RESET_ON_FORK (include/uapi/linux/sched.h): children start in the normal class.
const RESET_ON_FORK: u64 = 1;

/// struct sched_attr, first published size 48 (include/uapi/linux/sched/types.h).
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets class and nice value of a task (`0`: the caller) by sched_setattr(2).
pub fn set_policy(tid: i32, policy: &SchedPolicy, nice: i32, reset_on_fork: bool) -> io::Result<()> {
    let mut attr = SchedAttr { size: size_of::<SchedAttr>() as u32, nice, ..SchedAttr::default() };
    attr.flags = if reset_on_fork { RESET_ON_FORK } else { 0 };
    attr.policy = match policy {
        SchedPolicy::Normal => libc::SCHED_OTHER,
        SchedPolicy::Batch => libc::SCHED_BATCH,
        SchedPolicy::Idle => libc::SCHED_IDLE,
        SchedPolicy::Fifo { .. } => libc::SCHED_FIFO,
        SchedPolicy::RoundRobin { .. } => libc::SCHED_RR,
        SchedPolicy::Deadline { .. } => SCHED_DEADLINE,
        SchedPolicy::Ext => SCHED_EXT,
    } as u32;
    match policy {
        SchedPolicy::Fifo { priority } | SchedPolicy::RoundRobin { priority } => attr.priority = *priority,
        SchedPolicy::Deadline { runtime_ns, deadline_ns, period_ns } => {
            (attr.runtime, attr.deadline, attr.period) = (*runtime_ns, *deadline_ns, *period_ns);
        }
        _ => {}
    }
    // SAFETY: `attr` is valid for its stated size.
    check_long(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &attr, 0) })?;
    Ok(())
}

/// Puts a task (`0`: the caller) into SCHED_FIFO; what it forks starts in the normal class.
pub fn set_fifo(tid: i32, priority: u32) -> io::Result<()> {
    set_policy(tid, &SchedPolicy::Fifo { priority }, 0, true)
}

/// The class number of a task, as sched_getscheduler(2) gives it, without the reset-on-fork bit.
pub fn policy_number(tid: i32) -> io::Result<i32> {
    // SAFETY: sched_getscheduler takes no memory.
    // The raw call: musl's wrapper always answers ENOSYS.
    let raw = check_long(unsafe { libc::syscall(libc::SYS_sched_getscheduler, tid) })?;
    Ok(raw as i32 & !0x4000_0000)
}

/// Sets the nice value of a task (`0`: the caller).
pub fn set_nice(tid: i32, nice: i32) -> io::Result<()> {
    // SAFETY: setpriority takes numbers; `which` has another type under musl.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS as _, tid as libc::id_t, nice) })?;
    Ok(())
}

/// The nice value of a task (`0`: the caller).
pub fn nice(tid: i32) -> io::Result<i32> {
    // SAFETY: the raw call takes numbers; unlike the C function it answers 20 - nice (getpriority(2), C library differences).
    let raw = check_long(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) })?;
    Ok(20 - raw as i32)
}

/// Sets the calling thread's timer slack; 0 restores the default.
pub fn set_timer_slack(ns: u64) -> io::Result<()> {
    // SAFETY: PR_SET_TIMERSLACK takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, ns as libc::c_ulong) })?;
    Ok(())
}

/// Most CPUs a mask here can name.
const MASK_WORDS: usize = (crate::proto::cpuset::MAX_CPU as usize + 1) / 64;

/// A set of CPUs that needs no heap, for a forked child.
#[derive(Clone, Copy)]
pub struct CpuMask([u64; MASK_WORDS]);

impl CpuMask {
    pub fn of(cpus: impl IntoIterator<Item = u32>) -> Self {
        let mut mask = Self([0; MASK_WORDS]);
        for cpu in cpus.into_iter().filter(|cpu| (*cpu as usize) < MASK_WORDS * 64) {
            mask.0[cpu as usize / 64] |= 1 << (cpu % 64);
        }
        mask
    }
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
    /// The `index`-th CPU of the set.
    pub fn nth(&self, index: u32) -> Option<u32> {
        (0..MASK_WORDS as u32 * 64).filter(|cpu| self.contains(*cpu)).nth(index as usize)
    }
}

/// Restricts a task (`0`: the caller) to these CPUs.
pub fn set_affinity(tid: i32, cpus: &CpuSet) -> io::Result<()> {
    set_mask(tid, &CpuMask::of(cpus.iter()))
}

/// The same without allocating.
pub fn set_mask(tid: i32, mask: &CpuMask) -> io::Result<()> {
    let mask = &mask.0;
    // SAFETY: the mask is valid for its stated size.
    check_long(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(mask), mask.as_ptr()) })?;
    Ok(())
}

/// The CPUs a task may use, without allocating.
pub fn mask(tid: i32) -> io::Result<CpuMask> {
    let mut mask = [0u64; MASK_WORDS];
    // SAFETY: the mask is valid for its stated size.
    check_long(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(&mask), mask.as_mut_ptr()) })?;
    Ok(CpuMask(mask))
}

/// The CPUs a task may use.
pub fn affinity(tid: i32) -> io::Result<CpuSet> {
    let mask = mask(tid)?;
    Ok((0..MASK_WORDS as u32 * 64).filter(|cpu| mask.contains(*cpu)).collect())
}

/// The CPU the caller runs on now.
pub fn current_cpu() -> u32 {
    // SAFETY: sched_getcpu takes nothing.
    unsafe { libc::sched_getcpu() }.max(0) as u32
}

/// Gives the CPU away.
pub fn yield_now() {
    // SAFETY: sched_yield takes nothing.
    unsafe { libc::sched_yield() };
}

/// CPUs of this machine that are online.
pub fn online_cpus() -> u32 {
    // SAFETY: sysconf takes a number.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as u32
}

/// CPUs of this machine that the caller may use.
pub fn usable_cpus() -> u32 {
    affinity(0).map_or_else(|_| online_cpus(), |cpus| cpus.len() as u32)
}

/// Locks the caller's memory, present and future, so that it never waits for a page.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: mlockall takes flags only.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_reads_back_what_was_set() {
        std::thread::spawn(|| {
            let all = affinity(0).unwrap();
            let one: CpuSet = all.iter().take(1).collect();
            set_affinity(0, &one).unwrap();
            assert_eq!(affinity(0).unwrap(), one);
            assert_eq!(Some(current_cpu()), one.iter().next());
            let none = set_affinity(0, &[8000].into_iter().collect()).unwrap_err();
            assert_eq!(none.raw_os_error(), Some(libc::EINVAL));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn batch_class_reads_back() {
        std::thread::spawn(|| {
            set_policy(0, &SchedPolicy::Batch, 0, false).unwrap();
            assert_eq!(policy_number(0).unwrap(), libc::SCHED_BATCH);
        })
        .join()
        .unwrap();
    }
}
