//! The state of the path where the cache directory should be, and how it is picked up.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use crate::disk::filesystem::reports_all_changes;
use crate::disk::root::{Located, Root, RootId, is_mounted_over, is_unrelated, locate};
use crate::display::path_field;
use crate::pair::change::{Change, WatchError};
use crate::schedule::input::{RootSeen, Watching};
use crate::watch::Watcher;
use crate::watch::inbox::Inbox;

/// The state of the path where the cache directory should be.
#[derive(Debug)]
pub(crate) enum CacheRoot {
    /// No new state: the same as before, or nothing is known before the first probe.
    Unknown,
    /// No directory.
    Absent,
    /// A directory that can't be read.
    Unreadable(io::Error),
    /// A directory that is ready to be worked on.
    Open(Arc<Open>),
}

impl CacheRoot {
    /// Returns the identity of the directory, if it is open.
    pub(crate) fn id(&self) -> Option<&RootId> {
        match self {
            Self::Open(open) => Some(&open.root.id),
            _ => None,
        }
    }

    /// Whether the kernel reports changes in the directory.
    pub(crate) fn is_watched(&self) -> bool {
        matches!(self, Self::Open(open) if open.watcher.is_ok())
    }

    /// How many directories are watched, and how many are not. Without a watcher, that is the cache directory at least.
    pub(super) fn watches(&self) -> (usize, usize) {
        match self {
            Self::Open(open) => open.watcher.as_ref().map_or((0, 1), Watcher::counts),
            Self::Unknown | Self::Absent | Self::Unreadable(_) => (0, 0),
        }
    }

    /// Whether nothing has changed since `before`.
    pub(crate) fn is_unchanged_since(&self, before: &Self) -> bool {
        match self {
            Self::Unknown => true,
            Self::Absent => matches!(before, Self::Absent),
            Self::Unreadable(_) => matches!(before, Self::Unreadable(_)),
            Self::Open(_) => false,
        }
    }

    /// Logs that the state at `path` was `before` and is this from now on. `every` is the interval
    /// between sweeps if the kernel does not report changes.
    pub(crate) fn announce(&self, before: &Self, path: &Path, every: Duration) {
        match (self, before) {
            (Self::Unknown, _) => {}
            (Self::Absent, Self::Unknown) => tracing::info!(
                path = path_field(path),
                "the cache directory does not exist yet, waiting for it"
            ),
            (Self::Absent, _) => tracing::warn!(
                path = path_field(path),
                "the cache directory was removed, waiting for it"
            ),
            (Self::Unreadable(reason), _) => tracing::error!(
                path = path_field(path),
                reason = reason.to_string(),
                "can't read the cache directory, retrying every second"
            ),
            (Self::Open(open), _) => open.announce(every),
        }
    }
}

/// A cache directory that is being worked on.
#[derive(Debug)]
pub(crate) struct Open {
    pub root: Root,
    /// The source of changes, or why there is none.
    pub watcher: Result<Watcher, WatchError>,
    /// Whether the file system reports all changes.
    pub reports_all_changes: bool,
}

impl Open {
    fn watching(&self) -> Watching {
        let refusal = self.watcher.as_ref().err().cloned();
        Watching { refusal, reports_all_changes: self.reports_all_changes }
    }

    fn announce(&self, every: Duration) {
        let path = self.root.path();
        match &self.watcher {
            Err(refusal) => tracing::warn!(
                path = path_field(path),
                ?every,
                reason = refusal.to_string(),
                "can't watch the cache directory, sweeping instead"
            ),
            Ok(_) if !self.reports_all_changes => tracing::warn!(
                path = path_field(path),
                ?every,
                "the file system does not report changes by other hosts, sweeping instead (--fallback-interval)"
            ),
            Ok(_) => tracing::info!(path = path_field(path), "watching the cache directory"),
        }
    }
}

/// Probes `path` again, where the directory `known` was before, and opens the directory that is there
/// now. Returns [`CacheRoot::Unknown`] if nothing has changed. Requests scans of mount points that were unmounted.
pub(crate) fn probe(path: &Path, known: Option<&Open>, inbox: &Arc<Inbox>) -> CacheRoot {
    let id = match locate(path) {
        Located::Directory(id) => id,
        Located::Absent | Located::NotADirectory => return CacheRoot::Absent,
        Located::Unreadable(error) => return CacheRoot::Unreadable(error),
    };
    let known = known.filter(|known| known.root.id == id);
    if let Some(Open { root, watcher: Ok(watcher), .. }) = known {
        let may_be_mounted = |error: &io::Error| is_mounted_over(error) || is_unrelated(error);
        for rel in watcher.mount_points.all() {
            if !root.open_dir(&rel).is_err_and(|error| may_be_mounted(&error)) {
                watcher.mount_points.forget(&rel);
                inbox.push(Change::Subtree(rel));
            }
        }
        return CacheRoot::Unknown;
    }
    let watcher = Watcher::start(&id.path, Arc::clone(inbox));
    if known.is_some() && watcher.is_err() {
        return CacheRoot::Unknown;
    }
    let open = || -> io::Result<Open> {
        let root = Root::open(id)?;
        let reports_all_changes = reports_all_changes(&root.open_dir(&Path::new("").into())?)?;
        Ok(Open { root, watcher, reports_all_changes })
    };
    match open() {
        Ok(open) => CacheRoot::Open(Arc::new(open)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => CacheRoot::Absent,
        Err(error) => CacheRoot::Unreadable(error),
    }
}

impl Worker {
    /// Takes over the state of the cache directory that a probe has found. Returns what it means for the core.
    pub(super) fn root_probed(&mut self, found: CacheRoot) -> RootSeen {
        self.executor.probed();
        if found.is_unchanged_since(&self.cache_root) {
            return RootSeen::Unchanged;
        }
        let is_same = found.id().is_some() && found.id() == self.cache_root.id();
        if !is_same || found.is_watched() != self.cache_root.is_watched() {
            let every = self.intervals.check.min(self.intervals.fallback);
            found.announce(&self.cache_root, &self.path, every);
        }
        let seen = match &found {
            CacheRoot::Unknown => RootSeen::Unchanged,
            CacheRoot::Absent => RootSeen::Absent,
            CacheRoot::Unreadable(error) => RootSeen::Unreadable { reason: error.into() },
            CacheRoot::Open(open) if is_same => RootSeen::Rewatched(open.watching()),
            CacheRoot::Open(open) => RootSeen::Replaced(open.watching()),
        };
        let before = std::mem::replace(&mut self.cache_root, found);
        // A thread may keep the watcher alive for a while.
        if let CacheRoot::Open(open) = before
            && let Ok(watcher) = &open.watcher
        {
            watcher.retire();
        }
        if is_same {
            self.inbox.rewatched();
        }
        seen
    }
}
