//! What a user's own scenario code and PID 1 say to each other: two processes of one guest, over a pair of pipes.
//!
//! Owns the messages; leaves the pipes to guest/, the user's side to scenario/.
//! Invariant: either side may end at any byte; the other then has whole messages only.

use super::asserted::AssertResult;
use super::report::WorkerReport;
use super::scenario::{Backdrop, Step};
use crate::units::NS_PER_SEC;
use crate::wire_enum;

/// Beyond its planned duration and one collection, code may take this long for what it does besides holding.
pub const CODE_OVERTIME_NS: u64 = 15 * NS_PER_SEC;
/// From asking code to come to an end until it is killed: beyond the time that collecting takes where workers do not answer.
pub const CODE_GRACE_NS: u64 = 3 * NS_PER_SEC;

wire_enum! {
    /// From the user's code to PID 1.
    // Few and short-lived; boxing the report would only move its bytes.
    #[allow(clippy::large_enum_variant)]
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum FromCode {
        Note = 1 { text: String },
        /// So many reports of this cgroup are owed.
        Spawned = 2 { group: String, workers: u32 },
        Report = 3 { group: String, report: WorkerReport },
        /// Carry out these steps, and answer when they are over.
        Execute = 4 { backdrop: Backdrop, steps: Vec<Step>, duration_ns: u64 },
        /// The last message: what the scenario came to.
        Result = 5 { result: AssertResult },
    }
}

wire_enum! {
    /// From PID 1 to the user's code.
    #[allow(clippy::large_enum_variant)]
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ToCode {
        /// The time is over: collect, and return.
        Stop = 1,
        /// What one worker of the steps measured.
        Report = 2 { group: String, report: WorkerReport },
        /// The steps are over; why before their time, and what could not be done.
        Executed = 3 { early: Option<String>, error: Option<String> },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn messages_round_trip_and_are_refused_when_cut() {
        let message = FromCode::Result { result: AssertResult::fail("x") };
        let bytes = message.to_bytes();
        assert_eq!(FromCode::from_bytes(&bytes).unwrap(), message);
        assert!((0..bytes.len()).all(|cut| FromCode::from_bytes(&bytes[..cut]).is_err()));
        assert_eq!(ToCode::from_bytes(&ToCode::Stop.to_bytes()).unwrap(), ToCode::Stop);
    }
}
