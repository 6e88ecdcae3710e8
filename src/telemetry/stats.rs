//! The figures that the cleaner reports about itself.
//!
//! Longer than other files: each field says what its key in the JSON means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use rustix::system::uname;
use serde::{Deserialize, Serialize, Serializer};

use crate::config::{Config, MinFree};
pub use crate::pair::change::WatchState;
use crate::pair::reason::Reason;
use crate::pair::tally::{Errors, OrphanTally, Tally};
use crate::sys::clock::now_utc;
use crate::telemetry::durations::{hours, milliseconds};

/// The state of a cleaner at one moment.
///
/// The JSON has the keys and types of the polling daemon's `get_stats()`, and more.
/// [`Cleaner::get_stats`](crate::Cleaner::get_stats) returns it, and `GET /stats` serves it.
///
/// ```
/// # fn show(stats: &result_cleaner::Stats) {
/// println!("{} deleted, {} MiB freed", stats.total_deleted, stats.total_freed_mb);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// The version of the cleaner; empty if it is older than this field.
    #[serde(default)]
    pub version: String,
    /// The name of the host on which the cleaner runs; empty if the cleaner is older than this field.
    #[serde(default)]
    pub host: String,
    /// When the cleaner was started, which is when its totals began; `None` if it is older than this field.
    #[serde(default)]
    pub started_at: Option<DateTime<Utc>>,
    /// Whether the cleaner runs: false once it was stopped, or has died.
    pub running: bool,
    /// [`Config::check_interval`](crate::Config::check_interval). In the JSON, `check_interval_hours` is in hours.
    #[serde(rename = "check_interval_hours", with = "hours")]
    pub check_interval: Duration,
    /// Full sweeps that were completed, the first scan included.
    pub total_cleanups: u64,
    /// Pairs whose result this cleaner deleted.
    pub total_deleted: u64,
    /// `st_size` of the files that this cleaner deleted, in bytes.
    pub total_freed_bytes: u64,
    /// The same in MiB, rounded to two places.
    pub total_freed_mb: f64,
    /// Number of errors: invalid metadata (once per version), failed attempts to delete, unreadable
    /// directories.
    pub total_errors: u64,
    /// The same by what each is about: `invalid_metadata`, `directory`, `inspection`, `deletion`, `recovery`, `orphan`.
    /// Each key is always there; a later version may have more.
    #[serde(default)]
    pub errors_by_kind: BTreeMap<String, u64>,
    /// The cache directory, resolved; as configured while it is absent.
    #[serde(serialize_with = "lossy")]
    pub cache_directory: PathBuf,
    /// Complete, valid pairs whose `expires_at` is in the future.
    pub heap_size: u64,
    /// The earliest `expires_at` of these pairs.
    pub next_expiry: Option<DateTime<Utc>>,
    /// How the cleaner learns of changes.
    pub watch: WatchState,
    /// Directories whose changes the kernel reports, the cache directory included.
    #[serde(default)]
    pub watched_directories: u64,
    /// Directories whose changes it does not report: because of a limit, of permissions, or of more events than can be
    /// read. Sweeps find what is in them.
    #[serde(default)]
    pub refused_directories: u64,
    /// How often changes were lost because the kernel's queue of events was full.
    #[serde(default)]
    pub total_queue_overflows: u64,
    /// Reports for the metrics service that it has not accepted yet; `None` without a metrics service.
    #[serde(default)]
    pub undelivered_reports: Option<u64>,
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
    /// What the complete, valid pairs take on disk, in bytes (allocated, as `du` counts); `None` without a disk budget.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// What unprivileged users may still use on the cache directory's file system, in bytes. Read each second with a
    /// disk budget, else once a minute; `None` while it is unknown.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// [`Config::max_size`](crate::Config::max_size).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
    /// [`Config::min_free`](crate::Config::min_free) in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_free_bytes: Option<u64>,
    /// Pairs that were deleted before their expiry because of the disk budget; not part of
    /// [`total_deleted`](Self::total_deleted).
    #[serde(default)]
    pub total_evicted: u64,
    /// What these took on disk, in bytes; not part of [`total_freed_bytes`](Self::total_freed_bytes).
    #[serde(default)]
    pub total_evicted_bytes: u64,
    /// Whether the cleaner only logs what it would delete.
    #[serde(default)]
    pub dry_run: bool,
    /// Pairs that a dry run would have deleted.
    #[serde(default)]
    pub would_delete: u64,
    /// Pairs that a dry run would have evicted because of the disk budget.
    #[serde(default)]
    pub would_evict: u64,
    /// How many pairs expire when; `None` unless it was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiring: Option<Vec<ExpiryBucket>>,
    /// The recent history; `None` unless it was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<Recent>,
}

/// How many pairs expire in a span of time. The span ends `within_seconds` from now and begins where the
/// previous bucket ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExpiryBucket {
    /// The end of the span, in seconds from now; `None` for everything later.
    pub within_seconds: Option<u64>,
    /// The pairs in it.
    pub count: u64,
    /// What these take on disk, in bytes (allocated, as `du` counts); `None` without a disk budget, because results are
    /// not inspected then.
    #[serde(default)]
    pub bytes: Option<u64>,
}

