//! Events of the kernel, as news. The only module that names notify.
//!
//! Each directory has a watch of its own, which a scan sets right before it lists the directory:
//! what appears before the listing is listed, what appears after it is told. (One recursive watch
//! would lose what is put into a new directory before its own watch stands.)
//!
//! # Known problems of notify
//! It does not tell whether what was renamed is a directory, so that this is looked up. It drops
//! the watches of a directory that was renamed by itself, and of all below it; but below one that it
//! does not know at that moment it keeps them, and takes what bears their names later for watched.
//! A scan may set such watches while directories are being renamed, so that [`Watcher::end_stale`]
//! ends them before the next one. Where the events of renames were lost, all watches have to be made
//! anew. Each directory that is removed costs it a look at all watches: 5,000 that are
//! removed at once hold up events for some seconds.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{
    Event, EventKind, EventKindMask, INotifyWatcher, PathOp, RecursiveMode, WatchPathConfig,
    Watcher as _,
};
use rustix::io::Errno;

use crate::change::{Change, Inbox, Trigger, Writer};
use crate::echoes::Echoes;
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

/// An event that comes so soon after the one before was read with it.
const AT_ONCE: Duration = Duration::from_micros(20);
/// Where a reader that waits is woken again so soon, there are many events,
const OFTEN: Duration = Duration::from_millis(5);
/// and they may gather for so long.
const GATHER: Duration = Duration::from_millis(1);

/// Directories with longer paths below the cache directory are not watched. notify keeps three copies of each path and looks
/// at all of them for each directory that is removed: a chain of 2,000 directories, which fits into
/// what the kernel takes for a path, would cost 18 MiB, and half a minute once it is removed.
const LONGEST_WATCHED: usize = 1024;

/// Why the kernel will not tell of changes; what can be helped comes last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("their paths below the cache directory are longer than {LONGEST_WATCHED} bytes")]
    LongPath,
    #[error("{0}")]
    Other(String),
    #[error(
        "no more directories may be watched: raise fs.inotify.max_user_watches (`sysctl fs.inotify.max_user_watches=1048576`)"
    )]
    Watches,
    #[error(
        "no more inotify instances may be made: raise fs.inotify.max_user_instances (`sysctl fs.inotify.max_user_instances=1024`), or the limit of open files (`ulimit -n`)"
    )]
    Instances,
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
pub(crate) struct Watched(Arc<Mutex<Directories>>);

#[derive(Debug, Default)]
struct Directories {
    watched: BTreeSet<PathBuf>,
    /// Those of them that were removed or replaced, by themselves or with one above, since stale
    /// watches were ended.
    moved: BTreeSet<PathBuf>,
}

impl Watched {
    /// Takes note that the directory `rel` has a watch.
    pub fn insert(&self, rel: &Path) {
        self.lock().watched.insert(rel.to_owned());
    }

    /// Whether `rel`, or a directory below it, has a watch.
    #[cfg(any(fuzzing, test))]
    pub fn has_below(&self, rel: &Path) -> bool {
        self.lock().below(rel).next().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Directories> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directories {
    /// Those that are watched of `dir` and all below it.
    fn below<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        let from_there = (Bound::Included(dir), Bound::Unbounded);
        self.watched.range::<Path, _>(from_there).take_while(move |below| below.starts_with(dir))
    }
}

impl Watcher {
    /// Begins to leave news in `inbox`; nothing is watched yet.
    pub fn start(root: &Path, inbox: Arc<Inbox>) -> Result<Self, Refusal> {
        let watched = Watched::default();
        let mut translator = Translator::new(root, watched.clone());
        translator.tells_litter = inbox.wants_litter;
        translator.echoes = Arc::clone(&inbox.echoes);
        let mut gathering = Gathering::new();
        let handler = move |event| {
            gathering.event();
            translator.translate(event, &mut |change| inbox.put(change));
            gathering.done();
        };
        let notify = start(handler)?;
        Ok(Self { root: root.to_owned(), notify: Mutex::new(notify), watched })
    }

