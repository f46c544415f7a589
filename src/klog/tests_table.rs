//! One real line for every pattern, and lines that only look like one.
//!
//! Owns the examples; leaves grouping to tests_classify.
//! Invariant: no pattern is without an example, so a pattern that a line above it hides is found.

use super::line::body;
use super::{Class, PATTERNS, Severity, lookup};

/// Lines as kernels print them, and what each must be.
const LINES: &[(&str, Class, Severity)] = &[
    ("a.out[123]: segfault at 0 ip 0000000000401136 sp 00007ffd error 6 in a.out", Class::UserCrash, Severity::Note),
    ("traps: PANIC: double fault, error_code: 0x0", Class::Oops, Severity::Fail),
    ("traps: a.out[12] general protection fault ip:401 sp:7f error:0 in a.out", Class::UserCrash, Severity::Note),
    ("kworker/0:1 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0", Class::OutOfMemory, Severity::Note),
    ("swapper/0: page allocation failure: order:9, mode:0x40cc0", Class::OutOfMemory, Severity::Note),
    ("ODEBUG: Out of memory. ODEBUG disabled", Class::Other, Severity::Ignore),
    ("DEBUG: something", Class::Other, Severity::Ignore),
    ("Boot_DEBUG: something", Class::Other, Severity::Ignore),
    ("FAULT_INJECTION: forcing a failure.", Class::Other, Severity::Ignore),
    ("PCI: Fatal: No config space access function found", Class::Other, Severity::Ignore),
    ("INFO: lockdep is turned off.", Class::Other, Severity::Ignore),
    ("INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.4 msecs", Class::Other, Severity::Ignore),
    ("WARNING: kernel not compiled with CPU_SRSO", Class::Other, Severity::Ignore),
    ("WARNING: workqueue cpumask: online intersect > possible intersect", Class::Other, Severity::Ignore),
    ("Spectre V2 : Mitigation: Retpolines", Class::Other, Severity::Ignore),
    ("RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable", Class::Other, Severity::Ignore),
    ("SRSO: WARNING: See https://kernel.org", Class::Other, Severity::Ignore),
    ("Speculative Return Stack Overflow: Vulnerable", Class::Other, Severity::Ignore),
    ("XFS (vda): WARNING: experimental feature", Class::Other, Severity::Ignore),
    ("EXT4-fs warning (device vda): x", Class::Other, Severity::Ignore),
    ("vmalloc: allocation failure: 0 bytes", Class::Other, Severity::Ignore),
    ("BUG: MAX_LOCKDEP_ENTRIES too low!", Class::Other, Severity::Note),
    ("BUG: MAX_LOCK_DEPTH too low!", Class::Other, Severity::Note),
    ("BUG: MAX_STACK_TRACE_ENTRIES too low!", Class::Other, Severity::Note),
    (
        "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        Class::BootFailure,
        Severity::CannotJudge,
    ),
    (
        "Kernel panic - not syncing: No working init found.  Try passing init=",
        Class::BootFailure,
        Severity::CannotJudge,
    ),
    ("Kernel panic - not syncing: Requested init /x failed (error -2).", Class::BootFailure, Severity::CannotJudge),
    ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", Class::InitKilled, Severity::Harness),
    ("Kernel panic - not syncing: System is deadlocked on memory", Class::OutOfMemory, Severity::Harness),
    (
        "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled",
        Class::OutOfMemory,
        Severity::Harness,
    ),
    ("Failed to execute /init (error -8)", Class::BootFailure, Severity::CannotJudge),
    ("Initramfs unpacking failed: write error", Class::OutOfMemory, Severity::Harness),
    (
        "Initramfs unpacking failed: invalid magic at start of compressed archive",
        Class::BootFailure,
        Severity::CannotJudge,
    ),
    ("RAMDISK: incomplete write (1 != 2)", Class::BootFailure, Severity::CannotJudge),
    ("RAMDISK: Couldn't find valid RAM disk image starting at 0.", Class::BootFailure, Severity::CannotJudge),
    ("VFS: Cannot open root device \"\" or unknown-block(0,0): error -6", Class::BootFailure, Severity::CannotJudge),
    ("VFS: Unable to mount root fs on unknown-block(0,0)", Class::BootFailure, Severity::CannotJudge),
    ("oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=g0", Class::OutOfMemory, Severity::Note),
    ("Memory cgroup min protection 0kB -- low protection 0kB", Class::OutOfMemory, Severity::Note),
    ("Memory cgroup out of memory: Killed process 9 (x) total-vm:1kB", Class::OutOfMemory, Severity::Note),
    ("oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/", Class::OutOfMemory, Severity::Harness),
    ("Out of memory: Killed process 9 (x) total-vm:1kB", Class::OutOfMemory, Severity::Harness),
    ("Out of memory and no killable processes...", Class::OutOfMemory, Severity::Harness),
    ("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/1:1:40]", Class::SoftLockup, Severity::Fail),
    ("watchdog: Watchdog detected hard LOCKUP on cpu 1", Class::HardLockup, Severity::Fail),
    ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 0", Class::HardLockup, Severity::Fail),
    ("watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3", Class::HardLockup, Severity::Fail),
    ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", Class::RcuStall, Severity::Fail),
    ("rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... }", Class::RcuStall, Severity::Fail),
    ("INFO: rcu_tasks detected stalls on tasks:", Class::RcuStall, Severity::Fail),
    ("rcu: INFO: rcu_sched self-detected stall on CPU", Class::RcuStall, Severity::Fail),
    ("rcu: rcu_preempt kthread starved for 5002 jiffies! g1 f0x0", Class::RcuStall, Severity::Fail),
    ("INFO: task kworker/0:1:12 blocked for more than 120 seconds.", Class::HungTask, Severity::Fail),
    ("INFO: task dd:12 blocked in I/O wait for more than 120 seconds.", Class::HungTask, Severity::Fail),
    ("INFO: task dd:12 can't die for more than 143 seconds.", Class::HungTask, Severity::Fail),
    (
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 32s!",
        Class::WorkqueueLockup,
        Severity::Fail,
    ),
    ("BUG: KCSAN: data-race in a / b", Class::Sanitizer, Severity::Note),
    ("BUG: KASAN: slab-use-after-free in f+0x1/0x2", Class::Sanitizer, Severity::Fail),
    ("BUG: KMSAN: uninit-value in f", Class::Sanitizer, Severity::Fail),
    ("BUG: KFENCE: out-of-bounds read in f", Class::Sanitizer, Severity::Fail),
    ("UBSAN: array-index-out-of-bounds in kernel/sched/ext.c:1:2", Class::Sanitizer, Severity::Fail),
    ("BUG: memory leak", Class::Sanitizer, Severity::Fail),
    ("BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[12]", Class::Sanitizer, Severity::Fail),
    ("[ BUG: Invalid wait context ]", Class::Lockdep, Severity::Fail),
    ("WARNING: possible circular locking dependency detected", Class::Lockdep, Severity::Fail),
    ("[ INFO: possible recursive locking detected ]", Class::Lockdep, Severity::Fail),
    ("BUG: possible irq lock inversion dependency detected", Class::Lockdep, Severity::Fail),
    ("WARNING: inconsistent lock state", Class::Lockdep, Severity::Fail),
    ("[ INFO: inconsistent lock state ]", Class::Lockdep, Severity::Fail),
    ("WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", Class::Lockdep, Severity::Fail),
    ("[ INFO: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected ]", Class::Lockdep, Severity::Fail),
    ("WARNING: suspicious RCU usage", Class::Lockdep, Severity::Fail),
    ("[ INFO: suspicious RCU usage. ]", Class::Lockdep, Severity::Fail),
    ("WARNING: bad unlock balance detected!", Class::Lockdep, Severity::Fail),
    ("[ BUG: bad unlock balance detected! ]", Class::Lockdep, Severity::Fail),
    ("WARNING: held lock freed!", Class::Lockdep, Severity::Fail),
    ("[ BUG: held lock freed! ]", Class::Lockdep, Severity::Fail),
    ("WARNING: Nested lock was not taken", Class::Lockdep, Severity::Fail),
    ("WARNING: a.out/12 still has locks held!", Class::Lockdep, Severity::Fail),
    ("[ BUG: a.out/12 still has locks held! ]", Class::Lockdep, Severity::Fail),
    ("WARNING: lock held when returning to user space!", Class::Lockdep, Severity::Fail),
    ("[ BUG: lock held when returning to user space! ]", Class::Lockdep, Severity::Fail),
    ("BUG: scheduling while atomic: a.out/12/0x00000002", Class::Atomic, Severity::Fail),
    ("BUG: sleeping function called from invalid context at kernel/x.c:1", Class::Atomic, Severity::Fail),
    ("BUG: using smp_processor_id() in preemptible [00000000] code: a/1", Class::Atomic, Severity::Fail),
    ("BUG: assuming atomic context at kernel/x.c:1", Class::Atomic, Severity::Fail),
    ("Kernel panic - not syncing: Fatal exception", Class::Panic, Severity::Fail),
    ("BUG: unable to handle page fault for address: ffff", Class::Oops, Severity::Fail),
    ("BUG: kernel NULL pointer dereference, address: 0000000000000008", Class::Oops, Severity::Fail),
    ("Unable to handle kernel paging request at virtual address dead", Class::Oops, Severity::Fail),
    ("Oops: Oops: 0000 [#1] SMP NOPTI", Class::Oops, Severity::Fail),
    ("Oops - BUG: 00000000 [#1]", Class::Oops, Severity::Fail),
    ("Internal error: Oops: 0000000096000004 [#1] SMP", Class::Oops, Severity::Fail),
    ("general protection fault, probably for non-canonical address 0xdead: 0000 [#1]", Class::Oops, Severity::Fail),
    ("stack segment: 0000 [#1] SMP", Class::Oops, Severity::Fail),
    ("divide error: 0000 [#1] SMP", Class::Oops, Severity::Fail),
    ("invalid opcode: 0000 [#1] SMP", Class::Oops, Severity::Fail),
    ("int3: 0000 [#1] SMP", Class::Oops, Severity::Fail),
    ("PANIC: double fault, error_code: 0x0", Class::Oops, Severity::Fail),
    ("kernel BUG at kernel/sched/core.c:123!", Class::Bug, Severity::Fail),
    ("Kernel BUG at f [verbose debug info unavailable]", Class::Bug, Severity::Fail),
    ("BUG: spinlock lockup suspected on CPU#0, a/1", Class::Bug, Severity::Fail),
    ("WARNING: CPU: 0 PID: 1 at kernel/sched/ext.c:123 f+0x1/0x2", Class::Warning, Severity::Fail),
    ("WARNING: kernel/sched/ext.c:123 at f+0x1/0x2, CPU#0: a/1", Class::Warning, Severity::Fail),
    ("WARNING: ./include/linux/rq.h:12 at f+0x1/0x2, CPU#0: a/1", Class::Warning, Severity::Fail),
    ("WARNING: something odd", Class::Warning, Severity::Note),
    ("clocksource: Clocksource 'tsc' found unstable", Class::Clock, Severity::HostNoise),
    ("tsc: Marking TSC unstable due to clocksource watchdog", Class::Clock, Severity::HostNoise),
    ("Marking clocksource 'tsc' as unstable because", Class::Clock, Severity::HostNoise),
    ("hrtimer: interrupt took 123456 ns", Class::Clock, Severity::HostNoise),
    ("sched: RT throttling activated", Class::Other, Severity::Note),
    ("sched: DL replenish lagged too much", Class::Other, Severity::Note),
];

