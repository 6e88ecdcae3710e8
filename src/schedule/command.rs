//! What the core asks the worker to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::ScanId;
use super::input::{Generation, RequestId};
use super::orphans::Due;
use super::scans::SubtreeSet;
use crate::pair::change::WatchError;
use crate::pair::disk_budget::{FreeSpace, Shortfall};
use crate::pair::outcome::{Failure, Job};
use crate::pair::reason::{self, Reason, SystemError};
use crate::pair::tally::Tally;
use crate::pair::version::Broken;

/// One command to the worker. Work is started on other threads, which report its completion.
#[derive(Debug)]
pub(crate) enum Command {
    /// Check the clock, and probe the cache directory, unless a probe is running.
    Tick,
    /// Open the cache directory again, with a new watcher. If a probe is running, it sends its message even if
    /// nothing has changed; the core then asks again.
    Rewatch,
    /// The cache directory was replaced or removed, or can't be read: cancel all work. Completions carry this
    /// generation from now on.
    StartOver(Generation),
    /// Inspect these pairs, and delete those that are due.
    Process(Vec<Job>),
    /// Inspect these pairs, and evict those that still can be evicted. The batch's last completion returns the start.
    Evict(Vec<Job>, EvictionStart),
    /// Scan these directories.
    Scan(ScanId, SubtreeSet),
    /// Remove the orphans in these directories. Each search may return so many new candidates.
    RemoveOrphans(Vec<Due>, usize),
    /// Read the free space of the cache directory's file system.
    ReadFreeSpace,
    /// A limit of the disk budget is exceeded, and nothing can be evicted: find out what else takes the space, and
    /// write it to the log.
    MeasureOccupancy(Shortfall),
    /// Add this to the totals.
    Count(Tally),
    /// Report this as done outside of full sweeps.
    CountOutsideSweeps(Tally),
    /// A full sweep has ended: report it, and answer these requests.
    SweepDone(Tally, Vec<RequestId>),
    /// Answer these requests: there is no directory to sweep.
    NothingToSweep(Vec<RequestId>),
    /// Write this to the log, and record it if it is an error.
    Report(Notice),
}

/// The state in which a batch of evictions starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EvictionStart {
    /// What all pairs take on disk, if nothing is about to be freed, and all that was evicted shows as free.
    pub size: Option<u64>,
    /// How many batches have ended before.
    pub batches_ended: u64,
}

/// Something to report.
#[derive(Debug)]
pub(crate) enum Notice {
    /// An error that was counted, and the path of its file or directory, relative to the cache directory.
    Error(PathBuf, CountedError),
    /// The cache directory can't be read, which counts as an error.
    RootUnreadable(SystemError),
    /// The kernel refuses to watch this many directories.
    Unwatched(u64, WatchError),
    /// All directories are watched again.
    WatchedAgain,
    /// A dry run would delete or evict this result, whose path is relative to the cache directory.
    WouldDelete { result: PathBuf, expires_at: DateTime<Utc>, evicts: bool },
    /// The free space can't be read, and why.
    SpaceUnknown(String),
    /// The file system reports no size, so that nothing is evicted for its free space.
    NoFileSystemSize,
    /// The file system, with this many bytes, can't keep as much free as it should.
    MinFreeTooLarge(u64),
    /// Evictions don't free space, and pause for this long.
    EvictionsPaused(Duration),
    /// Evictions go on and don't reach the limit: what all pairs take, and the space.
    EvictionsTooSlow { size: u64, space: Option<FreeSpace> },
}

/// An error that was counted.
#[derive(Debug)]
pub(crate) enum CountedError {
    /// A directory can't be read.
    DirectoryUnreadable(io::Error),
    /// An interrupted deletion can't be recovered.
    NotRecovered(io::Error),
    /// The reserved name of a result stays in use.
    ReservedNameInUse,
    /// Metadata is invalid.
    InvalidMetadata(Broken),
    /// An operation has failed, for the first time or again. It is retried after a pause, if that is known.
    Failed { failure: Failure, is_first: bool, retry_in: Option<Duration> },
}

impl CountedError {
    pub(super) fn first(failure: Failure) -> Self {
        Self::Failed { failure, is_first: true, retry_in: None }
    }

    /// What happened, without the reason of the system.
    pub(crate) fn message(&self) -> &'static str {
        match self {
            Self::DirectoryUnreadable(_) => reason::DIRECTORY_UNREADABLE,
            Self::NotRecovered(_) => reason::NOT_RECOVERED,
            Self::ReservedNameInUse => reason::NAME_IN_USE,
            Self::InvalidMetadata(_) => reason::INVALID_METADATA,
            Self::Failed { .. } => "still failing",
        }
    }

    /// What happened, and why, for whoever inspects the cleaner.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::DirectoryUnreadable(error) => Reason::DirectoryUnreadable(error.into()),
            Self::NotRecovered(error) => Reason::NotRecovered(error.into()),
            Self::ReservedNameInUse => Reason::ReservedNameInUse,
            Self::InvalidMetadata(Broken::Invalid(why)) => Reason::InvalidMetadata(why.to_string()),
            Self::InvalidMetadata(Broken::Unreadable(errno)) => {
                Reason::MetadataUnreadable(io::Error::from_raw_os_error(*errno).into())
            }
            Self::Failed { failure, .. } => (*failure).into(),
        }
    }
}
