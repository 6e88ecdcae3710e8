//! When full sweeps begin.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::place::Place;
use crate::stats::SweepReport;

/// The least pause before a sweep that makes up for news that was missed; it is as long as the
/// sweep before has worked, if that was longer.
const LEAST_PAUSE: Duration = Duration::from_millis(500);

/// Where a sweep that was asked for is answered.
pub(crate) type SweepAnswer = oneshot::Sender<Result<SweepReport, Error>>;

/// When full sweeps are to begin, and who waits for them.
#[derive(Debug)]
pub(crate) struct Sweeps {
    /// The next regular one.
    next: Instant,
    /// Not before this, however much was missed.
    not_before: Instant,
    missed: bool,
    waiters: Vec<SweepAnswer>,
}

impl Sweeps {
    /// The first is due at once.
    pub fn new(now: Instant) -> Self {
        Self { next: now, not_before: now, missed: false, waiters: Vec::new() }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        !self.waiters.is_empty() || self.next() <= now
    }

    /// When the next one is due, if nobody asks for one before.
    pub fn next(&self) -> Instant {
        if self.missed { self.next.min(self.not_before) } else { self.next }
    }

    /// Some news was lost, so that a sweep has to make up for it soon.
    pub fn something_was_missed(&mut self) {
        self.missed = true;
    }

    /// Somebody wants a sweep that begins from now on.
    pub fn ask(&mut self, waiters: impl IntoIterator<Item = SweepAnswer>) {
        self.waiters.extend(waiters);
    }

    /// One begins; those who are to be told of it.
    pub fn begin(&mut self) -> Vec<SweepAnswer> {
        self.missed = false;
        std::mem::take(&mut self.waiters)
    }

    /// One that has `worked` for so long, waiting aside, has ended; the next is to begin after
    /// `interval`.
    pub fn ended(&mut self, now: Instant, worked: Duration, interval: Duration) {
        self.not_before = after(now, worked.max(LEAST_PAUSE));
        self.next = after(now, interval);
    }

    /// The next is to begin after `interval`, or before if that was planned.
    pub fn at_the_latest(&mut self, now: Instant, interval: Duration) {
        self.next = self.next.min(after(now, interval));
    }

    /// Answers those who wait for a sweep where nothing stands at `path` that could be swept.
    pub fn answer_without_sweep(&mut self, path: &Path, place: &Place) {
        let answer = || match place {
            Place::Absent => Some(Ok(SweepReport::default())),
            Place::Unreadable { reason } => Some(Err(Error::Unreadable {
                path: path.to_owned(),
                source: std::io::Error::other(reason.clone()),
            })),
            // What stands there is about to be known.
            Place::Same | Place::Open(_) => None,
        };
        while let Some(answer) = answer().filter(|_| !self.waiters.is_empty()) {
            if let Some(waiter) = self.waiters.pop() {
                // Whoever asked may have gone.
                let _ = waiter.send(answer);
            }
        }
    }
}

/// An interval may be longer than the clock can tell: a century stands for never.
fn after(now: Instant, interval: Duration) -> Instant {
    let century = Duration::from_secs(100 * 365 * 86_400);
    now + interval.min(century)
}
