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
#[derive(Debug, Clone, Default)]
pub(crate) struct Watched(Arc<Mutex<Directories>>);

/// Whether a known directory has a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The kernel reports its events, or is about to.
    Watched,
    /// It has no watch: it can't be read, the kernel refused, or it is flooded.
    Unwatched,
}

#[derive(Debug, Default)]
struct Directories {
    known: BTreeMap<ByBytes, State>,
    /// Directories that were removed or replaced since stale watches were last ended, by themselves or with
    /// one above. The value says whether notify has dropped their watches, if it had any.
    moved: BTreeMap<Arc<Path>, bool>,
    /// Directories whose watches were set while they, or a directory above them, counted as moved. notify may
    /// have set these watches on another directory that has the name now.
    unsure: BTreeSet<Arc<Path>>,
}

impl Watched {
    /// Records that the directory `rel` has a watch.
    pub(crate) fn insert(&self, rel: &Arc<Path>) {
        self.set(rel, State::Watched);
    }

    /// Records that the directory `rel` has no watch, but that the event of a change of its permissions has to
    /// be reported.
    pub(crate) fn expect(&self, rel: &Arc<Path>) {
        self.set(rel, State::Unwatched);
    }

    pub(super) fn set(&self, rel: &Arc<Path>, state: State) {
        let mut directories = self.lock();
        if rel.ancestors().any(|above| directories.moved.contains_key(above)) {
            directories.unsure.insert(Arc::clone(rel));
        }
        directories.known.insert(ByBytes(Arc::clone(rel)), state);
    }

    /// Records that notify has set the watch of `rel`, which was requested before.
    ///
    /// If the directory, or one above it, was moved meanwhile, it is unknown which directory has the watch.
    /// Returns whether it has to be scanned again. It has to if another scan has ended stale watches meanwhile,
    /// too early for this one.
    pub(crate) fn confirm(&self, rel: &Arc<Path>) -> bool {
        let mut directories = self.lock();
        let is_forgotten = !directories.known.contains_key(rel.as_os_str());
        if is_forgotten {
            directories.known.insert(ByBytes(Arc::clone(rel)), State::Watched);
            directories.moved.insert(Arc::clone(rel), false);
        }
        if rel.ancestors().any(|above| directories.moved.contains_key(above)) {
            directories.unsure.insert(Arc::clone(rel));
        }
        is_forgotten
    }

    /// How many directories are known.
    pub(super) fn len(&self) -> usize {
        self.lock().known.len()
    }

    /// Whether the kernel reports the events of the directory `rel`.
    pub(super) fn is_watched(&self, rel: &Path) -> bool {
        self.lock().known.get(rel.as_os_str()) == Some(&State::Watched)
    }

    /// Whether `rel` was seen to be a directory, and is still in place.
    pub(crate) fn is_known(&self, rel: &Path) -> bool {
        let directories = self.lock();
        directories.known.contains_key(rel.as_os_str()) && !directories.moved.contains_key(rel)
    }

    /// Whether `rel` has a watch that need not be set again.
    pub(crate) fn is_settled(&self, rel: &Path) -> bool {
        let directories = self.lock();
        directories.known.get(rel.as_os_str()) == Some(&State::Watched)
            && !rel.ancestors().any(|above| directories.moved.contains_key(above))
    }

    /// Whether `rel`, or a directory below it, is known.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn has_below(&self, rel: &Path) -> bool {
        self.lock().below(rel).next().is_some()
    }

    /// Records that the name `rel` was removed, or given to something else; `drops` says whether notify drops
    /// its watch for that. Returns whether it, or what is below it, was known to be a directory.
    pub(super) fn note_moved(&self, rel: &Path, drops: bool) -> bool {
        let mut directories = self.lock();
        let was_known = directories.below(rel).next().is_some();
        // The worker checks the cache directory itself every second.
        if was_known && !rel.as_os_str().is_empty() {
            match directories.moved.get_mut(rel) {
                Some(dropped) => *dropped |= drops,
                None => drop(directories.moved.insert(rel.into(), drops)),
            }
        }
        was_known
    }

    /// Forgets the directories that were removed or replaced, with all below them. Returns those whose watches
    /// notify keeps under their old paths.
    ///
    /// If a watched directory is moved away or removed, notify drops its watch and those of all directories
    /// below. It keeps them if another directory replaces it.
    pub(crate) fn take_stale(&self) -> Vec<Arc<Path>> {
        let mut directories = self.lock();
        let mut stale = Vec::new();
        for (rel, drops) in std::mem::take(&mut directories.moved) {
            let was_dropped = drops
                && directories.known.get(rel.as_os_str()) == Some(&State::Watched)
                && !directories.unsure.contains(&rel);
            let below: Vec<_> = directories.below(&rel).cloned().collect();
            for dir in below {
                let is_unsure = directories.unsure.remove(&dir);
                let was_watched = directories.known.remove(dir.as_os_str()) == Some(State::Watched);
                if was_watched && (is_unsure || !was_dropped) {
                    stale.push(dir);
                }
            }
        }
        directories.unsure.clear();
        stale
    }

    /// Forgets the directories without a watch, because no event reports their removal.
    pub(crate) fn forget_unwatched(&self) {
        self.lock().known.retain(|_, state| *state == State::Watched);
    }

    /// Forgets `rel` and all below it: the directory is gone. Returns whether one of them was known. The event of
    /// its removal may come later, and will then seem to be about a file.
    pub(crate) fn forget(&self, rel: &Path) -> bool {
        let mut directories = self.lock();
        let below: Vec<_> = directories.below(rel).cloned().collect();
        for dir in &below {
            directories.known.remove(dir.as_os_str());
        }
        !below.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Directories> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directories {
    /// The known directories among `dir` and all below it.
    fn below(&self, dir: &Path) -> impl Iterator<Item = &Arc<Path>> {
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
        itself.into_iter().chain(below).map(|(path, _)| &path.0)
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
        let watched = Watched::default();
        let known = ["", "a", "a-b", "a-b/c", "a.d", "a/b", "a/b/c", "a0", "x/y"];
        for rel in known {
            watched.insert(&Path::new(rel).into());
        }
        let below = |rel: &str| -> Vec<String> {
            let directories = watched.lock();
            directories.below(Path::new(rel)).map(|dir| dir.display().to_string()).collect()
        };
        assert_eq!(below("a"), ["a", "a/b", "a/b/c"]);
        assert_eq!(below("a-b"), ["a-b", "a-b/c"]);
        assert_eq!(below("x"), ["x/y"], "though it is unknown itself");
        assert_eq!(below("y"), [""; 0]);
        assert_eq!(below("").len(), known.len());
    }
}
