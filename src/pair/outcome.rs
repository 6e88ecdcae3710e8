//! What is asked about pairs and directories, and what came of it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rustix::io::Errno;

use super::change::WatchError;
use super::mark::Mark;
use super::name::PairKey;
use super::tally::OrphanTally;
use super::version::{Broken, FileState, FileTime};

/// What was found of a pair, and what became of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// There is no complete pair.
    Incomplete,
    /// It may not go yet. `bytes` is `None` where its result was only listed.
    NotDue { expires_at: DateTime<Utc>, bytes: Option<u64>, mark: Option<Mark> },
    /// It waits as before, because its metadata still has one of the [marks](super::mark) that are known.
    Unchanged,
    /// It may go, but this context only looks.
    Due { expires_at: DateTime<Utc>, bytes: u64 },
    /// It is due, but its result may be half published: to be looked at again in a while, with
    /// what was seen in hand.
    Unsettled { result: FileState, wait: Duration, expires_at: DateTime<Utc>, bytes: u64 },
    /// Its metadata can't be used; `wait` tells for how long it may still be half written.
    Broken { metadata: FileState, reason: Broken, wait: Duration, bytes: u64 },
    /// It was deleted, `late` after its expiry; `leftover` tells why its metadata could not be.
    Deleted { freed: u64, leftover: Option<Failure>, late: TimeDelta },
    /// It changed just when it was about to be deleted, or a file system is mounted over it.
    Changed,
    /// Another cleaner has taken it, or a dead one had.
    ClaimedElsewhere,
    /// It could not be looked at, or not be deleted.
    Failed(Failure),
    /// A file of it is still under a reserved name, and could not be given its own name back.
    RestoreFailed(Failure),
}

impl Outcome {
    /// Why what is due waits all the same, if that is all that is in its way.
    pub(crate) fn delay(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unsettled { .. } => {
                "the result is newer than its metadata and may be half published: retried once it has been unchanged for a second"
            }
            Self::Changed => "the pair changed while it was being deleted: retried soon",
            Self::ClaimedElsewhere => "another cleaner has claimed it: retried soon",
            _ => return None,
        })
    }
}

/// Why something could not be done to a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    doing: &'static str,
    /// `None` where the system did not refuse, but a lock is held.
    errno: Option<i32>,
}

impl Failure {
    pub(crate) fn new(doing: &'static str, error: &io::Error) -> Self {
        Self { doing, errno: error.raw_os_error() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            // Only a claim asks for a name that is free.
            Some(errno) if errno == Errno::EXIST.raw_os_error() => {
                write!(f, "can't {}: another file has the reserved name", self.doing)
            }
            Some(errno) => {
                write!(f, "can't {}: {}", self.doing, io::Error::from_raw_os_error(errno))
            }
            None => {
                write!(f, "can't {}: another program has locked the directory", self.doing)
            }
        }
    }
}

/// A pair to attend to.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub key: PairKey,
    /// The result as it was when it was given time to settle, which has passed.
    pub settled: Option<FileState>,
}

/// An outcome and the pair that it is about.
#[derive(Debug)]
pub(crate) struct JobResult {
    pub key: PairKey,
    pub outcome: Outcome,
}

/// What a scan saw besides pairs.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Results seen.
    pub results: u64,
    /// Directories that could not be read, relative to the cache directory, and why.
    pub unreadable: Vec<(Arc<Path>, io::Error)>,
    /// How many directories the kernel refused to watch, and why it refused the worst of them.
    pub refused: Option<(u64, WatchError)>,
    /// Deletions that a killed cleaner had left unfinished, and the bytes that this freed.
    pub finished: u64,
    pub freed: u64,
    /// Whether a path did not lead to the directory that was to be watched, although this is still
    /// there: the cache directory, or one above it, was away for an instant.
    pub astray: bool,
    /// Directories to scan again after a pause: they have claims that could not be taken up yet, or an
    /// error that says nothing of them kept them from being read.
    pub recoveries: Vec<Arc<Path>>,
    /// Reserved names that could not be dealt with, and why.
    pub stranded: Vec<(PathBuf, io::Error)>,
    /// Directories with something that may be orphans, where that is to be removed.
    pub orphans: Vec<Arc<Path>>,
    /// Directories to scan next: nobody knew them, and only the directory above was to be listed; or they
    /// were elsewhere when their watch was to be set.
    pub new_dirs: Vec<Arc<Path>>,
    /// For how long the scan waited for answers, instead of working.
    pub waited: Duration,
}

/// What became of the orphans in one directory.
#[derive(Debug, Default)]
pub(crate) struct OrphanPass {
    /// What was removed, or would be.
    pub removed: OrphanTally,
    /// What could not be removed, relative to the cache directory, and why.
    pub failures: Vec<(PathBuf, Failure)>,
    /// When the next of what is left may be old enough.
    pub next: Option<DateTime<Utc>>,
    /// What is old enough, and was not seen to be so before.
    pub candidates: OrphanCandidates,
}

/// What goes if it is found unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OrphanCandidates {
    pub files: HashMap<Vec<u8>, FileState>,
    /// The directory itself, which is empty: its inode, and when it was changed.
    pub directory: Option<(u64, FileTime)>,
}

impl OrphanCandidates {
    pub(crate) fn extend(&mut self, more: Self) {
        self.files.extend(more.files);
        self.directory = self.directory.or(more.directory);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.directory.is_none()
    }
}
