//! Reports to the metrics service: how much was deleted, freed and checked, and how many errors
//! occurred.
//!
//! The worker hands figures to a [`Reporter`] and continues at once. A separate task delivers them, one
//! report at a time. Undelivered figures are added up and sent again, however long the service is
//! unreachable. So the sum of the delivered figures catches up with the work done. If an answer is lost,
//! its report counts twice; that is better than not at all.
//!
//! A service may answer that it has no such endpoint. The figures are kept then, too, but only the next
//! full sweep makes the next attempt.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::redacted;
use crate::error::Error;
use crate::pair::tally::Tally;
use crate::sys::clock::now_utc;
use crate::sys::runtime;
use crate::telemetry::durations::in_milliseconds;
use crate::telemetry::http_client::{RequestFailure, Service};
use crate::telemetry::stats::SweepReport;

/// Where reports go, below the address of the service.
const ENDPOINT: &str = "/track/cleanup";
/// How long a report may take, from the connection to the status of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two attempts while the service is unreachable.
const MAX_RETRY: Duration = Duration::from_secs(10);
/// The shortest pause after a failed attempt, however short the interval is.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// How many sweeps may wait for reports of their own; further sweeps are added to the last one.
const MAX_SWEEPS: usize = 64;
/// Replaces intervals that would overflow the clock.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The connection to the metrics service. Dropping it without [`finish`](Self::finish) ends its task and
/// drops pending reports.
pub(crate) struct Reporter {
    shared: Arc<Shared>,
    /// A sent value is the deadline for the last report. Dropping the sender ends the task at once.
    end: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Starts to report to the service at `url`. Figures from [`between`](Self::between) are sent at
    /// most once per `report_interval`.
    ///
    /// # Errors
    /// [`Error::MetricsUrl`] for an invalid address. [`Error::NoRuntime`] outside of a tokio runtime.
    /// [`Error::NoDriver`] in a runtime without sockets or timers. A service that does not answer is not
    /// an error.
    pub(crate) fn start(url: &str, report_interval: Duration) -> Result<Self, Error> {
        Self::start_with(url, report_interval, TIMEOUT)
    }

    fn start_with(url: &str, interval: Duration, timeout: Duration) -> Result<Self, Error> {
        let runtime = runtime::current()?;
        runtime::require_sockets()?;
        let service = Service::new(url, timeout)
            .map_err(|reason| Error::MetricsUrl { url: redacted(url), reason })?;
        let shared = Arc::new(Shared {
            waiting: Mutex::new(PendingReports::new(interval)),
            changed: Notify::new(),
        });
        let (end, ended) = oneshot::channel();
        let task = runtime.spawn(deliver_all(shared.clone(), service, ended));
        Ok(Self { shared, end, task })
    }

    /// Reports a completed full sweep in a report of its own, as soon as no other report is being sent.
    pub(crate) fn sweep(&self, tally: Tally) {
        self.shared.lock().add_sweep(tally);
        self.shared.changed.notify_one();
    }

    /// Reports work that was done between sweeps, combined with further such work.
    pub(crate) fn between(&self, tally: Tally) {
        if self.shared.lock().add_between(tally) {
            self.shared.changed.notify_one();
        }
    }

    /// Returns how many reports the service has not accepted yet.
    pub(crate) fn undelivered(&self) -> u64 {
        self.shared.lock().reports()
    }

    /// Tries once more to deliver all pending figures, for no longer than `patience`. Figures that the
    /// service does not accept are logged.
    pub(crate) async fn finish(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        if self.end.send(deadline).is_ok() {
            // The task observes the deadline itself; the margin is for its last log line.
            let _ = timeout_at(deadline + patience / 20, self.task).await;
        }
    }
}

