//! The state of the cache directory, and when it gets a new watcher.

use std::path::Path;
use std::time::Duration;

use super::command::Notice;
use super::core::Core;
use super::input::{RootSeen, Watching};
use crate::pair::tally::Tally;
use crate::sys::clock::Now;

/// The state of the path where the cache directory should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RootState {
    /// Nothing is known before the first probe.
    Unknown,
    Absent,
    Unreadable,
    Open(Watching),
}

/// Whether the cache directory needs a new watcher, because events were lost. notify may believe that watches
/// are set which the kernel has dropped.
#[derive(Debug, Default)]
pub(super) struct Rewatching {
    is_needed: bool,
    /// Whether a new watcher was asked for.
    is_asked: bool,
}

impl Rewatching {
    pub(super) fn events_lost(&mut self) {
        self.is_needed = true;
    }

    /// Whether a sweep has to wait for a new watcher.
    pub(super) fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// Whether the next sweep waits for an answer.
    pub(super) fn is_asked(&self) -> bool {
        self.is_needed && self.is_asked
    }

    /// Returns whether to ask for a new watcher now.
    pub(super) fn ask(&mut self) -> bool {
        !std::mem::replace(&mut self.is_asked, true)
    }

    fn answered(&mut self) {
        self.is_asked = false;
    }

    fn done(&mut self) {
        self.is_needed = false;
    }
}

impl Core {
    /// Takes in what a probe has found at the path of the cache directory.
    pub(super) fn root_probed(&mut self, seen: RootSeen, now: Now) {
        self.rewatching.answered();
        let root = match seen {
            RootSeen::Unchanged => return,
            RootSeen::Rewatched(watching) => {
                // The next sweep sets the watches, and makes up for all that was lost. It begins at once. If
                // events could be lost again before, a flood would delay it for ever: a new watcher would
                // follow another.
                self.root = RootState::Open(watching);
                self.rewatching.done();
                self.sweeps.events_lost();
                return self.sweeps.at_the_latest(now.mono, Duration::ZERO);
            }
            RootSeen::Absent => RootState::Absent,
            RootSeen::Unreadable { reason } => {
                // A scan may have reported this before.
                if !self.schedule.could_not_read(Path::new("")) {
                    self.count_between(Tally { errors: 1, ..Tally::default() });
                    self.report(Notice::RootUnreadable(reason));
                }
                RootState::Unreadable
            }
            RootSeen::Replaced(watching) => RootState::Open(watching),
        };
        self.root = root;
        self.start_over();
        self.sweeps.at_the_latest(now.mono, Duration::ZERO);
    }
}
