//! From the flags that were given to the values that a command works with.
//!
//! Owns the meaning and the limits of each value; leaves the words to `parse` and the machine to run/.
//! Invariant: does no I/O; whatever is refused here is refused with the flag's name in front.

use super::args::{
    AccelChoice, ChannelChoice, ColorChoice, Command, GuestArgs, HelpOn, ImageAction, ImageArgs, Include, JsonTarget,
    JudgeArgs, ListWhat, Memory, RunArgs, SchedChoice, Shell,
};
use super::flags::{self, Cmd};
use super::parse::Given;
use super::{cmd_selftest, disk, guards, limits, machine, matrix, own_cgroups, scenarios, split, topics};
use crate::error::{Error, Result};
use crate::proto::scenario::DefWork;
use crate::units;
use crate::workload;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What stands before the name of a built-in scheduler.
const BUILTIN: &str = "builtin:";
/// Process ids that a kernel has by default: PID_MAX_DEFAULT (include/linux/threads.h).
const PID_MAX_DEFAULT: u64 = 0x8000;
/// Every worker has to have a turn: several times the longest wait of a sane scheduler, some tens of milliseconds.
const LEAST_DURATION_NS: u64 = 100 * units::NS_PER_MS;
/// Descriptors below this one are standard input, output and error.
const FIRST_OWN_FD: i32 = 3;

/// Gives each flag its meaning.
pub(super) fn describe(given: &Given) -> Result<Command> {
    Ok(match given.cmd {
        Cmd::Run if matrix::is_asked(given) => Command::Suite(Box::new(matrix::suite(given)?)),
        Cmd::BisectCheck => Command::BisectCheck(Box::new(matrix::ends(given)?)),
        Cmd::Runs => {
            let most_bytes = units::parse_size(&text(given, "max-size")?, true).map_err(|why| bad("max-size", why))?;
            Command::Runs { prune_to_bytes: given.has("prune").then_some(most_bytes) }
        }
        Cmd::BisectHelp => Command::Help(HelpOn::Topic("bisect")),
        Cmd::Run => Command::Run(Box::new(run(given)?)),
        Cmd::Image => Command::Image(Box::new(image(given)?)),
        Cmd::Judge => Command::Judge(Box::new(judge(given)?)),
        Cmd::Selftest => Command::Selftest(Box::new(cmd_selftest::arguments(given)?)),
        Cmd::Doctor => Command::Doctor { json: given.has("json") },
        Cmd::List => Command::List(match choice("WHAT", operand(given), flags::LISTS)? {
            "works" => ListWhat::Works,
            "topologies" => ListWhat::Topologies,
            "scenarios" => ListWhat::Scenarios,
            "log-patterns" => ListWhat::LogPatterns,
            _ => ListWhat::Schedulers,
        }),
        Cmd::Check => Command::Check {
            file: operand(given).into(),
            topology: machine::topology(&text(given, "topo")?)?,
            duration_ns: duration(given, "duration")?.unwrap_or_default(),
        },
        Cmd::Show => Command::Show { name: operand(given) },
        Cmd::Completions => Command::Completions(match choice("SHELL", operand(given), flags::SHELLS)? {
            "bash" => Shell::Bash,
            "zsh" => Shell::Zsh,
            _ => Shell::Fish,
        }),
        Cmd::Help => Command::Help(help(given)?),
        Cmd::Vm => Command::Vm { fd: descriptor(&operand(given))? },
        Cmd::Freeze => Command::Freeze,
        Cmd::Panic => Command::Panic { worker: operand(given) == "worker" },
        Cmd::Probe => Command::Probe { name: operand(given) },
    })
}

