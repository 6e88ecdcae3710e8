//! The waiting pairs, and what each takes on disk if there is a disk budget.
//!
//! A million pairs may wait. So without a budget, nothing is kept that only a budget needs.

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::expiries::{Expiries, Value};
use super::{ScanId, Scope};
use crate::pair::name::{PairKey, Stem};

/// What is kept of a waiting pair without a disk budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The latest scan that had started when the pair was last seen.
    scan: ScanId,
}

/// What is kept with a disk budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SizedEntry {
    scan: ScanId,
    pub size: WaitingSize,
}

/// What a pair takes on disk, and since when its result is unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct WaitingSize {
    pub blocks: u32,
    /// The ctime of the result, or when it was first seen if its ctime lay in the future: in seconds since the epoch.
    pub since: u32,
}

const _: () = assert!(size_of::<(Stem, DateTime<Utc>, Entry)>() <= 48);
const _: () = assert!(size_of::<SizedEntry>() == size_of::<Entry>() + 8);

impl Value for Entry {
    fn blocks(&self) -> u64 {
        0
    }
}

impl Value for SizedEntry {
    fn blocks(&self) -> u64 {
        self.size.blocks.into()
    }
}

/// Complete, valid pairs that have not expired, by `expires_at`.
#[derive(Debug)]
pub(super) enum WaitingPairs {
    Plain(Expiries<Entry>),
    Sized(Expiries<SizedEntry>),
}

/// Evaluates an expression for either kind.
macro_rules! either {
    ($self:expr, $pairs:ident => $value:expr) => {
        match $self {
            Self::Plain($pairs) => $value,
            Self::Sized($pairs) => $value,
        }
    };
}

impl WaitingPairs {
    /// Creates an empty set; `has_sizes` if there is a disk budget.
    pub(super) fn new(has_sizes: bool) -> Self {
        if has_sizes { Self::Sized(Expiries::default()) } else { Self::Plain(Expiries::default()) }
    }

    /// Adds a pair that waits until `at`, and was seen when `scan` was the latest scan. Replaces its earlier entry.
    pub(super) fn insert(
        &mut self,
        key: PairKey,
        at: DateTime<Utc>,
        scan: ScanId,
        size: WaitingSize,
    ) {
        match self {
            Self::Plain(pairs) => pairs.insert(key, at, Entry { scan }),
            Self::Sized(pairs) => pairs.insert(key, at, SizedEntry { scan, size }),
        }
    }

    /// Adds pairs of the directory `dir`, as [`Self::insert`] does.
    pub(super) fn insert_all(
        &mut self,
        dir: &Arc<Path>,
        found: Vec<(Stem, DateTime<Utc>, WaitingSize)>,
        scan: ScanId,
    ) {
        match self {
            Self::Plain(pairs) => {
                let entry = Entry { scan };
                pairs.insert_all(dir, found.into_iter().map(|(stem, at, _)| (stem, at, entry)));
            }
            Self::Sized(pairs) => {
                let entry = |(stem, at, size)| (stem, at, SizedEntry { scan, size });
                pairs.insert_all(dir, found.into_iter().map(entry));
            }
        }
    }

    /// Removes a pair. Returns its size if it waited; without a disk budget, that is zero.
    pub(super) fn remove(&mut self, key: &PairKey) -> Option<WaitingSize> {
        match self {
            Self::Plain(pairs) => pairs.remove(key).map(|_| WaitingSize::default()),
            Self::Sized(pairs) => pairs.remove(key).map(|entry| entry.size),
        }
    }

    /// Removes and returns the pair that expires first, if it is due.
    pub(super) fn pop_due(&mut self, now: DateTime<Utc>) -> Option<(PairKey, WaitingSize)> {
        match self {
            Self::Plain(pairs) => pairs.pop_due(now).map(|(key, _)| (key, WaitingSize::default())),
            Self::Sized(pairs) => pairs.pop_due(now).map(|(key, entry)| (key, entry.size)),
        }
    }

    pub(super) fn contains(&self, key: &PairKey) -> bool {
        either!(self, pairs => pairs.contains(key))
    }

    /// Returns when the first pair is due.
    pub(super) fn next(&self) -> Option<DateTime<Utc>> {
        either!(self, pairs => pairs.next())
    }

    pub(super) fn len(&self) -> usize {
        either!(self, pairs => pairs.len())
    }

    /// Returns what all pairs take on disk, in blocks.
    pub(super) fn blocks(&self) -> u64 {
        either!(self, pairs => pairs.blocks())
    }

    /// Calls `with` with the time at which each pair is due and what it takes on disk, in blocks. In no order.
    pub(super) fn for_each(&self, mut with: impl FnMut(DateTime<Utc>, u64)) {
        either!(self, pairs => pairs.values().for_each(|(at, value)| with(at, value.blocks())));
    }

    /// Returns whether a pair waits in one of the directories in `scope`.
    pub(super) fn any_in(&self, scope: &Scope) -> bool {
        either!(self, pairs => pairs.any_in(scope))
    }

    /// Drops each pair in the directories in `scope` for which `keep` returns false. `keep` takes the directory
    /// and the latest scan that had started when the pair was last seen.
    pub(super) fn retain_in(&mut self, scope: &Scope, keep: impl Fn(&Path, ScanId) -> bool) {
        either!(self, pairs => pairs.retain_in(scope, |dir, known| keep(dir, known.scan)));
    }

    /// Returns the waiting pairs, in no order.
    #[cfg(any(fuzzing, test))]
    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = (PairKey, DateTime<Utc>)> + '_> {
        match self {
            Self::Plain(pairs) => Box::new(pairs.iter()),
            Self::Sized(pairs) => Box::new(pairs.iter()),
        }
    }
}
