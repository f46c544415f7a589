//! Types about memory, cache, storage, nodes, processes and cgroups, run for real on this machine.
//!
//! Owns these tests; leaves their helpers to tests.
//! Invariant: what makes a type that type is seen from outside, in /proc or by another call.

use super::tests::*;
use crate::not_run::not_run;
use crate::proto::cpuset::CpuSet;
use crate::proto::work::SampleKind;
use crate::sys::process;
use crate::workload::{Cpus, CustomTask, WorkloadConfig, WorkloadHandle, register_custom};
use std::path::{Path, PathBuf};

/// Kilobytes of a field of /proc/TID/status.
fn kilobytes(tid: i32, name: &str) -> u64 {
    status(tid, name).trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn cache_types_hold_and_walk_the_buffer_asked_for() {
    for (text, yields) in [("cache(size_kb=8192,stride=4096)", false), ("cache-yield(size_kb=8192,stride=4096)", true)]
    {
        let reports = watch(&one_group(text), 100, |tids| {
            // 100 iterations of 1024 strides of a page are far more than its 2048 pages.
            assert!(kilobytes(tids[0], "RssAnon") >= 8192, "{text}");
        });
        assert_eq!(reports[0].work_units, reports[0].iterations * 1024);
        assert_eq!(
            reports[0].hist(SampleKind::Yield).map(|hist| hist.count()),
            yields.then_some(reports[0].iterations)
        );
    }
}

#[test]
fn cache_pipe_partners_wake_each_other() {
    let reports = watch(&one_group("cache-pipe(size_kb=4096,burst_iters=65536)"), 50, |tids| {
        assert!(tids.iter().all(|tid| kilobytes(*tid, "RssAnon") >= 4096));
        assert!(tids.iter().map(|tid| voluntary_switches(*tid)).sum::<u64>() >= 25);
    });
    assert!(reports[0].iterations.abs_diff(reports[1].iterations) <= 2);
    assert!(reports.iter().map(|report| samples(report, SampleKind::Wake)).sum::<u64>() > 0);
}

/// Flags of the one open file that has no name any more, and its length.
fn backing(tid: i32) -> (i32, u64) {
    let entries = std::fs::read_dir(format!("/proc/{tid}/fd")).unwrap();
    let is_backing = |path: &PathBuf| {
        std::fs::read_link(path).is_ok_and(|target| {
            let target = target.to_string_lossy().into_owned();
            target.contains("ktstr-io-") && target.ends_with(" (deleted)")
        })
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(is_backing).collect();
    // The descriptor it was filled through is closed; the last one is the one it works with.
    found.sort();
    let path = found.pop().expect("no unlinked backing file is open");
    let number = path.file_name().unwrap().to_string_lossy().into_owned();
    let info = proc_file(tid, &format!("fdinfo/{number}"));
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    (i32::from_str_radix(flags, 8).unwrap(), std::fs::metadata(path).unwrap().len())
}

#[test]
fn io_types_read_and_write_an_unlinked_file_with_their_flags() {
    for (text, flag, reads, writes) in [
        ("io-sync", libc::O_SYNC, false, true),
        ("io-rand", libc::O_DIRECT, true, false),
        ("io-convoy", libc::O_DIRECT, true, true),
    ] {
        let reports = watch(&one_group(text), 20, |tids| {
            let (flags, bytes) = backing(tids[0]);
            let direct_refused = flag == libc::O_DIRECT && flags & flag == 0;
            assert!(flags & flag == flag || direct_refused, "{text}: {flags:o}");
            assert_eq!(bytes, 16 << 20);
            let io = proc_file(tids[0], "io");
            let count = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            if let (Some(read), Some(written)) = (count("rchar:"), count("wchar:")) {
                assert!(!reads || read >= 20 * 4096, "{text}: {io}");
                assert!(!writes || written >= 20 * 4096, "{text}: {io}");
            }
        });
        assert_eq!(samples(&reports[0], SampleKind::Io), reports[0].iterations);
        assert!(reports[0].notice.as_deref().unwrap().starts_with("i/o on a temporary file"), "{reports:?}");
    }
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap();
    assert!(!left.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("ktstr-io-")));
}

#[test]
fn disk_that_cannot_be_opened_is_told_and_ends_the_worker() {
    // A device that is no disk: it has no size.
    let config = WorkloadConfig { scratch_disk: Some("/dev/null".into()), ..one_group("io-sync") };
    let handle = WorkloadHandle::spawn(&config).unwrap();
    let reports = handle.stop_and_collect().unwrap();
    let told = reports[0].setup_error.as_deref().unwrap();
    assert!(told.starts_with("cannot open its backing file or disk: "), "{told}");
}

#[test]
fn page_faults_come_with_every_cycle() {
    let reports = watch(&one_group("page-fault(touches_per_cycle=100)"), 50, |tids| {
        let faults = stat(tids[0], STAT_MINOR_FAULTS);
        // 100 random touches of 1024 pages hit 95 different ones on average.
        assert!(faults > 50 * 80, "{faults}");
    });
    assert!(reports[0].work_units >= reports[0].iterations * 100);
}

#[test]
fn numa_sweep_binds_its_region_and_tells_its_pages() {
    let reports = watch(&one_group("numa-sweep(region_kb=8192,sweep_period=1ms,target_nodes=0)"), 5, |tids| {
        let maps = proc_file(tids[0], "numa_maps");
        assert!(maps.is_empty() || maps.lines().any(|line| line.contains("bind:0")), "{maps}");
        assert!(voluntary_switches(tids[0]) >= 5);
    });
    assert!(samples(&reports[0], SampleKind::Timer) >= 5);
    let told = Path::new("/proc/self/numa_maps").exists();
    // All pages of the region; its process has some 400 others.
    assert_eq!(reports[0].numa_pages.as_ref().map(|pages| pages[0].1 >= 2048), told.then_some(true), "{reports:?}");
    let refused = watch(&one_group("numa-sweep(sweep_period=1ms,target_nodes=900)"), 2, |_| {});
    assert!(refused[0].mem_policy_error.as_deref().unwrap().contains("errno"), "{refused:?}");
}

#[test]
fn numa_churn_runs_on_the_cpus_of_a_node() {
    let nodes = Cpus::read(Path::new("/")).nodes;
    let reports = watch(&one_group("numa-churn(period=2ms)"), 10, |tids| {
        let allowed: CpuSet = status(tids[0], "Cpus_allowed_list").parse().unwrap();
        // Of one node it has all CPUs, whatever it draws.
        match nodes.len() {
            0 | 1 => not_run("one node: where numa-churn runs is seen in a guest alone"),
            _ => assert!(nodes.iter().any(|(_, cpus)| allowed.is_subset(cpus)), "{allowed}"),
        }
        assert!(voluntary_switches(tids[0]) >= 10);
    });
    assert!(samples(&reports[0], SampleKind::Timer) >= 10);
}

#[test]
fn memory_policy_is_the_kernels_and_its_refusal_is_told() {
    // As mpol_to_str() of mm/mempolicy.c writes them. The younger ones, which not every kernel has, are tried in sys/numa.
    for (asked, told) in [
        ("mem=bind:0", " bind:0 "),
        ("mem=bind:0 mpol=static", " bind=static:0 "),
        ("mem=bind:0 mpol=relative", " bind=relative:0 "),
        ("mem=preferred:0", " prefer:0 "),
        ("mem=interleave:0", " interleave:0 "),
        ("mem=local", " local "),
    ] {
        let reports = watch(&one_group(&format!("cache*1 {asked}")), 10, |tids| {
            let maps = proc_file(tids[0], "numa_maps");
            assert!(maps.is_empty() || maps.contains(told), "{asked}: {maps}");
        });
        assert!(reports[0].refusals().is_empty(), "{asked}: {reports:?}");
    }
    // The buffer counts although its loop has ended.
    for text in ["cache(size_kb=8192,stride=4096)*1", "cache-yield(size_kb=8192,stride=4096)*1"] {
        let report = watch(&one_group(&format!("{text} mem=bind:0")), 10, |_| {}).remove(0);
        let told = Path::new("/proc/self/numa_maps").exists();
        assert_eq!(report.numa_pages.as_ref().map(|pages| pages[0].1 >= 2048), told.then_some(true), "{report:?}");
    }
    let refused = watch(&one_group("spin*1 mem=bind:900"), 1, |_| {});
    assert!(refused[0].refusals()[0].starts_with("memory policy refused: "), "{refused:?}");
}

#[test]
fn fork_exit_waits_for_every_child() {
    let reports = watch(&one_group("fork"), 50, |tids| {
        // Faults of children count only once they were waited for (proc_pid_stat(5)).
        assert!(stat(tids[0], STAT_CHILDREN_FAULTS) >= 50);
        let zombies = proc_file(tids[0], &format!("task/{}/children", tids[0]));
        assert!(zombies.split_whitespace().count() <= 1, "{zombies}");
    });
    assert!(samples(&reports[0], SampleKind::Block) >= 50);
}

/// A writable cgroup2 mount.
fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let targets = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let found = targets.filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).find(|dir| {
        let probe = dir.join(format!("ktstr-churn-probe-{}", process::id()));
        std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
    });
    if found.is_none() {
        not_run("no writable cgroup2 mount on this machine");
    }
    found
}

