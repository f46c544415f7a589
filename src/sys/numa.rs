//! Memory policies: from which nodes pages come.
//!
//! Owns the node mask and the calls; leaves which policy to whom to the callers.
//! Invariant: nothing here allocates, so that a forked child may call it.

use super::check_long;
use super::mmap::Mapping;
use crate::proto::plan::{MemPolicy, MpolFlags};
use std::io;

/// Modes (include/uapi/linux/mempolicy.h).
const MPOL_DEFAULT: u64 = 0;
const MPOL_PREFERRED: u64 = 1;
const MPOL_BIND: u64 = 2;
const MPOL_INTERLEAVE: u64 = 3;
const MPOL_LOCAL: u64 = 4;
const MPOL_PREFERRED_MANY: u64 = 5;
const MPOL_WEIGHTED_INTERLEAVE: u64 = 6;
/// Move the pages that are there already (the same file).
const MPOL_MF_MOVE: u64 = 1 << 1;

/// Most nodes of a mask here: CONFIG_NODES_SHIFT is at most 10 (arch/x86/Kconfig).
pub const MAX_NODES: u32 = 1024;

/// A set of nodes as the kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMask {
    words: [u64; MAX_NODES as usize / 64],
    /// What the kernel is told as `maxnode`; 0 where no node is named.
    pub maxnode: u64,
}

/// The mask of some nodes. `maxnode` is the highest + 2: the kernel reads one bit less than it says (get_nodes, mm/mempolicy.c).
pub fn build_nodemask(nodes: impl IntoIterator<Item = u32>) -> NodeMask {
    let mut mask = NodeMask { words: [0; MAX_NODES as usize / 64], maxnode: 0 };
    for node in nodes.into_iter().filter(|node| *node < MAX_NODES) {
        mask.words[node as usize / 64] |= 1 << (node % 64);
        mask.maxnode = mask.maxnode.max(u64::from(node) + 2);
    }
    mask
}

/// Sets the calling thread's memory policy. `nodes` is the mask of the policy's nodes.
pub fn set_mempolicy(policy: &MemPolicy, flags: MpolFlags, nodes: &NodeMask) -> io::Result<()> {
    let mode = match policy {
        MemPolicy::Default => MPOL_DEFAULT,
        MemPolicy::Preferred { .. } => MPOL_PREFERRED,
        MemPolicy::Bind { .. } => MPOL_BIND,
        MemPolicy::Interleave { .. } => MPOL_INTERLEAVE,
        MemPolicy::Local => MPOL_LOCAL,
        MemPolicy::PreferredMany { .. } => MPOL_PREFERRED_MANY,
        MemPolicy::WeightedInterleave { .. } => MPOL_WEIGHTED_INTERLEAVE,
    };
    let pointer = if nodes.maxnode == 0 { std::ptr::null() } else { nodes.words.as_ptr() };
    // SAFETY: the mask is valid for `maxnode` bits, or absent.
    let set = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode | u64::from(flags.bits), pointer, nodes.maxnode) };
    check_long(set)?;
    Ok(())
}

/// The calling thread's policy number, flags included.
pub fn mempolicy_number() -> io::Result<i32> {
    let mut mode = 0i32;
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: `mode` is valid for the call; no mask and no address are asked for.
    check_long(unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut mode, none, 0, 0, 0) })?;
    Ok(mode)
}

/// Binds a mapping to nodes and moves what is in it already.
pub fn bind_and_move(map: &Mapping, nodes: &NodeMask) -> io::Result<()> {
    // SAFETY: the range is a mapping of ours, whose contents the kernel keeps; the mask is valid for `maxnode` bits.
    let bound = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            map.as_ptr(),
            map.len(),
            MPOL_BIND,
            nodes.words.as_ptr(),
            nodes.maxnode,
            MPOL_MF_MOVE,
        )
    };
    check_long(bound)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cpuset::CpuSet;

    #[test]
    fn mask_names_its_nodes_and_one_bit_more() {
        let mask = build_nodemask([0, 65]);
        assert_eq!((mask.words[0], mask.words[1], mask.maxnode), (1, 2, 67));
        assert_eq!(build_nodemask([]).maxnode, 0);
        assert_eq!(build_nodemask([MAX_NODES]).maxnode, 0);
    }

    #[test]
    fn policies_read_back_and_a_missing_node_is_refused() {
        std::thread::spawn(|| {
            let zero = build_nodemask([0]);
            let bind = MemPolicy::Bind { nodes: [0].into_iter().collect() };
            match set_mempolicy(&bind, MpolFlags::STATIC_NODES, &zero) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    return crate::not_run::not_run("this kernel has no memory policies (CONFIG_NUMA)");
                }
                other => other.unwrap(),
            }
            assert_eq!(mempolicy_number().unwrap() as u64, MPOL_BIND | u64::from(MpolFlags::STATIC_NODES.bits));
            let far = build_nodemask([900]);
            assert_eq!(set_mempolicy(&bind, MpolFlags::NONE, &far).unwrap_err().raw_os_error(), Some(libc::EINVAL));
            // Those that are younger than our oldest kernel may be unknown to it: balancing
            // (5.12), several preferred nodes (5.15), weights (6.9).
            let node = || [0].into_iter().collect::<CpuSet>();
            let (relative, balancing) = (MpolFlags::RELATIVE_NODES, MpolFlags::NUMA_BALANCING);
            for (policy, flags, number, young) in [
                (MemPolicy::Preferred { node: 0 }, MpolFlags::NONE, MPOL_PREFERRED, false),
                (MemPolicy::Interleave { nodes: node() }, MpolFlags::NONE, MPOL_INTERLEAVE, false),
                (MemPolicy::Interleave { nodes: node() }, relative, MPOL_INTERLEAVE, false),
                (MemPolicy::Bind { nodes: node() }, relative, MPOL_BIND, false),
                (MemPolicy::Bind { nodes: node() }, balancing, MPOL_BIND, true),
                (MemPolicy::PreferredMany { nodes: node() }, MpolFlags::NONE, MPOL_PREFERRED_MANY, true),
                (MemPolicy::WeightedInterleave { nodes: node() }, MpolFlags::NONE, MPOL_WEIGHTED_INTERLEAVE, true),
            ] {
                match set_mempolicy(&policy, flags, &zero) {
                    Err(error) if young && error.raw_os_error() == Some(libc::EINVAL) => {
                        crate::not_run::not_run(&format!("this kernel has no {policy:?} with flags {:#x}", flags.bits));
                    }
                    set => {
                        set.unwrap_or_else(|error| panic!("{policy:?}: {error}"));
                        let told = mempolicy_number().unwrap() as u64;
                        assert_eq!(told, number | u64::from(flags.bits), "{policy:?}");
                    }
                }
            }
            set_mempolicy(&MemPolicy::Local, MpolFlags::NONE, &build_nodemask([])).unwrap();
            assert_eq!(mempolicy_number().unwrap() as u64, MPOL_LOCAL);
            let map = Mapping::private_anonymous(1 << 16).unwrap();
            map.words()[0].store(7, std::sync::atomic::Ordering::Relaxed);
            bind_and_move(&map, &zero).unwrap();
            assert_eq!(map.words()[0].load(std::sync::atomic::Ordering::Relaxed), 7);
        })
        .join()
        .unwrap();
    }
}
