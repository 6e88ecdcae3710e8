//! The one actor that owns the state. It takes in changes and outcomes, hands out work, and is the only
//! one to change the [`Schedule`].
//!
//! ```text
//! events ──► inbox ─┐                              ┌─► jobs and scans, on blocking threads ─┐
//! requests ─────────┼─► worker (owns the schedule) ──┤                                        │
//! the clock ────────┘             ▲                └─► stats, reports                       │
//!                                 └───────────────────── outcomes ──────────────────────────┘
//! ```

pub(crate) mod cache_root;
mod completions;
pub(crate) mod executor;
mod lost_events;
pub(crate) mod requests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout_at;

use self::cache_root::{CacheRoot, Open};
use self::executor::{BATCH, Completion, Executor, MAX_COMPLETIONS, batches};
use self::requests::{Request, SweepAnswer};
use crate::config::{Ages, Config};
use crate::jobs::context::JobContext;
use crate::pair::change::WatchError;
use crate::pair::mark::Marks;
use crate::pair::outcome::Job;
use crate::pair::tally::Tally;
use crate::schedule::orphans::OrphanSchedule;
use crate::schedule::sweeps::Sweeps;
use crate::schedule::{ScanId, Schedule, Scope, SubtreeSet};
use crate::sys::clock::{Clock, Now, TICK};
use crate::sys::timer::Timer;
use crate::telemetry::Reporter;
use crate::telemetry::recorder::{Readers, Recorder};
use crate::telemetry::stats::{ExpiryBucket, WatchState};
use crate::watch::inbox::Inbox;

/// How many due pairs are taken at once, to be sorted by directory.
const MAX_DUE: usize = 16_384;
/// How long changes gather: the minimum. How long directories to scan gather: as long as the previous scan
/// took, within these bounds.
const MIN_CHANGES_PAUSE: Duration = Duration::from_millis(1);
const MAX_CHANGES_PAUSE: Duration = Duration::from_millis(20);
/// How many pairs and directories with changes may wait. Beyond that, further changes stay in the inbox,
/// which merges them.
const MAX_BACKLOG: usize = 65_536;
/// How often the worker lists a directory whose events can't be read fast enough.
const FLOOD_LIST_INTERVAL: Duration = Duration::from_secs(1);
/// How often to sweep while nothing is watched because of a flood.
const FLOOD_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long work in progress may take to end when the cleaner is stopped.
const STOP_PATIENCE: Duration = Duration::from_millis(400);

pub(crate) struct Worker {
    /// The cache directory as it was configured, and its path from any working directory.
    configured_path: PathBuf,
    path: PathBuf,
    check_interval: Duration,
    fallback_interval: Duration,
    executor: Executor,
    clock: Arc<Clock>,
    recorder: Recorder,
    inbox: Arc<Inbox>,
    schedule: Schedule,
    /// Batches that the schedule handed out as due and for which no thread was free.
    due: VecDeque<Vec<Job>>,
    cache_root: CacheRoot,
    full: Option<ActiveSweep>,
    trees: Option<ActiveSweep>,
    orphans: OrphanSchedule,
    tidying: bool,
    sweeps: Sweeps<SweepAnswer>,
    /// Why some directories are not watched, as it was last reported.
    refused: Option<WatchError>,
    /// Whether changes were lost, so that watches may be missing that notify believes to be set.
    watches_lost: bool,
    /// Whether the watcher is a new one, which no sweep has used yet.
    is_rewatched: bool,
    /// When to take in changes again, and when to scan directories again.
    next_changes: Instant,
    next_trees: Instant,
    /// When to list the flooded directories again.
    next_flood_list: Instant,
    /// How many pairs expire when, as last counted, and until when that count may be reused.
    buckets: Option<(Instant, Vec<ExpiryBucket>)>,
}

/// A scan that is running.
struct ActiveSweep {
    id: ScanId,
    tally: Tally,
    waiters: Vec<SweepAnswer>,
    /// Whether another scan meanwhile could not watch a directory, which this scan may have passed
    /// already.
    refused_meanwhile: bool,
}

