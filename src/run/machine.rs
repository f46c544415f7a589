//! The process that runs the VM, and the descriptors that lead to it.
//!
//! Owns starting and ending it; leaves reading what comes out of it to watch.rs, and the two command lines to kvm.rs and qemu.rs.
//! Invariant: the process never outlives its `Machine`, whatever path drops it.

use super::accel::Accel;
use super::cache::DIRECTORY as CACHE_DIRECTORY;
use super::disk::Disk;
use super::unpacked::Unpacked;
use super::{hmp, kvm, qemu};
use crate::error::{Context, Result};
use crate::proto::message::{VmEnd, VmStats};
use crate::proto::numa::Numa;
use crate::proto::perf::PerfItem;
use crate::proto::registers::CpuDump;
use crate::proto::topology::Topology;
use crate::sys::process::{self, End};
use crate::sys::{fd, poll};
use crate::vmm::config::{COMMAND_DUMP, PerfConfig};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How long a killed process may take to be gone. SIGKILL cannot be refused; only a hang in the kernel can exceed it.
const REAP_WAIT_MS: u64 = 5_000;

/// Everything a VM is started with.
pub struct MachineSpec<'a> {
    pub accel: &'a Accel,
    pub kernel: &'a Path,
    pub cmdline: &'a str,
    pub topology: &'a Topology,
    pub numa: &'a Numa,
    /// Guest memory, shared with us.
    pub ram: &'a File,
    pub memory_bytes: u64,
    pub initramfs: &'a File,
    pub initramfs_bytes: u64,
    /// A file that is the beginning of the initramfs, so many bytes, for our own VMM.
    pub shared: Option<(&'a File, u64)>,
    /// GPA and bytes of the ring.
    pub ring: (u64, u64),
    /// GPA of the initramfs, where our own VMM places it.
    pub initramfs_gpa: u64,
    /// /dev/vda of the guest.
    pub disk: Option<&'a Disk>,
    pub perf: Option<&'a PerfConfig>,
    /// The kernel in memory form, for our own VMM.
    pub unpacked: Option<&'a Unpacked>,
}

/// What the machine tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The first vCPU is about to run, at this CLOCK_MONOTONIC time.
    FirstInstruction {
        monotonic_ns: u64,
    },
    /// What came of measures of performance mode.
    Perf {
        items: Vec<PerfItem>,
    },
    /// Where the vCPUs stand, as was asked.
    Registers {
        cpus: Vec<CpuDump>,
    },
    Ended {
        end: VmEnd,
        exits: Vec<(String, u64)>,
    },
}

/// Our ends of the machine's lines.
#[derive(Debug)]
pub struct Lines {
    pub console: OwnedFd,
    pub com2: OwnedFd,
    pub doorbell: OwnedFd,
    /// Frames of our VMM, or the emulator's monitor.
    pub events: OwnedFd,
    /// What the process itself prints.
    pub log: OwnedFd,
}

/// The machine's ends of the same lines, in the same order.
pub struct FarLines {
    pub console: OwnedFd,
    pub com2: OwnedFd,
    pub doorbell: OwnedFd,
    pub events: OwnedFd,
    pub log: OwnedFd,
}

/// A running VM.
#[derive(Debug)]
pub struct Machine {
    pub lines: Lines,
    /// Becomes readable when the process has ended.
    pub pidfd: OwnedFd,
    pid: i32,
    end: Option<End>,
    events: EventSource,
    stats: VmStats,
}

/// How events come out of the process.
#[derive(Debug)]
enum EventSource {
    Kvm(kvm::Events),
    Qemu(qemu::Monitor),
}

/// The process of our own VMM, not yet told what VM it is to run. It lives as long as the thread that started it.
#[derive(Debug)]
pub struct Waiting {
    machine: Machine,
    inherited: kvm::Inherited,
}

