//! The block device: its registers, its disk, its throttle, and the work on its ring.
//!
//! Owns the locks and the order of a request; leaves the thread to the recipe and the formats to the files beside it.
//! Invariant: vCPUs wait for a disk only to reset it: registers are never locked while bytes move. All that a driver has
//! set is in `Registers`, which are saved and restored between two requests, with what the throttle has left.

use super::disk::Disk;
use super::mmio::{
    FEATURE_VERSION_1, INTERRUPT_ACKNOWLEDGE, INTERRUPT_CONFIG, INTERRUPT_STATUS, INTERRUPT_USED, Identity,
    QUEUE_NOTIFY, Registers, STATUS,
};
use super::ring::MAX_ENTRIES;
use super::throttle::Bucket;
use crate::error::{Context, Result};
use crate::sys::time;
use crate::vmm::bus::lock;
use crate::wire_struct;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A block device (VIRTIO 1.2, 5.2), and the features it offers (5.2.3).
const DEVICE_BLOCK: u32 = 2;
const FEATURE_SEGMENTS_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;
/// Buffers of data in a request: a ring's, less header and status.
const SEGMENTS_MAX: u32 = MAX_ENTRIES as u32 - 2;
/// The configuration's fields (5.2.4): capacity in sectors at 0, size_max at 8, seg_max at 12.
const CONFIG_BYTES: usize = 16;
const CONFIG_SEGMENTS_AT: usize = 12;

/// Rates that a disk keeps to; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub bytes_per_s: u64,
    pub requests_per_s: u64,
}

/// What the next turn of the device's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until the driver notifies.
    Idle,
    /// One request was carried out; there may be more.
    Served,
    /// The throttle says when to come back.
    Wait { ns: u64 },
}

/// The disk and its throttle: locked for the length of one request.
#[derive(Debug)]
struct Engine {
    disk: Disk,
    bytes: Bucket,
    requests: Bucket,
}

/// Counts for the record.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    throttled_ns: AtomicU64,
    broken: AtomicU64,
}

wire_struct! {
    /// A device between two requests; the disk itself is its file.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct DiskState {
        pub registers: Registers,
        pub interrupt: u32,
        pub bytes_left_ns: i64,
        pub requests_left_ns: i64,
    }
}

/// The device. Locks are taken in the order engine, registers.
pub struct Block {
    identity: Identity,
    engine: Mutex<Engine>,
    registers: Mutex<Registers>,
    /// InterruptStatus: set by the thread, cleared by vCPUs.
    interrupt: AtomicU32,
    irq: EventFd,
    kick: EventFd,
    counts: Counts,
}

impl Block {
    pub fn new(disk: Disk, limits: Limits) -> Result<Self> {
        let read_only = if disk.read_only { FEATURE_READ_ONLY } else { 0 };
        let mut config = vec![0; CONFIG_BYTES];
        config[..8].copy_from_slice(&disk.sectors().to_le_bytes());
        config[CONFIG_SEGMENTS_AT..].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        let features = FEATURE_VERSION_1 | FEATURE_FLUSH | FEATURE_SEGMENTS_MAX | read_only;
        let event = |flags| EventFd::new(flags | libc::EFD_CLOEXEC);
        let now_ns = time::monotonic_ns();
        let (bytes, requests) = (Bucket::new(limits.bytes_per_s, now_ns), Bucket::new(limits.requests_per_s, now_ns));
        Ok(Self {
            identity: Identity { device: DEVICE_BLOCK, features, config },
            engine: Mutex::new(Engine { disk, bytes, requests }),
            registers: Mutex::new(Registers::default()),
            interrupt: AtomicU32::new(0),
            irq: event(libc::EFD_NONBLOCK).context(|| "make the disk's interrupt")?,
            // Blocking: it is what the device's thread waits for.
            kick: event(0).context(|| "make the disk's notification")?,
            counts: Counts::default(),
        })
    }

