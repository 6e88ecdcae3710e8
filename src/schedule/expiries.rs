//! The pairs that expire later: a min-heap of directories, each with a min-heap of its pairs.
//!
//! Because of the two levels, a scan of some directories costs only as much as their own pairs, however
//! many pairs wait elsewhere. The path of a directory is kept once, not with each pair.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::scans::Scope;
use crate::pair::name::{PairKey, Stem};
use crate::schedule::queue::Queue;

/// What is kept of a waiting pair.
pub(super) trait Value: Copy {
    /// What the pair takes on disk, in blocks; zero where nobody needs it.
    fn blocks(&self) -> u64;
}

/// Pairs by `expires_at`, each with a value.
#[derive(Debug)]
pub(super) struct Expiries<V> {
    dirs: HashMap<Arc<Path>, Queue<Stem, DateTime<Utc>, V>>,
    /// The same directories, sorted, so that those below another one follow it.
    sorted: BTreeMap<Arc<Path>, ()>,
    /// The same directories, by the earliest expiry of their pairs.
    soonest: Queue<Arc<Path>, DateTime<Utc>, ()>,
    len: usize,
    /// What all pairs take on disk.
    blocks: u64,
}

impl<V> Default for Expiries<V> {
    fn default() -> Self {
        let (dirs, sorted, soonest) = Default::default();
        Self { dirs, sorted, soonest, len: 0, blocks: 0 }
    }
}

impl<V: Value> Expiries<V> {
    /// Adds a pair that waits until `at`. Replaces its earlier entry, if there is one.
    pub(super) fn insert(&mut self, key: PairKey, at: DateTime<Utc>, value: V) {
        self.insert_all(&key.dir, [(key.stem, at, value)]);
    }

    /// Adds pairs of the directory `dir`, as [`Self::insert`] does.
    pub(super) fn insert_all(
        &mut self,
        dir: &Arc<Path>,
        pairs: impl IntoIterator<Item = (Stem, DateTime<Utc>, V), IntoIter: ExactSizeIterator>,
    ) {
        let pairs = pairs.into_iter();
        if pairs.len() == 0 {
            return;
        }
        let queue = self.dirs.entry(Arc::clone(dir)).or_insert_with(|| {
            self.sorted.insert(Arc::clone(dir), ());
            // Most directories stay as they were found.
            Queue::with_capacity(pairs.len())
        });
        let (before, count) = (queue.next(), queue.len());
        for (stem, at, value) in pairs {
            let before = queue.insert(stem, at, value);
            self.blocks = self.blocks - before.map_or(0, |before| before.blocks()) + value.blocks();
        }
        self.len += queue.len() - count;
        self.reorder(dir, before);
    }

    /// Removes a pair; returns its value if it waited.
    pub(super) fn remove(&mut self, key: &PairKey) -> Option<V> {
        let pairs = self.dirs.get_mut(&key.dir)?;
        let before = pairs.next();
        let (_, value) = pairs.remove(&key.stem)?;
        self.len -= 1;
        self.blocks -= value.blocks();
        self.reorder(&key.dir, before);
        Some(value)
    }

    /// Removes and returns the pair that expires first, if it is due.
    pub(super) fn pop_due(&mut self, now: DateTime<Utc>) -> Option<(PairKey, V)> {
        let (dir, _) = self.soonest.peek()?;
        let dir = Arc::clone(dir);
        let pairs = self.dirs.get_mut(&dir)?;
        let before = pairs.next();
        let (stem, value) = pairs.pop_due(now)?;
        self.len -= 1;
        self.blocks -= value.blocks();
        self.reorder(&dir, before);
        Some((PairKey { dir, stem }, value))
    }

    /// Returns when a pair is due, and its value.
    pub(super) fn get(&self, key: &PairKey) -> Option<(DateTime<Utc>, &V)> {
        self.dirs.get(&key.dir)?.entry(&key.stem)
    }

    /// Returns what all pairs take on disk, in blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns the pairs of each directory with their values, in no order.
    pub(super) fn entries(
        &self,
    ) -> impl Iterator<Item = (&Arc<Path>, impl Iterator<Item = (&Stem, DateTime<Utc>, &V)>)> {
        self.dirs.iter().map(|(dir, pairs)| (dir, pairs.entries()))
    }

    pub(super) fn contains(&self, key: &PairKey) -> bool {
        self.dirs.get(&key.dir).is_some_and(|pairs| pairs.contains(&key.stem))
    }

