//! Sets of CPU or node numbers in the kernel's list form: `0-3,8`.
//!
//! Owns strict parsing, printing and set algebra; leaves what the numbers stand for to the caller.
//! Invariant: no duplicates, ascending order, no number above `MAX_CPU`.

use super::codec::{DecodeError, Reader, Wire};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Highest CPU number accepted: CONFIG_NR_CPUS of MAXSMP x86 kernels is 8192 (arch/x86/Kconfig).
pub const MAX_CPU: u32 = 8191;

/// A set of CPU (or node) numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    pub fn new() -> Self {
        Self::default()
    }
    /// The set `0..count`.
    pub fn first(count: u32) -> Self {
        (0..count).collect()
    }
    pub fn insert(&mut self, cpu: u32) -> bool {
        cpu <= MAX_CPU && self.0.insert(cpu)
    }
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
    pub fn last(&self) -> Option<u32> {
        self.0.last().copied()
    }
    pub fn intersection(&self, other: &Self) -> Self {
        self.0.intersection(&other.0).copied().collect()
    }
    pub fn union(&self, other: &Self) -> Self {
        self.0.union(&other.0).copied().collect()
    }
    pub fn difference(&self, other: &Self) -> Self {
        self.0.difference(&other.0).copied().collect()
    }
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(items: I) -> Self {
        Self(items.into_iter().filter(|cpu| *cpu <= MAX_CPU).collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = self.iter().peekable();
        let mut comma = "";
        while let Some(start) = items.next() {
            let mut end = start;
            while items.peek() == Some(&(end + 1)) {
                end += 1;
                items.next();
            }
            match end - start {
                0 => write!(f, "{comma}{start}")?,
                _ => write!(f, "{comma}{start}-{end}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let mut set = Self::new();
        if trimmed.is_empty() {
            return Ok(set);
        }
        for part in trimmed.split(',') {
            let number = |word: &str| {
                let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
                let value = if digits { word.parse::<u32>().ok() } else { None };
                value
                    .filter(|cpu| *cpu <= MAX_CPU)
                    .ok_or_else(|| format!("'{word}' in '{trimmed}' is no CPU number (0-{MAX_CPU})"))
            };
            let (start, end) = match part.split_once('-') {
                Some((start, end)) => (number(start)?, number(end)?),
                None => (number(part)?, number(part)?),
            };
            if start > end {
                return Err(format!("'{part}' in '{trimmed}' runs backwards"));
            }
            set.0.extend(start..=end);
        }
        Ok(set)
    }
}

impl Wire for CpuSet {
    fn put(&self, out: &mut Vec<u8>) {
        self.to_string().put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let text = String::get(input)?;
        text.parse().map_err(|what: String| input.error(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_parse_and_print_back() {
        for text in ["", "0", "0-3", "0-3,8", "1,3,5", "0-1,4-7,255"] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), text);
        }
        assert_eq!("3,1,2".parse::<CpuSet>().unwrap().to_string(), "1-3");
    }

    #[test]
    fn malformed_lists_are_refused() {
        for text in ["a", "1-", "-1", "3-1", "1,,2", "1 2", "+1", "9999", "0-4294967295", "0x1"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn algebra() {
        let a: CpuSet = "0-3".parse().unwrap();
        let b: CpuSet = "2-5".parse().unwrap();
        assert_eq!(a.intersection(&b).to_string(), "2-3");
        assert_eq!(a.union(&b).to_string(), "0-5");
        assert_eq!(a.difference(&b).to_string(), "0-1");
        assert!(a.intersection(&b).is_subset(&a) && !a.is_subset(&b));
    }

    #[test]
    fn wire_round_trip_refuses_nonsense() {
        let set: CpuSet = "0-3,8".parse().unwrap();
        assert_eq!(CpuSet::from_bytes(&set.to_bytes()).unwrap(), set);
        assert!(CpuSet::from_bytes(&String::from("x").to_bytes()).is_err());
    }
}
