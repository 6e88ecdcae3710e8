//! The state of the cache directory, and when it gets a new watcher.

use std::path::Path;
use std::time::Duration;

use super::command::Notice;
use super::core::Core;
use super::input::{RootSeen, Watching};
use crate::pair::tally::{ErrorKind, Tally};
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
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewatch {
    #[default]
    No,
    Needed,
    /// The core has asked for it. No sweep begins before the answer.
    Requested,
}

impl Core {
    /// Takes in what a probe has found at the path of the cache directory.
    pub(super) fn root_probed(&mut self, seen: RootSeen, now: Now) {
        if self.rewatch == Rewatch::Requested {
            self.rewatch = Rewatch::Needed;
        }
        let root = match seen {
            RootSeen::Unchanged => return,
            RootSeen::Rewatched(watching) => {
                // The next sweep sets the watches, and makes up for all that was lost. It begins at once. If
                // events could be lost again before, a flood would delay it for ever: a new watcher would
                // follow another.
                self.root = RootState::Open(watching);
                self.rewatch = Rewatch::No;
                self.sweeps.events_lost();
                return self.sweeps.at_the_latest(now.mono, Duration::ZERO);
            }
            RootSeen::Absent => RootState::Absent,
            RootSeen::Unreadable { reason } => {
                // A scan may have reported this before.
                if !self.schedule.could_not_read(Path::new("")) {
                    let errors = ErrorKind::Directory.into();
                    self.count_outside_sweeps(Tally { errors, ..Tally::default() });
                    self.report(Notice::RootUnreadable(reason));
                }
                RootState::Unreadable
            }
            RootSeen::Replaced(watching) => RootState::Open(watching),
        };
        self.root = root;
        self.start_over(now.mono);
        self.sweeps.at_the_latest(now.mono, Duration::ZERO);
    }
}
