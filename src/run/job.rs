//! One run, from its description to its record: the recipe, in order.
//!
//! Owns the order of steps; leaves each step to its module, judging to verdict/ and printing to report/.
//! Invariant: from the moment the run directory exists, whatever happens is in the record.

use super::accel::{self, Accel, AccelChoice, AccelKind};
use super::detectors::Detectors;
use super::disk::DiskSpec;
use super::machine::{Machine, MachineSpec, Waiting};
use super::perf;
use super::rundir::{Place, RunDir, VMM_LOG};
use super::shared;
use super::silence::Silence;
use super::stall::Stall;
use super::suite::Cost;
use super::unpacked::{self, Unpacked};
use super::watch::{Limits, Watch};
use super::{cmdline, qemu_shape};
use crate::channel::host::HostSession;
use crate::channel::ring::{REGION_BYTES, Ring};
use crate::error::{Context, Error, Result};
use crate::image::modules::Modules;
use crate::image::{self, Image, ImageSpec};
use crate::log::{Event, Listener};
use crate::proto::codec::Wire;
use crate::proto::message::{HostInfo, Msg, Stage, VmEnd};
use crate::proto::numa::Numa;
use crate::proto::plan::{BUILD, Plan};
use crate::proto::report::collect_ns;
use crate::sys::mmap::Mapping;
use crate::sys::{sched, signal, time};
use crate::units::{MIB, NS_PER_SEC, size};
use crate::vmm::kernel::KernelImage;
use crate::vmm::x86::apic::{ApicIds, LlcRule, XAPIC_ID_MAX};
use crate::vmm::x86::layout::GuestLayout;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Guest memory by default: enough for a distribution kernel and a few hundred workers.
const DEFAULT_MEMORY_MIB: u64 = 256;
/// More for each CPU beyond the fourth: per-CPU areas, and the workers that come with it.
const MEMORY_PER_CPU_MIB: u64 = 8;
/// More for each node beyond the first: its zones and their lists.
const MEMORY_PER_NODE_MIB: u64 = 32;
/// From exec to PID 1 at most: hardware KVM takes about a second, nested emulation has taken 12 s; room for a busy host.
const BOOT_KVM_NS: u64 = 60 * NS_PER_SEC;
/// The same under emulation.
const BOOT_QEMU_NS: u64 = 120 * NS_PER_SEC;
/// For each CPU: the emulator took 0.6 s on a busy machine, KVM 0.1 s where it was emulated itself; room again.
const BOOT_PER_CPU_KVM_NS: u64 = NS_PER_SEC / 4;
const BOOT_PER_CPU_QEMU_NS: u64 = 2 * NS_PER_SEC;
/// The emulator gives its CPUs their turns one after another, so that each costs the more the more there are: on a busy
/// machine 64 took 40 s to PID 1, 128 105 s, 192 280 s and 240 more than 600 s, all at once. So many double the cost of each.
const TURNS_QEMU: u64 = 128;
/// From the end of the scenarios to the end of the VM, beyond collecting: code that goes on, stopping the scheduler, the log,
/// the restart.
const WIND_DOWN_NS: u64 = 20 * NS_PER_SEC;
/// The guest is asked to stop this long before the VM is killed.
const SOFT_STOP_NS: u64 = 3 * NS_PER_SEC;

/// What a run does before its VM and after it: packing an image, removing it, printing; several times the most seen.
const ROUND_A_VM_NS: u64 = 60 * NS_PER_SEC;

/// What is to be run.
pub struct Job {
    pub kernel: PathBuf,
    pub kernel_config: Option<PathBuf>,
    /// The scheduler's program, where it is not built in.
    pub sched_program: Option<PathBuf>,
    pub includes: Vec<(PathBuf, String)>,
    /// Kernel modules to pack; the plan says that they are to be loaded.
    pub modules: Modules,
    pub disk: Option<DiskSpec>,
    pub plan: Plan,
    pub accel: AccelChoice,
    pub memory_bytes: Option<u64>,
    pub cmdline: String,
    pub force_serial: bool,
    /// The kernel's whole console instead of warnings only.
    pub verbose_kernel: bool,
    /// Hard limit of the VM; none: computed from the plan.
    pub timeout_ns: Option<u64>,
    pub run_place: Place,
    pub argv: Vec<String>,
    /// Performance mode.
    pub perf: bool,
    /// Where unpacked kernels and parts of images are kept; none: nowhere.
    pub kernel_cache: Option<PathBuf>,
    /// CLOCK_MONOTONIC at exec.
    pub exec_ns: u64,
}

