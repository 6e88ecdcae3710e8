//! When to ask for the free space of the cache directory's file system. With a disk budget, evictions depend on it;
//! without one, it is only shown.

use std::time::{Duration, Instant};

use super::command::Command;
use super::core::Core;
use crate::pair::budget::FreeSpace;
use crate::sys::clock::Now;

/// How often to ask for it with a disk budget, and without one.
pub(super) const BUDGET_INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(60);

/// The free space, and when to ask for it again.
#[derive(Debug)]
pub(super) struct SpaceReadings {
    /// The space when it was last read; `None` if it could not be read then.
    last: Option<FreeSpace>,
    is_asking: bool,
    next: Instant,
}

impl SpaceReadings {
    /// The first reading is due at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { last: None, is_asking: false, next: now }
    }

    /// Takes in an answer.
    pub(super) fn answered(&mut self, space: Option<FreeSpace>) {
        (self.is_asking, self.last) = (false, space);
    }

    /// Asks again at `at`.
    pub(super) fn ask_at(&mut self, at: Instant) {
        self.next = at;
    }

    /// Returns when to ask again; `None` while there is no answer.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.is_asking).then_some(self.next)
    }
}

impl Core {
    /// Asks for the free space, if it is time.
    pub(super) fn ask_free_space(&mut self, now: Now) {
        if self.space.next().is_none_or(|at| at > now.mono) {
            return;
        }
        let (size, _) = self.schedule.disk_size();
        let interval = if let Some(state) = &mut self.budget {
            state.asks(size);
            BUDGET_INTERVAL
        } else {
            INTERVAL
        };
        (self.space.is_asking, self.space.next) = (true, now.mono + interval);
        self.command(Command::AskFreeSpace);
    }

    /// Returns the free space on the cache directory's file system and its size, when last read.
    pub(crate) fn space(&self) -> Option<FreeSpace> {
        match &self.budget {
            Some(state) => state.space(),
            None => self.space.last,
        }
    }
}