    /// Watches each of the directories `rels` that is not watched yet; whether it is there. All are
    /// asked for in one go, since to ask notify's thread costs ten times as much as what it then does.
    pub fn watch(&self, rels: &[Arc<Path>]) -> Vec<Result<bool, Refusal>> {
        let mut done: Vec<_> = rels.iter().map(|rel| self.begin_watch(rel)).collect();
        let config =
            WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
        // Which of them are asked for, and how.
        let wanted: Vec<usize> = (0..rels.len()).filter(|&at| done[at] == Ok(true)).collect();
        let watch = |&at: &usize| PathOp::Watch(join(&self.root, &rels[at]), config.clone());
        let mut left: Vec<PathOp> = wanted.iter().map(watch).collect();
        let mut notify = self.notify.lock().unwrap_or_else(PoisonError::into_inner);
        while !left.is_empty() {
            let Err(failed) = notify.update_paths(left) else { break };
            let first =
                wanted.len() - failed.remaining.len() - usize::from(failed.origin.is_some());
            // Where notify's thread does not answer, nothing is known of any.
            let count = if failed.origin.is_some() { 1 } else { wanted.len() };
            for &at in wanted.iter().skip(first).take(count) {
                self.watched.lock().watched.remove(&*rels[at]);
                let error = &failed.source;
                done[at] = if is_gone(error) { Ok(false) } else { Err(refusal(error)) };
            }
            left = if failed.origin.is_some() { failed.remaining } else { Vec::new() };
        }
        done
    }

    /// Whether `rel` can be watched; it is known before its first event can arrive.
    fn begin_watch(&self, rel: &Path) -> Result<bool, Refusal> {
        if rel.as_os_str().len() > LONGEST_WATCHED {
            return Err(Refusal::LongPath);
        }
        self.watched.insert(rel);
        Ok(true)
    }

    /// Has news of the directory `rel`, which can't be read and so not be watched: its permissions
    /// may change.
    pub fn expect(&self, rel: &Path) {
        self.watched.insert(rel);
    }

    /// Ends the watches that may be those of another directory than bears their name now. To be
    /// called before a scan, which sets them anew: whatever was moved is looked at again.
    pub fn end_stale(&self) {
        let moved = std::mem::take(&mut self.watched.lock().moved);
        if moved.is_empty() {
            return;
        }
        let mut notify = self.notify.lock().unwrap_or_else(PoisonError::into_inner);
        // Once this is answered, what notify drops by itself is dropped.
        let watched = notify.watched_paths().unwrap_or_default();
        for (path, _) in watched {
            let rel = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
            if rel.ancestors().any(|above| moved.contains(above)) {
                // It may be gone by now.
                let _ = notify.unwatch(&path);
            }
        }
    }

    /// Forgets that `rel` and all below it were watched: the directory is gone, as notify knows from
    /// the same events.
    pub fn forget(&self, rel: &Path) {
        let mut known = self.watched.lock();
        for dir in known.below(rel).cloned().collect::<Vec<_>>() {
            known.watched.remove(&dir);
        }
    }
}

/// Lets events gather while there are many of them. Each one that meets its reader asleep costs the
/// program that caused it a wake-up, which takes longer than to unlink a file.
struct Gathering {
    /// When the last event was dealt with.
    last: Instant,
    /// When the reader last woke up.
    woken: Instant,
}

impl Gathering {
    fn new() -> Self {
        let now = Instant::now();
        Self { last: now, woken: now }
    }

    /// An event has come.
    fn event(&mut self) {
        let now = Instant::now();
        // While there always is one more, the reader is behind and must not sleep.
        if now - self.last < AT_ONCE {
            return;
        }
        if now - self.woken < OFTEN {
            thread::sleep(GATHER);
        }
        self.woken = Instant::now();
    }

