//! The loops of the work types, one file per family, and what they have in common.
//!
//! Owns a worker's counters and the dispatch by type; leaves measuring to sampler.
//! Invariant: every loop looks at the stop word at least once per burst of 1024 steps and after every blocking call; nothing
//! here allocates.

mod alu;
mod cache;
mod chain;
mod cpu;
mod custom;
mod event;
mod futex;
mod io;
mod lock;
mod means;
mod memory;
mod numa;
mod path;
mod phases;
mod pipe;
mod process;
mod queue;
mod sched;
mod signals;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_class;
#[cfg(test)]
mod tests_cost;
#[cfg(test)]
mod tests_cpu;
#[cfg(test)]
mod tests_faults;
#[cfg(test)]
mod tests_memory;
#[cfg(test)]
mod tests_wake;

pub use custom::{CustomFn, CustomTask, register_custom};
pub use means::{Links, Means, group_words};

use super::pages;
use super::rng::Rng;
use super::sampler::Sampler;
use super::slot::{Field, Group, Shared, Slot};
use super::worker::{self, Birth};
use crate::proto::work::WorkType;
use crate::sys::mmap::Mapping;
use crate::sys::{sched as cpus, time};
use std::fmt;
use std::io::Error;

/// Spin steps between two looks at the clock and the stop word: some 20 to 50 us, so a look costs about 0.1 %.
const BURST_STEPS: u64 = 1024;
/// Longest blocking call, so that a wake lost with its sender cannot hide the stop word.
const BLOCK_SLICE_NS: u64 = 100 * crate::units::NS_PER_MS;

/// One worker in its loop.
pub struct Task<'a> {
    birth: &'a Birth<'a>,
    work: &'a WorkType,
    shared: &'a Shared,
    slot: Slot<'a>,
    group: Group<'a>,
    /// Position within the group, from 0.
    position: usize,
    sampler: Sampler<'a>,
    rng: Rng,
    /// Pages that the system had moved between nodes when this began.
    moved_before: Option<u64>,
    units: u64,
    iterations: u64,
    /// The buffer of a loop that has ended: it stays until its pages were counted.
    held: Option<Mapping>,
}

impl<'a> Task<'a> {
    pub fn new(birth: &'a Birth<'a>, sampler: Sampler<'a>) -> Self {
        Self {
            birth,
            work: &birth.spec.work,
            shared: birth.shared,
            slot: birth.shared.slot(birth.idx),
            group: birth.shared.group(birth.group),
            position: birth.position,
            sampler,
            rng: Rng::of_worker(birth.seed, birth.group, birth.idx),
            moved_before: if birth.means.tell_pages { pages::migrated() } else { None },
            units: 0,
            iterations: 0,
            held: None,
        }
    }

    /// Works until it is told to stop.
    pub fn run(&mut self) {
        match *self.work {
            WorkType::SpinWait => cpu::spin_wait(self),
            WorkType::YieldHeavy => cpu::yield_heavy(self),
            WorkType::Mixed => cpu::mixed(self),
            WorkType::Bursty { burst_ns, sleep_ns } => cpu::bursty(self, burst_ns, sleep_ns),
            WorkType::IdleChurn { burst_ns, sleep_ns, precise_timing } => {
                cpu::idle_churn(self, burst_ns, sleep_ns, precise_timing)
            }
            WorkType::RtStarvation { burst_iters, .. } => cpu::spin_bursts(self, burst_iters),
            WorkType::PreemptStorm { rt_burst_iters, rt_sleep_ns, .. } => {
                cpu::preempt_storm(self, rt_burst_iters, rt_sleep_ns)
            }
            WorkType::NiceSweep => sched::nice_sweep(self),
            WorkType::AffinityChurn { spin_iters } => sched::affinity_churn(self, spin_iters),
            WorkType::PolicyChurn { spin_iters } => sched::policy_churn(self, spin_iters),
            WorkType::AluHot { width } => alu::alu_hot(self, width),
            WorkType::SmtSiblingSpin => alu::smt_sibling_spin(self),
            WorkType::IpcVariance { hot_iters, cold_iters, period_iters } => {
                alu::ipc_variance(self, hot_iters, cold_iters, period_iters)
            }
            WorkType::PipeIo { burst_iters } => pipe::pipe_io(self, burst_iters),
            WorkType::CachePipe { size_kb, burst_iters } => pipe::cache_pipe(self, size_kb, burst_iters),
            WorkType::FutexPingPong { spin_iters } => futex::ping_pong(self, spin_iters),
            WorkType::FutexFanOut { fan_out, spin_iters } => futex::fan_out(self, fan_out, spin_iters),
            WorkType::FanOutCompute { fan_out, cache_footprint_kb, operations, sleep_ns } => {
                futex::fan_out_compute(self, fan_out, (cache_footprint_kb, operations), sleep_ns)
            }
            WorkType::ThunderingHerd { batches, inter_batch_ns, .. } => futex::herd(self, batches, inter_batch_ns),
            WorkType::AsymmetricWaker { burst_iters, .. } => futex::asymmetric_waker(self, burst_iters),
            WorkType::MutexContention { hold_iters, work_iters, .. } => lock::mutex(self, hold_iters, work_iters),
            WorkType::PriorityInversion { high, medium, hold_iters, work_iters, pi_mode, .. } => {
                lock::priority_inversion(self, (high, medium), (hold_iters, work_iters), pi_mode)
            }
            WorkType::ProducerConsumerImbalance { producers, produce_rate_hz, consume_iters, .. } => {
                queue::producer_consumer(self, producers, produce_rate_hz, consume_iters)
            }
            WorkType::WakeChain { depth, wake, work_per_hop_ns } => {
                chain::wake_chain(self, depth, wake, work_per_hop_ns)
            }
            WorkType::EpollStorm { producers, events_per_burst, .. } => {
                event::epoll_storm(self, producers, events_per_burst)
            }
            WorkType::CachePressure { size_kb, stride } => cache::pressure(self, size_kb, stride, false),
            WorkType::CacheYield { size_kb, stride } => cache::pressure(self, size_kb, stride, true),
            WorkType::IoSyncWrite => io::sync_write(self),
            WorkType::IoRandRead => io::random_read(self),
            WorkType::IoConvoy => io::convoy(self),
            WorkType::PageFaultChurn { region_kb, touches_per_cycle, spin_iters } => {
                memory::page_fault_churn(self, region_kb, touches_per_cycle, spin_iters)
            }
            WorkType::NumaWorkingSetSweep { region_kb, sweep_period_ns, ref target_nodes } => {
                numa::working_set_sweep(self, region_kb, sweep_period_ns, target_nodes)
            }
            WorkType::NumaMigrationChurn { period_ns } => numa::migration_churn(self, period_ns),
            WorkType::Sequence { ref first, ref rest } => phases::sequence(self, first, rest),
            WorkType::ForkExit => process::fork_exit(self),
            WorkType::CgroupChurn { groups, cycle_ns } => process::cgroup_churn(self, groups, cycle_ns),
            WorkType::SignalStorm { signals_per_iter, work_iters } => {
                signals::signal_storm(self, signals_per_iter, work_iters)
            }
            WorkType::Custom { .. } => custom::custom(self),
        }
    }

