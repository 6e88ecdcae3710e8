//! Limits the time per second that all threads together may spend on files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The part of a second's time that may be used at once, so that its use is spread over the second.
const AT_ONCE: f64 = 0.1;
/// The longest rest after some work. A disk that does not answer for a while would else cost hours of rest, since the
/// time of all threads counts.
const MAX_REST: f64 = 10.0;
/// How long a rest goes on at most after it was cancelled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The time that may be spent on files.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// `None` where there is no limit.
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    /// Seconds per second.
    share: f64,
    left: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    /// In seconds; negative if work took longer than there was time.
    seconds: f64,
    at: Instant,
}

impl Throttle {
    /// Allows at most `per_second` per second; `None` for no limit.
    pub(crate) fn new(per_second: Option<Duration>) -> Self {
        let bound = |share: f64| {
            let left = Left { seconds: share * AT_ONCE, at: Instant::now() };
            Bound { share, left: Mutex::new(left) }
        };
        Self { bound: per_second.map(|time| bound(time.as_secs_f64())) }
    }

    pub(crate) fn is_bounded(&self) -> bool {
        self.bound.is_some()
    }

    /// Counts the time until the returned value is dropped.
    pub(crate) fn spend(&self) -> Spending<'_> {
        Spending(self.bound.as_ref().map(|bound| (bound, Instant::now())))
    }

    /// Whether no time is left for the moment.
    pub(crate) fn is_used_up(&self) -> bool {
        self.bound.as_ref().is_some_and(|bound| !bound.until_more(Instant::now()).is_zero())
    }

    /// Waits until there is time again, or `cancel` is set.
    pub(crate) fn rest(&self, cancel: &AtomicBool) {
        let Some(bound) = &self.bound else { return };
        loop {
            let wait = bound.until_more(Instant::now());
            if wait.is_zero() || cancel.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(wait.min(POLL_INTERVAL));
        }
    }
}

impl Bound {
    fn until_more(&self, now: Instant) -> Duration {
        let left = self.use_up(Duration::ZERO, now);
        Duration::try_from_secs_f64(-left / self.share).unwrap_or(Duration::ZERO)
    }

    /// Subtracts the time that was used. Returns the seconds that are left.
    fn use_up(&self, used: Duration, now: Instant) -> f64 {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let more = now.saturating_duration_since(left.at).as_secs_f64() * self.share;
        left.seconds = (left.seconds + more).min(self.share * AT_ONCE) - used.as_secs_f64();
        left.seconds = left.seconds.max(-self.share * MAX_REST);
        left.at = left.at.max(now);
        left.seconds
    }
}

/// A period that is being counted. It ends when this value is dropped.
pub(crate) struct Spending<'a>(Option<(&'a Bound, Instant)>);

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        if let Some((bound, since)) = self.0 {
            let now = Instant::now();
            bound.use_up(now - since, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn over_a_long_time_no_more_is_used_than_the_share() {
        let time = Throttle::new(Some(SECOND / 4));
        let bound = time.bound.as_ref().unwrap();
        let start = Instant::now();
        let (mut now, mut used) = (start, Duration::ZERO);
        for number in 0..1000 {
            now += bound.until_more(now);
            let work = Duration::from_millis(1 + number * 7 % 40);
            now += work;
            bound.use_up(work, now);
            used += work;
        }
        let share = used.as_secs_f64() / (now - start).as_secs_f64();
        assert!((0.24..0.255).contains(&share), "{share}");
    }

    #[test]
    fn a_pause_saves_up_no_more_than_a_tenth_of_a_second() {
        let time = Throttle::new(Some(SECOND / 2));
        let bound = time.bound.as_ref().unwrap();
        let now = Instant::now() + 1000 * SECOND;
        assert_eq!(bound.until_more(now), Duration::ZERO);
        bound.use_up(SECOND, now);
        let wait = bound.until_more(now).as_secs_f64();
        assert!((wait - 1.9).abs() < 1e-6, "{wait}");
    }

    #[test]
    fn a_disk_that_stalls_costs_a_bounded_rest() {
        let time = Throttle::new(Some(Duration::from_millis(1)));
        let bound = time.bound.as_ref().unwrap();
        let now = Instant::now();
        for _ in 0..8 {
            bound.use_up(30 * SECOND, now);
        }
        let wait = bound.until_more(now).as_secs_f64();
        assert!((wait - MAX_REST).abs() < 1e-6, "{wait}");
    }

    #[test]
    fn a_rest_ends_when_it_is_cancelled_and_there_is_none_without_a_bound() {
        let time = Throttle::new(Some(Duration::from_millis(1)));
        time.bound.as_ref().unwrap().use_up(3600 * SECOND, Instant::now());
        assert!(time.is_used_up());
        time.rest(&AtomicBool::new(true));

        let time = Throttle::default();
        drop(time.spend());
        assert!(!time.is_used_up());
        time.rest(&AtomicBool::new(false));
    }
}