    /// Returns when the first pair is due.
    pub(super) fn next(&self) -> Option<DateTime<Utc>> {
        self.soonest.next()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns when each pair is due, and its value, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = (DateTime<Utc>, &V)> {
        self.dirs.values().flat_map(|pairs| pairs.entries().map(|(_, at, value)| (at, value)))
    }

    /// Returns the waiting pairs, in no order.
    #[cfg(any(fuzzing, test))]
    pub(super) fn iter(&self) -> impl Iterator<Item = (PairKey, DateTime<Utc>)> {
        self.dirs.iter().flat_map(|(dir, pairs)| {
            let key = |stem: &Stem| PairKey { dir: Arc::clone(dir), stem: stem.clone() };
            pairs.iter().map(move |(stem, at)| (key(stem), at))
        })
    }

    /// Returns whether a pair waits in one of the directories in `scope`.
    pub(super) fn any_in(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Everything => self.len > 0,
            Scope::Subtrees(trees) => trees.covered(&self.sorted).next().is_some(),
        }
    }

    /// Drops each pair in the directories in `scope` for which `keep` returns false.
    pub(super) fn retain_in(&mut self, scope: &Scope, mut keep: impl FnMut(&Path, &V) -> bool) {
        let covered: Vec<Arc<Path>> = match scope {
            Scope::Everything => self.sorted.keys().cloned().collect(),
            Scope::Subtrees(trees) => trees.covered(&self.sorted).cloned().collect(),
        };
        for dir in covered {
            let Some(pairs) = self.dirs.get_mut(&dir) else { continue };
            let (before, count) = (pairs.next(), pairs.len());
            pairs.retain(|_, value| {
                let is_kept = keep(&dir, value);
                self.blocks -= if is_kept { 0 } else { value.blocks() };
                is_kept
            });
            self.len -= count - pairs.len();
            self.reorder(&dir, before);
        }
    }

    /// Moves a directory to its place in the heap after its pairs may have changed; `before` is when its
    /// first pair was due until then. Removes a directory without pairs.
    fn reorder(&mut self, dir: &Arc<Path>, before: Option<DateTime<Utc>>) {
        match self.dirs.get(dir).and_then(Queue::next) {
            Some(next) if Some(next) == before => {}
            Some(next) => drop(self.soonest.insert(Arc::clone(dir), next, ())),
            None => {
                self.dirs.remove(dir);
                self.sorted.remove(dir);
                self.soonest.remove(dir);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SubtreeSet;

    use proptest::prelude::*;

    impl Value for u8 {
        fn blocks(&self) -> u64 {
            u64::from(*self)
        }
    }

    fn at(seconds: u8) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds.into(), 0).unwrap()
    }

    fn key(dir: u8, stem: u8) -> PairKey {
        const DIRS: [&str; 6] = ["", "a", "a/b", "a-b", "a/b/c", "b"];
        PairKey { dir: Path::new(DIRS[usize::from(dir) % 6]).into(), stem: Stem::new(&[stem]) }
    }

    proptest! {
        #[test]
        fn it_behaves_as_one_heap(operations in prop::collection::vec((0_u8..6, 0_u8..8, 0_u8..50, 0_u8..6), 1..200)) {
            let mut expiries = Expiries::default();
            let mut model: HashMap<PairKey, (DateTime<Utc>, u8)> = HashMap::new();
            for (dir, stem, time, operation) in operations {
                let key = key(dir, stem);
                match operation {
                    0..=2 => {
                        expiries.insert(key.clone(), at(time), operation);
                        model.insert(key, (at(time), operation));
                    }
                    3 => prop_assert_eq!(expiries.remove(&key), model.remove(&key).map(|(_, value)| value)),
                    4 => {
                        while let Some((key, value)) = expiries.pop_due(at(time)) {
                            let (due, expected) = model.remove(&key).unwrap();
                            prop_assert!(due <= at(time) && model.values().all(|other| other.0 >= due));
                            prop_assert_eq!(value, expected);
                        }
                        prop_assert!(model.values().all(|(due, _)| *due > at(time)));
                    }
                    _ => {
                        let mut trees = SubtreeSet::default();
                        if time % 2 == 0 { trees.insert(key.dir) } else { trees.insert_alone(key.dir) }
                        let scope = if time == 0 { Scope::Everything } else { Scope::Subtrees(trees) };
                        let in_scope = model.keys().any(|key| scope.covers(&key.dir));
                        prop_assert_eq!(expiries.any_in(&scope), in_scope);
                        expiries.retain_in(&scope, |_, value| *value > 0);
                        model.retain(|key, (_, value)| !scope.covers(&key.dir) || *value > 0);
                    }
                }
                prop_assert_eq!(expiries.len(), model.len());
                prop_assert_eq!(expiries.next(), model.values().map(|(at, _)| *at).min());
                prop_assert!(model.keys().all(|key| expiries.contains(key)));
                prop_assert_eq!(expiries.values().count(), model.len());
                let blocks: u64 = model.values().map(|(_, value)| value.blocks()).sum();
                prop_assert_eq!(expiries.blocks(), blocks);
                let same = |key| expiries.get(key).map(|(at, value)| (at, *value)) == model.get(key).copied();
                prop_assert!(model.keys().all(same));
            }
        }
    }
}