impl Waiting {
    pub fn start() -> Result<Self> {
        let (lines, far) = socket_lines().context(|| "make the sockets to the VM")?;
        let (pid, inherited) = kvm::start(&far)?;
        let machine = Machine::of(pid, lines, EventSource::Kvm(kvm::Events::default()))?;
        Ok(Self { machine, inherited })
    }

    /// Has it run this VM.
    pub fn boot(self, spec: &MachineSpec<'_>) -> Result<Machine> {
        kvm::configure(spec, self.inherited, &self.machine.lines.events)?;
        Ok(self.machine)
    }
}

impl Machine {
    /// Starts the emulator.
    pub fn emulate(spec: &MachineSpec<'_>) -> Result<Self> {
        let (lines, far) = socket_lines().context(|| "make the sockets to the VM")?;
        let pid = qemu::start(spec, &far)?;
        Self::of(pid, lines, EventSource::Qemu(qemu::Monitor::default()))
    }

    fn of(pid: i32, lines: Lines, events: EventSource) -> Result<Self> {
        let pidfd = match process::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                end_process(pid)?;
                return Err(error).context(|| format!("watch the VM's process {pid}"));
            }
        };
        Ok(Self { lines, pidfd, pid, end: None, events, stats: VmStats::default() })
    }

    /// Takes what the machine has told since the last call.
    pub fn take_events(&mut self) -> Result<Vec<MachineEvent>> {
        let mut bytes = Vec::new();
        read_all(&self.lines.events, &mut bytes)?;
        match &mut self.events {
            EventSource::Kvm(events) => events.feed(&bytes),
            EventSource::Qemu(monitor) => monitor.feed(&bytes, &self.lines.events),
        }
    }

    /// Asks where the vCPUs stand; the answer is an event.
    pub fn ask_registers(&mut self) -> Result<()> {
        let command: &[u8] = match &self.events {
            EventSource::Kvm(_) => &[COMMAND_DUMP],
            EventSource::Qemu(_) => hmp::ASK,
        };
        let line = self.lines.events.try_clone().map(File::from);
        line.and_then(|mut line| line.write_all(command)).context(|| "ask the VM for its registers")
    }

    /// Whether the process has ended, and how.
    pub fn poll_end(&mut self) -> Result<Option<End>> {
        if self.end.is_none() {
            self.end = process::wait(self.pid, false)
                .context(|| format!("wait for the VM's process {}", self.pid))?
                .map(|(_, end)| end);
        }
        Ok(self.end)
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends the process now, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if self.poll_end()?.is_none() {
            process::pidfd_signal(&self.pidfd, libc::SIGKILL)
                .context(|| format!("kill the VM's process {}", self.pid))?;
            poll::readable(&[self.pidfd.as_fd()], REAP_WAIT_MS).context(|| "wait for the VM's process")?;
            self.poll_end()?;
        }
        Ok(())
    }

    /// Looks at the process's memory, and keeps the largest of each kind.
    pub fn sample_memory(&mut self) {
        // The process may just have ended; then the last sample stands.
        if let Ok(smaps) = fs::read_to_string(format!("/proc/{}/smaps", self.pid)) {
            let (own_kib, guest_kib) = resident(&smaps);
            self.stats.own_kib = self.stats.own_kib.max(own_kib);
            self.stats.guest_kib = self.stats.guest_kib.max(guest_kib);
        }
    }

    /// Memory as sampled, with the exits that the machine told.
    pub fn stats(&self, exits: Vec<(String, u64)>) -> VmStats {
        VmStats { exits, ..self.stats.clone() }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            // A destructor cannot return it; the parent-death signal still ends the process with us.
            debug_assert!(false, "{error}");
        }
    }
}

/// For a process that never became a `Machine`.
fn end_process(pid: i32) -> Result<()> {
    process::kill(pid, libc::SIGKILL).context(|| format!("kill process {pid}"))?;
    process::wait(pid, true).context(|| format!("wait for process {pid}"))?;
    Ok(())
}

