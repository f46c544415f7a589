//! How host and guest exchange frames: a shared-memory ring with a doorbell, or a serial line.
//!
//! Owns the transport and its damage reports; leaves what messages mean to proto/ and the two sessions' users.
//! Invariant: nothing the other side writes can make this side panic, allocate without bound or wait without a deadline.
