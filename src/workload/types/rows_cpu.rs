//! The rows of the types whose subject is the CPU and the runqueue.
//!
//! Owns their names, texts and defaults; leaves their loops to kinds/cpu, kinds/sched and kinds/alu.
//! Invariant: the order of sample kinds here is the order in which the loops record them.

use super::TypeInfo;
use crate::proto::work::{AluWidth, SampleKind, WorkType};
use crate::units::NS_PER_MS;

pub static ROWS: [TypeInfo; 12] = [
    TypeInfo {
        name: "SpinWait",
        cli_name: "spin",
        group: "1",
        sample_kinds: &[],
        description: "spins without ever blocking: pure demand for CPU time",
        method: "Each worker is always runnable and leaves the CPU only when the scheduler takes it away, so time \
                 slices, preemption, load balancing and fairness are all that decides its share. It takes no latency \
                 samples: its run delay and its longest gap say how long it was kept waiting. It says nothing about \
                 wake-ups, because there are none.",
        default: WorkType::SpinWait,
    },
    TypeInfo {
        name: "YieldHeavy",
        cli_name: "yield",
        group: "1",
        sample_kinds: &[SampleKind::Yield],
        description: "yields after every unit of work: the enqueue and pick-next paths at full rate",
        method: "Each worker calls sched_yield after one unit, so the scheduler is asked for a new decision as often \
                 as the system call allows. A `yield` sample is the time spent in one such call: the decision itself \
                 where nobody else wants the CPU, the others' turns where somebody does. It is no wake-up latency: \
                 the worker stays runnable all the time, and a long stay counts as a gap.",
        default: WorkType::YieldHeavy,
    },
    TypeInfo {
        name: "Mixed",
        cli_name: "mixed",
        group: "1",
        sample_kinds: &[SampleKind::Yield],
        description: "spins 1024 steps, then yields: work with polite pauses",
        method: "Each worker spins some tens of microseconds and then gives its turn away, as programs do that poll and \
                 yield. The scheduler sees tasks that are always runnable but rarely use up their slice. A `yield` sample \
                 is the time in sched_yield, the others' turns included; what a neighbour got shows in the CPU shares. It \
                 says nothing about wake-ups: nobody sleeps.",
        default: WorkType::Mixed,
    },
    TypeInfo {
        name: "Bursty",
        cli_name: "bursty",
        group: "1",
        sample_kinds: &[SampleKind::Timer],
        description: "spins for a burst, then sleeps: load that comes and goes",
        method: "Each worker spins for `burst` and sleeps for `sleep`, so CPUs turn idle and busy again and the \
                 scheduler places a waking task every period. A `timer` sample is the oversleep: elapsed minus requested \
                 time, which holds the timer's slack (50 us by default), the interrupt, the wake-up and the wait for a \
                 CPU together. It does not separate them; the run delay shows the last part alone.",
        default: WorkType::Bursty { burst_ns: 50 * NS_PER_MS, sleep_ns: 100 * NS_PER_MS },
    },
    TypeInfo {
        name: "IdleChurn",
        cli_name: "idle-churn",
        group: "1",
        sample_kinds: &[SampleKind::Timer],
        description: "short bursts and short sleeps: the CPU goes idle and comes back all the time",
        method: "Each worker spins until `burst` has passed and sleeps for `sleep` with nanosleep, so its CPU enters idle \
                 some hundred times a second and the scheduler's idle selection and wake-up placement are asked as often. A \
                 `timer` sample is the oversleep. With `precise_timing` the timer slack is 1 ns, as cyclictest's is for \
                 real-time tasks; without it the usual 50 us of slack are part of every sample.",
        default: WorkType::IdleChurn { burst_ns: NS_PER_MS, sleep_ns: 5 * NS_PER_MS, precise_timing: false },
    },
    TypeInfo {
        name: "NiceSweep",
        cli_name: "nice-sweep",
        group: "1",
        sample_kinds: &[SampleKind::Yield],
        description: "walks through all nice values while it works",
        method: "Each worker spins 512 steps, takes the next nice value and yields, so the scheduler recomputes the weight \
                 of a running task all the time. With the right to raise its priority (CAP_SYS_NICE) it walks from -20 to \
                 19, otherwise from 0 to 19; the value it came with is restored at the end. A `yield` sample is the time in \
                 sched_yield, which depends on the weight the worker has just taken.",
        default: WorkType::NiceSweep,
    },
    TypeInfo {
        name: "AffinityChurn",
        cli_name: "affinity-churn",
        group: "1",
        sample_kinds: &[SampleKind::Yield],
        description: "pins itself to another random CPU after every burst",
        method: "Each worker spins, restricts itself by sched_setaffinity to one CPU drawn at random from those it began \
                 with, and yields. Where the CPU is another one the kernel must migrate the running task at once, so \
                 migrations and changes of the allowed set come at a high rate. The choices come from the run's seed. A \
                 `yield` sample is the time in sched_yield, the wait for the new CPU included.",
        default: WorkType::AffinityChurn { spin_iters: 1024 },
    },
    TypeInfo {
        name: "PolicyChurn",
        cli_name: "policy-churn",
        group: "1",
        sample_kinds: &[SampleKind::Yield],
        description: "changes its scheduling class after every burst",
        method: "Each worker spins, takes the next of OTHER, BATCH, IDLE, EXT, and FIFO 1 and RR 1 where the kernel lets \
                 it, and yields; classes that the kernel refuses are left out from then on, and the first class is \
                 restored at the end. A scheduler sees tasks join and leave its class while they run. A `yield` sample is \
                 the time in sched_yield, in whatever class the worker was.",
        default: WorkType::PolicyChurn { spin_iters: 1024 },
    },
    TypeInfo {
        name: "RtStarvation",
        cli_name: "rt-starvation",
        group: "rt_workers + cfs_workers",
        sample_kinds: &[],
        description: "real-time spinners beside fair ones: what is left for the fair class",
        method: "The first `rt_workers` members of a group spin as SCHED_FIFO with `rt_priority`, the others as ordinary \
                 tasks. Where the CPUs do not suffice for both, the fair ones live on what real-time throttling or a \
                 deadline server leaves them: about 5 % by default, and nothing where that is switched off. There are no \
                 samples; shares, run delay and gaps of the role `fair` are the result.",
        default: WorkType::RtStarvation { rt_workers: 1, cfs_workers: 1, rt_priority: 50, burst_iters: 1024 },
    },
    TypeInfo {
        name: "AluHot",
        cli_name: "alu",
        group: "1",
        sample_kinds: &[SampleKind::Cost],
        description: "chains of multiplications in wide registers: execution units, power and heat",
        method: "Each iteration is 1024 steps of four independent streams of multiplications, in 64-bit integer registers \
                 or in vectors of 128, 256 or 512 bits. `widest` takes the widest that the CPU has; a width that it lacks is \
                 lowered once, and the report says so. A `cost` sample is the time of one iteration: preemption, a busy \
                 hardware sibling and a lower clock all lengthen it, and the sample does not tell which.",
        default: WorkType::AluHot { width: AluWidth::Widest },
    },
    TypeInfo {
        name: "SmtSiblingSpin",
        cli_name: "smt-spin",
        group: "2",
        sample_kinds: &[SampleKind::Cost],
        description: "pairs that spin on the two hardware threads of one core",
        method: "Each pair is pinned to the two threads of one core, a core for each pair in turn, and both spin bursts of \
                 1024 steps. A `cost` sample is the time of one burst; against a worker alone on a core it shows what \
                 sharing one costs. Where no core has two threads, the run is refused. The scheduler places nothing here: \
                 what matters is whether it runs both at the same time.",
        default: WorkType::SmtSiblingSpin,
    },
    TypeInfo {
        name: "IpcVariance",
        cli_name: "ipc-variance",
        group: "1",
        sample_kinds: &[SampleKind::Cost],
        description: "phases of high and low instructions per cycle",
        method: "An iteration is `period_iters` times a hot chain of `hot_iters` multiplications and a cold walk of \
                 `cold_iters` random read-modify-writes over 512 KiB. A scheduler that classifies tasks by what they do sees \
                 its answer change. A `cost` sample is the time of one whole iteration; an iteration that the stop cut \
                 short gives none.",
        default: WorkType::IpcVariance { hot_iters: 100_000, cold_iters: 1024, period_iters: 64 },
    },
];
