//! The laboratory: many runs through our own VMM on real KVM, here or in one emulated host.
//!
//! Owns carrying runs there and bringing their results back; leaves judging them to boot.rs.
//! Invariant: a run whose result did not come back is missing, never a pass.

use crate::util::{self, Scratch, finish, kernel, not_run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// All runs of the laboratory together, in the emulated host on two busy cores.
const LIMIT_S: u64 = 2400;
/// Exit code of scripts/emulated-host where the emulated host itself hung.
const HOST_HUNG: i32 = 75;

const KERNELS: [&str; 2] = ["7", "6.12"];
/// Where it was to be had: it can do without ACPI.
pub const OLD_KERNEL: &str = "6.1";
/// A program that looks at its machine, of util-linux.
pub const LSCPU: &str = "/usr/bin/lscpu";

/// One run: a name, and the arguments behind `ktstr`. Kernels are named as in the emulated host: /k/7/vmlinuz.
pub struct Cell {
    pub name: String,
    pub args: String,
}

/// What came back of one run.
pub struct Result {
    pub code: i32,
    /// What it printed; after a failure, the end of the guest's console, too.
    pub text: String,
}

impl Result {
    pub fn json(&self) -> Value {
        let start = self.text.find("{\n").unwrap_or(0);
        // Only the outermost brace stands at the beginning of a line.
        let end = self.text[start..].find("\n}").map_or(self.text.len(), |end| start + end + 2);
        serde_json::from_str(&self.text[start..end])
            .unwrap_or_else(|error| panic!("no JSON ({error}) in:\n{}", self.text))
    }
}

/// The laboratory's results by name; `None` where this machine has no way to run them.
pub fn results(cells: fn() -> Vec<Cell>) -> Option<&'static BTreeMap<String, Result>> {
    static RESULTS: OnceLock<Option<BTreeMap<String, Result>>> = OnceLock::new();
    let chosen = || cells().into_iter().filter(|cell| is_chosen(&cell.name)).collect::<Vec<_>>();
    RESULTS.get_or_init(|| run(&chosen())).as_ref()
}

/// While one works on a few cells: `KTSTR_CELLS='hang,repeat 0'` runs no others.
pub fn is_chosen(name: &str) -> bool {
    std::env::var("KTSTR_CELLS").map_or(true, |chosen| chosen.split(',').any(|choice| choice == name))
}

/// A CPU of the emulated host, and how many of it.
#[derive(Clone, Copy)]
pub struct Host {
    /// As QEMU's -cpu takes it.
    pub model: &'static str,
    pub cpus: u32,
}

/// The CPU whose results all cells share: an AMD CPU of family 6.
pub const MODEL: &str = "max";

/// One run in an emulated host of its own; none where the kernels are missing.
pub fn alone(cell: Cell, host: Host) -> Option<Result> {
    if !is_chosen(&cell.name) {
        not_run(&format!("boot: '{}'", cell.name), "KTSTR_CELLS names others only");
        return None;
    }
    let _alone = util::take_machine();
    if !has_kernels() {
        return None;
    }
    in_the_emulated_host(&Scratch::new(), std::slice::from_ref(&cell), host).remove(&cell.name)
}

fn has_kernels() -> bool {
    let all = KERNELS.iter().all(|name| kernel(name, "vmlinux").is_some());
    if !all {
        not_run("boot: everything on our own VMM", "the kernels are not in the cache (scripts/fetch-kernels)");
    }
    all
}

fn run(cells: &[Cell]) -> Option<BTreeMap<String, Result>> {
    let _alone = util::take_machine();
    if !has_kernels() {
        return None;
    }
    let scratch = Scratch::new();
    Some(match util::kvm_works() {
        true => parse(&on_this_host(&scratch, cells)),
        false => in_the_emulated_host(&scratch, cells, Host { model: MODEL, cpus: CPUS }),
    })
}

/// A shell script that runs the cells one after another and prints each between two marks.
fn script(cells: &[&Cell], prologue: &str) -> String {
    let mut text = format!("{prologue}\n");
    for Cell { name, args } in cells {
        // A run that did not pass has kept its directory; its console is brought back with it.
        let console =
            "tail -n 60 $XDG_STATE_HOME/ktstr/runs/*/console.log 2>/dev/null; rm -rf $XDG_STATE_HOME/ktstr/runs";
        writeln!(text, "echo '@cell {name}'; ktstr {args} 2>&1; code=$?; {console}; echo \"@code $code\"; sleep 0.1")
            .expect("write to a string");
    }
    text
}

