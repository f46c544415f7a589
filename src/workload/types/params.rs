//! The parameters of each type, under one roof: for printing, parsing and listing.
//!
//! Owns the names and forms of parameters and their order; leaves the rules they must keep to config.
//! Invariant: every field of a variant is a parameter here, except the phases of a Sequence, which have their own form.

use crate::proto::cpuset::CpuSet;
use crate::proto::work::{AluWidth, PiMode, SchedClass, WakeMechanism, Word, WorkType};
use crate::units::{duration, nearest, parse_duration};

/// How a parameter is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Duration,
    Count,
    Flag,
    Word,
    /// Node numbers in the kernel's list form.
    Nodes,
    Text,
}

/// A parameter's place in its type.
#[derive(Debug)]
pub enum Param<'a> {
    Ns(&'a mut u64),
    Count(&'a mut u64),
    Small(&'a mut u32),
    Flag(&'a mut bool),
    Nodes(&'a mut Vec<u32>),
    Width(&'a mut AluWidth),
    Class(&'a mut SchedClass),
    Wake(&'a mut WakeMechanism),
    Pi(&'a mut PiMode),
    Text(&'a mut String),
}

fn word<W: Word>(place: &mut W, text: &str) -> Result<(), (String, Option<String>)> {
    match W::from_word(text) {
        Some(value) => {
            *place = value;
            Ok(())
        }
        None => {
            let known: Vec<&str> = W::WORDS.iter().map(|(word, _)| *word).collect();
            let near = nearest(text, known.iter().copied()).map(str::to_owned);
            Err((format!("'{text}' is none of {}", known.join(", ")), near))
        }
    }
}

impl Param<'_> {
    pub fn form(&self) -> Form {
        match self {
            Self::Ns(_) => Form::Duration,
            Self::Count(_) | Self::Small(_) => Form::Count,
            Self::Flag(_) => Form::Flag,
            Self::Nodes(_) => Form::Nodes,
            Self::Width(_) | Self::Class(_) | Self::Wake(_) | Self::Pi(_) => Form::Word,
            Self::Text(_) => Form::Text,
        }
    }

    /// The value as it is written.
    pub fn text(&self) -> String {
        match self {
            Self::Ns(ns) => duration(**ns),
            Self::Count(count) => count.to_string(),
            Self::Small(count) => count.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Nodes(nodes) if nodes.is_empty() => "all".into(),
            Self::Nodes(nodes) => nodes.iter().copied().collect::<CpuSet>().to_string(),
            Self::Width(width) => width.word().into(),
            Self::Class(class) => class.word().into(),
            Self::Wake(wake) => wake.word().into(),
            Self::Pi(mode) => mode.word().into(),
            Self::Text(text) => (**text).clone(),
        }
    }

    /// Takes a value as it is written; the reason and the nearest word where it cannot.
    pub fn set(&mut self, text: &str) -> Result<(), (String, Option<String>)> {
        let number = || (format!("'{text}' is no whole number"), None);
        match self {
            Self::Ns(place) => **place = parse_duration(text).map_err(|why| (why, None))?,
            Self::Count(place) => **place = text.parse().map_err(|_| number())?,
            Self::Small(place) => **place = text.parse().map_err(|_| number())?,
            Self::Flag(place) => {
                **place = match text {
                    "true" | "yes" | "on" => true,
                    "false" | "no" | "off" => false,
                    _ => return Err((format!("'{text}' is none of true, false"), None)),
                }
            }
            Self::Nodes(place) if text == "all" => place.clear(),
            Self::Nodes(place) => {
                let set: CpuSet = text.parse().map_err(|why| (format!("{why}, or all"), None))?;
                **place = set.iter().collect();
            }
            Self::Width(place) => word(*place, text)?,
            Self::Class(place) => word(*place, text)?,
            Self::Wake(place) => word(*place, text)?,
            Self::Pi(place) => word(*place, text)?,
            Self::Text(place) => **place = text.into(),
        }
        Ok(())
    }
}

impl WorkType {
    /// The parameters by name, in their order.
    pub fn parameters(&mut self) -> Vec<(&'static str, Param<'_>)> {
        use Param::{Class, Count, Flag, Nodes, Ns, Pi, Small, Text, Wake, Width};
        match self {
            Self::SpinWait
            | Self::YieldHeavy
            | Self::Mixed
            | Self::IoSyncWrite
            | Self::IoRandRead
            | Self::IoConvoy
            | Self::Sequence { .. }
            | Self::ForkExit
            | Self::NiceSweep
            | Self::SmtSiblingSpin => vec![],
            Self::Bursty { burst_ns, sleep_ns } => vec![("burst", Ns(burst_ns)), ("sleep", Ns(sleep_ns))],
            Self::PipeIo { burst_iters } => vec![("burst_iters", Count(burst_iters))],
            Self::FutexPingPong { spin_iters }
            | Self::AffinityChurn { spin_iters }
            | Self::PolicyChurn { spin_iters } => {
                vec![("spin_iters", Count(spin_iters))]
            }
            Self::CachePressure { size_kb, stride } | Self::CacheYield { size_kb, stride } => {
                vec![("size_kb", Count(size_kb)), ("stride", Count(stride))]
            }
            Self::CachePipe { size_kb, burst_iters } => {
                vec![("size_kb", Count(size_kb)), ("burst_iters", Count(burst_iters))]
            }
            Self::FutexFanOut { fan_out, spin_iters } => {
                vec![("fan_out", Small(fan_out)), ("spin_iters", Count(spin_iters))]
            }
            Self::FanOutCompute { fan_out, cache_footprint_kb, operations, sleep_ns } => vec![
                ("fan_out", Small(fan_out)),
                ("cache_footprint_kb", Count(cache_footprint_kb)),
                ("operations", Count(operations)),
                ("sleep", Ns(sleep_ns)),
            ],
            Self::PageFaultChurn { region_kb, touches_per_cycle, spin_iters } => vec![
                ("region_kb", Count(region_kb)),
                ("touches_per_cycle", Count(touches_per_cycle)),
                ("spin_iters", Count(spin_iters)),
            ],
            Self::MutexContention { contenders, hold_iters, work_iters } => vec![
                ("contenders", Small(contenders)),
                ("hold_iters", Count(hold_iters)),
                ("work_iters", Count(work_iters)),
            ],
            Self::ThunderingHerd { waiters, batches, inter_batch_ns } => {
                vec![("waiters", Small(waiters)), ("batches", Count(batches)), ("inter_batch", Ns(inter_batch_ns))]
            }
            Self::PriorityInversion { high, medium, low, hold_iters, work_iters, pi_mode } => vec![
                ("high", Small(high)),
                ("medium", Small(medium)),
                ("low", Small(low)),
                ("hold_iters", Count(hold_iters)),
                ("work_iters", Count(work_iters)),
                ("pi_mode", Pi(pi_mode)),
            ],
            Self::ProducerConsumerImbalance {
                producers,
                consumers,
                produce_rate_hz,
                consume_iters,
                queue_depth_target,
            } => vec![
                ("producers", Small(producers)),
                ("consumers", Small(consumers)),
                ("produce_rate_hz", Count(produce_rate_hz)),
                ("consume_iters", Count(consume_iters)),
                ("queue_depth_target", Count(queue_depth_target)),
            ],
            Self::RtStarvation { rt_workers, cfs_workers, rt_priority, burst_iters } => vec![
                ("rt_workers", Small(rt_workers)),
                ("cfs_workers", Small(cfs_workers)),
                ("rt_priority", Small(rt_priority)),
                ("burst_iters", Count(burst_iters)),
            ],
            Self::AsymmetricWaker { waker_class, wakee_class, burst_iters } => vec![
                ("waker_class", Class(waker_class)),
                ("wakee_class", Class(wakee_class)),
                ("burst_iters", Count(burst_iters)),
            ],
            Self::WakeChain { depth, wake, work_per_hop_ns } => {
                vec![("depth", Small(depth)), ("wake", Wake(wake)), ("work_per_hop", Ns(work_per_hop_ns))]
            }
            Self::NumaWorkingSetSweep { region_kb, sweep_period_ns, target_nodes } => vec![
                ("region_kb", Count(region_kb)),
                ("sweep_period", Ns(sweep_period_ns)),
                ("target_nodes", Nodes(target_nodes)),
            ],
            Self::CgroupChurn { groups, cycle_ns } => vec![("groups", Small(groups)), ("cycle", Ns(cycle_ns))],
            Self::SignalStorm { signals_per_iter, work_iters } => {
                vec![("signals_per_iter", Count(signals_per_iter)), ("work_iters", Count(work_iters))]
            }
            Self::PreemptStorm { cfs_workers, rt_burst_iters, rt_sleep_ns } => vec![
                ("cfs_workers", Small(cfs_workers)),
                ("rt_burst_iters", Count(rt_burst_iters)),
                ("rt_sleep", Ns(rt_sleep_ns)),
            ],
            Self::EpollStorm { producers, consumers, events_per_burst } => vec![
                ("producers", Small(producers)),
                ("consumers", Small(consumers)),
                ("events_per_burst", Count(events_per_burst)),
            ],
            Self::NumaMigrationChurn { period_ns } => vec![("period", Ns(period_ns))],
            Self::IdleChurn { burst_ns, sleep_ns, precise_timing } => {
                vec![("burst", Ns(burst_ns)), ("sleep", Ns(sleep_ns)), ("precise_timing", Flag(precise_timing))]
            }
            Self::AluHot { width } => vec![("width", Width(width))],
            Self::IpcVariance { hot_iters, cold_iters, period_iters } => vec![
                ("hot_iters", Count(hot_iters)),
                ("cold_iters", Count(cold_iters)),
                ("period_iters", Count(period_iters)),
            ],
            Self::Custom { name } => vec![("name", Text(name))],
        }
    }

    /// The parameters with the values they have: `burst=50ms, sleep=100ms`; empty where there are none.
    pub fn parameters_text(&self) -> String {
        if let Self::Sequence { first, rest } = self {
            let phases = std::iter::once(first).chain(rest);
            return phases
                .map(|phase| format!("{} {}", phase.word(), duration(phase.ns())))
                .collect::<Vec<_>>()
                .join(", ");
        }
        let mut own = self.clone();
        own.parameters().iter().map(|(name, param)| format!("{name}={}", param.text())).collect::<Vec<_>>().join(", ")
    }
}
