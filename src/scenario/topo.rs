//! The machine as scenarios see it: CPUs, last-level caches, cores, nodes.
//!
//! Owns the queries; leaves making the machine so to vmm/ and run/, and what a scenario asks for to `resolve`.
//! Invariant: CPUs ascend, and every CPU belongs to exactly one LLC and one core.

use crate::error::{Context, Error, Result};
use crate::proto::cpuset::CpuSet;
use crate::proto::scenario::Fraction;
use crate::proto::topology::Topology;
use crate::workload::Cpus;
use std::fs;
use std::path::Path;

/// One last-level cache and the CPUs that share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Llc {
    pub cpus: CpuSet,
    pub numa_node: u32,
    pub cache_size_kb: Option<u64>,
    /// The threads of each core.
    pub cores: Vec<CpuSet>,
}

/// The topology that a scenario runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestTopology {
    llcs: Vec<Llc>,
    nodes: u32,
}

impl TestTopology {
    /// The shape that was asked for: CPUs are numbered thread by thread, core by core, LLC by LLC, node by node. CPUs of a node
    /// that tell no caches stand for one LLC.
    pub fn from_spec(spec: &Topology) -> Self {
        let (cores, cacheless) = (spec.cores(), &spec.odd.cacheless);
        let one = |cpus: CpuSet, numa_node: u32| {
            let cores = cores.iter().map(|core| core.intersection(&cpus)).filter(|core| !core.is_empty()).collect();
            Llc { cpus, numa_node, cache_size_kb: None, cores }
        };
        let told = (0..spec.llcs).map(|llc| one(spec.llc_cpus(llc).difference(cacheless), spec.node_of_llc(llc)));
        let untold = (0..spec.numa_nodes).map(|node| one(spec.node_cpus(node).intersection(cacheless), node));
        let mut llcs: Vec<Llc> = told.chain(untold).filter(|llc| !llc.cpus.is_empty()).collect();
        llcs.sort_by_key(|llc| llc.cpus.iter().next());
        Self { llcs, nodes: spec.numa_nodes }
    }

    /// Its counts, and which CPUs each node has: what a verdict has to know of a machine that no plan shaped. Numbers of CPUs
    /// within a node are those of a guest, and not the machine's.
    pub fn to_spec(&self) -> Topology {
        let cores = || self.llcs.iter().flat_map(|llc| &llc.cores);
        // Where cores differ, as where a sibling is offline, each CPU stands for a core: the number of CPUs has to be right.
        let alike = cores().all(|core| core.len() as u32 == self.threads_per_core());
        let threads = if alike { self.threads_per_core() } else { 1 };
        let of_node = |node: u32| self.llcs.iter().filter(move |llc| llc.numa_node == node);
        let llcs_of_node: Vec<u32> = (0..self.nodes).map(|node| of_node(node).count() as u32).collect();
        let by_node = (0..self.nodes).flat_map(of_node);
        let cores_of_llc: Vec<u32> = by_node.map(|llc| llc.cpus.len() as u32 / threads).collect();
        let most = cores_of_llc.iter().copied().max().unwrap_or(1);
        let mut spec = Topology::grid(self.nodes, self.num_llcs(), most, threads);
        if llcs_of_node.iter().any(|count| *count != llcs_of_node[0]) {
            spec.odd.llcs_of_node = llcs_of_node;
        }
        if cores_of_llc.iter().any(|count| *count != most) {
            spec.odd.cores_of_llc = cores_of_llc;
        }
        let cpus = |node| of_node(node).flat_map(|llc| llc.cpus.iter()).collect::<CpuSet>();
        let node_cpus: Vec<CpuSet> = (0..self.nodes).map(cpus).collect();
        if (0..).zip(&node_cpus).any(|(node, cpus)| spec.node_cpus(node) != *cpus) {
            spec.odd.node_cpus = node_cpus;
        }
        spec
    }

