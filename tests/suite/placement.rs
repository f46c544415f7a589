//! Work types about cores and nodes, in a guest that has several of each.
//!
//! Owns what one such guest's reports must show; leaves the machine's shape itself to topology.
//! Invariant: what is asked is where workers and pages were, never how fast.

use crate::util::*;
use serde_json::Value;
use std::collections::BTreeSet;

/// Pages of the 8 MiB that each memory worker here holds; a worker's process has some 400 others.
const REGION_PAGES: u64 = 2048;

fn cpus(worker: &Value) -> BTreeSet<u32> {
    let text = worker["cpus_used"].as_str().expect("cpus_used is a list");
    let set: ktstr::proto::cpuset::CpuSet = text.parse().expect("cpus_used is a cpulist");
    set.iter().collect()
}

#[test]
fn siblings_nodes_and_memory_policies_are_where_they_should_be() {
    let Some(kernel) = emulation("guest: cores and nodes", "7") else { return };
    // Programs of the guest look at the kernel's own count before and after, while all other pages stay where they are. Beside
    // much other load it moved all its pages six times in three seconds.
    const FILE: &str = "scenario placement
step 6s
  run before: /bin/cat /proc/vmstat
  wait before
  cgroup a: smt-spin*4; numa-sweep(region_kb=8192,sweep_period=50ms)*1; numa-churn(period=20ms)*1; \
cache(size_kb=8192,stride=4096)*1 mem=bind:1; cache(size_kb=8192,stride=4096)*1 mem=bind:0
step 100ms
  run after: /bin/cat /proc/vmstat
  wait after
";
    let scratch = Scratch::new();
    let file = scratch.file("placement.scn", FILE).display().to_string();
    let kernel = kernel.display().to_string();
    let machine = ["--kernel", &kernel, "--accel", "qemu", "--topo", "2n2l2c2t", "--memory", "512M"];
    let load = ["--check", "none", "--scenario", &file, "--json", "-"];
    let ran = run_in(&scratch, &[&machine[..], &load].concat()).exits(0);
    let result = ran.json();
    let workers = result["workers"].as_array().unwrap_or_else(|| panic!("no workers:{ran}"));
    let of = |name: &str| workers.iter().filter(|worker| worker["work_type"] == name).collect::<Vec<_>>();
    for worker in workers {
        assert_eq!((&worker["completed"], &worker["refusals"]), (&Value::Bool(true), &Value::Array(vec![])), "{ran}");
    }
    // Two threads of one core each: CPUs are numbered thread by thread.
    let spinners = of("SmtSiblingSpin");
    assert_eq!(spinners.len(), 8, "{ran}");
    for pair in spinners.chunks(2) {
        let [first, second] = [cpus(pair[0]), cpus(pair[1])];
        assert_eq!((first.len(), second.len()), (1, 1), "{ran}");
        let (first, second) = (first.first().expect("one"), second.first().expect("one"));
        assert!(first != second && first / 2 == second / 2, "{first} and {second} are no siblings:{ran}");
    }
    let pages = |worker: &Value, node: &str| worker["numa_pages"][node].as_u64().unwrap_or(0);
    // A stop between two nodes leaves it on both.
    let sweep = of("NumaWorkingSetSweep")[0];
    assert!(pages(sweep, "0") + pages(sweep, "1") >= REGION_PAGES, "{ran}");
    // All of it to the other node, and back: twice its pages moved, which no other worker's do.
    let moved = |name: &str| {
        let payload = result["payloads"].as_array().and_then(|list| list.iter().find(|one| one["name"] == name));
        let text = payload.and_then(|one| one["output"].as_str()).unwrap_or_else(|| panic!("no {name}:{ran}"));
        let line = text.lines().find_map(|line| line.strip_prefix("pgmigrate_success "));
        line.and_then(|count| count.parse::<u64>().ok()).unwrap_or_else(|| panic!("no count in {name}:{ran}"))
    };
    let moved = moved("after") - moved("before");
    assert!(moved >= 2 * REGION_PAGES, "{moved} pages moved:{ran}");
    let cache = of("CachePressure");
    for (worker, node) in cache.iter().zip(["1", "0"]) {
        assert!(pages(worker, node) >= REGION_PAGES, "node {node}:{ran}");
    }
    assert_eq!(cache.len(), 2, "{ran}");
    // It draws a node 50 times a second.
    let churned = cpus(of("NumaMigrationChurn")[0]);
    assert!(churned.iter().any(|cpu| *cpu < 4) && churned.iter().any(|cpu| *cpu >= 4), "{churned:?}:{ran}");
}