fn on_this_host(scratch: &Scratch, cells: &[Cell]) -> String {
    let (state, binary) = (scratch.0.display(), util::binary());
    let mut prologue = format!("export XDG_STATE_HOME={state}\nktstr() {{ {} \"$@\"; }}", binary.display());
    std::fs::create_dir(scratch.0.join("k")).expect("make a directory");
    for name in KERNELS.into_iter().chain([OLD_KERNEL]) {
        let Some(directory) = kernel(name, ".") else { continue };
        std::os::unix::fs::symlink(directory, scratch.0.join("k").join(name)).expect("link the kernels");
    }
    let text = script(&cells.iter().collect::<Vec<_>>(), "").replace(" /k/", &format!(" {}/k/", scratch.0.display()));
    prologue.push_str(&text);
    let job = scratch.file("job.sh", prologue);
    let mut command = Command::new("/bin/sh");
    command.arg(job);
    finish(command, Duration::from_secs(LIMIT_S)).stdout
}

/// How a guest with several vCPUs dies where the emulator, and not the VMM, is at fault. QEMU's TCG with several threads
/// does not emulate faithfully what one CPU sees of code that another is just patching, and kernels patch their own text
/// through int3: without a handler in reach that is a triple fault, else an oops in int3 or a vCPU that never comes back.
/// It strikes every VMM there: QEMU's own `-M pc` lost 2 of 7 guests of 4 vCPUs so, ours none of 6, taken in turns.
const EMULATOR_FAULTS: [&str; 5] = [
    "triple fault",
    "int3",
    "the guest stopped answering",
    "no kernel output; it was killed at the deadline",
    "kernel but no PID 1; it was killed at the deadline",
];
/// CPUs of the emulated host: an emulator's thread each. With one there is nobody to see half of a patch, and none of these
/// faults; it is a third slower, and shows less, so that only what was spoiled is run there.
const CPUS: u32 = 2;
const CPUS_WHERE_SPOILED: u32 = 1;
/// Cells that are about CPUs of the host that are free while others are not: vCPUs that share one cannot show these.
const NEED_CPUS: [&str; 5] = ["starved", "starved workers", "drop", "perf", "no halts"];
/// A cell that is meant to end like that: what shows that it did so by its own doing.
const MEANT: (&str, u64) = ("hang", crate::hang::LOOP);
/// How often a cell may be spoiled by its emulator. At the 2 of 7 above, on a busy machine, a cell that needs several CPUs is
/// spoiled four times in a row less than once in a hundred runs.
const TRIES: u32 = 4;

/// Whether a result shows the emulated host's own fault. Real KVM is never excused.
fn is_emulator_fault(name: &str, result: &Result) -> bool {
    // Anywhere else, as on the stack of the kernel's tick, the address says that it was meant, and that the look came too
    // late or too early for the test: one more.
    if name == MEANT.0 && result.text.contains(&format!("\"rip\": \"{:#x}\"", MEANT.1)) {
        return false;
    }
    let headline = result.text.lines().find_map(|line| line.trim().strip_prefix("\"headline\": "));
    result.code != 0 && headline.is_some_and(|line| EMULATOR_FAULTS.iter().any(|fault| line.contains(fault)))
}

/// All cells in the emulated host; a cell that its emulator spoiled is run again, a few times at most, and the last result
/// stands.
fn in_the_emulated_host(scratch: &Scratch, cells: &[Cell], host: Host) -> BTreeMap<String, Result> {
    let all: Vec<&Cell> = cells.iter().collect();
    let mut results = batch(scratch, &all, host);
    for attempt in 1..TRIES {
        let spoiled: Vec<&Cell> =
            cells.iter().filter(|cell| is_emulator_fault(&cell.name, &results[&cell.name])).collect();
        for cell in &spoiled {
            let why = "the emulated host's CPUs failed (triple fault, int3 or a hang); tried once more";
            not_run(&format!("boot: try {attempt} of '{}'", cell.name), why);
        }
        for cpus in [CPUS_WHERE_SPOILED, CPUS] {
            let host = Host { cpus, ..host };
            let here: Vec<&Cell> = spoiled.iter().copied().filter(|cell| cpus_of_retry(cell) == cpus).collect();
            results.extend(batch(scratch, &here, host));
        }
    }
    results
}

fn cpus_of_retry(cell: &Cell) -> u32 {
    if NEED_CPUS.contains(&cell.name.as_str()) { CPUS } else { CPUS_WHERE_SPOILED }
}

