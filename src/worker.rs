//! The one actor that owns the state: it takes in news and outcomes, gives out work, and is the
//! only one to change the [`Agenda`].
//!
//! ```text
//! events ──► inbox ─┐                              ┌─► jobs and scans, on blocking threads ─┐
//! requests ─────────┼─► worker (owns the agenda) ──┤                                        │
//! the clock ────────┘             ▲                └─► stats, reports                       │
//!                                 └───────────────────── outcomes ──────────────────────────┘
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout_at};

use crate::agenda::{Agenda, ScanId, Scope, Source};
use crate::attend::{Attendant, Found};
use crate::change::Inbox;
use crate::clock::{Clock, TICK};
use crate::config::Config;
use crate::error::Error;
use crate::place::{Open, Place, probe};
use crate::root::RootId;
use crate::runtime::panic_message;
use crate::scan::{Scan, Summary};
use crate::stats::{Activity, ExpiryBucket, Stats, SweepReport, WatchState, mib};

/// How many batches of jobs are under way at once, and how many pairs are in one.
const BATCHES: usize = 2;
const BATCH: usize = 256;
/// How long work that is under way may take to end when the cleaner is stopped.
const STOP_PATIENCE: Duration = Duration::from_millis(400);

/// Where a sweep that was asked for is answered.
pub(crate) type SweepAnswer = oneshot::Sender<Result<SweepReport, Error>>;

/// What an outsider asks of the worker.
#[derive(Debug)]
pub(crate) enum Request {
    /// Make a full sweep that begins from now on.
    Sweep(SweepAnswer),
    /// Count what expires when.
    Buckets(oneshot::Sender<Vec<ExpiryBucket>>),
}

/// What reaches the worker from the threads that work for it.
enum Event {
    Attended {
        epoch: u64,
        found: Vec<Found>,
        took: Duration,
    },
    Scanned {
        epoch: u64,
        id: ScanId,
        found: Vec<Found>,
    },
    ScanEnded {
        epoch: u64,
        id: ScanId,
        summary: Summary,
        took: Duration,
    },
    Probed(Place),
    /// A thread panicked.
    Died(String),
}

/// Where the worker tells of what was done.
pub(crate) trait Reports: Send {
    fn sweep(&self, activity: Activity);
    fn between(&self, activity: Activity);
}

/// Without an HTTP client, nobody is told.
#[cfg(not(feature = "report"))]
#[derive(Default)]
pub(crate) struct Nobody;

#[cfg(not(feature = "report"))]
impl Reports for Nobody {
    fn sweep(&self, _: Activity) {}
    fn between(&self, _: Activity) {}
}

#[cfg(feature = "report")]
impl Reports for Option<crate::report::Reporter> {
    fn sweep(&self, activity: Activity) {
        if let Some(reporter) = self {
            reporter.sweep(activity);
        }
    }

    fn between(&self, activity: Activity) {
        if let Some(reporter) = self {
            reporter.between(activity);
        }
    }
}

pub(crate) struct Worker<R> {
    path: PathBuf,
    check_interval: Duration,
    fallback_interval: Duration,
    attendant: Attendant,
    clock: Arc<Clock>,
    reports: R,
    stats: Arc<Mutex<Stats>>,
    inbox: Arc<Inbox>,
    events: mpsc::Sender<Event>,
    agenda: Agenda,
    place: Place,
    /// Grows with each cache directory, so that outcomes of an earlier one are told apart.
    epoch: u64,
    batches: usize,
    probing: bool,
    /// Ends the scans of this epoch, and the jobs.
    cancel: Arc<AtomicBool>,
    full: Option<Run>,
    trees: Option<Run>,
    sweeps: Sweeps,
    refused: bool,
}

/// A scan that is under way.
struct Run {
    id: ScanId,
    activity: Activity,
    waiters: Vec<SweepAnswer>,
}

/// When full sweeps are to begin.
struct Sweeps {
    /// The next regular one.
    next: Instant,
    /// Not before this, however much was missed.
    not_before: Instant,
    missed: bool,
    waiters: Vec<SweepAnswer>,
}

