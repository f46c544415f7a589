//! The table: every kernel message that is judged or deliberately not, and what it means.
//!
//! Owns the patterns and their order; leaves grouping lines to `classify`, sched_ext's own lines to `sched_ext`.
//! Invariant: the first match wins, so what is narrower or harmless stands above what is general.

use super::Class::{self, *};
use super::Severity::{self, *};

/// One kind of line.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Matched from the start of the message; `*` stands for any text, and anything may follow.
    pub text: &'static str,
    pub class: Class,
    pub severity: Severity,
    pub meaning: &'static str,
}

const fn row(text: &'static str, class: Class, severity: Severity, meaning: &'static str) -> Pattern {
    Pattern { text, class, severity, meaning }
}

const HARMLESS: &str = "known and harmless in a test VM";
const TOOL_LIMIT: &str = "a debugging aid of the kernel reached its own limit";
const USER_CRASH: &str = "a user program crashed";
const EXCEPTION: &str = "the kernel took an exception it cannot handle";
const LOCKDEP: &str = "lockdep found a locking error (and turned itself off)";
const MEMORY: &str = "the guest ran out of memory";
const NO_INIT: &str =
    "the kernel could not run /init (CONFIG_BLK_DEV_INITRD, CONFIG_BINFMT_ELF, the initramfs compression)";
const CLOCK: &str = "the guest's clocks were disturbed by the host";
const SOFTWARE: &str = "the kernel's own consistency check failed";

