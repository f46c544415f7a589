//! What PID 1 does, in order.
//!
//! Owns the order; leaves each step to its module and everything after Hello to the agent.
//! Invariant: every step either succeeds, is told as missing, or ends the guest with its reason.

use super::agent::Agent;
use super::mounts::Missing;
use super::{END_PATH, PLAN_PATH, bring_up, mounts, power, topology};
use crate::channel::DOORBELL_PID1;
use crate::channel::guest::{GuestSession, doorbell};
use crate::error::{Context, Error, Result};
use crate::proto::codec::Wire;
use crate::proto::message::Msg;
use crate::proto::plan::{BUILD, PROTOCOL, Plan, SchedPolicy};
use crate::scenario::Coded;
use crate::sys::mount::{self, Limit};
use crate::sys::{process, sched, time};
use std::fs;
use std::path::Path;

/// PID 1 observes, so it must run whatever the scheduler under test does: SCHED_FIFO is above the class that sched_ext
/// owns. One below 99, which the kernel's own watchdog threads have.
const OBSERVER_PRIORITY: u32 = 98;
/// Open files that many workers' pipes may need.
const MOST_FILES: u64 = 1 << 20;

/// PID 1. `codes`: the scenarios that are code of this binary.
pub fn main(codes: &[Coded]) -> ! {
    power::install_panic_hook();
    // As long as CPUs are missing, it is the boot that goes on: what happens then happened before PID 1.
    let early = bring_up::is_asked().then(|| (mounts::mount_all(), bring_up::late_cpus(Path::new("/"))));
    let (mounted, cpus) = early.map_or((None, Ok(())), |(missing, cpus)| (Some(missing), cpus));
    let pid1_uptime_ns = time::boottime_ns();
    // Where there is no doorbell the host notices PID 1 by its first message.
    if let Ok(door) = doorbell() {
        door.write(DOORBELL_PID1);
    }
    match run(pid1_uptime_ns, mounted.unwrap_or_else(mounts::mount_all), cpus, codes) {
        Ok(()) => power::restart(),
        Err(error) => power::die(&error.to_string()),
    }
}

fn run(pid1_uptime_ns: u64, mounted: Vec<Missing>, cpus: Result<()>, codes: &[Coded]) -> Result<()> {
    let mut missing: Vec<String> = Vec::new();
    for mount in mounted {
        if mount.needed {
            return Err(Error::cannot_judge(format!("the guest kernel lacks {}", mount.text)));
        }
        missing.push(mount.text);
    }
    let mut note = |what: &str, error: Option<std::io::Error>| {
        missing.extend(error.map(|error| format!("{what}: {error}")));
    };
    let observer = SchedPolicy::Fifo { priority: OBSERVER_PRIORITY };
    note("SCHED_FIFO for PID 1", sched::set_policy(0, &observer, 0, true).err());
    note("memory lock for PID 1", sched::lock_memory().err());
    note("RLIMIT_MEMLOCK", mount::set_limit(Limit::LockedMemory, libc::RLIM_INFINITY).err());
    note("RLIMIT_NOFILE", mount::set_limit(Limit::OpenFiles, MOST_FILES).err());
    note("loopback interface", mount::loopback_up().err());
    note("name of PID 1", process::set_name("ktstr-pid1").err());

    let cmdline = fs::read_to_string("/proc/cmdline").context(|| "read /proc/cmdline")?;
    let mut session = GuestSession::open(&cmdline)?;
    let plan = cpus.and_then(|()| read_plan(Path::new("/")));
    session.send(&hello(&session, pid1_uptime_ns, missing))?;
    for text in session.take_notes() {
        session.send(&Msg::Note { text })?;
    }
    let seen = topology::read(Path::new("/"));
    let plan = plan.and_then(|plan| topology::check(&plan, &seen).map(|()| plan));
    session.send(&Msg::Machine { seen })?;
    let mut agent = Agent::new(session, codes);
    match plan {
        Ok(plan) => agent.carry_out(&plan),
        Err(error) => agent.refuse("plan", &error),
    }
    agent.finish()
}

/// The plan in the image, of exactly this build.
fn read_plan(root: &Path) -> Result<Plan> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    if !below(END_PATH).exists() {
        return Err(Error::cannot_judge(format!("the image was cut while it was unpacked: {END_PATH} is missing"))
            .hint("give the guest more memory with --memory"));
    }
    let bytes = fs::read(below(PLAN_PATH)).context(|| format!("read {PLAN_PATH}"))?;
    let plan =
        Plan::from_bytes(&bytes).map_err(|error| Error::internal(format!("{PLAN_PATH} cannot be decoded: {error}")))?;
    if plan.protocol != PROTOCOL || plan.build != BUILD {
        let (theirs, ours) = (&plan.build, BUILD);
        return Err(Error::internal(format!("{PLAN_PATH} was made by build {theirs}, this is {ours}")));
    }
    Ok(plan)
}

fn hello(session: &GuestSession, pid1_uptime_ns: u64, missing: Vec<String>) -> Msg {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let meminfo = text("/proc/meminfo");
    let total =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    Msg::Hello {
        protocol: PROTOCOL,
        build: BUILD.into(),
        kernel: text("/proc/sys/kernel/osrelease"),
        online: topology::list(Path::new("/sys/devices/system/cpu/online")),
        memory_kib: total.unwrap_or(0),
        pid1_uptime_ns,
        channel: session.kind().into(),
        missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn plan_is_taken_from_a_whole_image_of_this_build_only() {
        let root = std::env::temp_dir().join(format!("ktstr-init-{}", std::process::id()));
        let (end, file) = (root.join("ktstr/end"), root.join("ktstr/plan"));
        fs::create_dir_all(root.join("ktstr")).unwrap();
        let planned = crate::verdict::fixture::passing().plan.unwrap();
        let ours = Plan { protocol: PROTOCOL, build: BUILD.into(), ..planned };
        fs::write(&file, ours.to_bytes()).unwrap();
        // The kernel stops unpacking where memory ends, and starts PID 1 all the same.
        let cut = read_plan(&root).unwrap_err();
        assert_eq!(cut.kind(), Kind::CannotJudge);
        assert!(cut.to_string().contains("cut while it was unpacked") && cut.to_string().contains("--memory"), "{cut}");
        fs::write(&end, "").unwrap();
        assert_eq!(read_plan(&root).unwrap(), ours);
        let other = Plan { build: "another".into(), ..ours };
        fs::write(&file, other.to_bytes()).unwrap();
        assert!(read_plan(&root).unwrap_err().to_string().contains("made by build another"));
        fs::write(&file, &other.to_bytes()[1..]).unwrap();
        assert!(read_plan(&root).is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
