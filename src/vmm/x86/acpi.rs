//! ACPI tables: RSDP, XSDT, FADT, FACS and DSDT of a PC without PCI, and the list of all.
//!
//! Owns their bytes (ACPI specification 6.5, sections in brackets); leaves where they go to layout.
//! Invariant: pure; every table's check sum is right, and every processor of the topology is listed once.

use super::apic::ApicIds;
use super::layout::{ACPI_GPA, DISK_GPA, DISK_IRQ, EXTENDED_RAM_START};
use super::{madt, srat};
use crate::error::{Error, Result};
use crate::proto::numa::Numa;
use crate::proto::topology::Topology;
use crate::vmm::dev::power::{CONTROL_BYTES, CONTROL_PORT, EVENT_BYTES, EVENT_PORT, SCI_IRQ, SLEEP_TYPE_S5};
use crate::vmm::dev::serial::{COM1, COM2};
use crate::vmm::dev::virtio::mmio::WINDOW_BYTES;
use crate::vmm::dev::{i8042, serial::PortMap};

const OEM_ID: &[u8; 6] = b"KTSTR ";
const OEM_TABLE_ID: &[u8; 8] = b"KTSTRVM ";
const CREATOR_ID: &[u8; 4] = b"KTST";
const OEM_REVISION: u32 = 1;

/// Header bytes common to all tables [5.2.6], and the offset of the check sum in it.
const HEADER_BYTES: usize = 36;
const CHECKSUM_AT: usize = 9;
/// The FACS wants 64 bytes, the others less.
const TABLE_ALIGNMENT: usize = 64;
/// Bytes of the RSDP [5.2.5.3].
const RSDP_BYTES: u64 = 36;
const RSDP_FIRST_PART_BYTES: usize = 20;

/// FADT [5.2.9]: revision 6.5, its bytes, and the offsets of the fields set here.
const FADT_REVISION: u8 = 6;
const FADT_MINOR: u8 = 5;
const FADT_BYTES: usize = 276;
const FADT_SCI_AT: usize = 46;
const FADT_PM1A_EVENT_AT: usize = 56;
const FADT_PM1A_CONTROL_AT: usize = 64;
const FADT_PM1_EVENT_BYTES_AT: usize = 88;
const FADT_PM1_CONTROL_BYTES_AT: usize = 89;
const FADT_C2_LATENCY_AT: usize = 96;
const FADT_C3_LATENCY_AT: usize = 98;
const FADT_BOOT_ARCH_AT: usize = 109;
const FADT_FLAGS_AT: usize = 112;
const FADT_RESET_REG_AT: usize = 116;
const FADT_RESET_VALUE_AT: usize = 128;
const FADT_MINOR_AT: usize = 131;
const FADT_X_FACS_AT: usize = 132;
const FADT_X_DSDT_AT: usize = 140;
const FADT_X_PM1A_EVENT_AT: usize = 148;
const FADT_X_PM1A_CONTROL_AT: usize = 172;
/// Latencies above these say that there is no C2 and no C3 state.
const NO_C2_LATENCY: u16 = 101;
const NO_C3_LATENCY: u16 = 1001;
/// IA-PC boot architecture flags [5.2.9.3]: no 8042 to probe (its reset port is the reset register), no VGA, no RTC.
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1;
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_RTC: u16 = 1 << 5;
/// Fixed feature flags [5.2.9]: WBINVD works, C1 on all processors, no fixed buttons, no RTC wake, reset register.
/// Not hardware-reduced: a kernel would give up the PIT, by which it has to calibrate its TSC where it was built
/// without KVM guest support.
const FADT_WBINVD: u32 = 1;
const FADT_C1: u32 = 1 << 2;
const FADT_NO_POWER_BUTTON: u32 = 1 << 4;
const FADT_NO_SLEEP_BUTTON: u32 = 1 << 5;
const FADT_NO_FIXED_RTC: u32 = 1 << 6;
const FADT_RESET_SUPPORTED: u32 = 1 << 10;
/// FACS [5.2.10]: bytes, alignment, version.
const FACS_BYTES: usize = 64;
const FACS_VERSION_AT: usize = 32;
const FACS_VERSION: u8 = 2;
/// Generic address structure [5.2.3.2]: system I/O space.
const GAS_SYSTEM_IO: u8 = 1;

/// What the tables describe.
pub struct Described<'a> {
    pub topology: &'a Topology,
    pub apic: &'a ApicIds,
    pub numa: &'a Numa,
    pub disk: bool,
}

