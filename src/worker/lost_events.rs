//! What the worker does when the kernel has dropped events, and about directories that flood it.

use std::time::Instant;

use super::{FLOOD_LIST_INTERVAL, Worker};
use crate::display::path_field;
use crate::watch::floods::FloodReport;

impl Worker {
    /// Logs the floods that have begun and ended, and schedules listings of flooded directories.
    pub(super) fn follow_floods(&mut self) {
        let FloodReport { begun, ended, calm } = self.inbox.floods.take_report();
        for dir in begun {
            tracing::warn!(
                path = path_field(&self.root().join(&dir)),
                "directory flooded with events, listing it every second until it calms down"
            );
        }
        for dir in ended {
            tracing::info!(
                path = path_field(&self.root().join(&dir)),
                "flooded directory has calmed down, watching it again"
            );
        }
        for dir in calm {
            self.schedule.list(dir);
        }
        if Instant::now() >= self.next_flood_list {
            self.next_flood_list = Instant::now() + FLOOD_LIST_INTERVAL;
            for dir in self.inbox.floods.all() {
                self.schedule.list(dir);
            }
        }
    }

    /// Records that something has changed and the changes will not arrive.
    pub(super) fn on_events_lost(&mut self) {
        self.watches_lost = true;
        self.sweeps.events_lost();
    }

    /// Whether some directory has more events than can be read.
    pub(super) fn is_flooded(&self) -> bool {
        !self.inbox.floods.is_empty()
    }
}