    /// A machine that need not exist; `llcs` in all, divided among the nodes.
    pub fn synthetic(nodes: u32, llcs: u32, cores_per_llc: u32, threads_per_core: u32) -> Self {
        let (nodes, threads) = (nodes.max(1), threads_per_core.max(1));
        let llcs_per_node = (llcs / nodes).max(1);
        let one = |llc: u32| {
            let core = |core: u32| {
                let first = (llc * cores_per_llc + core) * threads;
                (first..first + threads).collect::<CpuSet>()
            };
            let cores: Vec<CpuSet> = (0..cores_per_llc).map(core).collect();
            let cpus = cores.iter().flat_map(|core| core.iter()).collect();
            Llc { cpus, numa_node: llc / llcs_per_node, cache_size_kb: None, cores }
        };
        Self { llcs: (0..llcs).map(one).collect(), nodes }
    }

    /// The same as the workload engine knows a machine.
    pub fn cpus(&self) -> Cpus {
        let nodes = (0..self.nodes).map(|node| (node, self.numa_aligned_cpuset(node).unwrap_or_default())).collect();
        Cpus {
            online: self.all_cpuset(),
            llcs: self.llcs.iter().map(|llc| llc.cpus.clone()).collect(),
            cores: self.llcs.iter().flat_map(|llc| llc.cores.clone()).collect(),
            nodes,
        }
    }

    /// What the kernel shows under `root` (`/` on a live system).
    pub fn from_system(root: &Path) -> Result<Self> {
        let base = root.join("sys/devices/system");
        let online = list(&base.join("cpu/online"))?;
        let mut nodes: Vec<CpuSet> = Vec::new();
        while let Some(cpus) = optional_list(&base.join(format!("node/node{}/cpulist", nodes.len())))? {
            nodes.push(cpus);
        }
        let mut llcs: Vec<Llc> = Vec::new();
        let caches = online.iter().map(|cpu| Ok((cpu, last_level(&base.join(format!("cpu/cpu{cpu}")))?)));
        let caches = caches.collect::<Result<Vec<_>>>()?;
        let cacheless: CpuSet =
            caches.iter().filter(|(_, (shared, _))| shared.is_none()).map(|(cpu, _)| *cpu).collect();
        for (cpu, (shared, cache_size_kb)) in caches {
            if llcs.iter().any(|llc| llc.cpus.contains(cpu)) {
                continue;
            }
            // CPUs of a node without cache information stand for one LLC, as in the kernel's own fallback.
            let node = nodes.iter().position(|cpus| cpus.contains(cpu)).unwrap_or(0);
            let fallback = || nodes.get(node).unwrap_or(&online).intersection(&cacheless);
            let cpus = shared.unwrap_or_else(fallback).intersection(&online);
            let mut cores: Vec<CpuSet> = Vec::new();
            for cpu in cpus.iter().collect::<Vec<_>>() {
                if !cores.iter().any(|core| core.contains(cpu)) {
                    let siblings = optional_list(&base.join(format!("cpu/cpu{cpu}/topology/thread_siblings_list")))?;
                    let own = || [cpu].into_iter().collect::<CpuSet>();
                    cores.push(siblings.map_or_else(own, |set| set.intersection(&cpus)).union(&own()));
                }
            }
            llcs.push(Llc { cpus, numa_node: node as u32, cache_size_kb, cores });
        }
        Ok(Self { llcs, nodes: (nodes.len() as u32).max(1) })
    }

    pub fn llcs(&self) -> &[Llc] {
        &self.llcs
    }
    pub fn num_llcs(&self) -> u32 {
        self.llcs.len() as u32
    }
    pub fn num_numa_nodes(&self) -> u32 {
        self.nodes
    }
    pub fn total_cpus(&self) -> u32 {
        self.llcs.iter().map(|llc| llc.cpus.len() as u32).sum()
    }
    pub fn threads_per_core(&self) -> u32 {
        self.llcs.iter().flat_map(|llc| &llc.cores).map(|core| core.len() as u32).max().unwrap_or(1)
    }
    pub fn all_cpus(&self) -> Vec<u32> {
        self.all_cpuset().iter().collect()
    }
    pub fn all_cpuset(&self) -> CpuSet {
        self.llcs.iter().flat_map(|llc| llc.cpus.iter()).collect()
    }

