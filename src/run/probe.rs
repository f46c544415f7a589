//! What this host can do: one fact a line, with the remedy where it cannot.
//!
//! Owns the facts and what a run needs of them; leaves printing to cli/ and the test of KVM to the caller, who passes it in.
//! Invariant: finding out changes nothing on the host; what cannot be read is a warning, never a guess.

use crate::error::Result;
use crate::sys;
use crate::units::{self, MIB};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The emulator that stands in for KVM.
pub const QEMU: &str = "qemu-system-x86_64";
/// How long `qemu --version` may take: it prints and leaves, so a longer wait means a broken installation.
const QEMU_VERSION_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two looks at a process that is about to end.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The smallest guest that boots a distribution's kernel, in MiB.
const MEMORY_FLOOR_MIB: u64 = 256;
/// Below this the guest's memory and the host's page cache begin to compete, in MiB.
const MEMORY_COMFORT_MIB: u64 = 1024;

/// How a fact bears on a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    /// A run is possible, but something is worse than it could be.
    Warn,
    /// What this is about cannot be used.
    Missing,
}

/// One fact about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub name: &'static str,
    pub state: State,
    pub text: String,
    pub remedy: Option<String>,
}

impl Fact {
    fn new(name: &'static str, state: State, text: impl Into<String>) -> Self {
        Self { name, state, text: text.into(), remedy: None }
    }
    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

const KERNEL: &str = "kernel";
const KVM: &str = "kvm";
const VIRTUALIZATION: &str = "virtualization";
const EMULATOR: &str = "qemu";
const CPUS: &str = "cpus";
const MEMORY: &str = "memory";
const SHARED_MEMORY: &str = "memfd";
const HUGE_PAGES: &str = "hugepages";
const CGROUP: &str = "cgroup";

/// Looks at everything. `kvm_check` runs a throwaway VM.
pub fn host_facts(kvm_check: &dyn Fn() -> Result<()>) -> Vec<Fact> {
    let kvm = kvm_check();
    let kvm_works = kvm.is_ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let qemu = find_program(QEMU, std::env::split_paths(&path), &is_executable);
    let qemu_works = qemu.is_some();
    vec![
        reading(KERNEL, "/proc/sys/kernel/osrelease", |text| kernel(text, std::env::consts::ARCH)),
        kvm_fact(kvm, qemu_works),
        reading(VIRTUALIZATION, "/proc/cpuinfo", |text| virtualization(text, kvm_works)),
        emulator(qemu.as_deref().map(|program| (program, qemu_version(program))), kvm_works),
        cpus(sys::sched::affinity(0).map(|set| set.len() as u32).unwrap_or(0), sys::sched::online_cpus()),
        reading(MEMORY, "/proc/meminfo", memory),
        shared_memory(sys::fd::memfd("ktstr-probe", MIB).map(drop)),
        reading(HUGE_PAGES, "/proc/meminfo", |meminfo| {
            let file = "/sys/kernel/mm/transparent_hugepage/enabled";
            huge_pages(meminfo, std::fs::read_to_string(file).unwrap_or_default().as_str())
        }),
        reading(CGROUP, "/proc/self/mounts", cgroup),
    ]
}

/// What would run a guest here, or why nothing would.
pub fn runs_with(facts: &[Fact]) -> std::result::Result<&'static str, String> {
    let usable = |name: &str| facts.iter().any(|fact| fact.name == name && fact.state == State::Ok);
    for needed in [KERNEL, MEMORY, SHARED_MEMORY] {
        if let Some(fact) = facts.iter().find(|fact| fact.name == needed && fact.state == State::Missing) {
            return Err(format!("{}: {}", fact.name, fact.text));
        }
    }
    match (usable(KVM), usable(EMULATOR)) {
        (true, _) => Ok("KVM"),
        (false, true) => Ok("QEMU's emulation"),
        (false, false) => Err(format!("neither KVM nor {QEMU} can be used")),
    }
}

/// A fact from one file of the kernel's; where it cannot be read, that is the fact.
fn reading(name: &'static str, file: &str, judge: impl FnOnce(&str) -> Fact) -> Fact {
    match std::fs::read_to_string(file) {
        Ok(text) => judge(&text),
        Err(error) => Fact::new(name, State::Warn, format!("unknown: cannot read {file}: {error}")),
    }
}

