//! COM1 and COM2: 16550A ports whose output goes out in lines and whose input raises an interrupt.
//!
//! Owns the registers (vm-superio's) with their buffers; leaves reading the host's end and flushing in time to the recipe.
//! Invariant: output is whole and in order; it leaves at a line's end, when the buffer is full, or when `flush` is called.

use crate::error::{Context, Error, Result};
use crate::wire_struct;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::Trigger;
use vm_superio::serial::{Error as SerialError, Serial, SerialEvents, SerialState};
use vmm_sys_util::eventfd::EventFd;

/// Where a port is: its first I/O port and its interrupt (the PC's fixed ones).
#[derive(Clone, Copy, Debug)]
pub struct PortMap {
    pub base: u16,
    pub irq: u32,
}

impl PortMap {
    /// A 16550 has eight registers.
    pub const COUNT: u16 = 8;
    /// The register that an I/O port is, where it is one of this device.
    pub fn register(&self, port: u16) -> Option<u8> {
        port.checked_sub(self.base).filter(|offset| *offset < Self::COUNT).map(|offset| offset as u8)
    }
}

pub const COM1: PortMap = PortMap { base: 0x3F8, irq: 4 };
pub const COM2: PortMap = PortMap { base: 0x2F8, irq: 3 };

/// A longer line leaves in parts.
const LINE_MAX_BYTES: usize = 512;

/// Collects output to lines, so that the reader is not woken for every byte.
#[derive(Debug)]
struct Lines {
    out: File,
    held: Vec<u8>,
}

impl Lines {
    fn send(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let sent = self.out.write_all(&self.held);
        self.held.clear();
        sent
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.ends_with(b"\n") || self.held.len() >= LINE_MAX_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }
    /// vm-superio flushes after every byte; the line's end is what counts here.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Raises the port's interrupt through KVM's irqfd.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells whoever feeds the port that the guest has read everything.
struct Drained {
    flag: Arc<AtomicBool>,
    wake: Option<Arc<File>>,
}

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if self.flag.swap(false, Ordering::SeqCst) {
            if let Some(wake) = &self.wake {
                // An eventfd write fails only where its counter is full, and then the reader is awake already.
                drop(wake.as_ref().write_all(&1u64.to_ne_bytes()));
            }
        }
    }
}

/// One serial port.
pub struct SerialPort {
    serial: Serial<Irq, Drained, Lines>,
    irq: EventFd,
    full: Arc<AtomicBool>,
    wake: Option<Arc<File>>,
}

wire_struct! {
    /// A serial port as plain data: its registers in the order of vm-superio's state, and input that was not read.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct PortState {
        pub registers: Vec<u8>,
        pub input: Vec<u8>,
    }
}

impl SerialPort {
    /// A port whose output goes to `out`; `wake` (an eventfd) is written when a full input buffer has become empty.
    pub fn new(out: OwnedFd, wake: Option<Arc<File>>) -> Result<Self> {
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context(|| "make a serial port's interrupt")?;
        let trigger = Irq(irq.try_clone().context(|| "duplicate a serial port's interrupt")?);
        let full = Arc::new(AtomicBool::new(false));
        let events = Drained { flag: full.clone(), wake: wake.clone() };
        let lines = Lines { out: File::from(out), held: Vec::with_capacity(LINE_MAX_BYTES) };
        Ok(Self { serial: Serial::with_events(trigger, events, lines), irq, full, wake })
    }

    /// The interrupt, to be registered with KVM.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Registers and input, for a port of another VM to go on with. Output that is held is sent first.
    pub fn state(&mut self) -> PortState {
        self.flush();
        let state = self.serial.state();
        let registers = [
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ];
        PortState { registers: registers.to_vec(), input: state.in_buffer }
    }