/// The patterns, first match wins.
pub static PATTERNS: &[Pattern] = &[
    // Lines that begin with a program's name, which its author chooses: before everything they could pretend to be.
    row("*[*]: segfault at ", UserCrash, Note, USER_CRASH),
    row("traps: PANIC: double fault", Oops, Fail, EXCEPTION),
    row("traps: *[*] ", UserCrash, Note, USER_CRASH),
    row("* invoked oom-killer: ", OutOfMemory, Note, "the OOM killer starts; the constraint follows"),
    row("*: page allocation failure: ", OutOfMemory, Note, "an allocation failed; the caller may cope"),
    // Known and harmless.
    row("ODEBUG:", Other, Ignore, HARMLESS),
    row("DEBUG:", Other, Ignore, HARMLESS),
    row("Boot_DEBUG:", Other, Ignore, HARMLESS),
    row("FAULT_INJECTION", Other, Ignore, HARMLESS),
    row("PCI: Fatal: No config space access function found", Other, Ignore, "the VM has no PCI bus"),
    row("INFO: lockdep is turned off", Other, Ignore, HARMLESS),
    row("INFO: NMI handler *took too long", Other, Ignore, HARMLESS),
    row("WARNING: kernel not compiled with", Other, Ignore, "a mitigation this kernel was built without"),
    row("WARNING: workqueue cpumask: online intersect", Other, Ignore, HARMLESS),
    row("Spectre", Other, Ignore, "a CPU mitigation notice"),
    row("RETBleed", Other, Ignore, "a CPU mitigation notice"),
    row("SRSO", Other, Ignore, "a CPU mitigation notice"),
    row("Speculative Return Stack Overflow", Other, Ignore, "a CPU mitigation notice"),
    row("XFS (*): WARNING", Other, Ignore, HARMLESS),
    row("EXT4-fs", Other, Ignore, HARMLESS),
    row("vmalloc: allocation failure", Other, Ignore, HARMLESS),
    row("BUG: MAX_LOCKDEP_", Other, Note, TOOL_LIMIT),
    row("BUG: MAX_LOCK_DEPTH too low", Other, Note, TOOL_LIMIT),
    row("BUG: MAX_STACK_TRACE_ENTRIES too low", Other, Note, TOOL_LIMIT),
    // The kernel cannot host the test, or ktstr gave it too little.
    row("Kernel panic - not syncing: VFS: Unable to mount root fs", BootFailure, CannotJudge, NO_INIT),
    row("Kernel panic - not syncing: No working init found", BootFailure, CannotJudge, NO_INIT),
    row("Kernel panic - not syncing: Requested init ", BootFailure, CannotJudge, NO_INIT),
    row("Kernel panic - not syncing: Attempted to kill init", InitKilled, Harness, "PID 1 died"),
    row("Kernel panic - not syncing: System is deadlocked on memory", OutOfMemory, Harness, MEMORY),
    row("Kernel panic - not syncing: Out of memory", OutOfMemory, Harness, MEMORY),
    row("Failed to execute /init", BootFailure, CannotJudge, NO_INIT),
    row("Initramfs unpacking failed: write error", OutOfMemory, Harness, MEMORY),
    row("Initramfs unpacking failed", BootFailure, CannotJudge, NO_INIT),
    row("RAMDISK: incomplete write", BootFailure, CannotJudge, NO_INIT),
    row("RAMDISK: Couldn't find valid RAM disk image", BootFailure, CannotJudge, NO_INIT),
    row("VFS: Cannot open root device", BootFailure, CannotJudge, NO_INIT),
    row("VFS: Unable to mount root fs", BootFailure, CannotJudge, NO_INIT),
    row("oom-kill:constraint=CONSTRAINT_MEMCG", OutOfMemory, Note, "a cgroup reached its own memory limit"),
    // Under `quiet`, all that a failed allocation shows of itself (mem_cgroup_show_protected_memory, mm/memcontrol.c).
    row("Memory cgroup min protection", OutOfMemory, Note, "an allocation failed; the caller may cope"),
    row("Memory cgroup out of memory:", OutOfMemory, Note, "a cgroup reached its own memory limit"),
    row("oom-kill:", OutOfMemory, Harness, MEMORY),
    row("Out of memory:", OutOfMemory, Harness, MEMORY),
    row("Out of memory and no killable processes", OutOfMemory, Harness, MEMORY),
    // Stalls.
    row("BUG: soft lockup - CPU#* stuck for ", SoftLockup, Fail, "a CPU stayed in the kernel without scheduling"),
    row("Watchdog detected hard LOCKUP on cpu", HardLockup, Fail, "a CPU took no interrupts"),
    row("CPU*: Watchdog detected hard LOCKUP on cpu", HardLockup, Fail, "a CPU took no interrupts"),
    row("INFO: rcu_* detected* stall", RcuStall, Fail, "a CPU or task held up RCU's grace period"),
    row("INFO: rcu_*self-detected stall", RcuStall, Fail, "a CPU or task held up RCU's grace period"),
    row("rcu_* kthread starved for ", RcuStall, Fail, "RCU's own thread was not scheduled"),
    row("INFO: task *:* blocked *for more than ", HungTask, Fail, "a task slept uninterruptibly for too long"),
    row("INFO: task *:* can't die for more than ", HungTask, Fail, "a killed task could not leave"),
    row("BUG: workqueue lockup", WorkqueueLockup, Fail, "a kernel worker pool made no progress"),
    // Sanitizers and locking.
    row("BUG: KCSAN:", Sanitizer, Note, "KCSAN saw a data race; many are benign, so it is shown and not judged"),
    row("BUG: KASAN:", Sanitizer, Fail, "KASAN found a memory error"),
    row("BUG: KMSAN:", Sanitizer, Fail, "KMSAN found a use of uninitialised memory"),
    row("BUG: KFENCE:", Sanitizer, Fail, "KFENCE found a memory error"),
    row("UBSAN:", Sanitizer, Fail, "UBSAN found undefined behaviour"),
    row("BUG: memory leak", Sanitizer, Fail, "kmemleak found a leak"),
    row("BUG: workqueue leaked", Sanitizer, Fail, "a work item left a lock or atomic context behind"),
    row("BUG: Invalid wait context", Lockdep, Fail, LOCKDEP),
    row("WARNING: possible ", Lockdep, Fail, LOCKDEP),
    row("INFO: possible ", Lockdep, Fail, LOCKDEP),
    row("BUG: possible ", Lockdep, Fail, LOCKDEP),
    row("WARNING: inconsistent lock state", Lockdep, Fail, LOCKDEP),
    row("INFO: inconsistent lock state", Lockdep, Fail, LOCKDEP),
    row("WARNING: *-safe -> *-unsafe lock order", Lockdep, Fail, LOCKDEP),
    row("INFO: *-safe -> *-unsafe lock order", Lockdep, Fail, LOCKDEP),
    row("WARNING: suspicious RCU usage", Lockdep, Fail, LOCKDEP),
    row("INFO: suspicious RCU usage", Lockdep, Fail, LOCKDEP),
    row("WARNING: bad unlock balance", Lockdep, Fail, LOCKDEP),
    row("BUG: bad unlock balance", Lockdep, Fail, LOCKDEP),
    row("WARNING: held lock freed", Lockdep, Fail, LOCKDEP),
    row("BUG: held lock freed", Lockdep, Fail, LOCKDEP),
    row("WARNING: Nested lock was not taken", Lockdep, Fail, LOCKDEP),
    row("WARNING: *still has locks held", Lockdep, Fail, LOCKDEP),
    row("BUG: *still has locks held", Lockdep, Fail, LOCKDEP),
    row("WARNING: lock held when returning to user space", Lockdep, Fail, LOCKDEP),
    row("BUG: lock held when returning to user space", Lockdep, Fail, LOCKDEP),
    row("BUG: scheduling while atomic", Atomic, Fail, "the kernel slept where it must not"),
    row("BUG: sleeping function called from invalid context", Atomic, Fail, "the kernel slept where it must not"),
    row("BUG: using *in preemptible", Atomic, Fail, "per-CPU data was used while preemptible"),
    row("BUG: assuming atomic context", Atomic, Fail, "a context check of the kernel failed"),
    // Crashes.
    row("Kernel panic - not syncing", Panic, Fail, "the kernel gave up"),
    row("BUG: unable to handle", Oops, Fail, EXCEPTION),
    row("BUG: kernel NULL pointer dereference", Oops, Fail, EXCEPTION),
    row("Unable to handle kernel", Oops, Fail, EXCEPTION),
    row("Oops: ", Oops, Fail, EXCEPTION),
    row("Oops - ", Oops, Fail, EXCEPTION),
    row("Internal error: ", Oops, Fail, EXCEPTION),
    row("general protection fault", Oops, Fail, EXCEPTION),
    row("stack segment: ", Oops, Fail, EXCEPTION),
    row("divide error: ", Oops, Fail, EXCEPTION),
    row("invalid opcode: ", Oops, Fail, EXCEPTION),
    row("int3: ", Oops, Fail, EXCEPTION),
    row("PANIC: double fault", Oops, Fail, EXCEPTION),
    row("kernel BUG at ", Bug, Fail, SOFTWARE),
    row("Kernel BUG at ", Bug, Fail, SOFTWARE),
    row("BUG: ", Bug, Fail, SOFTWARE),
    // Until 6.18 `WARNING: CPU: 0 PID: 1 at FILE:LINE`, later `WARNING: FILE:LINE at FUNCTION`.
    row("WARNING: CPU: * PID: * at ", Warning, Fail, SOFTWARE),
    row("WARNING: *.c:* at ", Warning, Fail, SOFTWARE),
    row("WARNING: *.h:* at ", Warning, Fail, SOFTWARE),
    row("WARNING: ", Warning, Note, "a warning without a place in the source"),
    // Notes, and the host's noise.
    row("clocksource: *unstable", Clock, HostNoise, CLOCK),
    row("tsc: Marking TSC unstable", Clock, HostNoise, CLOCK),
    row("Marking clocksource *unstable", Clock, HostNoise, CLOCK),
    row("hrtimer: interrupt took ", Clock, HostNoise, CLOCK),
    row("sched: RT throttling activated", Other, Note, "real-time tasks used up their share of a CPU"),
    row("sched: DL replenish lagged too much", Other, Note, "a deadline task was replenished late"),
];

/// What a message (already stripped of its decoration) is; none: unknown.
pub fn lookup(body: &str) -> Option<&'static Pattern> {
    PATTERNS.iter().find(|pattern| matches(pattern.text, body))
}

/// Whether `pattern` matches somewhere in `text`.
pub(super) fn contains(text: &str, pattern: &str) -> bool {
    matches(&format!("*{pattern}"), text)
}

/// Whether `text` begins with `pattern`, where `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}