    /// It was dealt with.
    fn done(&mut self) {
        self.last = Instant::now();
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
pub(crate) struct Translator {
    root: PathBuf,
    watched: Watched,
    /// The directory of the last event, which the next one shares mostly.
    dir: Option<Arc<Path>>,
    /// Whether to tell where there may be litter.
    tells_litter: bool,
    echoes: Arc<Echoes>,
}

impl Translator {
    pub fn new(root: &Path, watched: Watched) -> Self {
        let (root, echoes) = (root.to_owned(), Arc::default());
        Self { root, watched, dir: None, tells_litter: false, echoes }
    }

    pub fn translate(&mut self, event: notify::Result<Event>, put: &mut dyn FnMut(Change)) {
        let Ok(event) = event else {
            return put(Change::Missed);
        };
        // An overflow has no path.
        if event.need_rescan() {
            self.echoes.forget();
            return put(Change::Missed);
        }
        for path in &event.paths {
            let Ok(rel) = path.strip_prefix(&self.root) else { continue };
            if self.tells_litter
                && !name_of(rel).is_claim()
                && let Some(dir) = self.directory_of(rel)
            {
                put(Change::Litter(dir));
            }
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
            EventKind::Create(CreateKind::Folder) => put(Change::Tree(rel.into())),
            EventKind::Remove(RemoveKind::Folder) => {
                self.note_moved(rel);
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
                let name = name_of(rel);
                if let Name::Claim(Half::Result, _) = name {
                    self.echoes.heard();
                }
                if name.is_claim() {
                    return;
                }
                self.note_moved(rel);
                match path.symlink_metadata() {
                    Ok(found) if found.is_dir() => put(Change::Tree(rel.into())),
                    // It is elsewhere by now, or a directory above it is: it may be a directory.
                    Err(_) if !matches!(name_of(rel), Name::Half(..)) => {
                        put(Change::Tree(rel.into()));
                    }
                    _ => self.appeared(rel, Done, put),
                }
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                if self.note_moved(rel) {
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
        Some((half, Key { dir: self.directory_of(rel)?, stem }))
    }

    fn directory_of(&mut self, rel: &Path) -> Option<Arc<Path>> {
        let parent = rel.parent()?;
        Some(match &self.dir {
            Some(dir) if **dir == *parent => Arc::clone(dir),
            _ => Arc::clone(self.dir.insert(parent.into())),
        })
    }

    fn is_watched(&self, rel: &Path) -> bool {
        self.watched.lock().watched.contains(rel)
    }

    /// Takes note that something else bears the name `rel`, or nothing; whether it, or what is below
    /// it, was watched.
    fn note_moved(&self, rel: &Path) -> bool {
        let mut known = self.watched.lock();
        let was_watched = known.below(rel).next().is_some();
        // The cache directory itself is looked at each second.
        if was_watched && !rel.as_os_str().is_empty() {
            known.moved.insert(rel.to_owned());
        }
        was_watched
    }
}

/// Has `handler` told of what happens; nothing is watched yet.
fn start(handler: impl notify::EventHandler) -> Result<INotifyWatcher, Refusal> {
    let config = notify::Config::default().with_follow_symlinks(false).with_event_kinds(EVENTS);
    INotifyWatcher::new(handler, config).map_err(|error| refusal(&error))
}

/// Whether the kernel tells of a file `name` that `make` makes in the directory `dir`, within
/// `patience`.
///
/// # Errors
/// Why the directory can't be watched.
pub(crate) fn tells_of<T>(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> T,
    patience: Duration,
) -> Result<(T, bool), Refusal> {
    let (told, is_told) = mpsc::channel();
    let wanted = dir.join(name);
    let handler = move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| event.paths.contains(&wanted)) {
            // It may be told several times.
            let _ = told.send(());
        }
    };
    let mut notify = start(handler)?;
    notify.watch(dir, RecursiveMode::NonRecursive).map_err(|error| refusal(&error))?;
    let made = make();
    Ok((made, is_told.recv_timeout(patience).is_ok()))
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
    silent_file_system(dir).is_none()
}

/// The name of the file system, where it does not tell of all changes.
pub(crate) fn silent_file_system(dir: &Dir) -> Option<&'static str> {
    const SILENT: [(u32, &str); 9] = [
        (0x6969, "NFS"),
        (0x6573_5546, "FUSE"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x517b, "SMB"),
        (0x0102_1997, "9P"),
        (0x00c3_6400, "Ceph"),
        (0x5346_414f, "AFS"),
        (0x7375_7245, "Coda"),
    ];
    // The type of the field differs between platforms; the numbers are 32 bits wide.
    let found = rustix::fs::fstatfs(dir).ok()?.f_type as u32;
    SILENT.iter().find(|(number, _)| *number == found).map(|(_, name)| *name)
}
