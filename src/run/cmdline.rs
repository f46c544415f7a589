//! The guest kernel's command line.
//!
//! Owns the words and why each is there; leaves what a user appends to the user.
//! Invariant: the user's words come last, so that they win.

use super::accel::AccelKind;
use super::detectors::Detectors;
use crate::channel;
use crate::proto::seen::LATE_CPUS_VARIABLE;
use crate::scenario::EMULATED_WORD;

/// On every guest's command line: (word, why). Names: Documentation/admin-guide/kernel-parameters.txt.
const WORDS: [(&str, &str); 16] = [
    ("console=ttyS0,115200", "the console is COM1, at the rate that makes the driver wait least"),
    ("rdinit=/init", "PID 1 is this binary"),
    ("panic=-1", "a panic restarts at once, which ends the VM"),
    ("nokaslr", "addresses in a report can be looked up, and there is nothing to protect"),
    ("random.trust_cpu=on", "no wait for entropy"),
    ("no_timer_check", "the virtual timer works, its check takes time"),
    ("i8042.noaux", "no probing of a mouse that is not there"),
    ("i8042.nomux", "nor of a multiplexer"),
    ("i8042.nopnp", "nor through PNP"),
    ("i8042.dumbkbd", "nor by keyboard commands"),
    ("cryptomgr.notests", "no self-tests of ciphers"),
    ("schedstats=enable", "run delay is measured from schedstat"),
    ("log_buf_len=1M", "the whole log is kept until PID 1 reads it"),
    ("printk.time=1", "console and log can be put in order"),
    ("audit=0", "no audit records in the log"),
    ("tsc=reliable", "no clocksource watchdog, which a busy host makes fire"),
];

/// Above so many, the emulator's CPUs come up one after another behind the boot. Until the kernel has its clocksource, each CPU
/// that is up ticks, HZ times a second; the emulator serves them all with one thread, and many leave it next to no time for
/// anything else. At once 32 took 14 s to PID 1 and 120 took 214 and 268 s, about with their square; one after another 120
/// took 141 and 152 s with another VM beside them, 103 s alone with a shell as PID 1, and 252 alone 331 s (Linux 7.2, QEMU 7.2
/// and 10, in one afternoon on two CPUs of an EPYC). Between 32 and 120 the two ways were not compared.
const MOST_CPUS_AT_ONCE_EMULATED: u32 = 64;
/// Words of a user who decides on the CPUs: theirs alone count. The last two mean less to a kernel that sees one CPU at its
/// boot, which it then keeps for itself (kernel/sched/isolation.c).
const CPUS_DECIDED: [&str; 5] = ["maxcpus=", "nosmp", "nosmt", "isolcpus=", "nohz_full="];

/// What differs from run to run.
pub struct Words<'a> {
    pub accel: AccelKind,
    pub vcpus: u32,
    /// GPA and bytes of the ring.
    pub ring: (u64, u64),
    pub force_serial: bool,
    /// When the kernel's own detectors fire.
    pub detectors: Detectors,
    /// Some APIC ids are above 254, where KVM's I/O APIC cannot send interrupts.
    pub wide_apic_ids: bool,
    /// The initramfs is a file that VMs share as long as they do not write it.
    pub shared_initramfs: bool,
    /// The whole console instead of warnings only.
    pub verbose: bool,
    pub user: &'a str,
}

