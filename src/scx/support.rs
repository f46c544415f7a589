//! What a kernel lacks for sched_ext, by the name of the option it was built without.
//!
//! Owns the list of options and how each shows; leaves what a lack means for the run to the caller.
//! Invariant: looks at files only, below a root directory that is passed in.

use std::path::Path;

/// An option of the kernel, and the file that is there exactly when the kernel was built with it.
const OPTIONS: [(&str, &str); 4] = [
    ("CONFIG_SCHED_CLASS_EXT", "sys/kernel/sched_ext/state"),
    ("CONFIG_DEBUG_INFO_BTF", "sys/kernel/btf/vmlinux"),
    // kernel/bpf/syscall.c
    ("CONFIG_BPF_SYSCALL", "proc/sys/kernel/unprivileged_bpf_disabled"),
    // net/core/sysctl_net_core.c
    ("CONFIG_BPF_JIT", "proc/sys/net/core/bpf_jit_enable"),
];

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// Options that are missing, in the order of their weight.
    pub missing: Vec<&'static str>,
}

impl Support {
    /// Looks below `root` ("/" on a live system, with /proc and /sys mounted).
    pub fn detect(root: &Path) -> Self {
        let absent = OPTIONS.iter().filter(|(_, file)| !root.join(file).exists());
        Self { missing: absent.map(|(option, _)| *option).collect() }
    }

    /// Whether a sched_ext scheduler can be loaded. Without the JIT's switch it still can: some kernels always compile.
    pub fn is_complete(&self) -> bool {
        self.missing.iter().all(|option| *option == "CONFIG_BPF_JIT")
    }

    /// One sentence for a person; none where nothing is missing.
    pub fn describe(&self) -> Option<String> {
        if self.is_complete() {
            return None;
        }
        let wanted: Vec<String> = self.missing.iter().map(|option| format!("{option}=y")).collect();
        Some(format!("the kernel cannot run a sched_ext scheduler: it was built without {}", wanted.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scx::state::tests::FakeRoot;

    #[test]
    fn each_missing_option_is_named() {
        let root = FakeRoot::new("support");
        let all = "the kernel cannot run a sched_ext scheduler: it was built without CONFIG_SCHED_CLASS_EXT=y, \
                   CONFIG_DEBUG_INFO_BTF=y, CONFIG_BPF_SYSCALL=y, CONFIG_BPF_JIT=y";
        assert_eq!(Support::detect(&root.0).describe().unwrap(), all);
        root.set("state", "disabled");
        for (_, file) in &OPTIONS[1..3] {
            let path = root.0.join(file);
            assert!(!Support::detect(&root.0).is_complete());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = Support::detect(&root.0);
        assert_eq!(found.missing, ["CONFIG_BPF_JIT"]);
        assert_eq!(found.describe(), None);
    }
}
