//! `ktstr __panic [worker]`: panics here, or in a worker, as the tests of this very binary need it.
//!
//! Owns provoking it and telling what a handle says of its workers; leaves the sentinels to workload/.
//! Invariant: nothing here is for people, and a worker that does not panic is an error.

use super::out;
use crate::error::{Error, Result};
use crate::proto::plan::{CloneMode, WorkSpec};
use crate::proto::work::WorkType;
use crate::sys::time;
use crate::units::{NS_PER_MS, NS_PER_SEC};
use crate::workload::{WorkloadConfig, WorkloadHandle, register_custom};

/// How long a worker may take to panic.
const LIMIT_NS: u64 = 20 * NS_PER_SEC;

pub fn cmd_panic(worker: bool) -> Result<u8> {
    if !worker {
        panic!("provoked");
    }
    register_custom("panic", |_| panic!("provoked in a worker"));
    for (mode, name) in [(CloneMode::Fork, "process"), (CloneMode::Thread, "thread")] {
        let mut config = WorkloadConfig::new(WorkType::Custom { name: "panic".into() }, 1);
        config.clone_mode = mode;
        config.composed = vec![WorkSpec::new(WorkType::SpinWait, 1)];
        let mut handle = WorkloadHandle::spawn(&config)?;
        handle.start()?;
        let limit = time::monotonic_ns() + LIMIT_NS;
        let early = loop {
            match handle.check_early_exits() {
                early if !early.is_empty() => break early,
                _ if time::monotonic_ns() > limit => return Err(Error::internal("no worker panicked")),
                _ => time::sleep_ns(NS_PER_MS).map_err(|error| Error::os("wait for a panic", error))?,
            }
        };
        for exit in early {
            out::print(&format!("{name}: {}\n", exit.describe()))?;
        }
        for report in handle.stop_and_collect()? {
            let end = report.exit_info.map_or("completed".into(), |exit| exit.describe());
            out::print(&format!("{name}: {} in group {} {end}\n", report.work_type, report.group_idx))?;
        }
    }
    Ok(0)
}
