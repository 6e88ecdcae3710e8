//! Limits deletions to the rate at which the kernel delivers the events that they cause.
//!
//! Each deletion causes six events, and the kernel queues 16,384 of them for a reader that is behind. If the
//! reading thread gets too little processor time, further deletions would overflow that queue. Then a sweep
//! would have to find all changes whose events were lost with them. So deletions wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The most claimed results whose events may be outstanding. Their events leave a quarter of the queue to
/// others.
const MAX_OUTSTANDING: u64 = 2048;
/// The poll interval; and the silence after which no events are expected any more.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
const SILENCE_LIMIT: Duration = Duration::from_secs(2);

/// Counts the claims of results, and their events that the kernel has delivered.
#[derive(Debug, Default)]
pub(crate) struct Backpressure {
    /// Whether the kernel delivers these events at all. It does not if directories are not watched.
    active: AtomicBool,
    caused: AtomicU64,
    delivered: AtomicU64,
}

impl Backpressure {
    /// Counts a result that was renamed to its reserved name.
    pub(crate) fn caused(&self) {
        self.caused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the kernel's event for such a rename, by this cleaner or by another one.
    pub(crate) fn delivered(&self) {
        if !self.active.swap(true, Ordering::Relaxed) {
            return self.reset();
        }
        if self.outstanding() > 0 {
            self.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Stops waiting for all events that are outstanding: they will not be delivered.
    pub(crate) fn reset(&self) {
        self.delivered.store(self.caused.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether so many events are outstanding that the next deletion has to wait.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.outstanding() >= MAX_OUTSTANDING && self.active.load(Ordering::Relaxed)
    }

    /// Waits while too many events are outstanding, and calls `meanwhile` over and over.
    ///
    /// Returns early if `cancel` is set, or if no event has been delivered for [`SILENCE_LIMIT`].
    pub(crate) fn wait(&self, cancel: &AtomicBool, mut meanwhile: impl FnMut()) {
        // Called for each pair, so the clock is only read if there is a reason to wait.
        if !self.is_exceeded() {
            return;
        }
        let mut last = (self.outstanding(), Instant::now());
        while self.is_exceeded() && !cancel.load(Ordering::Relaxed) {
            meanwhile();
            thread::sleep(POLL_INTERVAL);
            let outstanding = self.outstanding();
            if outstanding != last.0 {
                last = (outstanding, Instant::now());
            } else if last.1.elapsed() > SILENCE_LIMIT {
                self.active.store(false, Ordering::Relaxed);
                self.reset();
            }
        }
    }

    /// How many results were claimed so far.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.caused.load(Ordering::Relaxed)
    }

    fn outstanding(&self) -> u64 {
        let delivered = self.delivered.load(Ordering::Relaxed);
        self.caused.load(Ordering::Relaxed).saturating_sub(delivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(backpressure: &Backpressure, count: u64) {
        (0..count).for_each(|_| backpressure.caused());
    }

    #[test]
    fn nothing_waits_where_no_event_was_ever_delivered() {
        let backpressure = Backpressure::default();
        take(&backpressure, 10 * MAX_OUTSTANDING);
        assert!(!backpressure.is_exceeded());
    }

    #[test]
    fn deletions_wait_until_their_events_are_delivered() {
        let backpressure = Backpressure::default();
        backpressure.delivered();
        take(&backpressure, MAX_OUTSTANDING);
        assert!(backpressure.is_exceeded());
        let never = AtomicBool::new(false);
        let waited = thread::scope(|scope| {
            let waiting = scope.spawn(|| backpressure.wait(&never, || {}));
            backpressure.delivered();
            waiting.join()
        });
        assert!(waited.is_ok() && !backpressure.is_exceeded());
        assert_eq!(backpressure.outstanding(), MAX_OUTSTANDING - 1);
    }

    #[test]
    fn where_no_events_arrive_any_more_one_wait_is_enough() {
        let backpressure = Backpressure::default();
        backpressure.delivered();
        take(&backpressure, MAX_OUTSTANDING);
        let start = Instant::now();
        backpressure.wait(&AtomicBool::new(true), || {});
        assert!(backpressure.is_exceeded(), "it was cancelled");
        backpressure.wait(&AtomicBool::new(false), || {});
        assert!(start.elapsed() > SILENCE_LIMIT);
        take(&backpressure, 10 * MAX_OUTSTANDING);
        assert!(!backpressure.is_exceeded());
        backpressure.delivered();
        take(&backpressure, MAX_OUTSTANDING);
        assert!(backpressure.is_exceeded());
    }

    #[test]
    fn what_others_take_does_not_count() {
        let backpressure = Backpressure::default();
        (0..100).for_each(|_| backpressure.delivered());
        take(&backpressure, MAX_OUTSTANDING);
        assert!(backpressure.is_exceeded());
    }
}