#[test]
fn cgroup_churn_moves_between_its_own_cgroups_and_removes_them() {
    let Some(mount) = cgroup2() else { return };
    let parent = mount.join(format!("ktstr-churn-{}", process::id()));
    let home = parent.join("home");
    std::fs::create_dir_all(&home).unwrap();
    let config = WorkloadConfig { cgroup_dir: Some(home.clone()), ..one_group("cgroup-churn(groups=3,cycle=2ms)") };
    let mut handle = WorkloadHandle::spawn(&config).unwrap();
    let tid = handle.tids()[0];
    std::fs::write(home.join("cgroup.procs"), tid.to_string()).unwrap();
    handle.start().unwrap();
    let mut groups = std::collections::BTreeSet::new();
    wait_for("three cgroups", || {
        groups.extend(proc_file(tid, "cgroup").lines().filter_map(|line| line.strip_prefix("0::").map(str::to_owned)));
        groups.iter().filter(|group| group.contains("/home.churn")).count() == 3
    });
    let reports = handle.stop_and_collect().unwrap();
    assert!(reports[0].completed && reports[0].iterations >= 2, "{reports:?}");
    let left: Vec<_> = std::fs::read_dir(&parent).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
    std::fs::remove_dir(&home).unwrap();
    std::fs::remove_dir(&parent).unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn sequence_goes_through_its_phases() {
    let reports = watch(&one_group("sequence(spin 1ms, sleep 1ms, yield 200us, io 500us)"), 10, |tids| {
        assert!(voluntary_switches(tids[0]) >= 10);
    });
    for kind in [SampleKind::Timer, SampleKind::Yield, SampleKind::Io] {
        assert!(samples(&reports[0], kind) >= 10, "{kind:?}: {reports:?}");
    }
    assert!(reports[0].off_cpu_ns >= 10_000_000);
}

fn three_units(task: &mut CustomTask<'_, '_>) {
    while !task.stopped() {
        task.work_done(3);
        task.record_ns(1000 + task.position() as u64);
        task.sleep_ns(1_000_000);
        task.iteration_done();
    }
}

#[test]
fn custom_function_is_called_by_name_and_an_unknown_one_refused() {
    register_custom("three-units", three_units);
    let reports = watch(&one_group("custom(name=three-units)*2"), 10, |tids| {
        assert!(tids.iter().all(|tid| voluntary_switches(*tid) >= 10));
    });
    for report in &reports {
        assert_eq!(report.work_units, report.iterations * 3);
        assert_eq!(report.hist(SampleKind::User).unwrap().max_ns(), Some(1000));
    }
    let error = WorkloadHandle::spawn(&one_group("custom(name=nobody)")).unwrap_err().to_string();
    assert!(error.contains("no function is registered under this name"), "{error}");
}
