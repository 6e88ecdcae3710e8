//! The threads that work for the worker. Everything that blocks runs on them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::jobs::context::JobContext;
use crate::jobs::orphans;
use crate::jobs::pairs::PairProcessor;
use crate::jobs::scan::Scan;
use crate::pair::change::WatchError;
use crate::pair::mark::Marks;
use crate::pair::outcome::OrphanPass;
use crate::pair::outcome::Summary;
use crate::pair::outcome::{Job, JobResult};
use crate::schedule::orphans::Due;
use crate::schedule::{ScanId, SubtreeSet};
use crate::sys::runtime::panic_message;
use crate::watch::inbox::Inbox;
use crate::watch::limits::{count_directories, log_unwatched};
use crate::worker::cache_root::{CacheRoot, Open, probe};

/// How many pairs of one kind one batch has at most. A batch up to the small size is not divided, and
/// runs at normal priority.
pub(crate) const BATCH: usize = 1024;
const SMALL_BATCH: usize = 64;
/// How many batches of jobs run at once.
const BATCHES: usize = 2;
/// How many batches may still have claims to finish.
const HOLDING: usize = 16;
/// How many files of one directory may be orphan candidates at once.
const MAX_CANDIDATES: usize = 4096;
/// How many completions wait for the worker; a thread that has more to send waits.
pub(crate) const MAX_COMPLETIONS: usize = 64;

/// A message from a thread to the worker.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A batch of jobs is done, except for its claims, if it `holds` any.
    Jobs { generation: Generation, found: Vec<JobResult>, took: Duration, holds: bool },
    /// The claims of a batch are finished, too.
    Claims { generation: Generation, found: Vec<JobResult>, took: Duration },
    /// A part of what a scan has found.
    ScanBatch { generation: Generation, id: ScanId, found: Vec<JobResult> },
    /// A scan has ended, and has sent all that it found.
    ScanEnded { generation: Generation, id: ScanId, summary: Summary, took: Duration },
    /// The result of a pass over the orphans in some directories.
    Orphans { generation: Generation, pass: Vec<(Due, OrphanPass)>, took: Duration },
    /// The state of the cache directory, because it has changed or because it was requested.
    RootProbed(CacheRoot),
    /// A thread panicked.
    Panicked(String),
}

/// Incremented whenever the cache directory is replaced; completions from an older generation are stale.
pub(crate) type Generation = u64;

/// The threads of one worker. Dropping it cancels their work.
pub(crate) struct Executor {
    context: JobContext,
    events: mpsc::Sender<Completion>,
    generation: Generation,
    batches: usize,
    holding: usize,
    probing: Arc<Probing>,
    /// Cancels the scans and jobs of this generation.
    cancel: Arc<AtomicBool>,
}

