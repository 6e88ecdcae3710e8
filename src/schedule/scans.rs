//! Scans: when they start, which are running, and what the schedule makes of their ends.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound::{Included, Unbounded};
use std::path::Path;
use std::sync::Arc;

use super::backoff::backoff;
use super::command::{CountedError, Notice};
use super::{Schedule, Source};
use crate::pair::change::{Trigger, WriteState};
use crate::pair::name::PairKey;
use crate::pair::outcome::{JobResult, Outcome, Summary, Waiting};
use crate::pair::tally::{ErrorKind, Tally};
use crate::sys::clock::Now;

/// How many pairs a scan tracks one by one: some 6 MiB.
const MAX_NOTED: usize = 65_536;

/// Identifies one scan; later scans have greater numbers.
pub(crate) type ScanId = u32;

/// The directories that a scan covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    Everything,
    Subtrees(SubtreeSet),
}

impl Scope {
    pub(crate) fn covers(&self, dir: &Path) -> bool {
        match self {
            Self::Everything => true,
            Self::Subtrees(trees) => trees.cover(dir),
        }
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Subtrees(trees), Self::Subtrees(more)) => {
                more.trees.iter().for_each(|tree| trees.insert(Arc::clone(tree)));
                more.alone.iter().for_each(|dir| trees.insert_alone(Arc::clone(dir)));
            }
            _ => *self = Self::Everything,
        }
    }
}

/// A set of directories: some with all below them (trees), none of which is below another one, and some
/// alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SubtreeSet {
    trees: BTreeSet<Arc<Path>>,
    /// Directories without those below them.
    alone: BTreeSet<Arc<Path>>,
}

impl SubtreeSet {
    pub(crate) fn insert(&mut self, tree: Arc<Path>) {
        if self.covers_tree(&tree) {
            return;
        }
        while let Some(below) = self.first_below(&tree) {
            self.trees.remove(&below);
        }
        self.trees.insert(tree);
    }

    /// Adds the directory `dir` without those below it.
    pub(crate) fn insert_alone(&mut self, dir: Arc<Path>) {
        if !self.covers_tree(&dir) {
            self.alone.insert(dir);
        }
    }

    /// Returns whether `dir` is in the set, or below one of the trees.
    pub(crate) fn cover(&self, dir: &Path) -> bool {
        self.alone.contains(dir) || self.covers_tree(dir)
    }

    /// Returns whether `dir` is one of the trees, or below one. In the order of paths, all that is below
    /// a directory follows it directly. So only one tree has to be checked, however deep `dir` is.
    fn covers_tree(&self, dir: &Path) -> bool {
        let up_to_dir = (Unbounded, Included(dir));
        self.trees.range::<Path, _>(up_to_dir).next_back().is_some_and(|tree| dir.starts_with(tree))
    }

    fn first_below(&self, tree: &Path) -> Option<Arc<Path>> {
        let from_tree = (Included(tree), Unbounded);
        self.trees.range::<Path, _>(from_tree).next().filter(|dir| dir.starts_with(tree)).cloned()
    }

    /// Returns the directories to scan with all below them.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.trees.iter()
    }

    /// Returns the directories to list alone.
    pub(crate) fn alone(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.alone.iter().filter(|dir| !self.covers_tree(dir))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.trees.is_empty() && self.alone.is_empty()
    }

    fn len(&self) -> usize {
        self.trees.len() + self.alone.len()
    }

    /// Returns those of the sorted `known` directories that the set covers.
    pub(crate) fn covered<'a, V>(
        &'a self,
        known: &'a BTreeMap<Arc<Path>, V>,
    ) -> impl Iterator<Item = &'a Arc<Path>> {
        let below = self.trees.iter().flat_map(|tree| {
            let from_tree = known.range::<Path, _>((Included(&**tree), Unbounded));
            from_tree.map(|(dir, _)| dir).take_while(move |dir| dir.starts_with(tree))
        });
        below.chain(self.alone().filter_map(|dir| known.get_key_value(dir)).map(|(dir, _)| dir))
    }
}

