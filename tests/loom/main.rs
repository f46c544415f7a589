//! What workers share, tried in every order that the memory model allows.
//!
//! Owns the models; leaves what is modelled where it is: the same files are compiled here against loom's atomics.
//! Invariant: words, and the producers and consumers of the ring, have models in which they are broken on purpose, and loom finds
//! that.

// The ring is here twice, with true atomics and with torn ones.
#![allow(clippy::duplicate_mod)]

/// In place of the standard library's, for the files below.
mod atomic {
    pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

#[allow(dead_code)]
#[path = "../../src/workload/handshake.rs"]
mod handshake;
#[allow(dead_code)]
#[path = "../../src/workload/ring.rs"]
mod ring;

use atomic::{AtomicU32, AtomicU64, Ordering};
use handshake::Gate;
use loom::sync::Mutex;
use loom::thread;
use ring::Ring;
use std::sync::Arc;

/// What the model writes where the engine writes a time.
const OPENED_NS: u64 = 7;
const DONE: u64 = 3;

/// A futex as the kernel has it: who falls asleep compares under the lock that who wakes takes. Nobody really sleeps here, so that
/// a model that goes wrong comes to its end: who fell asleep is counted until it is woken.
struct Futex {
    asleep: Mutex<u32>,
}

/// It fell asleep.
#[derive(Debug)]
struct Asleep;

impl Futex {
    fn wait(&self, word: &AtomicU32, expected: u32) -> Result<(), Asleep> {
        let mut asleep = self.asleep.lock().unwrap();
        if word.load(Ordering::Relaxed) != expected {
            return Ok(());
        }
        *asleep += 1;
        Err(Asleep)
    }
    /// Not as the kernel has it: the comparison is forgotten.
    fn wait_blindly(&self) -> Result<(), Asleep> {
        *self.asleep.lock().unwrap() += 1;
        Err(Asleep)
    }
    fn wake_all(&self) {
        *self.asleep.lock().unwrap() = 0;
    }
}

/// The words of a handle with one worker.
struct Words {
    gate: AtomicU32,
    opened_ns: AtomicU64,
    stop: AtomicU32,
    state: AtomicU64,
    counted: AtomicU64,
    futex: Futex,
}

impl Words {
    fn new() -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self {
            gate: AtomicU32::new(0),
            opened_ns: zero(),
            stop: AtomicU32::new(0),
            state: zero(),
            counted: zero(),
            futex: Futex { asleep: Mutex::new(0) },
        })
    }
    fn gate(&self) -> Gate<'_> {
        Gate { word: &self.gate, opened_ns: &self.opened_ns, stop: &self.stop }
    }
    fn open(&self) {
        self.gate().open(OPENED_NS);
        self.futex.wake_all();
    }
    /// None: it fell asleep.
    fn pass(&self) -> Option<u64> {
        self.gate().pass(|word, closed| self.futex.wait(word, closed)).ok()
    }
    fn nobody_sleeps(&self) {
        assert_eq!(*self.futex.asleep.lock().unwrap(), 0, "asleep for ever");
    }
}

#[test]
fn every_worker_passes_the_gate_or_is_woken_and_knows_when_it_was_opened() {
    loom::model(|| {
        let words = Words::new();
        let workers = [(); 2].map(|()| {
            let words = Arc::clone(&words);
            thread::spawn(move || assert!(words.pass().is_none_or(|opened_ns| opened_ns == OPENED_NS)))
        });
        words.open();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        words.nobody_sleeps();
        // Who was woken looks again.
        assert_eq!(words.pass(), Some(OPENED_NS));
    });
}

#[test]
#[should_panic(expected = "asleep for ever")]
fn worker_that_falls_asleep_without_comparing_may_sleep_for_ever() {
    loom::model(|| {
        let words = Words::new();
        let other = Arc::clone(&words);
        let worker = thread::spawn(move || other.gate().pass(|_, _| other.futex.wait_blindly()).is_ok());
        words.open();
        worker.join().unwrap();
        words.nobody_sleeps();
    });
}

/// Whether a worker that has passed the gate may find that it is not stopped.
fn stopped_and_opened(tell: fn(&Words)) {
    loom::model(move || {
        let words = Words::new();
        let other = Arc::clone(&words);
        let worker = thread::spawn(move || assert!(other.pass().is_none() || other.gate().stopped(), "it works"));
        tell(&words);
        worker.join().unwrap();
        words.nobody_sleeps();
    });
}

#[test]
fn worker_that_is_stopped_before_the_start_never_works() {
    stopped_and_opened(|words| {
        words.gate().stop();
        words.open();
    });
}

#[test]
#[should_panic(expected = "it works")]
fn worker_that_is_stopped_after_the_start_may_work_before() {
    stopped_and_opened(|words| {
        words.open();
        words.gate().stop();
    });
}

