//! What a run is held to: every threshold with its default and the reason for it.
//!
//! Owns the values; leaves comparing to the checks, merging of layers to the command line.
//! Invariant: a threshold of `None` means that its check is off, and the verdict says so.

use crate::units::NS_PER_SEC;

/// Longest time a worker may be without progress, or runnable without running: far above any scheduler's latency target
/// (a few ms) and any slice times any sane number of tasks per CPU, and far below sched_ext's own watchdog (30 s).
const MAX_WAIT_NS: u64 = 2 * NS_PER_SEC;
/// Points of CPU share by which equal workers of a group may differ: one period of the load balancer in a run of seconds.
const SPREAD_PERCENT: f64 = 15.0;

/// Thresholds and options of one judgement.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// Every worker must have done work.
    pub not_starved: bool,
    pub max_gap_ns: Option<u64>,
    pub max_run_delay_ns: Option<u64>,
    /// Percentage points.
    pub spread_percent: Option<f64>,
    /// The kernel log must hold nothing of the table that fails a run.
    pub kernel_log_clean: bool,
    /// Whether a kernel that did not boot is a failure (exit 1) and not a skip (exit 125).
    pub boot_failure_fails: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            not_starved: true,
            max_gap_ns: Some(MAX_WAIT_NS),
            max_run_delay_ns: Some(MAX_WAIT_NS),
            spread_percent: Some(SPREAD_PERCENT),
            kernel_log_clean: true,
            boot_failure_fails: false,
        }
    }
}
