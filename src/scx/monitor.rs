//! Looks into the kernel's run queues by a BPF program of a few loads, whichever scheduler there is.
//!
//! Owns the program, loading it and one look; leaves what many looks come to to guest/, and judging to verdict/.
//! Invariant: a look changes nothing in the kernel, and no layout is assumed: every offset comes from its BTF.

use super::asm::{Asm, Insn, Reg::*, When, Width};
use super::btf::{Btf, Kind, Member};
use crate::sys::bpf::{self, Program};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// bpf_get_smp_processor_id and bpf_per_cpu_ptr (enum bpf_func_id, include/uapi/linux/bpf.h).
const THIS_CPU: i32 = 8;
const PER_CPU_PTR: i32 = 153;
/// The kernel's run queues: a per-CPU variable of `struct rq` (kernel/sched/core.c).
const VARIABLE: &[u8] = b"runqueues";
const QUEUE: &[u8] = b"rq";
/// The only programs that may look into the kernel's structures are those under the GPL.
const LICENSE: &std::ffi::CStr = c"GPL";
/// What program and look share: 32-bit words at these places, and the clock.
const CONTEXT_BYTES: usize = 32;
/// The CPU to look at, and the one that the program runs on.
const CPU: i16 = 0;
const HERE: i16 = 4;
const ONLINE: i16 = 8;
const RUNNING: i16 = 12;
const DEPTH: i16 = 16;
const CLOCK: i16 = 24;
/// What the program returns beyond the last CPU.
const NO_SUCH_CPU: u32 = 1;
/// Largest NR_CPUS of any architecture (arch/x86/Kconfig): where a look ends in any case.
const CPUS_MOST: u32 = 8192;

/// One CPU's run queue at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    pub cpu: u32,
    /// Tasks that run or wait to, without the one that looks.
    pub running: u32,
    /// Tasks in the CPU's local dispatch queue; none where the kernel has no sched_ext.
    pub depth: Option<u32>,
    /// The queue's own clock, ns; stands still on an idle CPU.
    pub clock: u64,
}

/// Where things are in this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    variable_id: u32,
    running: i16,
    clock: i16,
    online: i16,
    /// Of rq.scx.local_dsq.nr.
    depth: Option<i16>,
}

impl Layout {
    fn read(btf: &Btf<'_>) -> Result<Self, String> {
        let (mut variable_id, mut queue_id) = (None, None);
        btf.visit(&[Kind::Variable, Kind::Struct], &mut |id, kind, name| match kind {
            Kind::Variable if name == VARIABLE => variable_id = Some(id),
            Kind::Struct if name == QUEUE => _ = queue_id.get_or_insert(id),
            _ => {}
        });
        let variable_id = variable_id.ok_or("its BTF has no variable runqueues")?;
        let members = btf.members(queue_id.ok_or("its BTF has no struct rq")?)?;
        let offset = |name: &str| named(&members, name).ok_or(format!("its struct rq has no member {name}"));
        Ok(Self {
            variable_id,
            running: reach(offset("nr_running")?.offset_bytes)?,
            clock: reach(offset("clock")?.offset_bytes)?,
            online: reach(offset("online")?.offset_bytes)?,
            depth: depth(btf, &members).and_then(|bytes| reach(bytes).ok()),
        })
    }
}

fn named<'a>(members: &'a [Member], name: &str) -> Option<&'a Member> {
    members.iter().find(|member| member.name == name)
}

/// What a load's offset can say.
fn reach(bytes: u32) -> Result<i16, String> {
    i16::try_from(bytes).map_err(|_| format!("offset {bytes} in its struct rq is out of a load's reach"))
}

/// Where the length of a CPU's local dispatch queue is.
fn depth(btf: &Btf<'_>, queue: &[Member]) -> Option<u32> {
    let scx = named(queue, "scx")?;
    let of_scx = btf.members(scx.type_id).ok()?;
    let local = named(&of_scx, "local_dsq")?;
    let of_local = btf.members(local.type_id).ok()?;
    Some(scx.offset_bytes + local.offset_bytes + named(&of_local, "nr")?.offset_bytes)
}

