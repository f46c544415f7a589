//! The host's loop while the VM runs: takes everything that comes out of it, and ends it in time.
//!
//! Owns deadlines, marks and the order of ends; leaves starting to machine.rs and the files to rundir.rs.
//! Invariant: the loop ends by the hard limit, whatever the guest does.

use super::machine::{Machine, MachineEvent, read_all};
use super::noise::Witness;
use super::qemu;
use super::rundir::{REGISTERS, RunDir};
use super::silence::Silence;
use super::stall::Stall;
use super::symbols::Symbols;
use crate::channel::host::HostSession;
use crate::channel::{DOORBELL_ALIVE, DOORBELL_PID1};
use crate::error::{Context, Result};
use crate::log::{Event, Listener};
use crate::proto::message::{Msg, Stage, VmEnd};
use crate::proto::perf::{self, PerfItem};
use crate::proto::record::Record;
use crate::proto::registers::CpuDump;
use crate::sys::process::End;
use crate::sys::{poll, signal, time};
use crate::units;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// How long a turn waits at most: the ring is looked at this often even where no doorbell works.
const TURN_MS: u64 = 20;
/// Between two looks at the process's memory, at least.
const MEMORY_EVERY_NS: u64 = 500_000_000;
/// And so many times as long as a look takes. For one the kernel walks over all pages of the guest, 15 ms for 90 MiB on a
/// machine of today and half a second where that is emulated: time that VMs want, and in which the witness does not look.
const MEMORY_PARTS: u64 = 50;
/// But no longer than this, as a guest that dies is told by the last look.
const MEMORY_AFTER_MOST_NS: u64 = 10_000_000_000;
/// A guest that has said Bye only has to restart.
const AFTER_BYE_NS: u64 = 15_000_000_000;
/// The machine said that it has ended; its process only has to leave.
const AFTER_END_NS: u64 = 5_000_000_000;

/// The VM's process gives its vCPUs half a second to tell where they stand; the emulator answers at once.
const REGISTERS_NS: u64 = 2_000_000_000;

/// The user has interrupted the run: the guest may take this long to stop and to report what it has.
pub const POLITE_NS: u64 = 3_000_000_000;

/// When this run must be over, on CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The guest is asked to stop, so that it can still report.
    pub soft_ns: u64,
    /// The VM is killed.
    pub hard_ns: u64,
}

/// One run under way.
pub struct Watch<'a, 'b> {
    pub machine: &'a mut Machine,
    pub session: &'a mut HostSession,
    pub run: &'a mut RunDir,
    pub listener: Listener<'b>,
    /// CLOCK_MONOTONIC at exec; marks count from here.
    pub exec_ns: u64,
    /// The guest has said more than the record takes.
    pub over_budget: bool,
    /// The emulator has logged one.
    pub triple_fault: bool,
    /// Signs of life.
    pub silence: Silence,
    pub stall: Stall,
    /// Performance mode: what was refused before the start, and then what the VM tells; empty where it was not asked for.
    pub perf: Vec<PerfItem>,
}