    /// What cgroups may use: all but the last CPU where there are more than two, so that the root cgroup always has one.
    pub fn usable_cpuset(&self) -> CpuSet {
        let mut all = self.all_cpus();
        if all.len() > 2 {
            all.pop();
        }
        all.into_iter().collect()
    }
    pub fn usable_cpus(&self) -> Vec<u32> {
        self.usable_cpuset().iter().collect()
    }

    pub fn cpus_in_llc(&self, index: u32) -> Option<&CpuSet> {
        self.llcs.get(index as usize).map(|llc| &llc.cpus)
    }
    pub fn split_by_llc(&self) -> Vec<CpuSet> {
        self.llcs.iter().map(|llc| llc.cpus.clone()).collect()
    }
    /// An LLC's usable CPUs.
    pub fn llc_aligned_cpuset(&self, index: u32) -> Option<CpuSet> {
        Some(self.cpus_in_llc(index)?.intersection(&self.usable_cpuset())).filter(|cpus| !cpus.is_empty())
    }
    /// A node's usable CPUs.
    pub fn numa_aligned_cpuset(&self, node: u32) -> Option<CpuSet> {
        let cpus: CpuSet =
            self.llcs.iter().filter(|llc| llc.numa_node == node).flat_map(|llc| llc.cpus.iter()).collect();
        Some(cpus.intersection(&self.usable_cpuset())).filter(|cpus| !cpus.is_empty())
    }

    /// `n` equal parts of the usable CPUs, each grown into the next one (the last into the first) by `share` of its size.
    pub fn overlapping_cpusets(&self, n: u32, share: Fraction) -> Vec<CpuSet> {
        let pool = self.usable_cpus();
        let (len, n) = (pool.len(), n.max(1) as usize);
        let part = |index: usize| {
            let (from, to) = (index * len / n, (index + 1) * len / n);
            let size = (to - from) as u64;
            // A share that rounds to nothing would be no overlap at all.
            let more = if share.millionths() == 0 { 0 } else { share.of(size).max(1) as usize };
            (from..(to + more).min(from + len)).map(|at| pool[at % len]).collect()
        };
        (0..n).map(part).collect()
    }

    /// The first core with two threads that are both among `pool`.
    pub fn smt_pair(&self, pool: &CpuSet) -> Option<CpuSet> {
        let cores = self.llcs.iter().flat_map(|llc| &llc.cores);
        cores.map(|core| core.intersection(pool).iter().take(2).collect::<CpuSet>()).find(|pair| pair.len() == 2)
    }

    /// The LLC that has most CPUs of `pool`, and of those the first.
    pub fn best_llc(&self, pool: &CpuSet) -> Option<CpuSet> {
        let shared = self.llcs.iter().map(|llc| llc.cpus.intersection(pool));
        shared.rev().max_by_key(CpuSet::len).filter(|cpus| !cpus.is_empty())
    }
}

fn list(path: &Path) -> Result<CpuSet> {
    optional_list(path)?
        .ok_or_else(|| Error::cannot_judge(format!("cannot read {}: it does not exist", path.display())))
}

/// The set in a file; none where there is no such file.
fn optional_list(path: &Path) -> Result<Option<CpuSet>> {
    let Some(text) = optional(path)? else { return Ok(None) };
    let parsed = text.parse().map(Some);
    parsed.map_err(|what: String| Error::internal(format!("cannot read {}: {what}", path.display())))
}

fn optional(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("read {}", path.display())),
    }
}

