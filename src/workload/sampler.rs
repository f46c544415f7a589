//! What a worker measures about itself while it works: progress, gaps, CPU changes, run delay, latency samples.
//!
//! Owns checkpoints and the schedstat baseline; leaves the memory to slot and the loop to kinds/.
//! Invariant: nothing here allocates or blocks, and one `tick` between checkpoints is a clock read and a comparison.
//!
//! `/proc/thread-self/schedstat` is counted wherever the kernel has CONFIG_SCHED_INFO (which SCHEDSTATS and
//! TASK_DELAY_ACCT select); the sysctl kernel.sched_schedstats governs other statistics only. A kernel that has the file but
//! does not count prints `0 0 0`, which no task that has run can have: that is taken as "not known".

use super::rng::Rng;
use super::slot::{Field, Slot};
use crate::proto::report::Migration;
use crate::sys::{fd, sched, time};
use crate::units::NS_PER_MS;
use std::os::fd::OwnedFd;

/// Longest time of running between two looks at the CPU number.
const CHECKPOINT_NS: u64 = NS_PER_MS;
/// Shortest time between two reads of the run delay: a read costs about a microsecond, so 100 ms keep it below 0.01 %.
const RUN_DELAY_NS: u64 = 100 * NS_PER_MS;
/// Three numbers of at most 20 digits, two spaces, a newline.
const SCHEDSTAT_BYTES: usize = 64;

/// The three numbers of a task's schedstat (kernel: Documentation/scheduler/sched-stats.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedStat {
    pub cpu_ns: u64,
    pub run_delay_ns: u64,
    pub runs: u64,
}

impl SchedStat {
    /// `None` where /proc is not mounted or the kernel has no SCHED_INFO.
    fn open() -> Option<OwnedFd> {
        fd::open_read(c"/proc/thread-self/schedstat").ok()
    }

    /// Of another process, by its main thread; `None` where it is gone too.
    pub fn of_process(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/schedstat")).ok()?)
    }

    fn read(file: &OwnedFd) -> Option<Self> {
        let mut buffer = [0; SCHEDSTAT_BYTES];
        match fd::read_start(file, &mut buffer) {
            Ok(count) => Self::parse(&buffer[..count]),
            Err(_) => None,
        }
    }

    /// `None` for what is no schedstat, and for the zeros of a kernel that does not count.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut numbers = [0u64; 3];
        let mut words = bytes.trim_ascii().split(|byte| *byte == b' ');
        for number in &mut numbers {
            let word = words.next().filter(|word| !word.is_empty())?;
            for byte in word {
                let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
                *number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
            }
        }
        let [cpu_ns, run_delay_ns, runs] = numbers;
        (words.next().is_none() && numbers != [0; 3]).then_some(Self { cpu_ns, run_delay_ns, runs })
    }
}

/// One worker's measuring, from the start of its loop to the end.
pub struct Sampler<'a> {
    slot: Slot<'a>,
    start_ns: u64,
    cpu_start_ns: u64,
    /// When progress was last seen.
    last_ns: u64,
    next_checkpoint_ns: u64,
    next_run_delay_ns: u64,
    last_cpu: u32,
    max_gap_ns: u64,
    /// The same since the owner took it from the slot.
    phase_gap_ns: u64,
    schedstat: Option<OwnedFd>,
    baseline: Option<SchedStat>,
    last_run_delay_ns: u64,
    max_run_delay_ns: u64,
    /// Which of the raw samples are kept; none: they are not asked for.
    raw: Option<Rng>,
}

/// What is read before the gate, so that a worker that waits long for its first turn has that wait in its numbers.
pub struct Baseline {
    schedstat: Option<OwnedFd>,
    stat: Option<SchedStat>,
}

impl Baseline {
    /// `late`: the gate is open already, so that all the task ever waited for since its fork was its first turn.
    pub fn read(late: bool) -> Self {
        let schedstat = SchedStat::open();
        let stat = schedstat.as_ref().and_then(SchedStat::read);
        Self { schedstat, stat: stat.map(|stat| if late { SchedStat::default() } else { stat }) }
    }
}

