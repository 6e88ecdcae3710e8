//! The directories of one cache directory that a watcher knows, and whether they are watched.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The directories that a watcher knows, relative to the cache directory. Clones share them.
///
/// notify sets no watch where it believes to have one of the same path, and it may keep that of a directory that
/// was renamed or removed. So whenever a directory with a watch is forgotten, `unwatch` is called with it. It is
/// called under the lock: a request to watch the same path again then comes after it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownDirectories(Arc<Mutex<Directories>>);

/// Whether a known directory has a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WatchStatus {
    /// The kernel reports its events, or is about to.
    Watched,
    /// It has no watch: it can't be read, the kernel refused, or it is flooded.
    Unwatched,
    /// It had a watch before it could not be read. notify may still have that watch, which does not count.
    StaleWatch,
}

#[derive(Debug, Default)]
struct Directories {
    known: BTreeMap<ByBytes, WatchStatus>,
    /// How many of them are watched.
    watched: usize,
    /// Directories that were removed or replaced since stale watches were last ended, by themselves or with
    /// one above.
    moved: BTreeSet<Arc<Path>>,
}

impl KnownDirectories {
    /// Records that the directory `rel` is about to have a watch. Calls `unwatch` with it if notify may still have one
    /// that does not count.
    pub(crate) fn insert(&self, rel: &Arc<Path>, unwatch: impl FnOnce(Vec<Arc<Path>>)) {
        let mut directories = self.lock();
        let before = directories.set(rel, WatchStatus::Watched);
        if before == Some(WatchStatus::StaleWatch) {
            unwatch(vec![Arc::clone(rel)]);
        }
    }

    /// Records that notify has set no watch of the directory `rel`, but that the event of a change of its
    /// permissions has to be reported.
    pub(crate) fn refuse(&self, rel: &Arc<Path>) {
        self.lock().set(rel, WatchStatus::Unwatched);
    }

    /// Records the same of a directory that notify may have set a watch of. It goes on reporting events.
    pub(crate) fn expect(&self, rel: &Arc<Path>) {
        let mut directories = self.lock();
        let status = match directories.known.get(rel.as_os_str()) {
            None => WatchStatus::Unwatched,
            Some(WatchStatus::Watched) => WatchStatus::StaleWatch,
            Some(WatchStatus::Unwatched | WatchStatus::StaleWatch) => return,
        };
        directories.set(rel, status);
    }

    /// Records that notify has set the watch of `rel`, which was requested before.
    ///
    /// Returns whether the directory has to be scanned again, because another scan has forgotten it meanwhile. That
    /// scan has ended the watch, or is about to.
    pub(crate) fn confirm(&self, rel: &Arc<Path>) -> bool {
        let mut directories = self.lock();
        let is_forgotten = !directories.known.contains_key(rel.as_os_str());
        if is_forgotten {
            directories.set(rel, WatchStatus::Watched);
            directories.moved.insert(Arc::clone(rel));
        }
        is_forgotten
    }

    /// How many directories are known.
    pub(super) fn len(&self) -> usize {
        self.lock().known.len()
    }

    /// How many directories are watched, and how many are known and not watched.
    pub(super) fn counts(&self) -> (usize, usize) {
        let directories = self.lock();
        (directories.watched, directories.known.len() - directories.watched)
    }

    /// Whether the kernel reports the events of the directory `rel`.
    pub(super) fn is_watched(&self, rel: &Path) -> bool {
        self.lock().known.get(rel.as_os_str()) == Some(&WatchStatus::Watched)
    }

    /// Whether `rel` was seen to be a directory, and is still in place.
    pub(crate) fn is_known(&self, rel: &Path) -> bool {
        let directories = self.lock();
        directories.known.contains_key(rel.as_os_str()) && !directories.moved.contains(rel)
    }

    /// Whether `rel` has a watch that need not be set again.
    pub(crate) fn has_current_watch(&self, rel: &Path) -> bool {
        let directories = self.lock();
        directories.known.get(rel.as_os_str()) == Some(&WatchStatus::Watched)
            && !rel.ancestors().any(|above| directories.moved.contains(above))
    }

