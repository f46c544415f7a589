//! The vCPU threads: starting them, waking them out of KVM, and having them tell where they stand.
//!
//! Owns the threads' life; leaves what a vCPU does to vcpu and what is made of it to the recipe.
//! Invariant: no thread is joined: one that hangs in the host's kernel ends with the process.

use super::config::{PerfConfig, VmEvent};
use super::life::Events;
use super::perf::{self, ThreadSetup};
use super::vcpu::{self, Shared};
use crate::error::{Context, Error, Result};
use crate::proto::message::VmEnd;
use crate::proto::registers::CpuDump;
use crate::sys::{process, signal, time};
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// The vCPUs are given this long to leave KVM; the process ends anyway.
const STOP_DEADLINE: Duration = Duration::from_millis(200);
/// The vCPUs are given this long to tell their registers; the parent waits for longer than that.
const DUMP_DEADLINE: Duration = Duration::from_millis(500);
/// A thread that does not come up within this time is told as such; the run goes on.
const START_DEADLINE: Duration = Duration::from_secs(2);
const WAKE_INTERVAL: Duration = Duration::from_millis(1);
/// A thread of the VM calls little, and there may be thousands.
pub const STACK_BYTES: usize = 128 * 1024;

/// What a thread says when it has started.
struct Started {
    tid: i32,
    setup: ThreadSetup,
}

/// The vCPU threads, by their ids.
pub struct Threads {
    /// Those that have started since.
    started: Receiver<Started>,
    known: Vec<i32>,
}

impl Threads {
    /// Starts a thread for each vCPU, vCPU 0 last: the others wait within KVM until the kernel on it starts them.
    pub fn start(
        shared: &Arc<Shared>,
        made: Vec<VcpuFd>,
        events: &Arc<Events>,
        config: Option<&PerfConfig>,
    ) -> Result<Self> {
        let (tell, started) = mpsc::channel();
        for (cpu, vcpu) in made.into_iter().enumerate().rev() {
            shared.running.fetch_add(1, Ordering::SeqCst);
            let (shared, tell, events, config) = (shared.clone(), tell.clone(), events.clone(), config.cloned());
            let body = move || {
                let setup = config.as_ref().map(|config| perf::set_up_thread(config, cpu as u32)).unwrap_or_default();
                let prepared = signal::allow_wakeups()
                    .context(|| format!("prepare the thread of vCPU {cpu}"))
                    .and_then(|()| {
                        let told = tell.send(Started { tid: process::thread_id(), setup });
                        told.map_err(|_| Error::internal("the VM has ended"))
                    })
                    .and_then(|()| match cpu {
                        0 => events.send(&VmEvent::FirstInstruction { monotonic_ns: time::monotonic_ns() }),
                        _ => Ok(()),
                    });
                match prepared {
                    Ok(()) => vcpu::run(&shared, cpu as u32, vcpu),
                    Err(error) => shared.finish(VmEnd::MachineError { text: error.to_string() }),
                }
                shared.running.fetch_sub(1, Ordering::SeqCst);
            };
            std::thread::Builder::new()
                .name(format!("vcpu{cpu}"))
                .stack_size(STACK_BYTES)
                .spawn(body)
                .context(|| format!("start the thread of vCPU {cpu}"))?;
        }
        Ok(Self { started, known: Vec::new() })
    }

    /// What the threads have done for themselves, once all have started.
    pub fn setups(&mut self, vcpus: u32) -> Vec<ThreadSetup> {
        let end = Instant::now() + START_DEADLINE;
        let mut setups = Vec::new();
        while setups.len() < vcpus as usize {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(started) = self.started.recv_timeout(left) else { break };
            self.known.push(started.tid);
            setups.push(started.setup);
        }
        setups
    }

    /// Gets every vCPU out of KVM_RUN. A signal that comes just before KVM_RUN is lost: repeat it until it had its effect.
    fn wake(&mut self) {
        self.known.extend(self.started.try_iter().map(|started| started.tid));
        // A thread that is gone already is what is wanted.
        self.known.retain(|tid| signal::wake_thread(*tid).is_ok());
    }

    /// Has every vCPU tell where it stands, within a limit; the guest goes on afterwards.
    pub fn dump_registers(&mut self, shared: &Shared) -> Vec<CpuDump> {
        let end = Instant::now() + DUMP_DEADLINE;
        shared.dumps.ask();
        while shared.dumps.count() < shared.vcpus as usize && Instant::now() < end {
            self.wake();
            std::thread::sleep(WAKE_INTERVAL);
        }
        shared.dumps.take(shared.vcpus)
    }

    /// Gets every vCPU out of the guest for good, within a limit.
    pub fn stop(&mut self, shared: &Shared) {
        let end = Instant::now() + STOP_DEADLINE;
        while shared.running.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            self.wake();
            std::thread::sleep(WAKE_INTERVAL);
        }
    }
}
