//! What one worker measured about itself, and how it ended.
//!
//! Owns the report's fields and their units; leaves measuring to workload/ and judging to verdict/.
//! Invariant: a number that could not be measured is `None`, never 0; the longest gap asks `known_gap_ns` for that.

use super::cpuset::CpuSet;
use super::hist::Hist;
use super::phase::CpuSlice;
use super::work::SampleKind;
use crate::units::{NS_PER_MS, NS_PER_SEC};
use crate::{wire_enum, wire_struct};

/// Most samples of one kind that a worker keeps as they are; few under Miri, which looks at every byte of a slice.
pub const RAW_CAP: usize = if cfg!(miri) { 64 } else { 100_000 };

/// The collection deadline: from the stop to the SIGKILL, shared by all workers of a handle.
pub const COLLECT_NS: u64 = 5 * NS_PER_SEC;
/// The emulator gives its CPUs their turns on few of the host's: the one worker of a guest of 240, with another VM beside it,
/// did not get to its stop within `COLLECT_NS` (Linux 7.2, QEMU 10, two CPUs of an EPYC).
const COLLECT_PER_EMULATED_CPU_NS: u64 = NS_PER_SEC / 4;

/// The collection deadline in a guest with so many CPUs, by whether software runs them.
pub fn collect_ns(cpus: u32, emulated: bool) -> u64 {
    let for_turns_ns = if emulated { u64::from(cpus) * COLLECT_PER_EMULATED_CPU_NS } else { 0 };
    COLLECT_NS.max(for_turns_ns)
}

wire_enum! {
    /// Why a worker gave no report of its own.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ExitInfo {
        /// It left with this exit code before it reported.
        Exited = 0 { code: i32 },
        /// This signal ended it.
        Signaled = 1 { signal: i32 },
        /// It had not reported at the collection deadline, and was killed.
        TimedOut = 2,
        /// Waiting for it failed.
        WaitFailed = 3 { text: String },
        /// It panicked, with this message.
        Panicked = 4 { text: String },
    }
}

impl ExitInfo {
    /// One phrase for a person.
    pub fn describe(&self) -> String {
        match self {
            Self::Exited { code } => format!("exited with code {code} without a report"),
            Self::Signaled { signal } => format!("was killed by signal {signal}"),
            Self::TimedOut => "did not report before the collection deadline".into(),
            Self::WaitFailed { text } => format!("could not be waited for: {text}"),
            Self::Panicked { text } => format!("panicked: {text}"),
        }
    }
}

wire_struct! {
    /// One change of CPU, seen at a checkpoint.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Migration { pub at_ns: u64, pub from_cpu: u32, pub to_cpu: u32 }
}

wire_struct! {
    /// The samples of one kind: their histogram, and how many were offered to it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Samples {
        pub kind: SampleKind,
        pub hist: Hist,
        /// A uniform choice of at most `RAW_CAP` of them (Algorithm R), in no order; empty unless asked for.
        pub raw_ns: Vec<u64>,
    }
}