/// All tables as one block of bytes, to be written at `ACPI_GPA`; the RSDP is at its start.
pub fn tables(machine: &Described<'_>) -> Result<Vec<u8>> {
    let Described { topology, apic, numa, disk } = *machine;
    let mut block = Vec::new();
    let place = |block: &mut Vec<u8>, table: Vec<u8>| {
        block.resize(block.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        let gpa = ACPI_GPA + RSDP_BYTES.next_multiple_of(TABLE_ALIGNMENT as u64) + block.len() as u64;
        block.extend(table);
        gpa
    };
    let dsdt = place(&mut block, dsdt(disk));
    let facs = place(&mut block, facs());
    let fadt = place(&mut block, fadt(dsdt, facs));
    let madt = place(&mut block, table(b"APIC", madt::REVISION, &madt::body(apic, topology.total_cpus())));
    let mut listed = vec![fadt, madt];
    // One node needs no table: a kernel takes all for one.
    if numa.nodes(topology.numa_nodes) > 1 {
        listed.push(place(&mut block, table(b"SRAT", srat::SRAT_REVISION, &srat::srat(topology, apic, numa))));
        listed.push(place(&mut block, table(b"SLIT", srat::SLIT_REVISION, &srat::slit(numa))));
    }
    let addresses: Vec<u8> = listed.into_iter().flat_map(u64::to_le_bytes).collect();
    let xsdt = place(&mut block, table(b"XSDT", 1, &addresses));
    let mut bytes = rsdp(xsdt);
    bytes.resize(bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
    bytes.extend(block);
    if bytes.len() as u64 > EXTENDED_RAM_START - ACPI_GPA {
        return Err(Error::usage(format!("{} CPUs do not fit the ACPI tables' area", topology.total_cpus())));
    }
    Ok(bytes)
}

/// The value that makes the bytes sum up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(signature);
    bytes.extend(((HEADER_BYTES + body.len()) as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend_from_slice(OEM_ID);
    bytes.extend_from_slice(OEM_TABLE_ID);
    bytes.extend(OEM_REVISION.to_le_bytes());
    bytes.extend_from_slice(CREATOR_ID);
    bytes.extend(OEM_REVISION.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes[CHECKSUM_AT] = checksum(&bytes);
    bytes
}

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0".to_vec();
    bytes.extend_from_slice(OEM_ID);
    bytes.push(2);
    bytes.extend(0u32.to_le_bytes());
    bytes.extend((RSDP_BYTES as u32).to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    bytes[8] = checksum(&bytes[..RSDP_FIRST_PART_BYTES]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// A generic address of `bytes` bytes of I/O ports, accessed whole.
fn io_register(port: u16, bytes: u8) -> [u8; 12] {
    let access = bytes.min(2).trailing_zeros() as u8 + 1;
    let mut gas = [GAS_SYSTEM_IO, bytes * 8, 0, access, 0, 0, 0, 0, 0, 0, 0, 0];
    gas[4..6].copy_from_slice(&port.to_le_bytes());
    gas
}

/// The firmware control structure: has no check sum.
fn facs() -> Vec<u8> {
    let mut bytes = b"FACS".to_vec();
    bytes.extend((FACS_BYTES as u32).to_le_bytes());
    bytes.resize(FACS_BYTES, 0);
    bytes[FACS_VERSION_AT] = FACS_VERSION;
    bytes
}

fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; FADT_BYTES];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    set(FADT_SCI_AT, &[SCI_IRQ, 0]);
    set(FADT_PM1A_EVENT_AT, &u32::from(EVENT_PORT).to_le_bytes());
    set(FADT_PM1A_CONTROL_AT, &u32::from(CONTROL_PORT).to_le_bytes());
    set(FADT_PM1_EVENT_BYTES_AT, &[EVENT_BYTES]);
    set(FADT_PM1_CONTROL_BYTES_AT, &[CONTROL_BYTES]);
    set(FADT_C2_LATENCY_AT, &NO_C2_LATENCY.to_le_bytes());
    set(FADT_C3_LATENCY_AT, &NO_C3_LATENCY.to_le_bytes());
    set(FADT_BOOT_ARCH_AT, &(BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_RTC).to_le_bytes());
    let none = FADT_NO_POWER_BUTTON | FADT_NO_SLEEP_BUTTON | FADT_NO_FIXED_RTC;
    set(FADT_FLAGS_AT, &(FADT_WBINVD | FADT_C1 | none | FADT_RESET_SUPPORTED).to_le_bytes());
    set(FADT_RESET_REG_AT, &io_register(i8042::COMMAND_PORT, 1));
    set(FADT_RESET_VALUE_AT, &[i8042::RESET_COMMAND]);
    set(FADT_MINOR_AT, &[FADT_MINOR]);
    set(FADT_X_FACS_AT, &facs.to_le_bytes());
    set(FADT_X_DSDT_AT, &dsdt.to_le_bytes());
    set(FADT_X_PM1A_EVENT_AT, &io_register(EVENT_PORT, EVENT_BYTES));
    set(FADT_X_PM1A_CONTROL_AT, &io_register(CONTROL_PORT, CONTROL_BYTES));
    table(b"FACP", FADT_REVISION, &bytes[HEADER_BYTES..])
}

/// AML opcodes [20.2] and resource descriptor tags [6.4].
const AML_NAME: u8 = 0x08;
const AML_BYTE: u8 = 0x0A;
const AML_DWORD: u8 = 0x0C;
const AML_SCOPE: u8 = 0x10;
const AML_BUFFER: u8 = 0x11;
const AML_PACKAGE: u8 = 0x12;
const AML_DEVICE: [u8; 2] = [0x5B, 0x82];
const AML_ZERO: u8 = 0x00;
const AML_ONE: u8 = 0x01;
const AML_STRING: u8 = 0x0D;
const RESOURCE_IO_PORT: u8 = 0x47;
const RESOURCE_DECODE_16: u8 = 1;
const RESOURCE_MEMORY_32_FIXED: u8 = 0x86;
const RESOURCE_WRITABLE: u8 = 1;
const RESOURCE_EXTENDED_IRQ: u8 = 0x89;
/// Consumer, edge-triggered, active high, exclusive.
const RESOURCE_IRQ_FLAGS: u8 = 0x03;
const RESOURCE_END: [u8; 2] = [0x79, 0];

/// A package length [20.2.4] in front of its content; the length counts itself.
fn with_length(content: &[u8]) -> Vec<u8> {
    let mut bytes = match content.len() {
        0..=0x3E => vec![content.len() as u8 + 1],
        short => {
            let length = short + 2;
            vec![0x40 | (length & 0xF) as u8, (length >> 4) as u8]
        }
    };
    bytes.extend_from_slice(content);
    bytes
}

fn name(path: &[u8], value: &[u8]) -> Vec<u8> {
    [&[AML_NAME], path, value].concat()
}

/// `PNP0501`, a 16550A-compatible port, as EISAID() compresses it [19.3.4].
const PNP0501: u32 = 0x0105_D041;

fn serial_device(path: &[u8; 4], unit: u8, ports: &PortMap) -> Vec<u8> {
    let mut resources = vec![RESOURCE_IO_PORT, RESOURCE_DECODE_16];
    resources.extend(ports.base.to_le_bytes());
    resources.extend(ports.base.to_le_bytes());
    resources.extend([1, PortMap::COUNT as u8]);
    let mut body = path.to_vec();
    body.extend(name(b"_HID", &[&[AML_DWORD], &PNP0501.to_le_bytes()[..]].concat()));
    body.extend(name(b"_UID", &[AML_BYTE, unit]));
    body.extend(current_resources(resources, ports.irq));
    [&AML_DEVICE[..], &with_length(&body)].concat()
}

/// _CRS of some resources and an interrupt.
fn current_resources(mut resources: Vec<u8>, irq: u32) -> Vec<u8> {
    resources.extend([RESOURCE_EXTENDED_IRQ, 6, 0, RESOURCE_IRQ_FLAGS, 1]);
    resources.extend(irq.to_le_bytes());
    resources.extend(RESOURCE_END);
    let mut buffer = vec![AML_BYTE, resources.len() as u8];
    buffer.extend(resources);
    name(b"_CRS", &[&[AML_BUFFER][..], &with_length(&buffer)].concat())
}

/// The disk: a virtio-mmio device, which kernels find by this name (drivers/virtio/virtio_mmio.c).
fn disk_device() -> Vec<u8> {
    const VIRTIO_MMIO: &[u8] = b"LNRO0005\0";
    let mut resources = vec![RESOURCE_MEMORY_32_FIXED, 9, 0, RESOURCE_WRITABLE];
    resources.extend((DISK_GPA as u32).to_le_bytes());
    resources.extend((WINDOW_BYTES as u32).to_le_bytes());
    let mut body = b"DISK".to_vec();
    body.extend(name(b"_HID", &[&[AML_STRING], VIRTIO_MMIO].concat()));
    body.extend(name(b"_UID", &[AML_ZERO]));
    // Its DMA sees what the CPUs see.
    body.extend(name(b"_CCA", &[AML_ONE]));
    body.extend(current_resources(resources, DISK_IRQ));
    [&AML_DEVICE[..], &with_length(&body)].concat()
}

fn dsdt(disk: bool) -> Vec<u8> {
    let mut scope = b"\\_SB_".to_vec();
    scope.extend(serial_device(b"COM1", 1, &COM1));
    scope.extend(serial_device(b"COM2", 2, &COM2));
    if disk {
        scope.extend(disk_device());
    }
    let sleep = [4, AML_BYTE, SLEEP_TYPE_S5, AML_BYTE, SLEEP_TYPE_S5, AML_ZERO, AML_ZERO];
    let mut body = [&[AML_SCOPE][..], &with_length(&scope)].concat();
    body.extend(name(b"\\_S5_", &[&[AML_PACKAGE][..], &with_length(&sleep)].concat()));
    table(b"DSDT", 2, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::x86::apic::LlcRule;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn at_gpa(block: &[u8], gpa: u64) -> &[u8] {
        let start = (gpa - ACPI_GPA) as usize;
        let length = u32::from_le_bytes(block[start + 4..start + 8].try_into().unwrap()) as usize;
        &block[start..start + length]
    }

    fn made(text: &str) -> Result<Vec<u8>> {
        let topology: Topology = text.parse().unwrap();
        let apic = ApicIds::new(&topology, LlcRule::CacheLeaf);
        let numa = Numa::default().settled(topology.numa_nodes, 1 << 30).unwrap();
        tables(&Described { topology: &topology, apic: &apic, numa: &numa, disk: true })
    }

    #[test]
    fn nodes_bring_their_tables() {
        let names = |text: &str| {
            let block = made(text).unwrap();
            let xsdt = at_gpa(&block, u64_at(&block, 24));
            let tables = (HEADER_BYTES..xsdt.len()).step_by(8).map(|at| at_gpa(&block, u64_at(xsdt, at)));
            tables
                .map(|table| {
                    assert_eq!(sum(table), 0);
                    String::from_utf8_lossy(&table[..4]).into_owned()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names("2n2l2c1t"), ["FACP", "APIC", "SRAT", "SLIT"]);
        assert_eq!(names("1n2l2c1t"), ["FACP", "APIC"]);
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let block = made("4").unwrap();
        assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
        let xsdt = at_gpa(&block, u64_at(&block, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let (fadt, madt) = (at_gpa(&block, u64_at(xsdt, 36)), at_gpa(&block, u64_at(xsdt, 44)));
        let dsdt = at_gpa(&block, u64_at(fadt, FADT_X_DSDT_AT));
        for (table, signature) in [(fadt, b"FACP"), (madt, b"APIC"), (dsdt, b"DSDT"), (xsdt, b"XSDT")] {
            assert_eq!((&table[..4], sum(table)), (&signature[..], 0));
        }
        assert_eq!(fadt.len(), FADT_BYTES);
        let facs = u64_at(fadt, FADT_X_FACS_AT);
        assert_eq!((&at_gpa(&block, facs)[..4], facs % 64), (&b"FACS"[..], 0));
        assert_eq!(io_register(0x604, 2)[..6], [1, 16, 0, 2, 0x04, 0x06]);
    }

    #[test]
    fn most_cpus_kvm_allows_still_fit() {
        assert!(made(&crate::proto::topology::MAX_CPUS.to_string()).is_ok());
        let error = made("2n2l2048c1t").unwrap_err().to_string();
        assert!(error.contains("4096 CPUs do not fit"), "{error}");
    }

    #[test]
    fn disk_is_declared_only_where_there_is_one() {
        let found = |disk| dsdt(disk).windows(8).any(|bytes| bytes == b"LNRO0005");
        assert_eq!((found(true), found(false)), (true, false));
        let hex: String = disk_device().iter().map(|b| format!("{b:02x}")).collect();
        let resources = "8609000100".to_owned() + "0000d0" + "00020000" + "8906000301" + "05000000" + "7900";
        let expected = format!(
            "5b8241044449534b085f4849440d4c4e524f3030303500085f55494400085f43434101085f43525311{}0a17{resources}",
            "1a"
        );
        assert_eq!(hex, expected);
    }

    #[test]
    fn dsdt_bytes_are_as_the_specification_writes_them() {
        let dsdt = dsdt(false);
        let hex: String = dsdt[HEADER_BYTES..].iter().map(|b| format!("{b:02x}")).collect();
        let com = |name: &str, unit: &str, base: &str, irq: &str| {
            format!(
                "5b8232{name}085f4849440c41d00501085f5549440a{unit}085f43525311160a13\
                 4701{base}{base}01088906000301{irq}0000007900"
            )
        };
        let expected = format!(
            "104f065c5f53425f{}{}085c5f53355f1208040a050a050000",
            com("434f4d31", "01", "f803", "04"),
            com("434f4d32", "02", "f802", "03")
        );
        assert_eq!(hex, expected);
        assert_eq!(with_length(&[0; 0x3E])[0], 0x3F);
        assert_eq!(with_length(&[0; 0x3F])[..2], [0x41, 0x04]);
    }
}
