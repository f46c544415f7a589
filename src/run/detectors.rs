//! The order of everything that notices a stall, so that the first to speak names the true cause.
//!
//! Owns when the guest kernel's own detectors fire and how long a run has to leave them; leaves their words on the command
//! line to `cmdline`, what ends a silent guest to `silence`, and the VM's deadline to `job`.
//! Invariant: silence and sched_ext's watchdog < RCU stall < soft lockup < hung task < the VM's deadline, whatever is asked
//! for; only a `--timeout` of the user's own may end a run before them.

use super::accel::AccelKind;
use super::silence;
use crate::proto::plan::Plan;
use crate::units::NS_PER_SEC;

/// sched_ext's stall timeout where the scheduler does not set one (SCX_WATCHDOG_MAX_TIMEOUT).
const DEFAULT_WATCHDOG_MS: u64 = 30_000;
/// What a report needs to get out before the next detector.
const BETWEEN_S: u64 = 15;
/// The soft lockup's threshold is twice `watchdog_thresh`, looked for five times in it (set_sample_period,
/// kernel/watchdog.c), so that it fires up to a fifth earlier or later.
const SOFT_LOOKS: u64 = 5;
/// Its seconds are of 2^30 ns (get_timestamp, kernel/watchdog.c): in thousandths, rounded up.
const SOFT_SECOND: u64 = 1074;
/// The hung task's timeout counts from the first look at a task that waits, and is over at a look: it fires after 1 timeout
/// to 1 timeout and two of these (check_hung_task, kernel/hung_task.c).
const HUNG_TASK_LOOK_S: u64 = 10;
/// From exec to the first fault that a kernel's detector can see; nested emulation has taken 12 s to PID 1.
const BEFORE_FAULT_NS: u64 = 15 * NS_PER_SEC;

/// After how many seconds each fires at the earliest, the soft lockup's threshold excepted. A workqueue that stands still is
/// most often the consequence of a soft lockup, and a hung task of either.
pub struct Detectors {
    pub rcu_s: u64,
    pub soft_s: u64,
    pub workqueue_s: u64,
    pub hung_task_s: u64,
}

impl Detectors {
    /// One that needs longer than a run lasts cannot fire in it, as long as PID 1 runs: there, what hangs is told by what did
    /// not report, and where PID 1 does not run, by silence.
    pub fn of(plan: &Plan, accel: AccelKind) -> Self {
        let silent_s = silence::limit_ns(accel == AccelKind::Qemu).div_ceil(NS_PER_SEC);
        let rcu_s = latest_watchdog_ms(plan).div_ceil(1000).max(silent_s) + BETWEEN_S;
        // Half as much again, so that 0.8 times the threshold is after RCU's report; watchdog_thresh is whole seconds.
        let soft_s = 2 * (3 * rcu_s).div_ceil(4);
        let workqueue_s = latest_soft_s(soft_s) + 1;
        Self { rcu_s, soft_s, workqueue_s, hung_task_s: (2 * rcu_s).max(workqueue_s + 1) }
    }

    /// The words of the guest's command line.
    pub fn words(&self) -> [String; 5] {
        [
            format!("rcupdate.rcu_cpu_stall_timeout={}", self.rcu_s),
            format!("watchdog_thresh={}", self.soft_s / 2),
            format!("workqueue.watchdog_thresh={}", self.workqueue_s),
            format!("sysctl.kernel.hung_task_timeout_secs={}", self.hung_task_s),
            format!("sysctl.kernel.hung_task_check_interval_secs={HUNG_TASK_LOOK_S}"),
        ]
    }

    /// The least time from exec that a run has to have, so that the last of them can speak.
    pub fn all_ns(&self) -> u64 {
        BEFORE_FAULT_NS + (self.hung_task_s + 2 * HUNG_TASK_LOOK_S + BETWEEN_S) * NS_PER_SEC
    }
}

fn latest_soft_s(soft_s: u64) -> u64 {
    (soft_s * SOFT_SECOND).div_ceil(1000) + soft_s.div_ceil(SOFT_LOOKS)
}

/// When sched_ext's watchdog has fired: after 1.0 to 1.5 times its timeout. Without a scheduler there is none.
fn latest_watchdog_ms(plan: &Plan) -> u64 {
    if plan.sched.is_none() && plan.spare_scheds.is_empty() {
        return 0;
    }
    plan.guards.watchdog_ms.map_or(DEFAULT_WATCHDOG_MS, u64::from) * 3 / 2
}

#[cfg(test)]
mod tests {
    use super::super::job::default_timeout;
    use super::*;
    use crate::cgroup::guard;
    use crate::proto::limits::{CheckId, Layers, Limit};
    use crate::proto::topology::Topology;
    use crate::units::NS_PER_MS;
    use crate::verdict::fixture::{passing, passing_with_scheduler};
    use crate::verdict::table::in_force;

    /// RCU_STALL_DELAY_DELTA (kernel/rcu/tree_stall.h): a kernel with CONFIG_PROVE_RCU waits for so much longer.
    const PROVE_RCU_S: u64 = 5;
    /// What the kernel takes: rcu_cpu_stall_timeout 3 to 300 (tree_stall.h), watchdog_thresh to 60 (kernel/watchdog.c).
    const RCU_MOST_S: u64 = 300;
    const WATCHDOG_THRESH_MOST_S: u64 = 60;

    fn plan(watchdog_ms: Option<u32>, sched: bool) -> Plan {
        let mut plan = if sched { passing_with_scheduler() } else { passing() }.plan.unwrap();
        plan.guards.watchdog_ms = watchdog_ms;
        plan
    }

