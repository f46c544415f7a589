//! Exits: counting them by kind, and putting into words why a VM could not go on.
//!
//! Owns the names and the decoding; leaves getting the numbers out of KVM to kvm and vcpu.
//! Invariant: pure: numbers in, text out.

use super::bus::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of exit that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Halt,
    Shutdown,
    SystemEvent,
    InternalError,
    FailEntry,
    Interrupted,
    Other,
}

const KINDS: [(ExitKind, &str); 11] = [
    (ExitKind::IoIn, "io-in"),
    (ExitKind::IoOut, "io-out"),
    (ExitKind::MmioRead, "mmio-read"),
    (ExitKind::MmioWrite, "mmio-write"),
    (ExitKind::Halt, "halt"),
    (ExitKind::Shutdown, "shutdown"),
    (ExitKind::SystemEvent, "system-event"),
    (ExitKind::InternalError, "internal-error"),
    (ExitKind::FailEntry, "fail-entry"),
    (ExitKind::Interrupted, "interrupted"),
    (ExitKind::Other, "other"),
];

/// Begins the names of counts that are KVM's own: of exits that it handled itself, too.
pub const KVM_COUNT: &str = "kvm:";

/// Exits of all vCPUs by kind.
#[derive(Debug, Default)]
pub struct ExitCounts {
    kinds: [AtomicU64; KINDS.len()],
    kvm: Mutex<BTreeMap<String, u64>>,
}

impl ExitCounts {
    pub fn add(&self, kind: ExitKind) {
        self.kinds[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
    /// Adds KVM's own counts of one vCPU.
    pub fn add_kvm(&self, counts: Vec<(String, u64)>) {
        let mut sums = lock(&self.kvm);
        for (name, count) in counts {
            *sums.entry(name).or_default() += count;
        }
    }
    /// The kinds that occurred.
    pub fn list(&self) -> Vec<(String, u64)> {
        let own =
            |(kind, name): &(ExitKind, &str)| (String::from(*name), self.kinds[*kind as usize].load(Ordering::Relaxed));
        let kvm = lock(&self.kvm);
        let kvm = kvm.iter().map(|(name, count)| (format!("{KVM_COUNT}{name}"), *count));
        KINDS.iter().map(own).chain(kvm).filter(|(_, count)| *count > 0).collect()
    }
}

/// KVM_EXIT_INTERNAL_ERROR, as KVM gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InternalError {
    pub suberror: u32,
    pub data: Vec<u64>,
    /// The bytes of the instruction, where KVM told them.
    pub instruction: Vec<u8>,
}

/// Where a vCPU stood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    pub rip: u64,
    pub rsp: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// CS is a 64-bit, or else a 32-bit, code segment.
    pub cs_long: bool,
    pub cs_32: bool,
    /// Guest memory at RIP, where it could be read.
    pub code: Vec<u8>,
}

const CR0_PROTECTED: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const EFER_LONG: u64 = 1 << 10;

impl CpuState {
    pub fn mode(&self) -> &'static str {
        let paging = self.cr0 & CR0_PAGING != 0;
        match (self.cr0 & CR0_PROTECTED != 0, self.efer & EFER_LONG != 0, self.cs_long, self.cs_32) {
            (false, ..) => "real mode",
            (true, true, true, _) => "64-bit mode with paging",
            (true, true, false, _) => "compatibility mode with paging",
            (true, false, _, true) if paging => "32-bit protected mode with paging",
            (true, false, _, true) => "32-bit protected mode without paging",
            _ => "16-bit protected mode",
        }
    }
    pub fn is_64_bit(&self) -> bool {
        self.efer & EFER_LONG != 0 && self.cs_long
    }
}

/// Suberrors (include/uapi/linux/kvm.h).
const SUBERROR_EMULATION: u32 = 1;
const SUBERRORS: [(u32, &str); 4] = [
    (SUBERROR_EMULATION, "emulation failure"),
    (2, "simultaneous exceptions"),
    (3, "exit while delivering an event"),
    (4, "unexpected exit reason of the hardware"),
];

/// The words for a host CPU without VMX and SVM.
pub const NO_HARDWARE_VIRTUALIZATION: &str =
    "KVM without hardware virtualization interprets the guest and lacks this instruction";