impl FromIterator<Arc<Path>> for SubtreeSet {
    fn from_iter<I: IntoIterator<Item = Arc<Path>>>(trees: I) -> Self {
        trees.into_iter().fold(Self::default(), |mut all, tree| {
            all.insert(tree);
            all
        })
    }
}

/// A running scan.
#[derive(Debug)]
pub(super) struct ActiveScan {
    pub id: ScanId,
    pub scope: Scope,
    /// Pairs updated by a job or another scan since this scan started: what this scan read of them may
    /// be older.
    pub changed_since: HashSet<PairKey>,
    /// Untracked pairs that vanished since this scan started; this scan may have seen them before.
    pub vanished: HashSet<PairKey>,
    /// True if any pair in its scope was known when it started, so that the scan may find pairs gone.
    pub covers_known: bool,
    /// Directories that a later scan covers, or that had too many updates to track: what this scan read
    /// there may be older.
    pub superseded: Scope,
}

impl ActiveScan {
    pub(super) fn new(id: ScanId, scope: Scope, covers_known: bool) -> Self {
        let superseded = Scope::Subtrees(SubtreeSet::default());
        let (changed_since, vanished) = (HashSet::new(), HashSet::new());
        Self { id, scope, changed_since, vanished, covers_known, superseded }
    }

    /// Records that a later scan covers `scope`. A long scan may see very many of them.
    fn supersede(&mut self, scope: &Scope) {
        self.superseded.extend(scope);
        Self::limit(&mut self.superseded);
    }

    fn limit(superseded: &mut Scope) {
        if matches!(superseded, Scope::Subtrees(trees) if trees.len() > MAX_NOTED) {
            *superseded = Scope::Everything;
        }
    }

    /// Records that a job or another scan has updated a pair since this scan started.
    pub(super) fn note_changed(&mut self, key: &PairKey) {
        Self::note(&mut self.changed_since, &mut self.superseded, key);
    }

    /// Records that an untracked pair has vanished.
    pub(super) fn note_vanished(&mut self, key: &PairKey) {
        Self::note(&mut self.vanished, &mut self.superseded, key);
    }

    /// Adds a pair to `pairs`. If there are too many, its whole directory counts as possibly outdated.
    fn note(pairs: &mut HashSet<PairKey>, superseded: &mut Scope, key: &PairKey) {
        if pairs.len() < MAX_NOTED {
            pairs.insert(key.clone());
        } else if let Scope::Subtrees(trees) = superseded {
            trees.insert_alone(Arc::clone(&key.dir));
            Self::limit(superseded);
        }
    }

    pub(super) fn may_be_outdated_on(&self, key: &PairKey) -> bool {
        self.changed_since.contains(key) || self.superseded.covers(&key.dir)
    }
}

impl Schedule {
    /// Scans a directory after a pause that grows each time, to recover the claims in it or to read it. A scan
    /// that waits already is not delayed: several pairs with claims in one directory would otherwise delay it
    /// for each other for ever.
    pub(super) fn scan_later(&mut self, dir: &Arc<Path>, now: Now) {
        if !self.rescans_later.contains(dir) {
            let tries = self.retried.entry(Arc::clone(dir)).or_default();
            self.rescans_later.insert(Arc::clone(dir), now.mono + backoff(*tries), ());
            *tries = tries.saturating_add(1);
        }
    }

    /// Returns the directories to scan now, and removes them from the schedule.
    pub(crate) fn take_rescans(&mut self, now: Now) -> SubtreeSet {
        while let Some((tree, _)) = self.rescans_later.pop_due(now.mono) {
            self.rescans.insert(tree);
        }
        // A scan of a directory covers all below it.
        let mut trees: SubtreeSet = std::mem::take(&mut self.rescans).into_iter().collect();
        std::mem::take(&mut self.rescans_alone).into_iter().for_each(|dir| trees.insert_alone(dir));
        trees
    }

