//! Notices a guest that gives no sign of life any more, long before the run's own deadline.
//!
//! Owns the limit and the look at the VM's CPU time; leaves ending the VM to watch.rs.
//! Invariant: only a guest that has given signs of life can fall silent, so that an old or a strange one is never cut.

use crate::proto::message::VmEnd;
use crate::units::NS_PER_SEC;
use std::fs;

/// PID 1 gives a sign twice a second from a real-time class, above all that a scheduler under test owns. On a host so
/// busy that this takes 20 s, nothing can be judged either.
const LIMIT_KVM_NS: u64 = 20 * NS_PER_SEC;
/// An emulator may stand still for longer beside others.
const LIMIT_QEMU_NS: u64 = 40 * NS_PER_SEC;
/// USER_HZ (Documentation/filesystems/proc.rst): the unit of CPU times in /proc/PID/stat.
const TICKS_PER_S: u64 = 100;

/// How long a guest may be silent.
pub fn limit_ns(emulated: bool) -> u64 {
    if emulated { LIMIT_QEMU_NS } else { LIMIT_KVM_NS }
}

/// When the guest was last heard of, and how busy its VM was then.
#[derive(Debug)]
pub struct Silence {
    pid: i32,
    limit_ns: u64,
    last: Option<(u64, Option<u64>)>,
}

impl Silence {
    pub fn new(pid: i32, emulated: bool) -> Self {
        Self { pid, limit_ns: limit_ns(emulated), last: None }
    }

    /// PID 1 gave a sign.
    pub fn heard(&mut self, now_ns: u64) {
        self.last = Some((now_ns, cpu_ticks(self.pid)));
    }

    /// The end of a guest that has been silent for too long.
    pub fn end(&self, now_ns: u64) -> Option<VmEnd> {
        let (since_ns, ticks) = self.last?;
        let for_ns = now_ns.saturating_sub(since_ns);
        if for_ns < self.limit_ns {
            return None;
        }
        let used = cpu_ticks(self.pid).zip(ticks).map(|(now, then)| now.saturating_sub(then));
        let busy_percent = used.map(|ticks| (ticks * 100 * NS_PER_SEC / TICKS_PER_S / for_ns.max(1)) as u32);
        Some(VmEnd::Silent { for_ns, busy_percent })
    }
}

/// User and system time of a process with all its threads: fields 14 and 15 of /proc/PID/stat.
fn cpu_ticks(pid: i32) -> Option<u64> {
    parse_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_ticks(stat: &str) -> Option<u64> {
    // The name, field 2, is in parentheses and may hold anything.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let user: u64 = rest.nth(11)?.parse().ok()?;
    let system: u64 = rest.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_spoken_can_fall_silent() {
        let mut silence = Silence::new(std::process::id() as i32, false);
        assert_eq!(silence.end(1 << 60), None);
        silence.heard(NS_PER_SEC);
        assert_eq!(silence.end(20 * NS_PER_SEC), None);
        assert!(
            matches!(silence.end(22 * NS_PER_SEC), Some(VmEnd::Silent { for_ns, .. }) if for_ns == 21 * NS_PER_SEC)
        );
    }

    #[test]
    fn times_are_found_behind_a_hostile_name() {
        let stat = "12 (a) b (c) 9) S 1 2 3 4 5 6 7 8 9 10 300 40 0 0 20 0 3";
        assert_eq!(parse_ticks(stat), Some(340));
        assert_eq!(parse_ticks("12 (x) S 1"), None);
    }
}