    /// Whether `rel`, or a directory below it, is known.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn has_below(&self, rel: &Path) -> bool {
        self.lock().below(rel).next().is_some()
    }

    /// Records that the name `rel` was removed, or given to something else. Returns whether it, or what is below
    /// it, was known to be a directory.
    pub(super) fn note_moved(&self, rel: &Path) -> bool {
        let mut directories = self.lock();
        let was_known = directories.below(rel).next().is_some();
        // The worker checks the cache directory itself every second.
        if was_known && !rel.as_os_str().is_empty() && !directories.moved.contains(rel) {
            directories.moved.insert(rel.into());
        }
        was_known
    }

    /// Forgets the directories that were removed or replaced, with all below them. Calls `unwatch` with those that
    /// had a watch.
    pub(crate) fn drop_stale(&self, unwatch: impl FnOnce(Vec<Arc<Path>>)) {
        let mut directories = self.lock();
        let mut stale = Vec::new();
        for rel in std::mem::take(&mut directories.moved) {
            directories.forget(&rel, &mut stale);
        }
        unwatch(stale);
    }

    /// Forgets the directories below `tree` without a watch that counts, because no event reports their removal. Calls
    /// `unwatch` with those that notify may have a watch of all the same.
    pub(crate) fn forget_unwatched(&self, tree: &Path, unwatch: impl FnOnce(Vec<Arc<Path>>)) {
        let (mut directories, mut stale) = (self.lock(), Vec::new());
        let unwatched =
            directories.below(tree).filter(|(_, status)| *status != WatchStatus::Watched);
        let unwatched: Vec<_> = unwatched.map(|(rel, _)| Arc::clone(rel)).collect();
        for rel in unwatched.into_iter().filter(|rel| **rel != *tree || tree.as_os_str().is_empty())
        {
            if directories.known.remove(rel.as_os_str()) == Some(WatchStatus::StaleWatch) {
                stale.push(rel);
            }
        }
        unwatch(stale);
    }

    /// Forgets `rel` and all below it: the directory is gone. Calls `unwatch` with those that had a watch. Returns
    /// whether one of them was known. The event of its removal may come later, and will then seem to be about a
    /// file.
    pub(crate) fn forget(&self, rel: &Path, unwatch: impl FnOnce(Vec<Arc<Path>>)) -> bool {
        let mut directories = self.lock();
        let mut watched = Vec::new();
        let was_known = directories.forget(rel, &mut watched);
        unwatch(watched);
        was_known
    }

    fn lock(&self) -> MutexGuard<'_, Directories> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directories {
    /// Sets the status of a directory, and returns the one before.
    fn set(&mut self, rel: &Arc<Path>, status: WatchStatus) -> Option<WatchStatus> {
        let before = self.known.insert(ByBytes(Arc::clone(rel)), status);
        self.watched += usize::from(status == WatchStatus::Watched);
        self.watched -= usize::from(before == Some(WatchStatus::Watched));
        before
    }

    /// Forgets `dir` and all below it. Adds those that had a watch to `watched`. Returns whether one of them was
    /// known.
    fn forget(&mut self, dir: &Path, watched: &mut Vec<Arc<Path>>) -> bool {
        let below: Vec<_> = self.below(dir).map(|(rel, _)| Arc::clone(rel)).collect();
        for dir in &below {
            let before = self.known.remove(dir.as_os_str());
            self.watched -= usize::from(before == Some(WatchStatus::Watched));
            if before != Some(WatchStatus::Unwatched) {
                watched.push(Arc::clone(dir));
            }
        }
        !below.is_empty()
    }

    /// The known directories among `dir` and all below it, and their statuses.
    fn below(&self, dir: &Path) -> impl Iterator<Item = (&Arc<Path>, WatchStatus)> {
        let dir = dir.as_os_str();
        let mut prefix = OsString::with_capacity(dir.len() + 1);
        prefix.push(dir);
        // In the order of bytes, all that is below a directory stands together, but not right after it.
        let mut itself = None;
        if !dir.is_empty() {
            prefix.push("/");
            itself = self.known.get_key_value(dir);
        }
        let from_there = (Bound::Included(prefix.as_os_str()), Bound::Unbounded);
        let below = self.known.range::<OsStr, _>(from_there);
        let is_below = move |path: &ByBytes| path.bytes().as_bytes().starts_with(prefix.as_bytes());
        let below = below.take_while(move |(path, _)| is_below(path));
        itself.into_iter().chain(below).map(|(path, status)| (&path.0, *status))
    }
}

/// A path that is compared by its bytes. No directory has two spellings here, and splitting paths into
/// components would take most of the time of a lookup.
#[derive(Debug, Clone)]
struct ByBytes(Arc<Path>);

impl ByBytes {
    fn bytes(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

impl Borrow<OsStr> for ByBytes {
    fn borrow(&self) -> &OsStr {
        self.bytes()
    }
}

impl PartialEq for ByBytes {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for ByBytes {}

impl PartialOrd for ByBytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByBytes {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_directory_is_distinguished_from_names_that_begin_alike() {
        let watched = KnownDirectories::default();
        let known = ["", "a", "a-b", "a-b/c", "a.d", "a/b", "a/b/c", "a0", "x/y"];
        for rel in known {
            watched.insert(&Path::new(rel).into(), |_| {});
        }
        let below = |rel: &str| -> Vec<String> {
            let directories = watched.lock();
            directories.below(Path::new(rel)).map(|(dir, _)| dir.display().to_string()).collect()
        };
        assert_eq!(below("a"), ["a", "a/b", "a/b/c"]);
        assert_eq!(below("a-b"), ["a-b", "a-b/c"]);
        assert_eq!(below("x"), ["x/y"], "though it is unknown itself");
        assert_eq!(below("y"), [""; 0]);
        assert_eq!(below("").len(), known.len());
    }

    #[test]
    fn the_watched_and_the_others_are_counted_whatever_becomes_of_them() {
        let watched = KnownDirectories::default();
        let rel = |rel: &str| -> Arc<Path> { Path::new(rel).into() };
        for dir in ["", "a", "a/b", "c", "c"] {
            watched.insert(&rel(dir), |_| {});
        }
        assert_eq!(watched.counts(), (4, 0));
        watched.expect(&rel("c"));
        watched.refuse(&rel("d"));
        watched.expect(&rel("e"));
        assert_eq!(watched.counts(), (3, 3));
        watched.insert(&rel("c"), |_| {});
        watched.insert(&rel("d"), |_| {});
        assert_eq!(watched.counts(), (5, 1));
        watched.forget_unwatched(Path::new("a"), |_| {});
        assert_eq!(watched.counts(), (5, 1), "it is not below");
        watched.forget_unwatched(Path::new(""), |_| {});
        assert_eq!(watched.counts(), (5, 0));
        watched.forget(Path::new("a"), |_| {});
        assert!(watched.confirm(&rel("a")) && !watched.confirm(&rel("a")));
        assert_eq!(watched.counts(), (4, 0));
    }
}
