//! The guest of the freeze check: the code of two vCPUs, as bytes, and where everything lies in its memory.
//!
//! Owns the programs and the tables; leaves running them to freeze_check.
//! Invariant: what a handler changes of registers, the program that it interrupts does not need.

use super::x86::layout::{BOOT_STACK_GPA, GDT_GPA, PAGE_TABLES_GPA};
use super::x86::regs::{self, BOOT_CS};

pub const MEMORY_BYTES: u64 = 2 << 20;
const CODE_GPA: u64 = 0x1_0000;
const SECOND_CODE_GPA: u64 = 0x1_0800;
const HANDLER_GPA: u64 = 0x1_1000;
const CALL_HANDLER_GPA: u64 = 0x1_1100;
const SECOND_HANDLER_GPA: u64 = 0x1_1200;
pub const IDT_GPA: u64 = 0x1_2000;
/// Ticks counted by each vCPU; then what its handler stores of XMM0, and what it was loaded with. The code knows these
/// places by their numbers.
pub const COUNTER_GPA: u64 = 0x1_3000;
pub const STORED_GPA: u64 = 0x1_3010;
const PATTERN_GPA: u64 = 0x1_3020;
pub const SECOND_COUNTER_GPA: u64 = 0x1_3030;
pub const SECOND_STORED_GPA: u64 = 0x1_3040;
const SECOND_PATTERN_GPA: u64 = 0x1_3050;
/// Interrupts from the second vCPU, counted by the first.
pub const CALLS_GPA: u64 = 0x1_3060;
pub const PATTERN: u64 = 0x5EED_CAFE_0B57_AC1E;
pub const SECOND_PATTERN: u64 = 0x0DD5_0CEA_2BAD_C0DE;
/// The guest puts it into COM1's scratch register once; each tick sends what is there.
pub const SCRATCH: u8 = b'f';
const SECOND_STACK_GPA: u64 = 0x1_8FF0;
/// Where each vCPU begins: code and stack.
pub const ENTRIES: [(u64, u64); 2] = [(CODE_GPA, BOOT_STACK_GPA), (SECOND_CODE_GPA, SECOND_STACK_GPA)];

/// Vectors: the first of the interrupt controller, as the guest programs it; the second vCPU's timer; its calls.
const TIMER_VECTOR: u64 = 0x20;
const SECOND_VECTOR: u64 = 0x30;
const CALL_VECTOR: u64 = 0x31;
const GATE_BYTES: u64 = 16;
const GATE_PRESENT_INTERRUPT: u64 = 0x8E;
pub const IDT_LIMIT: u16 = ((CALL_VECTOR + 1) * GATE_BYTES - 1) as u16;

