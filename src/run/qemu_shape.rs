//! The shape of a guest as QEMU's command line: sockets, dies, cores, threads, NUMA nodes and their memory.
//!
//! Owns these words and what QEMU cannot be given; leaves the rest of the command line to qemu.rs.
//! Invariant: the kernel in the guest sees the same topology as under our own VMM, or the shape is refused.

use crate::error::{Error, Result};
use crate::proto::numa::Numa;
use crate::proto::topology::Topology;
use crate::vmm::x86::apic::{ApicIds, LlcRule, XAPIC_ID_MAX};

/// QEMU's own CPU `max` is an AMD CPU without the leaves that tell a kernel of threads and dies. Intel's rules need none
/// of them: leaf 0x1F has the dies, and leaf 4 says that a die shares its L3 (target/i386/cpu.c). Family 6, model 85, so
/// that no kernel takes the model numbers of `max`, which are AMD's, for a Pentium 4.
/// The highest leaf is an empty one: it answers for all above it, and QEMU 10 aborts when its own firmware asks beyond the
/// end of leaf 0x1F that way.
pub const CPU: &str = "max,vendor=GenuineIntel,family=6,model=85,stepping=4,l3-cache=on,level=0x20";

/// Where the memory of a guest comes from.
pub struct Memory<'a> {
    pub bytes: u64,
    /// The path of our own memory file.
    pub file: &'a str,
    /// Where the ring is: its node is backed by our memory file, at the same distance from the node's start.
    pub ring_gpa: u64,
}

/// The words for CPUs, NUMA and memory.
pub struct Words {
    pub words: Vec<(&'static str, String)>,
    /// The machine that can have these CPUs.
    pub machine: &'static str,
    /// Appended to `-machine`.
    pub options: &'static str,
}

/// The first QEMU that emulates x2APIC, which APIC ids above 254 need (its change log, x86 TCG).
const X2APIC_SINCE: u32 = 9;

/// Whether this QEMU (its version as `QEMU 10.0.2`) can show this shape at all.
pub fn check(topology: &Topology, version: impl FnOnce() -> Result<String>) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::host(format!("--accel qemu cannot give a guest {why}, as --topo {topology} asks for"))
            .hint("--accel kvm can"))
    };
    if !topology.odd.cores_of_llc.is_empty() || uneven_llcs(topology) {
        return refuse("LLCs of different sizes, or nodes of different LLCs");
    }
    if topology.odd.sparse_bits > 0 {
        return refuse("a sparse APIC id space");
    }
    if !topology.odd.cacheless.is_empty() {
        return refuse("CPUs without caches");
    }
    let with_cpus = nodes_with_cpus(topology);
    if with_cpus.last().is_some_and(|last| *last as usize >= with_cpus.len()) {
        // A kernel numbers nodes as it meets them, CPUs first.
        return refuse("a node without CPUs in front of one with CPUs");
    }
    let per_socket = per_socket(topology);
    if topology.odd.spare_cpus % per_socket != 0 {
        return refuse(&format!("possible CPUs that are no whole sockets of {per_socket}"));
    }
    if wide_apic_ids(topology) {
        let version = version()?;
        let major = version.trim_start_matches(|c: char| !c.is_ascii_digit()).split('.').next();
        if major.and_then(|major| major.parse().ok()).is_none_or(|major: u32| major < X2APIC_SINCE) {
            let highest = ApicIds::new(topology, LlcRule::CacheLeaf).highest();
            return refuse(&format!(
                "APIC ids above {XAPIC_ID_MAX} (up to {highest}) with {version}, where {X2APIC_SINCE}.0 would do"
            ));
        }
    }
    Ok(())
}

/// Whether interrupts need a unit that remaps them in order to reach every CPU: the older form has 8 bits for an APIC id
/// (Intel SDM vol. 3, 12.11.1; VT-d specification, 5.1.2).
fn wide_apic_ids(topology: &Topology) -> bool {
    ApicIds::new(topology, LlcRule::CacheLeaf).highest() > XAPIC_ID_MAX
}

