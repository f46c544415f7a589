//! The witness of host noise: what the host's scheduler counted for every vCPU thread, sampled while the VM runs.
//!
//! Owns finding the threads and adding up; leaves the values to proto/noise, when to sample to watch.rs.
//! Invariant: the counters only grow, so a late sample loses nothing but the place of a wait within its window.

use crate::proto::noise::{HostNoise, VcpuNoise};
use crate::sys::fd;
use crate::units::{NS_PER_MS, NS_PER_SEC, NS_PER_US};
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;

/// Between two samples: shorter than any slice by which a host that shares its CPUs would show.
pub const SAMPLE_EVERY_NS: u64 = 10 * NS_PER_MS;
/// Length of a slot at first, and how many there are before pairs of them are made one.
const SLOT_NS: u64 = 100 * NS_PER_MS;
const SLOTS_MOST: usize = 2048;
/// Between two looks for threads that are not known yet.
const SEARCH_EVERY_NS: u64 = 100 * NS_PER_MS;
/// USER_HZ, in which /proc/stat counts: 100 on every architecture that Linux has kept.
const TICK_NS: u64 = NS_PER_SEC / 100;
/// /proc/stat: `cpu user nice system idle iowait irq softirq steal ...`.
const STEAL_FIELD: usize = 8;
/// A schedstat has three numbers of at most 20 digits.
const SCHEDSTAT_BYTES: usize = 80;

/// One vCPU's thread and its waits by slot.
#[derive(Debug)]
struct Thread {
    tid: i32,
    schedstat: OwnedFd,
    noise: VcpuNoise,
    slots: Vec<u32>,
}

/// Samples one VM's process.
#[derive(Debug)]
pub struct Witness {
    pid: i32,
    exec_ns: u64,
    from_ns: u64,
    last_ns: u64,
    searched_ns: u64,
    samples: u64,
    slot_ns: u64,
    threads: Vec<Thread>,
    steal_ns: Option<u64>,
    pressure_ns: Option<u64>,
}

impl Witness {
    /// Begins now. `exec_ns` is where times count from; both are CLOCK_MONOTONIC.
    pub fn new(pid: i32, exec_ns: u64, now_ns: u64) -> Self {
        Self {
            pid,
            exec_ns,
            from_ns: now_ns,
            last_ns: now_ns,
            searched_ns: 0,
            samples: 0,
            slot_ns: SLOT_NS,
            threads: Vec::new(),
            steal_ns: steal_ns(&read("/proc/stat")),
            pressure_ns: pressure_ns(&read("/proc/pressure/cpu")),
        }
    }

    /// When the next sample is due.
    pub fn due_ns(&self) -> u64 {
        self.last_ns + SAMPLE_EVERY_NS
    }

    /// Samples every thread; a thread that is gone keeps its last numbers.
    pub fn sample(&mut self, now_ns: u64) {
        if now_ns >= self.searched_ns + SEARCH_EVERY_NS {
            self.searched_ns = now_ns;
            self.search();
        }
        while (now_ns - self.from_ns) / self.slot_ns >= SLOTS_MOST as u64 {
            self.widen();
        }
        let (from_ns, slot_ns, window_ns) = (self.from_ns, self.slot_ns, now_ns.saturating_sub(self.last_ns));
        for thread in &mut self.threads {
            let mut text = [0; SCHEDSTAT_BYTES];
            let Ok(count) = fd::read_start(&thread.schedstat, &mut text) else { continue };
            let Some([run_ns, delay_ns, turns]) = parse(&text[..count]) else { continue };
            let grown_ns = delay_ns.saturating_sub(thread.noise.delay_ns);
            if grown_ns > thread.noise.worst_delay_ns {
                thread.noise.worst_delay_ns = grown_ns;
                thread.noise.worst_window_ns = window_ns;
                thread.noise.worst_at_ns = now_ns.saturating_sub(self.exec_ns);
            }
            (thread.noise.run_ns, thread.noise.delay_ns, thread.noise.turns) = (run_ns, delay_ns, turns);
            spread(&mut thread.slots, slot_ns, now_ns - from_ns, grown_ns);
        }
        self.samples += 1;
        self.last_ns = now_ns;
    }

