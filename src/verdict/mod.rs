//! The verdict: a pure function of the record and the thresholds.
//!
//! Owns checks, outcomes and their merging; leaves collecting to guest/ and showing to report/.
//! Invariant: a check without its data is Inconclusive, never Pass.
