//! What the core does when the kernel has dropped events, and about directories that flood it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache_root::Rewatch;
use super::core::Core;
use crate::sys::clock::Now;

/// How often the worker lists a directory whose events can't be read fast enough.
const FLOOD_LIST_INTERVAL: Duration = Duration::from_secs(1);

/// The directories that have more events than can be read, and therefore have no watch.
#[derive(Debug)]
pub(super) struct Flooded {
    dirs: Vec<Arc<Path>>,
    /// When to list them again.
    next_list: Instant,
}

impl Flooded {
    pub(super) fn new(now: Instant) -> Self {
        Self { dirs: Vec::new(), next_list: now }
    }

    pub(super) fn any(&self) -> bool {
        !self.dirs.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.dirs.clear();
    }

    /// When to list them again, if there are any.
    pub(super) fn next_list(&self) -> Option<Instant> {
        self.any().then_some(self.next_list)
    }

    /// Delays the next listing. A flooded directory may be so large that it can't be listed every second.
    pub(super) fn rest_until(&mut self, at: Instant) {
        self.next_list = self.next_list.max(at);
    }
}

impl Core {
    /// Records that something has changed and the changes will not arrive. A sweep makes up for that soon,
    /// with a new watcher.
    pub(super) fn events_lost(&mut self) {
        if self.rewatch == Rewatch::No {
            self.rewatch = Rewatch::Needed;
        }
        self.sweeps.events_lost();
    }

    pub(super) fn floods_changed(
        &mut self,
        flooded: Vec<Arc<Path>>,
        calm: BTreeSet<Arc<Path>>,
        now: Now,
    ) {
        if !self.flooded.any() {
            self.flooded.rest_until(now.mono + FLOOD_LIST_INTERVAL);
        }
        self.flooded.dirs = flooded;
        for dir in calm {
            self.schedule.rescan_alone(dir);
        }
    }

    /// Schedules listings of the flooded directories.
    pub(super) fn list_flooded(&mut self, now: Now) {
        if self.flooded.next_list().is_some_and(|at| at <= now.mono) {
            self.flooded.next_list = now.mono + FLOOD_LIST_INTERVAL;
            for dir in &self.flooded.dirs {
                self.schedule.rescan_alone(Arc::clone(dir));
            }
        }
    }
}
