//! The monitor of the run queues while a scenario runs: looks, and what lasted.
//!
//! Owns when to look and finding what lasted for a whole window; leaves the look itself to scx/, judging to verdict/.
//! Invariant: only what every look of a window showed is told, and a monitor that could not look says why.

use crate::proto::cpuset::CpuSet;
use crate::proto::limits::MILLI;
use crate::proto::runqueues::{LOOK_EVERY_NS, Lasting, RunQueues, WINDOW};
use crate::scx::monitor::{Monitor, Queue};
use std::collections::VecDeque;
use std::path::Path;

/// CPUs whose clock moves once a second while they have one task (Documentation/timers/no_hz.rst).
const TICKLESS: &str = "sys/devices/system/cpu/nohz_full";

/// The monitor of one boot.
pub struct QueueWatch {
    monitor: Result<Monitor, String>,
    tickless: CpuSet,
    /// While a scenario runs.
    seen: Option<Fold>,
}

impl QueueWatch {
    pub fn open(root: &Path) -> Self {
        let tickless = std::fs::read_to_string(root.join(TICKLESS)).ok().and_then(|text| text.trim().parse().ok());
        Self { monitor: Monitor::open(root), tickless: tickless.unwrap_or_default(), seen: None }
    }

    /// A scenario begins.
    pub fn begin(&mut self) {
        let error = self.monitor.as_ref().err().cloned();
        let told = RunQueues { error, ..RunQueues::default() };
        self.seen = Some(Fold { told, tickless: self.tickless.clone(), ..Fold::default() });
    }

    /// Looks where it is time to.
    pub fn tick(&mut self, now_ns: u64) {
        let (Ok(monitor), Some(seen)) = (&self.monitor, &mut self.seen) else { return };
        if now_ns < seen.next_ns || seen.told.error.is_some() {
            return;
        }
        seen.next_ns = now_ns + LOOK_EVERY_NS;
        match monitor.look() {
            Ok(queues) => seen.add(&queues, now_ns),
            Err(error) => seen.told.error = Some(format!("a look into the run queues failed: {error}")),
        }
    }

    /// The scenario is over.
    pub fn take(&mut self) -> RunQueues {
        self.seen.take().unwrap_or_default().told
    }
}

/// What one CPU showed lately.
#[derive(Debug, Default)]
struct Recent {
    depths: VecDeque<u64>,
    clock: Option<u64>,
    /// Looks in a row at which its clock had not moved while it had tasks.
    still: u64,
}

#[derive(Debug, Default)]
struct Fold {
    told: RunQueues,
    next_ns: u64,
    first_ns: u64,
    ratios: VecDeque<u64>,
    tickless: CpuSet,
    /// By CPU number.
    recent: Vec<Recent>,
}

/// Adds one look to a window; once that is full: the least in it.
fn lasting(window: &mut VecDeque<u64>, value: u64) -> Option<u64> {
    if window.len() == WINDOW {
        window.pop_front();
    }
    window.push_back(value);
    window.iter().min().copied().filter(|_| window.len() == WINDOW)
}

/// Keeps the worst; the first of equals stays.
fn keep(worst: &mut Option<Lasting>, value: Option<u64>, cpu: u32, at_ns: u64) {
    if let Some(value) = value.filter(|value| worst.is_none_or(|worst| worst.value < *value)) {
        *worst = Some(Lasting { value, cpu, at_ns });
    }
}

