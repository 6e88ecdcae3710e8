//! The one vocabulary of changes.
//!
//! Changes is a hint to look again at a name; what is there is told by the disk alone. That is why it
//! can be merged, doubled and reordered without harm.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::name::PairKey;

/// How many pairs, and how many directories, may wait for the worker. Past that their directories
/// are listed, and past that everything is. 65,536 pairs take some 6 MiB.
pub(crate) const MAX_PENDING: usize = 65_536;

/// What the last event of a pair's metadata says of its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum WriteState {
    /// Nothing.
    #[default]
    Unknown,
    /// It has given the file its name, by creating or by linking it.
    Created,
    /// It has changed the file, and not closed it yet.
    Writing,
    /// It is done: the file was closed, or got its name when it was complete.
    Closed,
    /// The metadata has lost its name.
    Gone,
}

/// Why to look at a pair again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Trigger {
    /// Something appeared or changed; else it only vanished.
    pub appeared: bool,
    /// What is known of the metadata's writer.
    pub writer: WriteState,
}

impl Trigger {
    /// Adds later changes.
    pub(crate) fn merge(&mut self, later: Self) {
        self.appeared |= later.appeared;
        if later.writer != WriteState::Unknown {
            self.writer = later.writer;
        }
    }
}

/// One piece of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Look at this pair again.
    Pair(PairKey, Trigger),
    /// Look at this directory, relative to the cache directory, and all below it again.
    Subtree(Arc<Path>),
    /// List this directory again, but not those below it that are known.
    Directory(Arc<Path>),
    /// There may be orphans in this directory.
    Orphans(Arc<Path>),
    /// Some news was lost: look at everything again.
    EventsLost,
}

/// All news since it was last taken.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub pairs: HashMap<PairKey, Trigger>,
    pub trees: HashSet<Arc<Path>>,
    pub dirs: HashSet<Arc<Path>>,
    pub orphans: HashSet<Arc<Path>>,
    pub missed: bool,
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
                    self.add(Change::Directory(key.dir));
                }
            }
            Change::Directory(dir) if self.dirs.len() < MAX_PENDING || self.dirs.contains(&dir) => {
                self.dirs.insert(dir);
            }
            Change::Subtree(dir) if self.trees.len() < MAX_PENDING => {
                self.trees.insert(dir);
            }
            Change::Orphans(dir) if self.orphans.len() < MAX_PENDING => {
                self.orphans.insert(dir);
            }
            Change::Directory(_) | Change::Subtree(_) | Change::Orphans(_) | Change::EventsLost => {
                self.missed = true;
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
            && self.trees.is_empty()
            && self.dirs.is_empty()
            && self.orphans.is_empty()
            && !self.missed
    }
}

/// Directories with longer paths below the cache directory are not watched. notify keeps three copies of each path and looks
/// at all of them for each directory that is removed: a chain of 2,000 directories, which fits into
/// what the kernel takes for a path, would cost 18 MiB, and half a minute once it is removed.
pub(crate) const MAX_WATCHED_PATH: usize = 1024;

/// Why the kernel will not tell of changes; what can be helped comes last.
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
