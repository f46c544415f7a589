//! The prose of help: what ktstr is, examples, exit codes, files, topics.
//!
//! Owns sentences that are no flag's; leaves their layout to `help` and `man`.
//! Invariant: every line that is shown as it stands fits 80 columns.

/// What ktstr is, in one paragraph.
pub const WHAT: &str = "Boots a Linux kernel in a small VM, runs a scheduler and a workload in it, and answers with a \
                        verdict. Without --sched the kernel's own scheduler is tested.";

/// (what it shows, command line)
pub const EXAMPLES: &[(&str, &str)] = &[
    ("Test a sched_ext scheduler on a kernel of yours", "ktstr --kernel bzImage --sched ./scx_foo --work spin"),
    (
        "The same on 8 CPUs for 10 s, with arguments for the scheduler",
        "ktstr -k bzImage -s ./scx_foo --topo 8 -d 10s -- --slice-us 500",
    ),
    ("No scheduler at hand: a built-in one", "ktstr -k bzImage -s builtin:fifo"),
    ("The kernel's own scheduler under bursty load, as JSON too", "ktstr -k vmlinux -w bursty --json result.json"),
    (
        "Find the kernel commit that broke a scheduler",
        "git bisect run sh -c 'make -j8 bzImage || exit 125;\n      ktstr -q -k arch/x86/boot/bzImage -s ./scx_foo'",
    ),
    ("Ask what this host can do", "ktstr doctor"),
];

/// (code, meaning). `git bisect run` takes 1 as bad, 125 as "skip this one", and stops above 127.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "pass"),
    (1, "fail: the scheduler, or the kernel under it, misbehaved"),
    (125, "cannot be judged here: the kernel did not boot or lacks what the run needs, or the result is inconclusive"),
    (128, "ktstr could not do its job: wrong command line, no usable KVM or QEMU, no memory, a fault of its own"),
    (130, "interrupted"),
];

/// (place, what is there)
pub const FILES: &[(&str, &str)] = &[
    (
        "~/.local/state/ktstr/runs/",
        "one directory a run: console.log, record, summary.txt, verdict.json. It goes after a pass, unless --keep or --run-dir is \
         given, and stays after anything else. XDG_STATE_HOME moves it.",
    ),
    (
        "~/.cache/ktstr/unpacked/",
        "the last kernels that were booted more than once, unpacked, and what VMs share of images; safe to remove at any time. \
         XDG_CACHE_HOME moves it.",
    ),
];

/// A subject of `ktstr help` that is no command.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    pub name: &'static str,
    /// One line.
    pub help: &'static str,
    /// Shown as it stands.
    pub text: &'static str,
}

