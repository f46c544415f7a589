//! Where the vCPUs of a hung guest stood.
//!
//! Owns the values and their text; leaves reading them to vmm/ and run/, naming addresses to run/symbols.
//! Invariant: a vCPU that could not be read says why; a zero is a zero.

use crate::wire_struct;

wire_struct! {
    /// One vCPU.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct CpuDump {
        pub cpu: u32,
        pub rip: u64,
        pub rsp: u64,
        pub rflags: u64,
        pub cr0: u64,
        pub cr2: u64,
        pub cr3: u64,
        pub cr4: u64,
        pub efer: u64,
        pub cs: u32,
        /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15; empty where they are not known.
        pub general: Vec<u64>,
        /// `64-bit mode with paging` and the like.
        pub mode: String,
        /// `running`, `halted` and the like; empty where it is not known.
        pub activity: String,
        /// Guest memory at RIP, where it is mapped.
        pub code: Vec<u8>,
        /// Guest memory at RSP, as words.
        pub stack: Vec<u64>,
        /// RIP as `function+0x12`; empty where no symbols are at hand.
        pub symbol: String,
        /// What of the stack looks like return addresses, as symbols.
        pub trace: Vec<String>,
        /// Why there is nothing to tell.
        pub missing: Option<String>,
    }
}

/// Names of `general`, in order.
pub const GENERAL: [&str; 15] =
    ["RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"];
/// General registers on one line of text.
const ON_A_LINE: usize = 4;

impl CpuDump {
    /// A vCPU that could not be read.
    pub fn missing(cpu: u32, why: impl Into<String>) -> Self {
        Self { cpu, missing: Some(why.into()), ..Self::default() }
    }

    /// One line: where it stood.
    pub fn headline(&self) -> String {
        if let Some(why) = &self.missing {
            return format!("CPU {}: {why}", self.cpu);
        }
        let symbol = if self.symbol.is_empty() { String::new() } else { format!(" {}", self.symbol) };
        let activity = if self.activity.is_empty() { String::new() } else { format!(", {}", self.activity) };
        format!("CPU {}: RIP {:016x}{symbol}, {}{activity}", self.cpu, self.rip, self.mode)
    }

    /// Everything, in lines.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.headline());
        if self.missing.is_some() {
            return text;
        }
        let named = GENERAL.iter().zip(&self.general).collect::<Vec<_>>();
        for line in named.chunks(ON_A_LINE) {
            let words: Vec<String> = line.iter().map(|(name, value)| format!("{name} {value:016x}")).collect();
            text.push_str(&format!("  {}\n", words.join("  ")));
        }
        text.push_str(&format!("  RSP {:016x}  RFLAGS {:08x}  CS {:04x}\n", self.rsp, self.rflags, self.cs));
        let control = [("CR0", self.cr0), ("CR2", self.cr2), ("CR3", self.cr3), ("CR4", self.cr4), ("EFER", self.efer)];
        let words: Vec<String> = control.iter().map(|(name, value)| format!("{name} {value:x}")).collect();
        text.push_str(&format!("  {}\n", words.join("  ")));
        let code: Vec<String> = self.code.iter().map(|byte| format!("{byte:02x}")).collect();
        if !code.is_empty() {
            text.push_str(&format!("  code {}\n", code.join(" ")));
        }
        for line in self.stack.chunks(ON_A_LINE) {
            let words: Vec<String> = line.iter().map(|word| format!("{word:016x}")).collect();
            text.push_str(&format!("  stack {}\n", words.join(" ")));
        }
        for symbol in &self.trace {
            text.push_str(&format!("  ? {symbol}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    fn dump() -> CpuDump {
        CpuDump {
            cpu: 1,
            rip: 0xFFFF_FFFF_8100_0012,
            general: vec![1, 2, 3, 4, 5],
            mode: "64-bit mode with paging".into(),
            activity: "halted".into(),
            code: vec![0xEB, 0xFE],
            stack: vec![7],
            symbol: "native_halt+0x2".into(),
            trace: vec!["cpu_idle+0x9".into()],
            ..CpuDump::default()
        }
    }

    #[test]
    fn round_trip_and_cut_at_every_byte() {
        let bytes = dump().to_bytes();
        assert_eq!(CpuDump::from_bytes(&bytes).unwrap(), dump());
        assert!((0..bytes.len()).all(|cut| CpuDump::from_bytes(&bytes[..cut]).is_err()));
    }

    #[test]
    fn text_has_what_a_reader_needs_first() {
        let text = dump().text();
        let first = "CPU 1: RIP ffffffff81000012 native_halt+0x2, 64-bit mode with paging, halted\n";
        assert!(text.starts_with(first), "{text}");
        for part in ["RAX 0000000000000001  RBX", "code eb fe", "stack 0000000000000007", "? cpu_idle+0x9", "CR2 0"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(CpuDump::missing(3, "it did not leave the guest").text(), "CPU 3: it did not leave the guest\n");
    }
}
