//! The watches of one cache directory.

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use notify::{EventKindMask, INotifyWatcher, RecursiveMode, WatchPathConfig, Watcher as _};
use rustix::io::Errno;

use super::directories::KnownDirectories;
use super::inbox::Inbox;
use super::mount_points::MountPoints;
use super::reader::{Handler, ReaderState, reserve_slot};
use super::translate::Translator;
use crate::pair::change::{Change, MAX_WATCHED_PATH, WatchError};

/// The events that the kernel is to report. Opening and reading are left out: the cleaner's own reading
/// would fill the kernel's queue.
const EVENTS: EventKindMask = EventKindMask::CREATE
    .union(EventKindMask::REMOVE)
    .union(EventKindMask::MODIFY_DATA)
    .union(EventKindMask::MODIFY_META)
    .union(EventKindMask::MODIFY_NAME)
    .union(EventKindMask::ACCESS_CLOSE);

/// How long a request to notify may make no progress before the caller gives up. Under a flood, notify may
/// not answer before the flood ends. On a busy machine, its thread may have to wait for a while.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a waiting caller checks whether to wait on.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The watches of one cache directory. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Watcher {
    watched: KnownDirectories,
    requests: Sender<WatchRequest>,
    progress: Arc<AtomicU64>,
    reader: Arc<ReaderState>,
    inbox: Arc<Inbox>,
    pub mount_points: MountPoints,
}

/// For each directory whether it exists, and so is watched.
pub(crate) type WatchAnswers = Vec<Result<bool, WatchError>>;

/// A request to the registrar.
#[derive(Debug)]
enum WatchRequest {
    /// Set watches on these directories, and answer for each whether it exists.
    Watch(Vec<Arc<Path>>, Sender<WatchAnswers>),
    /// End the watches of these directories.
    Unwatch(Vec<Arc<Path>>),
}

/// Watches that were requested; [`Watcher::finish_watch`] waits for them.
#[derive(Debug)]
pub(crate) struct PendingWatches {
    /// The answers that were known without the registrar.
    known: Vec<Option<Result<bool, WatchError>>>,
    /// The indexes of the directories that the registrar was asked for, and the channel of its answer.
    requested: Option<(Vec<usize>, Receiver<WatchAnswers>)>,
    /// For each answer, whether its watch was requested from the registrar.
    pub is_new: Vec<bool>,
}

impl Watcher {
    /// Starts a watcher that pushes changes into `inbox`. It watches no directory yet.
    ///
    /// # Errors
    /// [`WatchError::Flooded`] if as many readers as allowed still wait for floods to end, and those of the
    /// system.
    pub(crate) fn start(root: &Path, inbox: Arc<Inbox>) -> Result<Self, WatchError> {
        let slot = reserve_slot(&inbox.readers).ok_or(WatchError::Flooded)?;
        let watched = KnownDirectories::default();
        let reader = Arc::new(ReaderState::default());
        let mut translator = Translator::new(root, watched.clone());
        translator.reports_orphans = inbox.wants_orphans;
        translator.backpressure = Arc::clone(&inbox.backpressure);
        let handler = Handler::new(translator, Arc::clone(&inbox), Arc::clone(&reader), slot);
        let notify = start(handler)?;
        let (requests, received) = crossbeam_channel::unbounded();
        let progress = Arc::new(AtomicU64::new(0));
        let (root, seen) = (root.to_owned(), Arc::clone(&reader));
        let registrar = Registrar { root, notify, progress: progress.clone(), reader: seen };
        thread::Builder::new()
            .name("watch registrar".to_owned())
            .spawn(move || registrar.run(&received))
            .map_err(|error| WatchError::Other(error.to_string()))?;
        // Do not wait for the events of the reader before this one: it is about to be retired.
        inbox.backpressure.reset();
        Ok(Self {
            watched,
            requests,
            progress,
            reader,
            inbox,
            mount_points: MountPoints::default(),
        })
    }

