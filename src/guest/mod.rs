//! PID 1 of the guest: one ordered function and one event loop.
//!
//! Owns the guest's life from exec to reboot; leaves measuring to workload/ and scx/.
//! Invariant: no path leaves PID 1 without a record of why.
