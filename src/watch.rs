//! Events of the kernel, as news. The only module that names notify.
//!
//! Each directory has a watch of its own, which a scan sets right before it lists the directory:
//! what appears before the listing is listed, what appears after it is told. (One recursive watch
//! would lose what is put into a new directory before its own watch stands.)
//!
//! # Known problems of notify
//! It does not tell whether what was renamed is a directory, so that this is looked up. It drops
//! the watches of a directory that was renamed by itself, and of all below it. Where the events of
//! that were lost, it takes another directory of the same name for watched, so that all watches have
//! to be made anew. Each directory that is removed costs it a look at all watches: 5,000 that are
//! removed at once hold up events for some seconds.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{
    Event, EventKind, EventKindMask, INotifyWatcher, RecursiveMode, WatchPathConfig, Watcher as _,
};
use rustix::io::Errno;

use crate::change::{Change, Inbox, Trigger, Writer};
use crate::entry::{Half, Key, Name};
use crate::root::Dir;

/// What the kernel is asked to tell. Opening and reading are left out: the cleaner's own reading
/// would fill the kernel's queue.
const EVENTS: EventKindMask = EventKindMask::CREATE
    .union(EventKindMask::REMOVE)
    .union(EventKindMask::MODIFY_DATA)
    .union(EventKindMask::MODIFY_META)
    .union(EventKindMask::MODIFY_NAME)
    .union(EventKindMask::ACCESS_CLOSE);

/// Why the kernel will not tell of changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "no more directories may be watched: raise fs.inotify.max_user_watches (`sysctl fs.inotify.max_user_watches=1048576`)"
    )]
    Watches,
    #[error(
        "no more inotify instances may be made: raise fs.inotify.max_user_instances (`sysctl fs.inotify.max_user_instances=1024`), or the limit of open files (`ulimit -n`)"
    )]
    Instances,
    #[error("{0}")]
    Other(String),
}

/// The watches of one cache directory. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Watcher {
    root: PathBuf,
    notify: Mutex<INotifyWatcher>,
    watched: Watched,
}

/// The directories that have a watch, or would have one if they could be read, relative to the
/// cache directory.
#[derive(Debug, Clone, Default)]
struct Watched(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Watched {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Begins to leave news in `inbox`; nothing is watched yet.
    pub fn start(root: &Path, inbox: Arc<Inbox>) -> Result<Self, Refusal> {
        let watched = Watched::default();
        let translator = Translator { root: root.to_owned(), watched: watched.clone(), dir: None };
        let config = notify::Config::default().with_follow_symlinks(false).with_event_kinds(EVENTS);
        let mut translator = translator;
        let handler = move |event| translator.translate(event, &mut |change| inbox.put(change));
        let notify = INotifyWatcher::new(handler, config).map_err(|error| refusal(&error))?;
        Ok(Self { root: root.to_owned(), notify: Mutex::new(notify), watched })
    }

    /// Watches the directory `rel`; does nothing where it is watched, or is gone.
    pub fn watch(&self, rel: &Path) -> Result<(), Refusal> {
        let config =
            WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
        // Known before its first event can arrive.
        self.watched.lock().insert(rel.to_owned());
        let watched = {
            let mut notify = self.notify.lock().unwrap_or_else(PoisonError::into_inner);
            notify.watch_with(&join(&self.root, rel), config)
        };
        match watched {
            Ok(()) => Ok(()),
            Err(error) => {
                self.watched.lock().remove(rel);
                if is_gone(&error) { Ok(()) } else { Err(refusal(&error)) }
            }
        }
    }

    /// Has news of the directory `rel`, which can't be read and so not be watched: its permissions
    /// may change.
    pub fn expect(&self, rel: &Path) {
        self.watched.lock().insert(rel.to_owned());
    }

    /// Forgets that `rel` and all below it were watched: the directory is gone, as notify knows from
    /// the same events.
    pub fn forget(&self, rel: &Path) {
        let mut watched = self.watched.lock();
        let below = watched.range(rel.to_owned()..).take_while(|dir| dir.starts_with(rel));
        for dir in below.cloned().collect::<Vec<_>>() {
            watched.remove(&dir);
        }
    }
}

/// `root` itself for the empty path, without the slash that joining would add.
fn join(root: &Path, rel: &Path) -> PathBuf {
    if rel.as_os_str().is_empty() { root.to_owned() } else { root.join(rel) }
}

fn refusal(error: &notify::Error) -> Refusal {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => Refusal::Watches,
        notify::ErrorKind::Io(error) => match Errno::from_io_error(error) {
            Some(Errno::NOSPC) => Refusal::Watches,
            Some(Errno::MFILE | Errno::NFILE) => Refusal::Instances,
            _ => Refusal::Other(error.to_string()),
        },
        _ => Refusal::Other(error.to_string()),
    }
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
        _ => false,
    }
}

