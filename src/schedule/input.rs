//! What the worker reports to the core.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ScanId;
use super::command::EvictionStart;
use super::orphans::Due;
use crate::pair::change::{Changes, WatchError};
use crate::pair::disk_budget::FreeSpace;
use crate::pair::outcome::{JobResult, OrphanPass, ScanFound, Summary};
use crate::pair::reason::SystemError;
use crate::pair::tally::Tally;

/// Incremented whenever the cache directory is replaced or removed, or can't be read; completions of an older generation are stale.
pub(crate) type Generation = u64;

/// Identifies a request for a full sweep.
pub(crate) type RequestId = u64;

/// Something that has happened outside of the core.
#[derive(Debug)]
pub(crate) enum Input {
    /// A probe of the cache directory has ended.
    RootProbed(RootSeen),
    /// Changes in the cache directory.
    Changes(Changes),
    /// Events were lost, so that some changes will never be reported.
    EventsLost,
    /// Floods have begun or ended.
    Floods {
        /// All directories that are flooded now.
        flooded: Vec<Arc<Path>>,
        /// The directories whose floods have ended since the last report.
        calm: BTreeSet<Arc<Path>>,
    },
    /// Somebody requests a full sweep that begins from now on.
    Sweep(RequestId),
    /// A thread has done a part of its work, or all of it.
    Completed(Generation, Completion),
    /// The space on the cache directory's file system, or why it is unknown.
    FreeSpace(Generation, Result<FreeSpace, String>),
    /// Start no more work: the cleaner is being stopped.
    Stop,
}

/// What a probe has found at the path of the cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootSeen {
    /// The same as before.
    Unchanged,
    /// No directory.
    Absent,
    /// A directory that can't be read, and why.
    Unreadable { reason: SystemError },
    /// The same directory as before, with a new watcher or the reason why there is none.
    Rewatched(Watching),
    /// Another directory than before.
    Replaced(Watching),
}

/// Whether the kernel reports the changes in a cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watching {
    /// Why the directory has no watcher, if it has none.
    pub refusal: Option<WatchError>,
    /// Whether the file system reports all changes, even those of other hosts.
    pub reports_all_changes: bool,
}

/// A message from a thread.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A batch of jobs is done, except for its claims, if it `holds` any.
    Jobs { found: Vec<JobResult>, took: Duration, holds: bool, evicted: Option<EvictedBatch> },
    /// The claims of a batch are finished, too.
    Claims { found: Vec<JobResult>, took: Duration, evicted: Option<EvictedBatch> },
    /// A part of what a scan has found.
    ScanBatch { id: ScanId, found: ScanFound },
    /// A scan has ended, and has sent all that it found.
    ScanEnded { id: ScanId, summary: Box<Summary>, took: Duration },
    /// The result of a search for orphans in some directories.
    Orphans { pass: Vec<(Due, OrphanPass)>, took: Duration },
}

/// What a batch of evictions has freed. The last completion of the batch carries it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EvictedBatch {
    pub start: EvictionStart,
    /// The space before and after it, if there is a limit for it that could be read.
    pub space: Option<[FreeSpace; 2]>,
    /// What the evicted pairs took on disk.
    pub bytes: u64,
}

impl Completion {
    /// Returns its outcomes; for a scan, without the pairs that wait.
    pub(crate) fn outcomes(&self) -> &[JobResult] {
        match self {
            Self::Jobs { found, .. } | Self::Claims { found, .. } => found,
            Self::ScanBatch { found, .. } => &found.others,
            Self::ScanEnded { .. } | Self::Orphans { .. } => &[],
        }
    }

    /// Returns what it adds to the tally if it is stale, so that its outcomes are not applied.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.outcomes().iter().for_each(|found| tally += found.outcome.tally());
        match self {
            Self::Jobs { took, .. } | Self::Claims { took, .. } => tally.duration = *took,
            Self::ScanBatch { .. } => tally.checked = 0,
            Self::ScanEnded { .. } => {}
            Self::Orphans { pass, took } => tally = orphans_tally(pass, *took),
        }
        tally
    }
}

/// Returns what a search for orphans adds to the tally.
pub(super) fn orphans_tally(pass: &[(Due, OrphanPass)], took: Duration) -> Tally {
    let mut tally = Tally { duration: took, ..Tally::default() };
    for (_, pass) in pass {
        tally.orphans += pass.removed;
        for (_, failure) in &pass.failures {
            tally.errors += failure.kind();
        }
    }
    tally
}
