//! Performance mode as carried out in the VM's process: memory policy, pages, exits, CPUID hint, threads.
//!
//! Owns trying each measure and reading it back; leaves the choice of CPUs and nodes to run/perf.
//! Invariant: a measure counts as in effect only where it was read back or KVM accepted it; a refusal never ends the run.

use super::config::PerfConfig;
use super::kvm::Machine;
use super::memory;
use crate::proto::cpuset::CpuSet;
use crate::proto::perf::{
    HLT_EXITS, HUGE_PAGES, MEMORY_BINDING, PAUSE_EXITS, PINNING, PerfItem, REALTIME_HINT, SCHED_FIFO,
};
use crate::sys::sched;
use crate::units::size;
use kvm_bindings::{KVM_X86_DISABLE_EXITS_HLT, KVM_X86_DISABLE_EXITS_PAUSE, kvm_cpuid_entry2};
use std::fs;
use vm_memory::GuestMemoryMmap;

/// The lowest real-time priority: above every normal task, below everything that chose real time for itself.
const VCPU_PRIORITY: u32 = 1;
/// KVM_HINTS_REALTIME: leaf 0x40000001, EDX bit 0 (Documentation/virt/kvm/x86/cpuid.rst).
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const HINTS_REALTIME: u32 = 1;
const KIB: u64 = 1024;

/// Where guest memory lies: before anything touches it, and again for what was laid over it since.
pub fn bind_memory(memory: &GuestMemoryMmap, config: &PerfConfig) -> PerfItem {
    let nodes: CpuSet = config.nodes.iter().copied().collect();
    match memory::bind(memory, &nodes) {
        Ok(()) => PerfItem::done(MEMORY_BINDING, format!("guest memory is bound to host node {nodes}")),
        Err(error) => PerfItem::refused(MEMORY_BINDING, format!("mbind to host node {nodes}: {error}")),
    }
}

/// Before anything touches guest memory: where it lies, and in which pages.
pub fn prepare_memory(memory: &GuestMemoryMmap, config: &PerfConfig) -> Vec<PerfItem> {
    let mut items = vec![bind_memory(memory, config)];
    if !config.huge_pages {
        // Whether any came of it is seen at the end.
        items.extend(
            memory::ask_huge_pages(memory)
                .err()
                .map(|error| PerfItem::refused(HUGE_PAGES, format!("madvise: {error}"))),
        );
    }
    items
}

/// What of guest memory lies in huge pages now, from this process's smaps (Documentation/filesystems/proc.rst).
pub fn huge_pages() -> PerfItem {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let sum = |name: &str| -> u64 {
        let lines = smaps.lines().filter_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        lines.filter_map(|kib| kib.trim().parse::<u64>().ok()).sum()
    };
    let (pool, transparent) =
        (sum("Shared_Hugetlb:") + sum("Private_Hugetlb:"), sum("ShmemPmdMapped:") + sum("AnonHugePages:"));
    if pool + transparent > 0 {
        let from = if pool > 0 { "of the reserved pool" } else { "made transparently" };
        return PerfItem::done(HUGE_PAGES, format!("{} in 2 MiB pages {from}", size((pool + transparent) * KIB)));
    }
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = setting.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("absent", |(word, _)| word);
    PerfItem::refused(HUGE_PAGES, format!("transparent huge pages are '{chosen}'"))
}

/// Exits that a guest on CPUs of its own need not make.
pub fn disable_exits(machine: &Machine, config: &PerfConfig) -> Vec<PerfItem> {
    if config.pins.is_empty() {
        return Vec::new();
    }
    let offered = machine.exits_that_can_be_off();
    let wanted = [(HLT_EXITS, KVM_X86_DISABLE_EXITS_HLT), (PAUSE_EXITS, KVM_X86_DISABLE_EXITS_PAUSE)];
    let available = wanted.iter().map(|(_, bit)| bit & offered).fold(0, |all, bit| all | bit);
    let done = if available == 0 { Ok(()) } else { machine.turn_exits_off(available) };
    let item = |(name, bit): (&str, u32)| match &done {
        _ if offered & bit == 0 => PerfItem::refused(name, "this KVM does not offer it (KVM_CAP_X86_DISABLE_EXITS)"),
        // Of PAUSE nothing tells: KVM counts its exits only where it makes them.
        Ok(()) if name == PAUSE_EXITS => {
            PerfItem::done(name, "KVM accepted it; not observable from outside of the guest")
        }
        Ok(()) => PerfItem::done(name, "the guest does it without KVM"),
        Err(error) => PerfItem::refused(name, error.to_string()),
    };
    wanted.into_iter().map(item).collect()
}

/// Tells the guest that its vCPUs are never preempted for long, where there is a place to tell it.
pub fn hint_realtime(table: &mut [kvm_cpuid_entry2]) {
    let leaves = table.iter_mut().filter(|entry| entry.function == LEAF_KVM_FEATURES);
    leaves.for_each(|entry| entry.edx |= HINTS_REALTIME);
}

pub fn has_leaf(table: &[kvm_cpuid_entry2]) -> bool {
    table.iter().any(|entry| entry.function == LEAF_KVM_FEATURES)
}

/// The calling thread, which starts no vCPU any more, leaves the vCPUs' CPUs to them; a refusal is part of pinning.
pub fn keep_off(config: &PerfConfig) -> Option<PerfItem> {
    let others: CpuSet = config.others.iter().copied().collect();
    let error = (!others.is_empty()).then(|| sched::set_affinity(0, &others).err())??;
    Some(PerfItem::refused(PINNING, format!("the VM's own thread cannot be kept off the vCPUs' CPUs: {error}")))
}

