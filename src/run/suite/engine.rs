//! The loop over the processes of many runs.
//!
//! Owns their start, their ends and their deadlines; leaves what an end means for the whole to the listener.
//! Invariant: the first signal asks the runs to stop, the second kills them, and either way all are gone at the end.

use super::budget::{Budget, Cost};
use super::told::Told;
use crate::error::{Context, Result};
use crate::sys::process::End;
use crate::sys::spawn::{Spawn, number};
use crate::sys::{fd, poll, process, signal, time};
use crate::units::{self, NS_PER_SEC};
use crate::verdict::Outcome;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// A turn waits this long at most, so that progress is shown and signals are seen.
const TURN_MS: u64 = 200;
/// A run that was asked to stop has its own limit for that (`watch`); past this one it is killed.
const STOP_GRACE_NS: u64 = 15 * NS_PER_SEC;
/// Of what a run printed, this much is kept: its end.
const SAID_BYTES: u64 = 64 * 1024;
/// The flag by which a run's process learns where to put its result.
pub const TOLD_FLAG: &str = "cell-result";

/// One run to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// For people.
    pub name: String,
    /// The binary to start; `/proc/self/exe` is this one.
    pub program: String,
    /// The words after `ktstr run`.
    pub words: Vec<String>,
    pub cost: Cost,
    /// Its run directory; made by the run.
    pub directory: PathBuf,
}

/// How one run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellEnd {
    /// Of the cells that were given.
    pub index: usize,
    pub outcome: Outcome,
    pub exit_code: u8,
    pub headline: String,
    pub took_ns: u64,
    /// What it told; none where it died before, or refused to run.
    pub told: Option<Told>,
    /// What it printed on standard error.
    pub said: String,
    /// It was stopped because its result was not needed any more, or because the user said so.
    pub stopped: bool,
}

/// What is to be done after a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Go,
    /// The outcome of the whole is known: start nothing more, and stop what runs.
    Stop,
}

/// What the listener is told.
#[derive(Debug)]
pub enum Progress<'a> {
    Started {
        index: usize,
    },
    Ended(&'a CellEnd),
    /// Time has passed; so many run.
    Tick {
        running: usize,
    },
}

struct Running {
    index: usize,
    pid: i32,
    pidfd: OwnedFd,
    told: File,
    err: File,
    started_ns: u64,
    /// Past its deadline, and killed for that.
    late: bool,
}