fn kernel(release: &str, arch: &str) -> Fact {
    let text = format!("Linux {} on {arch}", release.trim());
    match arch {
        "x86_64" => Fact::new(KERNEL, State::Ok, text),
        _ => Fact::new(KERNEL, State::Missing, text).remedy("use an x86_64 host: other machines are not supported"),
    }
}

fn kvm_fact(check: Result<()>, qemu_works: bool) -> Fact {
    match check {
        Ok(()) => Fact::new(KVM, State::Ok, "usable: a test VM ran"),
        Err(error) => {
            let state = if qemu_works { State::Warn } else { State::Missing };
            let fact = Fact::new(KVM, state, error.message());
            match error.hint_text() {
                Some(hint) => fact.remedy(hint),
                None => fact,
            }
        }
    }
}

/// Hardware virtualization and nesting, from /proc/cpuinfo.
fn virtualization(cpuinfo: &str, kvm_works: bool) -> Fact {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let (hardware, nested) = (has("vmx") || has("svm"), has("hypervisor"));
    let kind = match (has("vmx"), has("svm")) {
        (true, _) => "Intel VT-x (vmx)",
        (_, true) => "AMD-V (svm)",
        _ => "no vmx and no svm in the CPU's flags",
    };
    let place = if nested { "; this host is itself a virtual machine" } else { "" };
    let state = if hardware || kvm_works { State::Ok } else { State::Warn };
    let fact = Fact::new(VIRTUALIZATION, state, format!("{kind}{place}"));
    match (state, nested) {
        (State::Ok, _) => fact,
        (_, true) => fact.remedy(
            "let the host of this virtual machine pass it on: nested=1 for its kvm_intel or kvm_amd, and this VM's CPU \
             as 'host'; or use a bare-metal machine",
        ),
        (_, false) => fact.remedy("turn on VT-x or AMD-V (SVM) in the firmware's set-up"),
    }
}

fn emulator(found: Option<(&Path, std::result::Result<String, String>)>, kvm_works: bool) -> Fact {
    const INSTALL: &str =
        "apt-get install qemu-system-x86, dnf install qemu-system-x86-core, or pacman -S qemu-system-x86";
    match found {
        Some((program, Ok(version))) => Fact::new(EMULATOR, State::Ok, format!("{version} at {}", program.display())),
        Some((program, Err(why))) => {
            Fact::new(EMULATOR, State::Missing, format!("{} does not work: {why}", program.display()))
                .remedy(format!("install it again: {INSTALL}"))
        }
        None if kvm_works => {
            Fact::new(EMULATOR, State::Warn, "not installed; not needed where KVM works").remedy(INSTALL)
        }
        None => Fact::new(EMULATOR, State::Missing, format!("{QEMU} is not in PATH")).remedy(INSTALL),
    }
}

fn cpus(allowed: u32, online: u32) -> Fact {
    match allowed {
        0 => Fact::new(CPUS, State::Warn, format!("unknown: cannot read this process's affinity; {online} online")),
        1 => Fact::new(CPUS, State::Warn, format!("1 of {online} online: the guest's CPUs take turns on it"))
            .remedy("allow more CPUs (taskset, cpuset): times measured with several vCPUs on one CPU are coarse"),
        _ => Fact::new(CPUS, State::Ok, format!("{allowed} of {online} online")),
    }
}