    /// Looks for vCPU threads that are not known yet.
    fn search(&mut self) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return };
        for tid in tasks.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            if self.threads.iter().any(|thread| thread.tid == tid) {
                continue;
            }
            let directory = format!("/proc/{}/task/{tid}", self.pid);
            let Some(vcpu) = vcpu_of(&read(&format!("{directory}/comm"))) else { continue };
            let Ok(path) = CString::new(format!("{directory}/schedstat")) else { continue };
            // A thread that has just ended is none to watch.
            let Ok(schedstat) = fd::open_read(&path) else { continue };
            let noise = VcpuNoise { vcpu, ..VcpuNoise::default() };
            self.threads.push(Thread { tid, schedstat, noise, slots: Vec::new() });
        }
    }

    /// Makes each pair of slots one of twice the length.
    fn widen(&mut self) {
        self.slot_ns *= 2;
        for thread in &mut self.threads {
            let pairs = thread.slots.chunks(2).map(|pair| pair.iter().fold(0u32, |sum, us| sum.saturating_add(*us)));
            thread.slots = pairs.collect();
        }
    }

    /// All that was seen.
    pub fn finish(mut self) -> HostNoise {
        self.threads.sort_by_key(|thread| (thread.noise.vcpu, thread.tid));
        let slots = self.threads.iter().map(|thread| thread.slots.len()).max().unwrap_or(0);
        let by_slot = |slot: usize| self.threads.iter().map(move |thread| thread.slots.get(slot).copied().unwrap_or(0));
        let since = |before: Option<u64>, after: Option<u64>| Some(after?.saturating_sub(before?));
        HostNoise {
            from_ns: self.from_ns.saturating_sub(self.exec_ns),
            to_ns: self.last_ns.saturating_sub(self.exec_ns),
            samples: self.samples,
            slot_ns: self.slot_ns,
            worst_us: (0..slots).map(|slot| by_slot(slot).max().unwrap_or(0)).collect(),
            sum_us: (0..slots).map(|slot| by_slot(slot).fold(0u32, u32::saturating_add)).collect(),
            steal_ns: since(self.steal_ns, steal_ns(&read("/proc/stat"))),
            pressure_ns: since(self.pressure_ns, pressure_ns(&read("/proc/pressure/cpu"))),
            vcpus: self.threads.into_iter().map(|thread| thread.noise).collect(),
        }
    }
}

/// A file's text; empty where the host has none such.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Lays a wait that was noticed at `at_ns` over the slots in which it was: it ended no later than that.
fn spread(slots: &mut Vec<u32>, slot_ns: u64, at_ns: u64, wait_ns: u64) {
    let last = (at_ns / slot_ns) as usize;
    if slots.len() <= last {
        slots.resize(last + 1, 0);
    }
    let (mut end_ns, mut left_ns) = (at_ns, wait_ns.min(at_ns));
    for (index, slot) in slots[..=last].iter_mut().enumerate().rev() {
        let part_ns = left_ns.min(end_ns - index as u64 * slot_ns);
        // Never more than the slot's own length, whatever rounding came before.
        *slot = slot.saturating_add((part_ns / NS_PER_US) as u32).min((slot_ns / NS_PER_US) as u32);
        (end_ns, left_ns) = (end_ns - part_ns, left_ns - part_ns);
        if left_ns == 0 {
            return;
        }
    }
}

/// The vCPU that a thread runs, by its name: ours are `vcpu3`, the emulator's `CPU 3/TCG`, or `ALL CPUs/TCG` for all.
fn vcpu_of(comm: &str) -> Option<u32> {
    let comm = comm.trim_end();
    if comm.starts_with("ALL CPUs") {
        return Some(0);
    }
    let number = comm.strip_prefix("vcpu").or_else(|| comm.strip_prefix("CPU ")?.split('/').next())?;
    number.parse().ok()
}