    /// Requests a watch of each of the directories `rels` that has none yet.
    pub(crate) fn begin_watch(&self, rels: &[Arc<Path>]) -> PendingWatches {
        let mut known = Vec::with_capacity(rels.len());
        let (mut indexes, mut wanted) = (Vec::new(), Vec::new());
        let is_overrun = self.reader.overrun.load(Ordering::Relaxed);
        for (index, rel) in rels.iter().enumerate() {
            if rel.as_os_str().len() > MAX_WATCHED_PATH {
                // It is not recorded either: there may be thousands of them.
                known.push(Some(Err(WatchError::PathTooLong)));
                continue;
            }
            let refusal = if self.inbox.floods.contains(rel) {
                Some(WatchError::Flooded)
            } else if self.watched.has_current_watch(rel) {
                known.push(Some(Ok(true)));
                continue;
            } else {
                // A reader that has lost events is about to be replaced.
                is_overrun.then_some(WatchError::Flooded)
            };
            if refusal.is_some() {
                self.watched.expect(rel);
                known.push(refusal.map(Err));
                continue;
            }
            // Recorded before its first event can arrive.
            self.watched.insert(rel, self.unwatch());
            indexes.push(index);
            wanted.push(Arc::clone(rel));
            known.push(None);
        }
        let is_new = known.iter().map(Option::is_none).collect();
        let requested = (!wanted.is_empty()).then(|| {
            let (answer, answered) = crossbeam_channel::bounded(1);
            // A registrar that has ended does not answer, which `wait` notices.
            let _ = self.requests.send(WatchRequest::Watch(wanted, answer));
            (indexes, answered)
        });
        PendingWatches { known, requested, is_new }
    }

    /// Waits for the requested watches. Returns for each directory whether it exists and is watched.
    ///
    /// Gives up, with [`WatchError::Flooded`], if the reader can't keep up with the events, or once `cancel` is
    /// set.
    pub(crate) fn finish_watch(
        &self,
        rels: &[Arc<Path>],
        pending: PendingWatches,
        cancel: &AtomicBool,
    ) -> WatchAnswers {
        let PendingWatches { mut known, requested, .. } = pending;
        if let Some((indexes, answered)) = requested {
            let given = self.wait(&answered, cancel);
            for (at, &index) in indexes.iter().enumerate() {
                let answer =
                    given.as_ref().map_or(Err(WatchError::Flooded), |given| given[at].clone());
                match &answer {
                    Ok(true) => {
                        if self.watched.confirm(&rels[index]) {
                            self.inbox.push(Change::Subtree(Arc::clone(&rels[index])));
                        }
                    }
                    // Another scan may have taken it for watched meanwhile.
                    Ok(false) => self.forget_known(&rels[index]),
                    Err(WatchError::TooManyWatches) => self.watched.refuse(&rels[index]),
                    Err(_) => self.watched.expect(&rels[index]),
                }
                known[index] = Some(answer);
            }
        }
        known.into_iter().flatten().collect()
    }

    /// The registrar's answer; `None` if it does not come.
    fn wait(&self, answered: &Receiver<WatchAnswers>, cancel: &AtomicBool) -> Option<WatchAnswers> {
        let mut last = (self.progress.load(Ordering::Relaxed), Instant::now());
        loop {
            match answered.recv_timeout(POLL_INTERVAL) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let progress = self.progress.load(Ordering::Relaxed);
            if progress != last.0 {
                last = (progress, Instant::now());
            }
            if cancel.load(Ordering::Relaxed) || self.reader.is_given_up() {
                return None;
            }
            if last.1.elapsed() >= PATIENCE {
                break;
            }
        }
        if self.reader.is_given_up() {
            return None;
        }
        // This reader answers no further requests: it has to be replaced.
        self.reader.overrun.store(true, Ordering::Relaxed);
        self.inbox.push(Change::EventsLost);
        None
    }

    /// Tracks the directory `rel`, which can't be read and so not be watched. Its permissions may change, and
    /// events of that have to be reported.
    pub(crate) fn expect(&self, rel: &Arc<Path>) {
        if rel.as_os_str().len() <= MAX_WATCHED_PATH {
            self.watched.expect(rel);
        }
    }

    /// Whether a scan has seen that `rel` is a directory, and it is still in place.
    pub(crate) fn knows(&self, rel: &Path) -> bool {
        self.watched.is_known(rel)
    }

    /// Whether the kernel reports what happens in the directory `rel`.
    pub(crate) fn is_watching(&self, rel: &Path) -> bool {
        self.watched.is_watched(rel)
    }

    /// How many directories are watched, and how many are known and not watched.
    pub(crate) fn counts(&self) -> (usize, usize) {
        self.watched.counts()
    }

    /// Ends the watches that may belong to another directory than the one with their name now.
    ///
    /// To be called before a scan, which sets these watches again: every moved directory is scanned again.
    pub(crate) fn drop_stale(&self) {
        self.watched.drop_stale(self.unwatch());
    }

    /// Requests from the registrar to end watches. It handles requests in order, so that these watches end before new
    /// ones are set.
    fn unwatch(&self) -> impl FnOnce(Vec<Arc<Path>>) {
        |rels| {
            if !rels.is_empty() {
                let _ = self.requests.send(WatchRequest::Unwatch(rels));
            }
        }
    }

