//! The work types as people meet them: names, defaults, what each does and what its samples mean.
//!
//! Owns the table and what follows from a type's parameters; leaves the values to proto/work, their text form to grammar and
//! the doing to kinds/.
//! Invariant: a type that is in the table has a loop, and a type without a loop is in no row.

mod params;
mod rows_cpu;
mod rows_memory;
mod rows_system;
mod rows_wake;

#[cfg(test)]
pub use params::Form;

use crate::proto::plan::SchedPolicy;
use crate::proto::work::{SampleKind, WorkType};
use crate::units::nearest;

/// Everything about a type that does not depend on its parameters.
#[derive(Debug)]
pub struct TypeInfo {
    /// PascalCase, as in reports.
    pub name: &'static str,
    /// The short name of the command line.
    pub cli_name: &'static str,
    /// How many workers depend on one another, in words of the parameters.
    pub group: &'static str,
    /// What its latency samples measure.
    pub sample_kinds: &'static [SampleKind],
    /// One line.
    pub description: &'static str,
    /// What it makes the scheduler do, what its samples mean, what they do not.
    pub method: &'static str,
    /// The type with its default parameters.
    pub default: WorkType,
}

/// The families, in the order they are listed to people.
static FAMILIES: [&[TypeInfo]; 4] = [&rows_cpu::ROWS, &rows_wake::ROWS, &rows_memory::ROWS, &rows_system::ROWS];

/// The names of all types, as in reports, in the order they are listed.
pub const ALL_NAMES: [&str; 38] = [
    "SpinWait",
    "YieldHeavy",
    "Mixed",
    "Bursty",
    "IdleChurn",
    "NiceSweep",
    "AffinityChurn",
    "PolicyChurn",
    "RtStarvation",
    "AluHot",
    "SmtSiblingSpin",
    "IpcVariance",
    "PipeIo",
    "FutexPingPong",
    "FutexFanOut",
    "FanOutCompute",
    "ThunderingHerd",
    "MutexContention",
    "PriorityInversion",
    "ProducerConsumerImbalance",
    "AsymmetricWaker",
    "WakeChain",
    "EpollStorm",
    "CachePressure",
    "CacheYield",
    "CachePipe",
    "IoSyncWrite",
    "IoRandRead",
    "IoConvoy",
    "PageFaultChurn",
    "NumaWorkingSetSweep",
    "NumaMigrationChurn",
    "Sequence",
    "ForkExit",
    "CgroupChurn",
    "SignalStorm",
    "PreemptStorm",
    "Custom",
];

/// Every work type, in the order they are listed to people.
pub fn types() -> impl Iterator<Item = &'static TypeInfo> {
    FAMILIES.iter().flat_map(|family| family.iter())
}

/// `FutexPingPong` as `futex-ping-pong`.
fn kebab(pascal: &str) -> String {
    let mut text = String::new();
    for letter in pascal.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// The row of a name in any of its three forms.
pub fn find(name: &str) -> Option<&'static TypeInfo> {
    types().find(|info| info.name == name || info.cli_name == name || kebab(info.name) == name)
}

/// The valid name nearest to a wrong one, in the form the command line shows.
pub fn suggest(word: &str) -> Option<&'static str> {
    let short = nearest(word, types().map(|info| info.cli_name));
    short.or_else(|| {
        let long: Vec<String> = types().map(|info| kebab(info.name)).collect();
        let hit = nearest(&kebab(word), long.iter().map(String::as_str))?;
        find(hit).map(|info| info.cli_name)
    })
}

/// Position class of types whose members all do the same.
const ROLE_PLAIN: &str = "plain";
/// Priorities of `PriorityInversion`: apart from each other, and below the kernel's own threads at 99.
const INVERSION_PRIORITIES: [u32; 3] = [70, 50, 30];
/// Priority of `PreemptStorm`'s position 0: the lowest that preempts every fair task.
const PREEMPT_PRIORITY: u32 = 1;

