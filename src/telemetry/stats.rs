//! What the cleaner tells of itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};

use crate::pair::tally::{OrphanTally, Tally};

/// How the cleaner learns of changes.
///
/// ```
/// assert_eq!(result_cleaner::WatchState::Active.to_string(), "active");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WatchState {
    /// The kernel tells of every change.
    Active,
    /// Some watches were refused, or the directory can't be read: sweeps come more often.
    Degraded,
    /// The file system does not tell of all changes: sweeps come more often.
    Polling,
    /// The cache directory does not exist; it is picked up when it appears.
    Absent,
}

impl fmt::Display for WatchState {
    /// The word that stands in the JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The state of a cleaner at one moment.
///
/// As JSON it has the keys and types that the polling daemon's `get_stats()` had, and more;
/// [`Cleaner::get_stats`](crate::Cleaner::get_stats) returns it, `GET /stats` serves it.
///
/// ```
/// # fn show(stats: &result_cleaner::Stats) {
/// println!("{} deleted, {} MiB freed", stats.total_deleted, stats.total_freed_mb);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Whether the cleaner works: false once it was stopped, or has died.
    pub running: bool,
    /// [`Config::check_interval`](crate::Config::check_interval) in hours.
    pub check_interval_hours: f64,
    /// Full sweeps that were completed, the first scan included.
    pub total_cleanups: u64,
    /// Pairs whose result this cleaner removed.
    pub total_deleted: u64,
    /// `st_size` of the files that this cleaner removed, in bytes.
    pub total_freed_bytes: u64,
    /// The same in MiB, rounded to two places.
    pub total_freed_mb: f64,
    /// Broken metadata (once a version), failed attempts to delete, directories that can't be read.
    pub total_errors: u64,
    /// The cache directory, resolved; as it was given while it is absent.
    #[serde(serialize_with = "lossy")]
    pub cache_directory: PathBuf,
    /// Complete, valid pairs whose `expires_at` lies ahead.
    pub heap_size: u64,
    /// The soonest `expires_at` of these.
    pub next_expiry: Option<DateTime<Utc>>,
    /// How the cleaner learns of changes.
    pub watch: WatchState,
    /// Results without metadata, expired metadata without a result, and `*.tmp` files that were removed
    /// because of [`Config::remove_orphans`](crate::Config::remove_orphans).
    #[serde(default)]
    pub total_orphans_removed: u64,
    /// `st_size` of these files, in bytes; not part of [`total_freed_bytes`](Self::total_freed_bytes).
    #[serde(default)]
    pub total_orphan_bytes_freed: u64,
    /// Directories that were removed because of
    /// [`Config::prune_empty_dirs`](crate::Config::prune_empty_dirs).
    #[serde(default)]
    pub total_directories_pruned: u64,
    /// How many pairs expire when; only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiring: Option<Vec<ExpiryBucket>>,
    /// What happened lately; only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<Recent>,
}

/// How many waiting pairs expire in a span of time that ends `within_seconds` from now and begins
/// where the bucket before ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryBucket {
    /// The end of the span, in seconds from now; `None` for all that is later.
    pub within_seconds: Option<u64>,
    /// The pairs in it.
    pub count: u64,
}

/// What happened lately.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recent {
    /// The last full sweep that was completed.
    pub last_sweep: Option<LastSweep>,
    /// The last errors, at most 20, the newest first.
    pub errors: Vec<RecentError>,
    /// What was freed in the last 24 hours, in spans of ten minutes, the oldest first; those without
    /// any are left out.
    pub freed: Vec<FreedSpan>,
}

/// When a sweep ended, and what it did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LastSweep {
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// What it did; the keys stand beside the others.
    #[serde(flatten)]
    pub report: SweepReport,
}

/// One of [`Stats::total_errors`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecentError {
    /// When it was noticed.
    pub at: DateTime<Utc>,
    /// What it is about: a result, its metadata, or a directory. What is not UTF-8 in it is replaced.
    pub path: String,
    /// What is wrong, in one line.
    pub reason: String,
}

/// What was deleted in a span of ten minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FreedSpan {
    /// When the span began.
    pub since: DateTime<Utc>,
    /// Pairs that were deleted in it.
    pub deleted: u64,
    /// What that freed, in bytes; with what orphans took.
    pub freed_bytes: u64,
}

