//! Jobs for pairs and directories, and their outcomes.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rustix::io::Errno;

use super::change::WatchError;
use super::disk_budget::{Chosen, DiskSize};
use super::name::{PairKey, Stem};
use super::reason::{Reason, SystemError};
use super::tally::{ErrorKind, Errors, OrphanTally, Tally};
use super::version::{Broken, FileState, FileTime, Version};

/// The state in which a pair was found, and what the cleaner did with it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The pair is not complete.
    Incomplete,
    /// The pair has not expired. `bytes` is `None` if its result was only listed, and `size` if there is no disk
    /// budget.
    NotDue { expires_at: DateTime<Utc>, bytes: Option<u64>, size: Option<DiskSize> },
    /// The pair has expired, but this context does not delete. `size` is `None` if there is no disk budget.
    Due { expires_at: DateTime<Utc>, bytes: u64, size: Option<DiskSize> },
    /// The pair can be evicted as it was chosen to be, but this context does not delete.
    Evictable { expires_at: DateTime<Utc> },
    /// The pair has expired, but its result may be half published. It is inspected again after `wait`
    /// and compared with `result`, the state that was seen.
    Unsettled { result: FileState, wait: Duration, expires_at: DateTime<Utc>, bytes: u64 },
    /// The metadata can't be used; `wait` is how long it may still be half written.
    Broken { metadata: FileState, reason: Broken, wait: Duration, bytes: u64 },
    /// The pair was deleted, `late` after its expiry; `leftover` is why its metadata could not be
    /// deleted.
    Deleted { freed: u64, leftover: Option<Failure>, late: TimeDelta },
    /// The pair was deleted before its expiry, because of the disk budget. `freed` is what its files took on disk.
    Evicted { freed: u64, leftover: Option<Failure>, expires_at: DateTime<Utc> },
    /// The pair changed when it was about to be deleted, or a file system is mounted over it.
    Changed,
    /// Another cleaner has claimed the pair, or a cleaner that died had claimed it.
    ClaimedElsewhere,
    /// The pair could not be inspected or not be deleted.
    Failed(Failure),
    /// A file of the pair still has a reserved name, and could not be restored to its own name.
    RestoreFailed(Failure),
}

impl Outcome {
    /// Returns what this outcome adds to the tally by itself. The schedule adds what depends on earlier outcomes, such as
    /// whether invalid metadata was counted before.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally { checked: 1, ..Tally::default() };
        match self {
            Self::Deleted { freed, leftover, .. } => {
                tally.deleted = 1;
                tally.freed_bytes = *freed;
                tally.errors = errors_of(*leftover);
            }
            Self::Evicted { freed, leftover, .. } => {
                tally.evicted = 1;
                tally.evicted_bytes = *freed;
                tally.errors = errors_of(*leftover);
            }
            Self::Failed(failure) | Self::RestoreFailed(failure) => tally.errors += failure.kind,
            _ => {}
        }
        tally
    }

    /// Returns why a due pair has to wait, if nothing else prevents its deletion.
    pub(crate) fn delay(&self) -> Option<Reason> {
        Some(match self {
            Self::Unsettled { .. } => Reason::HalfPublished,
            Self::Changed => Reason::Changed,
            Self::ClaimedElsewhere => Reason::ClaimedElsewhere,
            _ => return None,
        })
    }
}

fn errors_of(leftover: Option<Failure>) -> Errors {
    leftover.map_or_else(Errors::default, |failure| failure.kind.into())
}

/// Why an operation on a pair failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    kind: ErrorKind,
    doing: &'static str,
    /// `None` if the operation failed because another program has locked the directory, and not because
    /// of a system error.
    errno: Option<i32>,
    /// The version of the result that was to be deleted; `None` if the operation was about something else.
    result: Option<Version>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, doing: &'static str, error: &io::Error) -> Self {
        Self { kind, doing, errno: error.raw_os_error(), result: None }
    }

    /// The same failure of an attempt to delete this version of a result.
    pub(crate) fn of_result(self, version: Version) -> Self {
        Self { result: Some(version), ..self }
    }

    pub(crate) fn result(self) -> Option<Version> {
        self.result
    }

    pub(crate) fn kind(self) -> ErrorKind {
        self.kind
    }
}

impl From<Failure> for Reason {
    fn from(Failure { doing: action, errno, .. }: Failure) -> Self {
        let error = match errno {
            // Only a claim requires that its name is not in use.
            Some(errno) if errno == Errno::EXIST.raw_os_error() => SystemError::in_words(
                io::ErrorKind::AlreadyExists,
                "another file has the reserved name",
            ),
            Some(errno) => io::Error::from_raw_os_error(errno).into(),
            None => SystemError::in_words(
                io::ErrorKind::ResourceBusy,
                "another program has locked the directory",
            ),
        };
        Self::CouldNotDelete { action, error }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Reason::from(*self).fmt(f)
    }
}

