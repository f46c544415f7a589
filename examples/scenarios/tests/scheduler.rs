//! Scenarios in code. Each function runs in a guest, as a process beside PID 1, and says what it found.
//!
//!     KTSTR_KERNEL=/path/to/bzImage cargo test
//!     KTSTR_KERNEL=... KTSTR_ARGS='--sched ./scx_mine' cargo test -- share

use ktstr::prelude::*;

/// Two cgroups with the same load: every worker works, and gets its share.
fn two_groups_share(ctx: &Ctx) -> Result<AssertResult> {
    let (groups, _cgroups) = setup_cgroups(ctx, 2, &dfl_wl(ctx))?;
    ctx.hold(ctx.duration)?;
    collect_all(groups, &ctx.assert)
}

/// Different loads side by side; afterwards a number of our own is asserted.
fn diverse_loads_all_progress(ctx: &Ctx) -> Result<AssertResult> {
    let (groups, _cgroups) = spawn_diverse(ctx, &["spin", "burst", "pipes", "futexes", "yields"])?;
    ctx.hold(ctx.duration / 2)?;
    let half_way: Vec<u64> = groups.iter().map(|group| group.iterations().iter().sum()).collect();
    ctx.hold(ctx.duration / 2)?;
    let slow =
        groups.iter().zip(&half_way).filter(|(group, before)| group.iterations().iter().sum::<u64>() <= **before);
    let stuck: Vec<String> = slow.map(|(group, _)| group.name().to_owned()).collect();
    ctx.note(format!("iterations half way: {half_way:?}"))?;
    let progress = AssertResult::require(stuck.is_empty(), || format!("no progress in the second half: {stuck:?}"));
    Ok(progress.merge(collect_all(groups, &ctx.assert)?))
}

/// A cgroup is confined to the first CPU, and must not be seen elsewhere.
fn confined_group_stays_inside(ctx: &Ctx) -> Result<AssertResult> {
    let mut cgroups = ctx.cgroup_group()?;
    let first: CpuSet = ctx.topo.all_cpus().into_iter().take(1).collect();
    let load = WorkloadConfig::new(WorkType::SpinWait, 2);
    let mut groups =
        vec![ctx.spawn(&mut cgroups, "confined", Some(&first), &load)?, ctx.spawn(&mut cgroups, "free", None, &load)?];
    ctx.start(&mut groups)?;
    ctx.hold(ctx.duration)?;
    collect_all(groups, &Assert::new().not_starved().isolation())
}

/// Steps as data, which PID 1 carries out: a cgroup beside another, frozen half way, then thawed.
fn frozen_group_comes_back(ctx: &Ctx) -> Result<AssertResult> {
    let group = |name: &str| CgroupDef::new(name, WorkType::SpinWait, Count::fixed(2));
    let third = HoldSpec::Fixed { ns: ctx.duration.as_nanos() as u64 / 3 };
    let steps = vec![
        Step { ops: vec![], setup: vec![group("cold"), group("warm")], hold: third },
        Step { ops: vec![Op::FreezeCgroup { name: "cold".into() }], setup: vec![], hold: third },
        Step { ops: vec![Op::UnfreezeCgroup { name: "cold".into() }], setup: vec![], hold: third },
    ];
    // A frozen worker stands still, so only the work is asserted, not the gaps.
    execute_steps_with(ctx, steps, &Assert::new().not_starved())
}

/// Cgroups by their definitions, and nothing else: one step of the whole duration.
fn defined_groups_share(ctx: &Ctx) -> Result<AssertResult> {
    let spin = CgroupDef::new("spin", WorkType::SpinWait, Count::fixed(2));
    let heavy = CgroupDef { name: "heavy".into(), weight: Some(200), ..spin.clone() };
    execute_defs(ctx, vec![spin, heavy])
}

