//! Keeping pace with what the kernel tells of the cleaner's own deletions.
//!
//! Each deletion causes six events, and the kernel keeps 16,384 of them for whoever does not read them.
//! Where the thread that reads them gets too little of the processors, to go on deleting would overflow
//! that queue, and a sweep would have to make up for what else was lost with it. So deletions wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many results may have been caused to their reserved names without the kernel having told of it:
/// so many that their events leave a quarter of the queue to others.
const MAX_OUTSTANDING: u64 = 2048;
/// How often is looked whether it has, and how long after the last time it is believed not to.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
const SILENCE_LIMIT: Duration = Duration::from_secs(2);

/// What was caused, and what of it the kernel has told.
#[derive(Debug, Default)]
pub(crate) struct Backpressure {
    /// Whether the kernel tells of it at all. Where directories are not watched it does not.
    active: AtomicBool,
    caused: AtomicU64,
    delivered: AtomicU64,
}

impl Backpressure {
    /// A result was caused to its reserved name.
    pub(crate) fn caused(&self) {
        self.caused.fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel has told of one, or of one that another cleaner has caused.
    pub(crate) fn delivered(&self) {
        if !self.active.swap(true, Ordering::Relaxed) {
            return self.reset();
        }
        if self.outstanding() > 0 {
            self.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was not told by now will not be.
    pub(crate) fn reset(&self) {
        self.delivered.store(self.caused.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether to wait before more is caused.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.outstanding() >= MAX_OUTSTANDING && self.active.load(Ordering::Relaxed)
    }

    /// Waits while they are too many, unless nothing is delivered any more, or `cancel` is set; does
    /// `meanwhile` over and over.
    pub(crate) fn wait(&self, cancel: &AtomicBool, mut meanwhile: impl FnMut()) {
        // Asked for each pair: the clock is not read for nothing.
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

    /// How many results were caused so far.
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
    fn nothing_waits_for_what_was_never_heard() {
        let backpressure = Backpressure::default();
        take(&backpressure, 10 * MAX_OUTSTANDING);
        assert!(!backpressure.is_exceeded());
    }

    #[test]
    fn deletions_wait_until_they_are_heard_of() {
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
    fn where_nothing_is_heard_any_more_one_wait_is_enough() {
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
