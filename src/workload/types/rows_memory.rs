//! The rows of the types whose subject is memory, cache, storage and NUMA nodes.
//!
//! Owns their names, texts and defaults; leaves their loops to kinds/cache, io, memory and numa.
//! Invariant: the order of sample kinds here is the order in which the loops record them.

use super::TypeInfo;
use crate::proto::work::{SampleKind, WorkType};
use crate::units::NS_PER_MS;

pub static ROWS: [TypeInfo; 9] = [
    TypeInfo {
        name: "CachePressure",
        cli_name: "cache",
        group: "1",
        sample_kinds: &[],
        description: "read-modify-writes over a buffer: what a migration costs in cache misses",
        method: "Each worker walks a private buffer of `size_kb` in steps of `stride` bytes, 1024 read-modify-writes an \
                 iteration, and never sleeps. With a buffer that fits a cache level its speed depends on staying near that \
                 cache: each migration, and each neighbour that evicts it, shows in units a second. There are no latency \
                 samples. The result depends on the caches of the machine, so compare runs of one machine only.",
        default: WorkType::CachePressure { size_kb: 32, stride: 64 },
    },
    TypeInfo {
        name: "CacheYield",
        cli_name: "cache-yield",
        group: "1",
        sample_kinds: &[SampleKind::Yield],
        description: "the same walk, then sched_yield: cache-bound tasks that take turns",
        method: "As CachePressure, with a sched_yield after every 1024 read-modify-writes, so workers on one CPU replace each \
                 other's lines at a high rate and a scheduler that keeps a task where its cache is warm gains. A `yield` \
                 sample is the time in sched_yield, the others' turns included. The throughput shows the misses, the samples \
                 do not.",
        default: WorkType::CacheYield { size_kb: 32, stride: 64 },
    },
    TypeInfo {
        name: "CachePipe",
        cli_name: "cache-pipe",
        group: "2",
        sample_kinds: &[SampleKind::Wake, SampleKind::Block],
        description: "pairs that walk a buffer, then exchange a byte: wake-ups with a cache to lose",
        method: "As PipeIo, with `burst_iters` read-modify-writes over a private buffer of `size_kb` in place of the spinning. \
                 Placing the wakee beside its waker shortens the wake-up, placing it where its buffer is still cached \
                 shortens the work, and the throughput shows which the scheduler got right. `wake` and `block` samples are \
                 those of PipeIo.",
        default: WorkType::CachePipe { size_kb: 32, burst_iters: 1024 },
    },
    TypeInfo {
        name: "IoSyncWrite",
        cli_name: "io-sync",
        group: "1",
        sample_kinds: &[SampleKind::Io],
        description: "synchronous writes and fdatasync: short CPU use between waits for a device",
        method: "Each worker writes 16 blocks of 4 KiB with O_SYNC into a stripe of its own (64 stripes, by thread id) and \
                 calls fdatasync. The backing is a virtual disk where the guest has one, else a temporary file of 16 MiB \
                 that is unlinked at once; a file in a memory file system never sleeps, and the report says which it was. An \
                 `io` sample is the time of the 16 writes and the sync, device time and wake-up together.",
        default: WorkType::IoSyncWrite,
    },
    TypeInfo {
        name: "IoRandRead",
        cli_name: "io-rand",
        group: "1",
        sample_kinds: &[SampleKind::Io],
        description: "random reads of 4 KiB past the page cache",
        method: "Each worker reads one 4 KiB block at a random offset with O_DIRECT per iteration, so it sleeps once for \
                 every read and is woken by a device interrupt, often on another CPU than its own. An `io` sample is the time \
                 of one read: device, interrupt, wake-up and wait for a CPU. The backing is as for IoSyncWrite; where its \
                 file system refuses O_DIRECT, reads come from the page cache, and the report says so.",
        default: WorkType::IoRandRead,
    },
    TypeInfo {
        name: "IoConvoy",
        cli_name: "io-convoy",
        group: "1",
        sample_kinds: &[SampleKind::Io],
        description: "sequential writes, random reads and a sync every 16: tasks that pile up at one device",
        method: "Each iteration writes the next 4 KiB block of the worker's stripe, reads a random one, and every sixteenth \
                 time calls fdatasync, all with O_DIRECT. Several workers wait for the same device and become runnable \
                 together when it answers. An `io` sample is the time of one write, read and, where it is due, sync; the \
                 largest ones are the syncs. The backing is as for IoSyncWrite.",
        default: WorkType::IoConvoy,
    },
    TypeInfo {
        name: "PageFaultChurn",
        cli_name: "page-fault",
        group: "1",
        sample_kinds: &[],
        description: "touches pages and gives them back: page faults at a high rate",
        method: "Each worker touches `touches_per_cycle` random pages of a region of `region_kb`, returns the region to the \
                 kernel with MADV_DONTNEED and spins `spin_iters` steps. Most touches are minor faults, so the worker spends \
                 its time in the kernel, where it is preempted under other rules than in user space. There are no latency \
                 samples: a fault is not the scheduler's. Units count pages touched.",
        default: WorkType::PageFaultChurn { region_kb: 4096, touches_per_cycle: 256, spin_iters: 64 },
    },
    TypeInfo {
        name: "NumaWorkingSetSweep",
        cli_name: "numa-sweep",
        group: "1",
        sample_kinds: &[SampleKind::Timer],
        description: "moves its memory from node to node: where does the task follow?",
        method: "Each worker binds its region to the next of `target_nodes` (all nodes where none is named) with mbind and \
                 MPOL_MF_MOVE, touches every page and sleeps for `sweep_period`. A scheduler that follows the memory moves the \
                 task too; the report has the pages by node and how many the kernel migrated. A `timer` sample is the \
                 oversleep. On a machine of one node only the binding itself is exercised.",
        default: WorkType::NumaWorkingSetSweep {
            region_kb: 4096,
            sweep_period_ns: 100 * NS_PER_MS,
            target_nodes: Vec::new(),
        },
    },
    TypeInfo {
        name: "NumaMigrationChurn",
        cli_name: "numa-churn",
        group: "1",
        sample_kinds: &[SampleKind::Timer],
        description: "moves itself to the CPUs of a random node, again and again",
        method: "Each worker restricts itself to the CPUs of a node drawn at random, sleeps for `period` and spins 256 steps, so \
                 every wake-up may be on another node than the last, away from its memory. The choices come from the run's \
                 seed. A `timer` sample is the oversleep, which holds the migration. On a machine of one node the set never \
                 changes and only the calls are exercised.",
        default: WorkType::NumaMigrationChurn { period_ns: 100 * NS_PER_MS },
    },
];