wire_struct! {
    /// Everything one worker tells. Times are nanoseconds of CLOCK_MONOTONIC unless said otherwise.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct WorkerReport {
        /// Kernel thread id.
        pub tid: i32,
        /// Index of the worker within its handle, from 0.
        pub worker_idx: u32,
        /// 0 for the primary group, 1.. for composed ones.
        pub group_idx: u32,
        /// Name of the work type.
        pub work_type: String,
        /// Position class within the group ("plain" where all are equal), so that fairness compares equals.
        pub role: String,
        /// Primitive steps done.
        pub work_units: u64,
        /// Outer loops done.
        pub iterations: u64,
        /// From the opening of the gate, which is the same for all, to the end of the loop; of one that did no work at most
        /// to the stop.
        pub wall_time_ns: u64,
        /// CLOCK_THREAD_CPUTIME_ID over the loop.
        pub cpu_time_ns: u64,
        /// Wall minus CPU time, at least 0.
        pub off_cpu_ns: u64,
        /// Time runnable but waiting: /proc/self/task/TID/schedstat field 2 over the loop.
        pub schedstat_run_delay_ns: Option<u64>,
        /// Times run: field 3.
        pub schedstat_run_count: Option<u64>,
        /// Time on CPU: field 1.
        pub schedstat_cpu_time_ns: Option<u64>,
        /// Largest growth of the run delay between two checkpoints.
        pub max_run_delay_ns: Option<u64>,
        /// CPU changes seen at checkpoints; the count is complete, the list is bounded.
        pub migration_count: u64,
        pub migrations: Vec<Migration>,
        /// By cpuset in force: the CPUs seen. Empty where no cpuset bounded the worker.
        pub slices: Vec<CpuSlice>,
        pub cpus_used: CpuSet,
        /// Longest time without progress between two checkpoints, blocking calls left out.
        pub max_gap_ns: u64,
        /// The CPU before that gap.
        pub max_gap_cpu: u32,
        /// When it was noticed, from the start of the loop.
        pub max_gap_at_ns: u64,
        /// (node, pages) of its mappings after the loop: /proc/self/numa_maps; none where it was not read.
        pub numa_pages: Option<Vec<(u32, u64)>>,
        /// Growth of the system's numa_pages_migrated (/proc/vmstat) over the loop.
        pub vmstat_numa_pages_migrated: Option<u64>,
        /// Latency samples by kind.
        pub samples: Vec<Samples>,
        /// Whether the worker reported for itself; false for a sentinel.
        pub completed: bool,
        /// How it ended, for a sentinel.
        pub exit_info: Option<ExitInfo>,
        /// What the kernel refused, with its errno in words.
        pub affinity_error: Option<String>,
        pub sched_policy_error: Option<String>,
        pub nice_error: Option<String>,
        pub mem_policy_error: Option<String>,
        /// A set-up failure inside the worker (mapping, buffer, descriptor).
        pub setup_error: Option<String>,
        /// Something that the worker did in another way than asked, such as narrower vectors.
        pub notice: Option<String>,
    }
}