pub fn hint_item(hinted: bool) -> PerfItem {
    match hinted {
        true => PerfItem::done(REALTIME_HINT, "CPUID leaf 0x40000001, EDX bit 0"),
        false => PerfItem::refused(REALTIME_HINT, "KVM's CPUID table has no leaf 0x40000001"),
    }
}

/// What one vCPU thread did for itself: none where it was not asked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadSetup {
    pub pinned: Option<Result<u32, String>>,
    pub realtime: Option<Result<(), String>>,
}

/// The calling thread becomes the one of this vCPU.
pub fn set_up_thread(config: &PerfConfig, cpu: u32) -> ThreadSetup {
    let pinned = config.pins.get(cpu as usize).map(|host_cpu| {
        let only: CpuSet = [*host_cpu].into_iter().collect();
        sched::set_affinity(0, &only).map_err(|error| format!("vCPU {cpu} on CPU {host_cpu}: {error}"))?;
        let now = sched::affinity(0).map_err(|error| format!("read the affinity of vCPU {cpu}: {error}"))?;
        if now == only { Ok(*host_cpu) } else { Err(format!("vCPU {cpu} was put on CPU {now}, not {host_cpu}")) }
    });
    let realtime = config.realtime.then(|| {
        sched::set_fifo(0, VCPU_PRIORITY).map_err(|error| format!("sched_setattr of vCPU {cpu}: {error}"))?;
        match sched::policy_number(0) {
            Ok(libc::SCHED_FIFO) => Ok(()),
            other => Err(format!("vCPU {cpu} has policy {other:?}")),
        }
    });
    ThreadSetup { pinned, realtime }
}

/// What all threads together came to.
pub fn thread_items(config: &PerfConfig, threads: &[ThreadSetup]) -> Vec<PerfItem> {
    let mut items = Vec::new();
    let pinned: Result<Vec<u32>, String> = threads.iter().filter_map(|thread| thread.pinned.clone()).collect();
    if !config.pins.is_empty() {
        items.push(match pinned {
            Ok(_) => {
                let pairs: Vec<String> =
                    config.pins.iter().enumerate().map(|(vcpu, cpu)| format!("{vcpu} on {cpu}")).collect();
                let llcs = if config.shared_llcs { "; guest LLCs share LLCs of the host" } else { "" };
                PerfItem::done(PINNING, format!("vCPU {}{llcs}", pairs.join(", ")))
            }
            Err(why) => PerfItem::refused(PINNING, why),
        });
    }
    if config.realtime {
        let failed = threads.iter().find_map(|thread| thread.realtime.clone()?.err());
        items.push(match failed {
            None => PerfItem::done(SCHED_FIFO, format!("priority {VCPU_PRIORITY}{}", throttled())),
            Some(why) => PerfItem::refused(SCHED_FIFO, format!("{why} (CAP_SYS_NICE or RLIMIT_RTPRIO allows it)")),
        });
    }
    items
}

/// Words for the share that the host keeps from real-time tasks (Documentation/scheduler/sched-rt-group.rst).
fn throttled() -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse::<i64>().ok();
    match (read("sched_rt_runtime_us"), read("sched_rt_period_us")) {
        (Some(runtime), Some(period)) if runtime >= 0 && runtime < period => {
            format!(
                "; the host keeps {} % from real-time tasks (kernel.sched_rt_runtime_us)",
                100 - runtime * 100 / period
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pins: &[u32], realtime: bool) -> PerfConfig {
        PerfConfig { pins: pins.to_vec(), realtime, ..PerfConfig::default() }
    }

    #[test]
    fn hint_needs_the_leaf_of_kvm() {
        let mut table = [kvm_cpuid_entry2 { function: LEAF_KVM_FEATURES, ..Default::default() }];
        hint_realtime(&mut table);
        assert!(has_leaf(&table) && table[0].edx == 1);
        assert!(!has_leaf(&[]) && !hint_item(false).in_effect);
    }

    #[test]
    fn one_thread_that_fails_refuses_the_measure_with_its_reason() {
        let good = ThreadSetup { pinned: Some(Ok(3)), realtime: Some(Ok(())) };
        let bad = ThreadSetup { pinned: Some(Ok(4)), realtime: Some(Err("no permission".into())) };
        let items = thread_items(&config(&[3, 4], true), &[good.clone(), bad]);
        assert_eq!((items[0].in_effect, items[0].detail.as_str()), (true, "vCPU 0 on 3, 1 on 4"));
        assert!(!items[1].in_effect && items[1].detail.contains("no permission"));
        assert!(thread_items(&config(&[], false), &[ThreadSetup::default()]).is_empty());
        assert!(thread_items(&config(&[3], true), &[good])[1].in_effect);
    }

    #[test]
    fn pinned_thread_reads_its_cpu_back() {
        std::thread::spawn(|| {
            let cpu = sched::affinity(0).unwrap().iter().next().unwrap();
            let setup = set_up_thread(&config(&[cpu], false), 0);
            assert_eq!(setup, ThreadSetup { pinned: Some(Ok(cpu)), realtime: None });
            let refused = set_up_thread(&config(&[8000], false), 0);
            assert!(refused.pinned.unwrap().unwrap_err().contains("vCPU 0 on CPU 8000"));
        })
        .join()
        .unwrap();
    }
}
