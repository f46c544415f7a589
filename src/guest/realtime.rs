//! Real-time tasks of others in the guest: what they take, no scheduler under test can give to a worker.
//!
//! Owns finding them; leaves what that means for a stall to the reader and to verdict/.
//! Invariant: kernel threads and our own processes are not among them.

use std::fs;
use std::path::Path;

/// PF_KTHREAD (include/linux/sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;
/// Our own processes' names begin so: PID 1 and its helpers.
const OURS: [&str; 2] = ["ktstr-pid1", "ktstr-writer"];
/// Named at most; more say nothing new.
const MOST: usize = 4;

/// One sentence; none where there is no such task.
pub fn load(proc: &Path) -> Option<String> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let found: Vec<String> = stats.filter_map(|stat| describe(&stat)).collect();
    let more = found.len().saturating_sub(MOST);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let named = found.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    (!found.is_empty()).then(|| format!("real-time load: {named}{more}"))
}

/// `NAME[PID] at FIFO 50` of a real-time task. Fields of /proc/PID/stat: 1 pid, 2 name, 3 state, 9 flags, 40 priority,
/// 41 policy (Documentation/filesystems/proc.rst).
fn describe(stat: &str) -> Option<String> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
    let class = match field(41)? {
        1 => "FIFO",
        2 => "RR",
        6 => "DEADLINE",
        _ => return None,
    };
    let foreign = field(9)? & KERNEL_THREAD == 0 && !OURS.contains(&name) && pid != "1";
    foreign.then(|| format!("{}[{pid}] at {class} {}", name.escape_debug(), field(40).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: &str, name: &str, flags: u64, policy: u32) -> String {
        let middle = "0 ".repeat(30);
        format!("{pid} ({name}) S 0 0 0 0 0 {flags} {middle}50 {policy} 0")
    }

    #[test]
    fn only_foreign_real_time_tasks_are_load() {
        assert_eq!(describe(&stat("12", "a) b", 0, 1)), Some("a) b[12] at FIFO 50".into()));
        assert_eq!(describe(&stat("12", "x", 0, 0)), None);
        assert_eq!(describe(&stat("12", "migration/0", KERNEL_THREAD, 1)), None);
        assert_eq!(describe(&stat("1", "x", 0, 1)), None);
        assert_eq!(describe(&stat("40", "ktstr-pid1", 0, 1)), None);
        assert_eq!(describe("odd"), None);
    }
}
