//! Performance mode as planned on the host: which CPU each vCPU gets, which nodes, which pages.
//!
//! Owns the choice and the reasons against it; leaves carrying it out to vmm/perf.
//! Invariant: a vCPU is pinned to a CPU of its own or not at all, and one CPU stays free of real-time vCPUs.

use super::accel::AccelKind;
use super::host_cpus::{self, HostCpu};
use crate::error::{Context, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::perf::{HLT_EXITS, HUGE_PAGES, NAMES, PAUSE_EXITS, PINNING, PerfItem, REALTIME_HINT, SCHED_FIFO};
use crate::proto::topology::Topology;
use crate::sys::mmap::Mapping;
use crate::sys::{fd, sched};
use crate::units::size;
use crate::vmm::config::PerfConfig;
use crate::vmm::x86::layout::HUGE_PAGE_BYTES;
use std::cmp::Reverse;
use std::fs::{self, File};
use std::path::Path;

/// What the VM is to do, and what is known already to be out of the question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub config: PerfConfig,
    pub refused: Vec<PerfItem>,
    /// Host CPUs that no vCPU gets.
    pub left: CpuSet,
}

/// Plans for a run: on the CPUs that this process may use; the emulator's threads are not ours to place.
pub fn for_run(topology: &Topology, accel: AccelKind) -> Result<Plan> {
    if accel == AccelKind::Qemu {
        let why = "the guest is emulated, and an emulator's CPUs are not placed";
        let refused = NAMES.iter().map(|name| PerfItem::refused(name, why)).collect();
        return Ok(Plan { refused, ..Plan::default() });
    }
    let allowed = sched::affinity(0).context(|| "read which CPUs this process may use")?;
    Ok(plan(topology, &host_cpus::read(Path::new(host_cpus::SYSFS), &allowed)))
}

/// The memory file of the guest: of huge pages where performance mode is on and there are enough.
pub fn guest_ram(bytes: u64, plan: Option<&mut Plan>) -> Result<File> {
    if let Some(plan) = plan.filter(|plan| plan.applies()) {
        match huge_memory(bytes) {
            Ok(file) => {
                plan.config.huge_pages = true;
                return Ok(file);
            }
            Err(why) => plan.refused.push(PerfItem::refused(HUGE_PAGES, why)),
        }
    }
    fd::memfd("ktstr-guest-ram", bytes).context(|| format!("reserve {} of guest memory", size(bytes)))
}

impl Plan {
    /// Whether there is anything for the VM to try.
    pub fn applies(&self) -> bool {
        self.refused.len() < NAMES.len()
    }

    /// Keeps this process off the CPUs of the vCPUs, and tells what was refused so far.
    pub fn take_refused(&mut self) -> Vec<PerfItem> {
        if let Some(error) = (!self.left.is_empty()).then(|| sched::set_affinity(0, &self.left).err()).flatten() {
            let why = format!("ktstr itself cannot be kept off the vCPUs' CPUs: {error}");
            self.refused.push(PerfItem::refused(PINNING, why));
        }
        std::mem::take(&mut self.refused)
    }
}

