//! The fault matrix, as data that `ktstr selftest`, the tests and the documents share.
//!
//! Owns the document made of it, and ending runs on request; leaves the rows to `table`, playing them to `play`, and the
//! faults of the catalogue's scenarios to `catalog`.
//! Invariant: the document says what the table says, and nothing else.

pub mod catalog;
mod play;
mod table;

pub use play::{Played, Setting, Sight, play, prepare};
pub use table::{Act, Fault, Layer, Prompt, faults};

use crate::error::{Context, Error, Result};
use crate::sys::{process, signal, time};
use crate::units::NS_PER_SEC;
use std::process::Child;
use std::thread;
use std::time::Duration;

const HEAD: &str = "# Faults\n\n\
    What ktstr has to say of each of these faults. `ktstr selftest` plays them, and a test fails where this file\n\
    differs from the table that it plays (`src/run/faults/matrix.txt`): do not edit it by hand.\n\n\
    The stage is where the run stops; a dash means that it says all it has to say, or never begins. The reason\n\
    is part of the headline, or of the error. What is written as `--provoke` is done by the guest to itself.\n\n\
    The time to the verdict is what ktstr's own waits leave room for: it looks at the scheduler every 100 ms, collects\n\
    the workers at once, and gives the kernel up to 600 ms and the scheduler's process up to 300 ms meanwhile. The rest\n\
    is the kernel's, and its emulator's: the selftest prints the time that it measured and for how much of it the host\n\
    kept the vCPUs waiting, and judges that the run was over before its planned end. Under emulation on two\n\
    crowded cores verdicts came 75 to 852 ms after a scheduler was gone; the longest had waited 465 ms for the host. An\n\
    emulated guest is given 40 s of silence.\n";
const TABLE_HEAD: &str = "| name | what is wrong | brought about by | outcome | exit | stage | reason | time to verdict |\n\
    |---|---|---|---|---|---|---|---|\n";

/// Between the reasons of which one is enough.
const OR: &str = " or ";
/// How a verdict says that it was withheld because of the host: that a check is void, or that an emulator was too slow.
const DISTURBED: [&str; 2] = ["void, as the host", "the emulated guest did not get there"];

/// Whether these words withhold a verdict because of the host.
fn blames_host(words: &str) -> bool {
    DISTURBED.iter().any(|mark| words.contains(mark))
}

/// How long a run may take to end once it is asked to: it ends its VM and removes its files.
const ENDS_NS: u64 = 10 * NS_PER_SEC;
/// Between two looks at it meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Ends the run, and with it whoever plays it, where this process is asked to end.
fn heed_signals(run: &mut Child) -> Result<()> {
    if signal::noted().is_none() {
        return Ok(());
    }
    let pid = run.id() as i32;
    process::kill(pid, libc::SIGTERM).context(|| format!("end process {pid}"))?;
    let deadline = time::monotonic_ns() + ENDS_NS;
    while run.try_wait().context(|| "wait for a run")?.is_none() {
        if time::monotonic_ns() > deadline {
            run.kill().context(|| "kill a run that does not end")?;
        }
        thread::sleep(LOOK);
    }
    Err(Error::interrupted())
}

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
    let (outcome, code) = (fault.outcome.word(), fault.outcome.exit_code());
    let told = match fault.act {
        _ if fault.refused => "before anything is booted",
        Act::Signal(_) => "3 s after the signal",
        _ => fault.prompt.promise(),
    };
    format!(
        "| {} | {} | {how}{act} | {outcome} | {code} | {stage} | {} | {told} |\n",
        fault.name, fault.what, fault.reason
    )
}
