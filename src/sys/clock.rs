//! The clocks. Only this module reads the wall clock to decide what is due.
//!
//! `expires_at` is wall-clock time, which can jump; pauses are monotonic time, which can't. A wall clock
//! that jumps far ahead may be wrong, and a deletion that this makes due can't be undone. Such a jump
//! therefore takes effect only after [`JUMP_HOLD`].

#![expect(clippy::disallowed_methods, reason = "the one place that reads clocks")]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use rustix::time::{ClockId, clock_gettime};

/// The longest time between two readings of the wall clock while something waits for it.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// A forward jump by more than this takes effect only after [`JUMP_HOLD`].
const JUMP_LIMIT: TimeDelta = TimeDelta::days(1);
/// How long a large forward jump is held back.
const JUMP_HOLD: TimeDelta = TimeDelta::seconds(60);

/// One moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// The wall-clock time, which decides whether a pair is due.
    pub wall: DateTime<Utc>,
    /// The monotonic time, which measures pauses.
    pub mono: Instant,
}

/// The clock of one cleaner.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    jumps: Mutex<ClockJumps>,
}

impl Clock {
    pub(crate) fn now(&self) -> Now {
        Now { wall: self.wall(), mono: Instant::now() }
    }

    /// Returns the wall clock's time, without a jump that is being held back.
    pub(crate) fn wall(&self) -> DateTime<Utc> {
        self.jumps().settle(Utc::now(), since_boot())
    }

    /// Checks for a jump since the last call; returns the jump if it has to be held back.
    pub(crate) fn tick(&self) -> Option<TimeDelta> {
        self.jumps().observe(Utc::now(), since_boot())
    }

    fn jumps(&self) -> std::sync::MutexGuard<'_, ClockJumps> {
        self.jumps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the wall clock's time, including every jump.
pub(crate) fn now_utc() -> DateTime<Utc> {
    Utc::now()
}

/// Returns when the system was booted, by the present wall clock.
#[cfg(feature = "server")]
pub(crate) fn boot_time() -> DateTime<Utc> {
    Utc::now() - since_boot()
}

/// Returns the time since boot, including suspends, so that a machine that was asleep shows no jump.
fn since_boot() -> TimeDelta {
    let time = clock_gettime(ClockId::Boottime);
    TimeDelta::new(time.tv_sec, u32::try_from(time.tv_nsec).unwrap_or(0)).unwrap_or_default()
}

/// Returns the processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or(Duration::ZERO)
}

/// Distinguishes a jump of the wall clock from time that passed.
#[derive(Debug, Default)]
struct ClockJumps {
    last: Option<(DateTime<Utc>, TimeDelta)>,
    /// For each jump, how far the clock jumped, and until when since boot the jump is held back; the
    /// newest comes last.
    held: Vec<(TimeDelta, TimeDelta)>,
}

impl ClockJumps {
    fn observe(&mut self, wall: DateTime<Utc>, boot: TimeDelta) -> Option<TimeDelta> {
        let (last_wall, last_boot) = self.last.replace((wall, boot))?;
        let step = (wall - last_wall) - (boot - last_boot);
        if step > JUMP_LIMIT {
            self.held.push((step, boot + JUMP_HOLD));
            return Some(step);
        }
        // A clock that is set back cancels the newest jumps first.
        let mut back = -step;
        while back > TimeDelta::zero()
            && let Some((held, until)) = self.held.pop()
        {
            if held > back {
                self.held.push((held - back, until));
            }
            back -= held;
        }
        None
    }

    fn settle(&mut self, wall: DateTime<Utc>, boot: TimeDelta) -> DateTime<Utc> {
        self.held.retain(|(_, until)| boot < *until);
        // A jump is held back even before a tick detects it.
        let unseen = self.last.map_or(TimeDelta::zero(), |(last_wall, last_boot)| {
            (wall - last_wall) - (boot - last_boot)
        });
        let unseen = if unseen > JUMP_LIMIT { unseen } else { TimeDelta::zero() };
        let held = self.held.iter().fold(unseen, |sum, (held, _)| sum + *held);
        wall.checked_sub_signed(held).unwrap_or(wall)
    }
}

#[cfg(test)]
mod timelines;

#[cfg(test)]
mod tests {
    use super::*;

    const DAYS_40: TimeDelta = TimeDelta::days(40);

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn boot(seconds: i64) -> TimeDelta {
        TimeDelta::seconds(100 + seconds)
    }

    #[test]
    fn a_jump_ahead_is_held_back_for_a_minute() {
        let mut jumps = ClockJumps::default();
        assert_eq!(jumps.observe(at(0), boot(0)), None);
        assert_eq!(jumps.settle(at(1) + DAYS_40, boot(1)), at(1), "noticed before any tick");
        assert_eq!(jumps.observe(at(1) + DAYS_40, boot(1)), Some(DAYS_40));
        assert_eq!(jumps.observe(at(2) + DAYS_40, boot(2)), None, "reported once");
        assert_eq!(jumps.settle(at(60) + DAYS_40, boot(60)), at(60));
        assert_eq!(jumps.settle(at(61) + DAYS_40, boot(61)), at(61) + DAYS_40);
    }

    #[test]
    fn a_jump_that_is_taken_back_leaves_nothing_held() {
        let mut jumps = ClockJumps::default();
        jumps.observe(at(0), boot(0));
        jumps.observe(at(1) + DAYS_40, boot(1));
        jumps.observe(at(2), boot(2));
        assert_eq!(jumps.settle(at(3), boot(3)), at(3));
    }

    #[test]
    fn a_jump_amid_the_minute_of_another_one_has_a_minute_of_its_own() {
        let mut jumps = ClockJumps::default();
        jumps.observe(at(0), boot(0));
        jumps.observe(at(1) + DAYS_40, boot(1));
        assert_eq!(jumps.observe(at(50) + DAYS_40 * 2, boot(50)), Some(DAYS_40));
        assert_eq!(jumps.settle(at(60) + DAYS_40 * 2, boot(60)), at(60));
        assert_eq!(jumps.settle(at(61) + DAYS_40 * 2, boot(61)), at(61) + DAYS_40);
        assert_eq!(jumps.settle(at(110) + DAYS_40 * 2, boot(110)), at(110) + DAYS_40 * 2);
    }

    #[test]
    fn what_is_due_without_a_jump_is_due_when_a_part_of_it_is_taken_back() {
        let hours_30 = TimeDelta::hours(30);
        let mut jumps = ClockJumps::default();
        jumps.observe(at(0), boot(0));
        jumps.observe(at(1) + hours_30, boot(1));
        jumps.observe(at(2) + hours_30 / 2, boot(2));
        assert_eq!(jumps.settle(at(3) + hours_30 / 2, boot(3)), at(3));
    }

    #[test]
    fn sleep_and_small_jumps_are_believed_at_once() {
        let mut jumps = ClockJumps::default();
        jumps.observe(at(0), boot(0));
        // A suspended machine: both clocks advanced.
        assert_eq!(jumps.observe(at(1_000_000), boot(1_000_000)), None);
        assert_eq!(jumps.settle(at(1_000_000), boot(1_000_000)), at(1_000_000));
        assert_eq!(jumps.observe(at(1_000_000 + 3600), boot(1_000_001)), None);
        assert_eq!(jumps.settle(at(1_003_600), boot(1_000_001)), at(1_003_600));
        assert_eq!(jumps.observe(at(0), boot(1_000_002)), None);
        assert_eq!(jumps.settle(at(0), boot(1_000_002)), at(0));
    }
}