pub(super) fn run(given: &Given) -> Result<RunArgs> {
    let host = given.has("host");
    if host {
        refuse_what_needs_a_vm(given)?;
    }
    let kernel = given.one("kernel").or(host.then_some(OsStr::new(""))).ok_or_else(|| {
        Error::usage("no kernel is given").hint("ktstr --kernel bzImage; 'ktstr --help' shows more examples")
    })?;
    let guest = guest(given)?;
    let timeout_ns = duration(given, "timeout")?;
    if timeout_ns.is_some_and(|limit_ns| limit_ns <= guest.duration_ns) {
        let of = |ns: Option<u64>| units::duration(ns.unwrap_or(guest.duration_ns));
        return Err(bad("timeout", format!("{} leaves no time beside --duration {}", of(timeout_ns), of(None)))
            .hint("booting alone takes from a second to half a minute"));
    }
    if given.has("quiet") && given.has("dmesg") {
        return Err(Error::usage("--quiet and --dmesg contradict each other"));
    }
    Ok(RunArgs {
        kernel: kernel.into(),
        host,
        memory: memory(&text(given, "memory")?)?,
        node_memory: node_memory(given, guest.topology.numa_nodes)?,
        distance: given.one("distance").map(machine::distance).transpose()?,
        cmdline: given.all("cmdline").map(|value| utf8("cmdline", value)).collect::<Result<Vec<_>>>()?.join(" "),
        accel: match chosen(given, "accel")? {
            "kvm" => AccelChoice::Kvm,
            "qemu" => AccelChoice::Qemu,
            _ => AccelChoice::Auto,
        },
        channel: match chosen(given, "channel")? {
            "ring" => ChannelChoice::Ring,
            "serial" => ChannelChoice::Serial,
            _ => ChannelChoice::Auto,
        },
        timeout_ns,
        limits: limits::layers(given)?,
        perf: given.has("perf"),
        json: json(given),
        run_dir: given.one("run-dir").map(PathBuf::from),
        keep: given.has("keep"),
        timings: given.has("timings"),
        quiet: given.has("quiet"),
        dmesg: given.has("dmesg"),
        color: color(given)?,
        bad_on: limits::bad_on(given)?,
        cell_result: given.one("cell-result").map(|fd| descriptor(&fd.to_string_lossy())).transpose()?,
        guest,
    })
}

/// With --host there is nothing to boot, so what describes a VM or what runs in it contradicts it.
fn refuse_what_needs_a_vm(given: &Given) -> Result<()> {
    let of_vm = |flag: &&flags::Flag| {
        matches!(flag.group, flags::Group::Subject | flags::Group::Machine) && flag.long != "host"
            || ["timeout", "boot-failure", "dmesg"].contains(&flag.long)
    };
    match given.flags.iter().map(|(flag, _)| *flag).find(of_vm) {
        None => Ok(()),
        Some(flag) => Err(Error::usage(format!("--host and {} contradict each other: there is no VM", flag.dashed()))
            .hint("it runs under whatever schedules this machine now")),
    }
}

fn judge(given: &Given) -> Result<JudgeArgs> {
    let layers = limits::layers(given)?;
    Ok(JudgeArgs {
        run: operand(given).into(),
        base: given.has("check").then_some(layers.base),
        limits: layers.command_line,
        bad_on: limits::bad_on(given)?,
        json: json(given),
        timings: given.has("timings"),
        quiet: given.has("quiet"),
        color: color(given)?,
    })
}

pub(super) fn json(given: &Given) -> Option<JsonTarget> {
    given.one("json").map(|target| match target.as_bytes() {
        b"-" => JsonTarget::Stdout,
        _ => JsonTarget::File(target.into()),
    })
}

pub(super) fn color(given: &Given) -> Result<ColorChoice> {
    Ok(match chosen(given, "color")? {
        "always" => ColorChoice::Always,
        "never" => ColorChoice::Never,
        _ => ColorChoice::Auto,
    })
}

fn image(given: &Given) -> Result<ImageArgs> {
    let list = given.has("list");
    let action = match (given.one("output"), given.one("list")) {
        (Some(output), Some(_)) => {
            return Err(bad("list", "with a file it lists that file, and nothing is written".into())
                .hint(format!("leave out either the file or --output {}", output.to_string_lossy())));
        }
        (Some(output), None) => ImageAction::Write { output: output.into(), list },
        (None, Some(file)) => ImageAction::ListFile(file.into()),
        (None, None) => ImageAction::List,
    };
    if matches!(action, ImageAction::ListFile(_)) {
        if let Some((flag, _)) = given.flags.iter().find(|(flag, _)| flag.long != "list") {
            return Err(Error::usage(format!("{} has no effect on an archive that exists", flag.dashed())));
        }
    }
    Ok(ImageArgs { action, kernel: given.one("kernel").map(PathBuf::from), guest: guest(given)? })
}

