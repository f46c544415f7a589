//! Names for findings that are equal wherever the same fault is: without addresses, numbers and names of tasks.
//!
//! Owns the table of forms and the choice of the guilty function; leaves what a finding is to `table`.
//! Invariant: two reports of one fault that differ in CPU, pid, address, time or offset have the same name.

use super::{Class, Finding};

/// Lines of one kind: how they begin, and what the name begins with. First match wins.
const FORMS: &[(&str, &str)] = &[
    ("BUG: kernel NULL pointer dereference", "BUG: NULL pointer dereference"),
    ("BUG: unable to handle kernel NULL pointer", "BUG: NULL pointer dereference"),
    ("Unable to handle kernel NULL pointer", "BUG: NULL pointer dereference"),
    ("BUG: unable to handle page fault", "BUG: bad page fault"),
    ("BUG: unable to handle kernel paging request", "BUG: bad page fault"),
    ("Unable to handle kernel paging request", "BUG: bad page fault"),
    ("general protection fault", "general protection fault"),
    ("divide error", "divide error"),
    ("invalid opcode", "invalid opcode"),
    ("int3:", "stray int3"),
    ("stack segment", "stack segment fault"),
    ("kernel BUG at ", "kernel BUG"),
    ("Kernel BUG at ", "kernel BUG"),
    ("BUG: soft lockup", "soft lockup"),
    ("CPU", "hard lockup"),
    ("Watchdog detected hard LOCKUP", "hard lockup"),
    ("INFO: rcu_", "RCU stall"),
    ("rcu_", "RCU stall"),
    ("INFO: task ", "hung task"),
    ("BUG: workqueue lockup", "workqueue lockup"),
    ("BUG: scheduling while atomic", "scheduling while atomic"),
    ("BUG: sleeping function called from invalid context", "sleeping in atomic context"),
    ("BUG: using ", "per-CPU data used while preemptible"),
    ("WARNING: possible circular locking", "possible circular locking"),
    ("WARNING: possible recursive locking", "possible recursive locking"),
    ("WARNING: possible irq lock inversion", "possible irq lock inversion"),
    ("WARNING: inconsistent lock state", "inconsistent lock state"),
    ("WARNING: suspicious RCU usage", "suspicious RCU usage"),
    ("WARNING: bad unlock balance", "bad unlock balance"),
    ("WARNING: ", "WARNING"),
];

/// Functions that only report, wait or get there, and are never what is to blame. A scheduler tester blames kernel/sched
/// itself, unlike others who look for the first function outside of it: only its entries into a wait are left out.
const NEVER_GUILTY: &[&str] = &[
    "__dump_stack",
    "dump_stack",
    "dump_stack_lvl",
    "show_stack",
    "show_trace",
    "print_",
    "report_",
    "kasan_",
    "__kasan_",
    "__asan_",
    "check_",
    "__warn",
    "warn_",
    "panic",
    "vpanic",
    "nmi_panic",
    "oops_",
    "die",
    "__die",
    "exc_",
    "asm_",
    "handle_bug",
    "do_trap",
    "do_error_trap",
    "page_fault_oops",
    "do_user_addr_fault",
    "sysvec_",
    "__sysvec_",
    "lock_acquire",
    "__lock_acquire",
    "lockdep_",
    "validate_chain",
    "mark_lock",
    "ubsan_",
    "__ubsan_",
    "rcu_check",
    "rcu_sched_clock_irq",
    "rcu_dump",
    "watchdog_",
    "perf_trace",
    "nmi_",
    "default_do_nmi",
    "end_repeat_nmi",
    "__schedule_bug",
    "__schedule",
    "schedule",
    "io_schedule",
    "schedule_timeout",
    "preempt_schedule",
    "__might_",
    "mutex_lock",
    "__mutex_lock",
    "down_",
    "rwsem_down",
    "wait_for_",
    "do_wait_for_common",
    "__switch_to",
    "sched_show_task",
    "update_process_times",
    "tick_",
    "__hrtimer_run",
    "hrtimer_interrupt",
];