impl<'a> Sampler<'a> {
    /// The clock started when the gate was opened.
    pub fn start(slot: Slot<'a>, baseline: Baseline, opened_ns: u64) -> Self {
        let last_cpu = sched::current_cpu();
        slot.add_cpu(last_cpu);
        let now = time::monotonic_ns();
        let mut sampler = Self {
            slot,
            start_ns: opened_ns,
            cpu_start_ns: time::thread_cpu_ns(),
            last_ns: opened_ns,
            next_checkpoint_ns: now + CHECKPOINT_NS,
            next_run_delay_ns: now + RUN_DELAY_NS,
            last_cpu,
            max_gap_ns: 0,
            phase_gap_ns: 0,
            last_run_delay_ns: baseline.stat.map_or(0, |stat| stat.run_delay_ns),
            schedstat: baseline.schedstat,
            baseline: baseline.stat,
            max_run_delay_ns: 0,
            raw: None,
        };
        sampler.tick_at(now);
        sampler.look_at_run_delay();
        sampler
    }

    /// Keeps raw samples too, where the slot has room for them.
    pub fn with_raw(self, rng: Rng) -> Self {
        Self { raw: self.slot.keeps_raw().then_some(rng), ..self }
    }

    /// The worker made progress. Returns the time.
    #[inline]
    pub fn tick(&mut self) -> u64 {
        let now = time::monotonic_ns();
        self.tick_at(now);
        now
    }

    /// The same with a time just read.
    #[inline]
    pub fn tick_at(&mut self, now: u64) {
        let gap = now.saturating_sub(self.last_ns);
        self.last_ns = now;
        if gap > self.phase_gap_ns {
            self.note_gap(gap, now);
        }
        if now >= self.next_checkpoint_ns {
            self.checkpoint(now, gap);
        }
    }

    /// When progress was last seen: a time stamp without another look at the clock, just after a `tick`.
    #[inline]
    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// A blocking call has returned: the time since the last tick was no gap.
    #[inline]
    pub fn resume_at(&mut self, now: u64) {
        self.last_ns = now;
        if now >= self.next_checkpoint_ns {
            self.checkpoint(now, 0);
        }
    }

    /// One latency sample, at its place among the type's kinds.
    #[inline]
    pub fn record(&mut self, place: usize, ns: u64) {
        self.slot.record(place, ns);
        if let Some(rng) = &mut self.raw {
            self.slot.keep_raw(place, ns, rng);
        }
    }

    #[cold]
    fn note_gap(&mut self, gap: u64, now: u64) {
        self.phase_gap_ns = gap;
        self.slot.raise(Field::PhaseGapNs, gap);
        if gap <= self.max_gap_ns {
            return;
        }
        self.max_gap_ns = gap;
        self.slot.set(Field::MaxGapNs, gap);
        self.slot.set(Field::MaxGapCpu, u64::from(self.last_cpu));
        self.slot.set(Field::MaxGapAtNs, now - self.start_ns);
    }

    #[cold]
    fn checkpoint(&mut self, now: u64, gap: u64) {
        self.next_checkpoint_ns = now + CHECKPOINT_NS;
        self.look_at_cpu(now);
        if self.slot.get(Field::PhaseGapNs) == 0 {
            // Taken: another phase has begun, and this gap ends in it. Shorter ones than a checkpoint's time may be missed.
            self.phase_gap_ns = gap;
            self.slot.raise(Field::PhaseGapNs, gap);
        }
        if now >= self.next_run_delay_ns {
            self.next_run_delay_ns = now + RUN_DELAY_NS;
            self.look_at_run_delay();
        }
    }

    fn look_at_cpu(&mut self, now: u64) {
        let cpu = sched::current_cpu();
        // Each time, because the owner may have taken what was seen.
        self.slot.add_cpu(cpu);
        if cpu != self.last_cpu {
            let at_ns = now.saturating_sub(self.start_ns);
            self.slot.add_migration(&Migration { at_ns, from_cpu: self.last_cpu, to_cpu: cpu });
            self.last_cpu = cpu;
        }
    }

    fn look_at_run_delay(&mut self) -> Option<SchedStat> {
        self.baseline?;
        let stat = self.schedstat.as_ref().and_then(SchedStat::read)?;
        let grown = stat.run_delay_ns.saturating_sub(self.last_run_delay_ns);
        self.max_run_delay_ns = self.max_run_delay_ns.max(grown);
        self.slot.raise(Field::PhaseDelayNs, grown);
        self.last_run_delay_ns = stat.run_delay_ns;
        Some(stat)
    }

