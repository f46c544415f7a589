//! From the values of the command line to the plan of a run.
//!
//! Owns filling in defaults that need the work type or the image; leaves carrying the plan out to guest/.
//! Invariant: what the workload engine would refuse is refused here, before anything is started.

use super::args::{GuestArgs, SchedChoice};
use super::guards;
use super::scenarios;
use crate::error::{Context, Error, Result};
use crate::image;
use crate::image::modules::{self, Modules};
use crate::proto::limits::Layers;
use crate::proto::numa::Numa;
use crate::proto::plan::{BUILD, PROTOCOL, Plan, SchedSpec};
use crate::proto::scenario::{CgroupDef, Count, ScenarioSpec};
use crate::proto::work::WorkType;
use crate::scenario::{Resolver, TestTopology};
use crate::scx::probe;
use crate::sys::process;
use crate::units::{NS_PER_MS, NS_PER_SEC};
use crate::vmm::kernel::KernelImage;
use crate::workload::parse_works;
use std::path::{Path, PathBuf};

/// From exec of the scheduler to `enabled`: real schedulers compile and verify their programs, which took up to 10 s
/// under emulation.
const ENABLE_TIMEOUT_NS: u64 = 60 * NS_PER_SEC;
/// From SIGINT to `disabled`.
const STOP_TIMEOUT_NS: u64 = 10 * NS_PER_SEC;
/// Between the scheduler's enabling and the workers' start, so that its start-up work is not measured.
const SETTLE_NS: u64 = 200 * NS_PER_MS;
/// What stands before the name of a built-in scheduler.
const BUILTIN: &str = "builtin:";
/// Built-in schedulers are this binary again, under its name in the guest.
const GUEST_SELF: &str = "/init";

/// The plan, and the scheduler's program where one is to be packed.
pub fn make(args: &GuestArgs) -> Result<(Plan, Option<PathBuf>)> {
    let mut works = parse_works(&args.work).map_err(|error| Error::usage(format!("--work: {error}")))?;
    if let Some(workers) = args.workers {
        // A count within --work is more particular.
        works
            .iter_mut()
            .filter(|work| work.workers == Count::AUTO)
            .for_each(|work| work.workers = Count::fixed(workers));
    }
    let chosen = scenarios::choose(args)?;
    let group = |index| CgroupDef {
        works: works.clone(),
        ..CgroupDef::new(&format!("g{index}"), WorkType::SpinWait, Count::AUTO)
    };
    let own = |def: &CgroupDef| CgroupDef {
        works: if def.works.is_empty() { works.clone() } else { def.works.clone() },
        ..def.clone()
    };
    let groups: Vec<CgroupDef> = match args.own_cgroups.is_empty() {
        true => (0..args.cgroups).map(group).collect(),
        false => args.own_cgroups.iter().map(own).collect(),
    };
    let resolver = Resolver { topo: TestTopology::from_spec(&args.topology), workers_per_cgroup: args.workers };
    let steady = ScenarioSpec::steady(groups);
    if args.scenarios.is_empty() {
        let flag = if args.own_cgroups.is_empty() { format!("--work '{}'", args.work) } else { "--cgroup".into() };
        resolver.check(&steady).map_err(|error| Error::usage(format!("{flag}: {error}")))?;
    }
    let scenarios = if args.scenarios.is_empty() { vec![steady] } else { chosen.run };
    let spare_scheds =
        scenarios::replacements(&scenarios).iter().map(|name| spare(name, args)).collect::<Result<_>>()?;
    let (sched, program) = match &args.sched {
        None => (None, None),
        Some(SchedChoice::Builtin(name)) => (Some(builtin(name, args)?), None),
        Some(SchedChoice::External(path)) => (Some(external(path, args)?), Some(path.clone())),
    };
    let plan = Plan {
        protocol: PROTOCOL,
        build: BUILD.into(),
        seed: args.seed.map_or_else(draw_seed, Ok)?,
        topology: args.topology.clone(),
        numa: Numa::default(),
        sched,
        spare_scheds,
        scenarios,
        skipped: chosen.skipped,
        workers_per_cgroup: args.workers,
        work_override: args.work_override.as_ref().map(|work| work.work.clone()),
        duration_ns: args.duration_ns,
        settle_ns: SETTLE_NS,
        modules: Vec::new(),
        limits: Layers::default(),
        disk_bytes: None,
        disk_is_scratch: false,
        raw_samples: args.raw_samples,
        guards: args.guards.clone(),
    };
    Ok((plan, program))
}

