//! The CPU topology that a test declares: nodes, LLCs, cores, threads, as `1n2l4c2t`.
//!
//! Owns the numbers, their text form and their arithmetic; leaves making it true to vmm/ and run/.
//! Invariant: every count is at least 1, and the nodes divide the LLCs.

use super::cpuset::CpuSet;
use crate::wire_struct;
use std::fmt;
use std::str::FromStr;

/// Most CPUs a guest may have: KVM's own limit on x86 is 4096 (KVM_MAX_VCPUS, arch/x86/include/asm/kvm_host.h).
pub const MAX_CPUS: u32 = 4096;

wire_struct! {
    /// NUMA nodes, last-level caches (in all), cores per LLC, threads per core.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Topology {
        pub numa_nodes: u32,
        pub llcs: u32,
        pub cores_per_llc: u32,
        pub threads_per_core: u32,
    }
}

impl Topology {
    /// One node, one LLC, `cpus` cores of one thread.
    pub fn flat(cpus: u32) -> Self {
        Self { numa_nodes: 1, llcs: 1, cores_per_llc: cpus.max(1), threads_per_core: 1 }
    }
    pub fn total_cpus(&self) -> u32 {
        self.llcs * self.cores_per_llc * self.threads_per_core
    }
    pub fn all_cpus(&self) -> CpuSet {
        CpuSet::first(self.total_cpus())
    }
    /// Whether there is anything but one node, one LLC and no SMT to show the guest.
    pub fn is_flat(&self) -> bool {
        self.numa_nodes == 1 && self.llcs == 1 && self.threads_per_core == 1
    }

    fn checked(self) -> Result<Self, String> {
        if [self.numa_nodes, self.llcs, self.cores_per_llc, self.threads_per_core].contains(&0) {
            return Err("every count must be at least 1".into());
        }
        if self.llcs % self.numa_nodes != 0 {
            return Err(format!("{} LLCs cannot be divided among {} nodes", self.llcs, self.numa_nodes));
        }
        let cpus = u64::from(self.llcs) * u64::from(self.cores_per_llc) * u64::from(self.threads_per_core);
        if cpus > u64::from(MAX_CPUS) {
            return Err(format!("{cpus} CPUs are more than the {MAX_CPUS} that KVM allows"));
        }
        Ok(self)
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}n{}l{}c{}t", self.numa_nodes, self.llcs, self.cores_per_llc, self.threads_per_core)
    }
}

impl FromStr for Topology {
    type Err = String;

    /// `1n2l4c2t` (nodes, LLCs in all, cores per LLC, threads per core), or a bare count of CPUs.
    fn from_str(text: &str) -> Result<Self, String> {
        let explain = |why: &str| {
            format!(
                "'{text}' is not a topology: {why} (nodes n LLCs l cores-per-LLC c threads t, such as 1n2l4c2t, or a bare CPU count)"
            )
        };
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let cpus: u32 = text.parse().map_err(|_| explain("the count is too large"))?;
            let flat = Self { numa_nodes: 1, llcs: 1, cores_per_llc: cpus, threads_per_core: 1 };
            return flat.checked().map_err(|why| explain(&why));
        }
        let mut rest = text;
        let mut counts = [0u32; 4];
        for (count, letter) in counts.iter_mut().zip(['n', 'l', 'c', 't']) {
            let (number, after) = rest.split_once(letter).ok_or_else(|| explain(&format!("'{letter}' is missing")))?;
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                return Err(explain(&format!("'{number}' before '{letter}' is no number")));
            }
            *count = number.parse().map_err(|_| explain(&format!("'{number}' is too large")))?;
            rest = after;
        }
        if !rest.is_empty() {
            return Err(explain(&format!("'{rest}' is left over")));
        }
        let [numa_nodes, llcs, cores_per_llc, threads_per_core] = counts;
        Self { numa_nodes, llcs, cores_per_llc, threads_per_core }.checked().map_err(|why| explain(&why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn text_form_round_trips() {
        for text in ["1n1l4c1t", "2n4l4c2t", "4n12l8c2t"] {
            assert_eq!(text.parse::<Topology>().unwrap().to_string(), text);
        }
        assert_eq!("4".parse::<Topology>().unwrap(), Topology::flat(4));
        assert_eq!("2n4l4c2t".parse::<Topology>().unwrap().total_cpus(), 32);
    }

    #[test]
    fn wrong_forms_say_why() {
        for (text, why) in [
            ("0", "at least 1"),
            ("", "'n' is missing"),
            ("1n1l4c", "'t' is missing"),
            ("1n1l4c1tx", "left over"),
            ("1nxl4c1t", "no number"),
            ("2n3l1c1t", "cannot be divided"),
            ("1n1l9999c1t", "more than"),
            ("1n1l99999999999c1t", "too large"),
            ("-4", "'n' is missing"),
        ] {
            let error = text.parse::<Topology>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn wire_round_trip() {
        let topology: Topology = "2n4l4c2t".parse().unwrap();
        assert_eq!(Topology::from_bytes(&topology.to_bytes()).unwrap(), topology);
    }
}
