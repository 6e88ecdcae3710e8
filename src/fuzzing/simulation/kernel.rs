//! The simulated kernel's queue of events, and notify, which reads it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{Flag, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind};

use super::disk::DirId;
use crate::pair::change::Change;
use crate::watch::inbox::Inbox;
use crate::watch::{KnownDirectories, Translator};

/// Does not exist, so that the disk does not show what an event is about.
pub(super) const ROOT: &str = "/nonexistent/cache";
/// How many events the queue holds. The real queue holds 16,384.
const QUEUE_LENGTH: usize = 40;

/// One instance of inotify and its reader.
pub(super) struct Kernel {
    /// Incremented for each new watcher.
    pub instance: u64,
    /// What the real watcher knows, and its translation of events.
    pub watched: KnownDirectories,
    translator: Translator,
    /// The directories that the kernel watches. A watch that is set again gets another number.
    watches: BTreeMap<DirId, Watch>,
    last_watch: Watch,
    /// The paths that notify has for them. It reports events under the last one.
    paths: BTreeMap<Watch, Vec<PathBuf>>,
    by_path: BTreeMap<PathBuf, Watch>,
    queue: VecDeque<Queued>,
    /// Whether the reader has lost events, so that it sets no more watches.
    pub is_overrun: bool,
}

/// The number of a watch.
type Watch = u64;

enum Queued {
    /// An event in a directory: the name, which is empty for the directory itself, and what happened.
    Event(Watch, String, EventKind),
    Overflow,
}

impl Kernel {
    pub fn new(instance: u64) -> Self {
        let watched = KnownDirectories::default();
        Self {
            instance,
            translator: Translator::new(Path::new(ROOT), watched.clone()),
            watched,
            watches: BTreeMap::new(),
            last_watch: 0,
            paths: BTreeMap::new(),
            by_path: BTreeMap::new(),
            queue: VecDeque::new(),
            is_overrun: false,
        }
    }

    /// Queues an event in the directory `dir`, if that is watched. Without a name, it is about the directory
    /// itself. An event that does not fit is dropped.
    pub fn emit(&mut self, dir: DirId, name: &str, kind: EventKind) {
        let Some(&watch) = self.watches.get(&dir) else { return };
        if self.queue.len() < QUEUE_LENGTH {
            self.queue.push_back(Queued::Event(watch, name.to_owned(), kind));
        } else {
            self.overflow();
        }
    }

    /// Reports that an event was dropped, if anything is watched.
    pub fn overflow(&mut self) {
        let is_reported = matches!(self.queue.back(), Some(Queued::Overflow));
        if !is_reported && !self.watches.is_empty() {
            self.queue.push_back(Queued::Overflow);
        }
    }

    /// Drops the watch of a directory without an event.
    pub fn drop_watch(&mut self, dir: DirId) {
        self.watches.remove(&dir);
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Watches the directory `dir`, which is at `rel` now. As notify, it does nothing if it believes to have a watch
    /// of that path.
    pub fn watch(&mut self, dir: DirId, rel: &Path) {
        let path = Path::new(ROOT).join(rel);
        if self.by_path.contains_key(&path) {
            return;
        }
        let watch = *self.watches.entry(dir).or_insert_with(|| {
            self.last_watch += 1;
            self.last_watch
        });
        self.paths.entry(watch).or_default().push(path.clone());
        self.by_path.insert(path, watch);
    }

    /// Ends the watch that notify has for `rel`.
    pub fn unwatch(&mut self, rel: &Path) {
        self.drop_path(&Path::new(ROOT).join(rel));
    }

    /// Makes notify forget a path. A directory without a path loses its watch.
    fn drop_path(&mut self, path: &Path) {
        let Some(watch) = self.by_path.remove(path) else { return };
        let paths = self.paths.entry(watch).or_default();
        paths.retain(|known| known != path);
        if paths.is_empty() {
            self.paths.remove(&watch);
            self.watches.retain(|_, known| *known != watch);
        }
    }

    /// Reads one event as notify does, and reports what it means.
    pub fn read(&mut self, inbox: &Inbox) {
        let mut is_own = false;
        let event = match self.queue.pop_front() {
            None => return,
            Some(Queued::Overflow) => Event::new(EventKind::Other).set_flag(Flag::Rescan),
            Some(Queued::Event(watch, name, kind)) => {
                let Some(dir) = self.paths.get(&watch).and_then(|paths| paths.last()) else {
                    return;
                };
                is_own = name.is_empty();
                let path = if is_own { dir.clone() } else { dir.join(name) };
                Event::new(kind).add_path(path)
            }
        };
        let (kind, gone) = (event.kind, event.paths.first().cloned());
        let mut changes = Vec::new();
        self.translator.translate(Ok(event), &mut |change| changes.push(change));
        for change in changes {
            self.is_overrun |= change == Change::EventsLost;
            inbox.push(change);
        }
        // notify ends the watches of a directory that was moved away or removed, and those below.
        let is_gone = match kind {
            // A directory does not report where it was moved to.
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) => !is_own,
            EventKind::Remove(RemoveKind::Folder) => true,
            _ => false,
        };
        if let Some(gone) = gone.filter(|gone| is_gone && self.by_path.contains_key(gone)) {
            let below = self.by_path.keys().filter(|path| path.starts_with(&gone));
            for path in below.cloned().collect::<Vec<_>>() {
                self.drop_path(&path);
            }
        }
    }

    /// Ends the watches that may belong to another directory than the one with their name now.
    pub fn drop_stale(&mut self) {
        self.watched.clone().drop_stale(|stale| self.unwatch_all(&stale));
    }

    /// Forgets a directory that is gone, with all below it. Returns whether one of them was known.
    pub fn forget(&mut self, rel: &Path) -> bool {
        self.watched.clone().forget(rel, |watched| self.unwatch_all(&watched))
    }

    /// Records that the watch of a directory is about to be requested.
    pub fn insert(&mut self, rel: &Arc<Path>) {
        self.watched.clone().insert(rel, |stale| self.unwatch_all(&stale));
    }

    /// Forgets the directories without a watch that counts.
    pub fn forget_unwatched(&mut self, tree: &Path) {
        self.watched.clone().forget_unwatched(tree, |stale| self.unwatch_all(&stale));
    }

    fn unwatch_all(&mut self, rels: &[Arc<Path>]) {
        rels.iter().for_each(|rel| self.unwatch(rel));
    }
}
