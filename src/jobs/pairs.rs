//! Processes pairs one after the other, on one thread: inspects them, and deletes those that are due or to be evicted.
//!
//! Longer than other files: claims, holds and outcomes are one state.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use crate::disk::inspect::{Inspection, inspect, inspect_listed};
use crate::disk::root::{Dir, DirPlace, Root, is_mounted_over, is_not_ours};
use crate::display::path_field;
use crate::jobs::context::{JobContext, result_path};
use crate::pair::disk_budget::Chosen;
use crate::pair::name::{PairKey, Stem};
use crate::pair::outcome::{Failure, Job, JobResult, Outcome};
use crate::pair::tally::ErrorKind;
use crate::pair::version::{FileState, Version};
use crate::remove::{Buffers, ClaimedPair, DuePair, LockPatience, Removal, remove};
use crate::sys::descriptors::share_of_open_files;
use crate::watch::Watcher;

/// How long a truncated file may be empty before its times show that it was truncated.
const TRUNCATION: Duration = Duration::from_millis(50);
/// The most claimed pairs that a thread holds at once.
const MAX_CLAIMED: usize = 2048;
/// The failed action if it is unknown whether a directory is still in place.
const FIND_DIRECTORY: &str = "check where the directory is";
/// How long after a check a directory is assumed to be in place.
const IN_PLACE: Duration = Duration::from_millis(1);

/// Processes pairs one after the other, on one thread.
///
/// A claimed pair is held for an instant, while the next pairs are processed. So its outcome comes later than
/// theirs.
pub(crate) struct PairProcessor<'a> {
    context: &'a JobContext,
    root: &'a Root,
    buffers: Buffers,
    lock_patience: LockPatience,
    found: Vec<JobResult>,
    held: VecDeque<(ClaimedPair, TimeDelta)>,
    /// The number of directories of the held pairs, each of which is open.
    held_dirs: usize,
    max_held_dirs: usize,
    /// Reports the events of deletions, if there is a watcher.
    watcher: Option<&'a Watcher>,
    /// The directory of the last deletion, and whether the kernel reports its events.
    reported: Option<(Arc<Dir>, bool)>,
    /// The directory that was last seen to be in place, and when.
    in_place: Option<(Arc<Dir>, Instant)>,
}

/// What is known about a pair before it is inspected.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hint {
    Nothing,
    /// The result as it was when its settle time began. That time has passed.
    Settled(FileState),
    /// Both halves were just listed as regular files.
    Listed,
}

impl<'a> PairProcessor<'a> {
    pub(crate) fn new(context: &'a JobContext, root: &'a Root) -> Self {
        Self {
            context,
            root,
            buffers: Buffers::default(),
            lock_patience: LockPatience::default(),
            found: Vec::new(),
            held: VecDeque::new(),
            held_dirs: 0,
            // There are at most some three dozen such threads, and the limit is for all of them.
            max_held_dirs: share_of_open_files(64, 32),
            watcher: None,
            reported: None,
            in_place: None,
        }
    }

    /// Deletes no faster than `watcher` reports the events of the deletions.
    pub(crate) fn watched_by(mut self, watcher: Option<&'a Watcher>) -> Self {
        self.watcher = watcher;
        self
    }

    /// Processes jobs of any directories until `cancel` is set. Opens a directory once for successive jobs in it.
    pub(crate) fn process_jobs(&mut self, jobs: &[Job], cancel: &AtomicBool) {
        for group in jobs.chunk_by(|a, b| a.key.dir == b.key.dir) {
            let dir = self.root.open_dir(&group[0].key.dir).map(Arc::new);
            for Job { key, settled, evict } in group {
                self.rest(cancel);
                if cancel.load(Ordering::Relaxed) {
                    return;
                }
                let outcome = match &dir {
                    Ok(dir) => {
                        let hint = settled.map_or(Hint::Nothing, Hint::Settled);
                        self.process_or_evict(dir, &key.stem, hint, evict.as_ref());
                        continue;
                    }
                    // The file system that is mounted over it may be unmounted again.
                    Err(error) if is_mounted_over(error) => Outcome::Changed,
                    Err(error) if is_not_ours(error) => Outcome::Incomplete,
                    Err(error) => Outcome::Failed(Failure::new(
                        ErrorKind::Directory,
                        "open the directory",
                        error,
                    )),
                };
                self.found.push(JobResult { key: key.clone(), outcome });
            }
        }
    }

    /// Processes one pair.
    pub(crate) fn process(&mut self, dir: &Arc<Dir>, stem: &Stem, hint: Hint) {
        self.process_or_evict(dir, stem, hint, None);
    }

