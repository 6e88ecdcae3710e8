//! The one actor that owns the state: it takes in news and outcomes, gives out work, and is the
//! only one to change the [`Agenda`].
//!
//! ```text
//! events ──► inbox ─┐                              ┌─► jobs and scans, on blocking threads ─┐
//! requests ─────────┼─► worker (owns the agenda) ──┤                                        │
//! the clock ────────┘             ▲                └─► stats, reports                       │
//!                                 └───────────────────── outcomes ──────────────────────────┘
//! ```

pub(crate) mod cache_root;
mod completions;
pub(crate) mod executor;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::config::{Ages, Config};
use crate::display::path_field;
use crate::error::Error;
use crate::jobs::context::JobContext;
use crate::pair::change::WatchError;
use crate::pair::mark::Marks;
use crate::pair::outcome::Job;
use crate::pair::tally::Tally;
use crate::schedule::orphans::Schedule;
use crate::schedule::sweeps::Sweeps;
use crate::schedule::{Agenda, ScanId, Scope, Trees};
use crate::sys::clock::{Clock, Now, TICK};
use crate::sys::timer::Timer;
use crate::telemetry::recorder::{Accounts, Views};
use crate::telemetry::reports::Reports;
use crate::telemetry::stats::{ExpiryBucket, SweepReport, WatchState};
use crate::watch::floods::FloodReport;
use crate::watch::inbox::Inbox;
use crate::worker::cache_root::{Open, Place};
use crate::worker::executor::{BATCH, Crew, EVENTS, Event, batches};

/// How many pairs that are due are taken at once, to be sorted by directory.
const MAX_DUE: usize = 16_384;
/// How long changes gather, and directories to scan, where there are many: at least, and at the most, as
/// long as the work on those before took.
const NEWS_PAUSE: Duration = Duration::from_millis(1);
const MAX_NEWS_PAUSE: Duration = Duration::from_millis(20);
/// How many pairs and directories with news may wait before further news is left where it is, in an
/// inbox that merges it.
const MAX_BACKLOG: usize = 65_536;
/// How often a directory whose events can't be kept up with is listed instead.
const FLOOD_LIST_INTERVAL: Duration = Duration::from_secs(1);
/// How often to sweep where nothing is watched because of a flood.
const FLOOD_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
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
    /// Answer, to show that it works.
    Ping(oneshot::Sender<()>),
}

pub(crate) struct Worker<R> {
    /// The cache directory as it was given, and where that is from any working directory.
    given: PathBuf,
    path: PathBuf,
    check_interval: Duration,
    fallback_interval: Duration,
    crew: Crew,
    clock: Arc<Clock>,
    accounts: Accounts<R>,
    inbox: Arc<Inbox>,
    agenda: Agenda,
    /// What the agenda gave out as due, and no thread was free for.
    due: VecDeque<Vec<Job>>,
    place: Place,
    full: Option<Run>,
    trees: Option<Run>,
    litter: Schedule,
    tidying: bool,
    sweeps: Sweeps<SweepAnswer>,
    /// Why some directories are not watched, as it was told.
    refused: Option<WatchError>,
    /// Whether news was lost, so that watches may be missing of which notify thinks otherwise.
    blind: bool,
    /// Whether the watcher is a new one, which no sweep has used yet.
    is_rewatched: bool,
    /// When to take in news again, and when to scan directories again.
    next_news: Instant,
    next_trees: Instant,
    /// When to list the flooded directories again.
    next_flood_list: Instant,
    /// What expires when, as it was last counted, and until when that will do.
    buckets: Option<(Instant, Vec<ExpiryBucket>)>,
}

/// A scan that is under way.
struct Run {
    id: ScanId,
    activity: Tally,
    waiters: Vec<SweepAnswer>,
    /// Whether a directory was refused to another scan meanwhile, which this one may have passed.
    refused_meanwhile: bool,
}

