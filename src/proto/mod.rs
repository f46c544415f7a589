//! Values that cross the border between host and guest, or are stored.
//!
//! Owns their fields and their bytes; does no I/O, knows no clock and no libc.
//! Invariant: every type here round-trips through its bytes, and refuses bytes that were cut or altered.

pub mod asserted;
pub mod codec;
pub mod coded;
pub mod cpuset;
pub mod frame;
pub mod guards;
pub mod hist;
pub mod limits;
pub mod message;
pub mod noise;
pub mod numa;
pub mod part;
pub mod perf;
pub mod phase;
pub mod plan;
pub mod presets;
pub mod record;
pub mod registers;
pub mod report;
pub mod runqueues;
pub mod scenario;
pub mod seen;
pub mod spec;
pub mod topology;
pub mod work;