/// The value of a line of /proc/meminfo, in its own unit (kB, or a count).
fn meminfo_value(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn memory(meminfo: &str) -> Fact {
    let Some(available_kib) = meminfo_value(meminfo, "MemAvailable") else {
        return Fact::new(MEMORY, State::Warn, "unknown: /proc/meminfo has no MemAvailable");
    };
    let text = format!("{} available", units::size(available_kib * 1024));
    let available_mib = available_kib / 1024;
    if available_mib >= MEMORY_COMFORT_MIB {
        return Fact::new(MEMORY, State::Ok, text);
    }
    let state = if available_mib < MEMORY_FLOOR_MIB { State::Missing } else { State::Warn };
    Fact::new(MEMORY, state, text)
        .remedy(format!("free some: the smallest guest takes {MEMORY_FLOOR_MIB} MiB, and several at a time need more"))
}

fn shared_memory(made: std::io::Result<()>) -> Fact {
    match made {
        Ok(()) => Fact::new(SHARED_MEMORY, State::Ok, "memfd_create works: the guest's memory can be shared"),
        Err(error) => Fact::new(SHARED_MEMORY, State::Missing, format!("memfd_create fails: {error}"))
            .remedy("allow memfd_create in the container's seccomp profile"),
    }
}

/// The chosen word of a kernel setting such as `always [madvise] never`.
fn chosen_word(setting: &str) -> Option<&str> {
    setting.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

/// Information only: nothing needs huge pages.
fn huge_pages(meminfo: &str, setting: &str) -> Fact {
    let reserved = match (meminfo_value(meminfo, "HugePages_Free"), meminfo_value(meminfo, "Hugepagesize")) {
        (Some(free), Some(kib)) => format!("{free} free of {}", units::size(kib * 1024)),
        _ => "not supported by this kernel".into(),
    };
    let transparent = chosen_word(setting).unwrap_or("not supported");
    Fact::new(HUGE_PAGES, State::Ok, format!("{reserved}; transparent: {transparent}; none are needed"))
}

/// Information only: the guest has cgroups of its own.
fn cgroup(mounts: &str) -> Fact {
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(at)
    });
    Fact::new(
        CGROUP,
        State::Ok,
        match mounted {
            Some(at) => format!("version 2 at {at}"),
            None => "no version 2 on this host; the guest has its own, so runs are not affected".into(),
        },
    )
}

/// The first file of this name in the directories that `usable` accepts.
pub fn find_program(
    name: &str,
    directories: impl IntoIterator<Item = PathBuf>,
    usable: &dyn Fn(&Path) -> bool,
) -> Option<PathBuf> {
    directories
        .into_iter()
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| usable(candidate))
}

/// Whether this is a file with an execute bit.
pub fn is_executable(path: &Path) -> bool {
    /// Execute for user, group or others (stat(2), inode(7)).
    const ANY_EXECUTE: u32 = 0o111;
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & ANY_EXECUTE != 0)
}

