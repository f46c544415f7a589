//! A small assembler for eBPF: named instructions and labels in, encoded instructions out.
//!
//! Owns the encodings (RFC 9669) that the probe schedulers use; leaves what a program does to its author.
//! Invariant: `finish` gives code in which every jump lands on an instruction of the same program.

use crate::sys::bpf::INSN_BYTES;

/// One encoded instruction, little-endian (RFC 9669, section 4).
pub type Insn = [u8; INSN_BYTES];

/// A register (RFC 9669, section 2): r0 returns, r1 - r5 pass arguments, r6 - r9 survive calls, r10 is the end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The width of a memory access: the size bits of a load or store opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// The condition of a jump: the code bits of a 64-bit jump opcode, comparing unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum When {
    Equal = 0x10,
    Above = 0x20,
    NotEqual = 0x50,
    Below = 0xa0,
}

/// A place in the program to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

// Opcodes: class | source | code (RFC 9669, sections 4 and 5).
const MOV64_IMM: u8 = 0xb7;
const MOV64_REG: u8 = 0xbf;
const LD_IMM64: u8 = 0x18;
const LDX_MEM: u8 = 0x61;
const ST_MEM: u8 = 0x62;
const STX_MEM: u8 = 0x63;
const ADD64_IMM: u8 = 0x07;
const SUB64_REG: u8 = 0x1f;
const OR64_REG: u8 = 0x4f;
const AND64_IMM: u8 = 0x57;
const JMP_IMM: u8 = 0x05;
const JMP_REG: u8 = 0x0d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const STX_ATOMIC_DOUBLE: u8 = 0xdb;
/// BPF_CMPXCHG: compares with r0, always fetches into r0.
const CMPXCHG: i32 = 0xf1;
/// BPF_ADD with BPF_FETCH: the source register becomes the old value.
const FETCH_ADD: i32 = 0x01;
/// BPF_PSEUDO_MAP_VALUE: the 64-bit immediate is the address of a map's value.
const PSEUDO_MAP_VALUE: u8 = 2;
/// BPF_PSEUDO_BTF_ID: the immediate is the BTF id of a variable of the kernel.
const PSEUDO_BTF_ID: u8 = 3;
/// BPF_PSEUDO_KFUNC_CALL: the immediate is the BTF id of a kernel function.
const PSEUDO_KFUNC_CALL: u8 = 2;

/// A program being written.
#[derive(Debug, Default)]
pub struct Asm {
    code: Vec<Insn>,
    /// Where each label stands, once it is bound.
    labels: Vec<Option<usize>>,
    /// Jumps whose distance is filled in at the end.
    jumps: Vec<(usize, Label)>,
}