impl Worker {
    /// Creates a worker for the cache directory at `path`, which was configured as `configured_path`.
    /// Also returns the channel of completions, and the handles that read its state.
    pub(crate) fn new(
        config: &Config,
        configured_path: PathBuf,
        path: PathBuf,
        reporter: Option<Reporter>,
    ) -> (Self, mpsc::Receiver<Completion>, Readers) {
        let clock = Arc::new(Clock::default());
        let recorder = Recorder::new(config.check_interval, configured_path.clone(), reporter);
        let readers = recorder.readers();
        let inbox = Arc::new(Inbox::new(Ages::of(config).any()));
        let context =
            JobContext::deleting(Arc::clone(&clock), config).paced_by(&inbox.backpressure);
        let (executor, events) = Executor::new(context);
        let worker = Self {
            configured_path,
            path,
            check_interval: config.check_interval,
            fallback_interval: config.fallback_interval,
            executor,
            clock,
            recorder,
            inbox,
            schedule: Schedule::default(),
            due: VecDeque::new(),
            cache_root: CacheRoot::Unknown,
            full: None,
            trees: None,
            orphans: OrphanSchedule::default(),
            tidying: false,
            sweeps: Sweeps::new(Instant::now()),
            refused: None,
            watches_lost: false,
            is_rewatched: false,
            next_changes: Instant::now(),
            next_trees: Instant::now(),
            next_flood_list: Instant::now(),
            buckets: None,
        };
        (worker, events, readers)
    }