    /// The interrupt, to be registered with KVM.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// What a driver's notification writes; KVM does so by itself where it is told to.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == INTERRUPT_STATUS && data.len() == 4 {
            data.copy_from_slice(&self.interrupt.load(Ordering::SeqCst).to_le_bytes());
        } else {
            lock(&self.registers).read(&self.identity, offset, data);
        }
    }

    pub fn write(&self, offset: u64, data: &[u8], memory: &GuestMemoryMmap) {
        // Nothing in the configuration can be written, and registers have four bytes.
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        match offset {
            QUEUE_NOTIFY => self.notify(),
            INTERRUPT_ACKNOWLEDGE => {
                self.interrupt.fetch_and(!value, Ordering::SeqCst);
            }
            STATUS if value == 0 => self.reset(),
            _ => {
                let mut registers = lock(&self.registers);
                if registers.write(&self.identity, offset, value, memory).is_err() {
                    self.break_down(&mut registers);
                }
            }
        }
    }

    fn notify(&self) {
        // An eventfd write fails only where its counter is full, and then the thread is awake already.
        drop(self.kick.write(1));
    }

    /// Waits for the request under way, and forgets all that the driver has set.
    fn reset(&self) {
        let _engine = lock(&self.engine);
        *lock(&self.registers) = Registers::default();
        self.interrupt.store(0, Ordering::SeqCst);
    }

    fn break_down(&self, registers: &mut Registers) {
        registers.break_down();
        self.counts.broken.fetch_add(1, Ordering::Relaxed);
        self.raise(INTERRUPT_CONFIG);
    }

    fn raise(&self, reason: u32) {
        self.interrupt.fetch_or(reason, Ordering::SeqCst);
        // As above: a full counter is an interrupt that is pending already.
        drop(self.irq.write(1));
    }

    /// Carries out one request, if there is one and its time has come.
    pub fn serve(&self, memory: &GuestMemoryMmap, now_ns: u64) -> Turn {
        let mut engine = lock(&self.engine);
        let mut registers = lock(&self.registers);
        if !registers.is_live() {
            return Turn::Idle;
        }
        let ns = engine.bytes.wait_ns(now_ns).max(engine.requests.wait_ns(now_ns));
        let next = match ns {
            0 => registers.ring.take(memory),
            // Only a request that waits is throttled.
            _ => return if registers.ring.is_empty(memory) { Turn::Idle } else { Turn::Wait { ns } },
        };
        let chain = match next {
            Ok(Some(chain)) => chain,
            Ok(None) => return Turn::Idle,
            Err(_) => {
                self.break_down(&mut registers);
                return Turn::Idle;
            }
        };
        drop(registers);
        let done = engine.disk.carry_out(memory, &chain);
        // A driver may have stopped its ring meanwhile, but not reset it: that waits for the engine.
        let mut registers = lock(&self.registers);
        let given = done.and_then(|done| {
            engine.requests.charge(1);
            engine.bytes.charge(done.moved);
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            self.counts.bytes.fetch_add(done.moved, Ordering::Relaxed);
            self.counts.failed.fetch_add(u64::from(done.failed), Ordering::Relaxed);
            match registers.is_live() {
                true => registers.ring.give_back(memory, chain.head, done.written),
                false => Ok(()),
            }
        });
        match given {
            Ok(()) if registers.is_live() && registers.ring.wants_interrupt(memory) => self.raise(INTERRUPT_USED),
            Ok(()) => {}
            Err(_) => self.break_down(&mut registers),
        }
        Turn::Served
    }

    /// The thread has waited for the throttle.
    pub fn note_throttled(&self, ns: u64) {
        self.counts.throttled_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// All that the driver has set, and what the throttle has left, between two requests.
    pub fn save(&self, now_ns: u64) -> DiskState {
        let mut engine = lock(&self.engine);
        DiskState {
            registers: lock(&self.registers).clone(),
            interrupt: self.interrupt.load(Ordering::SeqCst),
            bytes_left_ns: engine.bytes.left_ns(now_ns),
            requests_left_ns: engine.requests.left_ns(now_ns),
        }
    }

    /// Goes on where `save` was called; what the driver has offered meanwhile is looked for at once.
    pub fn restore(&self, state: &DiskState, now_ns: u64) {
        let mut engine = lock(&self.engine);
        engine.bytes.go_on(state.bytes_left_ns, now_ns);
        engine.requests.go_on(state.requests_left_ns, now_ns);
        *lock(&self.registers) = state.registers.clone();
        self.interrupt.store(state.interrupt, Ordering::SeqCst);
        self.notify();
    }

    /// Names and numbers for the record.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        vec![
            ("disk-requests", of(&self.counts.requests)),
            ("disk-failed-requests", of(&self.counts.failed)),
            ("disk-bytes", of(&self.counts.bytes)),
            ("disk-throttled-ms", of(&self.counts.throttled_ns) / crate::units::NS_PER_MS),
            ("disk-broken-by-driver", of(&self.counts.broken)),
        ]
    }
}

#[cfg(test)]
mod tests;
