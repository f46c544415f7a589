//! Many VMs at once: how long they take together, and what memory each more takes.
//!
//! Owns the script and its figures; leaves the emulated host and its tries to main.rs.
//! Invariant: a figure of memory is told with the number of VMs that there were.

use super::{Host, alone, cell, chosen, fill_cache};

const VMS: [u32; 5] = [1, 2, 4, 8, 16];
/// What is shared is looked at in the second of every so many looks at the rest: the kernel walks over all pages of all VMs
/// for it.
const SHARED_EVERY: u32 = 6;

/// How long the scheduler of an emulated host lets a task run (base_slice_ns). By itself that is 1.4 ms there, with which none
/// of sixteen guests came to PID 1 within 250 s, though each had got three times the CPU time that one alone needs; with this
/// all had ended after 193 s. Probably it is what the emulator has to fill again after each change of the guest.
const EMULATED_SLICE_NS: u64 = 20_000_000;

/// Guests that idle. A VM's process counts from when it has its memory on. Memory is what MemAvailable has fallen by at its
/// lowest, with the VMs that there are then, as of many some have ended before others begin; only where as many were counted
/// after it as before, since counting takes seconds of a full host. Not given back is what it has not come back to when the
/// last is gone; shared is what the processes of the VMs map that others map, too.
fn script(vms: u32, host: Host) -> String {
    let mut script = match host {
        Host::Hardware => String::new(),
        Host::Emulated { .. } => format!("echo {EMULATED_SLICE_NS} >/sys/kernel/debug/sched/base_slice_ns\n"),
    };
    script.push_str(
        "free() { awk '/MemAvailable/ { print $2 }' /proc/meminfo; }\n\
         vms() { for vm in $(grep -ls __vm /proc/[0-9]*/cmdline); do \
         grep -qs ktstr-guest-ram ${vm%/cmdline}/maps && echo $vm; done; }\n\
         shared() { for vm in $(vms); do cat ${vm%/cmdline}/smaps_rollup; done \
         2>/dev/null | awk '/^Shared_(Clean|Dirty)/ { sum += $2 } END { print sum + 0 }'; }\n",
    );
    fill_cache(&mut script);
    let run = "ktstr -q --kernel /k/7/vmlinuz --accel kvm --topo 1 --cgroups 1 --workers 1 \
               --work 'bursty(burst=1ms,sleep=1s)' --check none --duration 3s --timeout 600s >/dev/null 2>&1";
    // Each that has ended leaves a line; a shell's list of jobs is not the same everywhere.
    let command = format!(
        "ended=$(mktemp); look=0; before=$(free); least=$before; most=0; alive=0; counted=0; \
         start=$(awk '{{ print $1 }}' /proc/uptime); \
         for i in $(seq {vms}); do ({run}; echo $? >>$ended) & done; \
         while [ $(wc -l <$ended) -lt {vms} ]; do now=$(free); were=$counted; counted=$(vms | wc -l); \
         [ $counted = $were ] && [ $now -lt $least ] && least=$now && alive=$counted; \
         look=$((look + 1)); if [ $((look % {SHARED_EVERY})) = 2 ]; then now=$(shared); \
         [ $now -gt $most ] && most=$now; fi; sleep 0.5; done; \
         wait; end=$(awk '{{ print $1 }}' /proc/uptime); sleep 1; \
         echo \"$start $end $((before - least)) $(grep -vxc 0 $ended) $most $((before - $(free))) $alive\"; rm $ended"
    );
    cell(&mut script, &vms.to_string(), &command);
    script
}

pub fn tell(host: Host) {
    println!(
        "\nVMs at once, of 256 MiB, idle: wall time; memory of the host for each, shared for each, and not given back"
    );
    if host != Host::Hardware {
        println!("  the emulated host's scheduler has slices of {} ms", EMULATED_SLICE_NS / 1_000_000);
    }
    let mut before: Option<(f64, f64)> = None;
    for vms in VMS.into_iter().filter(|vms| chosen("VMS", &vms.to_string())) {
        let numbers = |text: &str| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<f64>>();
        // Of many some are spoiled nearly always, which is told: a result is one all the same.
        let ended = |text: &str| numbers(text).get(6).is_some_and(|alive| *alive > 0.0);
        let (text, tried) = alone(&vms.to_string(), &script(vms, host), host, ended);
        let [start, end, kib, failed, shared_kib, left_kib, alive] = numbers(&text)[..] else {
            println!("  {vms:3} VMs: no result, {tried}");
            continue;
        };
        let all_mib = kib / 1024.0;
        let extra = before.filter(|(fewer, _)| *fewer < alive).map_or_else(String::new, |(fewer, mib)| {
            format!(", each more {:.1} MiB", (all_mib - mib) / (alive - fewer))
        });
        let lost = if failed > 0.0 { format!(", {failed} did not pass") } else { String::new() };
        let (took, each) = (end - start, all_mib / alive);
        let (shared, left) = (shared_kib / 1024.0 / alive, left_kib / 1024.0);
        println!(
            "  {vms:3} VMs: {took:7.1} s, {each:6.1} MiB each of {alive}{extra}; {shared:.1} MiB shared, {left:.1} MiB left\
             {lost}, {tried}"
        );
        before = Some((alive, all_mib));
    }
}