/// The recent history of a cleaner.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recent {
    /// The last full sweep that was completed.
    pub last_sweep: Option<LastSweep>,
    /// The last errors, at most 20, the newest first.
    pub errors: Vec<RecentError>,
    /// The pairs and bytes freed in the last 24 hours, in spans of ten minutes, the oldest first. Empty
    /// spans are left out. Without evictions.
    pub freed: Vec<FreedSpan>,
}

/// When a sweep ended, and its report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LastSweep {
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// The report; in the JSON, its keys are on the same level as the others.
    #[serde(flatten)]
    pub report: SweepReport,
}

/// One of the errors that [`Stats::total_errors`] counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecentError {
    /// When it was detected.
    pub at: DateTime<Utc>,
    /// The path concerned: a result, its metadata, or a directory. Bytes that are not UTF-8 are
    /// replaced.
    pub path: String,
    /// The reason; in the JSON, the line that it displays.
    pub reason: Reason,
}

/// The deletions in a span of ten minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FreedSpan {
    /// When the span began.
    pub since: DateTime<Utc>,
    /// Pairs that were deleted in it. Without evictions.
    pub deleted: u64,
    /// The bytes that were freed in it, including those of orphans. Without evictions.
    pub freed_bytes: u64,
}

/// The report of one full sweep; the JSON has these keys.
///
/// ```
/// let report = result_cleaner::SweepReport::default();
/// let json = serde_json::to_value(report).unwrap();
/// assert_eq!(json["deleted_count"], 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SweepReport {
    /// Pairs whose result was deleted; in a dry run, those that would be deleted.
    pub deleted_count: u64,
    /// `st_size` of the deleted files, in bytes.
    pub freed_bytes: u64,
    /// Results seen.
    pub checked_count: u64,
    /// Invalid pairs, failed deletions and directories that can't be read.
    pub errors: u64,
    /// How long the sweep took. In the JSON, `duration_ms` is in milliseconds, with whole microseconds.
    #[serde(rename = "duration_ms", with = "milliseconds")]
    pub duration: Duration,
    /// The orphans removed, if [`Config`] asks for it and the sweep runs without a
    /// service. In the JSON, the keys are on the same level as the others.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub orphans: Option<OrphanReport>,
    /// What was evicted, if [`Config`] has a disk budget and the sweep runs without a service. In the
    /// JSON, the keys are on the same level as the others.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub evictions: Option<EvictionReport>,
}

/// The pairs that were deleted before their expiry because of the disk budget; in a dry run, those that would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EvictionReport {
    /// The pairs; not part of [`SweepReport::deleted_count`].
    pub evicted_count: u64,
    /// What they took on disk, in bytes; not part of [`SweepReport::freed_bytes`].
    pub evicted_bytes: u64,
}

impl From<Tally> for EvictionReport {
    fn from(done: Tally) -> Self {
        Self { evicted_count: done.evicted, evicted_bytes: done.evicted_bytes }
    }
}

/// The orphans and empty directories that were removed because the configuration asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OrphanReport {
    /// Results without metadata, expired metadata without a result, and files that writers abandoned.
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
            errors: done.errors.total(),
            duration: done.duration,
            orphans: None,
            evictions: None,
        }
    }
}

/// The stats of a running cleaner: the worker writes them, and any number of readers read them.
#[derive(Debug, Clone)]
pub(crate) struct SharedStats(Arc<Mutex<Stats>>);