/// Only for `make bench`: a KVM that cannot run a kernel is used all the same, to see what the host's part of a run takes.
const UNCHECKED_VARIABLE: &str = "KTSTR_BENCH_UNCHECKED";

/// What is found out and made before a VM can be started, all at once: none of it waits for another.
struct Parts {
    image: Result<Image>,
    /// A file of the cache that is the beginning of the image.
    shared: Result<Option<File>>,
    /// Whether KVM can run a kernel.
    kvm: Result<()>,
    unpacked: Result<Option<Unpacked>>,
}

impl Parts {
    fn prepare(job: &Job, plan: &Plan, kernel: &KernelImage, memory_bytes: u64) -> Self {
        let lost = || Error::internal("a thread that prepared the run panicked");
        std::thread::scope(|scope| {
            // The longest first: there may be fewer CPUs than threads.
            let unpacked = scope.spawn(|| match (&job.kernel_cache, job.accel) {
                (Some(cache), AccelChoice::Kvm | AccelChoice::Auto) => unpacked::find(cache, kernel),
                _ => Ok(None),
            });
            let kvm = scope.spawn(|| match job.accel {
                AccelChoice::Qemu => Ok(()),
                AccelChoice::Kvm | AccelChoice::Auto => match crate::vmm::kvm::self_check() {
                    Err(_) if std::env::var_os(UNCHECKED_VARIABLE).is_some() => Ok(()),
                    result => result,
                },
            });
            let image = build_image(job, plan, kernel);
            let shared = match (&image, &job.kernel_cache, job.accel) {
                // With --perf guest memory may be of huge pages, over which nothing can be laid.
                (Ok(image), Some(cache), AccelChoice::Kvm | AccelChoice::Auto)
                    if !job.perf && shared::fits(image, memory_bytes) =>
                {
                    shared::find(cache, image)
                }
                _ => Ok(None),
            };
            let kvm = kvm.join().unwrap_or_else(|_| Err(lost()));
            Self { image, shared, kvm, unpacked: unpacked.join().unwrap_or_else(|_| Err(lost())) }
        })
    }
}

/// What a VM boots, and how.
struct Boot<'a> {
    /// None: the emulator's.
    waiting: Option<Waiting>,
    image: &'a Image,
    shared: Option<&'a File>,
    unpacked: Option<&'a Unpacked>,
    perf: Option<&'a mut perf::Plan>,
}

