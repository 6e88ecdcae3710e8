//! The core of the service: its state and its decisions. Pure: it uses no clock, no disk, no thread and no
//! log, so that a simulator can drive it.
//!
//! [`Core`] decides what the worker does. Its [`Schedule`] tracks the pairs and directories.
//!
//! Pairs that expire later wait in a min-heap keyed on `expires_at`. Pairs to retry after a pause wait
//! in a second heap. The schedule tracks each pair in flight until its outcome is applied, so no pair is
//! forgotten. Changes that arrive meanwhile for such a pair are kept.

mod backoff;
pub(crate) mod batches;
mod cache_root;
pub(crate) mod command;
mod completions;
mod core;
mod counted_space;
mod disk_budget;
mod dry_run;
mod evictions;
mod expiries;
mod free_space;
mod half_written;
pub(crate) mod input;
mod lost_events;
pub(crate) mod orphans;
mod outcomes;
pub(crate) mod queue;
mod scans;
mod soonest;
mod sweeps;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use indexmap::IndexMap;

use self::command::Notice;
pub(crate) use self::core::{Core, Intervals};
use self::dry_run::DryRun;
use self::evictions::Evictions;
use self::half_written::HalfWritten;
use self::scans::ActiveScan;
pub(crate) use self::scans::{ScanId, Scope, SubtreeSet};
use self::waiting::{WaitingPairs, WaitingSize};
use crate::pair::change::{Changes, Trigger};
use crate::pair::disk_budget::{BLOCK, Budget, Chosen, DiskSize};
use crate::pair::name::PairKey;
use crate::pair::outcome::{Job, sort_by_directory};
use crate::pair::version::{FileState, FileTime, Version};
use crate::schedule::queue::Queue;
use crate::sys::clock::Now;

/// The ends of the spans in which the schedule counts expiries, in seconds from now.
const BUCKETS: [u64; 7] = [60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400];

/// How many pairs expire in a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// The end of the span, in seconds from now; `None` for everything later.
    pub end: Option<u64>,
    pub count: u64,
    /// What these pairs take on disk; `None` without a disk budget.
    pub bytes: Option<u64>,
}

/// Where an outcome comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A job that [`Schedule::take_inspections`] or [`Schedule::take_due`] returned.
    Job,
    /// A scan, which inspects pairs without a job for each.
    Scan(ScanId),
}

/// All pairs and directories that wait.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Complete, valid pairs that have not expired, by `expires_at`.
    expiries: WaitingPairs,
    /// What is tracked for evictions, if there is a disk budget.
    evictions: Option<Evictions>,
    /// What was reported, if this is a dry run.
    dry_run: Option<DryRun>,
    /// Pairs to inspect again after a pause.
    retries: Queue<PairKey, Instant, Attempts>,
    /// Pairs with changes, to inspect now.
    inspections: IndexMap<PairKey, Trigger>,
    /// Pairs whose jobs are in flight.
    in_flight: HashMap<PairKey, InFlight>,
    /// Metadata that is broken or still being written.
    half_written: HalfWritten,
    /// Directories that could not be read when they were last scanned.
    unreadable: HashSet<Arc<Path>>,
    /// Directories to scan now.
    rescans: HashSet<Arc<Path>>,
    /// Directories to list without those below them.
    rescans_alone: HashSet<Arc<Path>>,
    /// Directories to scan after a pause.
    rescans_later: Queue<Arc<Path>, Instant, ()>,
    /// How often a directory was scanned in vain: it could not be read, or its claims could not be
    /// recovered.
    retried: HashMap<Arc<Path>, u32>,
    scans: Vec<ActiveScan>,
    last_scan: ScanId,
    /// What to report since the core last took it.
    notices: Vec<Notice>,
}

/// The results of earlier attempts at a pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Attempts {
    failures: u32,
    /// The version of the result that could not be deleted last, if the last failure was that of a deletion.
    failed: Option<Version>,
    /// How often the pair changed while it was about to be deleted.
    changes: u32,
    /// How often in a row another cleaner had claimed it.
    claims: u32,
    /// The result as it was when its settle time started.
    settled: Option<FileState>,
    /// The broken metadata that was given time to be completed: its version and its ctime.
    suspect: Option<(Version, FileTime)>,
}