fn guest(given: &Given) -> Result<GuestArgs> {
    let sched = given.one("sched").map(scheduler).transpose()?;
    let mut sched_args = Vec::new();
    for value in given.all("sched-args") {
        sched_args.extend(split::words(&utf8("sched-args", value)?).map_err(|why| bad("sched-args", why))?);
    }
    for word in &given.rest {
        sched_args.push(utf8("sched-args", word)?);
    }
    match &sched {
        None if !sched_args.is_empty() => {
            return Err(Error::usage("there are scheduler arguments, but no scheduler").hint("--sched PATH"));
        }
        Some(SchedChoice::Builtin(name)) if !sched_args.is_empty() => {
            return Err(Error::usage(format!("the built-in scheduler '{name}' takes no arguments")));
        }
        _ => {}
    }
    if given.has("kernel-config") && !matches!(sched, Some(SchedChoice::External(_))) && !given.has("disk") {
        let message = "--kernel-config is for a scheduler's program or a disk's drivers, and neither is given";
        return Err(Error::usage(message).hint("--sched PATH or --disk SIZE"));
    }
    if given.has("modules") && !given.has("disk") {
        return Err(Error::usage("--modules is for a disk's drivers, and no disk is given").hint("--disk SIZE"));
    }
    let duration_ns = duration(given, "duration")?.unwrap_or_default();
    if duration_ns < LEAST_DURATION_NS {
        let least = units::duration(LEAST_DURATION_NS);
        return Err(bad("duration", format!("{} is too short to judge anything by", units::duration(duration_ns)))
            .hint(format!("{least} is the least")));
    }
    let workers = given.one("workers").map(|value| count("workers", value)).transpose()?;
    let cgroups = count("cgroups", &given_or_default(given, "cgroups"))?;
    let topology = machine::topology(&text(given, "topo")?)?;
    let in_all = u64::from(workers.unwrap_or_else(|| topology.total_cpus())) * u64::from(cgroups);
    if in_all > PID_MAX_DEFAULT {
        return Err(Error::usage(format!(
            "{in_all} workers in {cgroups} cgroups are more than the {PID_MAX_DEFAULT} processes that a kernel allows by default"
        ))
        .hint("lower --workers or --cgroups"));
    }
    let guards = guards::guards(given, sched.as_ref())?;
    let scenarios: Vec<String> = given.all("scenario").map(|value| utf8("scenario", value)).collect::<Result<_>>()?;
    if !scenarios.is_empty() && given.has("cgroups") {
        return Err(Error::usage(
            "--cgroups is for a run without --scenario: a scenario says itself what cgroups it has",
        ));
    }
    let sched_flags = given.one("sched-flags").map(|list| scenarios::flags(&utf8("sched-flags", list)?)).transpose()?;
    let work_override = match (scenarios.is_empty(), given.one("work")) {
        (false, Some(value)) => Some(one_work(&utf8("work", value)?)?),
        // Several works are those of the cgroups that the other flags describe.
        (true, Some(value)) => one_work(&utf8("work", value)?).ok(),
        (_, None) => None,
    };
    Ok(GuestArgs {
        scenarios,
        own_cgroups: own_cgroups::arguments(given)?,
        sched_flags,
        work_override,
        sched,
        sched_args,
        kernel_config: given.one("kernel-config").map(PathBuf::from),
        include: given.all("include").map(include).collect::<Result<_>>()?,
        work: text(given, "work")?,
        workers,
        cgroups,
        duration_ns,
        seed: given.one("seed").map(seed).transpose()?,
        raw_samples: given.has("raw-samples"),
        topology,
        disk: given.one("disk").map(disk::parse).transpose()?,
        modules: given.one("modules").map(PathBuf::from),
        guards,
    })
}

/// The one work that is to replace those of scenarios.
fn one_work(text: &str) -> Result<DefWork> {
    let mut works = workload::parse_works(text).map_err(|error| bad("work", error.to_string()))?;
    match (works.pop(), works.is_empty()) {
        (Some(work), true) => Ok(work),
        _ => Err(bad("work", "beside --scenario it is one work, which replaces those of swappable cgroups".into())),
    }
}

