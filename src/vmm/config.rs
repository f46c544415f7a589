//! What one VM is told by the process that spawns it, and what it says back.
//!
//! Owns the fields of both directions; leaves making the descriptors to the parent and using them to the recipe.
//! Invariant: everything a VM needs is in its `VmConfig`; it reads no environment, and on its command line only the number of
//! the socket over which that comes, over which it tells `VmEvent`s, and over which commands come.

use crate::proto::message::VmEnd;
use crate::proto::numa::Numa;
use crate::proto::perf::PerfItem;
use crate::proto::registers::CpuDump;
use crate::proto::topology::Topology;
use crate::{wire_enum, wire_struct};

/// The I/O port whose writes wake the host (port 0xE9 is free on a PC; Bochs and QEMU use it for debug output).
pub const DOORBELL_PORT: u16 = 0xE9;

/// What the parent may write to the VM's end of the events line: one byte a command. Asks for the vCPUs' registers.
pub const COMMAND_DUMP: u8 = b'D';

wire_struct! {
    /// A disk: a file of sectors, and the rates it keeps to (0: none).
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct DiskConfig {
        pub fd: i32,
        pub bytes: u64,
        pub read_only: bool,
        pub bytes_per_s: u64,
        pub requests_per_s: u64,
    }
}

wire_struct! {
    /// A kernel as it lies in memory: `bytes` of the file from `offset` on belong at `start_gpa`. What it only reads is from
    /// `read_only_gpa` to `read_only_end`, both within it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct UnpackedKernel {
        pub fd: i32,
        pub offset: u64,
        pub start_gpa: u64,
        pub bytes: u64,
        pub entry_gpa: u64,
        pub read_only_gpa: u64,
        pub read_only_end: u64,
    }
}

wire_struct! {
    /// The beginning of an initramfs, in whole pages, as a file that other VMs map, too.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct SharedPart {
        pub fd: i32,
        pub bytes: u64,
    }
}

wire_struct! {
    /// Performance mode, as far as it was planned.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct PerfConfig {
        /// The host CPU of each vCPU; empty: none is pinned.
        pub pins: Vec<u32>,
        /// LLCs of the guest have to share LLCs of the host.
        pub shared_llcs: bool,
        /// vCPU threads go to SCHED_FIFO.
        pub realtime: bool,
        /// Host nodes that guest memory is bound to.
        pub nodes: Vec<u32>,
        /// Host CPUs for the VM's other threads; empty: any.
        pub others: Vec<u32>,
        /// The memory file is of 2 MiB pages.
        pub huge_pages: bool,
    }
}

wire_struct! {
    /// One VM, described. Descriptor numbers are those of the process that has it: inherited by the VM's process, or sent
    /// to it, as `sent` tells.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct VmConfig {
        /// The process that spawned the VM: where it is gone, so is the VM.
        pub parent_pid: i32,
        pub topology: Topology,
        pub numa: Numa,
        pub memory_bytes: u64,
        pub kernel_path: String,
        /// The same kernel in memory form, which is mapped and not read.
        pub unpacked: Option<UnpackedKernel>,
        /// The whole kernel command line.
        pub cmdline: String,
        /// Guest-physical base and bytes kept from the guest's allocator: the host-guest ring.
        pub reserved: Option<(u64, u64)>,
        /// The memory file of `memory_bytes` bytes that is guest RAM.
        pub ram_fd: i32,
        pub initramfs_fd: i32,
        pub initramfs_bytes: u64,
        pub initramfs_gpa: u64,
        pub initramfs_shared: Option<SharedPart>,
        /// Gets what the guest writes to COM1.
        pub console_fd: i32,
        /// A stream socket that is the guest's COM2.
        pub com2_fd: i32,
        /// Gets each byte the guest writes to `doorbell_port`.
        pub doorbell_fd: i32,
        pub doorbell_port: u16,
        /// None: not in performance mode.
        pub perf: Option<PerfConfig>,
        /// /dev/vda of the guest.
        pub disk: Option<DiskConfig>,
    }
}

impl VmConfig {
    /// The descriptors that follow it to the VM's process, in their order: those that were not there yet when it began.
    pub fn sent(&mut self) -> Vec<&mut i32> {
        let mut sent = vec![&mut self.ram_fd, &mut self.initramfs_fd];
        sent.extend(self.initramfs_shared.as_mut().map(|part| &mut part.fd));
        sent.extend(self.unpacked.as_mut().map(|kernel| &mut kernel.fd));
        sent.extend(self.disk.as_mut().map(|disk| &mut disk.fd));
        sent
    }
}

wire_enum! {
    /// What a VM's process says to its parent.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum VmEvent {
        /// vCPU 0 is about to run its first instruction.
        FirstInstruction = 0 { monotonic_ns: u64 },
        /// The VM has ended; how, and the number of exits by kind.
        Ended = 1 { end: VmEnd, exits: Vec<(String, u64)> },
        /// The VM could not be set up.
        Failed = 2 { text: String, hint: Option<String>, errno: Option<i32> },
        /// Where the vCPUs stand, as `COMMAND_DUMP` asked.
        Registers = 3 { cpus: Vec<CpuDump> },
        /// What came of performance mode.
        Perf = 4 { items: Vec<PerfItem> },
    }
}

/// A configuration for tests.
#[cfg(any(test, fuzzing))]
pub mod fixture {
    use super::*;

    pub fn sample() -> VmConfig {
        VmConfig {
            parent_pid: 1,
            topology: Topology::flat(2),
            numa: Numa::default().settled(1, 256 << 20).unwrap(),
            memory_bytes: 256 << 20,
            kernel_path: "/k".into(),
            unpacked: Some(UnpackedKernel {
                fd: 11,
                offset: 4096,
                start_gpa: 16 << 20,
                bytes: 8 << 20,
                entry_gpa: 20 << 20,
                read_only_gpa: 16 << 20,
                read_only_end: 18 << 20,
            }),
            cmdline: "quiet".into(),
            reserved: Some((0xF00_0000, 0x20_0000)),
            ram_fd: 3,
            initramfs_fd: 4,
            initramfs_bytes: 4096,
            initramfs_gpa: 0xFFF_F000,
            initramfs_shared: Some(SharedPart { fd: 10, bytes: 4096 }),
            console_fd: 5,
            com2_fd: 6,
            doorbell_fd: 7,
            doorbell_port: DOORBELL_PORT,
            perf: None,
            disk: Some(DiskConfig { fd: 9, bytes: 1 << 20, read_only: true, bytes_per_s: 0, requests_per_s: 7 }),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    pub use super::fixture::sample;

    #[test]
    fn config_round_trips_and_refuses_every_cut() {
        let bytes = sample().to_bytes();
        assert_eq!(VmConfig::from_bytes(&bytes).unwrap(), sample());
        for cut in 0..bytes.len() {
            assert!(VmConfig::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn events_round_trip_and_keep_their_bytes() {
        let ended = VmEvent::Ended { end: VmEnd::Reset, exits: vec![("io-out".into(), 3)] };
        assert_eq!(VmEvent::from_bytes(&ended.to_bytes()).unwrap(), ended);
        let hex: String = ended.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, concat!("01", "00", "01000000", "06000000", "696f2d6f7574", "0300000000000000"));
    }
}
