//! Translates the kernel's events into changes of pairs and directories.
//!
//! Most names mean nothing here, and there may be hundreds of thousands of their events per second. So names
//! are classified by their bytes before anything is allocated, locked, or read from the disk.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind};

use super::directories::KnownDirectories;
use crate::pair::change::{Change, Trigger, WriteState};
use crate::pair::name::{Half, Name, PairKey, Stem};
use crate::watch::backpressure::Backpressure;

/// The most paths that notify may compare before it reads further events. They take some tenths of a second.
const MAX_COMPARISONS: usize = 5_000_000;

/// Turns events into changes.
pub(crate) struct Translator {
    root: PathBuf,
    watched: KnownDirectories,
    /// The directory of the last event. The next event mostly has the same.
    dir: Option<Arc<Path>>,
    /// How many directories were removed since the reader last finished all events.
    removed: usize,
    /// Whether to report directories that may have orphans.
    pub(super) reports_orphans: bool,
    pub(super) backpressure: Arc<Backpressure>,
}

impl Translator {
    pub(crate) fn new(root: &Path, watched: KnownDirectories) -> Self {
        let (root, backpressure) = (root.to_owned(), Arc::default());
        Self { root, watched, dir: None, removed: 0, reports_orphans: false, backpressure }
    }

    /// Calls `push` with each change that `event` stands for.
    pub(crate) fn translate(&mut self, event: notify::Result<Event>, push: &mut dyn FnMut(Change)) {
        let Ok(event) = event else {
            return push(Change::EventsLost);
        };
        // The event of an overflow has no path.
        if event.need_rescan() {
            self.backpressure.reset();
            return push(Change::EventsLost);
        }
        // notify also reports each half of a rename as an event of its own.
        if event.kind == EventKind::Modify(ModifyKind::Name(RenameMode::Both)) {
            return;
        }
        for path in &event.paths {
            if let Some(path) = EventPath::of(path, &self.root) {
                self.translate_path(event.kind, &path, push);
            }
        }
    }

    /// Whether notify is about to read no events for a while: it compares each removed directory with all that
    /// it watches.
    pub(super) fn is_about_to_stall(&self) -> bool {
        self.removed > 0 && self.removed * self.watched.len() > MAX_COMPARISONS
    }

    /// Records that the reader has finished all events.
    pub(super) fn caught_up(&mut self) {
        self.removed = 0;
    }

    /// The directory whose watch reports `event`, as far as the path of the event shows it.
    pub(super) fn origin(&mut self, event: &Event) -> Option<Arc<Path>> {
        let path = EventPath::of(event.paths.first()?, &self.root)?;
        // A directory also reports its own events. They come from its parent only if that has a watch.
        let is_own = !self.watched.is_watched(path.dir) && self.watched.is_watched(path.rel);
        Some(if is_own { path.rel.into() } else { self.shared(path.dir) })
    }

    fn translate_path(&mut self, kind: EventKind, path: &EventPath, push: &mut dyn FnMut(Change)) {
        use WriteState::{Closed, Created, Unknown, Writing};
        let rel = path.rel;
        if self.reports_orphans && !path.name.is_claim() {
            push(Change::Orphans(self.shared(path.dir)));
        }
        match kind {
            EventKind::Create(CreateKind::Folder) => push(Change::Subtree(rel.into())),
            EventKind::Remove(RemoveKind::Folder) => {
                if self.watched.note_moved(rel) {
                    self.removed += 1;
                }
                push(Change::Subtree(rel.into()));
            }
            EventKind::Modify(ModifyKind::Metadata(_)) => {
                self.appeared(path, Unknown, push);
                // If it is a directory, it may be readable now.
                if self.watched.is_known(rel) {
                    push(Change::Subtree(rel.into()));
                }
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => self.renamed_to(path, push),
            EventKind::Modify(ModifyKind::Name(RenameMode::From))
            | EventKind::Remove(RemoveKind::Other | RemoveKind::Any) => {
                if self.watched.note_moved(rel) {
                    push(Change::Subtree(rel.into()));
                } else {
                    self.vanished(path, push);
                }
            }
            EventKind::Create(_) => self.appeared(path, Created, push),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.appeared(path, Closed, push);
            }
            EventKind::Modify(ModifyKind::Data(_)) => {
                // The content of a result is irrelevant.
                if let Some((Half::Metadata, key)) = self.half(path) {
                    push(Change::Pair(key, Trigger { appeared: true, writer: Writing }));
                }
            }
            EventKind::Remove(RemoveKind::File) => self.vanished(path, push),
            _ => {}
        }
    }

