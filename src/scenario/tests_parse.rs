//! Tests of scenario files: every word round-trips, typical mistakes are explained, hostile text is only refused.
//!
//! Owns the text form's round trips and its messages; leaves what the values do to the tests of the engine.
//! Invariant: every mistake of the table is told with its line, its column and what was meant.

use super::parse::{parse, print};
use super::resolve::Random;
use super::{Resolver, TestTopology};
use crate::proto::plan::{MemPolicy, MpolFlags, SchedPolicy};
use crate::proto::scenario::{AffinityIntent, ScenarioSpec};

/// A file with every kind of line.
const ALL: &str = "\
# all of it
scenario everything
  category own
  about What this is about: a colon, a # and more.
  checks not_starved isolation
  needs cpus=8 llcs=2 nodes=2 threads=2
  flags llc steal
  not-flags no-ctrl
  cpu-controller off
  duration 1m30s
  assert max-gap=500ms spread=off
backdrop
  cgroup bg workers=cpus/2: spin
  host: spin*1
step 12.5%
  add-cgroup extra
  set-cpuset bg part:0/3
  clear-cpuset bg
  set-weight bg 200
  set-max bg 20ms/100ms
  set-max bg none
  set-affinity bg random:2
  spawn extra: bursty(burst=1ms)*2 nice=5
  spawn-host workers=usable*3/2: yield
  freeze bg
  unfreeze bg
  run tool limit=5s cgroup=bg: /bin/sh -c 'echo a; # b'
  wait tool
  kill tool
  cpu-offline 3
  cpu-online 3
  detach-scheduler
  attach-scheduler
  restart-scheduler
  replace-scheduler builtin:fifo
  snapshot
  cgroup a copies=llcs cpuset=each: pipe*2; spin policy=fifo:3
  cgroup b cpuset=overlap:0/2:33.3333% weight=50 max=5ms/50ms swappable: mixed
  cgroup c/d cpuset=range:0%..50%
step 2s
  swap-cpusets b c/d
  move-all b c/d
  stop-cgroup a*
  remove-cgroup a0
step loop 100ms
  set-cpuset e cpus:0-1,3
  cgroup e cpuset=llc:1: spin
";

#[test]
fn what_a_definition_says_of_all_its_workers_is_printed_with_each_work() {
    let mut spec =
        parse("scenario s\nstep 1s\n  cgroup a: spin*1; yield*2 policy=fifo:3 nice=1 mem=local\n").unwrap().remove(0);
    let def = &mut spec.steps[0].setup[0];
    (def.policy, def.nice, def.affinity) = (SchedPolicy::Batch, 5, AffinityIntent::SingleCpu);
    (def.mem_policy, def.mpol_flags) = (MemPolicy::Bind { nodes: [0].into_iter().collect() }, MpolFlags::STATIC_NODES);
    let text = print(std::slice::from_ref(&spec));
    let batch = "spin*1 policy=batch nice=5 affinity=single mem=bind:0 mpol=static";
    assert!(
        text.contains(&format!("cgroup a: {batch}; yield*2 policy=fifo:3 nice=1 affinity=single mem=local\n")),
        "{text}"
    );
    let again = parse(&text).unwrap().remove(0);
    let resolver = Resolver { topo: TestTopology::synthetic(1, 1, 2, 1), workers_per_cgroup: None };
    let works = |spec: &ScenarioSpec| resolver.groups(&spec.steps[0].setup[0]).unwrap().remove(0).works;
    assert_eq!(works(&again), works(&spec));
}

#[test]
fn every_kind_of_line_reads_and_prints_back() {
    let specs = parse(ALL).unwrap_or_else(|error| panic!("{error}"));
    let text = print(&specs);
    assert_eq!(parse(&text).unwrap_or_else(|error| panic!("{error} in\n{text}")), specs);
    assert_eq!(print(&parse(&text).unwrap()), text);
    assert_eq!(specs[0].about, "What this is about: a colon, a # and more.");
    for word in super::values::OPS {
        assert!(text.contains(&format!("  {word}")), "{word} is not in the test");
    }
}