/// The state that a [`Reporter`] and its task share.
struct Shared {
    waiting: Mutex<PendingReports>,
    /// Signals that there may be something to do earlier than the task expects.
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, PendingReports> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next step of the task.
#[derive(Debug, PartialEq)]
enum Step {
    /// Send this, and record whether it was delivered.
    Send(Tally),
    /// Do nothing before this time, or before a notification.
    Wait(Option<Instant>),
}

/// The pending figures, and when to send them. Uses no clock and no network.
struct PendingReports {
    report_interval: Duration,
    /// Each of these is a report of its own.
    sweeps: VecDeque<Tally>,
    between: Tally,
    /// Before this time, work between sweeps is not reported again.
    between_at: Option<Instant>,
    /// The sum of the failed reports, and when to retry; set while the service accepts no reports.
    undelivered: Option<(Tally, Retry)>,
    /// How many reports the one contains that is being sent or has failed.
    attempted: u64,
}

/// When the figures of failed reports are sent again.
#[derive(Debug, Clone, Copy)]
enum Retry {
    At(Instant),
    WithNextSweep,
}

impl PendingReports {
    fn new(report_interval: Duration) -> Self {
        Self {
            report_interval: report_interval.min(A_YEAR),
            sweeps: VecDeque::new(),
            between: Tally::default(),
            between_at: None,
            undelivered: None,
            attempted: 0,
        }
    }

    /// Returns how many reports are pending, or being sent.
    fn reports(&self) -> u64 {
        self.attempted + self.sweeps.len() as u64 + u64::from(!self.between.is_idle())
    }

    /// Records that what was sent is delivered.
    fn delivered(&mut self) {
        self.attempted = 0;
    }

    fn add_sweep(&mut self, sweep: Tally) {
        let full = self.sweeps.len() >= MAX_SWEEPS;
        match self.sweeps.back_mut() {
            Some(last) if full => *last += sweep,
            _ => self.sweeps.push_back(sweep),
        }
    }

    /// Adds `tally`. Returns whether it is the first that is worth a report.
    fn add_between(&mut self, tally: Tally) -> bool {
        let was_idle = self.between.is_idle();
        self.between += tally;
        was_idle && !self.between.is_idle()
    }

    fn step(&mut self, now: Instant) -> Step {
        if let Some((_, retry)) = self.undelivered {
            match retry {
                Retry::At(at) if now < at => return Step::Wait(Some(at)),
                Retry::WithNextSweep if self.sweeps.is_empty() => return Step::Wait(None),
                _ => {}
            }
            self.between_at = Some(now + self.report_interval);
            return Step::Send(self.take_all().unwrap_or_default());
        }
        if let Some(sweep) = self.sweeps.pop_front() {
            self.attempted = 1;
            return Step::Send(sweep);
        }
        if self.between.is_idle() {
            return Step::Wait(None);
        }
        match self.between_at {
            Some(at) if now < at => Step::Wait(Some(at)),
            _ => {
                self.between_at = Some(now + self.report_interval);
                self.attempted = 1;
                Step::Send(std::mem::take(&mut self.between))
            }
        }
    }

    /// Whether nothing is pending.
    fn is_empty(&self) -> bool {
        self.undelivered.is_none() && self.sweeps.is_empty() && self.between.is_idle()
    }

    /// Combines everything that is pending, because the service is unreachable or the reporter ends.
    fn take_all(&mut self) -> Option<Tally> {
        if self.is_empty() {
            return None;
        }
        self.attempted = self.reports();
        let mut all = std::mem::take(&mut self.between);
        if let Some((undelivered, _)) = self.undelivered.take() {
            all += undelivered;
        }
        for sweep in self.sweeps.drain(..) {
            all += sweep;
        }
        Some(all)
    }

    /// Takes back a report that was sent at `sent` and failed by `now`.
    fn failed(&mut self, tally: Tally, sent: Instant, now: Instant, failure: &RequestFailure) {
        let retry = if failure.is_no_endpoint() {
            Retry::WithNextSweep
        } else {
            let pause = self.report_interval.min(MAX_RETRY);
            Retry::At((sent + pause).max(now + MIN_RETRY))
        };
        self.undelivered = Some((tally, retry));
    }
}

/// The time during which the metrics service accepts no reports.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    unreachable_logged: bool,
    no_endpoint_logged: bool,
}

impl Outage {
    /// Logs the outcome of the attempt that began at `sent`. The first failure of its kind is a warning
    /// and the recovery is an info line; failures in between are logged at debug level.
    fn note(&mut self, service: &Service, sent: Instant, outcome: Result<(), &RequestFailure>) {
        let address = &service.address;
        let Err(failure) = outcome else {
            if let Some(since) = std::mem::take(self).since {
                tracing::info!(
                    "metrics service {address} reachable again after {} s, all buffered reports are delivered",
                    since.elapsed().as_secs()
                );
            }
            return;
        };
        self.since.get_or_insert(sent);
        let reason = &failure.reason;
        let no_endpoint = failure.is_no_endpoint();
        let logged =
            if no_endpoint { &mut self.no_endpoint_logged } else { &mut self.unreachable_logged };
        match (std::mem::replace(logged, true), no_endpoint) {
            (false, true) => tracing::warn!(
                "metrics service {address} has no endpoint {ENDPOINT}: {reason}; buffering reports, \
                 and retrying after each full sweep only"
            ),
            (false, false) => tracing::warn!(
                "metrics service {address} unreachable: {reason}; buffering reports and retrying"
            ),
            (true, _) => {
                tracing::debug!("metrics service {address} still accepts no reports: {reason}");
            }
        }
    }
}

