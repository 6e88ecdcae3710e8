//! Renders the metrics for Prometheus in its [text
//! format](https://prometheus.io/docs/instrumenting/exposition_formats/). The only module that names
//! prometheus.
//!
//! Counters and gauges are read from the stats on request. Only distributions are recorded here.

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, TextEncoder,
};

use crate::telemetry::stats::{Recent, Stats, WatchState};

/// Bucket bounds in seconds: from the lateness of a timer to that after a downtime of the service.
const LATENESS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0, 60.0, 3600.0, 21_600.0];
const DURATIONS: [f64; 12] =
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0];

/// The distributions that are recorded for one cleaner.
#[derive(Debug, Clone)]
pub(crate) struct Telemetry {
    lateness: Option<Histogram>,
    sweep_duration: Option<Histogram>,
}

impl Telemetry {
    pub(crate) fn new() -> Self {
        let histogram = |name, help, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())).ok()
        };
        Self {
            lateness: histogram(
                "result_cleaner_lateness_seconds",
                "How long after their expires_at results were deleted, in seconds.",
                &LATENESS,
            ),
            sweep_duration: histogram(
                "result_cleaner_sweep_duration_seconds",
                "How long full sweeps took, in seconds.",
                &DURATIONS,
            ),
        }
    }

    /// Records how long after its expiry a result was deleted.
    pub(crate) fn deleted(&self, late: TimeDelta) {
        if let Some(lateness) = &self.lateness {
            lateness.observe(late.as_seconds_f64());
        }
    }

    /// Records the duration of a full sweep, in milliseconds.
    pub(crate) fn swept(&self, duration_ms: f64) {
        if let Some(durations) = &self.sweep_duration {
            durations.observe(duration_ms / 1000.0);
        }
    }

    /// Renders all metrics in the text format.
    ///
    /// # Errors
    /// The encoder's errors, as text.
    pub(crate) fn render(&self, stats: &Stats, recent: &Recent) -> Result<String, String> {
        self.encode(stats, recent).map_err(|error| error.to_string())
    }

    fn encode(&self, stats: &Stats, recent: &Recent) -> prometheus::Result<String> {
        let registry = Registry::new();
        let register = |metric: Box<dyn Collector>| registry.register(metric);
        for (name, help, value) in counters(stats) {
            let counter = IntCounter::new(name, help)?;
            counter.inc_by(value);
            register(Box::new(counter))?;
        }
        for (name, help, value) in gauges(stats, recent) {
            let gauge = Gauge::new(name, help)?;
            gauge.set(value);
            register(Box::new(gauge))?;
        }
        let build = Opts::new("result_cleaner_build_info", "Of which build this is.");
        let build = IntGauge::with_opts(build.const_label("version", env!("CARGO_PKG_VERSION")))?;
        build.set(1);
        register(Box::new(build))?;
        let watch = Opts::new(
            "result_cleaner_watch_state",
            "How the cleaner learns of changes: 1 for the state that it is in.",
        );
        let watch = GaugeVec::new(watch, &["state"])?;
        for state in
            [WatchState::Active, WatchState::Degraded, WatchState::Polling, WatchState::Absent]
        {
            let value = f64::from(u8::from(stats.watch == state));
            watch.with_label_values(&[&state.to_string()]).set(value);
        }
        register(Box::new(watch))?;
        for histogram in [&self.lateness, &self.sweep_duration].into_iter().flatten() {
            register(Box::new(histogram.clone()))?;
        }
        TextEncoder::new().encode_to_string(&registry.gather())
    }
}

fn counters(stats: &Stats) -> [(&'static str, &'static str, u64); 11] {
    [
        (
            "result_cleaner_sweeps_total",
            "Full sweeps that were completed, the first scan included.",
            stats.total_cleanups,
        ),
        ("result_cleaner_deleted_total", "Expired results that were deleted.", stats.total_deleted),
        (
            "result_cleaner_freed_bytes_total",
            "Size of the files of deleted results, in bytes.",
            stats.total_freed_bytes,
        ),
        (
            "result_cleaner_errors_total",
            "Broken metadata, failed attempts to delete, and directories that can't be read.",
            stats.total_errors,
        ),
        (
            "result_cleaner_orphans_removed_total",
            "Files without their other half that were removed.",
            stats.total_orphans_removed,
        ),
        (
            "result_cleaner_orphan_freed_bytes_total",
            "Size of these files, in bytes.",
            stats.total_orphan_bytes_freed,
        ),
        (
            "result_cleaner_directories_pruned_total",
            "Empty directories that were removed.",
            stats.total_directories_pruned,
        ),
        (
            "result_cleaner_results_evicted_total",
            "Results that were deleted before their expiry because of the disk budget.",
            stats.total_evicted,
        ),
        (
            "result_cleaner_evicted_bytes_total",
            "What the files of evicted results took on disk, in bytes.",
            stats.total_evicted_bytes,
        ),
        (
            "result_cleaner_results_would_delete_total",
            "Expired results that a dry run would have deleted.",
            stats.would_delete,
        ),
        (
            "result_cleaner_results_would_evict_total",
            "Results that a dry run would have evicted.",
            stats.would_evict,
        ),
    ]
}

fn gauges(stats: &Stats, recent: &Recent) -> Vec<(&'static str, &'static str, f64)> {
    let seconds = |at: DateTime<Utc>| at.timestamp_micros() as f64 / 1e6;
    let mut gauges = vec![
        (
            "result_cleaner_running",
            "Whether the cleaner works.",
            f64::from(u8::from(stats.running)),
        ),
        (
            "result_cleaner_dry_run",
            "Whether the cleaner only logs what it would delete.",
            f64::from(u8::from(stats.dry_run)),
        ),
        ("result_cleaner_waiting", "Results that expire later.", stats.heap_size as f64),
        (
            "result_cleaner_check_interval_seconds",
            "Time from one full sweep to the next, in seconds.",
            stats.check_interval_hours * 3600.0,
        ),
    ];
    let optional = [
        (
            "result_cleaner_size_bytes",
            "What the complete, valid pairs take on disk, in bytes.",
            stats.size_bytes,
        ),
        (
            "result_cleaner_filesystem_free_bytes",
            "What unprivileged users may still use on the file system, in bytes.",
            stats.free_bytes,
        ),
        (
            "result_cleaner_max_size_bytes",
            "What the pairs may take on disk, in bytes.",
            stats.max_size_bytes,
        ),
        (
            "result_cleaner_min_free_bytes",
            "What has to stay free on the file system, in bytes.",
            stats.min_free_bytes,
        ),
    ];
    let present = optional.into_iter();
    gauges.extend(present.filter_map(|(name, help, value)| Some((name, help, value? as f64))));
    if let Some(next) = stats.next_expiry {
        gauges.push((
            "result_cleaner_next_expiry_timestamp_seconds",
            "When the next result expires, in seconds since the Unix epoch.",
            seconds(next),
        ));
    }
    if let Some(last) = &recent.last_sweep {
        gauges.push((
            "result_cleaner_last_sweep_timestamp_seconds",
            "When the last full sweep ended, in seconds since the Unix epoch.",
            seconds(last.ended_at),
        ));
    }
    gauges
}
