//! The emulator's words for registers: `info registers -a`, asked through its monitor.
//!
//! Owns the question and reading the answer; leaves the monitor's line to qemu.rs.
//! Invariant: any text is an answer; what is not understood in it is left out.

use crate::proto::registers::{CpuDump, GENERAL};

/// The question (qapi/misc.json, human-monitor-command).
pub const ASK: &[u8] =
    b"{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"info registers -a\"}}\n";
/// What every answer has.
const MARK: &str = "RIP=";
/// Control register and EFER bits (Intel SDM vol. 3, 2.5 and 2.2.1).
const CR0_PROTECTED: u64 = 1;
const EFER_LONG: u64 = 1 << 10;

/// The registers in a line of the monitor, where it is the answer.
pub fn registers(line: &str) -> Option<Vec<CpuDump>> {
    let text = unescaped(line.split_once("\"return\"")?.1.split_once('"')?.1);
    text.contains(MARK).then(|| {
        let parts: Vec<&str> = text.split("CPU#").filter(|part| part.contains(MARK)).collect();
        parts.iter().enumerate().map(|(index, part)| cpu(index as u32, part)).collect()
    })
}

/// A JSON string's text up to its closing quote (RFC 8259, section 7).
fn unescaped(json: &str) -> String {
    let mut text = String::new();
    let mut rest = json.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' => break,
            '\\' => match rest.next() {
                Some('n') => text.push('\n'),
                Some('r') | None => {}
                Some('t') => text.push(' '),
                Some(other) => text.push(other),
            },
            c => text.push(c),
        }
    }
    text
}

/// One CPU's part: its number, where it has one, then `NAME=VALUE` words.
fn cpu(index: u32, text: &str) -> CpuDump {
    let word = |name: &str| {
        let value = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        u64::from_str_radix(value, 16).ok()
    };
    // Short names are padded: `R8 =0000000000000000`, `CS =0010 ...`.
    let padded = |name: &str| {
        let (_, rest) = text.split_once(&format!("{name} ="))?;
        u64::from_str_radix(rest.split_whitespace().next()?, 16).ok()
    };
    let of = |name: &str| word(name).or_else(|| padded(name)).unwrap_or(0);
    let (cr0, efer) = (of("CR0"), of("EFER"));
    let mode = match (cr0 & CR0_PROTECTED != 0, efer & EFER_LONG != 0, text.contains(" CS64 ")) {
        (false, ..) => "real mode",
        (true, true, true) => "64-bit mode with paging",
        (true, true, false) => "compatibility mode with paging",
        (true, false, _) => "protected mode",
    };
    CpuDump {
        cpu: text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(index),
        rip: of("RIP"),
        rsp: of("RSP"),
        rflags: of("RFL"),
        cr0,
        cr2: of("CR2"),
        cr3: of("CR3"),
        cr4: of("CR4"),
        efer,
        cs: padded("CS").unwrap_or(0) as u32,
        general: GENERAL.iter().map(|name| of(name)).collect(),
        mode: mode.into(),
        activity: if of("HLT") == 1 { "halted" } else { "running" }.into(),
        ..CpuDump::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = concat!(
        r#"{"return": "\r\nCPU#0\r\nRAX=0000000000000001 RBX=ffffffff82a0d6c0 RCX=0000000000000002 RDX=0000000000000003\r\n"#,
        r#"RSI=0000000000000004 RDI=0000000000000005 RBP=0000000000000006 RSP=ffffffff82a03ea8\r\n"#,
        r#"R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b\r\n"#,
        r#"R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=000000000000000f\r\n"#,
        r#"RIP=ffffffff81e0d0eb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n"#,
        r#"CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n"#,
        r#"CR0=80050033 CR2=00007f00 CR3=0000000002a10000 CR4=000006f0\r\nEFER=0000000000000d01\r\n"#,
        r#"\r\nCPU#1\r\nRIP=000000000000fff0 RFL=00000002 HLT=0\r\nCR0=60000010\r\n"}"#
    );

    #[test]
    fn both_cpus_are_read() {
        let cpus = registers(ANSWER).unwrap();
        assert_eq!(cpus.len(), 2);
        let first = &cpus[0];
        assert_eq!((first.cpu, first.rip, first.rsp), (0, 0xFFFF_FFFF_81E0_D0EB, 0xFFFF_FFFF_82A0_3EA8));
        assert_eq!((first.cs, first.cr2, first.efer), (0x10, 0x7F00, 0xD01));
        assert_eq!((first.general[7], first.general[14], first.general[0]), (8, 15, 1));
        assert_eq!((first.mode.as_str(), first.activity.as_str()), ("64-bit mode with paging", "halted"));
        assert_eq!((cpus[1].cpu, cpus[1].mode.as_str(), cpus[1].activity.as_str()), (1, "real mode", "running"));
    }

    #[test]
    fn other_lines_are_no_answer() {
        for line in ["", "{\"return\": {}}", "{\"event\": \"SHUTDOWN\"}", "{\"return\": \"no such command\"}"] {
            assert_eq!(registers(line), None, "{line}");
        }
    }
}
