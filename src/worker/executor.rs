//! The threads that work for the worker. Everything that blocks runs on them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::disk::filesystem::free_space;
use crate::disk::occupancy::occupancy;
use crate::disk::root::Root;
use crate::jobs::context::JobContext;
use crate::jobs::orphans;
use crate::jobs::pairs::PairProcessor;
use crate::jobs::scan::Scan;
use crate::pair::change::WatchError;
use crate::pair::disk_budget::{FreeSpace, Shortfall};
use crate::pair::outcome::{Job, JobResult, Outcome};
use crate::schedule::batches::SMALL_BATCH;
use crate::schedule::command::EvictionStart;
use crate::schedule::input::{Completion, EvictedBatch, Generation};
use crate::schedule::orphans::Due;
use crate::schedule::{ScanId, SubtreeSet};
use crate::sys::runtime::panic_message;
use crate::watch::inbox::Inbox;
use crate::watch::limits::{count_directories, log_unwatched};
use crate::worker::cache_root::{CacheRoot, Open, probe};

/// How many messages wait for the worker; a thread that has more to send waits.
pub(crate) const MAX_MESSAGES: usize = 64;

/// A message from a thread to the worker.
#[derive(Debug)]
pub(crate) enum Message {
    /// A thread has done a part of its work in a cache directory, or all of it.
    Completed(Arc<Open>, Generation, Completion),
    /// The state of the cache directory, because it has changed or because it was requested.
    RootProbed(CacheRoot),
    /// The free space of the cache directory's file system, or why it is unknown.
    FreeSpace(Generation, Result<FreeSpace, String>),
    /// A thread panicked.
    Panicked(String),
}

/// Measures what a batch of evictions frees.
struct EvictionMeter<'a> {
    root: &'a Root,
    start: EvictionStart,
    before: Option<FreeSpace>,
    bytes: u64,
}

impl<'a> EvictionMeter<'a> {
    fn begin(context: &JobContext, root: &'a Root, start: EvictionStart) -> Self {
        let has_limit = context.budget().is_some_and(|budget| budget.min_free.is_some());
        let before = has_limit.then(|| free_space(root).ok()).flatten();
        Self { root, start, before, bytes: 0 }
    }

    fn add(&mut self, found: &[JobResult]) {
        for found in found {
            if let Outcome::Evicted { freed, .. } = found.outcome {
                self.bytes += freed;
            }
        }
    }

    fn end(self) -> EvictedBatch {
        let space = self.before.and_then(|before| Some([before, free_space(self.root).ok()?]));
        EvictedBatch { start: self.start, space, bytes: self.bytes }
    }
}

/// The threads of one worker. Dropping it cancels their work.
pub(crate) struct Executor {
    context: JobContext,
    messages: mpsc::Sender<Message>,
    generation: Generation,
    probe: Arc<Mutex<Probe>>,
    /// Whether the occupancy is being measured.
    is_measuring: Arc<AtomicBool>,
    /// Cancels the scans and jobs of this generation.
    cancel: Arc<AtomicBool>,
}

