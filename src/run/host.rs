//! A run without a VM: the same scenario on this machine's own kernel, under whatever schedules it now.
//!
//! Owns finding a place for its cgroups and being the scenario's surroundings; leaves the scenario to scenario/, judging to
//! verdict/.
//! Invariant: nothing of the machine is changed but a cgroup subtree of its own, which goes with the run; a disk is never written.

use super::host_left;
use super::rundir::{Place, RunDir};
use crate::error::{Context, Error, Result};
use crate::log::{Event, Listener};
use crate::proto::message::{HostInfo, Msg, Stage, VmEnd};
use crate::proto::plan::{BUILD, PROTOCOL, Plan};
use crate::proto::report::COLLECT_NS;
use crate::proto::topology::Topology;
use crate::scenario::{self, Around, Resolver, SUBTREE, SchedOp, Settings, TestTopology};
use crate::sys::process::{self, End};
use crate::sys::{signal, time};
use crate::units::NS_PER_MS;
use crate::verdict::METAL;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One turn at most.
const TURN_NS: u64 = 20 * NS_PER_MS;
/// What the calling process is moved into where its own cgroup must become the parent of others.
const RUNNER: &str = "ktstr-runner";
/// Where sched_ext says what is loaded.
const SCHED_EXT: &str = "/sys/kernel/sched_ext";

/// What is to be run.
pub struct HostJob {
    pub plan: Plan,
    pub run_place: Place,
    pub argv: Vec<String>,
    /// CLOCK_MONOTONIC at exec.
    pub exec_ns: u64,
}

/// The plan's topology where there is no VM: this machine's own.
pub fn topology() -> Result<Topology> {
    Ok(TestTopology::from_system(Path::new("/"))?.to_spec())
}

/// Carries out the job. The record is complete when this returns, and the directory still there.
pub fn run(job: &HostJob, listener: Listener<'_>) -> Result<RunDir> {
    signal::note(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).context(|| "take signals")?;
    let [scenario] = job.plan.scenarios.as_slice() else {
        let count = job.plan.scenarios.len();
        return Err(Error::usage(format!("--host takes one scenario at a time, and there are {count}")));
    };
    let resolver =
        Resolver { topo: TestTopology::from_system(Path::new("/"))?, workers_per_cgroup: job.plan.workers_per_cgroup };
    resolver.check(scenario).map_err(|why| Error::usage(format!("cannot run this on this machine: {why}")))?;
    let cgroups = CgroupPlace::find(Path::new("/"))?;
    listener(Event::Note(format!("host: cgroups under {}", cgroups.root.join(subtree()).display())));
    // One with our own number is of somebody who had it before.
    let lives = |pid: i32| pid != process::id() && Path::new("/proc").join(pid.to_string()).exists();
    host_left::remove(&cgroups.root, &subtree_prefix(), lives).into_iter().for_each(|text| listener(Event::Note(text)));
    let mut run = RunDir::create(&job.run_place)?;
    run.add(Msg::Host { info: host_info(job) });
    run.add(Msg::Planned { plan: job.plan.clone() });
    mark(&mut run, Stage::Exec, job.exec_ns, job.exec_ns);
    run.add(hello());
    if let Some(text) = live_scheduler(Path::new(SCHED_EXT)) {
        run.add(Msg::Note { text });
    }
    let subtree = subtree();
    let settings = Settings {
        cgroup_root: &cgroups.root,
        subtree: &subtree,
        resolver,
        duration_ns: job.plan.duration_ns,
        settle_ns: job.plan.settle_ns,
        seed: job.plan.seed,
        scratch_disk: None,
        raw_samples: job.plan.raw_samples,
        collect_ns: COLLECT_NS,
    };
    mark(&mut run, Stage::ScenarioStart, job.exec_ns, time::monotonic_ns());
    let mut machine = Machine { run };
    let finished = scenario::execute(scenario, &settings, &mut machine);
    let Machine { mut run } = machine;
    mark(&mut run, Stage::ScenarioEnd, job.exec_ns, time::monotonic_ns());
    if let Some(error) = &finished.error {
        let cannot_judge = error.kind() == crate::error::Kind::CannotJudge;
        run.add(Msg::GuestError { stage: "scenario".into(), text: error.to_string(), cannot_judge });
    }
    let (uptime_ns, elapsed_ns) = (time::boottime_ns(), finished.elapsed_ns);
    run.add(Msg::ScenarioEnd { uptime_ns, elapsed_ns, early: finished.early, steal_ns: 0 });
    if let Err(error) = cgroups.leave() {
        run.add(Msg::Note { text: error.to_string() });
    }
    match signal::noted() {
        Some(_) => run.add(Msg::VmEnded { end: VmEnd::Interrupted }),
        None => run.add(Msg::Bye { uptime_ns }),
    }
    Ok(run)
}