    /// Earliest and latest of each, in seconds after the fault, in the order in which they have to speak.
    fn spans(plan: &Plan, accel: AccelKind) -> [(u64, u64); 4] {
        let own = Detectors::of(plan, accel);
        let before =
            latest_watchdog_ms(plan).div_ceil(1000).max(silence::limit_ns(accel == AccelKind::Qemu) / NS_PER_SEC);
        [
            (0, before),
            (own.rcu_s, own.rcu_s + PROVE_RCU_S),
            (own.soft_s - own.soft_s.div_ceil(SOFT_LOOKS), latest_soft_s(own.soft_s)),
            (own.hung_task_s, own.hung_task_s + 2 * HUNG_TASK_LOOK_S),
        ]
    }

    fn every_case(mut check: impl FnMut(&mut Plan, AccelKind, &str)) {
        let watchdogs = [1, 100, 999, 1000, 2000, 3000, 13_334, 20_000, 29_999, 30_000];
        let given = watchdogs.into_iter().map(|ms| (Some(ms), true)).chain([(None, true), (None, false)]);
        for (watchdog_ms, sched) in given {
            for accel in [AccelKind::Kvm, AccelKind::Qemu] {
                let what = format!("{watchdog_ms:?}, scheduler {sched}, {}", accel.name());
                check(&mut plan(watchdog_ms, sched), accel, &what);
            }
        }
    }

    #[test]
    fn first_detector_to_fire_names_the_cause() {
        every_case(|plan, accel, what| {
            let spans = spans(plan, accel);
            assert!(spans.windows(2).all(|two| two[0].1 < two[1].0), "{what}: {spans:?}");
            let own = Detectors::of(plan, accel);
            assert!(latest_soft_s(own.soft_s) < own.workqueue_s && own.workqueue_s < own.hung_task_s, "{what}");
            assert!(
                own.rcu_s <= RCU_MOST_S && own.soft_s / 2 <= WATCHDOG_THRESH_MOST_S && own.soft_s % 2 == 0,
                "{what}"
            );
        });
    }

    #[test]
    fn every_detector_can_speak_before_the_vms_deadline() {
        every_case(|plan, accel, what| {
            let [.., (_, last_s)] = spans(plan, accel);
            for duration_ns in [1, 100 * NS_PER_MS, 2 * NS_PER_SEC, 20 * NS_PER_SEC, 600 * NS_PER_SEC] {
                for enable_ns in [NS_PER_MS, NS_PER_SEC, 60 * NS_PER_SEC] {
                    for cpus in [1, 8, 254] {
                        plan.duration_ns = duration_ns;
                        plan.topology = Topology::flat(cpus);
                        plan.sched.iter_mut().for_each(|sched| sched.enable_timeout_ns = enable_ns);
                        let deadline_ns = default_timeout(plan, accel);
                        let last_ns = BEFORE_FAULT_NS + last_s * NS_PER_SEC;
                        assert!(
                            last_ns < deadline_ns,
                            "{what}, {duration_ns} ns, {cpus} CPUs: {last_ns}, {deadline_ns}"
                        );
                        assert!(deadline_ns > duration_ns, "{what}");
                    }
                }
            }
        });
    }

    #[test]
    fn machine_of_many_cpus_has_time_to_boot() {
        let mut plan = plan(None, false);
        let mut deadline_s = |cpus, accel| {
            plan.topology = Topology::flat(cpus);
            default_timeout(&plan, accel) / NS_PER_SEC
        };
        // What a busy machine took to PID 1; and twice as long.
        for (cpus, took_s) in [(1, 12), (64, 40), (128, 105), (192, 280), (240, 630)] {
            assert!(deadline_s(cpus, AccelKind::Qemu) > 2 * took_s, "{cpus}");
        }
        // Where few are no deadline is longer for it: a guest that never speaks is told by it.
        assert!(deadline_s(4, AccelKind::Qemu) < 200 && deadline_s(252, AccelKind::Kvm) < 200);
    }

    #[test]
    fn what_we_see_ourselves_comes_before_the_kernels_word() {
        for id in [CheckId::MaxGap, CheckId::MaxRunDelay] {
            let Limit::Set { value, .. } = in_force(&Layers::default()).limit(id) else {
                panic!("{id:?} has no default")
            };
            assert!(value < DEFAULT_WATCHDOG_MS * NS_PER_MS, "{id:?}");
        }
        const { assert!(guard::LIMIT_NS < DEFAULT_WATCHDOG_MS * NS_PER_MS) };
        for accel in [AccelKind::Kvm, AccelKind::Qemu] {
            let silent_ns = silence::limit_ns(accel == AccelKind::Qemu);
            assert!(silent_ns < Detectors::of(&plan(Some(1), true), accel).rcu_s * NS_PER_SEC, "{}", accel.name());
        }
    }

    #[test]
    fn words_say_what_was_counted() {
        let of = |plan: &Plan, accel| Detectors::of(plan, accel).words();
        assert_eq!(
            of(&plan(None, true), AccelKind::Kvm),
            [
                "rcupdate.rcu_cpu_stall_timeout=60",
                "watchdog_thresh=45",
                "workqueue.watchdog_thresh=116",
                "sysctl.kernel.hung_task_timeout_secs=120",
                "sysctl.kernel.hung_task_check_interval_secs=10"
            ]
        );
        assert_eq!(of(&plan(None, false), AccelKind::Kvm)[0], "rcupdate.rcu_cpu_stall_timeout=35");
        assert_eq!(of(&plan(Some(2000), true), AccelKind::Qemu)[0], "rcupdate.rcu_cpu_stall_timeout=55");
    }
}