/// A worker counts, then says that it is done by `say`; its owner looks at any time.
fn report(say: fn(&AtomicU64, u64)) {
    loom::model(move || {
        let words = Words::new();
        let other = Arc::clone(&words);
        let worker = thread::spawn(move || {
            other.counted.store(9, Ordering::Relaxed);
            say(&other.state, DONE);
        });
        if handshake::published(&words.state) == DONE {
            assert_eq!(words.counted.load(Ordering::Relaxed), 9, "an incomplete report");
        }
        worker.join().unwrap();
    });
}

#[test]
fn slot_whose_worker_is_done_is_complete() {
    report(handshake::publish);
}

#[test]
#[should_panic(expected = "an incomplete report")]
fn slot_is_not_complete_where_the_state_is_set_without_release() {
    report(|state, value| state.store(value, Ordering::Relaxed));
}

/// Position 0 hands the word over by `give`, gets it back, and hands it over again: each stamp is that of its own turn.
fn turns(give: fn(&AtomicU64, u64, &AtomicU32, u32)) {
    const TURNS: u64 = 2;
    loom::model(move || {
        let words = Words::new();
        let other = Arc::clone(&words);
        let partner = thread::spawn(move || {
            for turn in 1..=TURNS {
                while other.gate.load(Ordering::Acquire) != 1 {
                    thread::yield_now();
                }
                assert_eq!(other.opened_ns.load(Ordering::Relaxed), turn, "the stamp of another turn");
                other.gate.store(0, Ordering::Release);
            }
        });
        for turn in 1..=TURNS {
            while words.gate.load(Ordering::Acquire) != 0 {
                thread::yield_now();
            }
            give(&words.opened_ns, turn, &words.gate, 1);
        }
        partner.join().unwrap();
    });
}

#[test]
fn stamp_of_a_hand_over_is_that_of_its_turn() {
    turns(handshake::hand_over);
}

#[test]
#[should_panic(expected = "the stamp of another turn")]
fn stamp_that_is_written_after_the_word_may_come_too_late() {
    turns(|stamp, now_ns, word, value| {
        word.store(value, Ordering::Release);
        stamp.store(now_ns, Ordering::Relaxed);
    });
}

/// Orders with more changes from one thread to another than this are left out: with three threads in one ring they are too many.
/// (Musuvathi, Qadeer: Iterative Context Bounding, 2007: two show nearly all faults.)
const PREEMPTIONS: usize = 2;
/// Cells of the smallest ring.
const DEPTH: u64 = 2;

/// One producer for each item and one consumer, who sees each item once; then the ring is empty.
#[test]
fn ring_gives_each_item_of_two_producers_once() {
    let items = [1, 2];
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(move || {
        let words: Arc<Vec<AtomicU64>> = Arc::new((0..ring::words(DEPTH)).map(|_| AtomicU64::new(0)).collect());
        let producers = items.map(|item| {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                while Ring::new(&words, DEPTH).push(item).is_none() {
                    thread::yield_now();
                }
            })
        });
        let mut seen = items.map(|_| {
            loop {
                match Ring::new(&words, DEPTH).pop(0) {
                    Some(item) => break item,
                    None => thread::yield_now(),
                }
            }
        });
        producers.into_iter().for_each(|thread| thread.join().unwrap());
        seen.sort_unstable();
        assert_eq!((seen, Ring::new(&words, DEPTH).pop(0)), (items, None));
    });
}

/// The same ring with an exchange that is none: it looks, then writes.
#[path = "."]
mod torn {
    pub mod atomic {
        pub use loom::sync::atomic::Ordering;

        pub struct AtomicU64(loom::sync::atomic::AtomicU64);

        impl AtomicU64 {
            pub fn new(value: u64) -> Self {
                Self(loom::sync::atomic::AtomicU64::new(value))
            }
            pub fn load(&self, order: Ordering) -> u64 {
                self.0.load(order)
            }
            pub fn store(&self, value: u64, order: Ordering) {
                self.0.store(value, order);
            }
            pub fn swap(&self, value: u64, order: Ordering) -> u64 {
                self.0.swap(value, order)
            }
            pub fn compare_exchange_weak(&self, old: u64, new: u64, _: Ordering, _: Ordering) -> Result<u64, u64> {
                match self.0.load(Ordering::Relaxed) {
                    there if there == old => {
                        self.0.store(new, Ordering::Relaxed);
                        Ok(old)
                    }
                    there => Err(there),
                }
            }
        }
    }
    #[allow(dead_code)]
    #[path = "../../src/workload/ring.rs"]
    pub mod ring;
}

/// Two producers fill a ring of two cells, then both items are there.
macro_rules! filled_by_two {
    ($word:path, $ring:path) => {{
        use $ring as Subject;
        loom::model(|| {
            let words: Arc<Vec<_>> = Arc::new((0..ring::words(DEPTH)).map(|_| <$word>::new(0)).collect());
            let producers = [1, 2].map(|item| {
                let words = Arc::clone(&words);
                thread::spawn(move || assert!(Subject::new(&words, DEPTH).push(item).is_some()))
            });
            producers.into_iter().for_each(|thread| thread.join().unwrap());
            let mut seen: Vec<u64> = std::iter::from_fn(|| Subject::new(&words, DEPTH).pop(0)).collect();
            seen.sort_unstable();
            assert_eq!(seen, [1, 2], "an item is lost");
        });
    }};
}