impl WorkType {
    /// What does not depend on the parameters.
    pub fn info(&self) -> &'static TypeInfo {
        let place = match self {
            Self::SpinWait => (0, 0),
            Self::YieldHeavy => (0, 1),
            Self::Mixed => (0, 2),
            Self::Bursty { .. } => (0, 3),
            Self::IdleChurn { .. } => (0, 4),
            Self::NiceSweep => (0, 5),
            Self::AffinityChurn { .. } => (0, 6),
            Self::PolicyChurn { .. } => (0, 7),
            Self::RtStarvation { .. } => (0, 8),
            Self::AluHot { .. } => (0, 9),
            Self::SmtSiblingSpin => (0, 10),
            Self::IpcVariance { .. } => (0, 11),
            Self::PipeIo { .. } => (1, 0),
            Self::FutexPingPong { .. } => (1, 1),
            Self::FutexFanOut { .. } => (1, 2),
            Self::FanOutCompute { .. } => (1, 3),
            Self::ThunderingHerd { .. } => (1, 4),
            Self::MutexContention { .. } => (1, 5),
            Self::PriorityInversion { .. } => (1, 6),
            Self::ProducerConsumerImbalance { .. } => (1, 7),
            Self::AsymmetricWaker { .. } => (1, 8),
            Self::WakeChain { .. } => (1, 9),
            Self::EpollStorm { .. } => (1, 10),
            Self::CachePressure { .. } => (2, 0),
            Self::CacheYield { .. } => (2, 1),
            Self::CachePipe { .. } => (2, 2),
            Self::IoSyncWrite => (2, 3),
            Self::IoRandRead => (2, 4),
            Self::IoConvoy => (2, 5),
            Self::PageFaultChurn { .. } => (2, 6),
            Self::NumaWorkingSetSweep { .. } => (2, 7),
            Self::NumaMigrationChurn { .. } => (2, 8),
            Self::Sequence { .. } => (3, 0),
            Self::ForkExit => (3, 1),
            Self::CgroupChurn { .. } => (3, 2),
            Self::SignalStorm { .. } => (3, 3),
            Self::PreemptStorm { .. } => (3, 4),
            Self::Custom { .. } => (3, 5),
        };
        let (family, row) = place;
        &FAMILIES[family][row]
    }
    pub fn name(&self) -> &'static str {
        self.info().name
    }
    pub fn cli_name(&self) -> &'static str {
        self.info().cli_name
    }
    pub fn sample_kinds(&self) -> &'static [SampleKind] {
        self.info().sample_kinds
    }
    pub fn description(&self) -> &'static str {
        self.info().description
    }
    pub fn method(&self) -> &'static str {
        self.info().method
    }
    /// The type of this name (`SpinWait`, `spin-wait` or `spin`), with its default parameters.
    pub fn from_name(name: &str) -> Option<Self> {
        find(name).map(|info| info.default.clone())
    }

    /// Workers that depend on one another; the number of workers is a multiple of it.
    pub fn worker_group_size(&self) -> u32 {
        match *self {
            Self::PipeIo { .. }
            | Self::FutexPingPong { .. }
            | Self::CachePipe { .. }
            | Self::AsymmetricWaker { .. }
            | Self::SignalStorm { .. }
            | Self::SmtSiblingSpin => 2,
            Self::FutexFanOut { fan_out, .. } | Self::FanOutCompute { fan_out, .. } => fan_out.saturating_add(1),
            Self::MutexContention { contenders, .. } => contenders,
            Self::ThunderingHerd { waiters, .. } => waiters.saturating_add(1),
            Self::PriorityInversion { high, medium, low, .. } => high.saturating_add(medium).saturating_add(low),
            Self::ProducerConsumerImbalance { producers, consumers, .. }
            | Self::EpollStorm { producers, consumers, .. } => producers.saturating_add(consumers),
            Self::RtStarvation { rt_workers, cfs_workers, .. } => rt_workers.saturating_add(cfs_workers),
            Self::WakeChain { depth, .. } => depth,
            Self::PreemptStorm { cfs_workers, .. } => cfs_workers.saturating_add(1),
            _ => 1,
        }
    }

    /// Whether the members of a group meet in shared memory.
    pub fn needs_shared_mem(&self) -> bool {
        self.worker_group_size() > 1 && !matches!(self, Self::RtStarvation { .. } | Self::PreemptStorm { .. })
    }

    /// Position class within the group, so that fairness compares equals.
    pub fn role(&self, position: u32) -> String {
        let first = |count: u32, those: &'static str, others: &'static str| {
            if position < count { those } else { others }
        };
        let role = match *self {
            Self::FutexFanOut { .. } | Self::FanOutCompute { .. } => first(1, "messenger", "receiver"),
            Self::ThunderingHerd { .. } | Self::AsymmetricWaker { .. } => first(1, "waker", "waiter"),
            Self::ProducerConsumerImbalance { producers, .. } | Self::EpollStorm { producers, .. } => {
                first(producers, "producer", "consumer")
            }
            Self::PriorityInversion { high, medium, .. } => {
                if position < high {
                    "high"
                } else {
                    first(high.saturating_add(medium), "medium", "low")
                }
            }
            Self::RtStarvation { rt_workers, .. } => first(rt_workers, "rt", "fair"),
            Self::PreemptStorm { .. } => first(1, "rt", "fair"),
            Self::WakeChain { .. } => return format!("stage {position}"),
            _ => ROLE_PLAIN,
        };
        role.into()
    }

    /// The class that the type itself gives this position; none: the one that was asked for.
    pub fn own_policy(&self, position: u32) -> Option<SchedPolicy> {
        match *self {
            Self::PriorityInversion { high, medium, .. } => {
                let class = usize::from(position >= high) + usize::from(position >= high.saturating_add(medium));
                Some(SchedPolicy::Fifo { priority: INVERSION_PRIORITIES[class] })
            }
            Self::RtStarvation { rt_workers, rt_priority, .. } if position < rt_workers => {
                Some(SchedPolicy::Fifo { priority: rt_priority })
            }
            Self::PreemptStorm { .. } if position == 0 => Some(SchedPolicy::Fifo { priority: PREEMPT_PRIORITY }),
            Self::AsymmetricWaker { waker_class, wakee_class, .. } => {
                Some(if position == 0 { waker_class } else { wakee_class }.into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_three_names() {
        for info in types() {
            for name in [info.name.to_owned(), info.cli_name.to_owned(), kebab(info.name)] {
                assert_eq!(WorkType::from_name(&name).unwrap(), info.default, "{name}");
            }
            assert_eq!(info.default.info().name, info.name);
            assert!(info.method.len() > 200 && !info.description.is_empty(), "{}", info.name);
            let samples = info.sample_kinds.iter().all(|kind| info.method.contains(kind.name()));
            assert!(samples || info.name == "CachePipe", "{}: the method does not explain its samples", info.name);
        }
        assert_eq!(types().map(|info| info.name).collect::<Vec<_>>(), ALL_NAMES);
        let mut words: Vec<&str> = types().map(|info| info.cli_name).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), ALL_NAMES.len());
        assert_eq!(kebab("FutexPingPong"), "futex-ping-pong");
        assert_eq!(WorkType::from_name("Spin"), None);
    }

    #[test]
    fn typo_gets_the_nearest_name() {
        assert_eq!(suggest("spni"), Some("spin"));
        assert_eq!(suggest("SpinWiat"), Some("spin"));
        assert_eq!(suggest("FutexPingPing"), Some("ping-pong"));
        assert_eq!(suggest("qqqqqqqqqqqq"), None);
    }

    #[test]
    fn groups_roles_and_classes_follow_the_parameters() {
        let size = |name: &str| WorkType::from_name(name).unwrap().worker_group_size();
        assert_eq!(
            ["spin", "pipe", "fan-out", "herd", "priority-inversion", "producer-consumer", "wake-chain"].map(size),
            [1, 2, 5, 8, 3, 3, 4]
        );
        let inversion = WorkType::from_name("priority-inversion").unwrap();
        let roles: Vec<String> = (0..3).map(|position| inversion.role(position)).collect();
        assert_eq!(roles, ["high", "medium", "low"]);
        let classes: Vec<_> = (0..3).map(|position| inversion.own_policy(position)).collect();
        let fifo = |priority| Some(SchedPolicy::Fifo { priority });
        assert_eq!(classes, [fifo(70), fifo(50), fifo(30)]);
        assert_eq!(WorkType::from_name("wake-chain").unwrap().role(2), "stage 2");
        assert_eq!(WorkType::from_name("preempt-storm").unwrap().own_policy(1), None);
        assert!(WorkType::from_name("mutex").unwrap().needs_shared_mem() && !WorkType::Mixed.needs_shared_mem());
    }
}
