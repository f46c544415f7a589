//! Memory and distances of a guest's NUMA nodes.
//!
//! Owns the numbers, how memory is shared out by default, and their text forms; leaves the CPUs of nodes to `topology`.
//! Invariant: once `settled`, there is one memory size a node, their sum is the guest's memory, and the distances are a
//! whole matrix that an ACPI SLIT may hold.

use super::topology::MAX_NODES;
use crate::wire_struct;

/// A node's distance to itself, and the usual one to another (ACPI 6.5, 5.2.17; include/linux/topology.h).
pub const LOCAL_DISTANCE: u32 = 10;
pub const REMOTE_DISTANCE: u32 = 20;
/// 255 stands for "unreachable".
const MAX_DISTANCE: u32 = 254;
/// Nodes begin and end on large pages.
pub const NODE_ALIGN_BYTES: u64 = 2 << 20;

wire_struct! {
    /// What each node has and how far it is from the others.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Numa {
        /// Bytes of each node. More nodes than the topology has: the others are memory without CPUs.
        pub memory_bytes: Vec<u64>,
        /// One row a node. Empty: the usual.
        pub distances: Vec<Vec<u32>>,
    }
}

impl Numa {
    /// Nodes in all.
    pub fn nodes(&self, of_topology: u32) -> u32 {
        of_topology.max(self.memory_bytes.len() as u32)
    }

    /// Shares out memory where nothing is said of it, and fills in distances.
    pub fn settled(mut self, of_topology: u32, memory_bytes: u64) -> Result<Self, String> {
        let nodes = self.nodes(of_topology);
        if nodes > MAX_NODES {
            return Err(format!("{nodes} nodes are more than {MAX_NODES}"));
        }
        if self.memory_bytes.is_empty() {
            let each = memory_bytes / u64::from(nodes) / NODE_ALIGN_BYTES * NODE_ALIGN_BYTES;
            self.memory_bytes = vec![each; nodes as usize];
            let rest = memory_bytes - each * u64::from(nodes);
            let whole = rest / NODE_ALIGN_BYTES * NODE_ALIGN_BYTES;
            // The kernel itself lies in node 0: the rest is welcome there, but every node has to begin on a large page.
            self.memory_bytes[0] += whole;
            self.memory_bytes[nodes as usize - 1] += rest - whole;
        }
        if self.memory_bytes.len() != nodes as usize {
            return Err(format!("memory is given for {} of {nodes} nodes", self.memory_bytes.len()));
        }
        let sum = self.memory_bytes.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        if sum != memory_bytes {
            return Err(format!("the nodes have {sum} bytes together, and the guest {memory_bytes}"));
        }
        if self.distances.is_empty() {
            self.distances = uniform(nodes, REMOTE_DISTANCE);
        }
        check_matrix(&self.distances, nodes)?;
        Ok(self)
    }
}

/// All remote distances alike.
pub fn uniform(nodes: u32, remote: u32) -> Vec<Vec<u32>> {
    let distance = |from: u32, to: u32| if from == to { LOCAL_DISTANCE } else { remote };
    (0..nodes).map(|from| (0..nodes).map(|to| distance(from, to)).collect()).collect()
}

fn check_matrix(rows: &[Vec<u32>], nodes: u32) -> Result<(), String> {
    if rows.len() != nodes as usize {
        return Err(format!("the distances have {} rows for {nodes} nodes", rows.len()));
    }
    for (from, row) in rows.iter().enumerate() {
        if row.len() != nodes as usize {
            return Err(format!("row {from} of the distances has {} numbers for {nodes} nodes", row.len()));
        }
        for (to, distance) in row.iter().enumerate() {
            if from == to && *distance != LOCAL_DISTANCE {
                return Err(format!("node {from} is {distance} from itself; that is always {LOCAL_DISTANCE}"));
            }
            if from != to && !(LOCAL_DISTANCE + 1..=MAX_DISTANCE).contains(distance) {
                return Err(format!(
                    "node {from} is {distance} from node {to}, which is not within 11 to {MAX_DISTANCE}"
                ));
            }
        }
    }
    Ok(())
}

/// Reads a matrix: one row a line, numbers between blanks or commas; `#` begins a comment.
pub fn parse_matrix(text: &str) -> Result<Vec<Vec<u32>>, String> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words = line.split([' ', '\t', ',', '\r']).filter(|word| !word.is_empty());
        let row: Vec<u32> = words
            .map(|word| word.parse().map_err(|_| format!("line {}: '{word}' is no distance", index + 1)))
            .collect::<Result<_, _>>()?;
        if !row.is_empty() {
            rows.push(row);
        }
    }
    if rows.is_empty() { Err("it holds no numbers".into()) } else { Ok(rows) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_shared_out_on_large_pages_and_none_is_lost() {
        let numa = Numa::default().settled(3, 257 * MIB).unwrap();
        assert_eq!(numa.memory_bytes, [88 * MIB, 84 * MIB, 85 * MIB]);
        assert_eq!(numa.distances, [[10, 20, 20], [20, 10, 20], [20, 20, 10]]);
        assert_eq!(Numa::from_bytes(&numa.to_bytes()).unwrap(), numa);
        assert_eq!(Numa::default().settled(1, 5).unwrap().memory_bytes, [5]);
    }

    #[test]
    fn more_memories_than_nodes_are_nodes_without_cpus() {
        let numa = Numa { memory_bytes: vec![64 * MIB; 3], distances: vec![] };
        assert_eq!(numa.nodes(2), 3);
        assert_eq!(numa.clone().settled(2, 192 * MIB).unwrap().distances.len(), 3);
        assert!(numa.clone().settled(4, 192 * MIB).unwrap_err().contains("3 of 4 nodes"));
        assert!(numa.settled(2, 200 * MIB).unwrap_err().contains("together"));
    }

    #[test]
    fn matrices_parse_and_wrong_ones_say_why() {
        let rows = parse_matrix("# far\n10, 31\n\n31 10 # symmetric\n").unwrap();
        assert_eq!(rows, [[10, 31], [31, 10]]);
        let settled = |distances: Vec<Vec<u32>>| Numa { distances, ..Numa::default() }.settled(2, 64 * MIB);
        assert_eq!(settled(rows.clone()).unwrap().distances, rows);
        for (text, why) in [
            ("10 20", "1 rows for 2"),
            ("10 20\n20", "row 1"),
            ("11 20\n20 10", "from itself"),
            ("10 10\n20 10", "not within 11"),
            ("10 255\n20 10", "not within 11"),
        ] {
            let error = settled(parse_matrix(text).unwrap()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(parse_matrix("10 x").unwrap_err().contains("line 1: 'x'"));
        assert!(parse_matrix("# nothing").is_err());
    }
}
