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
    needs_two_llcs,
    this_one_fails => Options::new().ignored("it fails on purpose"),
}