/// Carries out the job. The record is complete when this returns, and the directory still there.
pub fn run(job: &Job, listener: Listener<'_>) -> Result<RunDir> {
    signal::note(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).context(|| "take signals")?;
    let kernel = KernelImage::open(&job.kernel)?;
    let memory_bytes = job.memory_bytes.unwrap_or_else(|| default_memory(&job.plan));
    check_host_memory(memory_bytes.saturating_add(disk_bytes(job)))?;
    let plan = settled(&job.plan, memory_bytes)?;
    let waiting = match job.accel {
        AccelChoice::Qemu => None,
        AccelChoice::Kvm | AccelChoice::Auto => Some(Waiting::start()?),
    };
    let parts = Parts::prepare(job, &plan, &kernel, memory_bytes);
    let image = parts.image?;
    let layout = GuestLayout::plan(memory_bytes, &kernel, image.bytes, REGION_BYTES)?;
    // What the user gave is in order: now the machine.
    let accel = accel::choose(job.accel, || parts.kvm)?;
    let waiting = waiting.filter(|_| accel.kind == AccelKind::Kvm);
    let mut notes = image.notes.clone();
    let unpacked = for_kvm(parts.unpacked, accel.kind, "the kernel is booted packed", &mut notes);
    let shared = for_kvm(parts.shared, accel.kind, "the guest image is not shared with other VMs", &mut notes);
    if accel.kind == AccelKind::Qemu {
        qemu_shape::check(&plan.topology, || accel.qemu_version())?;
    }
    listener(Event::Note(format!("accel {}: {}", accel.kind.name(), accel.reason)));
    notes.iter().for_each(|note| listener(Event::Note(note.clone())));
    let ring_place = (layout.ring_gpa, REGION_BYTES);
    let words = cmdline::Words {
        accel: accel.kind,
        vcpus: plan.topology.total_cpus(),
        ring: ring_place,
        force_serial: job.force_serial,
        detectors: Detectors::of(&plan, accel.kind),
        // By the rule that spaces them widest.
        wide_apic_ids: ApicIds::new(&plan.topology, LlcRule::ThreeBits).highest() > XAPIC_ID_MAX,
        shared_initramfs: shared.is_some(),
        verbose: job.verbose_kernel,
        user: &job.cmdline,
    };
    let cmdline = cmdline::build(&words);
    kernel.check_cmdline(&cmdline)?;

    if signal::noted().is_some() {
        return Err(Error::interrupted());
    }
    let mut run = RunDir::create(&job.run_place)?;
    run.add(Msg::Host { info: host_info(job, &accel, &cmdline, memory_bytes) });
    run.add(Msg::Planned { plan: plan.clone() });
    notes.into_iter().for_each(|text| run.add(Msg::HostNote { text }));
    mark(&mut run, Stage::Exec, job.exec_ns, job.exec_ns);
    mark(&mut run, Stage::ImageReady, job.exec_ns, time::monotonic_ns());

    let mut perf = job.perf.then(|| perf::for_run(&job.plan.topology, accel.kind)).transpose()?;
    let boot =
        Boot { waiting, image: &image, shared: shared.as_ref(), unpacked: unpacked.as_ref(), perf: perf.as_mut() };
    let ended = run_vm(job, &accel, (&plan.numa, &layout, &cmdline), boot, &mut run, listener);
    mark(&mut run, Stage::TornDown, job.exec_ns, time::monotonic_ns());
    match ended {
        Ok(_) => Ok(run),
        Err(error) => discard(run, error),
    }
}

/// What our own VMM is faster with; that it is missing is noted.
fn for_kvm<T>(found: Result<Option<T>>, kind: AccelKind, without: &str, notes: &mut Vec<String>) -> Option<T> {
    if kind == AccelKind::Qemu {
        return None;
    }
    found.unwrap_or_else(|error| {
        notes.push(format!("{without}: {error}"));
        None
    })
}

/// A run that the host could not carry out leaves nothing behind.
fn discard(run: RunDir, error: Error) -> Result<RunDir> {
    match run.remove() {
        Ok(()) => Err(error),
        Err(removal) => Err(error.while_doing(format!("(also, {removal})"))),
    }
}

