//! The rows of the types whose subject is processes, signals and groups, and of those made of others.
//!
//! Owns their names, texts and defaults; leaves their loops to kinds/process, signal, phases and custom.
//! Invariant: the order of sample kinds here is the order in which the loops record them.

use super::TypeInfo;
use crate::proto::work::{Phase, SampleKind, WorkType};
use crate::units::NS_PER_MS;

pub static ROWS: [TypeInfo; 6] = [
    TypeInfo {
        name: "Sequence",
        cli_name: "sequence",
        group: "1",
        sample_kinds: &[SampleKind::Timer, SampleKind::Yield, SampleKind::Io],
        description: "phases in order: spin, sleep, yield and io, each for a time",
        method: "Each worker goes through its phases again and again: `spin` for a time, `sleep` once for a time, `yield` \
                 (sched_yield in a loop for a time), `io` (O_SYNC writes of 4 KiB for a time). So a shape of load can be \
                 written down that none of the other types has. Each phase gives samples of its own kind: oversleep as \
                 `timer`, each sched_yield as `yield`, each write as `io`. Written as sequence(spin 2ms, sleep 1ms).",
        default: WorkType::Sequence { first: Phase::Spin { ns: NS_PER_MS }, rest: Vec::new() },
    },
    TypeInfo {
        name: "ForkExit",
        cli_name: "fork",
        group: "1",
        sample_kinds: &[SampleKind::Block],
        description: "forks a child that exits at once, and waits for it",
        method: "Each iteration is a fork, a child that leaves immediately, and a waitpid. The scheduler initializes, places, \
                 runs and retires a task every time, which is where many schedulers keep state that leaks. A `block` sample is \
                 the time from just before the wait to its return: the child's placement, its first run, its exit and the \
                 parent's wake-up together. A worker that is a thread cannot do this, and is refused.",
        default: WorkType::ForkExit,
    },
    TypeInfo {
        name: "CgroupChurn",
        cli_name: "cgroup-churn",
        group: "1",
        sample_kinds: &[],
        description: "moves itself from one cgroup to the next, all the time",
        method: "Each worker makes `groups` cgroups beside its own (children of the same parent, so with the same limits), \
                 moves itself to the next one every `cycle` and spins meanwhile; at the end it moves back and removes them. The \
                 scheduler sees a running task change its group, with its weight and its quota. There are no samples: units, \
                 migrations and run delay are the result. A worker that is a thread is refused.",
        default: WorkType::CgroupChurn { groups: 2, cycle_ns: 100 * NS_PER_MS },
    },
    TypeInfo {
        name: "SignalStorm",
        cli_name: "signal-storm",
        group: "2",
        sample_kinds: &[],
        description: "pairs that send each other signals while they work",
        method: "Each of two workers sends its partner `signals_per_iter` signals with tgkill, then spins `work_iters` steps. A \
                 signal kicks its target out of user mode, by an interrupt to another CPU where it runs there, so wake-ups and \
                 reschedules come in storms. The signal is not the one that ends a run. There are no samples; `work_units` \
                 counts spinning steps and signals sent.",
        default: WorkType::SignalStorm { signals_per_iter: 16, work_iters: 1024 },
    },
    TypeInfo {
        name: "PreemptStorm",
        cli_name: "preempt-storm",
        group: "cfs_workers + 1",
        sample_kinds: &[SampleKind::Timer],
        description: "a real-time task that wakes often preempts fair spinners",
        method: "Position 0 is SCHED_FIFO 1: it spins `rt_burst_iters` steps and sleeps for `rt_sleep`; the others spin as ordinary \
                 tasks. Every wake-up of the real-time task preempts somebody, hundreds of times a second, and the scheduler \
                 has to take the preempted task back well. A `timer` sample is the oversleep of position 0. What the others \
                 lose shows in their shares, run delay and gaps.",
        default: WorkType::PreemptStorm { cfs_workers: 2, rt_burst_iters: 1024, rt_sleep_ns: NS_PER_MS },
    },
    TypeInfo {
        name: "Custom",
        cli_name: "custom",
        group: "1",
        sample_kinds: &[SampleKind::User],
        description: "a function of your own, registered in a binary that links ktstr as a library",
        method: "The worker calls a function that was registered under `name` before the workers were spawned, in the same \
                 binary on host and in guest. It counts its own units and iterations, offers its own samples (`user`) and has \
                 to look at the stop word; checkpoints, gaps, run delay and migrations are measured as for every other \
                 type. The command line cannot name one: there is no function in a text.",
        default: WorkType::Custom { name: String::new() },
    },
];
