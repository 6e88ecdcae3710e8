//! Renders the metrics for Prometheus in its [text
//! format](https://prometheus.io/docs/instrumenting/exposition_formats/). The only module that names
//! prometheus.
//!
//! Counters and gauges are read from the stats on request. Only distributions are recorded here.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use crate::telemetry::process::{ProcessUsage, started_at};
use crate::telemetry::stats::{Recent, Stats, WatchState};

/// Bucket bounds in seconds: from the lateness of a timer to that after a downtime of the service.
const LATENESS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    10.0, 60.0, 3600.0, 21_600.0,
];
const DURATIONS: [f64; 12] =
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0];

/// The distributions that are recorded for one cleaner.
#[derive(Debug, Clone)]
pub(crate) struct PrometheusMetrics {
    lateness: Option<Histogram>,
    sweep_duration: Option<Histogram>,
    /// When this process was started. Read once, so that it does not change with the clock.
    process_started_at: Option<DateTime<Utc>>,
}

impl PrometheusMetrics {
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
            process_started_at: started_at(),
        }
    }

    /// Records how long after its expiry a result was deleted.
    pub(crate) fn deleted(&self, late: TimeDelta) {
        if let Some(lateness) = &self.lateness {
            lateness.observe(late.as_seconds_f64());
        }
    }

    /// Records the duration of a full sweep.
    pub(crate) fn swept(&self, duration: Duration) {
        if let Some(durations) = &self.sweep_duration {
            durations.observe(duration.as_secs_f64());
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
        let process = ProcessUsage::read();
        let gauges = gauges(stats, recent).into_iter();
        for (name, help, value) in gauges.chain(self.process_gauges(process)) {
            let gauge = Gauge::new(name, help)?;
            gauge.set(value);
            register(Box::new(gauge))?;
        }
        if let Some(process) = process {
            let help = "Total user and system CPU time spent, in seconds.";
            let cpu = Counter::new("process_cpu_seconds_total", help)?;
            cpu.inc_by(process.cpu_seconds);
            register(Box::new(cpu))?;
        }
        let build = Opts::new("result_cleaner_build_info", "The version of the cleaner.");
        let build = IntGauge::with_opts(build.const_label("version", env!("CARGO_PKG_VERSION")))?;
        build.set(1);
        register(Box::new(build))?;
        register(Box::new(errors(stats)?))?;
        register(Box::new(watch_states(stats)?))?;
        for histogram in [&self.lateness, &self.sweep_duration].into_iter().flatten() {
            register(Box::new(histogram.clone()))?;
        }
        TextEncoder::new().encode_to_string(&registry.gather())
    }

    fn process_gauges(&self, usage: Option<ProcessUsage>) -> Vec<Sample<f64>> {
        let started_at = self.process_started_at.map(|at| {
            let help = "Start time of the process, in seconds since the Unix epoch.";
            ("process_start_time_seconds", help, seconds(at))
        });
        let usage = usage.into_iter().flat_map(|usage| {
            let bytes = |bytes: u64| bytes as f64;
            [
                Some((
                    "process_resident_memory_bytes",
                    "Resident memory size, in bytes.",
                    bytes(usage.resident_bytes),
                )),
                Some((
                    "process_virtual_memory_bytes",
                    "Virtual memory size, in bytes.",
                    bytes(usage.virtual_bytes),
                )),
                Some(("process_threads", "Number of threads.", usage.threads as f64)),
                Some((
                    "process_open_fds",
                    "Number of open file descriptors.",
                    usage.open_files as f64,
                )),
                usage.max_open_files.map(|max| {
                    ("process_max_fds", "Maximum number of open file descriptors.", max as f64)
                }),
            ]
        });
        started_at.into_iter().chain(usage.flatten()).collect()
    }
}