/// `QEMU 10.0.2`, from what `--version` prints.
pub fn qemu_version(program: &Path) -> std::result::Result<String, String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let deadline = Instant::now() + QEMU_VERSION_DEADLINE;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(_) => break,
            None if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
            None => {
                let killed = child.kill().and_then(|()| child.wait());
                let after = if killed.is_err() { ", and cannot be killed" } else { "" };
                return Err(format!("--version did not end within {} s{after}", QEMU_VERSION_DEADLINE.as_secs()));
            }
        }
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("--version ended with {}", output.status));
    }
    version_line(&String::from_utf8_lossy(&output.stdout))
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)` is `QEMU 7.2.22`.
fn version_line(text: &str) -> std::result::Result<String, String> {
    let version = text.split_once("version ").and_then(|(_, rest)| rest.split_whitespace().next());
    version.map(|version| format!("QEMU {version}")).ok_or_else(|| "--version prints no version".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const MEMINFO: &str = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:    2097152 kB\n\
                           HugePages_Total:       4\nHugePages_Free:        3\nHugepagesize:       2048 kB\n";

    #[test]
    fn memory_below_the_floor_is_missing_and_little_is_a_warning() {
        assert_eq!(memory(MEMINFO).state, State::Ok);
        assert_eq!(memory(MEMINFO).text, "2 GiB available");
        let of = |kib: u64| memory(&format!("MemAvailable: {kib} kB\n"));
        assert_eq!(of(512 * 1024).state, State::Warn);
        assert_eq!(of(100 * 1024).state, State::Missing);
        assert!(of(100 * 1024).remedy.unwrap().contains("256 MiB"));
        assert!(memory("MemTotal: 5 kB\n").text.starts_with("unknown"));
    }

    #[test]
    fn virtualization_tells_nested_from_bare_metal() {
        let of = |flags: &str, kvm| virtualization(&format!("processor : 0\nflags\t\t: fpu {flags} sse\n"), kvm);
        assert_eq!(of("vmx", false).text, "Intel VT-x (vmx)");
        assert_eq!(of("svm hypervisor", true).text, "AMD-V (svm); this host is itself a virtual machine");
        let nested = of("hypervisor", false);
        assert_eq!(nested.state, State::Warn);
        assert!(nested.remedy.unwrap().contains("nested=1"));
        assert!(of("", false).remedy.unwrap().contains("firmware"));
        assert_eq!(of("", true).state, State::Ok);
        // A flag is a whole word.
        assert_eq!(of("svm_lock", false).state, State::Warn);
    }

    #[test]
    fn emulator_matters_only_where_kvm_fails() {
        let program = Path::new("/usr/bin/qemu-system-x86_64");
        assert_eq!(emulator(Some((program, Ok("QEMU 7.2".into()))), false).state, State::Ok);
        assert_eq!(emulator(None, true).state, State::Warn);
        assert_eq!(emulator(None, false).state, State::Missing);
        assert!(emulator(None, false).remedy.unwrap().contains("apt-get install"));
        assert!(emulator(Some((program, Err("broken".into()))), true).text.contains("broken"));
    }

    #[test]
    fn kvm_failure_shows_its_reason_and_hint() {
        let refused = || Err(Error::host("cannot open /dev/kvm: permission denied (errno 13)").hint("join group kvm"));
        assert_eq!(kvm_fact(Ok(()), false).state, State::Ok);
        let fact = kvm_fact(refused(), false);
        assert_eq!((fact.state, fact.remedy.as_deref()), (State::Missing, Some("join group kvm")));
        assert!(fact.text.contains("errno 13"));
        assert_eq!(kvm_fact(refused(), true).state, State::Warn);
    }

    #[test]
    fn a_run_needs_kvm_or_qemu_and_memory() {
        let facts = |kvm, qemu, memory| {
            vec![Fact::new(KVM, kvm, ""), Fact::new(EMULATOR, qemu, ""), Fact::new(MEMORY, memory, "1 KiB available")]
        };
        use State::{Missing, Ok as Good, Warn};
        assert_eq!(runs_with(&facts(Good, Warn, Good)), Ok("KVM"));
        assert_eq!(runs_with(&facts(Warn, Good, Warn)), Ok("QEMU's emulation"));
        assert!(runs_with(&facts(Missing, Missing, Good)).unwrap_err().contains("neither"));
        assert_eq!(runs_with(&facts(Good, Good, Missing)), Err("memory: 1 KiB available".into()));
    }

    #[test]
    fn huge_pages_and_cgroup_inform() {
        assert_eq!(chosen_word("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen_word(""), None);
        let text = huge_pages(MEMINFO, "always [madvise] never\n").text;
        assert_eq!(text, "3 free of 2 MiB; transparent: madvise; none are needed");
        assert!(huge_pages("", "").text.starts_with("not supported"));
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(cgroup(mounts).text, "version 2 at /sys/fs/cgroup");
        assert!(cgroup("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n").text.contains("not affected"));
    }

    #[test]
    fn one_cpu_and_foreign_machines_are_told() {
        assert_eq!(cpus(4, 8).text, "4 of 8 online");
        assert_eq!(cpus(1, 8).state, State::Warn);
        assert!(cpus(0, 8).text.contains("unknown"));
        assert_eq!(kernel("7.2.13\n", "x86_64").text, "Linux 7.2.13 on x86_64");
        assert_eq!(kernel("7.2.13", "aarch64").state, State::Missing);
        let error = std::io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(shared_memory(Err(error)).state, State::Missing);
    }

    #[test]
    fn program_is_found_in_the_first_directory_that_has_it() {
        let path = ["relative", "/a", "/b"].map(PathBuf::from);
        let usable = |path: &Path| path.starts_with("/b") || path.starts_with("relative");
        assert_eq!(find_program("q", path.clone(), &usable), Some("/b/q".into()));
        assert_eq!(find_program("q", path, &|_| false), None);
        assert!(is_executable(Path::new("/bin/sh")) && !is_executable(Path::new("/bin")));
    }

    #[test]
    fn version_is_read_from_the_programs_words() {
        assert_eq!(version_line("QEMU emulator version 7.2.22 (Debian 1:7.2)\n").unwrap(), "QEMU 7.2.22");
        assert!(version_line("hello").is_err());
        assert!(qemu_version(Path::new("/bin/false")).unwrap_err().contains("exit status: 1"));
        assert!(qemu_version(Path::new("/nowhere/q")).is_err());
    }

    #[test]
    fn this_host_gives_every_fact_once() {
        let facts = host_facts(&|| Err(Error::host("not tried")));
        let names: Vec<_> = facts.iter().map(|fact| fact.name).collect();
        assert_eq!(names, [KERNEL, KVM, VIRTUALIZATION, EMULATOR, CPUS, MEMORY, SHARED_MEMORY, HUGE_PAGES, CGROUP]);
    }
}