fn help(given: &Given) -> Result<HelpOn> {
    let Some(word) = &given.operand else {
        return Ok(if given.has("man") { HelpOn::Man } else { HelpOn::Top });
    };
    let word = word.to_string_lossy();
    if given.has("man") {
        return Err(Error::usage(format!("--man is about the whole, not about '{word}'")));
    }
    if let Some(spec) = flags::command(&word).filter(|spec| !spec.hidden) {
        return Ok(HelpOn::Command(spec.cmd));
    }
    if let Some(topic) = topics::TOPICS.iter().find(|topic| topic.name == word) {
        return Ok(HelpOn::Topic(topic.name));
    }
    let name = word.strip_prefix("work ");
    if let Some(info) = workload::find(name.unwrap_or(&word)) {
        return Ok(HelpOn::Work(info.name));
    }
    if let Some(name) = name {
        let error = Error::usage(format!("there is no work type '{name}'"));
        return Err(match workload::suggest(name) {
            Some(near) => error.hint(format!("did you mean '{near}'?")),
            None => error.hint("'ktstr list works' lists them"),
        });
    }
    let known = || flags::shown_commands().map(|spec| spec.name).chain(topics::TOPICS.iter().map(|topic| topic.name));
    let error = Error::usage(format!("there is no help on '{word}'"));
    Err(match units::nearest(&word, known()) {
        Some(near) => error.hint(format!("did you mean '{near}'?")),
        None => error.hint(format!("there is help on {}", known().collect::<Vec<_>>().join(", "))),
    })
}

/// A refusal of one flag's value.
pub(super) fn bad(long: &str, why: String) -> Error {
    Error::usage(format!("--{long}: {why}"))
}

fn operand(given: &Given) -> String {
    // `parse` refuses a command without the word that it needs.
    given.operand.as_deref().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn utf8(long: &str, value: &OsStr) -> Result<String> {
    let text = value.to_str().ok_or_else(|| bad(long, format!("'{}' is not UTF-8", value.to_string_lossy())))?;
    Ok(text.into())
}

/// The value given, or the table's default.
fn given_or_default(given: &Given, long: &str) -> OsString {
    let default = || flags::long(given.cmd, long).map(|flag| flag.default).unwrap_or_default();
    given.one(long).map_or_else(|| default().into(), OsStr::to_owned)
}

fn text(given: &Given, long: &str) -> Result<String> {
    utf8(long, &given_or_default(given, long))
}

/// The value of a flag with closed choices, as the table spells it.
pub(super) fn chosen(given: &Given, long: &str) -> Result<&'static str> {
    let choices = flags::long(given.cmd, long).map(|flag| flag.choices).unwrap_or_default();
    choice(&format!("--{long}"), text(given, long)?, choices)
}

fn choice(what: &str, value: String, choices: &'static [&'static str]) -> Result<&'static str> {
    if let Some(known) = choices.iter().find(|known| **known == value) {
        return Ok(known);
    }
    let error = Error::usage(format!("{what}: '{value}' is none of {}", choices.join(", ")));
    Err(match units::nearest(&value, choices.iter().copied()) {
        Some(near) => error.hint(format!("did you mean '{near}'?")),
        None => error,
    })
}

pub(super) fn count(long: &str, value: &OsStr) -> Result<u32> {
    let value = utf8(long, value)?;
    match value.parse::<u32>() {
        Ok(0) => Err(bad(long, "it must be at least 1".into())),
        Ok(count) => Ok(count),
        Err(_) => Err(bad(long, format!("'{value}' is not a whole number from 1 to {}", u32::MAX))),
    }
}

fn seed(value: &OsStr) -> Result<u64> {
    let value = utf8("seed", value)?;
    let parsed = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| {
        bad("seed", format!("'{value}' is not a whole number below 2^64 (decimal, or 0x and hexadecimal)"))
    })
}

/// A duration above zero; none where there is neither a value nor a default.
fn duration(given: &Given, long: &str) -> Result<Option<u64>> {
    let value = text(given, long)?;
    if value.is_empty() {
        return Ok(None);
    }
    match units::parse_duration(&value).map_err(|why| bad(long, why))? {
        0 => Err(bad(long, format!("'{value}' is no time at all"))),
        ns => Ok(Some(ns)),
    }
}

fn memory(value: &str) -> Result<Memory> {
    if value == "auto" {
        return Ok(Memory::Auto);
    }
    match units::parse_size(value, true).map_err(|why| bad("memory", format!("{why}, or auto")))? {
        0 => Err(bad("memory", format!("'{value}' is no memory at all"))),
        bytes => Ok(Memory::Bytes(bytes)),
    }
}

fn node_memory(given: &Given, nodes: u32) -> Result<Vec<u64>> {
    let Some(value) = given.one("node-memory") else { return Ok(Vec::new()) };
    if given.has("memory") {
        return Err(Error::usage("--memory and --node-memory both say how much memory there is").hint("give one"));
    }
    machine::node_memory(&utf8("node-memory", value)?, nodes)
}

