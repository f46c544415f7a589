//! Host noise as the reports show it: one line for people, one object for programs.
//!
//! Owns the words; leaves the values to proto/noise, what they excuse to verdict/.
//! Invariant: what the host could not tell is left out or null, never shown as 0.

use super::json::Json;
use crate::proto::noise::{HostNoise, VcpuNoise};
use crate::proto::record::Record;
use crate::units::{NS_PER_MS, approx};

/// Below both, noise is what any host has, and no line of the summary: a hundredth of the time, a tenth of a second.
const QUIET_PERCENT: f64 = 1.0;
const QUIET_WAIT_NS: u64 = 100 * NS_PER_MS;

/// The line; none where no vCPU was seen.
pub fn line(record: &Record) -> Option<String> {
    let noise = record.noise.as_ref()?;
    let (percent, worst) = (noise.waited_percent()?, noise.worst()?);
    let mut text = format!("host noise: vCPUs waited {percent:.1} % of the time");
    if worst.worst_delay_ns > 0 {
        let (wait, at) = (approx(worst.worst_delay_ns), approx(worst.worst_at_ns));
        text.push_str(&format!(", at most {wait} (vCPU {} at {at})", worst.vcpu));
    }
    for (what, ns) in [("steal", noise.steal_ns), ("pressure", noise.pressure_ns)] {
        if let Some(ns) = ns.filter(|ns| *ns > 0) {
            text.push_str(&format!(", {what} {}", approx(ns)));
        }
    }
    Some(text)
}

/// The line where the host was noisier than any host is.
pub fn noisy_line(record: &Record) -> Option<String> {
    let noise = record.noise.as_ref()?;
    let noisy = noise.waited_percent()? >= QUIET_PERCENT || noise.worst()?.worst_delay_ns >= QUIET_WAIT_NS;
    line(record).filter(|_| noisy)
}

/// The object of the JSON result.
pub fn json(noise: &HostNoise) -> Json {
    Json::object([
        ("from_ns", noise.from_ns.into()),
        ("to_ns", noise.to_ns.into()),
        ("samples", noise.samples.into()),
        ("waited_percent", noise.waited_percent().into()),
        ("steal_ns", noise.steal_ns.into()),
        ("pressure_ns", noise.pressure_ns.into()),
        ("vcpus", Json::array(noise.vcpus.iter().map(vcpu))),
    ])
}

fn vcpu(vcpu: &VcpuNoise) -> Json {
    Json::object([
        ("vcpu", vcpu.vcpu.into()),
        ("run_ns", vcpu.run_ns.into()),
        ("run_delay_ns", vcpu.delay_ns.into()),
        ("turns", vcpu.turns.into()),
        ("worst_delay_ns", vcpu.worst_delay_ns.into()),
        ("worst_window_ns", vcpu.worst_window_ns.into()),
        ("worst_at_ns", vcpu.worst_at_ns.into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NS_PER_SEC;
    use crate::verdict::fixture::{passing, starve};

    #[test]
    fn line_names_share_worst_wait_and_its_time() {
        let mut record = passing();
        assert_eq!(line(&record), None);
        starve(&mut record, NS_PER_SEC, 110 * NS_PER_MS);
        let text = "host noise: vCPUs waited 5.0 % of the time, at most 110 ms (vCPU 0 at 1.11 s)";
        assert_eq!(line(&record).as_deref(), Some(text));
        assert_eq!(noisy_line(&record), line(&record));
    }

    #[test]
    fn quiet_host_has_no_line_in_the_summary() {
        let mut record = passing();
        starve(&mut record, NS_PER_SEC, NS_PER_MS);
        assert!(line(&record).is_some() && noisy_line(&record).is_none());
    }
}