impl<R: Reports> Worker<R> {
    /// A worker for the cache directory at `path`, which was given as `given`, and what others may see
    /// of it.
    pub fn new(
        config: &Config,
        given: PathBuf,
        path: PathBuf,
        reports: R,
    ) -> (Self, mpsc::Receiver<Event>, Views) {
        let clock = Arc::new(Clock::default());
        let accounts = Accounts::new(config.check_interval, given.clone(), reports);
        let views = accounts.views();
        let inbox = Arc::new(Inbox::new(Ages::of(config).any()));
        let context =
            JobContext::deleting(Arc::clone(&clock), config).paced_by(&inbox.backpressure);
        let (crew, events) = Crew::new(context);
        let worker = Self {
            given,
            path,
            check_interval: config.check_interval,
            fallback_interval: config.fallback_interval,
            crew,
            clock,
            accounts,
            inbox,
            agenda: Agenda::default(),
            due: VecDeque::new(),
            place: Place::Same,
            full: None,
            trees: None,
            litter: Schedule::default(),
            tidying: false,
            sweeps: Sweeps::new(Instant::now()),
            refused: None,
            blind: false,
            is_rewatched: false,
            next_news: Instant::now(),
            next_trees: Instant::now(),
            next_flood_list: Instant::now(),
            buckets: None,
        };
        (worker, events, views)
    }