impl WorkerReport {
    /// The report that stands for a worker which gave none.
    pub fn sentinel(tid: i32, worker_idx: u32, group_idx: u32, work_type: &str, exit: ExitInfo) -> Self {
        Self {
            tid,
            worker_idx,
            group_idx,
            work_type: work_type.into(),
            role: "plain".into(),
            exit_info: Some(exit),
            ..Self::default()
        }
    }
    /// Whether it is the one that wakes the others of a fan-out.
    pub fn is_messenger(&self) -> bool {
        self.role == "messenger"
    }
    /// The longest gap; none of a worker that made no progress, and so had none that ended.
    pub fn known_gap_ns(&self) -> Option<u64> {
        (self.max_gap_ns > 0 || self.work_units > 0).then_some(self.max_gap_ns)
    }
    /// The longest gap in milliseconds.
    pub fn max_gap_ms(&self) -> u64 {
        self.max_gap_ns / NS_PER_MS
    }
    /// When it was noticed, in milliseconds.
    pub fn max_gap_at_ms(&self) -> u64 {
        self.max_gap_at_ns / NS_PER_MS
    }
    /// The histogram of one kind, where the worker records it.
    pub fn hist(&self, kind: SampleKind) -> Option<&Hist> {
        self.samples.iter().find(|samples| samples.kind == kind).map(|samples| &samples.hist)
    }
    /// The samples of one kind as they are, where they were asked for.
    pub fn raw_ns(&self, kind: SampleKind) -> &[u64] {
        self.samples.iter().find(|samples| samples.kind == kind).map_or(&[], |samples| &samples.raw_ns)
    }
    /// Wake latencies as they are, where they were asked for.
    pub fn resume_latencies_ns(&self) -> &[u64] {
        self.raw_ns(SampleKind::Wake)
    }
    /// How many wake latencies there were in all.
    pub fn wake_sample_total(&self) -> u64 {
        self.hist(SampleKind::Wake).map_or(0, Hist::count)
    }
    /// Costs of single iterations as they are, where they were asked for.
    pub fn iteration_costs_ns(&self) -> &[u64] {
        self.raw_ns(SampleKind::Cost)
    }
    /// How many iterations were timed in all.
    pub fn iteration_cost_sample_total(&self) -> u64 {
        self.hist(SampleKind::Cost).map_or(0, Hist::count)
    }
    /// Takes the raw samples out, a part at a time: so that each fits into a message. (kind, samples)
    pub fn take_raw(&mut self, part: usize) -> Vec<(SampleKind, Vec<u64>)> {
        let mut parts = Vec::new();
        for samples in &mut self.samples {
            let raw = std::mem::take(&mut samples.raw_ns);
            parts.extend(raw.chunks(part).map(|some| (samples.kind, some.to_vec())));
        }
        parts
    }
    /// Puts such a part back.
    pub fn add_raw(&mut self, kind: SampleKind, raw_ns: &[u64]) {
        if let Some(samples) = self.samples.iter_mut().find(|samples| samples.kind == kind) {
            let room = RAW_CAP - samples.raw_ns.len().min(RAW_CAP);
            samples.raw_ns.extend_from_slice(&raw_ns[..raw_ns.len().min(room)]);
        }
    }
    /// The settings that were asked for and refused, in words.
    pub fn refusals(&self) -> Vec<String> {
        let named = [
            ("affinity", &self.affinity_error),
            ("scheduling policy", &self.sched_policy_error),
            ("nice", &self.nice_error),
            ("memory policy", &self.mem_policy_error),
            ("set-up", &self.setup_error),
        ];
        named.iter().filter_map(|(what, error)| error.as_ref().map(|text| format!("{what} refused: {text}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn report_round_trips_and_is_refused_when_cut() {
        let mut report = WorkerReport::sentinel(12, 3, 1, "SpinWait", ExitInfo::Signaled { signal: 9 });
        report.samples.push(Samples {
            kind: SampleKind::Wake,
            hist: Hist::from_counts([(5, 2)], 10, 5, 5),
            raw_ns: vec![5, 5],
        });
        report.migrations.push(Migration { at_ns: 1, from_cpu: 0, to_cpu: 1 });
        report.affinity_error = Some("invalid argument".into());
        let bytes = report.to_bytes();
        assert_eq!(WorkerReport::from_bytes(&bytes).unwrap(), report);
        for cut in 0..bytes.len() {
            assert!(WorkerReport::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(report.refusals(), ["affinity refused: invalid argument"]);
        assert_eq!(report.hist(SampleKind::Wake).unwrap().count(), 2);
    }

    #[test]
    fn many_cpus_in_software_have_longer_to_report() {
        for (cpus, seconds) in [(0, 5), (1, 5), (20, 5), (24, 6), (240, 60)] {
            assert_eq!(collect_ns(cpus, true), seconds * NS_PER_SEC, "{cpus}");
            assert_eq!(collect_ns(cpus, false), COLLECT_NS, "{cpus}");
        }
    }

    #[test]
    fn raw_samples_are_divided_and_put_together_again() {
        let mut report = WorkerReport::default();
        let hist = Hist::from_counts([(5, 5)], 25, 5, 5);
        report.samples.push(Samples { kind: SampleKind::Wake, hist: hist.clone(), raw_ns: vec![1, 2, 3, 4, 5] });
        report.samples.push(Samples { kind: SampleKind::Cost, hist, raw_ns: vec![9] });
        let whole = report.clone();
        let parts = report.take_raw(2);
        assert_eq!(parts.iter().map(|(_, raw)| raw.len()).collect::<Vec<_>>(), [2, 2, 1, 1]);
        assert!(report.resume_latencies_ns().is_empty() && report.iteration_costs_ns().is_empty());
        parts.iter().for_each(|(kind, raw)| report.add_raw(*kind, raw));
        assert_eq!(report, whole);
        assert_eq!((report.resume_latencies_ns(), report.wake_sample_total()), (&[1, 2, 3, 4, 5][..], 5));
        assert_eq!((report.iteration_costs_ns(), report.iteration_cost_sample_total()), (&[9][..], 5));
        // What comes from a guest is not believed to be bounded.
        report.add_raw(SampleKind::Cost, &vec![1; 2 * RAW_CAP]);
        assert_eq!(report.iteration_costs_ns().len(), RAW_CAP);
        assert!(report.raw_ns(SampleKind::Io).is_empty());
    }
}
