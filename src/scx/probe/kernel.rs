//! What the running kernel's BTF says that a probe scheduler needs: tables, members, functions of the kernel.
//!
//! Owns finding them, and words for what is missing; leaves loading to `load` and programs to `programs`.
//! Invariant: no layout of the kernel is assumed: every offset, size, index and id comes from its BTF.

use crate::scx::btf::{Btf, Kind};
use std::collections::BTreeMap;

/// The operations table of sched_ext (kernel/sched/ext_internal.h).
const OPS: &str = "sched_ext_ops";
/// What the kernel wraps it in for a struct_ops map: "bpf_struct_ops_" and its name (kernel/bpf/bpf_struct_ops.c).
const OPS_VALUE: &str = "bpf_struct_ops_sched_ext_ops";
const TASK: &str = "task_struct";
/// Its member of type struct sched_ext_entity.
const TASK_ENTITY: &str = "scx";
/// Functions of the kernel that a probe may call begin so.
const KFUNC_PREFIXES: [&[u8]; 4] = [b"scx_bpf_", b"bpf_iter_num_", b"bpf_preempt_", b"bpf_local_irq_"];

/// One member of the operations table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its index, which says what a program for it is.
    pub index: u32,
    /// Where it is in the value of the map.
    pub offset_bytes: usize,
    pub size_bytes: usize,
}

/// The facts of one kernel.
#[derive(Debug)]
pub struct Kernel {
    pub ops_id: u32,
    pub value_id: u32,
    pub value_bytes: u32,
    slots: BTreeMap<String, Slot>,
    task: BTreeMap<String, u32>,
    kfuncs: BTreeMap<String, u32>,
}