/// Every setting of a cgroup reads back as it was set, and its statistics tell of what its workers did.
fn settings_of_a_cgroup_are_in_force(ctx: &Ctx) -> Result<AssertResult> {
    use ktstr::cgroup::{self, Partition};
    for controller in ["cpuset", "cpu", "memory", "io", "pids"] {
        ctx.cgroups.setup(&[controller])?;
    }
    // A partition takes its CPUs from the root cgroup, so it is the scenario's own subtree that can be one.
    let subtree = ctx.cgroups.parent_path().to_owned();
    let (first, all) = (CpuSet::first(1), ctx.topo.all_cpuset());
    let last = all.difference(&first);
    type Set<'a> = (&'a str, &'a str, Box<dyn Fn(&std::path::Path) -> Result<()> + 'a>);
    let partition = |kind: Partition| {
        let last = &last;
        move |dir: &std::path::Path| {
            cgroup::set_cpuset(dir, last)?;
            cgroup::set_partition(dir, kind)
        }
    };
    let of_subtree: Vec<Set> = vec![
        ("cpuset.cpus.partition", "root", Box::new(partition(Partition::Root))),
        ("cpuset.cpus.partition", "isolated", Box::new(partition(Partition::Isolated))),
        ("cpuset.cpus.partition", "member", Box::new(partition(Partition::Member))),
        ("cpuset.cpus", "", Box::new(cgroup::clear_cpuset)),
    ];
    let max = CpuMax { quota_ns: 50_000_000, period_ns: 100_000_000 };
    let of_group: Vec<Set> = vec![
        ("cpuset.cpus", "0", Box::new(|dir| cgroup::set_cpuset(dir, &first))),
        ("cpuset.mems", "0", Box::new(|dir| cgroup::set_mems(dir, &first))),
        ("cpu.weight", "300", Box::new(|dir| cgroup::set_weight(dir, 300))),
        ("cpu.max", "50000 100000", Box::new(|dir| cgroup::set_max(dir, Some(max)))),
        ("memory.max", "67108864", Box::new(|dir| cgroup::set_memory_max(dir, Some(64 << 20)))),
        ("memory.high", "33554432", Box::new(|dir| cgroup::set_memory_high(dir, Some(32 << 20)))),
        ("memory.low", "1048576", Box::new(|dir| cgroup::set_memory_low(dir, Some(1 << 20)))),
        ("memory.swap.max", "0", Box::new(|dir| cgroup::set_memory_swap_max(dir, Some(0)))),
        ("io.weight", "default 50", Box::new(|dir| cgroup::set_io_weight(dir, 50))),
        ("pids.max", "9", Box::new(|dir| cgroup::set_pids_max(dir, Some(9)))),
    ];
    let mut cgroups = ctx.cgroup_group()?;
    let load = WorkloadConfig::new(WorkType::SpinWait, 1);
    let mut groups = vec![ctx.spawn(&mut cgroups, "set", None, &load)?];
    let dir = ctx.cgroups.dir_of("set")?;
    let mut result = AssertResult::pass();
    let mut in_force = 0;
    for (dir, sets) in [(&subtree, &of_subtree), (&dir, &of_group)] {
        for (file, data, set) in sets {
            set(dir)?;
            let seen = std::fs::read_to_string(dir.join(file)).unwrap_or_else(|error| error.to_string());
            in_force += u32::from(seen.trim() == *data);
            let told = || format!("{file} is '{}', not '{data}'", seen.trim());
            result = result.merge(AssertResult::require(seen.trim() == *data, told));
        }
    }
    ctx.note(format!("{in_force} settings in force"))?;
    ctx.start(&mut groups)?;
    ctx.hold(ctx.duration)?;
    let told = cgroup::stat(&dir)?;
    let usage = told.cpu.iter().find(|(name, _)| name == "usage_usec").map_or(0, |(_, us)| *us);
    let cpus = told.cpus_effective.clone().unwrap_or_default();
    let alive = told.populated && told.procs == groups[0].tids() && cpus == first;
    // A worker that was moved in when its pages were there already need not have been charged for one.
    let counted = usage > 0 && told.memory_current_bytes.is_some();
    let pressed = told.cpu_pressure.as_ref().is_some_and(|text| text.starts_with("some avg10="));
    result = result.merge(AssertResult::require(alive && counted && pressed, || format!("{told:?}")));
    Ok(result.merge(collect_all(groups, &Assert::new().not_starved())?))
}

/// The same over a load of the root cgroup that is there before and after.
fn defined_groups_share_over_a_backdrop(ctx: &Ctx) -> Result<AssertResult> {
    let host = DefWork { work: WorkType::YieldHeavy, workers: Count::fixed(1), setup: WorkSetup::default() };
    let spin = CgroupDef::new("spin", WorkType::SpinWait, Count::fixed(2));
    let step = Step { ops: vec![], setup: vec![spin], hold: HoldSpec::FULL };
    execute_scenario(ctx, Backdrop { host: vec![host], ..Backdrop::default() }, vec![step])
}

/// Needs what a guest of two CPUs does not have, and says so.
fn needs_two_llcs(ctx: &Ctx) -> Result<AssertResult> {
    if ctx.topo.num_llcs() < 2 {
        return Ok(AssertResult::skip("needs two LLCs: try KTSTR_ARGS='--topo 1n2l1c1t'"));
    }
    two_groups_share(ctx)
}

/// Fails, so that one can see what a failure looks like.
fn this_one_fails(ctx: &Ctx) -> Result<AssertResult> {
    let sum: u32 = ctx.topo.all_cpus().into_iter().sum();
    assert!(sum > 1000, "the numbers of all CPUs add up to {sum} only");
    Ok(AssertResult::pass())
}

ktstr::main! {
    two_groups_share,
    two_groups_share as "two_groups_share_under_fifo" => Options::new().args("--sched builtin:fifo"),
    diverse_loads_all_progress,
    confined_group_stays_inside,
    frozen_group_comes_back,
    defined_groups_share,
    defined_groups_share_over_a_backdrop,
    settings_of_a_cgroup_are_in_force,
    needs_two_llcs,
    this_one_fails => Options::new().ignored("it fails on purpose"),
}