#[test]
fn every_example_is_what_it_is() {
    for (line, class, severity) in LINES {
        let pattern = lookup(body(line)).unwrap_or_else(|| panic!("unknown: {line}"));
        assert_eq!((pattern.class, pattern.severity), (*class, *severity), "{line} by {}", pattern.text);
    }
}

#[test]
fn every_pattern_has_an_example_that_reaches_it() {
    for pattern in PATTERNS {
        let reached = LINES.iter().any(|(line, ..)| lookup(body(line)).is_some_and(|hit| std::ptr::eq(hit, pattern)));
        assert!(reached, "no example reaches '{}'", pattern.text);
        assert!(!pattern.meaning.is_empty());
    }
}

#[test]
fn text_in_the_middle_is_no_match() {
    for line in [
        "systemd[1]: BUG: soft lockup - CPU#1 stuck for 22s!",
        "my program says Kernel panic - not syncing: no",
        "a WARNING: CPU: 0 PID: 1 at x.c:1",
        " BUG: indented",
        "bug: lower case",
        "Registering Oops: handler",
        "audit: INFO: task x:1 blocked for more than 120 seconds",
        "",
    ] {
        assert!(lookup(body(line)).is_none(), "{line}");
    }
}

#[test]
fn program_name_cannot_pretend_to_be_a_crash() {
    for line in ["BUG: x[12]: segfault at 0 ip 0", "Oops: [1]: segfault at 0", "traps: BUG: a[9] trap int3 ip:0"] {
        assert_eq!(lookup(body(line)).unwrap().class, Class::UserCrash, "{line}");
    }
}
