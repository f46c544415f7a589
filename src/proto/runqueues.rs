//! What the monitor of the guest's run queues saw, as values that other limits can be held to later.
//!
//! Owns the values and what "for some time" means; leaves looking to guest/ and scx/, judging to verdict/.
//! Invariant: a value is one that every look of a whole window had at least, so that no passing state is in it.

use crate::units::NS_PER_MS;
use crate::wire_struct;

/// Between two looks.
pub const LOOK_EVERY_NS: u64 = 100 * NS_PER_MS;
/// Looks in a row that a state has to last: half a second, in which a load balancer has come round many times.
pub const WINDOW: usize = 5;

wire_struct! {
    /// The worst that lasted for a whole window.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Lasting {
        pub value: u64,
        pub cpu: u32,
        /// When the window was full, from the first look.
        pub at_ns: u64,
    }
}

wire_struct! {
    /// All looks of one scenario.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct RunQueues {
        pub looks: u32,
        /// Why nothing was seen, or not to the end.
        pub error: Option<String>,
        /// The longest run queue by the shortest, in thousandths; an empty one counts as one task.
        pub imbalance: Option<Lasting>,
        /// Tasks in the local dispatch queue of one CPU; none: the kernel has no such queues.
        pub depth: Option<Lasting>,
        /// Looks in a row at which the clock of a queue with tasks had not moved; counts from the first of them.
        pub still: Option<Lasting>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn looks_round_trip_and_are_refused_when_cut() {
        let lasting = Some(Lasting { value: 4000, cpu: 1, at_ns: 7 });
        let queues =
            RunQueues { looks: 9, error: Some("gone".into()), imbalance: lasting, depth: None, still: lasting };
        let bytes = queues.to_bytes();
        assert_eq!(RunQueues::from_bytes(&bytes).unwrap(), queues);
        for cut in 0..bytes.len() {
            assert!(RunQueues::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
