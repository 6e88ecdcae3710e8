//! Keeping pace with what the kernel tells of the cleaner's own deletions.
//!
//! Each deletion causes six events, and the kernel keeps 16,384 of them for whoever does not read them.
//! Where the thread that reads them gets too little of the processors, to go on deleting would overflow
//! that queue, and a sweep would have to make up for what else was lost with it. So deletions wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many results may have been taken to their reserved names without the kernel having told of it:
/// so many that their events leave a quarter of the queue to others.
const MOST: u64 = 2048;
/// How often is looked whether it has, and how long after the last time it is believed not to.
const NAP: Duration = Duration::from_millis(1);
const DEAFNESS: Duration = Duration::from_secs(2);

/// What was taken, and what of it the kernel has told.
#[derive(Debug, Default)]
pub(crate) struct Echoes {
    /// Whether the kernel tells of it at all. Where directories are not watched it does not.
    audible: AtomicBool,
    taken: AtomicU64,
    heard: AtomicU64,
}

impl Echoes {
    /// A result was taken to its reserved name.
    pub fn taken(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel has told of one, or of one that another cleaner has taken.
    pub fn heard(&self) {
        if !self.audible.swap(true, Ordering::Relaxed) {
            return self.forget();
        }
        if self.outstanding() > 0 {
            self.heard.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was not told by now will not be.
    pub fn forget(&self) {
        self.heard.store(self.taken.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether to wait before more is taken.
    pub fn are_too_many(&self) -> bool {
        self.outstanding() >= MOST && self.audible.load(Ordering::Relaxed)
    }

    /// Waits while they are too many, unless nothing is heard any more, or `cancel` is set; does
    /// `meanwhile` over and over.
    pub fn wait(&self, cancel: &AtomicBool, mut meanwhile: impl FnMut()) {
        // Asked for each pair: the clock is not read for nothing.
        if !self.are_too_many() {
            return;
        }
        let mut last = (self.outstanding(), Instant::now());
        while self.are_too_many() && !cancel.load(Ordering::Relaxed) {
            meanwhile();
            thread::sleep(NAP);
            let outstanding = self.outstanding();
            if outstanding != last.0 {
                last = (outstanding, Instant::now());
            } else if last.1.elapsed() > DEAFNESS {
                self.audible.store(false, Ordering::Relaxed);
                self.forget();
            }
        }
    }

    /// How many results were taken so far.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn outstanding(&self) -> u64 {
        let heard = self.heard.load(Ordering::Relaxed);
        self.taken.load(Ordering::Relaxed).saturating_sub(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(echoes: &Echoes, count: u64) {
        (0..count).for_each(|_| echoes.taken());
    }

    #[test]
    fn nothing_waits_for_what_was_never_heard() {
        let echoes = Echoes::default();
        take(&echoes, 10 * MOST);
        assert!(!echoes.are_too_many());
    }

    #[test]
    fn deletions_wait_until_they_are_heard_of() {
        let echoes = Echoes::default();
        echoes.heard();
        take(&echoes, MOST);
        assert!(echoes.are_too_many());
        let never = AtomicBool::new(false);
        let waited = thread::scope(|scope| {
            let waiting = scope.spawn(|| echoes.wait(&never, || {}));
            echoes.heard();
            waiting.join()
        });
        assert!(waited.is_ok() && !echoes.are_too_many());
        assert_eq!(echoes.outstanding(), MOST - 1);
    }

    #[test]
    fn where_nothing_is_heard_any_more_one_wait_is_enough() {
        let echoes = Echoes::default();
        echoes.heard();
        take(&echoes, MOST);
        let start = Instant::now();
        echoes.wait(&AtomicBool::new(true), || {});
        assert!(echoes.are_too_many(), "it was cancelled");
        echoes.wait(&AtomicBool::new(false), || {});
        assert!(start.elapsed() > DEAFNESS);
        take(&echoes, 10 * MOST);
        assert!(!echoes.are_too_many());
        echoes.heard();
        take(&echoes, MOST);
        assert!(echoes.are_too_many());
    }

    #[test]
    fn what_others_take_does_not_count() {
        let echoes = Echoes::default();
        (0..100).for_each(|_| echoes.heard());
        take(&echoes, MOST);
        assert!(echoes.are_too_many());
    }
}