/// The name of a finding.
pub fn signature(finding: &Finding) -> String {
    let title = strip_parenthesis(&finding.title);
    if let Some(rest) = title.strip_prefix("BUG: K").filter(|_| finding.class == Class::Sanitizer) {
        return named_in(rest, "BUG: K");
    }
    if finding.class == Class::Sanitizer {
        let kind = title.strip_prefix("UBSAN: ").and_then(|rest| rest.split(" in ").next());
        return with_place(&kind.map_or_else(|| plain(title), |kind| format!("UBSAN: {kind}")), finding);
    }
    if finding.class == Class::SchedExtExit || matches!(finding.class, Class::Panic | Class::InitKilled) {
        return plain(title);
    }
    match FORMS.iter().find(|(start, _)| title.starts_with(start)) {
        Some((_, name)) => with_place(name, finding),
        None => plain(title),
    }
}

/// `... (what stood before the line)` of a block.
fn strip_parenthesis(title: &str) -> &str {
    title.split_once(" (").map_or(title, |(head, _)| head)
}

/// `KASAN: slab-use-after-free in FUNCTION+0x1/0x2`: the report names the function itself.
fn named_in(rest: &str, head: &str) -> String {
    match rest.split_once(" in ") {
        Some((kind, place)) => format!("{head}{kind} in {}", function(place).unwrap_or("?")),
        None => plain(&format!("{head}{rest}")),
    }
}

fn with_place(name: &str, finding: &Finding) -> String {
    match guilty(finding) {
        Some(function) => format!("{name} in {function}"),
        None => name.to_owned(),
    }
}

/// The function to blame: where the CPU stood, or the first of the trace that does more than report.
fn guilty(finding: &Finding) -> Option<&str> {
    let title = finding.title.as_str();
    let own = title.rsplit_once(" at ").and_then(|(_, place)| place.split_whitespace().find_map(function));
    let lines = || finding.lines.iter().map(String::as_str);
    let stood = lines().find_map(|line| function(line.split_once("RIP: 0010:")?.1));
    let mut trace = lines().skip_while(|line| !line.trim_start().starts_with("Call Trace")).skip(1);
    let called = trace.find_map(|line| frame(line).filter(|name| !is_helper(name)));
    own.or_else(|| stood.filter(|name| !is_helper(name))).or(called)
}

fn is_helper(name: &str) -> bool {
    NEVER_GUILTY.iter().any(|helper| name == *helper || (name.starts_with(helper) && helper.ends_with('_')))
}

/// ` schedule+0x27/0xf0 [module]`; a frame with a question mark is only a guess of the unwinder's.
fn frame(line: &str) -> Option<&str> {
    let line = line.trim_start();
    if line.starts_with('?') { None } else { function(line) }
}

/// `FUNCTION+0x1/0x2...`, without what the compiler appends.
fn function(text: &str) -> Option<&str> {
    let (name, offset) = text.trim_start().split_once("+0x")?;
    let name = name.split('.').next().unwrap_or(name);
    let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (fits && offset.contains("/0x")).then_some(name)
}

/// The text with every number replaced, for messages that name no function.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        out.push_str(if is_number(&word) { "N" } else { &word });
        word.clear();
        out.push(c);
    }
    out.trim_end().to_owned()
}

/// Decimal, or hexadecimal that is marked or as long as an address.
fn is_number(word: &str) -> bool {
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let decimal = word.bytes().take_while(u8::is_ascii_digit).count();
    (decimal > 0 && matches!(&word[decimal..], "" | "s" | "ms"))
        || word.strip_prefix("0x").is_some_and(hex)
        || (word.len() >= 8 && hex(word))
}

#[cfg(test)]
mod tests {
    use super::super::classify;
    use super::*;
    use crate::proto::record::KlogLine;