    /// Works until `requests` is closed; where to report, and when it was closed.
    ///
    /// # Errors
    /// The message of a panic on one of the threads that work for it.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut requests: mpsc::UnboundedReceiver<Request>,
    ) -> Result<(R, Instant), String>
    where
        R: Default,
    {
        let timer = Timer::new();
        let mut next_tick = Instant::now();
        loop {
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
            // Requests must not keep events from being taken in, nor events what is due.
            for event in std::iter::from_fn(|| events.try_recv().ok()).take(EVENTS) {
                self.take_in(event)?;
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
                    // The crew holds a sender, so that there always is an event.
                    let Some(event) = event else { break };
                    self.take_in(event)?;
                }
                // Also amid a pause: else nobody would wake up when it ends.
                () = self.inbox.arrived(), if self.can_work() => {}
                () = timer.until(wake) => {}
            }
        }
        let asked_to_stop = Instant::now();
        self.wind_up(&mut events).await?;
        self.publish();
        Ok((self.accounts.take_reports(), asked_to_stop))
    }

    /// Lets what is under way end, so that its figures are counted.
    async fn wind_up(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), String> {
        self.crew.cancel();
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        while self.crew.is_attending()
            || self.full.is_some()
            || self.trees.is_some()
            || self.tidying
        {
            match timeout_at(deadline, events.recv()).await {
                Ok(Some(event)) => self.take_in(event)?,
                Ok(None) | Err(_) => {
                    tracing::info!("what is under way does not end in time, and is not counted");
                    break;
                }
            }
        }
        for run in [self.full.take(), self.trees.take()].into_iter().flatten() {
            self.accounts.between(run.activity);
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
        self.crew.probe(&self.path, &self.place, &self.inbox, false);
    }

    fn can_work(&self) -> bool {
        matches!(self.place, Place::Open(_))
    }

    /// Whether news is taken in now, and not after a pause.
    fn takes_news(&self) -> bool {
        self.can_work() && Instant::now() >= self.next_news
    }

    fn take_news(&mut self) {
        if self.can_work() {
            if self.inbox.take_events_lost() {
                self.lost_track();
            }
            self.follow_floods();
        }
        if self.takes_news() && self.agenda.backlog() < MAX_BACKLOG {
            let mut news = self.inbox.take();
            if !news.is_empty() {
                self.next_news = Instant::now() + NEWS_PAUSE;
            }
            self.litter.note(std::mem::take(&mut news.litter), self.clock.now());
            if news.missed {
                self.lost_track();
            }
            self.agenda.note(news);
        }
    }

    /// Reports the floods that have begun and ended, and has flooded directories listed.
    fn follow_floods(&mut self) {
        let FloodReport { begun, ended } = self.inbox.floods.take_report();
        for dir in begun {
            tracing::warn!(
                path = path_field(&self.root().join(&dir)),
                "events arrive faster than they can be read; the directory is listed every second \
                 until it calms down"
            );
        }
        for dir in ended {
            tracing::info!(
                path = path_field(&self.root().join(&dir)),
                "the directory has calmed down and is watched again"
            );
        }
        if Instant::now() >= self.next_flood_list {
            self.next_flood_list = Instant::now() + FLOOD_LIST_INTERVAL;
            for dir in self.inbox.floods.all() {
                self.agenda.list(dir);
            }
        }
    }

    /// Something has changed of which no news will come.
    fn lost_track(&mut self) {
        self.blind = true;
        self.sweeps.something_was_missed();
    }

    fn start_work(&mut self) {
        let Place::Open(open) = &self.place else {
            return self.answer_without_sweep();
        };
        let open = Arc::clone(open);
        let now = self.clock.now();
        while self.crew.room() > 0 {
            let jobs = self.next_batch(now);
            if jobs.is_empty() {
                break;
            }
            self.crew.attend(&open, jobs);
        }
        if self.full.is_none() && self.sweeps.is_due(now.mono) && self.blind && !self.is_rewatched {
            // First new watches: the sweep sets them.
            self.crew.probe(&self.path, &self.place, &self.inbox, true);
        } else if self.full.is_none() && self.sweeps.is_due(now.mono) {
            // Whatever is lost from now on, this sweep goes first: else a flood would put it off for ever.
            self.is_rewatched = false;
            let waiters = self.sweeps.begin();
            self.full = Some(self.begin_scan(&open, Scope::Everything, waiters));
        }
        if !self.tidying {
            let due = self.litter.take_due(now);
            if !due.is_empty() {
                self.tidying = true;
                self.crew.tidy(&open, due);
            }
        }
        if self.trees.is_none() && Instant::now() >= self.next_trees {
            let trees = self.agenda.take_trees(now);
            if !trees.is_empty() {
                self.trees = Some(self.begin_scan(&open, Scope::Trees(trees), Vec::new()));
            }
        }
    }

    /// Answers those who wait for a sweep where nothing stands that could be swept.
    fn answer_without_sweep(&mut self) {
        let unreadable = match &self.place {
            Place::Absent => None,
            Place::Unreadable { reason } => Some(reason.clone()),
            // What stands there is about to be known.
            Place::Same | Place::Open(_) => return,
        };
        for waiter in self.sweeps.take_waiters() {
            let answer = unreadable.clone().map_or(Ok(SweepReport::default()), |reason| {
                let source = std::io::Error::other(reason);
                Err(Error::Unreadable { path: self.path.clone(), source })
            });
            // Whoever asked may have gone.
            let _ = waiter.send(answer);
        }
    }

    /// What news there is, and some of what is due. A flood of the one does not hold up the other.
    fn next_batch(&mut self, now: Now) -> Vec<Job> {
        let mut batch = self.agenda.take_looks(BATCH);
        if self.due.is_empty() {
            self.due = batches(self.agenda.take_due(now, MAX_DUE), self.crew.room());
        }
        batch.extend(self.due.pop_front().unwrap_or_default());
        batch
    }

    fn begin_scan(&mut self, open: &Arc<Open>, scope: Scope, waiters: Vec<SweepAnswer>) -> Run {
        let trees = match &scope {
            Scope::Everything => Trees::from_iter([Path::new("").into()]),
            Scope::Trees(trees) => trees.clone(),
        };
        let marks = match &scope {
            Scope::Everything => self.agenda.marks(),
            Scope::Trees(_) => Marks::default(),
        };
        let id = self.agenda.begin_scan(scope);
        self.crew.scan(open, id, &trees, marks);
        Run { id, activity: Tally::default(), waiters, refused_meanwhile: false }
    }

    fn sweep_interval(&self) -> Duration {
        if let Place::Open(open) = &self.place
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
        match &self.place {
            Place::Same | Place::Absent => WatchState::Absent,
            Place::Unreadable { .. } => WatchState::Degraded,
            Place::Open(open) if !open.gives_events => WatchState::Polling,
            Place::Open(open)
                if open.watcher.is_err() || self.refused.is_some() || self.is_flooded() =>
            {
                WatchState::Degraded
            }
            Place::Open(_) => WatchState::Active,
        }
    }

    /// Whether some directory has more events than can be read.
    fn is_flooded(&self) -> bool {
        !self.inbox.floods.is_empty()
    }

    /// Takes in what stands where the cache directory should be.
    fn probed(&mut self, place: Place) {
        self.crew.probed();
        if place.is_as_before(&self.place) {
            return;
        }
        let is_same = place.id().is_some() && place.id() == self.place.id();
        if !is_same || place.is_watched() != self.place.is_watched() {
            let every = self.check_interval.min(self.fallback_interval);
            place.announce(&self.place, &self.path, every);
        }
        if is_same {
            // The same directory with new watches, which a sweep has to set that begins from now on.
            let before = std::mem::replace(&mut self.place, place);
            if let Place::Open(open) = before
                && let Ok(watcher) = &open.watcher
            {
                watcher.retire();
            }
            // Whatever was lost is made up for by that sweep.
            self.inbox.take_events_lost();
            self.blind = false;
            self.is_rewatched = true;
            self.sweeps.something_was_missed();
            return self.sweeps.at_the_latest(Instant::now(), Duration::ZERO);
        }
        // A scan may have told so before.
        let is_told = self.agenda.could_not_read(Path::new(""));
        if let Place::Unreadable { reason } = &place
            && !is_told
        {
            let (now, activity) = (self.clock.now(), Tally { errors: 1, ..Tally::default() });
            self.accounts.count(activity, now);
            self.accounts.between(activity);
            self.accounts.error(&self.path, reason.clone(), now);
        }
        self.begin_anew(place);
        self.sweeps.at_the_latest(Instant::now(), Duration::ZERO);
    }

    /// Forgets what is known, since this stands there from now on.
    fn begin_anew(&mut self, place: Place) {
        self.crew.next_epoch();
        self.place = place;
        self.agenda = Agenda::new(self.root());
        self.due.clear();
        self.litter = Schedule::default();
        self.refused = None;
        (self.blind, self.is_rewatched) = (false, false);
        self.inbox.floods.clear();
        let _ = self.inbox.take();
        for run in [self.full.take(), self.trees.take()].into_iter().flatten() {
            self.accounts.between(run.activity);
            // The sweep that was asked for is made of what stands there now.
            self.sweeps.ask(run.waiters);
        }
    }

    /// Where the cache directory is, or is expected.
    fn root(&self) -> &Path {
        self.place.id().map_or(&self.path, |id| &id.path)
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Sweep(waiter) => self.sweeps.ask([waiter]),
            Request::Ping(waiter) => {
                let _ = waiter.send(());
            }
            Request::Buckets(waiter) => {
                let start = Instant::now();
                if self.buckets.as_ref().is_none_or(|(until, _)| start >= *until) {
                    let counted = self.agenda.buckets(self.clock.wall()).into_iter();
                    let counted = counted
                        .map(|(within_seconds, count)| ExpiryBucket { within_seconds, count })
                        .collect();
                    // However many ask, counting takes a twentieth of the time at the most.
                    self.buckets = Some((Instant::now() + start.elapsed() * 19, counted));
                }
                // Whoever asked may have gone.
                let _ = waiter.send(self.buckets.iter().flat_map(|(_, b)| b.clone()).collect());
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let now = self.clock.now();
        let far = now.mono + TICK;
        if !self.can_work() {
            return far;
        }
        // What can't be begun before something ends is not waited for here.
        let pair = self.agenda.next_pair(now).filter(|_| self.crew.room() > 0);
        let tree = self.agenda.next_tree(now).filter(|_| self.trees.is_none());
        let tree = tree.map(|at| at.max(self.next_trees));
        let news = (self.next_news > now.mono && !self.inbox.is_empty()).then_some(self.next_news);
        let flood = self.is_flooded().then_some(self.next_flood_list);
        let can_sweep = self.full.is_none() && !(self.blind && self.crew.is_probing());
        let sweep = can_sweep.then(|| self.sweeps.next());
        let litter = self.litter.next(now).filter(|_| !self.tidying);
        [pair, tree, news, flood, litter, sweep].into_iter().flatten().fold(far, Instant::min)
    }

    fn publish(&self) {
        let watch = self.watch_state();
        let resolved = self.place.id().map_or(&self.given, |id| &id.path);
        self.accounts.publish(|stats| {
            stats.heap_size = self.agenda.heap_size() as u64;
            stats.next_expiry = self.agenda.next_expiry();
            stats.watch = watch;
            if stats.cache_directory != *resolved {
                stats.cache_directory.clone_from(resolved);
            }
        });
    }
}
