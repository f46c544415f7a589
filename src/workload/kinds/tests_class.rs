//! Class and nice value of workers whose parent is not an ordinary one: in another class, or without the right to choose.
//!
//! Owns these parents; leaves the classes that ordinary ones ask for to tests_cpu.
//! Invariant: what a worker has is what the kernel says of it in /proc or by sched_getscheduler(2).

#![allow(unsafe_code)]

use super::tests::*;
use super::tests_cost::alone;
use super::tests_cpu::may_be_real_time;
use super::tests_faults::limit;
use crate::proto::plan::SchedPolicy;
use crate::sys::{process, sched};

#[test]
fn parents_class_is_not_the_workers_and_its_nice_value_is() {
    let mut parents = vec![SchedPolicy::Batch];
    if may_be_real_time() {
        parents.extend([SchedPolicy::Fifo { priority: 1 }, SchedPolicy::RoundRobin { priority: 1 }]);
    }
    for parent in parents {
        // The class of a thread is that of the processes it forks.
        let work = move || {
            let nice = (sched::nice(0).unwrap() + 1).min(19);
            sched::set_nice(0, nice).unwrap();
            sched::set_policy(0, &parent, nice, false).unwrap();
            for (text, classes) in [
                ("spin*1", vec![libc::SCHED_OTHER]),
                ("spin*1 policy=batch", vec![libc::SCHED_BATCH]),
                ("asym-waker(waker_class=cfs,wakee_class=batch)*1", vec![libc::SCHED_OTHER, libc::SCHED_BATCH]),
            ] {
                let reports = watch(&one_group(text), 1, |tids| {
                    for (tid, class) in tids.iter().zip(classes) {
                        assert_eq!(sched::policy_number(*tid).unwrap(), class, "{text} of {parent:?}");
                        assert_eq!(stat(*tid, STAT_NICE), i64::from(nice), "{text} of {parent:?}");
                    }
                });
                assert!(reports.iter().all(|report| report.refusals().is_empty()), "{parent:?}: {reports:?}");
            }
        };
        std::thread::spawn(work).join().unwrap();
    }
}

/// struct __user_cap_header_struct and __user_cap_data_struct (include/uapi/linux/capability.h).
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}
/// _LINUX_CAPABILITY_VERSION_3, which has two words of each, and CAP_SYS_NICE (the same file).
const CAP_VERSION: u32 = 0x2008_0522;
const CAP_SYS_NICE: u32 = 23;

/// The caller, and what it forks, may only become nicer from now on.
fn give_up_the_right_to_choose() {
    limit(process::id(), libc::RLIMIT_NICE, 0);
    limit(process::id(), libc::RLIMIT_RTPRIO, 0);
    let (mut header, mut data) = (CapHeader { version: CAP_VERSION, pid: 0 }, [CapData::default(); 2]);
    // SAFETY: header and data are what this version of the call takes.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) }, 0);
    data[0].effective &= !(1 << CAP_SYS_NICE);
    data[0].permitted &= !(1 << CAP_SYS_NICE);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) }, 0);
}

#[test]
fn refused_nice_value_and_class_are_told_and_change_nothing() {
    let [nice_told, class_told, refusals, nice_kept, class] = alone(|| {
        // Whatever the tests are run with, -5 is less.
        let nice = sched::nice(0).unwrap().max(0);
        sched::set_nice(0, nice).unwrap();
        give_up_the_right_to_choose();
        let mut seen = (i64::MIN, -1);
        let report = watch(&one_group("spin*1 nice=-5 policy=fifo:1"), 1, |tids| {
            seen = (stat(tids[0], STAT_NICE), sched::policy_number(tids[0]).unwrap());
        })
        .remove(0);
        // setpriority(2) and sched_setattr(2) say it with different numbers: EACCES and EPERM.
        let ends =
            |error: &Option<String>, errno: &str| error.as_ref().is_some_and(|text| text.ends_with(errno)) as u64;
        [
            ends(&report.nice_error, "(errno 13)"),
            ends(&report.sched_policy_error, "(errno 1)"),
            report.refusals().len() as u64,
            (seen.0 == i64::from(nice)) as u64,
            seen.1 as u64,
        ]
    });
    assert_eq!((nice_told, class_told, refusals), (1, 1, 2));
    assert_eq!((nice_kept, class), (1, libc::SCHED_OTHER as u64));
}