/// Turns events into news.
struct Translator {
    root: PathBuf,
    watched: Watched,
    /// The directory of the last event, which the next one shares mostly.
    dir: Option<Arc<Path>>,
}

impl Translator {
    fn translate(&mut self, event: notify::Result<Event>, put: &mut dyn FnMut(Change)) {
        let Ok(event) = event else {
            return put(Change::Missed);
        };
        // An overflow has no path.
        if event.need_rescan() {
            return put(Change::Missed);
        }
        for path in &event.paths {
            let Ok(rel) = path.strip_prefix(&self.root) else { continue };
            self.translate_path(event.kind, path, rel, put);
        }
    }

    fn translate_path(
        &mut self,
        kind: EventKind,
        path: &Path,
        rel: &Path,
        put: &mut dyn FnMut(Change),
    ) {
        use Writer::{AtWork, Created, Done, Unknown};
        match kind {
            EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => {
                put(Change::Tree(rel.into()));
            }
            EventKind::Create(_) => self.appeared(rel, Created, put),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.appeared(rel, Done, put)
            }
            EventKind::Modify(ModifyKind::Data(_)) => {
                // A result's content says nothing.
                if let Some((Half::Metadata, key)) = self.half(rel) {
                    put(Change::Pair(key, Trigger { appeared: true, writer: AtWork }));
                }
            }
            EventKind::Modify(ModifyKind::Metadata(_)) => {
                if let Name::Half(..) = name_of(rel) {
                    self.appeared(rel, Unknown, put);
                }
                // A directory perhaps can be read now.
                if self.is_watched(rel) || is_directory(path) {
                    put(Change::Tree(rel.into()));
                }
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                if matches!(name_of(rel), Name::Claim(..)) {
                    return;
                }
                if is_directory(path) {
                    put(Change::Tree(rel.into()));
                } else {
                    self.appeared(rel, Done, put);
                }
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                if self.is_watched(rel) {
                    put(Change::Tree(rel.into()));
                } else if let Some((_, key)) = self.half(rel) {
                    put(Change::Pair(key, Trigger { appeared: false, writer: Unknown }));
                }
            }
            _ => {}
        }
    }

    fn appeared(&mut self, rel: &Path, writer: Writer, put: &mut dyn FnMut(Change)) {
        match self.half(rel) {
            Some((Half::Metadata, key)) => {
                put(Change::Pair(key, Trigger { appeared: true, writer }));
            }
            Some((Half::Result, key)) => {
                put(Change::Pair(key, Trigger { appeared: true, writer: Writer::Unknown }));
            }
            None => {}
        }
    }

    fn half(&mut self, rel: &Path) -> Option<(Half, Key)> {
        let Name::Half(half, stem) = name_of(rel) else { return None };
        let parent = rel.parent()?;
        let dir = match &self.dir {
            Some(dir) if **dir == *parent => Arc::clone(dir),
            _ => Arc::clone(self.dir.insert(parent.into())),
        };
        Some((half, Key { dir, stem }))
    }

    fn is_watched(&self, rel: &Path) -> bool {
        self.watched.lock().contains(rel)
    }
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