/// Programs the interrupt controllers (vectors from 0x20, only the timer let through), the timer (channel 0, rate
/// generator, 11,932 of 1.193182 MHz: 100 a second) and COM1's scratch register; switches the local APIC on, for calls;
/// loads XMM0; then halts for ever.
const CODE: [u8; 75] = [
    0xB0, 0x11, 0xE6, 0x20, 0xB0, 0x20, 0xE6, 0x21, 0xB0, 0x04, 0xE6, 0x21, 0xB0, 0x01, 0xE6,
    0x21, // 8259: ICW1 to ICW4
    0xB0, 0xFE, 0xE6, 0x21, // mask all but line 0
    0xB0, 0x34, 0xE6, 0x43, 0xB0, 0x9C, 0xE6, 0x40, 0xB0, 0x2E, 0xE6, 0x40, // 8254: mode 2, 0x2E9C
    0x66, 0xBA, 0xFF, 0x03, 0xB0, SCRATCH, 0xEE, // mov dx, 0x3FF; mov al, SCRATCH; out dx, al
    0xB9, 0x0F, 0x08, 0x00, 0x00, 0xB8, 0xFF, 0x01, 0x00, 0x00, // mov ecx, x2APIC SVR; mov eax, enabled and 0xFF
    0x31, 0xD2, 0x0F, 0x30, // xor edx, edx; wrmsr
    0xBF, 0x20, 0x30, 0x01, 0x00, 0x0F, 0x10, 0x07, // mov edi, PATTERN_GPA; movups xmm0, [rdi]
    0xBB, 0x00, 0x30, 0x01, 0x00, // mov ebx, COUNTER_GPA
    0xBF, 0x10, 0x30, 0x01, 0x00, // mov edi, STORED_GPA
    0xFB, // sti
    0xF4, // hlt
    0xEB, 0xFD, // jmp to the hlt
];
/// Counts, stores XMM0, sends the scratch register's content, ends the interrupt. RBX and RDI are the main program's.
const HANDLER: [u8; 22] = [
    0x48, 0xFF, 0x03, // inc qword [rbx]
    0x0F, 0x11, 0x07, // movups [rdi], xmm0
    0x66, 0xBA, 0xFF, 0x03, 0xEC, // mov dx, 0x3FF; in al, dx
    0x66, 0xBA, 0xF8, 0x03, 0xEE, // mov dx, 0x3F8; out dx, al
    0xB0, 0x20, 0xE6, 0x20, // mov al, 0x20; out 0x20, al
    0x48, 0xCF, // iretq
];
/// Counts a call of the second vCPU.
const CALL_HANDLER: [u8; 17] = [
    0x48, 0xFF, 0x43, 0x60, // inc qword [rbx + CALLS_GPA - COUNTER_GPA]
    0xB9, 0x0B, 0x08, 0x00, 0x00, // mov ecx, x2APIC EOI
    0x31, 0xC0, 0x31, 0xD2, 0x0F, 0x30, // xor eax, eax; xor edx, edx; wrmsr
    0x48, 0xCF, // iretq
];
/// Switches the local APIC on and starts its timer (SDM vol. 3, 11.5.4: divided by 1, periodic, 10,000,000 of KVM's 1 GHz:
/// 100 a second); loads XMM0; then halts for ever.
const SECOND_CODE: [u8; 72] = [
    0xB9, 0x0F, 0x08, 0x00, 0x00, 0xB8, 0xFF, 0x01, 0x00, 0x00, // mov ecx, x2APIC SVR; mov eax, enabled and 0xFF
    0x31, 0xD2, 0x0F, 0x30, // xor edx, edx; wrmsr
    0xB9, 0x3E, 0x08, 0x00, 0x00, 0xB8, 0x0B, 0x00, 0x00, 0x00, 0x0F, 0x30, // divide configuration: by 1
    0xB9, 0x32, 0x08, 0x00, 0x00, 0xB8, 0x30, 0x00, 0x02, 0x00, 0x0F, 0x30, // LVT timer: periodic, SECOND_VECTOR
    0xB9, 0x38, 0x08, 0x00, 0x00, 0xB8, 0x80, 0x96, 0x98, 0x00, 0x0F, 0x30, // initial count
    0xBF, 0x50, 0x30, 0x01, 0x00, 0x0F, 0x10, 0x07, // mov edi, SECOND_PATTERN_GPA; movups xmm0, [rdi]
    0xBB, 0x30, 0x30, 0x01, 0x00, // mov ebx, SECOND_COUNTER_GPA
    0xBF, 0x40, 0x30, 0x01, 0x00, // mov edi, SECOND_STORED_GPA
    0xFB, // sti
    0xF4, // hlt
    0xEB, 0xFD, // jmp to the hlt
];
/// Counts, stores XMM0, calls the first vCPU, ends the interrupt.
const SECOND_HANDLER: [u8; 31] = [
    0x48, 0xFF, 0x03, // inc qword [rbx]
    0x0F, 0x11, 0x07, // movups [rdi], xmm0
    0xB9, 0x30, 0x08, 0x00, 0x00, 0xB8, 0x31, 0x00, 0x00, 0x00, // mov ecx, x2APIC ICR; mov eax, CALL_VECTOR
    0x31, 0xD2, 0x0F, 0x30, // xor edx, edx: to vCPU 0; wrmsr
    0xB9, 0x0B, 0x08, 0x00, 0x00, 0x31, 0xC0, 0x0F, 0x30, // mov ecx, x2APIC EOI; xor eax, eax; wrmsr
    0x48, 0xCF, // iretq
];

/// What lies in the guest's memory at its start.
pub fn content() -> Vec<(u64, Vec<u8>)> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let gate = |vector: u64, handler: u64| {
        let gate = (handler & 0xFFFF)
            | u64::from(BOOT_CS) << 16
            | GATE_PRESENT_INTERRUPT << 40
            | (handler >> 16 & 0xFFFF) << 48;
        (IDT_GPA + vector * GATE_BYTES, words(&[gate, 0]))
    };
    vec![
        (GDT_GPA, words(&regs::gdt())),
        (PAGE_TABLES_GPA, words(&regs::page_tables())),
        (CODE_GPA, CODE.to_vec()),
        (SECOND_CODE_GPA, SECOND_CODE.to_vec()),
        (HANDLER_GPA, HANDLER.to_vec()),
        (CALL_HANDLER_GPA, CALL_HANDLER.to_vec()),
        (SECOND_HANDLER_GPA, SECOND_HANDLER.to_vec()),
        gate(TIMER_VECTOR, HANDLER_GPA),
        gate(SECOND_VECTOR, SECOND_HANDLER_GPA),
        gate(CALL_VECTOR, CALL_HANDLER_GPA),
        (PATTERN_GPA, words(&[PATTERN, 0])),
        (SECOND_PATTERN_GPA, words(&[SECOND_PATTERN, 0])),
    ]
}
