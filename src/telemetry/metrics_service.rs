//! Reports to the metrics service: what was deleted, freed, checked and what went wrong.
//!
//! Whoever cleans hands figures to a [`Reporter`] and goes on at once. A task of its own delivers
//! them, one report at a time. What was not delivered is added up in one place, however long the
//! service is away, and sent again; so the sum of the delivered figures catches up with what was
//! done. An answer that is lost on its way makes a report count twice: better that than not at all.

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
use crate::sys::runtime;
use crate::telemetry::http_client::Service;
use crate::telemetry::stats::SweepReport;

/// How long a report may take, from the connection to the status of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two attempts while the service is away.
const MAX_RETRY: Duration = Duration::from_secs(10);
/// The least pause after a failed attempt, however short the interval is.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);
/// So many sweeps wait for reports of their own; more share the last of these.
const MAX_SWEEPS: usize = 64;
/// Stands in for intervals that would overflow the clock.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The way to the metrics service. Dropping it without [`finish`](Self::finish) ends its task and
/// forgets what waits.
pub(crate) struct Reporter {
    shared: Arc<Shared>,
    /// Sent: the time by which all has to be over. Dropped: end now.
    end: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Starts to report to the service at `url`. What [`between`](Self::between) is given is sent
    /// at most once in `report_interval`.
    ///
    /// # Errors
    /// [`Error::MetricsUrl`] for an address that no report could be sent to, [`Error::NoRuntime`]
    /// outside of a tokio runtime, [`Error::NoDriver`] in one that has no sockets or no timers.
    /// A service that does not answer is no error.
    pub(crate) fn start(url: &str, report_interval: Duration) -> Result<Self, Error> {
        Self::start_with(url, report_interval, TIMEOUT)
    }

    fn start_with(url: &str, interval: Duration, timeout: Duration) -> Result<Self, Error> {
        let runtime = runtime::current()?;
        runtime::require_timer()?;
        runtime::require_sockets()?;
        let service = Service::new(url, timeout)
            .map_err(|reason| Error::MetricsUrl { url: redacted(url), reason })?;
        let shared =
            Arc::new(Shared { waiting: Mutex::new(Waiting::new(interval)), news: Notify::new() });
        let (end, ended) = oneshot::channel();
        let task = runtime.spawn(deliver_all(shared.clone(), service, ended));
        Ok(Self { shared, end, task })
    }

    /// Reports a completed full sweep: by itself, as soon as no other report is on its way.
    pub(crate) fn sweep(&self, tally: Tally) {
        self.shared.lock().add_sweep(tally);
        self.shared.news.notify_one();
    }

    /// Reports work that was done between sweeps, together with more of it.
    pub(crate) fn between(&self, tally: Tally) {
        if self.shared.lock().add_between(tally) {
            self.shared.news.notify_one();
        }
    }

    /// Tries once more to deliver all that waits, for as long as `patience`. What the service does
    /// not take is logged.
    pub(crate) async fn finish(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        if self.end.send(deadline).is_ok() {
            // The task keeps the time itself; the margin is for its last line in the log.
            let _ = timeout_at(deadline + patience / 20, self.task).await;
        }
    }
}

/// What a [`Reporter`] and its task share.
struct Shared {
    waiting: Mutex<Waiting>,
    /// There may be something to do earlier than the task thinks.
    news: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq)]
enum Step {
    /// Send this, and tell whether it was delivered.
    Send(Tally),
    /// Nothing before this time, or before there is news.
    Wait(Option<Instant>),
}

/// The figures that wait, and when their time comes. Knows no clock and no network.
struct Waiting {
    report_interval: Duration,
    /// Each is a report of its own.
    sweeps: VecDeque<Tally>,
    between: Tally,
    /// Before this time, what the timer did is not reported again.
    between_at: Option<Instant>,
    /// The sum of what failed, and when to try again: set while the service is away.
    undelivered: Option<(Tally, Instant)>,
}

impl Waiting {
    fn new(report_interval: Duration) -> Self {
        Self {
            report_interval: report_interval.min(A_YEAR),
            sweeps: VecDeque::new(),
            between: Tally::default(),
            between_at: None,
            undelivered: None,
        }
    }

    fn add_sweep(&mut self, sweep: Tally) {
        let full = self.sweeps.len() >= MAX_SWEEPS;
        match self.sweeps.back_mut() {
            Some(last) if full => *last += sweep,
            _ => self.sweeps.push_back(sweep),
        }
    }

    /// Whether this is the first that is worth a report.
    fn add_between(&mut self, tally: Tally) -> bool {
        let was_idle = self.between.is_idle();
        self.between += tally;
        was_idle && !self.between.is_idle()
    }

    fn step(&mut self, now: Instant) -> Step {
        if let Some((_, retry_at)) = self.undelivered {
            if now < retry_at {
                return Step::Wait(Some(retry_at));
            }
            self.between_at = Some(now + self.report_interval);
            return Step::Send(self.take_all().unwrap_or_default());
        }
        if let Some(sweep) = self.sweeps.pop_front() {
            return Step::Send(sweep);
        }
        if self.between.is_idle() {
            return Step::Wait(None);
        }
        match self.between_at {
            Some(at) if now < at => Step::Wait(Some(at)),
            _ => {
                self.between_at = Some(now + self.report_interval);
                Step::Send(std::mem::take(&mut self.between))
            }
        }
    }