/// KVM_EXIT_INTERNAL_ERROR in words. `host_virtualizes`: whether the host's CPU shows VMX or SVM.
pub fn internal_error_text(error: &InternalError, state: &CpuState, host_virtualizes: bool) -> String {
    let name = SUBERRORS.iter().find(|(number, _)| *number == error.suberror).map_or("unknown", |(_, name)| *name);
    let bytes = if error.instruction.is_empty() { &state.code } else { &error.instruction };
    let hex = if bytes.is_empty() {
        "unreadable".to_owned()
    } else {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
    };
    let instruction = instruction_name(bytes, state.is_64_bit());
    let shown = instruction.map_or(String::new(), |name| format!(" ({name})"));
    let mut text = format!(
        "KVM internal error, suberror {} ({name}) at RIP {:#x} in {}, instruction bytes {hex}{shown}, RSP {:#x}, \
         CR0 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}",
        error.suberror,
        state.rip,
        state.mode(),
        state.rsp,
        state.cr0,
        state.cr3,
        state.cr4,
        state.efer
    );
    let cause = match (error.suberror, host_virtualizes) {
        (SUBERROR_EMULATION, false) => NO_HARDWARE_VIRTUALIZATION,
        (SUBERROR_EMULATION, true) => {
            "the guest used an instruction that KVM does not emulate on an address that is not RAM, or went astray"
        }
        _ => {
            let data: Vec<String> = error.data.iter().map(|word| format!("{word:#x}")).collect();
            text.push_str(&format!(", data [{}]", data.join(" ")));
            "a bug of the guest's early boot, of KVM or of the hardware; see the host's kernel log"
        }
    };
    text.push_str("; likely cause: ");
    text.push_str(cause);
    text
}

/// Reasons that hardware gives for refusing to enter the guest (Intel SDM vol. 3, 26.8 and 30.4; AMD APM vol. 2, 15.20).
const FAIL_REASONS: [(u64, &str); 6] = [
    (0x8000_0021, "VMX: invalid guest state"),
    (0x8000_0022, "VMX: loading of guest MSRs failed"),
    (0x8000_0029, "VMX: machine check during the entry"),
    (7, "VMX: invalid control fields"),
    (8, "VMX: invalid host state"),
    (u64::MAX, "SVM: invalid guest state (VMEXIT_INVALID)"),
];

/// KVM_EXIT_FAIL_ENTRY in words.
pub fn fail_entry_text(reason: u64, host_cpu: u32, state: &CpuState) -> String {
    let name = FAIL_REASONS.iter().find(|(number, _)| *number == reason).map_or("unknown reason", |(_, name)| *name);
    format!(
        "the hardware refused to enter the guest on host CPU {host_cpu}: reason {reason:#x}, {name}; RIP {:#x} in {}, \
         CR0 {:#x}, CR4 {:#x}, EFER {:#x}",
        state.rip,
        state.mode(),
        state.cr0,
        state.cr4,
        state.efer
    )
}

/// Legacy prefixes (Intel SDM vol. 2A, 2.1.1).
const PREFIXES: [u8; 11] = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3];