pub const TOPICS: &[Topic] = &[
    super::topic_work::WORK,
    Topic {
        name: "bisect",
        help: "how to find the commit that broke a scheduler",
        text: "\
The exit codes are made for 'git bisect run': 0 is good, 1 is bad, 125
skips a commit that cannot be judged, and anything above 127 stops the search,
because then ktstr, and not the commit, is at fault.

First prove both ends; each is run three times:

  ktstr bisect-check good/bzImage bad/bzImage --sched ./scx_foo
  ktstr bisect-check --vary sched old/scx_foo new/scx_foo -k bzImage

In a kernel tree:

  git bisect start BAD GOOD
  git bisect run sh -c 'make -j8 bzImage || exit 125;
      ktstr -q --kernel arch/x86/boot/bzImage --sched ./scx_foo'

In the scheduler's tree, with one kernel:

  git bisect run sh -c 'cargo build || exit 125;
      ktstr -q --kernel ~/bzImage --sched target/debug/scx_foo'

A fault that shows only now and then is missed by a single run. bisect-check
says how often BAD fails, and how often each step has to repeat its run:

  --repeat 13 --stop-on-first --flake-rate 30% --steps 10

A good step then tells the chance that a bad commit passed it by luck, and the
chance of that in any of the steps.

--bad-on names the failures that count, where a range has several faults:

  boot    the kernel does not reach PID 1 (or --boot-failure fail)
  panic   panic, BUG, Oops, triple fault, a reset out of nowhere
  warn    WARNING, lockdep, sleeping in atomic context, sanitizers
  stall   sched_ext's watchdog, RCU stalls, lockups, hung tasks, a guest that
          hangs
  check   anything else: a limit that was broken, a scheduler that ended

Another failure is good where the run came to its end in spite of it, and is
skipped where it cut the run short.

A kernel that does not boot is skipped. --seed 1 makes the choices of the load
the same in every step. docs/bisect.md in the source has scripts.
",
    },
    Topic {
        name: "matrix",
        help: "many runs at once: matrices, repetitions, their one verdict",
        text: "\
--matrix FLAG=A,B   runs once with --FLAG=A and once with --FLAG=B. Given for
                    several flags they multiply:

  ktstr -m kernel=6.12/bzImage,6.18/bzImage -m topo=1,4,8 \\
        -m sched=none,./scx_foo -m work=spin,bursty -m seed=1..3

Any flag that describes the subject, the load or the machine can vary. Values
are separated by commas outside of brackets, or by semicolons where one of them
has a comma. 'none' leaves the flag out; 1..5 counts; the same flag given again
adds values. All combinations are checked before the first one runs.

Each run is a process with one VM, so that one that dies takes nobody along. As
many run at once as fit into the CPUs and the memory that this process may use;
--jobs N lowers that. Progress goes to standard error. --json, --junit and
--ktap write the results. A run that did not pass keeps its run directory.

--repeat N          does every run N times. The flake rate is told with its
                    exact (Clopper-Pearson) 95 % interval.
--until-fail N      the same, but ends at the first failure.
--pass-ratio SHARE  of the N runs, this share has to pass. A run that could not
                    be judged counts as a failed one would.
--stop-on-first     ends as soon as one combination has failed for good.
--allow-skip        what is skipped does not count beside something that passed.

The exit code is that of the first of these that applies:

  130  it was interrupted
    1  a combination failed (more of its runs than the ratio forgives)
  128  ktstr could not do a run
  125  a run was inconclusive, or skipped
    0  everything passed
",
    },
    Topic {
        name: "schedulers",
        help: "what can be tested, and what the kernel must have for it",
        text: "\
--sched PATH        any executable that loads a sched_ext scheduler, static or
                    dynamic. The libraries it needs are found as the dynamic
                    linker finds them and are packed with it; one that is
                    missing is an error before anything boots.
--sched builtin:X   a scheduler inside ktstr, loaded without clang and libbpf;
                    'ktstr list schedulers' lists them. Some keep the rules;
                    the others each break one, and show that ktstr's own
                    checks find it.
no --sched          the kernel's own scheduler.

The kernel needs CONFIG_SCHED_CLASS_EXT, CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and
CONFIG_DEBUG_INFO_BTF for a scheduler of the first two kinds. Without them the
exit code is 125, and the message names the option.

Many scx schedulers read the kernel's configuration. It is looked for beside
the kernel, or is given with --kernel-config FILE.

A scheduler passes when it was enabled, stayed the same instance to the end,
and let every worker run; see the checks in the result.
",
    },
    Topic {
        name: "faults",
        help: "the faults that can be brought about, and how to see that they are named",
        text: "\
ktstr selftest --kernel FILE plays a matrix of faults, each in a guest of its
own, and shows that outcome, exit code, stage and reason are the right ones.
--list lists them, a word after it selects by name, --short plays a few.

The built-in schedulers that break a rule are the faults of schedulers: see
'ktstr list schedulers'. The others are brought about by the guest itself, for
tests of ktstr, 700 ms after its workers began: --provoke FAULT, which

",
    },
    Topic {
        name: "topology",
        help: "how the CPUs of the guest are described",
        text: "\
--topo N            N CPUs: one node, one LLC, one thread per core.
--topo 2n4l4c2t     NUMA nodes, last-level caches in all, cores per LLC, threads
                    per core. CPUs are numbered in this order, threads last.
--topo tiny-2llc    a name; 'ktstr list topologies' lists them.

Machines that are not all alike have found bugs in schedulers:

--topo 2n2+1l4c1t   LLCs of each node; 0 makes a node without CPUs
--topo 1n3l4+2+1c2t cores of each LLC
--topo 4:spare2     two possible CPUs above those that exist
--topo 4:nocache3   CPU 3 tells no caches; a list such as nocache1,3 is possible
--topo 4:sparse7    APIC ids with 7 unused bits below each core: 0, 128...

--node-memory 128M,128M,64M
                    memory of each node; more sizes than nodes make nodes of
                    memory alone
--distance 31       how far nodes are from each other, or a file with a matrix:
                    one row a line, 10 on the diagonal

What the guest's kernel shows in sysfs is compared with all of this before
anything is measured. A difference ends the run with both shapes and the exit
code 125: it would be another machine's result. The result's JSON has what the
guest saw under guest.machine.

More CPUs than the host has are possible; they then wait for each other on the
host, and times become coarse.
",
    },
    Topic {
        name: "disk",
        help: "the guest's disk, and the kernel modules that it needs",
        text: "\
--disk 64M          /dev/vda in memory of the host, empty, gone after the run.
--disk FILE         a raw image or a block device. It is written, and belongs to
                    one run at a time.
--disk FILE,ro      read only; several runs may read one.
,rate=10M ,iops=100 at most so many bytes and requests a second, reads and
                    writes together, with a burst of a tenth of a second.

FILE,scratch        work types that do I/O may write over the file.

Work types that do I/O use the disk in memory, or one of which that is said;
without one they use a file in memory. They leave any other file alone: it is
there for what the scheduler or a scenario runs.

Under KVM the disk is a virtio device on MMIO, which the kernel finds through
ACPI; under QEMU it is QEMU's virtio device on PCI. Both are the same file with
the same limits. Where the drivers (virtio_blk, virtio_mmio) are modules, they
are looked for beside the kernel, in its build tree and in /lib/modules, or in
--modules DIR; they are packed and loaded in order, with what they depend on.
Compressed modules stay compressed: the kernel unpacks them, for which it needs
CONFIG_MODULE_DECOMPRESS. A kernel without CONFIG_VIRTIO_BLK is exit code 125.

The result's JSON has what the disk did under memory.exits: disk-requests,
disk-bytes, disk-failed-requests, disk-throttled-ms, and disk-broken-by-driver,
which counts how often a driver broke the rules of VIRTIO 1.2.
",
    },
    Topic {
        name: "noise",
        help: "what a busy host does to a result",
        text: "\
The vCPUs are threads of this host. While the VM runs, the host's scheduler is
asked every 10 ms how long each of them was runnable without running. The sums,
the longest such wait and its time, the host's own steal and its CPU pressure
are in the result ('host_noise' in JSON, a note in the summary where it is more
than 1 %, always with --timings).

A failure that the host can have caused is not held against the scheduler:

  the vCPUs waited for more than 10 % of the scenario's CPU time, or the host's
  own hypervisor took more than 10 % of what the host wanted meanwhile (steal)
                    failed timing checks are inconclusive, and so are the stalls
                    that RCU and the lockup and hung-task detectors report from
                    the scenario's start on, also where sched_ext disables the
                    scheduler for one; one that was cut off lasted until then
  a gap or run delay would be within its limit without what the host took in an
  interval of that length
                    that check is inconclusive
  a vCPU waited for half of the time that a stall is about
                    the stall is inconclusive: for sched_ext's own watchdog the
                    only excuse, on an emulated guest too
  a vCPU waited for half of the time in which a worker has to report: 5 s, and
  of a guest of more than 20 emulated CPUs 0.25 s for each
                    a missing report is inconclusive
  the guest hung, and a vCPU waited for half of that time: of the silence, or
  at the deadline of the time since the scenario should have been over (since
  the boot where none had begun)
                    the run is inconclusive

Of several scenarios in one VM each is excused by the noise of its own time.

A crash is a crash on any host.
",
    },
    Topic {
        name: "perf",
        help: "what --perf does, and what each measure needs",
        text: "\
Each measure is tried, and the result says which took effect ('perf' lines in
the summary, 'perf' in JSON) and why the others did not.

vcpu-pinning        each vCPU on a CPU of its own; an LLC of the guest in an LLC
                    of the host where there are enough. Needs as many CPUs as
                    vCPUs; 'taskset' in front of ktstr chooses among them.
huge-pages          guest memory in 2 MiB pages: of the pool where it has enough
                    (sysctl vm.nr_hugepages), else transparent ones unless
                    /sys/kernel/mm/transparent_hugepage/enabled says 'never'.
memory-binding      guest memory on the nodes of those CPUs (mbind). What a
                    guest only reads of its kernel lies where the host has it.
sched-fifo          vCPU threads in real time. Needs CAP_SYS_NICE or
                    RLIMIT_RTPRIO, pinning, and one CPU left for the host.
hlt-exits-off       a halted vCPU stays in the guest, and keeps its CPU.
pause-exits-off     a spinning vCPU is not interrupted. KVM accepts it; nothing
                    outside of the guest shows that it has an effect.
kvm-hints-realtime  the guest is told that its vCPUs are never preempted for
                    long (CPUID 0x40000001, EDX bit 0).

Two runs with --perf at a time would take the same CPUs. Runs of one command
(--matrix, --repeat) take turns: such a run has the host for itself. To several
commands at a time give CPUs of their own by taskset.
",
    },
    Topic {
        name: "emulation",
        help: "what changes where there is no hardware virtualization",
        text: "\
--accel auto tries KVM first, with a throwaway VM of a few instructions, and
not only by looking at the CPU's flags. Where that fails, and
qemu-system-x86_64 is installed, the same kernel and image run under QEMU's
emulation. The first line of the result names it.

Emulation is ten to fifty times slower, and its times say little about real
ones. Checks whose thresholds it makes meaningless are not applied, and the
result lists them. Whether a scheduler loads, survives, and lets every worker
run is judged as ever.

--accel kvm and --accel qemu insist on one of them.
",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn every_exit_code_of_an_error_is_explained() {
        for kind in [Kind::Usage, Kind::Host, Kind::CannotJudge, Kind::Interrupted, Kind::Internal] {
            assert!(EXIT_CODES.iter().any(|(code, _)| *code == kind.exit_code()), "{kind:?}");
        }
        assert!(EXIT_CODES.is_sorted_by_key(|(code, _)| *code));
    }

    #[test]
    fn topics_fit_80_columns_and_are_no_commands() {
        for topic in TOPICS {
            for line in topic.text.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", topic.name);
            }
            assert!(crate::cli::flags::command(topic.name).is_none(), "{}", topic.name);
        }
    }

    #[test]
    fn examples_are_command_lines_that_parse() {
        for (what, line) in EXAMPLES.iter().filter(|(_, line)| line.starts_with("ktstr ")) {
            let words = crate::cli::split::words(line).unwrap();
            let parsed = crate::cli::parse::parse(words.into_iter().skip(1).map(Into::into));
            assert!(parsed.is_ok(), "{what}: {:?}", parsed.err());
        }
    }
}
