//! Brings faults about on purpose, without a special kernel: what `--provoke` asks for.
//!
//! Owns how each fault is caused; leaves finding and naming it to everybody else, who know nothing of it.
//! Invariant: nothing here runs unless the plan names it, and each is done once.

use super::{CGROUP_ROOT, power, sabotage};
use crate::channel::guest::{Damage, GuestSession};
use crate::error::{Context, Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::guards::Provocation;
use crate::proto::message::Msg;
use crate::proto::plan::SchedPolicy;
use crate::scenario::SUBTREE;
use crate::scx::probe;
use crate::sys::process::{self, Fork};
use crate::sys::spawn::Spawn;
use crate::sys::{bpf, mount, sched, time};
use crate::units::{MIB, NS_PER_MS, NS_PER_SEC};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

/// How long after the workers began: they are at work, and most of the run is still to come.
pub const AFTER_START_NS: u64 = 700 * NS_PER_MS;
/// Above PID 1 (98), so that it cannot run beside them.
const ABOVE_PID1: u32 = 99;
/// Below PID 1, above every normal task.
const BELOW_PID1: u32 = 50;
/// Without these, real-time tasks leave a twentieth of each CPU to others (Documentation/scheduler/sched-rt-group.rst,
/// and kernel/sched/debug.c for the fair and sched_ext servers).
const RT_RUNTIME: &str = "/proc/sys/kernel/sched_rt_runtime_us";
const SERVERS: [&str; 2] = ["/sys/kernel/debug/sched/fair_server", "/sys/kernel/debug/sched/ext_server"];
/// The name of what spins, so that it is recognised in a dump.
const SPINNER: &str = "ktstr-spinner";
/// What a program could write into the kernel's log to look like its worst.
const LIES: [&str; 5] = [
    "Kernel panic - not syncing: Fatal exception",
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "sched_ext: BPF scheduler \"x\" disabled (runnable task stall)",
    "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "[    1.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [x:1]",
];

/// `lidt` of a table without an entry (kernels from 6.15 on leave a handler behind), and `ud2`: its fault becomes a double
/// fault, and that a triple one.
const FAULTS: [u8; 19] = [0x0f, 0x01, 0x1d, 0x02, 0, 0, 0, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// `cli`, and a jump to itself: kexec has stopped all other CPUs.
const LOOPS: [u8; 3] = [0xfa, 0xeb, 0xfe];

/// Whom a provocation may hit.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    pub scheduler: Option<i32>,
    pub workers: Vec<i32>,
}

/// The scheduler's process, and all workers, which are known by their names.
pub fn targets(scheduler: Option<i32>) -> Targets {
    let is_worker = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.strip_prefix("kw").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut workers: Vec<i32> = pids.filter(is_worker).collect();
    workers.sort_unstable();
    Targets { scheduler, workers }
}

/// Does it. Many of these do not return, because nothing does afterwards.
pub fn carry_out(which: Provocation, targets: &Targets, session: &mut GuestSession) -> Result<()> {
    match which {
        Provocation::Panic => sysrq('c'),
        Provocation::Reboot => sysrq('b'),
        Provocation::PowerOff => sysrq('o'),
        Provocation::OomKill => sysrq('f'),
        Provocation::KillAll => sysrq('i'),
        Provocation::Backtrace => sysrq('l'),
        Provocation::SchedOff => sysrq('S'),
        Provocation::SchedDump => sysrq('D'),
        Provocation::SchedKill => signal(targets.scheduler, libc::SIGKILL, "scheduler"),
        Provocation::SchedStop => signal(targets.scheduler, libc::SIGSTOP, "scheduler"),
        Provocation::SchedTerm => signal(targets.scheduler, libc::SIGTERM, "scheduler"),
        Provocation::WorkerKill => signal(targets.workers.first().copied(), libc::SIGKILL, "worker"),
        Provocation::WorkerStop => signal(targets.workers.first().copied(), libc::SIGSTOP, "worker"),
        Provocation::SecondSched => second_scheduler(),
        Provocation::CpuOffline => last_cpu_offline(),
        Provocation::MemoryHog => in_child(hog_memory),
        Provocation::KernelFlood => in_child(|| loop_over(|| sysrq('m'))),
        Provocation::ConsoleFlood => in_child(|| loop_over(|| write("/dev/console", &"flood ".repeat(512)))),
        Provocation::RtHog => in_child(|| spin(BELOW_PID1, Some(0))),
        Provocation::RtStarve => {
            leave_nothing_to_others()?;
            in_child(|| spin(BELOW_PID1, Some(0)))
        }
        Provocation::SpinAll => {
            leave_nothing_to_others()?;
            (0..sched::online_cpus()).try_for_each(|cpu| in_child(move || spin(ABOVE_PID1, Some(cpu))))
        }
        Provocation::Pid1Exit => process::exit_now(3),
        Provocation::Pid1Abort => process::abort_now(),
        Provocation::Pid1Panic => panic!("provoked"),
        Provocation::Pid1Silent => loop_over(|| time::sleep_ns(NS_PER_SEC).context(|| "sleep")),
        Provocation::TripleFault => jump_to(&FAULTS),
        Provocation::HardHang => jump_to(&LOOPS),
        Provocation::NoBye => power::restart(),
        Provocation::RingGarbage => session.damage(Damage::Garbage),
        Provocation::RingHead => session.damage(Damage::Head),
        Provocation::ChannelFlood => loop_over(|| session.send(&Msg::Note { text: "flood ".repeat(4096) })),
        Provocation::CpusetFlip => in_child(|| sabotage::flip_cpusets(&Path::new(CGROUP_ROOT).join(SUBTREE))),
        Provocation::CpuStop => stop_last_cpu(),
        Provocation::FakeLog => LIES.iter().try_for_each(|line| write("/dev/kmsg", &format!("<0>{line}\n"))),
    }
}

/// Leaves the kernel for this code, in 64-bit mode with paging.
fn jump_to(code: &[u8]) -> Result<()> {
    mount::kexec_load(code).context(|| "load code for kexec")?;
    Err(mount::kexec()).context(|| "leave the kernel by kexec")
}

/// /proc/sysrq-trigger takes every key, whatever the mask for keyboards allows.
fn sysrq(key: char) -> Result<()> {
    write("/proc/sysrq-trigger", &key.to_string())
}

fn write(path: &str, text: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).context(|| format!("write to {path}"))
}

fn signal(pid: Option<i32>, number: i32, whom: &str) -> Result<()> {
    let pid = pid.ok_or_else(|| Error::internal(format!("there is no {whom} to signal")))?;
    process::kill(pid, number).context(|| format!("send signal {number} to the {whom} {pid}"))
}

fn second_scheduler() -> Result<()> {
    let argv = probe::argv("/init", "fifo", None);
    let spawn = Spawn { argv: &argv, environment: &[], stdio: [None, None, None], keep: &[], die_with_parent: true };
    spawn.start().context(|| "start a second scheduler").map(drop)
}

fn last_cpu_offline() -> Result<()> {
    let last = sched::online_cpus().saturating_sub(1);
    write(&format!("/sys/devices/system/cpu/cpu{last}/online"), "0")
}

/// Runs something in a process of its own, which PID 1 later reaps.
fn in_child(work: impl FnOnce() -> Result<()>) -> Result<()> {
    if process::fork().context(|| "fork")? == Fork::Child {
        let code = i32::from(work().is_err());
        process::exit_now(code);
    }
    Ok(())
}

/// Until it fails, which ends it.
fn loop_over(mut step: impl FnMut() -> Result<()>) -> Result<()> {
    loop {
        step()?;
    }
}

fn hog_memory() -> Result<()> {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    // A value other than 0, so that each page is written and not merely promised.
    loop_over(|| {
        taken.push(vec![1; MIB as usize]);
        Ok(())
    })
}

fn go_to(cpu: u32) -> Result<()> {
    sched::set_affinity(0, &[cpu].into_iter().collect::<CpuSet>()).context(|| format!("go to CPU {cpu}"))
}

/// PID 1 keeps to the first CPU from now on, so that it can see the last one stand.
fn stop_last_cpu() -> Result<()> {
    let last = sched::online_cpus().saturating_sub(1);
    if last == 0 {
        return Err(Error::usage("there is no second CPU that could be stopped"));
    }
    let stopper = probe::load::cpu_stopper(Path::new("/sys/kernel/btf/vmlinux"))
        .map_err(|refusal| Error::cannot_judge(format!("cannot stop CPU {last}: {refusal:?}")))?;
    go_to(0)?;
    in_child(move || {
        go_to(last)?;
        bpf::run(stopper.as_fd(), &mut [0; 8]).context(|| format!("stop CPU {last}")).map(drop)
    })
}

fn spin(priority: u32, cpu: Option<u32>) -> Result<()> {
    process::set_name(SPINNER).context(|| "set a name")?;
    if let Some(cpu) = cpu {
        go_to(cpu)?;
    }
    sched::set_policy(0, &SchedPolicy::Fifo { priority }, 0, false).context(|| "become a real-time task")?;
    loop {
        std::hint::spin_loop();
    }
}

/// Real-time tasks may have all of a CPU from now on.
fn leave_nothing_to_others() -> Result<()> {
    write(RT_RUNTIME, "-1")?;
    for server in SERVERS {
        // Kernels before 6.8 have no such servers, and none that takes time from real-time tasks.
        for entry in fs::read_dir(server).into_iter().flatten().flatten() {
            write(&format!("{}/runtime", entry.path().display()), "0")?;
        }
    }
    Ok(())
}
