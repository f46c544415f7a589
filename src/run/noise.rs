//! The witness of host noise: what the host's scheduler counted for every vCPU thread, sampled while the VM runs.
//!
//! Owns finding the threads and adding up; leaves the values to proto/noise, when to sample to watch.rs.
//! Invariant: the counters only grow, so a late sample loses nothing but the place of a wait within its window.

use crate::proto::noise::{HostNoise, VcpuNoise};
use crate::sys::fd;
use crate::units::{NS_PER_MS, NS_PER_SEC, NS_PER_US};
use std::ffi::CString;
use std::fs;
use std::ops::Range;
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

/// The host's CPU time since its boot, all CPUs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTime {
    stolen_ns: u64,
    busy_ns: u64,
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
    /// What /proc/stat told at first, at the last look, and when that was.
    first_cpu: Option<CpuTime>,
    last_cpu: Option<CpuTime>,
    looked_ns: u64,
    stolen: Vec<u32>,
    busy: Vec<u32>,
    pressure_ns: Option<u64>,
}

impl Witness {
    /// Begins now. `exec_ns` is where times count from; both are CLOCK_MONOTONIC.
    pub fn new(pid: i32, exec_ns: u64, now_ns: u64) -> Self {
        let cpu = cpu_time(&read("/proc/stat"));
        Self {
            pid,
            exec_ns,
            from_ns: now_ns,
            last_ns: now_ns,
            searched_ns: 0,
            samples: 0,
            slot_ns: SLOT_NS,
            threads: Vec::new(),
            first_cpu: cpu,
            last_cpu: cpu,
            looked_ns: now_ns,
            stolen: Vec::new(),
            busy: Vec::new(),
            pressure_ns: pressure_ns(&read("/proc/pressure/cpu")),
        }
    }

    /// When the next sample is due.
    pub fn due_ns(&self) -> u64 {
        self.last_ns + SAMPLE_EVERY_NS
    }