#[test]
fn typical_mistakes_are_told_with_place_and_nearest_word() {
    let steps = |lines: &str| format!("scenario x\nstep\n{lines}");
    for (text, message) in [
        ("", "line 1, column 1: there is no scenario in it"),
        ("stap\n", "line 1, column 1: a file begins with 'scenario NAME' (did you mean 'step'?)"),
        ("scenario a b\n", "line 1, column 1: a scenario has one name"),
        ("scenario a/b\n", "line 1, column 10: 'a/b' is no name: it holds '/'"),
        ("scenario x\n  abuot y\n", "line 2, column 3: 'abuot' is no property of a scenario"),
        ("scenario x\n  duration 5\nstep\n", "line 2, column 12: '5' is not a duration: the unit is missing"),
        (
            "scenario x\n  needs cpu=4\nstep\n",
            "line 2, column 9: 'cpu' is nothing that a machine has (cpus, llcs, nodes, threads) (did you mean 'cpus'?)",
        ),
        ("scenario x\n  flags steel\nstep\n", "line 2, column 9: 'steel' is no flag of a scheduler"),
        ("scenario x\n  snapshot\nstep\n", "ops and cgroups stand in a step"),
        ("scenario x\n", "line 2, column 1: the scenario x has no step"),
        ("scenario x\nstep 150%\n", "line 2, column 6: '150%' is no part of a whole"),
        (
            "scenario x\nstep loop\n",
            "line 2, column 6: a step lasts a part (50%), a time (2s), or repeats its ops ('loop 100ms')",
        ),
        (
            &steps("  cgruop a: spin\n"),
            "line 3, column 3: 'cgruop' is neither an op nor 'cgroup' (did you mean 'cgroup'?)",
        ),
        (&steps("  cgroup a: spni\n"), "line 3, column 13: 'spni' is no work type"),
        (&steps("  cgroup a: spni\n"), "(did you mean 'spin'?)"),
        (
            &steps("  cgroup a: bursty(brust=1ms)\n"),
            "line 3, column 20: bursty has no parameter 'brust' (did you mean 'burst'?)",
        ),
        (&steps("  cgroup a cpusets=llc:0: spin\n"), "line 3, column 12: 'cpusets' is no setting here"),
        (&steps("  cgroup a cpuset=lcc:0: spin\n"), "line 3, column 19: 'lcc:0' is no cpuset"),
        (
            &steps("  cgroup a cpuset=part:3/3: spin\n"),
            "line 3, column 19: part 3 of 3 does not exist: parts are counted from 0",
        ),
        (&steps("  cgroup a workers=cpu*2: spin\n"), "line 3, column 20: 'cpu*2' is no count"),
        (&steps("  cgroup a workers=4\n"), "line 3, column 3: there are workers, but no work"),
        (&steps("  cgroup a weight=0: spin\n"), "line 3, column 19: '0' is no whole number from 1 to 10000"),
        (&steps("  cgroup a: spin\n  cgroup a: spin\n"), "line 4, column 10: there is a cgroup 'a' already"),
        (
            &steps("  cgroup alpha: spin\nstep\n  freeze alhpa\n"),
            "line 5, column 10: there is no cgroup 'alhpa' at this point (did you mean 'alpha'?)",
        ),
        (
            &steps("  cgroup a: spin\nstep\n  remove-cgroup a\nstep\n  freeze a\n"),
            "line 7, column 10: there is no cgroup 'a'",
        ),
        (&steps("  cgroup a: spin\n  snapshot\n"), "line 4, column 3: the ops of a step come before its cgroups"),
        (&steps("  set-cpuset a\n"), "line 3, column 3: 'set-cpuset' needs a cgroup and a cpuset"),
        (&steps("  snapshot now\n"), "line 3, column 12: 'now' is left over"),
        (&steps("  run p: stress-ng\n"), "line 3, column 10: 'stress-ng' is no absolute path"),
        (&steps("  run p: /bin/sh -c 'x\n"), "line 3, column 21: the quote ' is not closed"),
        (&steps("  wait p\n"), "line 3, column 8: no command 'p' was run before"),
        (
            &steps("  cgroup a: spin\nstep\n  set-affinity a rnadom\n"),
            "line 5, column 18: 'rnadom' is no affinity (inherit",
        ),
        (&steps("  set-max a 20\n"), "line 3, column 13: '20' is no part of a whole"),
        (&steps("  spawn a\n"), "line 3, column 3: 'spawn' takes one work behind a colon"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(message), "{text:?}\n  said: {error}\n  want: {message}");
    }
}

/// Texts made of the grammar's own words and of noise, from a fixed seed: nothing panics, and what is read prints back.
fn fuzz(seed: u64, texts: u32) -> u32 {
    let words: Vec<&str> = ALL.split(|c: char| c.is_whitespace()).filter(|word| !word.is_empty()).collect();
    let noise = [
        "\n",
        "\n",
        "\n  ",
        " ",
        ":",
        ": ",
        "=",
        "#",
        "'",
        "\\",
        "%",
        "..",
        "/",
        "é",
        "\u{0}",
        "99999999999",
        "-",
        "*",
        "(",
        ")",
        ";",
        "\t",
    ];
    let mut random = Random::new(seed);
    let mut below = |most: usize| (random.draw() % most.max(1) as u64) as usize;
    let mut read = 0;
    for _ in 0..texts {
        let mut text: String = match below(3) {
            0 => {
                (0..below(40)).map(|_| format!("{}{}", words[below(words.len())], noise[below(noise.len())])).collect()
            }
            _ => ALL.into(),
        };
        for _ in 0..below(4) {
            let chars: Vec<char> = text.chars().collect();
            let (from, to) = (below(chars.len() + 1), below(chars.len() + 1));
            let (from, to) = (from.min(to), from.max(to).min(from.min(to) + below(30)));
            let piece = match below(4) {
                0 => String::new(),
                1 => noise[below(noise.len())].into(),
                2 => words[below(words.len())].into(),
                _ => chars[from..to].iter().rev().collect(),
            };
            text = chars[..from].iter().collect::<String>() + &piece + &chars[to..].iter().collect::<String>();
        }
        if let Ok(specs) = parse(&text) {
            let printed = print(&specs);
            let again =
                parse(&printed).unwrap_or_else(|error| panic!("{error}\n--- printed\n{printed}\n--- from\n{text}"));
            assert_eq!(again, specs, "--- printed\n{printed}\n--- from\n{text}");
            read += 1;
        }
    }
    read
}

#[test]
fn hostile_text_is_refused_and_what_is_read_prints_back() {
    let read = fuzz(1, 4000);
    assert!(read > 100, "{read} of 4000 were read: the fuzz tests nothing but refusals");
}

/// By hand: `KTSTR_FUZZ_S=600 cargo test --release --lib fuzz_for_minutes -- --ignored`.
#[test]
#[ignore = "takes as long as KTSTR_FUZZ_S says"]
fn fuzz_for_minutes() {
    let seconds = std::env::var("KTSTR_FUZZ_S").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    let (mut seed, mut texts) = (2, 0u64);
    while std::time::Instant::now() < deadline {
        fuzz(seed, 1000);
        (seed, texts) = (seed + 1, texts + 1000);
    }
    eprintln!("{texts} texts");
}