    /// Starts a scan. An outcome that was read before and is not applied yet may be outdated when the
    /// scan ends.
    pub(crate) fn begin_scan(&mut self, scope: Scope) -> ScanId {
        self.forget_writers(&scope);
        self.inspect_in_flight_again(&scope);
        for scan in &mut self.scans {
            scan.supersede(&scope);
        }
        self.last_scan += 1;
        let id = self.last_scan;
        let covers_known = self.expiries.any_in(&scope);
        self.scans.push(ActiveScan::new(id, scope, covers_known));
        id
    }

    /// Adds pairs of one directory that a scan has found, and that wait for their expiry.
    pub(crate) fn scan_found_waiting(&mut self, id: ScanId, found: Waiting, now: Now) {
        let Waiting { dir, pairs, sizes } = found;
        let (mut undisputed, mut contested) = (Vec::with_capacity(pairs.len()), Vec::new());
        // Without a disk budget, there are no sizes.
        let mut sizes = sizes.into_iter();
        for (stem, at) in pairs {
            let (key, size) = (PairKey { dir: Arc::clone(&dir), stem }, sizes.next());
            if self.is_undisputed(&key, id) {
                let evictions = self.evictions.as_mut();
                let size =
                    evictions.zip(size).map(|(evictions, size)| evictions.waits(&key, size, now));
                undisputed.push((key.stem, at, size.unwrap_or_default()));
            } else {
                contested.push((key, at, size));
            }
        }
        self.expiries.insert_all(&dir, undisputed, self.last_scan);
        for (key, expires_at, size) in contested {
            let outcome = Outcome::NotDue { expires_at, bytes: None, size };
            self.complete(JobResult { key, outcome }, Source::Scan(id), now);
        }
    }

    /// Whether only this scan knows something about the pair: no job, no retry, no writer, no other scan, and no report
    /// of a dry run.
    fn is_undisputed(&self, key: &PairKey, id: ScanId) -> bool {
        let [scan] = &self.scans[..] else { return false };
        scan.id == id
            && !self.in_flight.contains_key(key)
            && !self.counts_as_deleted(key)
            && !self.retries.contains(key)
            && self.half_written.writer(key).is_none()
            && !scan.vanished.contains(key)
            && !scan.may_be_outdated_on(key)
    }

    /// Ends a completed scan, all of whose outcomes were applied. Drops pairs that it should have seen
    /// and did not. Returns what it adds to the tally.
    pub(crate) fn end_scan(&mut self, id: ScanId, mut summary: Summary, now: Now) -> Tally {
        let mut tally = Tally::default();
        let Some(at) = self.scans.iter().position(|scan| scan.id == id) else {
            return tally;
        };
        let ActiveScan { scope, covers_known, superseded, changed_since, .. } =
            self.scans.swap_remove(at);
        self.inspect_unconfirmed(&scope, changed_since);
        if scope == Scope::Everything {
            self.half_written.full_scan_ended(id);
        }
        let unread: HashSet<Arc<Path>> =
            summary.unreadable.iter().map(|(dir, _)| Arc::clone(dir)).collect();
        let below_unread: SubtreeSet = unread.iter().cloned().collect();
        let was_missed = |dir: &Path, seen: ScanId| seen < id && !below_unread.cover(dir);
        if covers_known {
            self.expiries.retain_in(&scope, |dir, seen| !was_missed(dir, seen));
        }
        if let Some(dry_run) = &mut self.dry_run {
            dry_run.retain(|dir, seen| !scope.covers(dir) || !was_missed(dir, seen));
        }
        // A scan that started later reports the newer state.
        let is_newest = |dir: &Path| scope.covers(dir) && !superseded.covers(dir);
        self.unreadable.retain(|dir| !is_newest(dir) || unread.contains(dir));
        for (dir, error) in summary.unreadable {
            if is_newest(&dir) && self.unreadable.insert(Arc::clone(&dir)) {
                tally.errors += ErrorKind::Directory;
                let error = CountedError::DirectoryUnreadable(error);
                self.notices.push(Notice::Error(dir.to_path_buf(), error));
            }
        }
        // A directory that was listed alone may have lost events. One of them may have reported that a directory in it
        // can be read again.
        let parent_listed = |dir: &Path| dir.parent().is_some_and(|parent| scope.covers(parent));
        let readable_again =
            self.unreadable.iter().filter(|dir| !scope.covers(dir) && parent_listed(dir));
        self.rescans.extend(readable_again.cloned());
        // No event reports when the cache directory itself can be read again.
        summary.recoveries.extend(unread.get(Path::new("")).cloned());
        self.retried.retain(|dir, _| !scope.covers(dir) || summary.recoveries.contains(dir));
        self.rescans.extend(summary.scan_next);
        for dir in summary.recoveries {
            self.scan_later(&dir, now);
        }
        for (path, error) in summary.not_recovered {
            tally.errors += ErrorKind::Recovery;
            self.notices.push(Notice::Error(path, CountedError::NotRecovered(error)));
        }
        tally
    }

