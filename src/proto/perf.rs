//! Performance mode: what was tried, whether it took effect, and why not.
//!
//! Owns the values; leaves trying to vmm/ and run/.
//! Invariant: what did not take effect has its reason.

use crate::wire_struct;

wire_struct! {
    /// One measure of performance mode.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PerfItem {
        /// One of the names below.
        pub name: String,
        pub in_effect: bool,
        /// What exactly, or why not.
        pub detail: String,
    }
}

/// The names, in the order of a report.
pub const PINNING: &str = "vcpu-pinning";
pub const HUGE_PAGES: &str = "huge-pages";
pub const MEMORY_BINDING: &str = "memory-binding";
pub const SCHED_FIFO: &str = "sched-fifo";
pub const HLT_EXITS: &str = "hlt-exits-off";
pub const PAUSE_EXITS: &str = "pause-exits-off";
pub const REALTIME_HINT: &str = "kvm-hints-realtime";
pub const NAMES: [&str; 7] = [PINNING, HUGE_PAGES, MEMORY_BINDING, SCHED_FIFO, HLT_EXITS, PAUSE_EXITS, REALTIME_HINT];

impl PerfItem {
    pub fn done(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.into(), in_effect: true, detail: detail.into() }
    }
    pub fn refused(name: &str, why: impl Into<String>) -> Self {
        Self { name: name.into(), in_effect: false, detail: why.into() }
    }
}

/// Puts the items in order; one that nobody told of is told as such.
pub fn complete(items: &[PerfItem]) -> Vec<PerfItem> {
    let settle = |name: &&str| {
        let of: Vec<&PerfItem> = items.iter().filter(|item| item.name == **name).collect();
        match of.last() {
            None => PerfItem::refused(name, "the VM did not come to try it"),
            Some(last) if last.in_effect => (*last).clone(),
            // What was tried in several ways has several reasons.
            Some(_) => {
                let mut reasons: Vec<&str> = of.iter().map(|item| item.detail.as_str()).collect();
                reasons.dedup();
                PerfItem::refused(name, reasons.join("; "))
            }
        }
    };
    NAMES.iter().map(settle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::Wire;

    #[test]
    fn every_measure_is_told_once_and_in_order() {
        let items = [
            PerfItem::refused(HUGE_PAGES, "no pool"),
            PerfItem::done(SCHED_FIFO, "priority 1"),
            PerfItem::done(PINNING, "0 on 1"),
            PerfItem::refused(HUGE_PAGES, "never"),
            PerfItem::refused(HUGE_PAGES, "never"),
            PerfItem::refused(PINNING, "one CPU"),
        ];
        let all = complete(&items);
        assert_eq!(all.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), NAMES);
        assert!(all[3].in_effect && !all[0].in_effect && all[2].detail.contains("did not come"));
        assert_eq!(all[1].detail, "no pool; never");
        assert_eq!(PerfItem::from_bytes(&items[0].to_bytes()).unwrap(), items[0]);
    }
}