/// A pair whose job is in flight.
#[derive(Debug, Default)]
struct InFlight {
    attempts: Attempts,
    trigger: Trigger,
    /// Changes that arrived since the job was started.
    changes: Option<Trigger>,
    /// Set if the job is an eviction.
    evicted: Option<Chosen>,
}

impl Schedule {
    /// Creates a schedule without any pair.
    pub(crate) fn new(budget: Option<&Budget>, is_dry_run: bool, now: Instant) -> Self {
        Self {
            expiries: WaitingPairs::new(budget.is_some()),
            evictions: budget.map(|budget| Evictions::new(budget.min_age, now)),
            dry_run: is_dry_run.then(DryRun::default),
            retries: Queue::default(),
            inspections: IndexMap::new(),
            in_flight: HashMap::new(),
            half_written: HalfWritten::default(),
            unreadable: HashSet::new(),
            rescans: HashSet::new(),
            rescans_alone: HashSet::new(),
            rescans_later: Queue::default(),
            retried: HashMap::new(),
            scans: Vec::new(),
            last_scan: 0,
            notices: Vec::new(),
        }
    }

    /// Adds a pair that waits for its expiry. `known` is its size if `size` was not measured.
    fn wait(
        &mut self,
        key: PairKey,
        at: DateTime<Utc>,
        size: Option<DiskSize>,
        known: WaitingSize,
        now: Now,
    ) {
        let size = match (&mut self.evictions, size) {
            (Some(evictions), Some(size)) => evictions.waits(&key, size, now),
            _ => known,
        };
        self.expiries.insert(key, at, self.last_scan, size);
    }

    /// Applies changes.
    pub(crate) fn apply_changes(&mut self, changes: Changes) {
        self.rescans.extend(changes.subtrees);
        self.rescans_alone.extend(changes.alone);
        for (key, trigger) in changes.pairs {
            self.apply_change(key, trigger);
        }
    }

    /// Lists the directory `dir` again, but not the known directories below it.
    pub(crate) fn rescan_alone(&mut self, dir: Arc<Path>) {
        self.rescans_alone.insert(dir);
    }

    /// Returns how many pairs and directories have to be inspected because of changes.
    pub(crate) fn backlog(&self) -> usize {
        self.inspections.len() + self.rescans.len() + self.rescans_alone.len()
    }

    /// Returns what to report since the last call.
    pub(crate) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn apply_change(&mut self, key: PairKey, trigger: Trigger) {
        self.half_written.note_writer(&key, trigger.writer);
        if let Some(in_flight_pair) = self.in_flight.get_mut(&key) {
            in_flight_pair.changes.get_or_insert_default().merge(trigger);
        } else if let Some(pending) = self.inspections.get_mut(&key) {
            pending.merge(trigger);
        } else if trigger.appeared || self.knows(&key) {
            self.inspections.insert(key, trigger);
        } else {
            // The pair only vanished and is not tracked: in most cases it was deleted here. Otherwise a
            // scan may have just seen it.
            for scan in self.scans.iter_mut().filter(|scan| scan.scope.covers(&key.dir)) {
                scan.note_vanished(&key);
            }
        }
    }

    fn knows(&self, key: &PairKey) -> bool {
        self.expiries.contains(key) || self.retries.contains(key) || self.counts_as_deleted(key)
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run.is_some()
    }

    /// Whether a dry run has reported that this pair would go.
    fn counts_as_deleted(&self, key: &PairKey) -> bool {
        self.dry_run.as_ref().is_some_and(|dry_run| dry_run.contains(key))
    }

    /// Returns what a dry run would have freed, in bytes.
    pub(super) fn freed_in_dry_run(&self) -> u64 {
        self.dry_run.as_ref().map_or(0, DryRun::freed)
    }

    /// Returns jobs for pairs with changes, at most `limit`. Each job has to be completed by
    /// [`Schedule::complete`].
    pub(crate) fn take_inspections(&mut self, limit: usize) -> Vec<Job> {
        let mut jobs = Vec::new();
        // The oldest first, so that no pair waits for ever behind others that keep changing.
        let count = limit.min(self.inspections.len());
        for (key, trigger) in self.inspections.drain(..count).collect::<Vec<_>>() {
            let attempts = self.pending_attempts(&key);
            jobs.extend(self.begin(key, attempts, trigger));
        }
        sort_by_directory(&mut jobs);
        jobs
    }