/// Copies the queue of the CPU that the context names into the context.
fn program(layout: &Layout) -> Result<Vec<Insn>, String> {
    let mut asm = Asm::new();
    let none = asm.label();
    asm.mov(R6, R1).kernel_variable(R1, layout.variable_id).load(Width::Word, R2, R6, CPU).call_helper(PER_CPU_PTR);
    asm.jump_imm(When::Equal, R0, 0, none).mov(R7, R0);
    let words = [(layout.online, ONLINE), (layout.running, RUNNING)];
    for (from, to) in words.into_iter().chain(layout.depth.map(|from| (from, DEPTH))) {
        asm.load(Width::Word, R1, R7, from).store(Width::Word, R6, to, R1);
    }
    asm.load(Width::Double, R1, R7, layout.clock).store(Width::Double, R6, CLOCK, R1);
    asm.call_helper(THIS_CPU).store(Width::Word, R6, HERE, R0).mov_imm(R0, 0).exit();
    asm.bind(none).mov_imm(R0, NO_SUCH_CPU as i32).exit();
    asm.finish()
}

/// The loaded program.
#[derive(Debug)]
pub struct Monitor {
    program: OwnedFd,
    has_depth: bool,
}

impl Monitor {
    /// Loads it. The error says why this kernel cannot be looked into.
    pub fn open(root: &Path) -> Result<Self, String> {
        let path = root.join("sys/kernel/btf/vmlinux");
        let bytes = std::fs::read(&path).map_err(|cause| {
            format!("cannot read {}: {cause}; the kernel needs CONFIG_DEBUG_INFO_BTF=y", path.display())
        })?;
        let layout = Btf::parse(&bytes).and_then(|btf| Layout::read(&btf))?;
        let code = program(&layout)?;
        let wanted = Program { name: "ktstr_queues", license: LICENSE, code: &code, sleepable: true, place: None };
        let program = bpf::load(&wanted).map_err(|refused| {
            let said = refused.log.lines().rfind(|line| !line.starts_with("processed")).unwrap_or_default().to_owned();
            format!("the kernel refuses the program that looks: {} {said}", refused.cause)
        })?;
        Ok(Self { program, has_depth: layout.depth.is_some() })
    }

    /// Every online CPU's queue now.
    pub fn look(&self) -> io::Result<Vec<Queue>> {
        let mut queues = Vec::new();
        for cpu in 0..CPUS_MOST {
            let mut context = [0u8; CONTEXT_BYTES];
            context[..4].copy_from_slice(&cpu.to_le_bytes());
            if bpf::run(self.program.as_fd(), &mut context)? == NO_SUCH_CPU {
                break;
            }
            queues.extend(seen(&context, self.has_depth));
        }
        Ok(queues)
    }
}

/// What the program left in its context; none: the CPU is offline.
fn seen(context: &[u8; CONTEXT_BYTES], has_depth: bool) -> Option<Queue> {
    let word = |at: i16| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&context[at as usize..at as usize + 4]);
        u32::from_le_bytes(bytes)
    };
    let cpu = word(CPU);
    // Who looks runs itself on one of them.
    let running = word(RUNNING).saturating_sub(u32::from(word(HERE) == cpu));
    let clock = u64::from(word(CLOCK)) | u64::from(word(CLOCK + 4)) << 32;
    (word(ONLINE) != 0).then(|| Queue { cpu, running, depth: has_depth.then(|| word(DEPTH)), clock })
}

#[cfg(test)]
mod tests {
    use super::super::btf::tests::{encode, name_in};
    use super::*;

