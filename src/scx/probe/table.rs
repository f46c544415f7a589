//! Every built-in probe scheduler: its name, its programs, and what is odd about its process.
//!
//! Owns the table; leaves the programs to `programs` and `faulty`, and the process's life to the parent module.
//! Invariant: a name is what users type after `builtin:`, and says what the scheduler does or how it fails.

use super::programs::Build;
use super::{faulty, hang, losing, programs};

/// One operation of a probe.
#[derive(Debug)]
pub struct Program {
    /// The member of sched_ext_ops that it fills.
    pub operation: &'static str,
    pub sleepable: bool,
    pub build: Build,
}

/// What the process of a probe does beside holding its scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    None,
    /// Spins on a CPU as a real-time task.
    Spins,
    /// Ends itself by SIGSEGV some time after it attached.
    Crashes,
    /// Detaches some time after it attached, and attaches again.
    Reattaches,
    /// Ignores the signals that ask it to end.
    IgnoresSignals,
    /// Never attaches anything.
    NeverAttaches,
    /// Ends with an exit code of its own before it attaches.
    LeavesAtOnce,
    /// Makes itself a SCHED_EXT task before it attaches.
    AsksForExt,
}

/// One probe scheduler.
#[derive(Debug)]
pub struct Probe {
    /// What users call it: `builtin:NAME`.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    pub programs: &'static [Program],
    /// sched_ext_ops.timeout_ms; none: the kernel's own 30 s.
    pub timeout_ms: Option<u32>,
    /// sched_ext_ops.flags.
    pub flags: u64,
    /// What the word means that its programs share with us, where they use it; it is told when it is no longer 0.
    pub state_means: Option<&'static str>,
    pub quirk: Quirk,
}

/// SCX_OPS_SWITCH_PARTIAL (enum scx_ops_flags): only tasks that ask for SCHED_EXT.
const SWITCH_PARTIAL: u64 = 1 << 3;

const fn program(operation: &'static str, build: Build) -> Program {
    Program { operation, sleepable: false, build }
}
const fn sleepable(operation: &'static str, build: Build) -> Program {
    Program { operation, sleepable: true, build }
}

const FIFO: &[Program] = &[program("enqueue", programs::enqueue_fifo)];
/// Without a choice of CPU of its own the kernel dispatches to idle CPUs past `enqueue`.
const STAY: Program = program("select_cpu", programs::select_previous_cpu);

/// What a row of the table is where it does not say otherwise.
const PROBE: Probe =
    Probe { name: "", about: "", programs: FIFO, timeout_ms: None, flags: 0, state_means: None, quirk: Quirk::None };

/// What loses tasks is ended by the watchdog, which fires after 1.0 to 1.5 times this.
const LOSING: Probe = Probe { timeout_ms: Some(1000), ..PROBE };
/// Loses whom another of its programs has marked.
const UNMARKED: Program = program("enqueue", losing::enqueue_unmarked);