    /// Returns jobs for pairs whose expiry or retry is due, at most `limit`. Each job has to be
    /// completed by [`Schedule::complete`].
    pub(crate) fn take_due(&mut self, now: Now, limit: usize) -> Vec<Job> {
        let mut jobs = Vec::new();
        while jobs.len() < limit
            && let Some((key, size)) = self.expiries.pop_due(now.wall)
        {
            if let Some(evictions) = &mut self.evictions {
                evictions.track_unqueued(key.clone(), size, true);
            }
            jobs.extend(self.begin(key, Attempts::default(), Trigger::default()));
        }
        while jobs.len() < limit
            && let Some((key, attempts)) = self.retries.pop_due(now.mono)
        {
            jobs.extend(self.begin(key, attempts, Trigger::default()));
        }
        sort_by_directory(&mut jobs);
        jobs
    }

    /// Returns the earlier attempts at a pair whose pause has not ended. A state that was given time to
    /// settle is dropped.
    fn pending_attempts(&self, key: &PairKey) -> Attempts {
        let attempts = self.retries.get(key).copied().unwrap_or_default();
        Attempts { settled: None, suspect: None, ..attempts }
    }

    /// Marks a pair as in flight and returns its job; `None` if it is in flight already, because that
    /// outcome decides.
    fn begin(&mut self, key: PairKey, attempts: Attempts, trigger: Trigger) -> Option<Job> {
        if self.in_flight.contains_key(&key) {
            return None;
        }
        self.in_flight.insert(key.clone(), InFlight { attempts, trigger, ..InFlight::default() });
        Some(Job { key, settled: attempts.settled, evict: None })
    }

    /// Returns whether the directory `dir` could not be read when it was last scanned.
    pub(crate) fn could_not_read(&self, dir: &Path) -> bool {
        self.unreadable.contains(dir)
    }

    /// Returns how many complete, valid pairs wait for their expiry.
    pub(crate) fn heap_size(&self) -> usize {
        self.expiries.len()
    }

    /// Returns the earliest `expires_at` of the waiting pairs.
    pub(crate) fn next_expiry(&self) -> Option<DateTime<Utc>> {
        self.expiries.next()
    }

    /// Returns when to process the next pair, if no change arrives before.
    pub(crate) fn next_pair(&self, now: Now) -> Option<Instant> {
        if !self.inspections.is_empty() {
            return Some(now.mono);
        }
        let expiry = self.next_expiry().and_then(|at| {
            let left = (at - now.wall).to_std().unwrap_or(Duration::ZERO);
            now.mono.checked_add(left)
        });
        [expiry, self.retries.next()].into_iter().flatten().min()
    }

    /// Returns when to scan the next directory, if no change arrives before.
    pub(crate) fn next_rescan(&self, now: Now) -> Option<Instant> {
        if !self.rescans.is_empty() || !self.rescans_alone.is_empty() {
            return Some(now.mono);
        }
        self.rescans_later.next()
    }

    /// Returns whether no pair and no directory waits for another attempt.
    #[cfg(any(fuzzing, test))]
    fn is_at_rest(&self) -> bool {
        self.retries.len() == 0
            && self.inspections.is_empty()
            && self.in_flight.is_empty()
            && self.rescans.is_empty()
            && self.rescans_alone.is_empty()
            && self.rescans_later.len() == 0
            && self.retried.is_empty()
    }

    #[cfg(any(fuzzing, test))]
    fn waiting(&self) -> impl Iterator<Item = (PairKey, DateTime<Utc>)> {
        self.expiries.iter()
    }

    /// Returns how many pairs wait, by when they expire.
    pub(crate) fn buckets(&self, now: DateTime<Utc>) -> Vec<Bucket> {
        let bytes = self.evictions.is_some().then_some(0);
        let ends = BUCKETS.iter().copied().map(Some).chain([None]);
        let mut buckets: Vec<_> = ends.map(|end| Bucket { end, count: 0, bytes }).collect();
        self.expiries.for_each(|at, blocks| {
            let left = u64::try_from((at - now).num_seconds()).unwrap_or(0);
            let bucket = &mut buckets[BUCKETS.partition_point(|&end| end <= left)];
            bucket.count += 1;
            bucket.bytes = bucket.bytes.map(|bytes| bytes + blocks * BLOCK);
        });
        buckets
    }
}