/// What one full sweep did; as JSON it has these keys.
///
/// ```
/// let report = result_cleaner::SweepReport::default();
/// let json = serde_json::to_value(report).unwrap();
/// assert_eq!(json["deleted_count"], 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SweepReport {
    /// Pairs whose result was removed; in a dry run, those that would be.
    pub deleted_count: u64,
    /// `st_size` of the removed files, in bytes.
    pub freed_bytes: u64,
    /// Results seen.
    pub checked_count: u64,
    /// Broken pairs, failed deletions and directories that can't be read.
    pub errors: u64,
    /// How long the sweep took, in milliseconds.
    pub duration_ms: f64,
    /// What was removed besides, where [`Config`](crate::Config) asks for it and the sweep is made
    /// without a service; its keys stand beside the others.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub orphans: Option<OrphanReport>,
}

/// What was removed besides expired pairs, because the configuration asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OrphanReport {
    /// Results without metadata, expired metadata without a result, and what writers had left.
    pub orphans_removed: u64,
    /// `st_size` of these files, in bytes.
    pub orphan_bytes_freed: u64,
    /// Empty directories.
    pub directories_pruned: u64,
}

impl From<OrphanTally> for OrphanReport {
    fn from(removed: OrphanTally) -> Self {
        Self {
            orphans_removed: removed.orphans,
            orphan_bytes_freed: removed.orphan_bytes,
            directories_pruned: removed.pruned,
        }
    }
}

impl From<Tally> for SweepReport {
    fn from(done: Tally) -> Self {
        Self {
            deleted_count: done.deleted,
            freed_bytes: done.freed_bytes,
            checked_count: done.checked,
            errors: done.errors,
            duration_ms: done.duration.as_secs_f64() * 1000.0,
            orphans: None,
        }
    }
}

/// The stats of a running cleaner: one writes them, and any number read them.
#[derive(Debug, Clone)]
pub(crate) struct SharedStats(Arc<Mutex<Stats>>);

impl SharedStats {
    pub(crate) fn new(check_interval: Duration, cache_directory: PathBuf) -> Self {
        Self(Arc::new(Mutex::new(Stats {
            running: true,
            check_interval_hours: check_interval.as_secs_f64() / 3600.0,
            total_cleanups: 0,
            total_deleted: 0,
            total_freed_bytes: 0,
            total_freed_mb: 0.0,
            total_errors: 0,
            cache_directory,
            heap_size: 0,
            next_expiry: None,
            watch: WatchState::Absent,
            total_orphans_removed: 0,
            total_orphan_bytes_freed: 0,
            total_directories_pruned: 0,
            expiring: None,
            recent: None,
        })))
    }

    pub(crate) fn get(&self) -> Stats {
        self.lock().clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.lock());
    }

    /// Adds to the totals.
    pub(crate) fn count(&self, tally: Tally) {
        self.update(|stats| {
            stats.total_deleted += tally.deleted;
            stats.total_freed_bytes += tally.freed_bytes;
            stats.total_freed_mb = mib(stats.total_freed_bytes);
            stats.total_errors += tally.errors;
            stats.total_orphans_removed += tally.orphans.orphans;
            stats.total_orphan_bytes_freed += tally.orphans.orphan_bytes;
            stats.total_directories_pruned += tally.orphans.pruned;
        });
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `bytes` in MiB, rounded to two places.
fn mib(bytes: u64) -> f64 {
    (bytes as f64 / (1024.0 * 1024.0) * 100.0).round() / 100.0
}

/// A path that is not UTF-8 has its odd bytes replaced rather than no stats at all.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_documented_keys_and_forms() {
        let stats = Stats {
            running: true,
            check_interval_hours: 6.0,
            total_cleanups: 42,
            total_deleted: 156,
            total_freed_bytes: 52_428_800,
            total_freed_mb: mib(52_428_800),
            total_errors: 0,
            cache_directory: "/x".into(),
            heap_size: 1,
            next_expiry: DateTime::from_timestamp_millis(1_795_507_200_250),
            watch: WatchState::Active,
            total_orphans_removed: 0,
            total_orphan_bytes_freed: 0,
            total_directories_pruned: 0,
            expiring: None,
            recent: None,
        };
        let json = serde_json::to_string(&stats).unwrap();
        assert_eq!(
            json,
            r#"{"running":true,"check_interval_hours":6.0,"total_cleanups":42,"total_deleted":156,"total_freed_bytes":52428800,"total_freed_mb":50.0,"total_errors":0,"cache_directory":"/x","heap_size":1,"next_expiry":"2026-11-24T08:00:00.250Z","watch":"active","total_orphans_removed":0,"total_orphan_bytes_freed":0,"total_directories_pruned":0}"#
        );
        assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), stats);
    }

    #[test]
    fn mebibytes_are_rounded_to_two_places() {
        assert_eq!(mib(1024 * 1024 + 5243), 1.01);
        assert_eq!(mib(5242), 0.0);
    }
}