    /// Forgets what events have reported of writers in `scope`, and returns the pairs that they write to.
    fn forget_writers(&mut self, scope: &Scope) -> Vec<PairKey> {
        let keys: Vec<PairKey> = self.half_written.forget_writers(scope).collect();
        for key in &keys {
            if let Some(trigger) = self.inspections.get_mut(key) {
                trigger.writer = WriteState::Unknown;
            }
            if let Some(in_flight_pair) = self.in_flight.get_mut(key) {
                in_flight_pair.trigger.writer = WriteState::Unknown;
                in_flight_pair.changes = None;
            }
        }
        keys
    }

    /// Inspects the pairs in `scope` again that are in flight, once their outcomes are applied.
    fn inspect_in_flight_again(&mut self, scope: &Scope) {
        for (key, in_flight_pair) in &mut self.in_flight {
            if scope.covers(&key.dir) {
                in_flight_pair.changes.get_or_insert_default().merge(Trigger::UNREPORTED);
            }
        }
    }

    /// Inspects a pair again. If its job is still in flight by then, [`Schedule::begin`] drops this.
    pub(super) fn inspect_again(&mut self, key: PairKey) {
        self.inspections.entry(key).or_default().merge(Trigger::UNREPORTED);
    }

    /// Inspects again what jobs have read in `scope` while a scan ran, and what was being written. The scan may
    /// have come too late or too early for them. No watch may have reported the difference.
    fn inspect_unconfirmed(&mut self, scope: &Scope, changed_since: HashSet<PairKey>) {
        for key in self.forget_writers(scope) {
            self.inspect_again(key);
        }
        self.inspect_in_flight_again(scope);
        for key in changed_since {
            if self.expiries.contains(&key) {
                self.inspect_again(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn trees_cover_what_has_one_of_them_above_it(
            trees in prop::collection::vec("[ab!-]{0,2}(/[ab!-]{1,2}){0,3}", 0..6),
            dir in "[ab!-]{0,2}(/[ab!-]{1,2}){0,4}",
        ) {
            let relative = |path: &str| -> Arc<Path> { Path::new(path.trim_start_matches('/')).into() };
            let trees: Vec<Arc<Path>> = trees.iter().map(|tree| relative(tree)).collect();
            let all: SubtreeSet = trees.iter().cloned().collect();
            let dir = relative(&dir);
            let expected = dir.ancestors().any(|above| trees.iter().any(|tree| **tree == *above));
            prop_assert_eq!(all.cover(&dir), expected, "{:?} {:?}", trees, dir);
            for tree in all.trees() {
                prop_assert!(trees.contains(tree));
                prop_assert!(tree.ancestors().skip(1).all(|above| !all.trees.contains(above)));
            }
        }
    }
}