    /// Whether a report would have to be sent if there were no time to wait.
    fn is_empty(&self) -> bool {
        self.undelivered.is_none() && self.sweeps.is_empty() && self.between.is_idle()
    }

    /// Everything in one, the service being away or the end near.
    fn take_all(&mut self) -> Option<Tally> {
        if self.is_empty() {
            return None;
        }
        let mut all = std::mem::take(&mut self.between);
        if let Some((undelivered, _)) = self.undelivered.take() {
            all += undelivered;
        }
        for sweep in self.sweeps.drain(..) {
            all += sweep;
        }
        Some(all)
    }

    /// Takes back what was sent at `sent` and known at `now` not to have been delivered.
    fn failed(&mut self, tally: Tally, sent: Instant, now: Instant) {
        let pause = self.report_interval.min(MAX_RETRY);
        let retry_at = (sent + pause).max(now + SHORTEST_RETRY);
        self.undelivered = Some((tally, retry_at));
    }
}

/// Since when the metrics service takes no reports, if it does not.
#[derive(Debug, Default)]
struct Outage(Option<Instant>);

impl Outage {
    /// Logs the outcome of the attempt that began at `sent`: the first failure and the recovery of an outage for
    /// everybody.
    fn note(&mut self, service: &Service, sent: Instant, outcome: Result<(), String>) {
        let address = &service.address;
        match (outcome, self.0) {
            (Ok(()), None) => {}
            (Ok(()), Some(since)) => {
                self.0 = None;
                tracing::info!(
                    "metrics service {address} reachable again after {} s, all buffered reports are delivered",
                    since.elapsed().as_secs()
                );
            }
            (Err(reason), None) => {
                self.0 = Some(sent);
                tracing::warn!(
                    "metrics service {address} unreachable: {reason}; buffering reports and retrying"
                );
            }
            (Err(reason), Some(_)) => {
                tracing::debug!("metrics service {address} still unreachable: {reason}");
            }
        }
    }
}

/// The task behind a [`Reporter`].
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
                    () = shared.news.notified() => {}
                    () = time => {}
                }
                continue;
            }
        };

        let sent = Instant::now();
        let mut attempt = pin!(deliver(&service, tally));
        tokio::select! {
            outcome = &mut attempt => {
                if outcome.is_err() {
                    shared.lock().failed(tally, sent, Instant::now());
                }
                outage.note(&service, sent, outcome);
            }
            end = &mut ended => {
                let Ok(deadline) = end else { return };
                // Whatever hangs must leave the rest some time; if there is no rest, it has it all.
                let half = (deadline - Instant::now()) / 2;
                let until = if shared.lock().is_empty() { deadline } else { deadline - half };
                let reason = match timeout_at(until, attempt).await {
                    Ok(Ok(())) => None,
                    Ok(Err(reason)) => Some(reason),
                    Err(_) => Some(NO_TIME.to_owned()),
                };
                if reason.is_some() {
                    shared.lock().failed(tally, sent, Instant::now());
                }
                return last_attempt(&shared, &service, deadline, reason).await;
            }
        }
    }
}

const NO_TIME: &str = "no answer in the time there was";

/// Sends all that waits in one report, once, and logs what does not get through. `reason` is that
/// of the attempt before.
async fn last_attempt(
    shared: &Shared,
    service: &Service,
    deadline: Instant,
    reason: Option<String>,
) {
    let Some(tally) = shared.lock().take_all() else {
        return;
    };
    let outcome = match reason {
        Some(reason) if Instant::now() >= deadline => Err(reason),
        _ => timeout_at(deadline, deliver(service, tally))
            .await
            .unwrap_or_else(|_| Err(NO_TIME.to_owned())),
    };
    if let Err(reason) = outcome {
        let SweepReport { deleted_count, freed_bytes, checked_count, errors, duration_ms, .. } =
            SweepReport::from(tally);
        tracing::warn!(
            "metrics service {} did not accept the last report: {reason}; undelivered figures: \
             deleted_count={deleted_count} freed_bytes={freed_bytes} checked_count={checked_count} \
             errors={errors} duration_ms={duration_ms:.1}",
            service.address
        );
    }
}

/// Sends one report. An error is the reason why it must be taken as not delivered.
async fn deliver(service: &Service, tally: Tally) -> Result<(), String> {
    let timestamp = chrono::Local::now().format("%Y-%m-%dT%H:%M:%S").to_string();
    let body = Body { figures: SweepReport::from(tally), timestamp };
    let endpoint = service.endpoint("/track/cleanup");
    service.deliver(|client| client.post(endpoint).json(&body)).await
}

/// One report, as it is sent.
#[derive(Serialize)]
struct Body {
    #[serde(flatten)]
    figures: SweepReport,
    /// When it is sent, in local time without an offset.
    timestamp: String,
}
