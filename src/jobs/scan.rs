//! One scan of the cache directory, or of some directories in it.
//!
//! One thread opens some directories and requests their watches. Meanwhile it lists the directories before
//! them, and then these. Other threads help to process the pairs that were listed. They hand their results
//! over in batches, so that memory does not grow with the tree.
//!
//! Directories are listed by descriptor. A directory that is found in another is only opened by the careful
//! lookup of [`Root`]. (walkdir opens each directory before it reports it, even if it is not to descend. A
//! file system that is mounted there and does not answer would block the scan for ever.)

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::disk::list;
use crate::disk::root::{Dir, Root, is_not_ours};
use crate::jobs::context::JobContext;
use crate::jobs::pairs::{Hint, PairProcessor};
use crate::pair::change::WatchError;
use crate::pair::name::{Half, Name, Stem};
use crate::pair::outcome::{JobResult, Summary};
use crate::sys::clock::thread_time;
use crate::sys::descriptors::share_of_open_files;
use crate::watch::{Answers, Watcher};

/// The most pairs of one directory in a batch. Two threads that delete in one directory wait for each other,
/// so most directories should be one batch.
const BATCH: usize = 512;
/// How many batches may wait to be processed.
const QUEUE: usize = 4;
/// A thread that only inspects, and waits longer than this for each pair, waits for the disk. Then more
/// threads help, so that the disk has more requests to choose from.
const SLOW: Duration = Duration::from_micros(40);
const MAX_HELPERS: usize = 15;

/// A scan and what it needs.
pub(crate) struct Scan<'a> {
    pub root: &'a Root,
    /// Sets the watches; `None` where nothing is to be watched.
    pub watcher: Option<&'a Watcher>,
    pub context: &'a JobContext,
    /// Ends the scan early once it is true.
    pub cancel: &'a AtomicBool,
    /// Receives the results, from several threads.
    pub found: &'a (dyn Fn(Vec<JobResult>) + Sync),
}

/// Directories that were opened, and their requested watches.
struct Opened {
    dirs: Vec<(Arc<Path>, io::Result<Arc<Dir>>)>,
    watches: Option<(Vec<Arc<Path>>, Answers)>,
}

/// The threads that help to process the pairs that one thread lists.
struct Helpers<'scan> {
    scan: &'scan Scan<'scan>,
    queue: Receiver<Batch>,
    /// Whether the last batch took so long that its thread must have waited for the disk.
    slow: Arc<AtomicBool>,
    count: usize,
    /// The most helpers while no thread waits for the disk.
    enough: usize,
}

impl<'scan> Helpers<'scan> {
    fn new(scan: &'scan Scan<'scan>, queue: Receiver<Batch>) -> Self {
        let cores = thread::available_parallelism().map_or(2, NonZero::get);
        Self { scan, queue, slow: Arc::default(), count: 0, enough: cores.clamp(2, 8) - 1 }
    }

    /// Starts another helper if there are not enough for the waiting batches.
    fn call<'scope>(&mut self, scope: &'scope Scope<'scope, 'scan>)
    where
        'scan: 'scope,
    {
        let is_slow = self.slow.load(Ordering::Relaxed);
        let most = share_of_open_files(16, MAX_HELPERS);
        let enough = if is_slow { most } else { self.enough.min(most) };
        if self.count >= enough || (self.count > 0 && self.queue.is_empty()) {
            return;
        }
        let (scan, queue, slow) = (self.scan, self.queue.clone(), Arc::clone(&self.slow));
        let help = move || scan.attend(&queue, &slow);
        // If the system has no thread to spare, the scan continues without it.
        self.count += usize::from(thread::Builder::new().spawn_scoped(scope, help).is_ok());
    }
}

/// The destinations of what a listing finds.
struct Listing<'a> {
    hand_over: &'a mut dyn FnMut(Batch),
    summary: &'a mut Summary,
    /// Reserved names, by directory.
    claims: &'a mut Vec<(Arc<Path>, Vec<Vec<u8>>)>,
}

/// Pairs of one directory to process.
pub(super) struct Batch {
    pub(super) dir: Arc<Dir>,
    pub(super) pairs: Vec<(Stem, Hint)>,
}

