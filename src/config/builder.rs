//! A method for each setting, to set it in one expression.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Config, MinFree, ResultStore};

impl Config {
    /// Sets [`cache_dir`](Self::cache_dir).
    #[must_use]
    pub fn with_cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = dir.into();
        self
    }

    /// Sets [`check_interval`](Self::check_interval).
    #[must_use]
    pub fn with_check_interval(mut self, interval: Duration) -> Self {
        self.check_interval = interval;
        self
    }

    /// Sets [`metrics_url`](Self::metrics_url).
    #[must_use]
    pub fn with_metrics_url(mut self, url: impl Into<String>) -> Self {
        self.metrics_url = Some(url.into());
        self
    }

    /// Sends no reports: sets [`metrics_url`](Self::metrics_url) to `None`.
    #[must_use]
    pub fn without_metrics(mut self) -> Self {
        self.metrics_url = None;
        self
    }

    /// Sets [`result_store`](Self::result_store), to a store or an `Arc` of one.
    #[must_use]
    pub fn with_result_store(mut self, store: impl ResultStore) -> Self {
        self.result_store = Some(Arc::new(store));
        self
    }

    /// Sets [`report_interval`](Self::report_interval).
    #[must_use]
    pub fn with_report_interval(mut self, interval: Duration) -> Self {
        self.report_interval = interval;
        self
    }

    /// Sets [`fallback_interval`](Self::fallback_interval).
    #[must_use]
    pub fn with_fallback_interval(mut self, interval: Duration) -> Self {
        self.fallback_interval = interval;
        self
    }

    /// Sets [`max_disk_time`](Self::max_disk_time).
    #[must_use]
    pub fn with_max_disk_time(mut self, time: Duration) -> Self {
        self.max_disk_time = Some(time);
        self
    }

    /// Sets [`remove_orphans`](Self::remove_orphans).
    #[must_use]
    pub fn with_remove_orphans(mut self, age: Duration) -> Self {
        self.remove_orphans = Some(age);
        self
    }

    /// Sets [`prune_empty_dirs`](Self::prune_empty_dirs).
    #[must_use]
    pub fn with_prune_empty_dirs(mut self, age: Duration) -> Self {
        self.prune_empty_dirs = Some(age);
        self
    }

    /// Sets [`max_size`](Self::max_size).
    #[must_use]
    pub fn with_max_size(mut self, bytes: u64) -> Self {
        self.max_size = Some(bytes);
        self
    }

    /// Sets [`min_free`](Self::min_free).
    #[must_use]
    pub fn with_min_free(mut self, min_free: MinFree) -> Self {
        self.min_free = Some(min_free);
        self
    }

    /// Sets [`evict_min_age`](Self::evict_min_age).
    #[must_use]
    pub fn with_evict_min_age(mut self, age: Duration) -> Self {
        self.evict_min_age = age;
        self
    }

    /// Sets [`dry_run`](Self::dry_run).
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets [`sandbox`](Self::sandbox).
    #[must_use]
    pub fn with_sandbox(mut self, sandbox: bool) -> Self {
        self.sandbox = sandbox;
        self
    }
}