impl Kernel {
    /// Collects the facts. The error names what this kernel does not have.
    pub fn read(btf: &Btf<'_>) -> Result<Self, String> {
        let mut structures: BTreeMap<&str, u32> = BTreeMap::new();
        let mut kfuncs = BTreeMap::new();
        btf.visit(&[Kind::Struct, Kind::Func], &mut |id, kind, name| {
            if kind == Kind::Func && KFUNC_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                kfuncs.insert(String::from_utf8_lossy(name).into_owned(), id);
            } else if kind == Kind::Struct {
                if let Some(wanted) = [OPS, OPS_VALUE, TASK].into_iter().find(|wanted| wanted.as_bytes() == name) {
                    structures.entry(wanted).or_insert(id);
                }
            }
        });
        let id_of = |name| structures.get(name).copied().ok_or_else(|| format!("its BTF has no struct {name}"));
        let (ops_id, value_id, task_id) = (id_of(OPS)?, id_of(OPS_VALUE)?, id_of(TASK)?);
        let value = btf.members(value_id)?;
        let data = value.iter().find(|member| member.type_id == ops_id);
        let data = data.ok_or_else(|| format!("its struct {OPS_VALUE} does not hold a {OPS}"))?.offset_bytes;
        let value_bytes = btf.size_bytes(value_id)?;
        let mut slots = BTreeMap::new();
        for (index, member) in btf.members(ops_id)?.into_iter().enumerate() {
            let (offset_bytes, size_bytes) =
                (data as usize + member.offset_bytes as usize, btf.size_bytes(member.type_id)?);
            if offset_bytes + size_bytes as usize > value_bytes as usize {
                return Err(format!("its struct {OPS} does not fit into {OPS_VALUE}"));
            }
            let slot = Slot { index: index as u32, offset_bytes, size_bytes: size_bytes as usize };
            slots.insert(member.name, slot);
        }
        let mut task = BTreeMap::new();
        for member in btf.members(task_id)? {
            // What sched_ext keeps in a task: its members too, as `scx.NAME`.
            if member.name == TASK_ENTITY {
                for inner in btf.members(member.type_id)? {
                    task.insert(format!("{TASK_ENTITY}.{}", inner.name), member.offset_bytes + inner.offset_bytes);
                }
            }
            task.insert(member.name, member.offset_bytes);
        }
        Ok(Self { ops_id, value_id, value_bytes, slots, task, kfuncs })
    }

    /// A member of the operations table.
    pub fn slot(&self, name: &str) -> Result<Slot, String> {
        self.slots.get(name).copied().ok_or_else(|| format!("its struct {OPS} has no member {name}"))
    }

    /// The first of these functions that the kernel has: they were renamed over time.
    pub fn kfunc(&self, names: &[&str]) -> Result<u32, String> {
        let found = names.iter().find_map(|name| self.kfuncs.get(*name).copied());
        found.ok_or_else(|| format!("it has no function {} for BPF", names.join(" or ")))
    }

    /// Where a member of struct task_struct is.
    pub fn task_offset(&self, member: &str) -> Result<i16, String> {
        let offset =
            self.task.get(member).copied().ok_or_else(|| format!("its struct {TASK} has no member {member}"))?;
        i16::try_from(offset).map_err(|_| format!("member {member} of its struct {TASK} is out of a load's reach"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::scx::asm::Insn;

    /// The function by which `sample` queues a task, and how a call of a function of that kernel is encoded.
    pub const INSERT: u8 = 77;
    pub const EXIT: Insn = [0x95, 0, 0, 0, 0, 0, 0, 0];

    pub fn call(function: u8) -> Insn {
        [0x85, 0x20, 0, 0, function, 0, 0, 0]
    }

    /// How often a program calls a function of that kernel.
    pub fn calls(code: &[Insn], function: u8) -> usize {
        code.iter().filter(|insn| **insn == call(function)).count()
    }

    /// A kernel as `programs` sees it, with made-up numbers.
    pub fn sample() -> Kernel {
        let slot = |index: u32| Slot { index, offset_bytes: 64 + index as usize * 8, size_bytes: 8 };
        let slots = [("select_cpu", slot(0)), ("enqueue", slot(1)), ("flags", slot(2))];
        let last = [
            ("timeout_ms", Slot { index: 3, offset_bytes: 88, size_bytes: 4 }),
            ("name", Slot { index: 4, offset_bytes: 92, size_bytes: 16 }),
        ];
        let named = |(name, slot): (&str, Slot)| (name.to_string(), slot);
        Kernel {
            ops_id: 10,
            value_id: 11,
            value_bytes: 128,
            slots: slots.into_iter().chain(last).map(named).collect(),
            task: [
                ("pid", 2808),
                ("comm", 3344),
                ("policy", 400),
                ("scx.disallow", 900),
                ("scx.dsq_vtime", 908),
                ("scx.slice", 916),
                ("nr_cpus_allowed", 1000),
                ("start_time", 2000),
                ("far", 40_000),
            ]
            .map(|(name, offset)| (name.to_string(), offset))
            .into(),
            kfuncs: [
                ("scx_bpf_dispatch", INSERT.into()),
                ("scx_bpf_error_bstr", 78),
                ("scx_bpf_exit_bstr", 79),
                ("scx_bpf_task_cpu", 80),
                ("scx_bpf_nr_cpu_ids", 81),
                ("bpf_iter_num_new", 82),
                ("bpf_iter_num_next", 83),
                ("bpf_iter_num_destroy", 84),
                ("bpf_preempt_disable", 85),
                ("bpf_preempt_enable", 86),
                ("bpf_local_irq_save", 87),
                ("bpf_local_irq_restore", 88),
            ]
            .map(|(name, id)| (name.to_string(), id))
            .into(),
        }
    }

    impl Kernel {
        pub fn forget(&mut self, member: &str) {
            self.task.remove(member);
        }
    }

    /// BTF of a kernel whose sched_ext_ops is { enqueue, name[16] }; `data` is its offset in the wrapping struct.
    fn small_kernel(data: u32, wrapped_bytes: u32) -> Vec<u8> {
        use crate::scx::btf::tests::{encode, name_in};
        let strings =
            b"\0char\0sched_ext_ops\0bpf_struct_ops_sched_ext_ops\0task_struct\0enqueue\0name\0data\0comm\0scx_bpf_x\0";
        let name = |text| name_in(strings, text);
        let structure = |members: u32| 4 << 24 | members;
        let types = [
            vec![name("char"), 1 << 24, 1, 8], // 1
            vec![0, 3 << 24, 0, 1, 1, 16],     // 2: char[16]
            vec![0, 2 << 24, 0],               // 3: pointer
            vec![name("sched_ext_ops"), structure(2), 24, name("enqueue"), 3, 0, name("name"), 2, 64], // 4
            vec![name("bpf_struct_ops_sched_ext_ops"), structure(1), wrapped_bytes, name("data"), 4, data * 8], // 5
            vec![name("task_struct"), structure(1), 900, name("comm"), 2, 800 * 8], // 6
            vec![name("scx_bpf_x"), 12 << 24, 0], // 7
        ];
        encode(strings, &types.concat())
    }

    #[test]
    fn facts_are_read_from_btf() {
        let bytes = small_kernel(64, 128);
        let kernel = Kernel::read(&Btf::parse(&bytes).unwrap()).unwrap();
        assert_eq!((kernel.ops_id, kernel.value_id, kernel.value_bytes), (4, 5, 128));
        assert_eq!(kernel.slot("enqueue").unwrap(), Slot { index: 0, offset_bytes: 64, size_bytes: 8 });
        assert_eq!(kernel.slot("name").unwrap(), Slot { index: 1, offset_bytes: 72, size_bytes: 16 });
        assert_eq!(kernel.task_offset("comm"), Ok(800));
        assert_eq!(kernel.kfunc(&["scx_bpf_x"]), Ok(7));
    }

    #[test]
    fn table_that_does_not_fit_its_wrapping_is_refused() {
        let bytes = small_kernel(64, 80);
        assert!(Kernel::read(&Btf::parse(&bytes).unwrap()).unwrap_err().contains("does not fit"));
    }

    #[test]
    fn missing_things_are_named() {
        let kernel = sample();
        assert_eq!(kernel.kfunc(&["scx_bpf_dsq_insert", "scx_bpf_dispatch"]), Ok(77));
        assert!(kernel.kfunc(&["scx_bpf_a", "scx_bpf_b"]).unwrap_err().contains("scx_bpf_a or scx_bpf_b"));
        assert!(kernel.slot("cpu_online").unwrap_err().contains("cpu_online"));
        assert!(kernel.task_offset("none").unwrap_err().contains("no member none"));
        assert!(kernel.task_offset("far").unwrap_err().contains("reach"));
    }

    #[test]
    fn a_kernel_without_sched_ext_is_told() {
        let bytes = crate::scx::btf::one_int();
        let error = Kernel::read(&Btf::parse(&bytes).unwrap()).unwrap_err();
        assert_eq!(error, "its BTF has no struct sched_ext_ops");
    }
}
