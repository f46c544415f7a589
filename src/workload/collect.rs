//! The end of a handle's workers: stop, wait, kill at the deadline, collect every report; and those that end by themselves.
//!
//! Owns waiting for workers and their deadlines; leaves turning slots into reports to report.
//! Invariant: every worker gives exactly one report; nothing waits longer than `collect_ns + KILL_NS`; a pid is signalled only
//! while it has not been waited for, so never after it may have been recycled.

use super::handle::WorkloadHandle;
use super::report::{self, Ending, Identity};
use super::slot::State;
use super::worker::STOP_SIGNAL;
use crate::error::Result;
use crate::proto::report::{ExitInfo, WorkerReport};
use crate::sys::process::End;
use crate::sys::{process, signal, time};
use crate::units::{NS_PER_MS, NS_PER_SEC};
use std::io;
use std::sync::atomic::Ordering;

/// From the SIGKILL until we stop waiting: a task that the scheduler under test never runs cannot die either.
const KILL_NS: u64 = 2 * NS_PER_SEC;
/// The same for a handle that is dropped, which has no report to give in time and may wait longer: where dozens of tasks want
/// each CPU, even the end of a killed one takes seconds.
const DROP_NS: u64 = 5 * NS_PER_SEC;
/// The stop signal is sent again this often: one may come just before the blocking call it should interrupt.
const RESEND_NS: u64 = 20 * NS_PER_MS;
/// Pause between two looks at the workers; callers of `stop_and_collect_with` get their turn this often.
const POLL_NS: u64 = 2 * NS_PER_MS;

/// How far the collection has come.
#[derive(Debug, Default)]
pub(super) struct Collection {
    /// From the stop to the SIGKILL.
    collect_ns: u64,
    /// When the workers were told to stop.
    stop_at_ns: Option<u64>,
    last_signal_ns: u64,
    /// When SIGKILL was sent.
    kill_at_ns: Option<u64>,
    /// The reports were handed out.
    done: bool,
}

impl Collection {
    pub(super) fn within(collect_ns: u64) -> Self {
        Self { collect_ns, ..Self::default() }
    }
}

/// One worker, as its parent knows it.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) who: Identity,
    ending: Option<Ending>,
    /// We sent it SIGKILL at the deadline.
    killed: bool,
    /// An end before the stop was told to the caller.
    told: bool,
}

impl Worker {
    pub(super) fn new(who: Identity) -> Self {
        Self { who, ending: None, killed: false, told: false }
    }

    /// Waits for it without blocking. Its group is killed first, while its pid cannot be another's.
    fn try_reap(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let pid = self.who.pid;
        let ended = match process::has_ended(pid) {
            Ok(false) => return,
            Ok(true) => {
                self.kill_group();
                process::wait(pid, false)
            }
            Err(error) => Err(error),
        };
        self.ending = match ended {
            Ok(Some((_, end))) => Some(Ending::Known(end)),
            Ok(None) => None,
            Err(error) => Some(Ending::WaitFailed(error.to_string())),
        };
    }

    /// SIGKILL to the worker and to what it may have forked.
    fn kill_group(&self) {
        // ESRCH means that the group, or the worker, is gone: nothing is left to kill.
        for target in [-self.who.pid, self.who.pid] {
            if let Err(error) = process::kill(target, libc::SIGKILL) {
                debug_assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
            }
        }
    }
}

/// A worker that ended before it was told to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyExit {
    pub worker_idx: u32,
    pub tid: i32,
    pub exit: ExitInfo,
    /// Where it could not begin: why.
    pub setup_error: Option<String>,
}

impl EarlyExit {
    pub fn describe(&self) -> String {
        let why = self.setup_error.as_ref().map_or(String::new(), |text| format!(": {text}"));
        format!("worker {} (tid {}) {}{why}", self.worker_idx, self.tid, self.exit.describe())
    }
}

impl WorkloadHandle {
    /// Workers that have not ended, as far as we know.
    pub fn alive(&self) -> usize {
        self.workers.iter().filter(|worker| worker.ending.is_none()).count()
    }

    /// Workers that ended without being told to, each told once.
    pub fn check_early_exits(&mut self) -> Vec<EarlyExit> {
        if self.collection.stop_at_ns.is_some() {
            return Vec::new();
        }
        self.reap();
        let fresh: Vec<usize> = (0..self.workers.len())
            .filter(|idx| self.workers[*idx].ending.is_some() && !self.workers[*idx].told)
            .collect();
        let exits = fresh.iter().filter_map(|idx| {
            let report = self.report_of(*idx);
            let exit = report.exit_info?;
            Some(EarlyExit { worker_idx: *idx as u32, tid: report.tid, exit, setup_error: report.setup_error })
        });
        let exits = exits.collect();
        fresh.iter().for_each(|idx| self.workers[*idx].told = true);
        exits
    }