    /// The names of what the kernel says in these lines.
    fn names(text: &str) -> Vec<String> {
        let line = |(at, text): (usize, &str)| KlogLine {
            priority: 4,
            sequence: at as u64,
            time_us: 1000 * at as u64,
            text: text.into(),
        };
        let lines: Vec<KlogLine> = text.lines().enumerate().map(line).collect();
        classify(&lines, "").findings.iter().map(signature).collect()
    }

    /// Forms of kernel 6.12 and 7.x, written after lib/bug.c, arch/x86/mm/fault.c, kernel/panic.c and mm/kasan/report.c.
    #[test]
    fn same_fault_elsewhere_has_the_same_name() {
        for (one, other, name) in [
            (
                "WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:10 ttwu_queue+0x1/0x20",
                "WARNING: kernel/sched/core.c:11 at ttwu_queue+0x3/0x30, CPU#1: kw0-spin/99",
                "WARNING in ttwu_queue",
            ),
            (
                "BUG: kernel NULL pointer dereference, address: 0000000000000008\nRIP: 0010:pick_task_scx+0x5/0x90",
                "BUG: kernel NULL pointer dereference, address: 0000000000000010\nRIP: 0010:pick_task_scx.isra.0+0x9/0x90",
                "BUG: NULL pointer dereference in pick_task_scx",
            ),
            (
                "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [a:1]\nRIP: 0010:dispatch+0x1/0x2",
                "watchdog: BUG: soft lockup - CPU#3 stuck for 45s! [b:777]\nRIP: 0010:dispatch+0x8/0x2",
                "soft lockup in dispatch",
            ),
            (
                "INFO: task a:1 blocked for more than 120 seconds.\nCall Trace:\n <TASK>\n __schedule+0x1/0x2\n schedule+0x1/0x2\n ? x+0x1/0x2\n do_it+0x1/0x2",
                "INFO: task bc:22 blocked for more than 240 seconds.\nCall Trace:\n __schedule+0x3/0x2\n schedule+0x1/0x2\n do_it+0x5/0x2",
                "hung task in do_it",
            ),
            (
                "BUG: KASAN: slab-use-after-free in f.constprop.0+0x1/0x2",
                "BUG: KASAN: slab-use-after-free in f+0x7/0x9",
                "BUG: KASAN: slab-use-after-free in f",
            ),
            (
                "BUG: scheduling while atomic: a/12/0x00000002\nCall Trace:\n dump_stack_lvl+0x1/0x2\n __schedule_bug+0x1/0x2\n g+0x1/0x2",
                "BUG: scheduling while atomic: b/7/0x00000003\nCall Trace:\n __schedule_bug+0x1/0x2\n g+0x1/0x2",
                "scheduling while atomic in g",
            ),
            (
                "Kernel panic - not syncing: stack is corrupted in 0xffffffff81000000 at 12",
                "Kernel panic - not syncing: stack is corrupted in 0xffffffff82000000 at 3",
                "Kernel panic - not syncing: stack is corrupted in N at N",
            ),
            (
                "sched_ext: BPF scheduler \"x\" disabled (runnable task stall)\nsched_ext: x: a[12] failed to run for 4.292s",
                "sched_ext: BPF scheduler \"x\" disabled (runnable task stall)\nsched_ext: x: a[345] failed to run for 30.100s",
                "sched_ext disabled \"x\": runnable task stall: a[N] failed to run for N.N",
            ),
        ] {
            assert_eq!((names(one), names(other)), (vec![name.to_owned()], vec![name.to_owned()]));
        }
    }

    #[test]
    fn different_faults_have_different_names_and_hostile_lines_do_no_harm() {
        let one = names("WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2");
        let other = names("WARNING: CPU: 0 PID: 1 at a.c:1 g+0x1/0x2");
        assert_ne!(one, other);
        for text in
            ["WARNING: ", "WARNING: CPU: * PID: * at +0x/0x", "BUG: KASAN: ", "INFO: task \n+0x1/0x2", "BUG: é+0x1"]
        {
            names(text);
        }
    }
}