/// Five connected pairs; our ends do not block.
fn socket_lines() -> std::io::Result<(Lines, FarLines)> {
    let pair = || {
        let (near, far) = fd::socket_pair()?;
        fd::set_nonblocking(&near)?;
        Ok::<_, std::io::Error>((near, far))
    };
    let (console, far_console) = pair()?;
    let (com2, far_com2) = pair()?;
    let (doorbell, far_doorbell) = pair()?;
    let (events, far_events) = pair()?;
    let (log, far_log) = pair()?;
    let far =
        FarLines { console: far_console, com2: far_com2, doorbell: far_doorbell, events: far_events, log: far_log };
    Ok((Lines { console, com2, doorbell, events, log }, far))
}

/// Takes what a line holds now, at most a bounded amount per call.
pub fn read_all(line: &OwnedFd, into: &mut Vec<u8>) -> Result<()> {
    const MOST_BYTES: usize = 1 << 20;
    let mut buffer = [0; 16 * 1024];
    while into.len() < MOST_BYTES {
        match fd::read_available(line.as_fd(), &mut buffer) {
            Ok(None | Some(0)) => return Ok(()),
            Ok(Some(count)) => into.extend_from_slice(&buffer[..count]),
            // The other end was killed while bytes of ours were under way to it.
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(()),
            Err(error) => return Err(error).context(|| "read from the VM"),
        }
    }
    Ok(())
}

/// Names of the files whose mappings are guest memory: RAM (vmm/memory), and what is laid over it, whoever wrote the pages
/// since.
const GUEST_FILES: [&str; 4] = ["/memfd:ktstr-guest-ram", "/memfd:ktstr-initramfs", "/dev/zero", CACHE_DIRECTORY];

/// Resident memory in KiB of the process itself, and of the guest (Documentation/filesystems/proc.rst, smaps).
fn resident(smaps: &str) -> (u64, u64) {
    let (mut own, mut guest, mut of_guest) = (0, 0, false);
    for line in smaps.lines() {
        let kib = |name: &str| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok();
        let resident = ["Rss:", "Shared_Hugetlb:", "Private_Hugetlb:"].iter().find_map(|name| kib(name));
        match resident {
            Some(kib) if of_guest => guest += kib,
            Some(kib) => own += kib,
            // A mapping's first line begins with its addresses, the others with a name and a colon.
            None if line.split(' ').next().is_some_and(|word| word.contains('-')) => {
                of_guest = GUEST_FILES.iter().any(|name| line.contains(name));
            }
            None => {}
        }
    }
    (own, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_guest_are_told_from_the_process_s_own() {
        let smaps = "7f00-7f80 rw-s 00000000 00:01 1  /memfd:ktstr-guest-ram (deleted)\nSize: 900 kB\nRss:   100 kB\n\
                     Shared_Hugetlb:  2048 kB\nVmFlags: rd wr\n\
                     7f90-7f98 rw-p 00000000 00:05 4  /dev/zero\nRss: 64 kB\n\
                     7f80-7f90 rw-p 00001000 00:02 2  /c/ktstr/unpacked/1-2.kernel\nRss: 30 kB\n\
                     7f90-7fa0 r-xp 00000000 00:02 3  /usr/bin/ktstr\nRss:    7 kB\nPss: 5 kB\n\
                     7fb0-7fc0 rw-p 00000000 00:00 0 \nRss: 3 kB\n";
        assert_eq!(resident(smaps), (10, 2242));
        assert_eq!(resident(""), (0, 0));
    }

    #[test]
    fn reading_stops_at_the_end_and_when_empty() {
        let (lines, far) = socket_lines().unwrap();
        let mut bytes = Vec::new();
        read_all(&lines.console, &mut bytes).unwrap();
        assert!(bytes.is_empty());
        std::io::Write::write_all(&mut File::from(far.console), b"abc").unwrap();
        read_all(&lines.console, &mut bytes).unwrap();
        assert_eq!(bytes, b"abc");
    }
}
