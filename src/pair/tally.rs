//! Counts of completed work that can be added up.

use std::time::Duration;

/// Counts of completed work: the figures of a `SweepReport` before it is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub deleted: u64,
    pub freed_bytes: u64,
    pub checked: u64,
    pub errors: u64,
    pub duration: Duration,
    pub orphans: OrphanTally,
    /// Pairs that were deleted before their expiry, and what they took on disk; not part of the above.
    pub evicted: u64,
    pub evicted_bytes: u64,
    /// Pairs that a dry run would have deleted or evicted.
    pub would_delete: u64,
    pub would_evict: u64,
}

/// Counts of removed orphans and pruned directories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OrphanTally {
    pub orphans: u64,
    pub orphan_bytes: u64,
    pub pruned: u64,
}

impl std::ops::AddAssign for OrphanTally {
    fn add_assign(&mut self, more: Self) {
        self.orphans += more.orphans;
        self.orphan_bytes += more.orphan_bytes;
        self.pruned += more.pruned;
    }
}

impl Tally {
    /// Returns true if it contains nothing that has to be reported.
    #[cfg(feature = "report")]
    pub(crate) fn is_idle(&self) -> bool {
        self.deleted == 0 && self.freed_bytes == 0 && self.errors == 0
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.deleted += more.deleted;
        self.freed_bytes += more.freed_bytes;
        self.checked += more.checked;
        self.errors += more.errors;
        self.duration += more.duration;
        self.orphans += more.orphans;
        self.evicted += more.evicted;
        self.evicted_bytes += more.evicted_bytes;
        self.would_delete += more.would_delete;
        self.would_evict += more.would_evict;
    }
}
