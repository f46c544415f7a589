//! The library's `Vm`: described in code, it boots and gives back what the command line would.
//!
//! Owns one run through it; leaves what it refuses to the unit tests beside the code.
//! Invariant: the program that runs it is the delivered binary.

use crate::util::{TRIES, binary, emulation, share_machine};
use ktstr::harness::Vm;
use ktstr::proto::message::VmEnd;

#[test]
fn vm_of_the_builder_passes_and_a_deadline_is_told() {
    let Some(kernel) = emulation("library: a VM of the builder", "7") else { return };
    let _shared = share_machine();
    let vm = |args: &[&str]| {
        let vm = Vm::builder().kernel(&kernel).init_binary(binary()).topology(1, 2, 1, 1).memory_mb(256);
        vm.run_args(["--accel", "qemu", "--duration", "500ms"]).run_args(args).build().expect("describe a VM")
    };
    let passing = vm(&["--dmesg"]);
    // A machine too busy for a verdict says so; that is no matter of the builder's.
    let mut tries = (0..TRIES).map(|_| passing.run().expect("run a VM"));
    let result = tries.find(|result| result.exit_code != 125).expect("no try got a verdict");
    let (headline, console) = (&result.verdict.headline, &result.console);
    assert_eq!((result.exit_code, result.verdict.exit_code), (0, 0), "{headline}\n{console}");
    assert!(console.contains("Linux version"), "{console}");
    assert_eq!((&result.record.vm_end, result.timed_out, &result.crash), (&Some(VmEnd::Reset), false, &None));
    assert_eq!(result.record.hello.as_ref().map(|hello| hello.online_cpus), Some(2));
    assert!(!result.record.reports.is_empty() && !result.duration.is_zero());
    // Far less than a boot takes under emulation.
    let result = vm(&["--timeout", "700ms"]).run().expect("run a VM that has no time");
    assert_eq!((result.exit_code, result.timed_out), (125, true), "{}", result.verdict.headline);
}
