//! The schedule of full sweeps.

use std::time::{Duration, Instant};

use super::input::RequestId;

/// The shortest pause before a sweep that makes up for lost events. The pause is as long as the previous
/// sweep worked, if that was longer.
const MIN_PAUSE: Duration = Duration::from_millis(500);

/// When full sweeps start, and the requests for them.
#[derive(Debug)]
pub(super) struct Sweeps {
    /// When the next regular sweep starts.
    next_regular: Instant,
    /// The earliest start of a sweep for lost events, however many were lost.
    not_before: Instant,
    are_events_lost: bool,
    requests: Vec<RequestId>,
}

impl Sweeps {
    /// Returns a schedule whose first sweep is due at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { next_regular: now, not_before: now, are_events_lost: false, requests: Vec::new() }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.is_requested() || self.next() <= now
    }

    /// Returns when the next sweep is due, if nobody requests one before.
    pub(super) fn next(&self) -> Instant {
        if self.are_events_lost {
            self.next_regular.min(self.not_before)
        } else {
            self.next_regular
        }
    }

    #[cfg(any(fuzzing, test))]
    pub(super) fn are_events_lost(&self) -> bool {
        self.are_events_lost
    }

    /// Records that events were lost, so that a sweep has to make up for them soon.
    pub(super) fn events_lost(&mut self) {
        self.are_events_lost = true;
    }

    /// Requests a sweep that starts after this call.
    pub(super) fn request(&mut self, requests: impl IntoIterator<Item = RequestId>) {
        self.requests.extend(requests);
    }

    /// Whether a sweep was requested.
    pub(super) fn is_requested(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Removes and returns the requests; called directly if there is nothing to sweep.
    pub(super) fn take_requests(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.requests)
    }

    /// Records that a sweep starts; returns the requests to answer.
    pub(super) fn begin(&mut self) -> Vec<RequestId> {
        self.are_events_lost = false;
        self.take_requests()
    }

    /// Records that a sweep has ended. It `worked` for this long, without its waits; the next regular
    /// sweep starts after `interval`.
    pub(super) fn ended(&mut self, now: Instant, worked: Duration, interval: Duration) {
        self.not_before = after(now, worked.max(MIN_PAUSE));
        self.next_regular = after(now, interval);
    }

    /// Starts the next regular sweep after `interval`, or earlier if that was planned.
    pub(super) fn at_the_latest(&mut self, now: Instant, interval: Duration) {
        self.next_regular = self.next_regular.min(after(now, interval));
    }
}

/// Returns `now` plus `interval`. An interval may exceed the range of the clock, so it is limited to a
/// century, which means never.
fn after(now: Instant, interval: Duration) -> Instant {
    let century = Duration::from_secs(100 * 365 * 86_400);
    now + interval.min(century)
}
