//! Host noise: how long the host let runnable vCPUs wait, as its own scheduler counted it.
//!
//! Owns the values and what can be read off them; leaves sampling to run/noise, judging to verdict/noise.
//! Invariant: a wait is counted where it happened, not where its end was noticed, so no slot holds more than its own length.

use crate::wire_struct;
use std::ops::Range;

wire_struct! {
    /// One vCPU thread, from its start to the end of the VM.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct VcpuNoise {
        pub vcpu: u32,
        /// CPU time it got.
        pub run_ns: u64,
        /// Time it was runnable and waited for a CPU of the host.
        pub delay_ns: u64,
        /// Times that it was given a CPU.
        pub turns: u64,
        /// The largest growth of the wait between two samples, how far they lay apart, and when (since exec).
        pub worst_delay_ns: u64,
        pub worst_window_ns: u64,
        pub worst_at_ns: u64,
    }
}

wire_struct! {
    /// What was witnessed of the host during one run. Times count from exec.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct HostNoise {
        pub from_ns: u64,
        pub to_ns: u64,
        pub samples: u64,
        pub vcpus: Vec<VcpuNoise>,
        /// Length of a slot of the two series, which begin at `from_ns`.
        pub slot_ns: u64,
        /// By slot: how long that vCPU waited that waited longest, in microseconds.
        pub worst_us: Vec<u32>,
        /// By slot: how long all vCPUs together waited, in microseconds.
        pub sum_us: Vec<u32>,
        /// By slot: what the host's own hypervisor took from the host, and what was left to its tasks, all CPUs together, in
        /// microseconds. Empty where the host does not tell.
        pub stolen_us: Vec<u32>,
        pub busy_us: Vec<u32>,
        /// Time that the host's own hypervisor took from it meanwhile, all CPUs together.
        pub steal_ns: Option<u64>,
        /// Time in which some task of the host waited for a CPU (pressure stall information).
        pub pressure_ns: Option<u64>,
    }
}

const NS_PER_US: u64 = 1000;

impl HostNoise {
    /// Share of the time that vCPUs wanted to run in which they waited, in percent; none where nothing was measured.
    pub fn waited_percent(&self) -> Option<f64> {
        let (run, delay) = self.vcpus.iter().fold((0u64, 0u64), |(run, delay), vcpu| {
            (run.saturating_add(vcpu.run_ns), delay.saturating_add(vcpu.delay_ns))
        });
        let wanted = run.saturating_add(delay);
        (wanted > 0).then(|| delay as f64 * 100.0 / wanted as f64)
    }

    /// The vCPU with the largest growth between two samples.
    pub fn worst(&self) -> Option<&VcpuNoise> {
        self.vcpus.iter().max_by_key(|vcpu| vcpu.worst_delay_ns)
    }

    /// The same of the slots that lie between these times, if only in part. What is known of the whole run alone is left
    /// out.
    pub fn only_between(&self, from_ns: u64, to_ns: u64) -> Self {
        let slots = self.slots(from_ns, to_ns);
        let of = |series: &[u32]| series[slots.start.min(series.len())..slots.end.min(series.len())].to_vec();
        Self {
            from_ns: if slots.is_empty() { from_ns.max(self.from_ns) } else { self.start_ns(slots.start) },
            to_ns: to_ns.min(self.to_ns),
            samples: self.samples,
            slot_ns: self.slot_ns,
            worst_us: of(&self.worst_us),
            sum_us: of(&self.sum_us),
            stolen_us: of(&self.stolen_us),
            busy_us: of(&self.busy_us),
            ..Self::default()
        }
    }

    /// The same without the waits of slots that lie wholly within one of these times.
    pub fn without(&self, times: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut rest = self.only_between(0, u64::MAX);
        let slot_at =
            |at_ns: u64, up: u64| (at_ns.saturating_sub(self.from_ns).saturating_add(up) / self.slot_ns) as usize;
        for (from_ns, to_ns) in times.into_iter().filter(|_| self.slot_ns > 0) {
            let (first, end) = (slot_at(from_ns, self.slot_ns - 1), slot_at(to_ns, 0));
            for series in [&mut rest.worst_us, &mut rest.sum_us] {
                series.iter_mut().take(end).skip(first).for_each(|us| *us = 0);
            }
        }
        rest
    }

