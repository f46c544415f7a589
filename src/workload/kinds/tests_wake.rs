//! Types about wake-ups, locks and queues, run for real on this machine.
//!
//! Owns these tests; leaves their helpers to tests.
//! Invariant: what makes a type that type is seen from outside, in /proc or by another call.
