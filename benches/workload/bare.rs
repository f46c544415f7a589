//! Pairs of processes that make the same calls as a work type, and nothing else: what those calls alone cost on this machine.
//!
//! Owns the bare loops and where they run; leaves what they are compared with to the benchmark.
//! Invariant: no telemetry, no look at a stop word: a pair works until it is killed.

use ktstr::proto::cpuset::CpuSet;
use ktstr::proto::plan::SchedPolicy;
use ktstr::sys::mmap::Mapping;
use ktstr::sys::{fd, futex, poll, process, sched, time};
use ktstr::units::{NS_PER_MS, NS_PER_SEC};
use std::hint::{black_box, spin_loop};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// The class of everything that is compared: above the load of others, so that a ratio is not that load's.
pub const PRIORITY: u32 = 10;
/// Words of the shared page: the futex word, and the counts of both, each on a line of its own.
const WORD_AT: usize = 0;
const COUNT_AT: [usize; 2] = [16, 24];
/// What ends a pair.
const SIGKILL: i32 = 9;
/// As the engine's: a wait is at most one slice long.
const SLICE_MS: u64 = 100;
/// As the engine's: steps between two looks at the clock in a timed spin.
const SPIN_STEPS: u64 = 128;

/// What one exchange is made of.
#[derive(Clone, Copy)]
pub enum Way {
    /// Write, look whether the answer is there, poll, read: PipeIo.
    Pipe,
    /// Hand the word over, wake, wait: FutexPingPong.
    Futex,
    /// Poll, read, spin the shortest timed spin, write: one hop of WakeChain.
    Chain,
    /// Write, blocking read, or the other way round: `perf bench sched pipe`, where one byte is on its way, not two.
    Read,
    /// One only writes, the other only reads: hackbench with one of each.
    Stream,
}

/// Until a pair is in its stride.
pub const WARM_UP_NS: u64 = 50 * NS_PER_MS;

/// Whether this process may take a real-time class.
pub fn may_be_real_time() -> bool {
    let fifo = SchedPolicy::Fifo { priority: PRIORITY };
    std::thread::spawn(move || sched::set_policy(0, &fifo, 0, false).is_ok()).join().unwrap_or(false)
}

/// Exchanges a second of one bare pair, both on one CPU.
pub fn rate(way: Way, cpu: u32, real_time: bool) -> Option<f64> {
    let shared = Mapping::shared_anonymous(4096).expect("map");
    let pipes = [fd::pipe().expect("pipe"), fd::pipe().expect("pipe")];
    let parent = process::id();
    let children = [0, 1].map(|who: usize| match process::fork().expect("fork") {
        process::Fork::Parent(pid) => pid,
        process::Fork::Child => {
            let one: CpuSet = [cpu].into_iter().collect();
            let fifo = SchedPolicy::Fifo { priority: PRIORITY };
            let placed = process::die_with_parent(SIGKILL, parent).and_then(|()| sched::set_affinity(0, &one));
            let placed = placed.and_then(|()| if real_time { sched::set_policy(0, &fifo, 0, false) } else { Ok(()) });
            placed.expect("place");
            let (read, write) = (&pipes[who].0, &pipes[1 - who].1);
            let word = &shared.halves()[WORD_AT];
            for turn in 1u32.. {
                match way {
                    Way::Pipe => {
                        fd::write_some(write, &[1]).expect("write");
                        black_box(poll::one_readable(read, 0).expect("look"));
                        receive(read);
                    }
                    Way::Futex => {
                        // The word is whose turn it is; the first turn is the first one's.
                        let (own, other) = (who as u32, 1 - who as u32);
                        if turn > 1 || who == 0 {
                            word.store(other, Ordering::Release);
                            futex::wake(word, 1).expect("wake");
                        }
                        while word.load(Ordering::Acquire) != own {
                            black_box(futex::wait(word, other, SLICE_MS * NS_PER_MS).expect("wait"));
                        }
                    }
                    Way::Chain => {
                        if turn > 1 || who == 1 {
                            black_box(poll::one_readable(read, 0).expect("look"));
                            receive(read);
                        }
                        for step in 0..SPIN_STEPS {
                            black_box(step);
                            spin_loop();
                        }
                        fd::write_some(write, &[1]).expect("write");
                    }
                    Way::Read => {
                        if turn > 1 || who == 1 {
                            take(read);
                        }
                        fd::write_some(write, &[1]).expect("write");
                    }
                    Way::Stream if who == 0 => {
                        fd::write_some(write, &[1]).expect("write");
                    }
                    Way::Stream => take(read),
                }
                shared.words()[COUNT_AT[who]].store(u64::from(turn), Ordering::Relaxed);
            }
            process::exit_now(0)
        }
    });
    let look = || (time::monotonic_ns(), shared.words()[COUNT_AT[0]].load(Ordering::Relaxed));
    time::sleep_ns(WARM_UP_NS).expect("sleep");
    let (from, before) = look();
    time::sleep_ns(250 * NS_PER_MS).expect("sleep");
    let (until, after) = look();
    for child in children {
        process::kill(child, SIGKILL).expect("kill");
        process::wait(child, true).expect("wait");
    }
    // A pair that died has no rate.
    (after > before).then(|| (after - before) as f64 * NS_PER_SEC as f64 / (until - from) as f64)
}

fn receive(read: &std::os::fd::OwnedFd) {
    while poll::one_readable(read, SLICE_MS).expect("poll") != poll::Ready::Yes {}
    take(read);
}

/// Reads one byte; waits for it in the call.
fn take(read: &std::os::fd::OwnedFd) {
    let mut byte = [0];
    black_box(fd::read_available(read.as_fd(), &mut byte).expect("read"));
}