/// Plans for this shape on these CPUs.
pub fn plan(topology: &Topology, host: &[HostCpu]) -> Plan {
    let mut refused = Vec::new();
    let (pins, shared_llcs) = match pin(topology, host) {
        Ok(pinned) => pinned,
        Err(why) => {
            for name in [SCHED_FIFO, HLT_EXITS, PAUSE_EXITS, REALTIME_HINT] {
                refused.push(PerfItem::refused(name, format!("it needs pinned vCPUs: {why}")));
            }
            refused.push(PerfItem::refused(PINNING, why));
            (Vec::new(), false)
        }
    };
    let left: CpuSet = host.iter().map(|cpu| cpu.cpu).filter(|cpu| !pins.contains(cpu)).collect();
    let mut realtime = !pins.is_empty();
    if realtime && left.is_empty() {
        realtime = false;
        let why = format!("no CPU would be left for the host: {} vCPUs on {} CPUs", pins.len(), host.len());
        refused.push(PerfItem::refused(SCHED_FIFO, why));
    }
    let used = || host.iter().filter(|cpu| pins.is_empty() || pins.contains(&cpu.cpu));
    let mut nodes: Vec<u32> = used().map(|cpu| cpu.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let others = if left.is_empty() { Vec::new() } else { left.iter().collect() };
    Plan { config: PerfConfig { pins, shared_llcs, realtime, nodes, others, huge_pages: false }, refused, left }
}

/// The host CPU of each vCPU, and whether guest LLCs have to share one of the host's.
fn pin(topology: &Topology, host: &[HostCpu]) -> std::result::Result<(Vec<u32>, bool), String> {
    let vcpus = topology.total_cpus() as usize;
    if vcpus > host.len() {
        return Err(format!("{vcpus} vCPUs, and {} host CPUs that may be used", host.len()));
    }
    // A guest of single-threaded cores gets whole cores first; one with threads gets siblings side by side.
    let order = |cpu: &HostCpu| match topology.threads_per_core {
        1 => (cpu.thread, cpu.core, cpu.cpu),
        _ => (0, cpu.core, cpu.cpu),
    };
    let mut free: Vec<Vec<&HostCpu>> = Vec::new();
    for cpu in host {
        match free.iter_mut().find(|llc| llc[0].llc == cpu.llc) {
            Some(llc) => llc.push(cpu),
            None => free.push(vec![cpu]),
        }
    }
    free.iter_mut().for_each(|llc| llc.sort_by_key(|cpu| order(cpu)));
    if let Some(pins) = pin_alone(topology, &free) {
        return Ok((pins, false));
    }
    free.sort_by_key(|llc| llc[0].cpu);
    Ok((free.iter().flatten().take(vcpus).map(|cpu| cpu.cpu).collect(), true))
}

/// Each guest LLC on a host LLC of its own; none where they do not all find one. The largest chooses first, and takes the
/// smallest that it fits in: whatever is then left for the next fits it, if any choice would.
fn pin_alone(topology: &Topology, free: &[Vec<&HostCpu>]) -> Option<Vec<u32>> {
    let cpus_of = |llc: u32| (topology.cores_of(llc) * topology.threads_per_core) as usize;
    let mut free: Vec<&[&HostCpu]> = free.iter().map(Vec::as_slice).collect();
    free.sort_by_key(|llc| llc.len());
    let mut guest: Vec<u32> = (0..topology.llcs).collect();
    guest.sort_by_key(|llc| Reverse(cpus_of(*llc)));
    let mut chosen = vec![Vec::new(); topology.llcs as usize];
    for llc in guest {
        let at = free.iter().position(|host| host.len() >= cpus_of(llc))?;
        chosen[llc as usize] = free.remove(at).iter().take(cpus_of(llc)).map(|cpu| cpu.cpu).collect();
    }
    Some(chosen.concat())
}

/// Guest memory in 2 MiB pages of the reserved pool, where it has enough; else why not.
fn huge_memory(bytes: u64) -> std::result::Result<File, String> {
    if bytes % HUGE_PAGE_BYTES != 0 {
        return Err(format!("{} of guest memory are no whole number of 2 MiB pages", size(bytes)));
    }
    let file = fd::memfd_huge("ktstr-guest-ram", bytes).map_err(|error| format!("memfd_create: {error}"))?;
    // Mapping reserves: it fails now, and not as a bus error of the VM.
    match Mapping::shared_file(&file, 0, bytes as usize) {
        Ok(_reserved) => Ok(file),
        Err(_) => {
            let free = meminfo("HugePages_Free").unwrap_or(0).saturating_sub(meminfo("HugePages_Rsvd").unwrap_or(0));
            let needed = bytes / HUGE_PAGE_BYTES;
            Err(format!("{needed} pages of 2 MiB are needed, {free} are free (sysctl vm.nr_hugepages={needed})"))
        }
    }
}

fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUs in LLCs of these sizes, two LLCs a node, cores of `threads`.
    fn host(sizes: &[u32], threads: u32) -> Vec<HostCpu> {
        let mut cpus = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let first = cpus.len() as u32;
            for offset in 0..*size {
                let cpu = first + offset;
                let (core, thread) = (cpu - offset % threads, offset % threads);
                cpus.push(HostCpu { cpu, llc: first, core, thread, node: index as u32 / 2 });
            }
        }
        cpus
    }
    fn pins(topology: &str, host: &[HostCpu]) -> Vec<u32> {
        plan(&topology.parse().unwrap(), host).config.pins
    }

    #[test]
    fn each_guest_llc_gets_a_host_llc_of_its_own() {
        let host = host(&[4, 4, 2], 1);
        let planned = plan(&"1n2l2c1t".parse().unwrap(), &host);
        assert_eq!(planned.config.pins, [8, 9, 0, 1], "the smallest that fits comes first");
        assert!(!planned.config.shared_llcs && planned.config.realtime && planned.refused.is_empty());
        assert_eq!((planned.left.len(), planned.config.nodes.as_slice()), (6, &[0, 1][..]));
        let shared = plan(&"1n4l2c1t".parse().unwrap(), &host);
        assert!(shared.config.shared_llcs);
        assert_eq!(shared.config.pins, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn guest_llcs_of_unequal_size_get_their_own_too() {
        let planned = plan(&"1n3l2+1+1c1t".parse().unwrap(), &host(&[4, 4, 4], 1));
        assert_eq!(planned.config.pins, [0, 1, 4, 8], "two on the first, and one on each of the others");
        assert!(!planned.config.shared_llcs);
        assert_eq!(planned.left.len(), 8);
        assert_eq!(pins("1n3l1+4+2c1t", &host(&[4, 1, 2], 1)), [4, 0, 1, 2, 3, 5, 6], "each has one that fits");
        assert!(plan(&"1n2l3+3c1t".parse().unwrap(), &host(&[5, 2], 1)).config.shared_llcs);
        assert_eq!(pins("2n0+2l2c1t", &host(&[2, 2], 1)), [0, 1, 2, 3], "a node without CPUs takes none");
    }

    #[test]
    fn guest_without_smt_gets_whole_cores_and_one_with_smt_siblings() {
        let host = host(&[8], 2);
        assert_eq!(pins("1n1l4c1t", &host), [0, 2, 4, 6]);
        assert_eq!(pins("1n1l2c2t", &host), [0, 1, 2, 3]);
    }

    #[test]
    fn too_few_cpus_refuse_what_builds_on_pinning() {
        let planned = plan(&Topology::flat(4), &host(&[2], 1));
        assert!(planned.config.pins.is_empty() && !planned.config.realtime);
        let names: Vec<_> = planned.refused.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, [SCHED_FIFO, HLT_EXITS, PAUSE_EXITS, REALTIME_HINT, PINNING]);
        assert!(planned.refused.iter().all(|item| item.detail.contains("4 vCPUs, and 2 host CPUs")));
    }

    #[test]
    fn last_cpu_is_never_given_to_a_real_time_vcpu() {
        let planned = plan(&Topology::flat(2), &host(&[2], 1));
        assert_eq!(planned.config.pins, [0, 1]);
        assert!(!planned.config.realtime && planned.left.is_empty());
        assert_eq!(planned.refused.len(), 1);
        assert!(planned.refused[0].detail.contains("no CPU would be left"));
    }

    #[test]
    fn odd_memory_and_a_missing_pool_are_told() {
        assert!(huge_memory(HUGE_PAGE_BYTES + (1 << 20)).unwrap_err().contains("no whole number"));
        // More than any pool has.
        let error = huge_memory(1 << 50).unwrap_err();
        assert!(error.contains("are needed") || error.contains("memfd_create"), "{error}");
    }
}
