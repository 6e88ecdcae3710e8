//! Counts of completed work that can be added up.

use std::time::Duration;

/// Counts of completed work: the figures of a `SweepReport` before it is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub deleted: u64,
    pub freed_bytes: u64,
    pub checked: u64,
    pub errors: Errors,
    pub duration: Duration,
    pub orphans: OrphanTally,
    /// Pairs that were deleted before their expiry, and what they took on disk; not part of the above.
    pub evicted: u64,
    pub evicted_bytes: u64,
    /// Pairs that a dry run would have deleted or evicted.
    pub would_delete: u64,
    pub would_evict: u64,
}

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Metadata is invalid.
    InvalidMetadata,
    /// A directory can't be read, or is not where it was.
    Directory,
    /// A pair can't be read.
    Inspection,
    /// A pair, or its metadata, can't be deleted.
    Deletion,
    /// An interrupted deletion can't be recovered, or a file not be restored.
    Recovery,
    /// An orphan or an empty directory can't be removed.
    Orphan,
}

impl ErrorKind {
    /// All kinds, in the order of their declaration.
    pub(crate) const ALL: [Self; 6] = [
        Self::InvalidMetadata,
        Self::Directory,
        Self::Inspection,
        Self::Deletion,
        Self::Recovery,
        Self::Orphan,
    ];

    /// Returns the name in the stats and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InvalidMetadata => "invalid_metadata",
            Self::Directory => "directory",
            Self::Inspection => "inspection",
            Self::Deletion => "deletion",
            Self::Recovery => "recovery",
            Self::Orphan => "orphan",
        }
    }
}

/// Numbers of errors by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Errors([u64; ErrorKind::ALL.len()]);

impl Errors {
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns each kind with its number.
    pub(crate) fn by_kind(&self) -> impl Iterator<Item = (ErrorKind, u64)> {
        ErrorKind::ALL.into_iter().zip(self.0)
    }
}

impl From<ErrorKind> for Errors {
    fn from(kind: ErrorKind) -> Self {
        let mut errors = Self::default();
        errors += kind;
        errors
    }
}

impl std::ops::AddAssign<ErrorKind> for Errors {
    fn add_assign(&mut self, kind: ErrorKind) {
        self.0[kind as usize] += 1;
    }
}

impl std::ops::AddAssign for Errors {
    fn add_assign(&mut self, more: Self) {
        self.0.iter_mut().zip(more.0).for_each(|(sum, more)| *sum += more);
    }
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
        let Self { orphans, orphan_bytes, pruned } = more;
        self.orphans += orphans;
        self.orphan_bytes += orphan_bytes;
        self.pruned += pruned;
    }
}

impl Tally {
    /// Returns true if it contains nothing that has to be reported.
    #[cfg(feature = "report")]
    pub(crate) fn is_idle(&self) -> bool {
        self.deleted == 0 && self.freed_bytes == 0 && self.errors.total() == 0
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        // This names each field, so that a new counter can't be forgotten.
        let Self {
            deleted,
            freed_bytes,
            checked,
            errors,
            duration,
            orphans,
            evicted,
            evicted_bytes,
            would_delete,
            would_evict,
        } = more;
        self.deleted += deleted;
        self.freed_bytes += freed_bytes;
        self.checked += checked;
        self.errors += errors;
        self.duration += duration;
        self.orphans += orphans;
        self.evicted += evicted;
        self.evicted_bytes += evicted_bytes;
        self.would_delete += would_delete;
        self.would_evict += would_evict;
    }
}