impl Watch<'_, '_> {
    /// Runs until the VM has ended; everything it said is in the record then.
    pub fn until_end(&mut self, limits: Limits) -> Result<VmEnd> {
        let mut told: Option<(VmEnd, u64)> = None;
        let mut exits = Vec::new();
        let mut bye_ns = None;
        let mut stop_sent = false;
        let mut stalled = false;
        let mut interrupted_ns = None;
        let (mut memory_ns, mut seen_worked) = (0, false);
        let mut witness = Witness::new(self.machine.pid(), self.exec_ns, time::monotonic_ns());
        let end = loop {
            self.wait(witness.due_ns())?;
            let now = time::monotonic_ns();
            if now >= witness.due_ns() {
                witness.sample(now);
            }
            // After a scenario's work its guest has touched what it will for that.
            let has_worked = self.run.record().scenario_end.is_some();
            let looks_now = now >= memory_ns || has_worked && !seen_worked;
            seen_worked = has_worked;
            if looks_now {
                let began_ns = time::monotonic_ns();
                self.machine.sample_memory();
                memory_ns = next_look(began_ns, time::monotonic_ns());
            }
            self.take_lines()?;
            for event in self.machine.take_events()? {
                match event {
                    MachineEvent::FirstInstruction { monotonic_ns } => {
                        self.mark_at(Stage::FirstInstruction, monotonic_ns)
                    }
                    MachineEvent::Ended { end, exits: counted } => {
                        self.mark(Stage::VmEnd);
                        exits = counted;
                        told.get_or_insert((end, now));
                    }
                    MachineEvent::Perf { items } => self.perf.extend(items),
                    MachineEvent::Registers { .. } => {}
                }
            }
            if bye_ns.is_none() && self.run.record().bye {
                bye_ns = Some(now);
            }
            if let Some(process_end) = self.machine.poll_end()? {
                // What it said last is still in the lines.
                self.take_lines()?;
                for event in self.machine.take_events()? {
                    match event {
                        MachineEvent::Ended { end, exits: counted } => {
                            exits = counted;
                            told.get_or_insert((end, now));
                        }
                        MachineEvent::Perf { items } => self.perf.extend(items),
                        MachineEvent::FirstInstruction { .. } | MachineEvent::Registers { .. } => {}
                    }
                }
                break told.map_or_else(|| unexpected(process_end), |(end, _)| end);
            }
            if signal::noted().is_some() {
                let since_ns = *interrupted_ns.get_or_insert(now);
                // Before it has said Hello nobody listens; a second signal means at once.
                let listens = self.run.record().hello.is_some();
                if !listens || signal::noted_count() > 1 || now > since_ns + POLITE_NS {
                    break VmEnd::Interrupted;
                }
                if !stop_sent {
                    stop_sent = true;
                    self.send(&Msg::Stop);
                }
            }
            if let Some((end, since)) = &told {
                if now > since + AFTER_END_NS {
                    break end.clone();
                }
                continue;
            }
            if self.session.is_broken() {
                break VmEnd::Cut { reason: "the guest broke the channel's rules".into() };
            }
            if self.over_budget {
                self.run.add(Msg::ChannelDamage { text: "the guest sent more than the record takes".into() });
                break VmEnd::Cut { reason: "the guest never stopped sending".into() };
            }
            if bye_ns.is_some_and(|since| now > since + AFTER_BYE_NS) {
                break VmEnd::TimedOut;
            }
            if bye_ns.is_none()
                && let Some(end) = self.stall.end(now)
            {
                stalled = true;
                break end;
            }
            if bye_ns.is_none()
                && let Some(end) = self.silence.end(now)
            {
                break end;
            }
            if now > limits.hard_ns {
                break VmEnd::TimedOut;
            }
            if now > limits.soft_ns && !stop_sent {
                stop_sent = true;
                last_requests(self.run.record()).iter().for_each(|request| self.send(request));
            }
        };
        if let (Some(since_ns), VmEnd::TimedOut) = (bye_ns, &end) {
            let waited = units::approx(time::monotonic_ns().saturating_sub(since_ns));
            let told =
                format!("the guest had finished, but did not restart within {waited}: its kernel hangs at its end");
            self.run.add(Msg::HostNote { text: format!("{told} (where its vCPUs stood: {REGISTERS})") });
        }
        // A guest that stopped because it was told to has not done what it was to do.
        let end = if interrupted_ns.is_some() { VmEnd::Interrupted } else { end };
        let finished = bye_ns.is_some() && matches!(end, VmEnd::Cut { .. });
        // The kernel has told of a stall where it is, and the time to ask is promised to its report.
        if !stalled && (matches!(end, VmEnd::TimedOut | VmEnd::Silent { .. }) || finished) {
            self.take_registers()?;
        }
        self.machine.sample_memory();
        witness.sample(time::monotonic_ns());
        // One that has not told its end has it now; what follows is the teardown.
        self.mark(Stage::VmEnd);
        self.machine.kill()?;
        self.take_lines()?;
        let end = if self.triple_fault && bye_ns.is_none() && end == VmEnd::Reset { VmEnd::TripleFault } else { end };
        self.run.end_console();
        let dropped = self.session.dropped_by_guest();
        if dropped > 0 {
            self.run.add(Msg::ChannelDamage { text: format!("the guest could not send {dropped} messages") });
        }
        self.run.add(Msg::VmEnded { end: end.clone() });
        self.run.add(Msg::Stats { stats: self.machine.stats(exits) });
        if !self.perf.is_empty() {
            self.run.add(Msg::Perf { items: perf::complete(&self.perf) });
        }
        self.run.add(Msg::Noise { noise: witness.finish() });
        Ok(end)
    }