    /// Tells how a process ended that somebody else waited for; false: it is none of ours.
    pub fn note_exit(&mut self, pid: i32, end: End) -> bool {
        let unknown = |worker: &&mut Worker| !matches!(worker.ending, Some(Ending::Known(_)));
        let mut known = false;
        // Workers that are threads have one process.
        for worker in self.workers.iter_mut().filter(unknown).filter(|worker| worker.who.pid == pid) {
            worker.ending = Some(Ending::Known(end));
            known = true;
        }
        known
    }

    /// Tells all workers to stop, and starts the one deadline. Starts them first where that was never done.
    pub fn request_stop(&mut self) -> Result<()> {
        if self.collection.stop_at_ns.is_some() {
            return Ok(());
        }
        self.collection.stop_at_ns = Some(time::monotonic_ns());
        self.shared.gate().stop();
        self.start()?;
        self.signal_all();
        Ok(())
    }

    /// Looks who has ended. Workers that are threads of one process share its end.
    fn reap(&mut self) {
        for idx in 0..self.workers.len() {
            let (before, rest) = self.workers.split_at_mut(idx);
            let Some(worker) = rest.first_mut() else { return };
            match before.last().filter(|previous| previous.who.pid == worker.who.pid) {
                Some(previous) => worker.ending = worker.ending.take().or_else(|| previous.ending.clone()),
                None => worker.try_reap(),
            }
        }
    }

    fn signal_all(&mut self) {
        self.collection.last_signal_ns = time::monotonic_ns();
        for worker in self.workers.iter().filter(|worker| worker.ending.is_none()) {
            let done = self.shared.slot(worker.who.idx as usize).state() >= State::Done;
            // ESRCH: it has just been waited for by somebody else, who will tell us.
            let (pid, tid) = (worker.who.pid, worker.who.tid);
            if let (false, Err(error)) = (done, signal::send_to_thread(pid, tid, STOP_SIGNAL)) {
                debug_assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
            }
        }
    }

    /// One look at the workers that were told to stop; the reports once all have ended, or the last deadline has passed.
    /// After that it gives an empty list.
    pub fn poll_collect(&mut self) -> Option<Vec<WorkerReport>> {
        if self.collection.done {
            return Some(Vec::new());
        }
        let stop_at_ns = self.collection.stop_at_ns?;
        self.reap();
        let now = time::monotonic_ns();
        if self.alive() > 0 && !self.give_up_at(stop_at_ns, now) {
            return None;
        }
        self.collection.done = true;
        Some((0..self.workers.len()).map(|idx| self.report_of(idx)).collect())
    }

    /// Presses on with those that have not ended. True: the last deadline has passed.
    fn give_up_at(&mut self, stop_at_ns: u64, now: u64) -> bool {
        match self.collection.kill_at_ns {
            Some(kill_at_ns) => now.saturating_sub(kill_at_ns) >= KILL_NS,
            None if now.saturating_sub(stop_at_ns) >= self.collection.collect_ns => {
                self.collection.kill_at_ns = Some(now);
                for worker in self.workers.iter_mut().filter(|worker| worker.ending.is_none()) {
                    worker.killed = true;
                    worker.kill_group();
                }
                false
            }
            None => {
                if now.saturating_sub(self.collection.last_signal_ns) >= RESEND_NS {
                    self.signal_all();
                }
                false
            }
        }
    }

    fn report_of(&self, idx: usize) -> WorkerReport {
        let worker = &self.workers[idx];
        let spec = &self.specs[worker.who.group_idx as usize];
        let ending = match &worker.ending {
            Some(Ending::Known(End::Signaled(libc::SIGKILL))) if worker.killed => Ending::TimedOut,
            Some(ending) => ending.clone(),
            None => Ending::TimedOut,
        };
        let mut report = report::of(&worker.who, spec, self.shared.slot(idx), &ending);
        if let (true, 0, Some(stop_at_ns)) = (report.completed, report.work_units, self.collection.stop_at_ns) {
            // Who had no turn before the stop was there until the stop: what it then waited for its end is no lack of work.
            // It was there for something, though: no time at all would be one that was not measured.
            let there_ns = stop_at_ns.saturating_sub(self.shared.gate().opened_ns.load(Ordering::Relaxed)).max(1);
            report.wall_time_ns = report.wall_time_ns.min(there_ns);
            report.off_cpu_ns = report.wall_time_ns.saturating_sub(report.cpu_time_ns);
        }
        report
    }