impl Scan<'_> {
    /// Scans the directories `trees`, relative to the cache directory, and all below them. Lists the directories
    /// `dirs`, without those below them that are known.
    pub(crate) fn run(&self, trees: &[Arc<Path>], dirs: &[Arc<Path>]) -> Summary {
        if let Some(watcher) = self.watcher {
            watcher.drop_stale();
            if trees.iter().any(|tree| tree.as_os_str().is_empty()) {
                watcher.forget_unwatched();
            }
            watcher.end_floods(self.root.path(), dirs);
        }
        let mut summary = Summary::default();
        let mut claims = Vec::new();
        thread::scope(|scope| {
            let (batches, queue) = crossbeam_channel::bounded(QUEUE);
            let mut helpers = Helpers::new(self, queue.clone());
            let mut hand_over = |batch| {
                helpers.call(scope);
                // If all helpers are busy, this thread processes the batch itself.
                if let Err(refused) = batches.try_send(batch) {
                    self.attend_at_once(refused.into_inner(), &helpers.slow);
                }
            };
            let mut listing =
                Listing { hand_over: &mut hand_over, summary: &mut summary, claims: &mut claims };
            for tree in trees {
                self.list_all(vec![Arc::clone(tree)], true, &mut listing);
            }
            self.list_all(dirs.to_vec(), false, &mut listing);
            drop(batches);
            for batch in queue {
                self.attend_at_once(batch, &helpers.slow);
            }
        });
        // Only now, when no thread of this scan has claims of its own any more.
        if self.context.deletes() {
            let start = Instant::now();
            self.recover_claims(claims, &mut summary);
            summary.waited += start.elapsed();
        }
        summary
    }

    /// Lists the directories `pending`, and all below them if it `descends`.
    fn list_all(&self, mut pending: Vec<Arc<Path>>, descends: bool, listing: &mut Listing<'_>) {
        // Two groups of this size are open at once: one is listed while the watches of the other are set.
        let at_once = if self.watcher.is_some() { share_of_open_files(32, 32) } else { 1 };
        let mut next = None;
        loop {
            let opened = next.take().or_else(|| self.open_some(&mut pending, at_once));
            next = self.open_some(&mut pending, at_once);
            let Some(opened) = opened else { return };
            for (rel, dir) in self.await_watches(opened, listing.summary) {
                self.context.throttle().rest(self.cancel);
                if self.cancelled() {
                    return;
                }
                let listed = dir.and_then(|dir| self.list(&dir, descends, listing, &mut pending));
                match listed {
                    Ok(()) => {}
                    Err(error) if is_not_ours(&error) => {
                        if let Some(watcher) = self.watcher {
                            watcher.forget(&rel);
                        }
                        if !descends {
                            // All that was below it is gone, too.
                            listing.summary.new_dirs.push(rel);
                        }
                    }
                    Err(error) => {
                        if let Some(watcher) = self.watcher {
                            watcher.expect(&rel);
                        }
                        listing.summary.scan_again(&rel, &error);
                        listing.summary.unreadable.push((rel, error));
                    }
                }
            }
        }
    }

    /// Opens some of the `pending` directories, and requests their watches.
    fn open_some(&self, pending: &mut Vec<Arc<Path>>, at_once: usize) -> Option<Opened> {
        if pending.is_empty() {
            return None;
        }
        let _spending = self.context.throttle().spend();
        let some = pending.split_off(pending.len().saturating_sub(at_once));
        let open = |rel: Arc<Path>| (Arc::clone(&rel), self.root.open_dir(&rel).map(Arc::new));
        let dirs: Vec<_> = some.into_iter().map(open).collect();
        let watches = self.watcher.map(|watcher| {
            let there = dirs.iter().filter(|(_, dir)| dir.is_ok());
            let rels: Vec<_> = there.map(|(rel, _)| Arc::clone(rel)).collect();
            let answers = watcher.begin_watch(&rels);
            (rels, answers)
        });
        Some(Opened { dirs, watches })
    }

    /// Waits until the opened directories are watched.
    fn await_watches(
        &self,
        opened: Opened,
        summary: &mut Summary,
    ) -> Vec<(Arc<Path>, io::Result<Arc<Dir>>)> {
        let Opened { mut dirs, watches } = opened;
        if let (Some(watcher), Some((rels, answers))) = (self.watcher, watches) {
            let start = Instant::now();
            let new = answers.new.clone();
            let answers = watcher.finish_watch(&rels, answers, self.cancel);
            summary.waited += start.elapsed();
            let there = dirs.iter_mut().filter(|(_, dir)| dir.is_ok());
            for (((_, opened), answer), is_new) in there.zip(answers).zip(new) {
                // A directory that was watched before was checked before.
                if !is_new && answer == Ok(true) {
                    continue;
                }
                let checked = opened.as_ref().map(|dir| self.check_watch(dir, answer, summary));
                if let Ok(Err(error)) = checked {
                    *opened = Err(error);
                }
            }
        }
        dirs
    }

    /// Handles the answer to a request to watch an open directory by its path, which may lead elsewhere by now.
    fn check_watch(
        &self,
        dir: &Dir,
        watched: Result<bool, WatchError>,
        summary: &mut Summary,
    ) -> io::Result<()> {
        match watched {
            Ok(true) => {
                summary.astray |=
                    !self.root.path_leads_to(dir)? && self.root.still_contains(dir)?;
            }
            // The directory, or one above it, was away for an instant.
            Ok(false) if self.root.still_contains(dir)? => {
                summary.new_dirs.push(Arc::clone(&dir.rel));
            }
            // It was moved away since it was opened, and no event will report that.
            Ok(false) => return Err(Errno::NOENT.into()),
            // The worker knows that, and lists the directory or replaces the watcher.
            Err(WatchError::Flooded) => {}
            Err(refusal) => {
                let (before, worst) =
                    summary.refused.take().unwrap_or((0, WatchError::PathTooLong));
                summary.refused = Some((before + 1, worst.max(refusal)));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        dir: &Arc<Dir>,
        descends: bool,
        listing: &mut Listing<'_>,
        pending: &mut Vec<Arc<Path>>,
    ) -> io::Result<()> {
        let Listing { hand_over, summary, claims } = listing;
        let spending = self.context.throttle().spend();
        let mut metadata = Vec::new();
        let mut results = HashSet::new();
        let mut own_claims = Vec::new();
        let (mut is_empty, mut has_leftovers) = (true, false);
        list::list(dir, |name, file_type| {
            if self.cancelled() {
                return ControlFlow::Break(());
            }
            is_empty = false;
            match file_type {
                FileType::RegularFile => {}
                FileType::Directory => {
                    let below: Arc<Path> = dir.rel.join(OsStr::from_bytes(name)).into();
                    if descends {
                        pending.push(below);
                    } else if self.watcher.is_none_or(|watcher| !watcher.knows(&below)) {
                        summary.new_dirs.push(below);
                    }
                    return ControlFlow::Continue(());
                }
                _ => return ControlFlow::Continue(()),
            }
            match Name::of(name) {
                Name::Half(Half::Result, stem) => drop(results.insert(stem)),
                Name::Half(Half::Metadata, stem) => metadata.push(stem),
                claim if claim.is_claim() => own_claims.push(name.to_owned()),
                Name::Tmp(..) => has_leftovers = true,
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        if self.cancelled() {
            return Ok(());
        }
        drop(spending);
        // Only now, since a file that is deleted during the listing may be listed or not.
        summary.results += results.len() as u64;
        if self.context.orphan_ages().any() {
            let pairs = metadata.iter().filter(|stem| results.contains(*stem)).count();
            let has_orphans = pairs < metadata.len().max(results.len());
            if is_empty || has_leftovers || has_orphans {
                summary.orphans.push(Arc::clone(&dir.rel));
            }
        }
        let mut pairs = metadata.into_iter().map(|stem| {
            let hint = if results.contains(&stem) { Hint::Listed } else { Hint::Nothing };
            (stem, hint)
        });
        loop {
            let batch: Vec<_> = pairs.by_ref().take(BATCH).collect();
            if batch.is_empty() || self.cancelled() {
                break;
            }
            hand_over(Batch { dir: Arc::clone(dir), pairs: batch });
        }
        if !own_claims.is_empty() {
            claims.push((Arc::clone(&dir.rel), own_claims));
        }
        Ok(())
    }

    fn processor(&self) -> PairProcessor<'_> {
        PairProcessor::new(self.context, self.root).watched_by(self.watcher)
    }

    /// Processes batches until there are no more.
    fn attend(&self, queue: &Receiver<Batch>, slow: &AtomicBool) {
        let mut processor = self.processor();
        loop {
            let next = match processor.next() {
                Some(until) => queue.recv_deadline(until),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(batch) => self.attend_batch(&mut processor, batch, slow),
                Err(RecvTimeoutError::Timeout) => processor.finish_due(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            (self.found)(processor.take_found());
        }
        processor.finish();
        (self.found)(processor.take_found());
    }

    pub(super) fn attend_at_once(&self, batch: Batch, slow: &AtomicBool) {
        let mut processor = self.processor();
        self.attend_batch(&mut processor, batch, slow);
        processor.finish();
        (self.found)(processor.take_found());
    }

    fn attend_batch(&self, processor: &mut PairProcessor<'_>, batch: Batch, slow: &AtomicBool) {
        let Batch { dir, pairs } = batch;
        let (count, start, worked_before) = (pairs.len() as u32, Instant::now(), thread_time());
        for (stem, hint) in pairs {
            processor.rest(self.cancel);
            if self.cancelled() {
                return;
            }
            processor.attend(&dir, &stem, hint);
        }
        let waited = start.elapsed().saturating_sub(thread_time() - worked_before);
        let only_looked = !processor.holds() && !self.context.throttle().is_bounded();
        slow.store(only_looked && waited > SLOW * count, Ordering::Relaxed);
    }

    pub(super) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}