fn run_vm(
    job: &Job,
    accel: &Accel,
    (numa, layout, cmdline): (&Numa, &GuestLayout, &str),
    mut boot: Boot<'_>,
    run: &mut RunDir,
    listener: Listener<'_>,
) -> Result<VmEnd> {
    let memory_bytes = layout.memory_bytes;
    let ram = perf::guest_ram(memory_bytes, boot.perf.as_deref_mut())?;
    // The ring lies below the MMIO hole, where guest-physical address and file offset are the same.
    let ring_at = match accel.kind {
        AccelKind::Kvm => layout.ring_gpa,
        AccelKind::Qemu => qemu_shape::file_offset(numa, &job.plan.topology, layout.ring_gpa),
    };
    let region = Mapping::shared_file(&ram, ring_at, REGION_BYTES as usize).context(|| "map the ring")?;
    let mut session = HostSession::new(Ring::create(region)?);
    let disk = job.disk.as_ref().map(DiskSpec::open).transpose()?;
    let spec = MachineSpec {
        accel,
        kernel: &job.kernel,
        cmdline,
        topology: &job.plan.topology,
        numa,
        ram: &ram,
        memory_bytes,
        initramfs: &boot.image.file,
        initramfs_bytes: boot.image.bytes,
        ring: (layout.ring_gpa, REGION_BYTES),
        shared: boot.shared.map(|file| (file, boot.image.shared_bytes)),
        initramfs_gpa: layout.initramfs_gpa,
        disk: disk.as_ref(),
        perf: boot.perf.as_deref().filter(|plan| plan.applies()).map(|plan| &plan.config),
        unpacked: boot.unpacked,
    };
    let mut machine = match boot.waiting {
        Some(waiting) => waiting.boot(&spec)?,
        None => Machine::emulate(&spec)?,
    };
    mark(run, Stage::VmSpawned, job.exec_ns, time::monotonic_ns());
    let hard_ns = job.exec_ns + job.timeout_ns.unwrap_or_else(|| default_timeout(&job.plan, accel.kind));
    let limits = Limits { soft_ns: hard_ns.saturating_sub(SOFT_STOP_NS), hard_ns };
    let silence = Silence::new(machine.pid(), accel.kind == AccelKind::Qemu);
    let mut watch = Watch {
        silence,
        stall: Stall::new(&job.plan, accel.kind == AccelKind::Qemu),
        machine: &mut machine,
        session: &mut session,
        run,
        listener,
        exec_ns: job.exec_ns,
        over_budget: false,
        triple_fault: false,
        perf: boot.perf.map(|plan| plan.take_refused()).unwrap_or_default(),
    };
    let end = watch.until_end(limits)?;
    if let VmEnd::MachineError { text } = &end {
        let said = last_lines(&run.path().join(VMM_LOG), 5);
        let begun = [Stage::FirstInstruction, Stage::Pid1].iter().any(|stage| run.record().mark(*stage).is_some());
        if !begun && run.record().console.is_empty() {
            let said = if said.is_empty() { String::new() } else { format!("; it printed: {said}") };
            return Err(Error::host(format!("the VM did not start: {text}{said}")));
        }
        if !said.is_empty() {
            run.add(Msg::HostNote { text: format!("{text}; it printed: {said}") });
        }
    }
    Ok(end)
}

fn build_image(job: &Job, plan: &Plan, kernel: &KernelImage) -> Result<Image> {
    image::assemble(&ImageSpec {
        init: PathBuf::from("/proc/self/exe"),
        plan: plan.to_bytes(),
        sched: job.sched_program.clone(),
        kernel: Some(job.kernel.clone()),
        // Only a scheduler's program needs the kernel's configuration, and looking for a release can take a while.
        release: if job.sched_program.is_some() { kernel.release()? } else { None },
        kernel_config: job.kernel_config.clone(),
        includes: job.includes.clone(),
        modules: job.modules.clone(),
    })
}

/// The plan with the memory and the distances of every node.
fn settled(plan: &Plan, memory_bytes: u64) -> Result<Plan> {
    let numa = plan.numa.clone().settled(plan.topology.numa_nodes, memory_bytes);
    Ok(Plan { numa: numa.map_err(Error::usage)?, ..plan.clone() })
}

fn default_memory(plan: &Plan) -> u64 {
    if !plan.numa.memory_bytes.is_empty() {
        return plan.numa.memory_bytes.iter().sum();
    }
    let extra_cpus = u64::from(plan.topology.possible_cpus().saturating_sub(4));
    let extra_nodes = u64::from(plan.topology.numa_nodes - 1);
    (DEFAULT_MEMORY_MIB + extra_cpus * MEMORY_PER_CPU_MIB + extra_nodes * MEMORY_PER_NODE_MIB) * MIB
}

/// What the disk takes of the host's memory.
fn disk_bytes(job: &Job) -> u64 {
    job.disk.as_ref().map_or(0, DiskSpec::memory_bytes)
}

/// Guest memory is touched page by page, but more than the host has cannot be meant.
fn check_host_memory(memory_bytes: u64) -> Result<()> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").context(|| "read /proc/meminfo")?;
    let total_kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let total_bytes = total_kib.unwrap_or(u64::MAX / 1024) * 1024;
    if memory_bytes <= total_bytes {
        return Ok(());
    }
    let (asked, there) = (size(memory_bytes), size(total_bytes));
    Err(Error::host(format!("{asked} of guest memory and disk are more than the {there} of this host"))
        .hint("--memory takes less"))
}