/// The probe of the cache directory. It sends no completion if nothing has changed, because one per
/// second would wake the worker.
#[derive(Debug, Default)]
struct Probing {
    is_under_way: AtomicBool,
    /// Whether the worker waits for its completion all the same.
    awaited: AtomicBool,
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Executor {
    /// Creates an executor and the channel on which it sends completions.
    pub(crate) fn new(context: JobContext) -> (Self, mpsc::Receiver<Completion>) {
        let (events, receiver) = mpsc::channel(MAX_COMPLETIONS);
        let (probing, cancel) = (Arc::default(), Arc::default());
        let executor =
            Self { context, events, generation: 0, batches: 0, holding: 0, probing, cancel };
        (executor, receiver)
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Cancels work in progress as soon as possible.
    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Starts a new generation, because another cache directory replaces the current one.
    pub(crate) fn next_generation(&mut self) {
        self.cancel();
        self.cancel = Arc::default();
        self.generation += 1;
    }

    /// Returns how many more batches of jobs can start.
    pub(crate) fn free_slots(&self) -> usize {
        (BATCHES - self.batches).min(HOLDING.saturating_sub(self.holding))
    }

    /// Whether jobs are running.
    pub(crate) fn is_working(&self) -> bool {
        self.batches + self.holding > 0
    }

    /// Processes a batch of jobs on a thread.
    pub(crate) fn attend(&mut self, open: &Arc<Open>, jobs: Vec<Job>) {
        self.batches += 1;
        let (context, open, generation) = (self.context.clone(), Arc::clone(open), self.generation);
        let cancel = Arc::clone(&self.cancel);
        let events = self.events.clone();
        self.on_thread(move || {
            context.run(&open.root, jobs.len() > SMALL_BATCH, || {
                let start = Instant::now();
                let mut processor =
                    PairProcessor::new(&context, &open.root).watched_by(open.watcher.as_ref().ok());
                processor.attend_all(&jobs, &cancel);
                let (found, holds) = (processor.take_found(), processor.holds());
                let attended = Completion::Jobs { generation, found, took: start.elapsed(), holds };
                let Some(until) = processor.next() else { return attended };
                // Even if the worker has ended, the claims have to be finished.
                let _ = events.blocking_send(attended);
                thread::sleep(until.saturating_duration_since(Instant::now()));
                let start = Instant::now();
                processor.finish();
                Completion::Claims {
                    generation,
                    found: processor.take_found(),
                    took: start.elapsed(),
                }
            })
        });
    }

    /// Records [`Completion::Jobs`].
    pub(crate) fn attended(&mut self, holds: bool) {
        self.batches -= 1;
        self.holding += usize::from(holds);
    }

    /// Records [`Completion::Claims`].
    pub(crate) fn finished(&mut self) {
        self.holding -= 1;
    }

    /// Scans the subtrees in `trees`. Pairs with one of `marks` are not read again.
    pub(crate) fn scan(&mut self, open: &Arc<Open>, id: ScanId, trees: &SubtreeSet, marks: Marks) {
        let below = trees.trees().cloned().collect::<Vec<_>>();
        let alone = trees.alone().cloned().collect::<Vec<_>>();
        let (context, open, generation) = (self.context.clone(), Arc::clone(open), self.generation);
        let (events, cancel) = (self.events.clone(), Arc::clone(&self.cancel));
        self.on_thread(move || {
            let start = Instant::now();
            let found = |found| {
                if events.blocking_send(Completion::ScanBatch { generation, id, found }).is_err() {
                    cancel.store(true, Ordering::Relaxed);
                }
            };
            let scan = Scan {
                root: &open.root,
                watcher: open.watcher.as_ref().ok(),
                context: &context,
                marks: &marks,
                cancel: &cancel,
                found: &found,
            };
            let summary = context.run(&open.root, true, || scan.run(&below, &alone));
            Completion::ScanEnded { generation, id, summary, took: start.elapsed() }
        });
    }

    /// Removes the orphans in the directories that are due.
    pub(crate) fn tidy(&mut self, open: &Arc<Open>, due: Vec<Due>) {
        let (context, open, generation) = (self.context.clone(), Arc::clone(open), self.generation);
        let cancel = Arc::clone(&self.cancel);
        self.on_thread(move || {
            let start = Instant::now();
            let tidy = |due: Due| {
                context.throttle().rest(&cancel);
                let is_cancelled = cancel.load(Ordering::Relaxed);
                (!is_cancelled).then(|| {
                    let pass = orphans::tidy(
                        &open.root,
                        &context,
                        &due.0,
                        &due.1.candidates,
                        MAX_CANDIDATES,
                    );
                    (due, pass)
                })
            };
            let pass = context.run(&open.root, true, || due.into_iter().map_while(tidy).collect());
            Completion::Orphans { generation, pass, took: start.elapsed() }
        });
    }

    /// Probes `path`, where `known` was before, unless a probe is running. With `rewatch`, even the same
    /// directory is opened again.
    pub(crate) fn probe(
        &mut self,
        path: &Path,
        known: &CacheRoot,
        inbox: &Arc<Inbox>,
        rewatch: bool,
    ) {
        if self.is_probing() {
            // The running probe is not the requested one. Its completion lets the worker request
            // another.
            if rewatch {
                self.probing.awaited.store(true, Ordering::Relaxed);
            }
            return;
        }
        self.probing.is_under_way.store(true, Ordering::Relaxed);
        let (path, inbox): (PathBuf, _) = (path.to_owned(), Arc::clone(inbox));
        let known = match known {
            CacheRoot::Open(open) if !rewatch => Some(Arc::clone(open)),
            _ => None,
        };
        let probing = Arc::clone(&self.probing);
        self.on_thread(move || {
            let cache_root = probe(&path, known.as_deref(), &inbox);
            let is_awaited = probing.awaited.swap(false, Ordering::Relaxed);
            if matches!(cache_root, CacheRoot::Unknown) && !is_awaited {
                probing.is_under_way.store(false, Ordering::Relaxed);
                return None;
            }
            Some(Completion::RootProbed(cache_root))
        });
    }

    /// Logs that `refused` directories below `root` are not watched, and why.
    pub(crate) fn log_unwatched(
        &self,
        root: &Path,
        refused: u64,
        every: Duration,
        refusal: &WatchError,
    ) {
        let root = root.to_owned();
        let count_and_tell = move || {
            log_unwatched(
                refused,
                Some(count_directories(&root)),
                every,
                &WatchError::TooManyWatches,
            );
        };
        // Counting runs on its own thread, so that nothing waits for it.
        let counts = *refusal == WatchError::TooManyWatches
            && thread::Builder::new().spawn(count_and_tell).is_ok();
        if !counts {
            log_unwatched(refused, None, every, refusal);
        }
    }

    /// Whether a probe of the cache directory is running.
    pub(crate) fn is_probing(&self) -> bool {
        self.probing.is_under_way.load(Ordering::Relaxed)
    }

    /// Records [`Completion::RootProbed`].
    pub(crate) fn probed(&self) {
        self.probing.is_under_way.store(false, Ordering::Relaxed);
    }

    /// Runs blocking work on a thread of its own, and sends its completion, if there is one.
    fn on_thread<E: Into<Option<Completion>>>(&self, work: impl FnOnce() -> E + Send + 'static) {
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            let event = catch_unwind(AssertUnwindSafe(work)).map_or_else(
                |panic| Some(Completion::Panicked(panic_message(panic.as_ref()))),
                Into::into,
            );
            if let Some(event) = event {
                // If the worker has ended, the completion is dropped.
                let _ = events.blocking_send(event);
            }
        });
    }
}