impl SharedStats {
    pub(crate) fn new(config: &Config, cache_directory: PathBuf) -> Self {
        let min_free_bytes = match config.min_free {
            Some(MinFree::Bytes(bytes)) => Some(bytes),
            // The size of the file system is not known yet.
            Some(MinFree::Percent(_)) | None => None,
        };
        Self(Arc::new(Mutex::new(Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: uname().nodename().to_string_lossy().into_owned(),
            started_at: Some(now_utc().trunc_subsecs(3)),
            running: true,
            check_interval: config.check_interval,
            total_cleanups: 0,
            total_deleted: 0,
            total_freed_bytes: 0,
            total_freed_mb: 0.0,
            total_errors: 0,
            errors_by_kind: errors_by_kind(&Errors::default()),
            cache_directory,
            heap_size: 0,
            next_expiry: None,
            watch: WatchState::Absent,
            watched_directories: 0,
            refused_directories: 0,
            total_queue_overflows: 0,
            undelivered_reports: config.metrics_url.as_ref().map(|_| 0),
            total_orphans_removed: 0,
            total_orphan_bytes_freed: 0,
            total_directories_pruned: 0,
            size_bytes: config.budget().map(|_| 0),
            free_bytes: None,
            max_size_bytes: config.max_size,
            min_free_bytes,
            total_evicted: 0,
            total_evicted_bytes: 0,
            dry_run: config.dry_run,
            would_delete: 0,
            would_evict: 0,
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

    /// Adds `tally` to the totals.
    pub(crate) fn count(&self, tally: Tally) {
        self.update(|stats| {
            stats.total_deleted += tally.deleted;
            stats.total_freed_bytes += tally.freed_bytes;
            stats.total_freed_mb = mib(stats.total_freed_bytes);
            stats.total_errors += tally.errors.total();
            for (kind, count) in tally.errors.by_kind().filter(|(_, count)| *count > 0) {
                *stats.errors_by_kind.entry(kind.name().to_owned()).or_default() += count;
            }
            stats.total_orphans_removed += tally.orphans.orphans;
            stats.total_orphan_bytes_freed += tally.orphans.orphan_bytes;
            stats.total_directories_pruned += tally.orphans.pruned;
            stats.total_evicted += tally.evicted;
            stats.total_evicted_bytes += tally.evicted_bytes;
            stats.would_delete += tally.would_delete;
            stats.would_evict += tally.would_evict;
        });
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn errors_by_kind(errors: &Errors) -> BTreeMap<String, u64> {
    errors.by_kind().map(|(kind, count)| (kind.name().to_owned(), count)).collect()
}

/// Returns `bytes` in MiB, rounded to two places.
fn mib(bytes: u64) -> f64 {
    (bytes as f64 / (1024.0 * 1024.0) * 100.0).round() / 100.0
}

/// Serializes a path; bytes that are not UTF-8 are replaced, so that the stats are never unavailable.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_in_the_json() {
        let report =
            SweepReport { duration: Duration::from_nanos(4_279_999), ..SweepReport::default() };
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#""duration_ms":4.279}"#), "{json}");
        for micros in [0, 1, 4279, 1_000_001, 86_400_000_001] {
            let duration = Duration::from_micros(micros);
            let report = SweepReport { duration, ..SweepReport::default() };
            let json = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<SweepReport>(&json).unwrap(), report, "{json}");
        }
        let negative = json.replace("4.279", "-1");
        assert!(serde_json::from_str::<SweepReport>(&negative).is_err());
    }

    #[test]
    fn the_json_of_an_error_has_its_reason_as_text() {
        let at = DateTime::UNIX_EPOCH;
        let reason = Reason::InvalidMetadata("the file is empty".to_owned());
        let error = RecentError { at, path: "/x".to_owned(), reason };
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(json["reason"], "invalid metadata, result kept: the file is empty");
        let read: RecentError = serde_json::from_value(json).unwrap();
        assert_eq!(read.reason, Reason::Other(error.reason.to_string()));
    }

    #[test]
    fn json_has_the_documented_keys_and_forms() {
        let stats = Stats {
            version: "0.1.0".to_owned(),
            host: "h".to_owned(),
            started_at: DateTime::from_timestamp_millis(1_795_507_100_000),
            running: true,
            check_interval: Duration::from_secs(6 * 3600),
            total_cleanups: 42,
            total_deleted: 156,
            total_freed_bytes: 52_428_800,
            total_freed_mb: mib(52_428_800),
            total_errors: 0,
            errors_by_kind: errors_by_kind(&Errors::default()),
            cache_directory: "/x".into(),
            heap_size: 1,
            next_expiry: DateTime::from_timestamp_millis(1_795_507_200_250),
            watch: WatchState::Active,
            watched_directories: 1,
            refused_directories: 0,
            total_queue_overflows: 0,
            undelivered_reports: None,
            total_orphans_removed: 0,
            total_orphan_bytes_freed: 0,
            total_directories_pruned: 0,
            size_bytes: None,
            free_bytes: None,
            max_size_bytes: None,
            min_free_bytes: None,
            total_evicted: 0,
            total_evicted_bytes: 0,
            dry_run: false,
            would_delete: 0,
            would_evict: 0,
            expiring: None,
            recent: None,
        };
        let json = serde_json::to_string(&stats).unwrap();
        assert_eq!(
            json,
            r#"{"version":"0.1.0","host":"h","started_at":"2026-11-24T07:58:20Z","running":true,"check_interval_hours":6.0,"total_cleanups":42,"total_deleted":156,"total_freed_bytes":52428800,"total_freed_mb":50.0,"total_errors":0,"errors_by_kind":{"deletion":0,"directory":0,"inspection":0,"invalid_metadata":0,"orphan":0,"recovery":0},"cache_directory":"/x","heap_size":1,"next_expiry":"2026-11-24T08:00:00.250Z","watch":"active","watched_directories":1,"refused_directories":0,"total_queue_overflows":0,"undelivered_reports":null,"total_orphans_removed":0,"total_orphan_bytes_freed":0,"total_directories_pruned":0,"size_bytes":null,"free_bytes":null,"total_evicted":0,"total_evicted_bytes":0,"dry_run":false,"would_delete":0,"would_evict":0}"#
        );
        assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), stats);
    }

    #[test]
    fn mebibytes_are_rounded_to_two_places() {
        assert_eq!(mib(1024 * 1024 + 5243), 1.01);
        assert_eq!(mib(5242), 0.0);
    }
}
