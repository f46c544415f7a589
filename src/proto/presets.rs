//! Topologies by name, from 4 to 252 CPUs.
//!
//! Owns the one table; leaves parsing what it names to `topology`.
//! Invariant: every shape is a topology, no shape has two names, and a `-nosmt` form is its namesake with one thread a core.

/// A named topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    pub shape: &'static str,
    /// What it is good for.
    pub about: &'static str,
}

const fn preset(name: &'static str, shape: &'static str, about: &'static str) -> Preset {
    Preset { name, shape, about }
}

pub const PRESETS: [Preset; 24] = [
    preset("tiny-1llc", "1n1l4c1t", "the smallest machine with contention"),
    preset("tiny-2llc", "1n2l2c1t", "the smallest machine with two LLCs"),
    preset("odd-3llc", "1n3l3c1t", "LLCs and cores that are no powers of two"),
    preset("odd-5llc", "1n5l3c1t", "five LLCs of three cores"),
    preset("odd-7llc", "1n7l2c1t", "seven LLCs of two cores"),
    preset("smt-2llc", "1n2l2c2t", "two LLCs with SMT"),
    preset("smt-3llc", "1n3l2c2t", "three LLCs with SMT"),
    preset("smt-3llc-nosmt", "1n3l2c1t", "three LLCs, SMT off"),
    preset("medium-4llc", "1n4l4c2t", "a desktop of four core complexes"),
    preset("medium-4llc-nosmt", "1n4l4c1t", "the same, SMT off"),
    preset("medium-8llc", "1n8l4c2t", "a small server of eight core complexes"),
    preset("medium-8llc-nosmt", "1n8l4c1t", "the same, SMT off"),
    preset("large-4llc", "1n4l16c2t", "few large LLCs"),
    preset("large-4llc-nosmt", "1n4l16c1t", "the same, SMT off"),
    preset("large-8llc", "1n8l8c2t", "a server of eight core complexes"),
    preset("large-8llc-nosmt", "1n8l8c1t", "the same, SMT off"),
    preset("near-max-llc", "1n15l8c2t", "almost as many LLCs as four bits can number"),
    preset("near-max-llc-nosmt", "1n15l8c1t", "the same, SMT off"),
    preset("max-cpu", "1n14l9c2t", "252 CPUs, with APIC ids far above 254"),
    preset("max-cpu-nosmt", "1n14l9c1t", "the same, SMT off"),
    preset("numa2-4llc", "2n4l4c1t", "two nodes"),
    preset("numa2-8llc", "2n8l8c2t", "two large nodes with SMT"),
    preset("numa4-8llc", "4n8l4c1t", "four nodes"),
    preset("numa4-12llc", "4n12l8c2t", "four large nodes with SMT"),
];

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::topology::Topology;
    use std::collections::BTreeSet;

    #[test]
    fn sizes_run_from_4_to_252_and_no_shape_has_two_names() {
        let shapes: Vec<Topology> = PRESETS.iter().map(|preset| preset.shape.parse().unwrap()).collect();
        let sizes = shapes.iter().map(Topology::total_cpus);
        assert_eq!((sizes.clone().min(), sizes.max()), (Some(4), Some(252)));
        let distinct: BTreeSet<&str> = PRESETS.iter().map(|preset| preset.shape).collect();
        assert_eq!(distinct.len(), PRESETS.len());
        for (preset, shape) in PRESETS.iter().zip(&shapes) {
            assert_eq!(shape.to_string(), preset.shape, "{}", preset.name);
        }
    }

    #[test]
    fn nosmt_forms_are_their_namesakes_with_one_thread() {
        for preset in PRESETS.iter().filter(|preset| preset.name.ends_with("-nosmt")) {
            let mut with: Topology = find(preset.name.trim_end_matches("-nosmt")).unwrap().shape.parse().unwrap();
            assert_eq!(with.threads_per_core, 2);
            with.threads_per_core = 1;
            assert_eq!(with.to_string(), preset.shape);
        }
        assert_eq!(find("tiny-3llc"), None);
    }
}