/// A pair to inspect, and to delete if it is due.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub key: PairKey,
    /// The result as it was when its settle time started; that time has passed.
    pub settled: Option<FileState>,
    /// Set if the pair is to be evicted even if it is not due.
    pub evict: Option<Chosen>,
}

/// Sorts the jobs so that each directory is opened once.
pub(crate) fn sort_by_directory(jobs: &mut [Job]) {
    jobs.sort_by(|a, b| a.key.dir.as_os_str().cmp(b.key.dir.as_os_str()));
}

/// An outcome and the pair that it belongs to.
#[derive(Debug)]
pub(crate) struct JobResult {
    pub key: PairKey,
    pub outcome: Outcome,
}

/// Pairs of one directory that a scan has found, and that wait for their expiry.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub dir: Arc<Path>,
    /// Their stems, and when they expire.
    pub pairs: Vec<(Stem, DateTime<Utc>)>,
    /// Their sizes in the same order; empty without a disk budget.
    pub sizes: Vec<DiskSize>,
}

/// A part of what a scan finds.
#[derive(Debug, Default)]
pub(crate) struct ScanFound {
    pub waiting: Vec<Waiting>,
    /// The pairs that do not simply wait.
    pub others: Vec<JobResult>,
}

impl ScanFound {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.others.is_empty()
    }

    /// How many pairs these are.
    pub(crate) fn len(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.pairs.len()).sum::<usize>() + self.others.len()
    }
}

/// The findings of a scan besides pairs.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Results seen.
    pub results: u64,
    /// Directories that could not be read, relative to the cache directory, and why.
    pub unreadable: Vec<(Arc<Path>, io::Error)>,
    /// How many directories the kernel refused to watch, and the worst reason for a refusal.
    pub refused: Option<(u64, WatchError)>,
    /// True if a path did not lead to the directory to watch, although that directory still exists: the
    /// cache directory, or a directory above it, was moved away for an instant.
    pub watched_wrong_path: bool,
    /// Directories to scan again after a pause: they contain claims that could not be recovered yet, or
    /// an error unrelated to them prevented reading them.
    pub recoveries: Vec<Arc<Path>>,
    /// Files with reserved names that could not be recovered, and why.
    pub not_recovered: Vec<(PathBuf, io::Error)>,
    /// Directories that may contain orphans, if orphans are to be removed.
    pub orphans: Vec<Arc<Path>>,
    /// Directories to scan next: unknown directories whose parent alone was listed, directories that were
    /// to be listed alone and are gone, and directories that were elsewhere when the scan set their watch.
    pub scan_next: Vec<Arc<Path>>,
    /// How long the scan waited for answers instead of working.
    pub waited: Duration,
}

impl Summary {
    /// Adds the findings of another thread of the same scan.
    pub(crate) fn merge(&mut self, other: Self) {
        self.results += other.results;
        self.unreadable.extend(other.unreadable);
        if let Some((count, reason)) = other.refused {
            self.refuse(count, reason);
        }
        self.watched_wrong_path |= other.watched_wrong_path;
        self.recoveries.extend(other.recoveries);
        self.not_recovered.extend(other.not_recovered);
        self.orphans.extend(other.orphans);
        self.scan_next.extend(other.scan_next);
        // They waited at the same time.
        self.waited = self.waited.max(other.waited);
    }

    /// Records that the kernel refused to watch `count` more directories.
    pub(crate) fn refuse(&mut self, count: u64, reason: WatchError) {
        let (before, worst) = self.refused.take().unwrap_or((0, WatchError::PathTooLong));
        self.refused = Some((before + count, worst.max(reason)));
    }
}

/// The outcome of a search for orphans in one directory.
#[derive(Debug, Default)]
pub(crate) struct OrphanPass {
    /// Orphans that were removed, or would be.
    pub removed: OrphanTally,
    /// Orphans that could not be removed, relative to the cache directory, and why.
    pub failures: Vec<(PathBuf, Failure)>,
    /// When the next of the remaining files may be old enough.
    pub next: Option<DateTime<Utc>>,
    /// Files that are old enough and were not candidates before.
    pub candidates: OrphanCandidates,
}

/// Orphans that are deleted if the next search finds them unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OrphanCandidates {
    pub files: HashMap<Vec<u8>, FileState>,
    /// The directory itself, if it is empty: its inode, and when it was changed.
    pub directory: Option<(u64, FileTime)>,
}

impl OrphanCandidates {
    /// Adds the candidates of an earlier search. Of a file that both have, this search's state counts.
    pub(crate) fn add_older(&mut self, older: Self) {
        for (name, seen) in older.files {
            self.files.entry(name).or_insert(seen);
        }
        self.directory = self.directory.or(older.directory);
    }

    pub(crate) fn len(&self) -> usize {
        self.files.len() + usize::from(self.directory.is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