/// CPU time, run delay, turns (Documentation/scheduler/sched-stats.rst).
fn parse(text: &[u8]) -> Option<[u64; 3]> {
    let mut numbers = std::str::from_utf8(text).ok()?.split_ascii_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// The host's own steal, from /proc/stat.
fn steal_ns(stat: &str) -> Option<u64> {
    let ticks: u64 =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().nth(STEAL_FIELD - 1)?.parse().ok()?;
    ticks.checked_mul(TICK_NS)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in microseconds (Documentation/accounting/psi.rst).
fn pressure_ns(pressure: &str) -> Option<u64> {
    let total =
        pressure.lines().find_map(|line| line.strip_prefix("some ")?.rsplit_once("total=")).map(|(_, us)| us)?;
    total.trim().parse::<u64>().ok()?.checked_mul(NS_PER_US)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{process, time};

    #[test]
    fn threads_are_known_by_their_names() {
        for (comm, vcpu) in [
            ("vcpu12\n", Some(12)),
            ("CPU 3/TCG\n", Some(3)),
            ("CPU 0/KVM", Some(0)),
            ("ALL CPUs/TCG\n", Some(0)),
            ("vcpu", None),
            ("CPUs", None),
            ("qemu-system-x86", None),
        ] {
            assert_eq!(vcpu_of(comm), vcpu, "{comm}");
        }
    }

    #[test]
    fn kernel_files_are_read_and_their_absence_is_no_zero() {
        assert_eq!(parse(b"200758 35546 1\n"), Some([200_758, 35_546, 1]));
        assert_eq!(parse(b"1 2\n"), None);
        assert_eq!(steal_ns("cpu  63265 3187 7588 71764 490 0 113 132 0 0\ncpu0 1\n"), Some(132 * TICK_NS));
        assert_eq!((steal_ns(""), pressure_ns("")), (None, None));
        assert_eq!(pressure_ns("some avg10=30.23 avg60=42.19 avg300=24.19 total=7\nfull total=9\n"), Some(7000));
    }

    #[test]
    fn wait_lies_in_the_slots_before_its_end() {
        let mut slots = Vec::new();
        spread(&mut slots, 100_000_000, 250_000_000, 180_000_000);
        assert_eq!(slots, [30_000, 100_000, 50_000]);
        // A wait from before the first slot is cut to what the slots cover.
        let mut slots = Vec::new();
        spread(&mut slots, 100_000_000, 200_000_000, 900_000_000);
        assert_eq!(slots, [100_000, 100_000, 0]);
    }

    #[test]
    fn long_runs_keep_their_sums_in_wider_slots() {
        let mut witness = Witness::new(process::id(), 0, 0);
        witness.threads.push(Thread {
            tid: -1,
            schedstat: fd::open_read(c"/dev/null").unwrap(),
            noise: VcpuNoise::default(),
            slots: vec![1, 2, 3],
        });
        witness.sample(SLOT_NS * SLOTS_MOST as u64 * 3);
        let noise = witness.finish();
        assert_eq!((noise.slot_ns, noise.sum_us.as_slice()), (4 * SLOT_NS, &[6][..]));
    }

    #[test]
    fn waiting_thread_of_this_process_is_seen() {
        let begun = time::monotonic_ns();
        let mut witness = Witness::new(process::id(), begun, begun);
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let spin = move || {
            while told.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                std::hint::black_box(0);
            }
        };
        let thread = std::thread::Builder::new().name("vcpu7".into()).spawn(spin).unwrap();
        // Until it is found and has run: its name comes a moment after its start.
        let end = begun + 10 * NS_PER_SEC;
        while time::monotonic_ns() < end && witness.threads.iter().all(|thread| thread.noise.run_ns == 0) {
            std::thread::sleep(std::time::Duration::from_millis(5));
            witness.sample(time::monotonic_ns());
        }
        drop(tell);
        thread.join().unwrap();
        let noise = witness.finish();
        let seen = noise.vcpus.iter().find(|vcpu| vcpu.vcpu == 7).expect("the thread was not found");
        assert!(seen.run_ns > 0 && seen.turns > 0 && noise.samples > 0, "{noise:?}");
    }
}