/// Whether nodes that have LLCs have different numbers of them.
fn uneven_llcs(topology: &Topology) -> bool {
    let mut counts: Vec<u32> = topology.odd.llcs_of_node.iter().copied().filter(|count| *count > 0).collect();
    counts.dedup();
    counts.len() > 1
}

fn nodes_with_cpus(topology: &Topology) -> Vec<u32> {
    (0..topology.numa_nodes).filter(|node| topology.llcs_of(*node) > 0).collect()
}

/// CPUs of a socket, which is a node.
fn per_socket(topology: &Topology) -> u32 {
    topology.total_cpus() / nodes_with_cpus(topology).len() as u32
}

/// Words for a shape that `check` lets pass.
pub fn words(topology: &Topology, numa: &Numa, memory: &Memory<'_>) -> Words {
    let with_cpus = nodes_with_cpus(topology);
    let dies = topology.llcs / with_cpus.len() as u32;
    let possible = topology.possible_cpus();
    let sockets = possible / per_socket(topology);
    let mut smp = format!("{},sockets={sockets}", topology.total_cpus());
    smp += &format!(",dies={dies},cores={},threads={}", topology.cores_per_llc, topology.threads_per_core);
    smp += &format!(",maxcpus={possible}");
    let mut words = vec![("-smp", smp)];
    // Only q35 takes a unit that remaps interrupts (docs/system/i386 of QEMU, intel-iommu).
    let machine = if wide_apic_ids(topology) { "q35" } else { "pc" };
    words.extend((machine == "q35").then(|| ("-device", "intel-iommu,intremap=on,eim=on".to_owned())));
    let nodes = numa.nodes(topology.numa_nodes);
    if nodes <= 1 {
        words.push((
            "-object",
            format!("memory-backend-file,id=ram,size={},share=on,mem-path={}", memory.bytes, memory.file),
        ));
        return Words { words, machine, options: ",memory-backend=ram" };
    }
    let mut start = 0;
    for (node, bytes) in (0u32..).zip(&numa.memory_bytes) {
        let backend = if (start..start + bytes).contains(&memory.ring_gpa) {
            format!("memory-backend-file,id=ram{node},size={bytes},share=on,mem-path={}", memory.file)
        } else {
            format!("memory-backend-memfd,id=ram{node},size={bytes},share=on")
        };
        let memdev = if *bytes > 0 { format!(",memdev=ram{node}") } else { String::new() };
        words.extend((*bytes > 0).then_some(("-object", backend)));
        words.push(("-numa", format!("node,nodeid={node}{memdev}")));
        start += bytes;
    }
    // A socket is a node that has CPUs; sockets for later belong to the last.
    for socket in 0..sockets {
        let node = with_cpus.get(socket as usize).or(with_cpus.last()).copied().unwrap_or(0);
        words.push(("-numa", format!("cpu,node-id={node},socket-id={socket}")));
    }
    for (from, row) in (0u32..).zip(&numa.distances) {
        for (to, distance) in (0u32..).zip(row).filter(|(to, _)| *to != from) {
            words.push(("-numa", format!("dist,src={from},dst={to},val={distance}")));
        }
    }
    Words { words, machine, options: "" }
}