    /// Ends the floods in the directories `rels` that are over.
    pub(crate) fn end_floods(&self, root: &Path, rels: &[Arc<Path>]) {
        let flooded = rels.iter().filter(|rel| self.inbox.floods.contains(rel));
        let flooded: Vec<_> = flooded.cloned().collect();
        if !flooded.is_empty() {
            self.inbox.floods.end_if_over(root, &flooded);
        }
    }

    /// Forgets the directories below `tree` without a watch that counts. To be called before a scan of them, which finds those that
    /// exist.
    pub(crate) fn forget_unwatched(&self, tree: &Path) {
        self.watched.forget_unwatched(tree, self.unwatch());
    }

    /// Forgets that `rel` and all directories below it were watched. The directory is gone. If one was known, they
    /// are scanned again: another scan may have read pairs there meanwhile.
    pub(crate) fn forget(&self, rel: &Arc<Path>) {
        self.forget_known(rel);
        self.inbox.floods.end(rel);
    }

    fn forget_known(&self, rel: &Arc<Path>) {
        if self.watched.forget(rel, self.unwatch()) {
            self.inbox.push(Change::Subtree(Arc::clone(rel)));
        }
    }

    /// Retires the watcher: it reports nothing any more, and sets no watches.
    pub(crate) fn retire(&self) {
        self.reader.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.retire();
    }
}

/// Asks notify for watches, on a thread of its own that may have to wait for as long as a flood lasts.
struct Registrar {
    root: PathBuf,
    notify: INotifyWatcher,
    /// Incremented with each answer of notify.
    progress: Arc<AtomicU64>,
    reader: Arc<ReaderState>,
}

impl Registrar {
    /// Handles requests until the [`Watcher`] is dropped.
    fn run(mut self, requests: &Receiver<WatchRequest>) {
        for request in requests {
            self.reader.is_asked.store(true, Ordering::Relaxed);
            match request {
                _ if self.reader.is_given_up() => {}
                WatchRequest::Watch(rels, answer) => {
                    let answers = rels.iter().map(|rel| self.watch(rel)).collect();
                    // The caller may have given up.
                    let _ = answer.send(answers);
                }
                WatchRequest::Unwatch(rels) => {
                    for rel in rels {
                        // The directory may be gone by now.
                        let _ = self.notify.unwatch(&join(&self.root, &rel));
                        self.progress.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            self.reader.is_asked.store(false, Ordering::Relaxed);
        }
    }

    fn watch(&mut self, rel: &Path) -> Result<bool, WatchError> {
        if self.reader.is_given_up() {
            return Err(WatchError::Flooded);
        }
        let config =
            WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
        let watched = self.notify.watch_with(&join(&self.root, rel), config);
        self.progress.fetch_add(1, Ordering::Relaxed);
        match watched {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(refusal(&error)),
        }
    }
}

/// `root` itself for the empty path, without the slash that joining would add.
fn join(root: &Path, rel: &Path) -> PathBuf {
    if rel.as_os_str().is_empty() { root.to_owned() } else { root.join(rel) }
}

fn refusal(error: &notify::Error) -> WatchError {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => WatchError::TooManyWatches,
        notify::ErrorKind::Io(error) => match Errno::from_io_error(error) {
            Some(Errno::NOSPC) => WatchError::TooManyWatches,
            Some(Errno::MFILE | Errno::NFILE) => WatchError::TooManyInstances,
            _ => WatchError::Other(error.to_string()),
        },
        _ => WatchError::Other(error.to_string()),
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

/// Starts notify with `handler`, which it calls with each event. Nothing is watched yet.
fn start(handler: impl notify::EventHandler) -> Result<INotifyWatcher, WatchError> {
    let config = notify::Config::default().with_follow_symlinks(false).with_event_kinds(EVENTS);
    INotifyWatcher::new(handler, config).map_err(|error| refusal(&error))
}

/// Calls `make`, which creates a file `name` in the directory `dir`. Returns its result, and whether the
/// kernel reports the file within `patience`.
///
/// # Errors
/// Why the directory can't be watched.
pub(crate) fn delivers_event<T>(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> T,
    patience: Duration,
) -> Result<(T, bool), WatchError> {
    let (report, reported) = mpsc::channel();
    let wanted = dir.join(name);
    let handler = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| event.paths.contains(&wanted)) {
            // The kernel may report it several times.
            let _ = report.send(());
        }
    };
    let mut notify = start(handler)?;
    notify.watch(dir, RecursiveMode::NonRecursive).map_err(|error| refusal(&error))?;
    let made = make();
    Ok((made, reported.recv_timeout(patience).is_ok()))
}