/// The probe of the cache directory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Probe {
    #[default]
    Idle,
    /// Sends no message if nothing has changed, because one per second would wake the worker.
    Running,
    /// Sends its message even if nothing has changed.
    Awaited,
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Executor {
    /// Creates an executor and the channel on which its threads send messages.
    pub(crate) fn new(context: JobContext) -> (Self, mpsc::Receiver<Message>) {
        let (messages, receiver) = mpsc::channel(MAX_MESSAGES);
        let (probe, cancel, is_measuring) = Default::default();
        let executor = Self { context, messages, generation: 0, probe, is_measuring, cancel };
        (executor, receiver)
    }

    /// Cancels work in progress as soon as possible.
    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Cancels all work, because the cache directory was replaced or removed, or can't be read. Completions carry
    /// `generation` from now on.
    pub(crate) fn start_over(&mut self, generation: Generation) {
        self.cancel();
        self.cancel = Arc::default();
        // A thread that measures may hang in a mount.
        self.is_measuring = Arc::default();
        self.generation = generation;
    }

    /// Processes a batch of jobs on a thread. If they are evictions, measures what they free.
    pub(crate) fn process(
        &mut self,
        open: &Arc<Open>,
        jobs: Vec<Job>,
        eviction: Option<EvictionStart>,
    ) {
        let (context, open, generation) = (self.context.clone(), Arc::clone(open), self.generation);
        let cancel = Arc::clone(&self.cancel);
        let messages = self.messages.clone();
        self.on_thread(move || {
            context.run(&open.root, jobs.len() > SMALL_BATCH, || {
                let begin = |start| EvictionMeter::begin(&context, &open.root, start);
                let mut meter = eviction.map(begin);
                let start = Instant::now();
                let mut processor =
                    PairProcessor::new(&context, &open.root).watched_by(open.watcher.as_ref().ok());
                processor.process_jobs(&jobs, &cancel);
                let (found, holds) = (processor.take_found(), processor.holds());
                meter.iter_mut().for_each(|meter| meter.add(&found));
                let took = start.elapsed();
                if !holds {
                    let evicted = meter.map(EvictionMeter::end);
                    let done = Completion::Jobs { found, took, holds, evicted };
                    return Message::Completed(Arc::clone(&open), generation, done);
                }
                // Even if the worker has ended, the claims have to be finished.
                let done = Completion::Jobs { found, took, holds, evicted: None };
                let done = Message::Completed(Arc::clone(&open), generation, done);
                let _ = messages.blocking_send(done);
                processor.wait_for_holds();
                let start = Instant::now();
                processor.finish();
                let (found, took) = (processor.take_found(), start.elapsed());
                meter.iter_mut().for_each(|meter| meter.add(&found));
                let evicted = meter.map(EvictionMeter::end);
                let done = Completion::Claims { found, took, evicted };
                Message::Completed(Arc::clone(&open), generation, done)
            })
        });
    }

    /// Reads the free space of the cache directory's file system.
    pub(crate) fn read_free_space(&self, open: &Arc<Open>) {
        let (open, generation) = (Arc::clone(open), self.generation);
        self.on_thread(move || {
            let space = free_space(&open.root).map_err(|error| error.to_string());
            Message::FreeSpace(generation, space)
        });
    }

    /// Logs that nothing can be evicted although a limit is exceeded, and what takes the space. Does nothing if this
    /// is under way.
    pub(crate) fn measure_occupancy(&self, open: &Arc<Open>, shortfall: Shortfall) {
        if self.is_measuring.swap(true, Ordering::Relaxed) {
            return;
        }
        let (context, open) = (self.context.clone(), Arc::clone(open));
        let (cancel, is_measuring) = (Arc::clone(&self.cancel), Arc::clone(&self.is_measuring));
        self.on_thread(move || {
            let found = context.run_reading(|| occupancy(&open.root, &cancel));
            if !cancel.load(Ordering::Relaxed) {
                found.log(&shortfall);
            }
            is_measuring.store(false, Ordering::Relaxed);
            None
        });
    }

    /// Scans the subtrees in `trees`.
    pub(crate) fn scan(&mut self, open: &Arc<Open>, id: ScanId, trees: &SubtreeSet) {
        let below = trees.trees().cloned().collect::<Vec<_>>();
        let alone = trees.alone().cloned().collect::<Vec<_>>();
        let (context, open, generation) = (self.context.clone(), Arc::clone(open), self.generation);
        let (messages, cancel) = (self.messages.clone(), Arc::clone(&self.cancel));
        self.on_thread(move || {
            let start = Instant::now();
            let found = |found| {
                let batch = Completion::ScanBatch { id, found };
                let batch = Message::Completed(Arc::clone(&open), generation, batch);
                if messages.blocking_send(batch).is_err() {
                    cancel.store(true, Ordering::Relaxed);
                }
            };
            let scan = Scan {
                root: &open.root,
                watcher: open.watcher.as_ref().ok(),
                context: &context,
                cancel: &cancel,
                found: &found,
            };
            let summary = Box::new(scan.run(&below, &alone));
            let ended = Completion::ScanEnded { id, summary, took: start.elapsed() };
            Message::Completed(Arc::clone(&open), generation, ended)
        });
    }

    /// Removes the orphans in the directories that are due. Each search returns at most `limit` new candidates.
    pub(crate) fn remove_orphans(&mut self, open: &Arc<Open>, due: Vec<Due>, limit: usize) {
        let (context, open, generation) = (self.context.clone(), Arc::clone(open), self.generation);
        let cancel = Arc::clone(&self.cancel);
        self.on_thread(move || {
            let start = Instant::now();
            let search = |due: Due| {
                context.throttle().rest(&cancel);
                let is_cancelled = cancel.load(Ordering::Relaxed);
                (!is_cancelled).then(|| {
                    let known = &due.1.candidates;
                    let pass = orphans::search(&open.root, &context, &due.0, known, limit);
                    (due, pass)
                })
            };
            let pass =
                context.run(&open.root, true, || due.into_iter().map_while(search).collect());
            let done = Completion::Orphans { pass, took: start.elapsed() };
            Message::Completed(open, generation, done)
        });
    }

    /// Probes `path`, where `known` was before, unless a probe is running.
    pub(crate) fn probe(&mut self, path: &Path, known: &CacheRoot, inbox: &Arc<Inbox>) {
        let known = match known {
            CacheRoot::Open(open) => Some(Arc::clone(open)),
            _ => None,
        };
        if *self.probe_state() == Probe::Idle {
            self.start_probe(path, known, inbox);
        }
    }

    /// Opens the directory at `path` again, with a new watcher.
    pub(crate) fn rewatch(&mut self, path: &Path, inbox: &Arc<Inbox>) {
        let mut state = self.probe_state();
        if *state == Probe::Idle {
            drop(state);
            self.start_probe(path, None, inbox);
        } else {
            // The running probe is not the requested one. Its message lets the core ask again.
            *state = Probe::Awaited;
        }
    }

    fn start_probe(&mut self, path: &Path, known: Option<Arc<Open>>, inbox: &Arc<Inbox>) {
        *self.probe_state() = Probe::Running;
        let (path, inbox): (PathBuf, _) = (path.to_owned(), Arc::clone(inbox));
        let state = Arc::clone(&self.probe);
        self.on_thread(move || {
            let cache_root = probe(&path, known.as_deref(), &inbox);
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(cache_root, CacheRoot::Unknown) && *state == Probe::Running {
                *state = Probe::Idle;
                return None;
            }
            Some(Message::RootProbed(cache_root))
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
        let count_and_log = move || {
            log_unwatched(
                refused,
                Some(count_directories(&root)),
                every,
                &WatchError::TooManyWatches,
            );
        };
        // Counting runs on its own thread, so that nothing waits for it.
        let counts = *refusal == WatchError::TooManyWatches
            && thread::Builder::new().spawn(count_and_log).is_ok();
        if !counts {
            log_unwatched(refused, None, every, refusal);
        }
    }

    fn probe_state(&self) -> MutexGuard<'_, Probe> {
        self.probe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records [`Message::RootProbed`].
    pub(crate) fn probed(&self) {
        *self.probe_state() = Probe::Idle;
    }

    /// Runs blocking work on a thread of its own, and sends its last message, if there is one.
    fn on_thread<M: Into<Option<Message>>>(&self, work: impl FnOnce() -> M + Send + 'static) {
        let messages = self.messages.clone();
        tokio::task::spawn_blocking(move || {
            let message = catch_unwind(AssertUnwindSafe(work)).map_or_else(
                |panic| Some(Message::Panicked(panic_message(panic.as_ref()))),
                Into::into,
            );
            if let Some(message) = message {
                // If the worker has ended, the message is dropped.
                let _ = messages.blocking_send(message);
            }
        });
    }
}
