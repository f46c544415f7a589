//! The flags that shape the guest's machine: --topo, --node-memory, --distance.
//!
//! Owns their words; leaves the arithmetic to proto/ and making the machine to vmm/ and run/.
//! Invariant: parsing does no I/O: a matrix of distances is read only when a run is about to begin.

use super::args::Distance;
use super::cmd_list::Listed;
use crate::error::{Context, Error, Kind, Result};
use crate::proto::numa::{NODE_ALIGN_BYTES, Numa, parse_matrix, uniform};
use crate::proto::presets::PRESETS;
use crate::proto::topology::Topology;
use crate::units;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;

/// A word of --topo.
pub fn topology(text: &str) -> Result<Topology> {
    text.parse().map_err(|why| Error::usage(format!("--topo: {why}")).hint("'ktstr list topologies' lists names"))
}

/// `128M,128M,64M`: one size a node.
pub fn node_memory(text: &str, nodes: u32) -> Result<Vec<u64>> {
    let refuse = |why: String| Error::usage(format!("--node-memory: {why}"));
    let sizes =
        text.split(',').map(|word| units::parse_size(word, true).map_err(refuse)).collect::<Result<Vec<_>>>()?;
    if let Some(odd) = sizes.iter().find(|bytes| *bytes % NODE_ALIGN_BYTES != 0) {
        return Err(refuse(format!("{} is no multiple of {}", units::size(*odd), units::size(NODE_ALIGN_BYTES))));
    }
    if sizes.first() == Some(&0) {
        return Err(refuse("the first node must have memory".into()));
    }
    if sizes.len() < nodes as usize {
        return Err(refuse(format!("{} sizes for {nodes} nodes", sizes.len()))
            .hint("one size a node; more sizes than nodes make nodes without CPUs"));
    }
    Ok(sizes)
}

/// A number is the distance of all nodes from each other, anything else a file with a matrix.
pub fn distance(value: &OsStr) -> Result<Distance> {
    match value.to_str().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())) {
        None => Ok(Distance::Matrix(value.into())),
        Some(text) => text
            .parse()
            .ok()
            .filter(|distance| (11..=254).contains(distance))
            .map(Distance::Uniform)
            .ok_or_else(|| Error::usage(format!("--distance: '{text}' is not within 11 to 254"))),
    }
}

/// The nodes of a run; reads the matrix where one is named.
pub fn numa(topology: &Topology, node_memory: &[u64], distance: Option<&Distance>) -> Result<Numa> {
    let mut numa = Numa { memory_bytes: node_memory.to_vec(), distances: Vec::new() };
    let nodes = numa.nodes(topology.numa_nodes);
    numa.distances = match distance {
        None => Vec::new(),
        Some(Distance::Uniform(distance)) => uniform(nodes, *distance),
        Some(Distance::Matrix(path)) => {
            // More than any machine has, and less than a device that never ends.
            const MOST_BYTES: u64 = 1 << 20;
            let mut text = String::new();
            let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text));
            let text = read.map(|_| text).context(|| format!("read distances from {}", path.display()));
            if text.as_ref().is_ok_and(|text| text.len() as u64 > MOST_BYTES) {
                return Err(Error::usage(format!("--distance {} is larger than any matrix", path.display())));
            }
            parse_matrix(&text.map_err(|error| error.with_kind(Kind::Usage))?)
                .map_err(|why| Error::usage(format!("--distance {}: {why}", path.display())))?
        }
    };
    Ok(numa)
}

/// What `ktstr list topologies` lists.
pub fn listed() -> Vec<Listed> {
    let listed = |preset: &crate::proto::presets::Preset| Listed {
        name: preset.name.into(),
        detail: preset.shape.into(),
        text: format!(
            "{} CPUs, {}",
            preset.shape.parse().map_or(0, |shape: Topology| shape.total_cpus()),
            preset.about
        ),
    };
    PRESETS.iter().map(listed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MIB: u64 = 1 << 20;

    #[test]
    fn node_memory_is_one_aligned_size_a_node() {
        assert_eq!(node_memory("128M,64M", 2).unwrap(), [128 * MIB, 64 * MIB]);
        assert_eq!(node_memory("128M,0,64M", 2).unwrap().len(), 3);
        for (text, why) in [
            ("128M", "1 sizes for 2"),
            ("3M,4M", "multiple of 2 MiB"),
            ("0,4M", "first node"),
            ("4M,x", "'x'"),
            ("", "size"),
        ] {
            let error = node_memory(text, 2).unwrap_err().to_string();
            assert!(error.starts_with("--node-memory: ") && error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn distance_is_a_number_or_a_file() {
        assert_eq!(distance(OsStr::new("31")).unwrap(), Distance::Uniform(31));
        assert_eq!(distance(OsStr::new("m.txt")).unwrap(), Distance::Matrix("m.txt".into()));
        for text in ["10", "255", "99999999999"] {
            assert!(distance(OsStr::new(text)).unwrap_err().to_string().contains("within 11 to 254"), "{text}");
        }
    }

    #[test]
    fn matrix_comes_from_its_file() {
        let path = std::env::temp_dir().join(format!("ktstr-distances-{}", std::process::id()));
        fs::write(&path, "10 21\n21 10\n").unwrap();
        let topology: Topology = "2n2l1c1t".parse().unwrap();
        let made = numa(&topology, &[], Some(&Distance::Matrix(path.clone()))).unwrap();
        assert_eq!(made.distances, [[10, 21], [21, 10]]);
        assert_eq!(numa(&topology, &[MIB; 3], Some(&Distance::Uniform(15))).unwrap().distances.len(), 3);
        fs::write(&path, "10 y\n").unwrap();
        let error = numa(&topology, &[], Some(&Distance::Matrix(path.clone()))).unwrap_err().to_string();
        assert!(error.contains("'y' is no distance"), "{error}");
        fs::remove_file(&path).unwrap();
        let error = numa(&topology, &[], Some(&Distance::Matrix(path))).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }

    #[test]
    fn every_listed_topology_can_be_asked_for() {
        for listed in listed() {
            let cpus = topology(&listed.name).unwrap().total_cpus();
            assert!(listed.text.starts_with(&format!("{cpus} CPUs")), "{}", listed.text);
        }
    }
}