impl<R> Drop for Worker<R> {
    /// However the worker ends, its threads end too, and the stats say so.
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.lock_stats().running = false;
    }
}

impl<R> Worker<R> {
    fn lock_stats(&self) -> std::sync::MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Reports> Worker<R> {
    /// A worker for the cache directory at `path`, and the stats that it keeps.
    pub fn new(config: &Config, path: PathBuf, reports: R) -> (Self, Receiver, Arc<Mutex<Stats>>) {
        let clock = Arc::new(Clock::default());
        let stats = Arc::new(Mutex::new(Stats {
            running: true,
            check_interval_hours: config.check_interval.as_secs_f64() / 3600.0,
            total_cleanups: 0,
            total_deleted: 0,
            total_freed_bytes: 0,
            total_freed_mb: 0.0,
            total_errors: 0,
            cache_directory: path.clone(),
            heap_size: 0,
            next_expiry: None,
            watch: WatchState::Absent,
            expiring: None,
        }));
        let (events, receiver) = mpsc::channel(64);
        let now = Instant::now();
        let worker = Self {
            path,
            check_interval: config.check_interval,
            fallback_interval: config.fallback_interval,
            attendant: Attendant::deleting(Arc::clone(&clock), config.result_store.clone()),
            clock,
            reports,
            stats: Arc::clone(&stats),
            inbox: Arc::default(),
            events,
            agenda: Agenda::default(),
            place: Place::Same,
            epoch: 0,
            batches: 0,
            probing: false,
            cancel: Arc::default(),
            full: None,
            trees: None,
            sweeps: Sweeps { next: now, not_before: now, missed: false, waiters: Vec::new() },
            refused: false,
        };
        (worker, Receiver(receiver), stats)
    }

    /// Works until `requests` is closed; where to report, and when it was closed.
    ///
    /// # Errors
    /// The message of a panic on one of the threads that work for it.
    pub async fn run(
        mut self,
        receiver: Receiver,
        mut requests: mpsc::UnboundedReceiver<Request>,
    ) -> Result<(R, Instant), String>
    where
        R: Default,
    {
        let Receiver(mut events) = receiver;
        let mut next_tick = Instant::now();
        loop {
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
            self.take_news();
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
                    // The worker holds a sender itself, so that there always is an event.
                    let Some(event) = event else { break };
                    self.take_in(event)?;
                    // What came meanwhile is taken in before anything is given out.
                    while let Ok(event) = events.try_recv() {
                        self.take_in(event)?;
                    }
                }
                () = self.inbox.arrived(), if self.can_work() => {}
                () = sleep_until(wake.into()) => {}
            }
        }
        let asked_to_stop = Instant::now();
        self.wind_up(&mut events).await?;
        self.publish();
        Ok((std::mem::take(&mut self.reports), asked_to_stop))
    }

    /// Lets what is under way end, so that its figures are counted.
    async fn wind_up(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), String> {
        self.cancel.store(true, Ordering::Relaxed);
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        while self.batches > 0 || self.full.is_some() || self.trees.is_some() {
            match timeout_at(deadline, events.recv()).await {
                Ok(Some(event)) => self.take_in(event)?,
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// What is done each second: the clock and the cache directory are looked at again.
    fn tick(&mut self) {
        if let Some(step) = self.clock.tick() {
            tracing::warn!(
                "the clock was set forward by {} h; what only this made due is deleted in 60 s unless it is set back",
                step.num_hours()
            );
        }
        if !self.probing {
            self.probing = true;
            let path = self.path.clone();
            let known = self.place.id().cloned();
            let inbox = Arc::clone(&self.inbox);
            self.on_thread(move || Event::Probed(probe(&path, known.as_ref(), &inbox)));
        }
    }

    fn can_work(&self) -> bool {
        matches!(self.place, Place::Open(_))
    }

    fn take_news(&mut self) {
        if self.can_work() {
            let news = self.inbox.take();
            self.sweeps.missed |= news.missed;
            self.agenda.note(news);
        }
    }

    fn start_work(&mut self) {
        let Place::Open(open) = &self.place else {
            return self.answer_without_sweep();
        };
        let open = Arc::clone(open);
        let now = self.clock.now();
        while self.batches < BATCHES {
            let jobs = self.agenda.take_jobs(now, BATCH);
            if jobs.is_empty() {
                break;
            }
            self.batches += 1;
            let (attendant, open, epoch) = (self.attendant.clone(), Arc::clone(&open), self.epoch);
            self.on_thread(move || {
                let start = Instant::now();
                let found = attendant.attend_all(&open.root, &jobs);
                Event::Attended { epoch, found, took: start.elapsed() }
            });
        }
        if self.full.is_none() && self.sweep_is_due(now.mono) {
            let waiters = std::mem::take(&mut self.sweeps.waiters);
            self.sweeps.missed = false;
            let id = self.start_scan(&open, Scope::Everything);
            self.full = Some(Run { id, activity: Activity::default(), waiters });
        }
        if self.trees.is_none() {
            let trees = self.agenda.take_trees(now);
            if !trees.is_empty() {
                let id = self.start_scan(&open, Scope::Trees(trees));
                self.trees = Some(Run { id, activity: Activity::default(), waiters: Vec::new() });
            }
        }
    }

    /// Answers those who wait for a sweep where there is nothing that could be swept.
    fn answer_without_sweep(&mut self) {
        let answer = || match &self.place {
            Place::Absent => Some(Ok(SweepReport::default())),
            Place::Unreadable { reason } => Some(Err(Error::Unreadable {
                path: self.path.clone(),
                source: std::io::Error::other(reason.clone()),
            })),
            // What stands there is about to be known.
            Place::Same | Place::Open(_) => None,
        };
        if answer().is_none() {
            return;
        }
        for waiter in std::mem::take(&mut self.sweeps.waiters) {
            if let Some(answer) = answer() {
                let _ = waiter.send(answer);
            }
        }
    }

    fn sweep_is_due(&self, now: Instant) -> bool {
        !self.sweeps.waiters.is_empty()
            || now >= self.sweeps.next
            || (self.sweeps.missed && now >= self.sweeps.not_before)
    }

    fn start_scan(&mut self, open: &Arc<Open>, scope: Scope) -> ScanId {
        let trees = match &scope {
            Scope::Everything => vec![Path::new("").into()],
            Scope::Trees(trees) => trees.iter().cloned().collect(),
        };
        let id = self.agenda.begin_scan(scope);
        let (attendant, open, epoch) = (self.attendant.clone(), Arc::clone(open), self.epoch);
        let (events, cancel) = (self.events.clone(), Arc::clone(&self.cancel));
        self.on_thread(move || {
            let start = Instant::now();
            let summary = Scan {
                root: &open.root,
                watcher: open.watcher.as_ref().ok(),
                attendant: &attendant,
                cancel: &cancel,
                found: &|found| {
                    if events.blocking_send(Event::Scanned { epoch, id, found }).is_err() {
                        cancel.store(true, Ordering::Relaxed);
                    }
                },
            }
            .run(&trees);
            Event::ScanEnded { epoch, id, summary, took: start.elapsed() }
        });
        id
    }

    /// Runs blocking work on a thread for it, and has its outcome sent here.
    fn on_thread(&self, work: impl FnOnce() -> Event + Send + 'static) {
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            let work = std::panic::AssertUnwindSafe(work);
            let event = std::panic::catch_unwind(work)
                .unwrap_or_else(|panic| Event::Died(panic_message(panic.as_ref())));
            let _ = events.blocking_send(event);
        });
    }

    fn take_in(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Attended { epoch, found, took } => {
                self.batches -= 1;
                let activity =
                    Activity { duration: took, ..self.settle(found, epoch, Source::Job) };
                self.count(activity);
                self.reports.between(activity);
            }
            Event::Scanned { epoch, id, found } => {
                let activity =
                    Activity { checked: 0, ..self.settle(found, epoch, Source::Scan(id)) };
                self.count(activity);
                match self.run_of(epoch, id) {
                    Some(run) => run.activity += activity,
                    // Its scan is of no interest any more, but what it did is.
                    None => self.reports.between(activity),
                }
            }
            Event::ScanEnded { epoch, id, summary, took } => {
                self.scan_ended(epoch, id, summary, took);
            }
            Event::Probed(place) => self.probed(place),
            Event::Died(message) => return Err(message),
        }
        Ok(())
    }

    fn settle(&mut self, found: Vec<Found>, epoch: u64, source: Source) -> Activity {
        let now = self.clock.now();
        let mut activity = Activity::default();
        for found in found {
            activity += if epoch == self.epoch {
                self.agenda.settle(found, source, now)
            } else {
                crate::agenda::figures_alone(&found.outcome)
            };
        }
        activity
    }

    fn run_of(&mut self, epoch: u64, id: ScanId) -> Option<&mut Run> {
        let current = epoch == self.epoch;
        [&mut self.full, &mut self.trees].into_iter().flatten().find(|run| current && run.id == id)
    }

    fn scan_ended(&mut self, epoch: u64, id: ScanId, mut summary: Summary, took: Duration) {
        let cancelled = epoch != self.epoch || self.cancel.load(Ordering::Relaxed);
        let results = summary.results;
        let refused = summary.refused.take();
        let now = self.clock.now();
        let end = if cancelled {
            Activity {
                deleted: summary.finished,
                freed_bytes: summary.freed,
                ..Activity::default()
            }
        } else {
            self.agenda.end_scan(id, summary, now)
        };
        self.count(end);
        if epoch != self.epoch {
            return self.reports.between(end);
        }
        let full = self.full.take_if(|run| run.id == id);
        let is_full = full.is_some();
        let Some(mut run) = full.or_else(|| self.trees.take_if(|run| run.id == id)) else { return };
        run.activity += end;
        run.activity.checked = results;
        run.activity.duration = took;
        if cancelled || !is_full {
            self.reports.between(run.activity);
            if let Some(refused) = refused.filter(|_| !cancelled) {
                self.refused_by(Some(refused));
            }
            return;
        }
        self.lock_stats().total_cleanups += 1;
        self.refused_by(refused);
        self.sweeps.not_before = now.mono + took.max(Duration::from_secs(1));
        self.sweeps.next = after(now.mono, self.sweep_interval());
        let report = run.activity.report();
        tracing::info!(
            deleted = report.deleted_count,
            freed_bytes = report.freed_bytes,
            checked = report.checked_count,
            errors = report.errors,
            duration_ms = report.duration_ms,
            "Cleanup completed"
        );
        self.reports.sweep(run.activity);
        for waiter in run.waiters {
            let _ = waiter.send(Ok(report));
        }
    }

    fn refused_by(&mut self, refused: Option<(u64, crate::watch::Refusal)>) {
        match refused {
            Some((count, refusal)) if !self.refused => {
                tracing::warn!(
                    directories = count,
                    every = ?self.fallback_interval,
                    "the kernel refused to watch directories, so that they are swept instead: {refusal}"
                );
                self.refused = true;
            }
            None if self.refused => {
                tracing::info!("every directory is watched again");
                self.refused = false;
            }
            _ => {}
        }
        self.sweeps.next = self.sweeps.next.min(after(Instant::now(), self.sweep_interval()));
    }

    fn sweep_interval(&self) -> Duration {
        match self.watch_state() {
            WatchState::Degraded | WatchState::Polling => {
                self.check_interval.min(self.fallback_interval)
            }
            _ => self.check_interval,
        }
    }

    fn watch_state(&self) -> WatchState {
        match &self.place {
            Place::Same | Place::Absent => WatchState::Absent,
            Place::Unreadable { .. } => WatchState::Degraded,
            Place::Open(open) if !open.gives_events => WatchState::Polling,
            Place::Open(open) if open.watcher.is_err() || self.refused => WatchState::Degraded,
            Place::Open(_) => WatchState::Active,
        }
    }

    /// Takes in what stands where the cache directory should be.
    fn probed(&mut self, place: Place) {
        self.probing = false;
        match &place {
            Place::Same => return,
            Place::Absent => match &self.place {
                Place::Absent => return,
                Place::Same => tracing::info!(
                    path = ?self.path,
                    "the cache directory does not exist yet; it is picked up when it appears"
                ),
                _ => tracing::warn!(
                    path = ?self.path,
                    "the cache directory is gone; it is picked up when it appears again"
                ),
            },
            Place::Unreadable { reason } => {
                if matches!(self.place, Place::Unreadable { .. }) {
                    return;
                }
                tracing::error!(
                    path = ?self.path,
                    "can't read the cache directory, so it is tried again every second: {reason}"
                );
                let activity = Activity { errors: 1, ..Activity::default() };
                self.count(activity);
                self.reports.between(activity);
            }
            Place::Open(open) => {
                tracing::info!(path = ?open.root.path(), "watching the cache directory");
                self.warn_of_blindness(open);
            }
        }
        self.forget_everything();
        self.place = place;
        self.sweeps.next = Instant::now();
    }

    fn warn_of_blindness(&self, open: &Open) {
        let every = self.check_interval.min(self.fallback_interval);
        if let Err(refusal) = &open.watcher {
            tracing::warn!(
                ?every,
                "the kernel does not tell of changes, so that they are swept for: {refusal}"
            );
        } else if !open.gives_events {
            tracing::warn!(
                path = ?open.root.path(),
                ?every,
                "the file system does not tell of changes that are made elsewhere, so that they are swept for (--fallback-interval)"
            );
        }
    }

    /// What is known of a cache directory that is another one by now.
    fn forget_everything(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.cancel = Arc::default();
        self.epoch += 1;
        self.agenda = Agenda::default();
        self.refused = false;
        let _ = self.inbox.take();
        for run in [self.full.take(), self.trees.take()].into_iter().flatten() {
            self.reports.between(run.activity);
            // The sweep that was asked for is made of what stands there now.
            self.sweeps.waiters.extend(run.waiters);
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Sweep(waiter) => self.sweeps.waiters.push(waiter),
            Request::Buckets(waiter) => {
                let _ = waiter.send(self.agenda.buckets(self.clock.wall()));
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let now = self.clock.now();
        let far = now.mono + TICK;
        if !self.can_work() {
            return far;
        }
        // With every batch under way, what is due can only wait for one of them to end.
        let agenda = self.agenda.next_wake(now).filter(|_| self.batches < BATCHES);
        let sweep = (self.full.is_none()).then(|| {
            let missed = self.sweeps.missed.then_some(self.sweeps.not_before);
            missed.map_or(self.sweeps.next, |at| at.min(self.sweeps.next))
        });
        [agenda, sweep].into_iter().flatten().fold(far, Instant::min)
    }

    fn count(&self, activity: Activity) {
        let mut stats = self.lock_stats();
        stats.total_deleted += activity.deleted;
        stats.total_freed_bytes += activity.freed_bytes;
        stats.total_freed_mb = mib(stats.total_freed_bytes);
        stats.total_errors += activity.errors;
    }

    fn publish(&self) {
        let watch = self.watch_state();
        let mut stats = self.lock_stats();
        stats.heap_size = self.agenda.heap_size() as u64;
        stats.next_expiry = self.agenda.next_expiry();
        stats.watch = watch;
        let resolved = self.place.id().map_or(&self.path, |id: &RootId| &id.path);
        if stats.cache_directory != *resolved {
            stats.cache_directory.clone_from(resolved);
        }
    }
}

/// An interval may be longer than the clock can tell: a century stands for never.
fn after(now: Instant, interval: Duration) -> Instant {
    let century = Duration::from_secs(100 * 365 * 86_400);
    now + interval.min(century)
}

/// Where the worker's threads send what they found.
pub(crate) struct Receiver(mpsc::Receiver<Event>);