/// The CPUs that share a CPU's cache of the highest level, and its size; none where the kernel shows no caches.
fn last_level(cpu_dir: &Path) -> Result<(Option<CpuSet>, Option<u64>)> {
    let mut best = (0, None, None);
    for index in 0.. {
        let dir = cpu_dir.join(format!("cache/index{index}"));
        let Some(level) = optional(&dir.join("level"))?.and_then(|text| text.parse::<u32>().ok()) else { break };
        if level > best.0 {
            let size = optional(&dir.join("size"))?.and_then(|text| text.trim_end_matches('K').parse().ok());
            best = (level, optional_list(&dir.join("shared_cpu_list"))?, size);
        }
    }
    Ok((best.1, best.2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn text(set: Option<CpuSet>) -> String {
        set.map_or_else(|| "none".into(), |set| set.to_string())
    }

    #[test]
    fn shape_divides_into_llcs_cores_and_nodes() {
        let topo = TestTopology::from_spec(&"2n4l2c2t".parse().unwrap());
        assert_eq!(topo, TestTopology::synthetic(2, 4, 2, 2));
        let uneven = TestTopology::from_spec(&"2n2+1l1+2+3c1t".parse().unwrap());
        let llcs: Vec<_> = uneven.llcs().iter().map(|llc| (llc.cpus.to_string(), llc.numa_node)).collect();
        assert_eq!(llcs, [("0".to_owned(), 0), ("1-2".into(), 0), ("3-5".into(), 1)]);
        assert_eq!((topo.total_cpus(), topo.num_llcs(), topo.num_numa_nodes(), topo.threads_per_core()), (16, 4, 2, 2));
        assert_eq!(topo.usable_cpuset().to_string(), "0-14");
        assert_eq!(text(topo.llc_aligned_cpuset(1)), "4-7");
        assert_eq!(text(topo.llc_aligned_cpuset(3)), "12-14");
        assert_eq!(text(topo.llc_aligned_cpuset(4)), "none");
        assert_eq!(text(topo.numa_aligned_cpuset(1)), "8-14");
        assert_eq!(topo.llcs()[2].cores.iter().map(CpuSet::to_string).collect::<Vec<_>>(), ["8-9", "10-11"]);
        assert_eq!(text(topo.smt_pair(&"1-4,6-7".parse().unwrap())), "2-3");
        assert_eq!(text(topo.smt_pair(&"1,2".parse().unwrap())), "none");
        assert_eq!(text(topo.best_llc(&"3-6".parse().unwrap())), "4-6");
        assert_eq!(topo.split_by_llc().len(), 4);
    }

    #[test]
    fn two_cpus_are_both_usable_and_three_are_not() {
        assert_eq!(TestTopology::synthetic(1, 1, 2, 1).usable_cpus(), [0, 1]);
        assert_eq!(TestTopology::synthetic(1, 1, 3, 1).usable_cpus(), [0, 1]);
    }

    #[test]
    fn overlaps_share_with_the_next_and_the_last_with_the_first() {
        let topo = TestTopology::synthetic(1, 1, 9, 1);
        let sets =
            |n, share| topo.overlapping_cpusets(n, share).iter().map(CpuSet::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(sets(2, Fraction::HALF), "0-5 0-1,4-7");
        assert_eq!(sets(4, Fraction::default()), "0-1 2-3 4-5 6-7");
        assert_eq!(sets(8, Fraction::HALF), "0-1 1-2 2-3 3-4 4-5 5-6 6-7 0,7");
    }

    struct Fake(PathBuf);
    impl Fake {
        fn file(&self, path: &str, text: &str) {
            let path = self.0.join("sys/devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }
    impl Drop for Fake {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn system_is_read_back_and_equals_its_shape() {
        let fake = Fake(std::env::temp_dir().join(format!("ktstr-topo-{}", std::process::id())));
        fake.file("cpu/online", "0-7");
        for node in 0..2 {
            fake.file(&format!("node/node{node}/cpulist"), &format!("{}-{}", node * 4, node * 4 + 3));
        }
        for cpu in 0..8 {
            let (llc, core) = (cpu / 4 * 4, cpu / 2 * 2);
            fake.file(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), &format!("{core}-{}", core + 1));
            fake.file(&format!("cpu/cpu{cpu}/cache/index0/level"), "1");
            fake.file(&format!("cpu/cpu{cpu}/cache/index0/shared_cpu_list"), &cpu.to_string());
            fake.file(&format!("cpu/cpu{cpu}/cache/index1/level"), "3");
            fake.file(&format!("cpu/cpu{cpu}/cache/index1/size"), "8192K");
            fake.file(&format!("cpu/cpu{cpu}/cache/index1/shared_cpu_list"), &format!("{llc}-{}", llc + 3));
        }
        let seen = TestTopology::from_system(&fake.0).unwrap();
        assert_eq!(seen.llcs()[1].cache_size_kb, Some(8192));
        let mut same = seen.clone();
        same.llcs.iter_mut().for_each(|llc| llc.cache_size_kb = None);
        assert_eq!(same, TestTopology::synthetic(2, 2, 2, 2));
        fake.file("cpu/online", "0-7x");
        assert!(TestTopology::from_system(&fake.0).unwrap_err().to_string().contains("'7x'"));
    }

    #[test]
    fn machine_with_siblings_numbered_last_has_the_shape_and_the_nodes_that_it_has() {
        let fake = Fake(std::env::temp_dir().join(format!("ktstr-metal-{}", std::process::id())));
        // Two nodes of two cores: siblings are four apart, as firmware usually numbers them.
        fake.file("cpu/online", "0-7");
        fake.file("node/node0/cpulist", "0-1,4-5");
        fake.file("node/node1/cpulist", "2-3,6-7");
        for cpu in 0..8 {
            let node = if cpu % 4 < 2 { "0-1,4-5" } else { "2-3,6-7" };
            fake.file(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), &format!("{},{}", cpu % 4, cpu % 4 + 4));
            fake.file(&format!("cpu/cpu{cpu}/cache/index0/level"), "3");
            fake.file(&format!("cpu/cpu{cpu}/cache/index0/shared_cpu_list"), node);
        }
        let spec = TestTopology::from_system(&fake.0).unwrap().to_spec();
        assert_eq!((spec.to_string().as_str(), spec.total_cpus()), ("2n2l2c2t", 8));
        assert_eq!([0, 1].map(|node| spec.node_cpus(node).to_string()), ["0-1,4-5", "2-3,6-7"]);
        // Without one thread of a core there are seven CPUs, and no two of a core for certain.
        fake.file("cpu/online", "0-6");
        fake.file("node/node1/cpulist", "2-3,6");
        let spec = TestTopology::from_system(&fake.0).unwrap().to_spec();
        assert_eq!((spec.to_string().as_str(), spec.total_cpus()), ("2n2l4+3c1t", 7));
        assert_eq!(spec.node_cpus(1).to_string(), "2-3,6");
    }

    #[test]
    fn shape_of_a_guest_is_told_as_it_was_asked_for() {
        for text in ["1n1l4c1t", "2n4l2c2t", "2n2+1l1+2+3c1t"] {
            let spec: Topology = text.parse().unwrap();
            assert_eq!(TestTopology::from_spec(&spec).to_spec(), spec);
        }
    }

    #[test]
    fn odd_shapes_are_read_back_as_they_were_asked_for() {
        for (index, text) in
            ["4:nocache3", "2n4l2c2t:nocache1,6-9:spare2", "2n2+1l1+2+3c1t", "1:nocache0"].iter().enumerate()
        {
            let spec: Topology = text.parse().unwrap();
            let fake = Fake(std::env::temp_dir().join(format!("ktstr-odd-{index}-{}", std::process::id())));
            fake.file("cpu/online", &spec.all_cpus().to_string());
            (0..spec.numa_nodes)
                .for_each(|node| fake.file(&format!("node/node{node}/cpulist"), &spec.node_cpus(node).to_string()));
            for core in spec.cores() {
                core.iter().for_each(|cpu| {
                    fake.file(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), &core.to_string())
                });
            }
            for llc in (0..spec.llcs).map(|llc| spec.llc_cpus(llc).difference(&spec.odd.cacheless)) {
                for cpu in llc.iter() {
                    fake.file(&format!("cpu/cpu{cpu}/cache/index0/level"), "3");
                    fake.file(&format!("cpu/cpu{cpu}/cache/index0/shared_cpu_list"), &llc.to_string());
                }
            }
            assert_eq!(TestTopology::from_system(&fake.0).unwrap(), TestTopology::from_spec(&spec), "{text}");
        }
        let sets = |text: &str| TestTopology::from_spec(&text.parse().unwrap()).split_by_llc();
        assert_eq!(sets("4:nocache0,3").iter().map(CpuSet::to_string).collect::<Vec<_>>(), ["0,3", "1-2"]);
    }

    #[test]
    fn this_machine_has_every_cpu_in_one_llc() {
        let topo = TestTopology::from_system(Path::new("/")).unwrap();
        let in_llcs: usize = topo.llcs().iter().map(|llc| llc.cpus.len()).sum();
        assert_eq!(in_llcs, topo.all_cpuset().len());
    }
}