fn scheduler(value: &OsStr) -> Result<SchedChoice> {
    let Some(name) = value.as_bytes().strip_prefix(BUILTIN.as_bytes()) else {
        return Ok(SchedChoice::External(value.into()));
    };
    match utf8("sched", OsStr::from_bytes(name))? {
        name if name.is_empty() => {
            Err(bad("sched", "a name is missing after 'builtin:'".into()).hint("'ktstr list schedulers' lists them"))
        }
        name => Ok(SchedChoice::Builtin(name)),
    }
}

/// `HOST[:GUEST]`, split at the last colon.
fn include(value: &OsStr) -> Result<Include> {
    let refuse = |why: &str| Err(bad("include", format!("'{}': {why}", value.to_string_lossy())));
    let bytes = value.as_bytes();
    let Some(colon) = bytes.iter().rposition(|byte| *byte == b':') else {
        return Ok(Include { host: value.into(), guest: None });
    };
    let (host, guest) = (OsStr::from_bytes(&bytes[..colon]), Path::new(OsStr::from_bytes(&bytes[colon + 1..])));
    if host.is_empty() {
        return refuse("the file before ':' is missing");
    }
    if !guest.is_absolute() {
        return refuse("the path in the guest, after ':', must begin with '/'");
    }
    if guest.components().any(|part| part == Component::ParentDir) || guest.file_name().is_none() {
        return refuse("the path in the guest must name a file, without '..'");
    }
    Ok(Include { host: host.into(), guest: Some(guest.into()) })
}

