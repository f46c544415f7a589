//! Every place where bytes of a stranger come in, as functions of bytes: what a hostile guest, or a hostile file, can say.
//!
//! Owns the table of targets and their seeds, which the tests here and the coverage-guided fuzzers of tests/fuzz share;
//! leaves devices and kernels to vmm/hostile and run/hostile, what people write to `text`.
//! Invariant: a target returns, whatever the bytes; it asserts what must hold after them. Built for tests and fuzzers only.

pub mod input;
#[cfg(test)]
mod tests;
mod text;

use crate::channel::host::HostSession;
use crate::channel::ring::{REGION_BYTES, Ring};
use crate::image;
use crate::image::{cpio, elf, ldcache};
use crate::klog;
use crate::proto::codec::Wire;
use crate::proto::frame;
use crate::proto::message::{Msg, Stage};
use crate::proto::plan::Plan;
use crate::proto::record::{KlogLine, Record};
use crate::report;
use crate::run;
use crate::sys::fd::memfd;
use crate::sys::mmap::Mapping;
use crate::verdict::{fixture, judge_stored};
use crate::vmm;
use crate::vmm::config::{VmConfig, VmEvent};
use input::Input;
use std::io;
use std::sync::atomic::Ordering;

/// One way in.
pub struct Target {
    pub name: &'static str,
    /// Takes anything.
    pub run: fn(&[u8]),
    /// Inputs from which mutation comes far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All ways in.
pub const TARGETS: &[Target] = &[
    Target { name: "devices", run: vmm::hostile::devices, seeds: vmm::hostile::device_seeds },
    Target { name: "kernel", run: run::hostile::kernel, seeds: run::hostile::kernel_seeds },
    Target { name: "channel", run: channel, seeds: channel_seeds },
    Target { name: "record", run: record, seeds: record_seeds },
    Target { name: "archive", run: archive, seeds: archive_seeds },
    Target { name: "klog", run: log, seeds: log_seeds },
    Target { name: "scenario", run: text::scenario, seeds: text::scenario_seeds },
    Target { name: "work", run: text::work, seeds: text::work_seeds },
];

/// The host's end of ring and serial line, against a guest that writes where and what it likes.
fn channel(data: &[u8]) {
    /// More damage notes than this would let a guest fill the record.
    const DAMAGE_MAX: usize = 64;
    let file = memfd("hostile-ring", REGION_BYTES).expect("make a memory file");
    let map = || Mapping::shared_file(&file, 0, REGION_BYTES as usize).expect("map it");
    let mut host = HostSession::new(Ring::create(map()).expect("make a ring"));
    let (words, mut guest) = (map(), None);
    let (mut input, mut sequence, mut damage) = (Input(data), 0u32, 0);
    while let Some(op) = input.byte() {
        match op % 8 {
            0 => {
                let place = usize::from(input.word16()) % words.words().len();
                words.words()[place].store(input.word64(), Ordering::SeqCst);
            }
            // The words that steer the ring.
            1 => words.words()[usize::from(input.word8() % 64)].store(u64::from(input.word16()), Ordering::SeqCst),
            2 => {
                guest = guest.or_else(|| Ring::attach(map()).ok());
                let bytes = frame::encode(sequence, input.some());
                sequence = sequence.wrapping_add(u32::from(op != 2));
                // A ring that is full or broken by now refuses; that is its business.
                drop(guest.as_ref().map(|ring| ring.guest_push(&bytes)));
            }
            3 => drop(host.drain_ring()),
            4 => drop(host.feed_serial(input.some())),
            5 => drop(host.feed_serial(format!("{}\n", frame::to_text(sequence, input.some())).as_bytes())),
            6 => drop(host.send(&Msg::Stop)),
            _ => damage += host.take_damage().len(),
        }
    }
    drop(host.drain_ring());
    damage += host.take_damage().len();
    assert!(damage <= DAMAGE_MAX || host.is_broken(), "{damage} notes of damage, and the session goes on");
    host.dropped_by_guest();
}

fn channel_seeds() -> Vec<Vec<u8>> {
    let note = Msg::Note { text: "hi".into() }.to_bytes();
    let with = |op: u8| [&[op, note.len() as u8][..], &note].concat();
    vec![
        [with(2), with(2), vec![3, 7]].concat(),
        [with(5), with(4), with(5), vec![7]].concat(),
        vec![2, 0, 3, 1, 8, 0xFF, 0xFF, 3, 6, 1, 40, 9, 9, 6, 3],
    ]
}

/// What the guest says, message by message, up to the verdict and everything that is printed of it.
fn record(data: &[u8]) {
    drop((
        frame::decode(data),
        Record::from_file_bytes(data),
        Plan::from_bytes(data),
        VmConfig::from_bytes(data),
        VmEvent::from_bytes(data),
    ));
    drop(frame::from_text(&String::from_utf8_lossy(data)));
    let mut record = fixture::passing_with_scheduler();
    let mut input = Input(data);
    // One of two guests says everything itself, the other adds to a good run.
    if input.byte().unwrap_or(0) % 2 == 0 {
        record = Record { host: record.host, plan: record.plan, vm_end: record.vm_end, ..Record::default() };
    }
    while !input.is_empty() {
        let Ok(message) = Msg::from_bytes(input.some()) else { continue };
        let bytes = message.to_bytes();
        let again = Msg::from_bytes(&bytes).expect("what was encoded can be decoded");
        assert_eq!(again.to_bytes(), bytes, "{message:?}");
        if message.from_guest() {
            record.apply(message);
        }
    }
    let verdict = judge_stored(&record);
    assert!(!verdict.headline.is_empty());
    let style = report::Style { color: true };
    drop((report::summary(&record, &verdict, style), report::result_json(&record, &verdict)));
    drop(report::timings(&record));
}

fn record_seeds() -> Vec<Vec<u8>> {
    let stored = fixture::passing_with_scheduler();
    let mut said: Vec<Msg> = vec![Msg::Note { text: "n".into() }, Msg::Bye { uptime_ns: 5 }];
    said.extend(
        stored.reports.iter().map(|(group, report)| Msg::Report { group: group.clone(), report: report.clone() }),
    );
    said.push(Msg::Klog { priority: 2, sequence: 9, time_us: 7, text: "BUG: kernel NULL pointer dereference".into() });
    said.push(Msg::Crash { text: "panicked".into() });
    said.extend(stored.sched_final.clone().map(|last| Msg::SchedStopped { last }));
    let one = |message: &Msg| Input::pack(&message.to_bytes());
    let all: Vec<u8> = said.iter().flat_map(one).collect();
    let mark = Msg::Mark { stage: Stage::Hello, at_ns: 1 };
    let file = [crate::proto::record::file_head(), frame::encode(0, &mark.to_bytes())].concat();
    let singles = said.iter().map(|message| [vec![1], one(message)].concat());
    let plan = stored.plan.map(|plan| plan.to_bytes());
    [[vec![0], all.clone()].concat(), [vec![1], all].concat(), file].into_iter().chain(singles).chain(plan).collect()
}

/// Archives, programs and the loader's cache, as the host finds them.
fn archive(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 3 {
        0 => drop(image::list(bytes)),
        1 => {
            let read = |offset: u64, count: usize| {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let part = bytes.get(start..).and_then(|rest| rest.get(..count));
                part.map(<[u8]>::to_vec).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
            };
            drop(elf::parse(&read, bytes.len() as u64));
        }
        _ => drop(ldcache::read(bytes)),
    }
}

fn archive_seeds() -> Vec<Vec<u8>> {
    let mut writer = cpio::Writer::new(Vec::new());
    writer.dir("/a", 0o755).expect("write to memory");
    writer.file("/a/b", 0o644, b"content").expect("write to memory");
    writer.link("/c", "a/b").expect("write to memory");
    let (archive, _) = writer.finish().expect("write to memory");
    let program = elf::fixture::build(&elf::fixture::program(&["libc.so.6", "libelf.so.1"]));
    let cache = ldcache::write(&[("libc.so.6".into(), "/lib/libc.so.6".into())]);
    [(0, archive), (1, program), (2, cache)].into_iter().map(|(kind, bytes)| [vec![kind], bytes].concat()).collect()
}

/// The kernel's log and console, in which processes have their say too.
fn log(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let line = |(at, line): (usize, &str)| KlogLine {
        priority: line.bytes().next().map_or(4, |byte| u32::from(byte % 8)),
        sequence: at as u64,
        time_us: at as u64 * 10,
        text: line.to_owned(),
    };
    let lines: Vec<KlogLine> = text.split('\n').enumerate().map(line).collect();
    let both = [klog::classify(&lines, &text), klog::classify(&[], &text), klog::classify(&lines, "")];
    for log in both {
        assert!(log.findings.iter().all(|finding| !finding.title.contains('\n')), "a title of several lines");
    }
}

fn log_seeds() -> Vec<Vec<u8>> {
    let lines = [
        "[    1.5] BUG: unable to handle page fault for address: ffff888000000000",
        "Oops: 0002 [#1] SMP PTI\nCPU: 0 PID: 1 Comm: x\nRIP: 0010:foo+0x4/0x10\nCall Trace:\n bar+0x1/0x2\n",
        "sched_ext: BPF scheduler \"mini_fifo\" enabled\nsched_ext: BPF scheduler \"raw_drop\" disabled (runnable task stall)\n\
         sched_ext: raw_drop: victim[184] failed to run for 4.292s\n   __scx_exit+0x4f/0x70\n",
        "WARNING: possible recursive locking detected\nWARNING: CPU: 1 PID: 2 at kernel/sched/ext.c:12 f+0x1/0x2\n",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kw0:12]\nrcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n---[ end Kernel panic - not syncing ]---\n",
    ];
    lines.iter().map(|text| text.as_bytes().to_vec()).chain([lines.join("\n").into_bytes()]).collect()
}