/// Returns the errors by kind. Each kind is there from the start, so that its first error is an increase.
fn errors(stats: &Stats) -> prometheus::Result<IntCounterVec> {
    let errors = Opts::new(
        "result_cleaner_errors_total",
        "Invalid metadata (once per version), failed deletions, unreadable directories and other errors.",
    );
    let errors = IntCounterVec::new(errors, &["kind"])?;
    for (kind, count) in &stats.errors_by_kind {
        errors.with_label_values(&[kind]).inc_by(*count);
    }
    Ok(errors)
}

fn watch_states(stats: &Stats) -> prometheus::Result<GaugeVec> {
    let watch = Opts::new(
        "result_cleaner_watch_state",
        "How the cleaner learns of changes: 1 for the state that it is in.",
    );
    let watch = GaugeVec::new(watch, &["state"])?;
    for state in [WatchState::Active, WatchState::Degraded, WatchState::Polling, WatchState::Absent]
    {
        let value = f64::from(u8::from(stats.watch == state));
        watch.with_label_values(&[&state.to_string()]).set(value);
    }
    Ok(watch)
}

/// The name of a metric, its help, and its value.
type Sample<T> = (&'static str, &'static str, T);

fn seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_micros() as f64 / 1e6
}

fn counters(stats: &Stats) -> [Sample<u64>; 11] {
    [
        (
            "result_cleaner_sweeps_total",
            "Full sweeps that were completed, the first scan included.",
            stats.total_cleanups,
        ),
        (
            "result_cleaner_results_deleted_total",
            "Expired results that were deleted.",
            stats.total_deleted,
        ),
        (
            "result_cleaner_freed_bytes_total",
            "Size of the files of deleted results, in bytes.",
            stats.total_freed_bytes,
        ),
        (
            "result_cleaner_queue_overflows_total",
            "How often changes were lost because the kernel's queue of events was full.",
            stats.total_queue_overflows,
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

fn gauges(stats: &Stats, recent: &Recent) -> Vec<Sample<f64>> {
    let mut gauges = vec![
        (
            "result_cleaner_running",
            "1 until the cleaner stops or fails.",
            f64::from(u8::from(stats.running)),
        ),
        (
            "result_cleaner_dry_run",
            "Whether the cleaner only logs what it would delete.",
            f64::from(u8::from(stats.dry_run)),
        ),
        (
            "result_cleaner_pending_results",
            "Complete, valid results that expire later.",
            stats.heap_size as f64,
        ),
        (
            "result_cleaner_watched_directories",
            "Directories whose changes the kernel reports.",
            stats.watched_directories as f64,
        ),
        (
            "result_cleaner_refused_directories",
            "Directories whose changes the kernel does not report: limits, permissions, floods.",
            stats.refused_directories as f64,
        ),
        (
            "result_cleaner_check_interval_seconds",
            "Time from one full sweep to the next, in seconds.",
            stats.check_interval.as_secs_f64(),
        ),
    ];
    gauges.extend(
        optional_gauges(stats)
            .into_iter()
            .filter_map(|(name, help, value)| Some((name, help, value? as f64))),
    );
    if let Some(started_at) = stats.started_at {
        gauges.push((
            "result_cleaner_start_time_seconds",
            "When the cleaner was started, in seconds since the Unix epoch.",
            seconds(started_at),
        ));
    }
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

/// Those that are left out where nothing is known.
fn optional_gauges(stats: &Stats) -> [Sample<Option<u64>>; 5] {
    [
        (
            "result_cleaner_pending_bytes",
            "What the complete, valid results and their metadata take on disk, in bytes.",
            stats.size_bytes,
        ),
        (
            "result_cleaner_filesystem_free_bytes",
            "What unprivileged users may still use on the file system, in bytes.",
            stats.free_bytes,
        ),
        (
            "result_cleaner_undelivered_reports",
            "Reports that the metrics service has not accepted yet.",
            stats.undelivered_reports,
        ),
        (
            "result_cleaner_max_size_bytes",
            "What the results and their metadata may take on disk, in bytes.",
            stats.max_size_bytes,
        ),
        (
            "result_cleaner_min_free_bytes",
            "What has to stay free on the file system, in bytes.",
            stats.min_free_bytes,
        ),
    ]
}