fn descriptor(word: &str) -> Result<i32> {
    word.parse()
        .ok()
        .filter(|fd| *fd >= FIRST_OWN_FD)
        .ok_or_else(|| Error::usage(format!("'{word}' is not the number of an inherited descriptor")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{Arity, FLAGS};
    use crate::cli::parse::parse;
    use crate::proto::limits::Layers;
    use crate::proto::topology::Topology;
    use crate::units::NS_PER_SEC;

    fn parsed(words: &[&str]) -> Command {
        parse(words.iter().map(OsString::from)).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
    fn refused(words: &[&str]) -> String {
        parse(words.iter().map(OsString::from)).expect_err(&words.join(" ")).to_string()
    }
    fn run_args(words: &[&str]) -> RunArgs {
        match parsed(&[&["--kernel", "K"], words].concat()) {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }
    fn image_args(words: &[&str]) -> ImageArgs {
        match parsed(&[&["image"], words].concat()) {
            Command::Image(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn main_job_has_the_defaults_of_the_table() {
        let args = run_args(&["--sched", "./scx_foo"]);
        assert_eq!(args.kernel, PathBuf::from("K"));
        assert_eq!(args.guest.sched, Some(SchedChoice::External("./scx_foo".into())));
        assert_eq!((args.guest.work.as_str(), args.guest.cgroups, args.guest.workers), ("spin", 2, None));
        assert_eq!(args.guest.workers_per_cgroup(), 2);
        assert_eq!(args.guest.duration_ns, 2 * NS_PER_SEC);
        assert_eq!(args.guest.topology, Topology::flat(2));
        assert_eq!((args.memory, args.accel, args.channel), (Memory::Auto, AccelChoice::Auto, ChannelChoice::Auto));
        assert_eq!((args.timeout_ns, args.limits, args.json), (None, Layers::default(), None));
    }

    #[test]
    fn every_flag_of_a_run_changes_what_is_parsed() {
        for flag in flags::flags_of(Cmd::Run).filter(|flag| !["help", "version"].contains(&flag.long)) {
            if flag.group == flags::Group::Many {
                // `matrix` has the same test for these.
                continue;
            }
            let value = match flag.long {
                "kernel" | "host" => continue,
                "cell-result" => "9",
                "bad-on" => "stall",
                "watchdog" | "enable-timeout" => "2s",
                "provoke" => "panic",
                "max-event" => "x=1",
                "max-rejected" => "0",
                "workers" | "cgroups" | "topo" => "3",
                "duration" => "3s",
                "timeout" => "1h",
                "seed" => "0x1f",
                "sched-flags" => "llc",
                "memory" => "1G",
                "node-memory" => "64M,64M",
                "sched" => "builtin:fifo",
                _ if flag.group == flags::Group::Checks && flag.choices.is_empty() => "off",
                _ if !flag.choices.is_empty() => flag.choices.iter().find(|choice| **choice != flag.default).unwrap(),
                _ => "x",
            };
            let plain = run_args(&["--sched", "a"]);
            let changed = match (flag.long, flag.arity) {
                ("sched", _) => run_args(&["--sched", value]),
                ("modules", _) => {
                    assert!(refused(&["-k", "K", "--modules=x"]).contains("no disk is given"));
                    run_args(&["--disk=1M", "--modules=x"])
                }
                (_, Arity::Switch) => run_args(&["--sched", "a", &flag.dashed()]),
                _ => run_args(&["--sched", "a", &format!("--{}={value}", flag.long)]),
            };
            assert_ne!(plain, changed, "--{} is read by nobody", flag.long);
        }
    }

    #[test]
    fn defaults_of_the_table_parse() {
        for flag in FLAGS.iter().filter(|flag| !flag.default.is_empty() && flag.commands.contains(&Cmd::Run)) {
            run_args(&[&format!("--{}={}", flag.long, flag.default)]);
        }
    }

    #[test]
    fn scheduler_arguments_come_from_quotes_and_from_after_two_dashes() {
        let args = run_args(&["-s", "a", "--sched-args", "-x 'y z'", "--sched-args=-v", "--", "--slice", "5 5"]);
        assert_eq!(args.guest.sched_args, ["-x", "y z", "-v", "--slice", "5 5"]);
        assert!(refused(&["-k", "K", "--", "x"]).contains("no scheduler"));
        assert!(refused(&["-k", "K", "-s", "builtin:fifo", "--", "x"]).contains("'fifo' takes no arguments"));
        assert!(refused(&["-k", "K", "-s", "a", "--sched-args", "'x"]).contains("unclosed"));
    }

    #[test]
    fn run_on_this_machine_needs_no_kernel_and_takes_nothing_of_a_vm() {
        let Command::Run(args) = parsed(&["run", "--host", "-w", "pipe*2"]) else { panic!() };
        assert!(args.host && args.kernel.as_os_str().is_empty());
        for words in [["--kernel", "K"], ["--sched", "a"], ["--topo", "4"], ["--memory", "1G"], ["--timeout", "1m"]] {
            let error = refused(&[&["--host"], &words[..]].concat());
            assert!(error.contains("contradict each other: there is no VM"), "{words:?}: {error}");
        }
    }

    #[test]
    fn values_read_as_people_write_them() {
        let args = run_args(&["--memory", "4GiB", "--cmdline", "a=1", "--cmdline=b", "--json=-", "--seed=0xff"]);
        assert_eq!(args.memory, Memory::Bytes(4 << 30));
        assert_eq!(args.cmdline, "a=1 b");
        assert_eq!(args.json, Some(JsonTarget::Stdout));
        assert_eq!(args.guest.seed, Some(255));
        assert_eq!(run_args(&["--timeout", "1m30s"]).timeout_ns, Some(90 * NS_PER_SEC));
        assert_eq!(run_args(&["--topo", "1n1l16c1t"]).guest.topology.total_cpus(), 16);
    }

    #[test]
    fn include_splits_at_the_last_colon() {
        let args = run_args(&["--include", "a", "--include=b:c:/d/e"]);
        assert_eq!(args.guest.include[0], Include { host: "a".into(), guest: None });
        assert_eq!(args.guest.include[1], Include { host: "b:c".into(), guest: Some("/d/e".into()) });
        for (value, why) in
            [("a:b", "begin with '/'"), (":/b", "is missing"), ("a:/../b", "without '..'"), ("a:/", "name a file")]
        {
            assert!(refused(&["-k", "K", "--include", value]).contains(why), "{value}");
        }
    }

    #[test]
    fn wrong_values_name_their_flag_and_the_reason() {
        for (words, message) in [
            (&["--workers", "0"][..], "--workers: it must be at least 1"),
            (&["--workers", "-1"], "--workers needs a value"),
            (&["--workers=-1"], "'-1' is not a whole number"),
            (&["--cgroups", "many"], "--cgroups: 'many' is not a whole number"),
            (&["--workers", "99999"], "more than the 32768 processes"),
            (&["--duration", "0s"], "--duration: '0s' is no time at all"),
            (&["--duration", "2"], "--duration: '2' is not a duration: the unit is missing"),
            (&["--timeout", "1s"], "--timeout: 1s leaves no time beside --duration 2s"),
            (&["--topo", "0"], "--topo: '0' is not a topology: every count must be at least 1"),
            (&["--memory", "0"], "--memory: '0' is no memory"),
            (&["--memory", "lots"], "--memory: 'lots' is not a size"),
            (&["--accel", "kmv"], "--accel: 'kmv' is none of auto, kvm, qemu (did you mean 'kvm'?)"),
            (&["--seed", "x"], "--seed: 'x' is not a whole number"),
            (&["--sched", "builtin:"], "a name is missing after 'builtin:'"),
            (&["--quiet", "--dmesg"], "contradict each other"),
        ] {
            let error = refused(&[&["--kernel", "K"], words].concat());
            assert!(error.contains(message), "{words:?}: {error}");
        }
        assert!(refused(&[]).contains("no kernel is given"));
    }

    #[test]
    fn bytes_that_are_no_utf8_are_paths_but_no_words() {
        let raw = || OsString::from(OsStr::from_bytes(b"a\xff"));
        let path = parse(["--kernel".into(), raw()]).unwrap();
        assert!(matches!(path, Command::Run(args) if args.kernel.as_os_str() == raw()));
        let word = parse(["-k".into(), "K".into(), "--work".into(), raw()]).unwrap_err();
        assert!(word.message().contains("--work") && word.message().contains("not UTF-8"));
    }

    #[test]
    fn image_writes_lists_or_reads() {
        assert_eq!(image_args(&[]).action, ImageAction::List);
        assert_eq!(image_args(&["--list"]).action, ImageAction::List);
        assert_eq!(image_args(&["--list", "f"]).action, ImageAction::ListFile("f".into()));
        let write = image_args(&["-o", "f", "--list", "--work", "bursty"]);
        assert_eq!(write.action, ImageAction::Write { output: "f".into(), list: true });
        assert_eq!(write.guest.work, "bursty");
        assert!(refused(&["image", "-o", "f", "--list=g"]).contains("nothing is written"));
        assert!(refused(&["image", "--list=g", "--work", "x"]).contains("--work has no effect"));
    }

    #[test]
    fn the_other_commands_parse() {
        assert_eq!(parsed(&["doctor", "--json"]), Command::Doctor { json: true });
        assert_eq!(parsed(&["list", "works"]), Command::List(ListWhat::Works));
        assert_eq!(parsed(&["list", "schedulers"]), Command::List(ListWhat::Schedulers));
        assert_eq!(parsed(&["list", "topologies"]), Command::List(ListWhat::Topologies));
        assert_eq!(parsed(&["completions", "zsh"]), Command::Completions(Shell::Zsh));
        assert_eq!(parsed(&["help"]), Command::Help(HelpOn::Top));
        assert_eq!(parsed(&["help", "--man"]), Command::Help(HelpOn::Man));
        assert_eq!(parsed(&["help", "image"]), Command::Help(HelpOn::Command(Cmd::Image)));
        assert_eq!(parsed(&["help", "bisect"]), Command::Help(HelpOn::Topic("bisect")));
        assert_eq!(parsed(&["help", "work"]), Command::Help(HelpOn::Topic("work")));
        assert_eq!(parsed(&["help", "work", "ping-pong"]), Command::Help(HelpOn::Work("FutexPingPong")));
        assert_eq!(parsed(&["help", "FutexPingPong"]), Command::Help(HelpOn::Work("FutexPingPong")));
        assert!(refused(&["help", "work", "ping-png"]).contains("did you mean 'ping-pong'?"));
        assert!(refused(&["help", "work", "spin", "more"]).contains("unexpected argument 'more'"));
        assert_eq!(parsed(&["__vm", "3"]), Command::Vm { fd: 3 });
        assert_eq!(parsed(&["__freeze"]), Command::Freeze);
        assert_eq!(parsed(&["__probe", "fifo"]), Command::Probe { name: "fifo".into() });
        assert!(refused(&["__vm", "x"]).contains("descriptor"));
        assert!(refused(&["list", "work"]).contains("did you mean 'works'?"));
        assert!(refused(&["help", "bisct"]).contains("did you mean 'bisect'?"));
        assert!(refused(&["help", "__vm"]).contains("no help on '__vm'"));
        assert!(refused(&["help", "run", "--man"]).contains("about the whole"));
    }
}