    /// Runs until `requests` is closed. Returns the reporter, if there is one, and when `requests` was
    /// closed.
    ///
    /// # Errors
    /// The message of a panic on one of the worker's threads.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<Completion>,
        mut requests: mpsc::UnboundedReceiver<Request>,
    ) -> Result<(Option<Reporter>, Instant), String> {
        let timer = Timer::new();
        let mut next_tick = Instant::now();
        loop {
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
            // Requests must not delay completions, and completions must not delay due deletions.
            for event in std::iter::from_fn(|| events.try_recv().ok()).take(MAX_COMPLETIONS) {
                self.complete(event)?;
            }
            self.take_changes();
            self.start_work();
            self.publish();
            let wake = self.next_wake().min(next_tick);
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => self.answer(request),
                    None => break,
                },
                event = events.recv() => {
                    // The executor holds a sender, so that the channel never closes.
                    let Some(event) = event else { break };
                    self.complete(event)?;
                }
                // Also during a pause: otherwise nothing would wake the worker when the pause ends.
                () = self.inbox.notified(), if self.can_work() => {}
                () = timer.until(wake) => {}
            }
        }
        let asked_to_stop = Instant::now();
        self.wind_up(&mut events).await?;
        self.publish();
        Ok((self.recorder.take_reporter(), asked_to_stop))
    }

    /// Waits until work in progress ends, so that its figures are counted.
    async fn wind_up(&mut self, events: &mut mpsc::Receiver<Completion>) -> Result<(), String> {
        self.executor.cancel();
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        while self.executor.is_working()
            || self.full.is_some()
            || self.trees.is_some()
            || self.tidying
        {
            match timeout_at(deadline, events.recv()).await {
                Ok(Some(event)) => self.complete(event)?,
                Ok(None) | Err(_) => {
                    tracing::info!("jobs that are still running at shutdown are not counted");
                    break;
                }
            }
        }
        for run in [self.full.take(), self.trees.take()].into_iter().flatten() {
            self.recorder.between(run.tally);
        }
        Ok(())
    }

    /// Runs once per second: checks the clock and the cache directory.
    fn tick(&mut self) {
        if let Some(step) = self.clock.tick() {
            tracing::warn!(
                "the clock jumped forward by {} h: results that are due only because of this are deleted in 60 s, unless the clock is set back",
                step.num_hours()
            );
        }
        self.executor.probe(&self.path, &self.cache_root, &self.inbox, false);
    }

    fn can_work(&self) -> bool {
        matches!(self.cache_root, CacheRoot::Open(_))
    }

    /// Whether changes are taken in now, and not after a pause.
    fn takes_changes(&self) -> bool {
        self.can_work() && Instant::now() >= self.next_changes
    }

    fn take_changes(&mut self) {
        if self.can_work() {
            if self.inbox.take_events_lost() {
                self.on_events_lost();
            }
            self.follow_floods();
        }
        if self.takes_changes() && self.schedule.backlog() < MAX_BACKLOG {
            let mut changes = self.inbox.drain();
            if !changes.is_empty() {
                self.next_changes = Instant::now() + MIN_CHANGES_PAUSE;
            }
            self.orphans.note(std::mem::take(&mut changes.orphans), self.clock.now());
            if changes.events_lost {
                self.on_events_lost();
            }
            self.schedule.apply_changes(changes);
        }
    }

    fn start_work(&mut self) {
        let CacheRoot::Open(open) = &self.cache_root else {
            return self.answer_without_sweep();
        };
        let open = Arc::clone(open);
        let now = self.clock.now();
        while self.executor.free_slots() > 0 {
            let jobs = self.next_batch(now);
            if jobs.is_empty() {
                break;
            }
            self.executor.attend(&open, jobs);
        }
        if self.full.is_none()
            && self.sweeps.is_due(now.mono)
            && self.watches_lost
            && !self.is_rewatched
        {
            // A new watcher comes first: the sweep then sets its watches.
            self.executor.probe(&self.path, &self.cache_root, &self.inbox, true);
        } else if self.full.is_none() && self.sweeps.is_due(now.mono) {
            // Even if more is lost from now on, this sweep comes first. Otherwise a flood would delay it
            // for ever.
            self.is_rewatched = false;
            let waiters = self.sweeps.begin();
            self.full = Some(self.begin_scan(&open, Scope::Everything, waiters));
        }
        if !self.tidying {
            let due = self.orphans.take_due(now);
            if !due.is_empty() {
                self.tidying = true;
                self.executor.tidy(&open, due);
            }
        }
        if self.trees.is_none() && Instant::now() >= self.next_trees {
            let trees = self.schedule.take_trees(now);
            if !trees.is_empty() {
                self.trees = Some(self.begin_scan(&open, Scope::Subtrees(trees), Vec::new()));
            }
        }
    }

    /// Returns pairs with changes, and some of the due pairs. A flood of one kind does not delay the
    /// other.
    fn next_batch(&mut self, now: Now) -> Vec<Job> {
        let mut batch = self.schedule.take_inspections(BATCH);
        if self.due.is_empty() {
            self.due = batches(self.schedule.take_due(now, MAX_DUE), self.executor.free_slots());
        }
        batch.extend(self.due.pop_front().unwrap_or_default());
        batch
    }

    fn begin_scan(
        &mut self,
        open: &Arc<Open>,
        scope: Scope,
        waiters: Vec<SweepAnswer>,
    ) -> ActiveSweep {
        let trees = match &scope {
            Scope::Everything => SubtreeSet::from_iter([Path::new("").into()]),
            Scope::Subtrees(trees) => trees.clone(),
        };
        let marks = match &scope {
            Scope::Everything => self.schedule.marks(),
            Scope::Subtrees(_) => Marks::default(),
        };
        let id = self.schedule.begin_scan(scope);
        self.executor.scan(open, id, &trees, marks);
        ActiveSweep { id, tally: Tally::default(), waiters, refused_meanwhile: false }
    }

    fn sweep_interval(&self) -> Duration {
        if let CacheRoot::Open(open) = &self.cache_root
            && let Err(WatchError::Flooded) = &open.watcher
        {
            return self.check_interval.min(FLOOD_SWEEP_INTERVAL);
        }
        match self.watch_state() {
            WatchState::Degraded | WatchState::Polling => {
                self.check_interval.min(self.fallback_interval)
            }
            _ => self.check_interval,
        }
    }

    fn watch_state(&self) -> WatchState {
        match &self.cache_root {
            CacheRoot::Unknown | CacheRoot::Absent => WatchState::Absent,
            CacheRoot::Unreadable { .. } => WatchState::Degraded,
            CacheRoot::Open(open) if !open.gives_events => WatchState::Polling,
            CacheRoot::Open(open)
                if open.watcher.is_err() || self.refused.is_some() || self.is_flooded() =>
            {
                WatchState::Degraded
            }
            CacheRoot::Open(_) => WatchState::Active,
        }
    }

    fn next_wake(&self) -> Instant {
        let now = self.clock.now();
        let far = now.mono + TICK;
        if !self.can_work() {
            return far;
        }
        // Work that can't start before other work ends has its wake-up from that end, not from the
        // timer.
        let pair = self.schedule.next_pair(now).filter(|_| self.executor.free_slots() > 0);
        let tree = self.schedule.next_tree(now).filter(|_| self.trees.is_none());
        let tree = tree.map(|at| at.max(self.next_trees));
        let changes =
            (self.next_changes > now.mono && !self.inbox.is_empty()).then_some(self.next_changes);
        let flood = self.is_flooded().then_some(self.next_flood_list);
        let can_sweep = self.full.is_none() && !(self.watches_lost && self.executor.is_probing());
        let sweep = can_sweep.then(|| self.sweeps.next());
        let orphans = self.orphans.next(now).filter(|_| !self.tidying);
        [pair, tree, changes, flood, orphans, sweep].into_iter().flatten().fold(far, Instant::min)
    }

    fn publish(&self) {
        let watch = self.watch_state();
        let resolved = self.cache_root.id().map_or(&self.configured_path, |id| &id.path);
        self.recorder.publish(|stats| {
            stats.heap_size = self.schedule.heap_size() as u64;
            stats.next_expiry = self.schedule.next_expiry();
            stats.watch = watch;
            if stats.cache_directory != *resolved {
                stats.cache_directory.clone_from(resolved);
            }
        });
    }
}