#[test]
fn ring_takes_the_items_of_two_producers() {
    filled_by_two!(AtomicU64, ring::Ring);
}

#[test]
#[should_panic(expected = "an item is lost")]
fn ring_whose_exchange_is_torn_loses_an_item() {
    filled_by_two!(torn::atomic::AtomicU64, torn::ring::Ring);
}

/// Two consumers take what one producer puts into a ring that holds less.
#[test]
fn ring_gives_each_item_to_one_of_two_consumers() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(|| {
        let words: Vec<AtomicU64> = (0..ring::words(DEPTH)).map(|_| AtomicU64::new(0)).collect();
        let words = Arc::new(words);
        let ring = Ring::new(&words, DEPTH);
        assert!(ring.push(1).is_some() && ring.push(2).is_some() && ring.push(3).is_none());
        let takers = [(); 2].map(|()| {
            let words = Arc::clone(&words);
            thread::spawn(move || Ring::new(&words, DEPTH).pop(5))
        });
        // Room comes as soon as one of them has taken.
        while ring.push(3).is_none() {
            thread::yield_now();
        }
        let mut seen: Vec<u64> = takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect();
        seen.extend(std::iter::from_fn(|| ring.pop(5)));
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3]);
    });
}

/// The same ring where a consumer may find a cell's number as it is once the cell is filled.
#[path = "."]
mod hasty {
    pub mod atomic {
        pub use loom::sync::atomic::Ordering;
        use std::sync::Arc;

        /// The number of a filled cell relative to its index, in a ring of two that has not wrapped.
        const FILLED: u64 = 1;

        /// One word, as one side sees it.
        pub struct AtomicU64 {
            pub word: Arc<loom::sync::atomic::AtomicU64>,
            pub hasty: bool,
        }

        impl AtomicU64 {
            /// Only the cells' numbers are read with this order.
            pub fn load(&self, order: Ordering) -> u64 {
                match (self.word.load(order), order) {
                    (value, Ordering::Acquire) if self.hasty => value | FILLED,
                    (value, _) => value,
                }
            }
            pub fn store(&self, value: u64, order: Ordering) {
                self.word.store(value, order);
            }
            pub fn swap(&self, value: u64, order: Ordering) -> u64 {
                self.word.swap(value, order)
            }
            pub fn compare_exchange_weak(&self, old: u64, new: u64, yes: Ordering, no: Ordering) -> Result<u64, u64> {
                self.word.compare_exchange_weak(old, new, yes, no)
            }
        }
    }
    #[allow(dead_code)]
    #[path = "../../src/workload/ring.rs"]
    pub mod ring;
}

/// A consumer looks into a ring while a producer puts one item in: it finds that item, or nothing.
fn taken_while_put(hasty: bool) {
    loom::model(move || {
        let words: Vec<Arc<AtomicU64>> = (0..ring::words(DEPTH)).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let seen_by = |hasty: bool| -> Vec<hasty::atomic::AtomicU64> {
            words.iter().map(|word| hasty::atomic::AtomicU64 { word: Arc::clone(word), hasty }).collect()
        };
        let (producers, consumers) = (seen_by(false), seen_by(hasty));
        let producer = thread::spawn(move || assert!(hasty::ring::Ring::new(&producers, DEPTH).push(7).is_some()));
        let taken = hasty::ring::Ring::new(&consumers, DEPTH).pop(0);
        assert!(taken.is_none() || taken == Some(7), "an item that nobody put in");
        producer.join().unwrap();
    });
}

#[test]
fn consumer_finds_an_item_or_nothing() {
    taken_while_put(false);
}

#[test]
#[should_panic(expected = "an item that nobody put in")]
fn consumer_that_takes_before_the_cell_says_so_finds_what_nobody_put_in() {
    taken_while_put(true);
}

/// Two consumers empty a ring of two items: each item is taken once.
macro_rules! emptied_by_two {
    ($word:path, $ring:path) => {{
        use $ring as Subject;
        loom::model(|| {
            let words: Arc<Vec<_>> = Arc::new((0..ring::words(DEPTH)).map(|_| <$word>::new(0)).collect());
            [1, 2].iter().for_each(|item| assert!(Subject::new(&words, DEPTH).push(*item).is_some()));
            let takers = [(); 2].map(|()| {
                let words = Arc::clone(&words);
                thread::spawn(move || Subject::new(&words, DEPTH).pop(0))
            });
            let mut seen: Vec<u64> = takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, [1, 2], "an item is taken by nobody, or by two");
        });
    }};
}

#[test]
fn ring_gives_its_items_to_two_consumers() {
    emptied_by_two!(AtomicU64, ring::Ring);
}

#[test]
#[should_panic(expected = "an item is taken by nobody, or by two")]
fn ring_whose_exchange_is_torn_gives_an_item_to_two_consumers() {
    emptied_by_two!(torn::atomic::AtomicU64, torn::ring::Ring);
}