/// The task of a [`Reporter`].
async fn deliver_all(shared: Arc<Shared>, service: Service, mut ended: oneshot::Receiver<Instant>) {
    let mut outage = Outage::default();
    loop {
        let step = shared.lock().step(Instant::now());
        let tally = match step {
            Step::Send(tally) => tally,
            Step::Wait(until) => {
                let time = async {
                    match until {
                        Some(until) => sleep_until(until).await,
                        None => future::pending().await,
                    }
                };
                tokio::select! {
                    end = &mut ended => match end {
                        Ok(deadline) => return last_attempt(&shared, &service, deadline, None).await,
                        Err(_) => return,
                    },
                    () = shared.changed.notified() => {}
                    () = time => {}
                }
                continue;
            }
        };

        let sent = Instant::now();
        let mut attempt = pin!(deliver(&service, tally));
        tokio::select! {
            outcome = &mut attempt => {
                match &outcome {
                    Ok(()) => shared.lock().delivered(),
                    Err(failure) => shared.lock().failed(tally, sent, Instant::now(), failure),
                }
                outage.note(&service, sent, outcome.as_ref().copied());
            }
            end = &mut ended => {
                let Ok(deadline) = end else { return };
                // If the attempt hangs, the pending figures still need time. If nothing is pending, the
                // attempt may use all of it.
                let half = (deadline - Instant::now()) / 2;
                let until = if shared.lock().is_empty() { deadline } else { deadline - half };
                let failure = within(until, attempt).await.err();
                if let Some(failure) = &failure {
                    shared.lock().failed(tally, sent, Instant::now(), failure);
                }
                return last_attempt(&shared, &service, deadline, failure).await;
            }
        }
    }
}

const NO_TIME: &str = "no answer in the time there was";

/// Returns the outcome of `attempt`, which fails if it takes until `deadline`.
async fn within(
    deadline: Instant,
    attempt: impl Future<Output = Result<(), RequestFailure>>,
) -> Result<(), RequestFailure> {
    timeout_at(deadline, attempt).await.unwrap_or_else(|_| Err(NO_TIME.to_owned().into()))
}

/// Sends all pending figures in one report, once, and logs figures that are not delivered. `failure` is
/// why the previous attempt failed.
async fn last_attempt(
    shared: &Shared,
    service: &Service,
    deadline: Instant,
    failure: Option<RequestFailure>,
) {
    let Some(tally) = shared.lock().take_all() else {
        return;
    };
    let outcome = match failure {
        Some(failure) if Instant::now() >= deadline => Err(failure),
        _ => within(deadline, deliver(service, tally)).await,
    };
    if let Err(RequestFailure { reason, .. }) = outcome {
        let SweepReport { deleted_count, freed_bytes, checked_count, errors, duration, .. } =
            SweepReport::from(tally);
        let duration_ms = in_milliseconds(duration);
        tracing::warn!(
            "metrics service {} did not accept the last report: {reason}; undelivered figures: \
             deleted_count={deleted_count} freed_bytes={freed_bytes} checked_count={checked_count} \
             errors={errors} duration_ms={duration_ms:.1}",
            service.address
        );
    }
}

/// Sends one report. The error is the reason why the report has to count as undelivered.
async fn deliver(service: &Service, tally: Tally) -> Result<(), RequestFailure> {
    let timestamp = now_utc().with_timezone(&chrono::Local).format("%Y-%m-%dT%H:%M:%S").to_string();
    let body = Body { figures: SweepReport::from(tally), timestamp };
    let endpoint = service.endpoint(ENDPOINT);
    service.deliver(|client| client.post(endpoint).json(&body)).await
}

/// The body of one report.
#[derive(Serialize)]
struct Body {
    #[serde(flatten)]
    figures: SweepReport,
    /// When the report is sent, in local time without an offset.
    timestamp: String,
}