    /// Stops all workers and collects one report from each, within `collect_ns + KILL_NS`.
    pub fn stop_and_collect(self) -> Result<Vec<WorkerReport>> {
        self.stop_and_collect_with(&mut || {})
    }

    /// The same; `idle` is called at least every 10 ms meanwhile.
    pub fn stop_and_collect_with(mut self, idle: &mut dyn FnMut()) -> Result<Vec<WorkerReport>> {
        self.request_stop()?;
        loop {
            if let Some(reports) = self.poll_collect() {
                return Ok(reports);
            }
            idle();
            pause();
        }
    }
}

/// Waits one `POLL_NS`; an interruption only makes the next look come earlier.
pub(crate) fn pause() {
    if let Err(error) = time::sleep_ns(POLL_NS) {
        debug_assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}

impl Drop for WorkloadHandle {
    fn drop(&mut self) {
        // Whoever cannot be killed is told to end by itself.
        self.shared.gate().stop();
        let give_up_ns = time::monotonic_ns() + DROP_NS;
        self.reap();
        self.workers.iter().filter(|worker| worker.ending.is_none()).for_each(Worker::kill_group);
        // After a collection the wait for the unkillable has been had already.
        while self.alive() > 0 && !self.collection.done && time::monotonic_ns() < give_up_ns {
            self.reap();
            pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::report::COLLECT_NS;
    use crate::proto::work::WorkType;
    use crate::workload::WorkloadConfig;

    fn started(workers: u32) -> WorkloadHandle {
        let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::SpinWait, workers)).unwrap();
        handle.start().unwrap();
        handle
    }

    fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = time::monotonic_ns() + 20 * NS_PER_SEC;
        while !condition() {
            assert!(time::monotonic_ns() < deadline, "never: {what}");
            pause();
        }
    }

    /// Neither the process nor a zombie of it is there.
    fn is_gone(pid: i32) -> bool {
        process::kill(pid, 0).is_err()
    }

    #[test]
    fn killed_worker_is_told_early_once_and_reported_as_signaled() {
        let mut handle = started(2);
        let tids = handle.tids();
        wait_until("both work", || handle.snapshot_iterations().iter().all(|done| *done > 0));
        assert!(handle.check_early_exits().is_empty());
        process::kill(tids[0], libc::SIGKILL).unwrap();
        let mut early = Vec::new();
        wait_until("the end is seen", || {
            early.extend(handle.check_early_exits());
            !early.is_empty()
        });
        assert_eq!(early[0].exit, ExitInfo::Signaled { signal: libc::SIGKILL });
        assert!(early[0].describe().contains("was killed by signal 9"));
        assert_eq!((early.len(), handle.alive()), (1, 1));
        assert!(handle.check_early_exits().is_empty());
        let reports = handle.stop_and_collect().unwrap();
        assert_eq!(reports[0].exit_info, Some(ExitInfo::Signaled { signal: libc::SIGKILL }));
        assert_eq!((reports[0].completed, reports[0].iterations, reports[0].tid), (false, 0, tids[0]));
        assert!(reports[1].completed && reports[1].iterations > 0);
        assert!(tids.iter().all(|tid| is_gone(*tid)));
    }

    #[test]
    fn stopped_worker_times_out_at_its_deadline_while_idle_is_called() {
        let collect_ns = NS_PER_SEC;
        let config = WorkloadConfig { collect_ns, ..WorkloadConfig::new(WorkType::SpinWait, 2) };
        let mut handle = WorkloadHandle::spawn(&config).unwrap();
        handle.start().unwrap();
        let tids = handle.tids();
        wait_until("both work", || handle.snapshot_iterations().iter().all(|done| *done > 0));
        process::kill(tids[1], libc::SIGSTOP).unwrap();
        let begin = time::monotonic_ns();
        let mut idles = 0;
        let reports = handle.stop_and_collect_with(&mut || idles += 1).unwrap();
        let took_ns = time::monotonic_ns() - begin;
        assert!((collect_ns..COLLECT_NS).contains(&took_ns), "{took_ns}");
        assert!(idles > 50, "{idles}");
        assert!(reports[0].completed);
        assert_eq!(reports[1].exit_info, Some(ExitInfo::TimedOut));
        assert!(tids.iter().all(|tid| is_gone(*tid)));
    }

    #[test]
    fn panicking_worker_reports_its_message() {
        let config = WorkloadConfig::new(WorkType::SpinWait, 2);
        let mut handle = WorkloadHandle::spawn_placed(&config, |place| place.group += 70).unwrap();
        handle.start().unwrap();
        let mut early = Vec::new();
        wait_until("both panicked", || {
            early.extend(handle.check_early_exits());
            early.len() == 2
        });
        let reports = handle.stop_and_collect().unwrap();
        let Some(ExitInfo::Panicked { text }) = &reports[1].exit_info else { panic!("{:?}", reports[1]) };
        assert!(text.starts_with("group 71 of 2 at src/workload/slot.rs:"), "{text}");
        // Whichever was found first.
        let second = early.iter().find(|exit| exit.worker_idx == 1).unwrap();
        assert_eq!(second.exit, reports[1].exit_info.clone().unwrap());
    }

    #[test]
    fn dropped_handle_leaves_no_process() {
        for start in [false, true] {
            let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::SpinWait, 3)).unwrap();
            if start {
                handle.start().unwrap();
            }
            let tids = handle.tids();
            process::kill(tids[2], libc::SIGSTOP).unwrap();
            drop(handle);
            assert!(tids.iter().all(|tid| is_gone(*tid)), "started: {start}");
        }
    }

    #[test]
    fn end_told_from_outside_is_taken_once() {
        let mut handle = started(1);
        let pid = handle.tids()[0];
        assert!(!handle.note_exit(1, End::Exited(0)));
        process::kill(pid, libc::SIGTERM).unwrap();
        let (_, end) = process::wait(pid, true).unwrap().unwrap();
        assert!(handle.note_exit(pid, end));
        assert!(!handle.note_exit(pid, end));
        assert_eq!(handle.check_early_exits()[0].exit, ExitInfo::Signaled { signal: libc::SIGTERM });
        let reports = handle.stop_and_collect().unwrap();
        assert_eq!(reports[0].exit_info, Some(ExitInfo::Signaled { signal: libc::SIGTERM }));
    }

    #[test]
    fn worker_that_somebody_else_reaped_is_a_failed_wait() {
        let handle = started(1);
        let pid = handle.tids()[0];
        process::kill(pid, libc::SIGKILL).unwrap();
        process::wait(pid, true).unwrap();
        let reports = handle.stop_and_collect().unwrap();
        assert!(matches!(reports[0].exit_info, Some(ExitInfo::WaitFailed { .. })), "{:?}", reports[0]);
    }

    #[test]
    fn never_started_workers_are_started_and_reported() {
        let handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::SpinWait, 2)).unwrap();
        let reports = handle.stop_and_collect().unwrap();
        assert_eq!(reports.iter().filter(|report| report.completed).count(), 2);
    }

    #[test]
    fn worker_without_a_turn_before_the_stop_was_there_until_the_stop() {
        let mut handle = WorkloadHandle::spawn(&WorkloadConfig::new(WorkType::SpinWait, 1)).unwrap();
        let pid = handle.tids()[0];
        process::kill(pid, libc::SIGSTOP).unwrap();
        wait_until("it stands", || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T "));
        let begin = time::monotonic_ns();
        handle.start().unwrap();
        pause();
        handle.request_stop().unwrap();
        let there_ns = time::monotonic_ns() - begin;
        time::sleep_ns(20 * NS_PER_MS).unwrap();
        process::kill(pid, libc::SIGCONT).unwrap();
        let report = handle.stop_and_collect().unwrap().remove(0);
        assert_eq!((report.completed, report.work_units), (true, 0), "{report:?}");
        assert!((1..=there_ns).contains(&report.wall_time_ns), "{} of {there_ns}", report.wall_time_ns);
    }

    #[test]
    fn polling_gives_the_reports_once() {
        let mut handle = started(1);
        assert_eq!(handle.poll_collect(), None);
        handle.request_stop().unwrap();
        handle.request_stop().unwrap();
        let mut reports = None;
        wait_until("collected", || {
            reports = handle.poll_collect();
            reports.is_some()
        });
        assert_eq!(reports.unwrap().len(), 1);
        assert_eq!(handle.poll_collect(), Some(Vec::new()));
    }
}