/// Gives the plan its disk and the modules that the kernel needs for it, which are to be packed. `kernel` is none where
/// the image is for any kernel.
pub fn add_disk(plan: &mut Plan, args: &GuestArgs, kernel: Option<&Path>) -> Result<Modules> {
    let Some(disk) = &args.disk else { return Ok(Modules::default()) };
    plan.disk_bytes = Some(disk.bytes()?);
    // An image of the user's may hold something.
    plan.disk_is_scratch = disk.is_scratch();
    let Some(kernel) = kernel else {
        let note = "no kernel is named: no modules are packed, and the disk's drivers must be built in".into();
        return Ok(Modules { notes: vec![note], ..Modules::default() });
    };
    let release = KernelImage::open(kernel)?.release()?;
    let modules = modules::for_disk(&modules::Request {
        root: Path::new("/"),
        kernel,
        release: release.as_deref(),
        config: args.kernel_config.as_deref(),
        dir: args.modules.as_deref(),
    })?;
    plan.modules = modules.files.iter().map(|(_, guest)| guest.clone()).collect();
    Ok(modules)
}

/// A scheduler that a step puts in the place of the one under test, under the name that the step has for it.
fn spare(name: &str, args: &GuestArgs) -> Result<SchedSpec> {
    // The arguments are for the scheduler under test.
    let mut own = args.clone();
    own.sched_args.clear();
    match name.strip_prefix(BUILTIN) {
        Some(probe) => builtin(probe, &own),
        None => {
            own.guards.watchdog_ms = None;
            Ok(SchedSpec { name: name.into(), ..external(Path::new(name), &own)? })
        }
    }
}

/// What the image must hold for the plan's scenarios beside the scheduler under test: host path and guest path.
pub fn includes(plan: &Plan) -> Result<Vec<(PathBuf, String)>> {
    let own = scenarios::programs(&plan.scenarios).into_iter().map(|path| Ok((PathBuf::from(&path), path)));
    let spares = plan.spare_scheds.iter().filter(|spare| !spare.name.starts_with(BUILTIN));
    own.chain(spares.map(|spare| Ok((PathBuf::from(&spare.name), image::sched_guest_path(Path::new(&spare.name))?))))
        .collect()
}

fn sched_spec(name: String, argv: Vec<String>, args: &GuestArgs) -> SchedSpec {
    let enable_timeout_ns = args.guards.enable_timeout_ns.unwrap_or(ENABLE_TIMEOUT_NS);
    SchedSpec { name, argv, enable_timeout_ns, stop_timeout_ns: STOP_TIMEOUT_NS }
}

fn builtin(name: &str, args: &GuestArgs) -> Result<SchedSpec> {
    if probe::find(name).is_none() {
        let known = || probe::PROBES.iter().map(|probe| probe.name);
        let hint = match crate::units::nearest(name, known()) {
            Some(near) => format!("did you mean builtin:{near}?"),
            None => {
                format!("there are {}", known().map(|name| format!("builtin:{name}")).collect::<Vec<_>>().join(", "))
            }
        };
        return Err(Error::usage(format!("there is no built-in scheduler '{name}'")).hint(hint));
    }
    if let Some(first) = args.sched_args.first() {
        return Err(Error::usage(format!("built-in schedulers take no arguments, yet --sched-args gives '{first}'")));
    }
    Ok(sched_spec(format!("builtin:{name}"), probe::argv(GUEST_SELF, name, args.guards.watchdog_ms), args))
}

fn external(path: &Path, args: &GuestArgs) -> Result<SchedSpec> {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let (arguments, told) = guards::with_watchdog(args);
    if args.guards.watchdog_ms.is_some() && !told {
        return Err(Error::usage(format!("--watchdog: nothing tells {name} of it: a scheduler sets its own timeout"))
            .hint(format!(
                "where it has an option for that, give it as --sched-args='OPTION {}'",
                guards::WATCHDOG_MS
            )));
    }
    let argv = std::iter::once(image::sched_guest_path(path)?).chain(arguments).collect();
    Ok(sched_spec(name, argv, args))
}

fn draw_seed() -> Result<u64> {
    process::random_number().context(|| "draw a seed")
}