/// The complete command line.
pub fn build(words: &Words<'_>) -> String {
    let mut line: Vec<String> = WORDS.iter().map(|(word, _)| (*word).to_owned()).collect();
    line.extend(words.detectors.words());
    line.push(if words.verbose { "ignore_loglevel".into() } else { "quiet".into() });
    let (base, bytes) = words.ring;
    line.push(format!("{}={base:#x},{bytes:#x}", channel::PARAM_RING));
    match words.accel {
        // Our machine has no PCI bus, and an i8042 whose only use is the reset.
        AccelKind::Kvm => line.extend(["pci=off".into(), "reboot=k".into()]),
        // The emulator's firmware knows nothing of the ring; its power-off goes through ACPI. No reset by a triple fault
        // (reboot=t), so that one which happens means what it says.
        AccelKind::Qemu => {
            line.extend([format!("memmap={bytes:#x}${base:#x}"), "reboot=k".into(), EMULATED_WORD.into()]);
            let decided = |word: &str| CPUS_DECIDED.iter().any(|theirs| word.contains(theirs));
            if words.vcpus > MOST_CPUS_AT_ONCE_EMULATED && !words.user.split_whitespace().any(decided) {
                line.extend(["maxcpus=1".into(), format!("{LATE_CPUS_VARIABLE}=1")]);
            }
        }
    }
    line.extend(words.wide_apic_ids.then(|| "irqaffinity=0".into()));
    // A kernel that gives its initramfs back writes over all of it first (free_reserved_area).
    line.extend(words.shared_initramfs.then(|| "retain_initrd".into()));
    if words.force_serial {
        line.push(format!("{}=serial", channel::PARAM_CHANNEL));
    }
    line.extend((!words.user.trim().is_empty()).then(|| words.user.trim().to_owned()));
    line.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(accel: AccelKind) -> Words<'static> {
        Words {
            accel,
            vcpus: 64,
            ring: (0xe00_0000, 0x10_0000),
            force_serial: false,
            detectors: Detectors { rcu_s: 60, soft_s: 90, workqueue_s: 109, hung_task_s: 120 },
            wide_apic_ids: false,
            shared_initramfs: false,
            verbose: false,
            user: " panic=5 ",
        }
    }

    #[test]
    fn ring_is_named_and_the_user_has_the_last_word() {
        let line = build(&words(AccelKind::Kvm));
        assert!(line.contains("ktstr.ring=0xe000000,0x100000"), "{line}");
        assert!(line.ends_with(" panic=5"), "{line}");
        assert!(line.contains(" rcupdate.rcu_cpu_stall_timeout=60 watchdog_thresh=45 "), "{line}");
        assert!(!line.contains("memmap=") && !line.contains("ktstr.channel"));
    }

    #[test]
    fn emulator_reserves_the_ring_by_memmap() {
        assert!(build(&words(AccelKind::Qemu)).contains("memmap=0x100000$0xe000000"));
    }

    #[test]
    fn many_emulated_cpus_come_up_behind_the_boot_unless_the_user_decides() {
        let line = |accel, vcpus, user| build(&Words { vcpus, user, ..words(accel) });
        assert!(line(AccelKind::Qemu, 65, "").ends_with(" maxcpus=1 ktstr_late_cpus=1"));
        let others = [
            line(AccelKind::Qemu, 64, ""),
            line(AccelKind::Kvm, 65, ""),
            line(AccelKind::Qemu, 65, "quiet maxcpus=7"),
            line(AccelKind::Qemu, 65, "nosmp"),
            line(AccelKind::Qemu, 65, "nosmt=force quiet"),
            line(AccelKind::Qemu, 65, "mitigations=auto,nosmt"),
            line(AccelKind::Qemu, 65, "isolcpus=0"),
            line(AccelKind::Qemu, 65, "nohz_full=0-3"),
        ];
        for line in others {
            assert!(!line.contains("maxcpus=1") && !line.contains(LATE_CPUS_VARIABLE), "{line}");
        }
    }

    #[test]
    fn shared_initramfs_is_retained() {
        assert!(build(&Words { shared_initramfs: true, ..words(AccelKind::Kvm) }).contains(" retain_initrd "));
        assert!(!build(&words(AccelKind::Kvm)).contains("retain_initrd"));
    }

    #[test]
    fn serial_can_be_forced() {
        let line = build(&Words { force_serial: true, ..words(AccelKind::Kvm) });
        assert!(line.contains("ktstr.channel=serial"));
    }

    #[test]
    fn no_word_stands_twice() {
        let names: std::collections::BTreeSet<_> = WORDS.iter().map(|(word, _)| word).collect();
        assert_eq!(names.len(), WORDS.len());
    }
}