/// The name of an instruction that KVM's interpreter is known to lack or that is easily mistaken; no disassembler.
pub fn instruction_name(bytes: &[u8], is_64_bit: bool) -> Option<&'static str> {
    let prefixes = bytes.iter().take_while(|byte| PREFIXES.contains(byte)).count();
    let repeat = bytes[..prefixes].contains(&0xF3);
    let mut code = &bytes[prefixes..];
    let mut wide = false;
    if let (true, Some(rex @ 0x40..=0x4F)) = (is_64_bit, code.first()) {
        wide = rex & 8 != 0;
        code = &code[1..];
    }
    let modrm = code.get(2).copied().unwrap_or(0);
    let (register, in_register) = (modrm >> 3 & 7, modrm >> 6 == 3);
    Some(match (code.first()?, code.get(1)) {
        (0xCC, _) => "int3",
        (0xCD, _) => "int",
        (0xCF, _) => "iret",
        (0x62, _) if is_64_bit => "an AVX-512 instruction",
        (0xC4, Some(map)) if is_64_bit => match (map & 0x1F, code.get(3)) {
            (2, Some(0xF2..=0xF7)) | (3, Some(0xF0)) => "a BMI instruction",
            _ => "an AVX instruction",
        },
        (0xC5, _) if is_64_bit => "an AVX instruction",
        (0x0F, Some(0x05)) => "syscall",
        (0x0F, Some(0x0B)) => "ud2",
        (0x0F, Some(0xB8)) if repeat => "popcnt",
        (0x0F, Some(0xBC)) if repeat => "tzcnt",
        (0x0F, Some(0xBD)) if repeat => "lzcnt",
        (0x0F, Some(0x38)) if matches!(modrm, 0xF0 | 0xF1) => "movbe or crc32",
        (0x0F, Some(0x01)) => match modrm {
            0xCA => "clac",
            0xCB => "stac",
            0xD0 => "xgetbv",
            0xD1 => "xsetbv",
            0xF8 => "swapgs",
            0xF9 => "rdtscp",
            _ => return None,
        },
        (0x0F, Some(0xC7)) => match (register, in_register) {
            (1, false) if wide => "cmpxchg16b",
            (1, false) => "cmpxchg8b",
            (3, false) => "xrstors",
            (4, false) => "xsavec",
            (5, false) => "xsaves",
            (6, true) => "rdrand",
            (7, true) if repeat => "rdpid",
            (7, true) => "rdseed",
            _ => return None,
        },
        (0x0F, Some(0xAE)) => match (register, in_register) {
            (0..=3, true) if repeat => "an FSGSBASE instruction",
            (0, false) => "fxsave",
            (1, false) => "fxrstor",
            (4, false) => "xsave",
            (5, false) => "xrstor",
            (6, false) => "xsaveopt",
            _ => return None,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_mode() -> CpuState {
        let (cr0, efer) = (CR0_PROTECTED | CR0_PAGING, EFER_LONG);
        CpuState { rip: 0xFFFF_FFFF_8100_0000, cr0, efer, cs_long: true, ..CpuState::default() }
    }

    #[test]
    fn emulation_failure_names_rip_bytes_mode_and_cause() {
        let error = InternalError { suberror: 1, data: vec![], instruction: vec![0xF0, 0x48, 0x0F, 0xC7, 0x0F] };
        let text = internal_error_text(&error, &long_mode(), false);
        for word in [
            "suberror 1 (emulation failure)",
            "0xffffffff81000000",
            "64-bit mode with paging",
            "f0 48 0f c7 0f (cmpxchg16b)",
            NO_HARDWARE_VIRTUALIZATION,
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(internal_error_text(&error, &long_mode(), true).contains("not RAM"));
    }

    #[test]
    fn bytes_come_from_memory_where_kvm_told_none() {
        let state = CpuState { code: vec![0xCC], ..long_mode() };
        let text = internal_error_text(&InternalError { suberror: 1, ..Default::default() }, &state, false);
        assert!(text.contains("instruction bytes cc (int3)"), "{text}");
        let text = internal_error_text(&InternalError { suberror: 1, ..Default::default() }, &long_mode(), false);
        assert!(text.contains("unreadable"), "{text}");
    }

    #[test]
    fn other_suberrors_show_their_data() {
        let error = InternalError { suberror: 3, data: vec![0x80, 5], instruction: vec![] };
        let text = internal_error_text(&error, &CpuState::default(), true);
        assert!(text.contains("exit while delivering") && text.contains("[0x80 0x5]"), "{text}");
        assert!(text.contains("real mode"));
        let unknown = InternalError { suberror: 99, ..InternalError::default() };
        assert!(internal_error_text(&unknown, &long_mode(), true).contains("suberror 99 (unknown)"));
    }

    #[test]
    fn fail_entry_names_the_hardware_reason() {
        assert!(fail_entry_text(0x8000_0021, 3, &long_mode()).contains("invalid guest state"));
        assert!(fail_entry_text(u64::MAX, 0, &long_mode()).contains("SVM"));
        assert!(fail_entry_text(0x1234, 0, &long_mode()).contains("0x1234, unknown reason"));
    }

    #[test]
    fn instructions_a_kernel_needs_are_named() {
        for (bytes, name) in [
            (&[0xCC][..], "int3"),
            (&[0x48, 0x0F, 0xC7, 0x0F], "cmpxchg16b"),
            (&[0x0F, 0xC7, 0x0F], "cmpxchg8b"),
            (&[0x48, 0x0F, 0xAE, 0x27], "xsave"),
            (&[0xC4, 0xE2, 0xFB, 0xF7, 0xC0], "a BMI instruction"),
            (&[0xC5, 0xF8, 0x28, 0xC1], "an AVX instruction"),
            (&[0x0F, 0x01, 0xD1], "xsetbv"),
            (&[0xF3, 0x48, 0x0F, 0xAE, 0xD0], "an FSGSBASE instruction"),
            (&[0xF3, 0x0F, 0xB8, 0xC0], "popcnt"),
        ] {
            assert_eq!(instruction_name(bytes, true), Some(name));
        }
        for bytes in [&[][..], &[0xF0], &[0x48], &[0x0F], &[0x90], &[0xC4]] {
            assert_eq!(instruction_name(bytes, true), None);
        }
    }

    #[test]
    fn counts_list_only_what_occurred() {
        assert!(KINDS.iter().enumerate().all(|(index, (kind, _))| *kind as usize == index));
        let counts = ExitCounts::default();
        counts.add(ExitKind::IoOut);
        counts.add(ExitKind::IoOut);
        counts.add(ExitKind::Other);
        counts.add_kvm(vec![("exits".into(), 5)]);
        counts.add_kvm(vec![("exits".into(), 2)]);
        assert_eq!(counts.list(), [("io-out".to_owned(), 2), ("other".to_owned(), 1), ("kvm:exits".to_owned(), 7)]);
    }
}
