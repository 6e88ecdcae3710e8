//! Directories over which another file system is mounted. No event reports when it is unmounted.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most mount points that are tracked. What others cover is found by the next full sweep after they are unmounted.
const MAX_TRACKED: usize = 1024;

/// The mount points that scans have met, relative to the cache directory.
#[derive(Debug, Default)]
pub(crate) struct MountPoints(Mutex<BTreeSet<Arc<Path>>>);

impl MountPoints {
    pub(crate) fn track(&self, rel: &Arc<Path>) {
        let mut tracked = self.lock();
        if tracked.len() < MAX_TRACKED {
            tracked.insert(Arc::clone(rel));
        }
    }

    pub(crate) fn forget(&self, rel: &Path) {
        self.lock().remove(rel);
    }

    /// Returns those that are tracked.
    pub(crate) fn all(&self) -> Vec<Arc<Path>> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Arc<Path>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
