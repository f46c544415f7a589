//! What people write: scenario files, and works as `--work` takes them.
//!
//! Owns what must hold of a text that was read; leaves the grammars to scenario/ and workload/.
//! Invariant: what is read prints as a text that reads back as the same, and can be laid out on a machine or is refused.

use crate::proto::codec::Wire;
use crate::proto::scenario::{Op, ScenarioSpec};
use crate::scenario::{Random, Resolver, TestTopology, catalog, parse, print};
use crate::verdict::table::of_pairs;
use crate::workload::{ALL_NAMES, parse_workspecs, spec_text, types};

/// A scenario file, from its text to the plan that `ktstr check` prints.
pub(super) fn scenario(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let specs = match parse(&text) {
        Ok(specs) => specs,
        Err(error) => {
            let (said, lines) = (error.to_string(), text.lines().count() + 1);
            assert!(
                said.starts_with("line ") && (1..=lines).any(|line| said.contains(&format!("line {line},"))),
                "{said}"
            );
            return;
        }
    };
    let printed = print(&specs);
    let again = parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(again, specs, "{printed}");
    let resolver = Resolver { topo: TestTopology::synthetic(2, 2, 2, 1), workers_per_cgroup: None };
    for spec in &specs {
        assert_eq!(ScenarioSpec::from_bytes(&spec.to_bytes()).as_ref(), Ok(spec));
        drop((of_pairs(&spec.asserts), resolver.check(spec)));
        for op in spec.ops() {
            match op {
                Op::SetCpuset { cpuset, .. } => drop(resolver.cpuset(cpuset, (0, 1))),
                Op::SetAffinity { affinity, .. } => {
                    let pool = resolver.topo.all_cpuset();
                    drop(resolver.affinities(affinity, &pool, 4, &mut Random::new(1)));
                }
                Op::Spawn { work, .. } | Op::SpawnHost { work } => drop(resolver.lone_work(work)),
                _ => {}
            }
        }
    }
}

pub(super) fn scenario_seeds() -> Vec<Vec<u8>> {
    let own = "scenario x\n  needs cpus=8 threads=2\n  not-flags no-ctrl\n  duration 1m30s\n  assert max-gap=500ms spread=off\n\
        backdrop\n  host: spin*1\nstep 12.5%\n  add-cgroup e\n  set-max e 20ms/100ms\n  set-weight e 200\n  set-affinity e random:2\n\
        run t limit=5s cgroup=e: /bin/sh -c 'a; # b'\n  wait t\n  kill t\n  cpu-offline 3\n  replace-scheduler builtin:fifo\n\
        cgroup a copies=llcs cpuset=each: pipe*2; spin policy=fifo:3\n  cgroup c/d cpuset=cpus:0-1,3 max=5ms/50ms\nstep loop 100ms\n\
        swap-cpusets a0 c/d\n";
    // What was found once.
    let many = "scenario x\nstep\n  cgroup s cpuset=overlap:0/4000000000:50%: bursty(burst=2ms,sleep=5ms)*2555555555\n";
    let all = catalog::all_scenarios();
    all.iter().map(|spec| print(std::slice::from_ref(spec)).into_bytes()).chain([own.into(), many.into()]).collect()
}

/// Works with their parameters and options.
pub(super) fn work(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match parse_workspecs(&text, 2) {
        Ok(specs) => {
            for spec in specs {
                let written = spec_text(&spec);
                let again = parse_workspecs(&written, 2).unwrap_or_else(|error| panic!("{error}: {written}"));
                assert_eq!(again, [spec], "{written}");
            }
        }
        Err(error) => assert!(error.column >= 1 && error.column <= text.chars().count() + 1, "{error}: {text:?}"),
    }
}

pub(super) fn work_seeds() -> Vec<Vec<u8>> {
    let options = "bursty(burst=5ms, sleep=10ms)*4 nice=5 policy=fifo:10 affinity=random:2@0-3 mem=bind:0-1 mpol=static+balancing; \
        sequence(spin 2ms, sleep 1ms, yield 1ms, io 1ms) policy=deadline:1ms:5ms:10ms clone=thread; spin*2 affinity=cpus:0,2-3";
    let defaults = types().map(|info| info.default.to_text().into_bytes());
    let names = ALL_NAMES.iter().map(|name| name.as_bytes().to_vec());
    defaults.chain(names).chain([options.as_bytes().to_vec()]).collect()
}