    /// Writes the final numbers.
    pub fn finish(mut self) {
        self.slot.set(Field::Iterations, self.iterations);
        self.slot.set(Field::WorkUnits, self.units);
        let moved_before = self.moved_before;
        self.sampler.finish();
        let held = self.held.take();
        if let (true, Some(pages)) = (self.birth.means.tell_pages, pages::by_node()) {
            pages.iter().enumerate().for_each(|(node, count)| self.slot.set_pages(node, *count));
            self.slot.set(Field::PagesKnown, 1);
            if let Some((after, before)) = pages::migrated().zip(moved_before) {
                self.slot.set(Field::PagesMoved, after.saturating_sub(before));
                self.slot.set(Field::MovedKnown, 1);
            }
        }
        drop(held);
    }

    fn stopped(&self) -> bool {
        self.shared.stopped()
    }

    /// One outer loop is done: publishes the counters.
    #[inline]
    fn iteration_done(&mut self) {
        self.iterations += 1;
        self.slot.set(Field::Iterations, self.iterations);
        self.slot.set(Field::WorkUnits, self.units);
    }

    /// Spins `steps` steps, with a checkpoint and a look at the stop word per burst.
    fn spin(&mut self, steps: u64) {
        let mut left = steps;
        while left > 0 && !self.stopped() {
            let burst = left.min(BURST_STEPS);
            cpu::spin_burst(&mut self.units, burst);
            self.sampler.tick();
            left -= burst;
        }
    }

    /// Spins until so much time has passed; returns when that was.
    fn spin_for(&mut self, ns: u64) -> u64 {
        /// Steps between two looks at the clock: a few microseconds, so that short bursts are as short as asked for.
        const STEPS: u64 = 128;
        let mut now = self.sampler.tick();
        let end = now.saturating_add(ns);
        while now < end && !self.stopped() {
            cpu::spin_burst(&mut self.units, STEPS);
            now = self.sampler.tick();
        }
        now
    }

    /// sched_yield, whose time is a sample at this place. It counts as a gap: the worker was runnable.
    fn yield_once(&mut self, place: usize) {
        let before = self.sampler.tick();
        cpus::yield_now();
        let after = self.sampler.tick();
        self.sampler.record(place, after.saturating_sub(before));
    }

    /// Sleeps once; the oversleep is a sample at this place. An interrupted sleep is the stop signal and gives none.
    fn sleep_once(&mut self, ns: u64, place: Option<usize>) {
        let before = self.sampler.tick();
        if self.stopped() {
            return;
        }
        let slept = time::sleep_ns(ns);
        let after = time::monotonic_ns();
        self.sampler.resume_at(after);
        if let (Some(place), Ok(())) = (place, slept) {
            self.sampler.record(place, after.saturating_sub(before).saturating_sub(ns));
        }
    }

    /// Nothing is left to do; it stays to report when it is asked.
    fn idle_until_stopped(&mut self) {
        while !self.stopped() {
            self.sleep_once(BLOCK_SLICE_NS, None);
        }
    }

    /// Something is done in another way than asked.
    fn notice(&self, text: fmt::Arguments<'_>) {
        self.slot.set_text(text);
    }

    /// What it needs cannot be had: the worker ends, and its report says why.
    fn fail(&self, what: &str, error: &Error) -> ! {
        worker::fail(self.slot, what, error)
    }
}
