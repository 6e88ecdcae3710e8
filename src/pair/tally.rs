//! Figures of work, to be added up.

use std::time::Duration;

/// Figures of work that was done: those of a `SweepReport`, before they are told to anybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub deleted: u64,
    pub freed_bytes: u64,
    pub checked: u64,
    pub errors: u64,
    pub duration: Duration,
    pub orphans: OrphanTally,
}

/// Figures of orphans that was removed.
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
    /// Whether there is nothing in it that anybody needs to hear of.
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
    }
}
