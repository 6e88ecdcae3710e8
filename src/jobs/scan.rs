//! One scan of the cache directory, or of some directories in it.
//!
//! Several threads share the directories that are left (`queue`). Each of them opens some, requests their
//! watches, lists them and reads their metadata (`reader`). Pairs that do not simply wait are handed to other
//! threads (`pair_threads`), which inspect them carefully and delete those that are due. The findings are handed
//! over in batches, so that memory does not grow with the tree.
//!
//! The threads that read are not confined, because each file would then cost a tenth more to open. The threads
//! that delete are.
//!
//! Directories are listed by descriptor. A directory that is found in another is only opened by the careful
//! lookup of [`Root`]. (walkdir opens each directory before it reports it, even if it is not to descend. A
//! file system that is mounted there and does not answer would block the scan for ever.)

mod listing;
mod pair_threads;
mod queue;
mod reader;
#[cfg(test)]
mod tests;

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Instant;

use crate::disk::root::Root;
use crate::jobs::context::JobContext;
use crate::pair::outcome::{ScanFound, Summary};
use crate::sys::descriptors::share_of_open_files;
use crate::watch::Watcher;

pub(super) use pair_threads::Batch;
use pair_threads::PairThreads;
use queue::WorkQueue;
use reader::{Claims, Reader};

/// The most threads that read while they wait for a slow disk.
const MAX_READERS: usize = 16;

/// A scan and what it needs.
pub(crate) struct Scan<'a> {
    pub root: &'a Root,
    /// Sets the watches; `None` where nothing is to be watched.
    pub watcher: Option<&'a Watcher>,
    pub context: &'a JobContext,
    /// Ends the scan early once it is true.
    pub cancel: &'a AtomicBool,
    /// Receives the results, from several threads.
    pub found: &'a (dyn Fn(ScanFound) + Sync),
}

/// The threads that read, and the work that they share.
struct ReaderPool {
    queue: WorkQueue,
    count: AtomicUsize,
    /// How many there are while no thread waits for the disk.
    count_if_fast: usize,
    /// How many there are at most.
    max: usize,
    /// Whether the last work took so long that its thread must have waited for the disk.
    is_slow: AtomicBool,
}

impl ReaderPool {
    /// Whether one more thread is to help. Counts it.
    fn grow(&self) -> bool {
        let is_slow = self.is_slow.load(Ordering::Relaxed);
        let max = if is_slow { self.max } else { self.count_if_fast.min(self.max) };
        let grow = |count: usize| (count < max).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok()
    }

    fn note_speed(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }
}

/// How many threads of a kind the processors can serve. Even one core has two: one of them may wait.
fn cores() -> usize {
    thread::available_parallelism().map_or(2, NonZero::get).clamp(2, 8)
}

impl Scan<'_> {
    /// Scans the directories `trees`, relative to the cache directory, and all below them. Lists the directories
    /// `dirs`, without those below them that are known.
    pub(crate) fn run(&self, trees: &[Arc<Path>], dirs: &[Arc<Path>]) -> Summary {
        if let Some(watcher) = self.watcher {
            watcher.drop_stale();
            trees.iter().for_each(|tree| watcher.forget_unwatched(tree));
            watcher.end_floods(self.root.path(), dirs);
        }
        // The last ones come first: a directory in one that is listed alone is then known.
        let below = trees.iter().map(|tree| (Arc::clone(tree), true));
        let alone = dirs.iter().map(|dir| (Arc::clone(dir), false));
        let readers = ReaderPool {
            queue: WorkQueue::new(alone.chain(below).collect()),
            count: AtomicUsize::new(0),
            count_if_fast: cores(),
            // Asked of the system once: each turn of a thread looks at it.
            max: share_of_open_files(16, MAX_READERS),
            is_slow: AtomicBool::new(false),
        };
        let read = || self.read(&readers);
        let (mut summary, claims) =
            if self.context.deletes() { self.context.run_reading(read) } else { read() };
        self.context.restore_moved_away();
        // Only now, when no thread of this scan has claims of its own any more. A recovery locks its directory
        // against deletions, so it does not run with the low priority of the threads that read.
        if self.context.deletes() && !claims.is_empty() {
            let start = Instant::now();
            let recover = || self.recover_claims(claims, &mut summary);
            self.context.run(self.root, false, recover);
            summary.waited += start.elapsed();
        }
        summary
    }

    /// Reads everything, on this thread and on others.
    fn read(&self, readers: &ReaderPool) -> (Summary, Claims) {
        let all = Mutex::default();
        thread::scope(|scope| {
            let pair_threads = PairThreads::new(self, scope);
            let team =
                ReaderThreads { scan: self, readers, pair_threads: &pair_threads, all: &all };
            thread::scope(|scope| {
                if readers.grow() {
                    team.work(scope);
                }
            });
        });
        all.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// What the threads that read share.
struct ReaderThreads<'a, 'scope, 'scan> {
    scan: &'scan Scan<'scan>,
    readers: &'a ReaderPool,
    pair_threads: &'a PairThreads<'scope, 'scan>,
    /// The findings of the threads that have ended.
    all: &'a Mutex<(Summary, Claims)>,
}

impl<'scan> ReaderThreads<'_, '_, 'scan> {
    /// Works on this thread until there is no more work.
    fn work<'team>(&'team self, scope: &'team Scope<'team, '_>) {
        let reader = Reader::new(self.scan, self.readers, self.pair_threads);
        let (summary, claims) = reader.run(&|| self.start(scope));
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.0.merge(summary);
        all.1.extend(claims);
    }

    /// Starts another thread, unless there are enough.
    fn start<'team>(&'team self, scope: &'team Scope<'team, '_>) {
        if self.readers.grow() {
            // If the system has no thread to spare, the scan continues without it.
            let _ = thread::Builder::new().spawn_scoped(scope, move || self.work(scope));
        }
    }
}
