//! Requests to the worker, and their answers.

use std::time::Instant;

use tokio::sync::oneshot;

use super::Worker;
use super::cache_root::CacheRoot;
use crate::error::Error;
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
    /// Answers pending sweep requests if there is no directory to sweep.
    pub(super) fn answer_without_sweep(&mut self) {
        let unreadable = match &self.cache_root {
            CacheRoot::Absent => None,
            CacheRoot::Unreadable { reason } => Some(reason.clone()),
            // The state of the cache directory is about to be known.
            CacheRoot::Unknown | CacheRoot::Open(_) => return,
        };
        for waiter in self.sweeps.take_waiters() {
            let answer = unreadable.clone().map_or(Ok(SweepReport::default()), |reason| {
                let source = std::io::Error::other(reason);
                Err(Error::Unreadable { path: self.path.clone(), source })
            });
            // The requester may have gone.
            let _ = waiter.send(answer);
        }
    }

    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Sweep(waiter) => self.sweeps.ask([waiter]),
            Request::Ping(waiter) => {
                let _ = waiter.send(());
            }
            Request::Buckets(waiter) => {
                let start = Instant::now();
                if self.buckets.as_ref().is_none_or(|(until, _)| start >= *until) {
                    let counted = self.schedule.buckets(self.clock.wall()).into_iter();
                    let counted = counted
                        .map(|(within_seconds, count)| ExpiryBucket { within_seconds, count })
                        .collect();
                    // However many requests come, counting takes at most a twentieth of the time.
                    self.buckets = Some((Instant::now() + start.elapsed() * 19, counted));
                }
                // The requester may have gone.
                let _ = waiter.send(self.buckets.iter().flat_map(|(_, b)| b.clone()).collect());
            }
        }
    }
}
