//! The grammar there and back, and what its errors say.
//!
//! Owns the examples; leaves the rules of values to config's tests.
//! Invariant: an error's column is the one that a person would point at.

use super::*;
use crate::proto::plan::SchedPolicy;
use crate::units::NS_PER_MS;

fn one(text: &str) -> WorkSpec {
    let mut specs = parse_workspecs(text, 2).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(specs.len(), 1, "{text}");
    specs.remove(0)
}

#[test]
fn text_form_of_every_type_round_trips() {
    let custom = [
        WorkType::Bursty { burst_ns: 5 * NS_PER_MS, sleep_ns: 10 * NS_PER_MS },
        WorkType::PipeIo { burst_iters: 7 },
        WorkType::Sequence { first: Phase::Spin { ns: 5 }, rest: vec![Phase::Io { ns: 9 }, Phase::Yield { ns: 1 }] },
        WorkType::NumaWorkingSetSweep { region_kb: 4, sweep_period_ns: 1, target_nodes: vec![0, 2, 3] },
    ];
    let usual = types().map(|info| info.default.clone()).filter(|work| work.name() != "Custom");
    for work in custom.into_iter().chain(usual) {
        assert_eq!(parse_work(&work.to_text()).unwrap(), work, "{}", work.to_text());
        let spec = WorkSpec::new(work.clone(), 2 * work.worker_group_size());
        assert_eq!(one(&spec_text(&spec)), spec, "{}", spec_text(&spec));
    }
    assert_eq!(
        parse_work(" Bursty( sleep = 1ms ) ").unwrap(),
        WorkType::Bursty { burst_ns: 50 * NS_PER_MS, sleep_ns: NS_PER_MS }
    );
    assert_eq!(parse_work("spin()").unwrap(), WorkType::SpinWait);
}

#[test]
fn counts_are_of_whole_groups() {
    assert_eq!(one("pipe*3").workers, 6);
    assert_eq!(one("fan-out(fan_out=8)*2").workers, 18);
    assert_eq!(one("spin").workers, 2);
    assert_eq!(one("wake-chain(depth=3)").workers, 3);
    let both = parse_workspecs("spin*2 nice=5; bursty(burst=5ms)*1 policy=batch", 1).unwrap();
    assert_eq!((both.len(), both[0].setup.nice, &both[1].setup.policy), (2, 5, &SchedPolicy::Batch));
}

#[test]
fn options_round_trip() {
    for text in [
        "spin*1 policy=fifo:10",
        "spin*1 policy=rr:99 affinity=llc",
        "spin*1 policy=deadline:1ms:5ms:10ms",
        "spin*1 policy=idle nice=0 affinity=cpus:0-3,8",
        "spin*1 nice=-5 affinity=random:2@0-7",
        "spin*1 affinity=random@0-7",
        "spin*1 affinity=random",
        "spin*1 affinity=cross mem=bind:0-1 mpol=static+balancing",
        "spin*1 affinity=single mem=weighted:0",
        "smt-spin*1 affinity=smt mem=preferred:1 clone=thread",
        "spin*1 policy=ext mem=local",
    ] {
        let spec = one(text);
        assert_eq!(one(&spec_text(&spec)), spec, "{text}");
        assert_eq!(spec_text(&spec), text.replace(" nice=0", ""), "{text}");
    }
}

#[test]
fn wrong_text_gives_column_and_nearest_word() {
    for (text, what, column, near) in [
        ("spni", "'spni' is no work type", 1, Some("spin")),
        ("bursty(brust=1ms)", "bursty has no parameter 'brust'", 8, Some("burst")),
        ("bursty(burst=1ms,sleep=3)", "unit is missing", 24, None),
        ("bursty(burst=0ms)", "burst must be above zero", 14, None),
        ("pipe(burst_iters=x)", "no whole number", 18, None),
        ("pipe(burst_iters=1", "')' is missing", 19, None),
        ("pipe(burst_iters)", "no KEY=VALUE", 6, None),
        ("pipe(burst_iters=1,burst_iters=2)", "twice", 20, None),
        ("spin(x=1)", "has no parameters", 6, None),
        ("spin*0", "'0' is no count of groups", 6, None),
        ("spin*2 polcy=fifo:1", "'polcy' is no option", 8, Some("policy")),
        ("spin policy=fifo", "more is needed, such as fifo:10", 13, None),
        ("spin policy=fifi:3", "'fifi' is no policy", 13, Some("fifo")),
        ("spin policy=fifo:100", "sched_policy.priority must be from 1 to 99", 1, None),
        ("spin policy=batch:3", "'batch' takes nothing", 13, None),
        ("spin nice=x", "no nice value", 11, None),
        ("spin nice=20", "nice must be from -20 to 19", 1, None),
        ("spin nice=1 nice=2", "'nice' is given twice", 13, None),
        ("spin affinity=lcl", "'lcl' is no affinity", 15, Some("llc")),
        ("spin affinity=random:0", "affinity.count must be above zero", 1, None),
        ("spin mem=bind", "such as bind:0", 10, None),
        ("spin mpol=statik", "'statik' is no flag", 11, Some("static")),
        ("spin clone=thred", "none of fork, thread", 12, Some("thread")),
        ("fork clone=thread", "clone_mode", 1, None),
        ("sequence(spin 2ms, slep 1ms)", "'slep' is no phase", 20, Some("sleep")),
        ("sequence(spin)", "is not a duration: it is empty", 14, None),
        ("sequence()", "needs a phase", 11, None),
        ("alu(width=1024)", "'1024' is none of scalar", 11, Some("128")),
        ("asym-waker(waker_class=rtt)", "is none of cfs", 24, Some("rt")),
        ("spin;", "name of a work type is missing", 6, None),
        ("wake-chain(depth=1)", "depth must be at least 2", 18, None),
        ("custom", "name", 1, None),
    ] {
        let error = parse_workspecs(text, 2).expect_err(text);
        assert!(error.what.contains(what), "{text}: {error}");
        assert_eq!((error.column, error.nearest.as_deref()), (column, near), "{text}: {error}");
    }
    assert!(parse_work("spin)").is_err() && parse_work("").is_err());
}

#[test]
fn column_counts_characters() {
    assert_eq!(parse_work("bursty(burst=é)").unwrap_err().column, 14);
}