    /// Goes on with the state of another port; the two ends stay this one's own.
    pub fn restore(&mut self, state: &PortState) -> Result<()> {
        let refuse = |why: &str| Error::internal(format!("the saved state of a serial port {why}"));
        let [low, high, enable, identification, line_control, line_status, modem_control, modem_status, scratch] =
            state.registers[..]
        else {
            return Err(refuse("has a wrong number of registers"));
        };
        let registers = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.input.clone(),
        };
        let trigger = Irq(self.irq.try_clone().context(|| "duplicate a serial port's interrupt")?);
        let events = Drained { flag: self.full.clone(), wake: self.wake.clone() };
        let out = self.serial.writer_mut().out.try_clone().context(|| "duplicate a serial port's output")?;
        let lines = Lines { out, held: Vec::with_capacity(LINE_MAX_BYTES) };
        self.serial =
            Serial::from_state(&registers, trigger, events, lines).map_err(|_| refuse("has too much input"))?;
        Ok(())
    }

    pub fn read(&mut self, register: u8) -> u8 {
        self.serial.read(register)
    }

    /// Returns false where the byte was lost because nobody reads the other end any more.
    pub fn write(&mut self, register: u8, value: u8) -> bool {
        !matches!(self.serial.write(register, value), Err(SerialError::IOError(_)))
    }

    /// Sends what is held of an unfinished line.
    pub fn flush(&mut self) -> bool {
        self.serial.writer_mut().send().is_ok()
    }

    /// How many bytes the guest can be given now; after a 0, `wake` tells when to ask again.
    pub fn room(&self) -> usize {
        let room = self.serial.fifo_capacity();
        self.full.store(room == 0, Ordering::SeqCst);
        room
    }

    /// Gives the guest input. Bytes beyond the room are refused: the count of those taken is returned.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        // A port in loop-back mode takes nothing, as the real one; a lost interrupt is seen by the next poll of LSR.
        self.serial.enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;
    use crate::sys::fd;
    use std::os::fd::AsFd;

    const DATA: u8 = 0;
    const INTERRUPT_ENABLE: u8 = 1;
    const LINE_STATUS: u8 = 5;

    fn port() -> (SerialPort, OwnedFd) {
        let (read, write) = fd::pipe().unwrap();
        fd::set_nonblocking(&read).unwrap();
        (SerialPort::new(write, None).unwrap(), read)
    }

    fn received(read: &OwnedFd) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        fd::read_available(read.as_fd(), &mut buffer).unwrap().map(|count| buffer[..count].to_vec())
    }

    #[test]
    fn output_leaves_by_lines_and_on_flush() {
        let (mut port, read) = port();
        for byte in b"ab" {
            assert!(port.write(DATA, *byte));
        }
        assert_eq!(received(&read), None);
        assert!(port.write(DATA, b'\n'));
        assert_eq!(received(&read).unwrap(), b"ab\n");
        assert!(port.write(DATA, b'c') && port.flush());
        assert_eq!(received(&read).unwrap(), b"c");
        for _ in 0..LINE_MAX_BYTES {
            assert!(port.write(DATA, b'x'));
        }
        assert_eq!(received(&read).unwrap().len(), LINE_MAX_BYTES);
    }

    #[test]
    fn closed_reader_is_told_and_harmless() {
        let (mut port, read) = port();
        drop(read);
        assert!(!port.write(DATA, b'\n'));
        assert!(port.write(DATA, b'a'));
    }

    #[test]
    fn input_raises_the_interrupt_and_is_read_in_order() {
        let (mut port, _read) = port();
        assert!(port.irq().read().is_err());
        assert!(port.write(INTERRUPT_ENABLE, 1));
        assert_eq!(port.feed(b"hi"), 2);
        assert_eq!(port.irq().read().unwrap(), 1);
        assert_eq!(port.read(LINE_STATUS) & 1, 1);
        assert_eq!((port.read(DATA), port.read(DATA)), (b'h', b'i'));
        assert_eq!(port.read(LINE_STATUS) & 1, 0);
    }

    #[test]
    fn full_input_buffer_refuses_and_wakes_when_drained() {
        let wake = Arc::new(File::from(fd::eventfd().unwrap()));
        let (_read, write) = fd::pipe().unwrap();
        let mut port = SerialPort::new(write, Some(wake.clone())).unwrap();
        let room = port.room();
        assert_eq!(port.feed(&vec![7; room + 9]), room);
        assert_eq!((port.room(), port.feed(b"x")), (0, 0));
        let mut count = [0; 8];
        assert_eq!(fd::read_available(wake.as_fd(), &mut count).unwrap(), None);
        for _ in 0..room {
            assert_eq!(port.read(DATA), 7);
        }
        assert_eq!(fd::read_available(wake.as_fd(), &mut count).unwrap(), Some(8));
    }

    #[test]
    fn restored_port_has_registers_and_unread_input() {
        const SCRATCH: u8 = 7;
        let (mut port, _read) = port();
        assert!(port.write(SCRATCH, 0x5A) && port.write(INTERRUPT_ENABLE, 1));
        assert_eq!(port.feed(b"hi"), 2);
        let state = PortState::from_bytes(&port.state().to_bytes()).unwrap();
        let (mut other, _other_read) = super::tests::port();
        other.restore(&state).unwrap();
        assert_eq!((other.read(SCRATCH), other.read(INTERRUPT_ENABLE)), (0x5A, 1));
        assert_eq!((other.read(DATA), other.read(DATA)), (b'h', b'i'));
        assert!(other.restore(&PortState::default()).is_err());
    }

    #[test]
    fn registers_are_found_by_port() {
        assert_eq!((COM1.register(0x3F8), COM1.register(0x3FF), COM1.register(0x400)), (Some(0), Some(7), None));
        assert_eq!((COM2.register(0x2F7), COM2.register(0x2F8)), (None, Some(0)));
    }
}
