//! When to read the free space of the cache directory's file system. With a disk budget, evictions depend on it;
//! without one, it is only shown.

use std::time::{Duration, Instant};

use super::command::Command;
use super::core::Core;
use crate::pair::disk_budget::FreeSpace;
use crate::sys::clock::Now;

/// How often to read it with a disk budget.
pub(super) const BUDGET_INTERVAL: Duration = Duration::from_secs(1);
/// How often to read it without a disk budget.
const INTERVAL: Duration = Duration::from_secs(60);

/// The free space, and when to read it again.
#[derive(Debug)]
pub(super) struct SpaceReadings {
    /// The space when it was last read; `None` if it could not be read then.
    last: Option<FreeSpace>,
    /// Whether a thread is reading it.
    is_reading: bool,
    next: Instant,
}

impl SpaceReadings {
    /// The first reading is due at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { last: None, is_reading: false, next: now }
    }

    /// Takes in a reading.
    pub(super) fn answered(&mut self, space: Option<FreeSpace>) {
        (self.is_reading, self.last) = (false, space);
    }

    /// Requests the next reading at `at`.
    pub(super) fn request_at(&mut self, at: Instant) {
        self.next = at;
    }

    /// Returns when the next reading is due; `None` while a thread is reading.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.is_reading).then_some(self.next)
    }
}

impl Core {
    /// Requests the free space, if it is time.
    pub(super) fn read_free_space(&mut self, now: Now) {
        if self.space_readings.next().is_none_or(|at| at > now.mono) {
            return;
        }
        let (size, _) = self.schedule.disk_size();
        let interval = if let Some(state) = &mut self.disk_budget {
            state.space.requested(size);
            BUDGET_INTERVAL
        } else {
            INTERVAL
        };
        (self.space_readings.is_reading, self.space_readings.next) = (true, now.mono + interval);
        self.command(Command::ReadFreeSpace);
    }

    /// Returns the free space on the cache directory's file system and its size, when last read.
    pub(crate) fn space(&self) -> Option<FreeSpace> {
        match &self.disk_budget {
            Some(state) => state.space.reading(),
            None => self.space_readings.last,
        }
    }
}