/// What a run of this job takes from the host.
pub fn cost(job: &Job, kind: AccelKind) -> Cost {
    let cpus = job.plan.topology.total_cpus();
    let memory_bytes = job.memory_bytes.unwrap_or_else(|| default_memory(&job.plan));
    Cost {
        // The emulator runs all vCPUs on one thread.
        cpus: if kind == AccelKind::Kvm { cpus } else { 1 },
        memory_bytes: memory_bytes.saturating_add(disk_bytes(job)),
        // The emulator's threads are not placed.
        alone: job.perf && kind == AccelKind::Kvm,
        limit_ns: job.timeout_ns.unwrap_or_else(|| default_timeout(&job.plan, kind)) + ROUND_A_VM_NS,
    }
}

/// Long enough for what is planned, and for each of the kernel's detectors to have its say.
pub(super) fn default_timeout(plan: &Plan, accel: AccelKind) -> u64 {
    let cpus = u64::from(plan.topology.total_cpus());
    let boot = match accel {
        AccelKind::Kvm => BOOT_KVM_NS + cpus * BOOT_PER_CPU_KVM_NS,
        AccelKind::Qemu => BOOT_QEMU_NS + cpus * (TURNS_QEMU + cpus) * (BOOT_PER_CPU_QEMU_NS / TURNS_QEMU),
    };
    let sched = plan.sched.as_ref().map_or(0, |sched| sched.enable_timeout_ns + sched.stop_timeout_ns);
    let planned = boot + sched + plan.planned_ns() + wind_down(plan, accel);
    planned.max(Detectors::of(plan, accel).all_ns())
}

/// What it takes beyond its boot and its plan.
fn wind_down(plan: &Plan, accel: AccelKind) -> u64 {
    let collect = collect_ns(plan.topology.total_cpus(), accel == AccelKind::Qemu);
    // Each scenario collects, and code that does not come to its end is given the time for it once more.
    collect * (plan.scenarios.len() as u64 + 1) + WIND_DOWN_NS
}

fn host_info(job: &Job, accel: &Accel, cmdline: &str, memory_bytes: u64) -> HostInfo {
    HostInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        build: BUILD.into(),
        argv: job.argv.clone(),
        accel: accel.kind.name().into(),
        accel_reason: accel.reason.clone(),
        kernel: job.kernel.display().to_string(),
        kernel_cmdline: cmdline.into(),
        topology: job.plan.topology.clone(),
        memory_bytes,
        host_cpus: sched::online_cpus(),
        started_unix_s: time::unix_s(),
    }
}

fn mark(run: &mut RunDir, stage: Stage, exec_ns: u64, monotonic_ns: u64) {
    run.add(Msg::Mark { stage, at_ns: monotonic_ns.saturating_sub(exec_ns) });
}

/// The last lines of a file, on one line; empty where there are none.
fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::coded::{CODE_GRACE_NS, CODE_OVERTIME_NS};
    use crate::proto::topology::Topology;

    #[test]
    fn code_that_goes_on_is_ended_before_the_vms_deadline() {
        for cpus in [1, 20, 64, 254] {
            for (accel, emulated) in [(AccelKind::Kvm, false), (AccelKind::Qemu, true)] {
                let plan = crate::verdict::fixture::passing().plan.unwrap();
                let plan = Plan { topology: Topology::flat(cpus), ..plan };
                // Each with one collection.
                let code_ns = 2 * collect_ns(cpus, emulated) + CODE_OVERTIME_NS + CODE_GRACE_NS;
                assert!(wind_down(&plan, accel) > code_ns, "{cpus} {accel:?}");
            }
        }
    }

    #[test]
    fn failure_of_what_makes_a_run_faster_is_noted_where_it_would_have() {
        for (kind, expected) in [(AccelKind::Kvm, &["packed: no room"][..]), (AccelKind::Qemu, &[])] {
            let mut notes = Vec::new();
            assert_eq!(for_kvm::<u8>(Err(Error::host("no room")), kind, "packed", &mut notes), None);
            assert_eq!(notes, expected);
            assert_eq!(for_kvm(Ok(Some(3)), kind, "packed", &mut notes).is_some(), kind == AccelKind::Kvm);
            assert_eq!(notes, expected);
        }
    }
}