/// Every probe scheduler: those that keep the rules first.
pub const PROBES: &[Probe] = &[
    Probe {
        name: "noop",
        about: "has a name and nothing else: every operation is the kernel's default",
        programs: &[],
        ..PROBE
    },
    Probe { name: "fifo", about: "puts every task on the global queue in order of arrival", ..PROBE },
    Probe {
        name: "slow",
        about: "fifo with a slice of 500 ms: whoever wakes up waits for whole slices of others",
        programs: &[program("enqueue", programs::enqueue_slow)],
        ..PROBE
    },
    Probe {
        name: "unfair",
        about: "fifo that gives workers with an odd pid a twentieth of the slice of the others",
        programs: &[STAY, program("enqueue", programs::enqueue_unfair)],
        ..PROBE
    },
    Probe {
        name: "partial",
        about: "fifo for tasks that ask for SCHED_EXT only (SCX_OPS_SWITCH_PARTIAL): it never sees the workers",
        flags: SWITCH_PARTIAL,
        ..PROBE
    },
    Probe {
        name: "reject",
        about: "fifo that refuses tasks which are at SCHED_EXT when it is loaded, its own process among them (nr_rejected)",
        programs: &[FIFO[0].copy(), program("init_task", faulty::init_task_rejects)],
        quirk: Quirk::AsksForExt,
        ..PROBE
    },
    Probe {
        name: "hog-cpu",
        about: "fifo whose own process spins on a CPU as a SCHED_FIFO task",
        quirk: Quirk::Spins,
        ..PROBE
    },
    Probe {
        name: "isolate-breaker",
        about: "puts each worker on the CPU after its own, cpuset or not; where the worker may not run there, the kernel ends it",
        programs: &[STAY, program("enqueue", faulty::enqueue_next_cpu)],
        ..PROBE
    },
    Probe {
        name: "pile",
        about: "piles all workers up in the first CPU's own queue, and leaves the other CPUs idle",
        programs: &[STAY, program("enqueue", faulty::enqueue_first_cpu)],
        ..PROBE
    },
    Probe {
        name: "starve",
        about: "never runs one worker; the kernel's watchdog ends it after 30 to 45 s, or as --watchdog says",
        programs: &[STAY, program("enqueue", programs::enqueue_all_but_one)],
        state_means: Some("starves the task with pid"),
        ..PROBE
    },
    Probe {
        name: "drop",
        about: "loses one worker, so that the kernel's watchdog ends it within 2 s",
        programs: &[STAY, program("enqueue", programs::enqueue_all_but_one)],
        state_means: Some("lost the task with pid"),
        ..LOSING
    },
    Probe {
        name: "drop-masked",
        about: "loses workers that may not run on every CPU, from 1 s on",
        programs: &[STAY, program("enqueue", losing::enqueue_unmasked)],
        ..LOSING
    },
    Probe {
        name: "drop-rebound",
        about: "loses workers whose CPUs change, from 1 s on",
        programs: &[STAY, UNMARKED.copy(), program("set_cpumask", losing::mark)],
        ..LOSING
    },
    Probe {
        name: "drop-moved",
        about: "loses workers that are moved to another cgroup, from 1 s on",
        programs: &[STAY, UNMARKED.copy(), program("cgroup_move", losing::mark)],
        ..LOSING
    },
    Probe {
        name: "drop-yielding",
        about: "loses workers that yield, from 1 s on",
        programs: &[STAY, UNMARKED.copy(), program("yield", losing::mark)],
        ..LOSING
    },
    Probe {
        name: "drop-preempted",
        about: "loses workers that leave a CPU to another class before their slice ends, from 1 s on",
        programs: &[STAY, UNMARKED.copy(), program("stopping", losing::mark_preempted)],
        ..LOSING
    },
    Probe {
        name: "drop-woken",
        about: "loses workers that wake up, from 1 s on",
        programs: &[STAY, program("enqueue", losing::enqueue_awake)],
        ..LOSING
    },
    Probe {
        name: "drop-background",
        about: "loses batch and idle workers, from 1 s on",
        programs: &[STAY, program("enqueue", losing::enqueue_foreground)],
        ..LOSING
    },
    Probe {
        name: "drop-crowd",
        about: "has room for six workers, and loses each that comes after them when it is 1 s old",
        programs: &[STAY, program("enqueue", losing::enqueue_first_few)],
        ..LOSING
    },
    Probe {
        name: "drop-late",
        about: "loses workers that were forked more than 1 s after the first",
        programs: &[STAY, program("enqueue", losing::enqueue_early)],
        ..LOSING
    },
    Probe {
        name: "drop-bereaved",
        about: "loses every worker as soon as one has ended",
        programs: &[STAY, program("enqueue", losing::enqueue_until_an_end), program("exit_task", losing::note_end)],
        state_means: Some("saw the end of the task with pid"),
        ..LOSING
    },
    Probe {
        name: "error",
        about: "reports an error of its own (scx_bpf_error) after 1 s",
        programs: &[STAY, program("enqueue", faulty::enqueue_error)],
        ..PROBE
    },
    Probe {
        name: "exit",
        about: "ends itself (scx_bpf_exit) after 1 s",
        programs: &[STAY, program("enqueue", faulty::enqueue_exit)],
        ..PROBE
    },
    Probe {
        name: "bad-dsq",
        about: "uses a dispatch queue that does not exist after 1 s",
        programs: &[STAY, program("enqueue", faulty::enqueue_bad_dsq)],
        ..PROBE
    },
    Probe {
        name: "init-fail",
        about: "refuses in ops.init, so that the kernel never enables it",
        programs: &[FIFO[0].copy(), sleepable("init", faulty::init_refuses)],
        ..PROBE
    },
    Probe {
        name: "init-spin",
        about: "keeps a CPU from everything but interrupts for 9 s in ops.init, preemption off; then it is fifo",
        programs: &[FIFO[0].copy(), sleepable("init", hang::init_spins)],
        ..PROBE
    },
    Probe {
        name: "spin",
        about: "fifo that after 1 s does not return from the enqueue of a worker for 9 s, runqueue locked and interrupts off",
        programs: &[STAY, program("enqueue", hang::enqueue_spins)],
        ..PROBE
    },
    Probe {
        name: "bad-program",
        about: "has a program that reads beyond its arguments, which the verifier refuses",
        programs: &[program("enqueue", faulty::enqueue_out_of_bounds)],
        ..PROBE
    },
    Probe {
        name: "early-exit",
        about: "its process ends with exit code 7 before it attaches",
        quirk: Quirk::LeavesAtOnce,
        ..PROBE
    },
    Probe { name: "never", about: "its process stays and never attaches", quirk: Quirk::NeverAttaches, ..PROBE },
    Probe {
        name: "crash",
        about: "fifo whose process dies of SIGSEGV 2 s after it attached; the kernel's log of it is that of a clean end",
        quirk: Quirk::Crashes,
        ..PROBE
    },
    Probe {
        name: "reattach",
        about: "fifo that detaches 2 s after it attached and attaches again: another instance",
        quirk: Quirk::Reattaches,
        ..PROBE
    },
    Probe {
        name: "stubborn",
        about: "fifo that ignores SIGINT and SIGTERM and has to be killed",
        quirk: Quirk::IgnoresSignals,
        ..PROBE
    },
];

impl Program {
    /// Programs are rows of constants; this one may stand in several.
    const fn copy(&self) -> Self {
        Self { operation: self.operation, sleepable: self.sleepable, build: self.build }
    }
}

/// The probe of this name.
pub fn find(name: &str) -> Option<&'static Probe> {
    PROBES.iter().find(|probe| probe.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scx::probe::ops_name;
    use crate::sys::bpf::is_object_name;

    #[test]
    fn every_probe_has_a_name_that_the_kernel_takes() {
        for probe in PROBES {
            assert!(is_object_name(&ops_name(probe.name)), "{}", probe.name);
            assert!(!probe.about.is_empty());
            assert_eq!(PROBES.iter().filter(|other| other.name == probe.name).count(), 1, "{}", probe.name);
            assert!(probe.timeout_ms.unwrap_or(0) <= 30_000, "the kernel refuses more");
            let operations = || probe.programs.iter().map(|program| program.operation);
            assert!(operations().all(|name| operations().filter(|other| *other == name).count() == 1));
        }
        assert_eq!(ops_name("init-fail"), "ktstr_init_fail");
    }
}