/// Runs all cells; whoever listens may stop it after any end. Returns true where a signal stopped it.
pub fn run(cells: &[Cell], budget: &Budget, listen: &mut dyn FnMut(Progress<'_>) -> Next) -> Result<bool> {
    signal::note(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).context(|| "take signals")?;
    let mut running = Vec::new();
    let done = drive(cells, budget, &mut running, listen);
    // On an error too nothing is left behind.
    for one in &running {
        end_now(one)?;
        process::wait(one.pid, true).context(|| format!("wait for the run's process {}", one.pid))?;
    }
    done
}

fn drive(
    cells: &[Cell],
    budget: &Budget,
    running: &mut Vec<Running>,
    listen: &mut dyn FnMut(Progress<'_>) -> Next,
) -> Result<bool> {
    let mut waiting: Vec<usize> = (0..cells.len()).collect();
    let mut stopping: Option<u64> = None;
    let mut killed = false;
    loop {
        while stopping.is_none() && signal::noted().is_none() {
            let taken: Vec<Cost> = running.iter().map(|one| cells[one.index].cost).collect();
            // The first that fits: a large one waits for room while small ones pass it, and comes at the end at the latest.
            let Some(at) = waiting.iter().position(|index| budget.fits(&taken, cells[*index].cost)) else { break };
            let index = waiting.remove(at);
            running.push(start(index, &cells[index])?);
            listen(Progress::Started { index });
        }
        if running.is_empty() {
            return Ok(signal::noted().is_some());
        }
        let fds: Vec<_> = running.iter().map(|one| one.pidfd.as_fd()).collect();
        poll::readable(&fds, TURN_MS).context(|| "wait for the runs")?;
        let mut at = 0;
        while at < running.len() {
            let Some((_, end)) = process::wait(running[at].pid, false)
                .context(|| format!("wait for the run's process {}", running[at].pid))?
            else {
                at += 1;
                continue;
            };
            let mut one = running.swap_remove(at);
            let cell = &cells[one.index];
            let cell_end = ended(&mut one, end, cell, stopping.is_some())?;
            if listen(Progress::Ended(&cell_end)) == Next::Stop && stopping.is_none() {
                stopping = Some(ask_all(running)?);
            }
        }
        listen(Progress::Tick { running: running.len() });
        if signal::noted().is_some() && stopping.is_none() {
            stopping = Some(ask_all(running)?);
        }
        let now = time::monotonic_ns();
        let past_grace = stopping.is_some_and(|since| now > since + STOP_GRACE_NS);
        if !killed && (past_grace || signal::noted_count() > 1) {
            killed = true;
            stopping.get_or_insert(now);
            running.iter().try_for_each(end_now)?;
        }
        for one in running.iter_mut().filter(|one| !one.late) {
            if now > one.started_ns + cells[one.index].cost.limit_ns {
                one.late = true;
                end_now(one)?;
            }
        }
    }
}

/// Asks all to stop; returns when.
fn ask_all(running: &[Running]) -> Result<u64> {
    for one in running {
        send(one, libc::SIGINT)?;
    }
    Ok(time::monotonic_ns())
}

fn end_now(one: &Running) -> Result<()> {
    send(one, libc::SIGKILL)
}

fn send(one: &Running, signal: i32) -> Result<()> {
    match process::pidfd_signal(&one.pidfd, signal) {
        // It has ended, and will be found so in the next turn.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.context(|| format!("send signal {signal} to the run's process {}", one.pid)),
    }
}

fn start(index: usize, cell: &Cell) -> Result<Running> {
    let memfile = |name: &str| fd::memfd(name, 0).context(|| "make a memory file for a run's result");
    let (told, out, err) = (memfile("ktstr-told")?, memfile("ktstr-out")?, memfile("ktstr-err")?);
    let mut argv = vec![cell.program.clone(), "run".to_owned(), format!("--{TOLD_FLAG}={}", number(&told))];
    argv.push(format!("--run-dir={}", cell.directory.display()));
    argv.extend(cell.words.iter().cloned());
    let environment: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let stdio = [None, Some(out.as_fd()), Some(err.as_fd())];
    let started_ns = time::monotonic_ns();
    let pid = Spawn { argv: &argv, environment: &environment, stdio, keep: &[number(&told)], die_with_parent: true }
        .start()
        .context(|| format!("start a process for {}", cell.name))?;
    match process::pidfd_open(pid) {
        Ok(pidfd) => Ok(Running { index, pid, pidfd, told, err, started_ns, late: false }),
        Err(error) => {
            process::kill(pid, libc::SIGKILL).context(|| format!("kill process {pid}"))?;
            process::wait(pid, true).context(|| format!("wait for process {pid}"))?;
            Err(error).context(|| format!("watch process {pid}"))
        }
    }
}

fn ended(one: &mut Running, end: End, cell: &Cell, stopping: bool) -> Result<CellEnd> {
    let told = Told::read(&mut one.told)?;
    let said = last_bytes(&mut one.err).context(|| "read what a run printed")?;
    let (outcome, exit_code, headline) = match (&told, end) {
        (Some(told), End::Exited(code)) if code == i32::from(told.exit_code) => {
            (told.outcome(), told.exit_code, told.headline.clone())
        }
        (_, End::Exited(code)) => {
            let by_code = Outcome::ALL.into_iter().find(|outcome| i32::from(outcome.exit_code()) == code);
            // A run that ends with 0 or 1 has a verdict to tell.
            let outcome = by_code.filter(|outcome| !matches!(outcome, Outcome::Pass | Outcome::Fail));
            let outcome = outcome.unwrap_or(Outcome::Error);
            let words = error_line(&said).unwrap_or_else(|| format!("its process ended with exit code {code}"));
            (outcome, outcome.exit_code(), words)
        }
        (_, End::Signaled(signal)) => {
            let words = if one.late {
                let limit = units::duration(cell.cost.limit_ns);
                format!("its process did not end within {limit} and was killed")
            } else if stopping {
                "stopped".to_owned()
            } else {
                format!("its process was ended by signal {signal}")
            };
            let outcome = if stopping && !one.late { Outcome::Interrupted } else { Outcome::Error };
            (outcome, outcome.exit_code(), words)
        }
    };
    Ok(CellEnd {
        index: one.index,
        // Only what was cut short by the request is the request's doing.
        stopped: stopping && outcome == Outcome::Interrupted,
        outcome,
        exit_code,
        headline,
        took_ns: time::monotonic_ns().saturating_sub(one.started_ns),
        told,
        said,
    })
}

fn last_bytes(file: &mut File) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SAID_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(SAID_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The message of `ktstr: error: ...`, its wrapped lines joined, with the hint in brackets.
fn error_line(said: &str) -> Option<String> {
    let at = said.rfind("ktstr: error: ")?;
    let text: Vec<&str> = said[at + "ktstr: error: ".len()..].split_whitespace().collect();
    let text = text.join(" ");
    Some(match text.split_once(" hint: ") {
        Some((message, hint)) => format!("{message} ({hint})"),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A program that stands for ours: it gets `run --cell-result=N --run-dir=D` and the cell's words.
    struct Scripted(PathBuf);

    impl Scripted {
        fn new(name: &str, body: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ktstr-engine-{name}-{}", std::process::id()));
            fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Self(path)
        }
        fn cell(&self, word: &str, limit_ms: u64) -> Cell {
            let cost = Cost { cpus: 1, limit_ns: limit_ms * 1_000_000, ..Cost::default() };
            let program = self.0.display().to_string();
            Cell { name: word.into(), program, words: vec![word.into()], cost, directory: "/nowhere".into() }
        }
    }

    impl Drop for Scripted {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    const ROOM: Budget = Budget { cpus: 2, memory_bytes: u64::MAX, jobs: 2 };

    fn ends(cells: &[Cell], stop_after: usize) -> (Vec<CellEnd>, usize) {
        let (mut ends, mut most) = (Vec::new(), 0);
        let interrupted = run(cells, &ROOM, &mut |progress| {
            match progress {
                Progress::Ended(end) => ends.push(end.clone()),
                Progress::Tick { running } => most = most.max(running),
                Progress::Started { .. } => {}
            }
            if ends.len() >= stop_after { Next::Stop } else { Next::Go }
        });
        assert!(!interrupted.unwrap());
        ends.sort_by_key(|end| end.index);
        (ends, most)
    }

    #[test]
    fn death_of_one_run_is_its_own() {
        let script = Scripted::new(
            "death",
            "case $4 in\nkill) kill -9 $$ ;;\nslow) sleep 60 ;;\nskip) echo 'ktstr: error: no sched_ext\n  hint: another\n        kernel' >&2; exit 125 ;;\n*) exit 0 ;;\nesac",
        );
        let cells = [
            script.cell("kill", 60_000),
            script.cell("slow", 300),
            script.cell("skip", 60_000),
            script.cell("mute", 60_000),
        ];
        let (ends, most) = ends(&cells, usize::MAX);
        let outcomes: Vec<Outcome> = ends.iter().map(|end| end.outcome).collect();
        assert_eq!(outcomes, [Outcome::Error, Outcome::Error, Outcome::Skip, Outcome::Error]);
        assert_eq!(ends[0].headline, "its process was ended by signal 9");
        assert!(ends[1].headline.contains("did not end within 300ms"), "{}", ends[1].headline);
        assert_eq!(ends[2].headline, "no sched_ext (another kernel)");
        assert_eq!(ends[3].headline, "its process ended with exit code 0");
        assert!(most <= 2 && ends.iter().all(|end| !end.stopped));
    }

    #[test]
    fn as_many_run_at_once_as_there_is_room_for_and_never_more() {
        let directory = std::env::temp_dir().join(format!("ktstr-engine-meet-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        // Two meet at a FIFO, which lets go of either only when both are there.
        let places = ["first", "second"].map(|name| directory.join(name).display().to_string());
        for place in &places {
            assert!(std::process::Command::new("mkfifo").arg(place).status().unwrap().success());
        }
        let script = Scripted::new(
            "rendezvous",
            "case $4 in\ngive) echo here >\"$5\" ;;\ntake) read -r word <\"$5\" && [ \"$word\" = here ] ;;\nesac && exit 125",
        );
        let cells: Vec<Cell> = places
            .iter()
            .flat_map(|place| ["give", "take"].map(|word| (word, place)))
            .map(|(word, place)| {
                let mut cell = script.cell(word, 60_000);
                cell.words.push(place.clone());
                cell.cost.memory_bytes = 1 << 20;
                cell
            })
            .collect();
        let much = Budget { cpus: 8, memory_bytes: u64::MAX, jobs: 8 };
        for budget in [Budget { jobs: 2, ..much }, Budget { cpus: 2, ..much }, Budget { memory_bytes: 2 << 20, ..much }]
        {
            let (mut now, mut most, mut ends) = (0, 0, Vec::new());
            let interrupted = run(&cells, &budget, &mut |progress| {
                match progress {
                    Progress::Started { .. } => now += 1,
                    Progress::Ended(end) => (now -= 1, ends.push((end.index, end.outcome))).0,
                    Progress::Tick { running } => assert_eq!(running, now, "{budget:?}"),
                }
                most = most.max(now);
                Next::Go
            });
            assert!(!interrupted.unwrap());
            ends.sort_by_key(|(index, _)| *index);
            // One alone at its place is killed at its limit.
            assert_eq!(ends, [0, 1, 2, 3].map(|index| (index, Outcome::Skip)), "{budget:?}");
            assert_eq!(most, 2, "{budget:?}");
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn stopping_asks_and_starts_nothing_more() {
        let script =
            Scripted::new("stop", "trap 'exit 130' INT\n[ \"$4\" = first ] && exit 128\nwhile :; do sleep 0.05; done");
        let cells = [script.cell("first", 60_000), script.cell("second", 60_000), script.cell("third", 60_000)];
        let (ends, _) = ends(&cells, 1);
        assert_eq!(ends.len(), 2, "the third never starts: {ends:?}");
        assert_eq!((ends[0].outcome, ends[0].stopped), (Outcome::Error, false));
        assert_eq!((ends[1].outcome, ends[1].stopped), (Outcome::Interrupted, true));
    }

    #[test]
    fn program_that_does_not_exist_is_an_error_of_the_whole() {
        let mut cell = Scripted::new("none", "").cell("x", 1);
        cell.program = "/nowhere/at/all".into();
        assert!(run(&[cell], &ROOM, &mut |_| Next::Go).unwrap_err().to_string().contains("start a process for x"));
    }
}
