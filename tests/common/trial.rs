//! How far a test goes, with which chance, and what it found.
//!
//! `TEST_RESULT_CLEANER_LONG=1` makes the long runs whose figures the documentation states;
//! `TEST_RESULT_CLEANER_SEED` repeats a run that chance has made. Needs nothing but the standard
//! library, so that unit tests can share it.

#![allow(dead_code, reason = "each user takes a part of it")]

use std::fmt::Display;
use std::time::UNIX_EPOCH;

/// Whether the long runs are asked for.
pub fn is_long() -> bool {
    std::env::var_os("TEST_RESULT_CLEANER_LONG").is_some_and(|value| !value.is_empty())
}

/// How far to go: `ordinary`, `long` in the long runs, or what the environment variable `name`
/// says.
pub fn extent(name: &str, ordinary: u64, long: u64) -> u64 {
    number(name).unwrap_or(if is_long() { long } else { ordinary })
}

/// The seed of a test that leaves something to chance; it is printed.
pub fn seed() -> u64 {
    let from_clock = || UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
    let seed = number("TEST_RESULT_CLEANER_SEED").unwrap_or_else(from_clock);
    println!("TEST_RESULT_CLEANER_SEED={seed}");
    seed
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Prints a figure that the documentation states.
pub fn figure(what: &str, value: impl Display) {
    println!("figure: {what}: {value}");
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// From 0 up to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
