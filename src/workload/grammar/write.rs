//! Works as text again, in the form that the grammar reads.
//!
//! Owns writing them; leaves the form of single parameters to types.
//! Invariant: what is as usual is left out, and what is written is read back as the same.

use crate::proto::plan::{CloneMode, MemPolicy, MpolFlags, SchedPolicy, WorkSpec};
use crate::proto::scenario::AffinityIntent;
use crate::proto::work::WorkType;
use crate::units::duration;

impl WorkType {
    /// The text that `parse_work` reads: `spin`, `bursty(burst=5ms,sleep=10ms)`. Defaults are left out.
    pub fn to_text(&self) -> String {
        if matches!(self, Self::Sequence { .. }) {
            return format!("{}({})", self.cli_name(), self.parameters_text());
        }
        let (mut own, mut default) = (self.clone(), self.info().default.clone());
        let usual: Vec<String> = default.parameters().iter().map(|(_, param)| param.text()).collect();
        let pairs = own.parameters().into_iter().zip(usual).filter(|((_, mine), usual)| mine.text() != *usual);
        let pairs: Vec<String> = pairs.map(|((name, param), _)| format!("{name}={}", param.text())).collect();
        match pairs.is_empty() {
            true => self.cli_name().to_owned(),
            false => format!("{}({})", self.cli_name(), pairs.join(",")),
        }
    }
}

/// The text that `parse_workspecs` reads as this one group. What is as usual is left out.
pub fn spec_text(spec: &WorkSpec) -> String {
    let groups = spec.workers / spec.work.worker_group_size().max(1);
    let mut text = format!("{}*{groups}", spec.work.to_text());
    let mut add = |key: &str, value: String| text.push_str(&format!(" {key}={value}"));
    let ns = duration;
    let counted = |count: &Option<u32>| count.map_or_else(String::new, |count| format!(":{count}"));
    match &spec.setup.policy {
        SchedPolicy::Normal => {}
        SchedPolicy::Batch => add("policy", "batch".into()),
        SchedPolicy::Idle => add("policy", "idle".into()),
        SchedPolicy::Ext => add("policy", "ext".into()),
        SchedPolicy::Fifo { priority } => add("policy", format!("fifo:{priority}")),
        SchedPolicy::RoundRobin { priority } => add("policy", format!("rr:{priority}")),
        SchedPolicy::Deadline { runtime_ns, deadline_ns, period_ns } => {
            add("policy", format!("deadline:{}:{}:{}", ns(*runtime_ns), ns(*deadline_ns), ns(*period_ns)));
        }
    }
    if spec.setup.nice != 0 {
        add("nice", spec.setup.nice.to_string());
    }
    match &spec.setup.affinity {
        AffinityIntent::Inherit => {}
        AffinityIntent::LlcAligned => add("affinity", "llc".into()),
        AffinityIntent::CrossCgroup => add("affinity", "cross".into()),
        AffinityIntent::SingleCpu => add("affinity", "single".into()),
        AffinityIntent::SmtSiblingPair => add("affinity", "smt".into()),
        AffinityIntent::Exact { cpus } => add("affinity", format!("cpus:{cpus}")),
        AffinityIntent::OneEach => add("affinity", "each".into()),
        AffinityIntent::Random { count } => add("affinity", format!("random{}", counted(count))),
        AffinityIntent::RandomSubset { from, count } => add("affinity", format!("random{}@{from}", counted(count))),
    }
    match &spec.setup.mem_policy {
        MemPolicy::Default => {}
        MemPolicy::Local => add("mem", "local".into()),
        MemPolicy::Preferred { node } => add("mem", format!("preferred:{node}")),
        MemPolicy::Bind { nodes } => add("mem", format!("bind:{nodes}")),
        MemPolicy::Interleave { nodes } => add("mem", format!("interleave:{nodes}")),
        MemPolicy::PreferredMany { nodes } => add("mem", format!("preferred-many:{nodes}")),
        MemPolicy::WeightedInterleave { nodes } => add("mem", format!("weighted:{nodes}")),
    }
    let flags: Vec<&str> =
        MpolFlags::WORDS.iter().filter(|(_, flag)| spec.setup.mpol_flags.has(*flag)).map(|(word, _)| *word).collect();
    if !flags.is_empty() {
        add("mpol", flags.join("+"));
    }
    if spec.setup.clone_mode == CloneMode::Thread {
        add("clone", "thread".into());
    }
    text
}