/// Its own name, so that two runs do not meet.
fn subtree() -> String {
    format!("{}{}", subtree_prefix(), process::id())
}

/// How the names of all runs' subtrees begin whose numbers mean the same here: containers may share the cgroups, and not
/// the process ids (pid_namespaces(7)).
fn subtree_prefix() -> String {
    let namespace = std::fs::metadata("/proc/self/ns/pid").map_or(0, |data| data.ino());
    format!("{SUBTREE}-host-{namespace}-")
}

/// The surroundings of the scenario: this process.
struct Machine {
    run: RunDir,
}

impl Around for Machine {
    fn turn(&mut self, until_ns: u64) {
        let left = until_ns.saturating_sub(time::monotonic_ns());
        if let Err(error) = time::sleep_ns(left.min(TURN_NS)) {
            // A signal: the next look comes earlier.
            debug_assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
    }
    fn ended(&mut self) -> Vec<(i32, End)> {
        let mut ended = Vec::new();
        // This process has no children but the scenario's. An error means that there are none.
        while let Ok(Some(end)) = process::wait(-1, false) {
            ended.push(end);
        }
        ended
    }
    fn over(&mut self) -> Option<String> {
        signal::noted().map(|signal| format!("signal {signal} came"))
    }
    fn say(&mut self, message: Msg) {
        self.run.add(message);
    }
    fn scheduler(&mut self, _op: &SchedOp) -> Result<()> {
        Err(Error::usage("a run on this machine neither starts nor stops its scheduler"))
    }
}

fn mark(run: &mut RunDir, stage: Stage, exec_ns: u64, monotonic_ns: u64) {
    run.add(Msg::Mark { stage, at_ns: monotonic_ns.saturating_sub(exec_ns) });
}

fn text_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn memory_kib() -> u64 {
    let meminfo = text_of("/proc/meminfo");
    let total =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    total.unwrap_or(0)
}

fn host_info(job: &HostJob) -> HostInfo {
    HostInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        build: BUILD.into(),
        argv: job.argv.clone(),
        accel: METAL.into(),
        accel_reason: "asked for by --host".into(),
        kernel: text_of("/proc/sys/kernel/osrelease"),
        kernel_cmdline: text_of("/proc/cmdline"),
        topology: job.plan.topology.clone(),
        memory_bytes: memory_kib() * 1024,
        // None of them is shared: they are the very CPUs.
        host_cpus: job.plan.topology.total_cpus(),
        started_unix_s: time::unix_s(),
    }
}

/// What a guest would say of itself.
fn hello() -> Msg {
    let online = text_of("/sys/devices/system/cpu/online");
    Msg::Hello {
        protocol: PROTOCOL,
        build: BUILD.into(),
        kernel: text_of("/proc/sys/kernel/osrelease"),
        online: online.parse().unwrap_or_default(),
        memory_kib: memory_kib(),
        pid1_uptime_ns: time::boottime_ns(),
        channel: "none".into(),
        missing: Vec::new(),
    }
}

/// Which scheduler this machine runs now, where it is a sched_ext one.
fn live_scheduler(dir: &Path) -> Option<String> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok().map(|text| text.trim().to_owned());
    let state = read("state")?;
    let ops = read("root/ops").unwrap_or_default();
    Some(match state.as_str() {
        "enabled" => format!("the live scheduler is the sched_ext scheduler '{ops}'"),
        _ => "the live scheduler is the kernel's own: no sched_ext scheduler is loaded".into(),
    })
}

/// Where this process may make cgroups.
#[derive(Debug, PartialEq, Eq)]
struct CgroupPlace {
    root: PathBuf,
    /// The own cgroup, where this process had to leave it for a child so that it can have other children.
    left: bool,
}