/// Where the ring lies in our memory file: from the start of its node, where nodes have files of their own.
pub fn file_offset(numa: &Numa, topology: &Topology, ring_gpa: u64) -> u64 {
    if numa.nodes(topology.numa_nodes) <= 1 {
        return ring_gpa;
    }
    let mut start = 0;
    for bytes in &numa.memory_bytes {
        if (start..start + bytes).contains(&ring_gpa) {
            return ring_gpa - start;
        }
        start += bytes;
    }
    ring_gpa
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(text: &str) -> Topology {
        text.parse().unwrap()
    }

    fn line(text: &str, memory_mib: &[u64]) -> String {
        let memory_bytes: Vec<u64> = memory_mib.iter().map(|mib| mib << 20).collect();
        let bytes = memory_bytes.iter().sum();
        let numa = Numa { memory_bytes, distances: vec![] }.settled(topology(text).numa_nodes, bytes).unwrap();
        let memory = Memory { bytes, file: "F", ring_gpa: 96 << 20 };
        let made = words(&topology(text), &numa, &memory);
        made.words.iter().map(|(flag, value)| format!("{flag} {value}\n")).collect::<String>()
            + made.machine
            + made.options
    }

    #[test]
    fn llcs_are_dies_and_nodes_are_sockets() {
        let line = line("2n4l3c2t", &[128, 128]);
        assert!(line.contains("-smp 24,sockets=2,dies=2,cores=3,threads=2,maxcpus=24\n"), "{line}");
        assert!(line.contains("memory-backend-file,id=ram0,size=134217728,share=on,mem-path=F\n"), "{line}");
        assert!(line.contains("memory-backend-memfd,id=ram1,size=134217728,share=on\n"), "{line}");
        assert!(line.contains("-numa cpu,node-id=1,socket-id=1\n"), "{line}");
        assert!(line.contains("-numa dist,src=1,dst=0,val=20\n"), "{line}");
    }

    #[test]
    fn one_node_needs_no_numa() {
        let line = line("1n2l2c1t", &[256]);
        assert!(!line.contains("-numa") && line.contains("id=ram,size=268435456"), "{line}");
        assert!(line.ends_with("pc,memory-backend=ram"), "{line}");
    }

    #[test]
    fn apic_ids_of_more_than_a_byte_have_their_interrupts_remapped() {
        let line = line("max-cpu", &[256]);
        assert!(line.contains("-device intel-iommu,intremap=on,eim=on\n") && line.contains("\nq35,"), "{line}");
    }

    #[test]
    fn nodes_without_cpus_have_no_socket() {
        let line = line("3n1+1+0l2c1t:spare2", &[64, 64, 64]);
        assert!(line.contains("-smp 4,sockets=3,dies=1,cores=2,threads=1,maxcpus=6\n"), "{line}");
        assert!(line.contains("-numa cpu,node-id=1,socket-id=2\n"), "{line}");
        assert!(line.contains("-numa node,nodeid=2,memdev=ram2\n") && !line.contains("cpu,node-id=2,"), "{line}");
    }

    #[test]
    fn ring_keeps_its_place_within_its_node() {
        let numa = Numa { memory_bytes: vec![64 << 20, 64 << 20], distances: vec![] };
        assert_eq!(file_offset(&numa, &topology("2n2l1c1t"), 96 << 20), 32 << 20);
        assert_eq!(file_offset(&Numa::default(), &topology("1"), 96 << 20), 96 << 20);
    }

    #[test]
    fn shapes_that_qemu_cannot_show_are_refused() {
        for (text, why) in [
            ("1n2l2+1c1t", "different sizes"),
            ("2n2+1l1c1t", "different LLCs"),
            ("2:sparse1", "sparse"),
            ("3n1+0+1l2c1t", "in front of one"),
            ("2:spare1", "whole sockets of 2"),
            ("2:nocache1", "without caches"),
            ("max-cpu", "up to 433) with QEMU 8.2.0, where 9.0 would do"),
        ] {
            let error = check(&topology(text), || Ok("QEMU 8.2.0".into())).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("--accel kvm can"), "{text}: {error}");
        }
        let unasked = || panic!("the version is of no matter");
        assert!(check(&topology("3n1+1+0l2c1t"), unasked).is_ok());
        assert!(check(&topology("near-max-llc"), unasked).is_ok());
        assert!(check(&topology("max-cpu"), || Ok("QEMU 10.0.2".into())).is_ok());
    }
}
