//! The monitor of the run queues, on a scheduler that piles tasks up, and on the kernel's own.

use crate::util::{Scratch, emulation, ktstr, run_in};

#[test]
fn pile_of_tasks_on_one_cpu_fails_for_imbalance_and_depth_and_is_judged_again() {
    let Some(kernel) = emulation("queues: a pile", "7") else { return };
    let scratch = Scratch::new();
    let (kernel, dir) = (kernel.display().to_string(), scratch.0.join("run").display().to_string());
    let run = ["--kernel", &kernel, "--accel", "qemu", "--topo", "2", "--duration", "4s", "--run-dir", &dir];
    let pile = ["--sched", "builtin:pile", "--workers", "8", "--max-imbalance", "4", "--max-dsq-depth", "6"];
    // 16 workers on the first CPU: one runs, 15 are queued there, and the other CPU has none.
    let ran = run_in(&scratch, &[&run[..], &pile].concat()).exits(1);
    ran.says("FAIL: max_imbalance is").says("more than 4.000 (the queue of CPU 0, 5 looks in a row");
    // What a busy host leaves of the other checks is not this test's matter.
    let judged = ktstr(&["judge", &dir, "--max-imbalance", "100", "--max-dsq-depth", "100"]);
    assert!(matches!(judged.code, Some(0 | 125)) && !judged.to_string().contains("FAIL: max_"), "{judged}");
    let again = ktstr(&["judge", &dir, "--max-imbalance", "100"]).exits(1);
    again.says("FAIL: max_dsq_depth is").says("more than 6 (the local queue of CPU 0, 5 looks in a row");
}

#[test]
fn queues_of_the_kernels_own_scheduler_are_seen_too() {
    let Some(kernel) = emulation("queues: the kernel's own scheduler", "7") else { return };
    let kernel = kernel.display().to_string();
    let args = ["--kernel", &kernel, "--accel", "qemu", "--topo", "2", "--duration", "4s", "--json", "-"];
    let asked = ["--max-imbalance", "1000", "--clock-stall", "on"];
    let ran = run_in(&Scratch::new(), &[&args[..], &asked].concat());
    // A host that stops the emulator for half a second stops a clock, which is then void.
    assert!(matches!(ran.code, Some(0 | 125)), "{ran}");
    let result = ran.json();
    let check = |name: &str| result["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
    // Of the 40 looks of 4 s a clock that is read wrongly stands still in all but the first.
    assert!(check("clock_stall")["value_count"].as_u64().unwrap() < 30, "{ran}");
    assert!(check("max_imbalance")["value_ratio"].as_f64().unwrap() >= 1.0, "{ran}");
    assert_eq!(check("max_dsq_depth")["status"], "not-applied", "{ran}");
}