/// Runs the cells in the emulated host. Where that itself hangs, it is started again for the cell it hung on alone, then for
/// the rest; a cell on which it hangs at every try is a failure.
fn batch(scratch: &Scratch, cells: &[&Cell], host: Host) -> BTreeMap<String, Result> {
    let emulated_host = util::root().join("scripts/emulated-host");
    let mut results = BTreeMap::new();
    let mut hung_on: BTreeMap<&str, u32> = BTreeMap::new();
    loop {
        let mut left: Vec<&Cell> = cells.iter().copied().filter(|cell| !results.contains_key(&cell.name)).collect();
        let Some(first) = left.first().copied() else { return results };
        let mut cpus = host.cpus;
        if hung_on.contains_key(first.name.as_str()) {
            left.truncate(1);
            cpus = cpus_of_retry(first);
        }
        let job = scratch.file("job.sh", script(&left, "export XDG_STATE_HOME=/tmp"));
        let mut command = Command::new(&emulated_host);
        command.args(["-x", "-m", "6144", "-s", &cpus.to_string(), "-c", host.model, "-t", &LIMIT_S.to_string()]);
        if let Some(old) = kernel(OLD_KERNEL, "vmlinuz") {
            command.arg("-f").arg(format!("{}:/k/{OLD_KERNEL}/vmlinuz", old.display()));
        }
        if Path::new(LSCPU).exists() {
            command.args(["-f", &format!("{LSCPU}:{LSCPU}")]);
        }
        command.arg(&job).env("KTSTR_BIN", util::binary());
        let ran = finish(command, Duration::from_secs(LIMIT_S + 60));
        results.extend(parse(&ran.stdout));
        let missing = left.iter().find(|cell| !results.contains_key(&cell.name));
        match (ran.code, missing) {
            (_, None) => {}
            (Some(HOST_HUNG), Some(cell)) => {
                let name = &cell.name;
                let hangs = hung_on.entry(name).or_default();
                *hangs += 1;
                assert!(*hangs < TRIES, "the emulated host hung {hangs} times on '{name}':{ran}");
                not_run(&format!("boot: try {hangs} of '{name}'"), "the emulated host itself hung; tried once more");
            }
            (_, Some(cell)) => panic!("from '{}' to '{}' the emulated host failed:{ran}", first.name, cell.name),
        }
    }
}

fn parse(text: &str) -> BTreeMap<String, Result> {
    let mut results = BTreeMap::new();
    let text = text.replace('\r', "");
    for part in text.split("@cell ").skip(1) {
        let Some((name, rest)) = part.split_once('\n') else { continue };
        if let Some((body, code)) = rest.rsplit_once("@code ") {
            let code = code.split_whitespace().next().and_then(|code| code.parse().ok());
            if let Some(code) = code {
                results.insert(name.trim().to_owned(), Result { code, text: body.to_owned() });
            }
        }
    }
    results
}

#[test]
fn only_a_failure_with_the_emulator_s_mark_is_tried_again() {
    let result = |code, headline: &str| Result { code, text: format!("{{\n  \"headline\": \"{headline}\",\n}}") };
    let is_emulator_fault = |result: &Result| is_emulator_fault("a cell", result);
    assert!(is_emulator_fault(&result(1, "the kernel crashed with a triple fault (scenario started but no result)")));
    let early = "the kernel did not boot to PID 1 (kernel but no PID 1; triple fault): last line: [    5";
    assert!(is_emulator_fault(&result(125, early)));
    assert!(!is_emulator_fault(&result(1, "max_gap: worker 0 of g0")));
    assert!(!is_emulator_fault(&result(0, "every check that applies passed; no triple fault")));
    assert!(!is_emulator_fault(&Result { code: 1, text: "int3 in the console only".into() }));
    let hung = result(125, "kernel but no PID 1; it was killed at the deadline");
    assert!(is_emulator_fault(&hung) && super::lab::is_emulator_fault(MEANT.0, &hung));
    let found = |at: &str| Result { text: format!("{}\"{at}\": \"{:#x}\"", hung.text, MEANT.1), ..hung };
    let meant = found("rip");
    assert!(is_emulator_fault(&meant) && !super::lab::is_emulator_fault(MEANT.0, &meant));
    assert!(super::lab::is_emulator_fault(MEANT.0, &found("rsi")), "in the tick, on its way back to the loop");
}

#[test]
fn results_are_cut_out_of_the_output() {
    let text = "noise\r\n@cell a\r\n{\r\n \"x\": 1\r\n}\r\n@code 0\r\n@cell b\nlost";
    let results = parse(text);
    assert_eq!((results.len(), results["a"].code), (1, 0));
    assert_eq!(results["a"].json()["x"], 1);
}