    fn start_ns(&self, slot: usize) -> u64 {
        self.from_ns.saturating_add((slot as u64).saturating_mul(self.slot_ns))
    }

    /// For how much of a slot it is between two times.
    fn overlap_ns(&self, slot: usize, from_ns: u64, to_ns: u64) -> u64 {
        let start_ns = self.start_ns(slot);
        start_ns.saturating_add(self.slot_ns).min(to_ns).saturating_sub(start_ns.max(from_ns))
    }

    /// The slots that lie between two times, if only in part.
    fn slots(&self, from_ns: u64, to_ns: u64) -> Range<usize> {
        let series = [&self.worst_us, &self.sum_us, &self.stolen_us, &self.busy_us];
        let known = series.into_iter().map(Vec::len).max().unwrap_or(0) as u64;
        if self.slot_ns == 0 || from_ns >= to_ns {
            return 0..0;
        }
        let first = (from_ns.saturating_sub(self.from_ns) / self.slot_ns).min(known);
        let end = to_ns.saturating_sub(self.from_ns).div_ceil(self.slot_ns).min(known);
        first as usize..end.max(first) as usize
    }

    /// How long vCPUs waited at most between two times: of each slot, the longest wait of one.
    pub fn most_between(&self, from_ns: u64, to_ns: u64) -> u64 {
        let slots = self.slots(from_ns, to_ns);
        let waits = self.worst_us.iter().enumerate().take(slots.end).skip(slots.start);
        let within = waits.map(|(slot, us)| (u64::from(*us) * NS_PER_US).min(self.overlap_ns(slot, from_ns, to_ns)));
        within.fold(0, u64::saturating_add)
    }

    /// How long all vCPUs waited between two times; the slots at both ends count as wholes.
    pub fn waited_between(&self, from_ns: u64, to_ns: u64) -> u64 {
        let slots = self.slots(from_ns, to_ns);
        let waits = self.sum_us.iter().take(slots.end).skip(slots.start);
        waits.fold(0u64, |sum, us| sum.saturating_add(u64::from(*us) * NS_PER_US))
    }

    /// Of the CPU time that the host's tasks wanted between two times, the share that its own hypervisor took, in percent: a
    /// vCPU that runs meanwhile loses as much on average, and no scheduler counts it. The slots at both ends count as wholes;
    /// none where nothing was told.
    pub fn stolen_percent_between(&self, from_ns: u64, to_ns: u64) -> Option<f64> {
        let slots = self.slots(from_ns, to_ns);
        let sum = |series: &[u32]| {
            let within = series.iter().take(slots.end).skip(slots.start);
            within.fold(0u64, |sum, us| sum.saturating_add(u64::from(*us)))
        };
        let (stolen, busy) = (sum(&self.stolen_us), sum(&self.busy_us));
        let wanted = stolen.saturating_add(busy);
        (wanted > 0).then(|| stolen as f64 * 100.0 / wanted as f64)
    }

    /// The most that vCPUs were kept waiting within any interval of this length: of each slot, the longest wait of one.
    pub fn most_within(&self, length_ns: u64) -> u64 {
        self.most_within_since(0, length_ns)
    }

