//! The schedule of full sweeps.

use std::time::{Duration, Instant};

/// The shortest pause before a sweep that makes up for lost events. The pause is as long as the previous
/// sweep worked, if that was longer.
const MIN_PAUSE: Duration = Duration::from_millis(500);

/// When full sweeps start, and who waits for them.
#[derive(Debug)]
pub(crate) struct Sweeps<W> {
    /// When the next regular sweep starts.
    next: Instant,
    /// The earliest start of a sweep for lost events, however many were lost.
    not_before: Instant,
    are_events_lost: bool,
    waiters: Vec<W>,
}

impl<W> Sweeps<W> {
    /// Returns a schedule whose first sweep is due at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { next: now, not_before: now, are_events_lost: false, waiters: Vec::new() }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        !self.waiters.is_empty() || self.next() <= now
    }

    /// Returns when the next sweep is due, if nobody requests one before.
    pub(crate) fn next(&self) -> Instant {
        if self.are_events_lost { self.next.min(self.not_before) } else { self.next }
    }

    /// Records that events were lost, so that a sweep has to make up for them soon.
    pub(crate) fn events_lost(&mut self) {
        self.are_events_lost = true;
    }

    /// Requests a sweep that starts after this call, for these waiters.
    pub(crate) fn ask(&mut self, waiters: impl IntoIterator<Item = W>) {
        self.waiters.extend(waiters);
    }

    /// Removes and returns the waiters; called directly if there is nothing to sweep.
    pub(crate) fn take_waiters(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiters)
    }

    /// Records that a sweep starts; returns the waiters to notify.
    pub(crate) fn begin(&mut self) -> Vec<W> {
        self.are_events_lost = false;
        self.take_waiters()
    }

    /// Records that a sweep has ended. It `worked` for this long, without its waits; the next regular
    /// sweep starts after `interval`.
    pub(crate) fn ended(&mut self, now: Instant, worked: Duration, interval: Duration) {
        self.not_before = after(now, worked.max(MIN_PAUSE));
        self.next = after(now, interval);
    }

    /// Starts the next regular sweep after `interval`, or earlier if that was planned.
    pub(crate) fn at_the_latest(&mut self, now: Instant, interval: Duration) {
        self.next = self.next.min(after(now, interval));
    }
}

/// Returns `now` plus `interval`. An interval may exceed the range of the clock, so it is limited to a
/// century, which means never.
fn after(now: Instant, interval: Duration) -> Instant {
    let century = Duration::from_secs(100 * 365 * 86_400);
    now + interval.min(century)
}
