//! The pairs that are evicted first among many.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::pair::disk_budget::{EVICTION_BATCH, eviction_order};
use crate::pair::name::{PairKey, Stem};

/// How many pairs are chosen at once.
const MAX_CHOSEN: usize = 16_384;

/// A pair that can be evicted. The one that goes first compares as the least.
#[derive(Debug, Clone, Copy)]
pub(super) struct EvictablePair<'a> {
    pub at: DateTime<Utc>,
    pub dir: &'a Arc<Path>,
    pub stem: &'a Stem,
    pub blocks: u32,
}

impl Ord for EvictablePair<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        eviction_order((self.at, self.dir, self.stem), (other.at, other.dir, other.stem))
    }
}

impl PartialOrd for EvictablePair<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for EvictablePair<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for EvictablePair<'_> {}

/// Those of many candidates that go first: a batch at least, and as many as take the wanted blocks.
pub(super) struct FirstToEvict<'a> {
    candidates: BinaryHeap<EvictablePair<'a>>,
    blocks: u64,
    wanted: u64,
    /// Whether there are more than these.
    pub has_more: bool,
}

impl<'a> FirstToEvict<'a> {
    pub(super) fn new(wanted: u64) -> Self {
        Self { candidates: BinaryHeap::new(), blocks: 0, wanted, has_more: false }
    }

    pub(super) fn add(&mut self, candidate: EvictablePair<'a>) {
        let count = self.candidates.len();
        let is_enough = count >= EVICTION_BATCH && self.blocks >= self.wanted;
        // Most of many candidates end here.
        if (is_enough || count >= MAX_CHOSEN)
            && self.candidates.peek().is_some_and(|last| candidate > *last)
        {
            self.has_more = true;
            return;
        }
        self.blocks += u64::from(candidate.blocks);
        self.candidates.push(candidate);
        while self.candidates.len() > EVICTION_BATCH
            && let Some(last) = self.candidates.peek().map(|last| u64::from(last.blocks))
            && (self.blocks - last >= self.wanted || self.candidates.len() > MAX_CHOSEN)
        {
            self.blocks -= last;
            self.candidates.pop();
            self.has_more = true;
        }
    }
    /// Returns these pairs in the order in which they go, and when each expires.
    pub(super) fn into_pairs(self) -> VecDeque<(PairKey, DateTime<Utc>)> {
        let sorted = self.candidates.into_sorted_vec().into_iter();
        let pair = |EvictablePair { at, dir, stem, .. }: EvictablePair<'_>| {
            (PairKey { dir: Arc::clone(dir), stem: stem.clone() }, at)
        };
        sorted.map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_soonest_are_kept_until_they_take_enough(
            pairs in prop::collection::vec((0_i64..50, 0_u32..100), 0..300),
            wanted in 0_u64..10_000,
        ) {
            let dir: Arc<Path> = Path::new("a").into();
            let stems: Vec<Stem> =
                (0..pairs.len()).map(|number| Stem::new(format!("{number:03}").as_bytes())).collect();
            let mut soonest = FirstToEvict::new(wanted);
            let mut model = Vec::new();
            for ((at, blocks), stem) in pairs.iter().zip(&stems) {
                let at = DateTime::from_timestamp(*at, 0).unwrap();
                soonest.add(EvictablePair { at, dir: &dir, stem, blocks: *blocks });
                model.push((at, stem.bytes().into_owned(), u64::from(*blocks)));
            }
            model.sort();
            let has_more = soonest.has_more;
            let found = soonest.into_pairs();
            let sum: u64 = model[..found.len()].iter().map(|(.., blocks)| blocks).sum();
            let (expected, _) = model.split_at(found.len());
            let found: Vec<_> = found.iter().map(|(key, at)| (*at, key.stem.bytes())).collect();
            let expected: Vec<_> = expected.iter().map(|(at, stem, _)| (*at, stem.into())).collect();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(has_more, found.len() < model.len());
            prop_assert!(!has_more || (sum >= wanted && found.len() >= EVICTION_BATCH));
        }
    }
}