    /// Where the vCPUs of a guest that hangs stand, into the record and a file of its own.
    fn take_registers(&mut self) -> Result<()> {
        let end_ns = time::monotonic_ns() + REGISTERS_NS;
        let mut cpus = match self.machine.ask_registers() {
            Ok(()) => None,
            // It is past answering, and about to be killed.
            Err(error) => Some(vec![CpuDump::missing(0, error.to_string())]),
        };
        while cpus.is_none() && time::monotonic_ns() < end_ns && self.machine.poll_end()?.is_none() {
            self.wait(end_ns)?;
            self.take_lines()?;
            cpus = self.machine.take_events()?.into_iter().find_map(|event| match event {
                MachineEvent::Registers { cpus } => Some(cpus),
                _ => None,
            });
        }
        let unanswered = || vec![CpuDump::missing(0, format!("no answer within {}", units::duration(REGISTERS_NS)))];
        let mut cpus = cpus.unwrap_or_else(unanswered);
        let record = self.run.record();
        let release = record.hello.as_ref().map(|hello| hello.kernel.clone());
        let kernel = record.host.as_ref().map(|host| PathBuf::from(&host.kernel)).unwrap_or_default();
        let symbols = Symbols::near(&kernel, release.as_deref());
        cpus.iter_mut().for_each(|cpu| symbols.iter().for_each(|symbols| symbols.annotate(cpu)));
        let source = symbols.map_or_else(
            || "no symbols: neither a vmlinux with symbols nor a System.map lies beside the kernel".into(),
            |symbols| format!("symbols: {}", symbols.source.display()),
        );
        let text: String = cpus.iter().map(|cpu| format!("{}\n", cpu.text())).collect();
        if let Err(error) = self.run.write(REGISTERS, &format!("{source}\n\n{text}")) {
            self.run.add(Msg::HostNote { text: error.to_string() });
        }
        self.run.add(Msg::Registers { cpus });
        Ok(())
    }

    /// Until something comes, a turn has passed, or CLOCK_MONOTONIC is `due_ns`.
    fn wait(&self, due_ns: u64) -> Result<()> {
        let lines = &self.machine.lines;
        let fds = [
            lines.console.as_fd(),
            lines.com2.as_fd(),
            lines.doorbell.as_fd(),
            lines.events.as_fd(),
            lines.log.as_fd(),
            self.machine.pidfd.as_fd(),
        ];
        // Rounded up, so that the wait does not end just before the time.
        let left_ms = due_ns.saturating_sub(time::monotonic_ns()).div_ceil(units::NS_PER_MS);
        poll::readable(&fds, left_ms.min(TURN_MS)).context(|| "wait for the VM")?;
        Ok(())
    }

    /// Takes console, the process's own output, doorbell, COM2 and ring.
    fn take_lines(&mut self) -> Result<()> {
        let mut console = Vec::new();
        read_all(&self.machine.lines.console, &mut console)?;
        if !console.is_empty() {
            self.stall.console(&console, time::monotonic_ns());
            self.run.add_console(&console);
            (self.listener)(Event::Console(console));
        }
        let mut printed = Vec::new();
        read_all(&self.machine.lines.log, &mut printed)?;
        self.triple_fault |= printed.windows(qemu::TRIPLE_FAULT.len()).any(|words| words == qemu::TRIPLE_FAULT);
        self.run.add_vmm_log(&printed);
        let mut door = Vec::new();
        read_all(&self.machine.lines.doorbell, &mut door)?;
        if door.contains(&DOORBELL_PID1) {
            self.mark(Stage::Pid1);
        }
        if door.contains(&DOORBELL_ALIVE) {
            let now = time::monotonic_ns();
            self.silence.heard(now);
            self.stall.alive(now);
        }
        let mut com2 = Vec::new();
        read_all(&self.machine.lines.com2, &mut com2)?;
        let mut messages = self.session.feed_serial(&com2);
        messages.extend(self.session.drain_ring());
        for message in messages {
            self.accept(message);
        }
        for text in self.session.take_damage() {
            self.run.add(Msg::ChannelDamage { text });
        }
        Ok(())
    }

