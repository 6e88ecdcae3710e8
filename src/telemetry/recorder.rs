//! Records what the worker does, and notifies subscribers and the metrics service.

use std::path::{Path, PathBuf};

use chrono::TimeDelta;

use crate::config::Config;
use crate::display::path_field;
use crate::pair::outcome::Outcome;
use crate::pair::reason::Reason;
use crate::pair::tally::Tally;
use crate::sys::clock::Now;
use crate::telemetry::Reporter;
use crate::telemetry::events::{Event, EventSender, Subscriptions};
use crate::telemetry::history::History;
#[cfg(feature = "server")]
use crate::telemetry::prometheus::PrometheusMetrics;
use crate::telemetry::stats::{SharedStats, Stats, SweepReport};

/// Handles that read the recorded state.
#[derive(Debug)]
pub(crate) struct Readers {
    pub stats: SharedStats,
    pub history: History,
    #[cfg(feature = "server")]
    pub prometheus: PrometheusMetrics,
    pub subscriptions: Subscriptions,
}

pub(crate) struct Recorder {
    stats: SharedStats,
    reporter: Option<Reporter>,
    history: History,
    #[cfg(feature = "server")]
    prometheus: PrometheusMetrics,
    sender: EventSender,
}

impl Drop for Recorder {
    /// Marks the stats as not running, however the worker ends.
    fn drop(&mut self) {
        self.stats.update(|stats| stats.running = false);
    }
}

impl Recorder {
    pub(crate) fn new(config: &Config, cache_dir: PathBuf, reporter: Option<Reporter>) -> Self {
        Self {
            stats: SharedStats::new(config, cache_dir),
            reporter,
            history: History::default(),
            #[cfg(feature = "server")]
            prometheus: PrometheusMetrics::new(),
            sender: EventSender::new(),
        }
    }

    pub(crate) fn readers(&self) -> Readers {
        Readers {
            stats: self.stats.clone(),
            history: self.history.clone(),
            #[cfg(feature = "server")]
            prometheus: self.prometheus.clone(),
            subscriptions: self.sender.subscriptions(),
        }
    }

    /// Takes the reporter out, so that it can be finished.
    pub(crate) fn take_reporter(&mut self) -> Option<Reporter> {
        self.reporter.take()
    }

    /// Updates the current state in the stats.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut Stats)) {
        self.stats.update(change);
    }

    /// Adds `tally` to the totals.
    pub(crate) fn count(&self, tally: Tally, now: Now) {
        self.stats.count(tally);
        self.history.freed(&tally, now.wall);
    }

    /// Reports what was done between full sweeps.
    pub(crate) fn between(&self, tally: Tally) {
        if let Some(reporter) = &self.reporter {
            reporter.between(tally);
        }
    }

    /// Returns how many reports the metrics service has not accepted yet; `None` without one.
    pub(crate) fn undelivered_reports(&self) -> Option<u64> {
        self.reporter.as_ref().map(Reporter::undelivered)
    }

    /// Sends an event for the outcome of the pair with this result, if it is a deletion, an eviction or a delay.
    pub(crate) fn found(&self, outcome: &Outcome, result: impl FnOnce() -> PathBuf) {
        if let Outcome::Deleted { freed, late, .. } = outcome {
            let late = (*late).max(TimeDelta::zero());
            #[cfg(feature = "server")]
            self.prometheus.deleted(late);
            self.sender.send(|| Event::Deleted {
                result: result(),
                freed_bytes: *freed,
                late: late.to_std().unwrap_or_default(),
            });
        } else if let Outcome::Evicted { freed, expires_at, .. } = outcome {
            self.sender.send(|| Event::Evicted {
                result: result(),
                freed_bytes: *freed,
                expires_at: *expires_at,
            });
        } else if let Some(reason) = outcome.delay() {
            self.sender.send(|| Event::Skipped { path: result(), reason });
        }
    }

    /// Records an error that was counted, and sends an event for it.
    pub(crate) fn error(&self, path: &Path, reason: Reason, now: Now) {
        self.history.error(path_field(path), reason.clone(), now.wall);
        self.sender.send(|| Event::Skipped { path: path.to_owned(), reason });
    }

    /// Records that a full sweep was completed, and returns its report.
    pub(crate) fn swept(&self, tally: Tally, now: Now) -> SweepReport {
        self.publish(|stats| stats.total_cleanups += 1);
        let report = SweepReport::from(tally);
        self.history.sweep(report, now.wall);
        #[cfg(feature = "server")]
        self.prometheus.swept(report.duration);
        self.sender.send(|| Event::SweepDone(report));
        if let Some(reporter) = &self.reporter {
            reporter.sweep(tally);
        }
        report
    }
}
