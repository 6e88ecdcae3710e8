//! Changes: the one vocabulary for what happened in the cache directory.
//!
//! A change is only a hint to inspect a name again; the disk alone decides what is there. Changes can
//! therefore be merged, duplicated and reordered without harm.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::name::PairKey;

/// How many pairs, and how many directories, may wait for the worker. Beyond that, the worker lists the
/// directories of further pairs; if there are too many directories as well, it scans everything. 65,536
/// pairs take some 6 MiB.
pub(crate) const MAX_PENDING: usize = 65_536;

/// What the last event of a pair's metadata reports about its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum WriteState {
    /// The event reports nothing about the writer.
    #[default]
    Unknown,
    /// The writer has created the file or linked it to its name.
    Created,
    /// The writer has changed the file and not closed it yet.
    Writing,
    /// The writer is done: it closed the file, or gave the complete file its name.
    Closed,
    /// The metadata no longer has its name.
    Gone,
}

/// Why the worker inspects a pair again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Trigger {
    /// True if something appeared or changed; false if it only vanished.
    pub appeared: bool,
    /// The state of the metadata's writer.
    pub writer: WriteState,
}

impl Trigger {
    /// Something may have changed that no event has reported.
    pub(crate) const UNREPORTED: Self = Self { appeared: true, writer: WriteState::Unknown };

    /// Merges a later trigger into this one.
    pub(crate) fn merge(&mut self, later: Self) {
        self.appeared |= later.appeared;
        if later.writer != WriteState::Unknown {
            self.writer = later.writer;
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Inspect this pair again.
    Pair(PairKey, Trigger),
    /// Scan this directory, relative to the cache directory, and all below it again.
    Subtree(Arc<Path>),
    /// List this directory again, but not the known directories below it.
    DirectoryAlone(Arc<Path>),
    /// This directory may contain orphans.
    Orphans(Arc<Path>),
    /// Events were lost: scan everything again.
    EventsLost,
}

/// All changes since the worker last took them.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub pairs: HashMap<PairKey, Trigger>,
    /// The directories to scan with all below them.
    pub subtrees: HashSet<Arc<Path>>,
    /// The directories to list alone.
    pub alone: HashSet<Arc<Path>>,
    /// The directories that may contain orphans.
    pub orphans: HashSet<Arc<Path>>,
    pub events_lost: bool,
}

impl Changes {
    pub(crate) fn add(&mut self, change: Change) {
        match change {
            Change::Pair(key, trigger) => {
                if let Some(pending) = self.pairs.get_mut(&key) {
                    pending.merge(trigger);
                } else if self.pairs.len() < MAX_PENDING {
                    self.pairs.insert(key, trigger);
                } else {
                    self.add(Change::DirectoryAlone(key.dir));
                }
            }
            Change::DirectoryAlone(dir)
                if self.alone.len() < MAX_PENDING || self.alone.contains(&dir) =>
            {
                self.alone.insert(dir);
            }
            Change::Subtree(dir) if self.subtrees.len() < MAX_PENDING => {
                self.subtrees.insert(dir);
            }
            Change::Orphans(dir) if self.orphans.len() < MAX_PENDING => {
                self.orphans.insert(dir);
            }
            Change::DirectoryAlone(_)
            | Change::Subtree(_)
            | Change::Orphans(_)
            | Change::EventsLost => {
                self.events_lost = true;
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
            && self.subtrees.is_empty()
            && self.alone.is_empty()
            && self.orphans.is_empty()
            && !self.events_lost
    }
}

/// The longest path below the cache directory, in bytes, that is watched.
///
/// notify keeps three copies of each path and compares all of them for each directory that is removed.
/// The kernel's path length limit allows a chain of 2,000 directories. Watching such a chain would cost
/// 18 MiB, and half a minute when it is removed.
pub(crate) const MAX_WATCHED_PATH: usize = 1024;

/// How the cleaner learns of changes.
///
/// ```
/// assert_eq!(result_cleaner::WatchState::Active.to_string(), "active");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WatchState {
    /// The kernel reports every change.
    Active,
    /// Some watches were refused, or the directory can't be read: sweeps are more frequent.
    Degraded,
    /// The file system does not report all changes: sweeps are more frequent.
    Polling,
    /// The cache directory does not exist; the cleaner picks it up when it appears.
    Absent,
}

impl fmt::Display for WatchState {
    /// Writes the same word as in the JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Why the kernel does not report changes. Variants that an administrator can fix come last, so that
/// they compare as the greatest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("their paths below the cache directory are longer than {MAX_WATCHED_PATH} bytes")]
    PathTooLong,
    #[error("events arrive faster than they can be read")]
    Flooded,
    #[error("{0}")]
    Other(String),
    #[error(
        "the limit of inotify watches is reached: raise fs.inotify.max_user_watches (`sysctl fs.inotify.max_user_watches=1048576`)"
    )]
    TooManyWatches,
    #[error(
        "the limit of inotify instances is reached: raise fs.inotify.max_user_instances (`sysctl fs.inotify.max_user_instances=1024`), or the limit of open files (`ulimit -n`)"
    )]
    TooManyInstances,
}