fn name_of(rel: &Path) -> Name {
    rel.file_name().map_or(Name::Other, |name| Name::of(name.as_bytes()))
}

/// Whether the file system tells the kernel of all changes: network file systems and those in
/// user space know of changes that are made elsewhere.
pub(crate) fn gives_events(dir: &Dir) -> bool {
    const SILENT: [u32; 9] = [
        0x6969,      // NFS
        0x6573_5546, // FUSE
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x517b,      // SMB
        0x0102_1997, // 9P
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x7375_7245, // Coda
    ];
    // The type of the field differs between platforms; the numbers are 32 bits wide.
    rustix::fs::fstatfs(dir).map_or(true, |fs| !SILENT.contains(&(fs.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an event of `kind` about `path` below the cache directory is translated to.
    fn news(kind: EventKind, path: &str) -> Vec<Change> {
        let watched = Watched::default();
        watched.lock().insert("session".into());
        let mut translator = Translator { root: "/cache".into(), watched, dir: None };
        let mut news = Vec::new();
        let event = Event::new(kind).add_path(Path::new("/cache").join(path));
        translator.translate(Ok(event), &mut |change| news.push(change));
        news
    }

    fn pair(dir: &str, stem: &str, appeared: bool, writer: Writer) -> Vec<Change> {
        let stem = crate::entry::Stem::new(stem.as_bytes());
        let key = Key { dir: Path::new(dir).into(), stem };
        vec![Change::Pair(key, Trigger { appeared, writer })]
    }

    #[test]
    fn events_become_the_least_news_that_tells_all() {
        use Writer::{AtWork, Created, Done, Unknown};
        let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let file = EventKind::Create(CreateKind::File);
        let from = EventKind::Modify(ModifyKind::Name(RenameMode::From));
        let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        let data = EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any));
        let attributes = EventKind::Modify(ModifyKind::Metadata(notify::event::MetadataKind::Any));
        let removed = EventKind::Remove(RemoveKind::File);
        let tree = |dir: &str| vec![Change::Tree(Path::new(dir).into())];
        for (kind, path, expected) in [
            (file, "s/a.metadata.json", pair("s", "a", true, Created)),
            (file, "a.metadata.json", pair("", "a", true, Created)),
            (file, "a.result.json.lz4", pair("", "a", true, Unknown)),
            (file, "a.result.json.lz4.tmp", vec![]),
            (close, "a.metadata.json", pair("", "a", true, Done)),
            (close, "a.result.json.lz4", pair("", "a", true, Unknown)),
            (data, "a.metadata.json", pair("", "a", true, AtWork)),
            (data, "a.result.json.lz4", vec![]),
            (to, "a.metadata.json", pair("", "a", true, Done)),
            (to, ".result-cleaner-a.m", vec![]),
            (from, "a.metadata.json", pair("", "a", false, Unknown)),
            (from, "a.metadata.json.tmp", vec![]),
            (from, "session", tree("session")),
            (from, "unknown", vec![]),
            (removed, "a.result.json.lz4", pair("", "a", false, Unknown)),
            (attributes, "a.metadata.json", pair("", "a", true, Unknown)),
            (attributes, "session", tree("session")),
            (EventKind::Create(CreateKind::Folder), "new", tree("new")),
            (EventKind::Remove(RemoveKind::Folder), "session", tree("session")),
        ] {
            assert_eq!(news(kind, path), expected, "{kind:?} {path}");
        }
    }

    #[test]
    fn an_overflow_is_noticed_though_it_has_no_path() {
        let mut translator =
            Translator { root: "/cache".into(), watched: Watched::default(), dir: None };
        let mut news = Vec::new();
        let overflow = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        translator.translate(Ok(overflow), &mut |change| news.push(change));
        translator.translate(Err(notify::Error::generic("x")), &mut |change| news.push(change));
        assert_eq!(news, [Change::Missed, Change::Missed]);
    }
}
