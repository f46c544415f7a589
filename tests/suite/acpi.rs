//! The ACPI tables of our own VMM, as a compiler of such tables reads them.
//!
//! Owns cutting them apart and running iasl over them; leaves their content to the unit tests beside the code.
//! Invariant: each table is taken apart and put together again, and the compiler has neither error nor warning.

use crate::util::{Scratch, not_run};
use ktstr::proto::numa::{Numa, uniform};
use ktstr::proto::topology::Topology;
use ktstr::vmm::x86::acpi::{self, Described};
use ktstr::vmm::x86::apic::{ApicIds, LlcRule};
use ktstr::vmm::x86::layout::ACPI_GPA;
use std::path::Path;
use std::process::Command;

/// Offsets in RSDP and FADT (ACPI 6.5, 5.2.5.3 and 5.2.9), and the bytes of a table's header.
const RSDP_XSDT_AT: usize = 24;
const FADT_X_FACS_AT: usize = 132;
const FADT_X_DSDT_AT: usize = 140;
const HEADER_BYTES: usize = 36;

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize
}

/// Every table of the block, with its signature as a kernel finds it.
fn tables(block: &[u8]) -> Vec<(String, Vec<u8>)> {
    let at_gpa = |gpa: usize| {
        let start = gpa - ACPI_GPA as usize;
        let length = u32::from_le_bytes(block[start + 4..start + 8].try_into().expect("four bytes")) as usize;
        (String::from_utf8_lossy(&block[start..start + 4]).into_owned(), block[start..start + length].to_vec())
    };
    let xsdt = at_gpa(number(block, RSDP_XSDT_AT));
    let mut found: Vec<_> = (HEADER_BYTES..xsdt.1.len()).step_by(8).map(|at| at_gpa(number(&xsdt.1, at))).collect();
    let fadt = found.iter().find(|(name, _)| name == "FACP").expect("there is a FADT").1.clone();
    found.extend([at_gpa(number(&fadt, FADT_X_FACS_AT)), at_gpa(number(&fadt, FADT_X_DSDT_AT)), xsdt]);
    found
}

fn iasl(directory: &Path, args: &[&str]) -> String {
    let output = Command::new("iasl").args(args).current_dir(directory).output().expect("run iasl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// What iasl has to complain of one table, taken apart and put together again; none: nothing.
fn complaint(signature: &str, bytes: &[u8]) -> Option<String> {
    let scratch = Scratch::new();
    let (binary, source) = (format!("{signature}.dat").to_lowercase(), format!("{signature}.dsl").to_lowercase());
    scratch.file(&binary, bytes);
    let apart = iasl(&scratch.0, &["-d", &binary]);
    let text = std::fs::read_to_string(scratch.0.join(&source)).unwrap_or_default();
    let wrong = ["Warning", "Error", "Incorrect", "Invalid", "Unknown"];
    if text.is_empty() || text.contains("**** ") || wrong.iter().any(|word| apart.contains(word)) {
        return Some(format!("apart:\n{apart}\n{text}"));
    }
    // iasl has no way back for these.
    if ["XSDT", "FACS"].contains(&signature) {
        return None;
    }
    let together = iasl(&scratch.0, &[&source]);
    (!together.contains("0 Errors, 0 Warnings")).then(|| format!("together:\n{together}\n{text}"))
}

/// The tables of one machine.
fn machine(shape: &str, memory_mib: &[u64]) -> Vec<(String, Vec<u8>)> {
    let topology: Topology = shape.parse().expect("a topology");
    let memory_bytes: Vec<u64> = memory_mib.iter().map(|mib| mib << 20).collect();
    let sum = memory_bytes.iter().sum();
    let distances = uniform(memory_bytes.len() as u32, 31);
    let numa = Numa { memory_bytes, distances }.settled(topology.numa_nodes, sum).expect("nodes");
    let apic = ApicIds::new(&topology, LlcRule::CacheLeaf);
    let described = Described { topology: &topology, apic: &apic, numa: &numa, disk: true };
    let found = tables(&acpi::tables(&described).expect("tables"));
    let expected = if memory_mib.len() > 1 { 7 } else { 5 };
    assert_eq!(found.len(), expected, "{shape}: {:?}", found.iter().map(|(name, _)| name).collect::<Vec<_>>());
    found
}

#[test]
fn tables_of_every_kind_of_machine_pass_iasl_without_warnings() {
    if Command::new("iasl").arg("-v").output().is_err() {
        return not_run("acpi: tables by iasl", "iasl is not installed (acpica-tools)");
    }
    // A small machine; three nodes, one without CPUs; wide APIC ids and possible CPUs.
    for (shape, memory_mib) in
        [("1n2l2c2t", &[256][..]), ("2n4l3c2t", &[4096, 128, 64]), ("2n2l300c1t:spare4", &[512, 512])]
    {
        for (signature, bytes) in machine(shape, memory_mib) {
            if let Some(text) = complaint(&signature, &bytes) {
                panic!("{shape}, {signature} {text}");
            }
        }
    }
    // That this test can fail: a wrong check sum, an entry without an end, a byte of AML that is none.
    for (signature, at, byte) in [("APIC", 9, 1u8), ("APIC", 45, 200), ("DSDT", 36, 0xFF)] {
        let (_, mut bytes) = machine("2", &[256]).into_iter().find(|(name, _)| name == signature).expect("the table");
        bytes[at] = bytes[at].wrapping_add(byte);
        assert!(complaint(signature, &bytes).is_some(), "byte {at} of {signature} is broken, and iasl is content");
    }
}
