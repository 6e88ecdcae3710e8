//! When full sweeps begin.

use std::time::{Duration, Instant};

/// The least pause before a sweep that makes up for news that was missed; it is as long as the
/// sweep before has worked, if that was longer.
const MIN_PAUSE: Duration = Duration::from_millis(500);

/// When full sweeps are to begin, and who waits for them.
#[derive(Debug)]
pub(crate) struct Sweeps<W> {
    /// The next regular one.
    next: Instant,
    /// Not before this, however much was missed.
    not_before: Instant,
    missed: bool,
    waiters: Vec<W>,
}

impl<W> Sweeps<W> {
    /// The first is due at once.
    pub(crate) fn new(now: Instant) -> Self {
        Self { next: now, not_before: now, missed: false, waiters: Vec::new() }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        !self.waiters.is_empty() || self.next() <= now
    }

    /// When the next one is due, if nobody asks for one before.
    pub(crate) fn next(&self) -> Instant {
        if self.missed { self.next.min(self.not_before) } else { self.next }
    }

    /// Some news was lost, so that a sweep has to make up for it soon.
    pub(crate) fn something_was_missed(&mut self) {
        self.missed = true;
    }

    /// Somebody wants a sweep that begins from now on.
    pub(crate) fn ask(&mut self, waiters: impl IntoIterator<Item = W>) {
        self.waiters.extend(waiters);
    }

    /// Those who wait, where there is nothing that could be swept.
    pub(crate) fn take_waiters(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiters)
    }

    /// One begins; those who are to be told of it.
    pub(crate) fn begin(&mut self) -> Vec<W> {
        self.missed = false;
        self.take_waiters()
    }

    /// One that has `worked` for so long, waiting aside, has ended; the next is to begin after
    /// `interval`.
    pub(crate) fn ended(&mut self, now: Instant, worked: Duration, interval: Duration) {
        self.not_before = after(now, worked.max(MIN_PAUSE));
        self.next = after(now, interval);
    }

    /// The next is to begin after `interval`, or before if that was planned.
    pub(crate) fn at_the_latest(&mut self, now: Instant, interval: Duration) {
        self.next = self.next.min(after(now, interval));
    }
}

/// An interval may be longer than the clock can tell: a century stands for never.
fn after(now: Instant, interval: Duration) -> Instant {
    let century = Duration::from_secs(100 * 365 * 86_400);
    now + interval.min(century)
}