    /// Translates a rename to the name of `path`, from within the cache directory or from elsewhere.
    fn renamed_to(&mut self, path: &EventPath, push: &mut dyn FnMut(Change)) {
        if path.name.is_claim() {
            if let Name::Claim(Half::Result, _) = path.name {
                self.backpressure.delivered();
            }
            return;
        }
        self.watched.note_moved(path.rel);
        let found = path.full.symlink_metadata();
        let is_gone = |error: &io::Error| {
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        };
        let may_be_directory = match &found {
            Ok(found) => found.is_dir(),
            // The file was moved on by now, or a directory above it was.
            Err(error) if is_gone(error) => !matches!(path.name, Name::Half(..)),
            Err(_) => true,
        };
        if may_be_directory {
            push(Change::Subtree(path.rel.into()));
        }
        if !found.is_ok_and(|found| found.is_dir()) {
            self.appeared(path, WriteState::Closed, push);
        }
    }

    fn vanished(&mut self, path: &EventPath, push: &mut dyn FnMut(Change)) {
        let Some((half, key)) = self.half(path) else { return };
        let writer = if half == Half::Metadata { WriteState::Gone } else { WriteState::Unknown };
        push(Change::Pair(key, Trigger { appeared: false, writer }));
    }

    fn appeared(&mut self, path: &EventPath, writer: WriteState, push: &mut dyn FnMut(Change)) {
        match self.half(path) {
            Some((Half::Metadata, key)) => {
                push(Change::Pair(key, Trigger { appeared: true, writer }));
            }
            Some((Half::Result, key)) => {
                push(Change::Pair(key, Trigger { appeared: true, writer: WriteState::Unknown }));
            }
            None => {}
        }
    }

    fn half(&mut self, path: &EventPath) -> Option<(Half, PairKey)> {
        let Name::Half(half, stem) = path.name else { return None };
        Some((half, PairKey { dir: self.shared(path.dir), stem: Stem::new(stem) }))
    }

    /// A shared copy of a directory's path, if the last event had the same.
    fn shared(&mut self, dir: &Path) -> Arc<Path> {
        match &self.dir {
            Some(last) if last.as_os_str() == dir.as_os_str() => Arc::clone(last),
            _ => Arc::clone(self.dir.insert(dir.into())),
        }
    }
}

/// What the path of an event names. It is split by its bytes: splitting it into components takes several
/// times as long.
struct EventPath<'a> {
    full: &'a Path,
    /// The path relative to the cache directory; empty for the cache directory itself.
    rel: &'a Path,
    /// The directory that contains it, relative to the cache directory. For the cache directory, that is itself.
    dir: &'a Path,
    name: Name<&'a [u8]>,
}

impl<'a> EventPath<'a> {
    /// Splits `path`, if it is `root` or below it.
    fn of(path: &'a Path, root: &Path) -> Option<Self> {
        let rel = below(root, path)?;
        let bytes = rel.as_os_str().as_bytes();
        let (dir, name) = match bytes.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
            None => (&[][..], bytes),
        };
        Some(Self {
            full: path,
            rel,
            dir: Path::new(OsStr::from_bytes(dir)),
            name: Name::parse(name),
        })
    }
}

/// `path` relative to `root`, if it is `root` or below it. Compares bytes: notify joins the watched path and
/// a name.
fn below<'a>(root: &Path, path: &'a Path) -> Option<&'a Path> {
    let root = root.as_os_str().as_bytes();
    let root = root.strip_suffix(b"/").unwrap_or(root);
    let rel = path.as_os_str().as_bytes().strip_prefix(root)?;
    let rel = if rel.is_empty() { rel } else { rel.strip_prefix(b"/")? };
    Some(Path::new(OsStr::from_bytes(rel)))
}
