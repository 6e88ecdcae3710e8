//! Requests to the worker, and their answers.

use std::io;
use std::time::Instant;

use tokio::sync::oneshot;

use super::Worker;
use super::cache_root::CacheRoot;
use crate::error::Error;
use crate::pair::tally::Tally;
use crate::schedule::Bucket;
use crate::schedule::input::{Input, RequestId};
use crate::telemetry::durations::in_milliseconds;
use crate::telemetry::stats::{ExpiryBucket, SweepReport};

/// The channel for the answer to a requested sweep.
pub(crate) type SweepAnswer = oneshot::Sender<Result<SweepReport, Error>>;

/// A request to the worker.
#[derive(Debug)]
pub(crate) enum Request {
    /// Make a full sweep that begins from now on.
    Sweep(SweepAnswer),
    /// Count how many pairs expire when.
    Buckets(oneshot::Sender<Vec<ExpiryBucket>>),
    /// Answer, to show that the worker responds.
    Ping(oneshot::Sender<()>),
}

impl Worker {
    /// Answers a request, or returns what the core has to know of it. Whoever made it may have gone.
    pub(super) fn answer(&mut self, request: Request) -> Option<Input> {
        match request {
            Request::Sweep(answer) => {
                self.last_request += 1;
                self.sweep_requests.insert(self.last_request, answer);
                return Some(Input::Sweep(self.last_request));
            }
            Request::Ping(answer) => drop(answer.send(())),
            Request::Buckets(answer) => drop(answer.send(self.buckets())),
        }
        None
    }

    fn buckets(&mut self) -> Vec<ExpiryBucket> {
        let start = Instant::now();
        if let Some((until, counted)) = &self.buckets
            && start < *until
        {
            return counted.clone();
        }
        let counted = self.core.buckets(self.clock.wall()).into_iter();
        let counted: Vec<_> = counted
            .map(|Bucket { end, count, bytes }| ExpiryBucket { within_seconds: end, count, bytes })
            .collect();
        // However many requests come, counting takes at most a twentieth of the time.
        self.buckets = Some((Instant::now() + start.elapsed() * 19, counted.clone()));
        counted
    }

    /// Reports a full sweep, and answers those who requested it.
    pub(super) fn sweep_done(&mut self, tally: Tally, requests: Vec<RequestId>) {
        let report = self.recorder.swept(tally, self.clock.now());
        tracing::info!(
            deleted = report.deleted_count,
            freed_bytes = report.freed_bytes,
            checked = report.checked_count,
            errors = report.errors,
            duration_ms = in_milliseconds(report.duration),
            "Cleanup completed"
        );
        self.answer_sweeps(requests, || Ok(report));
    }

    /// Answers requests for a sweep if there is no directory to sweep.
    pub(super) fn answer_without_sweep(&mut self, requests: Vec<RequestId>) {
        let unreadable = match &self.cache_root {
            CacheRoot::Unreadable(error) => {
                Some((self.path.clone(), error.raw_os_error(), error.to_string()))
            }
            _ => None,
        };
        self.answer_sweeps(requests, || match unreadable.clone() {
            None => Ok(SweepReport::default()),
            Some((path, number, reason)) => {
                let source =
                    number.map_or_else(|| io::Error::other(reason), io::Error::from_raw_os_error);
                Err(Error::Unreadable { path, source })
            }
        });
    }

    fn answer_sweeps(
        &mut self,
        requests: Vec<RequestId>,
        answer: impl Fn() -> Result<SweepReport, Error>,
    ) {
        for request in requests {
            if let Some(requester) = self.sweep_requests.remove(&request) {
                let _ = requester.send(answer());
            }
        }
    }
}
