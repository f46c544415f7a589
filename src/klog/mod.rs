//! The kernel log: one table of patterns, and what each means.
//!
//! Owns parsing and classification, purely; leaves reading /dev/kmsg to guest/.
//! Invariant: hostile lines change nothing but their own classification.
