//! The options of a sweep without a service, and its progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pair::tally::Tally;

/// How to [sweep](crate::sweep_with), besides the configuration.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SweepOptions {
    /// Whether to count what would be deleted, and to delete nothing. [`Config::dry_run`](crate::Config::dry_run) does the same.
    pub dry_run: bool,
    /// Shows the progress meanwhile.
    pub progress: Option<Arc<Progress>>,
}

impl SweepOptions {
    /// Sets [`dry_run`](Self::dry_run).
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets [`progress`](Self::progress).
    #[must_use]
    pub fn with_progress(mut self, progress: Arc<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }
}

/// The progress of a [sweep](crate::sweep_with).
#[derive(Debug, Default)]
pub struct Progress {
    checked: AtomicU64,
    deleted: AtomicU64,
    freed_bytes: AtomicU64,
}

impl Progress {
    /// Returns how many pairs were inspected.
    pub fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// Returns how many of them were deleted, or would be deleted.
    pub fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::Relaxed)
    }

    /// Returns how many bytes this freed, or would free.
    pub fn freed_bytes(&self) -> u64 {
        self.freed_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, tally: &Tally, checked: usize) {
        self.checked.fetch_add(checked as u64, Ordering::Relaxed);
        self.deleted.store(tally.deleted, Ordering::Relaxed);
        self.freed_bytes.store(tally.freed_bytes, Ordering::Relaxed);
    }
}