impl CgroupPlace {
    /// The root of the hierarchy where we may write there, or else our own cgroup where it was delegated to us.
    fn find(root: &Path) -> Result<Self> {
        let mounts_path = root.join("proc/mounts");
        let mounts = fs::read_to_string(&mounts_path).context(|| format!("read {}", mounts_path.display()))?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let Some(mount) = mount.and_then(|line| line.split(' ').nth(1)) else {
            return Err(Error::host("cannot make cgroups on this machine: no cgroup2 file system is mounted")
                .hint("boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup"));
        };
        let mount = root.join(mount.trim_start_matches('/'));
        if may_make(&mount).is_ok() {
            return Ok(Self { root: mount, left: false });
        }
        let groups_path = root.join("proc/self/cgroup");
        let groups = fs::read_to_string(&groups_path).context(|| format!("read {}", groups_path.display()))?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let own = mount.join(own);
        if let Err(error) = may_make(&own) {
            return Err(Error::os(format!("make a cgroup below {}", own.display()), error).hint(
                "run as root, or in a delegated one: systemd-run --user --scope -p Delegate=yes ktstr run --host",
            ));
        }
        // A cgroup that has processes of its own cannot give controllers to children (cgroups(7), no internal processes).
        let runner = own.join(RUNNER);
        fs::create_dir_all(&runner).context(|| format!("make the cgroup {}", runner.display()))?;
        fs::write(runner.join("cgroup.procs"), "0").context(|| format!("move into {}", runner.display()))?;
        Ok(Self { root: own, left: true })
    }

    /// Goes back to where this process was.
    fn leave(&self) -> Result<()> {
        if !self.left {
            return Ok(());
        }
        for controller in
            fs::read_to_string(self.root.join("cgroup.subtree_control")).unwrap_or_default().split_whitespace()
        {
            let off = format!("-{controller}");
            fs::write(self.root.join("cgroup.subtree_control"), &off)
                .context(|| format!("switch {controller} off again"))?;
        }
        fs::write(self.root.join("cgroup.procs"), "0").context(|| format!("move back into {}", self.root.display()))?;
        let runner = self.root.join(RUNNER);
        fs::remove_dir(&runner).context(|| format!("remove {}", runner.display()))
    }
}

/// Tries it: permissions alone do not tell.
fn may_make(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!("ktstr-try-{}", process::id()));
    fs::create_dir(&probe)?;
    fs::remove_dir(&probe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn root(name: &str, mounts: &str, cgroup: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("ktstr-host-{name}-{}", process::id()));
        fs::create_dir_all(root.join("proc/self")).unwrap();
        fs::write(root.join("proc/mounts"), mounts).unwrap();
        fs::write(root.join("proc/self/cgroup"), cgroup).unwrap();
        root
    }

    #[test]
    fn machine_without_cgroup2_is_told_how_to_get_it() {
        let root = root("none", "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "");
        let error = CgroupPlace::find(&root).unwrap_err();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(error.kind(), Kind::Host);
        assert!(error.to_string().contains("no cgroup2 file system is mounted"), "{error}");
        assert!(error.hint_text().unwrap().contains("unified_cgroup_hierarchy"));
    }

    #[test]
    fn writable_root_is_taken_and_an_undelegated_cgroup_refused() {
        let mounts = "cgroup2 /cg cgroup2 rw 0 0\n";
        let writable = root("root", mounts, "0::/a.scope\n");
        fs::create_dir_all(writable.join("cg")).unwrap();
        let place = CgroupPlace::find(&writable).unwrap();
        assert_eq!(place, CgroupPlace { root: writable.join("cg"), left: false });
        assert_eq!(fs::read_dir(writable.join("cg")).unwrap().count(), 0);
        fs::remove_dir_all(&writable).unwrap();
        // Neither the root nor the own cgroup can hold a directory: they are not there.
        let refused = root("refused", mounts, "0::/a.scope\n");
        let error = CgroupPlace::find(&refused).unwrap_err();
        fs::remove_dir_all(&refused).unwrap();
        assert!(error.hint_text().unwrap().contains("Delegate=yes"), "{error}");
    }

    #[test]
    fn live_scheduler_is_named_where_there_is_one() {
        let dir = std::env::temp_dir().join(format!("ktstr-live-{}", process::id()));
        fs::create_dir_all(dir.join("root")).unwrap();
        assert_eq!(live_scheduler(&dir), None);
        fs::write(dir.join("state"), "disabled\n").unwrap();
        assert!(live_scheduler(&dir).unwrap().contains("the kernel's own"));
        fs::write(dir.join("state"), "enabled\n").unwrap();
        fs::write(dir.join("root/ops"), "bpfland_1\n").unwrap();
        assert!(live_scheduler(&dir).unwrap().contains("'bpfland_1'"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