    fn accept(&mut self, message: Msg) {
        self.stall.heard(&message, time::monotonic_ns());
        let stage = match &message {
            Msg::Hello { pid1_uptime_ns, .. } => {
                // Without a doorbell the first message is the first sign of PID 1.
                self.mark(Stage::Pid1);
                let pid1 = self.run.record().mark(Stage::Pid1).unwrap_or(0);
                self.mark_at(Stage::KernelEntry, self.exec_ns + pid1.saturating_sub(*pid1_uptime_ns));
                Some(Stage::Hello)
            }
            Msg::SchedEnabled { .. } => Some(Stage::SchedulerEnabled),
            Msg::ScenarioStart { .. } => Some(Stage::ScenarioStart),
            Msg::ScenarioEnd { .. } => Some(Stage::ScenarioEnd),
            Msg::Bye { .. } => Some(Stage::Bye),
            Msg::SchedOutput { text } => {
                (self.listener)(Event::SchedulerOutput(text.clone()));
                None
            }
            _ => None,
        };
        self.over_budget |= !self.run.add_from_guest(message);
        if let Some(stage) = stage {
            self.mark(stage);
        }
    }

    fn mark(&mut self, stage: Stage) {
        self.mark_at(stage, time::monotonic_ns());
    }

    /// The first mark of a stage stands, in each scenario.
    fn mark_at(&mut self, stage: Stage, monotonic_ns: u64) {
        if self.run.record().lacks_mark(stage) {
            self.run.add(Msg::Mark { stage, at_ns: monotonic_ns.saturating_sub(self.exec_ns) });
            (self.listener)(Event::Stage(stage.name()));
        }
    }

    /// Sends a command. Where that fails the guest is past listening, which the hard limit settles.
    fn send(&mut self, message: &Msg) {
        let bytes = self.session.send(message);
        let line = self.machine.lines.com2.try_clone().map(File::from);
        if let Err(error) = line.and_then(|mut line| line.write_all(&bytes)) {
            self.run.add(Msg::HostNote { text: format!("cannot write to the guest's COM2: {error}") });
        }
    }
}

/// What a guest is asked for when its time is almost over: how the scheduler's queues stand, which the kernel tells only
/// as long as it runs, and then to stop.
fn last_requests(record: &Record) -> Vec<Msg> {
    let runs = record.sched_enabled.is_some() && record.sched_died.is_none() && record.sched_final.is_none();
    runs.then_some(Msg::Dump).into_iter().chain([Msg::Stop]).collect()
}

/// The process ended without a word.
fn unexpected(end: End) -> VmEnd {
    let how = match end {
        End::Exited(code) => format!("exit code {code}"),
        End::Signaled(signal) => format!("signal {signal}"),
    };
    VmEnd::MachineError { text: format!("the VM's process ended unexpectedly with {how}") }
}

/// When the process's memory is looked at again.
fn next_look(began_ns: u64, ended_ns: u64) -> u64 {
    let pause_ns = ended_ns.saturating_sub(began_ns).saturating_mul(MEMORY_PARTS);
    ended_ns + pause_ns.clamp(MEMORY_EVERY_NS, MEMORY_AFTER_MOST_NS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::fixture::{passing, passing_with_scheduler};

    #[test]
    fn memory_is_looked_at_the_more_rarely_the_longer_it_takes() {
        assert_eq!(next_look(1_000, 1_001_000), 1_001_000 + MEMORY_EVERY_NS);
        assert_eq!(next_look(0, 100_000_000), 100_000_000 + 5_000_000_000);
        assert_eq!(next_look(0, 400_000_000), 400_000_000 + MEMORY_AFTER_MOST_NS);
    }

    #[test]
    fn scheduler_that_runs_is_dumped_before_the_guest_is_stopped() {
        let ended = passing_with_scheduler();
        let running = Record { sched_final: None, ..ended.clone() };
        assert_eq!(last_requests(&running), [Msg::Dump, Msg::Stop]);
        assert_eq!(last_requests(&ended), [Msg::Stop]);
        assert_eq!(last_requests(&passing()), [Msg::Stop]);
    }
}
