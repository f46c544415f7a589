//! The fault matrix, as data that `ktstr selftest`, the tests and the documents share.
//!
//! Owns the document made of it; leaves the rows to `table`, playing them to `play`, one run to `child`, and the faults of
//! the catalogue's scenarios to `catalog`.
//! Invariant: the document says what the table says, and nothing else.

pub mod catalog;
mod child;
mod play;
mod table;

pub use play::{Played, Setting, Sight, play, prepare};
pub use table::{Act, Fault, Layer, Prompt, faults};

use std::time::Duration;

const HEAD: &str = "# Faults\n\n\
    What ktstr has to say of each of these faults. `ktstr selftest` plays them, and a test fails where this file\n\
    differs from the table that it plays (`src/run/faults/matrix.txt`): do not edit it by hand.\n\n\
    The stage is where the run stops; a dash means that it says all it has to say, or never begins. The reason\n\
    is part of the headline, or of the error. What is written as `--provoke` is done by the guest to itself.\n\n\
    The time to the verdict counts until the VM and its memory are gone; after a signal, until the process has\n\
    ended. It is what ktstr's own waits leave room for: it looks at the scheduler every 100 ms, collects\n\
    the workers at once, and gives the kernel up to 600 ms and the scheduler's process up to 300 ms meanwhile. The rest\n\
    is the kernel's, and its emulator's. The selftest prints the time that it measured and for how much of it the host\n\
    kept the vCPUs waiting, and judges that it is within the promise without the host's share; an emulated guest gets\n\
    one second more, and is given 40 s of silence. Under emulation on two crowded cores guests said goodbye 75 to 852 ms\n\
    after a scheduler was gone; the longest had waited 465 ms for the host.\n\n\
    A stall that the kernel reports (a lockup, a line of RCU's, of a hung task or of a workqueue) ends a run in any phase\n\
    once PID 1 runs, where it settles the verdict of every scenario: so not under emulation, with `--allow-log`, with a\n\
    kernel log that is not judged, or with `--bad-on` without `stall`. The guest has 750 ms for what it still has to say;\n\
    then the host ends it, whatever it waits for before its goodbye. Of several scenarios a stall ends its own, and the run with the last.\n\
    The soft lockup below lasts for 9 s, because ops.init does not return for so long: that is what an emulated run takes.\n\n\
    What is found by a time, an emulator must leave without a verdict (INCONCLUSIVE, exit 125).\n";
const TABLE_HEAD: &str = "| name | what is wrong | brought about by | outcome | exit | stage | reason | time to verdict |\n\
    |---|---|---|---|---|---|---|---|\n";

/// Between the reasons of which one is enough.
const OR: &str = " or ";
/// How a verdict says that it was withheld because of the host: that a check is void, that an emulator was too slow, or that
/// a guest fell silent while it waited for the host.
const DISTURBED: [&str; 4] = [
    "void, as the host",
    "void, as the vCPUs waited",
    "the emulated guest did not get there",
    "and the host kept a vCPU waiting",
];

/// Whether these words withhold a verdict because of the host.
fn blames_host(words: &str) -> bool {
    DISTURBED.iter().any(|mark| words.contains(mark))
}

/// Between two looks at a run.
const LOOK: Duration = Duration::from_millis(20);

/// docs/faults.md.
pub fn markdown() -> String {
    let faults = faults();
    let mut text = HEAD.to_owned();
    for (layer, _, name) in Layer::ALL {
        text.push_str(&format!("\n## {}\n\n{TABLE_HEAD}", capital(name)));
        faults.iter().filter(|fault| fault.layer == layer).for_each(|fault| text.push_str(&row(fault)));
    }
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn row(fault: &Fault) -> String {
    let act = match fault.act {
        Act::Nothing => String::new(),
        Act::Signal(number) => format!(", then signal {number} to ktstr"),
        Act::KillVm => ", then SIGKILL to the VM's process".into(),
    };
    let how = if fault.args.is_empty() { String::new() } else { format!("`{}`", fault.args) };
    let stage = match fault.stopped {
        "" => "-",
        "*" => "any",
        stopped => stopped,
    };
    let by_time = if fault.by_time { ", by a time" } else { "" };
    let (outcome, code) = (format!("{}{by_time}", fault.outcome.word()), fault.outcome.exit_code());
    let told = if fault.refused { "before anything is booted" } else { fault.prompt.promise() };
    format!(
        "| {} | {} | {how}{act} | {outcome} | {code} | {stage} | {} | {told} |\n",
        fault.name, fault.what, fault.reason
    )
}