impl Fold {
    fn add(&mut self, queues: &[Queue], now_ns: u64) {
        if self.told.looks == 0 {
            self.first_ns = now_ns;
        }
        self.told.looks += 1;
        let at_ns = now_ns - self.first_ns;
        let (Some(longest), Some(shortest)) =
            (queues.iter().max_by_key(|queue| queue.running), queues.iter().min_by_key(|queue| queue.running))
        else {
            return;
        };
        // A CPU without tasks has room for one: one task beside it is no imbalance.
        let ratio = u64::from(longest.running.max(1)) * MILLI / u64::from(shortest.running.max(1));
        keep(&mut self.told.imbalance, lasting(&mut self.ratios, ratio), longest.cpu, at_ns);
        for (cpu, recent) in self.recent.iter_mut().enumerate() {
            // A CPU that went offline meanwhile begins anew.
            if !queues.iter().any(|queue| queue.cpu as usize == cpu) {
                *recent = Recent::default();
            }
        }
        for queue in queues {
            let index = queue.cpu as usize;
            if self.recent.len() <= index {
                self.recent.resize_with(index + 1, Recent::default);
            }
            let recent = &mut self.recent[index];
            if let Some(depth) = queue.depth {
                keep(&mut self.told.depth, lasting(&mut recent.depths, u64::from(depth)), queue.cpu, at_ns);
            }
            let stands = queue.running > 0 && recent.clock == Some(queue.clock) && !self.tickless.contains(queue.cpu);
            recent.still = if stands { recent.still + 1 } else { 0 };
            recent.clock = Some(queue.clock);
            keep(&mut self.told.still, Some(recent.still).filter(|looks| *looks > 0), queue.cpu, at_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(cpu: u32, running: u32, depth: u32, clock: u64) -> Queue {
        Queue { cpu, running, depth: Some(depth), clock }
    }

    fn fold(looks: &[[Queue; 2]]) -> RunQueues {
        let mut fold = Fold::default();
        looks.iter().enumerate().for_each(|(index, look)| fold.add(look, 7 + index as u64 * LOOK_EVERY_NS));
        fold.told
    }

    #[test]
    fn only_what_lasts_for_a_window_is_told() {
        let look = |running: u32, clock| [queue(0, running, running, clock), queue(1, 0, 0, clock)];
        let told = fold(&[look(9, 1), look(9, 2), look(6, 3), look(9, 4), look(9, 5), look(1, 6)]);
        let at_ns = 4 * LOOK_EVERY_NS;
        assert_eq!(told.looks, 6);
        assert_eq!(told.imbalance, Some(Lasting { value: 6000, cpu: 0, at_ns }));
        assert_eq!(told.depth, Some(Lasting { value: 6, cpu: 0, at_ns }));
        assert_eq!(told.still, None);
        let short = fold(&[look(9, 1), look(9, 2), look(9, 3), look(9, 4)]);
        assert_eq!((short.looks, short.imbalance, short.depth), (4, None, None));
    }

    #[test]
    fn clock_that_stands_is_counted_only_while_there_are_tasks() {
        let look = |running: u32, clock| [queue(0, 1, 0, clock), queue(1, running, 0, 5)];
        assert_eq!(fold(&[look(0, 1), look(0, 2), look(0, 3)]).still, None);
        let told = fold(&[look(1, 1), look(1, 2), look(1, 3), look(0, 4), look(1, 5)]);
        assert_eq!(told.still, Some(Lasting { value: 2, cpu: 1, at_ns: 2 * LOOK_EVERY_NS }));
        let mut tickless = Fold { tickless: "1".parse().unwrap(), ..Fold::default() };
        (0..4).for_each(|index| tickless.add(&look(1, index), index * LOOK_EVERY_NS));
        assert_eq!(tickless.told.still, None);
    }

    #[test]
    fn cpu_that_was_offline_begins_its_window_anew() {
        let both = |clock| [queue(0, 0, 0, clock), queue(1, 9, 9, 5)];
        let mut fold = Fold::default();
        for (index, look) in [&both(1)[..], &both(2), &both(3), &both(4)[..1], &both(5), &both(6)].iter().enumerate() {
            fold.add(look, index as u64 * LOOK_EVERY_NS);
        }
        assert_eq!(fold.told.depth, Some(Lasting { value: 0, cpu: 0, at_ns: 4 * LOOK_EVERY_NS }));
        assert_eq!(fold.told.still, Some(Lasting { value: 2, cpu: 1, at_ns: 2 * LOOK_EVERY_NS }));
    }

    #[test]
    fn one_task_beside_an_idle_cpu_is_no_imbalance() {
        let look = [queue(0, 1, 0, 1), queue(1, 0, 0, 1)];
        assert_eq!(fold(&[look; WINDOW]).imbalance.unwrap().value, MILLI);
    }

    #[test]
    fn monitor_that_cannot_look_says_why() {
        let mut watch = QueueWatch::open(Path::new("/nowhere"));
        watch.begin();
        watch.tick(1);
        let told = watch.take();
        assert_eq!(told.looks, 0);
        assert!(told.error.unwrap().contains("CONFIG_DEBUG_INFO_BTF"));
    }
}