    /// Processes one pair. Evicts it if it is `chosen` and can be evicted.
    fn process_or_evict(
        &mut self,
        dir: &Arc<Dir>,
        stem: &Stem,
        hint: Hint,
        chosen: Option<&Chosen>,
    ) {
        self.finish_due();
        self.buffers.shrink();
        let _spending = self.context.throttle().spend();
        let outcome = match self.decide(dir, stem, hint, chosen) {
            Decision::Keep(outcome) => Some(outcome),
            Decision::Delete(judged) => self.delete(dir, stem, judged),
        };
        if let Some(outcome) = outcome {
            let key = PairKey { dir: Arc::clone(&dir.rel), stem: stem.clone() };
            self.found.push(JobResult { key, outcome });
        }
    }

    /// Waits for the kernel's events if too many are outstanding. If the throttle's time is used up, finishes all
    /// held pairs and waits for more time.
    pub(crate) fn rest(&mut self, cancel: &AtomicBool) {
        let (throttle, backpressure) = (self.context.throttle(), self.context.backpressure());
        backpressure.wait(cancel, || self.finish_due());
        if throttle.is_used_up() {
            self.finish();
            throttle.rest(cancel);
        }
    }

    /// When the hold time of the next pair ends; `None` if no pair is held.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.held.front().map(|(held, _)| held.until())
    }

    /// Whether any pair is held, whose outcome is still to come.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Returns the results since the last call.
    pub(crate) fn take_found(&mut self) -> Vec<JobResult> {
        std::mem::take(&mut self.found)
    }

    /// Finishes the pairs whose hold time is over. If too many are held, waits for all of them.
    pub(crate) fn finish_due(&mut self) {
        if self.held.len() >= MAX_CLAIMED || self.held_dirs >= self.max_held_dirs {
            return self.finish();
        }
        while self.next().is_some_and(|until| until <= Instant::now()) {
            self.finish_next();
        }
    }

    /// Waits until the hold time of all held pairs is over. One sleep costs less than one for each.
    pub(crate) fn wait_for_holds(&self) {
        if let Some((last, _)) = self.held.back() {
            thread::sleep(last.until().saturating_duration_since(Instant::now()));
        }
    }

    /// Finishes all pairs that are held, once their hold time is over.
    pub(crate) fn finish(&mut self) {
        self.wait_for_holds();
        while self.holds() {
            self.finish_next();
        }
    }

    fn finish_next(&mut self) {
        let Some((held, mut late)) = self.held.pop_front() else { return };
        let (evicts, expires_at, version) = (held.evicts, held.expires_at(), held.version());
        let _spending = self.context.throttle().spend();
        let (dir, stem) = (Arc::clone(&held.dir), held.stem.clone());
        if self.held.front().is_none_or(|(next, _)| !Arc::ptr_eq(&next.dir, &dir)) {
            self.held_dirs -= 1;
        }
        let clock = self.context.clock();
        let removal = held.finish(&|| clock.wall(), &mut self.buffers);
        if evicts {
            late = clock.wall() - expires_at;
        }
        let pair = DeletedPair { expires_at, late, evicts, version };
        if let Some(outcome) = self.outcome_of(removal, &dir, &stem, pair) {
            let key = PairKey { dir: Arc::clone(&dir.rel), stem };
            self.found.push(JobResult { key, outcome });
        }
    }

    fn decide(&mut self, dir: &Dir, stem: &Stem, hint: Hint, chosen: Option<&Chosen>) -> Decision {
        let inspection = match self.inspect(dir, stem, hint) {
            Ok(inspection) => inspection,
            Err(error) => {
                return Decision::Keep(Outcome::Failed(Failure::new(
                    ErrorKind::Inspection,
                    "inspect the pair",
                    &error,
                )));
            }
        };
        let clock = self.context.clock();
        let (pair, metadata) = match inspection {
            Inspection::Incomplete => return Decision::Keep(Outcome::Incomplete),
            Inspection::Claimed => return Decision::Keep(Outcome::ClaimedElsewhere),
            Inspection::Broken { result, metadata, reason } => {
                let wait = metadata.settles_in(clock.wall()).max(min_wait(&metadata));
                let bytes = result.version.size + metadata.version.size;
                return Decision::Keep(Outcome::Broken { metadata, reason, wait, bytes });
            }
            Inspection::NotDue { expires_at } => {
                return Decision::Keep(Outcome::NotDue { expires_at, bytes: None, size: None });
            }
            Inspection::Complete(pair, metadata) => (pair, metadata),
        };
        let now = clock.wall();
        let (expires_at, bytes) = (pair.expires_at, pair.bytes());
        let size = self.context.budget().map(|_| pair.disk_size());
        if now < expires_at {
            if chosen.is_some_and(|chosen| chosen.is_evictable(&pair, now)) {
                if !self.context.deletes() {
                    return Decision::Keep(Outcome::Evictable { expires_at });
                }
                return Decision::Delete(DuePair { pair, metadata, evicts: true });
            }
            return Decision::Keep(Outcome::NotDue { expires_at, bytes: Some(bytes), size });
        }
        let settled = matches!(hint, Hint::Settled(then) if pair.result.is_unchanged_since(&then));
        if pair.may_be_half_published() && !settled {
            let wait = pair.result.settles_in(now);
            if !wait.is_zero() {
                return Decision::Keep(Outcome::Unsettled {
                    result: pair.result,
                    wait,
                    expires_at,
                    bytes,
                });
            }
        }
        if !self.context.deletes() {
            return Decision::Keep(Outcome::Due { expires_at, bytes, size });
        }
        Decision::Delete(DuePair { pair, metadata, evicts: false })
    }

    fn inspect(&mut self, dir: &Dir, stem: &Stem, hint: Hint) -> io::Result<Inspection> {
        let buffer = &mut self.buffers.judged;
        let Hint::Listed = hint else {
            return inspect(dir, stem, buffer);
        };
        let context = self.context;
        let wants_sizes = context.reports_sizes() || context.budget().is_some();
        let wait = |expires_at| !wants_sizes && context.clock().wall() < expires_at;
        inspect_listed(dir, stem, buffer, wait)
    }

    fn delete(&mut self, dir: &Arc<Dir>, stem: &Stem, judged: DuePair) -> Option<Outcome> {
        if let Some(outcome) = self.unless_in_place(dir) {
            return Some(outcome);
        }
        let clock = self.context.clock();
        let (wall, expires_at, evicts) = (|| clock.wall(), judged.pair.expires_at, judged.evicts);
        let version = judged.pair.result.version;
        let (buffers, patience) = (&mut self.buffers, &mut self.lock_patience);
        let removal = remove(dir, stem, judged, &wall, buffers, patience);
        let late = clock.wall() - expires_at;
        self.outcome_of(removal, dir, stem, DeletedPair { expires_at, late, evicts, version })
    }

    /// Whether the kernel reports what happens in the directory. If it does not, no deletion may wait for its
    /// events.
    fn is_reported(&mut self, dir: &Arc<Dir>) -> bool {
        match &self.reported {
            Some((known, is_reported)) if Arc::ptr_eq(known, dir) => *is_reported,
            _ => {
                let is_reported = self.watcher.is_some_and(|watcher| watcher.is_watching(&dir.rel));
                self.reported.insert((Arc::clone(dir), is_reported)).1
            }
        }
    }

    /// Returns the outcome of a pair if its directory is no longer where it was opened. It counts as in place for
    /// [`IN_PLACE`]. (However often this is checked, the directory may be moved right after.)
    fn unless_in_place(&mut self, dir: &Arc<Dir>) -> Option<Outcome> {
        if let Some((known, seen)) = &self.in_place
            && Arc::ptr_eq(known, dir)
            && seen.elapsed() < IN_PLACE
        {
            return None;
        }
        self.in_place = None;
        let root = self.root;
        let place = root.is_in_place().and_then(|is_in_place| {
            if is_in_place { root.place_of(dir).map(Some) } else { Ok(None) }
        });
        Some(match place {
            Ok(Some(DirPlace::Same)) => {
                self.in_place = Some((Arc::clone(dir), Instant::now()));
                return None;
            }
            // The pairs of a directory that was moved out of the cache directory were moved with it.
            Ok(Some(DirPlace::Moved)) => Outcome::Incomplete,
            // The file system may be unmounted again. The worker will notice that the cache directory was moved, unless
            // it is moved back before.
            Ok(Some(DirPlace::MountedOver) | None) => Outcome::Changed,
            Err(error) => {
                Outcome::Failed(Failure::new(ErrorKind::Directory, FIND_DIRECTORY, &error))
            }
        })
    }

    /// Holds a claimed pair until its hold time is over.
    fn hold(&mut self, claimed: ClaimedPair, late: TimeDelta) {
        let dir = &claimed.dir;
        if self.held.back().is_none_or(|(last, _)| !Arc::ptr_eq(&last.dir, dir)) {
            self.held_dirs += 1;
        }
        if self.is_reported(dir) {
            self.context.backpressure().caused();
        }
        self.held.push_back((claimed, late));
    }

    /// Logs a deletion, and reports it to the result store.
    fn report_deleted(&self, dir: &Dir, stem: &Stem, pair: DeletedPair) {
        let path = || path_field(&result_path(self.root, &dir.rel, stem));
        if pair.is_evicted() {
            let left_s = -pair.late.num_seconds();
            tracing::debug!(path = path(), left_s, "evicted a result");
        } else {
            let late_ms = pair.late.num_milliseconds();
            tracing::debug!(path = path(), late_ms, "deleted an expired result");
        }
        self.context.report_removed(self.root, &dir.rel, stem);
    }

    /// Returns the outcome of a removal; `None` if the pair is held.
    fn outcome_of(
        &mut self,
        removal: Removal,
        dir: &Arc<Dir>,
        stem: &Stem,
        pair: DeletedPair,
    ) -> Option<Outcome> {
        Some(match self.unless_moved_away(removal, dir, stem) {
            Removal::Claimed(claimed) => {
                self.hold(claimed, pair.late);
                return None;
            }
            Removal::Deleted { freed, disk_freed, leftover } => {
                self.report_deleted(dir, stem, pair);
                let failed =
                    |error| Failure::new(ErrorKind::Deletion, "delete the metadata", &error);
                let leftover = leftover.map(failed);
                let DeletedPair { expires_at, late, .. } = pair;
                if pair.is_evicted() {
                    Outcome::Evicted { freed: disk_freed, leftover, expires_at }
                } else {
                    Outcome::Deleted { freed, leftover, late }
                }
            }
            Removal::Changed => Outcome::Changed,
            Removal::DeletedElsewhere => Outcome::Incomplete,
            Removal::ClaimedElsewhere => Outcome::ClaimedElsewhere,
            Removal::Failed(error) => {
                let failure = Failure::new(ErrorKind::Deletion, "delete the result", &error);
                Outcome::Failed(failure.of_result(pair.version))
            }
            Removal::RestoreFailed(error) => {
                let failure = Failure::new(ErrorKind::Recovery, "restore the result", &error);
                Outcome::RestoreFailed(failure.of_result(pair.version))
            }
        })
    }

    /// Replaces a failure if the pair was moved out of the cache directory, with its directory, during its
    /// deletion. The pair is then out of reach, which is no failure.
    fn unless_moved_away(&self, removal: Removal, dir: &Arc<Dir>, stem: &Stem) -> Removal {
        let out_of_reach = match &removal {
            Removal::Failed(_) | Removal::RestoreFailed(_) => true,
            Removal::Deleted { leftover, .. } => leftover.is_some(),
            _ => false,
        };
        if !out_of_reach {
            return removal;
        }
        match self.root.still_contains(dir) {
            Ok(true) => removal,
            Ok(false) => {
                self.context.note_moved_away(dir, stem);
                match removal {
                    Removal::Deleted { freed, disk_freed, .. } => {
                        Removal::Deleted { freed, disk_freed, leftover: None }
                    }
                    _ => Removal::DeletedElsewhere,
                }
            }
            // It may have been moved away. A claimed file may be restored wherever its directory is.
            Err(_) => {
                if let Removal::RestoreFailed(_) = removal {
                    self.context.note_moved_away(dir, stem);
                }
                removal
            }
        }
    }
}

/// What is known of a pair when its deletion ends.
#[derive(Debug, Clone, Copy)]
struct DeletedPair {
    expires_at: DateTime<Utc>,
    /// How long after its expiry; negative before it.
    late: TimeDelta,
    /// Whether it was deleted although it was not due when it was chosen.
    evicts: bool,
    /// The version of its result.
    version: Version,
}

impl DeletedPair {
    fn is_evicted(&self) -> bool {
        self.evicts && self.late < TimeDelta::zero()
    }
}

/// Whether a pair is kept or deleted.
enum Decision {
    Keep(Outcome),
    Delete(DuePair),
}

impl Drop for PairProcessor<'_> {
    /// Finishes held pairs even after a panic, so that none is left under its reserved names.
    fn drop(&mut self) {
        self.finish();
    }
}

/// The settle time of empty metadata. A file that is truncated is empty for an instant before its times
/// show that it changed.
fn min_wait(metadata: &FileState) -> Duration {
    if metadata.version.size == 0 { TRUNCATION } else { Duration::ZERO }
}
