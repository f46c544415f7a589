//! PID 1 of the guest: one ordered function and one event loop.
//!
//! Owns the guest's life from exec to reboot; leaves measuring to workload/ and scx/.
//! Invariant: no path leaves PID 1 without a record of why.

pub mod agent;
mod bring_up;
mod disk;
mod dump;
pub mod init;
pub mod kmsg;
pub mod mounts;
mod outside;
pub mod power;
mod provoke;
mod queues;
mod realtime;
mod sabotage;
mod topology;

use std::path::Path;

/// Where the plan is in the image.
pub const PLAN_PATH: &str = "/ktstr/plan";
/// The last file of the image: where it is missing, the archive was cut for lack of memory.
pub const END_PATH: &str = "/ktstr/end";
/// Where cgroup v2 is mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Where the kernel shows sched_ext.
pub const SCHED_EXT_ROOT: &str = "/sys/kernel/sched_ext";

/// What every image of ours has, even one that was cut before its plan.
const OF_EVERY_IMAGE: [&str; 2] = ["/init", "/ktstr/sched"];

/// Whether this process is PID 1 of a guest of ours; anything else is the command line.
pub fn is_our_role() -> bool {
    crate::sys::process::id() == 1 && OF_EVERY_IMAGE.iter().all(|path| Path::new(path).exists())
}
