//! The ring as it is used: full, empty, in order, and every item once under stress.
//!
//! Owns the tests with real threads; leaves all orders of a few steps to tests/loom.
//! Invariant: as the ring's.

use super::ring::{Ring, capacity, words};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn memory(depth: u64) -> Vec<AtomicU64> {
    (0..words(depth)).map(|_| AtomicU64::new(0)).collect()
}

#[test]
fn ring_is_full_and_empty_where_it_should_be_and_keeps_order() {
    for depth in [2, 3, 8] {
        let memory = memory(depth);
        let ring = Ring::new(&memory, depth);
        assert_eq!(ring.pop(7), None);
        for round in 0..5 {
            let cells = capacity(depth);
            (0..cells).for_each(|item| assert_eq!(ring.push(round * 100 + item), Some(if round == 0 { 0 } else { 7 })));
            assert_eq!(ring.push(9), None);
            (0..cells).for_each(|item| assert_eq!(ring.pop(7), Some(round * 100 + item)));
            assert_eq!(ring.pop(7), None);
        }
    }
}

/// Three producers, three consumers, a ring far too small: every item comes out exactly once.
#[test]
fn every_item_is_counted_exactly_once_under_stress() {
    // Under Miri a few suffice, because it looks at every access.
    const EACH: u64 = if cfg!(miri) { 50 } else { 200_000 };
    const PRODUCERS: u64 = 3;
    let memory = memory(4);
    let ring = Ring::new(&memory, 4);
    let done = AtomicBool::new(false);
    let seen: Vec<AtomicU64> = (0..PRODUCERS * EACH).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                scope.spawn(move || {
                    for item in producer * EACH..(producer + 1) * EACH {
                        while ring.push(item).is_none() {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = [None; PRODUCERS as usize];
                loop {
                    let finished = done.load(Ordering::Acquire);
                    match ring.pop(7) {
                        Some(item) => {
                            seen[item as usize].fetch_add(1, Ordering::Relaxed);
                            // One producer's items stay in order for whoever takes them.
                            let of = &mut last[(item / EACH) as usize];
                            assert!(of.is_none_or(|before| before < item));
                            *of = Some(item);
                        }
                        None if finished => break,
                        None => std::thread::yield_now(),
                    }
                }
            });
        }
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        done.store(true, Ordering::Release);
    });
    let wrong: Vec<usize> = (0..seen.len()).filter(|item| seen[*item].load(Ordering::Relaxed) != 1).take(5).collect();
    assert!(wrong.is_empty(), "items not taken exactly once: {wrong:?}");
}
