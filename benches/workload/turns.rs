//! Ways that take turns, so that a ratio of two of them is not the load of two different moments.
//!
//! Owns the rounds, the medians and what is printed of them; leaves what a way does to the comparisons.
//! Invariant: a ratio is of two figures of the same round; a way that gives no figure has no ratio.

use std::fmt;

/// One thing that gives a figure each time; none: it cannot be had here.
pub type Way<'a> = &'a mut dyn FnMut() -> Option<f64>;

/// The figures of all ways, by round.
pub struct Turns {
    rounds: Vec<Vec<Option<f64>>>,
}

/// Runs all ways once a round, each second round in the other direction, so that what changes slowly hits all alike. A way that
/// gave nothing in the first round is not asked again.
pub fn take(rounds: usize, ways: &mut [Way<'_>]) -> Turns {
    let mut all: Vec<Vec<Option<f64>>> = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let mut figures = vec![None; ways.len()];
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            if all.first().is_none_or(|first| first[way].is_some()) {
                figures[way] = ways[way]();
            }
        }
        all.push(figures);
    }
    Turns { rounds: all }
}

/// A median, and between which values the middle half lies.
#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| values.get(values.len() * quarter / 4).copied();
        Some(Self { median: at(2)?, low: at(1)?, high: at(3)? })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.3} to {:.3})", self.median, self.low, self.high)
    }
}

impl Turns {
    pub fn of(&self, way: usize) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|figures| figures[way]).collect())
    }
    /// Of each round's ratio of one way to another.
    pub fn ratio(&self, way: usize, to: usize) -> Option<Spread> {
        self.over(|figures| Some(figures[way]? / figures[to]?))
    }
    /// Of what each round's figures make together.
    pub fn over(&self, make: impl Fn(&[Option<f64>]) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|figures| make(figures)).collect())
    }
}

/// `, ratio to NAME 0.91 (0.90 to 0.92)`; nothing where there is none.
pub fn against(name: &str, ratio: Option<Spread>) -> String {
    ratio.map_or(String::new(), |ratio| format!(", ratio to {name} {ratio}"))
}