    /// The same of intervals that do not end before this time.
    pub fn most_within_since(&self, since_ns: u64, length_ns: u64) -> u64 {
        if self.slot_ns == 0 {
            return 0;
        }
        let before = (since_ns.saturating_sub(self.from_ns) / self.slot_ns).min(self.worst_us.len() as u64) as usize;
        let series = &self.worst_us[before..];
        // Rounded up: an interval may begin within a slot.
        let width = (length_ns / self.slot_ns).saturating_add(1).min(series.len() as u64) as usize;
        let mut sum: u64 = 0;
        let mut most = 0;
        for (slot, us) in series.iter().enumerate() {
            sum = sum.saturating_add(u64::from(*us));
            if slot >= width {
                sum = sum.saturating_sub(u64::from(series[slot - width]));
            }
            most = most.max(sum);
        }
        most.saturating_mul(NS_PER_US).min(length_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    const SLOT: u64 = 100_000_000;

    fn noise() -> HostNoise {
        HostNoise {
            from_ns: SLOT,
            to_ns: 6 * SLOT,
            samples: 50,
            vcpus: vec![
                VcpuNoise { run_ns: 300, delay_ns: 50, worst_delay_ns: 5, ..VcpuNoise::default() },
                VcpuNoise { vcpu: 1, run_ns: 500, delay_ns: 150, worst_delay_ns: 9, ..VcpuNoise::default() },
            ],
            slot_ns: SLOT,
            worst_us: vec![0, 100_000, 60_000, 0, 10_000],
            sum_us: vec![5_000, 150_000, 60_000, 0, 20_000],
            stolen_us: vec![0, 50_000, 0, 0, 40_000],
            busy_us: vec![100_000, 150_000, 200_000, 0, 0],
            steal_ns: None,
            pressure_ns: Some(3),
        }
    }

    #[test]
    fn round_trip_and_cut_at_every_byte() {
        let bytes = noise().to_bytes();
        assert_eq!(HostNoise::from_bytes(&bytes).unwrap(), noise());
        for cut in 0..bytes.len() {
            assert!(HostNoise::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn shares_and_intervals_are_read_off() {
        assert_eq!(noise().waited_percent(), Some(20.0));
        assert_eq!(noise().worst().map(|vcpu| vcpu.vcpu), Some(1));
        assert_eq!(noise().waited_between(2 * SLOT, 4 * SLOT), 210_000_000);
        assert_eq!(noise().waited_between(0, u64::MAX), 235_000_000);
        assert_eq!(noise().stolen_percent_between(2 * SLOT, 3 * SLOT), Some(25.0));
        assert_eq!(noise().stolen_percent_between(2 * SLOT, 4 * SLOT), Some(12.5));
        assert_eq!(noise().only_between(2 * SLOT, 4 * SLOT).stolen_percent_between(0, u64::MAX), Some(12.5));
        assert_eq!(noise().stolen_percent_between(4 * SLOT, 5 * SLOT), None, "nobody wanted any");
        assert_eq!(noise().stolen_percent_between(5 * SLOT, 6 * SLOT), Some(100.0));
        assert_eq!(noise().most_within(SLOT), SLOT, "two neighbouring slots, but never more than the interval");
        assert_eq!(noise().most_within(2 * SLOT), 160_000_000);
        assert_eq!(noise().most_within(u64::MAX), 170_000_000);
        assert_eq!(noise().most_within_since(3 * SLOT, u64::MAX), 70_000_000, "what was before does not count");
        assert_eq!(noise().most_within_since(u64::MAX, u64::MAX), 0);
        let part = noise().only_between(3 * SLOT, 5 * SLOT);
        assert_eq!((part.from_ns, part.to_ns), (3 * SLOT, 5 * SLOT));
        assert_eq!((&part.worst_us[..], &part.sum_us[..]), (&[60_000, 0][..], &[60_000, 0][..]));
        assert_eq!((part.waited_percent(), part.worst()), (None, None), "the threads' sums are the whole run's");
        assert_eq!(noise().only_between(0, u64::MAX), HostNoise { vcpus: vec![], pressure_ns: None, ..noise() });
        let none = noise().only_between(9 * SLOT, u64::MAX);
        assert_eq!((none.most_within(SLOT), none.waited_between(0, u64::MAX)), (0, 0));
        let rest = noise().without([(SLOT, 3 * SLOT), (4 * SLOT + 1, u64::MAX)]);
        assert_eq!((rest.worst_us, rest.from_ns), (vec![0, 0, 60_000, 0, 0], SLOT));
        assert_eq!(
            noise().without([(SLOT + 1, 3 * SLOT - 1)]).worst_us,
            noise().worst_us,
            "neither slot lies wholly in it"
        );
        assert_eq!(noise().most_between(0, u64::MAX), 170_000_000);
        assert_eq!(noise().most_between(3 * SLOT - SLOT / 10, 4 * SLOT), 70_000_000, "no more than there is of a slot");
        assert_eq!(noise().most_between(4 * SLOT, 3 * SLOT), 0);
        assert_eq!((HostNoise::default().most_within(SLOT), HostNoise::default().waited_percent()), (0, None));
    }
}
