//! The rows of the types that meet at a futex, a pipe, a queue or an event: whoever waits is woken by a partner.
//!
//! Owns their names, texts and defaults; leaves their loops to kinds/futex, lock, ring, pipe, chain and event.
//! Invariant: the order of sample kinds here is the order in which the loops record them.

use super::TypeInfo;
use crate::proto::work::{PiMode, SampleKind, SchedClass, WakeMechanism, WorkType};
use crate::units::{NS_PER_MS, NS_PER_US};

pub static ROWS: [TypeInfo; 11] = [
    TypeInfo {
        name: "PipeIo",
        cli_name: "pipe",
        group: "2",
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "pairs that spin, then exchange a byte over pipes: wake-ups through a file",
        method: "Two workers spin, write one byte to each other and wait for the other's byte, so whoever is ahead \
                 sleeps until its partner wakes it from inside write(2), which the kernel marks as a synchronous wake-up. A \
                 `wake` sample runs from the partner's time stamp just before that write to the first instruction after \
                 poll(2) returned; it holds the write, the scheduler's choice of CPU and the wait for it. A `block` \
                 sample is the whole wait, the partner's spinning included. A byte that was there already gives no sample.",
        default: WorkType::PipeIo { burst_iters: 1024 },
    },
    TypeInfo {
        name: "FutexPingPong",
        cli_name: "ping-pong",
        group: "2",
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "pairs that hand a futex word to and fro: one of the two always sleeps",
        method: "Two workers take turns: the one whose turn it is spins, hands the word over, wakes its partner and \
                 waits for its next turn. So exactly one of the pair wants a CPU, and every turn is a sleep and a wake-up. A \
                 `wake` sample runs from the waker's time stamp just before FUTEX_WAKE to the wakee's first instruction \
                 after its wait; `block` is the whole wait, the partner's turn included. The throughput of a pair is \
                 bounded by the wake-up path, not by the CPU.",
        default: WorkType::FutexPingPong { spin_iters: 1024 },
    },
    TypeInfo {
        name: "FutexFanOut",
        cli_name: "fan-out",
        group: "fan_out + 1",
        sample_kinds: &[SampleKind::Wake],
        description: "one messenger wakes many waiters at once, again and again",
        method: "Position 0, the messenger, advances a generation, wakes up to `fan_out` waiters with one FUTEX_WAKE and \
                 spins 256 steps; the receivers spin, then wait for the next generation. The scheduler gets bursts of wake-ups \
                 from one CPU and has to spread them. A `wake` sample runs from the stamp just before the wake to the \
                 receiver's first instruction after its wait, so the last of a burst also counts the kernel's waking of \
                 those before it. A receiver that was late and did not sleep gives no sample.",
        default: WorkType::FutexFanOut { fan_out: 4, spin_iters: 1024 },
    },
    TypeInfo {
        name: "FanOutCompute",
        cli_name: "fan-out-compute",
        group: "fan_out + 1",
        sample_kinds: &[SampleKind::Wake],
        description: "a messenger and workers that think, then multiply matrices, as a request server does",
        method: "Position 0 stamps the clock, advances a generation and wakes all receivers; each of them takes its `wake` \
                 sample, sleeps for `sleep`, and does `operations` products of square matrices, three of which fill \
                 `cache_footprint_kb`. The shape is that of a messenger thread with its workers: latency of wake-ups under \
                 load that has a warm cache to lose. The sleep and the products are not in the sample.",
        default: WorkType::FanOutCompute {
            fan_out: 4,
            cache_footprint_kb: 256,
            operations: 5,
            sleep_ns: 100 * NS_PER_US,
        },
    },
    TypeInfo {
        name: "ThunderingHerd",
        cli_name: "herd",
        group: "waiters + 1",
        sample_kinds: &[SampleKind::Wake],
        description: "all waiters are woken at once, then all sleep again",
        method: "Position 0 sleeps for `inter_batch`, advances a generation and wakes all waiters with one call; they wait for \
                 the next one. Every batch is a spike of runnable tasks out of silence, which shows how fast idle CPUs are \
                 found. A `wake` sample runs from the stamp just before the wake to the waiter's first instruction, so the \
                 largest of a batch is the time until all were running. After `batches` batches the group only sleeps.",
        default: WorkType::ThunderingHerd { waiters: 7, batches: 1000, inter_batch_ns: 5 * NS_PER_MS },
    },
    TypeInfo {
        name: "MutexContention",
        cli_name: "mutex",
        group: "contenders",
        sample_kinds: &[SampleKind::Block],
        description: "members fight for one futex lock: holder preemption and lock handover",
        method: "Each member spins, takes the group's lock, spins while it holds it and releases it. The lock is a word that \
                 is taken by an atomic exchange and waited for with FUTEX_WAIT; the release wakes one waiter, and whoever \
                 comes first gets it. A `block` sample is the time from the first failed try to the lock's being held; a lock \
                 taken at once gives none. A scheduler that preempts the holder makes everybody wait.",
        default: WorkType::MutexContention { contenders: 4, hold_iters: 256, work_iters: 1024 },
    },
    TypeInfo {
        name: "PriorityInversion",
        cli_name: "priority-inversion",
        group: "high + medium + low",
        sample_kinds: &[SampleKind::Block],
        description: "real-time tasks of three priorities around one lock: the classic inversion",
        method: "Members run as SCHED_FIFO 70, 50 and 30. The low ones take a lock and spin while they hold it, the high ones \
                 want the same lock, the medium ones spin in bursts with short pauses and need no lock. With the plain lock a medium \
                 task may keep the low one off the CPU while the high one waits; with `pi_mode=pi` the kernel lends the \
                 holder the waiter's priority. A `block` sample is the wait for the lock, by role. Everything depends on \
                 their sharing CPUs: give the group fewer CPUs than members.",
        default: WorkType::PriorityInversion {
            high: 1,
            medium: 1,
            low: 1,
            hold_iters: 4096,
            work_iters: 1024,
            pi_mode: PiMode::Plain,
        },
    },
    TypeInfo {
        name: "ProducerConsumerImbalance",
        cli_name: "producer-consumer",
        group: "producers + consumers",
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "producers and consumers of unequal speed around one bounded queue",
        method: "Producers put one item per iteration into a ring of `queue_depth_target` cells, at most \
                 `produce_rate_hz` a second each; consumers take one, then spin `consume_iters` steps. Who finds the ring full \
                 or empty sleeps at a futex, and whoever changes that wakes one. A `wake` sample runs from the stamp of the \
                 item, or of the room, that it was woken for to the first instruction after the wait; `block` is the whole wait. The producer's pause \
                 between items is neither.",
        default: WorkType::ProducerConsumerImbalance {
            producers: 2,
            consumers: 1,
            produce_rate_hz: 1000,
            consume_iters: 4096,
            queue_depth_target: 1024,
        },
    },
    TypeInfo {
        name: "AsymmetricWaker",
        cli_name: "asym-waker",
        group: "2",
        sample_kinds: &[SampleKind::Wake],
        description: "a waker and a wakee of different scheduling classes",
        method: "Position 0 spins, then wakes position 1, which spins and waits again. Each has the class that its parameter \
                 names: cfs, batch, idle, rt (FIFO 50), deadline (1 ms of every 10 ms) or ext. So wake-ups cross the border \
                 between classes, where preemption is decided by the kernel and not by one scheduler. A `wake` sample runs \
                 from the waker's stamp just before FUTEX_WAKE to the wakee's first instruction after its wait.",
        default: WorkType::AsymmetricWaker {
            waker_class: SchedClass::Cfs,
            wakee_class: SchedClass::Cfs,
            burst_iters: 1024,
        },
    },
    TypeInfo {
        name: "WakeChain",
        cli_name: "wake-chain",
        group: "depth",
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "a token that goes round a ring of workers: each wakes the next",
        method: "The members form a ring of pipes or futexes. Who gets the token spins for `work_per_hop`, passes it on and \
                 sleeps until it comes round again, so one member of each ring is runnable at any time, and where it runs is \
                 decided at each hop. A `wake` sample runs from the sender's stamp just before its write or wake to the \
                 receiver's first instruction; `block` is the whole time without the token, the others' work included.",
        default: WorkType::WakeChain { depth: 4, wake: WakeMechanism::Pipe, work_per_hop_ns: 100 * NS_PER_US },
    },
    TypeInfo {
        name: "EpollStorm",
        cli_name: "epoll-storm",
        group: "producers + consumers",
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "consumers wait with epoll for events that producers post in bursts",
        method: "Producers add `events_per_burst` events to one eventfd, one write each, then pause for half a millisecond; \
                 consumers wait for it with epoll_wait, level-triggered and not exclusive, so one event may wake all of them \
                 and all but one find nothing. A `wake` sample runs from the stamp before the first burst after the \
                 consumer began to wait to its first instruction after epoll_wait returned; `block` is the whole wait.",
        default: WorkType::EpollStorm { producers: 1, consumers: 2, events_per_burst: 32 },
    },
];