/// Cuts jobs that are sorted by directory into batches for `threads` threads. The jobs of one directory
/// stay together if they fit, because threads that delete in the same directory wait for each other.
pub(crate) fn batches(mut jobs: Vec<Job>, threads: usize) -> VecDeque<Vec<Job>> {
    let size = jobs.len().div_ceil(threads.max(1)).clamp(SMALL_BATCH, BATCH);
    let mut batches = VecDeque::new();
    while jobs.len() > size {
        let dir = jobs[size].key.dir.as_os_str();
        let first_of_dir = jobs.partition_point(|job| job.key.dir.as_os_str() < dir);
        let rest = jobs.split_off(if first_of_dir == 0 { size } else { first_of_dir });
        batches.push_back(std::mem::replace(&mut jobs, rest));
    }
    batches.push_back(jobs);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::name::{PairKey, Stem};

    #[test]
    fn what_is_due_is_cut_into_batches_between_directories() {
        let sizes = |per_dir: &[usize], threads| -> Vec<usize> {
            let jobs = per_dir.iter().enumerate().flat_map(|(dir, &jobs)| {
                let dir: Arc<Path> = Path::new(&format!("{dir:02}")).into();
                let key = move |number: usize| PairKey {
                    dir: Arc::clone(&dir),
                    stem: Stem::new(number.to_string().as_bytes()),
                };
                (0..jobs).map(move |number| Job { key: key(number), settled: None })
            });
            let jobs: Vec<Job> = jobs.collect();
            let batches = batches(jobs.clone(), threads);
            let again: Vec<_> = batches.iter().flatten().map(|job| job.key.clone()).collect();
            assert_eq!(again, jobs.into_iter().map(|job| job.key).collect::<Vec<_>>());
            batches.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[10; 30], 2), [150, 150]);
        assert_eq!(sizes(&[100, 200], 2), [100, 150, 50]);
        assert_eq!(sizes(&[5, 5], 2), [10]);
        assert_eq!(sizes(&[100; 30], 1), [1000, 1000, 1000]);
        assert_eq!(sizes(&[2000], 1), [1024, 976]);
        assert_eq!(sizes(&[], 2), [0]);
    }
}
