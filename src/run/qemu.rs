//! QEMU as the machine: the same kernel, image, memory file and lines under emulation.
//!
//! Owns its command line and its monitor's events; leaves deadlines to watch.rs.
//! Invariant: the guest sees the ring, the doorbell and both serial ports where our own VMM has them.

use super::disk::Disk;
use super::hmp;
use super::machine::{FarLines, MachineEvent, MachineSpec};
use super::qemu_shape::{self, Memory};
use crate::channel::DOORBELL_PORT;
use crate::error::{Context, Error, Result};
use crate::proto::message::VmEnd;
use crate::sys::spawn::{Spawn, number};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

/// Only for `make bench`, which compares VMMs: QEMU with KVM, on this machine of its, instead of QEMU's emulation.
const MACHINE_VARIABLE: &str = "KTSTR_BENCH_QEMU";
/// Told to the monitor once, before it sends events (docs/interop/qmp-spec.rst).
/// Then it is to log what makes it reset a CPU: it tells a triple fault by that alone, and else as the guest's own reset.
const QMP_HELLO: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n\
    {\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"log cpu_reset\"}}\n";
/// What it logs then (target/i386/tcg/excp_helper.c).
pub const TRIPLE_FAULT: &[u8] = b"Triple fault";
/// A monitor line is never longer; a longer one is a fault.
const MOST_LINE_BYTES: usize = 1024 * 1024;

/// Starts the emulator; returns its process id.
pub fn start(spec: &MachineSpec<'_>, far: &FarLines) -> Result<i32> {
    let program =
        spec.accel.qemu.as_ref().ok_or_else(|| Error::internal("no emulator was found, yet one is to be started"))?;
    let mut argv = vec![program.display().to_string()];
    argv.extend(arguments(spec, far));
    let mut keep = vec![
        number(spec.ram),
        number(spec.initramfs),
        number(&far.console),
        number(&far.com2),
        number(&far.doorbell),
        number(&far.events),
    ];
    keep.extend(spec.disk.map(|disk| number(&disk.file)));
    let environment: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let stdio = [None, Some(far.log.as_fd()), Some(far.log.as_fd())];
    Spawn { argv: &argv, environment: &environment, stdio, keep: &keep, die_with_parent: true }
        .start()
        .context(|| format!("start {}", program.display()))
}

fn arguments(spec: &MachineSpec<'_>, far: &FarLines) -> Vec<String> {
    let memory_mib = spec.memory_bytes >> 20;
    let file = |fd: i32| format!("/proc/self/fd/{fd}");
    let socket = |id: &str, fd: i32| format!("socket,id={id},fd={fd}");
    let memory = Memory { bytes: spec.memory_bytes, file: &file(number(spec.ram)), ring_gpa: spec.ring.0 };
    let shape = qemu_shape::words(spec.topology, spec.numa, &memory);
    // One emulator thread: with several, kernels that patch their own text have crashed.
    let emulated = ("tcg,thread=single", qemu_shape::CPU, shape.machine, ",usb=off,hpet=off");
    let (accel, cpu, machine, options) = match std::env::var(MACHINE_VARIABLE).as_deref() {
        Ok("pc") => ("kvm", "host", "pc", ",usb=off,hpet=off"),
        Ok("microvm") => ("kvm", "host", "microvm", ""),
        _ => emulated,
    };
    let words = [
        ("-accel", accel.to_owned()),
        // Its threads carry their vCPU in their names, by which the witness of host noise knows them.
        ("-name", "ktstr,debug-threads=on".to_owned()),
        ("-cpu", cpu.to_owned()),
        ("-m", memory_mib.to_string()),
        ("-machine", format!("{machine}{options}{}", shape.options)),
        ("-kernel", spec.kernel.display().to_string()),
        ("-initrd", file(number(spec.initramfs))),
        ("-append", spec.cmdline.to_owned()),
        ("-chardev", socket("console", number(&far.console))),
        ("-serial", "chardev:console".to_owned()),
        ("-chardev", socket("com2", number(&far.com2))),
        ("-serial", "chardev:com2".to_owned()),
        ("-chardev", socket("door", number(&far.doorbell))),
        ("-device", format!("isa-debugcon,iobase={DOORBELL_PORT:#x},chardev=door")),
        ("-chardev", socket("monitor", number(&far.events))),
        ("-mon", "chardev=monitor,mode=control".to_owned()),
    ];
    let flags = ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"];
    let disk = spec.disk.map(disk_words).into_iter().flatten();
    let words = shape.words.into_iter().chain(words).chain(disk);
    flags.iter().map(|flag| (*flag).to_owned()).chain(words.flat_map(|(k, v)| [k.to_owned(), v])).collect()
}

/// The emulator's own virtio disk on PCI, over our file, with our rates.
fn disk_words(disk: &Disk) -> [(&'static str, String); 2] {
    let spec = &disk.spec;
    let mut drive = format!("if=none,id=disk,format=raw,cache=writeback,file=/proc/self/fd/{}", number(&disk.file));
    // Its locks are of a kind that anonymous memory files lack; ours is held already.
    drive.push_str(",file.locking=off");
    if spec.read_only {
        drive.push_str(",readonly=on");
    }
    for (name, rate) in [("bps-total", spec.bytes_per_s), ("iops-total", spec.requests_per_s)] {
        if rate > 0 {
            drive.push_str(&format!(",throttling.{name}={rate}"));
        }
    }
    [("-drive", drive), ("-device", "virtio-blk-pci,drive=disk".to_owned())]
}

/// Reads the monitor's lines.
#[derive(Debug, Default)]
pub struct Monitor {
    partial: Vec<u8>,
    greeted: bool,
}

impl Monitor {
    /// Takes bytes of the monitor; answers its greeting.
    pub fn feed(&mut self, bytes: &[u8], line: &OwnedFd) -> Result<Vec<MachineEvent>> {
        if !self.greeted && !bytes.is_empty() {
            self.greeted = true;
            let mut monitor = std::fs::File::from(line.try_clone().context(|| "share the emulator's monitor")?);
            match monitor.write_all(QMP_HELLO) {
                // It may have ended already; that is found out elsewhere, with its reason.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                other => other.context(|| "write to the emulator's monitor")?,
            }
        }
        self.partial.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = self.partial.drain(..=end).collect();
            events.extend(event_of(&String::from_utf8_lossy(&text)));
        }
        if self.partial.len() > MOST_LINE_BYTES {
            return Err(Error::host("the emulator's monitor sends a line without an end"));
        }
        Ok(events)
    }
}

/// An answer with registers, or an event that ends a machine (qapi/run-state.json).
fn event_of(line: &str) -> Option<MachineEvent> {
    if let Some(cpus) = hmp::registers(line) {
        return Some(MachineEvent::Registers { cpus });
    }
    let compact: String = line.chars().filter(|c| !c.is_whitespace()).collect();
    if !compact.contains("\"event\":\"SHUTDOWN\"") {
        return None;
    }
    let reason = compact.split("\"reason\":\"").nth(1)?.split('"').next()?;
    let end = match reason {
        "guest-reset" => VmEnd::Reset,
        "guest-shutdown" => VmEnd::Poweroff,
        other => VmEnd::MachineError { text: format!("the emulator ended with reason {other}") },
    };
    Some(MachineEvent::Ended { end, exits: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutdown_reasons_are_told_apart() {
        let line = |reason: &str| {
            format!(
                r#"{{"timestamp": {{"seconds": 1}}, "event": "SHUTDOWN", "data": {{"guest": true, "reason": "{reason}"}}}}"#
            )
        };
        let end = |reason: &str| match event_of(&line(reason)) {
            Some(MachineEvent::Ended { end, .. }) => end,
            other => panic!("{other:?}"),
        };
        assert_eq!(end("guest-reset"), VmEnd::Reset);
        assert_eq!(end("guest-shutdown"), VmEnd::Poweroff);
        assert!(matches!(end("host-signal"), VmEnd::MachineError { .. }));
        assert_eq!(event_of(r#"{"event": "RESUME"}"#), None);
        assert_eq!(event_of("garbage"), None);
    }

    #[test]
    fn endless_monitor_line_is_refused() {
        let (near, _far) = crate::sys::fd::socket_pair().unwrap();
        let mut monitor = Monitor::default();
        assert!(monitor.feed(&vec![b'x'; MOST_LINE_BYTES + 1], &near).is_err());
    }
}
