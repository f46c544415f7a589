//! A stored run judged again: the same verdict from the same limits, another from others, and no VM.

use crate::util::{Scratch, emulation, ktstr, run_in};
use std::fs;

/// A byte of a stored record's first message. Before it are 8 bytes of magic, the protocol's number, the build with its
/// length and a check sum, and the head of the message.
fn in_first_message(record: &[u8]) -> usize {
    let build = u32::from_le_bytes([record[12], record[13], record[14], record[15]]) as usize;
    16 + build + 4 + 16 + 1
}

/// The statuses of all checks, as JSON says them.
fn statuses(result: &serde_json::Value) -> Vec<String> {
    let checks = result["checks"].as_array().expect("checks are an array");
    checks.iter().map(|check| format!("{} {} {}", check["name"], check["group"], check["status"])).collect()
}

#[test]
fn stored_run_is_judged_again_by_its_own_limits_and_by_others() {
    let Some(kernel) = emulation("judge: a stored run", "7") else { return };
    let scratch = Scratch::new();
    let (kernel, dir) = (kernel.display().to_string(), scratch.0.join("run").display().to_string());
    // Workers that change their own affinity all the time: migrations are sure, whatever the emulator's pace.
    let run = ["--kernel", &kernel, "--accel", "qemu", "--duration", "1s", "--work", "affinity-churn"];
    let live = run_in(&scratch, &[&run[..], &["--run-dir", &dir, "--json", "-", "--spread", "off"]].concat()).exits(0);
    let again = ktstr(&["judge", &dir, "--json", "-"]).exits(0);
    assert_eq!(again.json(), live.json(), "the stored run is judged differently:{again}");
    assert!(statuses(&again.json()).contains(&"\"spread\" \"g0\" \"not-applied\"".to_string()), "{again}");

    let ran = ktstr(&["judge", &dir, "--max-migration-ratio", "0"]).exits(1);
    ran.says("FAIL: max_migration_ratio is").says("more than 0.000");
    // Asked for, broken, but void under emulation; and broken on a machine that makes nothing faster.
    ktstr(&["judge", &dir, "--min-iteration-rate", "1000000000"]).exits(125).says("void, under software emulation");
    ktstr(&["judge", &dir, "--max-gap", "1h"]).exits(0);
    // Data that this run does not have.
    ktstr(&["judge", &dir, "--max-imbalance", "2"]).exits(125).says("no monitor looks into this guest's run queues");
    ktstr(&["judge", &dir, "--check", "none", "--max-migration-ratio", "0"]).exits(1);
    ktstr(&["judge", &dir, "-q"]).exits(0).says("PASS");

    let record = scratch.0.join("run/record");
    let bytes = fs::read(&record).expect("read the record");
    let cut = scratch.file("cut", &bytes[..bytes.len() - 5]).display().to_string();
    // Only the last mark is lost, which no check needs: said, and judged all the same.
    ktstr(&["judge", &cut]).exits(0).says("was cut");
    let half = scratch.file("half", &bytes[..bytes.len() / 2]).display().to_string();
    assert_ne!(ktstr(&["judge", &half]).says("was cut").code, Some(0), "half a record passed");
    let damaged = |at: usize| {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        scratch.file("damaged", damaged).display().to_string()
    };
    // What stands before a damage is kept, and is as little a pass as half a record.
    let ran = ktstr(&["judge", &damaged(bytes.len() / 2)]).says("was cut").says("damaged at byte");
    assert_ne!(ran.code, Some(0), "a damaged record passed:{ran}");
    // The magic, and the first message.
    for at in [0, in_first_message(&bytes)] {
        ktstr(&["judge", &damaged(at)]).exits(128).says("usable");
    }
    // The protocol's number: damage, and not another build.
    ktstr(&["judge", &damaged(8)]).exits(128).says("head is damaged");

    // A result is never written over what it is made from.
    let path = record.display().to_string();
    ktstr(&["judge", &dir, "--json", &path]).exits(128).says("a result needs a file of its own");
    assert_eq!(fs::read(&record).expect("read the record"), bytes);
    let nowhere = scratch.0.join("nowhere/result").display().to_string();
    let ran = ktstr(&["judge", &dir, "--json", &nowhere]).exits(128).says("nowhere/result");
    assert_eq!(ran.stdout, "", "judged before it was known where to write:{ran}");
}

#[test]
fn what_is_no_record_is_refused() {
    let scratch = Scratch::new();
    let here = |name: &str| scratch.0.join(name).display().to_string();
    // Messages are wrapped at the width of a terminal, so single words are looked for.
    ktstr(&["judge", &here("nowhere")]).exits(128).says("nowhere");
    let foreign = scratch.file("foreign", "#!/bin/sh\n").display().to_string();
    ktstr(&["judge", &foreign]).exits(128).says("usable");
    ktstr(&["judge", &here("")]).exits(128).says("record");
    ktstr(&["judge"]).exits(128).says("RUN");
    ktstr(&["judge", &foreign, "--max-gap", "soon"]).exits(128).says("--max-gap:");
}