    /// Samples every thread; a thread that is gone keeps its last numbers.
    pub fn sample(&mut self, now_ns: u64) {
        while (now_ns - self.from_ns) / self.slot_ns >= SLOTS_MOST as u64 {
            self.widen();
        }
        if now_ns >= self.searched_ns + SEARCH_EVERY_NS {
            self.searched_ns = now_ns;
            self.search();
            self.look_at_host(now_ns);
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

    /// Takes what the host's CPU time has grown by.
    fn look_at_host(&mut self, now_ns: u64) {
        let Some((now, before)) = cpu_time(&read("/proc/stat")).zip(self.last_cpu) else { return };
        let times = self.looked_ns - self.from_ns..now_ns - self.from_ns;
        lay(&mut self.stolen, self.slot_ns, times.clone(), now.stolen_ns.saturating_sub(before.stolen_ns));
        lay(&mut self.busy, self.slot_ns, times, now.busy_ns.saturating_sub(before.busy_ns));
        (self.last_cpu, self.looked_ns) = (Some(now), now_ns);
    }

    /// Makes each pair of slots one of twice the length.
    fn widen(&mut self) {
        self.slot_ns *= 2;
        let of_threads = self.threads.iter_mut().map(|thread| &mut thread.slots);
        for slots in of_threads.chain([&mut self.stolen, &mut self.busy]) {
            let pairs = slots.chunks(2).map(|pair| pair.iter().fold(0u32, |sum, us| sum.saturating_add(*us)));
            *slots = pairs.collect();
        }
    }

    /// All that was seen.
    pub fn finish(mut self) -> HostNoise {
        self.look_at_host(self.last_ns);
        self.threads.sort_by_key(|thread| (thread.noise.vcpu, thread.tid));
        let slots = self.threads.iter().map(|thread| thread.slots.len()).max().unwrap_or(0);
        let by_slot = |slot: usize| self.threads.iter().map(move |thread| thread.slots.get(slot).copied().unwrap_or(0));
        let stolen_ns = |cpu: Option<CpuTime>| cpu.map(|cpu| cpu.stolen_ns);
        let since = |before: Option<u64>, after: Option<u64>| Some(after?.saturating_sub(before?));
        HostNoise {
            from_ns: self.from_ns.saturating_sub(self.exec_ns),
            to_ns: self.last_ns.saturating_sub(self.exec_ns),
            samples: self.samples,
            slot_ns: self.slot_ns,
            worst_us: (0..slots).map(|slot| by_slot(slot).max().unwrap_or(0)).collect(),
            sum_us: (0..slots).map(|slot| by_slot(slot).fold(0u32, u32::saturating_add)).collect(),
            steal_ns: since(stolen_ns(self.first_cpu), stolen_ns(self.last_cpu)),
            stolen_us: self.stolen,
            busy_us: self.busy,
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

/// The first line of /proc/stat, `cpu user nice system idle iowait irq softirq steal ...`, of which user has what guests got
/// (Documentation/filesystems/proc.rst, 1.7).
fn cpu_time(stat: &str) -> Option<CpuTime> {
    let ticks: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let &[user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = &ticks[..] else { return None };
    let busy = [user, nice, system, irq, softirq].into_iter().fold(0u64, u64::saturating_add);
    Some(CpuTime { stolen_ns: steal.checked_mul(TICK_NS)?, busy_ns: busy.checked_mul(TICK_NS)? })
}

/// Lays a growth evenly over the slots of the times in which it came.
fn lay(slots: &mut Vec<u32>, slot_ns: u64, times: Range<u64>, grown_ns: u64) {
    let length_ns = times.end.saturating_sub(times.start);
    if length_ns == 0 {
        return;
    }
    let last = ((times.end - 1) / slot_ns) as usize;
    if slots.len() <= last {
        slots.resize(last + 1, 0);
    }
    for (index, slot) in slots.iter_mut().enumerate().take(last + 1).skip((times.start / slot_ns) as usize) {
        let (start_ns, end_ns) = (index as u64 * slot_ns, (index as u64 + 1) * slot_ns);
        let within_ns = end_ns.min(times.end) - start_ns.max(times.start);
        let part_ns = u128::from(grown_ns) * u128::from(within_ns) / u128::from(length_ns);
        *slot = slot.saturating_add(u32::try_from(part_ns / u128::from(NS_PER_US)).unwrap_or(u32::MAX));
    }
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
        let busy_ns = (63265 + 3187 + 7588 + 5 + 113) * TICK_NS;
        let cpu = cpu_time("cpu  63265 3187 7588 71764 490 5 113 132 9 9\ncpu0 1\n");
        assert_eq!(cpu, Some(CpuTime { stolen_ns: 132 * TICK_NS, busy_ns }));
        assert_eq!((cpu_time(""), cpu_time("cpu  1 2 3 4 5 6 7\n"), pressure_ns("")), (None, None, None));
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
    fn growth_lies_over_the_time_in_which_it_came() {
        let mut slots = vec![1];
        lay(&mut slots, 100_000_000, 50_000_000..300_000_000, 50_000_000);
        assert_eq!(slots, [10_001, 20_000, 20_000]);
        lay(&mut slots, 100_000_000, 300_000_000..300_000_000, 50_000_000);
        assert_eq!(slots.len(), 3, "no time, no slot");
        // All of a large host's CPUs together have more than a slot's own length.
        lay(&mut slots, 100_000_000, 0..100_000_000, 3_200_000_000);
        assert_eq!(slots[0], 3_210_001);
    }

    #[test]
    fn host_at_work_is_seen_to_be_busy() {
        let begun = time::monotonic_ns();
        let mut witness = Witness::new(process::id(), begun, begun);
        // Until a tick of somebody's is counted.
        let end = begun + 10 * NS_PER_SEC;
        while time::monotonic_ns() < end && witness.busy.iter().all(|us| *us == 0) {
            witness.sample(time::monotonic_ns());
        }
        let noise = witness.finish();
        assert!(noise.stolen_percent_between(0, u64::MAX).is_some(), "{noise:?}");
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
        (witness.stolen, witness.busy) = (vec![4, 5, 6], vec![7, 8, 9]);
        witness.sample(SLOT_NS * SLOTS_MOST as u64 * 3);
        assert_eq!((witness.slot_ns, &witness.threads[0].slots[..]), (4 * SLOT_NS, &[6][..]));
        assert!(witness.stolen[0] >= 15 && witness.busy[0] >= 24, "{witness:?}");
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
