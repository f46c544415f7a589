//! How host and guest exchange frames: a shared-memory ring with a doorbell, or a serial line.
//!
//! Owns the transport and its damage reports; leaves what messages mean to proto/ and the two sessions' users.
//! Invariant: nothing the other side writes can make this side panic, allocate without bound or wait without a deadline.

pub mod guest;
pub mod host;
pub mod ring;
pub mod serial;

/// Kernel parameter that names the ring: `ktstr.ring=0xBASE,0xBYTES`.
pub const PARAM_RING: &str = "ktstr.ring";
/// Kernel parameter that forces the fallback: `ktstr.channel=serial`.
pub const PARAM_CHANNEL: &str = "ktstr.channel";
/// Environment variable of PID 1, which the kernel makes of a word of its command line that it does not know: `off` where
/// the doorbell must not be rung. Under `-M pc` inside of an emulated host the port's write faults although it is allowed.
pub const DOORBELL_VARIABLE: &str = "ktstr_doorbell";
/// The fallback's device in the guest: COM2.
pub const COM2_DEVICE: &str = "/dev/ttyS1";
/// The doorbell: the Bochs debug port, which QEMU offers as `isa-debugcon` under the same number.
pub const DOORBELL_PORT: u16 = 0xe9;
/// Written to the doorbell: PID 1 has begun.
pub const DOORBELL_PID1: u8 = b'P';
/// Written to the doorbell: PID 1 is alive.
pub const DOORBELL_ALIVE: u8 = b'A';
/// Written to the doorbell: there is something in the ring.
pub const DOORBELL_DATA: u8 = b'R';