    /// BTF of `struct rq { unsigned int nr_running @16; unsigned long clock @32; int online @40; struct scx_rq scx @64 }` with
    /// `struct scx_rq { struct scx_dispatch_q local_dsq @8 }` and `struct scx_dispatch_q { u32 nr @4 }`.
    fn kernel(with_scx: bool) -> Vec<u8> {
        let strings: &[u8] = b"\0int\0rq\0nr_running\0clock\0online\0scx\0scx_rq\0local_dsq\0dsq\0nr\0runqueues\0";
        let name = |text| name_in(strings, text);
        let structure = |members: u32| 4 << 24 | members;
        let scx = if with_scx { name("scx") } else { name("dsq") };
        let types = [
            vec![name("int"), 1 << 24, 4, 32],                                   // 1
            vec![name("dsq"), structure(1), 8, name("nr"), 1, 4 * 8],            // 2
            vec![name("scx_rq"), structure(1), 16, name("local_dsq"), 2, 8 * 8], // 3
            [vec![name("rq"), structure(4), 128], vec![name("nr_running"), 1, 16 * 8]].concat(), // 4
            vec![name("clock"), 1, 32 * 8, name("online"), 1, 40 * 8, scx, 3, 64 * 8],
            vec![name("runqueues"), 14 << 24, 4, 1], // 5
        ];
        encode(strings, &types.concat())
    }

    #[test]
    fn layout_comes_from_btf_and_a_kernel_without_sched_ext_has_no_depth() {
        let read = |bytes: &[u8]| Layout::read(&Btf::parse(bytes).unwrap());
        let expected = Layout { variable_id: 5, running: 16, clock: 32, online: 40, depth: Some(76) };
        assert_eq!(read(&kernel(true)), Ok(expected));
        assert_eq!(read(&kernel(false)), Ok(Layout { depth: None, ..expected }));
        assert!(read(&super::super::btf::one_int()).unwrap_err().contains("no variable runqueues"));
    }

    #[test]
    fn program_reads_each_member_once_and_ends_where_there_is_no_cpu() {
        let layout = Layout { variable_id: 5, running: 16, clock: 32, online: 40, depth: Some(76) };
        let code = program(&layout).unwrap();
        // r1 = &runqueues by its BTF id, r2 = cpu, call bpf_per_cpu_ptr.
        assert_eq!(code[1], [0x18, 0x31, 0, 0, 5, 0, 0, 0]);
        assert_eq!(code[4], [0x85, 0, 0, 0, 153, 0, 0, 0]);
        for offset in [16u8, 40, 76] {
            assert_eq!(code.iter().filter(|insn| **insn == [0x61, 0x71, offset, 0, 0, 0, 0, 0]).count(), 1, "{offset}");
        }
        assert!(code.contains(&[0x79, 0x71, 32, 0, 0, 0, 0, 0]));
        assert_eq!(code[code.len() - 2], [0xb7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(program(&Layout { depth: None, ..layout }).unwrap().len(), code.len() - 2);
    }

    #[test]
    fn context_is_a_queue_without_the_one_that_looks() {
        let mut context = [0u8; CONTEXT_BYTES];
        for (at, value) in [(CPU, 1u8), (HERE, 1), (ONLINE, 1), (RUNNING, 4), (DEPTH, 3), (CLOCK, 9), (CLOCK + 4, 1)] {
            context[at as usize] = value;
        }
        let queue = Queue { cpu: 1, running: 3, depth: Some(3), clock: (1 << 32) + 9 };
        assert_eq!(seen(&context, true), Some(queue));
        context[HERE as usize] = 0;
        assert_eq!(seen(&context, false), Some(Queue { running: 4, depth: None, ..queue }));
        context[ONLINE as usize] = 0;
        assert_eq!(seen(&context, true), None);
    }

    #[test]
    fn missing_btf_names_the_kernel_option() {
        assert!(Monitor::open(Path::new("/nowhere")).unwrap_err().contains("CONFIG_DEBUG_INFO_BTF=y"));
    }
}