impl Asm {
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, opcode: u8, registers: (u8, u8), offset: i16, immediate: i32) -> &mut Self {
        let (dst, src) = registers;
        let offset = offset.to_le_bytes();
        let immediate = immediate.to_le_bytes();
        let mut insn = [opcode, dst | src << 4, offset[0], offset[1], 0, 0, 0, 0];
        insn[4..].copy_from_slice(&immediate);
        self.code.push(insn);
        self
    }

    /// A label to jump to before it is bound.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }
    /// The label stands for the next instruction.
    pub fn bind(&mut self, label: Label) -> &mut Self {
        self.labels[label.0] = Some(self.code.len());
        self
    }

    /// `dst = value`, sign-extended.
    pub fn mov_imm(&mut self, dst: Reg, value: i32) -> &mut Self {
        self.push(MOV64_IMM, (dst as u8, 0), 0, value)
    }
    /// `dst = src`.
    pub fn mov(&mut self, dst: Reg, src: Reg) -> &mut Self {
        self.push(MOV64_REG, (dst as u8, src as u8), 0, 0)
    }
    /// `dst = value`, all 64 bits (two slots).
    pub fn load_imm64(&mut self, dst: Reg, value: u64) -> &mut Self {
        self.push(LD_IMM64, (dst as u8, 0), 0, value as u32 as i32).push(0, (0, 0), 0, (value >> 32) as u32 as i32)
    }
    /// `dst =` the address of the value of an array map of one element.
    pub fn map_value(&mut self, dst: Reg, map_fd: i32) -> &mut Self {
        self.push(LD_IMM64, (dst as u8, PSEUDO_MAP_VALUE), 0, map_fd).push(0, (0, 0), 0, 0)
    }
    /// `dst =` the address of a variable of the kernel, by its BTF id.
    pub fn kernel_variable(&mut self, dst: Reg, btf_id: u32) -> &mut Self {
        self.push(LD_IMM64, (dst as u8, PSEUDO_BTF_ID), 0, btf_id as i32).push(0, (0, 0), 0, 0)
    }
    /// `dst = *(base + offset)`, zero-extended.
    pub fn load(&mut self, width: Width, dst: Reg, base: Reg, offset: i16) -> &mut Self {
        self.push(LDX_MEM | width as u8, (dst as u8, base as u8), offset, 0)
    }
    /// `*(base + offset) = src`.
    pub fn store(&mut self, width: Width, base: Reg, offset: i16, src: Reg) -> &mut Self {
        self.push(STX_MEM | width as u8, (base as u8, src as u8), offset, 0)
    }
    /// `*(base + offset) = value`.
    pub fn store_imm(&mut self, width: Width, base: Reg, offset: i16, value: i32) -> &mut Self {
        self.push(ST_MEM | width as u8, (base as u8, 0), offset, value)
    }
    /// `dst += value`.
    pub fn add_imm(&mut self, dst: Reg, value: i32) -> &mut Self {
        self.push(ADD64_IMM, (dst as u8, 0), 0, value)
    }
    /// `dst -= src`.
    pub fn sub(&mut self, dst: Reg, src: Reg) -> &mut Self {
        self.push(SUB64_REG, (dst as u8, src as u8), 0, 0)
    }
    /// `dst |= src`.
    pub fn or(&mut self, dst: Reg, src: Reg) -> &mut Self {
        self.push(OR64_REG, (dst as u8, src as u8), 0, 0)
    }
    /// `dst &= value`.
    pub fn and_imm(&mut self, dst: Reg, value: i32) -> &mut Self {
        self.push(AND64_IMM, (dst as u8, 0), 0, value)
    }
    /// Atomically: where `*base` equals r0 it becomes `new`; r0 becomes what it was (64 bits).
    pub fn compare_exchange(&mut self, base: Reg, new: Reg) -> &mut Self {
        self.push(STX_ATOMIC_DOUBLE, (base as u8, new as u8), 0, CMPXCHG)
    }
    /// Atomically: adds `value` to `*base`; `value` becomes what was there (64 bits).
    pub fn fetch_add(&mut self, base: Reg, value: Reg) -> &mut Self {
        self.push(STX_ATOMIC_DOUBLE, (base as u8, value as u8), 0, FETCH_ADD)
    }
    /// Jumps where `left` compares so with a number.
    pub fn jump_imm(&mut self, when: When, left: Reg, right: i32, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.push(JMP_IMM | when as u8, (left as u8, 0), 0, right)
    }
    /// Jumps where `left` compares so with another register.
    pub fn jump_reg(&mut self, when: When, left: Reg, right: Reg, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.push(JMP_REG | when as u8, (left as u8, right as u8), 0, 0)
    }
    /// Jumps.
    pub fn jump(&mut self, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.push(JMP_IMM, (0, 0), 0, 0)
    }
    /// Calls a helper by its number (enum bpf_func_id, include/uapi/linux/bpf.h).
    pub fn call_helper(&mut self, number: i32) -> &mut Self {
        self.push(CALL, (0, 0), 0, number)
    }
    /// Calls a function of the kernel by its BTF id.
    pub fn call_kfunc(&mut self, btf_id: u32) -> &mut Self {
        self.push(CALL, (0, PSEUDO_KFUNC_CALL), 0, btf_id as i32)
    }
    /// Returns r0.
    pub fn exit(&mut self) -> &mut Self {
        self.push(EXIT, (0, 0), 0, 0)
    }

    /// The finished code.
    pub fn finish(mut self) -> Result<Vec<Insn>, String> {
        for (at, label) in &self.jumps {
            let target =
                self.labels[label.0].ok_or_else(|| format!("jump at {at} goes to a label that is not bound"))?;
            if target >= self.code.len() {
                return Err(format!("jump at {at} goes past the end"));
            }
            // Distances count from the next instruction.
            let distance =
                i16::try_from(target as i64 - *at as i64 - 1).map_err(|_| format!("jump at {at} is too far"))?;
            self.code[*at][2..4].copy_from_slice(&distance.to_le_bytes());
        }
        Ok(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::Reg::*;
    use super::*;

    fn one(write: impl FnOnce(&mut Asm)) -> Vec<Insn> {
        let mut asm = Asm::new();
        write(&mut asm);
        asm.finish().unwrap()
    }

    // The expected bytes are those that llvm-mc -triple=bpfel -show-encoding prints for the instruction named.
    #[test]
    fn moves_and_loads_have_their_golden_encoding() {
        assert_eq!(one(|a| _ = a.mov_imm(R0, -1)), [[0xb7, 0x00, 0, 0, 0xff, 0xff, 0xff, 0xff]]); // r0 = -1
        assert_eq!(one(|a| _ = a.mov(R6, R1)), [[0xbf, 0x16, 0, 0, 0, 0, 0, 0]]); // r6 = r1
        assert_eq!(one(|a| _ = a.load(Width::Double, R1, R6, 8)), [[0x79, 0x61, 8, 0, 0, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.load(Width::Word, R2, R7, 2808)), [[0x61, 0x72, 0xf8, 0x0a, 0, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.load(Width::Byte, R3, R7, -2)), [[0x71, 0x73, 0xfe, 0xff, 0, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.load(Width::Half, R3, R7, 0)), [[0x69, 0x73, 0, 0, 0, 0, 0, 0]]);
        assert_eq!(
            one(|a| _ = a.load_imm64(R2, 0x8000_0000_0000_0001)),
            [[0x18, 0x02, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0x80]]
        );
        assert_eq!(one(|a| _ = a.map_value(R1, 7)), [[0x18, 0x21, 0, 0, 7, 0, 0, 0], [0; 8]]);
    }

    #[test]
    fn stores_and_arithmetic_have_their_golden_encoding() {
        assert_eq!(one(|a| _ = a.store(Width::Double, R10, -8, R1)), [[0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.store_imm(Width::Byte, R7, 5, 1)), [[0x72, 0x07, 5, 0, 1, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.add_imm(R1, -64)), [[0x07, 0x01, 0, 0, 0xc0, 0xff, 0xff, 0xff]]);
        assert_eq!(one(|a| _ = a.sub(R8, R0)), [[0x1f, 0x08, 0, 0, 0, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.or(R2, R0)), [[0x4f, 0x02, 0, 0, 0, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.and_imm(R1, 1)), [[0x57, 0x01, 0, 0, 1, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.call_helper(5)), [[0x85, 0, 0, 0, 5, 0, 0, 0]]);
        assert_eq!(
            one(|a| {
                let end = a.label();
                a.jump(end).bind(end).exit();
            })[0],
            [0x05, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn calls_atomics_and_exit_have_their_golden_encoding() {
        assert_eq!(one(|a| _ = a.call_kfunc(103_516)), [[0x85, 0x20, 0, 0, 0x5c, 0x94, 0x01, 0]]);
        assert_eq!(one(|a| _ = a.compare_exchange(R1, R2)), [[0xdb, 0x21, 0, 0, 0xf1, 0, 0, 0]]);
        assert_eq!(one(|a| _ = a.exit()), [[0x95, 0, 0, 0, 0, 0, 0, 0]]);
    }

    #[test]
    fn jumps_count_slots_from_the_next_instruction() {
        let code = one(|a| {
            let (back, forth) = (a.label(), a.label());
            a.bind(back).jump_imm(When::NotEqual, R1, 107, forth);
            a.load_imm64(R2, 1);
            a.bind(forth).jump_reg(When::Equal, R0, R2, back).exit();
        });
        assert_eq!(code[0], [0x55, 0x01, 2, 0, 107, 0, 0, 0]);
        assert_eq!(code[3], [0x1d, 0x20, 0xfc, 0xff, 0, 0, 0, 0]);
        assert_eq!(
            one(|a| {
                let end = a.label();
                a.jump_imm(When::Below, R1, 48, end).jump_imm(When::Above, R1, 57, end).bind(end).exit();
            })[..2],
            [[0xa5, 0x01, 1, 0, 48, 0, 0, 0], [0x25, 0x01, 0, 0, 57, 0, 0, 0]]
        );
    }

    #[test]
    fn jumps_to_nowhere_are_refused() {
        let mut asm = Asm::new();
        let label = asm.label();
        asm.jump_imm(When::Equal, R0, 0, label).exit();
        assert!(asm.finish().unwrap_err().contains("not bound"));
        let mut asm = Asm::new();
        let label = asm.label();
        asm.jump_imm(When::Equal, R0, 0, label).exit().bind(label);
        assert!(asm.finish().unwrap_err().contains("past the end"));
        let mut asm = Asm::new();
        let label = asm.label();
        asm.jump_imm(When::Equal, R0, 0, label);
        for _ in 0..40_000 {
            asm.mov(R0, R0);
        }
        asm.bind(label).exit();
        assert!(asm.finish().unwrap_err().contains("too far"));
    }
}