    /// The clock stops here; the numbers go to the slot.
    pub fn finish(mut self) {
        let cpu_ns = time::thread_cpu_ns() - self.cpu_start_ns;
        let now = time::monotonic_ns();
        self.look_at_cpu(now);
        self.slot.set(Field::WallNs, now - self.start_ns);
        self.slot.set(Field::CpuNs, cpu_ns);
        if let (Some(last), Some(first)) = (self.look_at_run_delay(), self.baseline) {
            self.slot.set(Field::SchedCpuNs, last.cpu_ns.saturating_sub(first.cpu_ns));
            self.slot.set(Field::SchedDelayNs, last.run_delay_ns.saturating_sub(first.run_delay_ns));
            self.slot.set(Field::SchedRuns, last.runs.saturating_sub(first.runs));
            self.slot.set(Field::MaxRunDelayNs, self.max_run_delay_ns);
            self.slot.set(Field::SchedKnown, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::slot::Shared;

    #[test]
    fn schedstat_parses_and_refuses_what_is_none() {
        let some = SchedStat { cpu_ns: 334_561, run_delay_ns: 0, runs: 1 };
        assert_eq!(SchedStat::parse(b"334561 0 1\n"), Some(some));
        for bad in [&b"0 0 0\n"[..], b"", b"1 2", b"1 2 3 4", b"1 x 3", b"1  3", b"99999999999999999999 1 1"] {
            assert_eq!(SchedStat::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_pause_between_ticks_is_a_gap_but_a_blocking_call_is_not() {
        let shared = Shared::new(1, &[], 0).unwrap();
        let mut sampler = Sampler::start(shared.slot(0), Baseline::read(false), time::monotonic_ns());
        let t0 = sampler.start_ns;
        // The first turn's own wait, which is another test's matter.
        (sampler.last_ns, sampler.max_gap_ns, sampler.phase_gap_ns) = (t0, 0, 0);
        sampler.tick_at(t0 + 1000);
        sampler.resume_at(t0 + 900_000_000);
        sampler.tick_at(t0 + 900_005_000);
        assert_eq!(shared.slot(0).get(Field::MaxGapNs), 5000);
        assert_eq!(shared.slot(0).get(Field::MaxGapAtNs), 900_005_000);
        sampler.tick_at(t0 + 990_000_000);
        assert_eq!(shared.slot(0).get(Field::MaxGapNs), 89_995_000);
        sampler.tick_at(t0 + 990_001_000);
        assert_eq!(shared.slot(0).get(Field::MaxGapNs), 89_995_000);
    }

    #[test]
    fn longest_gap_of_a_phase_begins_anew_where_it_was_taken() {
        let shared = Shared::new(1, &[], 0).unwrap();
        let slot = shared.slot(0);
        let mut sampler = Sampler::start(slot, Baseline::read(false), time::monotonic_ns());
        let t0 = sampler.start_ns + 1_000_000_000;
        sampler.tick_at(t0);
        assert!(slot.take(Field::PhaseGapNs) >= 900_000_000);
        sampler.tick_at(t0 + 50_000_000);
        assert_eq!((slot.get(Field::PhaseGapNs), sampler.phase_gap_ns), (50_000_000, 50_000_000));
        sampler.tick_at(t0 + 60_000_000);
        sampler.tick_at(t0 + 130_000_000);
        assert_eq!(slot.take(Field::PhaseGapNs), 70_000_000);
        // A blocking call is no gap of the new phase either.
        sampler.resume_at(t0 + 900_000_000);
        assert_eq!(slot.get(Field::PhaseGapNs), 0);
        assert!(slot.get(Field::MaxGapNs) >= 900_000_000);
    }

    #[test]
    fn waiting_for_the_first_turn_is_a_gap_and_counts_as_wall_time() {
        const LATE_NS: u64 = 3_000_000_000;
        let shared = Shared::new(1, &[], 0).unwrap();
        let opened_ns = time::monotonic_ns() - LATE_NS;
        let sampler = Sampler::start(shared.slot(0), Baseline::read(false), opened_ns);
        sampler.finish();
        assert!(shared.slot(0).get(Field::MaxGapNs) >= LATE_NS);
        assert!(shared.slot(0).get(Field::WallNs) >= LATE_NS);
    }

    #[test]
    fn finish_writes_the_deltas() {
        let shared = Shared::new(1, &[], 0).unwrap();
        let sampler = Sampler::start(shared.slot(0), Baseline::read(false), time::monotonic_ns());
        let known = sampler.baseline.is_some();
        let spun: u64 = (0..2_000_000u64).fold(0, |sum, i| std::hint::black_box(sum + i));
        assert!(spun > 0);
        sampler.finish();
        let slot = shared.slot(0);
        assert!(slot.get(Field::WallNs) > 0 && slot.get(Field::CpuNs) > 0);
        assert_eq!(slot.get(Field::SchedKnown) == 1, known);
        assert!(slot.cpus().count() >= 1);
    }
}
